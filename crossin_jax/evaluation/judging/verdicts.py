"""What judgements of pairs of answers say: win rates, bias towards a place, agreement of judges,
each with its interval.

Both orders of a pair are judged. A system's score is the sum over both orders; the higher one wins,
equal ones tie; the win rate is (wins + ties / 2) / judged pairs. A pair without both scores in both
orders is unjudged: counted, never scored. (METHODS.md C21)

Intervals are of a bootstrap over questions: pairs with one id, in several languages or forms, are
drawn together.
"""

from collections.abc import Callable, Sequence
import dataclasses
import itertools

import numpy as np

from crossin_jax.evaluation.measures.bootstrap import Interval
from crossin_jax.evaluation.measures.tables import verdict
from crossin_jax.pages.words import language_name, points

NO_REPLY, NO_SCORES = 'no_reply', 'no_scores'
OUTCOMES = ('win', 'tie', 'loss')
POINTS = {'win': 1.0, 'tie': 0.5, 'loss': 0.0}
ENGLISH = 'en'
LEVEL = 0.95
_CELLS = 1 << 22  # of a matrix of weights that is in memory at a time


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two answers to one question.

  Attributes:
    id: of the question; the same in all languages.
    language: code of the language of the answers.
    asked_in: code of the language of the question; None = not said, that of the answers.
    category: '' if there is none.
  """

  id: str
  language: str
  asked_in: str | None
  category: str
  question: str
  answer_a: str
  answer_b: str


@dataclasses.dataclass(frozen=True)
class Judgement:
  """What one judge said of one pair.

  Attributes:
    ab: (score1, score2) with A's answer first; or NO_REPLY, NO_SCORES.
    ba: the same with B's answer first.
  """

  ab: tuple[int, int] | str
  ba: tuple[int, int] | str

  @property
  def unjudged(self) -> str | None:
    """NO_REPLY, NO_SCORES, or None for a pair that is judged."""
    missing = [scores for scores in (self.ab, self.ba) if isinstance(scores, str)]
    return None if not missing else NO_REPLY if NO_REPLY in missing else NO_SCORES

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


def resampled_sums(values_IK: np.ndarray, resamples: int, seed: int) -> np.ndarray:
  """Sums over items drawn with replacement, float64 [resamples, K], from values [items, K]."""
  items = len(values_IK)
  generator, step, found = np.random.default_rng(seed), max(1, _CELLS // items), []
  for start in range(0, resamples, step):
    rows = min(step, resamples - start)
    drawn_RI = generator.integers(items, size=(rows, items)) + items * np.arange(rows)[:, None]
    found.append(
      np.bincount(drawn_RI.ravel(), minlength=rows * items).reshape(rows, items) @ values_IK
    )
  return np.concatenate(found)


def interval(
  ids: Sequence[str],
  values: Sequence[Sequence[float]],
  statistic: Callable[[np.ndarray], np.ndarray],
  resamples: int,
  seed: int,
) -> Interval | None:
  """Interval of a statistic of sums.

  Args:
    ids: of the questions, one a row; rows with one id are drawn together.
    values: [rows, K].
    statistic: sums [..., K] -> [...]; NaN where it is undefined.
    resamples, seed: equal ones give equal intervals.

  Returns:
    None where a bootstrap can say nothing: fewer than two questions, or the statistic is the same
      in every resample.
  """
  if not len(ids):
    return None
  names, places = np.unique(np.asarray(ids), return_inverse=True)
  values = np.asarray(values, np.float64)
  sums_IK = np.zeros((len(names), values.shape[1]))
  np.add.at(sums_IK, places, values)
  with np.errstate(invalid='ignore', divide='ignore'):
    estimate = float(statistic(sums_IK.sum(axis=0)))
    drawn = statistic(resampled_sums(sums_IK, resamples, seed))
  drawn = drawn[np.isfinite(drawn)]
  if len(names) < 2 or not np.isfinite(estimate) or not len(drawn) or np.ptp(drawn) < 1e-12:
    return None
  low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
  return Interval(estimate, float(low), float(high), LEVEL, len(names), 1, resamples)


def mean(sums: np.ndarray) -> np.ndarray:
  """From sums of (value, 1)."""
  return sums[..., 0] / sums[..., 1]


def kappa(table: np.ndarray) -> np.ndarray:
  """Cohen's kappa (1960, doi:10.1177/001316446002000104) of tables [..., 9], 3 x 3 counts of two
  judges' verdicts.

  NaN where chance alone agrees always.
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
) -> dict:
  """Everything about one judge's verdicts.

  Args:
    pairs, judgements: parallel.
    names: of A and B.

  Returns:
    {'overall': row, 'by_language': {code: row}, 'by_category', 'by_asked_in', 'position',
    'asked_in_output_language', 'sentence'}; a row is {'pairs', 'judged', 'unjudged': {reason: n},
    'wins', 'ties', 'losses', 'win_rate', 'low', 'high', 'score_a', 'score_b'}, fractions, scores 0
    to 10, None where there is none.
  """
  both = list(zip(pairs, judgements, strict=True))

  def split(key) -> dict[str, dict]:
    values = sorted({key(pair) for pair in pairs} - {None, ''})
    return {
      value: _row([x for x in both if key(x[0]) == value], resamples, seed) for value in values
    }

  overall = _row(both, resamples, seed)
  return {
    'overall': overall,
    'by_language': split(lambda pair: pair.language),
    'by_category': split(lambda pair: pair.category),
    'by_asked_in': split(lambda pair: pair.asked_in),
    'position': position(both, resamples, seed),
    'asked_in_output_language': asked_in_output_language(both, names, resamples, seed),
    'sentence': _sentence(overall, names),
  }


def _row(both: Sequence[tuple[Pair, Judgement]], resamples: int, seed: int) -> dict:
  judged = [(pair, judgement) for pair, judgement in both if not judgement.unjudged]
  outcomes = [judgement.verdict for _, judgement in judged]
  worth = [POINTS[outcome] for outcome in outcomes]
  found = interval(
    [pair.id for pair, _ in judged], [(value, 1) for value in worth], mean, resamples, seed
  )
  scores = np.array([judgement.scores for _, judgement in judged]).reshape(-1, 2) / 2
  reasons = [judgement.unjudged for _, judgement in both]
  return {
    'pairs': len(both),
    'judged': len(judged),
    'unjudged': {reason: reasons.count(reason) for reason in (NO_REPLY, NO_SCORES)},
    **{
      name: outcomes.count(outcome) for name, outcome in zip(('wins', 'ties', 'losses'), OUTCOMES)
    },
    'win_rate': float(np.mean(worth)) if worth else None,
    'low': found.low if found else None,
    'high': found.high if found else None,
    'score_a': float(scores[:, 0].mean()) if worth else None,
    'score_b': float(scores[:, 1].mean()) if worth else None,
  }


def position(both: Sequence[tuple[Pair, Judgement]], resamples: int, seed: int) -> dict:
  """How often the answer shown first got the higher score. Both answers are first once, so without
  bias it is half.

  Returns:
    {'first', 'second', 'equal': numbers of replies; 'first_rate': first / (first + second), 'low',
    'high'; 'same_winner': share of pairs in which both orders agree}.
  """
  ids, values, same = [], [], []
  for pair, judgement in both:
    if judgement.unjudged:
      continue
    (ab1, ab2), (ba1, ba2) = judgement.ab, judgement.ba
    ids.append(pair.id)
    values.append(
      ((ab1 > ab2) + (ba1 > ba2), (ab1 < ab2) + (ba1 < ba2), (ab1 == ab2) + (ba1 == ba2))
    )
    same.append(np.sign(ab1 - ab2) == np.sign(ba2 - ba1))
  first, second, equal = (int(n) for n in np.sum(values, axis=0)) if values else (0, 0, 0)
  rate = lambda sums: sums[..., 0] / (sums[..., 0] + sums[..., 1])
  found = interval(ids, values, rate, resamples, seed) if values else None
  return {
    'first': first,
    'second': second,
    'equal': equal,
    'first_rate': first / (first + second) if first + second else None,
    'low': found.low if found else None,
    'high': found.high if found else None,
    'same_winner': float(np.mean(same)) if same else None,
  }


def asked_in_output_language(
  both: Sequence[tuple[Pair, Judgement]], names: tuple[str, str], resamples: int, seed: int
) -> list[dict]:
  """Win rate where the question came in the language of the answer minus where the same question
  came in English.

  By language, paired by id, and over all languages together if there are several; a difference is
  called real only if its 95 % interval excludes zero.
  """
  worth = {
    (pair.language, pair.asked_in, pair.id): POINTS[judgement.verdict]
    for pair, judgement in both
    if pair.asked_in and pair.language != ENGLISH and not judgement.unjudged
  }
  rows = {}
  for language, asked_in, id_ in worth:
    if asked_in == language and (language, ENGLISH, id_) in worth:
      rows.setdefault(language, []).append(
        (id_, worth[language, language, id_], worth[language, ENGLISH, id_])
      )
  groups = sorted(rows.items())
  if len(groups) > 1:
    groups.append((None, [row for _, rows_ in groups for row in rows_]))
  found = []
  for language, group in groups:
    ids, native, english = zip(*group)
    difference = interval(ids, [(a - b, 1) for a, b in zip(native, english)], mean, resamples, seed)
    estimate = float(np.mean(native) - np.mean(english))
    found.append(
      {
        'language': language,
        'questions': len(group),
        'native': float(np.mean(native)),
        'english': float(np.mean(english)),
        'difference': estimate,
        'low': difference.low if difference else None,
        'high': difference.high if difference else None,
        'verdict': verdict(difference),
        'sentence': _asked_sentence(language, names, difference, estimate, len(group)),
      }
    )
  return found


def _asked_sentence(
  language: str | None, names, difference: Interval | None, estimate: float, n: int
) -> str:
  own = language_name(language) if language else 'the output language'
  a, b = names
  size = f'{abs(100 * estimate):.1f} points'
  count = f'{n:,} question{"" if n == 1 else "s"}'
  if difference is None:
    return f'Asked in {own} instead of English: {points(estimate)} points of win rate of {a} against {b}, without an interval ({count}): nothing can be claimed.'
  low, high = points(difference.low), points(difference.high)
  span = f'95 % interval {low} to {high}, {count}'
  outcome = verdict(difference)
  if outcome == 'none':
    return f'Whether {a} is asked in {own} or in English makes no difference that can be told: {points(estimate)} points of win rate against {b} ({span}).'
  side = 'higher' if outcome == 'gain' else 'lower'
  return f'Asked in {own}, the win rate of {a} against {b} is {size} {side} than asked in English ({span}): a real difference.'


def _sentence(row: dict, names: tuple[str, str]) -> str:
  a, b = names
  if row['win_rate'] is None:
    return f'No pair of {a} and {b} was judged.'
  rate = f'{a} has a win rate of {100 * row["win_rate"]:.1f} % against {b}'
  if row['low'] is None:
    return f'{rate}, without an interval ({row["judged"]} pairs): nothing can be claimed.'
  low, high = round(100 * row['low'], 1), round(100 * row['high'], 1)
  span = f'95 % interval {low} to {high}'
  if low > 50:
    return f'{rate} ({span}): {a} is better, in the eyes of this judge.'
  if high < 50:
    return f'{rate} ({span}): {b} is better, in the eyes of this judge.'
  return f'{rate} ({span}): which of the two is better cannot be told.'


def agreement(
  pairs: Sequence[Pair],
  judgements: dict[str, Sequence[Judgement]],
  resamples: int = 2000,
  seed: int = 0,
) -> list[dict]:
  """Of every two judges, over the pairs that both judged: share of equal verdicts and Cohen's
  kappa, with intervals.
  """
  found = []
  for one, two in itertools.combinations(judgements, 2):
    ids, cells = [], []
    for pair, x, y in zip(pairs, judgements[one], judgements[two], strict=True):
      if not x.unjudged and not y.unjudged:
        ids.append(pair.id)
        cells.append(3 * OUTCOMES.index(x.verdict) + OUTCOMES.index(y.verdict))
    table = np.eye(9)[cells] if cells else np.zeros((0, 9))
    figures = {}
    for name, statistic in (('equal', _equal), ('kappa', kappa)):
      with np.errstate(invalid='ignore'):
        value = float(statistic(table.sum(axis=0))) if cells else float('nan')
      span = interval(ids, table, statistic, resamples, seed)
      ends = (span.low, span.high) if span else (None, None)
      figures[name] = {
        'value': value if np.isfinite(value) else None,
        'low': ends[0],
        'high': ends[1],
      }
    found.append({'judges': [one, two], 'pairs': len(cells), **figures})
  return found


def _equal(table: np.ndarray) -> np.ndarray:
  return table[..., [0, 4, 8]].sum(axis=-1) / table.sum(axis=-1)
