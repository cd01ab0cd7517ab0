"""What the launchers run on a worker: installs the project and starts a run that outlives ssh.

  bash crossin_jax/launch/worker.sh --slice I | --host I  ACTION ARGUMENT ...

Actions are the public methods of `Worker`. Lines '@crossin WORD KEY WORKERS TEXT' on stdout are for
the launcher; KEY is unit/number. ~/.crossin_run has the files of the run: log, digest (which run it
is), leader (its process group), pid, status (once it has ended), lock (held while it lives).
"""

import contextlib
import fcntl
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

_PROJECT = pathlib.Path(__file__).resolve().parents[1]


def metadata(name: str) -> str:
  """An attribute of this TPU VM; JAX numbers its processes by the same."""
  server = os.environ.get('GCE_METADATA_IP', 'metadata.google.internal')
  url = f'http://{server}/computeMetadata/v1/instance/attributes/{name}'
  words = ['curl', '--silent', '--fail', '--retry', '5', '-H', 'Metadata-Flavor: Google', url]
  return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


class Worker:
  """One worker; its actions return exit statuses."""

  def __init__(self, place: str, unit: str):
    self._unit, self._key, self._workers = unit, f'{unit}/0', 1
    if place == '--slice':
      self._key = f'{unit}/{metadata("agent-worker-number")}'
      self._workers = len(metadata('worker-network-endpoints').rstrip(',').split(','))
    # Hosts may share their home.
    self._folder = pathlib.Path.home() / f'.crossin_run/{socket.gethostname()}-{unit}'
    self._folder.mkdir(parents=True, exist_ok=True)

  def install(self, extra: str) -> int:
    """Installs the project in its .venv."""
    code = 'source launch/environment.sh && provide_python && make_environment .venv "$1"'
    with open(self._folder / 'install.log', 'wb') as log:
      words = ['bash', '-c', code, 'install', extra]
      status = subprocess.run(words, cwd=_PROJECT, stdout=log, stderr=log).returncode
    if status:
      self._show_end('install.log')
    self._report('installs', 'broken' if status else 'done')
    return status

  def state(self) -> int:
    """Reports 'running DIGEST', 'ended STATUS DIGEST', 'gone DIGEST', or '' before any run."""
    digest, status = self._read('digest'), self._read('status')
    if self._running():
      digest = f'running {digest}'
    elif digest:
      digest = f'ended {status} {digest}' if status else f'gone {digest}'
    self._report('states', digest)
    return 0

  def start(self, digest: str, *words: str) -> int:
    """Starts [NAME=VALUE ...] -- COMMAND ... of `crossin`, unless this run is running."""
    if self._running():
      self.state()
      return int(self._read('digest') != digest)
    self._kill_group()  # processes of the previous run would keep the accelerators
    for name in ('status', 'pid', 'leader'):
      (self._folder / name).unlink(missing_ok=True)
    log = self._folder / 'log'
    if log.exists():
      log.rename(self._folder / 'log.previous')
    self._write('digest', digest)
    words = [sys.executable, __file__, '--host', self._unit, 'run_to_end', *words]
    with open(log, 'wb') as out:
      pipes = {'stdin': subprocess.DEVNULL, 'stdout': out, 'stderr': out}
      subprocess.Popen(words, start_new_session=True, **pipes)
    for _ in range(100):
      if self._read('pid') or (self._read('leader') and not self._running()):
        break
      time.sleep(0.1)
    self._report('states', f'running {digest}')
    return 0

  def run_to_end(self, *words: str) -> int:
    """What `start` leaves running: runs `crossin` and writes its exit status."""
    lock = open(self._folder / 'lock', 'w')
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # A machine that shuts down sends SIGTERM to all; the exit status of the run is still written.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
      signal.signal(number, lambda *_: None)
    mark = words.index('--')
    self._write('leader', os.getpid())
    words = ['env', *words[:mark], '.venv/bin/crossin', *words[mark + 1 :]]
    child = subprocess.Popen(words, cwd=_PROJECT, pass_fds=[lock.fileno()])
    self._write('pid', child.pid)
    status = child.wait()
    self._write('status', status if status >= 0 else 128 - status)
    return 0

  def follow(self, where: str) -> int:
    """Waits for the end of the run and reports it; the first worker shows its log from `where`."""
    log, reader, parent = self._folder / 'log', None, os.getppid()
    if self._key == '0/0':
      lines = ['-n', '30' if where == 'end' else '+1', f'--pid={os.getpid()}']
      words = ['tail', *lines, '--sleep-interval=0.3', '-F', log]
      reader = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    while self._running() and os.getppid() == parent:  # the parent ends with the connection
      time.sleep(0.3)
    if reader:
      time.sleep(0.3)  # for the last lines
      reader.terminate()
      reader.wait()
    status = self._read('status') or 'gone'
    if status not in ('0', '75') and not reader:
      self._show_end('log')
    self._report('ends', status)
    return 0

  def stop(self, seconds: str) -> int:
    """Sends SIGTERM, upon which training saves; SIGKILL after some seconds."""
    if self._running():
      with contextlib.suppress(OSError, ValueError):  # it has just ended
        os.kill(int(self._read('pid')), signal.SIGTERM)
      deadline = time.monotonic() + int(seconds)
      while self._running() and time.monotonic() < deadline:
        time.sleep(0.2)
      if self._running():
        self._kill_group()
        self._write('status', 137)
    return self.state()

  def _report(self, word: str, text: str) -> None:
    print('@crossin', word, self._key, self._workers, text, flush=True)

  def _show_end(self, name: str) -> None:
    tail = subprocess.run(['tail', '-n', '25', self._folder / name], stdout=subprocess.PIPE).stdout
    for line in tail.decode(errors='replace').replace('\r', '\n').splitlines():
      self._report('log', line)

  def _read(self, name: str) -> str:
    path = self._folder / name
    return path.read_text().strip() if path.exists() else ''

  def _write(self, name: str, value: object) -> None:
    """Writes a file in one step."""
    part = self._folder / f'{name}.part'
    part.write_text(f'{value}\n')
    part.rename(self._folder / name)

  def _kill_group(self) -> None:
    with contextlib.suppress(OSError, ValueError):  # there is none
      os.killpg(int(self._read('leader')), signal.SIGKILL)

  def _running(self) -> bool:
    lock = self._folder / 'lock'
    if self._read('status') or not lock.exists():
      return False
    with open(lock, 'a') as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        return True
    return False


if __name__ == '__main__':
  _place, _unit, _action, *_arguments = sys.argv[1:]
  sys.exit(getattr(Worker(_place, _unit), _action)(*_arguments))
