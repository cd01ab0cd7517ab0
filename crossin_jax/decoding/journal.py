"""An output file that grows by a row at a time, survives a kill at any moment, and ends in the
order of the input.
"""

import json
import os
from typing import Any

from crossin_jax.errors import CrossinError
from crossin_jax.storage import locks
from crossin_jax.storage.files import read_json, replacing, write_json

FORMAT = 1


class JournalError(CrossinError, ValueError):
  """An output file that this run may not go on with; the message says why and what to do."""


class Journal:
  """Rows appended as they come; F.run.json beside F says what made them.

  Attributes:
    path: F.
    done: (index, sample) of the rows in it.
  """

  def __init__(self, path: str, made_from: dict[str, Any]):
    """Opens F, or goes on with it: a line that a kill cut short is cut off.

    Args:
      path: F, JSONL; each row has 'index' and, where there are several to an index, 'sample'.
      made_from: what the rows depend on, JSON, flat; a run that goes on must have the same.

    Raises:
      JournalError: F is of another run, was not begun by one, is in use, or cannot be written.
    """
    self.path, self._manifest = path, f'{path}.run.json'
    self._check(made_from)
    try:
      self._file = open(path, 'ab+')  # until close
    except OSError as error:
      raise JournalError(f'cannot write {path} ({error.strerror}); choose another output') from None
    self._lock()
    self.done = set()
    self._file.seek(0)
    end = 0
    for number, line in enumerate(self._file, start=1):
      if not line.endswith(b'\n'):
        break
      try:
        row = json.loads(line)
        self.done.add((row['index'], row.get('sample', 0)))
      except (ValueError, KeyError, TypeError):
        raise JournalError(
          f'{path}, line {number} is no row of this run; delete {path} to begin anew'
        ) from None
      end += len(line)
    if end < os.path.getsize(path):
      self._file.truncate(end)
    if not os.path.exists(self._manifest):
      write_json(self._manifest, {'format': FORMAT, **made_from})

  def _check(self, made_from: dict[str, Any]) -> None:
    if not os.path.exists(self._manifest):
      if os.path.exists(self.path) and os.path.getsize(self.path):
        raise JournalError(
          f'{self.path} exists and is of no run ({self._manifest} is missing); choose another '
          'output'
        )
      return
    before = read_json(self._manifest, f'delete {self.path} and {self._manifest} to begin anew')
    now = {'format': FORMAT, **made_from}
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed:
      differences = '; '.join(
        f'{name} was {before.get(name)!r}, now {now.get(name)!r}' for name in changed
      )
      raise JournalError(
        f'{self.path} was begun with other settings: {differences}. Undo the change, choose '
        'another output, or delete '
        f'{self.path} and {self._manifest} to begin anew'
      )

  def _lock(self) -> None:
    try:
      locks.take(self._file, self.path)
    except locks.InUse as error:
      raise JournalError(f'{error} --output') from None

  def append(self, row: dict) -> None:
    """Adds a row; it is whole in the file when this returns."""
    self._file.write(json.dumps(row, ensure_ascii=False).encode() + b'\n')
    self._file.flush()
    self.done.add((row['index'], row.get('sample', 0)))

  def finish(self) -> None:
    """Puts the rows into the order of the input; the file is replaced in one step."""
    self._file.seek(0)
    lines = self._file.readlines()
    key = lambda line: ((row := json.loads(line))['index'], row.get('sample', 0))
    ordered = sorted(lines, key=key)
    if ordered == lines:
      return
    with replacing(self.path) as temporary, open(temporary, 'wb') as f:
      f.writelines(ordered)

  def close(self) -> None:
    """Lets go of the file."""
    self._file.close()
