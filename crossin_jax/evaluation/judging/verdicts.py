"""Statistics of pairwise judgements: win rates, position bias and agreement of judges.

Each pair is judged in both orders. The score of a system is the sum over both orders; the higher
score wins, equal scores tie. The win rate is (wins + ties / 2) / judged pairs. A pair without both
scores in both orders is unjudged: it is counted, but not scored (docs/design/methods.md#c-21).

Intervals come from a bootstrap over questions: the pairs of one ID, in several languages or forms,
are drawn together.
"""

from collections.abc import Callable, Sequence
import dataclasses
import itertools

import numpy as np

from crossin_jax.evaluation.measures.bootstrap import Figure, Interval, draw_counts
from crossin_jax.evaluation.measures.tables import verdict
from crossin_jax.pages.words import language_name, points

NO_REPLY, NO_SCORES, CUT = REASONS = 'no_reply', 'no_scores', 'cut'  # of an unjudged pair
OUTCOMES = ('win', 'tie', 'loss')
POINTS = {'win': 1.0, 'tie': 0.5, 'loss': 0.0}
ENGLISH = 'en'
LEVEL = 0.95
_CELLS = 1 << 22  # maximum number of bootstrap weights in memory


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two answers to one question; languages are codes."""

  id: str  # of the question; the same in all languages
  language: str  # of the answers
  asked_in: str | None  # language of the question; None = unknown, that of the answers
  category: str  # '' if there is none
  question: str
  answer_a: str
  answer_b: str


@dataclasses.dataclass(frozen=True)
class Judgement:
  """Scores of one pair by one judge."""

  ab: tuple[int, int] | str  # (score1, score2) with A's answer first; or one of REASONS
  ba: tuple[int, int] | str  # the same with B's answer first

  @property
  def unjudged(self) -> str | None:
    """One of REASONS; None for a judged pair."""
    return next(
      (reason for reason in (NO_REPLY, CUT, NO_SCORES) if reason in (self.ab, self.ba)), None
    )

  @property
  def scores(self) -> tuple[int, int] | None:
    """(A's, B's) sums over both orders, 0 to 20.

    Judgement(ab=(8, 6), ba=(5, 9)).scores == (17, 11)
    """
    return None if self.unjudged else (self.ab[0] + self.ba[1], self.ab[1] + self.ba[0])

  @property
  def verdict(self) -> str | None:
    """'win' (of A), 'tie' or 'loss'; None if unjudged."""
    if self.unjudged:
      return None
    a, b = self.scores
    return 'win' if a > b else 'tie' if a == b else 'loss'


# ---- figures: fractions, and scores 0 to 10; None where undefined ----


@dataclasses.dataclass(frozen=True)
class Row:
  """Verdicts on some pairs; `low` and `high` are of the win rate, `unjudged` counts by reason."""

  pairs: int
  judged: int
  unjudged: dict[str, int]
  wins: int
  ties: int
  losses: int
  win_rate: float | None
  low: float | None
  high: float | None
  score_a: float | None
  score_b: float | None


@dataclasses.dataclass(frozen=True)
class Position:
  """How often the answer shown first gets the higher score: half the time without position bias."""

  first: int  # number of replies, as the next two
  second: int
  equal: int
  first_rate: float | None  # first / (first + second), with its interval
  low: float | None
  high: float | None
  same_winner: float | None  # share of pairs whose orders agree


@dataclasses.dataclass(frozen=True)
class AskedIn:
  """Win rates of questions in the language of the answers and in English, and their difference."""

  language: str | None  # None = all
  questions: int
  native: float
  english: float
  difference: float
  low: float | None
  high: float | None
  verdict: str
  sentence: str


@dataclasses.dataclass(frozen=True)
class JudgeFigures:
  """All figures of one judge."""

  model: str
  overall: Row
  by_language: dict[str, Row]
  by_category: dict[str, Row]
  by_asked_in: dict[str, Row]
  position: Position
  asked_in_output_language: list[AskedIn]
  sentence: str


@dataclasses.dataclass(frozen=True)
class Agreement:
  """Share of equal verdicts and Cohen's kappa of two judges, over the pairs that both judged."""

  judges: list[str]
  pairs: int
  equal: Figure
  kappa: Figure


def resampled_sums(values_IK: np.ndarray, resamples: int, seed: int) -> np.ndarray:
  """Sums over items drawn with replacement, float64 [resamples, K], from values [items, K]."""
  items = len(values_IK)
  generator, step, sums = np.random.default_rng(seed), max(1, _CELLS // items), []
  for start in range(0, resamples, step):
    rows = min(step, resamples - start)
    sums.append(draw_counts(generator, items, rows) @ values_IK)
  return np.concatenate(sums)


def interval(
  ids: Sequence[str],
  values: Sequence[Sequence[float]],
  statistic: Callable[[np.ndarray], np.ndarray],
  resamples: int,
  seed: int,
) -> Interval | None:
  """Bootstrap interval of a statistic of sums.

  Args:
    ids: question ID of each row; rows with one ID are drawn together.
    values: [rows, K].
    statistic: sums [..., K] -> [...]; NaN where it is undefined.
    resamples, seed: number of draws and their seed.

  Returns:
    None for fewer than two questions, or a statistic that is constant over the resamples.
  """
  if not len(ids):
    return None
  names, positions = np.unique(np.asarray(ids), return_inverse=True)
  values = np.asarray(values, np.float64)
  sums_IK = np.zeros((len(names), values.shape[1]))
  np.add.at(sums_IK, positions, values)
  with np.errstate(invalid='ignore', divide='ignore'):
    estimate = float(statistic(sums_IK.sum(axis=0)))
    drawn = statistic(resampled_sums(sums_IK, resamples, seed))
  drawn = drawn[np.isfinite(drawn)]
  if len(names) < 2 or not np.isfinite(estimate) or not len(drawn) or np.ptp(drawn) < 1e-12:
    return None
  low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
  return Interval(estimate, float(low), float(high), LEVEL, len(names), 1, resamples)


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
  return (interval.low, interval.high) if interval else (None, None)


def mean(sums: np.ndarray) -> np.ndarray:
  """Mean from sums of (value, 1)."""
  return sums[..., 0] / sums[..., 1]


def kappa(table: np.ndarray) -> np.ndarray:
  """Cohen's kappa (1960, doi:10.1177/001316446002000104) of tables [..., 9].

  A table holds 3 x 3 counts of two judges' verdicts. NaN where agreement by chance is certain.
  """
  table = np.asarray(table, np.float64).reshape(*np.shape(table)[:-1], 3, 3)
  total = table.sum(axis=(-2, -1))
  agreed = np.trace(table, axis1=-2, axis2=-1) / total
  by_chance = (table.sum(axis=-1) * table.sum(axis=-2)).sum(axis=-1) / total**2
  return np.where(
    by_chance < 1 - 1e-12, (agreed - by_chance) / np.where(by_chance < 1, 1 - by_chance, 1), np.nan
  )


def judge_figures(
  pairs: Sequence[Pair],
  judgements: Sequence[Judgement],
  names: tuple[str, str],
  resamples: int = 2000,
  seed: int = 0,
  model: str = '',
) -> JudgeFigures:
  """All figures of one judge, whose judgements are parallel to the pairs."""
  both = list(zip(pairs, judgements, strict=True))

  def split(field: str) -> dict[str, Row]:
    groups = {}
    for pair, judgement in both:
      groups.setdefault(getattr(pair, field) or '', []).append((pair, judgement))
    return {value: _row(groups[value], resamples, seed) for value in sorted(groups) if value}

  overall = _row(both, resamples, seed)
  return JudgeFigures(
    model,
    overall,
    by_language=split('language'),
    by_category=split('category'),
    by_asked_in=split('asked_in'),
    position=position(both, resamples, seed),
    asked_in_output_language=asked_in_output_language(both, names, resamples, seed),
    sentence=_sentence(overall, names),
  )


def _row(both: Sequence[tuple[Pair, Judgement]], resamples: int, seed: int) -> Row:
  judged = [(pair, judgement) for pair, judgement in both if not judgement.unjudged]
  outcomes = [judgement.verdict for _, judgement in judged]
  worth = [POINTS[outcome] for outcome in outcomes]
  ids = [pair.id for pair, _ in judged]
  span = interval(ids, [(value, 1) for value in worth], mean, resamples, seed)
  scores = [judgement.scores for _, judgement in judged]
  reasons = [judgement.unjudged for _, judgement in both]
  return Row(
    len(both),
    len(judged),
    {reason: reasons.count(reason) for reason in REASONS},
    *map(outcomes.count, OUTCOMES),
    float(np.mean(worth)) if worth else None,
    *_ends(span),
    *((np.mean(scores, axis=0) / 2).tolist() if scores else (None, None)),
  )


def position(both: Sequence[tuple[Pair, Judgement]], resamples: int, seed: int) -> Position:
  ids, values, same = [], [], []
  for pair, judgement in both:
    if judgement.unjudged:
      continue
    signs = [int(np.sign(first - second)) for first, second in (judgement.ab, judgement.ba)]
    ids.append(pair.id)
    values.append([signs.count(sign) for sign in (1, -1, 0)])
    same.append(signs[0] == -signs[1])
  first, second, equal = np.sum(values, axis=0).tolist() if values else (0, 0, 0)
  rate = lambda sums: sums[..., 0] / (sums[..., 0] + sums[..., 1])
  return Position(
    first,
    second,
    equal,
    first / (first + second) if first + second else None,
    *_ends(interval(ids, values, rate, resamples, seed)),
    float(np.mean(same)) if same else None,
  )


def asked_in_output_language(
  both: Sequence[tuple[Pair, Judgement]], names: tuple[str, str], resamples: int, seed: int
) -> list[AskedIn]:
  """Win rate of questions asked in the language of the answer minus that of English questions.

  There is a row per language, paired by ID, and one over all languages if there are several.
  """
  worth = {
    (pair.language, pair.asked_in, pair.id): POINTS[judgement.verdict]
    for pair, judgement in both
    if pair.asked_in and pair.language != ENGLISH and not judgement.unjudged
  }
  rows = {}
  for language, asked_in, id_ in worth:
    if asked_in == language and (language, ENGLISH, id_) in worth:
      values = (id_, worth[language, language, id_], worth[language, ENGLISH, id_])
      rows.setdefault(language, []).append(values)
  groups = sorted(rows.items())
  if len(groups) > 1:
    groups.append((None, [row for _, group in groups for row in group]))
  results = []
  for language, group in groups:
    ids, native, english = zip(*group)
    span = interval(ids, [(a - b, 1) for a, b in zip(native, english)], mean, resamples, seed)
    native, english = float(np.mean(native)), float(np.mean(english))
    sentence = _asked_sentence(language, names, span, native - english, len(group))
    figures = (native, english, native - english, *_ends(span), verdict(span))
    results.append(AskedIn(language, len(group), *figures, sentence))
  return results


def _asked_sentence(
  language: str | None, names, difference: Interval | None, estimate: float, n: int
) -> str:
  target = language_name(language) if language else 'the output language'
  a, b = names
  count = f'{n:,} question{"" if n == 1 else "s"}'
  if difference is None:
    return (
      f'Asked in {target} instead of English: {points(estimate)} points of win rate of {a} against '
      f'{b}, without an interval ({count}): no claim is possible.'
    )
  low, high = points(difference.low), points(difference.high)
  span = f'95 % interval {low} to {high}, {count}'
  outcome = verdict(difference)
  if outcome == 'none':
    return (
      f'Asking {a} in {target} or in English makes no significant difference: {points(estimate)} '
      f'points of win rate against {b} ({span}).'
    )
  size = f'{abs(100 * estimate):.1f} points {"higher" if outcome == "gain" else "lower"}'
  return (
    f'Asked in {target}, the win rate of {a} against {b} is {size} than asked in English ({span}): '
    'a real difference.'
  )


def _sentence(row: Row, names: tuple[str, str]) -> str:
  a, b = names
  if row.win_rate is None:
    return f'No pair of {a} and {b} was judged.'
  rate = f'{a} has a win rate of {100 * row.win_rate:.1f} % against {b}'
  if row.low is None:
    return f'{rate}, without an interval ({row.judged} pairs): no claim is possible.'
  low, high = round(100 * row.low, 1), round(100 * row.high, 1)
  rate += f' (95 % interval {low} to {high})'
  if low > 50 or high < 50:
    return f'{rate}: {a if low > 50 else b} is better according to this judge.'
  return f'{rate}: no significant difference.'


def agreement(
  pairs: Sequence[Pair],
  judgements: dict[str, Sequence[Judgement]],
  resamples: int = 2000,
  seed: int = 0,
) -> list[Agreement]:
  """The agreement of every two judges; `judgements` maps models to lists parallel to the pairs."""
  results = []
  for one, two in itertools.combinations(judgements, 2):
    both = [
      (pair.id, OUTCOMES.index(x.verdict), OUTCOMES.index(y.verdict))
      for pair, x, y in zip(pairs, judgements[one], judgements[two], strict=True)
      if not x.unjudged and not y.unjudged
    ]
    ids = [id_ for id_, _, _ in both]
    table = (
      np.eye(9)[[3 * first + second for _, first, second in both]] if both else np.zeros((0, 9))
    )
    figures = []
    for statistic in (_equal, kappa):
      with np.errstate(invalid='ignore'):
        value = float(statistic(table.sum(axis=0))) if both else np.nan
      span = interval(ids, table, statistic, resamples, seed)
      figures.append(Figure(value if np.isfinite(value) else None, *_ends(span)))
    results.append(Agreement([one, two], len(both), *figures))
  return results


def _equal(table: np.ndarray) -> np.ndarray:
  return table[..., [0, 4, 8]].sum(axis=-1) / table.sum(axis=-1)
