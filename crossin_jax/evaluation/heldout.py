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
    by_pair: bool = False,
  ):
    """Args:
    data_dir, mixture: what `crossin prepare` wrote.
    length, rows: shape of the packed batches.
    examples_per_task: most validation rows of each task.
    name: prefix of the figures.
    by_pair: also the loss of each mode and pair of languages, 'x2x en>vi'; a figure for each of
      them in every line.
    """
    self._by_pair = by_pair
    self._open = functools.cache(lambda: PreparedMixture(data_dir, mixture, 'validation'))
    self._length, self._rows, self._most, self.name = length, rows, examples_per_task, name

  def __call__(self, model, params, partition):
    """Yields ('eval/NAME/loss', nats per token), ('eval/NAME/loss_by_language', {language: loss})
    and perhaps '.../loss_by_pair'.
    """
    mixture = self._open()
    sequences, languages, pairs = [], [], []
    for task in mixture.tasks:
      info = task.info
      for index in range(min(task.examples, self._most)):
        sequences.append(task.split.example(index))
        languages.append(info['target_language'])
        pairs.append(f'{info["mode"]} {info["source_language"]}>{info["target_language"]}')
    losses = sequence_losses(
      model,
      params,
      partition,
      sequences,
      bos_id=mixture.bos_id,
      length=self._length,
      rows=self._rows,
    )
    weights = [float(weights.sum()) for _, weights in sequences]

    def means(groups: list[str]) -> dict[str, float]:
      found = {}
      for group in sorted(set(groups)):
        mine = [i for i, one in enumerate(groups) if one == group]
        found[group] = float(sum(losses[i] for i in mine) / sum(weights[i] for i in mine))
      return found

    yield f'eval/{self.name}/loss', float(losses.sum() / sum(weights))
    yield f'eval/{self.name}/loss_by_language', means(languages)
    if self._by_pair:
      yield f'eval/{self.name}/loss_by_pair', means(pairs)
