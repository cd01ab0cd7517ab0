"""fit.html: the laws of a sweep's shares and what they propose, on one page that needs nothing
else.
"""

from collections.abc import Mapping
import os

import numpy as np

from crossin_jax.mixing_laws import words as fit_words
from crossin_jax.pages import page, plots

_PANEL = (2.9, 2.5)  # inches
_MOST = 24  # panels of a drawing
_MINUS = '\N{MINUS SIGN}'


def write(path: str | os.PathLike, found: Mapping) -> None:
  """Writes the page of what `sweep_fit.fit` returned; it appears by rename."""
  from markupsafe import Markup

  drawn = [law for law in found['laws'] if not law['constant']][:_MOST]
  draw = lambda svg, prefix: Markup(plots.unique_ids(svg, prefix)) if svg else ''
  curves = [
    (component, draw(_curves(found, component, drawn), f'c{i}'))
    for i, component in enumerate(found['curves'])
  ]
  values = {
    'found': found,
    'rows': fit_words.law_rows(found),
    'forms': list(fit_words.FORM_NAMES),
    'names': fit_words.FORM_NAMES,
    'kind': fit_words.kind_of(found),
    'objective': fit_words.objective(found),
    'limits': fit_words.limits(found),
    'gain': fit_words.gain(found) if found['proposal'] and found['proposal']['shares'] else None,
    'agreement': draw(_agreement(found, drawn), 'a') if len(found['mixtures']) > 1 else '',
    'curves': curves if drawn else [],
    'title': fit_words.title,
    'law_text': _law_text,
    'best': _best(found),
  }
  page.write(
    path,
    'fit.html.j2',
    values,
    number=fit_words.number,
    amount=fit_words.amount,
    share=lambda x: f'{x:.3f}',
  )


def _law_text(law: Mapping) -> str:
  """The formula with its numbers."""
  own = law['coefficients']
  short = lambda x: f'{x:.3g}'.replace('-', _MINUS)
  if not own:
    return '\N{EM DASH}'
  terms = ' '.join(
    f'{_MINUS if t < 0 else "+"} {abs(t):.3g} {name}' for name, t in own['t'].items()
  ).removeprefix('+ ')
  if law['form'] == 'exponential':
    inner = f'{short(own["c"])} + {short(own["k"])} exp({terms})'
    return f'1 {_MINUS} ({inner})' if law['kind'] == 'fraction' else inner
  inner = f'{short(own["b"])} {"" if terms.startswith(_MINUS) else "+ "}{terms}'
  if law['form'] == 'linear':
    return inner
  chance = law['chance']
  return f'{short(chance)} + {short(1 - chance)} / (1 + exp({_MINUS}({inner})))'


def _best(found: Mapping) -> dict | None:
  """The best mixture that was run, by what was measured, offsets of seeds taken off."""
  if not found['proposal']:
    return None
  terms, maximise = found['asked']['terms'], found['asked']['maximise']
  measured = []
  for i, one in enumerate(found['mixtures']):
    if all(one['mean'][name] is not None for name in terms):
      total = sum(weight * one['mean'][name] for name, weight in terms.items()) / sum(
        terms.values()
      )
      measured.append((total if maximise else -total, i, total))
  if not measured:
    return None
  _, i, value = max(measured)
  return {'value': float(value), **found['mixtures'][i]}


def _factor(law: Mapping) -> float:
  return 100.0 if law['kind'] == 'fraction' else 1.0


def _unit(law: Mapping) -> str:
  return '%' if law['kind'] == 'fraction' else 'nats'


def _grid(count: int):
  columns = min(3, count)
  rows = -(-count // columns)
  figure, axes = plots._figure(rows, columns, (_PANEL[0] * columns + 0.3, _PANEL[1] * rows + 0.4))
  for extra in axes[count:]:
    extra.set_visible(False)
  return figure, axes


def _agreement(found: Mapping, laws: list) -> str:
  """Predicted against observed, a panel a figure: dots from all points, rings from the other
  mixtures alone.
  """
  if not laws:
    return ''
  figure, grid = _grid(len(laws))
  for panel, law in zip(grid, laws):
    name, factor = law['figure'], _factor(law)
    check = law['held_out']
    fitted = [found['mixtures'][m]['predicted'][name] for m in check['mixtures']]
    x = factor * np.array(check['observed'])
    sets = [x, factor * np.array(fitted)]
    panel.plot(
      x, sets[1], 'o', color=plots.COLOURS[1], markersize=5, label='law fitted to all mixtures'
    )
    own = check['forms'].get(law['form'])
    if own:
      sets.append(factor * np.array(own['predicted']))
      panel.plot(
        x, sets[2], 's', color=plots.COLOURS[3], markersize=6, markerfacecolor='none',
        markeredgewidth=1.3,
        label='predicted from the other mixtures',
      )  # fmt: skip
    # A left-out prediction may be far off; the panel stays readable, and what lies beyond is drawn
    # at its edge.
    low, high = min(sets[0].min(), sets[1].min()), max(sets[0].max(), sets[1].max())
    room = 0.35 * ((high - low) or 1)
    low, high = low - room, high + room
    for line in panel.lines:
      line.set_ydata(
        np.clip(line.get_ydata(), low + 0.02 * (high - low), high - 0.02 * (high - low))
      )
    panel.plot(
      [low, high],
      [low, high],
      color=plots._INK,
      linewidth=0.8,
      linestyle=(0, (4, 3)),
      alpha=0.6,
      zorder=1,
    )
    panel.set_xlim(low, high)
    panel.set_ylim(low, high)
    panel.set_title(f'{fit_words.title(name)} ({_unit(law)})', fontsize=9, loc='left')
    panel.set_xlabel('observed')
    panel.set_ylabel('predicted')
    panel.locator_params(nbins=5)
  plots._legend(figure, grid[0], 2)
  return plots._svg(figure)


def _curves(found: Mapping, component: str, laws: list) -> str:
  """The laws along one share, with bands, the points that were run, and the proposal."""
  own = found['curves'][component]
  if not laws:
    return ''
  figure, grid = _grid(len(laws))
  x = np.array(own['x'])
  proposal = found['proposal']
  for panel, law in zip(grid, laws):
    name, factor = law['figure'], _factor(law)
    curve = own['figures'][name]
    if curve['low'] is not None:
      low, high = factor * np.array(curve['low']), factor * np.array(curve['high'])
      panel.fill_between(
        x, low, high, color=plots.COLOURS[1], alpha=0.22, linewidth=0, label='95 % band of the law'
      )
    panel.plot(x, factor * np.array(curve['y']), color=plots.COLOURS[1], linewidth=1.6, label='law')
    seen = [
      (one['shares'][component], v) for one in found['mixtures'] for v in one['observed'][name]
    ]
    if seen:
      xs, ys = np.array(seen).T
      panel.plot(
        xs, factor * ys, 'o', color=plots.COLOURS[0], markersize=3.5, alpha=0.8, label='runs'
      )
    if law['chance'] and min(factor * v for _, v in seen) < 150 * law['chance']:
      panel.axhline(
        100 * law['chance'],
        color=plots._INK,
        linewidth=0.8,
        linestyle=(0, (1, 2)),
        alpha=0.7,
        label='chance',
      )
    if proposal and proposal['shares']:
      panel.axvline(
        proposal['shares'][component],
        color=plots.COLOURS[3],
        linewidth=1.3,
        linestyle=(0, (4, 2)),
        label='proposed',
      )
    panel.set_title(f'{fit_words.title(name)} ({_unit(law)})', fontsize=9, loc='left')
    panel.set_xlabel(f'share of {component}')
    panel.locator_params(nbins=5)
  # The panel that has every kind of mark speaks for all.
  plots._legend(
    figure, max(grid[: len(laws)], key=lambda panel: len(panel.get_legend_handles_labels()[1])), 5
  )
  return plots._svg(figure)
