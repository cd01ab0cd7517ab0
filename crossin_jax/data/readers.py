"""Reads instruction rows from JSON lists, JSON lines, Parquet and TFDS; errors say where, what and
the remedy.
"""

from collections.abc import Iterator, Sequence
import os
import reprlib
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from crossin_jax.data.json_lists import read_json, read_jsonl
from crossin_jax.data.source_errors import SourceError, at, first_line, found, naming
from crossin_jax.languages import code_of

EXTENSIONS = ('.json', '.json.gz', '.jsonl', '.jsonl.gz', '.parquet')
TEXT_FIELDS = ('instruction', 'input', 'output')


class Row(NamedTuple):
  """One checked row of a file.

  Attributes:
    number: place among the rows of its file, from 0; blank lines are no rows.
    id: None if the row has none.
    language: code, None if the row has none.
    texts: (instruction, input, output).
  """

  number: int
  id: str | None
  language: str | None
  texts: tuple[str, str, str]


def extension(path: str) -> str | None:
  """The one of EXTENSIONS that the path ends in, or None: extension('a_en.jsonl.gz') ==
  '.jsonl.gz'.
  """
  return next((ext for ext in EXTENSIONS if path.lower().endswith(ext)), None)


def read_rows(path: str, with_language: bool = False) -> Iterator[Row]:
  """The rows of one file, in order.

  `.json` holds one list of objects, `.jsonl` one object per line (split at newline characters only;
  blank lines are skipped), `.parquet` one row per row; the first two may be gzipped. A byte order
  mark at the start is skipped. Fields: instruction and output (strings), input (a string; missing
  or null = ''), id (a string or a whole number; missing or null = None), language (code or English
  name). Others are ignored.

      # alpaca_zh.jsonl: {"instruction": "凯撒是怎么死的？", "output": "他被刺杀了。"}
      list(read_rows('alpaca_zh.jsonl')) == [Row(0, None, None, ('凯撒是怎么死的？', '', '他被刺杀了。'))]

  Args:
    path: a file with one of EXTENSIONS.
    with_language: read the field `language` too; otherwise it is one of those that are ignored.

  Raises:
    SourceError: missing, empty or unreadable file, invalid JSON, UTF-8, gzip or Parquet, a row that
      is no object, a field that is missing or of the wrong type, an unknown language.
  """
  ext = extension(path)
  if os.path.isdir(path):
    raise SourceError(
      f'{path}: is a directory, not a file; name a file in it, or the stem of files NAME_en.json '
      '...'
    )
  if not os.path.exists(path):
    raise SourceError(f'{path}: no such file; correct the path')
  if ext is None:
    raise SourceError(
      f'{path}: unknown kind of file; rename it so that it ends in one of {", ".join(EXTENSIONS)}'
    )
  if os.path.getsize(path) == 0:
    raise SourceError(f'{path}: the file is empty (0 bytes); write or copy it again')
  reader = {'.json': read_json, '.jsonl': read_jsonl, '.parquet': _read_parquet}[
    ext.removesuffix('.gz')
  ]
  number = -1
  with naming(path):
    for number, (line, fields) in enumerate(reader(path)):
      yield check_row(fields, path, number, line, with_language)
  if number < 0:
    raise SourceError(
      f'{path}: holds no rows; write or copy the file again, or take it out of the sources'
    )


def find_files(stem: str, languages: Sequence[str]) -> dict[str, str]:
  """The file of each language.

      find_files('/data/alpaca', ('en', 'zh')) == {'en': '/data/alpaca_en.json', 'zh':
      '/data/alpaca.zh.jsonl.gz'}

  Raises:
    SourceError: a language has no file, or several; or the path is no stem.
  """
  directory, base = os.path.split(stem)
  try:
    present = sorted(os.listdir(directory or '.'))
  except OSError as error:
    raise SourceError(
      f'{stem}: cannot list {directory or "."} ({error.strerror}); correct the path'
    ) from None
  files = {}
  for language in languages:
    names = [f'{base}{mark}{language}{ext}' for mark in '_.' for ext in EXTENSIONS]
    there = [name for name in names if name in present]
    if len(there) > 1:
      raise SourceError(
        f'{stem}: several files for {language!r}: {", ".join(there)}; keep one, or name it as path'
      )
    if there:
      files[language] = os.path.join(directory, there[0])
      continue
    if os.path.isdir(stem):
      raise SourceError(
        f'{stem}: is a directory, holding {_some(sorted(os.listdir(stem)))}; name one file in it, '
        'or the stem NAME '
        f'of files NAME_{language}.json'
      )
    if os.path.isfile(stem):
      raise SourceError(
        f'{stem}: unknown kind of file; rename it so that it ends in one of {", ".join(EXTENSIONS)}'
      )
    beside = _some(sorted(present, key=lambda name: (not name.startswith(base), name)))
    if extension(base):
      raise SourceError(f'{stem}: no such file, found beside it: {beside}; correct the path')
    raise SourceError(
      f'{stem}: no file for language {language!r}, looked for {base}_{language} and '
      f'{base}.{language} with '
      f'{", ".join(EXTENSIONS)}, found beside it: {beside}; add the file, or take {language!r} '
      'out of languages'
    )
  return files


def check_row(
  fields: Any, path: str, number: int, line: int | None = None, with_language: bool = False
) -> Row:
  """One object as a Row.

      check_row({'id': 7, 'instruction': 'Name a colour.', 'output': 'Red'}, 'a.json', 0)
      == Row(0, '7', None, ('Name a colour.', '', 'Red'))

  Args:
    fields: what the file holds as row; anything.
    path: for messages.
    number: from 0.
    line: for messages, from 1; None if the file has no lines.
    with_language: read the field `language` too.

  Raises:
    SourceError: the object is not a row.
  """
  where = lambda: at(path, number, line)
  if not isinstance(fields, dict):
    hint = (
      ' (a JSON list: name the file .json)' if line is not None and isinstance(fields, list) else ''
    )
    raise SourceError(
      f'{where()}: a row must be an object with instruction, input and output, found '
      f'{found(fields)}{hint}; '
      'mend or remove the row'
    )
  texts = []
  for field in TEXT_FIELDS:
    value = fields.get(field)
    if value is None and field == 'input':
      value = ''
    if field not in fields and field != 'input':
      present = ', '.join(reprlib.repr(key) for key in [*fields][:8]) or 'none'
      raise SourceError(
        f'{where()}: field {field!r} is missing, found {present}; add it, or rename the field meant'
      )
    if not isinstance(value, str):
      raise SourceError(
        f'{where()}: field {field!r} must be a string, found {found(value)}; write it as one '
        'string, '
        'or remove the row from the files of all languages'
      )
    texts.append(value)
  id_, language = fields.get('id'), None
  if isinstance(id_, int) and not isinstance(id_, bool):
    id_ = str(id_)
  if id_ is not None and not (isinstance(id_, str) and id_):
    raise SourceError(
      f"{where()}: field 'id' must be a whole number or a string that is not empty, found "
      f'{found(id_)}; '
      'mend it, or remove the field from every row'
    )
  if with_language and fields.get('language') is not None:
    language = fields['language']
    if not isinstance(language, str):
      raise SourceError(
        f"{where()}: field 'language' must be a string, found {found(language)}; write a code "
        "like 'zh'"
      )
    try:
      language = code_of(language)
    except ValueError as error:
      raise SourceError(
        f"{where()}: field 'language': {error}; mend the field, or remove the row"
      ) from None
  return Row(number, id_, language, tuple(texts))


def _some(names: list[str]) -> str:
  return (
    ', '.join(names[:10]) + (f' and {len(names) - 10} more' if len(names) > 10 else '') or 'nothing'
  )


def _read_parquet(path: str) -> Iterator[tuple[None, Any]]:
  number = 0
  try:
    # With a buffer, pages are read as they are used, not a whole column of a row group.
    with pq.ParquetFile(path, buffer_size=1 << 20) as file:
      names = file.schema_arrow.names
      for field in (*TEXT_FIELDS, 'id', 'language'):
        if names.count(field) > 1 or field in ('instruction', 'output') and field not in names:
          what = 'occurs twice' if field in names else 'is missing'
          present = ', '.join(names) or 'none'
          raise SourceError(
            f'{path}: column {field!r} {what}, found the columns {present}; rename them'
          )
      columns = [field for field in ('id', 'language', *TEXT_FIELDS) if field in names]
      for batch in file.iter_batches(batch_size=256, columns=columns):
        try:
          rows = batch.to_pylist()
        except UnicodeDecodeError:
          raise _parquet_not_utf8(path, batch, number) from None
        for fields in rows:
          yield None, fields
        number += len(rows)
  except (pa.ArrowException, OSError) as error:
    raise SourceError(
      f'{path}: not a whole Parquet file ({first_line(error)}); write or copy it again'
    ) from None


def _parquet_not_utf8(path: str, batch: pa.RecordBatch, number: int) -> SourceError:
  """Finds the field at fault; the batch begins at row `number`."""
  for field, column in zip(batch.schema.names, batch.columns, strict=True):
    for i, value in enumerate(column):
      try:
        value.as_py()
      except UnicodeDecodeError as error:
        where = f'{at(path, number + i, None)}: field {field!r}'
        return SourceError(
          f'{where}: not valid UTF-8 at its byte {error.start}; write the file again with UTF-8 '
          'text'
        )
  raise AssertionError('to_pylist and as_py disagree')
