"""Being told to stop: heard between steps, between batches of an evaluation, and while XLA
compiles.
"""

import signal
import threading

from crossin_jax.errors import Interrupted
from crossin_jax.processes import distributed

_current: 'StopSignal | None' = None


class StopSignal:
  """Hears SIGTERM and SIGINT while it is entered; a second SIGINT acts at once."""

  def __init__(self):
    self._flag, self._told, self._previous, self._outer = False, False, {}, None

  def __enter__(self):
    global _current  # signals are global too
    self._outer, _current = _current, self
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._hear)
    return self

  def __exit__(self, *_):
    global _current
    _current = self._outer
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _hear(self, number, _):
    if self._flag and number == signal.SIGINT:
      raise KeyboardInterrupt
    self._flag = True

  def heard(self) -> bool:
    """Whether this host was told to stop."""
    return self._flag

  def requested(self) -> bool:
    """Whether any process was told to stop; all must ask equally often and get the same answer at
    the same call.
    """
    if (call := distributed.call()) is None:
      return self._flag
    if self._flag and not self._told:
      self._told = True
      call.tell_stop()
    return call.stopping()


def interrupted_alone() -> bool:
  """Whether the run around the caller was interrupted and has no other process to wait for."""
  return _current is not None and _current.heard() and distributed.call() is None


def check() -> None:
  """Raises Interrupted if the run around it was told to stop; outside a run it does nothing.

  Long evaluations call it between batches, on all hosts alike.
  """
  if _current is not None and _current.requested():
    raise Interrupted
