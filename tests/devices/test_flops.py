"""FLOPs by formula against those that XLA counts in an unrolled model."""

from conftest import init_params, tiny_config
import jax
import jax.numpy as jnp
import pytest

from crossin_jax.devices import flops
from crossin_jax.models.decoder import Decoder
from crossin_jax.models.lora import LoraConfig


@pytest.mark.parametrize('changes', [
    {}, {'tie_embeddings': True, 'num_kv_heads': 4},
    {'layer_pattern': ('local', 'global'), 'window': 3},
])  # fmt: skip
def test_matrix_products_of_the_forward_pass(changes):
  """Exact: dot products counted in the traced program (attention there is over all keys, seen or
  not).
  """
  config = tiny_config(scan_layers=False, **changes)
  model, tokens = Decoder(config), jnp.zeros((2, 16), jnp.int32)
  params = jax.eval_shape(lambda: init_params(model))
  jaxpr = jax.make_jaxpr(
    lambda p: model.apply({'params': p}, tokens, tokens, enable_dropout=False)
  )(params)
  counted = 0
  for equation in _equations(jaxpr.jaxpr):
    if equation.primitive.name == 'dot_general':
      (contract, _), _ = equation.params['dimension_numbers']
      inner = 1
      for axis in contract:
        inner *= equation.invars[0].aval.shape[axis]
      counted += 2 * inner * equation.outvars[0].aval.size
  dense = (
    2 * flops.matrix_parameters(config)
    + config.num_layers * 4 * config.num_heads * config.head_dim * 16
  )
  assert counted == dense * tokens.size
  assert flops.forward_flops(config, 16) < dense


def _equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from _equations(inner)


def test_attention_sees_half_of_a_row_or_its_window():
  whole = flops.attention_flops(tiny_config(), 100)
  assert whole == 2 * 4 * 16 * 50.5
  local = flops.attention_flops(tiny_config(layer_pattern=('local',), window=10), 100)
  assert local == pytest.approx(2 * 4 * 16 * (55 + 90 * 10) / 100)


def test_adapters_spare_the_gradients_of_what_is_frozen():
  full, lora = tiny_config(), tiny_config(lora=LoraConfig(rank=1))
  shapes = jax.eval_shape(lambda: init_params(Decoder(lora)))
  adapters = [
    leaf.size
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    if 'lora_' in jax.tree_util.keystr(path)
  ]
  assert flops.adapter_parameters(lora) == sum(adapters)
  assert 2 / 3 < flops.training_flops(lora, 16) / flops.training_flops(full, 16) < 1


def test_nothing_is_claimed_where_the_peak_is_not_known():
  assert flops.peak_flops() is None and flops.utilisation(tiny_config(), 16, 1e6) is None
