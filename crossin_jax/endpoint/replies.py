"""Paid replies on disk, stored before they are used and never requested again."""

import contextlib
import json
import os
import sqlite3
import threading

from crossin_jax.storage import locks

FILE = 'replies.sqlite'
BEFORE = 'replies.jsonl'  # older format: a line {"key", **reply} for each reply


class ReplyCache:
  """Key -> reply in `DIRECTORY/replies.sqlite`, or in memory without a directory.

  A reply is {"text", "finish_reason", "usage"}. The key is a digest of the prompt, which is not
  stored. One process at a time may open it; its threads may share it.
  """

  def __init__(self, directory: str | os.PathLike | None):
    """Opens or creates the database and imports the replies of an older `replies.jsonl`.

    Raises:
      ValueError: another process holds it, it cannot be written, or it is damaged.
    """
    self._lock, self._stack, self.path = threading.Lock(), contextlib.ExitStack(), None
    if directory is None:
      self._open(':memory:')
      return
    self.path = os.path.join(directory, FILE)
    try:
      self._stack.enter_context(locks.locked(f'{self.path}.lock', self.path))
      self._open(self.path)
      self._import(os.path.join(directory, BEFORE))
    except locks.InUse as error:
      raise ValueError(f'{error} --cache_dir') from None
    except (OSError, sqlite3.OperationalError) as error:
      self.close()
      reason = error.strerror if isinstance(error, OSError) else error
      raise ValueError(f'cannot write {self.path} ({reason}); choose another --cache_dir') from None
    except sqlite3.DatabaseError as error:
      self.close()
      raise ValueError(
        f'{self.path} is damaged ({error}); move it away to request its replies again'
      ) from None

  def _open(self, path: str) -> None:
    self._database = self._stack.enter_context(
      contextlib.closing(sqlite3.connect(path, check_same_thread=False, isolation_level=None))
    )
    self._database.execute('CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT)')

  def _import(self, path: str) -> None:
    if not os.path.exists(path):
      return
    with open(path, 'rb') as file:
      lines = [line for line in file if line.endswith(b'\n')]  # a kill may have cut the last one
    with self._transaction():
      for number, line in enumerate(lines, start=1):
        try:
          reply = json.loads(line)
          self._insert(reply.pop('key'), reply)
        except (ValueError, KeyError, AttributeError):
          raise ValueError(
            f'{path}, line {number} is damaged; delete that line to request its reply again'
          ) from None
    os.replace(path, f'{path}.imported')

  @contextlib.contextmanager
  def _transaction(self):
    self._database.execute('BEGIN')
    try:
      yield
    except BaseException:
      self._database.execute('ROLLBACK')
      raise
    self._database.execute('COMMIT')

  def _insert(self, key: str, reply: dict) -> None:
    # json.dumps writes ASCII, so that half a surrogate pair from a server can be stored.
    self._database.execute('INSERT OR REPLACE INTO replies VALUES (?, ?)', (key, json.dumps(reply)))

  def __len__(self) -> int:
    with self._lock:
      return self._database.execute('SELECT COUNT(*) FROM replies').fetchone()[0]

  def get(self, key: str) -> dict | None:
    """The reply, or None."""
    with self._lock:
      row = self._database.execute('SELECT reply FROM replies WHERE key = ?', (key,)).fetchone()
    return None if row is None else json.loads(row[0])

  def put(self, key: str, reply: dict) -> None:
    """Stores a reply; it is on disk when this returns.

    Raises:
      OSError: it cannot be stored.
    """
    try:
      with self._lock:
        self._insert(key, reply)
    except sqlite3.Error as error:
      raise OSError(f'cannot write {self.path}: {error}') from error

  def close(self) -> None:
    """Closes the database and frees the lock."""
    self._stack.close()
