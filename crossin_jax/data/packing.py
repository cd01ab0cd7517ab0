"""Packs examples into rows, by their lengths."""

import bisect
import itertools

import numpy as np

WAITING = 2  # examples that may wait for the next batch while later ones fill this one


def in_order(
  lengths: np.ndarray,
  tasks: np.ndarray,
  epochs: np.ndarray,
  capacity: int,
  batch_size: int,
  batches: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Fills batch after batch with consecutive examples.

  A batch takes as many of the next examples as best-fit decreasing gets into its rows. At most
  `WAITING` examples that do not fit are left to the next batch, which takes them first, and no
  example of a later epoch overtakes one of its task. So the examples read before any batch are a
  prefix of the stream, up to `WAITING`.

      in_order of lengths 5, 4, 3, 2 and capacity 8, one row a batch: rows 0, 1, 0, 1

  Args:
    lengths: int [items], at most `capacity` each.
    tasks, epochs: int [items]; a task reads each of its examples once in an epoch.
    capacity: tokens in a row.
    batch_size: rows in a batch.
    batches: how many, among which the tokens are spread evenly; None = as many as are needed, each
      as full as possible.

  Returns:
    int32 [items], row of each item, counted over all batches; -1 = it did not fit into `batches`.
    int64 [batches * batch_size], space left in each row.
    int64 [batches + 1], how many leading items have all been read before each batch.
  """
  lengths, tasks, epochs = lengths.tolist(), tasks.tolist(), epochs.tolist()
  before = [0, *itertools.accumulate(lengths)]  # tokens before each item
  rows, room, read = np.full(len(lengths), -1, np.int32), [], [0]
  waiting, position = [], 0
  overtakes = lambda item: any(
    tasks[item] == tasks[other] and epochs[item] > epochs[other] for other in waiting
  )
  while len(read) <= batches if batches else waiting or position < len(lengths):
    aim = -(-before[-1] * len(read) // batches) if batches else before[-1]
    most = before[position] + batch_size * capacity - sum(lengths[item] for item in waiting)
    end = max(position, bisect.bisect_right(before, min(aim, most)) - 1)
    items = waiting + list(range(position, end))
    while True:
      places, spaces = _best_fit_decreasing([lengths[i] for i in items], capacity, batch_size)
      if not (unfit := places.count(-1)):
        break
      del items[-max(1, unfit // 2) :]
    first = len(room)
    rows[items] = np.add(places, first)
    waiting, position = waiting[len(items) :], max(position, items[-1] + 1 if items else 0)
    while position < len(lengths) and before[position + 1] <= aim and not overtakes(position):
      place = bisect.bisect_left(spaces, (lengths[position], -1))
      if place < batch_size:
        space, row = spaces.pop(place)
        bisect.insort(spaces, (space - lengths[position], row))
        rows[position] = first + row
      elif len(waiting) < WAITING:
        waiting.append(position)
      else:
        break
      position += 1
    room += [space for space, _ in sorted(spaces, key=lambda pair: pair[1])]
    read.append(min(waiting, default=position))
  return rows, np.array(room), np.array(read)


def _best_fit_decreasing(lengths: list[int], capacity: int, bins: int):
  """The bin of each item, -1 = none; and (space left, bin) of all bins, ascending."""
  spaces, places = [(capacity, i) for i in range(bins)], [-1] * len(lengths)
  for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
    place = bisect.bisect_left(spaces, (lengths[item], -1))
    if place < bins:
      space, row = spaces.pop(place)
      bisect.insort(spaces, (space - lengths[item], row))
      places[item] = row
  return places, spaces


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


def packed_rows(lengths: np.ndarray, capacity: int) -> list[list[int]]:
  """The items of each row, as few rows as first-fit decreasing needs.

      packed_rows(np.array([2, 5, 4]), 6) == [[1], [2, 0]]

  Args:
    lengths: int [items], at most `capacity` each; at least one item.
    capacity: tokens in a row.
  """
  order = np.argsort(-lengths, kind='stable')
  bins = first_fit(lengths[order], capacity, np.full(len(lengths), capacity))
  rows = [[] for _ in range(bins.max() + 1)]
  for item, bin_ in zip(order.tolist(), bins):
    rows[bin_].append(item)
  return rows
