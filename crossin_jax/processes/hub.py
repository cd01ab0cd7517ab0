"""The hub in process 0 that every process of a run reports to."""

import dataclasses
import json
import socket
import sys
import threading
import time

from crossin_jax.errors import CrossinError

BEAT = 5.0  # seconds between heartbeats
LOST = 45.0  # seconds of silence after which a process counts as lost
REPORT_PERIOD = 60.0  # seconds between reports of missing processes
_LONGEST = 1 << 16  # bytes of a message


class RollCallError(CrossinError, RuntimeError):
  """The run cannot start, or its processes differ; the message names them."""


@dataclasses.dataclass
class _Member:
  """One connected process."""

  line: 'Line'
  host: str
  pid: int
  heard: float
  gone: bool = False  # it has left or failed

  def __str__(self):
    return f'{self.host}, pid {self.pid}'


class Line:
  """A connection that carries JSON lines."""

  def __init__(self, connection: socket.socket):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    self._socket, self._writing = connection, threading.Lock()

  def send(self, **message) -> bool:
    """Sends a message; returns whether that succeeded."""
    try:
      with self._writing:
        self._socket.sendall(json.dumps(message).encode() + b'\n')
      return True
    except OSError:
      return False

  def messages(self):
    """Incoming messages until the connection ends."""
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
  """Process 0's side: collects the state of all processes and notifies them."""

  def __init__(self, port: int, count: int, timeout: float, beat: float = BEAT, lost: float = LOST):
    """Starts to listen.

    Args:
      port: TCP port.
      count: number of processes, including process 0.
      timeout: seconds until all must be connected.
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
    # process -> checks passed, once a process was interrupted
    self._passed: dict[int, int] | None = None
    try:
      self._socket = socket.create_server(('', port), backlog=1024)
    except OSError as error:
      raise RollCallError(
        f'process 0 cannot listen on port {port} ({error.strerror}): is another run active on '
        'this machine? Choose another port in --coordinator_address (this is the one above it)'
      ) from None
    for work in (self._accept, self._watch):
      threading.Thread(target=work, daemon=True, name=f'roll call {work.__name__}').start()

  def close(self) -> None:
    """Stops listening and closes all connections."""
    self._complete = True
    self._socket.close()
    for member in list(self._members.values()):
      member.line.close()

  def wait_until_gone(self, index: int, seconds: float) -> None:
    """Waits until a process has left, or has failed and the others are notified."""
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
      threading.Thread(
        target=self._serve, args=(Line(connection),), daemon=True, name='roll call line'
      ).start()

  def _serve(self, line: Line) -> None:
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

  def _enter(self, line: Line, message: dict) -> int | None:
    """Handles the first message of a process; returns its number, None if it is refused."""
    if not {'hello', 'count', 'host', 'pid'} <= set(message):
      return None  # not a process of this run
    index = message['hello']
    who = f'process {index} ({message["host"]}, pid {message["pid"]})'
    if message['count'] != self._count:
      problem = (
        f'{who} was started as one of {message["count"]} processes, process 0 as one of '
        f'{self._count}'
      )
    elif index in self._members:
      problem = (
        f'{who} has the number of a process that is already connected ({self._members[index]})'
      )
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
    texts = self._waiting.pop(place)
    self._since.pop(place)
    # Processes that differ from the majority are named.
    most = max(
      set(texts.values()),
      key=lambda value: (sum(v == value for v in texts.values()), value == texts.get(0)),
    )
    odd = [
      f'process {i} ({self._members[i].host}) says {v}'
      for i, v in sorted(texts.items())
      if v != most
    ]
    self._tell(open=place, problem=f'{"; ".join(odd)}; the others say {most}' if odd else None)

  def _present(self) -> set[int]:
    return {index for index, member in self._members.items() if not member.gone}

  def _watch(self) -> None:
    """Sends heartbeats and looks for what is overdue."""
    reported = time.monotonic()
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
            self._tell_lost(index, f'no heartbeat for {now - member.heard:.0f} s')
        if now - reported > REPORT_PERIOD:
          reported = now
          self._report_missing(now)

  def _report_missing(self, now: float) -> None:
    name = lambda i: f'{i} ({self._members[i].host})' if i in self._members else str(i)
    if not self._began:
      missing = sorted(set(range(self._count)) - set(self._members))
      left = self._deadline - now
      print(
        f'waiting for process {", ".join(map(name, missing))} to start, {left:.0f} s at most',
        file=sys.stderr,
      )
    for place, there in self._waiting.items():
      late = sorted(self._present() - set(there))
      seconds = now - self._since[place]
      print(
        f'waiting since {seconds:.0f} s before {place} for process {", ".join(map(name, late))}',
        file=sys.stderr,
      )

  def _tell_lost(self, index: int, why: str) -> None:
    self._members[index].gone = True
    self._tell(lost=f'process {index} ({self._members[index]}) is lost: {why}')

  def _tell(self, **message) -> None:
    # Process 0 is last: this thread ends with it, and the message may be why it ends.
    for index in sorted(self._members, reverse=True):
      self._members[index].line.send(**message)
