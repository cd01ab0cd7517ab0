"""Formats of figures, languages, durations and tables on pages and in terminals."""

from collections.abc import Sequence
import re

from crossin_jax.languages import english_name

_NONE = '\N{EM DASH}'
_CONTROL = re.compile(
  '[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]'
)


def duration(seconds: float | None) -> str:
  if seconds is None:
    return _NONE
  minutes, rest = divmod(round(seconds), 60)
  hours = minutes // 60
  return f'{hours} h {minutes % 60:02d} min' if hours else f'{minutes} min {rest:02d} s'


def thousands(value: float | None) -> str:
  return _NONE if value is None else f'{round(value):,}'


def language_name(code: str) -> str:
  return english_name(code)


def percent(value: float | None) -> str:
  return _NONE if value is None else f'{100 * value:.1f}'


def points(value: float | None) -> str:
  """Signed percentage points with a true minus sign; a rounded zero has no sign."""
  if value is None:
    return _NONE
  rounded = round(100 * value, 1)
  return '0.0' if rounded == 0 else f'{rounded:+.1f}'.replace('-', '\N{MINUS SIGN}')


def shortened(text: str, most: int) -> str:
  """The text, or its beginning with an ellipsis: at most `most` characters."""
  return text if len(text) <= most else text[: most - 1] + '\N{HORIZONTAL ELLIPSIS}'


def shown(text: str, most: int) -> str:
  """The text, or its first `most` characters with an ellipsis, without control characters and
  direction marks.
  """
  text = text.strip()
  short = text[:most]
  if len(text) > most:
    short = f'{short.rstrip()} \N{HORIZONTAL ELLIPSIS}'
  return _CONTROL.sub('\N{REPLACEMENT CHARACTER}', short.replace('\r\n', '\n').replace('\r', '\n'))


def aligned(rows: Sequence[Sequence[str]]) -> str:
  """Rows of cells as columns of text, aligned to the left."""
  widths = [max(map(len, column)) for column in zip(*rows)]
  return '\n'.join(
    '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
  )


_FIGURE_TITLES = {
  'accuracy_en': 'accuracy, English',
  'accuracy_elsewhere': 'accuracy, other languages',
  'heldout_loss': 'held-out loss',
}


def figure_title(figure: str) -> str:
  """'ac3_3' -> 'AC3_3', 'consistency_3' -> 'C_3', the others in words."""
  return _FIGURE_TITLES.get(figure, figure.replace('consistency', 'C').replace('ac3', 'AC3'))
