"""Attention for every model, by one of several back ends.

Letters: B batch, T query length, S key length, H query heads, K key/value heads (H = G K),
D head size.
"""

import functools
import warnings

import jax

from crossin_jax.models.attention import blockwise as attention_blockwise
from crossin_jax.models.attention import cudnn as attention_cudnn
from crossin_jax.models.attention import shards as attention_shards
from crossin_jax.models.attention import splash as attention_splash
from crossin_jax.models.attention import xla as attention_xla
from crossin_jax.models.attention.mask import Mask

IMPLEMENTATIONS = ('auto', 'xla', 'blockwise', 'splash', 'cudnn')
LONG = 1024  # from this many keys on, 'auto' does not store the logits


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
  sinks_H: jax.Array | None = None,
  implementation: str = 'auto',
) -> jax.Array:
  """Causal grouped-query attention within packed segments.

  A query at array index i sees a key at array index j if j <= i, both have the same segment id, and
  i - j < window. Array indices have the same order within a segment as positions, and need no
  segment starts.

      segments  1 1 1 2 2 0      query 4 (second of segment 2) sees keys 3 and 4 only

  Under a mesh with axis rules every device computes its rows and heads ('xla' leaves the
  partitioning to the compiler).

  Args:
    q_BTHD: queries, any float dtype.
    k_BSKD: keys; K divides H.
    v_BSKD: values.
    q_segments_BT: int segment ids of the queries, 0 = padding; None = one segment.
    k_segments_BS: int segment ids of the keys; required with q_segments_BT.
    prefix_BS: 1 on tokens of a prompt with attention in both directions within its segment (T5X's
      `decoder_causal_attention`).
    branches_BS: int, for a segment with several alternative endings: 0 = trunk, which all see; a
      branch sees the trunk and itself. Queries and keys must be the same tokens. None = no
      branches.
    positions_BS: int, positions within the segment; required with branches and a window, because a
      branch need not follow its trunk directly.
    window: a query sees at most this many keys back, including its position; None = no limit.
    scale: factor on the logits; default D ** -0.5.
    softcap: c, logits become c tanh(logits / c); None = off.
    sinks_H: a logit of each query head that joins the softmax without a value, neither scaled nor
      capped (gpt-oss); None = off.
    implementation:
      'xla': the reference; stores the logits of a block of queries, B x H x T / 8 x S.
      'blockwise': plain XLA; stores the logits of at most 512 x 512, in the backward pass too.
      'splash': the kernel for TPUs.
      'cudnn': NVIDIA's kernel, in bf16; packed rows need Hopper or later.
      'auto': 'splash' on a TPU and 'cudnn' on a GPU if possible, else 'blockwise' from 1,024 keys
        on and 'xla' below. It also replaces a kernel that cannot be used, with one warning.

  Returns:
    [B, T, H, D] in the dtype of v. Padding rows have finite values without meaning.

  Raises:
    ValueError: unknown implementation, or H is not a multiple of K.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f'attention implementation {implementation!r} is not one of {IMPLEMENTATIONS}')
  _check_heads(q_BTHD.shape[2], k_BSKD.shape[2])
  mask = Mask(q_segments_BT, k_segments_BS, prefix_BS, branches_BS, positions_BS, window)
  has_sinks = sinks_H is not None
  platform = attention_shards.platform()
  chosen = choose(implementation, q_BTHD, k_BSKD, mask, softcap, platform, has_sinks)
  back_end = functools.partial(BACK_ENDS[chosen].attend, scale=scale, softcap=softcap)
  if chosen == 'xla':
    return back_end(q_BTHD, k_BSKD, v_BSKD, mask, sinks_H)
  return attention_shards.per_device(back_end, q_BTHD, k_BSKD, v_BSKD, mask, sinks_H)


BACK_ENDS = {
  'xla': attention_xla,
  'blockwise': attention_blockwise,
  'splash': attention_splash,
  'cudnn': attention_cudnn,
}


def choose(
  implementation: str,
  q_BTHD,
  k_BSKD,
  mask: Mask,
  softcap: float | None,
  platform: str,
  has_sinks: bool = False,
) -> str:
  """The back end to use: 'xla', 'blockwise', 'splash' or 'cudnn'.

  Warns once if a kernel cannot be used.

  Args:
    implementation, softcap: as in `attention`.
    q_BTHD, k_BSKD: only shape and dtype are read.
    mask: the attention mask.
    platform: 'cpu', 'gpu' or 'tpu'.
    has_sinks: whether each head has a sink.
  """
  if implementation in ('xla', 'blockwise'):
    return implementation
  long = k_BSKD.shape[1] >= LONG
  fallback = 'blockwise' if long else 'xla'
  kernel = (
    {'tpu': 'splash', 'gpu': 'cudnn'}.get(platform) if implementation == 'auto' else implementation
  )
  if kernel is None or (implementation == 'auto' and k_BSKD.shape[1] < attention_splash.LANES):
    return fallback
  if kernel == 'splash':
    reason = attention_splash.refusal(q_BTHD, k_BSKD, mask, platform)
  else:
    reason = attention_cudnn.refusal(q_BTHD, k_BSKD, mask, softcap, platform, has_sinks)
  if reason is None:
    return kernel
  if implementation != 'auto' or long:
    _warn_once(f'attention: {reason}; {fallback!r} is used instead')
  return fallback


@functools.cache
def _warn_once(message: str) -> None:
  warnings.warn(message)


def _check_heads(heads: int, key_heads: int) -> None:
  if heads % key_heads:
    raise ValueError(f'{heads} query heads are not a multiple of {key_heads} key/value heads')


def cached_attention(
  q_BTHD: jax.Array,
  k_BKSD: jax.Array,
  v_BKSD: jax.Array,
  *,
  q_index_BT: jax.Array,
  k_index_BS: jax.Array,
  window: int | None = None,
  scale: float | None = None,
  softcap: float | None = None,
  sinks_H: jax.Array | None = None,
) -> jax.Array:
  """Attention over a cache, in the layout of the cache.

  Args:
    q_BTHD: queries of the newest tokens.
    k_BKSD, v_BKSD: the cache.
    q_index_BT: int position of each query in its row.
    k_index_BS: int position in each slot of the cache ([B, S] or [1, S]); negative = empty.
    window, scale, softcap, sinks_H: as in `attention`.

  Returns:
    [B, T, H, D] in the dtype of q.
  """
  _check_heads(q_BTHD.shape[2], k_BKSD.shape[1])
  q_index_BT1, k_index_B1S = q_index_BT[:, :, None], k_index_BS[:, None]
  seen_BTS = (k_index_B1S <= q_index_BT1) & (k_index_B1S >= 0)
  if window is not None:
    seen_BTS &= q_index_BT1 - k_index_B1S < window
  return attention_xla.over(q_BTHD, k_BKSD, v_BKSD, seen_BTS, scale, softcap, sinks_H)
