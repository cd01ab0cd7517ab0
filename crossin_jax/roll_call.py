"""Who of a run's processes is there, waits, fails, is lost or was told to stop: a thread in each, and a TCP line to process 0.

It works before JAX's own handshake, while XLA compiles, and while a collective waits for a host that will never come: a thread that
hears of it ends the process, with the reason. Messages are lines of JSON; an hour of beats is some kilobytes.
"""

from collections.abc import Callable
import dataclasses
import json
import os
import socket
import sys
import threading
import time

RESTART = 75  # exit status of a process that may be started again
BEAT = 5.0  # seconds between signs of life
LOST = 45.0  # seconds of silence after which a process counts as lost
TOLD = 60.0  # seconds between lines that say for whom is waited
_LONGEST = 1 << 16  # bytes of a message


class RollCallError(RuntimeError):
  """The run cannot begin, or not together; the message names the processes."""


@dataclasses.dataclass
class _Member:
  """What process 0 knows of a process."""

  line: '_Line'
  host: str
  pid: int
  heard: float
  gone: bool = False  # said goodbye

  def __str__(self):
    return f'{self.host}, pid {self.pid}'


class _Line:
  """A connection that carries JSON lines."""

  def __init__(self, connection: socket.socket):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    self._socket, self._writing = connection, threading.Lock()

  def send(self, **message) -> bool:
    """Whether it could be sent."""
    try:
      with self._writing:
        self._socket.sendall(json.dumps(message).encode() + b'\n')
      return True
    except OSError:
      return False

  def messages(self):
    """What comes, until the line is cut."""
    with self._socket.makefile('rb') as incoming:
      try:
        while (line := incoming.readline(_LONGEST)).endswith(b'\n'):
          if not isinstance(message := json.loads(line), dict):
            return
          yield message
      except (OSError, ValueError):
        return

  def close(self) -> None:
    try:
      self._socket.shutdown(socket.SHUT_RDWR)
    except OSError:
      pass
    self._socket.close()


class Hub:
  """Process 0's side: knows all, tells all."""

  def __init__(self, port: int, count: int, timeout: float, beat: float = BEAT, lost: float = LOST):
    """Listens at once.

    Args:
      port: TCP port; count: of processes, process 0 among them.
      timeout: seconds until all must have come.
      beat, lost: see BEAT and LOST.
    """
    self._count, self._beat, self._lost = count, beat, lost
    self._members: dict[int, _Member] = {}
    self._lock = threading.RLock()
    self._began = self._complete = False
    self._deadline = time.monotonic() + timeout
    self._timeout = timeout
    self._waiting: dict[str, dict[int, str]] = {}  # place -> process -> what it says
    self._since: dict[str, float] = {}
    self._passed: dict[int, int] | None = None  # process -> checks passed, once somebody was told to stop
    try:
      self._socket = socket.create_server(('', port), backlog=1024)
    except OSError as error:
      raise RollCallError(
        f'process 0 cannot listen on port {port} ({error.strerror}): is another run at work on this machine? Choose another '
        'port in --coordinator_address (this is the one above it)'
      ) from None
    for work in (self._accept, self._watch):
      threading.Thread(target=work, daemon=True, name=f'roll call {work.__name__}').start()

  def close(self) -> None:
    """Stops listening; lines are cut."""
    self._complete = True
    self._socket.close()
    for member in list(self._members.values()):
      member.line.close()

  def wait_until_gone(self, index: int, seconds: float) -> None:
    """Until a process has said goodbye, or failed, and the others were told."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
      with self._lock:
        if index not in self._members or self._members[index].gone:
          return
      time.sleep(0.02)

  def _accept(self) -> None:
    while True:
      try:
        connection, _ = self._socket.accept()
      except OSError:
        return
      threading.Thread(target=self._serve, args=(_Line(connection),), daemon=True, name='roll call line').start()

  def _serve(self, line: _Line) -> None:
    index = None
    for message in line.messages():
      with self._lock:
        if index is None:
          index = self._enter(line, message)
          if index is None:
            break
        else:
          self._members[index].heard = time.monotonic()
          self._handle(index, message)
    with self._lock:
      if index is not None and not self._members[index].gone and not self._complete:
        self._tell_lost(index, 'its connection was cut')
    line.close()

  def _enter(self, line: _Line, message: dict) -> int | None:
    """The first message of a process; its number, or None if it may not take part."""
    if not {'hello', 'count', 'host', 'pid'} <= set(message):
      return None  # somebody else who found the port
    index = message['hello']
    who = f'process {index} ({message["host"]}, pid {message["pid"]})'
    if message['count'] != self._count:
      problem = f'{who} was started as one of {message["count"]} processes, process 0 as one of {self._count}'
    elif index in self._members:
      problem = f'{who} has the number of a process that is there already ({self._members[index]})'
    else:
      self._members[index] = _Member(line, message['host'], message['pid'], time.monotonic())
      if len(self._members) == self._count:
        self._began = True
        self._tell(go=True)
      return index
    line.send(refused=problem)
    return None

  def _handle(self, index: int, message: dict) -> None:
    if 'at' in message:
      self._arrived(index, message['at'], message['says'])
    elif 'stop' in message and self._passed is None:
      self._passed = {}
      self._tell(gate=True)
    elif 'passed' in message:
      self._passed[index] = message['passed']
      if self._present() <= set(self._passed):
        self._tell(stop_at=max(self._passed.values()) + 1)
    elif 'failed' in message:
      self._members[index].gone = True
      self._tell(failed=f'process {index} ({self._members[index].host}): {message["failed"]}')
    elif 'bye' in message:
      self._members[index].gone = True
      for place in list(self._waiting):
        self._open_if_all(place)

  def _arrived(self, index: int, place: str, says: str) -> None:
    self._waiting.setdefault(place, {})[index] = says
    self._since.setdefault(place, time.monotonic())
    self._open_if_all(place)

  def _open_if_all(self, place: str) -> None:
    if not self._present() <= set(self._waiting[place]):
      return
    said = self._waiting.pop(place)
    self._since.pop(place)
    # The odd ones out are those who differ from the most.
    most = max(set(said.values()), key=lambda value: (sum(v == value for v in said.values()), value == said.get(0)))
    odd = [f'process {i} ({self._members[i].host}) says {v}' for i, v in sorted(said.items()) if v != most]
    self._tell(open=place, problem=f'{"; ".join(odd)}; the others say {most}' if odd else None)

  def _present(self) -> set[int]:
    return {index for index, member in self._members.items() if not member.gone}

  def _watch(self) -> None:
    """Signs of life, and what is overdue."""
    told = time.monotonic()
    while not self._complete:
      time.sleep(min(1.0, self._beat))
      with self._lock:
        now = time.monotonic()
        self._tell(beat=True)
        if not self._began and now > self._deadline:
          self._tell(missing=sorted(set(range(self._count)) - set(self._members)))
          self._complete = True
        for index, member in list(self._members.items()):
          if self._began and not member.gone and now - member.heard > self._lost:
            self._tell_lost(index, f'nothing was heard from it for {now - member.heard:.0f} s')
        if now - told > TOLD:
          told = now
          self._say_who_is_waited_for(now)

  def _say_who_is_waited_for(self, now: float) -> None:
    name = lambda i: f'{i} ({self._members[i].host})' if i in self._members else str(i)
    if not self._began:
      missing = sorted(set(range(self._count)) - set(self._members))
      left = self._deadline - now
      print(f'waiting for process {", ".join(map(name, missing))} to start, {left:.0f} s at most', file=sys.stderr)
    for place, there in self._waiting.items():
      late = sorted(self._present() - set(there))
      seconds = now - self._since[place]
      print(f'waiting since {seconds:.0f} s before {place} for process {", ".join(map(name, late))}', file=sys.stderr)

  def _tell_lost(self, index: int, why: str) -> None:
    self._members[index].gone = True
    self._tell(lost=f'process {index} ({self._members[index]}) is lost: {why}')

  def _tell(self, **message) -> None:
    for member in list(self._members.values()):
      member.line.send(**message)


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
    self._line = _Line(self._connect('127.0.0.1' if index == 0 else host, int(port), timeout))
    self._line.send(hello=index, count=count, host=socket.gethostname(), pid=os.getpid())
    for work in (self._listen, self._live):
      threading.Thread(target=work, daemon=True, name=f'roll call {work.__name__}').start()
    with self._state:
      self._state.wait_for(lambda: self._began or self._problem)
    if self._problem:
      raise RollCallError(self._problem)

  def barrier(self, place: str, says: str = '') -> None:
    """Waits until all processes are at this place; while they are waited for, process 0 says for whom.

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
    """Whether to stop here. All processes ask equally often, and get the same answer at the same call.

    Costs nothing until somebody was told to stop; then each process says how many calls it has behind it, and the call after
    the furthest of these is the one.
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
    """This process is done; process 0 stays until the others are too, for half of the time that makes one lost."""
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
            f'process {self.index}: process 0 did not answer at {host}:{port} within {timeout:.0f} s ({error}); was it '
            'started, and may this machine reach that port?'
          ) from None
        if now - said > TOLD:
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
            f'{len(message["missing"])} of {self.count} processes did not start in time: {names}. Look at their logs or '
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
        self._problem = self._problem or f'process {self.index}: process 0 has gone before the run began'
        self._state.notify_all()

  def _live(self) -> None:
    while not self._closed:
      time.sleep(self._beat)
      self._line.send(beat=True)
      if self._began and (silent := time.monotonic() - self._heard) > self._silence and not self._closed:
        self._end(f'process 0 is lost: nothing was heard from it for {silent:.0f} s', RESTART)

  def _end(self, reason: str, status: int) -> None:
    if self._closed or not self._began:
      return
    # Who failed together with others says so itself first.
    time.sleep(min(1.0, self._beat))
    if self._closed:
      return
    self._closed = True
    what = 'start all again to go on from the last whole checkpoint' if status == RESTART else 'all end'
    print(f'process {self.index} ({socket.gethostname()}) ends: {reason}; {what}', file=sys.stderr, flush=True)
    self._leave(status)
