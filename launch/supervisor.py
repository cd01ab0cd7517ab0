"""Supervises one run on workers that ssh reaches: starts it, follows it, and restarts it.

  machines ready? -> running already? -> copy, install, start -> follow worker 0
        ^                                                             |
        +-- interrupted and saved (exit status 75), or machine lost --+--> finished, or failed

A unit is what one ssh command reaches: a TPU slice with all its workers, or a host. The key of a
worker is 'unit/number'.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import os
import shlex
import signal
import subprocess
import tempfile
import threading
import time

import common
from common import INTERRUPTED, Options, fail, log, say

POLL_SECONDS = float(os.environ.get('CROSSIN_POLL_SECONDS', 20))  # between looks at the machines
# After one worker has ended badly: for the others to end, or for a lost machine to be noticed.
SETTLE_SECONDS = float(os.environ.get('CROSSIN_SETTLE_SECONDS', 90))
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_HINTS = {
  '2': ' (an option or a gin file is wrong)',
  '134': ' (it crashed)',
  '137': ' (killed, as the kernel does when memory is used up)',
  '139': ' (it crashed)',
}


@dataclasses.dataclass
class State:
  """How one run stands; keys are those of workers."""

  digest: str  # identifies the run on the workers
  units: int = 1
  worker_name: Callable[[str], str] = str  # of a key, for messages
  workers_per_unit: int = 0  # as workers report it; 0 before
  restarts: int = 0
  reason: str = ''  # why it has to restart
  started: bool = False  # it may be running
  rejoined: bool = False  # it was running before this script followed it
  deadline: float | None = None  # to judge the ends although some workers have not ended
  states: dict[str, str] = dataclasses.field(default_factory=dict)  # reported, by key
  installs: dict[str, str] = dataclasses.field(default_factory=dict)
  ends: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def workers(self) -> int:
    return self.units * self.workers_per_unit

  @property
  def failure(self) -> tuple[str, str] | None:
    """Key and exit status of the first worker that ended with an error."""
    good = ('0', str(INTERRUPTED), 'gone')
    return next((end for end in list(self.ends.items()) if end[1] not in good), None)

  def receive(self, line: str) -> str | None:
    """Takes a line of a worker; returns what to show of it.

    A report is '@crossin states|installs|ends|log KEY WORKERS_OF_THE_UNIT TEXT'.
    """
    if not line.startswith('@crossin '):
      return line
    _, word, key, count, text = line.split(' ', 4)
    if word == 'log':
      return f'{self.worker_name(key)} | {text}'
    self.workers_per_unit = int(count)
    getattr(self, word)[key] = text
    return None

  def running(self) -> str:
    """Where this run is running: nowhere, partly, everywhere; or 'other' if another run is."""
    running = [text for text in self.states.values() if text.startswith('running')]
    if any(text != f'running {self.digest}' for text in running):
      return 'other'
    if running:
      return 'everywhere' if len(running) == self.workers else 'partly'
    return 'nowhere'

  def time_to_judge(self, now: float) -> bool:
    """Whether all workers have ended, or the others have had their time since one has."""
    if self.deadline is None and self.failure:
      self.deadline = now + SETTLE_SECONDS
    elif self.deadline is None and str(INTERRUPTED) in self.ends.values():
      self.deadline = now + 4 * SETTLE_SECONDS  # the others may be saving
    overdue = self.deadline is not None and now >= self.deadline
    return overdue or 0 < self.workers <= len(self.ends)

  def judge(self, lost: str, answering: Callable[[], bool]) -> str:
    """What the ends of the workers mean: 'finished', 'failed' or 'restart', that with a `reason`.

    Args:
      lost: why machines are lost, or ''; it explains every error of the other workers.
      answering: whether all workers answer.
    """
    gone = [self.worker_name(key) for key, end in self.ends.items() if end == 'gone']
    if lost:
      self.reason = lost
    elif gone:
      self.reason = f'{gone[0]} lost its processes: its machine restarted'
    elif len(self.ends) < self.workers and not answering():
      self.reason = 'a worker no longer answers'
    elif self.failure:
      return 'failed'
    elif str(INTERRUPTED) in self.ends.values():
      self.reason = f'the run was interrupted and saved (exit status {INTERRUPTED})'
    else:
      return 'finished'
    return 'restart'


class Supervisor:
  """Supervises a run on machines.

  Args:
    options: of the script.
    machines: has `units` (names), `in_turn` (whether units may share a home), `ssh(unit, command)`
      and `scp(unit, file)` (the words of those commands, for all workers of a unit),
      `worker_flags(unit)` of worker.sh, `process_flags(unit, workers)` of `crossin` (0 workers in a
      dry run), `worker_name(key)`, `wait_until_ready()`, `before_copy()`, and `lost(thoroughly)`
      (why machines are lost, or '').
  """

  def __init__(self, options: Options, machines):
    self.options, self.machines = options, machines
    self.units = range(len(machines.units))
    self.state = State(common.digest(options), len(self.units), machines.worker_name)
    self.saved = False  # an interruption has stopped the run
    self._scratch = tempfile.TemporaryDirectory(prefix='crossin.')
    self._ssh_log = open(f'{self._scratch.name}/ssh.log', 'ab+')

  def attend(self, action: Callable[[], int]) -> int:
    """Runs an action to its end or an interruption; returns the exit status."""

    def interrupt(*_):
      raise common.Interrupted

    for number in _SIGNALS:
      if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
        signal.signal(number, interrupt)
    try:
      return action()
    except SystemExit as end:
      return int(end.code or 0)
    except common.Interrupted:
      with contextlib.suppress(common.Interrupted):  # a second time: leave at once
        self._interrupted()
      return INTERRUPTED
    finally:
      for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)

  def supervise(self) -> int:
    """Runs it to its end: 0 finished, 1 failed, 75 no restarts left. A dry run shows one start."""
    state, command, most = self.state, self.options.command, self.options.max_restarts
    if self.options.dry_run:
      return self._show_run()
    while True:
      self.machines.wait_until_ready()
      outcome = self._follow() if self._start() else 'restart'
      if outcome == 'finished':
        log(f'crossin {command} has finished on every worker')
        return 0
      if outcome == 'failed':
        key, status = state.failure
        say(
          f'{state.worker_name(key)} ended with exit status {status}{_HINTS.get(status, "")}. '
          'Its last lines are above, its full log is in ~/.crossin_run there'
        )
        log('stopping it on the other workers')
        self._on_all('stop', '30')
        return 1
      if state.restarts == most:
        say(
          f'{state.reason}. Not restarting: --max_restarts {most} is reached. '
          'The same command resumes from the last checkpoint'
        )
        return INTERRUPTED
      state.restarts += 1
      log(f'{state.reason}; restarting ({state.restarts} of at most {most})')

  def _show_run(self) -> int:
    print('# is the run running?')
    self._on_all('state')
    print('# if not: copy, install, start')
    self._copy()
    self._on_all('install', self.options.extra)
    self._on_all('start')
    print(
      f'# follow it until it has ended on every worker; after exit status {INTERRUPTED} or a loss, '
      f'restart, at most {self.options.max_restarts} times'
    )
    self._on_all('follow', 'start')
    return 0

  def show_state(self) -> int:
    self._on_all('state') or self._show_ssh_log()
    return self._show_states()

  def _show_states(self) -> int:
    for key, text in self.state.states.items():
      say(f'{self.state.worker_name(key)}: {text}')
    return 0

  def stop(self) -> int:
    if not self._on_all('stop', '900'):
      self._show_ssh_log()
      fail('not every worker was reached; their runs may continue')
    return self._show_states()

  def _interrupted(self) -> None:
    if not self.state.started:
      say('interrupted; the same command resumes')
    elif self.options.stop_on_interrupt:
      say('stopping the run, which saves first; Ctrl-C again leaves it running')
      self._on_all('stop', '900') or self._show_ssh_log()
      self.saved = True
      say('the run was stopped; the same command resumes it from its last checkpoint')
    else:
      say(
        'no longer following. THE RUN CONTINUES: the same command follows it again; '
        'with --stop it saves and stops'
      )

  def _command(self, unit: int, action: str, *words: str) -> str:
    """The shell command of an action of launch/worker.sh on a unit."""
    options, script = self.options, 'crossin_jax/launch/worker.sh'
    before = f'[ ! -e {script} ] || ' if action == 'state' else ''
    if action == 'install':  # unpacks or clones the project first, and keeps its .venv
      get = 'mkdir crossin_jax.new && tar -xzf crossin_jax.tar.gz -C crossin_jax.new'
      if options.repository:
        clone = shlex.join(['git', 'clone', '--quiet', options.repository, 'crossin_jax.new'])
        get = f'{clone} && git -C crossin_jax.new checkout --quiet {shlex.quote(options.ref)}'
      before = (
        f'rm -rf crossin_jax.new && {get}'
        ' && { [ ! -d crossin_jax/.venv ] || mv crossin_jax/.venv crossin_jax.new/.venv; }'
        ' && rm -rf crossin_jax && mv crossin_jax.new crossin_jax && '
      )
    if action == 'start':
      flags = self.machines.process_flags(unit, self.state.workers)
      words = (self.state.digest, *options.env, '--', options.command, *options.arguments, *flags)
    words = (*self.machines.worker_flags(unit), action, *words)
    return f'{before}bash {script} {shlex.join(words)}'

  @contextlib.contextmanager
  def _connected(self, units, *action):
    """Runs an action on all workers of units; gives the processes, and threads that read them."""
    self._ssh_log.truncate(0)
    with contextlib.ExitStack() as stack:
      pipes = {'stdout': subprocess.PIPE, 'stderr': self._ssh_log}
      words = [self.machines.ssh(unit, self._command(unit, *action)) for unit in units]
      processes = [stack.enter_context(common.started(each, **pipes)) for each in words]
      readers = [
        threading.Thread(target=self._read, args=[p.stdout], daemon=True) for p in processes
      ]
      for reader in readers:
        reader.start()
      yield processes, readers

  def _read(self, pipe) -> None:
    for line in pipe:
      text = self.state.receive(line.decode(errors='replace').removesuffix('\n'))
      if text is not None:
        say(text)

  def _on_all(self, *action: str, units=None) -> bool:
    """Runs an action on all workers; whether it succeeds on all."""
    units = self.units if units is None else units
    if self.options.dry_run:
      for unit in units:
        common.show(self.machines.ssh(unit, self._command(unit, *action)))
      return True
    self.state.states.clear()
    with self._connected(units, *action) as (processes, readers):
      for reader in readers:
        reader.join()
      return not any([process.wait() for process in processes])

  def _show_ssh_log(self) -> None:
    self._ssh_log.seek(0)
    lines = self._ssh_log.read().decode(errors='replace').splitlines()[-12:]
    if lines:
      say('\n  '.join(['the last lines of ssh:', *lines]))

  def _start(self) -> bool:
    """Starts the run on every worker, or finds it running; False, with a reason, if it cannot."""
    state = self.state
    if not self._find_workers():
      return False
    running = state.running()
    if running == 'other':
      fail('another run is running there: stop it with --stop, or use other machines', 2)
    state.rejoined = running == 'everywhere'
    if state.rejoined:
      log('the run is already running; following it')
      state.started = True
      return True
    if running == 'partly':
      log('the run is running on some workers only; stopping it, to start it on all')
      self._on_all('stop', '60')
    log('installing on every worker (some minutes the first time)')
    if not self._copy() or not self._install():
      return self._unreached('the project could not be copied to every worker')
    state.started = True
    if not self._on_all('start'):
      return self._unreached('the run could not be started on every worker')
    log(f'started crossin {self.options.command} on {state.workers} worker(s)')
    return True

  def _machines_lost(self) -> bool:
    self.state.reason = self.machines.lost()
    return bool(self.state.reason)

  def _unreached(self, reason: str) -> bool:
    """Returns False and notes why: machines are lost, or else a reason that ssh explains."""
    if not self._machines_lost():
      self._show_ssh_log()
      self.state.reason = reason
    return False

  def _find_workers(self) -> bool:
    """Asks all workers for their state until all answer; new machines need a while."""
    for attempt in range(1, 6):
      if self._on_all('state'):
        return True
      if self._machines_lost():
        return False
      log(f'not every worker answers (attempt {attempt} of 5)')
      time.sleep(POLL_SECONDS)
    return self._unreached('not every worker answers')

  def _copy(self) -> bool:
    options, package = self.options, f'{self._scratch.name}/crossin_jax.tar.gz'
    if options.repository:
      return True
    if options.dry_run:
      print('# tracked files, as crossin_jax.tar.gz')
      for unit in self.units:
        common.show(self.machines.scp(unit, os.path.basename(package)))
      return True
    common.pack(options, package)
    self.machines.before_copy()
    copies = (common.run(self.machines.scp(i, package), stderr=self._ssh_log) for i in self.units)
    return all(not copy.returncode for copy in copies)

  def _install(self) -> bool:
    installs = self.state.installs
    installs.clear()
    turns = [[unit] for unit in self.units] if self.machines.in_turn else [self.units]
    for turn in turns:
      if not self._on_all('install', self.options.extra, units=turn):
        break
    if 'broken' in installs.values():
      fail('installing failed on a worker; its last lines are above')
    return 0 < self.state.workers == len(installs)

  def _follow(self) -> str:
    """Shows the log of worker 0 until the run has ended: 'finished', 'failed' or 'restart'."""
    outcome, cuts, state = '', 0, self.state
    state.deadline = None
    state.ends.clear()
    while not outcome:
      with self._connected(self.units, 'follow', 'end' if state.rejoined else 'start') as connected:
        outcome = self._wait_for_outcome(connected[1])
      if outcome:
        break
      cuts += 1
      if self._machines_lost():
        outcome = 'restart'
      elif cuts > 5:
        self._unreached('the connection to the workers was lost again and again')
        outcome = 'restart'
      else:
        log('the connection to a worker was lost; the run continues. Reconnecting')
        time.sleep(POLL_SECONDS)
        state.rejoined = True
    state.started = False
    return outcome

  def _wait_for_outcome(self, readers: list[threading.Thread]) -> str:
    """The outcome, or '' if all connections have ended without one."""
    state, looked = self.state, time.monotonic()
    while True:
      time.sleep(min(1, max(POLL_SECONDS, 0.1)))
      connected = any(reader.is_alive() for reader in readers)  # before its last reports are judged
      now = time.monotonic()
      if state.time_to_judge(now):
        return state.judge(self.machines.lost(thoroughly=True), lambda: self._on_all('state'))
      if state.deadline is None and now - looked >= POLL_SECONDS:
        looked = now
        if self._machines_lost():
          return 'restart'
      if not connected:
        return ''
