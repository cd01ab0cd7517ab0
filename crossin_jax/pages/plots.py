"""The report's plots, as SVG text that stands inside an HTML page.

Axes and words are drawn in `currentColor`, so that one drawing serves a light, a dark and a printed
page. Words are left to the page's font and are Latin only: labels are language codes and arm
titles, native scripts belong in the page itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
import io
import re

import numpy as np

# Readable on white and on near-black; the marker tells arms apart where colour does not.
COLOURS = ('#8b929c', '#4a86c5', '#b274b8', '#dd7d1b', '#2c9c63', '#c9534f', '#a58a2a', '#4fa3a5')
_MARKERS = 'os^DvPX*'
_INK = '#010203'  # replaced by currentColor


@dataclass
class Series:
  """One arm in a plot."""

  label: str
  style: int  # index of colour and marker
  x: Sequence[float]
  y: Sequence[float]
  # ends of the intervals, NaN where there is none
  low: Sequence[float] = field(default_factory=list)
  high: Sequence[float] = field(default_factory=list)


def points(
  series: Sequence[Series], labels: Sequence[str], ylabel: str, level: float, level_label: str
) -> str:
  """Dots with interval bars, side by side per label; `level` is a dashed line. y, low, high and
  level in per cent.
  """
  figure, (axes,) = _figure(1, 1, (max(9.0, 1.0 + 0.75 * len(labels)), 3.3))
  spread = min(0.16, 0.8 / max(len(series), 1))
  for k, one in enumerate(series):
    x = np.asarray(one.x, float) + (k - (len(series) - 1) / 2) * spread
    y = np.asarray(one.y, float)
    if len(one.low):
      axes.vlines(x, one.low, one.high, color=_colour(one.style), linewidth=1.6, alpha=0.8)
    axes.plot(
      x,
      y,
      _MARKERS[one.style % len(_MARKERS)],
      color=_colour(one.style),
      markersize=5,
      label=one.label,
    )
  axes.axhline(level, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.7, zorder=1)
  axes.set_xticks(range(len(labels)), labels)
  axes.set_xlim(-0.6, len(labels) - 0.4)
  axes.set_ylim(0, min(100, axes.get_ylim()[1] * 1.04))
  # The label stands outside the axes, where no dot can lie under it.
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
  """A panel per language code, lines over steps, one scale for all panels."""
  columns = 4  # also for fewer panels, which keeps the size of the words
  rows = -(-len(panels) // columns)
  figure, grid = _figure(rows, columns, (2.35 * columns + 0.4, 1.75 * rows + 0.7))
  for i, axes in enumerate(grid):
    if i >= len(panels):
      axes.set_visible(False)
      continue
    code, series = list(panels.items())[i]
    _lines(axes, series)
    axes.set_title(code, fontsize=9, loc='left')
    if i % columns == 0:
      axes.set_ylabel(ylabel)
    if i + columns >= len(panels):
      axes.set_xlabel(xlabel)
  ends = [axes.get_ylim() for axes in grid[: len(panels)]]
  for axes in grid[: len(panels)]:
    axes.set_ylim(min(end[0] for end in ends), max(end[1] for end in ends))
  _legend(figure, grid[0], len(next(iter(panels.values()))))
  return _svg(figure)


def _lines(axes, series: Sequence[Series]) -> None:
  for one in series:
    count = len(one.x)
    axes.plot(
      one.x,
      one.y,
      color=_colour(one.style),
      linewidth=1.5,
      label=one.label,
      marker=_MARKERS[one.style % len(_MARKERS)],
      markersize=4,
      markevery=max(1, count // 6),
    )


def _colour(style: int) -> str:
  return COLOURS[style % len(COLOURS)]


def _figure(rows: int, columns: int, size: tuple[float, float]):
  from matplotlib.figure import Figure  # half a second to import, and only a report needs it

  figure = Figure(figsize=size, layout='constrained')
  figure.patch.set_alpha(0)
  grid = [figure.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
  for axes in grid:
    axes.patch.set_alpha(0)
    axes.spines[['top', 'right']].set_visible(False)
    axes.spines[['left', 'bottom']].set_color(_INK)
    axes.tick_params(colors=_INK, labelsize=9)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    axes.title.set_color(_INK)
    axes.grid(axis='y', color=_INK, alpha=0.12, linewidth=0.8)
  return figure, grid


def _legend(figure, axes, count: int, columns: int = 6) -> None:
  handles, labels = axes.get_legend_handles_labels()
  if handles:
    figure.legend(
            handles, labels, loc="outside upper left", ncols=min(count, columns), frameon=False,
            fontsize=9, labelcolor=_INK,
            handletextpad=0.4, columnspacing=1.2,
        )  # fmt: skip


def _svg(figure) -> str:
  import matplotlib

  for text in figure.findobj(matplotlib.text.Text):
    text.set_color(_INK)
  buffer = io.StringIO()
  # NB: fonttype 'none' keeps words as words (small, searchable); the salt makes equal data give
  # equal files.
  with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'crossin'}):
    figure.savefig(buffer, format='svg', metadata={'Date': None, 'Creator': None})
  svg = buffer.getvalue()
  svg = svg[svg.index('<svg') :]
  svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
  svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1', svg, count=1)
  svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1', svg, count=1)
  svg = re.sub(r'font: ([\d.]+px)[^;\"]*', r'font: \1 inherit; font-family: inherit', svg)
  return svg.replace(_INK, 'currentColor')


def unique_ids(svg: str, prefix: str) -> str:
  """Gives the drawing's ids a prefix: several drawings in one page must not share an id."""
  return re.sub(r'(\bid="|href="#|url\(#)', rf'\g<1>{prefix}-', svg)
