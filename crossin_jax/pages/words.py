"""How figures, languages and durations are written on pages."""

from __future__ import annotations

from crossin_jax.languages import ENGLISH_NAMES


def duration(seconds: float | None) -> str:
  if seconds is None:
    return '\N{EM DASH}'
  minutes, rest = divmod(round(seconds), 60)
  return (
    f'{minutes // 60} h {minutes % 60:02d} min' if minutes >= 60 else f'{minutes} min {rest:02d} s'
  )


def thousands(value: float | None) -> str:
  return '\N{EM DASH}' if value is None else f'{round(value):,}'


def language_name(code: str) -> str:
  return ENGLISH_NAMES.get(code, code)


def percent(value: float | None) -> str:
  return '\N{EM DASH}' if value is None else f'{100 * value:.1f}'


def points(value: float | None) -> str:
  """Signed percentage points with a true minus sign; a rounded zero carries no sign."""
  if value is None:
    return '\N{EM DASH}'
  rounded = round(100 * value, 1)
  return '0.0' if rounded == 0 else f'{rounded:+.1f}'.replace('-', '\N{MINUS SIGN}')


_FIGURE_TITLES = {
  'accuracy_en': 'accuracy, English',
  'accuracy_elsewhere': 'accuracy, other languages',
  'heldout_loss': 'held-out loss',
}


def figure_title(figure: str) -> str:
  """'ac3_3' -> 'AC3_3', 'consistency_3' -> 'C_3', the others in words."""
  return _FIGURE_TITLES.get(figure, figure.replace('consistency', 'C').replace('ac3', 'AC3'))
