"""The launcher, the shims and the gin files, with a stand-in for T5X that has its names and none of
its works.
"""

import importlib.util
import json
import os
import subprocess
import sys
import types

from conftest import REPOSITORY, tiny_config, write_prepared
import numpy as np
import pytest

from crossin_jax.models.huggingface import families
from crossin_jax.t5x_bridge import checkout, run

# Seams of T5X at cc342d4 that the gin files name: fields of its classes, arguments of its programs.
FIELDS = {
  'utils.DatasetConfig': ['mixture_or_task_name', 'task_feature_lengths', 'split', 'batch_size', 'shuffle', 'seed', 'use_cached', 'pack'],
  'utils.RestoreCheckpointConfig': ['path', 'mode', 'dtype', 'assignment_map', 'fallback_to_scratch'],
  'utils.SaveCheckpointConfig': ['period', 'dtype', 'keep', 'save_dataset'],
  'utils.CheckpointConfig': ['save', 'restore'],
  'partitioning.PjitPartitioner': ['num_partitions', 'model_parallel_submesh', 'logical_axis_rules'],
  'partitioning.standard_logical_axis_rules': ['additional_rules'],
}  # fmt: skip
TRAIN = [
  'model', 'model_dir', 'train_dataset_cfg', 'train_eval_dataset_cfg', 'infer_eval_dataset_cfg',
  'checkpoint_cfg', 'partitioner',
  'trainer_cls', 'total_steps', 'eval_period', 'stats_period', 'random_seed', 'summarize_config_fn',
  'get_dataset_fn',
  'verify_matching_vocabs_fn',
]  # fmt: skip
INFER = ['mode', 'model', 'output_dir', 'dataset_cfg', 'partitioner', 'restore_checkpoint_cfg', 'checkpoint_period', 'write_fn',
         'checkpoint_ds_iter']  # fmt: skip
EVAL = [
  'model',
  'output_dir',
  'dataset_cfg',
  'partitioner',
  'restore_checkpoint_cfg',
  'inference_evaluator_cls',
]
TRAINING_GIN = """
from __gin__ import dynamic_registration
import __main__ as train_script
from t5x import partitioning
from t5x import utils
from t5x import trainer
MODEL_DIR = %gin.REQUIRED
MIXTURE_OR_TASK_NAME = %gin.REQUIRED
TASK_FEATURE_LENGTHS = %gin.REQUIRED
TRAIN_STEPS = %gin.REQUIRED
INITIAL_CHECKPOINT_PATH = %gin.REQUIRED
BATCH_SIZE = 128
RANDOM_SEED = None
train_script.train:
  model = %MODEL
  model_dir = %MODEL_DIR
  train_dataset_cfg = @train/utils.DatasetConfig()
  train_eval_dataset_cfg = @train_eval/utils.DatasetConfig()
  infer_eval_dataset_cfg = @infer_eval/utils.DatasetConfig()
  checkpoint_cfg = @utils.CheckpointConfig()
  partitioner = @partitioning.PjitPartitioner()
  trainer_cls = @trainer.Trainer
  total_steps = %TRAIN_STEPS
  random_seed = %RANDOM_SEED
partitioning.PjitPartitioner.logical_axis_rules = @partitioning.standard_logical_axis_rules()
train/utils.DatasetConfig:
  mixture_or_task_name = %MIXTURE_OR_TASK_NAME
  task_feature_lengths = %TASK_FEATURE_LENGTHS
  batch_size = %BATCH_SIZE
utils.CheckpointConfig:
  restore = @utils.RestoreCheckpointConfig()
  save = @utils.SaveCheckpointConfig()
utils.RestoreCheckpointConfig.path = %INITIAL_CHECKPOINT_PATH
"""
READING_GIN = """
from __gin__ import dynamic_registration
import __main__ as script
from t5x import partitioning
from t5x import utils
MIXTURE_OR_TASK_NAME = %gin.REQUIRED
CHECKPOINT_PATH = %gin.REQUIRED
{directory} = %gin.REQUIRED
TASK_FEATURE_LENGTHS = None
script.{name}:
  model = %MODEL
  output_dir = %{directory}
  dataset_cfg = @utils.DatasetConfig()
  partitioner = @partitioning.PjitPartitioner()
  restore_checkpoint_cfg = @utils.RestoreCheckpointConfig()
utils.DatasetConfig:
  mixture_or_task_name = %MIXTURE_OR_TASK_NAME
  task_feature_lengths = %TASK_FEATURE_LENGTHS
utils.RestoreCheckpointConfig.path = %CHECKPOINT_PATH
"""
# Prints what it was called with, as far as it is data.
PROGRAM = """
import sys, json, gin
from t5x import models, utils  # as T5X's programs do
from t5x import seen
def {name}({arguments}):
  print(json.dumps(seen.shown(dict(locals()))))
if __name__ == '__main__':
  using_gin = gin.configurable({name})
  gin.add_config_file_search_path({home!r})
  files = [a.split('=', 1)[1] for a in sys.argv if a.startswith('--gin_file=')]
  bindings = [' = '.join(a[6:].split('=', 1)) for a in sys.argv if a.startswith('--gin.')]
  gin.parse_config_files_and_bindings(files, bindings)
  using_gin()
"""
SEEN = """
def shown(value):
  if isinstance(value, dict):
    return {str(k): shown(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [shown(v) for v in value]
  if value is None or isinstance(value, (str, int, float)):
    return value
  if type(value).__module__.startswith(('t5x', 'crossin_jax.t5x_bridge')) and not callable(value):
    return {'is': type(value).__name__, **shown(vars(value))}
  return getattr(value, '__name__', type(value).__name__)
"""
MODELS = """
class DecoderOnlyModel:
  def __init__(self, module, vocabulary, optimizer_def, **options):
    self.module, self.vocabulary, self.optimizer_def = module, vocabulary, optimizer_def
    self.options = options
"""
OPTIMIZERS = """
class OptaxStatePartitionRules:
  _RULES = {}
class OptaxWrapper:
  def __init__(self, transform):
    self.transform = type(transform).__name__
    self.rules = [kind.__name__ for kind in OptaxStatePartitionRules._RULES]
"""


@pytest.fixture(scope='module')
def stand_in(tmp_path_factory):
  """A folder that looks like a checkout, with packages that T5X needs and this machine lacks beside
  it.
  """
  home = tmp_path_factory.mktemp('t5x_home')

  def write(path, text):
    (home / path).parent.mkdir(parents=True, exist_ok=True)
    (home / path).write_text(text)

  def classes(module):
    text = ''
    for name, fields in FIELDS.items():
      if name.startswith(module):
        arguments = ', '.join(f'{field}=None' for field in fields)
        text += f'class {name.split(".")[1]}:\n  def __init__(self, {arguments}):\n'
        text += ''.join(f'    self.{field} = {field}\n' for field in fields)
    return text

  write('t5x/__init__.py', '')
  write('t5x/seen.py', SEEN)
  write(
    't5x/models.py',
    'import airio.core\nfrom jax.experimental.pjit import PartitionSpec\nairio.core.Task\n'
    + MODELS,
  )
  write('t5x/optimizers.py', OPTIMIZERS)
  write('t5x/decoding.py', 'def temperature_sample(): pass\n')
  write('t5x/metrics.py', '')
  write('t5x/trainer.py', 'class Trainer: pass\n')
  for module in ('utils', 'partitioning'):
    write(f't5x/{module}.py', classes(module))
  for program, name, arguments in (
    ('train', 'train', TRAIN),
    ('infer', 'infer', INFER),
    ('eval', 'evaluate', EVAL),
  ):
    arguments = ', '.join(f'{argument}=None' for argument in arguments)
    write(f't5x/{program}.py', PROGRAM.format(name=name, arguments=arguments, home=str(home)))
  for name in ('pretrain', 'finetune'):
    write(f't5x/configs/runs/{name}.gin', TRAINING_GIN)
  write(
    't5x/configs/runs/infer.gin', READING_GIN.format(name='infer', directory='INFER_OUTPUT_DIR')
  )
  write(
    't5x/configs/runs/eval.gin', READING_GIN.format(name='evaluate', directory='EVAL_OUTPUT_DIR')
  )
  for module in checkout.PACKAGES:
    if importlib.util.find_spec(module) is None:
      write(f'{module}/__init__.py', '')
  return home


def launch(home, *arguments):
  environment = {**os.environ, 'PYTHONPATH': str(REPOSITORY), 'T5X_HOME': str(home)}
  return subprocess.run(
    [sys.executable, '-m', 'crossin_jax.t5x_bridge.run', *arguments],
    cwd=home,
    env=environment,
    capture_output=True,
    text=True,
  )


def called(home, program, files, values):
  """What the program was called with."""
  files = [f'--gin_file=gin_configs/{f}' for f in ('models/world_1m.gin', *files)]
  found = launch(
    home, program, *files, *[f'--gin.{name}={value!r}' for name, value in values.items()]
  )
  assert found.returncode == 0, found.stderr[-4000:]
  return json.loads(found.stdout.splitlines()[-1])


@pytest.fixture(scope='module')
def prepared(tmp_path_factory, tiny_vocabulary):
  directory = tmp_path_factory.mktemp('prepared')
  name = write_prepared(
    directory, {'a.en': (1.0, None, [(np.arange(5, dtype=np.int32), np.ones(5, np.float32))])}
  )
  path = directory / 'mixtures' / f'{name}.json'
  described = json.loads(path.read_text())
  described['vocabulary'] |= {'file': tiny_vocabulary.path, 'bos_token': '<s>', 'eos_token': '</s>'}
  path.write_text(json.dumps(described))
  return str(directory), name


def test_lora_is_configured_to_the_last_name(stand_in, prepared, tmp_path):
  directory, mixture = prepared
  values = {
    'DATA_DIR': directory, 'MIXTURE_OR_TASK_NAME': mixture,
    'INITIAL_CHECKPOINT_PATH': 'base/checkpoint_0', 'TRAIN_STEPS': 7,
    'MODEL_DIR': str(tmp_path / 'run'), 'LENGTH': 16,
  }  # fmt: skip
  found = called(stand_in, 't5x.train', ['t5x/lora.gin'], values)
  rules = ['FactoredState']
  assert found['model']['optimizer_def'] == {
    'is': 'OptaxWrapper',
    'transform': 'GradientTransformationExtraArgs',
    'rules': rules,
  }
  assert found['model']['options']['loss_normalizing_factor'] == 'NUM_REAL_TARGET_TOKENS'
  assert found['model']['vocabulary'] == 'SeqioVocabulary' and found['model']['module'] == 'Decoder'
  assert (found['trainer_cls'], found['get_dataset_fn'], found['summarize_config_fn']) == (
    't5x_trainer', 't5x_dataset', 't5x_summary',
  )  # fmt: skip
  assert (
    found['total_steps'] == 7
    and found['random_seed'] == 0
    and found['verify_matching_vocabs_fn'] is None
  )
  assert found['train_eval_dataset_cfg'] is None and found['infer_eval_dataset_cfg'] is None
  dataset = found['train_dataset_cfg']
  assert (dataset['mixture_or_task_name'], dataset['task_feature_lengths'], dataset['batch_size'], dataset['seed']) == (
    mixture, {'targets': 16}, 16, 0,
  )  # fmt: skip
  restore = found['checkpoint_cfg']['restore']
  assert restore['path'] == 'base/checkpoint_0' and restore['fallback_to_scratch']
  assert [pattern for pattern, _ in restore['assignment_map']] == [
    '.*/lora_[ab]',
    'state/param_states.*',
    'state/step',
  ]
  assert found['checkpoint_cfg']['save']['period'] == 1000
  assert found['partitioner']['logical_axis_rules']['additional_rules'] == [
    ['lora_rank', None],
    ['embed_activation', None],
  ]


def test_pretraining_starts_from_nothing(stand_in, prepared, tmp_path):
  directory, mixture = prepared
  values = {
    'DATA_DIR': directory,
    'MIXTURE_OR_TASK_NAME': mixture,
    'TRAIN_STEPS': 7,
    'MODEL_DIR': str(tmp_path / 'run'),
  }
  found = called(stand_in, 't5x.train', ['t5x/pretrain.gin'], values)
  assert found['trainer_cls'] == 't5x_trainer' and found['stats_period'] == 10


def test_a_hugging_face_model_is_finetuned(stand_in, prepared, tmp_path):
  directory, mixture = prepared
  (tmp_path / 'hf').mkdir()
  described = families.to_json_config(tiny_config(vocab_size=1300))
  (tmp_path / 'hf' / 'config.json').write_text(json.dumps(described))
  values = {
    'DATA_DIR': directory, 'MIXTURE_OR_TASK_NAME': mixture,
    'INITIAL_CHECKPOINT_PATH': 'base/checkpoint_0', 'TRAIN_STEPS': 7,
    'MODEL_DIR': str(tmp_path / 'run'), 'HF_DIR': str(tmp_path / 'hf'),
  }  # fmt: skip
  found = called(stand_in, 't5x.train', ['models/huggingface.gin', 't5x/finetune.gin'], values)
  assert found['model']['module'] == 'Decoder' and found['total_steps'] == 7
  assert [pattern for pattern, _ in found['checkpoint_cfg']['restore']['assignment_map']] == [
    'state/param_states.*',
    'state/step',
  ]


def test_inference_registers_the_mixture(stand_in, tiny_vocabulary, tmp_path):
  mixture = 'world.x2x.all.en_zh.every'
  values = {
    'VOCABULARY': tiny_vocabulary.path, 'MIXTURE_OR_TASK_NAME': mixture,
    'CHECKPOINT_PATH': 'run/checkpoint_3', 'LENGTH': 48,
    'INFER_OUTPUT_DIR': str(tmp_path), 'SHARES': {'x2x': 1.0},
  }  # fmt: skip
  found = called(stand_in, 't5x.infer', ['mixtures/world.gin', 't5x/infer.gin'], values)
  assert found['write_fn'] == 't5x_predictions' and found['checkpoint_ds_iter'] is False
  assert (
    found['dataset_cfg']['mixture_or_task_name'] == mixture
    and found['dataset_cfg']['split'] == 'validation'
  )
  assert found['dataset_cfg']['task_feature_lengths'] == {'targets': 48, 'loss_weights': 48}
  assert found['model']['optimizer_def'] is None


def test_a_benchmark_is_evaluated(stand_in, tiny_vocabulary, tmp_path):
  path = tmp_path / 'xcopa'
  path.mkdir()
  line = {
    'premise': 'It rained.',
    'choice1': 'We got wet.',
    'choice2': 'It was dry.',
    'question': 'effect',
    'label': 0,
    'idx': 0,
  }
  (path / 'test.sw.jsonl').write_text(json.dumps(line) + '\n')
  values = {
    'VOCABULARY': tiny_vocabulary.path, 'BENCHMARK': 'xcopa', 'BENCHMARK_PATH': str(path),
    'LANGUAGES': ('sw',),
    'CHECKPOINT_PATH': 'run/checkpoint_3', 'EVAL_OUTPUT_DIR': str(tmp_path / 'out'),
  }  # fmt: skip
  found = called(stand_in, 't5x.eval', ['t5x/eval.gin'], values)
  assert (
    found['dataset_cfg']['mixture_or_task_name'] == 'xcopa.likelihood'
    and found['dataset_cfg']['split'] == 'test'
  )


def test_what_is_missing_is_said(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  monkeypatch.delenv(checkout.HOME, raising=False)
  assert run.main(['t5x.train']) == 1
  assert (
    'no T5X' in (said := capsys.readouterr().err)
    and checkout.REPOSITORY in said
    and 'T5X_HOME' in said
  )
  monkeypatch.setenv(checkout.HOME, str(tmp_path))
  assert run.main(['t5x.train']) == 1
  assert f'{tmp_path} has no t5x/train.py' in capsys.readouterr().err
  (tmp_path / 't5x').mkdir()
  (tmp_path / 't5x' / 'train.py').touch()
  monkeypatch.setattr(sys, 'path', list(sys.path))
  assert run.main(['t5x.infer']) == 1
  said = capsys.readouterr().err
  assert "pip install 'crossin-jax[t5x]'" in said and all(
    package in said for package in checkout.PACKAGES.values()
  )


def test_usage(capsys):
  assert run.main(['--help']) == 0 and 't5x.train' in capsys.readouterr().out
  for arguments in ([], ['t5x.nothing'], ['--gin_file=a.gin']):
    assert run.main(arguments) == 2
    assert 'is not one of t5x.train' in capsys.readouterr().err


def test_stand_in_for_airio(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  for name in ('airio', 'airio.core'):
    monkeypatch.delitem(sys.modules, name, raising=False)
  checkout.stand_in_for_airio()
  import airio.core as core

  assert all(not isinstance(object(), getattr(core, name)) for name in checkout.AIRIO)
  again = sys.modules['airio']
  checkout.stand_in_for_airio()
  assert sys.modules['airio'] is again
  for name in ('airio', 'airio.core'):
    monkeypatch.delitem(sys.modules, name)
  # The real one is left in its place.
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: types.SimpleNamespace())
  checkout.stand_in_for_airio()
  assert 'airio' not in sys.modules


def test_partition_spec_is_given_back(monkeypatch):
  import jax
  from jax.experimental import pjit

  monkeypatch.delattr(pjit, 'PartitionSpec', raising=False)
  checkout.give_back_partition_spec()
  assert pjit.PartitionSpec is jax.sharding.PartitionSpec
  monkeypatch.delattr(pjit, 'PartitionSpec')
