"""Runs the points of a sweep."""

import contextlib
import glob
import os
import socket
import sys
import time

from crossin_jax.progress import duration
from crossin_jax.storage import locks
from crossin_jax.storage.files import read_json, write_json
from crossin_jax.sweep.points import Data, Point, Settings, flag_of
from crossin_jax.workflow.jobs import StepFailed
from crossin_jax.workflow.steps import Task, run_missing


class Sweep:
  """One output directory and its points.

  Attributes:
    out: the directory.
    points: all points, including equal ones.
    runner: runs `crossin` commands, see `launchers.Launcher`.
    jobs: points at a time.
    failures: name of a point -> error.
  """

  def __init__(
    self,
    output_dir: str,
    settings: Settings,
    points: list[Point],
    runner,
    jobs: int = 1,
    search: str = '',
  ):
    self.out, self.settings, self.points = output_dir, settings, points
    self.runner, self.jobs = runner, jobs
    self.failures: dict[str, str] = {}
    self._search = [f'--gin_search_paths={search}'] if search else []
    self._started = time.monotonic()

  def folder(self, point: Point) -> str:
    """The folder of a point, by its digest: with other axes it may have another name."""
    parent = os.path.join(self.out, 'points')
    paths = glob.glob(os.path.join(glob.escape(parent), f'*-{point.digest}'))
    return paths[0] if paths else os.path.join(parent, f'{point.name}-{point.digest}')

  def evaluation(self, point: Point) -> str:
    """The folder of its answers and figures."""
    return os.path.join(self.folder(point), f'evaluation-{point.asked}')

  def result(self, point: Point) -> dict | None:
    """The result of a finished point, or None.

    Returns:
      {'mixture', 'seed', 'runs', 'heldout', 'seconds', 'settings'}.
    """
    path = os.path.join(self.evaluation(point), 'point.json')
    return read_json(path, 'start the sweep again') if os.path.exists(path) else None

  def missing(self) -> list[Point]:
    """The points to run, each of several equal ones once."""
    return [p for p in {p.digest: p for p in self.points}.values() if self.result(p) is None]

  def run(self) -> None:
    """Runs what is missing. Errors of points are printed and collected in `failures`.

    Raises:
      Interrupted: the runner was interrupted.
    """
    todo = self.missing()
    mixtures = {data.folder: data for p in todo for data in (p.data, p.heldout) if data}
    preparations = [
      Task(folder, lambda d=data: self._prepare(d), lambda d=data: self._prepared(d))
      for folder, data in mixtures.items()
    ]
    say = lambda _, result: self._say(str(result)) if isinstance(result, StepFailed) else None
    # One at a time, on all cores; the points, which need them, share the cores.
    unprepared = run_missing(preparations, tolerated=(StepFailed,), ended=say)
    tasks = []
    for point in todo:
      errors = [unprepared.get(data.folder) for data in (point.data, point.heldout) if data]
      if any(errors):
        self.failures[point.name] = str(next(filter(None, errors)))
      else:
        done = lambda p=point: self.result(p) is not None
        tasks.append(Task(point.digest, lambda p=point: self._run_point(p), done))
    names = {point.digest: point.name for point in todo}
    started, count = time.monotonic(), 0

    def report(task: Task, result) -> None:
      nonlocal count
      count += 1
      failed = isinstance(result, StepFailed)
      if failed:
        self.failures[names[task.name]] = str(result)
      left = (time.monotonic() - started) / count * (len(tasks) - count)
      self._say(
        f'{count}/{len(tasks)} {names[task.name]}: '
        f'{result if failed else f"done in {duration(result)}"}'
        f'{f"; {duration(left)} left" if left else ""}'
      )

    run_missing(tasks, self.jobs, (StepFailed,), report)

  def _prepared(self, data: Data) -> bool:
    path = os.path.join(self._data_folder(data), 'mixtures', f'{data.mixture}.json')
    return os.path.exists(path)

  def _prepare(self, data: Data) -> None:
    """Tokenises what a mixture lacks."""
    directory = self._data_folder(data)
    # Mixtures with equal tokens share them: they differ only in rates and volumes.
    tokens = os.path.abspath(os.path.join(self.out, 'tokens', data.tokens))
    os.makedirs(tokens, exist_ok=True)
    os.makedirs(directory, exist_ok=True)
    link = os.path.join(directory, 'tasks')
    if not os.path.islink(link):
      os.symlink(os.path.relpath(tokens, os.path.abspath(directory)), link)
    self._say(f'preparing {data.mixture}')
    arguments = ['prepare', f'--gin_file={self.settings.mixture_gin}', f'--mixture={data.mixture}']
    arguments += [f'--output_dir={directory}', *self._search]
    self.runner.run_here(f'prepare.{data.folder}', arguments, {}, data.flags)

  def _run_point(self, point: Point) -> float:
    """Trains and evaluates; returns the seconds of all starts."""
    folder, evaluation = self.folder(point), self.evaluation(point)
    write_json(os.path.join(folder, 'settings.json'), point.settings)
    if not os.path.exists(os.path.join(folder, 'trained')):
      with self._clock(folder):
        self.runner.send(self._data_folder(point.data))
        self.runner.run(*self.training(point))
      write_json(os.path.join(folder, 'trained'), True)
    if not os.path.exists(os.path.join(evaluation, 'figures.json')):
      with self._clock(folder):
        if point.heldout:
          self.runner.send(self._data_folder(point.heldout))
        self.runner.run(*self.measuring(point))
        self.runner.fetch(evaluation)
    read = lambda name: read_json(os.path.join(evaluation, name), 'delete that folder')
    runs = read('results.json')['runs'] if self.settings.questions else []
    seconds = self._seconds(folder)
    result = {'mixture': point.data.mixture, 'seed': point.seed, 'runs': runs, 'seconds': seconds}
    result |= {'heldout': read('figures.json'), 'settings': point.settings}
    write_json(os.path.join(evaluation, 'point.json'), result)
    return seconds

  def training(self, point: Point) -> tuple[str, list[str], dict, tuple[str, ...]]:
    """Log name, arguments, gin values and gin flags of its training, for `Launcher.run`."""
    arguments = ['train', f'--gin_file={self.settings.run_gin}', *self._search]
    log = f'train.{os.path.basename(self.folder(point))}'
    return log, arguments, self._values(point), point.flags

  def measuring(self, point: Point) -> tuple[str, list[str], dict, tuple[str, ...]]:
    """The same of its evaluation."""
    values, remote_path = self._values(point), self.runner.remote_path
    arguments = [
      'evaluate',
      f'--gin_file={self.settings.run_gin}',
      *self._search,
      f'--checkpoint={values["MODEL_DIR"]}',
      f'--output_dir={remote_path(self.evaluation(point))}',
      *[f'--questions={path}' for path in self.settings.questions_of(point.seed)],
      f'--variant={point.name}',
      f'--seed={point.seed}',
    ]
    flags = list(point.flags)
    if point.heldout:
      # The same rows for all points: held-out losses of different mixtures do not compare.
      folder = remote_path(self._data_folder(point.heldout))
      flags.append(flag_of('HeldoutLoss.data_dir', folder))
      flags.append(flag_of('HeldoutLoss.mixture', point.heldout.mixture))
    flags.append(f'--gin.train.evaluators={"(@HeldoutLoss(),)" if point.heldout else "()"}')
    return f'evaluate.{os.path.basename(self.folder(point))}', arguments, values, tuple(flags)

  def commands(self, point: Point) -> list[list[str]]:
    """The command lines of a point."""
    return [self.runner.command(*step) for step in (self.training(point), self.measuring(point))]

  def _values(self, point: Point) -> dict:
    return {
      'MODEL_DIR': self.runner.remote_path(os.path.join(self.folder(point), 'model')),
      'DATA_DIR': self.runner.remote_path(self._data_folder(point.data)),
      'MIXTURE_OR_TASK_NAME': point.data.mixture,
    }

  def _data_folder(self, data: Data) -> str:
    return os.path.join(self.out, 'data', data.folder)

  @contextlib.contextmanager
  def _clock(self, folder: str):
    """Adds the time spent inside to the folder's seconds, also if it fails."""
    started = time.monotonic()
    try:
      yield
    finally:
      seconds = self._seconds(folder) + time.monotonic() - started
      write_json(os.path.join(folder, 'seconds.json'), round(seconds, 3))

  def _seconds(self, folder: str) -> float:
    path = os.path.join(folder, 'seconds.json')
    return read_json(path, 'start again') if os.path.exists(path) else 0.0

  def _say(self, text: str) -> None:
    print(f'[{duration(time.monotonic() - self._started):>6}] {text}', file=sys.stderr, flush=True)


@contextlib.contextmanager
def exclusive(output_dir: str):
  """Locks OUT for this sweep; yields the file descriptor of the lock, for its commands to inherit.

  The lock is held as long as one of them runs. So a sweep waits for the commands of a killed one,
  which still use their MODEL_DIR.

  Raises:
    ValueError: a running sweep holds it.
  """
  path = os.path.join(output_dir, 'lock')
  with contextlib.ExitStack() as stack:
    try:
      file = stack.enter_context(locks.locked(path, output_dir))
    except locks.InUse as error:
      with open(path, 'rb') as locked:
        holder = locks.holder(locked)
      number, _, host = holder.removeprefix('process ').partition(' on ')
      if host != socket.gethostname() or os.path.exists(f'/proc/{number}'):
        raise ValueError(f'{error} --output_dir') from None
      print(f'waiting for the commands of {holder}, which are still running', file=sys.stderr)
      file = stack.enter_context(locks.locked(path, output_dir, wait=True))
    yield file.fileno()
