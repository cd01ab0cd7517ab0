"""A device that is asked for and not there: one message from every command, no traceback."""

import glob
import os
import subprocess
import sys

from conftest import REPOSITORY
import pytest

from crossin_jax.processes import platforms

MODEL = '--gin_file=gin_configs/models/world_1m.gin'
BENCH = ('bench', 'train', MODEL)
TRAIN = (
  'train', '--gin_file=gin_configs/runs/world_read.gin', '--gin.MODEL_DIR="run"',
  '--gin.DATA_DIR="data"', '--gin.MIXTURE_OR_TASK_NAME="x"',
)  # fmt: skip
IMPORT = ('import-hf', 'model', '--output_dir', 'out')
CONFIG = (
  '{"model_type": "llama", "vocab_size": 64, "hidden_size": 8, "intermediate_size": 8, '
  '"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, '
  '"max_position_embeddings": 32, "rms_norm_eps": 1e-6}'
)


def run(command, platform, folder):
  environment = {**os.environ, 'JAX_PLATFORMS': platform, 'PYTHONPATH': str(REPOSITORY)}
  words = [sys.executable, '-m', 'crossin_jax.cli', *command]
  return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize('command', [BENCH, TRAIN, IMPORT], ids=lambda words: words[0])
def test_no_gpu(command, tmp_path):
  if glob.glob('/dev/nvidia[0-9]*'):
    pytest.skip('this machine has a GPU')
  (tmp_path / 'model').mkdir()
  (tmp_path / 'model' / 'config.json').write_text(CONFIG)
  found = run(command, 'cuda', tmp_path)
  assert found.returncode == 1
  said = found.stderr.strip()
  assert len(said.splitlines()) <= 3 and 'Traceback' not in said
  assert (
    f'crossin {command[0]}: JAX_PLATFORMS=cuda: no such device; this machine has its CPU. ' in said
  )
  assert 'set JAX_PLATFORMS=cpu to use the CPU' in said


def test_a_platform_that_does_not_exist(tmp_path):
  found = run(BENCH, 'gpux', tmp_path)
  assert found.returncode == 1
  assert 'JAX_PLATFORMS=gpux: no such device' in found.stderr
  assert 'JAX knows cpu, cuda, rocm and tpu' in found.stderr and 'Traceback' not in found.stderr


def test_other_errors_are_not_explained(monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
  try:
    raise RuntimeError('of another place')
  except RuntimeError as error:
    assert platforms.explained(error) is None


def test_what_is_installed_decides_the_remedy(monkeypatch):
  installed = set()
  monkeypatch.setattr(platforms.importlib.util, 'find_spec', lambda name: name in installed)
  assert "pip install 'crossin-jax[tpu]'" in str(platforms.NoDevice('JAX_PLATFORMS=tpu', 'tpu'))
  installed.add('libtpu')
  assert 'start the command on a TPU VM' in str(platforms.NoDevice('JAX_PLATFORMS=tpu', 'tpu'))
  installed.add('jax_cuda13_plugin')
  assert 'check the driver with nvidia-smi' in str(platforms.NoDevice('JAX_PLATFORMS=cuda', 'cuda'))
