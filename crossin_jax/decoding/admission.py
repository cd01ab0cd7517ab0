"""A schedule that prompts enter and leave while others are decoded: for a server.

It differs from `Schedule`, which knows all prompts from the start, in what it waits for: here a
prompt takes the first row that is free, first come, first served.
"""

import collections
from collections.abc import Iterator

import numpy as np

from crossin_jax.decoding.cache import bucket
from crossin_jax.decoding.nonfinite import NonFiniteLogits
from crossin_jax.decoding.schedule import WORTH_SHRINKING, Generation, Group, Prompt, Row, Schedule
from crossin_jax.decoding.slots import Chunk

LEAST_PREFILL, LEAST_CAPACITY = 32, 128
LONGEST = 1 << 30  # tokens; a prefill of such prompts has as few rows as the mesh allows
CALM = 2  # chunks with few active rows before the batch shrinks


def _power(n: int, least: int) -> int:
  """The smallest power of two, and of `least`, that is at least n."""
  while least < n:
    least *= 2
  return least


class OpenSchedule(Schedule):
  """Prompts that wait, in the order of their arrival, and the active rows.

  A request waits while a shape that is new compiles. Where rows cost time (the batch may shrink, on
  CPUs), a prefill has hardly a row or a column that is not needed. Elsewhere shapes are few: all
  rows, prefills of one prompt or of a full group, lengths that are powers of two.

  Attributes:
    most_rows: the rows that the batch may grow to.
    most_steps: tokens of a row after which a chunk ends.
  """

  def __init__(self, *args, rows: int, fewest_rows: int, **options):
    """The arguments of `Schedule`; `rows` is the maximum."""
    super().__init__(*args, rows=fewest_rows, fewest_rows=fewest_rows, **options)
    self._bucket = lambda n: _power(n, LEAST_CAPACITY)
    self.most_rows, self.most_steps = rows, LONGEST
    self._next_index, self._calm, self._exact = len(self._prompts), 0, fewest_rows < rows
    self._left = {index: self._answers(index) for index in self._prompts}

  def _answers(self, index: int) -> int:
    samples = self._prompts[index].samples
    return self._sampling.samples if samples is None else len(samples)

  def add(self, prompt: Prompt) -> int:
    """Appends a prompt to those that wait; returns its index.

    Raises:
      ValueError: it has no tokens.
    """
    index, self._next_index = self._next_index, self._next_index + 1
    self._enter(index, prompt)
    self._left[index] = self._answers(index)
    self._pending.append(index)
    return index

  def cancel(self, index: int) -> None:
    """Forgets a prompt and frees its rows; does nothing if its answers have ended."""
    if index not in self._prompts:
      return
    if index in self._pending:
      self._pending.remove(index)
    self.rows = [None if row and row.prompt == index else row for row in self.rows]
    if (group := self._group) is not None:
      waiting = (pair for pair in group.waiting if group.prompts[pair[0]] != index)
      group.waiting = collections.deque(waiting)
      self._group = group if group.waiting else None
    self._forget(index)

  def _forget(self, index: int) -> None:
    del self._prompts[index], self._lengths[index], self._left[index]

  def active_rows(self) -> list[Row]:
    """The rows that generate now."""
    return [row for row in self.rows if row]

  def resize(self) -> np.ndarray | None:
    """Takes more rows as soon as they are wanted, and fewer after a calm time."""
    size, active = len(self.rows), [i for i, row in enumerate(self.rows) if row]
    waiting = len(self._group.waiting) if self._group else 0
    wanted = len(active) + waiting + sum(self._left[index] for index in self._pending)
    target = min(self.most_rows, _power(wanted, self._fewest_rows))
    self._calm = self._calm + 1 if target < size else 0
    if target > size:
      kept = [*range(size), *[0] * (target - size)]
      self.rows += [None] * (target - size)
    elif self._calm > CALM and max((row.left for row in self.active_rows()), default=0) >= (
      WORTH_SHRINKING
    ):
      idle = (i for i, row in enumerate(self.rows) if not row)
      kept = [*active, *idle][:target]
      self.rows = [self.rows[i] for i in kept]
    else:
      return None
    return np.asarray(kept, np.int32)

  def _next_fits(self, free: int) -> bool:
    return bool(self._pending) and free > 0

  def _next_group(self) -> Group:
    """The first prompt that waits, and others that fit beside it into one prefill."""
    width = bucket if self._exact else lambda n: _power(n, LEAST_PREFILL)
    first = self._pending[0]
    length, free = width(self._lengths[first]), sum(row is None for row in self.rows)
    fits = lambda index: (
      width(self._lengths[index]) == length if self._exact else self._lengths[index] <= length
    )
    prompts = [index for index in self._pending if fits(index)]
    prompts = prompts[: min(self._prefill_rows(length), free)]
    least = self._prefill_rows(LONGEST)
    if not self._exact:
      # A single prompt is the common case of a server with few clients.
      rows = self._prefill_rows(length) if len(prompts) > 1 else least
    else:
      sizes = (least, 4 * least, self._prefill_rows(length))
      rows = max(size for size in sizes if size <= max(least, len(prompts)))
      prompts = prompts[:rows]
    for index in prompts:
      self._pending.remove(index)
    return self._group_of(prompts, rows, length, _power(length, LEAST_CAPACITY))

  def steps(self, chunk: int) -> tuple[int, int]:
    """Maximum tokens a row of the next chunk, and the number of active rows that ends it early."""
    active = self.active_rows()
    steps = min(chunk, self.most_steps, max(row.left for row in active))
    waiting = len(self._pending) + (len(self._group.waiting) if self._group else 0)
    if not waiting:
      return steps, 0
    return steps, len(active) - min(waiting, max(1, len(self.rows) // 8))

  def collect(self, chunk: Chunk) -> Iterator[Generation | NonFiniteLogits]:
    """Adds new tokens to their rows; yields the answers that ended, and the failures of others.

    All answers of a prompt end with the first one that fails.
    """
    for outcome in [*self._outcomes(chunk)]:
      index = outcome.index
      if index not in self._left:  # another sample failed
        continue
      yield outcome
      if isinstance(outcome, NonFiniteLogits):
        self.cancel(index)
        continue
      self._left[index] -= 1
      if not self._left[index]:
        self._forget(index)
