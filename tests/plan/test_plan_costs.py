"""Formulas of a plan against JAX's own count of the same step."""

import dataclasses

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import Decoder
from crossin_jax.models.decoder_config import DecoderConfig
from crossin_jax.models.lora import LoraConfig
from crossin_jax.plan import costs
from crossin_jax.plan import step as plan_step
from crossin_jax.plan import topology as plan_topology
from crossin_jax.training import optimizers
from crossin_jax.training import state as train_state

# Matrices large enough that what is not a product of matrices is lost beside them.
TWO_LAYERS = DecoderConfig(
  vocab_size=2048, embed_dim=1024, num_layers=2, num_heads=8, num_kv_heads=4, head_dim=128,
  mlp_dim=4096, dtype='bfloat16',
  scan_layers=False,
)  # fmt: skip


def setting_of(config, batch_size=64, length=64, microbatches=1):
  return plan_step.Setting(
    Decoder(config), optimizers.adamw(total_steps=10), batch_size, length, microbatches
  )


def one_device():
  return Partitioner((1, 1, 1), devices=jax.devices()[:1])


def counted(setting, partition):
  """Operations of the real step as XLA counts them, its layers unrolled."""
  step = train_state.make_train_step(setting.model, setting.optimizer, tasks=1)
  state, batch = (
    plan_step.abstract_state(setting, partition),
    plan_step.abstract_batch(setting, partition),
  )
  return (
    jax.jit(step)
    .lower(state, batch, jax.ShapeDtypeStruct((), jnp.float32))
    .cost_analysis()['flops']
  )


@pytest.mark.parametrize('changes', [
  {}, {'remat': 'full'}, {'remat': 'full', 'norm_placement': 'both', 'tie_embeddings': True},
])  # fmt: skip
def test_operations_of_two_unrolled_layers(changes):
  partition, setting = one_device(), setting_of(dataclasses.replace(TWO_LAYERS, **changes))
  figures = costs.figures(setting, (1, 1, 1), plan_step.state_bytes(setting, partition))
  np.testing.assert_allclose(counted(setting, partition), figures.executed_flops, rtol=0.01)
  if not changes.get('remat'):
    assert figures.executed_flops == figures.model_flops


@pytest.mark.parametrize('targets', [LoraConfig().targets, ('query', 'down')])
def test_operations_with_adapters(targets):
  """In front of the first layer no gradient is needed; a loop over the layers computes it there
  too.
  """
  lora = LoraConfig(rank=64, targets=targets)
  partition, setting = one_device(), setting_of(dataclasses.replace(TWO_LAYERS, lora=lora))
  state = plan_step.state_bytes(setting, partition)
  figures = costs.figures(setting, (1, 1, 1), state)
  np.testing.assert_allclose(counted(setting, partition), figures.model_flops, rtol=0.01)
  assert figures.model_flops == figures.executed_flops
  looped = costs.figures(setting.replace(scan_layers=True), (1, 1, 1), state)
  assert looped.model_flops == figures.model_flops < looped.executed_flops


def test_what_is_kept_for_the_backward_pass():
  config = dataclasses.replace(TWO_LAYERS, scan_layers=True, num_layers=6)
  of = lambda remat, length=128: costs.saved_bytes(
    Decoder(dataclasses.replace(config, remat=remat)), length, 2
  )[0]
  none, minimal, full = of('none'), of('minimal'), of('full')
  assert full < minimal < none
  # 'full' keeps the input of each block in bf16; beside them the final norm and the loss, which do
  # not grow with depth.
  deeper = costs.saved_bytes(
    Decoder(dataclasses.replace(config, remat='full', num_layers=10)), 128, 2
  )[0]
  assert deeper - full == 2 * 4 * 128 * 1024 * 2
  internal = 2 * costs.internal_bytes(Decoder(config), 128)
  assert 0.5 * none < internal < none


def test_one_row_more_is_another_loss():
  """With 1,024 tokens and 128k words one row has whole logits, and two are cut into chunks."""
  config = dataclasses.replace(TWO_LAYERS, vocab_size=128_256, remat='full', dtype='bfloat16')
  (one, logits), (two, none) = (costs.saved_bytes(Decoder(config), 1024, n) for n in (1, 2))
  assert logits >= 1024 * 128_256 * 4 and none == 0
  # What the chunks keep is bf16: for two rows as much as the logits of one in f32.
  assert 2 * 1024 * 128_256 * 2 < two < 1.1 * one
  gin.bind_parameter('cross_entropy.keep', False)
  assert costs.saved_bytes(Decoder(config), 1024, 2)[0] < two / 10


def test_bytes_of_a_state_are_cut_as_the_mesh_says():
  topology = plan_topology.parse('h100:8')
  setting = setting_of(dataclasses.replace(TWO_LAYERS, scan_layers=True))
  whole = plan_step.state_bytes(setting, Partitioner((8, 1, 1), devices=topology.devices))
  cut = plan_step.state_bytes(setting, Partitioner((1, 8, 1), devices=topology.devices))
  parameters = 2 * (1024 * 1024 * 3 + 3 * 1024 * 4096 + 2 * 1024) + 2 * 2048 * 1024 + 1024
  assert whole.parameters == whole.all_parameters == cut.all_parameters == 4 * parameters
  assert whole.optimizer == pytest.approx(2 * whole.parameters, rel=1e-6)
  np.testing.assert_allclose(
    [whole.parameters / cut.parameters, whole.optimizer / cut.optimizer], 8, rtol=0.01
  )
  assert whole.batch == cut.batch == 6 * 8 * 64 * 4


@pytest.mark.parametrize('base_dtype, size', [('bfloat16', 2), ('int8', 1), ('nf4', 0.5 + 2 / 64)])
def test_bytes_of_a_frozen_base(base_dtype, size):
  if base_dtype != 'bfloat16':
    pytest.importorskip('qwix', reason='int8 and nf4 need the extra `quant`')
  config = dataclasses.replace(
    TWO_LAYERS, scan_layers=True, lora=LoraConfig(rank=4, base_dtype=base_dtype)
  )
  state = plan_step.state_bytes(setting_of(config), one_device())
  kernels, rest = 2 * (1024 * 1024 * 3 + 3 * 1024 * 4096), 2 * 2048 * 1024
  np.testing.assert_allclose(state.parameters - state.trained, kernels * size + rest * 2, rtol=0.01)
  assert state.trained < 0.05 * state.parameters


def test_the_bound_is_the_slowest_part():
  topology = plan_topology.parse('h100:8')
  partition, setting = Partitioner((1, 8, 1), devices=topology.devices), setting_of(TWO_LAYERS)
  figures = costs.figures(setting, (1, 8, 1), plan_step.state_bytes(setting, partition))
  bound = costs.bound(figures, topology, partition)
  assert bound.seconds == bound.parts[bound.binds] == max(bound.parts.values())
  assert bound.compute == figures.executed_flops / (8 * 989e12)
  assert bound.links == {'fsdp': figures.sent['fsdp'] / 450e9}
  slow = costs.bound(figures, topology, partition, {'slices': 1e12})
  assert slow.binds == 'network' and slow.seconds == 1e12 / 50e9
  assert costs.dollars_per_million_tokens(1.2, 16, 0.5, 65536) == pytest.approx(
    1.2 * 16 / 3600 * 0.5 / 0.065536
  )


def test_more_microbatches_keep_less_and_send_more():
  mesh, topology = (2, 4, 1), plan_topology.parse('h100:8')
  partition = Partitioner(mesh, devices=topology.devices)
  one, four = setting_of(TWO_LAYERS), setting_of(TWO_LAYERS, microbatches=4)
  state = plan_step.state_bytes(one, partition)
  first, second = (costs.figures(setting, mesh, state) for setting in (one, four))
  assert second.activations == pytest.approx(first.activations / 4, rel=1e-3)
  assert second.sent == {axis: pytest.approx(4 * size) for axis, size in first.sent.items()}
  assert second.model_flops == first.model_flops and second.memory_bytes > first.memory_bytes
