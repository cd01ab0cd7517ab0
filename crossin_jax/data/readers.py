"""Reads instruction rows from JSON lists, JSON lines and Parquet, and checks every row."""

from collections.abc import Iterator, Sequence
import os
import reprlib
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from crossin_jax.data.json_lists import read_json, read_jsonl
from crossin_jax.data.source_errors import SourceError, at, describe, first_line, naming
from crossin_jax.languages import code_of

EXTENSIONS = ('.json', '.json.gz', '.jsonl', '.jsonl.gz', '.parquet')
TEXT_FIELDS = ('instruction', 'input', 'output')


class Row(NamedTuple):
  """One checked row of a file.

  Attributes:
    number: of the row in its file, from 0, blank lines not counted.
    id: None if absent.
    language: code; None if absent.
    texts: (instruction, input, output).
  """

  number: int
  id: str | None
  language: str | None
  texts: tuple[str, str, str]


def extension(path: str) -> str | None:
  """The path's ending if it is one of EXTENSIONS: extension('a.jsonl.gz') == '.jsonl.gz'."""
  return next((ext for ext in EXTENSIONS if path.lower().endswith(ext)), None)


def read_rows(path: str, with_language: bool = False) -> Iterator[Row]:
  """The rows of one file, in order.

  `.json` has one list of objects, `.jsonl` one object per line (split at newline characters only;
  blank lines are skipped); both may be gzipped and start with a byte order mark. Fields:
  instruction and output (strings), input (a string; missing or null = ''), id (a string or an
  integer; missing or null = None), language (code or English name). Other fields are ignored.

      # zh.jsonl: {"instruction": "凯撒是怎么死的？", "output": "他被刺杀了。"}
      list(read_rows('zh.jsonl')) == [Row(0, None, None, ('凯撒是怎么死的？', '', '他被刺杀了。'))]

  Args:
    path: a file with one of EXTENSIONS.
    with_language: read the field `language` too.

  Raises:
    SourceError: missing, empty or unreadable file; invalid JSON, UTF-8, gzip or Parquet; a row that
      is not an object; a field that is missing or of the wrong type; an unknown language.
  """
  ext = extension(path)
  if os.path.isdir(path):
    raise SourceError(
      f'{path}: is a directory; give a file in it, or the stem of files NAME_en.json ...'
    )
  if not os.path.exists(path):
    raise SourceError(f'{path}: no such file; correct the path')
  if ext is None:
    raise _unknown_kind(path)
  if os.path.getsize(path) == 0:
    raise SourceError(f'{path}: the file is empty (0 bytes); write or copy it again')
  readers = {'.json': read_json, '.jsonl': read_jsonl, '.parquet': _read_parquet}
  reader = readers[ext.removesuffix('.gz')]
  number = -1
  with naming(path):
    for number, (line, fields) in enumerate(reader(path)):
      yield check_row(fields, path, number, line, with_language)
  if number < 0:
    raise SourceError(
      f'{path}: has no rows; write or copy the file again, or remove it from the sources'
    )


def find_files(stem: str, languages: Sequence[str]) -> dict[str, str]:
  """The file of each language.

      find_files('/data/alpaca', ('en', 'zh')) ==
          {'en': '/data/alpaca_en.json', 'zh': '/data/alpaca.zh.jsonl.gz'}

  Raises:
    SourceError: a language has no file, or several; or the path is not a stem.
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
    matches = [name for name in names if name in present]
    if len(matches) > 1:
      raise SourceError(
        f'{stem}: several files for {language!r}: {", ".join(matches)}; keep one, or give its path'
      )
    if not matches:
      raise _no_file(stem, language, present)
    files[language] = os.path.join(directory, matches[0])
  return files


def _unknown_kind(path: str) -> SourceError:
  return SourceError(
    f'{path}: unknown kind of file; rename it so that it ends in one of {", ".join(EXTENSIONS)}'
  )


def _no_file(stem: str, language: str, present: list[str]) -> SourceError:
  """The error for a language without a file among those `present` in the stem's directory."""
  if os.path.isdir(stem):
    return SourceError(
      f'{stem}: is a directory that has {_some(sorted(os.listdir(stem)))}; give one file in it, '
      f'or the stem NAME of files NAME_{language}.json'
    )
  if os.path.isfile(stem):
    return _unknown_kind(stem)
  base = os.path.basename(stem)
  beside = _some(sorted(present, key=lambda name: (not name.startswith(base), name)))
  if extension(base):
    return SourceError(f'{stem}: no such file, found beside it: {beside}; correct the path')
  return SourceError(
    f'{stem}: no file for language {language!r}, looked for {base}_{language} and '
    f'{base}.{language} with {", ".join(EXTENSIONS)}, found beside it: {beside}; add the file, or '
    f'remove {language!r} from languages'
  )


def check_row(
  fields: Any, path: str, number: int, line: int | None = None, with_language: bool = False
) -> Row:
  """Checks one object.

      check_row({'id': 7, 'instruction': 'Name a colour.', 'output': 'Red'}, 'a.json', 0)
      == Row(0, '7', None, ('Name a colour.', '', 'Red'))

  Args:
    fields: the JSON value of the row.
    path: for messages.
    number: of the row, from 0.
    line: for messages, from 1; None if the file has no lines.
    with_language: read the field `language` too.

  Raises:
    SourceError: the object is not a row.
  """
  refuse = lambda text: SourceError(f'{at(path, number, line)}: {text}')
  if not isinstance(fields, dict):
    hint = (
      ' (a JSON list: name the file .json)' if line is not None and isinstance(fields, list) else ''
    )
    raise refuse(
      'a row must be an object with instruction, input and output, found '
      f'{describe(fields)}{hint}; fix or remove the row'
    )
  texts = []
  for field in TEXT_FIELDS:
    value = fields.get(field)
    if value is None and field == 'input':
      value = ''
    if field not in fields and field != 'input':
      present = ', '.join(reprlib.repr(key) for key in [*fields][:8]) or 'none'
      raise refuse(f'field {field!r} is missing, found {present}; add it, or rename another field')
    if not isinstance(value, str):
      raise refuse(
        f'field {field!r} must be a string, found {describe(value)}; write it as one string, or '
        'remove the row from the files of all languages'
      )
    texts.append(value)
  id_, language = fields.get('id'), None
  if isinstance(id_, int) and not isinstance(id_, bool):
    id_ = str(id_)
  if id_ is not None and not (isinstance(id_, str) and id_):
    raise refuse(
      f"field 'id' must be an integer or a non-empty string, found {describe(id_)}; fix it, or "
      'remove the field from every row'
    )
  if with_language and fields.get('language') is not None:
    language = fields['language']
    if not isinstance(language, str):
      raise refuse(
        f"field 'language' must be a string, found {describe(language)}; write a code like 'zh'"
      )
    try:
      language = code_of(language)
    except ValueError as error:
      raise refuse(f"field 'language': {error}; fix the field, or remove the row") from None
  return Row(number, id_, language, tuple(texts))


def _some(names: list[str]) -> str:
  return (
    ', '.join(names[:10]) + (f' and {len(names) - 10} more' if len(names) > 10 else '') or 'nothing'
  )


def _read_parquet(path: str) -> Iterator[tuple[None, Any]]:
  number = 0
  try:
    # With a buffer, Parquet reads single pages, not a full column of a row group.
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
      f'{path}: not a complete Parquet file ({first_line(error)}); write or copy it again'
    ) from None


def _parquet_not_utf8(path: str, batch: pa.RecordBatch, number: int) -> SourceError:
  """The error for the field at fault; the batch starts at row `number`."""
  for field, column in zip(batch.schema.names, batch.columns, strict=True):
    for i, value in enumerate(column):
      try:
        value.as_py()
      except UnicodeDecodeError as error:
        return SourceError(
          f'{at(path, number + i, None)}: field {field!r}: not valid UTF-8 at its byte '
          f'{error.start}; write the file again with UTF-8 text'
        )
  raise AssertionError('to_pylist and as_py disagree')
