"""Running the points of a sweep."""

import concurrent.futures
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


class Sweep:
  """One output directory and the points that fill it.

  Attributes:
    out: the directory.
    points: all points, equal ones included.
    runner: runs `crossin` commands, see `launchers.Launcher`.
    jobs: points at a time.
    failures: name of a point -> what went wrong.
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
    self.out, self.settings, self.points, self.runner, self.jobs = (
      output_dir,
      settings,
      points,
      runner,
      jobs,
    )
    self.failures: dict[str, str] = {}
    self._search = [f'--gin_search_paths={search}'] if search else []
    self._started = time.monotonic()

  def folder(self, point: Point) -> str:
    """Where a point lies, found by its digest: other axes may have given it another name."""
    parent = os.path.join(self.out, 'points')
    found = glob.glob(os.path.join(glob.escape(parent), f'*-{point.digest}'))
    return found[0] if found else os.path.join(parent, f'{point.name}-{point.digest}')

  def evaluation(self, point: Point) -> str:
    """Where its answers and figures lie."""
    return os.path.join(self.folder(point), f'evaluation-{point.asked}')

  def result(self, point: Point) -> dict | None:
    """What a finished point gave: {'mixture', 'seed', 'runs', 'heldout', 'seconds', 'settings'};
    None = not finished.
    """
    path = os.path.join(self.evaluation(point), 'point.json')
    return read_json(path, 'start the sweep again') if os.path.exists(path) else None

  def missing(self) -> list[Point]:
    """The points that are to be run, equal ones once."""
    return [p for p in {p.digest: p for p in self.points}.values() if self.result(p) is None]

  def run(self) -> None:
    """Runs what is missing. What fails is said and kept in `failures`; the rest goes on.

    Raises:
      Interrupted: the runner was told to stop.
    """
    todo = self.missing()
    wanted = {data.folder: data for p in todo for data in (p.data, p.heldout) if data}
    unprepared = {
      folder: error for folder, data in wanted.items() if (error := self._prepare(data))
    }
    ready = []
    for point in todo:
      errors = [
        unprepared[d.folder] for d in (point.data, point.heldout) if d and d.folder in unprepared
      ]
      if errors:
        self.failures[point.name] = errors[0]
      else:
        ready.append(point)
    begun = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
      futures = {pool.submit(self._point, point): point for point in ready}
      for count, future in enumerate(concurrent.futures.as_completed(futures), start=1):
        point = futures[future]
        try:
          verdict = f'done in {duration(future.result())}'
        except StepFailed as error:
          self.failures[point.name] = verdict = str(error)
        except BaseException:
          pool.shutdown(wait=False, cancel_futures=True)
          raise
        left = (time.monotonic() - begun) / count * (len(ready) - count)
        self._say(
          f'{count}/{len(ready)} {point.name}: '
          f'{verdict}{f"; {duration(left)} left" if left else ""}'
        )

  def _prepare(self, data: Data) -> str | None:
    """Tokenises what of a mixture is not there yet; returns what went wrong."""
    directory = self._data_folder(data)
    if os.path.exists(os.path.join(directory, 'mixtures', f'{data.mixture}.json')):
      return None
    # Mixtures whose tokens are made alike share them: other rates and volumes are other mixtures of
    # the same tasks.
    tokens = os.path.abspath(os.path.join(self.out, 'tokens', data.tokens))
    os.makedirs(tokens, exist_ok=True)
    os.makedirs(directory, exist_ok=True)
    link = os.path.join(directory, 'tasks')
    if not os.path.islink(link):
      os.symlink(os.path.relpath(tokens, os.path.abspath(directory)), link)
    self._say(f'preparing {data.mixture}')
    arguments = ['prepare', f'--gin_file={self.settings.mixture_gin}', f'--mixture={data.mixture}']
    arguments += [f'--output_dir={directory}', *self._search]
    try:
      self.runner.run_here(f'prepare.{data.folder}', arguments, {}, data.flags)
    except StepFailed as error:
      self._say(str(error))
      return str(error)
    return None

  def _point(self, point: Point) -> float:
    """Trains and evaluates; returns the seconds it took over all starts."""
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
        self.runner.run(*self.asking(point))
        self.runner.fetch(evaluation)
    runs = []
    if self.settings.questions:
      runs = read_json(os.path.join(evaluation, 'results.json'), 'delete that folder')['runs']
    seconds = self._seconds(folder)
    result = {'mixture': point.data.mixture, 'seed': point.seed, 'runs': runs, 'seconds': seconds}
    result['heldout'] = read_json(os.path.join(evaluation, 'figures.json'), 'delete that folder')
    write_json(os.path.join(evaluation, 'point.json'), {**result, 'settings': point.settings})
    return seconds

  def training(self, point: Point) -> tuple[str, list[str], dict, tuple[str, ...]]:
    """What trains it: name of the log, arguments, gin values and gin flags, as `Launcher.run` takes
    them.
    """
    arguments = ['train', f'--gin_file={self.settings.run_gin}', *self._search]
    return (
      f'train.{os.path.basename(self.folder(point))}',
      arguments,
      self._values(point),
      point.flags,
    )

  def asking(self, point: Point) -> tuple[str, list[str], dict, tuple[str, ...]]:
    """What evaluates it, likewise."""
    values, place = self._values(point), self.runner.place
    arguments = [
      'evaluate',
      f'--gin_file={self.settings.run_gin}',
      *self._search,
      f'--checkpoint={values["MODEL_DIR"]}',
    ]
    arguments.append(f'--output_dir={place(self.evaluation(point))}')
    arguments += [f'--questions={path}' for path in self.settings.questions_of(point.seed)]
    arguments += [f'--variant={point.name}', f'--seed={point.seed}']
    flags = list(point.flags)
    if point.heldout:
      # One set of rows for every point: held-out losses of different mixtures do not compare.
      flags.append(flag_of('HeldoutLoss.data_dir', place(self._data_folder(point.heldout))))
      flags.append(flag_of('HeldoutLoss.mixture', point.heldout.mixture))
    flags.append(f'--gin.train.evaluators={"(@HeldoutLoss(),)" if point.heldout else "()"}')
    return f'evaluate.{os.path.basename(self.folder(point))}', arguments, values, tuple(flags)

  def commands(self, point: Point) -> list[list[str]]:
    """The words of the commands that a point takes."""
    return [self.runner.command(*step) for step in (self.training(point), self.asking(point))]

  def _values(self, point: Point) -> dict:
    return {
      'MODEL_DIR': self.runner.place(os.path.join(self.folder(point), 'model')),
      'DATA_DIR': self.runner.place(self._data_folder(point.data)),
      'MIXTURE_OR_TASK_NAME': point.data.mixture,
    }

  def _data_folder(self, data: Data) -> str:
    return os.path.join(self.out, 'data', data.folder)

  @contextlib.contextmanager
  def _clock(self, folder: str):
    """Adds the time spent inside to the folder's; only what SIGKILL cuts short is not counted."""
    begun = time.monotonic()
    try:
      yield
    finally:
      write_json(
        os.path.join(folder, 'seconds.json'),
        round(self._seconds(folder) + time.monotonic() - begun, 3),
      )

  def _seconds(self, folder: str) -> float:
    path = os.path.join(folder, 'seconds.json')
    return read_json(path, 'start again') if os.path.exists(path) else 0.0

  def _say(self, text: str) -> None:
    print(f'[{duration(time.monotonic() - self._started):>6}] {text}', file=sys.stderr, flush=True)


@contextlib.contextmanager
def exclusive(output_dir: str):
  """Holds OUT for this sweep; yields the lock's file descriptor, which its commands inherit.

  The lock is held while any of them lives. So a sweep that was killed without its commands is
  waited for: started again at once, it would find their MODEL_DIR in use.

  Raises:
    ValueError: a sweep that is alive holds it.
  """
  path = os.path.join(output_dir, 'lock')
  with contextlib.ExitStack() as stack:
    try:
      file = stack.enter_context(locks.locked(path, output_dir))
    except locks.InUse as error:
      with open(path, 'rb') as held:
        holder = locks.holder(held)
      number, _, host = holder.removeprefix('process ').partition(' on ')
      if host != socket.gethostname() or os.path.exists(f'/proc/{number}'):
        raise ValueError(f'{error} --output_dir') from None
      print(f'waiting for the commands that {holder} left running', file=sys.stderr)
      file = stack.enter_context(locks.locked(path, output_dir, wait=True))
    yield file.fileno()
