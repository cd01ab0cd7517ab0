"""Which prompt is in which row, as the hosts keep it: plain NumPy, the same decisions on each of
them.

Letters as in `crossin_jax.decoding.slots`.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
import dataclasses
from typing import Any

import numpy as np

from crossin_jax.decoding.cache import bucket
from crossin_jax.decoding.sampling import Sampling
from crossin_jax.decoding.slots import Arrivals, Chunk

# tokens that the last rows may still generate: a smaller batch is one more program to compile
WORTH_SHRINKING = 32


@dataclasses.dataclass(frozen=True)
class Prompt:
  """One prompt.

  Attributes:
    tokens: without BOS.
    id: int32, what the draws are seeded by: an answer depends on it, on nothing around its row.
    max_new_tokens: of this prompt; None = `Sampling.max_new_tokens`.
    samples: which answers are wanted; None = all `Sampling.samples`.
  """

  tokens: Sequence[int]
  id: int = 0
  max_new_tokens: int | None = None
  samples: Sequence[int] | None = None


@dataclasses.dataclass(frozen=True)
class Generation:
  """One answer.

  Attributes:
    index: place of the prompt among those given.
    sample: which of `Sampling.samples`, from 0.
    tokens: generated, without the stop token; up to the one that completed a stop text.
    finish_reason: 'stop' (a stop token), 'length' or 'stop_string'.
    text: decoded, cut off before a stop text; None without a `decode`.
  """

  index: int
  sample: int
  tokens: list[int]
  finish_reason: str
  text: str | None


@dataclasses.dataclass
class _Row:
  """A row at work."""

  prompt: int
  sample: int
  limit: int
  tokens: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Group:
  """Prompts that are read together; their cache serves all samples of each.

  Attributes:
    prompts: indices.
    rows: P, at least as many.
    length: L, bucket of their lengths.
    waiting: (place in the group, sample) without a row yet.
    cache: None until they are read, and after the last has got its row.
  """

  prompts: list[int]
  rows: int
  length: int
  waiting: collections.deque
  cache: Any = None


class Schedule:
  """Prompts waiting, prompts read, rows at work.

  Attributes:
    rows: of the decode batch, now; None = free.
  """

  def __init__(
    self,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    bos_id: int,
    stop_ids: Sequence[int],
    decode: Callable[[list[int]], str] | None,
    rows: int,
    prefill_rows: Callable[[int], int],
    fewest_rows: int,
  ):
    """Args:
    prompts: all of them.
    sampling: max_new_tokens, samples, seed and stop are read.
    bos_id: put before each prompt.
    stop_ids: tokens that end an answer.
    decode: tokens to text, or None.
    rows: R.
    prefill_rows: bucket L of lengths -> P.
    fewest_rows: the batch may shrink to this.
    """
    self._prompts, self._sampling, self._decode = prompts, sampling, decode
    self._bos_id, self._stop_ids = bos_id, frozenset(stop_ids)
    # In the cache when decoding begins: BOS and all of the prompt but its last token.
    self._lengths = [len(prompt.tokens) for prompt in prompts]
    self._pending = collections.deque(sorted(range(len(prompts)), key=lambda i: -self._lengths[i]))
    self._group: Group | None = None
    self._prefill_rows, self._fewest_rows = prefill_rows, fewest_rows
    self.rows: list[_Row | None] = [None] * rows

  def unfinished(self) -> bool:
    """Whether there is anything left to do."""
    return bool(self._pending or self._group or any(self.rows))

  def place(self) -> list[tuple[Group, list[tuple[int, int]]]]:
    """Gives free rows to waiting prompts.

    Returns:
      (group, [(place in the group, row)]) for each insertion, in order, at most P rows each. A
      group whose cache is None is to be read first.
    """
    insertions = []
    free = collections.deque(row for row, at_work in enumerate(self.rows) if at_work is None)
    while free and (self._group or self._next_fits(len(free))):
      if self._group is None:
        self._group = self._next_group()
      group, places = self._group, []
      while free and group.waiting and len(places) < group.rows:
        (place, sample), row = group.waiting.popleft(), free.popleft()
        prompt = self._prompts[group.prompts[place]]
        limit = (
          self._sampling.max_new_tokens if prompt.max_new_tokens is None else prompt.max_new_tokens
        )
        self.rows[row] = _Row(group.prompts[place], sample, limit)
        places.append((place, row))
      insertions.append((group, places))
      if not group.waiting:
        self._group = None
    return insertions

  def _next_fits(self, free: int) -> bool:
    """Whether enough rows are free for the next group: it is read in one program of fixed size, not
    prompt by prompt.
    """
    return bool(self._pending) and free >= min(len(self._pending), self._size_of_next())

  def _size_of_next(self) -> int:
    return self._prefill_rows(bucket(self._lengths[self._pending[0]]))

  def _next_group(self) -> Group:
    rows, length = self._size_of_next(), bucket(self._lengths[self._pending[0]])
    prompts = [self._pending.popleft() for _ in range(min(rows, len(self._pending)))]
    waiting = [
      (place, sample)
      for place, i in enumerate(prompts)
      for sample in self._samples(self._prompts[i])
    ]
    return Group(prompts, rows, length, collections.deque(waiting))

  def _samples(self, prompt: Prompt) -> Sequence[int]:
    return range(self._sampling.samples) if prompt.samples is None else prompt.samples

  def prompt_tokens(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
    """What is read of a group: tokens int32 [P, L], right-padded, and their numbers int32 [P]."""
    tokens_PL, length_P = (
      np.zeros((group.rows, group.length), np.int32),
      np.zeros(group.rows, np.int32),
    )
    for place, i in enumerate(group.prompts):
      length_P[place] = self._lengths[i]
      tokens_PL[place, : self._lengths[i]] = [self._bos_id, *self._prompts[i].tokens][
        : self._lengths[i]
      ]
    return tokens_PL, length_P

  def arrivals(self, group: Group, places: list[tuple[int, int]]) -> Arrivals:
    """The arrays of one insertion."""
    zeros = np.zeros(group.rows, np.int32)
    arrivals = Arrivals(
      source_P=zeros.copy(),
      row_P=np.full(group.rows, len(self.rows), np.int32),  # out of range
      token_P=zeros.copy(),
      length_P=zeros.copy(),
      limit_P=zeros.copy(),
      seed=np.int32(self._sampling.seed),
      id_P=zeros.copy(),
      sample_P=zeros.copy(),
      history_PL=np.zeros((group.rows, group.length + 1), np.int32),
    )
    for i, (place, row) in enumerate(places):
      at_work = self.rows[row]
      prompt = self._prompts[at_work.prompt]
      tokens = [self._bos_id, *prompt.tokens]
      arrivals.source_P[i], arrivals.row_P[i] = place, row
      arrivals.token_P[i], arrivals.length_P[i] = tokens[-1], len(tokens) - 1
      arrivals.limit_P[i] = at_work.limit
      arrivals.id_P[i], arrivals.sample_P[i] = prompt.id, at_work.sample
      arrivals.history_PL[i, : len(tokens)] = tokens
    return arrivals

  def shrink(self) -> np.ndarray | None:
    """The rows to go on with, int32 [R / 2 or less], when nothing waits and few are at work; None =
    go on as it is.
    """
    busy = [row for row, at_work in enumerate(self.rows) if at_work]
    size = len(self.rows)
    while self._may_shrink(size) and size // 2 >= len(busy):
      size //= 2
    if size == len(self.rows):
      return None
    idle = [row for row, at_work in enumerate(self.rows) if not at_work]
    kept = (busy + idle)[:size]
    self.rows = [self.rows[row] for row in kept]
    return np.asarray(kept, np.int32)

  def _may_shrink(self, size: int) -> bool:
    """Whether half of so many rows would do for what is left."""
    left = max((row.limit - len(row.tokens) for row in self.rows if row), default=0)
    return (
      not self._pending
      and not self._group
      and left >= WORTH_SHRINKING
      and size // 2 >= self._fewest_rows
    )

  def capacity(self, now: int, chunk: int) -> int:
    """The capacity for the next chunk: a bucket that all rows fit in, smaller than now only if it
    stays so for a while.
    """
    need = lambda ahead: max(
      self._lengths[row.prompt] + len(row.tokens) + min(ahead, row.limit - len(row.tokens))
      for row in self.rows
      if row
    )
    least, lasting = bucket(need(chunk)), bucket(need(2 * chunk))
    return least if least > now else min(now, lasting)

  def at_work(self) -> np.ndarray:
    """bool [R]."""
    return np.array([row is not None for row in self.rows])

  def steps(self, chunk: int) -> tuple[int, int]:
    """How many tokens the next chunk may add to a row, and how few rows at work end it before."""
    steps = min(chunk, max(row.limit - len(row.tokens) for row in self.rows if row))
    if self._group:
      return steps, len(self.rows) - min(len(self._group.waiting), max(1, len(self.rows) // 8))
    if self._pending:
      return steps, len(self.rows) - min(len(self._pending), self._size_of_next())
    return steps, len(self.rows) // 2 if self._may_shrink(len(self.rows)) else 0

  def collect(self, chunk: Chunk) -> Iterator[Generation]:
    """Takes over what a chunk has brought; rows that ended become free."""
    for place, row in enumerate(self.rows):
      if row is None:
        continue
      before = len(row.tokens)
      row.tokens += chunk.new_RN[place, : chunk.made_R[place] - before].tolist()
      stopped = bool(row.tokens) and row.tokens[-1] in self._stop_ids
      tokens = row.tokens[:-1] if stopped else row.tokens
      reason = None if chunk.active_R[place] else 'stop' if stopped else 'length'
      text = None
      if self._sampling.stop:
        if (found := self._stop_text(tokens, before)) is not None:
          (tokens, text), reason = found, 'stop_string'
      if reason:
        self.rows[place] = None
        if text is None and self._decode:
          text = self._decode(tokens)
        yield Generation(row.prompt, row.sample, tokens, reason, text)

  def _stop_text(self, tokens: list[int], before: int) -> tuple[list[int], str] | None:
    """Tokens up to the one that completes a stop text, and the text before it; None if there is
    none.

    Args:
      tokens: so far.
      before: the first so many are known to hold none.
    """
    place = lambda text: min(
      (at for stop in self._sampling.stop if (at := text.find(stop)) >= 0), default=None
    )
    if place(self._decode(tokens)) is None:
      return None
    low, high = before, len(tokens)  # the first `high` tokens hold one, the first `low` do not
    while high - low > 1:
      middle = (low + high) // 2
      low, high = (
        (low, middle) if place(self._decode(tokens[:middle])) is not None else (middle, high)
      )
    text = self._decode(tokens[:high])
    return tokens[:high], text[: place(text)]
