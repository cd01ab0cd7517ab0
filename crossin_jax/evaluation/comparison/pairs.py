"""Predictions of two models on the same items, paired.

Axis letters: N items, L languages.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
import itertools
import os
from pathlib import Path
import re

import numpy as np

from crossin_jax.data.thoughts import without_thoughts
from crossin_jax.evaluation import record_fields, results
from crossin_jax.evaluation.answers import extraction, open_answers
from crossin_jax.evaluation.answers.numbers import extracted_number, same_number
from crossin_jax.evaluation.answers.predictions import read_predictions
from crossin_jax.evaluation.measures import consistency
from crossin_jax.storage.records import RecordError


@dataclass(frozen=True)
class Cell:
  """The answer of one model to one item in one language."""

  right: bool
  choice: int | None  # index of the chosen option, -1 = unparsed; None for an open answer
  text: str  # the prediction
  options: tuple[str, ...]  # () for an open answer
  answers: int | tuple[str, ...]  # index of the correct option, or the accepted texts


Cells = dict[str, dict[str, Cell]]  # language -> ID -> cell


def prediction_files(path: str) -> dict[tuple[str, str], dict[int, str]]:
  """(benchmark, method) -> prompt -> file, of a results directory or of a single file.

  'predictions/cross_mmlu.p2.generate.jsonl' is prompt 2 of ('cross_mmlu', 'generate').

  Raises:
    RecordError: there is no file.
  """
  if os.path.isdir(path):
    paths = sorted(str(p) for p in Path(path, 'predictions').glob('*.jsonl*'))
    paths = [p for p in paths if re.search(r'\.jsonl(\.gz)?$', p)]
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
  files: dict[tuple[str, str], dict[int, str]] = {}
  for file in paths:
    stem = re.sub(r'\.jsonl?(\.gz)?$', '', os.path.basename(file))
    name, _, method = stem.rpartition('.')
    if not name or method not in results.METHODS:
      name, method = stem, 'generate'
    match = re.fullmatch(r'(.+)\.p(\d+)', name)
    name, prompt = (match[1], int(match[2])) if match else (name, 1)
    files.setdefault((name, method), {})[prompt] = file
  return files


def read_cells(
  path: str,
  benchmark: str,
  *,
  protocol: str = 'strict',
  first_line: bool = False,
  allow_partial: bool = False,
  prompt: int = 1,
) -> Cells:
  """The answers of a file, with options or open."""
  if usual := open_answers.benchmark_protocol(benchmark):
    open_protocol = protocol if protocol in open_answers.readers(benchmark) else usual
    opened = open_answers.read_predictions(path, allow_partial=allow_partial)
    cells: Cells = {language: {} for language in opened.texts}
    for language, texts in opened.texts.items():
      for id_, text in texts.items():
        answers = opened.answers[language][id_]
        right = _is_right(without_thoughts(text), answers, open_protocol, language)
        cells[language][id_] = Cell(right, None, text, (), tuple(answers))
    return cells
  read = read_predictions(path, allow_partial=allow_partial)
  protocol = protocol if protocol in extraction.PROTOCOLS else 'strict'
  chosen_NL = read.extract(protocol, first_line=first_line, prompt=prompt)
  right_NL = consistency.correctness(chosen_NL, read.answers)

  def cell(i: int, j: int) -> Cell:
    right, choice, answer = (array[i, j].item() for array in (right_NL, chosen_NL, read.answers))
    return Cell(right, choice, read.texts[i][j], tuple(read.choices[i][j]), answer)

  return {
    language: {id_: cell(i, j) for i, id_ in enumerate(read.ids)}
    for j, language in enumerate(read.languages)
  }


def _is_right(text: str, answers: Sequence[str], protocol: str, language: str) -> bool:
  if protocol == 'number':
    return same_number(extracted_number(text, language), answers[0])
  return open_answers.exact_match(text, answers, protocol, language)


# ---- two sides ----


@dataclass
class Pair:
  """A benchmark by one method, restricted to what both models answered."""

  benchmark: str
  method: str
  prompts: list[int]  # numbers of the common prompts
  ids: dict[str, list[str]]  # language -> common IDs, in the order of A
  a: list[Cells]  # per prompt
  b: list[Cells]
  notes: list[str] = field(default_factory=list)  # on what was skipped, for humans

  @property
  def shared(self) -> list[str]:
    """IDs in every language."""
    first, *others = self.ids.values()
    common = set(first).intersection(*others)
    return [id_ for id_ in first if id_ in common]

  @property
  def has_options(self) -> bool:
    """Whether answers are options, so that consistency is defined."""
    return next(iter(next(iter(self.a[0].values())).values())).choice is not None

  def answers(self) -> np.ndarray:
    """Index of the correct option, int64 [shared, languages]."""
    return np.array([[self.a[0][l][id_].answers for l in self.ids] for id_ in self.shared])

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
    benchmark, method: names.
    a, b: prompt -> file.
    allow_partial: skip what only one side has, with a note.
    **settings: of `read_cells`.

  Raises:
    RecordError: nothing in common; different items or languages without `allow_partial`; an item
      with other options or another answer on the other side.
  """
  label = f'{benchmark} by {method}'
  prompts = sorted(set(a) & set(b))
  if not prompts and len(a) == len(b) == 1:
    a, b, prompts = {1: next(iter(a.values()))}, {1: next(iter(b.values()))}, [1]
  if not prompts:
    first, second = (', '.join(f'p{prompt}' for prompt in sorted(side)) for side in (a, b))
    raise RecordError(f'{label}: no prompt in common ({first} against {second})')
  notes = []
  if single := sorted(set(a) ^ set(b)):
    notes.append(f'skipped prompts {", ".join(map(str, single))}, which are on one side only')
  settings['allow_partial'] = allow_partial
  first, second = (
    [read_cells(side[prompt], benchmark, prompt=prompt, **settings) for prompt in prompts]
    for side in (a, b)
  )
  ids, problems = _common_ids(first + second)
  if problems and not allow_partial:
    head = (
      f'{label}: the sides answered different items; compare what both have with --allow_partial'
    )
    raise RecordError(record_fields.message(head, problems))
  ids = {language: common for language, common in ids.items() if common}
  if not ids:
    raise RecordError(f'{label}: no item in common, these are not the same questions')
  named = [(language, id_) for language, common in ids.items() for id_ in common]
  for cells, (language, id_) in itertools.product(first + second, named):
    one, other = first[0][language][id_], cells[language][id_]
    if (one.options, one.answers) != (other.options, other.answers):
      raise RecordError(
        f'{label}: item {id_!r} in {language} has other options or another answer on the other '
        'side; these are different versions of the benchmark'
      )
  notes += [f'skipped, {text}' for text in problems]
  return Pair(benchmark, method, prompts, ids, first, second, notes)


def _common_ids(sides: list[Cells]) -> tuple[dict[str, list[str]], list[str]]:
  """language -> IDs that all sides have, and messages about the others."""
  problems = []
  languages = [l for l in sides[0] if all(l in cells for cells in sides)]
  if single := sorted({l for cells in sides for l in cells if l not in languages}):
    problems.append(f'languages on one side only: {", ".join(single)}')
  ids = {}
  for language in languages:
    by_side = [cells[language] for cells in sides]
    ids[language] = [id_ for id_ in by_side[0] if all(id_ in cells for cells in by_side)]
    if lacking := sorted(set().union(*by_side) - set(ids[language])):
      shown = ', '.join(lacking[:5]) + (', ...' if len(lacking) > 5 else '')
      problems.append(f'{language}: {len(lacking)} items on one side only ({shown})')
  return ids, problems
