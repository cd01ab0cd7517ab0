"""Who of a run's processes is there, waits, fails, is lost or was told to stop: a thread in each,
and a TCP line to process 0.

It works before JAX's own handshake, while XLA compiles, and while a collective waits for a host
that will never come: a thread that hears of it ends the process, with the reason. Messages are
lines of JSON; an hour of beats is some kilobytes.
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
  """A process's side of it.

  Attributes:
    index, count: which process of how many this is.
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
    """Returns when all processes are there.

    Args:
      address: HOST:PORT of process 0's hub; process 0 opens it.
      count, index: how many processes the run has, and which this is.
      timeout: seconds until all must be there.
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
    """Waits until all processes are at this place; while they are waited for, process 0 says for
    whom.

    Args:
      place: a name for people, 'restoring the checkpoint'. The same again later is another barrier.
      says: what must be equal in all processes, short.

    Raises:
      RollCallError: processes say different things; they are named.
    """
    with self._state:
      self._opened.pop(place, None)
    self._line.send(at=place, says=says)
    with self._state:
      self._state.wait_for(lambda: place in self._opened)
      problem = self._opened.pop(place)
    if problem:
      raise RollCallError(f'the processes of this run differ at {place}: {problem}')

  def tell_stop(self) -> None:
    """This process was told to stop: all will, at the same check."""
    self._line.send(stop=True)

  def stopping(self) -> bool:
    """Whether to stop here. All processes ask equally often, and get the same answer at the same
    call.

    Costs nothing until somebody was told to stop; then each process says how many calls it has
    behind it, and the call after the furthest of these is the one.
    """
    with self._state:
      self._checks += 1
      number = self._checks
      if not self._gated:
        return False
      self._state.wait_for(lambda: self._stop_at is not None)
      return number >= self._stop_at

  def tell_failed(self, reason: str) -> None:
    """This process ends with an error; the others hear it and end too."""
    self._closed = True
    self._line.send(failed=reason[:4000])
    if self._hub:
      self._hub.wait_until_gone(self.index, 2.0)

  def close(self) -> None:
    """This process is done; process 0 stays until the others are too, for half of the time that
    makes one lost.
    """
    self._closed = True
    self._line.send(bye=True)
    if self._hub:
      for index in range(self.count):
        self._hub.wait_until_gone(index, self._silence / 2)
      self._hub.close()
    self._line.close()

  def _connect(self, host: str, port: int, timeout: float) -> socket.socket:
    until, said = time.monotonic() + timeout, time.monotonic()
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
            'started, and may this machine reach that port?'
          ) from None
        if now - said > hub.TOLD:
          said = now
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
          self._problem or f'process {self.index}: process 0 has gone before the run began'
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
        self._end(f'process 0 is lost: nothing was heard from it for {silent:.0f} s', RESTART)

  def _end(self, reason: str, status: int) -> None:
    if self._closed or not self._began:
      return
    # Who failed together with others says so itself first.
    time.sleep(min(1.0, self._beat))
    if self._closed:
      return
    self._closed = True
    what = (
      'start all again to go on from the last whole checkpoint' if status == RESTART else 'all end'
    )
    print(
      f'process {self.index} ({socket.gethostname()}) ends: {reason}; {what}',
      file=sys.stderr,
      flush=True,
    )
    self._leave(status)
