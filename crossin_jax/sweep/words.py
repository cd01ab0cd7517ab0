"""Labels of the values of a sweep."""

from collections.abc import Sequence

from crossin_jax.data.mixture_name import CROSSIN_MODES
from crossin_jax.sweep.points import in_words


def variant_labels(variants: Sequence[str]) -> dict[str, str]:
  """Variants by their CrossIn components, or by all components if these do not tell them apart.

  ('base_x2x', 'base_x2x_trans') -> 'x2x', 'x2x + trans'
  """
  short = {v: ' + '.join(c for c in v.split('_') if c in CROSSIN_MODES) or 'base' for v in variants}
  if len(set(short.values())) == len(short):
    return short
  return {v: v.replace('_', ' + ') for v in variants}


def label(axis: str, value, variants: dict[str, str], values: Sequence = ()) -> str:
  """A value of an axis in words."""
  if isinstance(value, dict):
    return in_words(value, values)
  if axis == 'variant':
    return variants[value]
  if axis == 'languages':
    return value.replace('_', ', ') if isinstance(value, str) else ', '.join(value)
  if isinstance(value, int) and not isinstance(value, bool):
    return f'{value:,}'
  return f'{value:g}' if isinstance(value, float) else str(value)
