"""A matrix product, with a LoRA adapter where one is configured."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossin_jax.models import lora
from crossin_jax.models.decoder_config import DecoderConfig
from crossin_jax.models.parameter import parameter
from crossin_jax.models.product import Transposed, product


class Dense(nn.Module):
  """A matrix product with kernel [inputs, features], plus a LoRA adapter where `lora` has one."""

  features: int
  axes: tuple[str, str]
  config: DecoderConfig
  bias: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
    dtype, param_dtype = jnp.dtype(self.config.dtype), jnp.dtype(self.config.param_dtype)
    fan_in = nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')
    shape = (x.shape[-1], self.features)
    kernel = parameter(self, 'kernel', fan_in, shape, param_dtype, axes=self.axes)
    if not isinstance(kernel, Transposed):
      # The frozen kernel of a LoRA run may be quantised.
      kernel = lora.dequantised(kernel, dtype)
    y = product(x, kernel)
    if self.bias:
      bias = parameter(
        self, 'bias', nn.initializers.zeros, (self.features,), param_dtype, axes=self.axes[1:]
      )
      y += bias.astype(dtype)
    adapters = self.config.lora
    if adapters is not None and self.name in adapters.targets:
      # A as PEFT draws it: uniform within 1 / sqrt(inputs).
      spread = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
      a = parameter(
        self,
        'lora_a',
        spread,
        (shape[0], adapters.rank),
        param_dtype,
        axes=(self.axes[0], 'lora_rank'),
      )
      b = parameter(
        self,
        'lora_b',
        nn.initializers.zeros,
        (adapters.rank, shape[1]),
        param_dtype,
        axes=('lora_rank', self.axes[1]),
      )
      low = product(nn.Dropout(adapters.dropout, deterministic=deterministic)(x), a.astype(dtype))
      y += product(low, b.astype(dtype)) * jnp.asarray(adapters.scale, dtype)
    return y
