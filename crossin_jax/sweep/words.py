"""Titles and labels of a sweep."""

from collections.abc import Sequence

from crossin_jax.data.mixture_name import CROSSIN_MODES
from crossin_jax.sweep.points import told

# ---- words ----

_TITLES = {
  'accuracy_en': 'accuracy, English',
  'accuracy_elsewhere': 'accuracy, elsewhere',
  'heldout_loss': 'held-out loss',
}


def title(figure: str) -> str:
  """'ac3_3' -> 'AC3_3', 'consistency_3' -> 'C_3', the others in words."""
  return _TITLES.get(figure, figure.replace('consistency', 'C').replace('ac3', 'AC3'))


def variant_labels(variants: Sequence[str]) -> dict[str, str]:
  """Variants in words, without the components that all of them have, unless that leaves one of them
  bare.

  ('base_x2x', 'base_x2x_trans') -> 'x2x', 'x2x + trans'
  """
  short = {v: ' + '.join(c for c in v.split('_') if c in CROSSIN_MODES) or 'base' for v in variants}
  return (
    short
    if len(set(short.values())) == len(short)
    else {v: v.replace('_', ' + ') for v in variants}
  )


def label(axis: str, value, variants: dict[str, str], values: Sequence = ()) -> str:
  if isinstance(value, dict):
    return told(value, values)
  if axis == 'variant':
    return variants[value]
  if axis == 'languages':
    return value.replace('_', ', ') if isinstance(value, str) else ', '.join(value)
  if isinstance(value, int) and not isinstance(value, bool):
    return f'{value:,}'
  return f'{value:g}' if isinstance(value, float) else str(value)
