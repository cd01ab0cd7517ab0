"""SIGINT and SIGTERM while the main thread is in native code, where Python runs no handler.

XLA compiles and steps compute there for minutes. A `Watch` hears signals in a thread of its own.
Where nothing can be lost it ends the process if the main thread has not done so after `GRACE`.
"""

import functools
import multiprocessing
import os
import signal
import sys
import threading
from typing import Protocol

from crossin_jax.errors import Interrupted
from crossin_jax.processes.exit_status import FAILED, RESTART

GRACE = 2.0  # seconds that the main thread has to end by itself


class Stage(Protocol):
  """What runs, and has handlers of its own (`interruption.StopSignal`)."""

  promise: str

  def may_end(self) -> bool:
    """Whether the process may end without what it does now."""


current: Stage | None = None


def end(status: int) -> None:
  """Ends the process and its workers now, without the clean-up of the interpreter."""
  for child in multiprocessing.active_children():
    child.kill()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


class Watch:
  """Hears signals inside its block, in the main thread; elsewhere it does nothing."""

  def __init__(self, say, enabled: bool = True):
    """Args:
    say: called with the exit status before the process ends.
    enabled: False does nothing.
    """
    self._say, self._pipe, self._heard, self._enabled = say, None, set(), enabled
    self.status: int | None = None  # of the command, once it has ended

  def __enter__(self):
    if self._enabled and threading.current_thread() is threading.main_thread():
      read, write = os.pipe()
      os.set_blocking(write, False)
      before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
      self._pipe = read, write, before
      threading.Thread(target=self._listen, args=(read,), daemon=True, name='signals').start()
    return self

  def __exit__(self, kind, *_):
    if kind is not None:
      self.status = RESTART if issubclass(kind, Interrupted) else FAILED
    if self._pipe:
      _, write, before = self._pipe
      signal.set_wakeup_fd(before)
      os.close(write)  # ends `_listen`

  def _listen(self, read: int) -> None:
    with os.fdopen(read, 'rb', buffering=0) as pipe:
      while found := pipe.read(1):
        if found[0] in (signal.SIGINT, signal.SIGTERM):
          self._hear(found[0])

  def _hear(self, number: int) -> None:
    stage = current
    if stage is None:
      # Another handler is that of a command that stops its own commands, or answers, first.
      if signal.getsignal(number) is signal.default_int_handler:
        self._after(GRACE, lambda: self._end(FAILED))
      return
    is_second = stage in self._heard
    if is_second and number == signal.SIGTERM:
      return
    self._heard.add(stage)
    self._after(GRACE / 2 if is_second else GRACE, functools.partial(self._look, stage, is_second))

  def _look(self, stage: Stage, is_second: bool) -> None:
    """Ends the process if it still runs and may end, or if it was asked twice."""
    if is_second:
      self._end(FAILED)
    if stage.may_end() and self.status is not None:
      self._end(self.status)  # the command has ended, and the interpreter waits for native threads
    if current is not stage:
      return
    if stage.may_end():
      self._end(RESTART)
    if stage.promise:
      print(f'\ninterrupted: {stage.promise}; Ctrl-C again ends at once', file=sys.stderr)

  def _after(self, seconds: float, function) -> None:
    timer = threading.Timer(seconds, function)
    timer.daemon = True
    timer.start()

  def _end(self, status: int) -> None:
    if self.status is None:  # else it is said
      self._say(status)
    end(status)
