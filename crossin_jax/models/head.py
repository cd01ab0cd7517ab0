"""The output head: logits from hidden states, or what a loss needs that makes them part by part.

Letters: B batch, L length, E model width, V vocabulary (padded).
"""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Head:
  """What turns hidden states into logits.

  Attributes:
    kernel: [E, V], or [V, E] where it is the embedding (`tied`); products are computed in the dtype
      of the hidden states.
    tied: whether the kernel's first axis is the vocabulary.
    softcap: c, logits become c tanh(logits / c); None = none.
    vocab_size: columns of logits from here on are no words: they get no probability.
  """

  kernel: jax.Array
  tied: bool = flax.struct.field(pytree_node=False)
  softcap: float | None = flax.struct.field(pytree_node=False)
  vocab_size: int = flax.struct.field(pytree_node=False)

  def logits(self, x_BLE: jax.Array) -> jax.Array:
    """[B, L, V], at least f32."""
    kernel_EV = (self.kernel.T if self.tied else self.kernel).astype(x_BLE.dtype)
    logits_BLV = product(
      x_BLE, kernel_EV, preferred_element_type=jnp.promote_types(x_BLE.dtype, jnp.float32)
    )
    if self.softcap is not None:
      logits_BLV = self.softcap * jnp.tanh(logits_BLV / self.softcap)
    if logits_BLV.shape[-1] > self.vocab_size:
      real = jnp.arange(logits_BLV.shape[-1]) < self.vocab_size
      logits_BLV = jnp.where(real, logits_BLV, jnp.finfo(logits_BLV.dtype).min)
    return logits_BLV


def product(x: jax.Array, kernel: jax.Array, **options) -> jax.Array:
  """x [..., E] times kernel [E, F], all tokens in one matrix: XLA's CPU backward pass takes 1.7
  times as long over [B, L, E].
  """
  return jnp.dot(x.reshape(-1, x.shape[-1]), kernel, **options).reshape(
    *x.shape[:-1], kernel.shape[-1]
  )
