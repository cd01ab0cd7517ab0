"""Non-finite losses and gradients, loss spikes, and the examples that cause them."""

import statistics

import numpy as np

from crossin_jax.data.stream import BatchStream, put_batch
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.training.losses import weighted_losses

HISTORY = 50  # steps whose median a spike is measured against


class SpikeThreshold:
  """The loss above which a step is skipped.

  The threshold of step n uses the losses of steps n - 51 to n - 2, which are known when n is
  dispatched. It does not depend on where the run was resumed.

  Attributes:
    losses: [[step, mean loss]] of the last steps, saved with each checkpoint.
  """

  def __init__(self, factor: float | None, losses: list):
    if factor is not None and factor <= 1:
      raise ValueError(f'train.spike_factor = {factor} must be above 1')
    self._factor, self.losses = factor, [list(pair) for pair in losses]

  def add(self, step: int, values) -> None:
    """Adds one step's `StepMetrics`; skipped steps do not count."""
    if self._factor is not None and not values.skipped:
      self.losses = [
        *self.losses[-HISTORY - 2 :],
        [step, float(values.sums.loss) / max(float(values.sums.weight), 1e-8)],
      ]

  def at(self, step: int) -> np.ndarray:
    """The threshold of a step, float32 []; infinity without a factor or with under ten losses."""
    known = [loss for at, loss in self.losses if step - HISTORY - 2 < at <= step - 2]
    if self._factor is None or len(known) < 10:
      return np.float32(np.inf)
    return np.float32(self._factor * statistics.median(known))


def blame(model, params, partition: Partitioner, stream: BatchStream, step: int, values) -> str:
  """Describes what went wrong in a skipped step, and which examples caused it.

  Args:
    model, params, partition: as in training, after the step.
    stream: where the batch came from.
    step: index of the batch.
    values: the step's `StepMetrics`, on the host.

  Returns:
    A text, for instance "loss is not finite because of task alpaca.x2x..., row 17".
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
  losses = []
  for row, examples in enumerate(stream.segments(step)):
    for segment, (task, id_) in enumerate(examples, start=1):
      tokens = segments[row] == segment
      total = loss_BL[row, tokens].sum()
      losses.append((total / max(weights[row, tokens].sum(), 1e-8), task, id_))
  # A pair may have several segments.
  bad = list(dict.fromkeys((task, id_) for loss, task, id_ in losses if not np.isfinite(loss)))
  if bad:
    more = f' and {len(bad) - 5} more' if len(bad) > 5 else ''
    return (
      f'{what} because of ' + ', '.join(f'task {task}, row {id_}' for task, id_ in bad[:5]) + more
    )
  losses.sort(key=lambda entry: -entry[0])
  worst = ', '.join(f'task {task}, row {id_} ({loss:.3g})' for loss, task, id_ in losses[:3])
  return f'{what}; no single example of the batch causes it, the highest losses are {worst}'
