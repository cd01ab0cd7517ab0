"""Which answer is chosen and which is rejected, and the length control between them.

Letters: K answers to a question, A values of alpha.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from crossin_jax.pairs.answers import Answers

STEPS = 1000  # of a grid of alphas
# Ends of the grid, in score per character. Rewards are sums over tokens, which favour length: ICR's
# grid. Cosines, a hundredth of nats, may favour either.
RANGE = {'implicit': (0.0, 1.0), 'pivot': (-0.01, 0.01)}


class Candidates(NamedTuple):
  """The different answers to a question that have scores.

  Attributes:
    texts: [K].
    score_K: float64.
    length_K: characters, float64.
    may_choose_K: bool; all may be rejected.
  """

  texts: list[str]
  score_K: np.ndarray
  length_K: np.ndarray
  may_choose_K: np.ndarray


class Picked(NamedTuple):
  """Places of the two answers, and what the chosen one scores more, length control included."""

  chosen: int
  rejected: int
  margin: float


def candidates(found: Answers) -> Candidates:
  """The answers that have scores; of equal texts the first."""
  first = {}
  for answer in found.answers:
    if answer.score is not None:
      first.setdefault(answer.text, answer)
  kept = list(first.values())
  return Candidates(
    list(first),
    np.array([answer.score for answer in kept], np.float64),
    np.array([len(answer.text) for answer in kept], np.float64),
    np.array([not answer.fault(found.language) for answer in kept], bool),
  )


def pick(own: Candidates, alpha: float = 0.0) -> Picked | str:
  """The pair of a question: highest and lowest score less alpha times characters.

      scores 3 2 1, lengths 90 10 50, alpha 0.1: -6 1 -4, so 1 is chosen and 0 rejected

  Returns:
    The pair, or why there is none: 'nothing_to_choose' or 'no_worse_answer'.
  """
  if not own.may_choose_K.any():
    return 'nothing_to_choose'
  chosen, rejected, margin = (found[0] for found in _picks(own, np.array([alpha])))
  if margin <= 0:
    return 'no_worse_answer'
  return Picked(int(chosen), int(rejected), float(margin))


def _picks(own: Candidates, alpha_A: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Chosen and rejected place, int [A], and margin, float64 [A]; some answer may be chosen."""
  value_AK = own.score_K - alpha_A[:, None] * own.length_K
  chosen_A = np.argmax(np.where(own.may_choose_K, value_AK, -np.inf), axis=1)
  rejected_A = np.argmin(value_AK, axis=1)
  rows = np.arange(len(alpha_A))
  return chosen_A, rejected_A, value_AK[rows, chosen_A] - value_AK[rows, rejected_A]


def length_alpha(questions: Callable[[], Iterable[Candidates]], by: str) -> float:
  """The alpha with which chosen and rejected answers are equally long on average (ICR, arXiv
  2503.04647).

  It is the best of ICR's grid, then of a grid 500 times finer between its neighbours; of equally
  good ones the nearest to 0.

  Args:
    questions: gives those of one language, each time.
    by: the mode.
  """
  low, high = RANGE[by]
  coarse = _best(questions(), np.linspace(low, high, STEPS + 1))
  step = (high - low) / STEPS
  fine = np.linspace(max(low, coarse - step), min(high, coarse + step), STEPS + 1)
  return _best(questions(), np.append(fine, coarse))


def _best(questions: Iterable[Candidates], alpha_A: np.ndarray) -> float:
  """The alpha of the smallest mean difference in length; of equally good ones the nearest to 0."""
  alpha_A = alpha_A[np.argsort(np.abs(alpha_A), kind='stable')]
  difference_A, pairs_A = np.zeros(len(alpha_A)), np.zeros(len(alpha_A))
  for own in questions:
    if own.may_choose_K.any():
      chosen_A, rejected_A, margin_A = _picks(own, alpha_A)
      is_pair_A = margin_A > 0
      difference_A += is_pair_A * (own.length_K[chosen_A] - own.length_K[rejected_A])
      pairs_A += is_pair_A
  mean_A = np.full(len(alpha_A), np.inf)
  np.divide(np.abs(difference_A), pairs_A, out=mean_A, where=pairs_A > 0)
  return float(alpha_A[np.argmin(mean_A)]) if pairs_A.any() else 0.0
