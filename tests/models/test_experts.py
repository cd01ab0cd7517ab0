"""Mixtures of experts: against transformers, on meshes, with adapters, and the products of rows
with the matrix of their group.
"""

import functools

from hypothesis import given, settings, strategies
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models import grouped, lora
from crossin_jax.models.decoder import Decoder
from crossin_jax.models.decoder_config import DecoderConfig
from crossin_jax.models.experts import ROUTER
from crossin_jax.models.lora import LoraConfig
from crossin_jax.training import losses, router
from crossin_jax.training import state as train_state

MESHES = {
  'experts 4': (1, 1, 1, 4),
  'fsdp 2, experts 2': (1, 2, 1, 2),
  'tensor 2, experts 2': (1, 1, 2, 2),
  'data 2, fsdp 2': (2, 2, 1),
  'tensor 4': (1, 1, 4),
}


def small(**changes) -> DecoderConfig:
  return DecoderConfig(**{
    'vocab_size': 64, 'embed_dim': 16, 'num_layers': 2, 'num_heads': 4, 'num_kv_heads': 4,
    'mlp_dim': 8, 'num_experts': 8, 'experts_per_token': 3, 'router_loss': 0.1,
    'router_z_loss': 0.01, **changes,
  })  # fmt: skip


def batch_of(rows=8, length=12) -> dict:
  rng = np.random.default_rng(0)
  segments = np.repeat([[1] * 6 + [2] * 4 + [0] * 2], rows, axis=0).astype(np.int32)
  tokens = lambda: rng.integers(0, 64, (rows, length)).astype(np.int32)
  return {
    'decoder_input_tokens': tokens(), 'decoder_target_tokens': tokens(),
    'decoder_segment_ids': segments,
    'decoder_positions': np.array([[*range(6), *range(4), 0, 1]] * rows, np.int32),
    'decoder_loss_weights': (segments > 0) * rng.random((rows, length)),
    'decoder_task_ids': np.zeros((rows, length), np.int32),
  }  # fmt: skip


def loss_and_gradients(config, shape, batch, noise=0.0):
  model = Decoder(config)
  partition = Partitioner(shape, devices=jax.devices()[: int(np.prod(shape))])
  with partition.activate():
    shardings = jax.tree.map(
      lambda leaf: leaf.sharding, train_state.parameter_shapes(model, partition)
    )
    init = lambda key: model.init(
      key, jnp.ones((1, 4), jnp.int32), jnp.ones((1, 4), jnp.int32), enable_dropout=False
    )['params']
    params = jax.jit(init)(jax.random.key(0))
    if noise:  # adapters begin at zero
      rng = np.random.default_rng(1)
      params = jax.tree.map(lambda leaf: leaf + noise * rng.standard_normal(leaf.shape), params)
    params = jax.device_put(params, shardings)
    on_mesh = {
      name: jax.device_put(value, partition.batch_sharding) for name, value in batch.items()
    }
    value = lambda params, batch: losses.batch_loss(model, params, batch, 1)
    (loss, sums), gradients = jax.jit(jax.value_and_grad(value, has_aux=True))(params, on_mesh)
    return jax.device_get((loss, sums, gradients))


# Kind of model -> its fields: as most families are, with adapters, or with the parts of gpt-oss.
KINDS = {
  'plain': {},
  'adapters': {'lora': LoraConfig(rank=4, base_dtype='float32')},
  'biases and sinks': {
    'mlp_bias': True, 'router_bias': True, 'swiglu_limit': 1.0, 'attention_sinks': True,
    'attention_bias': 'all', 'attention': 'blockwise',
  },
}  # fmt: skip


def on_mesh(kind: str, shape):
  config = small(dtype='float64', param_dtype='float64', **KINDS[kind])
  # Adapters and biases begin at zero.
  return loss_and_gradients(config, shape, batch_of(), 0.0 if kind == 'plain' else 0.1)


@functools.cache
def reference(kind: str):
  return on_mesh(kind, (1, 1, 1))


@pytest.mark.parametrize(
  'name, kind',
  [
    *((name, 'plain') for name in MESHES),
    ('fsdp 2, experts 2', 'adapters'),
    ('fsdp 2, experts 2', 'biases and sinks'),
    ('tensor 2, experts 2', 'biases and sinks'),
  ],
)
def test_every_mesh_gives_what_one_device_gives(name, kind):
  with jax.enable_x64(True):
    wanted = reference(kind)
    found = on_mesh(kind, MESHES[name])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), found, wanted)
  assert np.abs(wanted[2]['decoder']['layers']['mlp']['router']).max() > 1e-3


def test_no_token_is_dropped_and_padding_does_not_count():
  _, sums, _ = loss_and_gradients(small(), (1, 1, 1), batch_of())
  real = 8 * 10 * 2  # rows, tokens, layers
  assert sums.router.tokens == real and sums.router.chosen_X.sum() == 3 * real
  np.testing.assert_allclose(sums.router.probability_X.sum(), real, rtol=1e-5)


@pytest.mark.parametrize('parts', [{}, {'mlp_bias': True, 'swiglu_limit': 0.5}], ids=str)
def test_all_tokens_may_choose_the_same_expert(parts):
  """The worst case of a dropless layout: equal router rows send every token to the first experts."""
  config = small(num_layers=1, experts_per_token=1, **parts)
  model, batch = Decoder(config), batch_of()
  tokens = batch['decoder_input_tokens']
  params = model.init(jax.random.key(0), tokens, tokens, enable_dropout=False)['params']
  of_mlp = params['decoder']['layers']['mlp']
  of_mlp['router'] = jnp.zeros_like(of_mlp['router'])
  for name in ('gate', 'up', 'down') if parts else ():
    of_mlp[name]['bias'] += jax.random.normal(jax.random.key(1), of_mlp[name]['bias'].shape)
  apply = lambda params: model.apply(
    {'params': params}, tokens, tokens, enable_dropout=False, mutable=[ROUTER]
  )
  logits, variables = apply(params)
  assert router.sums_of(variables).chosen_X.tolist() == [tokens.size] + [0] * 7
  # Then it is a dense model with the MLP of the first expert.
  dense = Decoder(small(num_layers=1, num_experts=0, **parts))
  for name in ('gate', 'up', 'down'):
    of_mlp[name] = {leaf: value[:, 0] for leaf, value in of_mlp[name].items()}
  del of_mlp['router']
  wanted = dense.apply({'params': params}, tokens, tokens, enable_dropout=False)
  np.testing.assert_allclose(logits, wanted, atol=1e-5)


def test_balance_loss_is_that_of_transformers():
  torch = pytest.importorskip('torch', reason='needs the extra `test`')
  theirs = pytest.importorskip(
    'transformers.models.mixtral.modeling_mixtral', reason='needs the extra `test`'
  )
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((3, 40, 6)).astype(np.float32)  # layers, tokens, experts
  mask = rng.integers(0, 2, (4, 10))
  wanted = theirs.load_balancing_loss_func(
    tuple(map(torch.tensor, logits)), 6, 2, torch.tensor(mask)
  )
  probability = np.asarray(jax.nn.softmax(logits))
  chosen = np.eye(6)[np.argsort(-probability, axis=-1)[..., :2]].sum(axis=2)
  real = mask.reshape(1, 40, 1)
  sums = router.RouterSums(
    jnp.asarray((chosen * real).sum((0, 1))), jnp.asarray((probability * real).sum((0, 1))),
    jnp.zeros(()), jnp.asarray(3.0 * mask.sum()),
  )  # fmt: skip
  np.testing.assert_allclose(router.balance_loss(sums), wanted, rtol=1e-6)


def test_dropout_on_adapters_of_experts_is_refused():
  with pytest.raises(ValueError, match='leave gate, up and down out'):
    small(lora=LoraConfig(dropout=0.1))
  small(lora=LoraConfig(dropout=0.1, targets=('query', 'value')))
  with pytest.raises(ValueError, match='not between 1 and the 8 experts'):
    small(experts_per_token=9)
  with pytest.raises(ValueError, match="swiglu_limit needs mlp_activation 'silu'"):
    small(swiglu_limit=7.0, mlp_activation='gelu')


def test_adapters_folded_into_the_experts_change_nothing():
  config = small(lora=LoraConfig(rank=2, base_dtype='float32'))
  model, tokens = Decoder(config), batch_of()['decoder_input_tokens']
  rng = np.random.default_rng(0)
  params = model.init(jax.random.key(0), tokens, tokens, enable_dropout=False)['params']
  params = jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape), params)
  wanted = model.apply({'params': params}, tokens, tokens, enable_dropout=False)
  plain = Decoder(small())
  folded = lora.folded(params, config.lora)
  found = plain.apply({'params': folded}, tokens, tokens, enable_dropout=False)
  np.testing.assert_allclose(found, wanted, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
  groups=strategies.lists(
    strategies.lists(strategies.integers(0, 4), min_size=2, max_size=2, unique=True),
    min_size=1, max_size=9,
  ),
  block=strategies.sampled_from([1, 2, 8]),
)  # fmt: skip
def test_grouped_products_equal_one_product_a_choice(groups, block):
  """Group 4 of 4 is not here: its choices give 0."""
  groups = np.array(groups)
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((len(groups), 3)), jnp.float32)
  kernels = jnp.asarray(rng.standard_normal((4, 3, 5)), jnp.float32)
  weight = rng.standard_normal((*groups.shape, 5)).astype(np.float32)

  def ours(x, kernels):
    where = grouped.layout(jnp.asarray(groups), 4, block)
    return grouped.returned(grouped.product(grouped.dispatched(x, where), kernels, where), where)

  def plainly(x, kernels):
    padded = jnp.concatenate([kernels, jnp.zeros((1, 3, 5))])
    return jnp.einsum('ne,nkef->nkf', x, padded[groups])

  np.testing.assert_allclose(ours(x, kernels), plainly(x, kernels), atol=1e-5)
  of = lambda function: jax.grad(lambda *a: (weight * function(*a) ** 2).sum(), argnums=(0, 1))
  for found, wanted in zip(of(ours)(x, kernels), of(plainly)(x, kernels)):
    np.testing.assert_allclose(found, wanted, atol=1e-4)
