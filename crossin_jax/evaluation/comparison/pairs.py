"""What two models answered to the same items: their files of predictions, paired.

Axis letters: N items, L languages.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
import os
from pathlib import Path
import re

import numpy as np

from crossin_jax.evaluation import results
from crossin_jax.evaluation.answers import open_answers
from crossin_jax.evaluation.answers.predictions import read_predictions
from crossin_jax.evaluation.measures import consistency
from crossin_jax.storage.records import RecordError

# ---- predictions of one side ----


@dataclass(frozen=True)
class Cell:
  """What one model answered to one item in one language.

  Attributes:
    right: whether it is right.
    choice: index of the chosen option, -1 = unparsed; None where answers are no options.
    text: what the model wrote.
    options: texts of the options, () where answers are none.
    answers: index of the right option, or the accepted texts.
  """

  right: bool
  choice: int | None
  text: str
  options: tuple[str, ...]
  answers: int | tuple[str, ...]


Cells = dict[str, dict[str, Cell]]  # language -> id -> cell


def prediction_files(path: str) -> dict[tuple[str, str], dict[int, str]]:
  """(benchmark, method) -> prompt -> file, of a results directory or of a single file.

  'predictions/cross_mmlu.p2.generate.jsonl' is prompt 2 of ('cross_mmlu', 'generate').

  Raises:
    RecordError: nothing is there.
  """
  if os.path.isdir(path):
    paths = sorted(
      str(p)
      for p in Path(path, 'predictions').glob('*.jsonl*')
      if re.search(r'\.jsonl(\.gz)?$', p.name)
    )
    if not paths:
      raise RecordError(
        f'{path} holds no predictions/*.jsonl; give an --output_dir of `crossin evaluate`, or two '
        'files'
      )
  elif os.path.isfile(path):
    paths = [path]
  else:
    raise RecordError(
      f'{path} does not exist; give an --output_dir of `crossin evaluate`, or a file of predictions'
    )
  found: dict[tuple[str, str], dict[int, str]] = {}
  for one in paths:
    stem = re.sub(r'\.jsonl(\.gz)?$|\.json(\.gz)?$', '', os.path.basename(one))
    name, _, method = stem.rpartition('.')
    if not name or method not in results.METHODS:
      name, method = stem, 'generate'
    match = re.fullmatch(r'(.+)\.p(\d+)', name)
    name, prompt = (match[1], int(match[2])) if match else (name, 1)
    found.setdefault((name, method), {})[prompt] = one
  return found


def read_cells(
  path: str, benchmark: str, *, protocol: str = 'strict', first_line: bool = False,
  allow_partial: bool = False, prompt: int = 1
) -> Cells:  # fmt: skip
  """The answers of a file, whichever kind the benchmark is."""
  open_protocol = open_answers.benchmark_protocol(benchmark)
  if open_protocol:
    found = open_answers.read_predictions(path, allow_partial=allow_partial)
    return {
      language: {
        id_: Cell(_is_right(text, found.answers[language][id_], open_protocol, language), None, text, (), tuple(found.answers[language][id_]))
        for id_, text in texts.items()
      }
      for language, texts in found.texts.items()
    }  # fmt: skip
  found = read_predictions(path, allow_partial=allow_partial)
  chosen_NL = found.extract(protocol, first_line=first_line, prompt=prompt)
  right_NL = consistency.correctness(chosen_NL, found.answers)
  return {
    language: {
      id_: Cell(bool(right_NL[i, j]), int(chosen_NL[i, j]), found.texts[i][j], tuple(found.choices[i][j]), int(found.answers[i, j]))
      for i, id_ in enumerate(found.ids)
    }
    for j, language in enumerate(found.languages)
  }  # fmt: skip


def _is_right(text: str, answers: Sequence[str], protocol: str, language: str) -> bool:
  if protocol == 'number':
    return open_answers.same_number(open_answers.extracted_number(text), answers[0])
  return open_answers.exact_match(text, answers, protocol, language)


# ---- two sides ----


@dataclass
class Pair:
  """A benchmark by one method, answered by both; only what both have.

  Attributes:
    benchmark, method: which.
    prompts: numbers of the prompts that both were asked under.
    ids: language -> ids that both answered in it, in the order of A.
    a, b: per prompt the cells.
    notes: what was left out, for people.
  """

  benchmark: str
  method: str
  prompts: list[int]
  ids: dict[str, list[str]]
  a: list[Cells]
  b: list[Cells]
  notes: list[str] = field(default_factory=list)

  @property
  def shared(self) -> list[str]:
    """Ids in every language."""
    every = [set(own) for own in self.ids.values()]
    return [id_ for id_ in next(iter(self.ids.values())) if all(id_ in own for own in every)]

  @property
  def has_options(self) -> bool:
    """Whether answers are options, so that languages may agree."""
    return next(iter(next(iter(self.a[0].values())).values())).choice is not None

  def right(
    self, side: list[Cells], languages: Sequence[str], ids: Sequence[str]
  ) -> list[np.ndarray]:
    """Per prompt, bool [ids, languages]."""
    return [
      np.array([[cells[l][id_].right for l in languages] for id_ in ids], bool) for cells in side
    ]

  def choices(self, side: list[Cells]) -> list[np.ndarray]:
    """Per prompt, int64 [shared, languages]."""
    return [
      np.array([[cells[l][id_].choice for l in self.ids] for id_ in self.shared], np.int64)
      for cells in side
    ]


def pair_up(
  benchmark: str,
  method: str,
  a: dict[int, str],
  b: dict[int, str],
  *,
  allow_partial: bool = False,
  **settings,
) -> Pair:
  """Reads both sides and keeps what both have.

  Args:
    benchmark, method: which.
    a, b: prompt -> file.
    allow_partial: leave out what only one side has, and name it, instead of refusing.
    **settings: protocol and first_line of `read_cells`.

  Raises:
    RecordError: nothing in common; different items or languages without `allow_partial`; an item
      that asks for another answer on the other side.
  """
  prompts = sorted(set(a) & set(b)) or None
  if prompts is None and len(a) == len(b) == 1:
    a, b, prompts = {1: next(iter(a.values()))}, {1: next(iter(b.values()))}, [1]
  if not prompts:
    raise RecordError(
      f'{benchmark} by {method}: no prompt in common ({_named(a)} against {_named(b)})'
    )
  notes = []
  if set(a) != set(b):
    notes.append(
      f'prompts {", ".join(map(str, sorted(set(a) ^ set(b))))} are on one side only and were left '
      'out'
    )
  read = lambda side: [
    read_cells(side[p], benchmark, prompt=p, allow_partial=allow_partial, **settings)
    for p in prompts
  ]
  first, second = read(a), read(b)
  problems = []
  languages = [l for l in first[0] if all(l in cells for cells in first + second)]
  if single := sorted({l for cells in first + second for l in cells if l not in languages}):
    problems.append(f'languages on one side only: {", ".join(single)}')
  ids = {}
  for language in languages:
    ids[language] = [
      id_ for id_ in first[0][language] if all(id_ in cells[language] for cells in first + second)
    ]
    if lacking := sorted(
      {id_ for cells in first + second for id_ in cells[language]} - set(ids[language])
    ):
      shown = ', '.join(lacking[:5]) + (', ...' if len(lacking) > 5 else '')
      problems.append(f'{language}: {len(lacking)} items on one side only ({shown})')
  if problems and not allow_partial:
    raise RecordError('\n  '.join([f'{benchmark} by {method}: the sides answered different items; '
                                   'compare what both have with --allow-partial',
                                   *problems]))  # fmt: skip
  if not any(ids.values()):
    raise RecordError(
      f'{benchmark} by {method}: no item in common, these are not the same questions'
    )
  ids = {language: own for language, own in ids.items() if own}
  for cells in first + second:
    for language, own in ids.items():
      for id_ in own:
        one, other = first[0][language][id_], cells[language][id_]
        if (one.options, one.answers) != (other.options, other.answers):
          raise RecordError(f'{benchmark} by {method}: item {id_!r} in {language} has other '
                            'options or another answer on the other side; these are different '
                            'versions of the benchmark')  # fmt: skip
  return Pair(
    benchmark,
    method,
    prompts,
    ids,
    first,
    second,
    notes + [f'left out, {text}' for text in problems],
  )


def _named(side: dict[int, str]) -> str:
  return ', '.join(f'p{prompt}' for prompt in sorted(side))
