"""Steps that must not count are left out, and the example to blame is named."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import numpy as np
import pyarrow as pa
import pytest

from crossin_jax.data.prepared import TaskSplit, write_part
from crossin_jax.training.nonfinite import SpikeThreshold

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def poison(directory, mixture, change):
  """Changes the tokens or weights of one example of the first task; returns (task, id)."""
  with open(os.path.join(directory, 'mixtures', f'{mixture}.json'), encoding='utf-8') as f:
    task = json.load(f)['tasks'][0]['task']
  split = TaskSplit(directory, task, 'train')
  examples = [
    (split.id(i), int(split.ranks[i]), *map(np.array, split.example(i))) for i in range(len(split))
  ]
  id_, _, tokens, weights = examples[3]
  change(tokens, weights)
  path = os.path.join(split.directory, split.manifest['splits']['train']['parts'][0]['file'])
  write_part(path, examples)
  assert pa.ipc.open_file(path).num_record_batches == 1
  return task, id_


def train(directory, mixture, model_dir, **values):
  values = {
    'DATA_DIR': directory,
    'MODEL_DIR': str(model_dir),
    'MIXTURE_OR_TASK_NAME': mixture,
    'TRAIN_STEPS': 160,  # a little over an epoch of every task
    'BATCH_SIZE': 8,
    'train.log_period': 1,
    'DecoderConfig.embed_dim': 16,
    'DecoderConfig.mlp_dim': 16,
    **values,
  }
  command = [
    sys.executable,
    '-m',
    'crossin_jax.cli',
    'train',
    '--gin_file=gin_configs/runs/world_tune.gin',
  ]
  command += [f'--gin.{name}={value!r}' for name, value in values.items()]
  command += ['--gin.train.evaluators=()', '--gin.train.evaluation_period=0']
  environment = os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=1'}
  return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize('policy, status', [('skip', 0), ('stop', 1)])
def test_a_poisoned_row_is_named_and_left_out(tiny_prepared, tmp_path, policy, status):
  directory, mixture = str(tmp_path / 'data'), tiny_prepared[1]
  shutil.copytree(tiny_prepared[0], directory)

  def spoil(_, weights):
    weights[-1] = np.nan

  task, id_ = poison(directory, mixture, spoil)
  found = train(directory, mixture, tmp_path / 'run', **{'train.nan_policy': policy})
  assert found.returncode == status, found.stderr
  assert f'because of task {task}, row {id_}' in found.stderr
  assert 'skipped' in found.stderr
  if policy == 'skip':
    with open(tmp_path / 'run' / 'metrics.jsonl', encoding='utf-8') as f:
      rows = [json.loads(line) for line in f]
    assert len(rows) == 160 and sum(row['skipped_steps'] for row in rows) >= 1
    assert all(np.isfinite(row['loss']) for row in rows if not row['skipped_steps'])


def test_an_id_outside_the_vocabulary_is_named(tiny_prepared, tmp_path):
  from crossin_jax.data.prepared import PreparedDataError, PreparedMixture
  from crossin_jax.data.stream import BatchStream

  directory, mixture = str(tmp_path / 'data'), tiny_prepared[1]
  shutil.copytree(tiny_prepared[0], directory)

  def spoil(tokens, _):
    tokens[0] = 1_000_000

  task, id_ = poison(directory, mixture, spoil)
  stream = BatchStream(PreparedMixture(directory, mixture), batch_size=8, length=64)
  with pytest.raises(PreparedDataError, match=f'task {task}, row {id_} has id 1000000'):
    for step in range(200):
      stream.batch(step)


def _values(loss, skipped=False):
  sums = types.SimpleNamespace(loss=loss, weight=1.0)
  return types.SimpleNamespace(sums=sums, skipped=skipped)


def test_the_threshold_does_not_depend_on_when_a_run_was_resumed():
  rng = np.random.default_rng(0)
  losses = rng.random(200)
  whole = SpikeThreshold(3.0, [])
  wanted = {}
  for step, loss in enumerate(losses, start=1):
    wanted[step] = whole.at(step)  # asked while step - 1 is still unread, as in the loop
    whole.add(step, _values(loss))
  resumed = SpikeThreshold(3.0, [])
  for step, loss in enumerate(losses, start=1):
    if step in (17, 90, 91):  # saved after step - 1 was read, loaded again
      resumed = SpikeThreshold(3.0, json.loads(json.dumps(resumed.losses)))
    assert resumed.at(step) == wanted[step]
    resumed.add(step, _values(loss))
  assert np.isinf(wanted[5]) and wanted[150] == pytest.approx(
    3 * np.median(losses[98:148]), rel=1e-6
  )


def test_left_out_steps_do_not_raise_the_threshold_and_no_factor_is_no_threshold():
  threshold = SpikeThreshold(2.0, [])
  for step in range(1, 30):
    threshold.add(step, _values(1.0 if step != 20 else 1e9, skipped=step == 20))
  assert threshold.at(30) == 2.0
  assert np.isinf(SpikeThreshold(None, []).at(100))
  with pytest.raises(ValueError, match='must be above 1'):
    SpikeThreshold(0.5, [])
