"""Supervises one run on workers that ssh reaches: starts it, follows it, and restarts it.

  machines ready? -> running already? -> copy, install, start -> follow worker 0
        ^                                                             |
        +-- interrupted and saved (exit status 75), or machine lost --+--> finished, or failed

A unit is what one ssh command reaches: a TPU slice with all its workers, or a host. The key of a
worker is 'unit/number'.
"""

import argparse
import collections
from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import os
import pathlib
import shlex
import signal
import subprocess
import tempfile
import threading
import time

import common
from common import INTERRUPTED, log, say

POLL_SECONDS = float(os.environ.get('CROSSIN_POLL_SECONDS', 20))  # between looks at the machines
# After one worker has ended badly: for the others to end, or for a lost machine to be noticed.
SETTLE_SECONDS = float(os.environ.get('CROSSIN_SETTLE_SECONDS', 90))
_TICK_SECONDS = min(1, max(POLL_SECONDS, 0.1))
_HINTS = {
  '2': ' (an option or a gin file is wrong)',
  '137': ' (killed, as the kernel does when memory is used up)',
  '134': ' (it crashed)',
  '139': ' (it crashed)',
}


class Machines:
  """The units of a run and how to reach them.

  Attributes:
    units: names of slices or hosts.
    install_in_turn: whether units may share a home, so that they may not install at once.
  """

  units: list[str]
  install_in_turn = False

  def ssh(self, unit: int, command: str) -> list[str]:
    """The command that runs a shell command on every worker of a unit."""
    raise NotImplementedError

  def scp(self, unit: int, file: str) -> list[str]:
    """The command that copies a file to the home of every worker, as crossin_jax.tar.gz."""
    raise NotImplementedError

  def worker_flags(self, unit: int) -> list[str]:
    """Flags of worker.sh that say which unit it is in."""
    raise NotImplementedError

  def process_flags(self, unit: int, workers: int) -> list[str]:
    """Flags of `crossin` that say which process it is; 0 workers in a dry run."""
    raise NotImplementedError

  def worker_name(self, key: str) -> str:
    raise NotImplementedError

  def wait_until_ready(self) -> None:
    """Returns when the machines exist."""

  def before_copy(self) -> None:
    """Prepares for `scp`."""

  def lost(self, thoroughly: bool = False) -> str:
    """Why machines are lost, or ''; `thoroughly` looks at each of them."""
    return ''


@dataclasses.dataclass
class State:
  """How one run stands.

  Attributes:
    digest: identifies the run on the workers.
    units: how many there are.
    max_restarts: how often it may restart.
    worker_name: what people call the worker of a key.
    restarts: how often it has restarted.
    reason: why it has to restart.
    started: whether it may be running now.
    rejoined: whether it was running before this script followed it.
    workers_per_unit: as workers report it; 0 before.
    deadline: when to judge the ends although some workers have not ended.
    reports: what workers last reported, by word (state, installed, broken, ended) and key.
  """

  digest: str
  units: int = 1
  max_restarts: int = 20
  worker_name: Callable[[str], str] = str
  restarts: int = 0
  reason: str = ''
  started: bool = False
  rejoined: bool = False
  workers_per_unit: int = 0
  deadline: float | None = None
  reports: dict[str, dict[str, str]] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(dict)
  )

  @property
  def workers(self) -> int:
    return self.units * self.workers_per_unit

  @property
  def failure(self) -> tuple[str, str] | None:
    """Key and exit status of the first worker that ended with an error."""
    good = ('0', str(INTERRUPTED), 'gone')
    return next((end for end in self.reports['ended'].items() if end[1] not in good), None)

  def receive(self, line: str) -> str:
    """Takes a line of a worker; returns what to show of it: a line of its log, or ''."""
    _, word, key, count, text = f'{line}    '.split(' ', 4)
    if word == 'log':
      return f'{self.worker_name(key)} | {text[:-4]}'
    self.workers_per_unit = int(count)
    self.reports[word][key] = text.strip()
    return ''

  def running(self) -> str:
    """Where this run is running: nowhere, partly, everywhere; or 'other' if another run is."""
    states = [text.split() for text in self.reports['state'].values()]
    digests = [state[1:] for state in states if state[:1] == ['running']]
    if any(found != [self.digest] for found in digests):
      return 'other'
    if not digests:
      return 'nowhere'
    return 'everywhere' if len(digests) == self.workers else 'partly'

  def time_to_judge(self, now: float) -> bool:
    """Whether all workers have ended, or the others have had their time since one has."""
    ended = self.reports['ended']
    if self.deadline is None and self.failure:
      self.deadline = now + SETTLE_SECONDS
    elif self.deadline is None and str(INTERRUPTED) in ended.values():
      self.deadline = now + 4 * SETTLE_SECONDS  # the others may be saving
    overdue = self.deadline is not None and now >= self.deadline
    return overdue or bool(ended) and len(ended) >= self.workers

  def judge(self, lost: str, answering: Callable[[], bool]) -> str:
    """What the ends of the workers mean together.

    A lost machine explains every error of the others.

    Args:
      lost: why machines are lost, or ''.
      answering: whether all workers answer.

    Returns:
      'finished', 'failed' or 'restart', the last with its `reason`.
    """
    ended = self.reports['ended']
    gone = next((key for key, status in ended.items() if status == 'gone'), None)
    if lost:
      return self.restart(lost)
    if gone:
      return self.restart(f'{self.worker_name(gone)} lost its processes: its machine restarted')
    if len(ended) < self.workers and not answering():
      return self.restart('a worker no longer answers')
    if self.failure:
      return 'failed'
    if str(INTERRUPTED) in ended.values():
      return self.restart(f'the run was interrupted and saved (exit status {INTERRUPTED})')
    return 'finished'

  def restart(self, reason: str) -> str:
    self.reason = reason
    return 'restart'


class Supervisor:
  """Supervises a run.

  Args:
    options: of the script.
    machines: where it runs.
  """

  def __init__(self, options: argparse.Namespace, machines: Machines):
    self.options, self.machines = options, machines
    self.saved = False  # an interruption has stopped the run
    self._scratch = tempfile.TemporaryDirectory(prefix='crossin.')
    self._ssh_log = open(pathlib.Path(self._scratch.name, 'ssh.log'), 'ab+')
    self._readers: list[threading.Thread] = []
    self.state = State(
      common.digest(options), len(machines.units), options.max_restarts, machines.worker_name
    )

  # ---- actions -----------------------------------------------------------------------------------

  def attend(self, action: Callable[[], int]) -> int:
    """Runs an action to its end or an interruption; returns the exit status."""
    common.raise_interrupted()
    try:
      return action()
    except SystemExit as end:
      return int(end.code or 0)
    except common.Interrupted:
      with contextlib.suppress(common.Interrupted):  # a second time: leave at once
        self._interrupted()
      return INTERRUPTED
    finally:
      for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

  def supervise(self) -> int:
    """Runs it to its end: 0 finished, 1 failed, 75 no restarts left."""
    command, most = self.options.command, self.options.max_restarts
    while True:
      self.machines.wait_until_ready()
      outcome = self._watch() if self._start() else 'restart'
      if outcome == 'finished':
        log(f'crossin {command} has finished on every worker')
        return 0
      if outcome == 'failed':
        self._explain_failure()
        log('stopping it on the other workers')
        self._on_all('stop', '30')
        return 1
      self.state.restarts += 1
      if self.state.restarts > most:
        say(
          f'{self.state.reason}. Not restarting: --max_restarts {most} is reached. '
          'The same command resumes from the last checkpoint'
        )
        return INTERRUPTED
      log(f'{self.state.reason}; restarting ({self.state.restarts} of at most {most})')

  def dry_run(self) -> None:
    """Prints the commands of one start."""
    common.note('is the run running?')
    self._on_all('state')
    common.note('if not: copy, install, start')
    self._install()
    self._start_all()
    common.note(
      f'follow it until it has ended on every worker; after exit status {INTERRUPTED} or a loss, '
      f'restart, at most {self.options.max_restarts} times'
    )
    self._on_all('follow', 'start')

  def show_state(self) -> int:
    if not self._on_all('state'):
      self._show_ssh_log()
    self._show_states()
    return 0

  def stop(self) -> int:
    if not self._on_all('stop', '900'):
      self._show_ssh_log()
      common.fail('not every worker was reached; their runs may continue')
    self._show_states()
    return 0

  def _show_states(self) -> None:
    for key, text in self.state.reports['state'].items():
      say(f'{self.machines.worker_name(key)}: {text}')

  # ---- every worker at once ----------------------------------------------------------------------

  def _worker(self, unit: int, *words: str) -> str:
    """The shell command of an action of launch/worker.sh; 'state' before it is there says nothing."""
    script, flags = 'crossin_jax/launch/worker.sh', self.machines.worker_flags(unit)
    command = f'bash {script} {shlex.join([*flags, *words])}'
    return f'[ ! -e {script} ] || {command}' if words[0] == 'state' else command

  @contextlib.contextmanager
  def _connected(self, units: Sequence[int], make) -> Iterator[list[subprocess.Popen]]:
    """Runs the shell command make(unit) on every worker of units, and reads what it prints."""
    with contextlib.ExitStack() as stack:
      pipes = {'stdout': subprocess.PIPE, 'stderr': self._ssh_log}
      processes = [
        stack.enter_context(common.started(self.machines.ssh(i, make(i)), **pipes)) for i in units
      ]
      self._readers = [
        threading.Thread(target=self._read, args=(p.stdout,), daemon=True) for p in processes
      ]
      for reader in self._readers:
        reader.start()
      yield processes

  def _read(self, pipe) -> None:
    """Lines '@crossin WORD KEY COUNT TEXT' are for the state; the rest is shown."""
    for raw in pipe:
      line = raw.decode(errors='replace').removesuffix('\n')
      line = self.state.receive(line) if line.startswith('@crossin ') else line
      if line or raw == b'\n':
        say(line)

  def _run(self, make, units: Sequence[int] = ()) -> bool:
    """Runs make(unit) on all units; whether all succeed."""
    units = units or range(len(self.machines.units))
    if self.options.dry_run:
      for unit in units:
        common.show(self.machines.ssh(unit, make(unit)))
      return True
    self._ssh_log.truncate(0)
    with self._connected(units, make) as processes:
      for reader in self._readers:
        reader.join()
      return not any([process.wait() for process in processes])

  def _on_all(self, *words: str) -> bool:
    """Runs an action of worker.sh on all workers, for new reports of their states."""
    self.state.reports.pop('state', None)
    return self._run(lambda unit: self._worker(unit, *words))

  def _show_ssh_log(self) -> None:
    self._ssh_log.seek(0)
    lines = self._ssh_log.read().decode(errors='replace').splitlines()[-12:]
    if lines:
      say('\n  '.join(['the last lines of ssh:', *lines]))

  # ---- start -------------------------------------------------------------------------------------

  def _start(self) -> bool:
    """Starts the run on every worker, or finds it running; False, with a reason, if it cannot."""
    state = self.state
    if not self._find_workers():
      return False
    running = state.running()
    if running == 'other':
      common.fail('another run is running there: stop it with --stop, or use other machines', 2)
    state.rejoined = running == 'everywhere'
    if state.rejoined:
      log('the run is already running; following it')
      state.started = True
      return True
    if running == 'partly':
      log('the run is running on some workers only; stopping it, to start it on all')
      self._on_all('stop', '60')
    log('installing on every worker (some minutes the first time)')
    if not self._install():
      return False
    state.started = True
    if not self._start_all():
      return self._unreached('the run could not be started on every worker')
    log(f'started crossin {self.options.command} on {state.workers} worker(s)')
    return True

  def _unreached(self, reason: str) -> bool:
    self.state.reason = self.machines.lost()
    if not self.state.reason:
      self._show_ssh_log()
      self.state.reason = reason
    return False

  def _find_workers(self) -> bool:
    """Asks all workers for their state until all answer; new machines need a while."""
    for attempt in range(1, 6):
      if self._on_all('state'):
        return True
      self.state.reason = self.machines.lost()
      if self.state.reason:
        return False
      log(f'not every worker answers (attempt {attempt} of 5)')
      time.sleep(POLL_SECONDS)
    return self._unreached('not every worker answers')

  def _install(self) -> bool:
    options, failed = self.options, 'the project could not be copied to every worker'
    units = range(len(self.machines.units))
    if not options.repository:
      package = os.path.join(self._scratch.name, 'crossin_jax.tar.gz')
      if options.dry_run:
        common.note('tracked files, as crossin_jax.tar.gz')
        for unit in units:
          common.show(self.machines.scp(unit, 'crossin_jax.tar.gz'))
      else:
        common.pack(options, package)
        self.machines.before_copy()
        scp = (self.machines.scp(unit, package) for unit in units)
        if any(common.run(words, stderr=self._ssh_log).returncode for words in scp):
          return self._unreached(failed)
    self.state.reports.clear()
    turns = [[unit] for unit in units] if self.machines.install_in_turn else [units]
    all(self._run(self._install_command, turn) for turn in turns)  # to the first that fails
    if options.dry_run or 0 < self.state.workers == len(self.state.reports['installed']):
      return True
    if self.state.reports['broken']:
      common.fail('installing failed on a worker; its last lines are above')
    return self._unreached(failed)

  def _install_command(self, unit: int) -> str:
    """Unpacks or clones the project, keeping its .venv, and installs it."""
    get = 'mkdir crossin_jax.new && tar -xzf crossin_jax.tar.gz -C crossin_jax.new'
    if self.options.repository:
      get = (
        f'{shlex.join(["git", "clone", "--quiet", self.options.repository, "crossin_jax.new"])} && '
        f'git -C crossin_jax.new checkout --quiet {shlex.quote(self.options.ref)}'
      )
    return (
      f'rm -rf crossin_jax.new && {get}'
      ' && { [ ! -d crossin_jax/.venv ] || mv crossin_jax/.venv crossin_jax.new/.venv; }'
      ' && rm -rf crossin_jax && mv crossin_jax.new crossin_jax && '
      + self._worker(unit, 'install', self.options.extra)
    )

  def _start_all(self) -> bool:
    options = self.options
    words = ['start', self.state.digest, *options.env, '--', options.command, *options.arguments]
    return self._run(
      lambda unit: self._worker(
        unit, *words, *self.machines.process_flags(unit, self.state.workers)
      )
    )

  # ---- follow ------------------------------------------------------------------------------------

  def _watch(self) -> str:
    """Shows the log of worker 0 until the run has ended: finished, failed or restart."""
    outcome, cuts, state = '', 0, self.state
    state.deadline = None
    state.reports.clear()
    while not outcome:
      where = 'end' if state.rejoined else 'start'
      self._ssh_log.truncate(0)
      follow = lambda unit, where=where: self._worker(unit, 'follow', where)
      with self._connected(range(state.units), follow):
        outcome = self._wait_for_outcome()
      if not outcome:
        cuts += 1
        outcome = self._connection_lost(cuts)
    state.started = False
    return outcome

  def _wait_for_outcome(self) -> str:
    """The outcome, or '' if all connections have ended without one."""
    state, readers, looked = self.state, self._readers, time.monotonic()
    while True:
      time.sleep(_TICK_SECONDS)
      connected = any(reader.is_alive() for reader in readers)  # before its last reports are judged
      now = time.monotonic()
      if state.time_to_judge(now):
        answering = lambda: self._on_all('state')
        return state.judge(self.machines.lost(thoroughly=True), answering)
      if state.deadline is None and now - looked >= POLL_SECONDS:
        looked = now
        lost = self.machines.lost()
        if lost:
          return state.restart(lost)
      if not connected:
        return ''

  def _connection_lost(self, cuts: int) -> str:
    lost = self.machines.lost()
    if lost:
      return self.state.restart(lost)
    if cuts > 5:
      self._show_ssh_log()
      return self.state.restart('the connection to the workers was lost again and again')
    log('the connection to a worker was lost; the run continues. Reconnecting')
    time.sleep(POLL_SECONDS)
    self.state.rejoined = True
    return ''

  def _explain_failure(self) -> None:
    key, status = self.state.failure or ('', '')
    say(
      f'{self.machines.worker_name(key)} ended with exit status {status}{_HINTS.get(status, "")}. '
      'Its last lines are above, its full log is in ~/.crossin_run there'
    )

  def _interrupted(self) -> None:
    if not self.state.started:
      say('interrupted; the same command resumes')
    elif self.options.stop_on_interrupt:
      say('stopping the run, which saves first; Ctrl-C again leaves it running')
      if not self._on_all('stop', '900'):
        self._show_ssh_log()
      self.saved = True
      say('the run was stopped; the same command resumes it from its last checkpoint')
    else:
      say(
        'no longer following. THE RUN CONTINUES: the same command follows it again; '
        'with --stop it saves and stops'
      )
