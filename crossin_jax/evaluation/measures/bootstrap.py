"""Bootstrap confidence intervals of accuracy, consistency and AC3 over items and seeds.

Every statistic is a function of means over items, so a resample is a vector of item weights (how
often each item is drawn) and all resamples are one matrix product: 2,000 resamples of 500 items x 4
languages x 3 seeds take milliseconds.

Axis letters: R resamples, N items, L languages, S seeds, F figures per item.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import functools

import numpy as np

from crossin_jax.evaluation.measures import consistency

STATISTICS = ('accuracy', 'consistency', 'ac3')


@dataclass(frozen=True)
class Figure:
  """A fraction with the ends of its interval, as in JSON files and tables; None = not available."""

  value: float | None
  low: float | None = None
  high: float | None = None


@dataclass(frozen=True)
class Interval:
  """A figure with its interval, as fractions 0..1 (differences -1..1).

  Attributes:
    estimate: mean over seeds of the statistic on all items.
    level: nominal coverage, 0.95.
    comparisons: number of intervals that cover together with that probability.
    share_above_zero: of the resamples; only for a difference.
    note: what the interval covers.
  """

  estimate: float
  low: float
  high: float
  level: float
  items: int
  seeds: int
  resamples: int
  share_above_zero: float | None = None
  note: str = ''
  comparisons: int = 1

  @property
  def figure(self) -> Figure:
    return Figure(self.estimate, self.low, self.high)


def interval(
  choices_by_seed: Sequence[np.ndarray],
  answers: np.ndarray | Sequence[np.ndarray] | None,
  statistic: str = 'accuracy',
  *,
  minus: Sequence[np.ndarray] | None = None,
  columns: Sequence[int] | None = None,
  s: int = 3,
  resamples: int = 2000,
  seed: int = 0,
  level: float = 0.95,
  comparisons: int = 1,
) -> Interval:
  """Interval of the statistic of one arm, or of a paired difference of two.

  Items are drawn with replacement, the same draw for all seeds, since seeds answer the same items.
  Of S seeds, S - 1 are drawn with replacement, which makes the variance of the mean over seeds
  unbiased (Rao and Wu 1988, JASA 83:231; a draw of S is too narrow by the factor (S - 1) / S, half
  the variance with two seeds). With one seed only items are drawn, as `note` says.

  Args:
    choices_by_seed: per seed an int array [items, languages] of options (-1 = unparsed); or, with
      answers None, a bool array [items, languages] of correctness (accuracy only).
    answers: int array [items] or [items, languages], or None. A list of such arrays means that
      each seed answered other items (equally many), which are drawn for each seed separately.
      Variation of the items then counts twice: with five seeds intervals cover 93 to 99 % instead
      of 95 (seeds alone would cover 83 to 88).
    statistic: 'accuracy', 'consistency' (C_s) or 'ac3' (AC3_s), of the languages in `columns`.
    minus: the choices of the second arm of a `difference`.
    columns: column numbers; None = all.
    s: group size of C_s and AC3_s.
    resamples, seed: number of draws and their seed.
    level: 0.95 gives the 2.5 and 97.5 percentiles.
    comparisons: of so many intervals all hold together at that level (Bonferroni): the tails are
      divided by it. There should be 400 resamples for each.

  Raises:
    ValueError: no seeds, unequal shapes, arms of unequal seeds or items, or fewer than s languages.

  Example:
    >>> choices = np.tile([0, 1], 50)[:, None]  # 100 items, one language, half of them correct
    >>> x = interval([choices], np.zeros(100, int))
    >>> x.estimate, round(x.low, 2), round(x.high, 2), x.seeds
    (0.5, 0.4, 0.6, 1)
  """
  arms = [choices_by_seed] if minus is None else [choices_by_seed, minus]
  if minus is not None and len(choices_by_seed) != len(minus):
    raise ValueError(
      f'{len(choices_by_seed)} seeds against {len(minus)}: a paired difference needs the same '
      'seeds in both arms; pass only the seeds that both have'
    )
  by_arm = [np.stack(_figures(arm, answers, statistic, columns, s)) for arm in arms]
  if by_arm[0].shape != by_arm[-1].shape:
    raise ValueError(
      f'the arms answered different items: {by_arm[0].shape[1]} against {by_arm[-1].shape[1]}'
    )
  seeds, items, figures = by_arm[0].shape

  def value(means: np.ndarray) -> np.ndarray:
    first = _value(means[..., :figures], statistic)
    return first if minus is None else first - _value(means[..., figures:], statistic)

  means_SF = np.concatenate([arm_SNF.mean(axis=1) for arm_SNF in by_arm], axis=-1)
  separate_items = isinstance(answers, (list, tuple))
  figures_SNF = np.concatenate(by_arm, axis=2)
  means_RSF, drawn_RS = _resample(figures_SNF, resamples, seed, separate_items)
  values_R = (value(means_RSF) * drawn_RS).sum(axis=1) / drawn_RS.sum(axis=1)
  tail = (1.0 - level) / 2.0 / comparisons
  low, high = np.quantile(values_R, [tail, 1.0 - tail]).tolist()
  above = float((values_R > 0).mean() + 0.5 * (values_R == 0).mean())
  note = f'resampled over {items} items and {seeds} seeds'
  if seeds == 1:
    note = f'resampled over {items} items of one seed; variation between seeds is not covered'
  elif seeds < 5:
    note += '; few seeds give a poor estimate of the variation between seeds'
  return Interval(
    estimate=float(value(means_SF).mean()),
    low=low,
    high=high,
    level=level,
    items=items,
    seeds=seeds,
    resamples=resamples,
    share_above_zero=None if minus is None else above,
    note=note,
    comparisons=comparisons,
  )


def difference(
  first_by_seed: Sequence[np.ndarray],
  second_by_seed: Sequence[np.ndarray],
  answers: np.ndarray | Sequence[np.ndarray] | None,
  statistic: str = 'accuracy',
  **settings,
) -> Interval:
  """Paired interval of first minus second: the same items under the same seeds in the same order.

  Each resample draws one set of items and seeds for both arms, so common difficulty cancels.
  Arguments as in `interval`. `share_above_zero` is the share of resamples in which first is better;
  ties count half.
  """
  return interval(first_by_seed, answers, statistic, minus=second_by_seed, **settings)


def _figures(
  choices_by_seed: Sequence[np.ndarray],
  answers: np.ndarray | Sequence[np.ndarray] | None,
  statistic: str,
  columns: Sequence[int] | None,
  s: int,
) -> list[np.ndarray]:
  """Per seed the figures [items, figures] whose means determine the statistic."""
  if statistic not in STATISTICS:
    raise ValueError(f'unknown statistic {statistic!r}; choose one of {", ".join(STATISTICS)}')
  if len(choices_by_seed) == 0:
    raise ValueError('no seeds given: the interval needs at least one run')
  if answers is None and statistic != 'accuracy':
    raise ValueError(
      f'{statistic} is a statistic of choices: pass choices and answers, not correctness'
    )
  shapes = {np.shape(choices) for choices in choices_by_seed}
  if len(shapes) != 1:
    raise ValueError(f'the seeds answered different items: shapes {sorted(shapes)}')
  if not isinstance(answers, (list, tuple)):
    answers = [answers] * len(choices_by_seed)
  elif len(answers) != len(choices_by_seed):
    raise ValueError(f'answers of {len(answers)} seeds for choices of {len(choices_by_seed)}')
  picked = slice(None) if columns is None else list(columns)
  figures = []
  for choices, right in zip(choices_by_seed, answers):
    choices_NL, parts = np.asarray(choices), []
    right_NL = choices_NL if right is None else consistency.correctness(choices_NL, right)
    if statistic in ('accuracy', 'ac3'):
      parts.append(right_NL.astype(bool)[:, picked].mean(axis=1))
    if statistic in ('consistency', 'ac3'):
      parts.append(consistency.consistency_by_item(choices_NL[:, picked], s))
    figures.append(np.stack(parts, axis=1).astype(np.float64))
  return figures


def _value(means: np.ndarray, statistic: str) -> np.ndarray:
  return consistency.ac3(means[..., 0], means[..., 1]) if statistic == 'ac3' else means[..., 0]


def _resample(
  figures_SNF: np.ndarray, resamples: int, seed: int, separate_items: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Means over drawn items [R, S, F], and how often each seed is drawn [R, S]."""
  if resamples < 1:
    raise ValueError(f'resamples must be at least 1, got {resamples}')
  seeds, items, figures = figures_SNF.shape
  if separate_items:
    means = [
      _item_weights(items, resamples, (seed, k)) @ part_NF for k, part_NF in enumerate(figures_SNF)
    ]
    means_RSF = np.stack(means, axis=1)
  else:
    figures_ND = figures_SNF.transpose(1, 0, 2).reshape(items, seeds * figures)
    means_RD = _item_weights(items, resamples, seed) @ figures_ND
    means_RSF = means_RD.reshape(-1, seeds, figures)
  # NB: a separate stream, so that the drawn items do not depend on the number of seeds
  drawn_RS = np.random.default_rng([seed, 1]).multinomial(
    max(seeds - 1, 1), np.full(seeds, 1.0 / seeds), size=resamples
  )
  return means_RSF, drawn_RS


@functools.lru_cache(maxsize=10)  # a report computes some hundred intervals over the same items
def _item_weights(items: int, resamples: int, seed: int | tuple[int, int]) -> np.ndarray:
  """How often each item is drawn, over the number of items; float64 [resamples, items]."""
  weights_RN = draw_counts(np.random.default_rng(seed), items, resamples) / items
  weights_RN.flags.writeable = False
  return weights_RN


def draw_counts(generator: np.random.Generator, items: int, resamples: int) -> np.ndarray:
  """How often each item occurs in draws with replacement, int64 [resamples, items]."""
  drawn_RN = generator.integers(items, size=(resamples, items))
  drawn_RN += items * np.arange(resamples)[:, None]
  return np.bincount(drawn_RN.ravel(), minlength=resamples * items).reshape(resamples, items)
