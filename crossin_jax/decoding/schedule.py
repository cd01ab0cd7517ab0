"""Which prompt runs in which row. Each host computes the same schedule, in plain NumPy.

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

# Shrink only if a row may still generate this many tokens: a smaller batch must be compiled.
WORTH_SHRINKING = 32


@dataclasses.dataclass(frozen=True)
class Prompt:
  """One prompt.

  Attributes:
    tokens: without BOS.
    id: int32, seeds the draws: an answer depends on it, not on the other rows of the batch.
    max_new_tokens: None = `Sampling.max_new_tokens`.
    samples: numbers of the wanted answers; None = all `Sampling.samples`.
  """

  tokens: Sequence[int]
  id: int = 0
  max_new_tokens: int | None = None
  samples: Sequence[int] | None = None


@dataclasses.dataclass(frozen=True)
class Generation:
  """One answer.

  Attributes:
    index: of the prompt.
    sample: from 0.
    tokens: generated, without the stop token; up to the one that completed a stop text.
    finish_reason: 'stop' (a stop token), 'length' or 'stop_string'.
    text: decoded, without a stop text; None without a `decode` function.
  """

  index: int
  sample: int
  tokens: list[int]
  finish_reason: str
  text: str | None


@dataclasses.dataclass
class _Row:
  """An active row."""

  prompt: int
  sample: int
  limit: int
  tokens: list[int] = dataclasses.field(default_factory=list)

  @property
  def left(self) -> int:
    """Tokens that it may still generate."""
    return self.limit - len(self.tokens)


@dataclasses.dataclass
class Group:
  """Prompts of one prefill; all samples of a prompt use its cache.

  Attributes:
    prompts: indices.
    rows: P, at least as many.
    length: L, bucket of their lengths.
    waiting: (position in the group, sample) without a row yet.
    cache: None until they are prefilled.
  """

  prompts: list[int]
  rows: int
  length: int
  waiting: collections.deque
  cache: Any = None


class Schedule:
  """Pending prompts, the prefilled group and the active rows.

  Attributes:
    rows: the rows of the decode batch; None = free.
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
    bos_id: first token of each row.
    stop_ids: tokens that end an answer.
    decode: tokens to text, or None.
    rows: R.
    prefill_rows: bucket L of lengths -> P.
    fewest_rows: minimum size of the batch.
    """
    self._prompts, self._sampling, self._decode = prompts, sampling, decode
    self._bos_id, self._stop_ids = bos_id, frozenset(stop_ids)
    # Cached when decoding begins: BOS and all tokens of the prompt but the last.
    self._lengths = [len(prompt.tokens) for prompt in prompts]
    self._pending = collections.deque(sorted(range(len(prompts)), key=lambda i: -self._lengths[i]))
    self._group: Group | None = None
    self._prefill_rows, self._fewest_rows = prefill_rows, fewest_rows
    self.rows: list[_Row | None] = [None] * rows

  def unfinished(self) -> bool:
    """Whether prompts are pending or rows active."""
    return bool(self._pending or self._group or any(self.rows))

  def fill_rows(self) -> list[tuple[Group, list[tuple[int, int]]]]:
    """Assigns free rows to waiting prompts.

    Returns:
      (group, [(position in the group, row)]) for each insertion, in order, at most P rows each.
      Prefill a group whose cache is None first.
    """
    insertions = []
    free = collections.deque(row for row, active in enumerate(self.rows) if active is None)
    while free and (self._group or self._next_fits(len(free))):
      if self._group is None:
        self._group = self._next_group()
      group, pairs = self._group, []
      while free and group.waiting and len(pairs) < group.rows:
        (position, sample), row = group.waiting.popleft(), free.popleft()
        limit = self._prompts[group.prompts[position]].max_new_tokens
        limit = self._sampling.max_new_tokens if limit is None else limit
        self.rows[row] = _Row(group.prompts[position], sample, limit)
        pairs.append((position, row))
      insertions.append((group, pairs))
      if not group.waiting:
        self._group = None
    return insertions

  def _next_fits(self, free: int) -> bool:
    """Whether enough rows are free for the next group: a prefill has a fixed number of rows."""
    return bool(self._pending) and free >= min(len(self._pending), self._next_size()[0])

  def _next_size(self) -> tuple[int, int]:
    """(P, L) of the next group."""
    length = bucket(self._lengths[self._pending[0]])
    return self._prefill_rows(length), length

  def _next_group(self) -> Group:
    rows, length = self._next_size()
    prompts = [self._pending.popleft() for _ in range(min(rows, len(self._pending)))]
    samples = lambda prompt: (
      range(self._sampling.samples) if prompt.samples is None else prompt.samples
    )
    waiting = collections.deque(
      (position, sample)
      for position, i in enumerate(prompts)
      for sample in samples(self._prompts[i])
    )
    return Group(prompts, rows, length, waiting)

  def prompt_tokens(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of a prefill: tokens int32 [P, L], right-padded, and their numbers int32 [P]."""
    tokens_PL = np.zeros((group.rows, group.length), np.int32)
    length_P = np.zeros(group.rows, np.int32)
    for position, i in enumerate(group.prompts):
      length_P[position] = length = self._lengths[i]
      tokens_PL[position, :length] = [self._bos_id, *self._prompts[i].tokens][:length]
    return tokens_PL, length_P

  def arrivals(self, group: Group, pairs: list[tuple[int, int]]) -> Arrivals:
    """The arrays of one insertion."""
    zeros = lambda: np.zeros(group.rows, np.int32)
    arrivals = Arrivals(
      source_P=zeros(),
      row_P=np.full(group.rows, len(self.rows), np.int32),  # out of range
      token_P=zeros(),
      length_P=zeros(),
      limit_P=zeros(),
      seed=np.int32(self._sampling.seed),
      id_P=zeros(),
      sample_P=zeros(),
      history_PL=np.zeros((group.rows, group.length + 1), np.int32),
    )
    for i, (position, index) in enumerate(pairs):
      row = self.rows[index]
      prompt = self._prompts[row.prompt]
      tokens = [self._bos_id, *prompt.tokens]
      arrivals.source_P[i], arrivals.row_P[i] = position, index
      arrivals.token_P[i], arrivals.length_P[i] = tokens[-1], len(tokens) - 1
      arrivals.limit_P[i] = row.limit
      arrivals.id_P[i], arrivals.sample_P[i] = prompt.id, row.sample
      arrivals.history_PL[i, : len(tokens)] = tokens
    return arrivals

  def shrink(self) -> np.ndarray | None:
    """Halves the batch while nothing waits and few rows are active.

    Returns:
      The rows to keep, int32 [R / 2 or less]; None = the batch stays as it is.
    """
    active = [i for i, row in enumerate(self.rows) if row]
    size = len(self.rows)
    while self._may_shrink(size) and size // 2 >= len(active):
      size //= 2
    if size == len(self.rows):
      return None
    kept = (active + [i for i, row in enumerate(self.rows) if not row])[:size]
    self.rows = [self.rows[i] for i in kept]
    return np.asarray(kept, np.int32)

  def _may_shrink(self, size: int) -> bool:
    """Whether half of `size` rows would suffice for the rest."""
    left = max((row.left for row in self.rows if row), default=0)
    idle = not self._pending and not self._group
    return idle and left >= WORTH_SHRINKING and size // 2 >= self._fewest_rows

  def capacity(self, now: int, chunk: int) -> int:
    """The capacity for the next chunk: a bucket that all rows fit.

    It is smaller than `now` only if it suffices for the chunk after the next, too.
    """
    need = lambda ahead: max(
      self._lengths[row.prompt] + len(row.tokens) + min(ahead, row.left) for row in self.rows if row
    )
    least, lasting = bucket(need(chunk)), bucket(need(2 * chunk))
    return least if least > now else min(now, lasting)

  def active(self) -> np.ndarray:
    """bool [R]."""
    return np.array([row is not None for row in self.rows])

  def steps(self, chunk: int) -> tuple[int, int]:
    """Maximum tokens a row of the next chunk, and the number of active rows that ends it early."""
    steps = min(chunk, max(row.left for row in self.rows if row))
    rows = len(self.rows)
    if self._group:
      return steps, rows - min(len(self._group.waiting), max(1, rows // 8))
    if self._pending:
      return steps, rows - min(len(self._pending), self._next_size()[0])
    return steps, rows // 2 if self._may_shrink(rows) else 0

  def collect(self, chunk: Chunk) -> Iterator[Generation]:
    """Adds new tokens to their rows; yields the answers that ended and frees their rows."""
    for i, row in enumerate(self.rows):
      if row is None:
        continue
      before = len(row.tokens)
      row.tokens += chunk.new_RN[i, : chunk.count_R[i] - before].tolist()
      stopped = bool(row.tokens) and row.tokens[-1] in self._stop_ids
      tokens = row.tokens[:-1] if stopped else row.tokens
      reason = None if chunk.active_R[i] else 'stop' if stopped else 'length'
      text = None
      if self._sampling.stop and (cut := self._cut_at_stop_text(tokens, before)) is not None:
        (tokens, text), reason = cut, 'stop_string'
      if reason:
        self.rows[i] = None
        if text is None and self._decode:
          text = self._decode(tokens)
        yield Generation(row.prompt, row.sample, tokens, reason, text)

  def _cut_at_stop_text(self, tokens: list[int], before: int) -> tuple[list[int], str] | None:
    """Finds a stop text by bisection.

    Args:
      tokens: so far.
      before: the first `before` tokens contain no stop text.

    Returns:
      Tokens up to the one that completes the stop text, and the text before it; or None.
    """
    find = lambda text: min(
      (at for stop in self._sampling.stop if (at := text.find(stop)) >= 0), default=None
    )
    if find(self._decode(tokens)) is None:
      return None
    low, high = before, len(tokens)  # the first `high` tokens contain one, the first `low` do not
    while high - low > 1:
      middle = (low + high) // 2
      if find(self._decode(tokens[:middle])) is not None:
        high = middle
      else:
        low = middle
    text = self._decode(tokens[:high])
    return tokens[:high], text[: find(text)]
