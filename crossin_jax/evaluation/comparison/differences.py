"""Differences between two systems on the same items, with significance tests."""

from collections.abc import Mapping, Sequence
import dataclasses
from dataclasses import dataclass
import itertools
from math import comb
import statistics

import numpy as np

from crossin_jax.evaluation.comparison.pairs import Cell, Pair
from crossin_jax.evaluation.measures import bootstrap, consistency, tables
from crossin_jax.evaluation.measures.bootstrap import Figure
from crossin_jax.pages import words
from crossin_jax.pages.words import language_name

LEVEL = 0.95
FEW = 20  # a difference on fewer items is never called real


@dataclass(frozen=True)
class Difference:
  """A figure of A and of B, and B minus A; the verdict is 'gain', 'loss' or 'none'."""

  a: Figure
  b: Figure
  difference: Figure
  verdict: str


@dataclass(frozen=True)
class Measure(Difference):
  sentence: str


@dataclass(frozen=True)
class LanguageRow(Difference):
  """Accuracy in one language. `p` is of `sign_flip_p`; the verdict also needs `p_holm`.

  `right_to_wrong` and `wrong_to_right` count the items that changed under the first prompt.
  """

  items: int
  right_to_wrong: int
  wrong_to_right: int
  p: float
  p_holm: float


@dataclass(frozen=True)
class Flip:
  """An item whose correctness changed, with the right answer and both given ones."""

  id: str
  language: str
  change: str
  answer: str
  a: str
  b: str


@dataclass(frozen=True)
class Comparison:
  """A benchmark by one method, as in compare.json.

  Attributes:
    s: group size of C_s and AC3_s; None for open answers and for one language.
    measures: over all languages: 'accuracy', 'C_3', 'AC3_3'.
    warnings, pairwise_consistency: of options only.
  """

  benchmark: str
  method: str
  prompts: Sequence[int]
  languages: Sequence[str]
  items: int
  s: int | None
  notes: Sequence[str]
  measures: Mapping[str, Measure]
  by_language: Mapping[str, LanguageRow]
  language_sentence: str
  warnings: Sequence[str] | None
  pairwise_consistency: Mapping[str, Mapping[str, float]] | None
  flipped: Sequence[Flip]


@dataclass(frozen=True)
class Comparisons:
  """The content of compare.json; `a` and `b` are the names of the models."""

  a: str
  b: str
  protocol: str
  level: float
  resamples: int
  only_in_a: Sequence[str]
  only_in_b: Sequence[str]
  comparisons: Sequence[Comparison]

  def as_json(self) -> dict:
    """The keys of compare.json; only `s` may be null."""
    present = lambda fields: {k: value for k, value in fields if value is not None or k == 's'}
    return dataclasses.asdict(self, dict_factory=present)


def sign_flip_p(difference_PN: np.ndarray, draws: int = 9999) -> float:
  """Two-sided p of a sign-flip test: without a difference, the sign of each item is random.

  The test is exact (McNemar's test) where differences are -1, 0 or 1, as with one prompt; otherwise
  it uses `draws` random signs.

      [[1, 1, 1, 0, 0, 1]] -> 0.125: 4 items changed, all in one direction, 2 / 2^4
  """
  mean_N = np.asarray(difference_PN, float).mean(axis=0)
  changed = mean_N[mean_N != 0]
  if not changed.size:
    return 1.0
  if np.all(np.abs(changed) == 1.0):
    n, fewer = changed.size, int(min((changed > 0).sum(), (changed < 0).sum()))
    return min(1.0, 2 * sum(comb(n, k) for k in range(fewer + 1)) / 2**n)
  generator, beyond = np.random.default_rng(0), 0
  for _ in range(9):  # in parts, to save memory
    signs = generator.choice((-1.0, 1.0), size=(draws // 9, changed.size))
    beyond += int((np.abs(signs @ changed) >= abs(changed.sum()) - 1e-9).sum())
  return (beyond + 1) / (draws // 9 * 9 + 1)


def holm(p: Sequence[float]) -> list[float]:
  """p adjusted for multiple comparisons (Holm 1979, Scand. J. Statist. 6:65).

  [0.01, 0.04, 0.03] -> [0.03, 0.06, 0.06]
  """
  adjusted, highest = [0.0] * len(p), 0.0
  for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
    highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
    adjusted[i] = highest
  return adjusted


def compare_pair(
  pair: Pair, names: tuple[str, str], resamples: int = 2000, flips: int = 0
) -> Comparison:
  """All figures of a pair, and up to `flips` of its changed items."""
  languages, shared = list(pair.ids), pair.shared
  s = min(3, len(languages))
  with_s = pair.has_options and s > 1
  sides = (pair.a, pair.b)
  choices = [pair.choices(side) for side in sides] if pair.has_options and shared else []

  def measured(one, two, answers, title: str, statistic: str = 'accuracy') -> Measure:
    settings = {'statistic': statistic, 's': s, 'resamples': resamples, 'level': LEVEL}
    gain = bootstrap.difference(two, one, answers, **settings)
    verdict = tables.verdict(gain) if gain.items >= FEW else 'none'
    a, b = (bootstrap.interval(side, answers, **settings).figure for side in (one, two))
    return Measure(a, b, gain.figure, verdict, _sentence(names, title, gain, verdict))

  def language_row(language: str) -> LanguageRow:
    one, two = (pair.right(side, [language], pair.ids[language]) for side in sides)
    row = measured(one, two, None, language)
    first, second = one[0], two[0]
    return LanguageRow(
      row.a,
      row.b,
      row.difference,
      row.verdict,
      items=len(first),
      right_to_wrong=int((first & ~second).sum()),
      wrong_to_right=int((~first & second).sum()),
      p=(p := sign_flip_p(np.stack(two)[:, :, 0].astype(float) - np.stack(one)[:, :, 0])),
      p_holm=p,
    )

  measures = {}
  if shared:
    right = [pair.right(side, languages, shared) for side in sides]
    measures['accuracy'] = measured(*right, None, 'accuracy')
    if with_s:
      for title, statistic in ((f'C_{s}', 'consistency'), (f'AC3_{s}', 'ac3')):
        measures[title] = measured(*choices, pair.answers(), title, statistic)
  rows = [language_row(language) for language in languages]
  by_language = {
    language: dataclasses.replace(
      row,
      p_holm=adjusted,
      verdict='none' if adjusted > 1 - LEVEL or row.items < FEW else row.verdict,
    )
    for language, row, adjusted in zip(languages, rows, holm([row.p for row in rows]))
  }
  warnings = [consistency.constant_answer_warning(side[0], pair.answers()) for side in choices]
  matrices = [
    np.mean(list(map(consistency.pairwise_consistency, side)), axis=0) for side in choices
  ]
  pairwise = {k: consistency.by_pair(matrix, languages) for k, matrix in zip('ab', matrices)}
  return Comparison(
    benchmark=pair.benchmark,
    method=pair.method,
    prompts=pair.prompts,
    languages=languages,
    items=max(map(len, pair.ids.values())),
    s=s if with_s else None,
    notes=[*pair.notes, *_medians(choices, pair.answers(), languages, measures)],
    measures=measures,
    by_language=by_language,
    language_sentence=_language_sentence(by_language, names),
    warnings=[f'{name}: {text}' for name, text in zip(names, warnings) if text]
    if choices
    else None,
    pairwise_consistency=pairwise or None,
    flipped=flipped(pair, flips),
  )


def _medians(choices, answers, languages: Sequence[str], measures: Mapping) -> list[str]:
  """One note on the medians over prompts, which `crossin evaluate` reports, beside these means."""
  if not choices or len(choices[0]) < 2:
    return []
  summaries = [
    [consistency.summarise(chosen_NL, answers, languages) for chosen_NL in side] for side in choices
  ]
  parts, turned = [], []
  for title, measure in measures.items():
    kind, _, s = title.partition('_')
    read = {'accuracy': lambda one: one.accuracy, 'C': lambda one: one.consistency[s]}.get(
      kind, lambda one: one.ac3[s]
    )
    a, b = (statistics.median(map(read, side)) for side in summaries)
    parts.append(f'{title} {words.points(b - a)}')
    if (b - a) * measure.difference.value < 0:
      turned.append(title)
  note = f'differences of the medians over prompts, as crossin evaluate reports: {", ".join(parts)}'
  more = f'; of {", ".join(turned)} with the other sign than the means here' if turned else ''
  return [note + more]


def _sentence(names: tuple[str, str], title: str, gain: bootstrap.Interval, verdict: str) -> str:
  a, b = names
  low, high, estimate = (words.points(value) for value in (gain.low, gain.high, gain.estimate))
  span = f'{estimate} points, 95 % interval {low} to {high}'
  if verdict != 'none':
    side = 'above' if verdict == 'gain' else 'below'
    return f'{b} is {side} {a} in {title} ({span}): a real {verdict}.'
  few = f'; {gain.items} items are too few, {FEW} are needed' if gain.items < FEW else ''
  return f'{b} does not differ significantly from {a} in {title} ({span}){few}.'


def _language_sentence(rows: Mapping[str, LanguageRow], names: tuple[str, str]) -> str:
  """The languages with a real difference."""
  a, b = names
  real = [
    f'{language_name(language)} ({words.points(row.difference.value)})'
    for language, row in rows.items()
    if row.verdict != 'none'
  ]
  rest = [language_name(language) for language, row in rows.items() if row.verdict == 'none']
  count = f'{len(rows)} comparison{"s" if len(rows) > 1 else ""}'
  head = f"By language, with Holm's correction for {count}, "
  if not real:
    return f'{head}the accuracy of {b} does not differ significantly from that of {a}.'
  others = f'; no significant difference in {", ".join(rest)}' if rest else ''
  return f'{head}the accuracy of {b} really differs in {", ".join(real)}{others}.'


def flipped(pair: Pair, most: int) -> list[Flip]:
  """Up to `most` items whose correctness changed under the first common prompt.

  The selection alternates between languages.
  """
  by_language = []
  for language, ids in pair.ids.items():
    cells = ((id_, pair.a[0][language][id_], pair.b[0][language][id_]) for id_ in ids)
    by_language.append(
      [
        Flip(
          id_,
          language,
          change='wrong to right' if two.right else 'right to wrong',
          answer=one.options[one.answers] if one.options else ' / '.join(one.answers),
          a=_answered(one),
          b=_answered(two),
        )
        for id_, one, two in cells
        if one.right != two.right
      ]
    )
  turns = [flip for turn in itertools.zip_longest(*by_language) for flip in turn if flip]
  order = list(pair.ids)
  return sorted(turns[:most], key=lambda flip: order.index(flip.language))


def _answered(cell: Cell) -> str:
  """The answer to show: the option, or the beginning of the text."""
  if cell.choice is not None and cell.choice >= 0:
    return cell.options[cell.choice]
  return words.shortened(' '.join(cell.text.split()), 160) or '(nothing)'


def sentences(result: Comparisons) -> list[str]:
  """Conclusions, benchmark by benchmark."""
  lines = []
  for row in result.comparisons:
    label = f'{row.benchmark} by {row.method}'
    conclusions = [*(m.sentence for m in row.measures.values()), row.language_sentence]
    head = f'{label} ({row.items} items, {", ".join(row.languages)})'
    lines.append(f'{head}: {" ".join(conclusions)}')
    lines += [f'note on {label}: {text}' for text in [*row.notes, *(row.warnings or ())]]
  for name, only in ((result.a, result.only_in_a), (result.b, result.only_in_b)):
    if only:
      lines.append(f'not compared, only in {name}: {", ".join(only)}')
  return lines
