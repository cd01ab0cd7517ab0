"""T5X's programs on this project's models and mixtures, beside its own trainer; the tokenizer's id
0 is its most frequent token.
"""

import glob
import json
import os
import shutil

from conftest import TINY_LANGUAGES, TINY_SHARES, init_params
from flax import traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from t5x_support import (  # noqa: F401  # fixtures among them
  BATCH,
  LENGTH,
  MODEL,
  RATE,
  STEPS,
  flags_of,
  model_flags,
  our_losses,
  run_program,
  t5x,
  t5x_home,
  t5x_losses,
  zero_tokenizer,
)

from crossin_jax import cli
from crossin_jax.checkpoints import parameters
from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.data.prepared import PreparedMixture, TaskSplit
from crossin_jax.data.stream import BatchStream
from crossin_jax.data.vocabulary import Vocabulary
from crossin_jax.decoding.generation import greedy
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import Decoder
from crossin_jax.models.decoder_config import DecoderConfig
from crossin_jax.models.lora import LoraConfig
from crossin_jax.t5x_bridge.full_checkpoint import write
from crossin_jax.training import losses
from crossin_jax.training import state as train_state

pytestmark = [pytest.mark.t5x, pytest.mark.slow]
MIXTURE = 'world.tested_shared_base_x2x.all.en_zh_vi_es.every'
LORA = {
  'DecoderConfig.lora': '@LoraConfig()', 'LoraConfig.rank': 4, 'LoraConfig.alpha': 8.0,
  'LoraConfig.dropout': 0.0,
  'LoraConfig.base_dtype': 'float32',
}  # fmt: skip
TRAINING = ['gin_configs/t5x/finetune.gin']


@pytest.fixture(scope='module')
def vocabulary(t5x_home, tmp_path_factory, tiny_world):  # noqa: F811
  return Vocabulary(
    zero_tokenizer(tiny_world, tmp_path_factory.mktemp('zero'), MODEL['vocab_size'])
  )


@pytest.fixture(scope='module')
def data(tmp_path_factory, tiny_world, vocabulary):
  """The x2x mixture of the tiny world, where a good part of all tokens is id 0."""
  from crossin_jax.world.sources import WorldInstructions, world_texts
  from seqio_tasks.crossin import Preset
  from seqio_tasks.mixtures import MixtureSettings
  from seqio_tasks.prepare import prepare

  directory = str(tmp_path_factory.mktemp('prepared'))
  settings = MixtureSettings(
    parallel=WorldInstructions(tiny_world), texts=world_texts(tiny_world), vocabulary=vocabulary,
    template='plain',
    presets=(Preset('every', assignment='every'),), validation_rows=6, max_length=LENGTH,
    rates='shares', shares=TINY_SHARES,
  )  # fmt: skip
  prepare(MIXTURE, directory, settings, workers=1)
  batch = BatchStream(PreparedMixture(directory, MIXTURE), batch_size=BATCH, length=LENGTH).batch(0)
  trained = batch['decoder_loss_weights'] > 0
  assert (batch['decoder_target_tokens'][trained] == 0).mean() > 0.02
  return directory


@pytest.fixture(scope='module')
def base(t5x_home, tmp_path_factory):  # noqa: F811
  """A checkpoint of random parameters."""
  directory = tmp_path_factory.mktemp('base')
  return parameters.save_params(str(directory), init_params(Decoder(DecoderConfig(**MODEL)), 1))


@pytest.fixture(scope='module')
def values(data, base):
  return {
    'DATA_DIR': data, 'MIXTURE_OR_TASK_NAME': MIXTURE, 'INITIAL_CHECKPOINT_PATH': base,
    'BATCH_SIZE': BATCH,
    'LENGTH': LENGTH, **RATE,
  }  # fmt: skip


def train_ours(values, model_dir, steps=STEPS, **more):
  values = {
    **values,
    'MODEL_DIR': str(model_dir),
    'TRAIN_STEPS': steps,
    'train.log_period': 1,
    **more,
  }
  files = ('gin_configs/models/llama_60m.gin', 'gin_configs/runs/defaults.gin')
  flags = [f'--gin_file={f}' for f in files] + ['--gin_bindings=import crossin_jax.models.lora']
  assert cli.main(['train', *flags, *model_flags(), *flags_of(values)]) == 0
  return str(model_dir)


@pytest.fixture(scope='module')
def train_theirs(t5x, values):  # noqa: F811
  def train(model_dir, files=TRAINING, steps=STEPS, devices=1, **more):
    given = {
      **values,
      'MODEL_DIR': str(model_dir),
      'TRAIN_STEPS': steps,
      'CHECKPOINT_PERIOD': 10,
      'STATS_PERIOD': 1,
      **more,
    }
    t5x('t5x.train', files, given, devices=devices)
    return str(model_dir)

  return train


@pytest.fixture(scope='module')
def ours(values, tmp_path_factory):
  return train_ours(
    values,
    tmp_path_factory.mktemp('ours'),
    **{'CheckpointConfig.period': 10, 'CheckpointConfig.keep': 5},
  )


@pytest.fixture(scope='module')
def theirs(train_theirs, tmp_path_factory):
  return train_theirs(tmp_path_factory.mktemp('theirs'))


@pytest.fixture(scope='module')
def their_adapters(train_theirs, tmp_path_factory):
  """LoRA in four microbatches on four devices, two of them for the model."""
  more = {**LORA, 'MICROBATCHES': 2, 'partitioning.PjitPartitioner.model_parallel_submesh': (1, 2)}
  return train_theirs(
    tmp_path_factory.mktemp('their_adapters'), ['gin_configs/t5x/lora.gin'], devices=4, **more
  )


def assert_same_losses(found: dict, wanted: dict, first: int = 1, last: int = STEPS):
  steps = range(first, last + 1)
  assert set(steps) <= set(found), found
  np.testing.assert_allclose([found[s] for s in steps], [wanted[s] for s in steps], rtol=1e-4)


def leaves(checkpoint) -> dict:
  """Parameters on disk, read by Orbax alone."""
  tree = ocp.PyTreeCheckpointer().restore(os.path.join(checkpoint, 'state'))
  return {
    path: np.asarray(leaf)
    for path, leaf in traverse_util.flatten_dict(tree['target'], sep='/').items()
  }


def test_full_tuning_has_the_same_losses(ours, theirs):
  found = our_losses(ours)
  assert found[STEPS] < found[1] - 0.5, 'nothing was learnt, so nothing is shown'
  assert_same_losses(t5x_losses(theirs), found)


def test_t5x_resumes_at_its_step(theirs, train_theirs, tmp_path):
  run = str(tmp_path / 'run')
  shutil.copytree(theirs, run)
  shutil.rmtree(os.path.join(run, f'checkpoint_{STEPS}'))
  shutil.rmtree(os.path.join(run, 'train'))
  assert_same_losses(t5x_losses(train_theirs(run)), t5x_losses(theirs), first=11)


@pytest.mark.parametrize('kind', ['theirs', 'their_adapters'])
def test_our_commands_take_t5x_runs(kind, request, tmp_path):
  run, out = request.getfixturevalue(kind), str(tmp_path / 'hf')
  assert (
    cli.main(
      ['export-hf', run, '--output_dir', out, '--format', 'full' if kind == 'theirs' else 'merged']
    )
    == 0
  )
  with open(os.path.join(out, 'config.json'), encoding='utf-8') as f:
    assert json.load(f)['hidden_size'] == MODEL['embed_dim']
  assert os.path.exists(os.path.join(out, 'tokenizer.json'))


def test_eval_gives_our_accuracy(theirs, vocabulary, t5x, tmp_path):  # noqa: F811
  rng, words = np.random.default_rng(0), 'What is the name of it and who told you that'.split()
  text = lambda: ' '.join(rng.choice(words, 5))
  rows = [
    {
      'premise': text(),
      'choice1': text(),
      'choice2': text(),
      'question': 'effect',
      'label': int(rng.integers(2)),
      'idx': i,
    }
    for i in range(16)
  ]
  path = tmp_path / 'xcopa'
  path.mkdir()
  (path / 'test.sw.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  given = {
    'VOCABULARY': vocabulary.path, 'BENCHMARK': 'xcopa', 'BENCHMARK_PATH': str(path),
    'LANGUAGES': ('sw',),
    'CHECKPOINT_PATH': os.path.join(theirs, f'checkpoint_{STEPS}'),
    'EVAL_OUTPUT_DIR': str(tmp_path / 'theirs'),
  }  # fmt: skip
  t5x('t5x.eval', ['gin_configs/t5x/eval.gin'], given)
  (found,) = glob.glob(str(tmp_path / 'theirs' / 'inference_eval' / '*sw*metrics.jsonl'))
  with open(found, encoding='utf-8') as f:
    figures = json.loads(f.readline())
  out = str(tmp_path / 'ours')
  arguments = [
    '--checkpoint',
    theirs,
    '--output_dir',
    out,
    '--benchmark',
    f'xcopa={path}',
    '--languages',
    'sw',
  ]
  assert cli.main(['evaluate', *arguments]) == 0
  with open(os.path.join(out, 'results.json'), encoding='utf-8') as f:
    (ours,) = [
      run
      for run in json.load(f)['runs']
      if run['benchmark'] == 'xcopa' and run['method'] == 'likelihood'
    ]
  assert figures['accuracy'] == pytest.approx(ours['accuracy']) and 0 < ours['accuracy'] < 1


def test_t5x_goes_on_with_our_run(ours, train_theirs, tmp_path):
  """Parameters, step and optimizer of our tenth step."""
  initial = os.path.join(ours, 'checkpoint_10')
  run = train_theirs(tmp_path / 'run', INITIAL_CHECKPOINT_PATH=initial, RESTORED=())
  assert_same_losses(t5x_losses(run), our_losses(ours), first=11)


def test_lora_has_the_same_losses_and_leaves_the_rest_alone(
  values, base, their_adapters, train_theirs, tmp_path
):
  """The adapters are drawn differently, so both trainers go on with T5X's first ones (its
  checkpoint before step 1).
  """
  begun = os.path.join(their_adapters, 'checkpoint_0')
  run = train_ours(values, tmp_path / 'run', **LORA, INITIAL_CHECKPOINT_PATH=begun)
  found = our_losses(run)
  assert found[STEPS] < found[1] - 0.05, 'nothing was learnt, so nothing is shown'
  assert_same_losses(t5x_losses(their_adapters), found)

  before, after = leaves(base), leaves(os.path.join(their_adapters, f'checkpoint_{STEPS}'))
  for path, leaf in before.items():
    assert after[path].tobytes() == leaf.tobytes(), path
  first = leaves(begun)
  adapters = [path for path in after if path.rsplit('/')[-1].startswith('lora_')]
  assert len(adapters) == 14 and len(after) == len(before) + 14
  assert all(np.abs(after[path] - first[path]).max() > 0 for path in adapters)

  # Our adapters, with the model beneath them, under T5X again.
  model = Decoder(DecoderConfig(**MODEL, lora=LoraConfig(rank=4, alpha=8.0, base_dtype='float32')))
  together = write(run, str(tmp_path / 'whole'), model)
  assert leaves(together).keys() == after.keys()
  more = {
    **LORA,
    'INITIAL_CHECKPOINT_PATH': together,
    'RESTORED': ((r'state/param_states.*', None), (r'state/step', None)),
  }
  again = train_theirs(tmp_path / 'again', ['gin_configs/t5x/lora.gin'], steps=1, **more)
  partition = Partitioner()
  with partition.activate():
    params = SavedModel.open(together).restore(
      train_state.parameter_shapes(model, partition), model
    )
    stream = BatchStream(
      PreparedMixture(values['DATA_DIR'], MIXTURE), batch_size=BATCH, length=LENGTH
    )
    _, sums = losses.batch_loss(model, params, stream.batch(0), len(stream.mixture.tasks))
  assert t5x_losses(again)[1] == pytest.approx(float(sums.loss / sums.weight), rel=1e-4)


def test_logits_shards_and_predictions(ours, theirs, data, vocabulary, run_program, tmp_path):  # noqa: F811
  """Inside T5X on four devices, two of them for the model."""
  batch = BatchStream(PreparedMixture(data, MIXTURE), batch_size=BATCH, length=LENGTH).batch(3)
  batch = {name: value for name, value in batch.items() if name != 'decoder_task_ids'}
  np.savez(tmp_path / 'batch.npz', **batch)
  rng = np.random.default_rng(0)
  # many zeros, at the ends too
  prompts = [rng.integers(0, 4, n).tolist() for n in (1, 3, 8, 20, 5, 2, 40, 12)]
  prompts[1], prompts[4] = [0, 0, 0], [5, 7, 0, 0, 0]
  inputs, causal = np.zeros((2, BATCH, LENGTH), np.int32)
  start = [] if vocabulary.bos_id is None else [vocabulary.bos_id]
  for row, prompt in enumerate(prompts):
    read = [*start, *prompt]
    inputs[row, : len(read)], causal[row, : len(read)] = read, 1
  np.savez(tmp_path / 'prompts.npz', decoder_input_tokens=inputs, decoder_causal_attention=causal)
  last = {
    name: os.path.join(path, f'checkpoint_{STEPS}')
    for name, path in {'theirs': theirs, 'ours': ours}.items()
  }
  asked = {'config': MODEL, 'checkpoints': last, 'vocabulary': {'path': vocabulary.path}}
  (tmp_path / 'asked.json').write_text(json.dumps(asked))
  run_program(os.path.join(os.path.dirname(__file__), 'library_checks.py'), tmp_path, devices=4)
  answers = np.load(tmp_path / 'answers.npz')

  model, partition = Decoder(DecoderConfig(**MODEL)), Partitioner()
  with partition.activate():
    for name, path in last.items():
      params = SavedModel.open(path).restore(train_state.parameter_shapes(model, partition), model)
      logits = jax.jit(lambda p: losses.apply_model(model, p, batch)[0])(params)
      real = batch['decoder_segment_ids'] > 0
      np.testing.assert_allclose(
        answers[f'logits {name}'][real], np.asarray(logits)[real], atol=2e-5, rtol=1e-4
      )
    for row, prompt in enumerate(prompts):
      room = LENGTH - len([*start, *prompt]) + 1
      found = greedy(
        model,
        params,
        partition,
        [prompt],
        bos_id=vocabulary.bos_id,
        eos_id=vocabulary.eos_id,
        max_new_tokens=room,
      )[0]
      assert answers['predictions'][row].tolist() == found + [vocabulary.eos_id] * (
        LENGTH - len(found)
      ), row
  assert (answers['predictions'] == 0).any(), 'no prediction holds id 0, so nothing is shown'

  shards = json.loads((tmp_path / 'shards.json').read_text())
  vocab, width, hidden, layers = (
    MODEL['vocab_size'],
    MODEL['embed_dim'],
    MODEL['mlp_dim'],
    MODEL['num_layers'],
  )
  adam = 'state/param_states/inner_states/train/inner_state/1/0/mu/decoder/layers'
  wanted = {
    'target/decoder/token_embedding': [[vocab, width], [vocab // 2, width]],
    'target/decoder/lm_head': [[width, vocab], [width, vocab // 2]],
    'target/decoder/layers/mlp/up/kernel': [[layers, width, hidden], [layers, width, hidden // 2]],
    'target/decoder/layers/mlp/down/kernel': [
      [layers, hidden, width],
      [layers, hidden // 2, width],
    ],
    'target/decoder/layers/self_attention/query/kernel': [
      [layers, width, width],
      [layers, width, width // 2],
    ],
    'target/decoder/layers/mlp/up/lora_a': [[layers, width, 4], [layers, width, 4]],
    'target/decoder/layers/mlp/up/lora_b': [[layers, 4, hidden], [layers, 4, hidden // 2]],
    f'{adam}/mlp/up/lora_b': [[layers, 4, hidden], [layers, 4, hidden // 2]],
    f'{adam}/mlp/down/lora_a': [[layers, hidden, 4], [layers, hidden // 2, 4]],
  }
  for path, shapes in wanted.items():
    assert shards['lora'][path] == shapes, path
  moments = {path: shapes for path, shapes in shards['adafactor'].items() if '/v/decoder' in path}
  assert moments
  for path, (shape, shard) in moments.items():
    parameter = shards['adafactor']['target/' + path.split('/v/')[1]]
    assert shard == (parameter[1] if shape == parameter[0] else shape), path


def test_infer_gives_our_greedy_answers(theirs, vocabulary, t5x, tmp_path):  # noqa: F811
  checkpoint = os.path.join(theirs, f'checkpoint_{STEPS}')
  mixture = 'world.x2x.all.en_zh.every'
  given = {
    'CHECKPOINT_PATH': checkpoint, 'INFER_OUTPUT_DIR': str(tmp_path / 'out'),
    'MIXTURE_OR_TASK_NAME': mixture,
    'VOCABULARY': vocabulary.path, 'LENGTH': LENGTH, 'BATCH_SIZE': 8, 'LANGUAGES': TINY_LANGUAGES,
    'World.tuning_entities': 6,
    'World.test_entities': 12, 'MixtureSettings.validation_rows': 6, 'SHARES': {'x2x': 1.0},
  }  # fmt: skip
  t5x('t5x.infer', ['gin_configs/mixtures/world.gin', 'gin_configs/t5x/infer.gin'], given)
  rows = {}
  for path in glob.glob(str(tmp_path / 'out' / '*.jsonl-00000-of-00001')):
    with open(path, encoding='utf-8') as f:
      rows[os.path.basename(path).split('-predict')[0]] = [json.loads(line) for line in f]
  assert sum(map(len, rows.values())) >= 8

  from crossin_jax.world.sources import WorldInstructions
  from crossin_jax.world.world import World
  from seqio_tasks.crossin import Preset
  from seqio_tasks.mixtures import MixtureSettings
  from seqio_tasks.prepare import prepare

  world = World(languages=TINY_LANGUAGES, tuning_entities=6, test_entities=12)
  settings = MixtureSettings(
    parallel=WorldInstructions(world), vocabulary=vocabulary, template='plain', max_length=LENGTH,
    validation_rows=6,
    presets=(Preset('every', assignment='every'),),
  )  # fmt: skip
  prepare(mixture, str(tmp_path / 'prepared'), settings, workers=1)
  model, partition, zeros = Decoder(DecoderConfig(**MODEL)), Partitioner(), 0
  with partition.activate():
    params = SavedModel.open(checkpoint).restore(
      train_state.parameter_shapes(model, partition), model
    )
    for task, found in rows.items():
      split = TaskSplit(str(tmp_path / 'prepared'), task, 'validation')
      assert [row['id'] for row in found] == [split.id(i) for i in range(len(split))]
      for i, row in enumerate(found):
        tokens, weights = split.example(i)
        prompt = tokens[: int(np.argmax(weights > 0))].tolist()
        answer = greedy(
          model, params, partition, [prompt], bos_id=vocabulary.bos_id, eos_id=vocabulary.eos_id,
          max_new_tokens=LENGTH - len(prompt),
        )[0]  # fmt: skip
        zeros += answer.count(0) + prompt.count(0)
        assert row['prediction'] == vocabulary.decode(answer), (task, i)
  assert zeros
