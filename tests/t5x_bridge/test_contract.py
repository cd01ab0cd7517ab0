"""T5X's side of the seams as literals, so that no T5X is needed to notice that one has moved."""

import dataclasses
import inspect
import types

from conftest import init_params, tiny_config, write_prepared
from flax import traverse_util
from flax.linen import partitioning as nn_partitioning
import gin
from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crossin_jax.checkpoints import manager, places
from crossin_jax.checkpoints import parameters as checkpoints
from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.data.prepared import PreparedMixture
from crossin_jax.data.stream import BatchStream
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models import lora
from crossin_jax.models.decoder import Decoder
from crossin_jax.models.lora import LoraConfig
from crossin_jax.t5x_bridge import data, model, summary, trainer
from crossin_jax.t5x_bridge import optimizers as bridge_optimizers
from crossin_jax.t5x_bridge.full_checkpoint import write
from crossin_jax.training import optimizers
from crossin_jax.training import state as train_state

# What t5x.models.DecoderOnlyModel passes to its module, and how.
POSITIONAL = ['decoder_input_tokens', 'decoder_target_tokens']
KEYWORDS = [
  'decoder_segment_ids', 'decoder_positions', 'decoder_causal_attention', 'enable_dropout',
  'decode', 'max_decode_length',
  'prefill', 'prefill_lengths',
]  # fmt: skip
# t5x.partitioning.standard_logical_axis_rules, and what gin_configs/t5x adds.
AXES = {
  'batch', 'vocab', 'embed', 'mlp', 'heads', 'kv', 'joined_kv', 'length', 'layers', 'stack',
  'mlp_activations',
  'relpos_buckets', 'abspos_buckets', 'lora_rank', 'embed_activation',
}  # fmt: skip
BATCH = {
  'decoder_input_tokens': 'int32', 'decoder_target_tokens': 'int32',
  'decoder_loss_weights': 'float32',
  'decoder_segment_ids': 'int32', 'decoder_positions': 'int32',
}  # fmt: skip
LAYER = [
  'mlp/down/kernel', 'mlp/gate/kernel', 'mlp/up/kernel', 'pre_attention_norm/scale',
  'pre_mlp_norm/scale',
  'self_attention/key/kernel', 'self_attention/out/kernel', 'self_attention/query/kernel',
  'self_attention/value/kernel',
]  # fmt: skip
PARAMETERS = sorted(
  ['decoder/final_norm/scale', 'decoder/lm_head', 'decoder/token_embedding']
  + [f'decoder/layers/{name}' for name in LAYER]
)


def test_call_signature():
  parameters = inspect.signature(Decoder.__call__).parameters
  assert list(parameters)[1:3] == POSITIONAL
  assert set(KEYWORDS) <= set(parameters)
  # T5X leaves out whatever it has not got.
  assert all(parameters[name].default is not inspect.Parameter.empty for name in KEYWORDS)
  assert (
    Decoder(tiny_config()).scan_layers and not Decoder(tiny_config(scan_layers=False)).scan_layers
  )


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'scan_layers': False},
    {'lora': LoraConfig(rank=2)},
    {
      'attention_bias': 'all',
      'mlp_bias': True,
      'qk_norm': 'head',
      'norm_placement': 'both',
      'tie_embeddings': True,
    },
    {'layer_pattern': ('local', 'global'), 'window': 4, 'num_layers': 5, 'qk_norm': 'joined'},
  ],
)
def test_every_parameter_has_axes_that_t5x_knows(changes):
  tokens = jnp.zeros((1, 4), jnp.int32)
  module = Decoder(tiny_config(**changes))
  variables = jax.eval_shape(
    lambda key: module.init(key, tokens, tokens, enable_dropout=False), jax.random.key(0)
  )
  axes = traverse_util.flatten_dict(
    dict(nn_partitioning.get_axis_names(variables['params_axes'])), sep='/'
  )
  params = traverse_util.flatten_dict(variables['params'], sep='/')
  assert axes.keys() == params.keys()
  for name, spec in axes.items():
    assert len(spec) == params[name].ndim and set(spec) <= AXES, (name, spec)


def test_checkpoint_tree():
  module, partition = Decoder(tiny_config()), Partitioner()
  with partition.activate():
    state = train_state.state_shardings(module, optimizers.adamw(10).transform, partition)
  names = sorted(traverse_util.flatten_dict(manager.to_tree(state), sep='/'))
  # As optax.chain(clip, adamw) has it: clip is 0 and empty; Adam, decay (empty), schedule are 1/0
  # to 1/2.
  adam = ['count', *(f'{moment}/{name}' for moment in ('mu', 'nu') for name in PARAMETERS)]
  states = [f'1/0/{name}' for name in adam] + ['1/2/count']
  assert names == sorted(
    [f'target/{name}' for name in PARAMETERS]
    + ['state/step']
    + [f'state/param_states/{name}' for name in states]
  )


@pytest.fixture
def stream(tmp_path):
  rng = np.random.default_rng(0)
  examples = [
    (rng.integers(0, 9, n).astype(np.int32), np.ones(n, np.float32))
    for n in rng.integers(2, 12, 60)
  ]
  name = write_prepared(
    tmp_path, {'a.en': (0.5, None, examples[:40]), 'b.zh': (0.5, None, examples[40:])}
  )
  return BatchStream(PreparedMixture(str(tmp_path), name), batch_size=4, length=16)


def test_batch_features(stream):
  batch = next(data.StreamIterator(stream))
  assert {name: str(value.dtype) for name, value in batch.items()} == BATCH
  assert all(value.shape == (4, 16) for value in batch.values())
  assert (batch['decoder_target_tokens'][batch['decoder_loss_weights'] > 0] == 0).any(), (
    'id 0 is trained'
  )


def test_an_iterator_gives_the_rows_of_its_host(stream):
  iterators = [data.StreamIterator(stream, i, 2) for i in range(2)]
  assert iterators[0].element_spec['decoder_positions'].shape == (2, 16)
  for step in range(5):
    parts, whole = [next(it) for it in iterators], stream.batch(step)
    for name in BATCH:
      np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])
  with pytest.raises(ValueError, match='does not divide into 3'):
    data.StreamIterator(stream, 0, 3)


def test_an_iterator_goes_on_where_it_was_saved(stream, tmp_path):
  first = data.StreamIterator(stream)
  for _ in range(3):
    next(first)
  first.save(tmp_path / 'state')
  second = data.StreamIterator(stream)
  second.restore(tmp_path / 'state')
  expected = stream.batch(3)
  for iterator in (first, second):
    np.testing.assert_array_equal(
      next(iterator)['decoder_input_tokens'], expected['decoder_input_tokens']
    )
  other = BatchStream(stream.mixture, batch_size=4, length=16, seed=1)
  with pytest.raises(ValueError, match='seed was 0, now 1'):
    data.StreamIterator(other).restore(tmp_path / 'state')


def test_an_older_run_goes_on_with_its_packing(stream, tmp_path):
  old = BatchStream(stream.mixture, batch_size=4, length=16, packing='first_fit')
  data.StreamIterator(old).save(tmp_path / 'state')
  iterator = data.StreamIterator(stream)
  iterator.restore(tmp_path / 'state')
  np.testing.assert_array_equal(
    next(iterator)['decoder_target_tokens'], old.batch(0)['decoder_target_tokens']
  )


@given(peeked=st.booleans(), taken=st.integers(0, 3), step=st.integers(0, 6))
def test_the_trainer_sets_the_stream_to_its_step(peeked, taken, step):
  """Through T5X's layers of iterators, whatever was peeked at."""
  from clu.data import dataset_iterator

  class Counting:
    batch_size, settings = 2, {}

    def batch(self, n, rows):
      return {'n': np.full((2, 1), n)[rows]}

  class Sharded:  # as t5x.utils.ShardedDatasetIterator
    def __init__(self, iterator):
      self._iterator = iterator

    def __next__(self):
      return next(self._iterator)

    def reset(self):
      self._iterator.reset()

  iterator = dataset_iterator.PeekableDatasetIterator(Sharded(data.StreamIterator(Counting())))
  for _ in range(taken):
    next(iterator)
  if peeked:
    iterator.peek_async().result()
  trainer.seek(iterator, step)
  assert [int(next(iterator)['n'][0, 0]) for _ in range(3)] == [step, step + 1, step + 2]
  trainer.seek(iter([1]), step)  # another stream is left alone


def test_changed_data_are_noticed_on_resume(stream, tmp_path):

  @dataclasses.dataclass
  class Config:
    mixture_or_task_name = stream.mixture.name
    task_feature_lengths = {'targets': 16}
    batch_size: int = 4
    seed: int | None = None

  run = tmp_path / 'run'
  get = lambda config, **more: data.t5x_dataset(
    config, 0, 1, None, data_dir=stream.mixture.directory, model_dir=str(run), **more
  )
  get(Config())
  get(Config(batch_size=8))  # nothing has been trained yet
  (run / 'checkpoint_0').mkdir()
  get(Config(batch_size=8))
  with pytest.raises(ValueError, match='batch_size was 8, now 4'):
    get(Config())
  get(Config(), new_stream=True)


def test_pairs_are_refused(tmp_path):
  pair = np.arange(3, dtype=np.int32), np.ones(3, np.float32), np.array([0, 1, 2], np.int8)
  name = write_prepared(tmp_path, {'pairs.en': (1.0, None, [pair])})
  config = types.SimpleNamespace(
    mixture_or_task_name=name, task_feature_lengths={'targets': 16}, batch_size=1, seed=None
  )
  with pytest.raises(ValueError, match='pairs.en .* has preference pairs, which the likelihood'):
    data.t5x_dataset(config, 0, 1, data_dir=str(tmp_path))


@pytest.mark.parametrize('optimizer', [optimizers.adamw, optimizers.adafactor])
def test_the_transform_trains_adapters_as_ours_and_nothing_else(optimizer):
  adapters = LoraConfig(rank=2)
  params = init_params(Decoder(tiny_config(lora=adapters)))
  ours, theirs = optimizer(10), bridge_optimizers.transform(optimizer(10), adapters)
  trained, frozen = lora.split(params, adapters)
  state, whole_state = ours.transform.init(trained), theirs.init(params)
  assert sum(x.size for x in jax.tree.leaves(whole_state)) == sum(
    x.size for x in jax.tree.leaves(state)
  )
  whole = params
  for step in range(3):
    gradients = jax.tree.map(lambda p: jnp.cos(p * (step + 1)), whole)
    updates, state = ours.transform.update(lora.split(gradients, adapters)[0], state, trained)
    trained = optax.apply_updates(trained, updates)
    updates, whole_state = theirs.update(gradients, whole_state, whole)
    whole = optax.apply_updates(whole, updates)
  found, rest = lora.split(whole, adapters)
  jax.tree.map(np.testing.assert_array_equal, rest, frozen)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, trained)
  assert bridge_optimizers.transform(ours, None) is ours.transform


@given(
  st.lists(
    st.tuples(st.integers(0, 4), st.lists(st.integers(0, 5), min_size=6, max_size=6)),
    min_size=1,
    max_size=4,
  ),
  st.integers(0, 5),
  st.integers(0, 5),
)
def test_predictions_end_where_they_ended(rows, stop, eos):
  prompts = np.array([prompt for prompt, _ in rows])
  # T5X zeroes the places that the prompt took, at the end of the row.
  tokens = np.array([ids[: 6 - prompt] + [0] * prompt for prompt, ids in rows])
  found = np.asarray(model.ended(jnp.asarray(tokens), jnp.asarray(prompts), stop, eos)).tolist()
  for (prompt, ids), row in zip(rows, found):
    answer = ids[: 6 - prompt]
    answer = answer[: answer.index(stop)] if stop in answer else answer
    assert row == answer + [eos] * (6 - len(answer))
  causal = (np.arange(6) <= prompts[:, None]).astype(np.int32)
  assert np.asarray(model.prompt_lengths(causal)).tolist() == prompts.tolist()


def test_quantised_bases_are_refused():
  module = Decoder(tiny_config(lora=LoraConfig(base_dtype='int8')))
  with pytest.raises(ValueError, match="'int8'.*does not support quantised parameters"):
    model.t5x_model(module, None)


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'lora': LoraConfig(rank=3, targets=('query', 'down'), rs_lora=True)},
    {
      'rope_scaling': {'rope_type': 'linear', 'factor': 8.0},
      'layer_pattern': ('local', 'global'),
      'window': 8,
    },
  ],
)
def test_config_gin_of_a_run_makes_the_same_model(changes):
  config = tiny_config(**changes)
  gin.parse_config(summary.model_config(config))
  made = gin.query_parameter('%MODEL').scoped_configurable_fn()
  assert made == Decoder(config)


def test_adapters_beside_the_whole_model_are_found(tmp_path):
  """T5X saves them so; a run that starts there goes on with them."""
  adapters = LoraConfig(rank=2, base_dtype='float32')
  module = Decoder(tiny_config(lora=adapters))
  params = init_params(module)
  path = checkpoints.save_params(str(tmp_path / 'both'), params, 7)
  assert SavedModel.open(path).has_adapters
  plain = checkpoints.save_params(str(tmp_path / 'plain'), lora.without_adapters(params))
  assert not SavedModel.open(plain).has_adapters
  written = write(path, str(tmp_path / 'again'), module)
  assert written.endswith('checkpoint_7')
  with Partitioner().activate():
    again = SavedModel.open(written).restore(
      train_state.parameter_shapes(module, Partitioner()), module
    )
  jax.tree.map(np.testing.assert_array_equal, again, params)
  with pytest.raises(places.CheckpointError, match='is there already'):
    write(path, str(tmp_path / 'again'), module)
