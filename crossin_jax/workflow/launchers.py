"""Runs the points of a sweep on this machine, on TPUs, or as SLURM jobs.

prepare (here) -> send -> train, evaluate (there) -> fetch -> table (here)
"""

import argparse
import ast
from collections.abc import Mapping, Sequence
import os
import queue
import re
import shlex
import subprocess
import sys
import threading
import time

from crossin_jax import config
from crossin_jax.errors import Interrupted
from crossin_jax.storage.files import read_json, write_json
from crossin_jax.workflow import jobs as jobs_lib
from crossin_jax.workflow.jobs import Jobs, StepFailed

ROOT = config.REPOSITORY  # with launch/


class Launcher:
  """Runs every command on this machine; the base of the other launchers.

  Attributes:
    jobs: the processes of this machine.
  """

  def __init__(self, jobs: Jobs):
    self.jobs = jobs

  def run_here(
    self, log: str, arguments: Sequence[str], values: Mapping, bindings: Sequence[str]
  ) -> None:
    """Runs a `crossin` command on this machine, with all its cores; raises as `Jobs.run`."""
    self.jobs.run(log, arguments, values, bindings, all_cores=True)

  def run(
    self, log: str, arguments: Sequence[str], values: Mapping, bindings: Sequence[str]
  ) -> None:
    """Runs a `crossin` command of a point; raises as `Jobs.run`."""
    self.jobs.run(log, arguments, values, bindings)

  def command(
    self, log: str, arguments: Sequence[str], values: Mapping, bindings: Sequence[str]
  ) -> list[str]:
    """The command line that `run` runs."""
    del log
    return self.jobs.command(arguments, values, bindings)

  def remote_path(self, path: str) -> str:
    """The path under which commands find a path below OUT."""
    return path

  def send(self, folder: str) -> None:
    """Uploads a folder below OUT for the commands."""

  def fetch(self, folder: str) -> None:
    """Downloads what commands wrote into a folder below OUT."""

  def close(self) -> None:
    """Called after the last point, and after an interruption."""


class Tpu(Launcher):
  """Runs each command by launch/tpu_train.sh, on as many queued resources as there are jobs.

  Attributes:
    remote_dir: gs://bucket/folder, which replaces OUT.
    flags: of launch/tpu_train.sh.
  """

  def __init__(self, jobs: Jobs, flags: Sequence[str], remote_dir: str):
    super().__init__(jobs)
    if not re.match(r'\w+://', remote_dir):
      raise config.ConfigError(
        '--launcher tpu needs --remote_dir gs://BUCKET/FOLDER, to which the workers and this '
        'machine have access'
      )
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument('--name')
    parser.add_argument('--zone')
    parser.add_argument('--project')
    parser.add_argument('--delete_when_done', action='store_true')
    known, self.flags = parser.parse_known_args(list(flags))
    if not (known.name and known.zone):
      raise config.ConfigError(
        '--launcher tpu needs --launcher_args="--name NAME --zone ZONE --accelerator_type TYPE ..."'
      )
    self._launch = _launch_script('tpu_train.sh')
    self.remote_dir = remote_dir.rstrip('/')
    self._delete = known.delete_when_done
    self._location = [
      '--zone',
      known.zone,
      *(['--project', known.project] if known.project else []),
    ]
    self._all = [known.name] if jobs.jobs == 1 else [f'{known.name}-{k}' for k in range(jobs.jobs)]
    self._free: queue.Queue = queue.Queue()
    for name in self._all:
      self._free.put(name)
    self._used: set[str] = set()
    self._sent: set[str] = set()
    self._sending = threading.Lock()

  def run(self, log, arguments, values, bindings):
    name = self._free.get()
    self._used.add(name)
    try:
      command = self._command(name, arguments, values, bindings)
      # In a new session, so that Ctrl-C reaches it once, by `Jobs`.
      self.jobs.execute(log, command, start_new_session=True)
    finally:
      self._free.put(name)

  def command(self, log, arguments, values, bindings):
    return self._command(self._all[0], arguments, values, bindings)

  def _command(self, name: str, arguments, values, bindings) -> list[str]:
    arguments, included = self._portable(arguments)
    _refuse_local_folders(bindings)
    script = self._script(name, *self.flags, '--command', arguments[0], '--stop_on_interrupt')
    # Points of the same shape compile once.
    script += ['--env', f'JAX_COMPILATION_CACHE_DIR={self.remote_dir}/compiled']
    script += [word for path in included for word in ('--include', path)]
    return [*script, '--', *jobs_lib.flags(arguments[1:], values, bindings)]

  def _script(self, name: str, *flags: str) -> list[str]:
    return ['bash', self._launch, '--name', name, *self._location, *flags]

  def _portable(self, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments with the paths of question files on the workers, and these files, to be copied."""
    portable, included = [], []
    for argument in arguments:
      flag, _, path = argument.partition('=')
      if flag == '--questions':
        path = os.path.relpath(path, ROOT)
        if path.startswith('..'):
          raise config.ConfigError(
            f'sweep.questions: {path} must be below {ROOT}, to be copied to the workers'
          )
        included.append(path)
        argument = f'{flag}={path}'
      portable.append(argument)
    return portable, included

  def remote_path(self, path):
    return f'{self.remote_dir}/{os.path.relpath(path, self.jobs.output_dir)}'

  def send(self, folder):
    with self._sending:
      if folder in self._sent:
        return
      # rsync skips links, and the folder of tokens is one.
      for name in sorted(os.listdir(folder)):
        path = os.path.realpath(os.path.join(folder, name))
        if os.path.isdir(path):
          self._storage('rsync', '--recursive', path, f'{self.remote_path(folder)}/{name}')
        else:
          self._storage('cp', path, f'{self.remote_path(folder)}/{name}')
      self._sent.add(folder)

  def fetch(self, folder):
    os.makedirs(folder, exist_ok=True)
    self._storage('rsync', '--recursive', self.remote_path(folder), folder)

  def _storage(self, *words: str) -> None:
    command = ['gcloud', 'storage', *words]
    result = subprocess.run(
      command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if result.returncode:
      raise StepFailed(f'{shlex.join(command)} failed:\n{result.stderr[-1500:]}')

  def close(self):
    for name in sorted(self._used):
      delete = self._script(name, '--delete')
      if self._delete:
        subprocess.run(delete, check=False, stdin=subprocess.DEVNULL)
      else:
        print(
          f'{name} may still exist and cost money; to delete it:\n  {shlex.join(delete)}',
          file=sys.stderr,
        )


class Slurm(Launcher):
  """Runs each command as a job of launch/slurm_train.sbatch; OUT must be on a shared disk.

  OUT/jobs has the running jobs, so that a sweep that starts again waits for them instead of
  submitting new ones.

  Attributes:
    flags: of sbatch.
  """

  def __init__(self, jobs: Jobs, flags: Sequence[str]):
    super().__init__(jobs)
    self.flags, self._launch = list(flags), _launch_script('slurm_train.sbatch')
    self._poll = float(os.environ.get('CROSSIN_POLL_SECONDS', 30))

  def run(self, log, arguments, values, bindings):
    note = os.path.join(self.jobs.output_dir, 'jobs', f'{log}.json')
    job = read_json(note, 'delete it')['job'] if os.path.exists(note) else None
    if job is None:
      if self.jobs.stopped:
        raise Interrupted(f'step {log} was not started')
      job = self._submit(self.command(log, arguments, values, bindings))
      write_json(note, {'job': job})
    state = 'PENDING'
    while state in _WAITING:
      while self._queued(job):
        if self.jobs.stopped:
          raise Interrupted(f'step {log} continues as job {job}')
        time.sleep(self._poll)
      state = self._end(job)
      if state in ('PREEMPTED', 'NODE_FAIL'):  # SLURM may requeue it
        time.sleep(self._poll)
        state = 'PENDING' if self._queued(job) else state
    os.remove(note)
    if state != 'COMPLETED':
      path = self.jobs.log_path(log)
      raise StepFailed(
        f'step {log} failed: job {job} is {state}; its log {path} ends:\n{self.jobs.log_end(log)}'
      )

  def command(self, log, arguments, values, bindings):
    path = os.path.abspath(self.jobs.log_path(log))
    submit = ['sbatch', '--parsable', f'--chdir={ROOT}', f'--job-name={log}', f'--output={path}']
    arguments = [re.sub('^(--questions|--gin_file)=(.*)', _absolute, word) for word in arguments]
    words = jobs_lib.flags(arguments[1:], values, bindings)
    return [*submit, *self.flags, self._launch, '--command', arguments[0], '--', *words]

  def remote_path(self, path):
    return os.path.abspath(path)

  def _submit(self, command: list[str]) -> str:
    os.makedirs(os.path.join(self.jobs.output_dir, 'logs'), exist_ok=True)
    environment = os.environ | self.jobs.environment
    result = subprocess.run(
      command, check=False, capture_output=True, text=True, cwd=ROOT, env=environment
    )
    if result.returncode:
      raise StepFailed(f'{shlex.join(command)} failed:\n{result.stderr[-1500:]}')
    return result.stdout.strip().split(';')[0]  # JOB, or JOB;CLUSTER

  def _queued(self, job: str) -> bool:
    """Whether the job is queued or running; squeue fails for a job that ended some time ago."""
    command = ['squeue', '--noheader', '--format=%T', f'--jobs={job}', '--states=all']
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode and 'nvalid job id' not in result.stderr:
      print(f'{shlex.join(command)} failed, retrying: {result.stderr.strip()}', file=sys.stderr)
      return True
    return any(state in _WAITING for state in result.stdout.split())

  def _end(self, job: str) -> str:
    """The final state; accounting may lag behind, or may not be installed."""
    for _ in range(10):
      for command in (
        ['sacct', '--noheader', '--parsable2', '--allocations', '--format=State', f'--jobs={job}'],
        ['scontrol', 'show', 'job', job],
      ):
        try:
          text = subprocess.run(command, check=False, capture_output=True, text=True).stdout
        except FileNotFoundError:
          continue
        match = re.search(r'(?:JobState=|^)([A-Z_]+)', text.strip())
        if match and match[1] not in _WAITING:
          return match[1]
      time.sleep(min(self._poll, 5))
    return 'in an unknown state'


# States of a job that has not ended.
_WAITING = (
  'PENDING', 'RUNNING', 'COMPLETING', 'CONFIGURING', 'SUSPENDED', 'REQUEUED', 'REQUEUE_HOLD',
  'REQUEUE_FED', 'RESIZING',
  'SIGNALING', 'STAGE_OUT', 'STOPPED', 'SPECIAL_EXIT', 'RESV_DEL_HOLD',
)  # fmt: skip


def make_launcher(
  name: str, jobs: Jobs, arguments: str = '', remote_dir: str | None = None
) -> Launcher:
  """Creates a launcher.

  Args:
    name: 'local', 'tpu' or 'slurm'.
    jobs: the processes of this machine.
    arguments: flags of launch/tpu_train.sh or of sbatch, as a shell reads them.
    remote_dir: see `Tpu`.

  Raises:
    ConfigError: a flag that this launcher needs is missing, or it does not have that flag.
  """
  words = shlex.split(arguments)
  if name == 'tpu':
    return Tpu(jobs, words, remote_dir or '')
  if remote_dir:
    raise config.ConfigError('--remote_dir is for --launcher tpu')
  if name == 'slurm':
    return Slurm(jobs, words)
  if words:
    raise config.ConfigError('--launcher_args is for --launcher tpu and slurm')
  return Launcher(jobs)


def _absolute(match: re.Match) -> str:
  """An absolute path, if it exists; gin files of the repository are found by name."""
  return f'{match[1]}={os.path.abspath(match[2])}' if os.path.exists(match[2]) else match[0]


def _refuse_local_folders(bindings: Sequence[str]) -> None:
  """Refuses values that name a folder of this machine, which a worker does not have."""
  for binding in bindings:
    name, _, text = binding.partition('=')
    try:
      value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
      value = text  # NAME=VALUE without quotes
    if isinstance(value, str) and os.sep in value and os.path.isdir(value) and not _tracked(value):
      raise config.ConfigError(
        f'{name} = {value!r} is a folder of this machine; copy it to a bucket and name that'
      )


def _launch_script(name: str) -> str:
  """The path of a script of launch/, which the wheel does not have."""
  if not os.path.isfile(path := os.path.join(ROOT, 'launch', name)):
    raise config.ConfigError(
      f'this launcher needs launch/{name}, and {ROOT} is not a clone of the project; clone it, '
      '`pip install --editable` it, and start the sweep again'
    )
  return path


def _tracked(path: str) -> bool:
  """Whether git tracks it, so that workers have it too."""
  command = ['git', '-C', ROOT, 'ls-files', '--error-unmatch', os.path.abspath(path)]
  return subprocess.run(command, check=False, capture_output=True).returncode == 0
