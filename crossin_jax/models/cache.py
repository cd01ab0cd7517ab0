"""The KV cache of one layer: reading, appending, filling.

T5X's variables: cached_key and cached_value, here [B, K, S, D], and cache_index, a scalar until
prefill makes it [B]. T5X itself has the slots last: then CPUs read a cache at 0.7 of the speed, and
a new token is written to D places. A layer with a window has at most `window` slots: a ring in
which position p is in slot p mod S.

Letters: B batch, L new tokens, K key/value heads, D head size, S slots.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp


class KVCache:
  """The cache variables of an attention module; create it inside the module's compact method.

  Attributes:
    exists: whether the cache was there before this call. Otherwise the call only creates it.
  """

  def __init__(self, module: nn.Module, shape_BLKD: tuple, window: int | None, dtype):
    """Args:
    module: the attention module.
    shape_BLKD: of the keys of this call; L is the capacity of a new cache.
    window: tokens that a query sees; None = all.
    dtype: of keys and values.
    """
    batch, length, heads, head_dim = shape_BLKD
    self.exists = module.has_variable('cache', 'cached_key')
    shape = (batch, heads, length if window is None else min(length, window), head_dim)
    self._key = module.variable('cache', 'cached_key', jnp.zeros, shape, dtype)
    self._value = module.variable('cache', 'cached_value', jnp.zeros, shape, dtype)
    self._index = module.variable('cache', 'cache_index', lambda: jnp.zeros((), jnp.int32))
    self._ring, self._slots = window is not None, self._key.value.shape[2]
    self._index_B = jnp.broadcast_to(self._index.value, (batch,))

  def positions(self, length: int) -> jax.Array:
    """Positions of the next `length` tokens, int [B, L]."""
    return self._index_B[:, None] + jnp.arange(length)

  def append(self, k_BLKD: jax.Array, v_BLKD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Writes new tokens.

    Returns:
      Keys and values that the new tokens may see, [B, K, S or S + L, D], and the position of each,
      int [B or 1, S or S + L]; negative = empty.
    """
    k_BKLD, v_BKLD = k_BLKD.swapaxes(1, 2), v_BLKD.swapaxes(1, 2)
    length, before_B = k_BKLD.shape[2], self._index_B
    old_key, old_value = self._key.value, self._value.value
    self._key.value = _write(old_key, k_BKLD, before_B, self._ring)
    self._value.value = _write(old_value, v_BKLD, before_B, self._ring)
    self._index.value = before_B + length
    if self._ring and length > 1:
      # Several tokens may push out of the ring what the first of them still sees: they read the
      # old slots and the new tokens side by side.
      index_BS = jnp.concatenate([_held(before_B - 1, self._slots), self.positions(length)], axis=1)
      beside = lambda old, new: jnp.concatenate([old, new], axis=2)
      return beside(old_key, k_BKLD), beside(old_value, v_BKLD), index_BS
    index_BS = _held(before_B, self._slots) if self._ring else jnp.arange(self._slots)[None]
    return self._key.value, self._value.value, index_BS

  def fill(self, k_BLKD: jax.Array, v_BLKD: jax.Array, lengths_B: jax.Array) -> None:
    """Replaces the content by right-padded prompts of these lengths."""
    self._key.value = _fill(k_BLKD.swapaxes(1, 2), lengths_B, self._slots)
    self._value.value = _fill(v_BLKD.swapaxes(1, 2), lengths_B, self._slots)
    self._index.value = lengths_B


def _held(last_B: jax.Array, slots: int) -> jax.Array:
  """Position in each slot of a ring after `last_B` was written, int [B, S]; negative = empty.

  last = 5, 4 slots: the slots hold 4, 5, 2, 3.
  """
  return last_B[:, None] - (last_B[:, None] - jnp.arange(slots)) % slots


def _write(cache_BKSD: jax.Array, new_BKLD: jax.Array, index_B: jax.Array, ring: bool) -> jax.Array:
  """The cache with new tokens from position index_B on; a ring keeps the last that fit."""
  slots, length = cache_BKSD.shape[2], new_BKLD.shape[2]
  if ring and length > 1:
    new_BKLD = new_BKLD[:, :, -slots:]
    first_B = index_B + max(0, length - slots)
    slot_BL = (first_B[:, None] + jnp.arange(new_BKLD.shape[2])) % slots
    return jax.vmap(lambda cache, new, slot: cache.at[:, slot].set(new))(
      cache_BKSD, new_BKLD, slot_BL
    )
  write = lambda cache, new, i: jax.lax.dynamic_update_slice(cache, new, (0, i, 0))
  return jax.vmap(write)(cache_BKSD, new_BKLD, index_B % slots if ring else index_B)


def _fill(new_BKLD: jax.Array, lengths_B: jax.Array, slots: int) -> jax.Array:
  """The slots of right-padded prompts: as they are, or in a ring the last of each."""
  length = new_BKLD.shape[2]
  if length <= slots:
    return jnp.pad(new_BKLD, ((0, 0), (0, 0), (0, slots - length), (0, 0)))
  index_BS = jnp.clip(_held(lengths_B - 1, slots), 0)
  return jnp.take_along_axis(new_BKLD, index_BS[:, None, :, None], axis=2)
