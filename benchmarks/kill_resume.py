"""Kills a training run again and again and checks that nothing of it shows in the result.

    python benchmarks/kill_resume.py --kills 10

A run with asynchronous checkpoints and evaluation in the loop is first done undisturbed, then with
`kill -9` (or SIGTERM, or every fourth time SIGTERM) at random moments, restarted each time. The
final parameters must be bitwise those of the undisturbed run, and metrics.jsonl the same but for
timings. Prints one JSON object; exit status 1 on a difference.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
TIMINGS = ('seconds_per_step', 'tokens_per_second', 'loss_tokens_per_second', 'mfu')
MIXTURE = 'world.tested_shared_base.all.en_fi.every'


def prepare(work: pathlib.Path) -> pathlib.Path:
  """A small world, prepared; returns its data directory."""
  from crossin_jax.data.vocabulary import Vocabulary
  from crossin_jax.world import sources as world_sources
  from crossin_jax.world import world
  from seqio_tasks import mixtures
  from seqio_tasks.crossin import Preset
  from seqio_tasks.prepare import prepare as prepare_mixture

  small = world.World(languages=('en', 'fi'), tuning_entities=12, test_entities=24)
  world_sources.train_vocabulary(small, 600, str(work / 'world.model'))
  world_sources.write_questions(small, str(work / 'world'))
  settings = mixtures.MixtureSettings(
    parallel=world_sources.WorldInstructions(small),
    texts=world_sources.world_texts(small),
    vocabulary=Vocabulary(str(work / 'world.model')),
    presets=(Preset('every', assignment='every'),),
    template='plain',
    max_length=64,
  )
  prepare_mixture(MIXTURE, str(work / 'data'), settings, workers=1)
  return work / 'data'


def command(work: pathlib.Path, model_dir: pathlib.Path, steps: int) -> list[str]:
  """The `crossin train` command of the run."""
  values = {
    'DATA_DIR': str(work / 'data'),
    'MODEL_DIR': str(model_dir),
    'MIXTURE_OR_TASK_NAME': MIXTURE,
    'TRAIN_STEPS': steps,
    'BATCH_SIZE': 4,
    'DecoderConfig.vocab_size': 640,
    'DecoderConfig.embed_dim': 32,
    'DecoderConfig.mlp_dim': 64,
    'DROPOUT_RATE': 0.1,
    'train.log_period': 7,
    'train.evaluation_period': 20,
    'CheckpointConfig.period': 10,
    'CheckpointConfig.keep': 2,
    'QuestionsEvaluator.path': str(work / 'world' / 'questions.untagged.jsonl'),
    'QuestionsEvaluator.items': 8,
  }
  bindings = [f'--gin.{name}={value!r}' for name, value in values.items()]
  bindings.append('--gin.train.evaluators=(@HeldoutLoss(), @QuestionsEvaluator())')
  return [
    sys.executable,
    '-m',
    'crossin_jax.cli',
    'train',
    '--gin_file=gin_configs/runs/world_tune.gin',
    *bindings,
  ]


def result(model_dir: pathlib.Path, steps: int):
  """Final parameters as {path: array}, and the lines of metrics.jsonl without timings."""
  import jax
  import orbax.checkpoint as ocp

  tree = ocp.PyTreeCheckpointer().restore(model_dir / f'checkpoint_{steps}' / 'state')
  flat = {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
  from crossin_jax.storage.records import read_records

  lines = [
    {key: value for key, value in row.items() if key not in TIMINGS}
    for _, row in read_records(model_dir / 'metrics.jsonl')
  ]
  return flat, lines


def differences(wanted, found) -> list[str]:
  """What differs between two results, in words."""
  problems = []
  if wanted[0].keys() != found[0].keys():
    problems.append('the checkpoints have different leaves')
  else:
    problems += [
      f'{name} differs'
      for name in wanted[0]
      if wanted[0][name].tobytes() != found[0][name].tobytes()
    ]
  if wanted[1] != found[1]:
    problems.append(
      f'metrics.jsonl differs: {len(wanted[1])} lines undisturbed, {len(found[1])} lines killed'
    )
    problems += [f'  {a}\n  {b}' for a, b in zip(wanted[1], found[1]) if a != b][:2]
  return problems


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--kills', type=int, default=10)
  parser.add_argument('--steps', type=int, default=100)
  parser.add_argument('--signal', choices=('KILL', 'TERM', 'both'), default='KILL')
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  rng = random.Random(args.seed)
  with tempfile.TemporaryDirectory() as folder:
    work = pathlib.Path(folder)
    environment = os.environ | {
      'JAX_PLATFORMS': 'cpu',
      'JAX_ENABLE_COMPILATION_CACHE': 'true',
      'JAX_COMPILATION_CACHE_DIR': str(work / 'compiled'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    flags = os.environ.get('XLA_FLAGS', '').split()
    environment['XLA_FLAGS'] = ' '.join(flag for flag in flags if 'device_count' not in flag)
    prepare(work)
    # Twice: the second finds its programs compiled, as the restarts do, and gives the time to kill
    # within.
    for name in ('first', 'undisturbed'):
      started = time.monotonic()
      subprocess.run(
        command(work, work / name, args.steps),
        env=environment,
        check=True,
        capture_output=True,
        cwd=ROOT,
      )
      seconds = time.monotonic() - started
    wanted = result(work / 'undisturbed', args.steps)
    assert not differences(wanted, result(work / 'first', args.steps)), (
      'two undisturbed runs differ'
    )
    kills, starts, statuses, stop_seconds = 0, 0, [], []
    while True:
      starts += 1
      process = subprocess.Popen(
        command(work, work / 'killed', args.steps),
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
      )
      if kills < args.kills:
        kind = args.signal if args.signal != 'both' else 'TERM' if kills % 4 == 3 else 'KILL'
        # Anywhere from the imports to the last save.
        try:
          process.wait(rng.uniform(0.2, 1.0) * seconds)
        except subprocess.TimeoutExpired:
          signalled = time.monotonic()
          process.send_signal(getattr(signal, f'SIG{kind}'))
          process.wait()
          # A run that ended just before SIGKILL reached it was not killed.
          if kind == 'TERM' or process.returncode != 0:
            kills += 1
            stop_seconds.append(time.monotonic() - signalled)
            statuses.append(process.returncode)
            process.stderr.close()
            continue
        if process.returncode == 0:  # it finished before it was killed: begin another
          if differences(wanted, result(work / 'killed', args.steps)):
            break
          os.rename(work / 'killed', work / f'killed_{starts}')
          continue
      error = process.stderr.read().decode()
      process.wait()
      if process.returncode:
        print(error, file=sys.stderr)
        return 1
      break
    problems = differences(wanted, result(work / 'killed', args.steps))
    for problem in problems:
      print(problem, file=sys.stderr)
    print(
      json.dumps(
        {
          'kills': kills,
          'signal': args.signal,
          'starts': starts,
          'steps': args.steps,
          'seconds_undisturbed': round(seconds, 1),
          'seconds_to_stop_at_most': round(max(stop_seconds, default=0), 1),
          'exit_statuses': {str(s): statuses.count(s) for s in sorted(set(statuses))},
          'parameters_and_metrics_equal': not problems,
        }
      )
    )
    return 1 if problems else 0


if __name__ == '__main__':
  sys.exit(main())
