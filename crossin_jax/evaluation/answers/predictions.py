"""Files of saved model output.

Two layouts are read and written, plain or gzipped:

  * a line per item and language: {"id", "language", "choices", "answer", "prediction"};
  * SeaEval's record per item: {"id", "English": {"choices", "answer", "model_prediction"},
    "Chinese": {...}, ...}, as JSON Lines or as one JSON list.

Languages are codes ('zh') or English names ('Chinese'); in memory they are codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
import gzip
import json
import os

import numpy as np

from crossin_jax.evaluation.answers import extraction
from crossin_jax.languages import ENGLISH_NAMES, code_of
from crossin_jax.storage.files import write_bytes
from crossin_jax.storage.records import RecordError, read_records

LINES, SEAEVAL = 'lines', 'seaeval'


class PredictionError(RecordError):
  """A prediction file that cannot be scored; the text names the file, the line and the remedy."""


@dataclass
class Predictions:
  """Model output on items that are parallel across languages."""

  ids: list[str]  # one per item
  languages: list[str]  # codes, in the order they first appear
  choices: list[list[list[str]]]  # [item][language][option] texts
  answers: np.ndarray  # int64 [items, languages], index of the right option
  texts: list[list[str]]  # [item][language] what the model wrote
  # ids without every language, left out on request
  left_out: list[str] = field(default_factory=list)
  # what is wrong with each line that was left out on request
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
  """Reads either layout.

  Raises:
    PredictionError: lines that are no JSON object, lack a field or have one of the wrong kind, an
      (id, language) given twice (each named with its number); an item without a language that
      others have (with id and language). With `allow_partial` such lines and items are left out and
      listed in `malformed` and `left_out`.
    OSError: the file cannot be opened.
  """
  cells: dict[tuple[str, str], tuple[str, list[str], int, str]] = {}
  ids: dict[str, None] = {}  # dicts keep the order of first appearance
  languages: dict[str, None] = {}
  malformed: list[str] = []
  for where, record in read_records(path, malformed):
    for item_id, language, choices, answer, text in _cells(record, where, malformed):
      if (item_id, language) in cells:
        first = cells[item_id, language][0].rsplit(', ', 1)[1]
        malformed.append(
          f'{where}: item {item_id!r} in {language!r} was already given in {first}; keep one of '
          'them'
        )
        continue
      ids[item_id] = languages[language] = None
      cells[item_id, language] = (where, choices, answer, text)
  if malformed and not allow_partial:
    raise PredictionError(_listed(path, malformed))
  if not cells:
    raise PredictionError(
      '\n'.join([f'{path} holds no predictions that could be scored', *malformed])
    )
  left_out = []
  for item_id in ids:
    lacking = [language for language in languages if (item_id, language) not in cells]
    if lacking and not allow_partial:
      raise PredictionError(
        f'{path}: item {item_id!r} has no prediction in {", ".join(lacking)}, which other items '
        'have; '
        'consistency needs every item in every language. Add the missing lines, '
        'or leave incomplete items out with --allow-partial'
      )
    if lacking:
      left_out.append(item_id)
      continue
    counts = {language: len(cells[item_id, language][1]) for language in languages}
    if len(set(counts.values())) > 1:
      told = ', '.join(f'{language} {count}' for language, count in counts.items())
      raise PredictionError(
        f'{path}: item {item_id!r} has unequal numbers of choices: {told}; options must be '
        'parallel across languages'
      )
  kept = [item_id for item_id in ids if item_id not in set(left_out)]
  if not kept:
    raise PredictionError(
      f'{path}: no item has a prediction in all of {", ".join(languages)}; nothing can be scored'
    )
  rows = [[cells[item_id, language] for language in languages] for item_id in kept]
  return Predictions(
    ids=kept,
    languages=list(languages),
    choices=[[cell[1] for cell in row] for row in rows],
    answers=np.array([[cell[2] for cell in row] for row in rows], np.int64),
    texts=[[cell[3] for cell in row] for row in rows],
    left_out=left_out,
    malformed=malformed,
  )


def _listed(path: str | os.PathLike, malformed: list[str]) -> str:
  """All that is wrong with a file, a line each, with the remedy."""
  several = (
    f'{path}: {len(malformed)} malformed lines; mend them, or score the rest with --allow-partial'
  )
  return malformed[0] if len(malformed) == 1 else '\n  '.join([several, *malformed])


def write_predictions(
  path: str | os.PathLike, predictions: Predictions, layout: str = LINES
) -> None:
  """Writes `layout` 'lines' or 'seaeval'; gzipped if the name ends in .gz; the file appears by
  rename.
  """
  if layout not in (LINES, SEAEVAL):
    raise ValueError(f'unknown layout {layout!r}; choose {LINES} or {SEAEVAL}')
  records: list[dict] = []
  for i, item_id in enumerate(predictions.ids):
    record: dict = {'id': item_id}
    for j, language in enumerate(predictions.languages):
      choices = predictions.choices[i][j]
      answer, text = choices[predictions.answers[i, j]], predictions.texts[i][j]
      if layout == LINES:
        records.append(
          {
            'id': item_id,
            'language': language,
            'choices': choices,
            'answer': answer,
            'prediction': text,
          }
        )
      else:
        record[ENGLISH_NAMES[language]] = {
          'choices': choices,
          'answer': answer,
          'model_prediction': text,
        }
    if layout == SEAEVAL:
      records.append(record)
  content = ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records).encode(
    'utf-8'
  )
  # NB: mtime=0, or the same predictions would give other bytes every second
  write_bytes(path, gzip.compress(content, mtime=0) if str(path).endswith('.gz') else content)


def _cells(
  record: Mapping, where: str, malformed: list[str]
) -> list[tuple[str, str, list[str], int, str]]:
  """(id, language code, choices, answer index, text) of a record in either layout; what is wrong
  goes to `malformed`.
  """
  item_id = record.get('id')
  if isinstance(item_id, bool) or not isinstance(item_id, (str, int)) or item_id == '':
    malformed.append(f"{where}: 'id' must be a text or a number, found {item_id!r}")
    return []
  if 'language' in record:
    by_language = {record['language']: record}
  else:
    by_language = {key: value for key, value in record.items() if isinstance(value, dict)}
    if not by_language:
      malformed.append(
        f"{where}: neither a 'language' field nor a language with its record; expected one of the "
        'two layouts'
      )
  cells = []
  for name, fields in by_language.items():
    try:
      cells.append((str(item_id), *_cell(name, fields, where)))
    except PredictionError as error:
      malformed.append(str(error))
  return cells


def _cell(name: str, fields: Mapping, where: str) -> tuple[str, list[str], int, str]:
  """(language code, choices, answer index, text).

  Raises:
    PredictionError: a field that is missing or of the wrong kind.
  """
  try:
    language = code_of(name)
  except (ValueError, AttributeError):
    raise PredictionError(
      f"{where}: {name!r} is no language; use a code such as 'zh' or an English name such as "
      "'Chinese'"
    ) from None
  choices = fields.get('choices')
  if (
    not isinstance(choices, list)
    or not all(isinstance(choice, str) for choice in choices)
    or not 2 <= len(choices) <= len(extraction.LETTERS)
  ):
    raise PredictionError(
      f"{where}, {name}: 'choices' must be a list of 2 to {len(extraction.LETTERS)} texts, found "
      f'{_shortened(choices)}'
    )
  text = fields.get('prediction', fields.get('model_prediction'))
  if not isinstance(text, str):
    raise PredictionError(
      f"{where}, {name}: 'prediction' (or 'model_prediction') must be a text, "
      f'empty if the model said nothing; found {_shortened(text)}'
    )
  return language, choices, _answer_index(fields.get('answer'), choices, f'{where}, {name}'), text


def _answer_index(answer: object, choices: Sequence[str], where: str) -> int:
  """Index of an answer given as the choice's text, its text without the letter, its letter, or its
  index.
  """
  if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
    return answer
  if isinstance(answer, str):
    texts = [extraction.choice_text(choice) for choice in choices]
    letters = list(extraction.LETTERS[: len(choices)])
    for candidates in (list(choices), texts, letters, [f'({letter})' for letter in letters]):
      if candidates.count(answer.strip() if answer not in candidates else answer) == 1:
        return candidates.index(answer.strip() if answer not in candidates else answer)
  raise PredictionError(
    f'{where}: the answer {_shortened(answer)} is not exactly one of the choices '
    f'{_shortened(list(choices))}'
  )


def _shortened(value: object) -> str:
  text = repr(value)
  return text if len(text) <= 120 else text[:117] + '...'
