"""What the tests with a T5X checkout share: its place, a tiny base model, runs of its programs."""

import glob
import json
import os
import subprocess
import sys

from conftest import REPOSITORY
import pytest

STEPS, BATCH, LENGTH = 20, 8, 64
MODEL = {
  'vocab_size': 1200, 'embed_dim': 32, 'num_layers': 2, 'num_heads': 4, 'num_kv_heads': 2,
  'mlp_dim': 48,
  'tie_embeddings': False, 'remat': 'none', 'dtype': 'float32',
}  # fmt: skip
RATE = {'schedule.peak': 1e-2, 'schedule.warmup_ratio': 0.1}


def flags_of(values: dict) -> list[str]:
  """Gin values as flags."""
  return [
    f'--gin.{name}={value}' if str(value).startswith('@') else f'--gin.{name}={value!r}'
    for name, value in values.items()
  ]


def model_flags() -> list[str]:
  """Flags of the tiny model, on top of a model file."""
  return flags_of({f'DecoderConfig.{name}': value for name, value in MODEL.items()})


@pytest.fixture(scope='session')
def t5x_home() -> str:
  """The checkout, or a skip that says so."""
  home = os.environ.get('T5X_HOME')
  if not home:
    pytest.skip(
      'T5X_HOME names no T5X checkout: git clone https://github.com/google-research/t5x ~/t5x and '
      'set T5X_HOME=~/t5x'
    )
  return home


@pytest.fixture(scope='session')
def run_program(t5x_home):
  """A function (program or script, *arguments, devices=1) -> what it printed; fails if the program
  does.
  """

  def run(*arguments, devices=1):
    environment = {**os.environ, 'PYTHONPATH': str(REPOSITORY), 'T5X_HOME': t5x_home}
    flags = environment['XLA_FLAGS'].split()
    flags = [f for f in flags if 'device_count' not in f] + [
      f'--xla_force_host_platform_device_count={devices}'
    ]
    environment['XLA_FLAGS'] = ' '.join(flags)
    found = subprocess.run(
      [sys.executable, *map(str, arguments)],
      cwd=REPOSITORY,
      env=environment,
      capture_output=True,
      text=True,
    )
    assert found.returncode == 0, (
      f'{" ".join(map(str, arguments))}\n{found.stdout[-3000:]}\n{found.stderr[-9000:]}'
    )
    return found.stdout

  return run


@pytest.fixture(scope='session')
def t5x(run_program):
  """A function (program, gin files, values, devices=1): runs a program of T5X through the launcher."""

  def run(program, files, values, devices=1):
    files = ['gin_configs/models/llama_60m.gin', *files]
    return run_program(
      '-m', 'crossin_jax.t5x_bridge.run', program, *[f'--gin_file={f}' for f in files],
      *model_flags(), *flags_of(values),
      devices=devices,
    )  # fmt: skip

  return run


def t5x_losses(model_dir) -> dict[int, float]:
  """Step -> loss, from T5X's TensorBoard files."""
  from tensorboard.backend.event_processing import event_accumulator
  from tensorboard.util import tensor_util

  losses = {}
  for path in sorted(glob.glob(os.path.join(model_dir, 'train', 'events.*'))):
    events = event_accumulator.EventAccumulator(
      path, size_guidance={'tensors': 0, 'scalars': 0}
    ).Reload()
    for event in events.Tensors('loss') if 'loss' in events.Tags()['tensors'] else ():
      losses[event.step] = float(tensor_util.make_ndarray(event.tensor_proto))
    for event in events.Scalars('loss') if 'loss' in events.Tags()['scalars'] else ():
      losses[event.step] = event.value
  return losses


def our_losses(model_dir) -> dict[int, float]:
  """Step -> loss, from metrics.jsonl."""
  with open(os.path.join(model_dir, 'metrics.jsonl'), encoding='utf-8') as f:
    return {line['step']: line['loss'] for line in map(json.loads, f) if 'loss' in line}


def zero_tokenizer(world, directory, size: int) -> str:
  """A byte-level BPE tokenizer of the world; the most frequent token of its English questions has
  id 0. Returns its path.
  """
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers, trainers

  text = [
    row[key]
    for language in world.languages
    for row in world.instructions(language)
    for key in ('instruction', 'output')
  ]
  text += [row['output'] for language in world.languages for row in world.statements(language)]
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  tokenizer.train_from_iterator(
    text, trainers.BpeTrainer(vocab_size=size - 2, initial_alphabet=alphabet, show_progress=False)
  )
  tokenizer.add_special_tokens(['<s>', '</s>'])
  ids = [i for row in world.instructions('en') for i in tokenizer.encode(row['instruction']).ids]
  frequent = max(set(ids), key=ids.count)
  path = os.path.join(directory, 'tokenizer.json')
  tokenizer.save(path)
  with open(path, encoding='utf-8') as f:
    content = json.load(f)
  words = content['model']['vocab']
  by_id = {i: word for word, i in words.items()}
  words[by_id[0]], words[by_id[frequent]] = frequent, 0
  with open(path, 'w', encoding='utf-8') as f:
    json.dump(content, f)
  with open(os.path.join(directory, 'tokenizer_config.json'), 'w', encoding='utf-8') as f:
    json.dump({'bos_token': '<s>', 'eos_token': '</s>'}, f)
  return path
