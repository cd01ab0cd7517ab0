"""Rows of Parquet files and of directories that `datasets.save_to_disk` wrote."""

from collections.abc import Iterable, Iterator, Sequence
import os
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crossin_jax.data import conversations
from crossin_jax.data.source_errors import SourceError, at, first_line
from crossin_jax.storage.files import read_json

STATE = 'state.json'  # of a saved dataset: names its Arrow files
FIELDS = (
  'id', 'language', 'system', 'history', 'instruction', 'input', 'output', *conversations.FIELDS,
  *conversations.UNREAD_FIELDS,
)  # fmt: skip


def is_saved(path: str) -> bool:
  """Whether a path is a directory that `Dataset.save_to_disk` wrote."""
  return os.path.isfile(os.path.join(path, STATE))


def read_parquet(
  path: str, columns: Sequence[str] | None = None
) -> Iterator[tuple[None, dict[str, Any]]]:
  """(None, fields) of each row, as `JsonRows.items` gives them.

  Args:
    path: of the file.
    columns: to read, where they exist; None = those of an instruction row, which must exist.

  Raises:
    SourceError: not a Parquet file, or without the columns of a row.
  """
  try:
    # With a buffer, Parquet reads single pages, not a full column of a row group.
    with pq.ParquetFile(path, buffer_size=1 << 20) as file:
      present = _columns(file.schema_arrow.names, path, columns)
      yield from _rows(file.iter_batches(batch_size=256, columns=present), path)
  except (pa.ArrowException, OSError) as error:
    raise SourceError(
      f'{path}: not a complete Parquet file ({first_line(error)}); write or copy it again'
    ) from None


def read_saved(
  path: str, columns: Sequence[str] | None = None
) -> Iterator[tuple[None, dict[str, Any]]]:
  """As `read_parquet`, of a directory with state.json."""
  remedy = 'save the dataset again, or copy the whole directory'
  try:
    names = [
      entry['filename'] for entry in read_json(os.path.join(path, STATE), remedy)['_data_files']
    ]
  except (KeyError, TypeError):
    raise SourceError(f'{path}: its {STATE} names no files (_data_files); {remedy}') from None
  yield from _rows(_saved_batches(path, names, remedy, columns), path)


def _saved_batches(
  path: str, names: list[str], remedy: str, columns: Sequence[str] | None
) -> Iterator[pa.RecordBatch]:
  for name in names:
    file = os.path.join(path, os.path.basename(name))
    try:
      # Not mapped: mapped pages count as the memory of this process.
      with pa.OSFile(file) as opened, pa.ipc.open_stream(opened) as stream:
        present = _columns(stream.schema.names, file, columns)
        for batch in stream:
          batch = batch.select(present)
          yield from (batch.slice(i, 256) for i in range(0, batch.num_rows, 256))
    except (pa.ArrowException, OSError) as error:
      raise SourceError(
        f'{file}: not a complete Arrow file ({first_line(error)}); {remedy}'
      ) from None


def _columns(names: list[str], path: str, wanted: Sequence[str] | None) -> list[str]:
  """The columns to read among those that a table has."""
  in_turns = {'messages', 'conversations'} & {*names} or {'prompt', 'completion'} <= {*names}
  needed = () if in_turns or wanted else ('instruction', 'output')
  for field in wanted or FIELDS:
    if names.count(field) > 1 or field in needed and field not in names:
      what = 'occurs twice' if field in names else 'is missing'
      present = ', '.join(names) or 'none'
      raise SourceError(
        f'{path}: column {field!r} {what}, found the columns {present}; rename them'
      )
  return [field for field in wanted or FIELDS if field in names]


def _rows(batches: Iterable[pa.RecordBatch], path: str) -> Iterator[tuple[None, dict[str, Any]]]:
  number = 0
  for batch in batches:
    try:
      rows = batch.to_pylist()
    except UnicodeDecodeError:
      raise _not_utf8(path, batch, number) from None
    for fields in rows:
      yield None, fields
    number += len(rows)


def _not_utf8(path: str, batch: pa.RecordBatch, number: int) -> SourceError:
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
