"""Packs examples into rows, by their lengths."""

import numpy as np


def first_fit(lengths, capacity: int, room: np.ndarray) -> np.ndarray:
  """Puts each item, in order, into the first bin that still has room for it.

      first_fit([5, 4, 3, 2], 8, np.full(2, 8)) == [0, 1, 0, 1]

  Args:
    lengths: int [items], each at least 1.
    capacity: size of an empty bin; longer items fit in none.
    room: int [bins], space left in each bin; updated in place.

  Returns:
    int32 [items], bin of each item; -1 = none had room.
  """
  # A tree of maxima over the bins; a descent from the root finds the first bin with room.
  leaves = 1 << max(0, int(len(room) - 1).bit_length())
  tree = [0] * (2 * leaves)
  tree[leaves : leaves + len(room)] = [int(r) for r in room]
  for node in range(leaves - 1, 0, -1):
    tree[node] = max(tree[2 * node], tree[2 * node + 1])
  bins = np.full(len(lengths), -1, np.int32)
  for item, length in enumerate(lengths):
    length = int(length)
    if length > capacity or tree[1] < length:
      continue
    node = 1
    while node < leaves:
      node *= 2
      if tree[node] < length:
        node += 1
    bins[item] = node - leaves
    tree[node] -= length
    while node > 1:
      node //= 2
      larger = max(tree[2 * node], tree[2 * node + 1])
      if tree[node] == larger:
        break
      tree[node] = larger
  room[:] = tree[leaves : leaves + len(room)]
  return bins


def rows_for(lengths: np.ndarray, capacity: int) -> int:
  """How many rows to use for each window, given the examples of the first one.

  First-fit's rows for these lengths, plus three standard deviations of the difference between the
  token sums of two such windows.

  Args:
    lengths: int [examples of one window].
    capacity: tokens in a row.
  """
  # first-fit leaves at most one row less than half full
  most = int(np.ceil(2 * lengths.sum() / capacity)) + 2
  room = np.full(most, capacity)
  bins = first_fit(lengths, capacity, room)
  used = int(bins.max()) + 1
  margin = 3 * lengths.std() * np.sqrt(2 * len(lengths)) / capacity
  return used + int(np.ceil(margin))


def spread_empty_rows(bins: np.ndarray, rows: int) -> np.ndarray:
  """Reorders the bins of a window to spread the empty ones evenly among the others.

  Otherwise the last batches of each window would be empty. Used bins keep their order.

      bins 0, 1, 2 of 4 are used: the empty one moves between them

  Args:
    bins: int [items], bin of each item or -1.
    rows: number of bins.

  Returns:
    int [rows], new position of each bin.
  """
  used = np.zeros(rows, bool)
  used[bins[bins >= 0]] = True
  key = np.empty(rows)
  for group in (used, ~used):
    count = int(group.sum())
    if count:
      key[group] = (np.arange(count) + 0.5) / count
  position = np.empty(rows, np.int64)
  position[np.argsort(key, kind='stable')] = np.arange(rows)
  return position
