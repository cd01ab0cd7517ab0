"""A lease on a remote folder: which process may write there."""

import contextlib
import email.utils
import json
import os
import socket
import sys
import threading
import time
import uuid

from crossin_jax.storage import locks, remote

PERIOD = 30.0  # seconds between pushes, and between renewals of a lock
STALE = 90.0  # seconds after which a lock that is not renewed may be taken over
SHORT = 10.0  # seconds that requests may take after an error


class InUse(locks.InUse, remote.RemoteError):
  """Another process holds the lock, or took it over."""


class Lock:
  """An object that names the process that writes a remote folder.

  It is taken with a generation precondition, renewed by a thread, and taken over by another process
  when it is stale. All times are the store's, so the clocks of machines need not agree.
  """

  def __init__(self, url: str, *, period: float | None = None, stale: float | None = None):
    """Args:
    url: of the object.
    period: seconds between renewals; None = PERIOD.
    stale: seconds without a renewal after which another process may take it; None = STALE.
    """
    self.url, self._period, self._stale = url, period or PERIOD, stale or STALE
    self._token = uuid.uuid4().hex
    self._generation, self._lost, self._ending = 0, None, threading.Event()
    self._renewed = 0.0  # time.monotonic() when the request that last renewed it was sent
    self._limit = remote.Limit()

  def __enter__(self):
    self._take()
    self._thread = threading.Thread(target=self._keep_renewing, daemon=True, name='lock')
    self._thread.start()
    return self

  def __exit__(self, kind, *_):
    self._ending.set()
    self._limit.set(self._stale if kind is None else min(SHORT, self._stale))
    self._thread.join(self._limit.left() + 1)
    if not self._lost:
      with (
        contextlib.suppress(remote.RemoteError),
        self._limit.applied(),
      ):  # it goes stale by itself
        remote.remove(self.url, self._generation)

  def check(self) -> None:
    """Returns if the lock is held; asks the store where the last renewal is too old.

    Raises:
      InUse: another process took it over. RemoteError: the store does not answer.
    """
    if not self._lost and time.monotonic() - self._renewed > self._stale:
      with remote.Limit(min(SHORT, self._stale)).applied():
        self._renew()
    if self._lost:
      raise InUse(self._lost)

  def _renew(self) -> None:
    if not self._write(self._generation):
      self._lost = (
        f'{self.url} was taken over by another run, because this one could not renew it for '
        f'{self._stale:.0f} s; the run continues there'
      )

  def _content(self) -> bytes:
    holder = f'process {os.getpid()} on {socket.gethostname()}'
    return json.dumps(
      {'token': self._token, 'holder': holder, 'process': _identity(os.getpid())}
    ).encode()

  def _write(self, generation: int) -> bool:
    """Whether this process holds the lock now."""
    sent = time.monotonic()
    try:
      self._generation = remote.write(self.url, self._content(), generation).generation
      self._renewed = sent
      return True
    except remote.Outrun:
      # The answer to this process's own request may have been lost and the request repeated.
      held, content, age = self._look()
      if content.get('token') != self._token:
        return False
      self._generation, self._renewed = held, max(self._renewed, sent - age)
      return True

  def _look(self) -> tuple[int, dict, float]:
    """Generation (0 = no lock), content, age in seconds."""
    bucket, name = remote.split(self.url)
    fields = {'fields': 'generation,updated'}
    try:
      headers, body = remote.call(self.url, 'GET', 'b/{}/o/{}', bucket, name, **fields)
      content = json.loads(remote.read(self.url))
    except remote.NotThere:
      return 0, {}, 0.0
    except ValueError:
      content = {}
    found = json.loads(body)
    now = (
      email.utils.parsedate_to_datetime(headers['Date']).timestamp()
      if 'Date' in headers
      else time.time()
    )
    written = _seconds(found['updated'])
    return int(found['generation']), content, max(0.0, now - written)

  def _take(self) -> None:
    first, reported = None, False
    while True:
      generation, content, age = self._look()
      holder = content.get('holder', 'another run')
      first = generation if first is None else first
      if generation and generation != first:
        raise InUse(
          f'{self.url.rpartition("/")[0]} is in use by {holder}; wait for it, stop it, or use '
          'another folder'
        )
      if not generation or age >= self._stale or _is_dead(content.get('process')):
        if self._write(generation):
          return
        first = None  # another process was faster: check whether it is alive
        continue
      if not reported:
        print(
          f'{self.url} is held by {holder}; if it is not renewed within {self._stale - age:.0f} '
          's, this run takes it',
          file=sys.stderr,
        )
        reported = True
      time.sleep(min(self._period / 4, max(0.05, self._stale - age)))

  def _keep_renewing(self) -> None:
    while not self._ending.wait(self._period):
      attempt = remote.Limit(self._stale / 2)  # a new attempt is better than a hanging connection
      try:
        with self._limit.applied(), attempt.applied():
          self._renew()
        if self._lost:
          return
      except Exception:  # the network: the next attempt finds out who holds the lock
        continue


def _seconds(stamp: str) -> float:
  """Unix time of the store's '2026-01-02T03:04:05.678Z'."""
  import datetime

  return datetime.datetime.fromisoformat(stamp.replace('Z', '+00:00')).timestamp()


def _identity(pid: int) -> str | None:
  """A text unique to a process: boot id, PID namespace, PID and start time."""
  try:
    with open('/proc/sys/kernel/random/boot_id', encoding='ascii') as f:
      boot = f.read().strip()
    with open(f'/proc/{pid}/stat', encoding='utf-8', errors='replace') as f:
      state, *rest = f.read().rpartition(')')[2].split()
    return None if state in 'ZX' else f'{boot} {os.readlink("/proc/self/ns/pid")} {pid} {rest[18]}'
  except (OSError, IndexError):
    return None


def _is_dead(identity: str | None) -> bool:
  """Whether the process was on this machine, since its last boot, and has ended."""
  mine = _identity(os.getpid())
  if not identity or not mine or identity.split()[:2] != mine.split()[:2]:
    return False
  return _identity(int(identity.split()[2])) != identity
