"""Log-likelihood of given sequences: packed, or continuations as branches of prefixes that are read
once.
"""

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
  model,
  params,
  partition: Partitioner,
  sequences,
  *,
  bos_id: int,
  length: int = 512,
  rows: int = 32,
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


def _bins(lengths: np.ndarray, length: int) -> list[list[int]]:
  """Items of each packed row."""
  # Longest first packs tightest, and nothing here depends on order.
  order = np.argsort(-lengths, kind='stable')
  bins = first_fit(lengths[order], length, np.full(len(lengths), length))
  contents = [[] for _ in range(bins.max() + 1)]
  for item, bin_ in zip(order, bins):
    contents[bin_].append(int(item))
  return contents


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
) -> list[np.ndarray]:
  """Sum of token losses of each continuation of each prefix, in nats; its negative is the
  log-likelihood.

  A prefix is read once: its continuations stand behind it in one row as branches that do not see
  each other, and logits are computed for their tokens only. Equal prefixes are one.

  Args:
    model, params, partition: as in `sequence_losses`; the model takes `decoder_branches` and
      `decoder_logit_places`.
    prefixes: list of token lists, without BOS.
    continuations: for each prefix a list of token lists, none of them empty.
    bos_id: first decoder input.
    length, rows: about so many tokens in a packed row, and rows of a batch. Longer ones get longer
      rows and fewer of them.

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
  trees = [
    tree
    for prefix, owners in unique.items()
    for tree in _trees(prefix, [continuations[i][j] for i, j in owners], owners, length)
  ]
  results = [np.zeros(len(options)) for options in continuations]
  for (i, j), losses_T in _read(model, params, partition, trees, bos_id, length, rows):
    results[i][j] = losses_T.sum()
  return results


@dataclasses.dataclass
class _Tree:
  """A prefix with its continuations.

  Attributes:
    prefix: tokens, without BOS.
    branches: tokens of each continuation.
    owners: what each of them is called.
  """

  prefix: Sequence[int]
  branches: list
  owners: list

  @property
  def length(self) -> int:
    """Decoder inputs: BOS and prefix but for its last token, which begins every branch."""
    return len(self.prefix) + sum(map(len, self.branches))


def _trees(prefix, branches: list, owners: list, length: int) -> Iterator[_Tree]:
  """One tree, or several where the continuations of a prefix make more than a row."""
  tree = _Tree(prefix, [], [])
  for branch, owner in zip(branches, owners):
    if tree.branches and tree.length + len(branch) > length:
      yield tree
      tree = _Tree(prefix, [], [])
    tree.branches.append(branch)
    tree.owners.append(owner)
  if tree.branches:
    yield tree


def _read(
  model, params, partition: Partitioner, trees: list[_Tree], bos_id: int, length: int, rows: int
):
  """Reads trees packed into rows.

      prefix 5 6, branches 7 8 and 9:  inputs     BOS 5 | 6 7 | 6      targets  7 8 9
                                       branches    0  0 | 1 1 | 2
                                       positions   0  1 | 2 3 | 2

  Args:
    model, params, partition, bos_id, length, rows: as in `continuation_losses`.
    trees: what is read.

  Yields:
    (owner, float64 losses of the branch's tokens).
  """
  if not trees:
    return
  lengths = np.array([tree.length for tree in trees])
  width, contents = _shape(lengths, length)
  rows = max(1, min(rows * length // width, len(contents)))
  rows = -(-rows // partition.batch_ways) * partition.batch_ways
  wanted = [sum(len(branch) for tree in row for branch in trees[tree].branches) for row in contents]
  places = -(-max(wanted) // 16) * 16  # of logits in a row
  losses_fn = _tree_losses(model, partition.replicated)
  names = ('inputs', 'segments', 'positions', 'branches')

  def make(step, selected):
    batch = {name: np.zeros((rows, width), np.int32) for name in names}
    batch |= {name: np.zeros((rows, places), np.int32) for name in ('places', 'targets')}
    for i, row in enumerate(contents[step * rows : (step + 1) * rows]):
      start = asked = 0
      for segment, tree in enumerate((trees[t] for t in row), start=1):
        read = [bos_id, *tree.prefix]
        trunk = len(tree.prefix)
        parts = [(read[:-1], 0, 0)]
        parts += [
          ([read[-1], *branch[:-1]], number, trunk)
          for number, branch in enumerate(tree.branches, start=1)
        ]
        for inputs, number, first in parts:
          stop = start + len(inputs)
          batch['inputs'][i, start:stop] = inputs
          batch['segments'][i, start:stop] = segment
          batch['branches'][i, start:stop] = number
          batch['positions'][i, start:stop] = np.arange(first, first + len(inputs))
          if number:
            batch['places'][i, asked : asked + len(inputs)] = np.arange(start, stop)
            batch['targets'][i, asked : asked + len(inputs)] = tree.branches[number - 1]
            asked += len(inputs)
          start = stop
    return {name: values[selected] for name, values in batch.items()}

  for step in range(-(-len(contents) // rows)):
    interruption.check()
    batch = put_batch(make, step, (rows, width), partition.batch_sharding)
    losses_BM = np.asarray(losses_fn(params, batch), np.float64)
    for i, row in enumerate(contents[step * rows : (step + 1) * rows]):
      asked = 0
      for tree in row:
        for owner, branch in zip(trees[tree].owners, trees[tree].branches):
          yield owner, losses_BM[i, asked : asked + len(branch)]
          asked += len(branch)


def _shape(lengths: np.ndarray, length: int) -> tuple[int, list[list[int]]]:
  """Width of the packed rows and what stands in each: the one that wastes least, attention counted.

  Attention over a row of n tokens costs about n / 2048 of what the matrices cost (58 M parameters
  on a CPU; less in larger models).
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
  """A jitted (params, batch) -> losses [B, M], whole on every device."""

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
