"""Pairs for direct consistency optimisation: two options of a question, in two languages."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
import hashlib
import itertools

import numpy as np

from crossin_jax.data.pair_rows import Counts, PairRow
from crossin_jax.pairs.questions import Question


def option_pairs(
  questions: Iterable[Question],
  languages: Sequence[str],
  *,
  draws: int = 1,
  leave_out_answer: bool = False,
  seed: int = 0,
  left_out: Counts | None = None,
) -> Iterator[PairRow]:
  """Two halves for each instance (DCO, arXiv 2603.04678).

  An instance has two languages, drawn anew, and two candidates with the same index in both; which
  of them is 'chosen' is drawn too, without regard to the right answer. The draws depend on the
  seed, the id of the question and the number of the instance, on nothing else.

  Args:
    questions: with options.
    languages: codes, at least two.
    draws: instances of each question.
    leave_out_answer: the right answer is no candidate.
    seed: of the draws.
    left_out: counts (language, reason) of questions that give no instance.
  """
  left_out = Counter() if left_out is None else left_out
  for question in questions:
    asked = [language for language in languages if language in question.asked]
    own = [language for language in asked if question.asked[language].choices]
    left_out.update((language, 'no_choices') for language in asked if language not in own)
    if reason := _fault(question, own, leave_out_answer):
      left_out.update((language, reason) for language in own)
      continue
    for draw in range(draws):
      key = hashlib.sha256(f'{seed}\0{draw}\0{question.id}'.encode('utf-8', 'surrogatepass'))
      rng = np.random.default_rng(list(key.digest()))
      pair = [own[i] for i in rng.choice(len(own), 2, replace=False)]
      both = [question.asked[language] for language in pair]
      kept = [
        (a, b)
        for a, b in itertools.permutations(range(len(both[0].choices)), 2)
        if not (leave_out_answer and both[0].answer in (a, b))
        and all(asked.choices[a].strip() != asked.choices[b].strip() for asked in both)
        and all(asked.choices[i].strip() for asked in both for i in (a, b))
      ]
      if not kept:
        left_out.update((language, 'too_few_candidates') for language in pair)
        continue
      a, b = kept[rng.integers(len(kept))]
      for language, asked in zip(pair, both):
        yield PairRow(
          f'{question.id}/{draw}', asked.prompt, asked.choices[a], asked.choices[b], language,
          language, None, 'options',
        )  # fmt: skip


def _fault(question: Question, languages: Sequence[str], leave_out_answer: bool) -> str:
  """Why a question gives no instance, '' = it may."""
  asked = [question.asked[language] for language in languages]
  if len(asked) < 2:
    return 'one_language'
  if len({(len(one.choices), one.answer) for one in asked}) > 1:
    return 'choices_differ'
  return 'no_right_answer' if leave_out_answer and asked[0].answer is None else ''
