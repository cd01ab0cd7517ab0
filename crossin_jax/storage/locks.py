"""Locks on this machine: one process at a time in a folder or file. The kernel frees them."""

from collections.abc import Iterator
import contextlib
import fcntl
import os
import socket
from typing import IO

from crossin_jax.errors import CrossinError


class InUse(CrossinError, OSError):
  """Another process holds the lock; the message names it."""


def take(file: IO, what: str, *, wait: bool = False) -> None:
  """Locks an open file until it is closed, and writes into it who holds it if it is a lock file.

  Args:
    file: opened in a binary mode that writes.
    what: names the locked thing in messages.
    wait: wait for the other process instead of raising.

  Raises:
    InUse: another process holds it.
  """
  try:
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
  except BlockingIOError:
    raise InUse(
      f'{what} is in use by {holder(file)}; wait for it, stop it, or use another'
    ) from None


@contextlib.contextmanager
def locked(path: str | os.PathLike, what: str, *, wait: bool = False) -> Iterator[IO]:
  """Holds the lock file `path`; yields it open, so that child processes can inherit the lock.

  Raises:
    InUse: see `take`. OSError: the file cannot be written.
  """
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  with open(path, 'ab+', buffering=0) as file:
    take(file, what, wait=wait)
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}'.encode())
    yield file


def holder(file: IO) -> str:
  """Who wrote itself into a lock file: 'process 17 on host'; else 'another process'."""
  try:
    file.seek(0)
    text = file.read(200)
  except (OSError, ValueError):
    return 'another process'
  text = (text.decode(errors='replace') if isinstance(text, bytes) else text).strip()
  return text if text.startswith('process ') else 'another process'
