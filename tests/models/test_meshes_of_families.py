"""Every family on meshes of every kind: one step of training gives the loss, gradient and
parameters of one device.
"""

import itertools

import jax
from models.huggingface.test_families import MODELS, SIZES, transformers
import numpy as np
import optax
import pytest

from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import Decoder
from crossin_jax.models.huggingface import families
from crossin_jax.training import state as train_state
from crossin_jax.training.optimizers import Optimizer

# One of each kind of block: positions by another formula, or one window more, are cut no
# differently.
FAMILIES = (
  'llama3',
  'llama_biases',
  'mistral',
  'qwen2',
  'qwen3',
  'gemma',
  'gemma2',
  'gemma3',
  'phi3',
  'olmo2',
  'smollm',
  'ministral3',
  'granite',
  'smollm3',
  'cohere_plus',
  'cohere2',
  'apertus',
  'gemma4',
)
SHAPES = [shape for shape in itertools.product((1, 2, 4), repeat=3) if np.prod(shape) == 4]
LENGTH, ROWS = 32, 8


def packed_batch(vocabulary: int) -> dict:
  """Rows of two segments and some padding."""
  rng = np.random.default_rng(0)
  segments = np.repeat([[1] * 14 + [2] * 12 + [0] * 6], ROWS, axis=0).astype(np.int32)
  positions = np.array([[*range(14), *range(12), *range(6)]] * ROWS, np.int32)
  tokens = lambda: rng.integers(0, vocabulary, (ROWS, LENGTH)).astype(np.int32)
  return {
    'decoder_input_tokens': tokens(), 'decoder_target_tokens': tokens(),
    'decoder_segment_ids': segments,
    'decoder_positions': positions,
    'decoder_loss_weights': (segments > 0).astype(np.float32) * rng.random((ROWS, LENGTH)),
    'decoder_task_ids': np.zeros((ROWS, LENGTH), np.int32),
  }  # fmt: skip


def step(model, shape, params=None) -> tuple[float, float, dict, dict]:
  """(loss, gradient norm, parameters after one step on a mesh, parameters before it); the first
  ones are drawn, or `params`.
  """
  partition = Partitioner(shape, devices=jax.devices()[: int(np.prod(shape))])
  optimizer = Optimizer(optax.sgd(1.0), lambda count: 1.0)
  with partition.activate():
    abstract = train_state.state_shardings(model, optimizer.transform, partition)
    if params is not None:
      params = jax.tree.map(
        lambda x, leaf: jax.device_put(x, leaf.sharding), params, abstract.params
      )
    state = train_state.init_state(model, optimizer.transform, abstract, 0, params)
    before = jax.device_get(state.params)
    batch = {
      name: jax.device_put(
        value.astype(np.float32) if value.dtype == np.float64 else value, partition.batch_sharding
      )
      for name, value in packed_batch(model.config.vocab_size).items()
    }
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    run = jax.jit(
      train_state.make_train_step(model, optimizer, tasks=1), out_shardings=(shardings, None)
    )
    state, metrics = run(state, batch, jax.device_put(np.float32(np.inf), partition.replicated))
    cut = max(
      leaf.size / leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(state.params)
    )
    assert cut == shape[1] * shape[2]  # the largest matrices lie in as many pieces as there are
    figures = float(metrics.sums.loss), float(metrics.gradient_norm)
    return *figures, jax.device_get(state.params), before


@pytest.mark.slow
@pytest.mark.parametrize('name', FAMILIES)
def test_a_step_on_any_mesh_is_that_of_one_device(name, tmp_path):
  """One of the six factorisations of four devices for each family; over the families, each comes
  up.
  """
  kind, own = MODELS[name]
  settings = {
    key: value
    for key, value in {**SIZES, **own}.items()
    if value is not None or key == 'sliding_window'
  }
  getattr(transformers, kind)(**settings).save_pretrained(tmp_path)
  model = Decoder(families.from_huggingface(str(tmp_path)))
  loss, norm, params, before = step(model, (1, 1, 1))
  shape = SHAPES[FAMILIES.index(name) % len(SHAPES)]
  found = step(model, shape, before)
  np.testing.assert_allclose(found[:2], (loss, norm), rtol=2e-5, err_msg=str(shape))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found[2], params
  )
