"""What choosing at random would give."""

import numpy as np

from crossin_jax.evaluation.answers.predictions import Predictions
from crossin_jax.evaluation.measures.consistency import ac3


def chance_figures(answered: Predictions) -> dict[str, float]:
  """Chance level of accuracy, C_s and AC3_s: with k options 1 / k and k ** (1 - s), s up to 3."""
  counts = np.array([len(item[0]) for item in answered.choices], float)
  size = min(3, len(answered.languages))
  accuracy, agreement = float(np.mean(1 / counts)), float(np.mean(counts ** (1 - size)))
  return {
    'accuracy_en': accuracy,
    'accuracy_elsewhere': accuracy,
    f'consistency_{size}': agreement,
    f'ac3_{size}': float(ac3(accuracy, agreement)),
  }
