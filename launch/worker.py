"""What the launchers run on a worker: installs the project and starts a run that outlives ssh.

  bash crossin_jax/launch/worker.sh --slice I | --host I  ACTION

    install EXTRA | start DIGEST [NAME=VALUE ...] -- COMMAND ... | state | follow start|end | stop SECONDS

Lines '@crossin WORD KEY COUNT TEXT' on stdout are for the launcher; KEY is unit/number, COUNT the
workers of the unit. ~/.crossin_run has the files of the run: log, digest (which run it is), leader
(its process group), pid, status (once it has ended), lock (held while it lives).
"""

import fcntl
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

_PROJECT = pathlib.Path(__file__).resolve().parents[1]
_ACTIONS = ('install', 'start', 'run_to_end', 'state', 'follow', 'stop')


def metadata(name: str) -> str:
  """An attribute of this TPU VM; JAX numbers its processes by the same."""
  server = os.environ.get('GCE_METADATA_IP', 'metadata.google.internal')
  url = f'http://{server}/computeMetadata/v1/instance/attributes/{name}'
  command = 'curl --silent --fail --retry 5 -H'.split() + ['Metadata-Flavor: Google', url]
  return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


class Worker:
  """One worker; its public methods are the actions, which return exit statuses."""

  def __init__(self, place: str, unit: str):
    self.unit, self.key, self.count = unit, f'{unit}/0', 1
    if place == '--slice':
      self.key = f'{unit}/{metadata("agent-worker-number")}'
      self.count = len([end for end in metadata('worker-network-endpoints').split(',') if end])
    # Hosts may share their home.
    self.folder = pathlib.Path.home() / '.crossin_run' / f'{socket.gethostname()}-{unit}'
    self.folder.mkdir(parents=True, exist_ok=True)

  def _report(self, word: str, text: str = '') -> None:
    print(f'@crossin {word} {self.key} {self.count} {text}', flush=True)

  def _read(self, name: str) -> str:
    try:
      return (self.folder / name).read_text().strip()
    except FileNotFoundError:
      return ''

  def _write(self, name: str, value: object) -> None:
    """Writes a file in one step."""
    part = self.folder / f'{name}.part'
    part.write_text(f'{value}\n')
    part.rename(self.folder / name)

  def _show_end(self, name: str) -> None:
    tail = subprocess.run(['tail', '-n', '25', self.folder / name], stdout=subprocess.PIPE)
    for line in tail.stdout.decode(errors='replace').replace('\r', '\n').splitlines():
      self._report('log', line)

  def _kill_group(self) -> None:
    leader = self._read('leader')
    if leader:
      try:
        os.killpg(int(leader), signal.SIGKILL)
      except OSError:
        pass  # it has ended

  def _running(self) -> bool:
    lock = self.folder / 'lock'
    if self._read('status') or not lock.exists():
      return False
    with lock.open('a') as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        return True
    return False

  def install(self, extra: str) -> int:
    """Installs the project in its .venv."""
    code = 'source launch/environment.sh && provide_python && make_environment .venv "$1"'
    with (self.folder / 'install.log').open('wb') as log:
      command = ['bash', '-c', code, 'install', extra]
      status = subprocess.run(command, cwd=_PROJECT, stdout=log, stderr=log).returncode
    if status:
      self._show_end('install.log')
    self._report('broken' if status else 'installed')
    return status

  def state(self) -> int:
    """Reports 'running DIGEST', 'ended STATUS DIGEST', 'gone DIGEST', or '' before any run."""
    digest, status = self._read('digest'), self._read('status')
    if self._running():
      self._report('state', f'running {digest}')
    elif status:
      self._report('state', f'ended {status} {digest}')
    else:
      self._report('state', digest and f'gone {digest}')
    return 0

  def start(self, digest: str, *words: str) -> int:
    """Starts `crossin` in a session of its own, unless this run is running."""
    if self._running():
      self.state()
      return int(self._read('digest') != digest)
    self._kill_group()  # processes of the previous run would keep the accelerators
    for name in ('status', 'pid', 'leader'):
      (self.folder / name).unlink(missing_ok=True)
    log = self.folder / 'log'
    if log.exists():
      log.rename(self.folder / 'log.previous')
    (self.folder / 'digest').write_text(digest)
    command = [sys.executable, __file__, '--host', self.unit, 'run_to_end', *words]
    with log.open('wb') as output:
      subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
      )
    for _ in range(100):
      if self._read('pid') or (self._read('leader') and not self._running()):
        break
      time.sleep(0.1)
    self._report('state', f'running {digest}')
    return 0

  def run_to_end(self, *words: str) -> int:
    """Runs [NAME=VALUE ...] -- COMMAND ... to its end and writes its exit status."""
    lock = (self.folder / 'lock').open('w')
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # A machine that shuts down sends SIGTERM to all; the exit status of the run is still written.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
      signal.signal(number, lambda *_: None)
    mark = words.index('--')
    environment = {**os.environ, **dict(word.split('=', 1) for word in words[:mark])}
    self._write('leader', os.getpid())
    command = [_PROJECT / '.venv/bin/crossin', *words[mark + 1 :]]
    try:
      child = subprocess.Popen(command, cwd=_PROJECT, env=environment, pass_fds=[lock.fileno()])
    except OSError as error:
      print(error, flush=True)
      self._write('status', 127)
      return 127
    self._write('pid', child.pid)
    status = child.wait()
    self._write('status', status if status >= 0 else 128 - status)
    return 0

  def follow(self, where: str) -> int:
    """Waits for the end of the run and reports it; the first worker shows its log meanwhile."""
    log, reader, parent = self.folder / 'log', None, os.getppid()
    if self.key == '0/0':
      lines = '30' if where == 'end' else '+1'
      command = ['tail', '-n', lines, '-F', f'--pid={os.getpid()}', '--sleep-interval=0.3', log]
      reader = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while self._running() and os.getppid() == parent:  # a lost connection takes the parent away
      time.sleep(0.3)
    if reader:
      time.sleep(0.3)  # for the last lines
      reader.terminate()
      reader.wait()
    status = self._read('status') or 'gone'
    if status not in ('0', '75') and not reader and log.exists():
      self._show_end('log')
    self._report('ended', status)
    return 0

  def stop(self, seconds: str) -> int:
    """Sends SIGTERM, upon which training saves; SIGKILL after `seconds`."""
    if self._running():
      pid = self._read('pid')
      if pid:
        try:
          os.kill(int(pid), signal.SIGTERM)
        except ProcessLookupError:
          pass  # it has just ended
      deadline = time.monotonic() + int(seconds)
      while self._running() and time.monotonic() < deadline:
        time.sleep(0.2)
      if self._running():
        self._kill_group()
        self._write('status', 137)
    return self.state()


if __name__ == '__main__':
  place, unit, action, *arguments = sys.argv[1:]
  if action not in _ACTIONS:
    sys.exit(f'worker.sh: unknown action {action}; one of {", ".join(_ACTIONS)}')
  sys.exit(getattr(Worker(place, unit), action)(*arguments))
