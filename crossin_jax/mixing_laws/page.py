"""fit.html: the laws of a sweep's shares and their proposal, on one self-contained page."""

from collections.abc import Mapping
import os

import numpy as np

from crossin_jax.mixing_laws import words
from crossin_jax.pages import page, plots

_PANEL = (2.9, 2.5)  # inches
_MOST = 24  # panels of a drawing
_MINUS = '\N{MINUS SIGN}'


def write(path: str | os.PathLike, fit: Mapping) -> None:
  """Writes the page of a fit.json."""
  from markupsafe import Markup

  laws = [law for law in fit['laws'] if not law['constant']][:_MOST]
  draw = lambda svg, prefix: Markup(plots.unique_ids(svg, prefix))
  curves = [
    (component, draw(_curves(fit, component, laws), f'c{i}'))
    for i, component in enumerate(fit['curves'] if laws else ())
  ]
  values = {
    'fit': fit,
    'rows': words.law_rows(fit),
    'names': words.FORM_NAMES,
    'kind': words.kind_of(fit),
    'objective': words.objective(fit),
    'limits': words.limits(fit),
    'gain': words.gain(fit) if fit['proposal'] and fit['proposal']['shares'] else None,
    'agreement': draw(_agreement(fit, laws), 'a') if laws and len(fit['mixtures']) > 1 else '',
    'curves': curves,
    'law_text': _law_text,
    'best': _best(fit),
  }
  filters = {'number': words.number, 'amount': words.amount, 'share': lambda x: f'{x:.3f}'}
  page.write(path, 'fit.html.j2', values, **filters)


def _law_text(law: Mapping) -> str:
  """The formula with its numbers."""
  coefficients, chance = law['coefficients'], law['chance']
  if not coefficients:
    return words.DASH
  short = lambda x: f'{x:.3g}'.replace('-', _MINUS)
  terms = ' '.join(
    f'{_MINUS if t < 0 else "+"} {abs(t):.3g} {name}' for name, t in coefficients['t'].items()
  ).removeprefix('+ ')
  if law['form'] == 'exponential':
    text = f'{short(coefficients["c"])} + {short(coefficients["k"])} exp({terms})'
    return f'1 {_MINUS} ({text})' if law['kind'] == 'fraction' else text
  text = f'{short(coefficients["b"])} {"" if terms.startswith(_MINUS) else "+ "}{terms}'
  if law['form'] == 'linear':
    return text
  return f'{short(chance)} + {short(1 - chance)} / (1 + exp({_MINUS}({text})))'


def _best(fit: Mapping) -> dict | None:
  """The measured best mixture, without the offsets of seeds."""
  terms, sign = fit['asked']['terms'], 1 if fit['asked']['maximise'] else -1
  measured = []
  for mixture in fit['mixtures'] if fit['proposal'] else ():
    if all(mixture['mean'][name] is not None for name in terms):
      total = sum(weight * mixture['mean'][name] for name, weight in terms.items())
      measured.append({'value': float(total / sum(terms.values())), **mixture})
  return max(measured, key=lambda mixture: sign * mixture['value'], default=None)


def _panels(laws: list, xlabel: str):
  """A figure with a titled panel for each law, and the factor of its values."""
  columns = min(3, len(laws))
  rows = -(-len(laws) // columns)
  size = (_PANEL[0] * columns + 0.3, _PANEL[1] * rows + 0.4)
  figure, grid = plots._figure(rows, columns, size)
  for extra in grid[len(laws) :]:
    extra.set_visible(False)
  for panel, law in zip(grid, laws):
    unit = '%' if law['kind'] == 'fraction' else 'nats'
    panel.set_title(f'{words.title(law["figure"])} ({unit})', fontsize=9, loc='left')
    panel.set_xlabel(xlabel)
    panel.locator_params(nbins=5)
  return figure, [
    (panel, law, 100.0 if law['kind'] == 'fraction' else 1.0) for panel, law in zip(grid, laws)
  ]


def _agreement(fit: Mapping, laws: list) -> str:
  """Predicted against observed: dots of fits to all mixtures, squares of fits to the others."""
  figure, panels = _panels(laws, 'observed')
  for panel, law, factor in panels:
    name, check = law['figure'], law['held_out']
    predicted = [fit['mixtures'][m]['predicted'][name] for m in check['mixtures']]
    x, y = factor * np.array(check['observed']), factor * np.array(predicted)
    colours = plots.COLOURS
    panel.plot(x, y, 'o', color=colours[1], markersize=5, label='law fitted to all mixtures')
    if left_out := check['forms'].get(law['form']):
      panel.plot(
        x, factor * np.array(left_out['predicted']), 's', color=colours[3], markersize=6,
        markerfacecolor='none', markeredgewidth=1.3, label='predicted from the other mixtures',
      )  # fmt: skip
    # A left-out prediction may be far off: it is drawn at the edge of a readable panel.
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    room = 0.35 * ((high - low) or 1)
    low, high = low - room, high + room
    inset = 0.02 * (high - low)
    for line in panel.lines:
      line.set_ydata(np.clip(line.get_ydata(), low + inset, high - inset))
    dashed = {'linewidth': 0.8, 'linestyle': (0, (4, 3)), 'alpha': 0.6, 'zorder': 1}
    panel.plot([low, high], [low, high], color=plots._INK, **dashed)
    panel.set_xlim(low, high)
    panel.set_ylim(low, high)
    panel.set_ylabel('predicted')
  plots._legend(figure, panels[0][0], 2)
  return plots._svg(figure)


def _curves(fit: Mapping, component: str, laws: list) -> str:
  """The laws along one share, with bands, the points that were run, and the proposal."""
  figure, panels = _panels(laws, f'share of {component}')
  curves, proposal = fit['curves'][component], fit['proposal']
  x, colours = np.array(curves['x']), plots.COLOURS
  for panel, law, factor in panels:
    curve = {
      key: factor * np.array(values)
      for key, values in curves['figures'][law['figure']].items()
      if values is not None
    }
    if 'low' in curve:
      band = {'color': colours[1], 'alpha': 0.22, 'linewidth': 0, 'label': '95 % band of the law'}
      panel.fill_between(x, curve['low'], curve['high'], **band)
    panel.plot(x, curve['y'], color=colours[1], linewidth=1.6, label='law')
    runs = [
      (mixture['shares'][component], factor * value)
      for mixture in fit['mixtures']
      for value in mixture['observed'][law['figure']]
    ]
    xs, ys = np.array(runs).T
    panel.plot(xs, ys, 'o', color=colours[0], markersize=3.5, alpha=0.8, label='runs')
    if law['chance'] and ys.min() < 150 * law['chance']:
      dotted = {'linewidth': 0.8, 'linestyle': (0, (1, 2)), 'alpha': 0.7, 'label': 'chance'}
      panel.axhline(100 * law['chance'], color=plots._INK, **dotted)
    if proposal and proposal['shares']:
      dashed = {'linewidth': 1.3, 'linestyle': (0, (4, 2)), 'label': 'proposed'}
      panel.axvline(proposal['shares'][component], color=colours[3], **dashed)
  # The panel with the most kinds of marks has the complete legend.
  most = max(panels, key=lambda entry: len(entry[0].get_legend_handles_labels()[1]))
  plots._legend(figure, most[0], 5)
  return plots._svg(figure)
