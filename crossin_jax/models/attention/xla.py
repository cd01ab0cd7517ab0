"""The reference: attention with the logits of a block of queries in memory.

Letters: B batch, T query length, S key length, H query heads, K key/value heads (H = G K), D head
size.
"""

import jax
import jax.numpy as jnp

from crossin_jax.models.attention.mask import Mask

SMALLEST_BLOCK, MOST_BLOCKS = 128, 8  # of queries; each block is compiled separately


def attend(
  q_BTHD, k_BSKD, v_BSKD, mask: Mask, sinks_H=None, *, scale: float | None, softcap: float | None
) -> jax.Array:
  """See `attention.attention`. Stores B x H x T / 8 x S logits, and all for the backward pass."""
  length = q_BTHD.shape[1]
  # Head-major copies, so that the batched products run over contiguous matrices.
  k_BKSD, v_BKSD = k_BSKD.transpose(0, 2, 1, 3), v_BSKD.transpose(0, 2, 1, 3)
  single = mask.prefix_BS is not None or length != k_BSKD.shape[1]
  blocks = 1 if single else max(1, min(MOST_BLOCKS, length // SMALLEST_BLOCK))
  outputs = []
  for i in range(blocks):
    # Skip keys that no query of the block sees: half of the work of a long row, more with a window.
    start, stop = length * i // blocks, length * (i + 1) // blocks
    near = 0 if mask.reach is None else max(0, start - mask.reach + 1)
    first, last = (0, k_BSKD.shape[1]) if blocks == 1 else (near, stop)
    seen_BTS = mask.seen(start, stop - start, first, last - first)
    keys, values = k_BKSD[:, :, first:last], v_BKSD[:, :, first:last]
    queries = q_BTHD[:, start:stop]
    outputs.append(over(queries, keys, values, seen_BTS, scale, softcap, sinks_H))
  return outputs[0] if blocks == 1 else jnp.concatenate(outputs, axis=1)


def over(
  q_BTHD, k_BKSD, v_BKSD, seen_BTS, scale: float | None, softcap: float | None, sinks_H
) -> jax.Array:
  """Attention of all queries over all keys."""
  batch, queries, heads, size = q_BTHD.shape
  key_heads = k_BKSD.shape[1]
  # Softmax in at least f32: bf16 sums over thousands of keys lose small terms.
  accumulate = jnp.promote_types(q_BTHD.dtype, jnp.float32)
  q_BKGTD = (q_BTHD * jnp.asarray(size**-0.5 if scale is None else scale, q_BTHD.dtype)).reshape(
    batch, queries, key_heads, heads // key_heads, size
  )
  q_BKGTD = q_BKGTD.transpose(0, 2, 3, 1, 4)
  logits_BKGTS = jnp.einsum('bkgtd,bksd->bkgts', q_BKGTD, k_BKSD, preferred_element_type=accumulate)
  if softcap is not None:
    logits_BKGTS = softcap * jnp.tanh(logits_BKGTS / softcap)
  logits_BKGTS = jnp.where(seen_BTS[:, None, None], logits_BKGTS, jnp.finfo(accumulate).min)
  # Divide after the product with the values, as flash attention does: over D numbers instead of S.
  highest_BKGT1 = jax.lax.stop_gradient(logits_BKGTS.max(axis=-1, keepdims=True))
  if sinks_H is not None:
    sinks_KG11 = sinks_H.astype(accumulate).reshape(key_heads, -1, 1, 1)
    highest_BKGT1 = jnp.maximum(highest_BKGT1, jax.lax.stop_gradient(sinks_KG11))
  weights_BKGTS = jnp.exp(logits_BKGTS - highest_BKGT1)
  sums_BKGT1 = weights_BKGTS.sum(axis=-1, keepdims=True)
  if sinks_H is not None:
    sums_BKGT1 += jnp.exp(sinks_KG11 - highest_BKGT1)
  out_BKGTD = jnp.einsum(
    'bkgts,bksd->bkgtd',
    weights_BKGTS.astype(v_BKSD.dtype),
    v_BKSD,
    preferred_element_type=accumulate,
  )
  out_BKGTD = (out_BKGTD / sums_BKGT1).astype(v_BKSD.dtype)
  return out_BKGTD.transpose(0, 3, 1, 2, 4).reshape(batch, queries, heads, size)
