"""Log-likelihood of given sequences: packed, or as continuations that share a prefix."""

import collections
from collections.abc import Iterator
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crossin_jax.data.packing import packed_rows
from crossin_jax.data.stream import empty_rows, put_batch, write_segment
from crossin_jax.decoding import sampling
from crossin_jax.decoding.nonfinite import NonFiniteLikelihood
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.processes import interruption
from crossin_jax.training import losses
from crossin_jax.training.losses import weighted_losses

LOGITS = 2**25  # values of the logits of a batch in `continuation_scores`
SAVED = 8  # tokens that a shared beginning must save to be worth a tree


def sequence_losses(
  model, params, partition: Partitioner, sequences, *, bos_id: int | None, length: int = 512,
  rows: int = 32,
) -> np.ndarray:  # fmt: skip
  """Sum of weighted token losses of each sequence, in nats: the negative log-likelihood.

  Args:
    model: has the call interface of `Decoder`.
    params: its parameters, on the mesh of `partition`.
    partition: mesh; `partition.activate()` must be in force.
    sequences: list of (tokens int [n], weights float [n]), without BOS.
    bos_id: first decoder input of each; None = its first token, which then has no loss.
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
  rows = _full_batch(rows, partition)
  contents = packed_rows(lengths, length)
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

  for row, losses_L in _batches(make, losses_fn, params, partition, contents, rows, length):
    start = 0
    for item in row:
      totals[item] = losses_L[start : start + lengths[item]].sum()
      start += lengths[item]
  return totals


def _full_batch(rows: int, partition: Partitioner) -> int:
  return -(-rows // partition.batch_ways) * partition.batch_ways


def _batches(make, losses_fn, params, partition: Partitioner, contents, rows: int, length: int):
  """Computes all batches; yields (items of a packed row, float64 losses of that row)."""
  for step in range(-(-len(contents) // rows)):
    interruption.check()
    batch = put_batch(make, step, (rows, length), partition.batch_sharding)
    losses_BL = np.asarray(losses_fn(params, batch), np.float64)
    yield from zip(contents[step * rows : (step + 1) * rows], losses_BL)


class Score(NamedTuple):
  """The likelihood of one continuation.

  Attributes:
    prefix, option: which one.
    loss: sum of its token losses, in nats.
    greedy: whether each of its tokens is the most likely one.
  """

  prefix: int
  option: int
  loss: float
  greedy: bool


def continuation_losses(
  model, params, partition: Partitioner, prefixes, continuations, *, bos_id: int | None,
  length: int = 512, rows: int = 32,
) -> list[np.ndarray]:  # fmt: skip
  """Sum of token losses of each continuation of each prefix, in nats: the negative log-likelihood.

  Inputs that sequences share are computed once: what follows them stands in the same row as
  branches that do not attend to each other. Only the tokens of continuations get logits.

  Args:
    model, params, partition: as in `sequence_losses`; the model takes `decoder_branches` and
      `decoder_logit_places`.
    prefixes: list of token lists, without BOS.
    continuations: for each prefix a list of token lists, none of them empty.
    bos_id: first decoder input; None = the first token of the prefix.
    length, rows: approximate size of a batch. Longer items get longer and fewer rows.

  Returns:
    float64 [continuations] for each prefix, the same on every host.

  Raises:
    ValueError: an empty continuation, or without BOS an empty prefix.
    NonFiniteLikelihood: a loss is not finite; names the prefix.
  """
  trees = _forest(_leaves(prefixes, continuations, bos_id), length)
  results = [np.zeros(len(options)) for options in continuations]
  for (i, j), loss, _ in _score(model, params, partition, trees, length, rows):
    results[i][j] = loss
    _check_finite(loss, i, len(prefixes))
  return results


def continuation_scores(
  model, params, partition: Partitioner, prefixes, continuations, *, bos_id: int | None,
  length: int = 512, rows: int = 8,
) -> Iterator[Score]:  # fmt: skip
  """The scores of `continuation_losses` as they are computed, for any number of any lengths.

  Rows are as wide as `length`, 2 `length`, 4 `length` ... as their items need, the longest first;
  those that score most of their tokens are apart, in batches of at most `LOGITS` logits. So a few
  programs serve all lengths.

  Args:
    model, params, partition, prefixes, continuations, bos_id: as in `continuation_losses`.
    length, rows: size of a batch of short items.

  Raises:
    ValueError, NonFiniteLikelihood: as `continuation_losses`.
  """
  classes = collections.defaultdict(list)
  for tree in _forest(_leaves(prefixes, continuations, bos_id), length):
    doublings = max(0, (-(-tree.length // length) - 1).bit_length())
    classes[doublings, 2 * tree.places >= tree.length].append(tree)
  for _, trees in sorted(classes.items(), reverse=True):
    shape = {'length': length, 'rows': rows, 'most_logits': LOGITS, 'with_greedy': True}
    for (i, j), loss, greedy in _score(model, params, partition, trees, **shape):
      _check_finite(loss, i, len(prefixes))
      yield Score(i, j, loss, greedy)


def _check_finite(loss: float, prefix: int, prefixes: int) -> None:
  if not np.isfinite(loss):
    raise NonFiniteLikelihood(f'prefix {prefix + 1} of {prefixes}', prefix)


@dataclasses.dataclass
class _Leaf:
  """Decoder inputs, and the targets of the sequences that have them.

  Attributes:
    inputs: BOS, prefix and continuation without its last token.
    scored: (number of the first scored input, last target) -> keys of the sequences.
  """

  inputs: tuple[int, ...]
  scored: dict[tuple[int, int], list] = dataclasses.field(default_factory=dict)

  def targets(self, first: int, last: int) -> Iterator[tuple[int, int]]:
    """(number of an input, the target that it predicts) of a sequence of `scored`."""
    yield from enumerate((*self.inputs[first + 1 :], last), start=first)


def _leaves(prefixes, continuations, bos_id: int | None) -> list[_Leaf]:
  """The different inputs of all sequences, sorted: equal beginnings are neighbours."""
  if bos_id is None and not all(map(len, prefixes)):
    raise ValueError('a prefix has no tokens, and the tokenizer puts none in front')
  leaves: dict[tuple[int, ...], _Leaf] = {}
  for i, (prefix, options) in enumerate(zip(prefixes, continuations)):
    before = (*(() if bos_id is None else (bos_id,)), *prefix)
    for j, option in enumerate(options):
      if not len(option):
        raise ValueError(f'prefix {i} has an empty continuation; it has no tokens to score')
      inputs = (*before, *option[:-1])
      leaf = leaves.setdefault(inputs, _Leaf(inputs))
      leaf.scored.setdefault((len(before) - 1, int(option[-1])), []).append((i, j))
  return [leaves[inputs] for inputs in sorted(leaves)]


class _Layout(NamedTuple):
  """A tree in a row, places relative to its first input.

  Attributes:
    inputs, positions, branches: int lists [tree.length]; branch 0 is the trunk.
    places, targets: int lists [scored]: the inputs whose logits are computed, and their targets.
    owners: (key of a sequence, numbers of its entries in `places`).
  """

  inputs: list[int]
  positions: list[int]
  branches: list[int]
  places: list[int]
  targets: list[int]
  owners: list[tuple]


@dataclasses.dataclass
class _Tree:
  """Leaves behind the inputs that all of them begin with.

  Attributes:
    leaves: sorted.
    trunk: number of the common inputs.
  """

  leaves: list[_Leaf]
  trunk: int

  @functools.cached_property
  def length(self) -> int:
    """Decoder inputs: the trunk once, and what follows it in each leaf."""
    return _tokens(self.leaves, self.trunk)

  @functools.cached_property
  def places(self) -> int:
    """Logits to compute."""
    return len(self.layout().places)

  def layout(self) -> _Layout:
    """Lays out trunk and branches; a scored token that leaves share is scored once.

    leaves 1 5 6 with targets 7, 8 and 1 5 9 with target 4, scored from the input 5 and 6:
    inputs 1 5 | 6 | 9   branches 0 0 | 1 | 2   positions 0 1 | 2 | 2
    places 1 2 2 1 3     targets 6 7 8 9 4
    """
    inputs = list(self.leaves[0].inputs[: self.trunk])
    positions, branches = list(range(self.trunk)), [0] * self.trunk
    slots: dict[tuple[int, int], int] = {}
    owners = []
    for number, leaf in enumerate(self.leaves, start=1):
      shift = len(inputs) - self.trunk
      own = leaf.inputs[self.trunk :]
      inputs += own
      positions += range(self.trunk, len(leaf.inputs))
      branches += [number] * len(own)
      for (first, last), keys in leaf.scored.items():
        numbers = [
          slots.setdefault((i if i < self.trunk else i + shift, target), len(slots))
          for i, target in leaf.targets(first, last)
        ]
        owners += [(key, numbers) for key in keys]
    places = [place for place, _ in slots]
    return _Layout(inputs, positions, branches, places, [target for _, target in slots], owners)


def _tokens(leaves: list[_Leaf], trunk: int) -> int:
  return sum(len(leaf.inputs) for leaf in leaves) - (len(leaves) - 1) * trunk


def _forest(leaves: list[_Leaf], length: int) -> list[_Tree]:
  """Joins neighbours in sorted leaves while that saves tokens and a tree fits in a row.

  A tree is at most `length` long, or twice its longest leaf.
  """
  trees: list[_Tree] = []
  group, trunk, tokens, longest = [], 0, 0, 0
  for leaf in leaves:
    own = len(leaf.inputs)
    if group:
      shared = min(trunk, _common(group[-1].inputs, leaf.inputs))
      joined = tokens + len(group) * trunk - trunk + own - len(group) * shared
      fits = joined <= max(length, 2 * longest, 2 * own)
      if fits and joined + SAVED <= tokens + own:
        group.append(leaf)
        trunk, tokens, longest = shared, joined, max(longest, own)
        continue
      trees.append(_Tree(group, trunk))
    group, trunk, tokens, longest = [leaf], own, own, own
  return [*trees, _Tree(group, trunk)] if group else trees


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
  """Length of the common beginning, by bisection: slices compare fast."""
  low, high = 0, min(len(a), len(b))
  while low < high:
    middle = (low + high + 1) // 2
    low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
  return low


def _score(
  model,
  params,
  partition: Partitioner,
  trees: list[_Tree],
  length: int,
  rows: int,
  most_logits: int | None = None,
  with_greedy: bool = False,
):
  """Computes trees packed into rows.

  Yields:
    (key of a sequence, its loss, whether all its tokens are the most likely ones; False without
    `with_greedy`).
  """
  if not trees:
    return
  width, contents = _shape(np.array([tree.length for tree in trees]), length)
  contents = [[trees[i] for i in row] for row in contents]
  most = max(sum(tree.places for tree in row) for row in contents)
  places = -(-most // 16) * 16  # logits computed in each row
  rows = max(1, min(rows * length // width, len(contents)))
  vocabulary = getattr(getattr(model, 'config', None), 'vocab_size', None)
  if most_logits and vocabulary:
    rows = max(1, min(rows, most_logits // (places * vocabulary)))
  rows = _full_batch(rows, partition)
  scores_fn = _tree_scores(model, partition.replicated, with_greedy)

  @functools.lru_cache(maxsize=2)
  def layouts(step: int) -> list[list[_Layout]]:
    return [[tree.layout() for tree in row] for row in contents[step * rows : (step + 1) * rows]]

  def make(step, selected):
    batch = {
      name: np.zeros((rows, width), np.int32)
      for name in ('inputs', 'segments', 'positions', 'branches')
    }
    batch |= {name: np.zeros((rows, places), np.int32) for name in ('places', 'targets')}
    for i, row in enumerate(layouts(step)):
      start = scored = 0
      for segment, layout in enumerate(row, start=1):
        part = (i, slice(start, start + len(layout.inputs)))
        for name in ('inputs', 'positions', 'branches'):
          batch[name][part] = getattr(layout, name)
        batch['segments'][part] = segment
        part = (i, slice(scored, scored + len(layout.places)))
        batch['places'][part] = np.add(layout.places, start)
        batch['targets'][part] = layout.targets
        start, scored = start + len(layout.inputs), scored + len(layout.places)
    return {name: values[selected] for name, values in batch.items()}

  for step in range(-(-len(contents) // rows)):
    interruption.check()
    batch = put_batch(make, step, (rows, width), partition.batch_sharding)
    losses_BM, greedy_BM = map(np.asarray, scores_fn(params, batch))
    for row, losses_M, greedy_M in zip(layouts(step), losses_BM.astype(np.float64), greedy_BM):
      start = 0
      for layout in row:
        for key, numbers in layout.owners:
          at = np.add(numbers, start)
          yield key, float(losses_M[at].sum()), bool(greedy_M[at].all())
        start += len(layout.places)


def _shape(lengths: np.ndarray, length: int) -> tuple[int, list[list[int]]]:
  """The width and the items of packed rows with the lowest cost, attention included.

  Attention over a row of n tokens costs about n / 2048 of the matrix products (58 M parameters on
  a CPU; less in larger models).
  """
  longest = int(lengths.max())
  widths = sorted(
    {
      -(-max(longest, int(wanted)) // 64) * 64
      for wanted in (longest, 1.25 * longest, 1.5 * longest, 2 * longest, length)
    }
  )
  shapes = [(width, packed_rows(lengths, width)) for width in widths]
  return min(shapes, key=lambda shape: shape[0] * len(shape[1]) * (1 + shape[0] / 2048))


@functools.lru_cache(maxsize=8)
def _tree_scores(model, replicated, with_greedy: bool):
  """A jitted (params, batch) -> losses f32 [B, M] and whether the target is the most likely token,
  bool [B, M], replicated.
  """

  def compute(params, batch):
    logits_BMV = model.apply(
      {'params': params},
      batch['inputs'],
      batch['inputs'],
      decoder_segment_ids=batch['segments'],
      decoder_positions=batch['positions'],
      decoder_branches=batch['branches'],
      decoder_logit_places=batch['places'],
      enable_dropout=False,
    )
    losses_BM = losses.token_losses(logits_BMV, batch['targets'])[0]
    if not with_greedy:
      return losses_BM, jnp.zeros(losses_BM.shape, bool)
    flat_NV = logits_BMV.reshape(-1, logits_BMV.shape[-1])
    best_BM = sampling.argmax(flat_NV).reshape(losses_BM.shape)
    return losses_BM, best_BM == batch['targets']

  return jax.jit(compute, out_shardings=replicated)
