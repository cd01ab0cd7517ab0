"""All experiments of this folder, one after the other; a second start does what is missing.

    python benchmarks/evidence/run.py --output_dir runs/evidence --only worlds,reading,comparison
    python benchmarks/evidence/run.py --output_dir runs/dev --seeds 1000,1001 \\
      --world_gin benchmarks/evidence/dev.gin

Every experiment is a `crossin sweep` of a gin file in this folder; its results are in
OUT/<experiment>/sweep.json, and the comparison of the arms in OUT/comparison.*.json. If one fails,
those that need it do not run; the others do, and the exit status is 1.
"""

import argparse
import os
import subprocess
import sys

from crossin_jax.errors import CrossinError
from crossin_jax.processes.exit_status import RESTART
from crossin_jax.storage.files import read_json
from crossin_jax.workflow.jobs import StepFailed
from crossin_jax.workflow.steps import Task, run_missing

HERE = 'benchmarks/evidence'
# Experiment -> those whose output it reads.
EXPERIMENTS = {
  'worlds': (),
  'reading': ('worlds',),
  'comparison': ('worlds', 'reading'),
  'volume': ('worlds', 'reading'),
  'ratio': ('worlds', 'reading'),
  'longer': ('worlds', 'reading'),
  'proposal': ('worlds', 'reading'),
}


class Evidence:
  """One output directory."""

  def __init__(
    self, out: str, world_gin: str, seeds: tuple[int, ...], jobs: int, floor: bool, flags: list[str]
  ):
    self.out, self.world_gin, self.seeds, self.jobs, self.floor, self.flags = (
      out,
      world_gin,
      seeds,
      jobs,
      floor,
      flags,
    )

  def tasks(self, wanted: set[str]) -> list[Task]:
    """The experiments named in `wanted`; one that is not wanted counts as done before."""
    # No mark says that one is done: its sweep starts each time, and runs the points it lacks.
    return [
      Task(name, getattr(self, name), lambda: False, tuple(n for n in needs if n in wanted))
      for name, needs in EXPERIMENTS.items()
      if name in wanted
    ]

  def command(self, *words: str) -> None:
    """Runs a command of this Python.

    Raises:
      StepFailed: its status is not 0.
      SystemExit: it was interrupted.
    """
    print(f'+ {" ".join(words)}', file=sys.stderr, flush=True)
    status = subprocess.run([sys.executable, *words], check=False).returncode
    if status == RESTART or status < 0:  # interrupted, or killed by a signal
      sys.exit(RESTART if status == RESTART else 128 - status)
    if status:
      raise StepFailed(f'{" ".join(words[:3])} ... failed with status {status}, see above')

  def sweep(self, name: str, gin: str, **macros) -> None:
    """A sweep into OUT/name, its files those of OUT."""
    values = {'VOCABULARY': f'{self.out}/world.{{seed}}/world.model', 'WORLD_GIN': self.world_gin}
    if self.seeds:
      values['SEEDS'] = self.seeds
    forms = ('untagged', 'tagged') if gin == 'comparison' else ('untagged',)
    values['QUESTIONS'] = tuple(
      f'{self.out}/world.{{seed}}/questions.{form}.jsonl' for form in forms
    )
    flags = [f'--gin.{key}={value!r}' for key, value in {**values, **macros}.items()]
    words = [
      '-m',
      'crossin_jax.cli',
      'sweep',
      f'--gin_file={HERE}/{gin}.gin',
      f'--output_dir={self.out}/{name}',
    ]
    self.command(*words, f'--jobs={self.jobs}', *flags, *self.flags)

  def tune(self, name: str, gin: str, **macros) -> None:
    """A sweep from the models that have read."""
    start = {'INITIAL_CHECKPOINT_PATH': f'{self.out}/read.{{seed}}'}
    self.sweep(name, gin, **{**start, **macros})

  def worlds(self) -> None:
    seeds = [f'--seeds={",".join(map(str, self.seeds))}'] if self.seeds else []
    self.command(
      f'{HERE}/worlds.py', f'--gin_file={self.world_gin}', *seeds, f'--output_dir={self.out}'
    )

  def reading(self) -> None:
    self.sweep('reading', 'reading', TELL=(True, False) if self.floor else (True,))
    path = os.path.join(self.out, 'reading', 'sweep.json')
    for point in read_json(path, 'run the experiment `reading` again')['points']:
      link = os.path.join(
        self.out, f'{"read" if point["values"]["TELL_TESTED"] else "read_floor"}.{point["seed"]}'
      )
      if os.path.islink(link):
        os.unlink(link)
      os.symlink(os.path.join('reading', point['directory'], 'model'), link)

  def comparison(self) -> None:
    self.tune('comparison', 'comparison')
    points, against = [f'--points={self.out}/comparison'], ['Base', 'Mono']
    if self.floor:
      base = {'VARIANTS': ('tested_shared_base',), 'TELL_TESTED': False}
      self.tune(
        'floor', 'comparison', INITIAL_CHECKPOINT_PATH=f'{self.out}/read_floor.{{seed}}', **base
      )
      points.insert(0, f'--points=Floor={self.out}/floor')
      against.insert(0, 'Floor')
    for form in ('untagged', 'tagged'):
      for relation in (None, *self.tested()):
        name = '.'.join(filter(None, ('comparison', form, relation)))
        about = [f'--relation={relation}'] if relation else []
        self.command(
          f'{HERE}/compare.py', *points, f'--against={",".join(against)}', f'--form={form}', *about,
          f'--output={self.out}/{name}.json',
        )  # fmt: skip

  def tested(self) -> list[str]:
    """The relations that are asked about."""
    folder = os.path.join(self.out, f'world.{self.seeds[0] if self.seeds else 0}')
    remedy = 'run the experiment `worlds` first'
    return read_json(os.path.join(folder, 'world.json'), remedy)['tested_relations']

  def volume(self) -> None:
    self.tune('volume', 'volume')

  def ratio(self) -> None:
    self.tune('ratio', 'ratio')

  def longer(self) -> None:
    """Three times the steps of the comparison."""
    variants = ('tested_shared_base', 'tested_shared_base_mono', 'tested_shared_base_x2x')
    self.tune('longer', 'comparison', VARIANTS=variants, TRAIN_STEPS=900)

  def proposal(self) -> None:
    self.tune('proposal', 'proposal')


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--output_dir', default='runs/evidence')
  parser.add_argument(
    '--world_gin', default=f'{HERE}/world.gin', help='the setting (default: %(default)s)'
  )
  parser.add_argument(
    '--seeds',
    help='each a world and a training seed (default: those of the files, 0,1,2 or 0,1,2,3,4)',
  )
  parser.add_argument('--only', default=','.join(EXPERIMENTS), help='of: %(default)s')
  parser.add_argument(
    '--no_floor',
    action='store_true',
    help='without models that never read what is asked: half of the reading',
  )
  parser.add_argument(
    '--jobs', type=int, default=len(os.sched_getaffinity(0)), help='runs at a time (default: cores)'
  )
  args, flags = parser.parse_known_args(argv)
  wanted = set(args.only.split(','))
  if unknown := wanted - set(EXPERIMENTS):
    parser.error(f'--only: {", ".join(sorted(unknown))} is none of {", ".join(EXPERIMENTS)}')
  if stray := [flag for flag in flags if not flag.startswith('--gin.')]:
    parser.error(f'unknown arguments: {" ".join(stray)}')
  seeds = tuple(map(int, args.seeds.split(','))) if args.seeds else ()
  evidence = Evidence(args.output_dir, args.world_gin, seeds, args.jobs, not args.no_floor, flags)
  failures = run_missing(evidence.tasks(wanted), tolerated=(CrossinError,))
  for name, error in failures.items():
    print(f'FAILED {name}: {error}', file=sys.stderr)
  return 1 if failures else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
