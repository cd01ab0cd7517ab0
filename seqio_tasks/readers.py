"""Reads instruction rows from JSON lists, JSON lines, Parquet and TFDS; errors say where, what and the remedy."""

from collections.abc import Iterator, Sequence
import contextlib
import gzip
import json
import os
import reprlib
from typing import Any, NamedTuple
import zlib

import pyarrow as pa
import pyarrow.parquet as pq

from crossin_jax.languages import code_of

EXTENSIONS = ('.json', '.json.gz', '.jsonl', '.jsonl.gz', '.parquet')
TEXT_FIELDS = ('instruction', 'input', 'output')
_BOM = b'\xef\xbb\xbf'


class SourceError(ValueError):
  """Instruction rows that cannot be read; the message names file, row, field, what was found and the remedy."""


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
  """The one of EXTENSIONS that the path ends in, or None: extension('a_en.jsonl.gz') == '.jsonl.gz'."""
  return next((ext for ext in EXTENSIONS if path.lower().endswith(ext)), None)


def read_rows(path: str, with_language: bool = False) -> Iterator[Row]:
  """The rows of one file, in order.

  `.json` holds one list of objects, `.jsonl` one object per line (split at newline characters only; blank
  lines are skipped), `.parquet` one row per row; the first two may be gzipped. A byte order mark at the
  start is skipped. Fields: instruction and output (strings), input (a string; missing or null = ''), id (a
  string or a whole number; missing or null = None), language (code or English name). Others are ignored.

      # alpaca_zh.jsonl: {"instruction": "凯撒是怎么死的？", "output": "他被刺杀了。"}
      list(read_rows('alpaca_zh.jsonl')) == [Row(0, None, None, ('凯撒是怎么死的？', '', '他被刺杀了。'))]

  Args:
    path: a file with one of EXTENSIONS.
    with_language: read the field `language` too; otherwise it is one of those that are ignored.

  Raises:
    SourceError: missing, empty or unreadable file, invalid JSON, UTF-8, gzip or Parquet, a row that is no object, a
      field that is missing or of the wrong type, an unknown language.
  """
  ext = extension(path)
  if os.path.isdir(path):
    raise SourceError(f'{path}: is a directory, not a file; name a file in it, or the stem of files NAME_en.json ...')
  if not os.path.exists(path):
    raise SourceError(f'{path}: no such file; correct the path')
  if ext is None:
    raise SourceError(f'{path}: unknown kind of file; rename it so that it ends in one of {", ".join(EXTENSIONS)}')
  if os.path.getsize(path) == 0:
    raise SourceError(f'{path}: the file is empty (0 bytes); write or copy it again')
  reader = {'.json': _read_json, '.jsonl': _read_jsonl, '.parquet': _read_parquet}[ext.removesuffix('.gz')]
  number = -1
  with _naming(path):
    for number, (line, fields) in enumerate(reader(path)):
      yield check_row(fields, path, number, line, with_language)
  if number < 0:
    raise SourceError(f'{path}: holds no rows; write or copy the file again, or take it out of the sources')


def read_tfds(name: str, split: str, data_dir: str = '') -> Iterator[Row]:
  """The rows of a prepared TFDS dataset with the features id, language, instruction, input, output, in order.

  Args:
    name: directory of the dataset, or its TFDS name.
    split: a TFDS split, for instance 'train' or 'train[:10%]'.
    data_dir: where TFDS looks for a name; '' = its default.

  Raises:
    SourceError: no such dataset, split or feature, a damaged file, or a row as in `check_row`.
  """
  import tensorflow as tf  # pylint: disable=import-outside-toplevel
  import tensorflow_datasets as tfds  # pylint: disable=import-outside-toplevel

  try:
    if os.path.isdir(name):
      builder = tfds.builder_from_directory(name)
    else:
      builder = tfds.builder(name, data_dir=data_dir or None)
  except Exception as error:  # TFDS raises many kinds
    raise SourceError(
      f'{name}: not a TFDS dataset ({_first_line(error)}); give the directory that holds its dataset_info.json, '
      'or a TFDS name and data_dir'
    ) from error
  splits, features = ', '.join(builder.info.splits), builder.info.features
  if not splits:
    raise SourceError(f'{name}: not prepared, nothing in {builder.data_dir}; run its download_and_prepare()')
  for field in ('id', 'language', *TEXT_FIELDS):
    if field not in features or features[field].shape != ():
      what = 'is not one value per row' if field in features else 'is missing'
      found = ', '.join(sorted(features))
      raise SourceError(f'{name}: feature {field!r} {what}, found {found}; build the dataset with it')
  try:
    # One shard after another, or the order of the rows would depend on the number of shards.
    reading = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    data = builder.as_dataset(split=split, batch_size=1024, shuffle_files=False, read_config=reading)
  except Exception as error:
    raise SourceError(f'{name}: split {split!r} cannot be opened ({_first_line(error)}); it has {splits}') from error
  number = 0
  try:
    for batch in tfds.as_numpy(data):
      columns = {field: batch[field].tolist() for field in ('id', 'language', *TEXT_FIELDS)}
      if isinstance(features['language'], tfds.features.ClassLabel):
        columns['language'] = [features['language'].int2str(label) for label in columns['language']]
      for values in zip(*columns.values(), strict=True):
        yield check_row(_decoded(dict(zip(columns, values, strict=True)), name, number), name, number, None, True)
        number += 1
  except tf.errors.OpError as error:
    what = error.message.split('}} ')[-1].split(' [Op')[0]
    raise SourceError(f'{name}: damaged after row {number} ({what}); build it again') from None


def find_files(stem: str, languages: Sequence[str]) -> dict[str, str]:
  """The file of each language.

      find_files('/data/alpaca', ('en', 'zh')) == {'en': '/data/alpaca_en.json', 'zh': '/data/alpaca.zh.jsonl.gz'}

  Raises:
    SourceError: a language has no file, or several; or the path is no stem.
  """
  directory, base = os.path.split(stem)
  try:
    present = sorted(os.listdir(directory or '.'))
  except OSError as error:
    raise SourceError(f'{stem}: cannot list {directory or "."} ({error.strerror}); correct the path') from None
  files = {}
  for language in languages:
    names = [f'{base}{mark}{language}{ext}' for mark in '_.' for ext in EXTENSIONS]
    found = [name for name in names if name in present]
    if len(found) > 1:
      raise SourceError(f'{stem}: several files for {language!r}: {", ".join(found)}; keep one, or name it as path')
    if found:
      files[language] = os.path.join(directory, found[0])
      continue
    if os.path.isdir(stem):
      raise SourceError(
        f'{stem}: is a directory, holding {_some(sorted(os.listdir(stem)))}; name one file in it, or the stem NAME '
        f'of files NAME_{language}.json'
      )
    if os.path.isfile(stem):
      raise SourceError(f'{stem}: unknown kind of file; rename it so that it ends in one of {", ".join(EXTENSIONS)}')
    beside = _some(sorted(present, key=lambda name: (not name.startswith(base), name)))
    if extension(base):
      raise SourceError(f'{stem}: no such file, found beside it: {beside}; correct the path')
    raise SourceError(
      f'{stem}: no file for language {language!r}, looked for {base}_{language} and {base}.{language} with '
      f'{", ".join(EXTENSIONS)}, found beside it: {beside}; add the file, or take {language!r} out of languages'
    )
  return files


def check_row(fields: Any, path: str, number: int, line: int | None = None, with_language: bool = False) -> Row:
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
  at = lambda: _at(path, number, line)
  if not isinstance(fields, dict):
    hint = ' (a JSON list: name the file .json)' if line is not None and isinstance(fields, list) else ''
    raise SourceError(
      f'{at()}: a row must be an object with instruction, input and output, found {_found(fields)}{hint}; '
      'mend or remove the row'
    )
  texts = []
  for field in TEXT_FIELDS:
    value = fields.get(field)
    if value is None and field == 'input':
      value = ''
    if field not in fields and field != 'input':
      present = ', '.join(reprlib.repr(key) for key in [*fields][:8]) or 'none'
      raise SourceError(f'{at()}: field {field!r} is missing, found {present}; add it, or rename the field meant')
    if not isinstance(value, str):
      raise SourceError(
        f'{at()}: field {field!r} must be a string, found {_found(value)}; write it as one string, '
        'or remove the row from the files of all languages'
      )
    texts.append(value)
  id_, language = fields.get('id'), None
  if isinstance(id_, int) and not isinstance(id_, bool):
    id_ = str(id_)
  if id_ is not None and not (isinstance(id_, str) and id_):
    raise SourceError(
      f"{at()}: field 'id' must be a whole number or a string that is not empty, found {_found(id_)}; "
      'mend it, or remove the field from every row'
    )
  if with_language and fields.get('language') is not None:
    language = fields['language']
    if not isinstance(language, str):
      raise SourceError(f"{at()}: field 'language' must be a string, found {_found(language)}; write a code like 'zh'")
    try:
      language = code_of(language)
    except ValueError as error:
      raise SourceError(f"{at()}: field 'language': {error}; mend the field, or remove the row") from None
  return Row(number, id_, language, tuple(texts))


def _some(names: list[str]) -> str:
  return ', '.join(names[:10]) + (f' and {len(names) - 10} more' if len(names) > 10 else '') or 'nothing'


def _at(path: str, number: int, line: int | None) -> str:
  return f'{path}, row {number} ' + ('(counted from 0)' if line is None else f'(line {line})')


def _first_line(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0]


def _found(value: Any) -> str:
  return 'null' if value is None else f'{type(value).__name__} {reprlib.repr(value)}'


@contextlib.contextmanager
def _naming(path: str):
  """Errors of the file system and of the decompressor, with the file's name."""
  try:
    yield
  except gzip.BadGzipFile as error:
    remedy = 'copy it again, or take .gz off its name if it is plain'
    raise SourceError(f'{path}: not a whole gzip file ({error}); {remedy}') from None
  except EOFError:
    raise SourceError(f'{path}: the gzip file is cut off before its end; copy it again') from None
  except zlib.error as error:
    raise SourceError(f'{path}: the gzip file is damaged ({error}); copy it again') from None
  except OSError as error:
    what = error.strerror or error
    raise SourceError(f'{path}: cannot be read ({what}); check the disk and the permissions') from None


def _open(path: str):
  return gzip.open(path, 'rb') if path.lower().endswith('.gz') else open(path, 'rb')


def _loads(text: str, where: str, hint: str) -> Any:
  """json.loads; `where` names file and row, and the column is added."""
  try:
    return json.loads(text)
  except json.JSONDecodeError as error:
    line = f'line {error.lineno} ' if error.lineno > 1 or '\n' in text.rstrip() else ''
    raise SourceError(f'{where}: not valid JSON at {line}column {error.colno}: {error.msg}; {hint}') from None
  except RecursionError:
    raise SourceError(f'{where}: JSON nested too deeply; rows are flat objects of strings') from None
  except ValueError as error:  # a number of more than 4,300 digits
    raise SourceError(f'{where}: not usable JSON: {error}; mend the field') from None


def _not_utf8(where: str, offset: int, start: bytes) -> SourceError:
  """`start` is the first bytes of the file."""
  hint = ''
  if start.startswith(b'\x1f\x8b'):
    hint = ' (a gzip file: add .gz to its name)'
  elif start.startswith((b'\xff\xfe', b'\xfe\xff')):
    hint = ' (it begins as UTF-16 does)'
  return SourceError(f'{where}: not valid UTF-8 at byte offset {offset}{hint}; save the file as UTF-8')


def _read_json(path: str) -> Iterator[tuple[None, Any]]:
  with _open(path) as file:
    data = file.read()
  mark = len(_BOM) if data.startswith(_BOM) else 0
  try:
    text = data[mark:].decode()
  except UnicodeDecodeError as error:
    offset = mark + error.start
    line = data.count(b'\n', 0, offset) + 1
    row = _whole_rows(data[mark:offset].decode())
    where = f'{path}, line {line}' if row is None else _at(path, row, line)
    raise _not_utf8(where, offset, data[:2]) from None
  del data
  if not text.strip():
    raise SourceError(f'{path}: the file is empty (white space only); write or copy it again')
  try:
    json_rows = _loads(text, path, 'mend it, or copy the file again if it is cut off')
  except SourceError as error:
    if '\n{' in text and text.lstrip().startswith('{'):
      raise SourceError(f'{error}. One object per line? Then name it .jsonl') from None
    rows = _whole_rows(text)
    raise SourceError(str(error) + ('' if rows is None else f'. Whole rows before it: {rows}')) from None
  if not isinstance(json_rows, list):
    raise SourceError(
      f'{path}: must hold a list of rows, found {_found(json_rows)}; '
      'put the rows in [ ], or one per line in a .jsonl file'
    )
  for fields in json_rows:
    yield None, fields


def _whole_rows(text: str) -> int | None:
  """How many items of a JSON list are complete in its beginning `text`; None if it is no list."""
  text = text.lstrip()
  if not text.startswith('['):
    return None
  decoder, rows, start = json.JSONDecoder(), 0, 1
  while True:
    while start < len(text) and text[start] in ' \t\r\n,':
      start += 1
    try:
      _, start = decoder.raw_decode(text, start)
    except (ValueError, RecursionError):
      return rows
    rows += 1


def _read_jsonl(path: str) -> Iterator[tuple[int, Any]]:
  end, row = 0, 0
  with _open(path) as file:
    for number, line in enumerate(file, 1):  # a binary file splits at \n only
      start, end = end, end + len(line)
      if number == 1:
        head = line[:2]
        if line.startswith(_BOM):
          start, line = len(_BOM), line[len(_BOM) :]
      if not line.strip():
        continue
      try:
        text = line.decode()
      except UnicodeDecodeError as error:
        raise _not_utf8(_at(path, row, number), start + error.start, head) from None
      hint = 'mend the line, or copy the file again if it is cut off'
      if row == 0 and line.lstrip()[:1] == b'[':
        hint = 'this seems to be a JSON list: name it .json'
      yield number, _loads(text, _at(path, row, number), hint)
      row += 1


def _read_parquet(path: str) -> Iterator[tuple[None, Any]]:
  number = 0
  try:
    with pq.ParquetFile(path) as file:
      names = file.schema_arrow.names
      for field in (*TEXT_FIELDS, 'id', 'language'):
        if names.count(field) > 1 or field in ('instruction', 'output') and field not in names:
          what = 'occurs twice' if field in names else 'is missing'
          found = ', '.join(names) or 'none'
          raise SourceError(f'{path}: column {field!r} {what}, found the columns {found}; rename them')
      columns = [field for field in ('id', 'language', *TEXT_FIELDS) if field in names]
      for batch in file.iter_batches(batch_size=4096, columns=columns):
        try:
          rows = batch.to_pylist()
        except UnicodeDecodeError:
          raise _parquet_not_utf8(path, batch, number) from None
        for fields in rows:
          yield None, fields
        number += len(rows)
  except (pa.ArrowException, OSError) as error:
    raise SourceError(f'{path}: not a whole Parquet file ({_first_line(error)}); write or copy it again') from None


def _parquet_not_utf8(path: str, batch: pa.RecordBatch, number: int) -> SourceError:
  """Finds the field at fault; the batch begins at row `number`."""
  for field, column in zip(batch.schema.names, batch.columns, strict=True):
    for i, value in enumerate(column):
      try:
        value.as_py()
      except UnicodeDecodeError as error:
        where = f'{_at(path, number + i, None)}: field {field!r}'
        return SourceError(f'{where}: not valid UTF-8 at its byte {error.start}; write the file again with UTF-8 text')
  raise AssertionError('to_pylist and as_py disagree')


def _decoded(fields: dict[str, Any], path: str, number: int) -> dict[str, Any]:
  for field, value in fields.items():
    try:
      fields[field] = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
      where = f'{_at(path, number, None)}: field {field!r}'
      raise SourceError(f'{where}: not valid UTF-8 at its byte {error.start}; build it again with UTF-8 text') from None
  return fields
