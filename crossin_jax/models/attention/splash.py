"""Splash attention, JAX's Pallas kernel for TPUs, on packed rows.

Letters: B batch, T length, H query heads, K key/value heads, D head size.
"""

import jax
import jax.numpy as jnp

from crossin_jax.models.attention.blockwise import KEPT
from crossin_jax.models.attention.mask import Mask

LANES = 128  # lengths are padded to a multiple of it
BLOCKS = (512, 384, 256, 128)


def refusal(q_BTHD, k_BSKD, mask: Mask, platform: str) -> str | None:
  """Why the kernel cannot be used; None = it can."""
  if platform != 'tpu':
    return f'splash attention is a kernel for TPUs, and this is a {platform}'
  if not mask.is_plain:
    return 'splash attention supports neither bidirectional prompts nor branches'
  if q_BTHD.shape[1] != k_BSKD.shape[1]:
    queries, keys = q_BTHD.shape[1], k_BSKD.shape[1]
    return f'splash attention needs as many queries as keys, not {queries} and {keys}'
  if q_BTHD.dtype not in (jnp.float32, jnp.bfloat16):
    return f'splash attention computes in bfloat16 or float32, not {q_BTHD.dtype}'
  return None


def attend(
  q_BTHD,
  k_BTKD,
  v_BTKD,
  mask: Mask,
  sinks_H=None,
  *,
  scale: float | None,
  softcap: float | None,
  interpret: bool = False,
) -> jax.Array:
  """See `attention.attention`, on one device.

  Args:
    interpret: run Pallas's interpreter, which is slow but works on any machine.
  """
  # Imported here, because Pallas takes half a second to import and only TPUs need it.
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  length, heads, size = q_BTHD.shape[1:]
  padded = -(-length // LANES) * LANES
  block = next(block for block in BLOCKS if padded % block == 0)
  sizes = kernels.BlockSizes(
    block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block, block_kv_dkv=block,
    block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
  )  # fmt: skip
  shape = (padded, padded)
  near = mask.window is not None and mask.window < length
  one = masks.LocalMask(shape, (mask.window - 1, 0), 0) if near else masks.CausalMask(shape)
  kernel = kernels.make_splash_mha(
    masks.MultiHeadMask([one] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=1,
    attn_logits_soft_cap=softcap,
    residual_checkpoint_name=KEPT, interpret=interpret,
  )  # fmt: skip
  # Padding is behind all tokens, so no real query sees it.
  pad = lambda x: jnp.pad(x, ((0, 0), (0, padded - length)) + ((0, 0),) * (x.ndim - 2))
  by_head = lambda x: pad(x).transpose(0, 2, 1, 3)
  q_BHTD = by_head(q_BTHD * jnp.asarray(size**-0.5 if scale is None else scale, q_BTHD.dtype))
  segments = None
  if mask.q_segments_BT is not None:
    segments = kernels.SegmentIds(pad(mask.q_segments_BT), pad(mask.k_segments_BS))
  # NB: the kernel's gradient of the sinks has the dtype of its output, whatever theirs is.
  sinks_H = None if sinks_H is None else sinks_H.astype(q_BTHD.dtype)
  over_rows = jax.vmap(kernel, in_axes=(0, 0, 0, 0, None))
  out_BHTD = over_rows(q_BHTD, by_head(k_BTKD), by_head(v_BTKD), segments, sinks_H)
  return out_BHTD.transpose(0, 2, 1, 3)[:, :length].astype(v_BTKD.dtype)
