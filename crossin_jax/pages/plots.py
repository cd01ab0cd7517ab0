"""Plots of the pages, as SVG text to embed in HTML.

Axes and labels use `currentColor`, so one drawing serves light, dark and printed pages. Labels use
the font of the page and are Latin only: language codes and arm titles.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
import io
import re

import numpy as np

# Readable on white and on near-black; markers distinguish arms without colour.
COLOURS = ('#8b929c', '#4a86c5', '#b274b8', '#dd7d1b', '#2c9c63', '#c9534f', '#a58a2a', '#4fa3a5')
_MARKERS = 'os^DvPX*'
_INK = '#010203'  # replaced by currentColor


@dataclass
class Series:
  """One arm in a plot.

  Attributes:
    label: in the legend.
    style: index of colour and marker.
    x, y: coordinates.
    low, high: ends of the intervals, NaN where there is none.
  """

  label: str
  style: int
  x: Sequence[float]
  y: Sequence[float]
  low: Sequence[float] = field(default_factory=list)
  high: Sequence[float] = field(default_factory=list)


def points(
  series: Sequence[Series], labels: Sequence[str], ylabel: str, level: float, level_label: str
) -> str:
  """Dots with interval bars, side by side per label, and a dashed line at `level`; per cent."""
  figure, (axes,) = _figure(1, 1, (max(9.0, 1.0 + 0.75 * len(labels)), 3.3))
  spread = min(0.16, 0.8 / max(len(series), 1))
  for k, one in enumerate(series):
    x = np.asarray(one.x, float) + (k - (len(series) - 1) / 2) * spread
    colour, marker = _colour_and_marker(one)
    if len(one.low):
      axes.vlines(x, one.low, one.high, color=colour, linewidth=1.6, alpha=0.8)
    dots = {'color': colour, 'markersize': 5, 'clip_on': False, 'zorder': 3}
    axes.plot(x, np.asarray(one.y, float), marker, label=one.label, **dots)
  axes.axhline(level, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.7, zorder=1)
  axes.set_xticks(range(len(labels)), labels)
  axes.set_xlim(-0.6, len(labels) - 0.4)
  axes.set_ylim(0, min(100, axes.get_ylim()[1] * 1.04))  # dots at 0 and 100 are drawn whole
  # The label is outside the axes, where it cannot cover a dot.
  axes.annotate(
    level_label,
    (1, level),
    xycoords=('axes fraction', 'data'),
    xytext=(4, -3),
    textcoords='offset points',
  )
  axes.set_ylabel(ylabel)
  _legend(figure, axes, len(series))
  return _svg(figure)


def curves(series: Sequence[Series], ylabel: str, xlabel: str = 'step') -> str:
  """Lines over steps."""
  figure, (axes,) = _figure(1, 1, (4.6, 3.0))
  _lines(axes, series)
  axes.set_xlabel(xlabel)
  axes.set_ylabel(ylabel)
  _legend(figure, axes, len(series), columns=3)
  return _svg(figure)


def small_curves(panels: Mapping[str, Sequence[Series]], ylabel: str, xlabel: str = 'step') -> str:
  """A panel of lines over steps per language code, with a common scale."""
  columns = 4  # also for fewer panels, which keeps the font size
  rows = -(-len(panels) // columns)
  figure, grid = _figure(rows, columns, (2.35 * columns + 0.4, 1.75 * rows + 0.7))
  used = grid[: len(panels)]
  for axes in grid[len(panels) :]:
    axes.set_visible(False)
  for i, (axes, (code, series)) in enumerate(zip(used, panels.items())):
    _lines(axes, series)
    axes.set_title(code, fontsize=9, loc='left')
    if i % columns == 0:
      axes.set_ylabel(ylabel)
    if i + columns >= len(panels):
      axes.set_xlabel(xlabel)
  lows, highs = zip(*(axes.get_ylim() for axes in used))
  for axes in used:
    axes.set_ylim(min(lows), max(highs))
  _legend(figure, grid[0], len(next(iter(panels.values()))))
  return _svg(figure)


def _lines(axes, series: Sequence[Series]) -> None:
  for one in series:
    colour, marker = _colour_and_marker(one)
    axes.plot(
      one.x,
      one.y,
      color=colour,
      linewidth=1.5,
      label=one.label,
      marker=marker,
      markersize=4,
      markevery=max(1, len(one.x) // 6),
    )


def _colour_and_marker(series: Series) -> tuple[str, str]:
  return COLOURS[series.style % len(COLOURS)], _MARKERS[series.style % len(_MARKERS)]


def _figure(rows: int, columns: int, size: tuple[float, float]):
  from matplotlib.figure import Figure  # takes half a second to import, and only reports need it

  figure = Figure(figsize=size, layout='constrained')
  figure.patch.set_alpha(0)
  grid = [figure.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
  for axes in grid:
    axes.patch.set_alpha(0)
    axes.spines[['top', 'right']].set_visible(False)
    axes.spines[['left', 'bottom']].set_color(_INK)
    axes.tick_params(colors=_INK, labelsize=9)
    for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
      text.set_color(_INK)
    axes.grid(axis='y', color=_INK, alpha=0.12, linewidth=0.8)
  return figure, grid


def _legend(figure, axes, count: int, columns: int = 6) -> None:
  handles, labels = axes.get_legend_handles_labels()
  if handles:
    figure.legend(
      handles,
      labels,
      loc='outside upper left',
      ncols=min(count, columns),
      frameon=False,
      fontsize=9,
      labelcolor=_INK,
      handletextpad=0.4,
      columnspacing=1.2,
    )


def _svg(figure) -> str:
  import matplotlib

  for text in figure.findobj(matplotlib.text.Text):
    text.set_color(_INK)
  buffer = io.StringIO()
  # NB: fonttype 'none' keeps text as text (small, searchable); the salt makes the file
  # deterministic.
  with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'crossin'}):
    figure.savefig(buffer, format='svg', metadata={'Date': None, 'Creator': None})
  svg = buffer.getvalue()
  svg = svg[svg.index('<svg') :]
  svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
  for size in ('width', 'height'):
    svg = re.sub(rf'(<svg[^>]*?) {size}="[^"]*"', r'\1', svg, count=1)
  svg = re.sub(r'font: ([\d.]+px)[^;\"]*', r'font: \1 inherit; font-family: inherit', svg)
  return svg.replace(_INK, 'currentColor')


def unique_ids(svg: str, prefix: str) -> str:
  """Prefixes the IDs of a drawing: the drawings of a page must not share IDs."""
  return re.sub(r'(\bid="|href="#|url\(#)', rf'\g<1>{prefix}-', svg)
