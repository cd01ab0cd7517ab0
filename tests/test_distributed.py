"""One run over several processes: the same losses, and a run goes on with another number of them."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


STEPS, SAVED = 12, 6  # of a whole run; at which of them it is saved


@pytest.fixture(scope='module')
def train(tiny_prepared, tmp_path_factory):
  """A function (model_dir, processes, **options) that runs `crossin train` in that many processes: losses by step."""
  directory, mixture = tiny_prepared
  compiled = tmp_path_factory.mktemp('compiled')
  flags = [flag for flag in os.environ['XLA_FLAGS'].split() if 'device_count' not in flag]

  def run(model_dir, processes, *, microbatches=1, devices=1, mesh='(1, -1, 1)', more=()):
    values = {
      'DATA_DIR': directory,
      'MODEL_DIR': str(model_dir),
      'MIXTURE_OR_TASK_NAME': mixture,
      'TRAIN_STEPS': STEPS,
      'schedule.warmup_steps': 2,
      'BATCH_SIZE': 8,
      'train.log_period': 1,
      'train.microbatches': microbatches,
      'CheckpointConfig.period': SAVED,
      'CheckpointConfig.keep': 2,
      'DecoderConfig.embed_dim': 32,
      'DecoderConfig.mlp_dim': 64,
    }
    with socket.socket() as s:
      s.bind(('127.0.0.1', 0))
      address = f'127.0.0.1:{s.getsockname()[1]}'
    environment = os.environ | {
      'XLA_FLAGS': ' '.join([*flags, f'--xla_force_host_platform_device_count={devices}']),
      'JAX_ENABLE_COMPILATION_CACHE': 'true',
      'JAX_COMPILATION_CACHE_DIR': str(compiled),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    running = []
    for index in range(processes):
      command = [sys.executable, '-m', 'crossin_jax.cli', 'train', '--gin_file=gin_configs/runs/world_tune.gin']
      command += [f'--gin.{name}={value!r}' for name, value in values.items()]
      command += [f'--gin.MESH_SHAPE={mesh}', '--gin.train.evaluators=()', '--gin.train.evaluation_period=0', *more]
      if processes > 1:
        command += [f'--coordinator_address={address}', f'--process_count={processes}', f'--process_index={index}']
      running.append(
        subprocess.Popen(
          command, env=environment, cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
      )
    errors = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0] * processes, errors[0][-2000:]
    with open(os.path.join(model_dir, 'metrics.jsonl'), encoding='utf-8') as f:
      return {row['step']: row['loss'] for row in map(json.loads, f) if 'loss' in row}

  return run


@pytest.fixture(scope='module')
def alone(train, tmp_path_factory):
  """Losses of the run in one process."""
  losses = train(tmp_path_factory.mktemp('alone') / 'run', 1)
  assert list(losses) == list(range(1, STEPS + 1)) and losses[STEPS] < losses[1]
  return losses


@pytest.fixture(scope='module')
def on_two(train, tmp_path_factory):
  """MODEL_DIR and losses of the run in two processes."""
  model_dir = tmp_path_factory.mktemp('two') / 'run'
  return model_dir, train(model_dir, 2, microbatches=2)


def equal(found, wanted):
  assert list(found) == list(wanted)
  np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=1e-5)


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(alone, on_two):
  equal(on_two[1], alone)


@pytest.mark.slow
@pytest.mark.parametrize('processes, options', [
    (4, {'mesh': '(2, 2, 1)'}),
    (1, {'microbatches': 4, 'devices': 2, 'mesh': '(1, 1, 2)'}),
])  # fmt: skip
def test_losses_do_not_depend_on_processes_and_mesh(train, alone, tmp_path, processes, options):
  equal(train(tmp_path / 'run', processes, **options), alone)


@pytest.mark.slow
@pytest.mark.parametrize('processes, mesh', [(1, '(1, -1, 1)'), (4, '(2, 1, 2)')])
def test_a_run_saved_on_two_processes_goes_on(train, alone, on_two, tmp_path, processes, mesh):
  """As if the two had been killed after their save at half of the steps: the lines after it are done again."""
  shutil.copytree(on_two[0], tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / f'checkpoint_{STEPS}')
  (tmp_path / 'run' / 'digests' / f'checkpoint_{STEPS}.json').unlink()
  path = tmp_path / 'run' / 'metrics.jsonl'
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(''.join(lines[: SAVED + 2]))  # and half of the next line
  with path.open('a') as f:
    f.write(lines[SAVED + 2][:20])
  equal(train(tmp_path / 'run', processes, mesh=mesh), alone)


def test_flags_go_together(capsys):
  from crossin_jax import cli

  assert cli.main(['train', '--process_count=2']) == 1
  assert 'go together' in capsys.readouterr().err
  assert cli.main(['train', '--coordinator_address=127.0.0.1:1', '--process_count=2', '--process_index=2']) == 1
  assert 'not between 0 and 1' in capsys.readouterr().err


@pytest.mark.slow
def test_a_benchmark_in_training_asks_the_same_on_all_hosts(train, tmp_path):
  """A budget of nothing ends after the first slice on each host, or they would wait for each other for ever."""
  choices = [f'({letter}) {letter}' for letter in 'ABCD']
  item = lambda i, language: {'question': f'{language} {i}?', 'choices': choices, 'answer': choices[i % 4]}
  records = [{'id': i, 'English': item(i, 'en'), 'Chinese': item(i, 'zh')} for i in range(50)]
  (tmp_path / 'mmlu.json').write_text(json.dumps(records))
  more = [
    '--gin.train.evaluators=(@BenchmarkEvaluator(),)', f'--gin.train.evaluation_period={SAVED}',
    "--gin.BenchmarkEvaluator.benchmark='cross_mmlu'", f"--gin.BenchmarkEvaluator.path='{tmp_path}/mmlu.json'",
    '--gin.BenchmarkEvaluator.seconds=0.0',
  ]  # fmt: skip
  figures = {}
  for processes in (1, 2):
    train(tmp_path / str(processes), processes, more=more)
    with open(tmp_path / str(processes) / 'metrics.jsonl', encoding='utf-8') as f:
      figures[processes] = [row for row in map(json.loads, f) if 'eval/cross_mmlu/accuracy' in row]
  assert [row['step'] for row in figures[1]] == [SAVED, STEPS]
  assert all(row['eval/cross_mmlu/items'] == 32 for row in figures[1])
  assert figures[1] == figures[2]
