"""Products of rows with the matrix of their group, for experts: dropless, without padding to a
capacity.

Letters: N tokens, K choices of each token, X groups, P rows in group order, E inputs, F outputs.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Layout:
  """Where each choice of each token stands among the rows, which are in the order of the groups.

  Every group begins at a multiple of `block`, so that a block of rows belongs to one group.

      groups_NK = [[0, 2], [2, 0]], 3 groups, block 2
      sizes_X = [2, 0, 2]   source_P = [0, 3, 1, 2, ...]   row_NK = [[0, 2], [3, 1]]

  Attributes:
    sizes_X: int32, rows of each group, a multiple of `block`.
    source_P: int32, choice of each row: token x K + choice; N x K = an empty row.
    row_NK: int32, row of each choice; P = it has none, since its group is not here.
    block: rows.
  """

  sizes_X: jax.Array
  source_P: jax.Array
  row_NK: jax.Array
  block: int = flax.struct.field(pytree_node=False)


def block_size(choices: int, groups: int, platform: str) -> int:
  """Rows of a block: 1 for `jax.lax.ragged_dot`, or on a CPU a power of two from 8 on."""
  if platform != 'cpu':
    return 1
  wanted = max(8, min(256, choices // (8 * groups)))
  return 1 << (wanted.bit_length() - 1)


def layout(groups_NK: jax.Array, groups: int, block: int) -> Layout:
  """The layout of some choices; those with a group of `groups` or more get no row."""
  flat, choices = groups_NK.reshape(-1), groups_NK.size
  order = jnp.argsort(flat, stable=True)
  counts_X = jnp.bincount(flat, length=groups + 1)[:groups].astype(jnp.int32)
  sizes_X = -(-counts_X // block) * block
  first_X, start_X = (jnp.cumsum(counts_X) - counts_X, jnp.cumsum(sizes_X) - sizes_X)
  rows = -(-(choices + groups * (block - 1)) // block) * block
  row = jnp.arange(rows, dtype=jnp.int32)
  group_P = jnp.clip(jnp.searchsorted(jnp.cumsum(sizes_X), row, side='right'), 0, groups - 1)
  rank_P = row - start_X[group_P]
  is_filled_P = rank_P < counts_X[group_P]
  sorted_at_P = jnp.clip(first_X[group_P] + rank_P, 0, choices - 1)
  source_P = jnp.where(is_filled_P, order[sorted_at_P], choices).astype(jnp.int32)
  place = jnp.zeros(choices, jnp.int32).at[order].set(jnp.arange(choices, dtype=jnp.int32))
  here = jnp.clip(flat, 0, groups - 1)
  row_NK = jnp.where(flat < groups, start_X[here] + place - first_X[here], rows)
  return Layout(sizes_X, source_P, row_NK.reshape(groups_NK.shape).astype(jnp.int32), block)


@jax.custom_vjp
def dispatched(x_NE: jax.Array, where: Layout) -> jax.Array:
  """The rows [P, E]: each is the token of its choice, empty ones are 0."""
  return _taken(x_NE, where.source_P // where.row_NK.shape[1], where.source_P, where.row_NK.size)


@jax.custom_vjp
def returned(y_PE: jax.Array, where: Layout) -> jax.Array:
  """The rows of each choice [N, K, E]; 0 for choices without a row."""
  return _taken(y_PE, where.row_NK, where.row_NK, y_PE.shape[0])


def _taken(values, index, marks, none: int) -> jax.Array:
  """values[index], and 0 where `marks` is `none`."""
  found = jnp.take(values, jnp.minimum(index, values.shape[0] - 1), axis=0)
  return jnp.where((marks < none)[..., None], found, 0)


# A gather's own gradient is a scatter; here it is the gather in the other direction.
dispatched.defvjp(
  lambda x_NE, where: (dispatched(x_NE, where), where),
  lambda where, d_PE: (returned(d_PE, where).sum(axis=1), None),
)


def _returned_backward(where: Layout, d_NKE):
  flat = d_NKE.reshape(-1, d_NKE.shape[-1])
  return _taken(flat, where.source_P, where.source_P, where.row_NK.size), None


returned.defvjp(lambda y_PE, where: (returned(y_PE, where), where), _returned_backward)


def product(x_PE: jax.Array, kernel_XEF: jax.Array, where: Layout) -> jax.Array:
  """Each row times the matrix of its group, [P, F] in the dtype of x.

  On a CPU `jax.lax.ragged_dot` multiplies all rows with the matrices of all groups, so blocks of
  rows are multiplied one after the other there.
  """
  if where.block == 1:
    return jax.lax.ragged_dot(x_PE, kernel_XEF, where.sizes_X)
  return _by_block(x_PE, kernel_XEF, where.sizes_X, where.block)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _by_block(x_PE, kernel_XEF, sizes_X, block: int):
  def of_group(group, first, last, y_PF):
    kernel_EF = kernel_XEF[group]

    def multiply(i, y_PF):
      return _put(y_PF, _rows(x_PE, i, block) @ kernel_EF, i, block)

    return jax.lax.fori_loop(first, last, multiply, y_PF)

  empty = jnp.zeros((x_PE.shape[0], kernel_XEF.shape[2]), x_PE.dtype)
  return _over_groups(sizes_X, block, of_group, empty)


def _over_groups(sizes_X, block: int, body, start):
  """body(group, its first block, the block behind its last, carry) for every group."""
  ends_X = jnp.cumsum(sizes_X) // block
  step = lambda group, carry: body(
    group, ends_X[group] - sizes_X[group] // block, ends_X[group], carry
  )
  return jax.lax.fori_loop(0, sizes_X.shape[0], step, start)


def _rows(x_PE, i, block: int):
  return jax.lax.dynamic_slice_in_dim(x_PE, i * block, block)


def _put(y_PF, rows, i, block: int):
  return jax.lax.dynamic_update_slice_in_dim(y_PF, rows, i * block, 0)


def _by_block_forward(x_PE, kernel_XEF, sizes_X, block):
  return _by_block(x_PE, kernel_XEF, sizes_X, block), (x_PE, kernel_XEF, sizes_X)


def _by_block_backward(block, kept, d_PF):
  x_PE, kernel_XEF, sizes_X = kept

  def of_group(group, first, last, carry):
    kernel_EF = kernel_XEF[group]

    def multiply(i, carry):
      dx_PE, d_kernel_EF = carry
      d_rows = _rows(d_PF, i, block)
      dx_PE = _put(dx_PE, d_rows @ kernel_EF.T, i, block)
      return dx_PE, d_kernel_EF + _rows(x_PE, i, block).T @ d_rows

    dx_PE, d_kernel_XEF = carry
    none = jnp.zeros_like(kernel_EF)
    dx_PE, d_kernel_EF = jax.lax.fori_loop(first, last, multiply, (dx_PE, none))
    return dx_PE, jax.lax.dynamic_update_index_in_dim(d_kernel_XEF, d_kernel_EF, group, 0)

  zeros = jnp.zeros_like(x_PE), jnp.zeros_like(kernel_XEF)
  return (*_over_groups(sizes_X, block, of_group, zeros), None)


_by_block.defvjp(_by_block_forward, _by_block_backward)
