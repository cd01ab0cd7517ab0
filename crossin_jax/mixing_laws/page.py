"""fit.html: the laws of a sweep's shares and their proposal, on one self-contained page."""

from collections.abc import Mapping
import os

import numpy as np

from crossin_jax.mixing_laws import words
from crossin_jax.pages import page, plots


def write(path: str | os.PathLike, fit: Mapping) -> None:
  """Writes the page of a fit.json."""
  from markupsafe import Markup

  terms = fit['asked']['terms']
  values = {
    'fit': fit,
    'laws': words.law_rows(fit),
    'errors': words.ERRORS,
    'shares': words.share_rows(fit) if fit['gin'] else [],
    'sentences': words.sentences(fit) if fit['gin'] else [],
    'terms': {law['figure']: law['kind'] for law in fit['laws'] if law['figure'] in terms},
    'agreement': Markup(_agreement(fit)) if len(fit['mixtures']) > 1 else '',
  }
  filters = {'number': words.number, 'share': lambda x: f'{x:.3f}'}
  page.write(path, 'fit.html.j2', values, **filters)


def _agreement(fit: Mapping) -> str:
  """Predicted against observed: dots of fits to all mixtures, squares of fits to the others."""
  laws, colours = fit['laws'], plots.COLOURS
  columns = min(3, len(laws))
  rows = -(-len(laws) // columns)
  figure, grid = plots._figure(rows, columns, (2.9 * columns + 0.3, 2.5 * rows + 0.4))
  for extra in grid[len(laws) :]:
    extra.set_visible(False)
  for panel, law in zip(grid, laws):
    factor, unit = (100.0, '%') if law['kind'] == 'fraction' else (1.0, 'nats')
    check = law['held_out']
    x = factor * np.array(check['observed'])
    room = 0.35 * (np.ptp(x) or 1)
    low, high = x.min() - room, x.max() + room
    # A left-out prediction may be far off: it is drawn at the edge of a readable panel.
    draw = lambda y, *style, **more: panel.plot(
      x, np.clip(factor * np.array(y), low, high), *style, **more
    )
    fitted = [fit['mixtures'][m]['predicted'][law['figure']] for m in check['mixtures']]
    draw(fitted, 'o', color=colours[1], label='law fitted to all mixtures')
    if left_out := check['forms'].get(law['form']):
      style = {'color': colours[3], 'markerfacecolor': 'none', 'clip_on': False}
      draw(left_out['predicted'], 's', label='predicted from the other mixtures', **style)
    panel.plot([low, high], [low, high], color=plots._INK, linewidth=0.8, alpha=0.6, zorder=1)
    panel.set(xlim=(low, high), ylim=(low, high), xlabel='observed', ylabel='predicted')
    panel.set_title(f'{law["figure"]} ({unit})', fontsize=9, loc='left')
  plots._legend(figure, grid[0], 2)
  return plots._svg(figure)
