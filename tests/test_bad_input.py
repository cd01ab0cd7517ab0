"""What a person can get wrong on the command line: one clear message each, nothing half-written."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


def crossin(*arguments, **environment):
  environment = os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=2'} | environment
  command = [sys.executable, '-m', 'crossin_jax.cli', *map(str, arguments)]
  return subprocess.run(
    command, capture_output=True, text=True, cwd=REPOSITORY, env=environment, timeout=300
  )


def train_flags(prepared, model_dir, **values):
  directory, mixture = prepared
  values = {
    'DATA_DIR': str(directory),
    'MODEL_DIR': str(model_dir),
    'MIXTURE_OR_TASK_NAME': mixture,
    'TRAIN_STEPS': 3,
    'BATCH_SIZE': 4,
    'DecoderConfig.embed_dim': 16,
    'DecoderConfig.mlp_dim': 16,
    **values,
  }
  flags = [f'--gin.{name}={value!r}' for name, value in values.items()]
  return [
    'train',
    '--gin_file=gin_configs/runs/world_tune.gin',
    *flags,
    '--gin.train.evaluators=()',
  ]


def one_message(found, *parts, status=1):
  """One line that says it all, no traceback."""
  assert found.returncode == status, found.stderr
  said = [line for line in found.stderr.splitlines() if line.startswith('crossin ')]
  assert 'Traceback' not in found.stderr and len(said) == 1, found.stderr
  for part in parts:
    assert part in found.stderr, found.stderr


@pytest.mark.parametrize(
  'change, parts, status',
  [
    ({'schedule.paek': 1.0}, ('schedule has no parameter paek; the nearest is peak',), 2),
    ({'BATCH_SIZE': 'eight'}, ("train.batch_size = 'eight' is a str, it must be int",), 2),
    ({'BATCH_SIZE': 5}, ('batch_size = 5', 'use a multiple of 2'), 1),
    ({'LENGTH': 16}, ('has an example of', 'rows have 16'), 1),
    ({'DecoderConfig.vocab_size': 100}, ('the model has 100 ids', 'vocab_size'), 1),
    (
      {'MIXTURE_OR_TASK_NAME': 'world.base.all.en_zh.every'},
      ('does not exist', 'crossin prepare FILE.gin --mixture'),
      1,
    ),
    ({'schedule.decay': 'sine'}, ("'sine' is not one of",), 1),
    ({'MESH_SHAPE': (3, 1, 1)}, ('(3, 1, 1) does not fit 2 cpu devices',), 1),
    ({'Partitioner.platform': 'tpu'}, ("Partitioner.platform = 'tpu': no such device",), 1),
    ({'INITIAL_CHECKPOINT_PATH': '/nowhere'}, ('/nowhere is neither a checkpoint_<step>',), 1),
    ({'train.epochs': 1.0}, ('set one of train.total_steps',), 1),
    (
      {'train.early_stopping_patience': 1, 'train.evaluation_period': 1},
      ('needs CheckpointConfig.best_metric',),
      1,
    ),
  ],
)
def test_wrong_settings_of_train(tiny_prepared, tmp_path, change, parts, status):
  found = crossin(*train_flags(tiny_prepared, tmp_path / 'run', **change))
  one_message(found, *parts, status=status)
  assert not list(tmp_path.glob('run/checkpoint_*'))


def test_missing_gin_file_and_missing_setting():
  one_message(
    crossin('train', '--gin_file=nowhere.gin'), "gin file 'nowhere.gin' does not exist", status=2
  )
  one_message(
    crossin('train', 'gin_configs/runs/world_tune.gin'),
    'crossin train: MODEL_DIR is not set (checkpoints and metrics): give',
    '\nDATA_DIR is not set (--output_dir of `crossin prepare`): give',
    '\nMIXTURE_OR_TASK_NAME is not set (a prepared mixture): give',
    status=2,
  )
  one_message(
    crossin('sweep', 'gin_configs/models/world_1m.gin'),
    'sweep.axes is not set (axis -> its values): give sweep.axes=VALUE',
    status=2,
  )
  found = crossin('trian')
  assert found.returncode == 2 and 'did you mean train?' in found.stderr


@pytest.mark.parametrize(
  'words, parts',
  [
    (
      ('train', 'gin_configs/runs/world_tune.gin', 'BATCHSIZE=2'),
      ('BATCHSIZE=2: nothing uses BATCHSIZE here; the nearest is BATCH_SIZE\n',),
    ),
    (
      ('train', 'gin_configs/runs/world_tune.gin', '--gin.INITIAL_CHECKPOINT="a"'),
      ('INITIAL_CHECKPOINT="a": nothing uses', 'the nearest is INITIAL_CHECKPOINT_PATH\n'),
    ),
    (
      (
        'prepare',
        'gin_configs/mixtures/alpaca.gin',
        'TEMPLATE=chat',
        '--mixture=a',
        '--output_dir=b',
      ),
      ('TEMPLATE=chat: nothing uses TEMPLATE here',),
    ),
    (
      (
        'sweep',
        'gin_configs/ablations/world_volume.gin',
        'QUESTIONS=README.md',
        'TRAINSTEPS=2',
        '--dry_run',
      ),
      ('TRAINSTEPS=2: nothing uses TRAINSTEPS here; the nearest is TRAIN_STEPS\n',),
    ),
    (('quickstart', 'BATCHSIZE=2'), ('nothing uses BATCHSIZE here; the nearest is BATCH_SIZE\n',)),
    (
      (
        'xinstruction',
        'run',
        'gin_configs/xinstruction/default.gin',
        'LANGUAGE=sw',
        '--output_dir=o',
      ),
      ('LANGUAGE=sw: nothing uses LANGUAGE here; the nearest is LANGUAGES\n',),
    ),
    (
      ('train', 'gin_configs/runs/world_tune.gin', '--gin.MODEL_DIR=runs/a'),
      ('--gin.MODEL_DIR=runs/a is not in gin', 'write MODEL_DIR=runs/a without --gin\n'),
    ),
    (('train', 'world_tune.gin'), ('do you mean gin_configs/runs/world_tune.gin?',)),
    (('train', 'runs/a'), ("'runs/a' is not understood; settings are given as FILE.gin or NAME=",)),
  ],
)
def test_misspelt_settings(words, parts):
  one_message(crossin(*words), *parts, status=2)


def prepare_flags(vocabulary, output_dir, mixture='world.base_x2x.all.en_zh.every', **values):
  values = {
    'VOCABULARY': vocabulary,
    'SHARES': {'base': 0.5, 'x2x': 0.5},
    'LANGUAGES': ('en', 'zh'),
    **values,
  }
  values |= {'World.tuning_entities': 6, 'World.test_entities': 12}
  flags = [f'--gin.{name}={value!r}' for name, value in values.items()]
  return [
    'prepare',
    '--gin_file=gin_configs/mixtures/world.gin',
    *flags,
    f'--mixture={mixture}',
    f'--output_dir={output_dir}',
  ]


def test_wrong_settings_of_prepare(tiny_vocabulary, tmp_path):
  path = tiny_vocabulary.path
  one_message(crossin(*prepare_flags('/nowhere.model', tmp_path)), "'/nowhere.model' is not a file")
  one_message(crossin(*prepare_flags(__file__, tmp_path)), 'is not a SentencePiece model')
  one_message(
    crossin(*prepare_flags(path, tmp_path, mixture='world.base')), 'is not source.variant.volume'
  )
  one_message(
    crossin(*prepare_flags(path, tmp_path, mixture='world.base.all.en_xx.every')),
    "unknown language 'xx'",
  )
  one_message(
    crossin(*prepare_flags(path, tmp_path, mixture='world.basis.all.en_zh.every')),
    "component 'basis' is none of",
  )
  one_message(
    crossin(*prepare_flags(path, tmp_path, mixture='world.base.all.en_zh.odd')),
    "preset 'odd' is not one of",
  )
  one_message(
    crossin(
      *prepare_flags(path, tmp_path, mixture='world.x2x.999999.en_zh.every', SHARES={'x2x': 1.0})
    ),
    'volume 999999 is more',
  )
  one_message(
    crossin(
      *prepare_flags(
        path, tmp_path, mixture='world.base.all.en_fi.every', SHARES={'base': 1.0, 'x': -1.0}
      )
    ),
    'must not be negative',
  )
  assert not list(tmp_path.rglob('*.json'))


@pytest.mark.skipif(os.geteuid() != 0, reason='mounting a tmpfs needs root: run this test as root')
def test_full_disk_and_read_only_output(tiny_vocabulary, tiny_prepared, tmp_path):
  small = tmp_path / 'small'
  small.mkdir()
  if subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=128k', 'tmpfs', small], capture_output=True
  ).returncode:
    pytest.skip('mounting a tmpfs needs CAP_SYS_ADMIN: run outside of this container')
  try:
    one_message(
      crossin(*prepare_flags(tiny_vocabulary.path, small / 'data', WORLD_SEED=1)),
      'No space left',
      str(small),
    )
    assert not [path for path in small.rglob('*') if 'writing' in path.name]
    one_message(crossin(*train_flags(tiny_prepared, small / 'run')), str(small / 'run'), 'room')
    subprocess.run(['mount', '-o', 'remount,ro', small], check=True)
    one_message(
      crossin(*prepare_flags(tiny_vocabulary.path, small / 'other')), str(small / 'other')
    )
    one_message(crossin(*train_flags(tiny_prepared, small / 'other')), str(small / 'other'))
  finally:
    subprocess.run(['umount', '-l', small], check=True)


@pytest.mark.slow
def test_output_of_another_run_and_changed_data(tiny_prepared, tiny_settings, tmp_path):
  from seqio_tasks.prepare import prepare

  run = tmp_path / 'run'
  first = crossin(*train_flags(tiny_prepared, run))
  assert first.returncode == 0, first.stderr
  # Another model in the same MODEL_DIR.
  one_message(
    crossin(*train_flags(tiny_prepared, run, TRAIN_STEPS=6, **{'DecoderConfig.mlp_dim': 24})),
    'is of another model',
    '(16, 16)',
  )
  # Other data: the message names template and rows of the change.
  directory = tmp_path / 'data'
  shutil.copytree(tiny_prepared[0], directory)
  prepare(tiny_prepared[1], str(directory), tiny_settings(template='gemma', seed=3), overwrite=True)
  changed = train_flags((directory, tiny_prepared[1]), run, TRAIN_STEPS=6)
  one_message(
    crossin(*changed), 'the data of this run have changed', 'template of task', 'new_stream=True'
  )
  again = crossin(*changed, '--gin.train.new_stream=True')
  assert again.returncode == 0, again.stderr
  with open(run / 'metrics.jsonl', encoding='utf-8') as f:
    assert [json.loads(line)['step'] for line in f][-1] == 6
