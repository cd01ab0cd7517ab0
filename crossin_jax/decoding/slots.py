"""What runs on the device while text is generated: a fixed number of rows, each at its own place.

Letters: R rows of the decode batch, P rows of a prefill, L bucket of a prompt's length, C capacity,
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
    token_R: int32, what is read next: at first the last token of the prompt.
    length_R: int32, tokens in the cache.
    made_R, limit_R: int32, tokens generated, and how many may be.
    active_R: bool, whether the row is at work. Others are computed along and mean nothing.
    key_RK: uint32, random key data of the row; None if nothing is drawn.
    history_RC: int32, prompt and answer; None if the choice does not look at them.
    capacity: C, room for so many tokens a row.
  """

  cache: Any
  token_R: jax.Array
  length_R: jax.Array
  made_R: jax.Array
  limit_R: jax.Array
  active_R: jax.Array
  key_RK: jax.Array | None
  history_RC: jax.Array | None
  capacity: int = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class Arrivals:
  """What comes with P prefilled prompts, besides their cache.

  Attributes:
    source_P: int32, row of the prefilled cache: several samples may come from one.
    row_P: int32, slot of each; out of range = none.
    token_P: int32, last token of the prompt, which is not in the cache yet.
    length_P: int32, tokens in the cache.
    limit_P: int32, most new tokens.
    seed, id_P, sample_P: int32, what a row's draws depend on.
    history_PL: int32 [P, L + 1], the whole prompt.
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
  """What a chunk has brought, whole on every host.

  Attributes:
    new_RN: int32; of a row the first as many count as made_R has grown by.
    made_R: int32, tokens generated so far.
    active_R: bool, whether the row goes on.
  """

  new_RN: jax.Array
  made_R: jax.Array
  active_R: jax.Array


class Programs:
  """The compiled functions of one model on one mesh: one program for each bucket of shapes.

  Attributes:
    chunk: N, most tokens that `advance` adds to a row.
    compiled: name and shapes of every program, in the order in which they were compiled.
  """

  def __init__(
    self, model, partition: Partitioner, sampling: Sampling, stop_ids: tuple[int, ...], chunk: int
  ):
    self._model, self._partition, self._sampling, self._stop_ids = (
      model,
      partition,
      sampling,
      stop_ids,
    )
    self.chunk = chunk
    self.compiled: list[tuple] = []
    self._executables: dict[Any, Callable] = {}

  def empty(self, rows: int, capacity: int) -> Slots:
    """Slots of which none is at work."""
    structure, shardings = self._structure(rows, capacity)
    make = lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), structure)
    return self._run(('empty', rows, capacity), make, (), shardings)

  def prefill(self, params, tokens_PL: jax.Array, length_P: jax.Array):
    """The cache of P prompts; no logits are computed, because the last token of each is
    read by what comes after."""
    rows, length = tokens_PL.shape
    tree = cache_lib.shapes(self._model, rows, length)

    def run(params, tokens_PL, length_P):
      variables = {'params': params, 'cache': cache_lib.zeros(tree)}
      options = {
        'enable_dropout': False,
        'prefill': True,
        'prefill_lengths': length_P,
        'mutable': ['cache'],
      }
      return self._model.apply(variables, tokens_PL, tokens_PL, **options)[1]['cache']

    shardings = cache_lib.shardings(self._partition, tree)
    return self._run(('prefill', rows, length), run, (params, tokens_PL, length_P), shardings)

  def insert(self, slots: Slots, new_cache, arrivals: Arrivals) -> Slots:
    """Puts prefilled prompts into slots and sets them to work. `slots` is used up."""

    def run(slots, new_cache, arrivals):
      put = lambda old, new: old.at[arrivals.row_P].set(new, mode='drop')
      key_RK, history_RC = slots.key_RK, slots.history_RC
      if key_RK is not None:
        key = jax.random.key(arrivals.seed)
        of_row = lambda id_, sample: jax.random.fold_in(jax.random.fold_in(key, id_), sample)
        key_RK = put(
          key_RK, jax.random.key_data(jax.vmap(of_row)(arrivals.id_P, arrivals.sample_P))
        )
      if history_RC is not None:
        width = min(arrivals.history_PL.shape[1], slots.capacity)
        history_RC = history_RC.at[arrivals.row_P, :width].set(
          arrivals.history_PL[:, :width], mode='drop'
        )
      return slots.replace(
        cache=cache_lib.inserted(
          slots.cache, cache_lib.taken(new_cache, arrivals.source_P), arrivals.row_P
        ),
        token_R=put(slots.token_R, arrivals.token_P),
        length_R=put(slots.length_R, arrivals.length_P),
        made_R=put(slots.made_R, 0),
        limit_R=put(slots.limit_R, arrivals.limit_P),
        active_R=put(slots.active_R, True),
        key_RK=key_RK,
        history_RC=history_RC,
      )

    rows, length = slots.token_R.shape[0], arrivals.history_PL.shape[1] - 1
    name = ('insert', rows, slots.capacity, arrivals.row_P.shape[0], length)
    return self._run(
      name, run, (slots, new_cache, arrivals), self._structure(rows, slots.capacity)[1], donate=(0,)
    )

  def advance(self, params, slots: Slots, alive_R: jax.Array, steps: jax.Array, enough: jax.Array):
    """Adds up to `steps` tokens to each row at work. `slots` is used up.

    Args:
      params: of the model.
      slots: every active row has room for `steps` more tokens.
      alive_R: bool, false ends a row.
      steps: int32, at most `chunk`.
      enough: int32, returns as soon as no more than so many rows are at work.

    Returns:
      (slots, Chunk).
    """
    rows = slots.token_R.shape[0]

    def run(params, slots, alive_R, steps, enough):
      start = (
        jnp.int32(0),
        slots.replace(active_R=slots.active_R & alive_R),
        jnp.zeros((rows, self.chunk), jnp.int32),
      )
      unfinished = lambda carry: (carry[0] < steps) & (carry[1].active_R.sum() > enough)
      _, slots, new_RN = jax.lax.while_loop(
        unfinished, functools.partial(self._step, params), start
      )
      return slots, Chunk(new_RN, slots.made_R, slots.active_R)

    shardings = (self._structure(rows, slots.capacity)[1], Chunk(*[self._partition.replicated] * 3))
    arguments = (params, slots, alive_R, steps, enough)
    return self._run(('advance', rows, slots.capacity), run, arguments, shardings, donate=(1,))

  def _step(self, params, carry):
    """One token of every row."""
    step, slots, new_RN = carry
    token_R1 = slots.token_R[:, None]
    logits_R1V, variables = self._model.apply(
      {'params': params, 'cache': slots.cache},
      token_R1,
      token_R1,
      enable_dropout=False,
      decode=True,
      max_decode_length=slots.capacity,
      mutable=['cache'],
    )
    scores_RV, history_RC, keys_R = logits_R1V[:, 0], slots.history_RC, None
    if history_RC is not None:
      scores_RV = penalised(scores_RV, history_RC, slots.length_R + 1, self._sampling)
    if slots.key_RK is not None:
      keys_R = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(slots.key_RK), slots.made_R)
    token_R = choose(scores_RV, keys_R, self._sampling)
    if history_RC is not None:
      at = (jnp.arange(len(token_R)), slots.length_R + 1)
      history_RC = history_RC.at[at].set(token_R, mode='drop')
    stopped_R = jnp.isin(token_R, jnp.asarray(self._stop_ids, jnp.int32))
    made_R = slots.made_R + slots.active_R
    slots = slots.replace(
      cache=variables['cache'],
      token_R=token_R,
      length_R=slots.length_R + 1,
      made_R=made_R,
      active_R=slots.active_R & ~stopped_R & (made_R < slots.limit_R),
      history_RC=history_RC,
    )
    return step + 1, slots, new_RN.at[:, step].set(token_R)

  def resize(self, slots: Slots, capacity: int) -> Slots:
    """The same rows with another capacity, in which every active one fits. `slots` is used up."""
    rows = slots.token_R.shape[0]
    structure, shardings = self._structure(rows, capacity)

    def run(slots):
      history_RC = slots.history_RC
      if history_RC is not None:
        history_RC = cache_lib.resized(history_RC, structure.history_RC)
      cache = cache_lib.resized(slots.cache, structure.cache)
      return slots.replace(cache=cache, history_RC=history_RC, capacity=capacity)

    return self._run(('resize', rows, slots.capacity, capacity), run, (slots,), shardings)

  def take(self, slots: Slots, row_R: jax.Array) -> Slots:
    """Only these rows, in this order."""

    def run(slots, row_R):
      rest = slots.replace(cache=None)
      rest = jax.tree.map(lambda leaf: jnp.take(leaf, row_R, axis=0), rest)
      return rest.replace(cache=cache_lib.taken(slots.cache, row_R))

    rows, fewer = slots.token_R.shape[0], row_R.shape[0]
    shardings = self._structure(fewer, slots.capacity)[1]
    return self._run(('take', rows, fewer, slots.capacity), run, (slots, row_R), shardings)

  def _structure(self, rows: int, capacity: int) -> tuple[Slots, Slots]:
    """Shapes and shardings of slots."""
    tree = cache_lib.shapes(self._model, rows, capacity)
    of_row, of_rows = (self._partition.sharding(axes) for axes in (('batch',), ('batch', 'length')))
    number = lambda *shape, dtype=jnp.int32: jax.ShapeDtypeStruct((rows, *shape), dtype)
    drawn, remembered = not self._sampling.greedy, self._sampling.needs_history
    key_size = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape
    structure = Slots(
      cache=tree,
      token_R=number(),
      length_R=number(),
      made_R=number(),
      limit_R=number(),
      active_R=number(dtype=jnp.bool),
      key_RK=number(*key_size, dtype=jnp.uint32) if drawn else None,
      history_RC=number(capacity) if remembered else None,
      capacity=capacity,
    )
    shardings = jax.tree.map(
      lambda leaf: of_row if len(leaf.shape) == 1 else of_rows, structure.replace(cache=None)
    )
    return structure, shardings.replace(cache=cache_lib.shardings(self._partition, tree))

  def _run(self, name: tuple, function: Callable, arguments: tuple, shardings, donate=()):
    """Calls the program of this bucket, which is compiled at its first call, in a way that lets a
    stop signal through.
    """
    leaves, structure = jax.tree.flatten(arguments)
    # Two runs with one model may have their parameters in different shards.
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
  """The programs of this model, mesh and way of sampling; the same object for equal ones, so
  nothing is compiled twice.
  """
  key = (model, partition.mesh, partition.rules, sampling.compiled, stop_ids, chunk)
  if key not in _PROGRAMS:
    while len(_PROGRAMS) >= 16:
      del _PROGRAMS[next(iter(_PROGRAMS))]
    _PROGRAMS[key] = Programs(model, partition, sampling.compiled, stop_ids, chunk)
  return _PROGRAMS[key]
