"""T5X's Trainer with this project's loss: one numerator over one denominator."""

from collections.abc import Callable
import functools
import types

import gin
import jax
import jax.numpy as jnp

from crossin_jax.t5x_bridge.data import StreamIterator
from crossin_jax.training import optimizers


@gin.configurable
def t5x_trainer(
  *,
  optimizer: Callable[..., optimizers.Optimizer],
  total_steps: int,
  num_microbatches: int | None = None,
  **given,
):
  """A `t5x.trainer.Trainer`.

  Args:
    optimizer, total_steps: as of the model; the logged learning rate is that of its schedule.
    num_microbatches: the batch is cut into this many; changes memory, not results.
    **given: what `t5x.train` gives its trainer_cls.
  """
  rate = optimizer(total_steps=total_steps).schedule
  return _trainer_class()(learning_rate_fn=rate, num_microbatches=num_microbatches, **given)


@functools.cache
def _trainer_class():
  from t5x import trainer

  class CrossInTrainer(trainer.Trainer):
    """See `t5x_trainer`."""

    _sought = False

    def train(self, batch_iter, num_steps, start_step=None):
      """As in T5X; before the first step the stream is set to that step, even after a peek."""
      if not self._sought:
        self._sought = True
        seek(batch_iter, int(self.train_state.step if start_step is None else start_step))
      return super().train(batch_iter, num_steps, start_step)

    @functools.cached_property
    def _partitioned_train_step(self):
      def train_step(train_state, batch):
        # T5X adds the gradients of microbatches, which is correct for sums of losses, not means.
        summed = types.SimpleNamespace(loss_fn=self._model.summed_loss_fn)
        gradients, metrics, _ = trainer.accumulate_grads_microbatched(
          summed,
          train_state,
          batch,
          self._get_step_rng(train_state.step),
          self._num_microbatches,
          self._partitioner.data_partition_spec,
        )
        weight = jnp.maximum(batch['decoder_loss_weights'].sum(), 1e-8)
        gradients = jax.tree.map(lambda g: g / weight.astype(g.dtype), gradients)
        rate = self._learning_rate_fn(train_state.step)
        return trainer.apply_grads(
          train_state, gradients, metrics, rate, self._weight_metrics_computer
        )

      return self._partitioner.partition(
        train_step,
        in_axis_resources=(self._train_state_axes, self._partitioner.data_partition_spec),
        out_axis_resources=(self._train_state_axes, None),
        donate_argnums=(0,),
      )

  return CrossInTrainer


def seek(batch_iter, step: int) -> None:
  """Sets the StreamIterator beneath T5X's iterators, if there is one, to the batch of a step."""
  inner = batch_iter
  while inner is not None and not isinstance(inner, StreamIterator):
    inner = getattr(inner, '_it', None) or getattr(inner, '_iterator', None)
  if inner is not None:
    batch_iter.reset()  # forgets the batch that was peeked at
    inner.seek(step)
