"""Continuous batching: when a row ends, the next prompt takes its place in the batch."""

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from crossin_jax import config
from crossin_jax.decoding import slots as slots_lib
from crossin_jax.decoding.sampling import Sampling
from crossin_jax.decoding.schedule import Generation, Prompt, Schedule
from crossin_jax.decoding.slots import Chunk, Slots
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import unrolled
from crossin_jax.processes import interruption

CHUNK = 32  # tokens generated between two checks on the host
CHUNK_WITH_STOP_TEXTS = 8  # the host finds stop texts and discards what is generated after one
FEWEST_ROWS = 8  # below that, one row costs as much as several


@config.configurable(commands=('chunks', 'evaluate'))
class Generator:
  """Generates answers to any number of prompts in a fixed number of rows.

  Takes the longest prompts first: if memory does not suffice, this shows at once, and the last
  rows are short.

  Attributes:
    sampling: how to choose the next token.
    programs: compiled programs, shared by all generators of one model, mesh and sampling.
  """

  def __init__(
    self,
    model,
    params,
    partition: Partitioner,
    *,
    bos_id: int | None,
    stop_ids: Sequence[int],
    sampling: Sampling | None = None,
    decode: Callable[[list[int]], str] | None = None,
    rows: int = 64,
    prefill_tokens: int = 2048,
    shrink: bool | None = None,
    stop_texts: bool | None = None,
    by_row: bool = False,
  ):
    """Args:
      model: has the call interface of `Decoder`.
      params: its parameters, on the mesh of `partition`. Decoding uses a copy of them.
      partition: mesh; `partition.activate()` must be in force here and while answers are taken.
      bos_id: first token of each row; None = the first of its prompt.
      stop_ids: tokens that end an answer.
      sampling: None = the gin settings, greedy by default.
      decode: tokens to text; required for stop texts.
      rows: maximum rows of the batch, rounded up to a power of two times the mesh's batch parts.
      prefill_tokens: maximum prompt tokens of one prefill, approximately.
      shrink: whether the last rows continue in a smaller batch; None = only on CPUs, where each
        row takes time.
      stop_texts: whether prompts have stop texts of their own; None = only if `sampling` has some,
        or with `by_row`.
      by_row: prompts may have `Prompt.sampling` of their own.

    Raises:
      ValueError: stop texts without `decode`.
    """
    self.sampling = sampling or Sampling()
    stop_texts = bool(self.sampling.stop) if stop_texts is None else stop_texts
    if stop_texts and decode is None:
      raise ValueError('Sampling.stop needs a decode function, to find stop texts in the text')
    self.model, self.params = unrolled(model, params, transposed=partition.on_cpu)
    self.partition, self._decode = partition, decode
    self._bos_id, self.stop_ids = bos_id, tuple(stop_ids)
    self._max_rows, self._prefill_tokens = rows, prefill_tokens
    self._shrink = partition.on_cpu if shrink is None else shrink
    chunk = CHUNK_WITH_STOP_TEXTS if stop_texts or by_row else CHUNK
    self.programs = slots_lib.programs(
      self.model, partition, self.sampling, self.stop_ids, chunk, by_row
    )

  def __call__(self, prompts: Sequence[Prompt]) -> list[Generation]:
    """All answers, sorted by prompt and sample."""
    return sorted(self.stream(prompts), key=lambda answer: (answer.index, answer.sample))

  def stream(self, prompts: Sequence[Prompt]) -> Iterator[Generation]:
    """Yields answers as they finish, in no particular order.

    All hosts must pass the same prompts and take all answers: each computes the same schedule.

    Raises:
      Interrupted: the run received a stop signal.
      NonFiniteLogits: names prompt and step.
    """
    schedule = self.schedule(prompts, min(len(prompts) * self.sampling.samples, self._max_rows))
    slots = None
    while schedule.unfinished():
      interruption.check()
      slots, chunk = self.advance(schedule, slots)
      yield from schedule.collect(chunk)

  def schedule(self, prompts: Sequence[Prompt], rows: int | None = None, kind=Schedule) -> Schedule:
    """A schedule for `advance`.

    Args:
      prompts: to begin with.
      rows: of the batch; rounded up. None = the maximum.
      kind: `Schedule`, or a class with the same arguments.
    """
    rows = self._batch_rows(self._max_rows if rows is None else rows)
    return kind(
      prompts, self.sampling, bos_id=self._bos_id, stop_ids=self.stop_ids, decode=self._decode,
      rows=rows, prefill_rows=lambda length: self._prefill_rows(length, rows),
      fewest_rows=min(rows, self._batch_rows(FEWEST_ROWS)) if self._shrink else rows,
    )  # fmt: skip

  def advance(self, schedule: Schedule, slots: Slots | None) -> tuple[Slots, Chunk]:
    """Fills free rows and decodes one chunk.

    Args:
      schedule: unfinished.
      slots: of the chunk before, donated; None at first.

    Returns:
      The slots, and what `Schedule.collect` takes, on the host.
    """
    programs, chunk = self.programs, self.programs.chunk
    if (kept := schedule.resize()) is not None and slots is not None:
      slots = programs.take(slots, self._put(kept, 'batch'))
    insertions = schedule.fill_rows()
    capacity = schedule.capacity(slots.capacity if slots else 0, chunk)
    if slots is None:
      slots = programs.empty(len(schedule.rows), capacity)
    elif capacity != slots.capacity:
      slots = programs.resize(slots, capacity)
    for group, pairs in insertions:
      if group.cache is None:
        tokens_PL, length_P = schedule.prompt_tokens(group)
        tokens_PL, length_P = self._put(tokens_PL, 'batch', 'length'), self._put(length_P, 'batch')
        group.cache = programs.prefill(self.params, tokens_PL, length_P, group.width)
      arrivals = jax.tree.map(self._put, schedule.arrivals(group, pairs))
      slots = programs.insert(slots, group.cache, arrivals)
    steps, stop_at = map(self._put, schedule.steps(chunk))
    active_R = self._put(schedule.active(), 'batch')
    slots, new = programs.advance(
      self.params, slots, active_R, steps, stop_at, schedule.wants_logprobs()
    )
    return slots, jax.device_get(new)

  def _put(self, array, *axes: str) -> jax.Array:
    """Moves an array that all hosts have to the mesh; replicated without axes."""
    array = np.asarray(array)
    array = array.astype(np.int32) if array.dtype == np.int64 else array
    sharding = self.partition.sharding(axes)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

  def _batch_rows(self, n: int) -> int:
    """The smallest power of two times the mesh's batch parts that is at least n."""
    rows = self.partition.batch_ways
    while rows < n:
      rows *= 2
    return rows

  def _prefill_rows(self, length: int, rows: int) -> int:
    """Rows of a prefill of this length bucket; constant, so that each bucket compiles once."""
    wanted = min(rows // 8, self._prefill_tokens // length)
    return max(self.partition.batch_ways, self._batch_rows(wanted + 1) // 2)


def greedy(
  model, params, partition: Partitioner, prompts, *, bos_id: int | None, eos_id: int,
  max_new_tokens: int = 32, rows: int = 64,
) -> list[list[int]]:  # fmt: skip
  """Greedy decoding of token lists.

  Args:
    model: has the call interface of `Decoder`.
    params: its parameters.
    partition: mesh; `partition.activate()` must be in force.
    prompts: list of token lists of any lengths, without BOS.
    bos_id: first token of each row; None = the first of its prompt.
    eos_id: token that ends an answer.
    max_new_tokens: maximum tokens of an answer.
    rows: maximum rows of the batch.

  Returns:
    The new tokens of each prompt, in the order given, without the stop token.
  """
  sampling = Sampling(max_new_tokens=max_new_tokens)
  generate = Generator(
    model, params, partition, bos_id=bos_id, stop_ids=(eos_id,), sampling=sampling, rows=rows
  )
  return [answer.tokens for answer in generate([Prompt(tokens) for tokens in prompts])]
