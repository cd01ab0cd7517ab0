"""`crossin sweep`: ablations over gin values, as one table and one plot.

    axes x seeds -> points;  prepare each mixture once  ->  train and evaluate each point  ->  sweep.json, .md, .png

Every step is a `crossin` command in a process of its own; its output lies in OUT/logs. Mixtures are prepared here; points are
run here, on TPUs or as SLURM jobs (`launchers.py`). A point is known by a hash of all it is made from, so a second start does
only what is missing, and a value added to an axis runs only what is new.
"""

import argparse
import concurrent.futures
import contextlib
import glob
import json
import os
import shlex
import socket
import sys
import time

from crossin_jax import config, sweep_fit
from crossin_jax.data.prepared import read_json, write_json
from crossin_jax.jobs import Jobs, StepFailed, Stopped
from crossin_jax.launchers import make_launcher
from crossin_jax.metrics import duration
from crossin_jax.sweep_points import Data, Point, Settings, bound_names, flag_of, make_points

RESTART = 75  # exit status of a sweep that was told to stop


class Sweep:
  """One output directory and the points that fill it.

  Attributes:
    out: the directory.
    points: all points, equal ones included.
    runner: runs `crossin` commands, see `launchers.Launcher`.
    jobs: points at a time.
    failures: name of a point -> what went wrong.
  """

  def __init__(self, output_dir: str, settings: Settings, points: list[Point], runner, jobs: int = 1, search: str = ''):
    self.out, self.settings, self.points, self.runner, self.jobs = output_dir, settings, points, runner, jobs
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
    """What a finished point gave: {'mixture', 'seed', 'runs', 'heldout', 'seconds', 'settings'}; None = not finished."""
    path = os.path.join(self.evaluation(point), 'point.json')
    return read_json(path, 'start the sweep again') if os.path.exists(path) else None

  def missing(self) -> list[Point]:
    """The points that are to be run, equal ones once."""
    return [p for p in {p.digest: p for p in self.points}.values() if self.result(p) is None]

  def run(self) -> None:
    """Runs what is missing. What fails is said and kept in `failures`; the rest goes on.

    Raises:
      Stopped: the runner was told to stop.
    """
    todo = self.missing()
    wanted = {data.folder: data for p in todo for data in (p.data, p.heldout) if data}
    unprepared = {folder: error for folder, data in wanted.items() if (error := self._prepare(data))}
    ready = []
    for point in todo:
      errors = [unprepared[d.folder] for d in (point.data, point.heldout) if d and d.folder in unprepared]
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
        self._say(f'{count}/{len(ready)} {point.name}: {verdict}{f"; {duration(left)} left" if left else ""}')

  def _prepare(self, data: Data) -> str | None:
    """Tokenises what of a mixture is not there yet; returns what went wrong."""
    directory = self._data_folder(data)
    if os.path.exists(os.path.join(directory, 'mixtures', f'{data.mixture}.json')):
      return None
    # Mixtures whose tokens are made alike share them: other rates and volumes are other mixtures of the same tasks.
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
    """What trains it: name of the log, arguments, gin values and gin flags, as `Launcher.run` takes them."""
    arguments = ['train', f'--gin_file={self.settings.run_gin}', *self._search]
    return f'train.{os.path.basename(self.folder(point))}', arguments, self._values(point), point.flags

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
      write_json(os.path.join(folder, 'seconds.json'), round(self._seconds(folder) + time.monotonic() - begun, 3))

  def _seconds(self, folder: str) -> float:
    path = os.path.join(folder, 'seconds.json')
    return read_json(path, 'start again') if os.path.exists(path) else 0.0

  def _say(self, text: str) -> None:
    print(f'[{duration(time.monotonic() - self._started):>6}] {text}', file=sys.stderr, flush=True)


@contextlib.contextmanager
def exclusive(output_dir: str):
  """Holds OUT for this sweep; yields the lock's file descriptor, which its commands inherit.

  The lock is held while any of them lives. So a sweep that was killed without its commands is waited for: started again
  at once, it would find their MODEL_DIR in use.

  Raises:
    ValueError: a sweep that is alive holds it.
  """
  import fcntl

  os.makedirs(output_dir, exist_ok=True)
  with open(os.path.join(output_dir, 'lock'), 'a+', encoding='utf-8') as f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      f.seek(0)
      holder = f.read().strip()
      number, _, host = holder.partition(' on ')
      if host != socket.gethostname() or os.path.exists(f'/proc/{number}'):
        raise ValueError(
          f'{output_dir} is in use by process {holder}; wait for it, or give another --output_dir'
        ) from None
      print(f'waiting for the commands that process {holder} left running', file=sys.stderr)
      fcntl.flock(f, fcntl.LOCK_EX)
    f.truncate(0)
    f.write(f'{os.getpid()} on {socket.gethostname()}')
    f.flush()
    yield f.fileno()


# ---- the command ---------------------------------------------------------------------------------------------------


def read_settings(args: argparse.Namespace) -> tuple[Settings, tuple[str, ...]]:
  """The sweep's settings, and the gin flags that are not its own but its commands'.

  A flag is the sweep's own if it begins with 'sweep.' or if one of its gin files binds that name.
  """
  search = tuple(path for path in args.gin_search_paths.split(',') if path)
  own = set().union(*[bound_names(path, search) for path in args.gin_file])
  mine = lambda flag: (name := flag.split('=')[0].strip()) in own or name.startswith('sweep.')
  others = tuple(flag for flag in args.gin_bindings if not mine(flag))
  args.gin_bindings = [flag for flag in args.gin_bindings if mine(flag)]
  config.parse(args)
  try:
    return Settings(), others
  except RuntimeError as error:  # gin's word for a value that is required and not given
    raise config.ConfigError(f'{error}\n  Start from a file in gin_configs/ablations') from None


def main(argv: list[str]) -> int:
  """The command line of `crossin sweep`."""
  parser = argparse.ArgumentParser(
    prog='crossin sweep',
    description='Train and evaluate every combination of gin values; one table with intervals and one plot. A second start '
    'does what is missing. Exit status: 0 done, 75 told to stop (start again), 1 some point failed, 2 usage.',
    epilog='example: crossin sweep --gin_file=gin_configs/ablations/world_volume.gin --output_dir runs/world_volume. '
    'A --gin flag that the file does not bind goes to training or to prepare: --gin.TRAIN_STEPS=20',
  )
  parser.add_argument('--output_dir', default='runs/sweep', help='for everything (default: %(default)s)')
  parser.add_argument(
    '--jobs',
    type=int,
    help='points at a time: the cores dealt out among them, a queued resource each, or a SLURM job each (default: 1; slurm: 16)',
  )
  parser.add_argument(
    '--launcher', choices=('local', 'tpu', 'slurm'), default='local', help='where points are run (default: here)'
  )
  parser.add_argument(
    '--launcher_args',
    default='',
    metavar='FLAGS',
    help='of launch/tpu_train.sh ("--name sweep --zone Z --accelerator_type T --spot --delete_when_done") or of sbatch '
    '("--gpus-per-node=8 --time=8:00:00")',
  )
  parser.add_argument('--remote_dir', help='gs://BUCKET/FOLDER, which takes the place of --output_dir on TPUs')
  parser.add_argument('--dry_run', action='store_true', help='print every command, and do nothing')
  parser.add_argument('--json', action='store_true', help='one JSON object as last line on stdout')
  sweep_fit.add_flags(parser)
  config.add_flags(parser)
  args = parser.parse_args(argv)
  if args.fit:
    return sweep_fit.run(args)
  if not args.gin_file:
    parser.error('give the sweep by --gin_file, for instance gin_configs/ablations/world_volume.gin')
  args.jobs = (16 if args.launcher == 'slurm' else 1) if args.jobs is None else args.jobs
  if args.jobs < 1:
    parser.error('--jobs must be at least 1')
  settings, flags = read_settings(args)
  points = make_points(settings, flags, tuple(path for path in args.gin_search_paths.split(',') if path))
  jobs = Jobs(args.output_dir, args.jobs)
  launcher = make_launcher(args.launcher, jobs, args.launcher_args, args.remote_dir)
  sweep = Sweep(args.output_dir, settings, points, launcher, args.jobs, args.gin_search_paths)
  _tell(sweep, args.dry_run)
  if args.dry_run:
    if args.json:
      plan = [
        {'name': p.name, 'mixture': p.data.mixture, 'directory': sweep.folder(p), 'commands': sweep.commands(p)}
        for p in sweep.missing()
      ]
      print(json.dumps({'points': len(points), 'to_run': plan}))
    return 0
  from crossin_jax import sweep_table

  with exclusive(args.output_dir) as lock:
    jobs.pass_fds = (lock,)
    try:
      with jobs.stopping_on_signals():
        sweep.run()
    except Stopped as error:
      print(f'told to stop ({error}); start the same command again to go on', file=sys.stderr)
      return RESTART
    finally:
      launcher.close()
    summary = sweep_table.write(sweep)
  print(f'\n{summary.pop("text")}', file=sys.stderr)
  for name, error in sweep.failures.items():
    print(f'\nFAILED {name}: {error}', file=sys.stderr)
  if args.json:
    print(json.dumps(summary | {'failures': sweep.failures}))
  return 1 if sweep.failures else 0


def _tell(sweep: Sweep, every: bool) -> None:
  """What there is to do; every point by name if asked."""
  missing = {point.digest for point in sweep.missing()}
  distinct = {point.digest: point for point in sweep.points}
  for digest, point in distinct.items() if every else ():
    print(f'{"to run" if digest in missing else "done  "}  {point.name}  {point.data.mixture}', file=sys.stderr)
    for command in sweep.commands(point) if digest in missing else ():
      print(f'    {shlex.join(command)}', file=sys.stderr)
  same = len(sweep.points) - len(distinct)
  print(
    f'{len(sweep.points)} points{f" ({same} the same as another)" if same else ""}, {len(missing)} to run -> {sweep.out}',
    file=sys.stderr,
  )
