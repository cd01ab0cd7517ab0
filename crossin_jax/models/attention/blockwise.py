"""Attention in blocks of queries and keys with an online softmax, in plain XLA.

It never stores T x S logits, forward or backward. The algorithm is FlashAttention-2 (Dao 2023): the
backward pass recomputes the weights from the log-sum-exp of the logits. One loop runs over a list
of all pairs of blocks that the mask allows, so compile time does not grow with length. It skips
pairs that share no segment in any row.

Letters: B batch, T query length, S key length, H query heads, K key/value heads (H = G K), D head
size, N blocks of queries, M blocks of keys, Q = G x queries of a block, P pairs of blocks.
"""

import functools
from typing import NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
import numpy as np

from crossin_jax.models.attention import shards as attention_shards
from crossin_jax.models.attention.mask import Mask

BLOCKS = {'cpu': 256}  # platform -> queries, and keys, of a block, to fit the cache
BLOCK = 512  # on other platforms
KEPT = 'attention'  # the name of output and log-sum-exp in remat policies


def attend(
  q_BTHD,
  k_BSKD,
  v_BSKD,
  mask: Mask,
  sinks_H=None,
  *,
  scale: float | None,
  softcap: float | None,
  block: int | None = None,
) -> jax.Array:
  """See `attention.attention`; any mask and any lengths.

  Args:
    block: queries, and keys, of a block; None = the platform's default.
  """
  block = block or BLOCKS.get(attention_shards.platform(), BLOCK)
  batch, queries, heads, size = q_BTHD.shape
  keys, key_heads = k_BSKD.shape[1:3]
  rows, columns = min(block, queries), min(block, keys)
  scale = size**-0.5 if scale is None else scale
  group = heads // key_heads
  sinks_KQ = None
  if sinks_H is not None:
    wide = jnp.promote_types(q_BTHD.dtype, jnp.float32)
    sinks_KQ = jnp.repeat(sinks_H.astype(wide).reshape(key_heads, group), rows, axis=1)

  def cut(x, length):
    """[B, L, ...] as [blocks, B, ...], padded."""
    blocks = -(-x.shape[1] // length)
    x = jnp.pad(x, [(0, 0), (0, blocks * length - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(batch, blocks, length, *x.shape[2:]).swapaxes(0, 1)

  q_NBRHD = cut(q_BTHD * jnp.asarray(scale, q_BTHD.dtype), rows)
  blocks = q_NBRHD.shape[0]
  q_NBKQD = q_NBRHD.reshape(blocks, batch, rows, key_heads, group, size).transpose(0, 1, 3, 4, 2, 5)
  q_NBKQD = q_NBKQD.reshape(blocks, batch, key_heads, group * rows, size)
  k_MBKCD, v_MBKCD = (cut(x, columns).transpose(0, 1, 3, 2, 4) for x in (k_BSKD, v_BSKD))
  blocking = _Blocking(_pairs(queries, keys, rows, columns, mask), rows, columns, keys, softcap)
  widest = max(blocks * rows, k_MBKCD.shape[0] * columns)
  padded = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, widest - x.shape[1]))), mask)
  shared_P = _shared(padded, blocking.pairs_P2, rows, columns)
  out_NBKQD = _blocks(q_NBKQD, k_MBKCD, v_MBKCD, sinks_KQ, padded, shared_P, blocking)
  out = out_NBKQD.reshape(blocks, batch, key_heads, group, rows, size).transpose(1, 0, 4, 2, 3, 5)
  return out.reshape(batch, blocks * rows, heads, size)[:, :queries]


class _Blocking(NamedTuple):
  """Static settings: pairs of blocks, queries and keys of a block, all keys, softcap."""

  pairs_P2: tuple[tuple[int, int], ...]
  rows: int
  columns: int
  keys: int
  softcap: float | None


def _pairs(
  queries: int, keys: int, rows: int, columns: int, mask: Mask
) -> tuple[tuple[int, int], ...]:
  """Pairs of blocks (of queries, of keys) that causality and the window allow.

  queries = keys = 6, blocks of 2, window 3: (0, 0) (1, 0) (1, 1) (2, 1) (2, 2)
  """
  ahead = mask.prefix_BS is not None  # then a query may see a later key
  seen = lambda i, j: (
    (ahead or j * columns <= (i + 1) * rows - 1)
    and (mask.reach is None or i * rows - ((j + 1) * columns - 1) < mask.reach)
  )
  return tuple(
    (i, j)
    for i in range(-(-queries // rows))
    for j in range(-(-keys // columns))
    if seen(i, j) or (i == 0 == j)
  )


def _shared(mask: Mask, pairs_P2, rows: int, columns: int) -> jax.Array | None:
  """Whether any row of the batch may have a segment in both blocks of a pair: bool [P].

  None without segments. The test compares the lowest and highest ids of the blocks, so it has false
  positives, but no false negatives.
  """
  if mask.q_segments_BT is None:
    return None

  def ends(segments_BL, length):
    # Padding is behind the last segment.
    ids_BL = jnp.where(segments_BL == 0, jnp.iinfo(segments_BL.dtype).max, segments_BL)
    blocks = -(-ids_BL.shape[1] // length)
    ids_BL = jnp.pad(ids_BL, ((0, 0), (0, blocks * length - ids_BL.shape[1])), mode='edge')
    ids_BNL = ids_BL.reshape(len(ids_BL), blocks, length)
    return ids_BNL.min(axis=-1), ids_BNL.max(axis=-1)

  q_low, q_high = ends(mask.q_segments_BT, rows)
  k_low, k_high = ends(mask.k_segments_BS, columns)
  i, j = np.array(pairs_P2).T
  return ((q_low[:, i] <= k_high[:, j]) & (k_low[:, j] <= q_high[:, i])).any(axis=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _blocks(q_NBKQD, k_MBKCD, v_MBKCD, sinks_KQ, mask, shared_P, blocking: _Blocking):
  return _forward(q_NBKQD, k_MBKCD, v_MBKCD, sinks_KQ, mask, shared_P, blocking)[0]


def _logits(q_BKQD, k_BKCD, mask, i, j, blocking: _Blocking):
  """Capped logits of a pair of blocks, and their mask: bool [B or 1, 1, 1, R, C]."""
  accumulate = jnp.promote_types(q_BKQD.dtype, jnp.float32)
  logits_BKQC = jnp.einsum('bkqd,bkcd->bkqc', q_BKQD, k_BKCD, preferred_element_type=accumulate)
  _, rows, columns, keys, softcap = blocking
  if softcap is not None:
    logits_BKQC = softcap * jnp.tanh(logits_BKQC / softcap)
  seen_BRC = mask.seen(i * rows, rows, j * columns, columns)
  if keys % columns:
    seen_BRC &= j * columns + jnp.arange(columns) < keys
  return logits_BKQC, seen_BRC[:, None, None]


def _where(seen, x_BKQC, other):
  """x where the mask allows it, else `other`; the queries of a group share the mask."""
  batch, key_heads, _, columns = x_BKQC.shape
  x = jnp.where(seen, x_BKQC.reshape(batch, key_heads, -1, *seen.shape[-2:]), other)
  return x.reshape(x_BKQC.shape)


def _loop(step, carry, pairs_P2, shared_P, read, write):
  """Applies `step` to the part of carry selected by `read`, for each pair with a shared segment."""

  def body(carry, pair):
    i, j, shared = pair
    part = read(carry, i, j)
    if shared_P is None:
      part = step(part, i, j)
    else:
      part = jax.lax.cond(shared, lambda part: step(part, i, j), lambda part: part, part)
    return write(carry, part, i, j), None

  i, j = np.array(pairs_P2, np.int32).T
  pairs = (i, j, np.ones(len(i), bool) if shared_P is None else shared_P)
  return jax.lax.scan(body, carry, pairs)[0]


def _at(x, i):
  return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)


def _put(x, part, i):
  return jax.lax.dynamic_update_index_in_dim(x, part, i, 0)


def _forward(q_NBKQD, k_MBKCD, v_MBKCD, sinks_KQ, mask, shared_P, blocking: _Blocking):
  accumulate = jnp.promote_types(q_NBKQD.dtype, jnp.float32)

  def step(part, i, j):
    sum_BKQD, highest_BKQ, total_BKQ = part
    logits_BKQC, seen = _logits(_at(q_NBKQD, i), _at(k_MBKCD, j), mask, i, j, blocking)
    logits_BKQC = _where(seen, logits_BKQC, -jnp.inf)
    new_BKQ = jnp.maximum(highest_BKQ, logits_BKQC.max(axis=-1))
    weights_BKQC = jnp.exp(logits_BKQC - new_BKQ[..., None])
    shrink_BKQ = jnp.exp(highest_BKQ - new_BKQ)
    values_BKCD = _at(v_MBKCD, j)
    more_BKQD = jnp.einsum(
      'bkqc,bkcd->bkqd',
      weights_BKQC.astype(values_BKCD.dtype),
      values_BKCD,
      preferred_element_type=accumulate,
    )
    total_BKQ = total_BKQ * shrink_BKQ + weights_BKQC.sum(axis=-1)
    return sum_BKQD * shrink_BKQ[..., None] + more_BKQD, new_BKQ, total_BKQ

  empty_NBKQ = jnp.zeros(q_NBKQD.shape[:-1], accumulate)
  # The lowest finite number, not -inf, to avoid inf - inf before the first key.
  lowest, total = (jnp.finfo(accumulate).min, 0) if sinks_KQ is None else (sinks_KQ, 1)
  start = (jnp.zeros(q_NBKQD.shape, accumulate), empty_NBKQ + lowest, empty_NBKQ + total)
  read = lambda carry, i, j: tuple(_at(x, i) for x in carry)
  write = lambda carry, part, i, j: tuple(_put(x, new, i) for x, new in zip(carry, part))
  sum_NBKQD, highest_NBKQ, total_NBKQ = _loop(step, start, blocking.pairs_P2, shared_P, read, write)
  total_NBKQ = jnp.where(total_NBKQ == 0, 1, total_NBKQ)  # a query that sees nothing
  out_NBKQD = checkpoint_name((sum_NBKQD / total_NBKQ[..., None]).astype(v_MBKCD.dtype), KEPT)
  log_sum_NBKQ = checkpoint_name(highest_NBKQ + jnp.log(total_NBKQ), KEPT)
  kept = (q_NBKQD, k_MBKCD, v_MBKCD, sinks_KQ, mask, shared_P, out_NBKQD, log_sum_NBKQ)
  return out_NBKQD, kept


def _backward(blocking: _Blocking, kept, out_gradient_NBKQD):
  q_NBKQD, k_MBKCD, v_MBKCD, sinks_KQ, mask, shared_P, out_NBKQD, log_sum_NBKQ = kept
  accumulate = log_sum_NBKQ.dtype
  wide = lambda x: x.astype(accumulate)
  # The gradient of a logit is its weight times (that of the weight - this).
  common_NBKQ = (wide(out_NBKQD) * wide(out_gradient_NBKQD)).sum(axis=-1)

  def step(part, i, j):
    dq_BKQD, dk_BKCD, dv_BKCD = part
    q_BKQD, k_BKCD, v_BKCD = _at(q_NBKQD, i), _at(k_MBKCD, j), _at(v_MBKCD, j)
    d_out_BKQD = _at(out_gradient_NBKQD, i)
    logits_BKQC, seen = _logits(q_BKQD, k_BKCD, mask, i, j, blocking)
    weights_BKQC = _where(seen, jnp.exp(logits_BKQC - _at(log_sum_NBKQ, i)[..., None]), 0)
    product = functools.partial(jnp.einsum, preferred_element_type=accumulate)
    dv_BKCD += product('bkqc,bkqd->bkcd', weights_BKQC.astype(v_BKCD.dtype), d_out_BKQD)
    d_weights_BKQC = product('bkqd,bkcd->bkqc', d_out_BKQD, v_BKCD)
    d_logits_BKQC = weights_BKQC * (d_weights_BKQC - _at(common_NBKQ, i)[..., None])
    if blocking.softcap is not None:
      d_logits_BKQC *= 1 - (logits_BKQC / blocking.softcap) ** 2
    d_logits_BKQC = d_logits_BKQC.astype(q_BKQD.dtype)
    dq_BKQD += product('bkqc,bkcd->bkqd', d_logits_BKQC, k_BKCD)
    dk_BKCD += product('bkqc,bkqd->bkcd', d_logits_BKQC, q_BKQD)
    return dq_BKQD, dk_BKCD, dv_BKCD

  start = tuple(jnp.zeros(x.shape, accumulate) for x in (q_NBKQD, k_MBKCD, v_MBKCD))
  read = lambda carry, i, j: tuple(_at(x, at) for x, at in zip(carry, (i, j, j)))
  write = lambda carry, part, i, j: tuple(
    _put(x, new, at) for x, new, at in zip(carry, part, (i, j, j))
  )
  gradients = _loop(step, start, blocking.pairs_P2, shared_P, read, write)
  gradients = (d.astype(x.dtype) for d, x in zip(gradients, (q_NBKQD, k_MBKCD, v_MBKCD)))
  if sinks_KQ is None:
    return *gradients, None, None, None
  d_sinks_KQ = -(jnp.exp(sinks_KQ - log_sum_NBKQ) * common_NBKQ).sum(axis=(0, 1))
  return *gradients, d_sinks_KQ, None, None


_blocks.defvjp(_forward, _backward)
