"""Replies that were paid for, on disk: a line each, whole before it is used, never asked for again."""

import contextlib
import json
import os
import threading

FILE = 'replies.jsonl'


class ReplyCache:
  """Key -> reply, appended to `DIRECTORY/replies.jsonl`; without a directory it lives as long as
  the process.

  A line is {"key", "text", "finish_reason", "usage"}; prompts are not stored, the key is a digest
  of them. Only places in the file are kept in memory, so a million long replies are no burden. One
  process at a time; its threads may share it.
  """

  def __init__(self, directory: str | os.PathLike | None):
    """Opens or goes on with the file; a last line that a kill cut short is cut off.

    Raises:
      ValueError: another process holds it, it cannot be written, or a line in its middle is
        damaged.
    """
    self._lock, self._memory, self._places = threading.Lock(), {}, {}
    self._file, self.path = None, None
    if directory is None:
      return
    self.path = os.path.join(directory, FILE)
    try:
      os.makedirs(directory, exist_ok=True)
      self._file = open(self.path, 'ab+', buffering=0)  # until close
    except OSError as error:
      raise ValueError(
        f'cannot write {self.path} ({error.strerror}); choose another --cache_dir'
      ) from None
    try:
      self._hold()
      self._read()
    except BaseException:
      self._file.close()
      raise

  def _hold(self) -> None:
    with contextlib.suppress(ImportError):
      import fcntl

      try:
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        raise ValueError(
          f'{self.path} is in use by another process; wait for it, stop it, or give this one '
          'another --cache_dir'
        ) from None

  def _read(self) -> None:
    end = 0
    with open(self.path, 'rb') as file:
      for number, line in enumerate(file, start=1):
        if not line.endswith(b'\n'):
          break
        try:
          key = json.loads(line)['key']
        except (ValueError, KeyError, TypeError):
          raise ValueError(
            f'{self.path}, line {number} is damaged; delete that line, and its reply will be '
            'asked for again'
          ) from None
        self._places[key] = (end, len(line))
        end += len(line)
    if end < os.path.getsize(self.path):
      self._file.truncate(end)
    self._end = end

  def __len__(self) -> int:
    return len(self._places) + len(self._memory)

  def get(self, key: str) -> dict | None:
    """The reply, or None."""
    if self._file is None:
      return self._memory.get(key)
    place = self._places.get(key)
    return None if place is None else json.loads(os.pread(self._file.fileno(), place[1], place[0]))

  def put(self, key: str, reply: dict) -> None:
    """Adds a reply; it is on the disk when this returns. Raises OSError where it cannot be."""
    if self._file is None:
      self._memory[key] = reply
      return
    # NB: ASCII, so that half a surrogate pair from a server cannot break the file
    line = json.dumps({'key': key, **reply}).encode('ascii') + b'\n'
    with self._lock:
      try:
        written = 0
        while written < len(line):
          written += os.write(self._file.fileno(), line[written:])
        os.fsync(self._file.fileno())
      except OSError:
        self._file.truncate(self._end)  # half a line would spoil the next one
        raise
      self._places[key] = (self._end, len(line))
      self._end += len(line)

  def close(self) -> None:
    """Lets go of the file."""
    if self._file is not None:
      self._file.close()
