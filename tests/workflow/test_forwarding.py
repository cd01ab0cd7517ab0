"""gin settings of the pipeline: which of them go to which command, and what they make stale."""

import argparse
import os
import subprocess
import sys

from conftest import REPOSITORY
import pytest

from crossin_jax import config
from crossin_jax.workflow import forwarding
from crossin_jax.workflow.forwarding import ForwardedSettings
from crossin_jax.xinstruction.pipeline import SET_BY_STEPS  # and its names are known

FILE = """
include 'gin_configs/xinstruction/default.gin'
XInstruction.wanted = %WANTED
WANTED = 9
BATCH_SIZE = 8
DECAY = 0.5
adamw.weight_decay = %DECAY
OPTIMIZER = @adafactor
"""
OWN = (
  "LANGUAGES = ('sw',)",
  "DOCUMENTS = 'd'",
  "SEED = 's'",
  "VOCABULARY = 'v'",
  'Filters.least_confidence = 0.1',
)


def parsed(*bindings, text=FILE, folder=None):
  forwarding.make_known('crossin_jax.xinstruction.chunk_worker')
  files = []
  if folder is not None:
    (folder / 'own.gin').write_text(text)
    files = [str(folder / 'own.gin')]
  args = argparse.Namespace(gin_file=files, gin_bindings=list(bindings), gin_search_paths='')
  args.known_macros = forwarding.known_macros()
  config.parse(args)
  return ForwardedSettings.from_gin(SET_BY_STEPS)


def settings(found, command):
  return {
    flag.removeprefix('--gin_bindings=') for flag in found.flags(command) if '=import ' not in flag
  }


def test_each_command_gets_what_means_something_to_it(tmp_path):
  more = ('ChunkWorker.rows = 64', 'Partitioner.mesh_shape = (1, 1, 4)', 'MixtureSettings.seed = 3', 'Sampling.top_k = 2',
          'train.log_period = 5', 'DecoderConfig.remat = "full"', 'embed.words = 2',
          'Endpoint.budget = 1')  # fmt: skip
  found = parsed(*OWN, *more, folder=tmp_path)
  common = {'BATCH_SIZE = 8', 'DECAY = 0.5', 'OPTIMIZER = @adafactor', 'Partitioner.mesh_shape = '
                                                                       '(1, 1, 4)',
                                                                       "DecoderConfig.remat = "
                                                                       "'full'"}  # fmt: skip
  assert settings(found, 'train') == (
    common | {'adamw.weight_decay = %DECAY', 'train.log_period = 5'}
  )
  assert settings(found, 'chunks') == (common - {'DECAY = 0.5'}) | {
    'ChunkWorker.rows = 64',
    'Sampling.top_k = 2',
  }
  assert settings(found, 'prepare') == {'MixtureSettings.seed = 3'}
  assert found.counted('train') == {
    'BATCH_SIZE': '8', 'DECAY': '0.5', 'OPTIMIZER': '@adafactor', 'adamw.weight_decay': '%DECAY',
    'DecoderConfig.remat': "'full'",
  }  # fmt: skip
  assert found.counted('chunks') == {'Sampling.top_k': '2'} and found.counted('prepare') == {
    'MixtureSettings.seed': '3'
  }


def test_nothing_is_forwarded_that_was_not_given(tmp_path):
  found = parsed(*OWN, text="include 'gin_configs/xinstruction/default.gin'\n", folder=tmp_path)
  for command in ('train', 'chunks', 'prepare'):
    assert found.flags(command) == [] == list(found.counted(command))


@pytest.mark.parametrize('command', ['train', 'chunks', 'prepare'])
def test_a_command_that_has_not_loaded_a_name_can_read_it(tmp_path, command):
  found = parsed(*OWN, 'a/Sampling.stop = ("x\\n", "\'")', 'Vocabulary.bos_token = "<s>"', 'ChunkWorker.rows = 3',
                 folder=tmp_path, text=f'{FILE}mine = 3\n')  # fmt: skip
  assert 'mine = 3' not in settings(found, command)  # nothing uses it
  program = (
    'import argparse, sys, gin; from crossin_jax import config\n'
    'bindings = [flag.removeprefix("--gin_bindings=") for flag in sys.argv[1:]]\n'
    'args = argparse.Namespace(gin_file=[], gin_bindings=bindings, gin_search_paths="")\n'
    'args.known_macros = ("BATCH_SIZE", "OPTIMIZER")  # of the gin files of the command\n'
    'config.parse(args)\n'
    'print(gin.config_str())\n'
  )
  environment = {**os.environ, 'PYTHONPATH': str(REPOSITORY)}
  run = subprocess.run(
    [sys.executable, '-c', program, *found.flags(command)],
    env=environment,
    capture_output=True,
    text=True,
  )
  assert run.returncode == 0, run.stderr
  wanted = {
    'train': 'adamw.weight_decay = %DECAY',
    'chunks': """a/Sampling.stop = ('x\\n', "'")""",
    'prepare': "Vocabulary.bos_token = '<s>'",
  }
  assert wanted[command] in run.stdout


def test_wrong_names_are_told_before_anything_runs(tmp_path):
  with pytest.raises(config.ConfigError, match='adamw'):
    parsed(*OWN, 'adam.weight_decay = 0.1', folder=tmp_path)
  with pytest.raises(config.ConfigError, match='ChunkWorker'):
    parsed(*OWN, 'ChunkWorker.row = 1', folder=tmp_path)
  with pytest.raises(config.ConfigError, match='MODEL_DIR is another in every step'):
    parsed(*OWN, "MODEL_DIR = 'x'", folder=tmp_path)
