"""SIGTERM and SIGINT, checked between steps, between evaluation batches and while XLA compiles."""

import signal
import threading

from crossin_jax.errors import Interrupted
from crossin_jax.processes import distributed, signals

_current: 'StopSignal | None' = None


class StopSignal:
  """Records SIGTERM and SIGINT inside its block; a second SIGINT raises KeyboardInterrupt.

  Attributes:
    at_once: nothing is lost if the process ends now: `signals.Watch` ends it where it does not
      look at its signals for seconds, if it is alone.
    promise: for the user, what is done before the process ends if not at once.
  """

  def __init__(self, at_once: bool = False, promise: str = ''):
    self.at_once, self.promise = at_once, promise
    self._flag, self._notified, self._previous, self._outer = False, False, {}, None

  def __enter__(self):
    global _current  # signals are global as well
    self._outer, _current = _current, self
    signals.current = self
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._hear)
    return self

  def __exit__(self, *_):
    global _current
    _current = signals.current = self._outer
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _hear(self, number, _):
    if self._flag and number == signal.SIGINT:
      raise KeyboardInterrupt
    self._flag = True

  def may_end(self) -> bool:
    """Whether nothing is lost if the process ends now."""
    return self.at_once and distributed.call() is None

  def received(self) -> bool:
    """Whether this process received a signal."""
    return self._flag

  def requested(self) -> bool:
    """Whether any process of the run was interrupted.

    All processes must call it equally often; they get the same answer at the same call.
    """
    if (call := distributed.call()) is None:
      return self._flag
    if self._flag and not self._notified:
      self._notified = True
      call.notify_stop()
    return call.stopping()


def interrupted_alone() -> bool:
  """Whether the surrounding run was interrupted and consists of this process alone."""
  return _current is not None and _current.received() and distributed.call() is None


def check() -> None:
  """Raises Interrupted if the surrounding run was interrupted; outside a run it does nothing.

  Long evaluations call it between batches, equally often on all hosts.
  """
  if _current is not None and _current.requested():
    raise Interrupted
