"""Records of a file: JSON Lines, a JSON list, CSV or TSV, plain or gzipped, every malformed one
named.
"""

from collections.abc import Iterator, Sequence
import csv
import gzip
import io
import json
import os
from pathlib import Path
import zlib

from crossin_jax.errors import CrossinError
from crossin_jax.storage import remote


class RecordError(CrossinError, ValueError):
  """A file that cannot be read as records; the text names the file, the line and the remedy."""


def read_text(path: str | os.PathLike) -> str:
  """The text of a UTF-8 file, unpacked if it is gzipped.

  Raises:
    RecordError: damaged gzip, or not UTF-8 (with the line).
    OSError: the file cannot be opened.
  """
  try:
    raw = Path(remote.fetched(path)).read_bytes()
    content = gzip.decompress(raw) if raw[:2] == b'\x1f\x8b' else raw
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise RecordError(
      f'{path}: the gzip stream is damaged or cut off ({error}); copy or write the file again'
    ) from error
  try:
    return content.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    line = content[: error.start].count(b'\n') + 1
    raise RecordError(
      f'{path}, line {line}: not UTF-8 ({error.reason}); convert the file to UTF-8'
    ) from error


def read_records(
  path: str | os.PathLike, problems: list[str] | None = None, columns: Sequence[str] | None = None
) -> Iterator[tuple[str, dict]]:
  """(where, record) of each: 'file, line 3' or 'file, record 3', counted from 1.

  Args:
    path: `.csv` and `.tsv` (before `.gz`) are tables whose first line names the columns; anything
      else is JSON.
    problems: takes a message for each malformed line, and the rest is read; None = the first is
      raised.
    columns: of a table without such a first line.

  Raises:
    RecordError: a malformed line, or a file that cannot be read at all.
  """

  def refuse(text: str) -> None:
    if problems is None:
      raise RecordError(text)
    problems.append(text)

  text = read_text(path)
  suffix = os.path.splitext(str(path).removesuffix('.gz'))[1]
  if suffix in ('.csv', '.tsv'):
    yield from _table(path, text, suffix == '.tsv', columns, refuse)
  elif text.lstrip().startswith('['):
    try:
      listed = json.loads(text)
    except json.JSONDecodeError as error:
      raise RecordError(f'{path}, line {error.lineno}: not valid JSON ({error.msg})') from error
    for number, record in enumerate(listed, 1):
      if isinstance(record, dict):
        yield f'{path}, record {number}', record
      else:
        refuse(f'{path}, record {number}: expected a JSON object, found {type(record).__name__}')
  else:
    # NB: splitlines would cut at U+2028 inside a text
    for number, line in enumerate(text.split('\n'), 1):
      if not line.strip():
        continue
      where = f'{path}, line {number}'
      try:
        record = json.loads(line)
      except json.JSONDecodeError as error:
        refuse(f'{where}: not valid JSON ({error.msg} at column {error.colno})')
        continue
      if isinstance(record, dict):
        yield where, record
      else:
        refuse(f'{where}: expected a JSON object, found {type(record).__name__}')


def _table(
  path, text: str, tabs: bool, columns: Sequence[str] | None, refuse
) -> Iterator[tuple[str, dict]]:
  """Tab-separated files of this field quote nothing: a quotation mark in a text is only that."""
  if tabs:
    lines = (
      (number, line.rstrip('\r').split('\t'))
      for number, line in enumerate(text.split('\n'), 1)
      if line.strip()
    )
  else:
    reader = csv.reader(io.StringIO(text, newline=''))
    lines = ((reader.line_num, row) for row in reader if row)
  for number, values in lines:
    if columns is None:
      columns = [value.strip() for value in values]
    elif len(values) != len(columns):
      refuse(
        f'{path}, line {number}: {len(values)} columns, expected {len(columns)} '
        f'({", ".join(columns)})'
      )
    else:
      yield f'{path}, line {number}', dict(zip(columns, values))
