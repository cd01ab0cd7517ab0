"""RankC: how alike two languages rank the options of an item.

Formula: Qi, Fernández and Bisazza 2023 (arXiv 2310.10378), section 3.

Axis letters: N items, L languages, K options.
"""

from collections.abc import Sequence

import numpy as np


def rankc_of_item(one_K: np.ndarray, other_K: np.ndarray) -> float:
  """RankC of one item in two languages, 0..1.

  sum_j w_j P@j with P@j the share of the first j options that both languages have among their
  first j, and w_j = exp(K - j) / sum_k exp(K - k). Ties rank in the order of the options.

  Args:
    one_K, other_K: float [options], losses of the same options, the lowest ranks first.
  """
  return float(_sum_over_items(np.array([[one_K, other_K]]))[0, 1])


def _sum_over_items(losses_NLK: np.ndarray) -> np.ndarray:
  """Sum of RankC over items, [languages, languages]."""
  size, languages = losses_NLK.shape[2], losses_NLK.shape[1]
  j = np.arange(1, size + 1)
  # From which j on an option is among the first j.
  first_at_NLK = np.argsort(np.argsort(losses_NLK, axis=2, kind='stable'), axis=2) + 1
  weights = np.exp(1.0 - j)  # exp(K - j), without overflow
  # An option counts, divided by j, for each j from the later of its two places on.
  worth = np.append(0.0, np.cumsum((weights / weights.sum() / j)[::-1])[::-1])
  total = np.empty((languages, languages))
  for i in range(languages):
    later_NLK = np.maximum(first_at_NLK[:, i : i + 1], first_at_NLK)
    total[i] = worth[later_NLK].sum(axis=(0, 2))
  return total


def rankc(losses: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
  """Mean RankC over items of every two languages; symmetric float64 [languages, languages].

  Args:
    losses: [item][language], each float [options]; an item has the same options in every language.

  Raises:
    ValueError: no items, or an item whose languages have different numbers of options.
  """
  if not losses:
    raise ValueError('RankC of no items')
  by_size: dict[int, list] = {}
  for n, item in enumerate(losses):
    if len({len(options) for options in item}) > 1:
      sizes = ', '.join(str(len(options)) for options in item)
      raise ValueError(f'item {n}: its languages have {sizes} options; RankC ranks the same ones')
    by_size.setdefault(len(item[0]), []).append(item)
  # Evaluations of the training loop compute this too: all items of a size at once.
  return sum(_sum_over_items(np.array(items)) for items in by_size.values()) / len(losses)
