"""The task and example at each position of a mixture, as a pure function of the position.

Order of tasks: any prefix of n examples has floor(n r) or ceil(n r) of a task with rate r. This is
proportionate-fair scheduling on one machine (Baruah et al. 1996): the k-th example of a task must
be in slots floor(k / r) to ceil((k + 1) / r) - 1, and serving the earliest deadline among the
released examples meets every window. Order of rows: a keyed permutation for each epoch.
"""

import functools
import hashlib
import heapq

import numpy as np

_ONE = 1 << 40  # rates are integers in units of 1 / _ONE, so that windows are exact at any position


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
  floors = [int(value) for value in exact]
  order = sorted(range(len(exact)), key=lambda i: (floors[i] - exact[i], i))
  order = [i for i in order if rates[i] > 0]
  for i in range(_ONE - sum(floors)):
    floors[order[i % len(order)]] += 1
  return tuple(floors)


class TaskOrder:
  """The tasks at the positions of a mixture, in blocks with random access.

  The schedule serves the earliest deadline first from position 0, ties by task. `_border` computes
  from the rates how many examples of each task it serves before a block.
  """

  def __init__(self, rates, block_size: int):
    """`rates` are any non-negative weights [tasks]; `block_size` is in examples."""
    self.rates = integer_rates(rates)
    self.block_size = block_size
    self._border = functools.lru_cache(maxsize=8)(self._border)

  def block(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Tasks and ordinals at positions index * block_size to (index + 1) * block_size - 1.

    Returns:
      int32 [block_size], tasks; int64 [block_size], number of each example within its task, counted
      over the complete stream, epochs included.
    """
    start = index * self.block_size
    before = self._border(start)
    tasks = self._schedule(start, before)
    ordinals = np.empty(self.block_size, np.int64)
    for task, count in enumerate(before):
      of_task = np.flatnonzero(tasks == task)
      ordinals[of_task] = count + np.arange(len(of_task))
    return tasks, ordinals

  def _border(self, position: int) -> tuple[int, ...]:
    """How many examples of each task the schedule serves before `position`.

    The set served by a schedule of fixed priorities is the greedy basis of a matroid: a set of
    released examples can be served if, for every s < position, at most position - s of them are
    released at s or later. All examples whose deadline has passed are in it. Each task has at most
    one more example that is released but not yet due, its candidate. Candidates are chosen in order
    of their deadlines, unless for some s more examples would be released from s on than there are
    positions (`_must_be_older`).
    """
    counts = [position * rate // _ONE for rate in self.rates]
    candidates = sorted(
      (self._deadline(task, counts[task]), task, self._release(task, counts[task]))
      for task, rate in enumerate(self.rates)
      if position * rate % _ONE
    )
    extras = position - sum(counts)
    # For each release but the last: (how many candidates released later may be chosen, position of
    # the next release, candidates released by then, whether the number is exact). It starts as a
    # cheap lower bound.
    releases = sorted({release for *_, release in candidates})
    caps = {}
    for low, high in zip(releases, releases[1:]):
      older = [task for _, task, release in candidates if release <= low]
      caps[low] = (
        extras - sum(high * self.rates[task] % _ONE for task in older) // _ONE,
        high,
        older,
        False,
      )
    chosen, later = [], dict.fromkeys(caps, 0)
    for _, task, release in candidates:
      if len(chosen) == extras:
        break
      over = [low for low in caps if low < release]
      for low in over:
        cap, high, older, exact = caps[low]
        if later[low] >= cap and not exact:
          caps[low] = (extras - self._must_be_older(low + 1, high + 1, older), high, older, True)
      if all(later[low] < caps[low][0] for low in over):
        chosen.append(task)
        for low in over:
          later[low] += 1
    for task in chosen:
      counts[task] += 1
    return tuple(counts)

  def _must_be_older(self, low: int, high: int, older: list[int]) -> int:
    """The maximum, over positions s in [low, high), of candidates in `older` served before s.

    Before s, the fractions of s * rate sum to the number of tasks that have been served once more
    than floor(s * rate). Each task outside `older` can be one of them if its fraction is not zero.
    """
    rates = np.array(self.rates, np.uint64)
    others = np.ones(len(rates), bool)
    others[older] = False
    most = 0
    for first in range(low, high, 1 << 16):
      positions = np.arange(first, min(high, first + (1 << 16)), dtype=np.uint64)
      # Modulo 2**40 in 64 bits: the product may wrap, its low bits stay exact.
      fractions = positions[:, None] * rates & np.uint64(_ONE - 1)
      served = (fractions.sum(axis=1) >> np.uint64(40)).astype(np.int64)
      most = max(most, int((served - (fractions[:, others] > 0).sum(axis=1)).max()))
    return most

  def _release(self, task: int, ordinal: int) -> int:
    return ordinal * _ONE // self.rates[task]

  def _deadline(self, task: int, ordinal: int) -> int:
    return -(-(ordinal + 1) * _ONE // self.rates[task])

  def _schedule(self, start: int, before: tuple[int, ...]) -> np.ndarray:
    """Earliest deadline first over one block."""
    counts = list(before)
    entry = lambda t: (self._release(t, counts[t]), self._deadline(t, counts[t]), t)
    waiting = [entry(t) for t, rate in enumerate(self.rates) if rate]
    heapq.heapify(waiting)
    ready = []
    tasks = np.empty(self.block_size, np.int32)
    for i in range(self.block_size):
      while waiting and waiting[0][0] <= start + i:
        _, deadline, task = heapq.heappop(waiting)
        heapq.heappush(ready, (deadline, task))
      # The rates sum to one, so more examples are released than positions passed.
      _, task = heapq.heappop(ready)
      tasks[i] = task
      counts[task] += 1
      heapq.heappush(waiting, entry(task))
    return tasks


def fold(*parts) -> int:
  """A 64-bit key from the `repr` of the parts, the same on every machine and Python version."""
  return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), 'little')


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
  """A keyed permutation of range(size), evaluated at `index` without a table.

  Four rounds of a Feistel network over the next even number of bits, repeated until the value is
  below size (Black and Rogaway 2002).

  Args:
    index: int64 [n], values in [0, size).
    size: at least 1.
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
  """The finaliser of splitmix64: every input bit affects every output bit."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))
