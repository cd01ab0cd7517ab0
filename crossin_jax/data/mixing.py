"""Which example of which task stands at each place of a mixture, as a pure function of the place.

Order of tasks: at every prefix of n examples each task has floor(n r) or ceil(n r) of them, r being
its rate. That is the single-machine case of proportionate-fair scheduling (Baruah et al. 1996): the
k-th example of a task must stand in the slots floor(k / r) to ceil((k + 1) / r) - 1, and serving
the earliest deadline among the released ones meets every window. Order of rows: a keyed permutation
per epoch.
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

  There is one schedule, earliest deadline first from place 0, ties by task. How many examples of
  each task it has served by any place follows from the rates alone (`_border`), so a block begins
  there.
  """

  def __init__(self, rates, block_size: int):
    """Rates are any non-negative weights [tasks]; block_size is in examples."""
    self.rates = integer_rates(rates)
    self.block_size = block_size
    self._border = functools.lru_cache(maxsize=8)(self._border)

  def block(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Tasks and ordinals of the places index * block_size to (index + 1) * block_size - 1.

    Returns:
      tasks int32 [block_size]; ordinals int64 [block_size], which example of its task (counted over
      the whole stream, epochs included) stands there.
    """
    start = index * self.block_size
    before = self._border(start)
    tasks = self._schedule(start, before)
    ordinals = np.empty(self.block_size, np.int64)
    for task, count in enumerate(before):
      places = np.flatnonzero(tasks == task)
      ordinals[places] = count + np.arange(len(places))
    return tasks, ordinals

  def _border(self, place: int) -> tuple[int, ...]:
    """How many examples of each task the schedule has served before `place`.

    The set served by a schedule of fixed priorities is the greedy basis of a matroid: a set of
    released examples can be served if for every earlier place s at most place - s of them are
    released at s or later. Examples whose deadline has come are all in it. Besides them each task
    has at most one that is released and not yet due, its candidate; those are taken in order of
    their deadlines unless, for some s, they would leave more to the places from s on than fits
    there (`_must_be_older`).
    """
    counts = [place * rate // _ONE for rate in self.rates]
    candidates = sorted(
      (self._deadline(task, counts[task]), task, self._release(task, counts[task]))
      for task, rate in enumerate(self.rates)
      if place * rate % _ONE
    )
    extras = place - sum(counts)
    # After each release but the last: (how many candidates released later may be chosen, place of
    # the next release, candidates released by then, whether the number is exact). It starts as a
    # lower bound that costs nothing.
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
    """The most candidates, over places s from low to high - 1, that must be served before s and be
    among `older`.

    At s the schedule has served one more than the whole part for as many tasks as the fractions of
    s * rate sum to; those that are not among `older` can take one each if their fraction is not
    zero.
    """
    rates = np.array(self.rates, np.uint64)
    others = np.ones(len(rates), bool)
    others[older] = False
    most = 0
    for first in range(low, high, 1 << 16):
      places = np.arange(first, min(high, first + (1 << 16)), dtype=np.uint64)
      # Modulo 2**40 in 64 bits: the product may wrap, its low bits stay exact.
      fractions = places[:, None] * rates & np.uint64(_ONE - 1)
      served = fractions.sum(axis=1) >> np.uint64(40)
      most = max(
        most, int((served.astype(np.int64) - (fractions[:, others] > 0).sum(axis=1)).max())
      )
    return most

  def _release(self, task: int, ordinal: int) -> int:
    return ordinal * _ONE // self.rates[task]

  def _deadline(self, task: int, ordinal: int) -> int:
    return -(-(ordinal + 1) * _ONE // self.rates[task])

  def _schedule(self, start: int, before: tuple[int, ...]) -> np.ndarray:
    """Earliest deadline first over one block."""
    counts = list(before)
    waiting = [
      (self._release(t, counts[t]), self._deadline(t, counts[t]), t)
      for t, r in enumerate(self.rates)
      if r
    ]
    heapq.heapify(waiting)
    ready = []
    tasks = np.empty(self.block_size, np.int32)
    for i in range(self.block_size):
      while waiting and waiting[0][0] <= start + i:
        _, deadline, task = heapq.heappop(waiting)
        heapq.heappush(ready, (deadline, task))
      # rates sum to one: by every place more examples are released than places passed
      _, task = heapq.heappop(ready)
      tasks[i] = task
      counts[task] += 1
      heapq.heappush(
        waiting, (self._release(task, counts[task]), self._deadline(task, counts[task]), task)
      )
    return tasks


def fold(*parts) -> int:
  """A 64-bit key from any printable parts; the same on every machine and Python."""
  return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), 'little')


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
  """A keyed permutation of range(size), evaluated at `index` in constant memory.

  Four rounds of a Feistel network over the next even number of bits, walked until the value falls
  below size (Black and Rogaway 2002), so a source of any size needs no table.

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
