"""Texts of files in any layout: fields of benchmark items, and of training rows as a stream."""

from collections.abc import Iterator
from dataclasses import dataclass
import json
import os
import re

from crossin_jax.languages import code_of
from crossin_jax.storage.json_rows import JsonRows
from crossin_jax.storage.records import RecordError, read_records, read_text

UNKNOWN = 'unknown'  # language of an item without one in its fields or the file name
_ID_FIELDS = ('id', 'question_id', 'idx')
# names of string fields that hold no text
_NO_TEXT = {
  *(*_ID_FIELDS, 'language', 'lang', 'label', 'category', 'source', 'split', 'version'),
  'answer_letter',
}


@dataclass(frozen=True)
class Field:
  """A text with its position."""

  item: str  # ID of the item or row
  language: str  # code, or `UNKNOWN`
  name: str  # of the field, e.g. 'context' or 'choices'
  text: str


def benchmark_fields(path: str) -> Iterator[Field]:
  """Every text of a benchmark file.

  Args:
    path: JSON, JSON Lines (also SeaEval's record per item), SQuAD's JSON, CSV or TSV, also .gz. TSV
      files have no header; their columns are numbered.

  Raises:
    RecordError: a malformed file, with the line.
  """
  language = _language_of_name(path)
  suffix = os.path.splitext(path.removesuffix('.gz'))[1]
  if suffix == '.tsv':
    for number, line in enumerate(read_text(path).split('\n'), 1):
      for column, value in enumerate(line.rstrip('\r').split('\t'), 1):
        if value.strip():
          yield Field(f'line {number}', language, f'column {column}', value)
  elif suffix == '.json' and (articles := _squad(path)) is not None:
    for paragraph in (paragraph for article in articles for paragraph in article['paragraphs']):
      for question in paragraph['qas']:
        id_ = str(question.get('id'))
        yield Field(id_, language, 'context', paragraph['context'])
        yield Field(id_, language, 'question', question['question'])
        for answer in question.get('answers', []):
          yield Field(id_, language, 'answers', answer['text'])
  else:
    for where, record in read_records(path):
      yield from record_fields(record, where.rsplit(', ', 1)[1], language)


def record_fields(record: dict, where: str, language: str = UNKNOWN) -> Iterator[Field]:
  """Texts of a record; the value of a key that is a language is in that language.

  {'id': 7, 'English': {'question': 'Why?', 'choices': ['a', 'b']}} ->
    Field('7', 'en', 'question', 'Why?'), Field('7', 'en', 'choices', 'a'),
    Field('7', 'en', 'choices', 'b')
  """
  ids = (record[name] for name in _ID_FIELDS if isinstance(record.get(name), (str, int)))
  code = record.get('language', record.get('lang'))
  if isinstance(code, str):
    language = _code(code) or language
  yield from _texts(record, str(next(ids, where)), language, '')


def _texts(value, id_: str, language: str, name: str) -> Iterator[Field]:
  if isinstance(value, str):
    if value.strip():
      yield Field(id_, language, name or 'text', value)
  elif isinstance(value, list):
    for element in value:
      yield from _texts(element, id_, language, name)
  elif isinstance(value, dict):
    for key, element in value.items():
      if isinstance(element, (dict, list)) and (code := _code(key)):
        yield from _texts(element, id_, code, name)
      elif not (isinstance(element, str) and key in _NO_TEXT):
        yield from _texts(element, id_, language, key)


def _code(name: str) -> str | None:
  try:
    return code_of(name)
  except ValueError:
    return None


def _language_of_name(path: str) -> str:
  """The last part of a file name that is a code: 'mgsm_sw.tsv' -> 'sw', 'xquad.zh.json' -> 'zh'."""
  for part in reversed(re.split(r'[._-]', os.path.basename(path).removesuffix('.gz'))):
    if len(part) in (2, 3) and (code := _code(part)):
      return code
  return UNKNOWN


def _squad(path: str) -> list | None:
  """The articles of a SQuAD file; None for another layout."""
  text = read_text(path)
  try:
    content = json.loads(text) if text.lstrip().startswith('{') else None
  except json.JSONDecodeError:  # JSON Lines named .json; its reader reports what is malformed
    return None
  articles = content.get('data') if isinstance(content, dict) else None
  is_squad = isinstance(articles, list) and all('paragraphs' in article for article in articles)
  return articles if is_squad else None


def training_fields(path: str) -> Iterator[Field]:
  """Every text of training rows, with one row in memory at a time.

  Args:
    path: JSON list, JSON Lines (both also .gz), Parquet, CSV or TSV.

  Raises:
    RecordError: a malformed file, with the line or row.
  """
  suffix = os.path.splitext(path.removesuffix('.gz'))[1]
  if suffix == '.parquet':
    import pyarrow.parquet

    batches = pyarrow.parquet.ParquetFile(path).iter_batches(1024)
    rows = (row for batch in batches for row in batch.to_pylist())
    records = ((f'row {number}', row) for number, row in enumerate(rows, 1))
  elif suffix in ('.csv', '.tsv'):
    records = ((where.rsplit(', ', 1)[1], row) for where, row in read_records(path))
  else:
    records = _streamed(path)
  language = _language_of_name(path)
  for where, record in records:
    yield from record_fields(record, where, language)


def _streamed(path: str) -> Iterator[tuple[str, dict]]:
  """(position, record) of JSON Lines or of a JSON list; a text is a record of one field."""
  for number, (line, record) in enumerate(JsonRows(path, RecordError).rows(), 1):
    where = f'row {number}' if line is None else f'line {line}'
    if isinstance(record, str):
      record = {'text': record}
    if not isinstance(record, dict):
      raise RecordError(
        f'{path}, {where}: expected a JSON object or a string, found {type(record).__name__}'
      )
    yield where, record
