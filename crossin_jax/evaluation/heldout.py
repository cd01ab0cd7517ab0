"""Held-out loss of a prepared mixture, as an evaluator of the training loop."""

import copy
import functools

import gin

from crossin_jax.data import pair_layout
from crossin_jax.data.prepared import PreparedMixture, TaskSplit
from crossin_jax.decoding.scoring import sequence_losses
from crossin_jax.evaluation.heldout_pairs import HeldoutPairs
from crossin_jax.training.objectives import PairObjective


@gin.configurable
class HeldoutLoss:
  """Mean loss per trained token over the validation rows of a mixture; of pairs, over the chosen
  answers.

  In a run with an objective of preference pairs, also its figures on the validation pairs.

  Attributes:
    name: prefix of the figures.
    before_training: the training loop calls it before the first step too.
  """

  before_training = True

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
    self._of_pairs = lambda: None

  def for_objective(self, objective, reference: str | None) -> 'HeldoutLoss':
    """This evaluator in a run with an objective; the training loop calls it.

    Args:
      objective: of `training.objectives`.
      reference: digest of the model whose log-probabilities are stored; None = none is needed.
    """
    own = copy.copy(self)

    @functools.cache
    def of_pairs() -> HeldoutPairs | None:
      if not isinstance(objective, PairObjective) or not self._open().has_pairs:
        return None
      return HeldoutPairs(
        self._open(), objective, reference, length=self._length, rows=self._rows,
        examples_per_task=self._most,
      )  # fmt: skip

    own._of_pairs = of_pairs
    return own

  def figures(self) -> list[str]:
    """Names of the numbers, once the mixture is known to have what an evaluation needs.

    Raises:
      PreparedDataError: no validation rows, or no stored reference of their pairs.
      ObjectiveError: pairs that the objective of the run cannot read.
      ValueError: a row is longer than a row of the batch.
    """
    for task in self._open().tasks:
      longest = task.split.lengths[: min(task.examples, self._most)].max(initial=0)
      if longest > self._length:
        raise ValueError(
          f'HeldoutLoss.length = {self._length} is too short for the validation rows of task '
          f'{task.split.name}: one has {longest} tokens'
        )
    of_pairs = self._of_pairs()
    names = [f'preference/{name}' for name in of_pairs.figures()] if of_pairs else []
    return [f'eval/{self.name}/{name}' for name in ('loss', *names)]

  def __call__(self, model, params, partition):
    """Yields 'eval/NAME/loss' in nats per token and 'eval/NAME/loss_by_language'.

    With `by_pair` also '.../loss_by_pair'. With an objective of pairs also
    'eval/NAME/preference/margin' and what else a line of training has in 'preference', 'loss' being
    that of the objective over the pairs, and 'eval/NAME/preference_by_language'.
    """
    mixture = self._open()
    sequences, languages, pairs = [], [], []
    for task in mixture.tasks:
      own = [
        one for i in range(min(task.examples, self._most)) for one in _sequences(task.split, i)
      ]
      source, target = (task.info[f'{side}_language'] for side in ('source', 'target'))
      sequences += [sequence for _, sequence in own]
      # The first half of a question in two languages is in the first of them.
      languages += [source if is_first else target for is_first, _ in own]
      pairs += [f'{task.info["mode"]} {source}>{target}'] * len(own)
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
    if of_pairs := self._of_pairs():
      overall, by_language = of_pairs(model, params, partition)
      for name, value in overall.items():
        yield f'eval/{self.name}/preference/{name}', value
      yield f'eval/{self.name}/preference_by_language', by_language


def _sequences(split: TaskSplit, index: int) -> list:
  """A row, or the prompts of a pair with their chosen answers: [(whether another half follows,
  (tokens, loss weights))].
  """
  example = split.example(index)
  if not split.has_pairs:
    return [(False, example)]
  chosen = pair_layout.sequences(*example, split.branches(index))
  return [(number + 2 in chosen, chosen[number]) for number in (1, 3) if number in chosen]
