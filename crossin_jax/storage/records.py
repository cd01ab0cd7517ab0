"""Records of a file: JSON Lines, a JSON list, CSV or TSV, plain or gzipped, or Parquet; every
malformed one is named.
"""

from collections.abc import Iterator, Sequence
import csv
import io
import os

from crossin_jax.errors import RowError
from crossin_jax.storage.json_rows import JsonRows, located, not_utf8, unpacked


class RecordError(RowError):
  """A file that cannot be read as records; the text names the file, the line and the remedy."""


def read_text(path: str | os.PathLike) -> str:
  """The text of a UTF-8 file, unpacked if it is gzipped.

  Raises:
    RecordError: damaged gzip, or not UTF-8 (with the line).
    OSError: the file cannot be opened.
  """
  with unpacked(path, RecordError) as file:
    content = file.read()
  try:
    return content.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    line = content[: error.start].count(b'\n') + 1
    raise RecordError(f'{path}, line {line}: {not_utf8(error.start, content[:2])}') from None


def read_records(
  path: str | os.PathLike, problems: list[str] | None = None, columns: Sequence[str] | None = None
) -> Iterator[tuple[str, dict]]:
  """(where, record) of each: 'file, line 3' or 'file, record 3', counted from 1.

  Args:
    path: `.csv` and `.tsv` (before `.gz`) are tables whose first line names the columns;
      `.parquet` is Parquet; anything else is JSON.
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

  suffix = os.path.splitext(str(path).removesuffix('.gz'))[1]
  if suffix in ('.csv', '.tsv'):
    yield from _table(path, read_text(path), suffix == '.tsv', columns, refuse)
    return
  if suffix == '.parquet':
    yield from _parquet(path)
    return
  for number, (line, record) in enumerate(JsonRows(path, RecordError).rows(refuse)):
    where = located(path, number, line)
    if isinstance(record, dict):
      yield where, record
    else:
      refuse(f'{where}: expected a JSON object, found {type(record).__name__}')


def _parquet(path) -> Iterator[tuple[str, dict]]:
  import pyarrow as pa  # slow to import
  import pyarrow.parquet as pq

  try:
    number = 0
    with pq.ParquetFile(path) as file:
      for batch in file.iter_batches(batch_size=256):
        for record in batch.to_pylist():
          number += 1
          yield f'{path}, row {number}', record
  except pa.ArrowException as error:
    raise RecordError(
      f'{path}: not a complete Parquet file ({str(error).splitlines()[0]}); copy it again'
    ) from None


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
