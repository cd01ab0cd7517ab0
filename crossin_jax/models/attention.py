"""One attention function for every model and every back end.

Letters: B batch, T query length, S key length, H query heads, K key/value heads (H = G K),
D size of a head.
"""

import jax
import jax.numpy as jnp

IMPLEMENTATIONS = ('auto', 'xla')


def attention(
  q_BTHD: jax.Array,
  k_BSKD: jax.Array,
  v_BSKD: jax.Array,
  *,
  q_segments_BT: jax.Array | None = None,
  k_segments_BS: jax.Array | None = None,
  q_index_BT: jax.Array | None = None,
  prefix_BS: jax.Array | None = None,
  window: int | None = None,
  scale: float | None = None,
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
    q_index_BT: int array index of each query among the keys; default arange(T). While decoding it is
      the place in the cache that the token was written to.
    prefix_BS: 1 where a key belongs to a prompt that its segment may read in both directions
      (T5X's `decoder_causal_attention`).
    window: keys further back than window - 1 are not seen; None = no limit.
    scale: factor on the logits; default D ** -0.5.
    implementation: 'auto' or 'xla' (the reference: holds B x H x T x S logits).

  Returns:
    [B, T, H, D] in the dtype of q. Rows of padding hold finite values without meaning.

  Raises:
    ValueError: unknown implementation, or H is no multiple of K.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f'attention implementation {implementation!r} is not one of {IMPLEMENTATIONS}')
  heads, key_heads = q_BTHD.shape[2], k_BSKD.shape[2]
  if heads % key_heads:
    raise ValueError(f'{heads} query heads are no multiple of {key_heads} key/value heads')
  batch, queries, _, size = q_BTHD.shape
  keys = k_BSKD.shape[1]
  scale = size**-0.5 if scale is None else scale

  if q_index_BT is None:
    q_index_BT = jnp.arange(queries)[None]
  q_index_BT1, k_index_S = q_index_BT[:, :, None], jnp.arange(keys)[None, None]
  mask_BTS = k_index_S <= q_index_BT1
  if prefix_BS is not None:
    prefix_BT1 = jnp.take_along_axis(prefix_BS, jnp.broadcast_to(q_index_BT, (batch, queries)), 1)[:, :, None]
    mask_BTS |= (prefix_BS[:, None] > 0) & (prefix_BT1 > 0)
  if window is not None:
    mask_BTS &= q_index_BT1 - k_index_S < window
  if q_segments_BT is not None:
    mask_BTS &= q_segments_BT[:, :, None] == k_segments_BS[:, None]

  # Softmax in at least f32: bf16 sums over thousands of keys lose the small ones.
  accumulate = jnp.promote_types(q_BTHD.dtype, jnp.float32)
  q_BTKGD = q_BTHD.reshape(batch, queries, key_heads, heads // key_heads, size) * scale
  logits_BKGTS = jnp.einsum('btkgd,bskd->bkgts', q_BTKGD, k_BSKD, preferred_element_type=accumulate)
  logits_BKGTS = jnp.where(mask_BTS[:, None, None], logits_BKGTS, jnp.finfo(accumulate).min)
  weights_BKGTS = jax.nn.softmax(logits_BKGTS, axis=-1).astype(v_BSKD.dtype)
  out_BTKGD = jnp.einsum('bkgts,bskd->btkgd', weights_BKGTS, v_BSKD)
  return out_BTKGD.reshape(batch, queries, heads, size)
