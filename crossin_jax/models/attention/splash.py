"""Splash attention, JAX's Pallas kernel for TPUs, on packed rows.

Letters: B batch, T length, H query heads, K key/value heads, D size of a head.
"""

import jax
import jax.numpy as jnp

from crossin_jax.models.attention.blockwise import KEPT
from crossin_jax.models.attention.mask import Mask

LANES = 128  # lengths are filled up to a multiple of it
BLOCKS = (512, 384, 256, 128)


def refusal(q_BTHD, k_BSKD, mask: Mask, platform: str) -> str | None:
  """Why the kernel cannot be used; None = it can."""
  if platform != 'tpu':
    return f'splash attention is a kernel for TPUs, and this is a {platform}'
  if not mask.is_plain:
    return 'splash attention knows neither prompts read in both directions nor branches'
  if q_BTHD.shape[1] != k_BSKD.shape[1]:
    return f'splash attention here wants as many queries as keys, not {q_BTHD.shape[1]} and {k_BSKD.shape[1]}'
  if q_BTHD.dtype not in (jnp.float32, jnp.bfloat16):
    return f'splash attention computes in bfloat16 or float32, not {q_BTHD.dtype}'
  return None


def attend(
  q_BTHD,
  k_BTKD,
  v_BTKD,
  mask: Mask,
  *,
  scale: float | None,
  softcap: float | None,
  interpret: bool = False,
) -> jax.Array:
  """See `attention.attention`, on one device.

  Args:
    interpret: the kernel is imitated on any machine, slowly.
  """
  # Imported here: Pallas takes half a second that only TPUs need to spend.
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  length, heads, size = q_BTHD.shape[1:]
  filled = -(-length // LANES) * LANES
  block = next(block for block in BLOCKS if filled % block == 0)
  sizes = kernels.BlockSizes(
    block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block, block_kv_dkv=block,
    block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
  )  # fmt: skip
  shape = (filled, filled)
  near = mask.window is not None and mask.window < length
  one = masks.LocalMask(shape, (mask.window - 1, 0), 0) if near else masks.CausalMask(shape)
  kernel = kernels.make_splash_mha(
    masks.MultiHeadMask([one] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=1,
    attn_logits_soft_cap=softcap,
    residual_checkpoint_name=KEPT, interpret=interpret,
  )  # fmt: skip
  # What is filled up stands behind everything: no real query sees it.
  fill = lambda x: jnp.pad(x, ((0, 0), (0, filled - length)) + ((0, 0),) * (x.ndim - 2))
  by_head = lambda x: fill(x).transpose(0, 2, 1, 3)
  q_BHTD = by_head(q_BTHD * jnp.asarray(size**-0.5 if scale is None else scale, q_BTHD.dtype))
  segments = None
  if mask.q_segments_BT is not None:
    segments = kernels.SegmentIds(fill(mask.q_segments_BT), fill(mask.k_segments_BS))
  out_BHTD = jax.vmap(kernel)(q_BHTD, by_head(k_BTKD), by_head(v_BTKD), segments)
  return out_BHTD.transpose(0, 2, 1, 3)[:, :length].astype(v_BTKD.dtype)
