"""One attention function for every model and every back end.

Letters: B batch, T query length, S key length, H query heads, K key/value heads (H = G K),
D size of a head.
"""

import jax
import jax.numpy as jnp

IMPLEMENTATIONS = ('auto', 'xla')
SMALLEST_BLOCK, MOST_BLOCKS = 128, 8  # queries at a time; every block is compiled on its own


def attention(
  q_BTHD: jax.Array,
  k_BSKD: jax.Array,
  v_BSKD: jax.Array,
  *,
  q_segments_BT: jax.Array | None = None,
  k_segments_BS: jax.Array | None = None,
  prefix_BS: jax.Array | None = None,
  branches_BS: jax.Array | None = None,
  positions_BS: jax.Array | None = None,
  window: int | None = None,
  scale: float | None = None,
  softcap: float | None = None,
  implementation: str = 'auto',
) -> jax.Array:
  """Causal grouped-query attention that never looks into another packed segment.

  A query at array index i sees a key at array index j when j <= i, both carry the same segment id,
  and i - j < window. Indices are places in the array, not positions within a segment, which gives
  the same order inside a segment and needs no segment starts.

      segments  1 1 1 2 2 0      query 4 (second of segment 2) sees keys 3 and 4, nothing else

  Args:
    q_BTHD: queries, any float dtype.
    k_BSKD: keys; the number of key heads K divides H.
    v_BSKD: values.
    q_segments_BT: int segment ids of the queries, 0 = padding; None = one segment.
    k_segments_BS: int segment ids of the keys; required with q_segments_BT.
    prefix_BS: 1 where a token belongs to a prompt that its segment may read in both directions
      (T5X's `decoder_causal_attention`).
    branches_BS: int, of a segment that goes on in several ways (the same text with different endings): 0 = trunk, seen by
      all; a branch sees the trunk and itself. None = no branches. Queries and keys are the same tokens then.
    positions_BS: int, positions within the segment; required with branches and a window, because a branch does not stand right
      behind its trunk.
    window: keys further back than window - 1 are not seen; None = no limit.
    scale: factor on the logits; default D ** -0.5.
    softcap: c, logits become c tanh(logits / c); None = none.
    implementation: 'auto' or 'xla' (the reference: holds the logits of a block of queries, B x H x T / 8 x S).

  Returns:
    [B, T, H, D] in the dtype of q. Rows of padding hold finite values without meaning.

  Raises:
    ValueError: unknown implementation, or H is no multiple of K.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f'attention implementation {implementation!r} is not one of {IMPLEMENTATIONS}')
  length = q_BTHD.shape[1]
  # Head-major copies: the batched products then run over contiguous matrices.
  k_BKSD, v_BKSD = k_BSKD.transpose(0, 2, 1, 3), v_BSKD.transpose(0, 2, 1, 3)
  blocks = (
    1 if prefix_BS is not None or length != k_BSKD.shape[1] else max(1, min(MOST_BLOCKS, length // SMALLEST_BLOCK))
  )
  outputs = []
  for i in range(blocks):
    # Keys that no query of the block sees are not touched: half of the work of a long row, more with a window.
    start, stop = length * i // blocks, length * (i + 1) // blocks
    near = 0 if window is None or branches_BS is not None else max(0, start - window + 1)
    first, last = (0, k_BSKD.shape[1]) if blocks == 1 else (near, stop)
    q_index_1T1, k_index_11S = jnp.arange(start, stop)[None, :, None], jnp.arange(first, last)[None, None]
    mask_BTS = k_index_11S <= q_index_1T1
    if prefix_BS is not None:
      mask_BTS |= (prefix_BS[:, None] > 0) & (prefix_BS[:, :, None] > 0)
    if branches_BS is not None:
      own_BTS = branches_BS[:, start:stop, None] == branches_BS[:, None, first:last]
      mask_BTS &= (branches_BS[:, None, first:last] == 0) | own_BTS
    if window is not None and branches_BS is not None:
      mask_BTS &= positions_BS[:, start:stop, None] - positions_BS[:, None, first:last] < window
    elif window is not None:
      mask_BTS &= q_index_1T1 - k_index_11S < window
    if q_segments_BT is not None:
      mask_BTS &= q_segments_BT[:, start:stop, None] == k_segments_BS[:, None, first:last]
    keys, values = k_BKSD[:, :, first:last], v_BKSD[:, :, first:last]
    outputs.append(_xla(q_BTHD[:, start:stop], keys, values, mask_BTS, scale, softcap, 'bksd'))
  return outputs[0] if blocks == 1 else jnp.concatenate(outputs, axis=1)


def cached_attention(
  q_BTHD: jax.Array,
  k_BKDS: jax.Array,
  v_BKDS: jax.Array,
  *,
  q_index_BT: jax.Array,
  k_index_BS: jax.Array,
  window: int | None = None,
  scale: float | None = None,
  softcap: float | None = None,
) -> jax.Array:
  """The same over a cache, in the cache's own layout: nothing is transposed.

  Args:
    q_BTHD: queries of the newest tokens.
    k_BKDS, v_BKDS: the cache.
    q_index_BT: int position of each query in its row.
    k_index_BS: int position of what each slot of the cache holds (or [1, S]); negative = nothing.
    window, scale, softcap: as in `attention`.

  Returns:
    [B, T, H, D] in the dtype of q.
  """
  q_index_BT1, k_index_B1S = q_index_BT[:, :, None], k_index_BS[:, None]
  mask_BTS = (k_index_B1S <= q_index_BT1) & (k_index_B1S >= 0)
  if window is not None:
    mask_BTS &= q_index_BT1 - k_index_B1S < window
  return _xla(q_BTHD, k_BKDS, v_BKDS, mask_BTS, scale, softcap, 'bkds')


def _xla(q_BTHD, keys, values, mask_BTS, scale, softcap, layout):
  """The reference; `layout` names the axes of keys and values."""
  batch, queries, heads, size = q_BTHD.shape
  key_heads = keys.shape[1]
  if heads % key_heads:
    raise ValueError(f'{heads} query heads are no multiple of {key_heads} key/value heads')
  # Softmax in at least f32: bf16 sums over thousands of keys lose the small ones.
  accumulate = jnp.promote_types(q_BTHD.dtype, jnp.float32)
  q_BKGTD = (q_BTHD * jnp.asarray(size**-0.5 if scale is None else scale, q_BTHD.dtype)).reshape(
    batch, queries, key_heads, heads // key_heads, size
  )
  q_BKGTD = q_BKGTD.transpose(0, 2, 3, 1, 4)
  logits_BKGTS = jnp.einsum(f'bkgtd,{layout}->bkgts', q_BKGTD, keys, preferred_element_type=accumulate)
  if softcap is not None:
    logits_BKGTS = softcap * jnp.tanh(logits_BKGTS / softcap)
  logits_BKGTS = jnp.where(mask_BTS[:, None, None], logits_BKGTS, jnp.finfo(accumulate).min)
  # Divided after the product with the values, as flash attention does: a pass over D numbers instead of S.
  highest_BKGT1 = jax.lax.stop_gradient(logits_BKGTS.max(axis=-1, keepdims=True))
  weights_BKGTS = jnp.exp(logits_BKGTS - highest_BKGT1)
  sums_BKGT1 = weights_BKGTS.sum(axis=-1, keepdims=True)
  out_BKGTD = jnp.einsum(
    f'bkgts,{layout}->bkgtd', weights_BKGTS.astype(values.dtype), values, preferred_element_type=accumulate
  )
  out_BKGTD = (out_BKGTD / sums_BKGT1).astype(values.dtype)
  return out_BKGTD.transpose(0, 3, 1, 2, 4).reshape(batch, queries, heads, size)
