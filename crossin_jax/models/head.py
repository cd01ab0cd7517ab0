"""The output head: logits from hidden states, also in parts for a chunked loss.

Letters: B batch, L length, E model width, V vocabulary (padded).
"""

import flax.struct
import jax
import jax.numpy as jnp

from crossin_jax.models.product import Transposed, product


@flax.struct.dataclass
class Head:
  """The parameters and settings of the output head.

  Attributes:
    kernel: [E, V], or the embedding [V, E] if `tied`; products use the dtype of the hidden states.
    tied: whether the kernel's first axis is the vocabulary.
    softcap: c, logits become c tanh(logits / c); None = off.
    vocab_size: logits from this column on are padding and get no probability.
  """

  kernel: jax.Array
  tied: bool = flax.struct.field(pytree_node=False)
  softcap: float | None = flax.struct.field(pytree_node=False)
  vocab_size: int = flax.struct.field(pytree_node=False)

  def logits(self, x_BLE: jax.Array) -> jax.Array:
    """Logits [B, L, V], at least f32."""
    kernel = self.kernel.astype(x_BLE.dtype)
    wide = jnp.promote_types(x_BLE.dtype, jnp.float32)
    kernel = Transposed(kernel) if self.tied else kernel
    logits_BLV = product(x_BLE, kernel, preferred_element_type=wide)
    if self.softcap is not None:
      logits_BLV = self.softcap * jnp.tanh(logits_BLV / self.softcap)
    if logits_BLV.shape[-1] > self.vocab_size:
      real = jnp.arange(logits_BLV.shape[-1]) < self.vocab_size
      logits_BLV = jnp.where(real, logits_BLV, jnp.finfo(logits_BLV.dtype).min)
    return logits_BLV
