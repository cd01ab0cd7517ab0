"""Held-out loss of a prepared mixture, as an evaluator of the training loop."""

import functools

import gin

from crossin_jax.data import pair_layout
from crossin_jax.data.prepared import PreparedMixture, TaskSplit
from crossin_jax.decoding.scoring import sequence_losses


@gin.configurable
class HeldoutLoss:
  """Mean loss per trained token over the validation rows of a mixture; of pairs, over the chosen
  answers.

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
    """Stores the settings; the first call opens the mixture.

    Args:
      data_dir, mixture: output of `crossin prepare`.
      length, rows: shape of the packed batches.
      examples_per_task: maximum number of validation rows per task.
      name: prefix of the figures.
      by_pair: also report the loss of each mode and language pair, 'x2x en>vi'.
    """
    self._by_pair = by_pair
    self._open = functools.cache(lambda: PreparedMixture(data_dir, mixture, 'validation'))
    self._length, self._rows, self._most, self.name = length, rows, examples_per_task, name

  def figures(self) -> list[str]:
    """Names of the numbers, once the mixture is known to have what an evaluation needs.

    Raises:
      PreparedDataError: no validation rows.
      ValueError: one is longer than a row of the batch.
    """
    for task in self._open().tasks:
      longest = task.split.lengths[: min(task.examples, self._most)].max(initial=0)
      if longest > self._length:
        raise ValueError(
          f'HeldoutLoss.length = {self._length} is too short for the validation rows of task '
          f'{task.split.name}: one has {longest} tokens'
        )
    return [f'eval/{self.name}/loss']

  def __call__(self, model, params, partition):
    """Yields 'eval/NAME/loss' in nats per token and 'eval/NAME/loss_by_language'.

    With `by_pair` also '.../loss_by_pair'.
    """
    mixture = self._open()
    sequences, languages, pairs = [], [], []
    for task in mixture.tasks:
      info = task.info
      count = min(task.examples, self._most)
      sequences += [_sequence(task.split, index) for index in range(count)]
      languages += [info['target_language']] * count
      pairs += [f'{info["mode"]} {info["source_language"]}>{info["target_language"]}'] * count
    shape = {'length': self._length, 'rows': self._rows}
    losses = sequence_losses(model, params, partition, sequences, bos_id=mixture.bos_id, **shape)
    first = int(mixture.bos_id is None)  # without BOS nothing predicts the first token
    weights = [float(weights[first:].sum()) for _, weights in sequences]

    def means(groups: list[str]) -> dict[str, float]:
      result = {}
      for name in sorted(set(groups)):
        members = [i for i, group in enumerate(groups) if group == name]
        total = sum(losses[i] for i in members)
        result[name] = float(total / sum(weights[i] for i in members))
      return result

    yield f'eval/{self.name}/loss', float(losses.sum() / sum(weights))
    yield f'eval/{self.name}/loss_by_language', means(languages)
    if self._by_pair:
      yield f'eval/{self.name}/loss_by_pair', means(pairs)


def _sequence(split: TaskSplit, index: int):
  """Tokens and loss weights of a row, or of the prompt and the chosen answer of a pair."""
  example = split.example(index)
  return pair_layout.sequences(*example, split.branches(index))[1] if split.has_pairs else example
