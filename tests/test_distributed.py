"""One run over several processes: the same losses, and a run goes on with another number of them."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


def train(prepared, model_dir, processes, steps, *, microbatches=1, devices=1, mesh='(1, -1, 1)'):
  """Runs `crossin train` in that many processes; returns the losses by step."""
  directory, mixture = prepared
  values = {
    'DATA_DIR': directory,
    'MODEL_DIR': str(model_dir),
    'MIXTURE_OR_TASK_NAME': mixture,
    'TRAIN_STEPS': steps,
    'schedule.decay': 'constant',  # so that a run cut at half its steps has had the same rates
    'schedule.warmup_steps': 2,
    'BATCH_SIZE': 8,
    'train.log_period': 1,
    'train.microbatches': microbatches,
    'CheckpointConfig.period': 6,
    'DecoderConfig.embed_dim': 32,
    'DecoderConfig.mlp_dim': 64,
  }
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{s.getsockname()[1]}'
  environment = os.environ | {'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'}
  running = []
  for index in range(processes):
    command = [sys.executable, '-m', 'crossin_jax.cli', 'train', '--gin_file=gin_configs/runs/world_tune.gin']
    command += [f'--gin.{name}={value!r}' for name, value in values.items()]
    command += [f'--gin.MESH_SHAPE={mesh}', '--gin.train.evaluators=()', '--gin.train.evaluation_period=0']
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
    return {row['step']: row['loss'] for row in map(json.loads, f)}


@pytest.mark.slow
def test_losses_do_not_depend_on_the_number_of_processes(tiny_prepared, tmp_path):
  alone = train(tiny_prepared, tmp_path / 'p1', 1, 12)
  assert list(alone) == list(range(1, 13)) and alone[12] < alone[1]
  for name, processes, options in (
    ('p2', 2, {'microbatches': 2}),
    ('p4', 4, {'mesh': '(2, 2, 1)'}),
    ('p1m4', 1, {'microbatches': 4, 'devices': 2, 'mesh': '(1, 1, 2)'}),
  ):
    found = train(tiny_prepared, tmp_path / name, processes, 12, **options)
    np.testing.assert_allclose(list(found.values()), list(alone.values()), rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_run_saved_on_two_processes_goes_on_with_one(tiny_prepared, tmp_path):
  alone = train(tiny_prepared, tmp_path / 'alone', 1, 12)
  train(tiny_prepared, tmp_path / 'moved', 2, 6)
  found = train(tiny_prepared, tmp_path / 'moved', 1, 12)
  assert list(found) == list(range(1, 13))
  np.testing.assert_allclose(list(found.values()), list(alone.values()), rtol=1e-5)


def test_flags_go_together(capsys):
  from crossin_jax import cli

  assert cli.main(['train', '--process_count=2']) == 1
  assert 'go together' in capsys.readouterr().err
  assert cli.main(['train', '--coordinator_address=127.0.0.1:1', '--process_count=2', '--process_index=2']) == 1
  assert 'not between 0 and 1' in capsys.readouterr().err
