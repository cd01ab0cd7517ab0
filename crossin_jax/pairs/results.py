"""From scored answers to pairs, and the figures that pairs.json has."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from crossin_jax.data.pair_rows import Counts, PairRow
from crossin_jax.pairs.answers import Answers
from crossin_jax.pairs.chunks import Chunks
from crossin_jax.pairs.questions import Question
from crossin_jax.pairs.selection import candidates, length_alpha, pick


@dataclasses.dataclass
class Figures:
  """The figures of the pairs in one language.

  Attributes:
    questions: asked in it.
    pairs: made of them.
    left_out: reason -> questions without a pair.
    answers: sampled ones, and those that can never be chosen, by reason; None without a model.
    identified: language -> answers identified as it; 'none' = undetermined.
    alpha: of the length control, score per character; None = without.
    characters: means of the 'chosen' and 'rejected' answers, and their 'difference'; None without
      pairs.
    margin: 'mean', 'p10', 'median', 'p90'; None without scores.
  """

  questions: int
  pairs: int
  left_out: dict[str, int]
  answers: dict[str, int] | None = None
  identified: dict[str, int] | None = None
  alpha: float | None = None
  characters: dict[str, float] | None = None
  margin: dict[str, float] | None = None


class Tally:
  """Counts by language what passes.

  Attributes:
    left_out: (language, reason) -> questions without a pair.
  """

  def __init__(self, left_out: Counts):
    self.left_out = left_out
    self._answers: dict[str, Counter] = defaultdict(Counter)
    self._identified: dict[str, Counter] = defaultdict(Counter)
    self._rows: dict[str, list[tuple[int, int, float | None]]] = defaultdict(list)

  def passing(self, rows: Iterable[PairRow]) -> Iterator[PairRow]:
    """The same rows."""
    for row in rows:
      self._rows[row.language].append((len(row.chosen), len(row.rejected), row.margin))
      yield row

  def add(self, found: Answers) -> None:
    """Counts answers."""
    counts = self._answers[found.language]
    counts['sampled'] += len(found.answers)
    counts.update(filter(None, (answer.fault(found.language) for answer in found.answers)))
    self._identified[found.language].update(a.language or 'none' for a in found.answers)

  def figures(
    self, languages: Sequence[str], alphas: Mapping[str, float] | None = None
  ) -> dict[str, Figures]:
    """Those of each language, once all rows passed.

    Args:
      languages: in the order wanted.
      alphas: language -> alpha of the length control.
    """
    found = {}
    for language in languages:
      rows = self._rows[language]
      reasons = {why: n for (code, why), n in sorted(self.left_out.items()) if code == language}
      lengths, margin = _summaries(rows)
      found[language] = Figures(
        questions=len(rows) + sum(reasons.values()),
        pairs=len(rows),
        left_out=reasons,
        answers=dict(self._answers[language]) if self._answers else None,
        identified=dict(self._identified[language].most_common()) if self._answers else None,
        alpha=(alphas or {}).get(language),
        characters=lengths,
        margin=margin,
      )
    return found


def _summaries(rows: Sequence[tuple[int, int, float | None]]) -> tuple[dict | None, dict | None]:
  """Figures of lengths and of margins."""
  if not rows:
    return None, None
  chosen, rejected, margins = zip(*rows)
  means = [float(np.mean(lengths)) for lengths in (chosen, rejected)]
  lengths = {'chosen': means[0], 'rejected': means[1], 'difference': means[0] - means[1]}
  lengths = {name: round(value, 2) for name, value in lengths.items()}
  return lengths, None if None in margins else quantiles(margins)


def quantiles(values: Sequence[float]) -> dict[str, float]:
  """{'mean', 'p10', 'median', 'p90'}."""
  named = zip(('p10', 'median', 'p90'), np.quantile(values, (0.1, 0.5, 0.9)))
  return {name: round(float(value), 6) for name, value in (('mean', np.mean(values)), *named)}


def alphas(chunks: Chunks, languages: Sequence[str], by: str) -> dict[str, float]:
  """Language -> alpha of the length control."""
  return {
    language: round(length_alpha(lambda: map(candidates, _scored(chunks, language)), by), 9)
    for language in languages
  }


def _scored(chunks: Chunks, language: str) -> Iterator[Answers]:
  for _, found in chunks.read():
    yield from (one for one in found if one.language == language and not one.left_out)


def rows_of(
  chunks: Chunks, languages: Sequence[str], by: str, alphas: Mapping[str, float], tally: Tally
) -> Iterator[PairRow]:
  """The pairs of all questions, in order.

  Args:
    chunks: all of them.
    languages: codes of the pairs.
    by: how.
    alphas: language -> alpha of the length control; 0 where it is not in.
    tally: counts answers and questions without a pair; the rows pass through it.
  """

  def rows() -> Iterator[PairRow]:
    for part, found in chunks.read():
      by_id = {question.id: question for question in part}
      for one in (one for one in found if one.language in languages):
        tally.add(one)
        row = _row(by_id[one.id], one, by, alphas.get(one.language, 0.0))
        if isinstance(row, str):
          tally.left_out[one.language, row] += 1
        else:
          yield row

  return tally.passing(rows())


def _row(question: Question, found: Answers, by: str, alpha: float) -> PairRow | str:
  """The pair of a question in a language, or why there is none."""
  if found.left_out:
    return found.left_out
  own = candidates(found)
  picked = pick(own, alpha)
  if isinstance(picked, str):
    return picked
  return PairRow(
    f'{found.id}.{found.language}',
    question.asked[found.language].prompt,
    own.texts[picked.chosen],
    own.texts[picked.rejected],
    found.language,
    found.language,
    round(picked.margin, 6),
    by,
  )


def as_json(figures: Mapping[str, Figures]) -> dict[str, Any]:
  """By language, and totals."""
  left_out: dict[str, dict[str, int]] = defaultdict(dict)
  for language, own in figures.items():
    for reason, count in own.left_out.items():
      left_out[reason][language] = count
  return {
    'pairs': sum(own.pairs for own in figures.values()),
    'by_language': {language: dataclasses.asdict(own) for language, own in figures.items()},
    'left_out': {reason: left_out[reason] for reason in sorted(left_out)},
  }
