"""`crossin sweep`: ablations over gin values, as one table and one plot.

    axes x seeds -> points;  prepare each mixture once  ->  train and evaluate each point  ->
    sweep.json, .md, .png

Every step is a `crossin` command in a process of its own; its output lies in OUT/logs. Mixtures are
prepared here; points are run here, on TPUs or as SLURM jobs (`launchers.py`). A point is known by a
hash of all it is made from, so a second start does only what is missing, and a value added to an
axis runs only what is new.
"""

import argparse
import json
import shlex
import sys

from crossin_jax import config
from crossin_jax.sweep.points import Settings, bound_names, make_points
from crossin_jax.sweep.running import Sweep, exclusive
from crossin_jax.workflow import command_line
from crossin_jax.workflow.jobs import Jobs
from crossin_jax.workflow.launchers import make_launcher

# ---- the command ----


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
  parser = command_line.Parser(
    'sweep',
    'Train and evaluate every combination of gin values; one table with intervals and one plot. A '
    'second start does what is missing.',
    'crossin sweep --gin_file=gin_configs/ablations/world_volume.gin --output_dir '
    'runs/world_volume. A --gin flag that the file does not bind goes to training or to prepare: '
    '--gin.TRAIN_STEPS=20',
    gin=True,
  )
  parser.add_argument('--output_dir', default='runs/sweep', help='for everything')
  parser.add_argument(
    '--jobs',
    type=int,
    help='points at a time: the cores dealt out among them, a queued resource each, or a SLURM '
    'job each (default: 1; slurm: 16)',
  )
  parser.add_argument(
    '--launcher',
    choices=('local', 'tpu', 'slurm'),
    default='local',
    help='where points are run (default: here)',
  )
  parser.add_argument(
    '--launcher_args',
    default='',
    metavar='FLAGS',
    help='of launch/tpu_train.sh ("--name sweep --zone Z --accelerator_type T --spot '
    '--delete_when_done") or of sbatch '
    '("--gpus-per-node=8 --time=8:00:00")',
  )
  parser.add_argument(
    '--remote_dir', help='gs://BUCKET/FOLDER, which takes the place of --output_dir on TPUs'
  )
  parser.add_argument('--dry_run', action='store_true', help='print every command, and do nothing')
  parser.add_argument(
    '--fit', action='store_true', help='alias of `crossin fit OUTPUT_DIR`, whose flags it takes'
  )
  args, others = parser.parse_known_args(argv)
  if args.fit:
    from crossin_jax.mixing_laws import fit

    return fit.main([args.output_dir, *(['--json'] if args.json else []), *others])
  if others:
    parser.error(f'unrecognized arguments: {" ".join(others)}')
  if not args.gin_file:
    parser.error(
      'give the sweep by --gin_file, for instance gin_configs/ablations/world_volume.gin'
    )
  args.jobs = (16 if args.launcher == 'slurm' else 1) if args.jobs is None else args.jobs
  if args.jobs < 1:
    parser.error('--jobs must be at least 1')
  settings, flags = read_settings(args)
  points = make_points(
    settings, flags, tuple(path for path in args.gin_search_paths.split(',') if path)
  )
  jobs = Jobs(args.output_dir, args.jobs)
  launcher = make_launcher(args.launcher, jobs, args.launcher_args, args.remote_dir)
  sweep = Sweep(args.output_dir, settings, points, launcher, args.jobs, args.gin_search_paths)
  _tell(sweep, args.dry_run)
  if args.dry_run:
    if args.json:
      plan = [
        {
          'name': p.name,
          'mixture': p.data.mixture,
          'directory': sweep.folder(p),
          'commands': sweep.commands(p),
        }
        for p in sweep.missing()
      ]
      print(json.dumps({'points': len(points), 'to_run': plan}))
    return 0
  from crossin_jax.sweep import table as sweep_table

  with exclusive(args.output_dir) as lock:
    jobs.pass_fds = (lock,)
    try:
      with jobs.stopping_on_signals():
        sweep.run()
    finally:
      launcher.close()
    summary = sweep_table.write(sweep)
  print(f'\n{summary.pop("text")}', file=sys.stderr)
  for name, error in sweep.failures.items():
    print(f'\nFAILED {name}: {error}', file=sys.stderr)
  return command_line.finish(
    args, summary | {'failures': sweep.failures}, 1 if sweep.failures else 0
  )


def _tell(sweep: Sweep, every: bool) -> None:
  """What there is to do; every point by name if asked."""
  missing = {point.digest for point in sweep.missing()}
  distinct = {point.digest: point for point in sweep.points}
  for digest, point in distinct.items() if every else ():
    print(
      f'{"to run" if digest in missing else "done  "}  {point.name}  {point.data.mixture}',
      file=sys.stderr,
    )
    for command in sweep.commands(point) if digest in missing else ():
      print(f'    {shlex.join(command)}', file=sys.stderr)
  same = len(sweep.points) - len(distinct)
  print(
    f'{len(sweep.points)} points{f" ({same} the same as another)" if same else ""}, '
    f'{len(missing)} to run -> {sweep.out}',
    file=sys.stderr,
  )
