"""The KV cache as a tree: its shapes, its shards, its growth, and rows that move in and out of it.

Leaves are T5X's: cached_key and cached_value [..., B, K, D, S], cache_index [..., B]; `...` is a
layer axis where layers are scanned. A layer with a window has fewer slots S than the others, and
position p lies in slot p mod S.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from crossin_jax.devices.partitioning import Partitioner


def bucket(n: int) -> int:
  """The least of 16, 24, 32, 48, 64, 96, 128 ... that is at least n: few shapes, at most half too
  large.
  """
  power = 16
  while power < n:
    power *= 2
  return power * 3 // 4 if power > 16 and n <= power * 3 // 4 else power


@functools.lru_cache(maxsize=64)
def shapes(model, rows: int, capacity: int):
  """The cache tree of `rows` rows with room for `capacity` tokens, as shapes; cache_index has an
  entry for each row.
  """
  tokens = jax.ShapeDtypeStruct((rows, capacity), jnp.int32)
  create = lambda tokens: model.init(
    jax.random.key(0), tokens, tokens, enable_dropout=False, decode=True
  )['cache']  # fmt: skip
  tree = jax.eval_shape(create, tokens)
  with_rows = lambda path, leaf: jax.ShapeDtypeStruct(
    (*leaf.shape, rows) if path[-1].key == 'cache_index' else leaf.shape, leaf.dtype
  )
  return jax.tree_util.tree_map_with_path(with_rows, tree)


def shardings(partition: Partitioner, tree):
  """Rows over data and fsdp, heads over tensor where it divides them."""

  def of_leaf(path, leaf):
    axes = ('batch',) if path[-1].key == 'cache_index' else ('batch', 'heads', 'kv', 'length')
    spec = [*[None] * (leaf.ndim - len(axes)), *partition.sharding(axes).spec]
    spec += [None] * (leaf.ndim - len(spec))
    for i, axis in enumerate(spec):
      parts = axis if isinstance(axis, tuple) else (axis,) if axis else ()
      if leaf.shape[i] % int(np.prod([partition.mesh.shape[part] for part in parts])):
        spec[i] = None
    return NamedSharding(partition.mesh, PartitionSpec(*spec))

  return jax.tree_util.tree_map_with_path(of_leaf, tree)


def zeros(tree):
  """An empty cache of these shapes."""
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)


def resized(cache, tree):
  """The cache with the slots of `tree`; what is cut off must hold nothing that is still needed.

  Right for rings too: a ring shorter than its window has never turned.
  """

  def of_leaf(leaf, shape):
    leaf = leaf[tuple(slice(size) for size in shape.shape)]
    return jnp.pad(leaf, [(0, wanted - size) for wanted, size in zip(shape.shape, leaf.shape)])

  return jax.tree.map(of_leaf, cache, tree)


def inserted(cache, new, rows: jax.Array):
  """The cache with row i of `new`, which has at most as many slots, in row rows[i]; rows out of
  range are left out.
  """

  def of_leaf(path, leaf, fresh):
    batch = leaf.ndim - (1 if path[-1].key == 'cache_index' else 4)
    at = (*[slice(None)] * batch, rows, *map(slice, fresh.shape[batch + 1 :]))
    return leaf.at[at].set(fresh, mode='drop')

  return jax.tree_util.tree_map_with_path(of_leaf, cache, new)


def taken(cache, rows: jax.Array):
  """The cache of these rows alone."""
  take = lambda path, leaf: jnp.take(
    leaf, rows, axis=leaf.ndim - (1 if path[-1].key == 'cache_index' else 4)
  )
  return jax.tree_util.tree_map_with_path(take, cache)
