"""An output file that grows row by row, survives a kill at any moment, and is sorted at the end."""

import contextlib
import json
import os
from typing import Any

import jax

from crossin_jax.data.prepared import PreparedDataError
from crossin_jax.errors import CrossinError
from crossin_jax.processes import sharing
from crossin_jax.storage import locks
from crossin_jax.storage.files import read_json, replacing, write_json

FORMAT = 1


class JournalError(CrossinError, ValueError):
  """An output file that this run may not continue; the message says why and what to do."""


class Journal:
  """A JSONL file F of finished rows; F.run.json beside it records the settings of the run.

  Attributes:
    path: F.
    done: (index, sample) of the rows in it; indices are numbers, or texts.
  """

  def __init__(self, path: str, settings: dict[str, Any]):
    """Creates F or continues it, without the incomplete last line that a kill may have left.

    Args:
      path: F. Each row has 'index' and, if an index has several rows, 'sample'.
      settings: what the rows depend on, as a flat JSON object; must be equal in every run on F.

    Raises:
      JournalError: F belongs to another run or to none, is in use, or cannot be written.
    """
    self.path, self._manifest = path, f'{path}.run.json'
    self._check(settings)
    try:
      self._file = open(path, 'ab+')  # until close
    except OSError as error:
      raise JournalError(f'cannot write {path} ({error.strerror}); choose another output') from None
    try:
      locks.take(self._file, path)
    except locks.InUse as error:
      raise JournalError(f'{error} --output') from None
    self.done = set()
    self._file.seek(0)
    end = 0
    for number, line in enumerate(self._file, start=1):
      if not line.endswith(b'\n'):
        break
      try:
        self.done.add(_key(json.loads(line)))
      except (ValueError, KeyError, TypeError):
        raise JournalError(
          f'{path}, line {number} is not a row of this run; delete {path} to restart'
        ) from None
      end += len(line)
    if end < os.path.getsize(path):
      self._file.truncate(end)
    if not os.path.exists(self._manifest):
      write_json(self._manifest, {'format': FORMAT, **settings})

  def _check(self, settings: dict[str, Any]) -> None:
    if not os.path.exists(self._manifest):
      if os.path.exists(self.path) and os.path.getsize(self.path):
        raise JournalError(
          f'{self.path} exists but belongs to no run ({self._manifest} is missing); choose another '
          'output'
        )
      return
    restart = f'delete {self.path} and {self._manifest} to restart'
    check_settings(self._manifest, settings, self.path, f'choose another output, or {restart}')

  def append(self, row: dict) -> None:
    """Appends a row; the file has the complete line when this returns."""
    self._file.write(json.dumps(row, ensure_ascii=False).encode() + b'\n')
    self._file.flush()
    self.done.add(_key(row))

  def rows(self) -> list[dict]:
    """All rows of the file."""
    self._file.seek(0)
    return [json.loads(line) for line in self._file]

  def finish(self) -> None:
    """Sorts the rows into the order of the input; replaces the file atomically."""
    self._file.seek(0)
    lines = self._file.readlines()
    ordered = sorted(lines, key=lambda line: _key(json.loads(line)))
    if ordered != lines:
      with replacing(self.path) as temporary, open(temporary, 'wb') as f:
        f.writelines(ordered)

  def close(self) -> None:
    """Closes the file and releases its lock."""
    self._file.close()


def check_settings(manifest: str, settings: dict[str, Any], what: str, remedy: str) -> None:
  """Compares the settings of a run with those that it was started with.

  Args:
    manifest: file of these.
    settings: of this run, as a flat JSON object.
    what: the output, for messages.
    remedy: besides undoing the change.

  Raises:
    JournalError: they differ.
  """
  before, now = read_json(manifest, remedy), {'format': FORMAT, **settings}
  differences = '; '.join(
    f'{name} was {before.get(name)!r}, now {now.get(name)!r}'
    for name in {**before, **now}
    if before.get(name) != now.get(name)
  )
  if differences:
    raise JournalError(
      f'{what} was started with other settings: {differences}. Undo the change, {remedy}'
    )


@contextlib.contextmanager
def on_chief(path: str, name: str, settings):
  """Opens the journal on host 0 and yields None on the others; if it fails, all hosts raise.

  Args:
    path: of the local file.
    name: what messages call the file.
    settings: returns the settings of this run; called on host 0.
  """
  problem, journal = None, None
  if jax.process_index() == 0:
    try:
      journal = Journal(path, settings())
    except (JournalError, PreparedDataError) as error:
      # An error of the local disk is about the local path.
      cause = error.__context__
      is_local = isinstance(cause, OSError) and not isinstance(cause, BlockingIOError)
      problem = error if is_local else type(error)(str(error).replace(path, name))
    except Exception as error:  # raised below, when the other hosts know
      problem = error
  if sharing.from_chief(problem is not None) and problem is None:
    raise ValueError('host 0 cannot open the output; its own message has the reason')
  if problem is not None:
    raise problem
  try:
    yield journal
  finally:
    if journal:
      journal.close()


def _key(row: dict) -> tuple[int | str, int]:
  return row['index'], row.get('sample', 0)
