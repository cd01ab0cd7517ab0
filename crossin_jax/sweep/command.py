"""`crossin sweep`: ablations over gin values, as one table and one plot.

    axes x seeds -> points;  prepare each mixture once  ->  train and evaluate each point  ->
    sweep.json, .md, .png

Each step is a `crossin` command in a process, with its output in OUT/logs. Mixtures are prepared
here; points run here, on TPUs or as SLURM jobs (`workflow/launchers.py`). A point is identified by
a hash of everything it is made from. So a second start runs only what is missing, and a new value
of an axis adds only its points.
"""

import argparse
import json
import shlex
import sys

from crossin_jax import config
from crossin_jax.sweep import flags
from crossin_jax.sweep.points import Settings, bound_names, check_macros, make_points
from crossin_jax.sweep.running import Sweep, exclusive
from crossin_jax.workflow import command_line
from crossin_jax.workflow.jobs import Jobs
from crossin_jax.workflow.launchers import make_launcher


def read_settings(args: argparse.Namespace) -> tuple[Settings, tuple[str, ...]]:
  """The settings of the sweep, and the gin flags of its commands.

  A flag is of the sweep if it starts with 'sweep.' or if one of its gin files binds that name.
  """
  bound = set().union(*[bound_names(path, _search(args)) for path in args.gin_file])
  of_sweep, others = [], []
  for flag in args.gin_bindings:
    name = config.name_of(flag)
    (of_sweep if name in bound or name.startswith('sweep.') else others).append(flag)
  args.gin_bindings = of_sweep
  config.parse(args)
  settings = Settings()
  check_macros(settings, others, _search(args))
  return settings, tuple(others)


def _search(args: argparse.Namespace) -> tuple[str, ...]:
  return tuple(path for path in args.gin_search_paths.split(',') if path)


def main(argv: list[str]) -> int:
  """The command line of `crossin sweep`."""
  parser = flags.parser()
  args, others = parser.parse_known_args(argv)
  if args.fit:
    from crossin_jax.mixing_laws import fit

    return fit.main([args.output_dir, *(['--json'] if args.json else []), *others])
  parser.refuse(others)
  if not args.gin_file:
    parser.error('give the gin file of the sweep, such as gin_configs/ablations/world_volume.gin')
  args.jobs = (16 if args.launcher == 'slurm' else 1) if args.jobs is None else args.jobs
  if args.jobs < 1:
    parser.error('--jobs must be at least 1')
  settings, forwarded = read_settings(args)
  points = make_points(settings, forwarded, _search(args))
  jobs = Jobs(args.output_dir, args.jobs)
  launcher = make_launcher(args.launcher, jobs, args.launcher_args, args.remote_dir)
  sweep = Sweep(args.output_dir, settings, points, launcher, args.jobs, args.gin_search_paths)
  _print_plan(sweep, args.dry_run)
  if args.dry_run:
    if args.json:
      fields = lambda p: (p.name, p.data.mixture, sweep.folder(p), sweep.commands(p))
      names = ('name', 'mixture', 'directory', 'commands')
      plan = [dict(zip(names, fields(p))) for p in sweep.missing()]
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


def _print_plan(sweep: Sweep, commands: bool) -> None:
  """Prints how many points there are to run, with `commands` also each of them."""
  missing = {point.digest for point in sweep.missing()}
  distinct = {point.digest: point for point in sweep.points}
  for digest, point in distinct.items() if commands else ():
    state = 'to run' if digest in missing else 'done  '
    print(f'{state}  {point.name}  {point.data.mixture}', file=sys.stderr)
    for command in sweep.commands(point) if digest in missing else ():
      print(f'    {shlex.join(command)}', file=sys.stderr)
  same = len(sweep.points) - len(distinct)
  repeated = f' ({same} the same as another)' if same else ''
  print(
    f'{len(sweep.points)} points{repeated}, {len(missing)} to run -> {sweep.out}', file=sys.stderr
  )
