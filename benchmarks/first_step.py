"""Time from the command to the first logged step, with programs to compile and with compiled ones.

    python benchmarks/first_step.py [--rounds 3] [--model world_1m llama_60m]

Each round starts `crossin train` in a new MODEL_DIR, tells it to stop after its first step, and
starts the same command again: it then finds its checkpoint and its compiled programs. Prints one
JSON object a model with the median seconds of each part: imports, configuration, data, state
(initialise or restore), writer of metrics, trace, compile, step, their total; and the processor
time (user and system) until then, which other work on the machine changes less.
"""

import argparse
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
MIXTURE = 'world.tested_shared_base.all.en_fi.every'
# rows, tokens, gin file
SHAPES = {'world_1m': (16, 64, 'world_tune'), 'llama_60m': (2, 256, 'crossin_60m')}


def prepare(work: pathlib.Path) -> None:
  """A small world, tokenised."""
  from crossin_jax.data.vocabulary import Vocabulary
  from crossin_jax.world import sources as world_sources
  from crossin_jax.world import world
  from seqio_tasks import mixtures
  from seqio_tasks.crossin import Preset
  from seqio_tasks.prepare import prepare as prepare_mixture

  small = world.World(languages=('en', 'fi'))
  world_sources.train_vocabulary(small, 1500, str(work / 'world.model'))
  settings = mixtures.MixtureSettings(
    parallel=world_sources.WorldInstructions(small),
    texts=world_sources.world_texts(small),
    vocabulary=Vocabulary(str(work / 'world.model')),
    presets=(Preset('every', assignment='every'),),
    template='plain',
    max_length=64,
  )
  prepare_mixture(MIXTURE, str(work / 'data'), settings, workers=1)


def child(arguments: list[str]) -> None:
  """`crossin train` in this process; prints when each part ended, in seconds since the command was
  given.
  """
  began, marks, spent = float(os.environ['FIRST_STEP_BEGAN']), {}, []
  mark = lambda name: marks.setdefault(name, time.time() - began)

  from crossin_jax import cli, train
  from crossin_jax.training import compiled, metrics

  mark('imports')

  def timed(owner, name, before=None, after=None):
    real = getattr(owner, name)

    def wrapped(*args, **kwargs):
      if before:
        mark(before)
      result = real(*args, **kwargs)
      if after:
        mark(after)
      return result

    setattr(owner, name, wrapped)

  timed(train, 'PreparedMixture', before='configuration')
  timed(train, 'BatchStream', after='data')
  timed(compiled, 'in_thread', before='trace', after='compile')
  # The writer is opened when the state is there, initialised or restored.
  timed(metrics.MetricsWriter, '__init__', before='state', after='writer')
  write = metrics.MetricsWriter.write

  def first(writer, step, values):
    write(writer, step, values)
    mark('step')
    spent.append(time.process_time())
    os.kill(os.getpid(), signal.SIGTERM)

  metrics.MetricsWriter.write = first
  status = cli.main(['train', *arguments])
  print(json.dumps([marks, spent[0]]))
  sys.stdout.flush()
  os._exit(status)


def start(work: pathlib.Path, model_dir: pathlib.Path, model: str) -> dict[str, float]:
  """Runs the command until its first step; seconds of each part."""
  rows, tokens, run = SHAPES[model]
  values = {
    'DATA_DIR': str(work / 'data'),
    'MODEL_DIR': str(model_dir),
    'MIXTURE_OR_TASK_NAME': MIXTURE,
    'TRAIN_STEPS': 1000,
    'BATCH_SIZE': rows,
    'LENGTH': tokens,
    'train.log_period': 1,
  }
  command = [sys.executable, __file__, '--child', f'--gin_file=gin_configs/runs/{run}.gin']
  command += [f'--gin.{name}={value!r}' for name, value in values.items()]
  environment = os.environ | {'FIRST_STEP_BEGAN': repr(time.time())}
  environment.setdefault('JAX_PLATFORMS', 'cpu')
  done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
  if done.returncode != 75:
    raise RuntimeError(f'exit status {done.returncode}: {done.stderr[-2000:]}')
  marks, spent = json.loads(done.stdout.splitlines()[-1])
  parts, before = {}, 0.0
  for name, at in marks.items():
    parts[name], before = at - before, at
  return {**parts, 'total': before, 'processor': spent}


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--model', nargs='+', choices=[*SHAPES], default=[*SHAPES])
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    work = pathlib.Path(folder)
    prepare(work)
    for model in args.model:
      found = {'cold': [], 'warm': []}
      for number in range(args.rounds):
        for state in found:
          found[state].append(start(work, work / f'{model}{number}', model))
      median = {
        state: {part: round(statistics.median(run[part] for run in runs), 2) for part in runs[0]}
        for state, runs in found.items()
      }
      print(json.dumps({'model': model, 'rounds': args.rounds, **median}), flush=True)
  return 0


if __name__ == '__main__':
  if sys.argv[1:2] == ['--child']:
    child(sys.argv[2:])
  sys.exit(main())
