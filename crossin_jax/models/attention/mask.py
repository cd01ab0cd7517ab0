"""The attention mask, in one description for every back end.

Letters: B batch, T query length, S key length.
"""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Mask:
  """A query at array index i sees a key at index j <= i, if all attributes that are set allow it.

  Attributes:
    q_segments_BT, k_segments_BS: int segment ids; a query sees its segment. None = one segment.
    prefix_BS: 1 on prompts with attention in both directions.
    branches_BS: int, 0 = trunk, which all see; a branch sees the trunk and itself.
    positions_BS: int, positions within the segment; the window counts them if there are branches.
    window: a query sees at most this many keys back, including its position.
  """

  q_segments_BT: jax.Array | None = None
  k_segments_BS: jax.Array | None = None
  prefix_BS: jax.Array | None = None
  branches_BS: jax.Array | None = None
  positions_BS: jax.Array | None = None
  window: int | None = flax.struct.field(pytree_node=False, default=None)

  @property
  def is_plain(self) -> bool:
    """Whether the mask has only causality, segments and a window."""
    return self.prefix_BS is None and self.branches_BS is None

  @property
  def reach(self) -> int | None:
    """Bound on i - j + 1 over all pairs of a query i and a key j that it sees; None = no bound."""
    return self.window if self.branches_BS is None else None

  def seen(self, start, rows: int, first, columns: int) -> jax.Array:
    """Whether queries start, start + 1, ... see keys first, first + 1, ...

    Args:
      start, first: int or traced int.
      rows, columns: number of queries and keys.

    Returns:
      bool [B or 1, rows, columns].
    """
    q_index_1T1 = (start + jnp.arange(rows))[None, :, None]
    k_index_11S = (first + jnp.arange(columns))[None, None]
    seen_BTS = k_index_11S <= q_index_1T1
    of_queries = lambda x: _part(x, start, rows)[:, :, None]
    of_keys = lambda x: _part(x, first, columns)[:, None]
    if self.prefix_BS is not None:
      seen_BTS |= (of_keys(self.prefix_BS) > 0) & (of_queries(self.prefix_BS) > 0)
    if self.branches_BS is not None:
      branch_B1S = of_keys(self.branches_BS)
      seen_BTS &= (branch_B1S == 0) | (branch_B1S == of_queries(self.branches_BS))
    if self.window is not None and self.branches_BS is not None:
      seen_BTS &= of_queries(self.positions_BS) - of_keys(self.positions_BS) < self.window
    elif self.window is not None:
      seen_BTS &= q_index_1T1 - k_index_11S < self.window
    if self.q_segments_BT is not None:
      seen_BTS &= of_queries(self.q_segments_BT) == of_keys(self.k_segments_BS)
    return seen_BTS


def _part(x_BS, start, size: int):
  if isinstance(start, int):
    return x_BS[:, start : start + size]
  return jax.lax.dynamic_slice_in_dim(x_BS, start, size, axis=1)
