"""Held-out loss of a prepared mixture, as an evaluator of the training loop."""

import functools

import gin

from crossin_jax.data.prepared import PreparedMixture
from crossin_jax.decoding.scoring import sequence_losses


@gin.configurable
class HeldoutLoss:
  """Mean loss per trained token over the validation rows of a mixture.

  Attributes:
    name: prefix of the figures.
  """

  def __init__(
    self,
    data_dir: str = gin.REQUIRED,
    mixture: str = gin.REQUIRED,
    length: int = 2048,
    rows: int = 8,
    examples_per_task: int = 200,
    name: str = 'heldout',
  ):
    """Args:
    data_dir, mixture: what `crossin prepare` wrote.
    length, rows: shape of the packed batches.
    examples_per_task: most validation rows of each task.
    name: prefix of the figures.
    """
    self._open = functools.cache(lambda: PreparedMixture(data_dir, mixture, 'validation'))
    self._length, self._rows, self._most, self.name = length, rows, examples_per_task, name

  def __call__(self, model, params, partition):
    """Yields ('eval/NAME/loss', nats per token) and ('eval/NAME/loss_by_language', {language: loss})."""
    mixture = self._open()
    sequences, languages = [], []
    for task in mixture.tasks:
      for index in range(min(task.examples, self._most)):
        sequences.append(task.split.example(index))
        languages.append(task.info['target_language'])
    losses = sequence_losses(
      model, params, partition, sequences, bos_id=mixture.bos_id, length=self._length, rows=self._rows
    )
    weights = [float(weights.sum()) for _, weights in sequences]
    yield f'eval/{self.name}/loss', float(losses.sum() / sum(weights))
    by_language = {}
    for language in sorted(set(languages)):
      mine = [i for i, l in enumerate(languages) if l == language]
      by_language[language] = float(sum(losses[i] for i in mine) / sum(weights[i] for i in mine))
    yield f'eval/{self.name}/loss_by_language', by_language
