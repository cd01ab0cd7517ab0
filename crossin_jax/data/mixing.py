"""Which example of which task stands at each place of a mixture, as a pure function of the place.

Order of tasks: at every prefix of n examples each task has floor(n r) or ceil(n r) of them, r being its
rate. That is the single-machine case of proportionate-fair scheduling (Baruah et al. 1996): the k-th
example of a task must stand in the slots floor(k / r) to ceil((k + 1) / r) - 1, and serving the earliest
deadline among the released ones meets every window. Order of rows: a keyed permutation per epoch.
"""

import functools
import hashlib
import heapq

import numpy as np

_ONE = 1 << 40  # rates are integers in units of 1 / _ONE, so that windows are exact at any place


def integer_rates(rates) -> tuple[int, ...]:
  """Rates as integers that sum to 2**40, by largest remainder.

      integer_rates([1, 1]) == (2**39, 2**39)

  Raises:
    ValueError: a rate that is negative or not finite, or all zero.
  """
  rates = [float(rate) for rate in rates]
  if not rates or any(not np.isfinite(rate) or rate < 0 for rate in rates) or sum(rates) <= 0:
    raise ValueError(f'mixture rates {rates} must be finite, not negative, and not all zero')
  exact = [rate / sum(rates) * _ONE for rate in rates]
  whole = [int(value) for value in exact]
  order = sorted(range(len(exact)), key=lambda i: (whole[i] - exact[i], i))
  order = [i for i in order if rates[i] > 0]
  for i in range(_ONE - sum(whole)):
    whole[order[i % len(order)]] += 1
  return tuple(whole)


class TaskOrder:
  """Tasks of the places of a mixture, block by block, each block reached without those before it.

  The state at the border of two blocks is what the schedule reaches when it is started one block
  earlier; block b is the schedule between its two borders. All windows hold across borders because a
  border state comes from a schedule that kept them.
  """

  def __init__(self, rates, block_size: int):
    """Rates are any non-negative weights [tasks]; block_size is in examples."""
    self.rates = integer_rates(rates)
    self.block_size = block_size
    self._border = functools.lru_cache(maxsize=8)(self._border)

  def block(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Tasks and ordinals of the places index * block_size to (index + 1) * block_size - 1.

    Returns:
      tasks int32 [block_size]; ordinals int64 [block_size], which example of its task (counted over the
      whole stream, epochs included) stands there.
    """
    start = index * self.block_size
    before, after = self._border(index), self._border(index + 1)
    tasks, _ = self._schedule(start, before, after)
    ordinals = np.empty(self.block_size, np.int64)
    for task, count in enumerate(before):
      places = np.flatnonzero(tasks == task)
      ordinals[places] = count + np.arange(len(places))
    return tasks, ordinals

  def _border(self, index: int) -> tuple[int, ...]:
    """How many examples of each task stand before block `index`."""
    if index == 0:
      return (0,) * len(self.rates)
    start = (index - 1) * self.block_size
    # Any start state from which all windows can be kept will do: the whole parts, and one more for those
    # whose next deadline comes first.
    counts = [start * rate // _ONE for rate in self.rates]
    urgent = sorted(
        (self._deadline(task, counts[task]), task)
        for task in range(len(counts))
        if self.rates[task] and start * self.rates[task] % _ONE
    )
    for _, task in urgent[: start - sum(counts)]:
      counts[task] += 1
    return self._schedule(start, tuple(counts), None)[1]

  def _release(self, task: int, ordinal: int) -> int:
    return ordinal * _ONE // self.rates[task]

  def _deadline(self, task: int, ordinal: int) -> int:
    return -(-(ordinal + 1) * _ONE // self.rates[task])

  def _schedule(self, start, before, after) -> tuple[np.ndarray, tuple[int, ...]]:
    """Earliest deadline first over one block; `after` (or None) pins the counts at its end."""
    counts = list(before)
    end = start + self.block_size
    waiting, ready = [], []

    def enqueue(task):
      ordinal = counts[task]
      if after is not None and ordinal >= after[task]:
        return
      deadline = self._deadline(task, ordinal)
      heapq.heappush(waiting, (self._release(task, ordinal), min(deadline, end) if after else deadline, task))

    for task, rate in enumerate(self.rates):
      if rate:
        enqueue(task)
    tasks = np.empty(self.block_size, np.int32)
    for place in range(self.block_size):
      while waiting and (waiting[0][0] <= start + place or not ready):
        _, deadline, task = heapq.heappop(waiting)
        heapq.heappush(ready, (deadline, task))
      _, task = heapq.heappop(ready)
      tasks[place] = task
      counts[task] += 1
      enqueue(task)
    return tasks, tuple(counts)


def fold(*parts) -> int:
  """A 64-bit key from any printable parts; the same on every machine and Python."""
  return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), 'little')


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
  """A keyed permutation of range(size), evaluated at `index` in constant memory.

  Four rounds of a Feistel network over the next even number of bits, walked until the value falls below
  size (Black and Rogaway 2002), so a source of any size needs no table.

  Args:
    index: int64 [n], values in [0, size).
    size: number of things permuted, at least 1.
    key: 64-bit key.

  Returns:
    int64 [n].
  """
  index = np.asarray(index, np.uint64)
  half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
  mask = np.uint64((1 << int(half)) - 1)
  round_keys = [np.uint64(fold(key, i)) for i in range(4)]

  def cipher(x):
    left, right = x >> half, x & mask
    for round_key in round_keys:
      left, right = right, left ^ (_mix(right ^ round_key) & mask)
    return (left << half) | right

  result = cipher(index)
  while True:
    outside = result >= size
    if not outside.any():
      return result.astype(np.int64)
    result[outside] = cipher(result[outside])


def _mix(x: np.ndarray) -> np.ndarray:
  """The finaliser of splitmix64: every input bit reaches every output bit."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))
