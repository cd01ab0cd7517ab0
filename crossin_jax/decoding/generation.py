"""Continuous batching: when a row ends, the next prompt takes its place in the batch."""

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from crossin_jax import config
from crossin_jax.decoding import slots as slots_lib
from crossin_jax.decoding.sampling import Sampling
from crossin_jax.decoding.schedule import Generation, Prompt, Schedule
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import unrolled
from crossin_jax.processes import interruption

CHUNK = 32  # tokens generated between two checks on the host
CHUNK_WITH_STOP_TEXTS = 8  # the host finds stop texts and discards what is generated after one
FEWEST_ROWS = 8  # below that, one row costs as much as several


@config.configurable(commands=('chunks',))
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
    bos_id: int,
    stop_ids: Sequence[int],
    sampling: Sampling | None = None,
    decode: Callable[[list[int]], str] | None = None,
    rows: int = 64,
    prefill_tokens: int = 2048,
    shrink: bool | None = None,
  ):
    """Args:
      model: has the call interface of `Decoder`.
      params: its parameters, on the mesh of `partition`. Decoding uses a copy of them.
      partition: mesh; `partition.activate()` must be in force here and while answers are taken.
      bos_id: first token of each row.
      stop_ids: tokens that end an answer.
      sampling: None = the gin settings, greedy by default.
      decode: tokens to text; required for stop texts.
      rows: maximum rows of the batch, rounded up to a power of two times the mesh's batch parts.
      prefill_tokens: maximum prompt tokens of one prefill, approximately.
      shrink: whether the last rows continue in a smaller batch; None = only on CPUs, where each
        row takes time.

    Raises:
      ValueError: stop texts without `decode`.
    """
    self.sampling = sampling or Sampling()
    if self.sampling.stop and decode is None:
      raise ValueError('Sampling.stop needs a decode function, to find stop texts in the text')
    self._model, self._params = unrolled(model, params)
    self._partition, self._decode = partition, decode
    self._bos_id, self._stop_ids = bos_id, tuple(stop_ids)
    self._max_rows, self._prefill_tokens = rows, prefill_tokens
    self._shrink = partition.mesh.devices.flat[0].platform == 'cpu' if shrink is None else shrink
    chunk = CHUNK_WITH_STOP_TEXTS if self.sampling.stop else CHUNK
    self.programs = slots_lib.programs(self._model, partition, self.sampling, self._stop_ids, chunk)

  def __call__(self, prompts: Sequence[Prompt]) -> list[Generation]:
    """All answers, sorted by prompt and sample."""
    return sorted(self.stream(prompts), key=lambda answer: (answer.index, answer.sample))

  def stream(self, prompts: Sequence[Prompt]) -> Iterator[Generation]:
    """Yields answers as they finish, in no particular order.

    All hosts must pass the same prompts and take all answers: each computes the same schedule.

    Raises:
      Interrupted: the run received a stop signal.
    """
    programs, chunk, slots = self.programs, self.programs.chunk, None
    rows = self._batch_rows(min(len(prompts) * self.sampling.samples, self._max_rows))
    schedule = Schedule(
      prompts, self.sampling, bos_id=self._bos_id, stop_ids=self._stop_ids, decode=self._decode,
      rows=rows, prefill_rows=lambda length: self._prefill_rows(length, rows),
      fewest_rows=self._batch_rows(FEWEST_ROWS) if self._shrink else rows,
    )  # fmt: skip
    while schedule.unfinished():
      interruption.check()
      insertions = schedule.fill_rows()
      if not insertions and (kept := schedule.shrink()) is not None:
        slots = programs.take(slots, self._put(kept, 'batch'))
      capacity = schedule.capacity(slots.capacity if slots else 0, chunk)
      if slots is None:
        slots = programs.empty(rows, capacity)
      elif capacity != slots.capacity:
        slots = programs.resize(slots, capacity)
      for group, pairs in insertions:
        if group.cache is None:
          tokens_PL, length_P = schedule.prompt_tokens(group)
          group.cache = programs.prefill(
            self._params, self._put(tokens_PL, 'batch', 'length'), self._put(length_P, 'batch')
          )
        arrivals = jax.tree.map(self._put, schedule.arrivals(group, pairs))
        slots = programs.insert(slots, group.cache, arrivals)
      steps, stop_at = map(self._put, schedule.steps(chunk))
      active_R = self._put(schedule.active(), 'batch')
      slots, new = programs.advance(self._params, slots, active_R, steps, stop_at)
      yield from schedule.collect(jax.device_get(new))

  def _put(self, array, *axes: str) -> jax.Array:
    """Moves an array that all hosts have to the mesh; replicated without axes."""
    array = np.asarray(array, np.bool_ if np.asarray(array).dtype == np.bool_ else np.int32)
    sharding = self._partition.sharding(axes)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

  def _batch_rows(self, n: int) -> int:
    """The smallest power of two times the mesh's batch parts that is at least n."""
    rows = self._partition.batch_ways
    while rows < n:
      rows *= 2
    return rows

  def _prefill_rows(self, length: int, rows: int) -> int:
    """Rows of a prefill of this length bucket; constant, so that each bucket compiles once."""
    wanted = min(rows // 8, self._prefill_tokens // length)
    return max(self._partition.batch_ways, self._batch_rows(wanted + 1) // 2)


def greedy(
  model, params, partition: Partitioner, prompts, *, bos_id: int, eos_id: int,
  max_new_tokens: int = 32, rows: int = 64,
) -> list[list[int]]:  # fmt: skip
  """Greedy decoding of token lists.

  Args:
    model: has the call interface of `Decoder`.
    params: its parameters.
    partition: mesh; `partition.activate()` must be in force.
    prompts: list of token lists of any lengths, without BOS.
    bos_id: first token of each row.
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
