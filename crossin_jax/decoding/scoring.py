"""Log-likelihood of given sequences: packed, or as continuations that share a prefix."""

from collections.abc import Iterator, Sequence
import dataclasses
import functools

import jax
import numpy as np

from crossin_jax.data.packing import first_fit
from crossin_jax.data.stream import empty_rows, put_batch, write_segment
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.processes import interruption
from crossin_jax.training import losses
from crossin_jax.training.losses import weighted_losses


def sequence_losses(
  model, params, partition: Partitioner, sequences, *, bos_id: int, length: int = 512,
  rows: int = 32,
) -> np.ndarray:  # fmt: skip
  """Sum of weighted token losses of each sequence, in nats: the negative log-likelihood.

  Args:
    model: has the call interface of `Decoder`.
    params: its parameters, on the mesh of `partition`.
    partition: mesh; `partition.activate()` must be in force.
    sequences: list of (tokens int [n], weights float [n]), without BOS.
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
  rows = _full_batch(rows, partition)
  contents = _bins(lengths, length)
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


def _bins(lengths: np.ndarray, length: int) -> list[list[int]]:
  """Items of each packed row."""
  # Longest first packs tightest; the order of the items has no effect on the results.
  order = np.argsort(-lengths, kind='stable')
  bins = first_fit(lengths[order], length, np.full(len(lengths), length))
  contents = [[] for _ in range(bins.max() + 1)]
  for item, bin_ in zip(order, bins):
    contents[bin_].append(int(item))
  return contents


def continuation_losses(
  model, params, partition: Partitioner, prefixes, continuations, *, bos_id: int,
  length: int = 512, rows: int = 32,
) -> list[np.ndarray]:  # fmt: skip
  """Sum of token losses of each continuation of each prefix, in nats: the negative log-likelihood.

  Each prefix is computed once. Its continuations follow it in the same row as branches that do not
  attend to each other; only their tokens get logits. Equal prefixes are merged.

  Args:
    model, params, partition: as in `sequence_losses`; the model takes `decoder_branches` and
      `decoder_logit_places`.
    prefixes: list of token lists, without BOS.
    continuations: for each prefix a list of token lists, none of them empty.
    bos_id: first decoder input.
    length, rows: approximate size of a batch. Longer items get longer and fewer rows.

  Returns:
    float64 [continuations] for each prefix, the same on every host.

  Raises:
    ValueError: an empty continuation.
  """
  for i, options in enumerate(continuations):
    if not all(len(option) for option in options):
      raise ValueError(f'prefix {i} has an empty continuation; it has no tokens to score')
  unique: dict[tuple[int, ...], list[tuple[int, int]]] = {}
  for i, prefix in enumerate(prefixes):
    unique.setdefault(tuple(prefix), []).extend((i, j) for j in range(len(continuations[i])))
  trees = [
    tree
    for prefix, owners in unique.items()
    for tree in _trees(prefix, [continuations[i][j] for i, j in owners], owners, length)
  ]
  results = [np.zeros(len(options)) for options in continuations]
  for (i, j), losses_T in _score(model, params, partition, trees, bos_id, length, rows):
    results[i][j] = losses_T.sum()
  return results


@dataclasses.dataclass
class _Tree:
  """A prefix with its continuations.

  Attributes:
    prefix: tokens, without BOS.
    branches: tokens of each continuation.
    owners: key of each continuation.
  """

  prefix: Sequence[int]
  branches: list
  owners: list

  @property
  def length(self) -> int:
    """Decoder inputs: BOS, the prefix without its last token, and that token before each branch."""
    return len(self.prefix) + self.branch_tokens

  @property
  def branch_tokens(self) -> int:
    return sum(map(len, self.branches))

  def parts(self, bos_id: int) -> Iterator[tuple[int, int, list]]:
    """(branch number, first position, decoder inputs) of the trunk, which is branch 0, and of each
    branch.
    """
    *trunk, last = [bos_id, *self.prefix]
    yield 0, 0, trunk
    for number, branch in enumerate(self.branches, start=1):
      yield number, len(trunk), [last, *branch[:-1]]


def _trees(prefix, branches: list, owners: list, length: int) -> Iterator[_Tree]:
  """One tree, or several if the continuations of a prefix do not fit in a row."""
  tree = _Tree(prefix, [], [])
  for branch, owner in zip(branches, owners):
    if tree.branches and tree.length + len(branch) > length:
      yield tree
      tree = _Tree(prefix, [], [])
    tree.branches.append(branch)
    tree.owners.append(owner)
  if tree.branches:
    yield tree


def _score(
  model, params, partition: Partitioner, trees: list[_Tree], bos_id: int, length: int, rows: int
):
  """Computes the losses of trees packed into rows.

      prefix 5 6, branches 7 8 and 9:  inputs     BOS 5 | 6 7 | 6      targets  7 8 9
                                       branches    0  0 | 1 1 | 2
                                       positions   0  1 | 2 3 | 2

  Yields:
    (owner, float64 losses of the branch's tokens).
  """
  if not trees:
    return
  width, contents = _shape(np.array([tree.length for tree in trees]), length)
  contents = [[trees[i] for i in row] for row in contents]
  rows = _full_batch(max(1, min(rows * length // width, len(contents))), partition)
  most = max(sum(tree.branch_tokens for tree in row) for row in contents)
  places = -(-most // 16) * 16  # logits computed in each row
  losses_fn = _tree_losses(model, partition.replicated)

  def make(step, selected):
    batch = {
      name: np.zeros((rows, width), np.int32)
      for name in ('inputs', 'segments', 'positions', 'branches')
    }
    batch |= {name: np.zeros((rows, places), np.int32) for name in ('places', 'targets')}
    for i, row in enumerate(contents[step * rows : (step + 1) * rows]):
      start = scored = 0
      for segment, tree in enumerate(row, start=1):
        for number, first, inputs in tree.parts(bos_id):
          count = len(inputs)
          part = (i, slice(start, start + count))
          batch['inputs'][part] = inputs
          batch['segments'][part] = segment
          batch['branches'][part] = number
          batch['positions'][part] = np.arange(first, first + count)
          if number:
            part = (i, slice(scored, scored + count))
            batch['places'][part] = np.arange(start, start + count)
            batch['targets'][part] = tree.branches[number - 1]
            scored += count
          start += count
    return {name: values[selected] for name, values in batch.items()}

  for row, losses_M in _batches(make, losses_fn, params, partition, contents, rows, width):
    start = 0
    for tree in row:
      for owner, branch in zip(tree.owners, tree.branches):
        yield owner, losses_M[start : start + len(branch)]
        start += len(branch)


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
  shapes = [(width, _bins(lengths, width)) for width in widths]
  return min(shapes, key=lambda shape: shape[0] * len(shape[1]) * (1 + shape[0] / 2048))


@functools.lru_cache(maxsize=8)
def _tree_losses(model, replicated):
  """A jitted (params, batch) -> losses [B, M], replicated."""

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
    return losses.token_losses(logits_BMV, batch['targets'])[0]

  return jax.jit(compute, out_shardings=replicated)
