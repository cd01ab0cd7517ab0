"""The norms of the model families."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossin_jax.models.decoder_config import DecoderConfig
from crossin_jax.models.parameter import parameter


class Norm(nn.Module):
  """RMSNorm or LayerNorm without bias, over the last axis, in at least f32.

  RMSNorm: x / sqrt(mean(x^2) + epsilon) * (scale + offset) (Zhang and Sennrich 2019); LayerNorm
  subtracts the mean of x first (Ba et al. 2016). The scale has the last axes of x: one of them, or
  several, such as a scale for each head.
  """

  config: DecoderConfig
  axes: tuple[str, ...] = ('embed',)

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    config = self.config
    init, shape = nn.initializers.constant(1.0 - config.norm_offset), x.shape[-len(self.axes) :]
    scale = parameter(self, 'scale', init, shape, jnp.dtype(config.param_dtype), axes=self.axes)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if config.norm == 'layer':
      wide -= jnp.mean(wide, axis=-1, keepdims=True)
    wide = _divided(wide, config.norm_epsilon)
    return (wide * (scale.astype(wide.dtype) + config.norm_offset)).astype(config.dtype)


def root_mean_square(x: jax.Array, config: DecoderConfig) -> jax.Array:
  """RMSNorm without a scale."""
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return _divided(wide, config.norm_epsilon).astype(config.dtype)


def _divided(x: jax.Array, epsilon: float) -> jax.Array:
  return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon)
