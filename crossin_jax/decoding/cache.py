"""The KV cache as a tree: its shapes, its shardings, and functions that resize, fill and select it.

Leaves are named as in T5X: cached_key and cached_value [..., B, K, S, D], cache_index [..., B].
`...` is a layer axis where layers are scanned. A layer with a window has fewer slots S than the
others; it stores position p in slot p mod S.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from crossin_jax.devices.partitioning import Partitioner


def bucket(n: int) -> int:
  """The smallest of 16, 24, 32, 48, 64, 96, 128 ... that is at least n, to compile few shapes."""
  power = 16
  while power < n:
    power *= 2
  return power * 3 // 4 if power > 16 and n <= power * 3 // 4 else power


@functools.lru_cache(maxsize=64)
def shapes(model, rows: int, capacity: int):
  """Shapes of a cache for `rows` rows of `capacity` tokens, with a cache_index for each row."""
  tokens = jax.ShapeDtypeStruct((rows, capacity), jnp.int32)
  create = lambda tokens: model.init(
    jax.random.key(0), tokens, tokens, enable_dropout=False, decode=True
  )['cache']  # fmt: skip
  with_rows = lambda path, leaf: jax.ShapeDtypeStruct(
    (*leaf.shape, rows) if _is_index(path) else leaf.shape, leaf.dtype
  )
  return jax.tree_util.tree_map_with_path(with_rows, jax.eval_shape(create, tokens))


def shardings(partition: Partitioner, tree):
  """Shards rows over data and fsdp, and heads over tensor where its size divides them."""

  def of_leaf(path, leaf):
    axes = ('batch',) if _is_index(path) else ('batch', 'heads', 'length', 'kv')
    spec = [*[None] * (leaf.ndim - len(axes)), *partition.sharding(axes).spec]
    return NamedSharding(partition.mesh, PartitionSpec(*partition.divisible(spec, leaf.shape)))

  return jax.tree_util.tree_map_with_path(of_leaf, tree)


def zeros(tree):
  """An empty cache of these shapes."""
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)


def resize(cache, tree):
  """Pads or cuts the cache to the slots of `tree`.

  No slot that is cut off may hold an entry that is still needed. This works for layers with a
  window too: as long as there are fewer slots than the window, no position has wrapped around.
  """

  def of_leaf(leaf, shape):
    leaf = leaf[tuple(slice(size) for size in shape.shape)]
    return jnp.pad(leaf, [(0, wanted - size) for wanted, size in zip(shape.shape, leaf.shape)])

  return jax.tree.map(of_leaf, cache, tree)


def insert(cache, new, rows: jax.Array):
  """Writes row i of `new` to row rows[i] of the cache, and drops it if rows[i] is out of range.

  `new` has at most as many slots as the cache.
  """

  def of_leaf(path, leaf, new_leaf):
    batch = _batch_axis(path, leaf)
    at = (*[slice(None)] * batch, rows, *map(slice, new_leaf.shape[batch + 1 :]))
    return leaf.at[at].set(new_leaf, mode='drop')

  return jax.tree_util.tree_map_with_path(of_leaf, cache, new)


def take(cache, rows: jax.Array):
  """Selects rows of the cache."""
  of_leaf = lambda path, leaf: jnp.take(leaf, rows, axis=_batch_axis(path, leaf))
  return jax.tree_util.tree_map_with_path(of_leaf, cache)


def _is_index(path) -> bool:
  return path[-1].key == 'cache_index'


def _batch_axis(path, leaf) -> int:
  return leaf.ndim - (1 if _is_index(path) else 4)
