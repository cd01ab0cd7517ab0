"""Texts out of files of any layout: the fields of a benchmark's items, and of training rows as a
stream.
"""

from collections.abc import Iterator
from dataclasses import dataclass
import gzip
import json
import os
import re

from crossin_jax.languages import code_of
from crossin_jax.storage.records import RecordError, read_records, read_text

UNKNOWN = 'unknown'  # language of an item that neither its fields nor its file's name tell
_ID_FIELDS = ('id', 'question_id', 'idx')
_NO_TEXT = {
  *_ID_FIELDS,
  'language',
  'lang',
  'label',
  'category',
  'source',
  'split',
  'version',
  'answer_letter',
}
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Field:
  """A text with where it stands.

  Attributes:
    item: id of the item or row.
    language: code, or `UNKNOWN`.
    name: of the field, 'context' or 'choices'.
    text: as it is.
  """

  item: str
  language: str
  name: str
  text: str


def benchmark_fields(path: str) -> Iterator[Field]:
  """Every text of a benchmark file: JSON, JSON Lines (also SeaEval's record per item), SQuAD's
  JSON, CSV, TSV, .gz of them.

  TSV files need no line with names: their columns are numbered.

  Raises:
    RecordError: what cannot be read, with file and line.
  """
  language = _language_of_name(path)
  suffix = os.path.splitext(path.removesuffix('.gz'))[1]
  if suffix == '.tsv':
    for number, line in enumerate(read_text(path).split('\n'), 1):
      for column, value in enumerate(line.rstrip('\r').split('\t'), 1):
        if value.strip():
          yield Field(f'line {number}', language, f'column {column}', value)
    return
  if suffix == '.json' and (squad := _squad(path)) is not None:
    for paragraph in (paragraph for article in squad for paragraph in article['paragraphs']):
      for question in paragraph['qas']:
        id_ = str(question.get('id'))
        yield Field(id_, language, 'context', paragraph['context'])
        yield Field(id_, language, 'question', question['question'])
        for answer in question.get('answers', []):
          yield Field(id_, language, 'answers', answer['text'])
    return
  for where, record in read_records(path):
    yield from record_fields(record, where.rsplit(', ', 1)[1], language)


def record_fields(record: dict, where: str, language: str = UNKNOWN) -> Iterator[Field]:
  """Texts of a record; a key that is a language holds what is in that language.

  {'id': 7, 'English': {'question': 'Why?', 'choices': ['a', 'b']}} ->
    Field('7', 'en', 'question', 'Why?'), Field('7', 'en', 'choices', 'a'), Field('7', 'en',
    'choices', 'b')
  """
  id_ = next(
    (str(record[field]) for field in _ID_FIELDS if isinstance(record.get(field), (str, int))), where
  )
  own = record.get('language', record.get('lang'))
  if isinstance(own, str):
    language = _code(own) or language
  yield from _texts(record, id_, language, '')


def _texts(value, id_: str, language: str, name: str) -> Iterator[Field]:
  if isinstance(value, str):
    if value.strip():
      yield Field(id_, language, name or 'text', value)
  elif isinstance(value, list):
    for one in value:
      yield from _texts(one, id_, language, name)
  elif isinstance(value, dict):
    for key, one in value.items():
      if isinstance(one, (dict, list)) and (code := _code(key)):
        yield from _texts(one, id_, code, name)
      elif not (isinstance(one, str) and key in _NO_TEXT):
        yield from _texts(one, id_, language, key)


def _code(name: str) -> str | None:
  try:
    return code_of(name)
  except ValueError:
    return None


def _language_of_name(path: str) -> str:
  """'mgsm_sw.tsv' -> 'sw', 'xquad.zh.json' -> 'zh'; the last part of the name that is a code."""
  for part in reversed(re.split(r'[._-]', os.path.basename(path).removesuffix('.gz'))):
    if len(part) in (2, 3) and (code := _code(part)):
      return code
  return UNKNOWN


def _squad(path: str) -> list | None:
  text = read_text(path)
  if not text.lstrip().startswith('{'):
    return None
  try:
    found = json.loads(text)
  except json.JSONDecodeError:
    return None  # JSON Lines under another name; what is wrong with it is said where lines are read
  articles = found.get('data') if isinstance(found, dict) else None
  return (
    articles
    if isinstance(articles, list) and all('paragraphs' in article for article in articles)
    else None
  )


def training_fields(path: str) -> Iterator[Field]:
  """Every text of training rows, one row in memory at a time: JSON list, JSON Lines, Parquet, CSV,
  TSV, .gz of the first two.

  Raises:
    RecordError: what cannot be read, with file and line or row.
  """
  suffix = os.path.splitext(path.removesuffix('.gz'))[1]
  if suffix == '.parquet':
    import pyarrow.parquet

    rows = (
      row
      for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1024)
      for row in batch.to_pylist()
    )
    records = ((f'row {number}', row) for number, row in enumerate(rows, 1))
  elif suffix in ('.csv', '.tsv'):
    records = ((where.rsplit(', ', 1)[1], row) for where, row in read_records(path))
  else:
    records = _streamed(path)
  language = _language_of_name(path)
  for where, record in records:
    yield from record_fields(record, where, language)


def _streamed(path: str) -> Iterator[tuple[str, dict]]:
  """(place, record) of JSON Lines or of a JSON list."""
  with open(path, 'rb') as raw:
    packed = raw.read(2) == b'\x1f\x8b'
  with (gzip.open if packed else open)(path, 'rt', encoding='utf-8-sig') as file:
    try:
      first = file.read(1)
      while first.isspace():
        first = file.read(1)
      yield from _list_elements(path, file) if first == '[' else _lines(path, file, first)
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
      raise RecordError(
        f'{path} cannot be read as UTF-8 text ({error}); convert or copy the file again'
      ) from None


def _lines(path: str, file, first: str) -> Iterator[tuple[str, dict]]:
  for number, line in enumerate(file, 1):
    line, first = first + line, ''
    if not line.strip():
      continue
    try:
      record = json.loads(line)
    except json.JSONDecodeError as error:
      raise RecordError(f'{path}, line {number}: not valid JSON ({error.msg})') from None
    yield f'line {number}', _object(record, f'{path}, line {number}')


def _list_elements(path: str, file) -> Iterator[tuple[str, dict]]:
  decoder, buffer, number, ended = json.JSONDecoder(), '', 0, False
  while True:
    buffer = buffer.lstrip(' \t\r\n,')
    if buffer.startswith(']'):
      return
    try:
      record, end = decoder.raw_decode(buffer)
    except json.JSONDecodeError as error:
      if ended:
        raise RecordError(
          f'{path}, row {number + 1}: not valid JSON ({error.msg}), or the file is cut off'
        ) from None
      # NB: twice as much each time, or a row of 100 MB would be parsed a hundred times from its
      # beginning
      more = file.read(max(_CHUNK, len(buffer)))
      ended, buffer = not more, buffer + more
      continue
    number += 1
    yield f'row {number}', _object(record, f'{path}, row {number}')
    buffer = buffer[end:]


def _object(record, where: str) -> dict:
  if isinstance(record, str):
    return {'text': record}
  if not isinstance(record, dict):
    raise RecordError(f'{where}: expected a JSON object or a text, found {type(record).__name__}')
  return record
