"""Log-likelihood of given sequences: packed, or continuations behind prefixes that are read once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from crossin_jax import interruption, losses
from crossin_jax.data.packing import first_fit
from crossin_jax.data.stream import empty_rows, put_batch, write_segment
from crossin_jax.decoding import slots
from crossin_jax.decoding.cache import bucket
from crossin_jax.decoding.sampling import Sampling
from crossin_jax.partitioning import Partitioner


def sequence_losses(
  model, params, partition: Partitioner, sequences, *, bos_id: int, length: int = 512, rows: int = 32
) -> np.ndarray:
  """Sum of weighted token losses of each sequence, in nats; its negative is the log-likelihood.

  Args:
    model: called as `Decoder` is.
    params: its parameters, on the mesh of `partition`.
    partition: mesh; `partition.activate()` must be in force.
    sequences: list of (tokens int [n], weights float [n]); no BOS among the tokens.
    bos_id: first decoder input of each.
    length: tokens in a packed row; at least the longest sequence.
    rows: rows of a batch, rounded up to a multiple of the mesh's batch parts.

  Returns:
    float64 [sequences], the same on every host.

  Raises:
    ValueError: a sequence longer than a row.
  """
  if not sequences:
    return np.zeros(0)
  lengths = np.array([len(tokens) for tokens, _ in sequences])
  if lengths.max() > length:
    raise ValueError(f'a sequence of {lengths.max()} tokens does not fit in rows of {length}')
  rows = -(-rows // partition.batch_ways) * partition.batch_ways
  # Longest first packs tightest, and nothing here depends on order.
  order = np.argsort(-lengths, kind='stable')
  room = np.full(len(sequences), length)
  bins = first_fit(lengths[order], length, room)
  contents = [[] for _ in range(bins.max() + 1)]
  for item, bin_ in zip(order, bins):
    contents[bin_].append(int(item))
  losses_fn = weighted_losses(model, partition.replicated)
  totals = np.zeros(len(sequences))

  def make(step, selected):
    batch = empty_rows(rows, length)
    for i, row in enumerate(contents[step * rows : (step + 1) * rows]):
      start = 0
      for segment, item in enumerate(row, start=1):
        tokens, weights = sequences[item]
        write_segment(batch, i, start, segment, np.asarray(tokens), weights, bos_id, 0)
        start += len(tokens)
    return {name: values[selected] for name, values in batch.items()}

  for step in range(-(-len(contents) // rows)):
    interruption.check()
    batch = put_batch(make, step, (rows, length), partition.batch_sharding)
    weighted_BL = np.asarray(losses_fn(params, batch), np.float64)
    for i, row in enumerate(contents[step * rows : (step + 1) * rows]):
      start = 0
      for item in row:
        totals[item] = weighted_BL[i, start : start + lengths[item]].sum()
        start += lengths[item]
  return totals


@functools.lru_cache(maxsize=8)
def weighted_losses(model, replicated):
  """A jitted (params, batch) -> float [B, L], token losses times weights, whole on every device."""

  def compute(params, batch):
    loss_BL, _ = losses.token_losses(losses.apply_model(model, params, batch), batch['decoder_target_tokens'])
    weight_BL = batch['decoder_loss_weights']
    return jnp.where(weight_BL != 0, loss_BL * weight_BL, 0)

  return jax.jit(compute, out_shardings=replicated)


def continuation_losses(
  model,
  params,
  partition: Partitioner,
  prefixes,
  continuations,
  *,
  bos_id: int,
  length: int = 512,
  rows: int = 32,
  shared: bool | None = None,
) -> list[np.ndarray]:
  """Sum of token losses of each continuation of each prefix, in nats; its negative is the log-likelihood.

  A prefix is read once, and its continuations after it from its cache; equal prefixes are one.

  Args:
    model, params, partition: as in `sequence_losses`.
    prefixes: list of token lists, without BOS.
    continuations: for each prefix a list of token lists, none of them empty.
    bos_id: first decoder input.
    length, rows: length * rows tokens are read at a time. Without sharing: shape of the packed batches, and `length` holds
      the longest prefix with its longest continuation.
    shared: whether prefixes are shared, or every sequence is packed whole; None = shared where that reads less than half
      as many tokens, padding counted, because it compiles more programs.

  Returns:
    float64 [continuations] for each prefix, the same on every host.

  Raises:
    ValueError: an empty continuation.
  """
  for i, options in enumerate(continuations):
    if not all(len(option) for option in options):
      raise ValueError(f'prefix {i} has an empty continuation; its likelihood is that of nothing')
  unique: dict[tuple[int, ...], list[tuple[int, int]]] = {}
  for i, prefix in enumerate(prefixes):
    unique.setdefault(tuple(prefix), []).extend((i, j) for j in range(len(continuations[i])))
  tokens_of = lambda place: continuations[place[0]][place[1]]
  batches = _prefix_batches(unique, tokens_of, length * rows, partition.batch_ways)
  if shared is None:
    packed = sum(len(prefix) + len(tokens_of(place)) for prefix, places in unique.items() for place in places)
    shared = 2 * sum(batch.cost for batch in batches) < packed
  results = [np.zeros(len(options)) for options in continuations]
  if not shared:
    places = [place for own in unique.values() for place in own]
    sequences = [
      ([*prefixes[i], *continuations[i][j]], [0.0] * len(prefixes[i]) + [1.0] * len(continuations[i][j]))
      for i, j in places
    ]
    found = sequence_losses(model, params, partition, sequences, bos_id=bos_id, length=length, rows=rows)
    for (i, j), loss in zip(places, found):
      results[i][j] = loss
    return results

  programs = slots.programs(model, partition, Sampling(), (), 1)
  put = lambda array: jax.make_array_from_callback(
    array.shape, partition.sharding(('batch', 'length')[: array.ndim]), lambda index: array[index]
  )
  for batch in batches:
    interruption.check()
    tokens_PL, length_P = np.zeros((batch.rows, batch.length), np.int32), np.zeros(batch.rows, np.int32)
    for row, (prefix, _) in enumerate(batch.items):
      length_P[row] = len(prefix)
      tokens_PL[row, : len(prefix)] = [bos_id, *prefix][:-1]
    cache = programs.prefill(params, put(tokens_PL), put(length_P), room=batch.room)
    for turn in range(max(len(places) for _, places in batch.items)):
      inputs, targets = np.zeros((2, batch.rows, batch.room), np.int32)
      weights = np.zeros((batch.rows, batch.room), np.float32)
      for row, (prefix, places) in enumerate(batch.items):
        if turn < len(places):
          option = tokens_of(places[turn])
          inputs[row, : len(option)] = [([bos_id, *prefix])[-1], *option[:-1]]
          targets[row, : len(option)], weights[row, : len(option)] = option, 1
      arrays = map(put, (inputs, targets, weights))
      found = np.asarray(programs.score(params, cache, batch.length + batch.room, *arrays), np.float64)
      for row, (_, places) in enumerate(batch.items):
        if turn < len(places):
          i, j = places[turn]
          results[i][j] = found[row]
  return results


@dataclasses.dataclass
class _PrefixBatch:
  """Prefixes that are read together.

  Attributes:
    items: (prefix, [(prefix index, continuation index)]).
    rows, length, room: shapes: rows, bucket of prefixes, bucket of continuations.
  """

  items: list
  rows: int
  length: int
  room: int

  @property
  def cost(self) -> int:
    """Tokens that are computed."""
    return self.rows * (self.length + self.room * max(len(places) for _, places in self.items))


def _prefix_batches(unique: dict, tokens_of, most_tokens: int, ways: int) -> list[_PrefixBatch]:
  """Batches of few shapes: prefixes and continuations in buckets of length, rare buckets joined to larger ones."""
  shapes: dict[tuple[int, int], list] = {}
  for prefix, places in unique.items():
    if places:
      room = max(len(tokens_of(place)) for place in places)
      shapes.setdefault((bucket(len(prefix)), -(-room // 8) * 8), []).append((prefix, places))
  few = sum(map(len, shapes.values())) / 8
  for shape in sorted(shapes):
    larger = [other for other in shapes if other != shape and other[0] >= shape[0] and other[1] >= shape[1]]
    if larger and len(shapes[shape]) < few:
      shapes[min(larger)] += shapes.pop(shape)
  batches = []
  for (length, room), items in shapes.items():
    items.sort(key=lambda item: len(item[1]))  # like numbers of continuations beside each other
    rows = ways
    while rows < len(items) and 2 * rows * length <= most_tokens:
      rows *= 2
    batches += [_PrefixBatch(items[i : i + rows], rows, length, room) for i in range(0, len(items), rows)]
  return batches
