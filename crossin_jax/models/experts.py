"""A mixture of experts in place of the MLP: every token uses a few of many MLPs (Shazeer et al.
2017).

Letters: B batch, L length, N tokens, E model width, F MLP width, X experts, K experts of a token,
P rows in the order of experts, R rank of an adapter.
"""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from crossin_jax.models import grouped, lora
from crossin_jax.models.attention.shards import axes_of, mesh_in_force, platform
from crossin_jax.models.decoder_config import DecoderConfig
from crossin_jax.models.mlp import gated
from crossin_jax.models.parameter import parameter

# Name of a kernel -> logical axes of its inputs and outputs.
_AXES = {'gate': ('embed', 'mlp'), 'up': ('embed', 'mlp'), 'down': ('mlp', 'embed')}
# Collection with what the router did, for losses and metrics.
ROUTER = 'router'


class Experts(nn.Module):
  """The sum over a token's experts of weight x down(gated(gate(x), up(x))), see `mlp.gated`.

  No token is dropped. Under a mesh each device routes its tokens; experts that are sharded over an
  axis of the batch (`expert`) see the tokens of all devices along it.
  """

  config: DecoderConfig

  @nn.compact
  def __call__(self, x_BLE: jax.Array, segments_BL: jax.Array | None) -> jax.Array:
    config = self.config
    param_dtype = jnp.dtype(config.param_dtype)
    weight_XE = parameter(
      self, 'router', nn.initializers.normal(config.embed_dim**-0.5),
      (config.num_experts, config.embed_dim), param_dtype, axes=('experts_of_router', 'embed'),
    )  # fmt: skip
    wide = jnp.promote_types(config.dtype, jnp.float32)
    logits_BLX = jnp.einsum(
      'ble,xe->blx', x_BLE, weight_XE.astype(x_BLE.dtype), preferred_element_type=wide
    )
    if config.router_bias:
      logits_BLX += parameter(
        self, 'router_bias', nn.initializers.zeros, (config.num_experts,), param_dtype,
        axes=('experts_of_router',),
      ).astype(wide)  # fmt: skip
    probability_BLX = jax.nn.softmax(logits_BLX)
    share_BLK, expert_BLK = jax.lax.top_k(probability_BLX, config.experts_per_token)
    if config.normalise_experts:
      share_BLK /= share_BLK.sum(axis=-1, keepdims=True)
    self._report(logits_BLX, probability_BLX, expert_BLK, segments_BL)
    kernels = {name: _Kernels(config, axes, name=name)() for name, axes in _AXES.items()}
    return _over_devices(config, x_BLE, expert_BLK, share_BLK.astype(x_BLE.dtype), kernels)

  def _report(self, logits_BLX, probability_BLX, expert_BLK, segments_BL) -> None:
    """Sows the sums over real tokens that router losses and metrics need, see `RouterSums`."""
    is_real_BL = jnp.ones(expert_BLK.shape[:2]) if segments_BL is None else segments_BL > 0
    real_BL1 = is_real_BL[..., None].astype(logits_BLX.dtype)
    experts = self.config.num_experts
    chosen_BLX = jax.nn.one_hot(expert_BLK, experts, dtype=logits_BLX.dtype).sum(axis=2)
    sums = {
      'chosen': (chosen_BLX * real_BL1).sum(axis=(0, 1)),
      'probability': (probability_BLX * real_BL1).sum(axis=(0, 1)),
      'squared_log_z': (jax.nn.logsumexp(logits_BLX, axis=-1) ** 2 * real_BL1[..., 0]).sum(),
      'tokens': real_BL1.sum(),
    }
    for name, value in sums.items():
      self.sow(ROUTER, name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None)


class _Kernels(nn.Module):
  """The kernels [X, inputs, outputs] of all experts, their biases, and their adapters."""

  config: DecoderConfig
  axes: tuple[str, str]

  @nn.compact
  def __call__(self) -> dict[str, jax.Array]:
    config = self.config
    sizes = {'embed': config.embed_dim, 'mlp': config.mlp_dim}
    inputs, outputs = (sizes[axis] for axis in self.axes)
    dtype, param_dtype = jnp.dtype(config.dtype), jnp.dtype(config.param_dtype)
    scaled = functools.partial(
      nn.initializers.variance_scaling, in_axis=-2, out_axis=-1, batch_axis=(0,)
    )

    def leaf(name, init, *shape, axes):
      return parameter(
        self, name, init, (config.num_experts, *shape), param_dtype, axes=('expert', *axes)
      )

    fan_in = scaled(1.0, 'fan_in', 'truncated_normal')
    kernel = leaf('kernel', fan_in, inputs, outputs, axes=self.axes)
    leaves = {'kernel': lora.dequantised(kernel, dtype)}
    if config.mlp_bias:
      bias = leaf('bias', nn.initializers.zeros, outputs, axes=self.axes[1:])
      leaves['bias'] = bias.astype(dtype)
    adapters = config.lora
    if adapters is not None and self.name in adapters.targets:
      spread, rank = scaled(1 / 3, 'fan_in', 'uniform'), adapters.rank
      a = leaf('lora_a', spread, inputs, rank, axes=(self.axes[0], 'lora_rank'))
      b = leaf('lora_b', nn.initializers.zeros, rank, outputs, axes=('lora_rank', self.axes[1]))
      leaves |= {'lora_a': a.astype(dtype), 'lora_b': (b * adapters.scale).astype(dtype)}
    return leaves


def _over_devices(config: DecoderConfig, x_BLE, expert_BLK, share_BLK, kernels) -> jax.Array:
  """`_of_device` on every device of the mesh in force."""
  rows = axes_of('batch', x_BLE.shape[0])
  expert, inner = axes_of('expert', config.num_experts), axes_of('mlp', config.mlp_dim)
  run = functools.partial(
    _of_device, config, expert=expert, inner=inner, gathered=tuple(a for a in expert if a in rows)
  )
  if not rows and not expert and not inner:
    return run(x_BLE, expert_BLK, share_BLK, kernels)
  of_tokens = PartitionSpec(rows or None, None, None)

  def spec(name, leaf):
    inputs, outputs = (inner or None if axis == 'mlp' else None for axis in _AXES[name])
    if leaf == 'bias':
      return PartitionSpec(expert or None, outputs)
    if leaf == 'lora_a':
      outputs = None
    return PartitionSpec(expert or None, None if leaf == 'lora_b' else inputs, outputs)

  specs = {name: {leaf: spec(name, leaf) for leaf in leaves} for name, leaves in kernels.items()}
  mapped = jax.shard_map(
    run, mesh=mesh_in_force(), in_specs=(of_tokens, of_tokens, of_tokens, specs),
    out_specs=of_tokens, check_vma=False,
  )  # fmt: skip
  return mapped(x_BLE, expert_BLK, share_BLK, kernels)


def _of_device(
  config: DecoderConfig, x_BLE, expert_BLK, share_BLK, kernels, *, expert, inner, gathered
) -> jax.Array:
  """The experts of one device on its tokens.

  Args:
    expert: mesh axes that shard the experts; inner: those that shard F.
    gathered: those of `expert` that shard the tokens too, which are collected along them.
  """
  if gathered:
    gather = lambda value: jax.lax.all_gather(value, gathered, axis=0, tiled=True)
    x_BLE, expert_BLK, share_BLK = gather(x_BLE), gather(expert_BLK), gather(share_BLK)
  here = kernels['down']['kernel'].shape[0]
  first = jax.lax.axis_index(expert) * here if expert else 0
  local_NK = expert_BLK.reshape(-1, expert_BLK.shape[-1]) - first
  local_NK = jnp.where((local_NK >= 0) & (local_NK < here), local_NK, here)
  block = grouped.block_size(local_NK.size, config.num_experts, platform())
  where = grouped.layout(local_NK, here, block)
  rows_PE = grouped.dispatched(x_BLE.reshape(-1, x_BLE.shape[-1]), where)
  gate_PF, up_PF = (_adapted(rows_PE, kernels[name], where) for name in ('gate', 'up'))
  down = dict(kernels['down'])
  if inner and 'bias' in down:  # the sum over F adds it once
    down['bias'] = jnp.where(jax.lax.axis_index(inner) == 0, down['bias'], 0)
  out_NKE = grouped.returned(_adapted(gated(config, gate_PF, up_PF), down, where), where)
  share_NK1 = share_BLK.reshape(-1, share_BLK.shape[-1], 1)
  out_BLE = (out_NKE * share_NK1).sum(axis=1).reshape(x_BLE.shape)
  if gathered:
    out_BLE = jax.lax.psum_scatter(out_BLE, gathered, scatter_dimension=0, tiled=True)
  summed = (*(axis for axis in expert if axis not in gathered), *inner)
  return jax.lax.psum(out_BLE, summed) if summed else out_BLE


def _adapted(x_P: jax.Array, leaves: dict[str, jax.Array], where: grouped.Layout) -> jax.Array:
  """Rows times the kernels of their experts, with biases and adapters."""
  y_P = grouped.product(x_P, leaves['kernel'], where)
  if 'bias' in leaves:
    ones_P1 = jnp.ones((x_P.shape[0], 1), x_P.dtype)
    y_P += grouped.product(ones_P1, leaves['bias'][:, None], where)
  if 'lora_a' in leaves:
    y_P += grouped.product(grouped.product(x_P, leaves['lora_a'], where), leaves['lora_b'], where)
  return y_P
