"""One attention function for every model and every back end.

Letters: B batch, T query length, S key length, H query heads, K key/value heads (H = G K),
D size of a head.
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
LONG = 1024  # keys from which 'auto' does not hold a block's logits


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

  Under a mesh with axis rules every device works on its rows and heads ('xla' leaves that to the
  compiler).

  Args:
    q_BTHD: queries, any float dtype.
    k_BSKD: keys; the number of key heads K divides H.
    v_BSKD: values.
    q_segments_BT: int segment ids of the queries, 0 = padding; None = one segment.
    k_segments_BS: int segment ids of the keys; required with q_segments_BT.
    prefix_BS: 1 where a token belongs to a prompt that its segment may read in both directions
      (T5X's `decoder_causal_attention`).
    branches_BS: int, of a segment that goes on in several ways (the same text with different
      endings): 0 = trunk, seen by all; a branch sees the trunk and itself. None = no branches.
        Queries and keys are the same tokens then.
    positions_BS: int, positions within the segment; required with branches and a window, because a
      branch does not stand right behind its trunk.
    window: keys further back than window - 1 are not seen; None = no limit.
    scale: factor on the logits; default D ** -0.5.
    softcap: c, logits become c tanh(logits / c); None = none.
    implementation:
      'xla': the reference; holds the logits of a block of queries, B x H x T / 8 x S.
      'blockwise': plain XLA too, but never more logits than those of a block of 512 x 512, in the
      backward pass neither. 'splash': the kernel for TPUs. 'cudnn': NVIDIA's, in bf16; packed rows
        from Hopper on. Where one of these cannot be used it says why, once, and 'auto' without it
        takes its place.
      'auto': 'splash' on a TPU and 'cudnn' on a GPU where they can, else 'blockwise' from 1,024
      keys on and 'xla' below.

  Returns:
    [B, T, H, D] in the dtype of v. Rows of padding hold finite values without meaning.

  Raises:
    ValueError: unknown implementation, or H is no multiple of K.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f'attention implementation {implementation!r} is not one of {IMPLEMENTATIONS}')
  _check_heads(q_BTHD.shape[2], k_BSKD.shape[2])
  mask = Mask(q_segments_BT, k_segments_BS, prefix_BS, branches_BS, positions_BS, window)
  chosen = choose(implementation, q_BTHD, k_BSKD, mask, softcap, attention_shards.platform())
  back_end = functools.partial(BACK_ENDS[chosen].attend, scale=scale, softcap=softcap)
  if chosen == 'xla':
    return back_end(q_BTHD, k_BSKD, v_BSKD, mask)
  return attention_shards.per_device(
    lambda q, k, v, mask: back_end(q, k, v, mask), q_BTHD, k_BSKD, v_BSKD, mask
  )


BACK_ENDS = {
  'xla': attention_xla,
  'blockwise': attention_blockwise,
  'splash': attention_splash,
  'cudnn': attention_cudnn,
}


def choose(
  implementation: str, q_BTHD, k_BSKD, mask: Mask, softcap: float | None, platform: str
) -> str:
  """The back end that is used, one of 'xla', 'blockwise', 'splash', 'cudnn'; says once why a better
  one is not.

  Args:
    implementation, q_BTHD, k_BSKD, softcap: as in `attention`; of the arrays only shape and dtype
      count.
    mask: which query sees which key.
    platform: 'cpu', 'gpu' or 'tpu'.
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
    reason = attention_cudnn.refusal(q_BTHD, k_BSKD, mask, softcap, platform)
  if reason is None:
    return kernel
  if implementation != 'auto' or long:
    _say(f'attention: {reason}; {fallback!r} is used instead')
  return fallback


@functools.cache
def _say(message: str) -> None:
  """Once a process, however many layers ask."""
  warnings.warn(message)


def _check_heads(heads: int, key_heads: int) -> None:
  if heads % key_heads:
    raise ValueError(f'{heads} query heads are no multiple of {key_heads} key/value heads')


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
  _check_heads(q_BTHD.shape[2], k_BKDS.shape[1])
  q_index_BT1, k_index_B1S = q_index_BT[:, :, None], k_index_BS[:, None]
  seen_BTS = (k_index_B1S <= q_index_BT1) & (k_index_B1S >= 0)
  if window is not None:
    seen_BTS &= q_index_BT1 - k_index_B1S < window
  return attention_xla.over(q_BTHD, k_BKDS, v_BKDS, seen_BTS, scale, softcap, 'bkds')
