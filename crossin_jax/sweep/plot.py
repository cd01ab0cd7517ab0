"""The plot of a sweep."""

from collections.abc import Sequence
import io

import numpy as np

from crossin_jax.config import ConfigError
from crossin_jax.pages.plots import COLOURS
from crossin_jax.pages.words import figure_title
from crossin_jax.sweep.points import in_words
from crossin_jax.sweep.words import label, variant_labels


def x_axis(axes: dict[str, list]) -> str:
  """The last axis of numbers ('all' counts as one), else the last axis."""
  number = lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)
  numeric = [axis for axis, values in axes.items() if all(number(v) or v == 'all' for v in values)]
  return (numeric or list(axes))[-1]


def plot(
  table: Sequence[dict], axes: dict[str, list], figure: str | None, chance: dict[str, float]
) -> bytes:
  """A PNG of a figure over the last numeric axis, with intervals and a line for each combination of
  the other axes.

  Args:
    table: rows of sweep.json; those of its first question file are drawn.
    axes: axis -> values, in drawing order.
    figure: see `Settings.figure`.
    chance: name -> fraction, drawn as a dashed line.

  Raises:
    ConfigError: no row has that figure.
  """
  from matplotlib.figure import Figure  # half a second to import

  table = [row for row in table if row['benchmark'] == table[0]['benchmark']]
  known = list(dict.fromkeys(name for row in table for name in row['figures']))
  default = next((name for name in known if name.startswith('ac3')), 'heldout_loss')
  figure = figure or default
  if figure not in known:
    raise ConfigError(f'sweep.figure = {figure!r} was not measured, only {", ".join(known)}')
  table, axes = _plain([row for row in table if figure in row['figures']], axes)
  factor = 1 if figure == 'heldout_loss' else 100  # fractions in per cent
  along = x_axis(axes)
  scale, position = _scale(axes[along])
  variants = variant_labels(list(axes['variant'])) if 'variant' in axes else {}
  lines: dict[str, list[dict]] = {}
  for row in table:
    lines.setdefault(_line_label(row['values'], along, variants), []).append(row)

  page = Figure(figsize=(5.6, 3.5), dpi=220, layout='constrained')
  panel = page.add_subplot()
  panel.set_xscale(scale)
  panel.set_xlim(_room(min(position.values()), max(position.values()), 0.06, scale == 'log'))
  # (x position, {'estimate', ...} with fractions in per cent) of the points of each line
  points = {
    name: sorted(
      ((position[row['values'][along]], _scaled(row['figures'][figure], factor)) for row in rows),
      key=lambda point: point[0],
    )
    for name, rows in lines.items()
  }
  _draw_lines(panel, points)
  if figure in chance:
    _draw_chance(panel, 100 * chance[figure])
  labels = [label(along, value, variants) for value in position]
  panel.set_xticks(list(position.values()), labels, minor=False)
  panel.xaxis.minorticks_off()
  ends = [v for line in points.values() for _, one in line for v in one.values() if v is not None]
  bottom, top = _room(min(ends), max(ends), 0.08)
  panel.set_ylim((0, max(top, 110 * chance.get(figure, 0))) if factor == 100 else (bottom, top))
  if position.get('all', 0) > 0:
    # The axis is broken before 'all', which is no number.
    panel.annotate(
      '//', (position['all'] - 0.5, 0), xycoords=('data', 'axes fraction'), ha='center',
      va='center', fontsize=9,
      bbox={'boxstyle': 'square,pad=0.02', 'facecolor': 'white', 'edgecolor': 'none'},
    )  # fmt: skip
  panel.set_xlabel(_X_TITLES.get(along, along))
  panel.set_ylabel(_Y_TITLES.get(figure) or _mathematical(figure_title(figure)) + ' (%)')
  panel.spines[['top', 'right']].set_visible(False)
  panel.grid(axis='y', alpha=0.2, linewidth=0.7)
  panel.set_axisbelow(True)
  if len(lines) > 1 or next(iter(lines)):
    page.legend(
      loc='outside upper left', ncols=min(len(lines), 3), frameon=False, fontsize=9,
      handlelength=2.9, columnspacing=1.4,
    )  # fmt: skip
  buffer = io.BytesIO()
  page.savefig(buffer, format='png', metadata={'Software': None})
  return buffer.getvalue()


def _draw_lines(panel, lines: dict[str, list[tuple[float, dict]]]) -> None:
  """Draws lines side by side, and positions where all lines are equal (volume 0) as one dot."""
  at: dict[float, list[dict]] = {}
  for points in lines.values():
    for x, figure in points:
      at.setdefault(x, []).append(figure)
  equal = lambda figures: len(figures) > 1 and figures.count(figures[0]) == len(figures)
  shared = {x for x, figures in at.items() if equal(figures)}
  styles, spread = _styles(list(lines)), min(0.015, 0.07 / len(lines))
  for k, (name, points) in enumerate(lines.items()):
    shift = (k - (len(lines) - 1) / 2) * spread
    colour, marker, hollow = styles[name]
    _errorbar(
      panel, [_move(panel, x, 0 if x in shared else shift) for x, _ in points],
      [figure for _, figure in points], label=name, color=colour, marker=marker, markersize=5,
      linewidth=1.5, linestyle=(0, (3.5, 1.5)) if hollow else '-',
      markerfacecolor='white' if hollow else colour,
    )  # fmt: skip
  for x in shared:
    _errorbar(panel, [x], at[x][:1], color='#333', marker='o', markersize=5.5, zorder=4)


def _errorbar(panel, x: list[float], figures: list[dict], **style) -> None:
  y, low, high = (
    np.array([np.nan if one[key] is None else one[key] for one in figures])
    for key in ('estimate', 'low', 'high')
  )
  panel.errorbar(x, y, yerr=np.maximum(0, [y - low, high - y]), elinewidth=1, capsize=2.5, **style)


def _draw_chance(panel, level: float) -> None:
  panel.axhline(level, color='#555', linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
  panel.annotate(
    'chance', (1, level), xycoords=('axes fraction', 'data'), xytext=(4, 0),
    textcoords='offset points', va='center', fontsize=8.5, color='#555',
  )  # fmt: skip


def _scaled(figure: dict, factor: float) -> dict:
  """Estimate and ends of the interval, times a factor."""
  keys = ('estimate', 'low', 'high')
  return {key: None if figure[key] is None else figure[key] * factor for key in keys}


_COLOURS = COLOURS[1:6]  # without the grey, which is for baselines
_MARKERS = 'osD^v'
_X_TITLES = {
  'volume': 'examples per CrossIn component',
  'variant': '',
  'BATCH_SIZE': 'batch size',
  'TRAIN_STEPS': 'steps',
}
_Y_TITLES = {
  'heldout_loss': 'held-out loss (nats per token)',
  'accuracy_en': 'accuracy in English (%)',
  'accuracy_elsewhere': 'accuracy in the other languages (%)',
}


def _plain(table: Sequence[dict], axes: dict[str, list]) -> tuple[list[dict], dict[str, list]]:
  """Rows and axes with dicts (shares) in words, a line each, and lists as tuples."""

  def plain(axis: str, value):
    if isinstance(value, dict):
      return in_words(value, axes[axis]).replace(', ', '\n')
    return tuple(value) if isinstance(value, list) else value

  rows = [
    row | {'values': {axis: plain(axis, value) for axis, value in row['values'].items()}}
    for row in table
  ]
  return rows, {axis: [plain(axis, value) for value in values] for axis, values in axes.items()}


def _scale(values: Sequence) -> tuple[str, dict]:
  """Scale of the axis, and value -> position: evenly spaced for words, else the number."""
  if not all(isinstance(value, (int, float)) for value in values) or len(set(values)) < len(values):
    return 'linear', {value: i for i, value in enumerate(dict.fromkeys(values))}
  position = {value: value for value in values}
  if min(values) > 0 and max(values) / min(values) >= 8:
    return 'log', position
  return 'linear', position


def _room(low: float, high: float, part: float, log: bool = False) -> tuple[float, float]:
  """The range, widened on both sides by a part of it."""
  if log:
    return low / (high / low) ** part, high * (high / low) ** part
  room = part * ((high - low) or abs(high) or 1)
  return low - room, high + room


def _move(panel, position: float, part: float) -> float:
  """The position moved by a part of the x axis."""
  low, high = panel.get_xlim()
  if panel.get_xscale() == 'log':
    return position * (high / low) ** part
  return position + part * (high - low)


def _line_label(values: dict, along: str, variants: dict[str, str]) -> str:
  parts = []
  for axis, value in values.items():
    if axis != along:
      name = '' if axis in ('variant', 'languages', 'preset') else f'{axis.split(".")[-1].lower()} '
      parts.append(name + label(axis, value, variants))
  return ', '.join(parts)


def _styles(labels: Sequence[str]) -> dict[str, tuple[str, str, bool]]:
  """Colour, marker, and whether dashed and hollow: a line with Trans, in the colour of the same
  line without it.
  """
  stem = lambda name: name.replace(' + trans', '')
  stems = list(dict.fromkeys(map(stem, labels)))
  styles = {}
  for name in labels:
    k = stems.index(stem(name))
    again = (stem(name) != name and stem(name) in labels) != bool(k // len(_COLOURS) % 2)
    styles[name] = (
      _COLOURS[k % len(_COLOURS)],
      _MARKERS[(k + k // len(_COLOURS)) % len(_MARKERS)],
      again,
    )
  return styles


def _mathematical(text: str) -> str:
  """'AC3_3' -> 'AC3$_3$'."""
  base, _, index = text.rpartition('_')
  return f'{base}$_{{{index}}}$' if base else text
