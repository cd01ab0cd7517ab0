"""Files of saved predictions with options.

There are two layouts, plain or gzipped:

  * a line per item and language: {"id", "language", "choices", "answer", "prediction"};
  * SeaEval's record per item: {"id", "English": {"choices", "answer", "model_prediction"},
    "Chinese": {...}, ...}, as JSON Lines or as a JSON list.

Files name languages by code ('zh') or English name ('Chinese'); memory holds codes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
import gzip
import json
import os

import numpy as np

from crossin_jax.evaluation import record_fields
from crossin_jax.evaluation.answers import extraction
from crossin_jax.evaluation.answers.choices import LETTERS, choice_text
from crossin_jax.languages import code_of, english_name
from crossin_jax.storage.files import write_bytes
from crossin_jax.storage.records import RecordError, read_records

LINES, SEAEVAL = 'lines', 'seaeval'
_Cell = tuple[str, list[str], int, str]  # where, choices, index of the answer, prediction


class PredictionError(RecordError):
  """A prediction file that cannot be scored; the message names file, line and remedy."""


@dataclass
class Predictions:
  """Predictions on items that are parallel across languages.

  Attributes:
    ids: one per item.
    languages: codes in order of appearance.
    choices: texts of the options, [item][language][option].
    answers: index of the correct option, int64 [items, languages].
    texts: predicted texts, [item][language].
    left_out: IDs of skipped items, which lack a language.
    malformed: a message for each skipped line.
  """

  ids: list[str]
  languages: list[str]
  choices: list[list[list[str]]]
  answers: np.ndarray
  texts: list[list[str]]
  left_out: list[str] = field(default_factory=list)
  malformed: list[str] = field(default_factory=list)

  def extract(self, protocol: str, *, first_line: bool = False, prompt: int = 1) -> np.ndarray:
    """Chosen options, int64 [items, languages], -1 = unparsed; see `extraction.extract`."""
    chosen_NL = np.empty(self.answers.shape, np.int64)
    for i, item_id in enumerate(self.ids):
      for j, language in enumerate(self.languages):
        text = extraction.first_line(self.texts[i][j]) if first_line else self.texts[i][j]
        chosen_NL[i, j] = extraction.extract(
          text, self.choices[i][j], protocol, item_id=item_id, language=language, prompt=prompt
        )
    return chosen_NL


def read_predictions(path: str | os.PathLike, *, allow_partial: bool = False) -> Predictions:
  """Reads either layout; with `allow_partial` skips malformed lines and incomplete items.

  Raises:
    PredictionError: malformed or repeated lines, each with its number; an item without a language.
    OSError: the file cannot be opened.
  """
  cells: dict[tuple[str, str], _Cell] = {}
  ids: dict[str, None] = {}  # dicts keep the order of first appearance
  languages: dict[str, None] = {}
  malformed: list[str] = []
  for where, record in read_records(path, malformed):
    for item_id, language, *cell in _cells(record, where, malformed):
      if (item_id, language) in cells:
        first = cells[item_id, language][0].rsplit(', ', 1)[1]
        malformed.append(
          f'{where}: item {item_id!r} in {language!r} was already given in {first}; keep one of '
          'them'
        )
        continue
      ids[item_id] = languages[language] = None
      cells[item_id, language] = (where, *cell)
  if malformed and not allow_partial:
    head = f'{path}: {len(malformed)} malformed lines; fix them, or score the rest with '
    raise PredictionError(
      record_fields.message(f'{head}--allow_partial', malformed)
      if len(malformed) > 1
      else malformed[0]
    )
  if not cells:
    head = f'{path} holds no predictions that can be scored'
    raise PredictionError('\n'.join([head, *malformed]))
  left_out = _incomplete(path, cells, list(ids), list(languages), allow_partial)
  kept = [item_id for item_id in ids if item_id not in set(left_out)]
  if not kept:
    raise PredictionError(
      f'{path}: no item has a prediction in all of {", ".join(languages)}; nothing can be scored'
    )
  rows = [[cells[item_id, language] for language in languages] for item_id in kept]
  return Predictions(
    ids=kept,
    languages=list(languages),
    choices=[[choices for _, choices, _, _ in row] for row in rows],
    answers=np.array([[answer for _, _, answer, _ in row] for row in rows], np.int64),
    texts=[[text for *_, text in row] for row in rows],
    left_out=left_out,
    malformed=malformed,
  )


def _incomplete(
  path, cells: Mapping, ids: Sequence[str], languages: Sequence[str], allow_partial: bool
) -> list[str]:
  """IDs of items that lack a language; raises for one unless `allow_partial`."""
  incomplete = []
  for item_id in ids:
    if lacking := [language for language in languages if (item_id, language) not in cells]:
      if not allow_partial:
        raise PredictionError(
          f'{path}: item {item_id!r} has no prediction in {", ".join(lacking)}, which other items '
          'have; consistency needs every item in every language. Add the missing lines, or skip '
          'incomplete items with --allow_partial'
        )
      incomplete.append(item_id)
      continue
    counts = {language: len(cells[item_id, language][1]) for language in languages}
    if len(set(counts.values())) > 1:
      shown = ', '.join(f'{language} {count}' for language, count in counts.items())
      raise PredictionError(
        f'{path}: item {item_id!r} has unequal numbers of choices: {shown}; options must be '
        'parallel across languages'
      )
  return incomplete


def write_predictions(
  path: str | os.PathLike, predictions: Predictions, layout: str = LINES
) -> None:
  """Writes `layout` 'lines' or 'seaeval' atomically; gzipped if the name ends in .gz."""
  if layout not in (LINES, SEAEVAL):
    raise ValueError(f'unknown layout {layout!r}; choose {LINES} or {SEAEVAL}')
  records: list[dict] = []
  for i, item_id in enumerate(predictions.ids):
    by_language = {}
    for j, language in enumerate(predictions.languages):
      choices, text = predictions.choices[i][j], predictions.texts[i][j]
      fields = {'choices': choices, 'answer': choices[predictions.answers[i, j]]}
      by_language[english_name(language)] = fields | {'model_prediction': text}
      if layout == LINES:
        records.append({'id': item_id, 'language': language, **fields, 'prediction': text})
    if layout == SEAEVAL:
      records.append({'id': item_id, **by_language})
  lines = [json.dumps(record, ensure_ascii=False) + '\n' for record in records]
  content = ''.join(lines).encode()
  # NB: with the time in the gzip header, the bytes of equal predictions would differ
  write_bytes(path, gzip.compress(content, mtime=0) if str(path).endswith('.gz') else content)


def _cells(record: Mapping, where: str, malformed: list[str]) -> Iterator[tuple]:
  """(ID, language, choices, index of the answer, prediction) of a record in either layout."""
  try:
    item_id = record_fields.item_id(record)
  except ValueError as error:
    malformed.append(f'{where}: {error}')
    return
  if 'language' in record:
    by_language = {record['language']: record}
  else:
    by_language = {key: value for key, value in record.items() if isinstance(value, dict)}
    if not by_language:
      malformed.append(
        f"{where}: neither a 'language' field nor a language with its record; expected one of the "
        'two layouts'
      )
  for name, fields in by_language.items():
    try:
      yield item_id, *_cell(name, fields, where)
    except PredictionError as error:
      malformed.append(str(error))


def _cell(name: str, fields: Mapping, where: str) -> tuple[str, list[str], int, str]:
  """(language, choices, index of the answer, prediction)."""
  try:
    language = code_of(name)
  except (ValueError, AttributeError):
    raise PredictionError(
      f"{where}: {name!r} is not a language; use a code such as 'zh' or an English name such as "
      "'Chinese'"
    ) from None
  choices, most = fields.get('choices'), len(LETTERS)
  if not record_fields.are_strings(choices, least=2) or len(choices) > most:
    raise PredictionError(
      f"{where}, {name}: 'choices' must be a list of 2 to {most} strings, found "
      f'{_shortened(choices)}'
    )
  text = fields.get('prediction', fields.get('model_prediction'))
  if not isinstance(text, str):
    raise PredictionError(
      f"{where}, {name}: 'prediction' (or 'model_prediction') must be a string, empty if the model "
      f'wrote nothing; found {_shortened(text)}'
    )
  return language, choices, _answer_index(fields.get('answer'), choices, f'{where}, {name}'), text


def _answer_index(answer: object, choices: Sequence[str], where: str) -> int:
  """Index of an answer given as a choice, its text without the letter, its letter or its index."""
  if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
    return answer
  if isinstance(answer, str):
    texts = [choice_text(choice) for choice in choices]
    letters = list(LETTERS[: len(choices)])
    for candidates in (list(choices), texts, letters, [f'({letter})' for letter in letters]):
      key = answer if answer in candidates else answer.strip()
      if candidates.count(key) == 1:
        return candidates.index(key)
  raise PredictionError(
    f'{where}: the answer {_shortened(answer)} is not exactly one of the choices '
    f'{_shortened(list(choices))}'
  )


def _shortened(value: object) -> str:
  text = repr(value)
  return text if len(text) <= 120 else text[:117] + '...'
