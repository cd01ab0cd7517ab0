"""Runs `crossin` commands as processes, each on its share of the cores and with its own log."""

from collections.abc import Mapping, Sequence
import contextlib
import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading

from crossin_jax.errors import CrossinError, Interrupted
from crossin_jax.processes import exit_status

PERIOD = 30.0  # seconds between two lines about a command that runs


class StepFailed(CrossinError, RuntimeError):
  """A command failed; the message names its log, or stands below the command's own message."""

  def __init__(self, message: str, exit_status: int = 1):
    """Args:
    message: for the user.
    exit_status: of the command.
    """
    super().__init__(message)
    self.exit_status = exit_status


class Jobs:
  """Runs `crossin` commands, at most `jobs` at a time, from any number of threads.

  Attributes:
    output_dir: logs go to output_dir/logs, compiled programs to output_dir/compiled.
    jobs: commands at a time, each on its own cores: small matrices gain little from threads.
    environment: variables for the commands, in addition to those of this process.
    pass_fds: open files that the commands inherit.
  """

  def __init__(self, output_dir: str, jobs: int = 1, environment: Mapping[str, str] | None = None):
    self.output_dir, self.jobs, self.pass_fds = output_dir, jobs, ()
    self.environment = {
      'JAX_COMPILATION_CACHE_DIR': os.path.abspath(os.path.join(output_dir, 'compiled')),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
      **(environment or {}),
    }
    cores = sorted(os.sched_getaffinity(0))
    self._every_core = set(cores)
    self._cores: queue.Queue = queue.Queue()
    for i in range(jobs):
      self._cores.put(set(cores[i::jobs]) or set(cores))
    self._running: set[subprocess.Popen] = set()
    self._stopped = False

  def run(
    self,
    log: str,
    arguments: Sequence[str],
    values: Mapping | None = None,
    bindings: Sequence[str] = (),
    all_cores: bool = False,
  ) -> None:
    """Runs one command and waits for it.

    Args:
      log: name of the log, without folder and `.log`.
      arguments: the command and its flags: ['train', '--gin_file=...'].
      values: gin values: {'TRAIN_STEPS': 20} becomes --gin.TRAIN_STEPS=20.
      bindings: further flags.
      all_cores: use every core, without waiting for a share.

    Raises:
      StepFailed: the exit status is not 0.
      Interrupted: `stop` was called.
    """
    self.execute(
      log, self.command(arguments, values, bindings), self._every_core if all_cores else None
    )

  def command(
    self, arguments: Sequence[str], values: Mapping | None = None, bindings: Sequence[str] = ()
  ) -> list[str]:
    """The command line that `run` runs."""
    return [sys.executable, '-m', 'crossin_jax.cli', *flags(arguments, values, bindings)]

  def execute(
    self,
    log: str,
    command: Sequence[str],
    cores: set[int] | None = None,
    start_new_session: bool = False,
  ) -> None:
    """Runs any command on the given cores, or on a share of them; raises as `run` does."""
    path = self.log_path(log)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    share = self._cores.get() if cores is None else cores
    try:
      if self._stopped:
        raise Interrupted(f'step {log} was not started')
      with open(path, 'w', encoding='utf-8') as f:
        f.write(shlex.join(command) + '\n')
        f.flush()
        process = subprocess.Popen(
          command,
          stdout=f,
          stderr=subprocess.STDOUT,
          env=os.environ | self.environment,
          pass_fds=self.pass_fds,
          start_new_session=start_new_session,
        )
        self._running.add(process)
        os.sched_setaffinity(process.pid, share)
        if self._stopped:  # `stop` was called since the check above
          process.send_signal(signal.SIGTERM)
        status = self._wait(process, log)
        self._running.discard(process)
    finally:
      if cores is None:
        self._cores.put(share)
    if status and self._stopped:
      raise Interrupted(f'step {log} was interrupted')
    if status:
      raise StepFailed(
        f'step {log} failed with status {status}; its log {path} ends:\n{self.log_end(log)}'
      )

  def _wait(self, process: subprocess.Popen, log: str) -> int:
    """Waits for a command, and prints the last line of its log every `PERIOD` seconds."""
    while True:
      try:
        return process.wait(timeout=PERIOD)
      except subprocess.TimeoutExpired:
        if line := self.log_end(log).rstrip().rpartition('\n')[2]:
          print(f'{log}: {line}', file=sys.stderr, flush=True)

  def show(self, step: str, arguments: Sequence[str], answers: Sequence[int] = ()) -> dict:
    """Runs one command on every core, with its messages on the stderr of this process.

    Args:
      step: name of the step, for messages.
      arguments: the command and its flags; `--json` is added.
      answers: exit statuses besides 0 by which the command answers, where it prints an object.

    Returns:
      The JSON object that the command prints.

    Raises:
      StepFailed: the exit status is not 0. Interrupted: `stop` was called, or the command was
        interrupted by itself.
    """
    command = self.command([*arguments, '--json'])
    # Ctrl-C on a terminal reaches this process alone, which forwards it once.
    with subprocess.Popen(
      command, stdout=subprocess.PIPE, text=True, encoding='utf-8',
      env=os.environ | self.environment, start_new_session=True,
    ) as process:  # fmt: skip
      self._running.add(process)
      if self._stopped:
        process.send_signal(signal.SIGTERM)
      result = {}
      for line in process.stdout:
        try:
          result = json.loads(line)
        except ValueError:
          print(line, end='', file=sys.stderr, flush=True)
      status = process.wait()
      self._running.discard(process)
    if status and (self._stopped or status == exit_status.RESTART):
      raise Interrupted(f'step {step} was interrupted')
    if status and not (status in answers and result):
      raise StepFailed(
        f'step {step} failed with status {status}, see above; correct it, and start the same '
        'command again to continue',
        status if status > 0 else 1,
      )
    return result

  def log_path(self, log: str) -> str:
    """Path of a log."""
    return os.path.join(self.output_dir, 'logs', f'{log}.log')

  def log_end(self, log: str) -> str:
    """The last lines of a log; '' without one."""
    try:
      with open(self.log_path(log), encoding='utf-8', errors='replace') as f:
        return ''.join(f.readlines()[-15:])
    except FileNotFoundError:
      return ''

  @property
  def stopped(self) -> bool:
    """Whether `stop` was called."""
    return self._stopped

  def stop(self, number: int = signal.SIGTERM) -> None:
    """Sends a signal to every running command and starts no more; `run` raises Interrupted."""
    self._stopped = True
    for process in list(self._running):
      process.send_signal(number)

  @contextlib.contextmanager
  def stopping_on_signals(self):
    """Forwards SIGTERM and SIGINT to the commands as SIGTERM, from the second on as SIGKILL.

    It does nothing outside the main thread, where Python does not handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
      yield
      return
    forward = lambda *_: self.stop(signal.SIGKILL if self._stopped else signal.SIGTERM)
    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
      yield
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)


def flags(
  arguments: Sequence[str], values: Mapping | None = None, bindings: Sequence[str] = ()
) -> list[str]:
  """['train'], {'TRAIN_STEPS': 20} -> ['train', '--gin.TRAIN_STEPS=20']."""
  values = [f'--gin.{name}={value!r}' for name, value in (values or {}).items()]
  return [*arguments, *values, *bindings]
