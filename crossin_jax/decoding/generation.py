"""Continuous batching: a row that ends makes room for the next prompt while the others go on."""

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

CHUNK = 32  # tokens generated between two looks of the host
CHUNK_WITH_STOP_TEXTS = 8  # they are found on the host: what is generated after one is thrown away
FEWEST_ROWS = 8  # below that a row costs as much as several


@config.configurable(commands=('chunks',))
class Generator:
  """Generates for any number of prompts in a fixed number of rows.

  Prompts are taken longest first: what will not fit in memory shows at once, and the last rows are
  short ones.

  Attributes:
    sampling: how the next token is chosen.
    programs: what was compiled, shared by all generators of one model, mesh and way of sampling.
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
      model: called as `Decoder` is.
      params: its parameters, on the mesh of `partition`. A copy for decoding is made of them.
      partition: mesh; `partition.activate()` must be in force here and while answers are taken.
      bos_id: put before each prompt.
      stop_ids: tokens that end an answer.
      sampling: None = as gin says, greedy by default.
      decode: tokens to text; needed for stop texts.
      rows: most rows decoded at a time, rounded up to a power of two times the mesh's batch parts.
      prefill_tokens: at most about so many tokens of prompts are read at a time.
      shrink: whether the last rows go on in a smaller batch; None = on CPUs, where a row costs what
        it computes.

    Raises:
      ValueError: stop texts without `decode`.
    """
    self.sampling = sampling or Sampling()
    if self.sampling.stop and decode is None:
      raise ValueError(
        'Sampling.stop needs a decode function: stop texts are looked for in the text'
      )
    self._model, self._params = unrolled(model, params)
    self._partition, self._decode, self._bos_id, self._stop_ids = (
      partition,
      decode,
      bos_id,
      tuple(stop_ids),
    )
    self._most_rows, self._prefill_tokens = rows, prefill_tokens
    self._shrink = partition.mesh.devices.flat[0].platform == 'cpu' if shrink is None else shrink
    chunk = CHUNK_WITH_STOP_TEXTS if self.sampling.stop else CHUNK
    self.programs = slots_lib.programs(self._model, partition, self.sampling, self._stop_ids, chunk)

  def __call__(self, prompts: Sequence[Prompt]) -> list[Generation]:
    """All answers, by prompt and sample."""
    return sorted(self.stream(prompts), key=lambda answer: (answer.index, answer.sample))

  def stream(self, prompts: Sequence[Prompt]) -> Iterator[Generation]:
    """Answers as they finish, in no particular order.

    All hosts must give the same prompts and take all answers: they come to the same decisions from
      them.

    Raises:
      Interrupted: the run around it was told to stop.
    """
    programs, chunk, slots = self.programs, self.programs.chunk, None
    rows = self._batch_rows(min(len(prompts) * self.sampling.samples, self._most_rows))
    schedule = Schedule(
      prompts,
      self.sampling,
      bos_id=self._bos_id,
      stop_ids=self._stop_ids,
      decode=self._decode,
      rows=rows,
      prefill_rows=lambda length: self._prefill_rows(length, rows),
      fewest_rows=self._batch_rows(FEWEST_ROWS) if self._shrink else rows,
    )
    while schedule.unfinished():
      interruption.check()
      insertions = schedule.place()
      if not insertions and (kept := schedule.shrink()) is not None:
        slots = programs.take(slots, self._put(kept, 'batch'))
      capacity = schedule.capacity(slots.capacity if slots else 0, chunk)
      if slots is None:
        slots = programs.empty(rows, capacity)
      elif capacity != slots.capacity:
        slots = programs.resize(slots, capacity)
      for group, places in insertions:
        if group.cache is None:
          tokens_PL, length_P = schedule.prompt_tokens(group)
          tokens_PL, length_P = (
            self._put(tokens_PL, 'batch', 'length'),
            self._put(length_P, 'batch'),
          )
          group.cache = programs.prefill(self._params, tokens_PL, length_P)
        arrivals = jax.tree.map(self._put, schedule.arrivals(group, places))
        slots = programs.insert(slots, group.cache, arrivals)
      steps, enough = map(self._put, schedule.steps(chunk))
      slots, found = programs.advance(
        self._params, slots, self._put(schedule.at_work(), 'batch'), steps, enough
      )
      yield from schedule.collect(jax.device_get(found))

  def _put(self, array, *axes: str) -> jax.Array:
    """What all hosts have, on the mesh; whole everywhere without axes."""
    array = np.asarray(array, np.bool_ if np.asarray(array).dtype == np.bool_ else np.int32)
    sharding = self._partition.sharding(axes)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

  def _batch_rows(self, n: int) -> int:
    """The least power of two times the mesh's batch parts that is at least n."""
    rows = self._partition.batch_ways
    while rows < n:
      rows *= 2
    return rows

  def _prefill_rows(self, length: int, rows: int) -> int:
    """Prompts of a bucket of lengths that are read at a time: one number a bucket, so that there is
    one program.
    """
    wanted = min(rows // 8, self._prefill_tokens // length)
    return max(self._partition.batch_ways, self._batch_rows(wanted + 1) // 2)


def greedy(
  model,
  params,
  partition: Partitioner,
  prompts,
  *,
  bos_id: int,
  eos_id: int,
  max_new_tokens: int = 32,
  rows: int = 64,
) -> list[list[int]]:
  """The most likely next token, again and again, until the stop token.

  Args:
    model: called as `Decoder` is.
    params: its parameters.
    partition: mesh; `partition.activate()` must be in force.
    prompts: list of token lists, without BOS; each may have any length.
    bos_id: put before each prompt. eos_id: ends a row.
    max_new_tokens: most tokens generated for a prompt.
    rows: most prompts decoded at a time.

  Returns:
    The new tokens of each prompt in the order given, without the stop token.
  """
  sampling = Sampling(max_new_tokens=max_new_tokens)
  generate = Generator(
    model, params, partition, bos_id=bos_id, stop_ids=(eos_id,), sampling=sampling, rows=rows
  )
  return [answer.tokens for answer in generate([Prompt(tokens) for tokens in prompts])]
