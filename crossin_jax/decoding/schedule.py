"""Which prompt runs in which row. Each host computes the same schedule, in plain NumPy.

Letters as in `crossin_jax.decoding.slots`.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from crossin_jax.decoding.cache import bucket
from crossin_jax.decoding.nonfinite import NonFiniteLogits
from crossin_jax.decoding.sampling import NO_TOKEN, Sampling
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
    stop: texts that end the answer; None = `Sampling.stop`.
    sampling: of this prompt alone: temperature, top_p, min_p, seed, stop and max_new_tokens are
      read. Needs a `Generator` with `by_row`; None = the settings of all.
    logprobs: whether the answers have log-probabilities.
  """

  tokens: Sequence[int]
  id: int = 0
  max_new_tokens: int | None = None
  samples: Sequence[int] | None = None
  stop: tuple[str, ...] | None = None
  sampling: Sampling | None = None
  logprobs: bool = False


class TokenLogprob(NamedTuple):
  """The natural log-probability of a token, before penalties and temperature.

  Attributes:
    token: its id.
    logprob: of the token; None of the first one of a sequence.
    top: (token, log-probability) of the most likely ones, most likely first.
  """

  token: int
  logprob: float | None
  top: list[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class Generation:
  """One answer.

  Attributes:
    index: of the prompt.
    sample: from 0.
    tokens: generated, without the stop token; up to the one that completed a stop text.
    finish_reason: 'stop' (a stop token), 'length' or 'stop_string'.
    text: decoded, without a stop text; None without a `decode` function.
    logprobs: of `tokens` and of the stop token; None if the prompt does not ask for them.
  """

  index: int
  sample: int
  tokens: list[int]
  finish_reason: str
  text: str | None
  logprobs: list[TokenLogprob] | None = None


@dataclasses.dataclass
class Row:
  """An active row.

  Attributes:
    prompt: its index.
    sample: from 0.
    limit: maximum tokens.
    width: slots of the prefilled cache that it begins with.
    tokens: generated so far.
    logprobs: of `tokens`, if the prompt asks for them.
  """

  prompt: int
  sample: int
  limit: int
  width: int
  tokens: list[int] = dataclasses.field(default_factory=list)
  logprobs: list[TokenLogprob] = dataclasses.field(default_factory=list)

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
    width: slots of the cache, at least L.
    waiting: (position in the group, sample) without a row yet.
    cache: None until they are prefilled.
  """

  prompts: list[int]
  rows: int
  length: int
  width: int
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
    bos_id: int | None,
    stop_ids: Sequence[int],
    decode: Callable[..., str] | None,
    rows: int,
    prefill_rows: Callable[[int], int],
    fewest_rows: int,
  ):
    """Args:
    prompts: all of them.
    sampling: max_new_tokens, samples, seed and stop are read.
    bos_id: first token of each row; None = the first of its prompt.
    stop_ids: tokens that end an answer.
    decode: tokens to text, or None; with stop texts it is called with (tokens, stop texts) and
      leaves special tokens visible that these contain.
    rows: R.
    prefill_rows: bucket L of lengths -> P.
    fewest_rows: minimum size of the batch.
    """
    self._sampling, self._decode, self._bucket = sampling, decode, bucket
    self._stop_ids, self._bos = frozenset(stop_ids), [] if bos_id is None else [bos_id]
    self._prompts: dict[int, Prompt] = {}
    self._lengths: dict[int, int] = {}
    for index, prompt in enumerate(prompts):
      self._enter(index, prompt)
    # The longest first.
    self._pending = collections.deque(sorted(self._prompts, key=lambda i: -self._lengths[i]))
    self._group: Group | None = None
    self._prefill_rows, self._fewest_rows = prefill_rows, fewest_rows
    self.rows: list[Row | None] = [None] * rows

  def _enter(self, index: int, prompt: Prompt) -> None:
    # Cached when decoding begins: BOS and all tokens of the prompt but the last.
    length = len(self._bos) + len(prompt.tokens) - 1
    if length < 0:
      raise ValueError(f'prompt {index} has no tokens, and the tokenizer puts none in front')
    self._prompts[index], self._lengths[index] = prompt, length

  def _settings(self, index: int) -> Sampling:
    return self._prompts[index].sampling or self._sampling

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
        index = group.prompts[position]
        limit = self._prompts[index].max_new_tokens
        limit = self._settings(index).max_new_tokens if limit is None else limit
        self.rows[row] = Row(index, sample, limit, group.width)
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
    length = self._bucket(self._lengths[self._pending[0]])
    return self._prefill_rows(length), length

  def _next_group(self) -> Group:
    rows, length = self._next_size()
    prompts = [self._pending.popleft() for _ in range(min(rows, len(self._pending)))]
    return self._group_of(prompts, rows, length, length)

  def _group_of(self, prompts: list[int], rows: int, length: int, width: int) -> Group:
    samples = lambda prompt: (
      range(self._sampling.samples) if prompt.samples is None else prompt.samples
    )
    waiting = collections.deque(
      (position, sample)
      for position, i in enumerate(prompts)
      for sample in samples(self._prompts[i])
    )
    return Group(prompts, rows, length, width, waiting)

  def prompt_tokens(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of a prefill: tokens int32 [P, L], right-padded, and their numbers int32 [P]."""
    tokens_PL = np.zeros((group.rows, group.length), np.int32)
    length_P = np.zeros(group.rows, np.int32)
    for position, i in enumerate(group.prompts):
      length_P[position] = length = self._lengths[i]
      tokens_PL[position, :length] = [*self._bos, *self._prompts[i].tokens][:length]
    return tokens_PL, length_P

  def arrivals(self, group: Group, pairs: list[tuple[int, int]]) -> Arrivals:
    """The arrays of one insertion."""
    zeros = lambda dtype=np.int32: np.zeros(group.rows, dtype)
    arrivals = Arrivals(
      source_P=zeros(),
      row_P=np.full(group.rows, len(self.rows), np.int32),  # out of range
      token_P=zeros(),
      length_P=zeros(),
      limit_P=zeros(),
      seed_P=zeros(),
      id_P=zeros(),
      sample_P=zeros(),
      history_PL=np.zeros((group.rows, group.width + 1), np.int32),
      temperature_P=zeros(np.float32),
      top_p_P=zeros(np.float32),
      min_p_P=zeros(np.float32),
    )
    for i, (position, index) in enumerate(pairs):
      row = self.rows[index]
      prompt, settings = self._prompts[row.prompt], self._settings(row.prompt)
      tokens = [*self._bos, *prompt.tokens]
      arrivals.source_P[i], arrivals.row_P[i] = position, index
      arrivals.token_P[i], arrivals.length_P[i] = tokens[-1], len(tokens) - 1
      arrivals.limit_P[i] = row.limit
      arrivals.seed_P[i] = settings.seed
      arrivals.id_P[i], arrivals.sample_P[i] = prompt.id, row.sample
      arrivals.temperature_P[i] = settings.temperature
      arrivals.top_p_P[i], arrivals.min_p_P[i] = settings.top_p, settings.min_p
      arrivals.history_PL[i, : len(tokens)] = tokens
    return arrivals

  def resize(self) -> np.ndarray | None:
    """Halves the batch while nothing waits and few rows are active.

    Returns:
      The old row that each new one is, int32 [R / 2 or less]; None = the batch stays as it is.
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
    held = lambda row: self._lengths[row.prompt] + len(row.tokens)
    # A row that has no token yet may be inserted now: its cache is as wide as that of the longest
    # prompt beside which it was prefilled.
    width = lambda row: 0 if row.tokens else row.width
    need = lambda ahead: max(
      max(held(row) + min(ahead, row.left), width(row)) for row in self.rows if row
    )
    least, lasting = self._bucket(need(chunk)), self._bucket(need(2 * chunk))
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

  def wants_logprobs(self) -> bool:
    """Whether the prompt of an active row asks for log-probabilities."""
    return any(row is not None and self._prompts[row.prompt].logprobs for row in self.rows)

  def collect(self, chunk: Chunk) -> Iterator[Generation]:
    """Adds new tokens to their rows; yields the answers that ended and frees their rows.

    Raises:
      NonFiniteLogits: a row has no next token; the answers that ended are yielded first.
    """
    failed = None
    for outcome in self._outcomes(chunk):
      if isinstance(outcome, Generation):
        yield outcome
      else:
        failed = failed or outcome
    if failed:
      raise failed

  def _outcomes(self, chunk: Chunk) -> Iterator[Generation | NonFiniteLogits]:
    """Adds new tokens to their rows; yields what ended and frees its row."""
    for i, row in enumerate(self.rows):
      if row is None:
        continue
      before = len(row.tokens)
      row.tokens += chunk.new_RN[i, : chunk.count_R[i] - before].tolist()
      if self._prompts[row.prompt].logprobs:
        row.logprobs += _logprobs(chunk, i, len(row.tokens) - before)
      without_token = row.tokens[-1:] == [NO_TOKEN]
      stopped = bool(row.tokens) and (row.tokens[-1] in self._stop_ids or without_token)
      tokens = row.tokens[:-1] if stopped else row.tokens
      reason = None if chunk.active_R[i] else 'stop' if stopped else 'length'
      text = None
      stop = self._prompts[row.prompt].stop
      stop = self._settings(row.prompt).stop if stop is None else stop
      if stop and (cut := self._cut_at_stop_text(tokens, before, stop)) is not None:
        (tokens, text), reason = cut, 'stop_string'
      elif without_token:
        name = f'prompt {row.prompt + 1} of {len(self._prompts)}'
        at = (row.prompt, row.sample, len(row.tokens))
        self.rows[i] = None
        yield NonFiniteLogits(name, *at, self._sampling)
        continue
      if reason:
        self.rows[i] = None
        if text is None and self._decode:
          text = self._decode(tokens)
        scored = len(tokens) + (reason == 'stop')
        logprobs = row.logprobs[:scored] if self._prompts[row.prompt].logprobs else None
        yield Generation(row.prompt, row.sample, tokens, reason, text, logprobs)

  def _cut_at_stop_text(
    self, tokens: list[int], before: int, stop: tuple[str, ...]
  ) -> tuple[list[int], str] | None:
    """Finds a stop text by bisection.

    Args:
      tokens: so far.
      before: the first `before` tokens contain no stop text.
      stop: the stop texts.

    Returns:
      Tokens up to the one that completes the stop text, and the text before it; or None.
    """
    # Special tokens of the stop texts are visible.
    decode = lambda tokens: self._decode(tokens, stop)
    find = lambda text: min((at for one in stop if (at := text.find(one)) >= 0), default=None)
    if find(decode(tokens)) is None:
      return None
    low, high = before, len(tokens)  # the first `high` tokens contain one, the first `low` do not
    while high - low > 1:
      middle = (low + high) // 2
      if find(decode(tokens[:middle])) is not None:
        high = middle
      else:
        low = middle
    text = decode(tokens[:high])
    return tokens[:high], text[: find(text)]


def _logprobs(chunk: Chunk, row: int, count: int) -> list[TokenLogprob]:
  """Those of the first `count` new tokens of a row."""
  top = lambda i: zip(chunk.top_RNT[row, i].tolist(), chunk.top_logprob_RNT[row, i].tolist())
  return [
    TokenLogprob(int(chunk.new_RN[row, i]), float(chunk.logprob_RN[row, i]), list(top(i)))
    for i in range(count)
  ]
