"""Device state and compiled programs of text generation, in a batch of a fixed number of rows.

Letters: R rows of the decode batch, P rows of a prefill, L bucket of prompt lengths, C capacity,
N tokens of a chunk.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from crossin_jax.decoding import cache as cache_lib
from crossin_jax.decoding.sampling import (
  NO_TOKEN,
  RowSampling,
  Sampling,
  choose,
  choose_by_row,
  penalised,
)
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.training import compiled

TOP = 20  # most likely tokens whose log-probabilities a chunk has, if it has any


@flax.struct.dataclass
class Slots:
  """The rows of the decode batch.

  Attributes:
    cache: see `crossin_jax.decoding.cache`.
    token_R: int32, next input token; at first the last token of the prompt.
    length_R: int32, tokens in the cache.
    count_R: int32, tokens generated so far.
    limit_R: int32, maximum number of generated tokens.
    active_R: bool. Inactive rows are computed too, but their values have no meaning.
    key_RK: uint32, random key data of the row; None when greedy.
    history_RC: int32, prompt and answer; None if no penalty reads them.
    rows: settings of each row; None = those of `Sampling` for all.
    capacity: C, maximum number of tokens of a row.
  """

  cache: Any
  token_R: jax.Array
  length_R: jax.Array
  count_R: jax.Array
  limit_R: jax.Array
  active_R: jax.Array
  key_RK: jax.Array | None
  history_RC: jax.Array | None
  rows: RowSampling | None
  capacity: int = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class Arrivals:
  """The state of P prefilled prompts, except for their cache.

  Attributes:
    source_P: int32, row of the prefilled cache; several samples may share one.
    row_P: int32, row of the decode batch; out of range = unused entry.
    token_P: int32, last token of the prompt, which is not in the cache yet.
    length_P: int32, tokens in the cache.
    limit_P: int32, maximum number of generated tokens.
    seed_P, id_P, sample_P: int32, determine the random key of a row.
    history_PL: int32 [P, width of the prefilled cache + 1], the complete prompt.
    temperature_P, top_p_P, min_p_P: float32, read where rows have settings of their own.
  """

  source_P: Any
  row_P: Any
  token_P: Any
  length_P: Any
  limit_P: Any
  seed_P: Any
  id_P: Any
  sample_P: Any
  history_PL: Any
  temperature_P: Any
  top_p_P: Any
  min_p_P: Any


@flax.struct.dataclass
class Chunk:
  """The result of one chunk, replicated on every host.

  Attributes:
    new_RN: int32, new tokens; only as many are valid as count_R has grown by. The last valid one
      is `NO_TOKEN` if the logits were not finite.
    count_R: int32, tokens generated so far.
    active_R: bool, whether the row continues.
    logprob_RN: float32, natural log-probabilities of the new tokens by the model, before penalties
      and temperature; None if not asked for.
    top_RNT, top_logprob_RNT: the `TOP` most likely tokens, most likely first, and theirs.
  """

  new_RN: jax.Array
  count_R: jax.Array
  active_R: jax.Array
  logprob_RN: jax.Array | None = None
  top_RNT: jax.Array | None = None
  top_logprob_RNT: jax.Array | None = None


def token_logprobs(
  logits_NV: jax.Array, token_N: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Natural log-probabilities of tokens, and of the most likely ones beside them.

  Returns:
    float32 [N]; int32 [N, T] and float32 [N, T], most likely first. T is `TOP`, or the vocabulary.
  """
  logits_NV = logits_NV.astype(jnp.float32)
  log_z_N1 = jax.nn.logsumexp(logits_NV, axis=-1, keepdims=True)
  logit_N1 = jnp.take_along_axis(logits_NV, token_N[:, None], axis=-1)
  top_logit_NT, top_NT = jax.lax.top_k(logits_NV, min(TOP, logits_NV.shape[-1]))
  return (logit_N1 - log_z_N1)[:, 0], top_NT, top_logit_NT - log_z_N1


class Programs:
  """The compiled functions of one model on one mesh: one program for each bucket of shapes.

  Attributes:
    chunk: N, maximum number of tokens that `advance` adds to a row.
    by_row: temperature, top-p and min-p are those of each row, not compiled in.
    compiled: name and shapes of every program, in the order of their compilation.
  """

  def __init__(
    self,
    model,
    partition: Partitioner,
    sampling: Sampling,
    stop_ids: tuple[int, ...],
    chunk: int,
    by_row: bool = False,
  ):
    self._model, self._partition = model, partition
    self._sampling, self._stop_ids = sampling, stop_ids
    self.chunk, self.by_row = chunk, by_row
    self.compiled: list[tuple] = []
    self._executables: dict[Any, Callable] = {}

  def empty(self, rows: int, capacity: int) -> Slots:
    """Slots without an active row."""
    structure, shardings = self._structure(rows, capacity)
    make = lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), structure)
    return self._run(('empty', rows, capacity), make, (), shardings)

  def prefill(self, params, tokens_PL: jax.Array, length_P: jax.Array, width: int):
    """The cache of P prompts without their last tokens, which `advance` reads; no logits.

    It is padded to `width` slots, at least L: `insert` compiles for each width.
    """
    rows, length = tokens_PL.shape
    tree = cache_lib.shapes(self._model, rows, length)
    padded = cache_lib.shapes(self._model, rows, width)

    def run(params, tokens_PL, length_P):
      variables = {'params': params, 'cache': cache_lib.zeros(tree)}
      cache = self._model.apply(
        variables, tokens_PL, tokens_PL, enable_dropout=False, prefill=True,
        prefill_lengths=length_P, mutable=['cache'],
      )[1]['cache']  # fmt: skip
      return cache if width == length else cache_lib.resize(cache, padded)

    shardings = cache_lib.shardings(self._partition, padded)
    name = ('prefill', rows, length, *([width] if width != length else []))
    return self._run(name, run, (params, tokens_PL, length_P), shardings)

  def insert(self, slots: Slots, new_cache, arrivals: Arrivals) -> Slots:
    """Writes prefilled prompts to rows and activates these. Donates `slots`."""

    def run(slots, new_cache, arrivals):
      put = lambda old, new: old.at[arrivals.row_P].set(new, mode='drop')
      key_RK, history_RC = slots.key_RK, slots.history_RC
      if key_RK is not None:
        fold = jax.random.fold_in
        of_row = lambda seed, id_, sample: fold(fold(jax.random.key(seed), id_), sample)
        keys_P = jax.vmap(of_row)(arrivals.seed_P, arrivals.id_P, arrivals.sample_P)
        key_RK = put(key_RK, jax.random.key_data(keys_P))
      if history_RC is not None:
        width = min(arrivals.history_PL.shape[1], slots.capacity)
        history_RC = history_RC.at[arrivals.row_P, :width].set(
          arrivals.history_PL[:, :width], mode='drop'
        )
      row_settings = slots.rows
      if row_settings is not None:
        settings_P = RowSampling(arrivals.temperature_P, arrivals.top_p_P, arrivals.min_p_P)
        row_settings = jax.tree.map(put, row_settings, settings_P)
      new_cache = cache_lib.take(new_cache, arrivals.source_P)
      return slots.replace(
        cache=cache_lib.insert(slots.cache, new_cache, arrivals.row_P),
        token_R=put(slots.token_R, arrivals.token_P),
        length_R=put(slots.length_R, arrivals.length_P),
        count_R=put(slots.count_R, 0),
        limit_R=put(slots.limit_R, arrivals.limit_P),
        active_R=put(slots.active_R, True),
        key_RK=key_RK,
        history_RC=history_RC,
        rows=row_settings,
      )

    rows, length = slots.token_R.shape[0], arrivals.history_PL.shape[1] - 1
    name = ('insert', rows, slots.capacity, arrivals.row_P.shape[0], length)
    shardings = self._structure(rows, slots.capacity)[1]
    return self._run(name, run, (slots, new_cache, arrivals), shardings, donate=(0,))

  def advance(
    self,
    params,
    slots: Slots,
    alive_R: jax.Array,
    steps: jax.Array,
    stop_at: jax.Array,
    logprobs: bool = False,
  ):
    """Adds up to `steps` tokens to each active row. Donates `slots`.

    Args:
      params: of the model.
      slots: every active row has room for `steps` more tokens.
      alive_R: bool, false ends a row.
      steps: int32, at most `chunk`.
      stop_at: int32, returns early once at most this many rows are active.
      logprobs: whether the chunk has log-probabilities; a program of its own.

    Returns:
      (slots, Chunk).
    """
    rows = slots.token_R.shape[0]

    def run(params, slots, alive_R, steps, stop_at):
      slots = slots.replace(active_R=slots.active_R & alive_R)
      new = {'new_RN': jnp.zeros((rows, self.chunk), jnp.int32)}
      if logprobs:
        top = min(TOP, self._model.config.padded_vocab_size)
        new['logprob_RN'] = jnp.zeros((rows, self.chunk), jnp.float32)
        new['top_RNT'] = jnp.zeros((rows, self.chunk, top), jnp.int32)
        new['top_logprob_RNT'] = jnp.zeros((rows, self.chunk, top), jnp.float32)
      unfinished = lambda carry: (carry[0] < steps) & (carry[1].active_R.sum() > stop_at)
      step = functools.partial(self._step, params)
      _, slots, new = jax.lax.while_loop(unfinished, step, (jnp.int32(0), slots, new))
      return slots, Chunk(count_R=slots.count_R, active_R=slots.active_R, **new)

    replicated = [self._partition.replicated] * (6 if logprobs else 3)
    shardings = (self._structure(rows, slots.capacity)[1], Chunk(*replicated))
    arguments = (params, slots, alive_R, steps, stop_at)
    name = ('advance', rows, slots.capacity, *(['logprobs'] if logprobs else []))
    return self._run(name, run, arguments, shardings, donate=(1,))

  def _step(self, params, carry):
    """One token of every row."""
    step, slots, new = carry
    token_R1 = slots.token_R[:, None]
    logits_R1V, variables = self._model.apply(
      {'params': params, 'cache': slots.cache}, token_R1, token_R1, enable_dropout=False,
      decode=True, max_decode_length=slots.capacity, mutable=['cache'],
    )  # fmt: skip
    scores_RV, history_RC, keys_R = logits_R1V[:, 0], slots.history_RC, None
    if history_RC is not None:
      scores_RV = penalised(scores_RV, history_RC, slots.length_R + 1, self._sampling)
    if slots.key_RK is not None:
      keys_R = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(slots.key_RK), slots.count_R)
    if slots.rows is None:
      chosen_R = choose(scores_RV, keys_R, self._sampling)
    else:
      chosen_R = choose_by_row(scores_RV, keys_R, slots.rows, self._sampling)
    token_R = jnp.maximum(chosen_R, 0)
    of_step = {'new_RN': chosen_R}
    if 'logprob_RN' in new:
      names = ('logprob_RN', 'top_RNT', 'top_logprob_RNT')
      of_step |= zip(names, token_logprobs(logits_R1V[:, 0], token_R))
    new = {name: array.at[:, step].set(of_step[name]) for name, array in new.items()}
    if history_RC is not None:
      at = (jnp.arange(len(token_R)), slots.length_R + 1)
      history_RC = history_RC.at[at].set(token_R, mode='drop')
    stopped_R = jnp.isin(chosen_R, jnp.asarray((NO_TOKEN, *self._stop_ids), jnp.int32))
    count_R = slots.count_R + slots.active_R
    slots = slots.replace(
      cache=variables['cache'],
      token_R=token_R,
      length_R=slots.length_R + 1,
      count_R=count_R,
      active_R=slots.active_R & ~stopped_R & (count_R < slots.limit_R),
      history_RC=history_RC,
    )
    return step + 1, slots, new

  def resize(self, slots: Slots, capacity: int) -> Slots:
    """The same rows with another capacity, which every active row must fit. Donates `slots`."""
    rows = slots.token_R.shape[0]
    structure, shardings = self._structure(rows, capacity)

    def run(slots):
      history_RC = slots.history_RC
      if history_RC is not None:
        history_RC = cache_lib.resize(history_RC, structure.history_RC)
      cache = cache_lib.resize(slots.cache, structure.cache)
      return slots.replace(cache=cache, history_RC=history_RC, capacity=capacity)

    return self._run(('resize', rows, slots.capacity, capacity), run, (slots,), shardings)

  def take(self, slots: Slots, row_R: jax.Array) -> Slots:
    """Selects rows, in this order."""

    def run(slots, row_R):
      rest = slots.replace(cache=None)
      rest = jax.tree.map(lambda leaf: jnp.take(leaf, row_R, axis=0), rest)
      return rest.replace(cache=cache_lib.take(slots.cache, row_R))

    rows, fewer = slots.token_R.shape[0], row_R.shape[0]
    shardings = self._structure(fewer, slots.capacity)[1]
    return self._run(('take', rows, fewer, slots.capacity), run, (slots, row_R), shardings)

  def _structure(self, rows: int, capacity: int) -> tuple[Slots, Slots]:
    """Shapes and shardings of slots."""
    tree = cache_lib.shapes(self._model, rows, capacity)
    of_row, of_rows = (self._partition.sharding(axes) for axes in (('batch',), ('batch', 'length')))
    array = lambda *shape, dtype=jnp.int32: jax.ShapeDtypeStruct((rows, *shape), dtype)
    has_keys = self.by_row or not self._sampling.greedy
    key_size = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape
    structure = Slots(
      cache=tree,
      token_R=array(),
      length_R=array(),
      count_R=array(),
      limit_R=array(),
      active_R=array(dtype=jnp.bool),
      key_RK=array(*key_size, dtype=jnp.uint32) if has_keys else None,
      history_RC=array(capacity) if self._sampling.needs_history else None,
      rows=RowSampling(*[array(dtype=jnp.float32)] * 3) if self.by_row else None,
      capacity=capacity,
    )
    shardings = jax.tree.map(
      lambda leaf: of_row if len(leaf.shape) == 1 else of_rows, structure.replace(cache=None)
    )
    return structure, shardings.replace(cache=cache_lib.shardings(self._partition, tree))

  def _run(self, name: tuple, function: Callable, arguments: tuple, shardings, donate=()):
    """Calls the program of this bucket; compiles it first if needed, open to stop signals."""
    leaves, structure = jax.tree.flatten(arguments)
    # Two runs of one model may shard their parameters differently.
    key = (name, structure, *[(leaf.shape, leaf.dtype, leaf.sharding) for leaf in leaves])
    if key not in self._executables:
      jitted = jax.jit(function, donate_argnums=donate, out_shardings=shardings)
      lowered = jitted.lower(*arguments)  # on this thread: flax keeps the axis rules per thread
      self._executables[key] = compiled.in_thread(lowered.compile)
      self.compiled.append(name)
    return self._executables[key](*arguments)


_PROGRAMS: dict[tuple, Programs] = {}


def programs(
  model,
  partition: Partitioner,
  sampling: Sampling,
  stop_ids: tuple[int, ...],
  chunk: int,
  by_row: bool = False,
) -> Programs:
  """The programs of these settings; equal settings share one object, so nothing compiles twice."""
  if by_row:
    sampling = dataclasses.replace(sampling, temperature=1.0, top_p=1.0, min_p=0.0, samples=1)
  settings = sampling.compiled
  key = (model, partition.mesh, partition.rules, settings, stop_ids, chunk, by_row)
  if key not in _PROGRAMS:
    while len(_PROGRAMS) >= 16:
      del _PROGRAMS[next(iter(_PROGRAMS))]
    _PROGRAMS[key] = Programs(model, partition, settings, stop_ids, chunk, by_row)
  return _PROGRAMS[key]
