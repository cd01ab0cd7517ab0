"""The MLP of a block, and its activations.

Letters: B batch, L length, E model width, F MLP width.
"""

import math

from flax import linen as nn
from flax.linen.partitioning import with_sharding_constraint
import jax
import jax.numpy as jnp

from crossin_jax.models.decoder_config import ACTIVATIONS, DecoderConfig
from crossin_jax.models.dense import Dense
from crossin_jax.models.parameter import parameter


class MLP(nn.Module):
  """down(activation(gate(x)) * up(x)) (Shazeer 2020), or down(activation(up(x))) without gate."""

  config: DecoderConfig

  @nn.compact
  def __call__(self, x_BLE: jax.Array, deterministic: bool) -> jax.Array:
    config = self.config
    dense = lambda name, features, axes: Dense(features, axes, config, config.mlp_bias, name=name)
    wide = lambda name: dense(name, config.mlp_dim, ('embed', 'mlp'))(x_BLE, deterministic)
    if config.mlp_gate:
      hidden_BLF = gated(config, wide('gate'), wide('up'))
    else:
      hidden_BLF = activation(config, wide('up'))
    hidden_BLF = with_sharding_constraint(hidden_BLF, ('batch', 'length', 'mlp'))
    return dense('down', config.embed_dim, ('mlp', 'embed'))(hidden_BLF, deterministic)


def gated(config: DecoderConfig, gate: jax.Array, up: jax.Array) -> jax.Array:
  """activation(gate) * up, or the clamped form of `DecoderConfig.swiglu_limit`."""
  if config.swiglu_limit is None:
    return activation(config, gate) * up
  limit = config.swiglu_limit
  gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
  return gate * jax.nn.sigmoid(config.swiglu_alpha * gate) * (1 + up)


def activation(config: DecoderConfig, x: jax.Array) -> jax.Array:
  """The activation of the config; a learned one has its parameters in the calling module."""
  if config.mlp_activation == 'xielu':
    return Xielu(config, name='activation')(x)
  return ACTIVATIONS[config.mlp_activation](x)


class Xielu(nn.Module):
  """xIELU (Huang and Schlag 2024, arXiv 2411.13010), in at least f32.

  alpha_p x^2 + beta x for x > 0, else alpha_n (expm1(min(x, eps)) - x) + beta x, where alpha_p is
  softplus of a parameter, and alpha_n is beta + softplus of another. beta and eps are constants of
  the checkpoint.
  """

  config: DecoderConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dtype = jnp.dtype(self.config.param_dtype)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def constant(name, value, shape):
      init = nn.initializers.constant(value)
      axes = (None,) * len(shape)
      return parameter(self, name, init, shape, dtype, axes=axes).astype(wide.dtype)

    beta, eps = (
      jax.lax.stop_gradient(constant(name, value, ()))
      for name, value in (('beta', 0.5), ('eps', -1e-6))
    )
    inverse_softplus = lambda value: math.log(math.expm1(value))
    alpha_p = jax.nn.softplus(constant('alpha_p', inverse_softplus(0.8), (1,)))
    alpha_n = beta + jax.nn.softplus(constant('alpha_n', inverse_softplus(0.3), (1,)))
    below = alpha_n * (jnp.expm1(jnp.minimum(wide, eps)) - wide)
    return (jnp.where(wide > 0, alpha_p * wide * wide, below) + beta * wide).astype(x.dtype)
