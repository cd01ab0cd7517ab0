"""Tasks of one benchmark in several languages: the same items beside each other.

Axis letters: N items, L languages, K options.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from typing import Any

import numpy as np

from crossin_jax.evaluation.answers.choices import LETTERS
from crossin_jax.evaluation.answers.numbers import extracted_number
from crossin_jax.evaluation.answers.predictions import Predictions, write_predictions
from crossin_jax.evaluation.harness.tasks import UNDETERMINED, languages_of
from crossin_jax.evaluation.measures import consistency
from crossin_jax.evaluation.measures.consistency import UNPARSED, Summary
from crossin_jax.evaluation.measures.rankc import rankc
from crossin_jax.evaluation.results import build_run
from crossin_jax.languages import in_order
from crossin_jax.languages import languages as known_languages
from crossin_jax.storage.files import write_json

# Fields of a document that name an item in all languages; the first that all tasks have counts.
ID_FIELDS = (
  ('id',), ('idx',), ('sample_id',), ('question_id',), ('qid',), ('uid',),
  ('link', 'question_number'),
)  # fmt: skip
_CORRECT = ('exact_match', 'acc', 'em')  # metrics of generated answers that are 0 or 1
_NO_ANSWER = ('', '[invalid]')  # what filters of the harness return where they find nothing


@dataclasses.dataclass(frozen=True)
class Cell:
  """One item in one language.

  Attributes:
    doc: the document of the harness.
    correct: its metric, 0 to 1.
    gold: index of the correct option, or the correct text; None = there are several.
    chosen: index of the most likely option, or the extracted answer.
    correct_norm: the metric by length of the options; None = the task has none.
    log_probabilities: of each option in nats; None of generated answers.
    task: family of its task, to tell items of several subjects apart.
    options: their texts; () of generated answers.
  """

  doc: Mapping[str, Any]
  correct: float
  gold: int | str | None
  chosen: int | str
  correct_norm: float | None = None
  log_probabilities: tuple[float, ...] | None = None
  task: str = ''
  options: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """One benchmark by one method, in all its languages.

  Attributes:
    name: of the tasks, without the language.
    method: 'likelihood' or 'generate'.
    filter: of the harness, which extracted the answers; 'none' without one.
    cells: language -> items; in all languages in the order of `ids` if these are known.
    aligned: by what the items are known to be the same: 'id', or another field, or 'position'; None
      = they are not comparable.
    why_not: the reason, if there are several languages.
    ids: of the items, if they are comparable.
  """

  name: str
  method: str
  filter: str
  cells: Mapping[str, Sequence[Cell]]
  aligned: str | None = None
  why_not: str = ''
  ids: Sequence[str] = ()

  @property
  def languages(self) -> list[str]:
    return list(self.cells)

  @property
  def file_name(self) -> str:
    """Name of its record, without suffix."""
    more = '' if self.filter == 'none' else f'.{self.filter}'
    return f'{self.name}.{self.method}{more}'.replace('/', '.')

  def choices(self) -> np.ndarray:
    """int64 [N, L]: chosen options. Of generated answers 0 is the correct one, equal wrong ones
    have equal numbers from 1, and -1 is none.
    """
    if self.method == 'likelihood':
      columns = [[cell.chosen for cell in cells] for cells in self.cells.values()]
      return np.array(columns, np.int64).T
    rows = []
    for item in zip(*self.cells.values()):
      wrong: dict[str, int] = {}
      rows.append([
        0 if cell.correct == 1
        else UNPARSED if not (value := _value(cell.chosen, cell.gold, language))
        else wrong.setdefault(value, 1 + len(wrong))
        for language, cell in zip(self.cells, item)
      ])  # fmt: skip
    return np.array(rows, np.int64)

  def answers(self) -> np.ndarray:
    """int64 [N]: correct options; 0 of generated answers."""
    first = next(iter(self.cells.values()))
    return np.array([cell.gold if self.method == 'likelihood' else 0 for cell in first], np.int64)

  def log_probabilities(self) -> list[list[list[float]]] | None:
    """[item][language][option] in nats, of comparable items answered by likelihood."""
    if self.method != 'likelihood' or not self.aligned:
      return None
    return [[list(cell.log_probabilities) for cell in item] for item in zip(*self.cells.values())]

  def _rankc(self) -> dict[str, float] | None:
    """RankC of every two languages, of comparable items answered by likelihood."""
    log_probabilities = self.log_probabilities()
    if log_probabilities is None or len(self.languages) < 2:
      return None
    losses = [[-np.array(options) for options in item] for item in log_probabilities]
    if any(len({len(options) for options in item}) > 1 for item in losses):
      return None
    return consistency.by_pair(rankc(losses), self.languages)

  def summary(self) -> Summary:
    """All figures; consistency, AC3 and RankC only where items are comparable."""
    means = lambda name: {
      language: float(np.mean([getattr(cell, name) for cell in cells]))
      for language, cells in self.cells.items()
    }
    by_language = means('correct')
    if self.aligned:
      summary = consistency.summarise(self.choices(), self.answers(), self.languages)
      summary = dataclasses.replace(summary, rankc=self._rankc())
    else:
      unparsed = [
        isinstance(cell.chosen, str) and cell.chosen.strip() in _NO_ANSWER and cell.correct != 1
        for cells in self.cells.values()
        for cell in cells
      ]
      summary = Summary(
        accuracy=float(np.mean(list(by_language.values()))), accuracy_by_language=by_language,
        consistency={}, ac3={}, pairwise_consistency={}, unparsed_rate=float(np.mean(unparsed)),
        items=max(map(len, self.cells.values())),
      )  # fmt: skip
    if any(cell.correct_norm is None for cells in self.cells.values() for cell in cells):
      return summary
    norm = means('correct_norm')
    return dataclasses.replace(
      summary, accuracy_norm=float(np.mean(list(norm.values()))), accuracy_norm_by_language=norm
    )

  def run(self, variant: str) -> dict:
    """The entry of results.json."""
    return build_run(
      self.summary(), variant=variant, seed=None, benchmark=f'lm_eval:{self.name}',
      protocol='strict' if self.filter == 'none' else self.filter, method=self.method,
    )  # fmt: skip

  def write(self, directory: str) -> None:
    """Writes the comparable items, with choices and log-probabilities, to DIRECTORY/NAME.json; and
    NAME.jsonl for `crossin compare`, where the options have different texts.
    """
    if self.method == 'likelihood' and (predictions := self._predictions()):
      write_predictions(os.path.join(directory, f'{self.file_name}.jsonl'), predictions)
    if not self.aligned:
      return
    record = {
      'benchmark': self.name,
      'method': self.method,
      'filter': self.filter,
      'aligned_by': self.aligned,
      'languages': self.languages,
      'ids': list(self.ids),
      'answers': self.answers().tolist(),
      'choices': self.choices().tolist(),
    }
    if (log_probabilities := self.log_probabilities()) is not None:
      record['log_probabilities'] = log_probabilities
    write_json(os.path.join(directory, f'{self.file_name}.json'), record)

  def _predictions(self) -> Predictions | None:
    """The choices as texts; None if they cannot be compared, or would not be read back."""
    items = list(zip(*self.cells.values()))
    differ = lambda options: len({text.strip().casefold() for text in options}) == len(options)
    readable = all(
      1 < len(cell.options) <= len(LETTERS) and differ(cell.options) and cell.gold is not None
      for item in items
      for cell in item
    )
    if not (self.aligned or len(self.cells) == 1) or not set(self.cells) <= set(known_languages()):
      return None
    if not readable:
      return None
    return Predictions(
      list(self.ids) or [str(i) for i in range(len(items))],
      self.languages,
      [[list(cell.options) for cell in item] for item in items],
      np.array([[cell.gold for cell in item] for item in items], np.int64),
      [[cell.options[cell.chosen] for cell in item] for item in items],
    )


def benchmarks(
  samples: Mapping[str, Sequence[Mapping]], loaded: Mapping[str, Mapping]
) -> tuple[list[Benchmark], list[str]]:
  """What the samples of a run say about benchmarks in several languages.

  Args:
    samples: task -> samples of the harness.
    loaded: what its `TaskManager.load` returned.

  Returns:
    The benchmarks, and a line for each task without a figure that results.json can hold.
  """
  # (family, method, filter) -> language -> items
  found: dict[tuple[str, str, str], dict[str, list[Cell]]] = {}
  skipped, of_task = [], {}
  of_name = languages_of({name: _dataset_name(loaded['tasks'][name]) for name in samples})
  for name, rows in samples.items():
    task, (family, language) = loaded['tasks'][name], of_name[name]
    of_task[name] = {}
    for filter_ in dict.fromkeys(row['filter'] for row in rows):
      own = [row for row in rows if row['filter'] == filter_]
      cells = _cells(task, own, family)
      if cells is None:
        skipped.append(f'{name}: its metrics are in the results of the harness only')
        break
      key = ('likelihood' if cells[0].log_probabilities else 'generate', filter_)
      of_task[name][key] = cells
      found.setdefault((family, *key), {})[language] = cells
  groups = _languages_of_groups(loaded.get('groups') or {}, of_name)
  for (family, language), names in groups.items():
    _add_group(found, of_task, family, language, names)
  return [
    _aligned(*key, {language: by_language[language] for language in _in_order(by_language)})
    for key, by_language in found.items()
    if by_language
  ], skipped


def _dataset_name(task) -> str | None:
  return getattr(task.config, 'dataset_name', None) or getattr(task, 'DATASET_NAME', None)


def _in_order(codes) -> list[str]:
  known = in_order(codes)
  return [*known, *sorted(set(codes) - set(known))]


def _languages_of_groups(groups, of_name) -> dict[tuple[str, str], list[str]]:
  """(family, language) -> tasks of the groups that are one language of a benchmark, such as
  global_mmlu_en.
  """
  leaves = {name: list(group.get_all_tasks()) for name, group in groups.items()}
  leaves = {name: own for name, own in leaves.items() if own}
  of_group = languages_of({name: _dataset_name(own[0]) for name, own in leaves.items()})
  found = {}
  for name, own in leaves.items():
    names = [task.task_name for task in own if task.task_name in of_name]
    languages = {of_name[task].language for task in names}
    if languages == {of_group[name].language} != {UNDETERMINED}:
      found[tuple(of_group[name])] = names
  return found


def _add_group(found, of_task, family: str, language: str, names: Sequence[str]) -> None:
  """Adds all items of the tasks of a group, unless a task has that name."""
  for key in of_task[names[0]]:
    by_language = found.setdefault((family, *key), {})
    if language not in by_language and all(key in of_task[name] for name in names):
      by_language[language] = [cell for name in names for cell in of_task[name][key]]


def _cells(task, rows: Sequence[Mapping], family: str) -> list[Cell] | None:
  """The items of a task by one filter; None without a metric that is 0 or 1."""
  kind = getattr(task, 'OUTPUT_TYPE', None)
  if kind == 'multiple_choice' and all('acc' in row for row in rows):
    return [_choice(task, row, family) for row in rows]
  if kind != 'generate_until':
    return None
  fits = lambda name: all(_is_fraction(row.get(name)) for row in rows)
  metric = next(filter(fits, _CORRECT), None)
  if metric is None:
    return None
  cell = lambda row: Cell(
    row['doc'],
    float(row[metric]),
    _text(row['target']),
    _text(row['filtered_resps'][0]),
    task=family,
  )
  return list(map(cell, rows))


def _choice(task, row: Mapping, family: str) -> Cell:
  doc = row['doc']
  options = task.doc_to_choice(doc)
  # Where contexts are the options, doc_to_text is the number of the correct one.
  gold = task.doc_to_text(doc) if getattr(task, 'multiple_input', 0) else row['target']
  if isinstance(gold, str):
    gold = options.index(gold) if gold in options else None
  gold = int(gold) if isinstance(gold, (int, np.integer)) and 0 <= gold < len(options) else None
  # The unconditional likelihoods of acc_mutual_info follow the others.
  scores = tuple(float(score) for score, _ in row['filtered_resps'][: len(options)])
  norm = row.get('acc_norm')
  return Cell(
    doc, float(row['acc']), gold, int(np.argmax(scores)), None if norm is None else float(norm),
    scores, family, tuple(map(str, options)),
  )  # fmt: skip


def _text(value) -> str:
  """An answer as text; the first of several."""
  while isinstance(value, (list, tuple)) and value:
    value = value[0]
  return value if isinstance(value, str) else '' if value is None else str(value)


def _is_fraction(value) -> bool:
  return isinstance(value, (int, float, np.number, bool)) and 0 <= value <= 1


def _value(text: str, gold: str, language: str) -> str:
  """An answer without what does not matter: of numbers the value, of other texts white space and
  case. '' = none.
  """
  if text.strip() in _NO_ANSWER:
    return ''
  if extracted_number(gold) == gold.strip():
    return extracted_number(text, language)
  return ' '.join(text.casefold().split())


def _aligned(name: str, method: str, filter_: str, cells: dict[str, list[Cell]]) -> Benchmark:
  """Finds out which items of several languages are the same."""
  benchmark = Benchmark(name, method, filter_, cells)
  if len(cells) < 2:
    return benchmark
  by, columns = 'position', cells
  for fields in ID_FIELDS:
    ids = {language: [_id(cell, fields) for cell in own] for language, own in cells.items()}
    sets = [set(own) for own in ids.values()]
    unique = all(len(one) == len(own) for one, own in zip(sets, ids.values()))
    if unique and None not in sets[0] and all(one == sets[0] for one in sets):
      order = next(iter(ids.values()))
      places = {language: {key: i for i, key in enumerate(own)} for language, own in ids.items()}
      columns = {
        language: [own[places[language][key]] for key in order] for language, own in cells.items()
      }
      by = ' and '.join(fields)
      break
  numbers = {len(own) for own in columns.values()}
  why_not = f'{", ".join(map(str, sorted(numbers)))} items' if len(numbers) > 1 else ''
  for item in zip(*columns.values()):
    golds = {cell.gold for cell in item}
    if None in golds or len(golds) > 1:
      why_not = why_not or 'the correct answers differ between languages'
    if len({len(cell.log_probabilities or ()) for cell in item}) > 1:
      why_not = why_not or 'the numbers of options differ between languages'
  if why_not:
    return dataclasses.replace(benchmark, why_not=why_not)
  first = next(iter(columns.values()))
  ids = [
    str(i) if by == 'position' else '/'.join(map(str, _id(cell, fields)))
    for i, cell in enumerate(first)
  ]
  return dataclasses.replace(benchmark, cells=columns, aligned=by, ids=ids)


def _id(cell: Cell, fields: Sequence[str]) -> tuple | None:
  """What names an item in its documents; None where a field is missing."""
  values = [cell.doc.get(field) for field in fields]
  if any(isinstance(value, bool) or not isinstance(value, (str, int)) for value in values):
    return None
  return (cell.task, *values)


def sentence(benchmark: Benchmark) -> str:
  """A benchmark in one line."""
  summary = benchmark.summary()
  by_language = ' '.join(
    f'{key} {value:.3f}' for key, value in summary.accuracy_by_language.items()
  )
  how = (
    benchmark.method if benchmark.filter == 'none' else f'{benchmark.method}, {benchmark.filter}'
  )
  text = f'{benchmark.name} by {how}: accuracy {summary.accuracy:.3f} ({by_language})'
  if s := '3' if '3' in summary.ac3 else max(summary.ac3, default=None):
    text += f', C_{s} {summary.consistency[s]:.3f}, AC3_{s} {summary.ac3[s]:.3f}'
  elif benchmark.why_not:
    text += f'; no consistency: {benchmark.why_not}'
  return text
