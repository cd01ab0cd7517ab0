"""Which processes of a run are connected, waiting, failed, lost or interrupted.

Each process has a thread and a TCP connection to process 0. This works before JAX's own handshake,
while XLA compiles, and while a collective waits for a host that never arrives: the thread then ends
the process with the reason. Messages are lines of JSON; an hour of heartbeats is a few kilobytes.
"""

from collections.abc import Callable
import os
import socket
import sys
import threading
import time

from crossin_jax.processes import hub
from crossin_jax.processes.exit_status import RESTART
from crossin_jax.processes.hub import BEAT, LOST, Hub, Line, RollCallError


class RollCall:
  """One process of the run.

  Attributes:
    index, count: number of this process, and of processes.
  """

  def __init__(
    self,
    address: str,
    count: int,
    index: int,
    *,
    timeout: float = 1800.0,
    beat: float = BEAT,
    lost: float = LOST,
    leave: Callable[[int], None] = os._exit,
  ):
    """Returns when all processes are connected.

    Args:
      address: HOST:PORT of process 0's hub; process 0 opens it.
      count, index: number of processes, and of this process.
      timeout: seconds until all must be connected.
      beat, lost: see BEAT and LOST.
      leave: ends this process with a status; for tests.

    Raises:
      RollCallError: processes are missing (they are named), too many, or process 0 does not answer.
    """
    self.index, self.count, self._leave, self._silence, self._beat = index, count, leave, lost, beat
    host, port = address.rsplit(':', 1)
    self._hub = Hub(int(port), count, timeout, beat, lost) if index == 0 else None
    self._state = threading.Condition()
    self._began, self._problem, self._closed = False, None, False
    self._opened: dict[str, str | None] = {}
    self._checks, self._gated, self._stop_at = 0, False, None
    self._heard = time.monotonic()
    self._line = Line(self._connect('127.0.0.1' if index == 0 else host, int(port), timeout))
    self._line.send(hello=index, count=count, host=socket.gethostname(), pid=os.getpid())
    for work in (self._listen, self._live):
      threading.Thread(target=work, daemon=True, name=f'roll call {work.__name__}').start()
    with self._state:
      self._state.wait_for(lambda: self._began or self._problem)
    if self._problem:
      raise RollCallError(self._problem)

  def barrier(self, place: str, says: str = '') -> None:
    """Waits until all processes arrive; meanwhile process 0 reports which ones are missing.

    Args:
      place: a readable name, 'restoring the checkpoint'. A later call with it is a new barrier.
      says: a short text that must be equal in all processes.

    Raises:
      RollCallError: the texts differ; the processes are named.
    """
    with self._state:
      self._opened.pop(place, None)
    self._line.send(at=place, says=says)
    with self._state:
      self._state.wait_for(lambda: place in self._opened)
      problem = self._opened.pop(place)
    if problem:
      raise RollCallError(f'the processes of this run differ at {place}: {problem}')

  def notify_stop(self) -> None:
    """This process was interrupted: all processes stop at the same check."""
    self._line.send(stop=True)

  def stopping(self) -> bool:
    """Whether to stop here. All processes must call it equally often and get the same answers.

    It costs nothing until a process is interrupted. Then each process reports its number of calls,
    and all stop at the call after the highest of these numbers.
    """
    with self._state:
      self._checks += 1
      number = self._checks
      if not self._gated:
        return False
      self._state.wait_for(lambda: self._stop_at is not None)
      return number >= self._stop_at

  def notify_failed(self, reason: str) -> None:
    """This process ends with an error: the others are notified and end too."""
    self._closed = True
    self._line.send(failed=reason[:4000])
    if self._hub:
      self._hub.wait_until_gone(self.index, 2.0)

  def close(self) -> None:
    """This process is done; process 0 waits for the others, for at most half of `lost`."""
    self._closed = True
    self._line.send(bye=True)
    if self._hub:
      for index in range(self.count):
        self._hub.wait_until_gone(index, self._silence / 2)
      self._hub.close()
    self._line.close()

  def _connect(self, host: str, port: int, timeout: float) -> socket.socket:
    until, reported = time.monotonic() + timeout, time.monotonic()
    while True:
      try:
        connection = socket.create_connection((host, port), timeout=10)
        connection.settimeout(None)
        return connection
      except OSError as error:
        now = time.monotonic()
        if now > until:
          raise RollCallError(
            f'process {self.index}: process 0 did not answer at {host}:{port} within '
            f'{timeout:.0f} s ({error}); was it '
            'started, and can this machine reach that port?'
          ) from None
        if now - reported > hub.REPORT_PERIOD:
          reported = now
          print(f'process {self.index}: waiting for process 0 at {host}:{port}', file=sys.stderr)
        time.sleep(min(0.5, self._beat))

  def _listen(self) -> None:
    for message in self._line.messages():
      self._heard = time.monotonic()
      with self._state:
        if 'gate' in message:
          self._gated = True
          self._line.send(passed=self._checks)
        elif 'stop_at' in message:
          self._stop_at = message['stop_at']
        elif 'open' in message:
          self._opened[message['open']] = message['problem']
        elif 'go' in message:
          self._began = True
        elif 'missing' in message:
          names = ', '.join(map(str, message['missing']))
          self._problem = (
            f'{len(message["missing"])} of {self.count} processes did not start in time: {names}. '
            'Look at their logs or '
            'machines, and start all again'
          )
        elif 'refused' in message:
          self._problem = message['refused']
        elif 'failed' in message:
          self._end(f'{message["failed"]}', 1)
        elif 'lost' in message:
          self._end(f'{message["lost"]}', RESTART)
        self._state.notify_all()
    if not self._closed:
      if self._began:
        self._end('process 0 is lost: its connection was cut', RESTART)
      with self._state:
        self._problem = (
          self._problem or f'process {self.index}: process 0 ended before the run started'
        )
        self._state.notify_all()

  def _live(self) -> None:
    while not self._closed:
      time.sleep(self._beat)
      self._line.send(beat=True)
      if (
        self._began
        and (silent := time.monotonic() - self._heard) > self._silence
        and not self._closed
      ):
        self._end(f'process 0 is lost: no heartbeat for {silent:.0f} s', RESTART)

  def _end(self, reason: str, status: int) -> None:
    if self._closed or not self._began:
      return
    # A process that fails by itself reports its own error first.
    time.sleep(min(1.0, self._beat))
    if self._closed:
      return
    self._closed = True
    what = (
      'start all again to continue from the last complete checkpoint'
      if status == RESTART
      else 'all end'
    )
    print(
      f'process {self.index} ({socket.gethostname()}) ends: {reason}; {what}',
      file=sys.stderr,
      flush=True,
    )
    self._leave(status)
