"""Steps that must not count: losses that are no number, spikes, and the examples to blame for them."""

import statistics

import numpy as np

from crossin_jax.data.stream import BatchStream, put_batch
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.training.losses import weighted_losses

HISTORY = 50  # steps whose median a spike is measured against


class SpikeThreshold:
  """The loss above which a step is left out.

  The threshold of step n is made from the losses of steps n - 51 to n - 2, those known when n is
  dispatched; it is the same whether the run was resumed in between or not.

  Attributes:
    losses: [[step, mean loss]] of the last steps, saved with each checkpoint.
  """

  def __init__(self, factor: float | None, losses: list):
    if factor is not None and factor <= 1:
      raise ValueError(f'train.spike_factor = {factor} must be above 1')
    self._factor, self.losses = factor, [list(pair) for pair in losses]

  def add(self, step: int, values) -> None:
    """Notes one step's `StepMetrics`; steps that were left out do not count."""
    if self._factor is not None and not values.skipped:
      self.losses = [
        *self.losses[-HISTORY - 2 :],
        [step, float(values.sums.loss) / max(float(values.sums.weight), 1e-8)],
      ]

  def at(self, step: int) -> np.ndarray:
    """float32 []: infinity without a factor or before ten losses are known."""
    known = [loss for at, loss in self.losses if step - HISTORY - 2 < at <= step - 2]
    if self._factor is None or len(known) < 10:
      return np.float32(np.inf)
    return np.float32(self._factor * statistics.median(known))


def blame(model, params, partition: Partitioner, stream: BatchStream, step: int, values) -> str:
  """What went wrong in a step that was left out, and which examples did it, as words for the user.

  Args:
    model, params, partition: as in training, after the step.
    stream: where the batch came from.
    step: index of the batch.
    values: the step's `StepMetrics`, on the host.

  Returns:
    For instance "loss is not finite because of task alpaca.x2x..., row 17".
  """
  mean = float(values.sums.loss) / max(float(values.sums.weight), 1e-8)
  finite = np.isfinite(mean)
  what = 'the gradient is not finite' if finite else 'the loss is not finite'
  if finite and np.isfinite(values.gradient_norm):
    what = f'the loss spiked to {mean:.4g}'
  batch = put_batch(
    stream.batch, step, (stream.batch_size, stream.length), partition.batch_sharding
  )
  loss_BL = np.asarray(weighted_losses(model, partition.replicated)(params, batch))
  weights, segments = (
    stream.batch(step)[name] for name in ('decoder_loss_weights', 'decoder_segment_ids')
  )
  found = []
  for row, examples in enumerate(stream.examples(step)):
    for segment, (task, id_) in enumerate(examples, start=1):
      mine = segments[row] == segment
      total = loss_BL[row, mine].sum()
      found.append((total / max(weights[row, mine].sum(), 1e-8), task, id_))
  bad = [(task, id_) for loss, task, id_ in found if not np.isfinite(loss)]
  if bad:
    more = f' and {len(bad) - 5} more' if len(bad) > 5 else ''
    return (
      f'{what} because of ' + ', '.join(f'task {task}, row {id_}' for task, id_ in bad[:5]) + more
    )
  found.sort(key=lambda entry: -entry[0])
  worst = ', '.join(f'task {task}, row {id_} ({loss:.3g})' for loss, task, id_ in found[:3])
  return (
    f'{what}; no single example of the batch is to blame, the highest losses are those of {worst}'
  )
