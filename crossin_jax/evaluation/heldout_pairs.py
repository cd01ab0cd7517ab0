"""The figures of an objective on held-out preference pairs."""

from collections.abc import Sequence
import functools

import jax
import numpy as np

from crossin_jax.data import pair_layout, references
from crossin_jax.data.packing import packed_rows
from crossin_jax.data.prepared import PreparedMixture
from crossin_jax.data.stream import FEATURES, empty_rows, put_batch
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import attention_kernel
from crossin_jax.processes import interruption
from crossin_jax.training.metrics import TaskTable
from crossin_jax.training.objectives import PairObjective


class HeldoutPairs:
  """Loss, margin and what else an objective reports, on the pairs of a mixture.

  The reference is that of training: the model without its adapters, or log-probabilities that are
  stored beside the pairs.
  """

  def __init__(
    self,
    mixture: PreparedMixture,
    objective: PairObjective,
    reference: str | None,
    *,
    length: int,
    rows: int,
    examples_per_task: int,
  ):
    """Args:
      mixture: validation rows; rows that are no pairs are left out.
      objective: of the run.
      reference: digest of the model whose log-probabilities are read; None = they are not needed.
      length, rows: shape of the batches; longer pairs make longer rows.
      examples_per_task: maximum number of pairs per task.

    Raises:
      ObjectiveError: pairs that the objective cannot read.
      PreparedDataError: no log-probabilities are stored for `reference`.
    """
    objective.check(mixture, 0.0)
    self._mixture, self._objective, self._reference = mixture, objective, reference
    self._length, self._rows = length, rows
    self._pairs, self._logps = [], {}
    for number, task in enumerate(mixture.tasks):
      if task.split.has_pairs:
        most = min(task.examples, examples_per_task)
        self._pairs += [(number, index) for index in range(most)]
        if reference:
          self._logps[number] = references.read(task.split, reference)

  def figures(self) -> list[str]:
    """Names of the means over all pairs, and 'pairs'."""
    return ['pairs', 'loss', *self._objective.figures()]

  def __call__(
    self, model, params, partition: Partitioner
  ) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Means over all pairs with their number 'pairs', and means by language of the task; the same
    on every host.

    Args:
      model, params, partition: as in `sequence_losses`.
    """
    layout, width, lengths = self._shape(model)
    rows = -(-self._rows // partition.batch_ways) * partition.batch_ways
    contents = packed_rows(lengths, width)
    infos = [task.info for task in self._mixture.tasks]
    sums_fn = _sums_fn(model, self._objective, len(infos), partition.replicated)
    features = FEATURES | pair_layout.features(layout, bool(self._reference))

    def make(step, selected):
      batch = empty_rows(rows, width, features)
      for row, pairs in enumerate(contents[step * rows : (step + 1) * rows]):
        self._write(batch, row, [self._pairs[number] for number in pairs])
      return {name: values[selected] for name, values in batch.items()}

    totals: dict[str, np.ndarray] = {}
    for step in range(-(-len(contents) // rows)):
      interruption.check()
      batch = put_batch(make, step, (rows, width), partition.batch_sharding)
      for name, sums_T in sums_fn(params, batch).items():
        totals[name] = totals.get(name, 0.0) + np.asarray(sums_T, np.float64)
    line = TaskTable(infos).pairs({name: sums.tolist() for name, sums in totals.items()})
    means = line['preference']
    return means | {'pairs': int(means['pairs'])}, line['preference_by_language']

  def _shape(self, model) -> tuple[str, int, np.ndarray]:
    """The layout, tokens of a row, and columns of each pair: branches where attention has them."""
    splits = [task.split for task in self._mixture.tasks]
    tokens, prompts = (
      np.array([int(getattr(splits[task], name)[index]) for task, index in self._pairs])
      for name in ('lengths', 'prompt_lengths')
    )
    for layout in pair_layout.LAYOUTS:
      lengths = pair_layout.lengths(layout, tokens, prompts)
      width = max(self._length, int(lengths.max()))
      if layout == 'branches' and attention_kernel(model, width) is None:
        break
    return layout, width, lengths

  def _write(self, batch, row: int, pairs: Sequence[tuple[int, int]]) -> None:
    start, segment = 0, 1
    for task, index in pairs:
      split = self._mixture.tasks[task].split
      logps = self._logps[task][index] if self._reference else None
      start, segment = pair_layout.write(
        batch, row, start, segment, *split.example(index), split.branches(index),
        self._mixture.bos_id, task, logps,
      )  # fmt: skip


@functools.lru_cache(maxsize=8)
def _sums_fn(model, objective: PairObjective, tasks: int, replicated):
  """A jitted (params, batch) -> name -> float [tasks], sums over the pairs, replicated."""

  def compute(params, batch):
    sums = objective(model, params, batch, tasks)[1]
    return sums.pairs | {'loss': sums.loss_by_task}

  return jax.jit(compute, out_shardings=replicated)
