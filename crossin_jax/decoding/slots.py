"""Device state and compiled programs of text generation, in a batch of a fixed number of rows.

Letters: R rows of the decode batch, P rows of a prefill, L bucket of prompt lengths, C capacity,
N tokens of a chunk.
"""

from collections.abc import Callable
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from crossin_jax.decoding import cache as cache_lib
from crossin_jax.decoding.sampling import Sampling, choose, penalised
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.training import compiled


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
    seed, id_P, sample_P: int32, determine the random key of a row.
    history_PL: int32 [P, L + 1], the complete prompt.
  """

  source_P: Any
  row_P: Any
  token_P: Any
  length_P: Any
  limit_P: Any
  seed: Any
  id_P: Any
  sample_P: Any
  history_PL: Any


@flax.struct.dataclass
class Chunk:
  """The result of one chunk, replicated on every host.

  Attributes:
    new_RN: int32, new tokens; only as many are valid as count_R has grown by.
    count_R: int32, tokens generated so far.
    active_R: bool, whether the row continues.
  """

  new_RN: jax.Array
  count_R: jax.Array
  active_R: jax.Array


class Programs:
  """The compiled functions of one model on one mesh: one program for each bucket of shapes.

  Attributes:
    chunk: N, maximum number of tokens that `advance` adds to a row.
    compiled: name and shapes of every program, in the order of their compilation.
  """

  def __init__(
    self, model, partition: Partitioner, sampling: Sampling, stop_ids: tuple[int, ...], chunk: int
  ):
    self._model, self._partition = model, partition
    self._sampling, self._stop_ids = sampling, stop_ids
    self.chunk = chunk
    self.compiled: list[tuple] = []
    self._executables: dict[Any, Callable] = {}

  def empty(self, rows: int, capacity: int) -> Slots:
    """Slots without an active row."""
    structure, shardings = self._structure(rows, capacity)
    make = lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), structure)
    return self._run(('empty', rows, capacity), make, (), shardings)

  def prefill(self, params, tokens_PL: jax.Array, length_P: jax.Array):
    """The cache of P prompts without their last tokens, which `advance` reads; no logits."""
    rows, length = tokens_PL.shape
    tree = cache_lib.shapes(self._model, rows, length)

    def run(params, tokens_PL, length_P):
      variables = {'params': params, 'cache': cache_lib.zeros(tree)}
      return self._model.apply(
        variables, tokens_PL, tokens_PL, enable_dropout=False, prefill=True,
        prefill_lengths=length_P, mutable=['cache'],
      )[1]['cache']  # fmt: skip

    shardings = cache_lib.shardings(self._partition, tree)
    return self._run(('prefill', rows, length), run, (params, tokens_PL, length_P), shardings)

  def insert(self, slots: Slots, new_cache, arrivals: Arrivals) -> Slots:
    """Writes prefilled prompts to rows and activates these. Donates `slots`."""

    def run(slots, new_cache, arrivals):
      put = lambda old, new: old.at[arrivals.row_P].set(new, mode='drop')
      key_RK, history_RC = slots.key_RK, slots.history_RC
      if key_RK is not None:
        key = jax.random.key(arrivals.seed)
        of_row = lambda id_, sample: jax.random.fold_in(jax.random.fold_in(key, id_), sample)
        keys_P = jax.vmap(of_row)(arrivals.id_P, arrivals.sample_P)
        key_RK = put(key_RK, jax.random.key_data(keys_P))
      if history_RC is not None:
        width = min(arrivals.history_PL.shape[1], slots.capacity)
        history_RC = history_RC.at[arrivals.row_P, :width].set(
          arrivals.history_PL[:, :width], mode='drop'
        )
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
      )

    rows, length = slots.token_R.shape[0], arrivals.history_PL.shape[1] - 1
    name = ('insert', rows, slots.capacity, arrivals.row_P.shape[0], length)
    shardings = self._structure(rows, slots.capacity)[1]
    return self._run(name, run, (slots, new_cache, arrivals), shardings, donate=(0,))

  def advance(self, params, slots: Slots, alive_R: jax.Array, steps: jax.Array, stop_at: jax.Array):
    """Adds up to `steps` tokens to each active row. Donates `slots`.

    Args:
      params: of the model.
      slots: every active row has room for `steps` more tokens.
      alive_R: bool, false ends a row.
      steps: int32, at most `chunk`.
      stop_at: int32, returns early once at most this many rows are active.

    Returns:
      (slots, Chunk).
    """
    rows = slots.token_R.shape[0]

    def run(params, slots, alive_R, steps, stop_at):
      slots = slots.replace(active_R=slots.active_R & alive_R)
      start = (jnp.int32(0), slots, jnp.zeros((rows, self.chunk), jnp.int32))
      unfinished = lambda carry: (carry[0] < steps) & (carry[1].active_R.sum() > stop_at)
      step = functools.partial(self._step, params)
      _, slots, new_RN = jax.lax.while_loop(unfinished, step, start)
      return slots, Chunk(new_RN, slots.count_R, slots.active_R)

    shardings = (self._structure(rows, slots.capacity)[1], Chunk(*[self._partition.replicated] * 3))
    arguments = (params, slots, alive_R, steps, stop_at)
    return self._run(('advance', rows, slots.capacity), run, arguments, shardings, donate=(1,))

  def _step(self, params, carry):
    """One token of every row."""
    step, slots, new_RN = carry
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
    token_R = choose(scores_RV, keys_R, self._sampling)
    if history_RC is not None:
      at = (jnp.arange(len(token_R)), slots.length_R + 1)
      history_RC = history_RC.at[at].set(token_R, mode='drop')
    stopped_R = jnp.isin(token_R, jnp.asarray(self._stop_ids, jnp.int32))
    count_R = slots.count_R + slots.active_R
    slots = slots.replace(
      cache=variables['cache'],
      token_R=token_R,
      length_R=slots.length_R + 1,
      count_R=count_R,
      active_R=slots.active_R & ~stopped_R & (count_R < slots.limit_R),
      history_RC=history_RC,
    )
    return step + 1, slots, new_RN.at[:, step].set(token_R)

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
    key_size = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape
    structure = Slots(
      cache=tree,
      token_R=array(),
      length_R=array(),
      count_R=array(),
      limit_R=array(),
      active_R=array(dtype=jnp.bool),
      key_RK=None if self._sampling.greedy else array(*key_size, dtype=jnp.uint32),
      history_RC=array(capacity) if self._sampling.needs_history else None,
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
  model, partition: Partitioner, sampling: Sampling, stop_ids: tuple[int, ...], chunk: int
) -> Programs:
  """The programs of these settings; equal settings share one object, so nothing compiles twice."""
  key = (model, partition.mesh, partition.rules, sampling.compiled, stop_ids, chunk)
  if key not in _PROGRAMS:
    while len(_PROGRAMS) >= 16:
      del _PROGRAMS[next(iter(_PROGRAMS))]
    _PROGRAMS[key] = Programs(model, partition, sampling.compiled, stop_ids, chunk)
  return _PROGRAMS[key]
