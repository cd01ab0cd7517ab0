"""A matrix product that is summed over the devices of a ring while it is computed.

Letters: N tokens of a device, E model width, D devices, C columns.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def summed_product(
  product: Callable[[jax.Array], jax.Array], x_NE: jax.Array, axis: str, dtype
) -> jax.Array:
  """`product(x)`, summed over the devices of a mesh axis; each device gets its part of E.

  The sum for each device travels to it from both sides. The hop of one is hidden by the product
  that the other waits for, so no device waits for a complete sum as in a reduce-scatter that the
  compiler runs by itself (the decomposition of Wang et al. 2023, "Overlap Communication with
  Dependent Computation via Decomposition").

  Args:
    product: [N, E / D] -> an array; what it gives for columns of x is that part of the result.
    x_NE: of this device; called inside `jax.shard_map`.
    axis: of D devices, an even number above 2.
    dtype: of what is sent, and of the result.
  """
  count, me = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
  columns, half = x_NE.shape[1] // count, count // 2

  def part(device):
    start = device % count * columns
    return product(jax.lax.dynamic_slice_in_dim(x_NE, start, columns, 1))

  def move(total, way):
    return jax.lax.ppermute(total, axis, [(i, (i + way) % count) for i in range(count)])

  def step(carry, k):
    up_moved, down = carry
    down_moved = move(down, -1)
    up = (part(me + half - 1 - k) + up_moved).astype(dtype)
    return (move(up, 1), (part(me - half + k) + down_moved).astype(dtype)), None

  first = move(part(me + half - 1).astype(dtype), 1), part(me - half).astype(dtype)
  (up_moved, down), _ = jax.lax.scan(step, first, jnp.arange(1, half - 1))
  down_moved = move(down, -1)
  up = (part(me) + up_moved).astype(dtype)
  return up + move((part(me - 1) + down_moved).astype(dtype), -1)
