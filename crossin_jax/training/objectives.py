"""What a run minimises: the likelihood of rows, or an objective of preference pairs.

Every objective is one numerator over one denominator, summed over microbatches, devices and hosts:
for the likelihood the loss weights of tokens, for pairs the number of pairs and of rows beside
them.

Letters: B batch, L length, P places for pairs in a row, T tasks of the mixture.
"""

import dataclasses
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np

from crossin_jax.data import pair_layout
from crossin_jax.data.prepared import PreparedMixture
from crossin_jax.errors import CrossinError
from crossin_jax.models import lora
from crossin_jax.training import losses
from crossin_jax.training.losses import LossSums
from crossin_jax.training.pair_sums import (
  Answers,
  answers_of,
  means_of_rows,
  stored_answers,
  tasks_at,
)

KINDS = ('dpo', 'ipo', 'orpo')
_LANGUAGES = ('no language', 'one language', 'two languages')  # by halves


class ObjectiveError(CrossinError, ValueError):
  """An objective that does not fit the data or the model; the message has the remedy."""


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Likelihood:
  """Cross-entropy of the response, per token: the objective of instruction tuning."""

  def check(self, mixture: PreparedMixture, z_loss: float) -> None:
    """Raises ObjectiveError if the mixture has preference pairs."""
    del z_loss
    if pairs := [task.split.name for task in mixture.tasks if task.split.has_pairs]:
      raise ObjectiveError(
        f'task {pairs[0]} of mixture {mixture.name} has preference pairs, which the likelihood '
        'cannot read: set train.objective = @Preference() or @DirectConsistency()'
      )

  def stored_reference(self, model, source) -> None:
    """Needs none."""

  def features(self, model, layout: str) -> dict[str, type]:
    """Has none of its own."""
    return {}

  def has_second_pass(self, model) -> bool:
    """Has none."""
    return False

  def __call__(
    self, model, params, batch, tasks: int, z_loss: float = 0.0, dropout_key=None
  ) -> tuple[jax.Array, LossSums]:
    """See `losses.batch_loss`."""
    return losses.batch_loss(model, params, batch, tasks, z_loss, dropout_key)


LIKELIHOOD = Likelihood()


class PairObjective:
  """What the objectives of preference pairs share.

  A row without a pair counts as one pair does: with its mean token loss.

  Attributes:
    has_reference: whether log-probabilities of a reference model are needed.
    halves: of each pair: 2 = the same question in two languages.
  """

  has_reference = True
  halves = 1

  def check(self, mixture: PreparedMixture, z_loss: float) -> None:
    """Raises ObjectiveError for a mixture or settings that do not fit."""
    name = type(self).__name__
    if z_loss:
      raise ObjectiveError(f'train.z_loss = {z_loss} has no meaning with @{name}(): set 0')
    if not mixture.has_pairs:
      raise ObjectiveError(
        f'mixture {mixture.name} has no preference pairs, which train.objective = @{name}() needs: '
        'prepare a mixture with pairs (`crossin pairs` makes them), or set @Likelihood()'
      )
    for task in mixture.tasks:
      halves = task.split.halves[: task.examples]
      if task.split.has_pairs and (halves != self.halves).any():
        row = int(np.flatnonzero(halves != self.halves)[0])
        raise ObjectiveError(
          f'task {task.split.name}, row {task.split.id(row)} has its question in '
          f'{_LANGUAGES[halves[row]]}, and @{name}() needs {_LANGUAGES[self.halves]}: the rows of '
          '`crossin pairs --by options` are for @DirectConsistency(), others for @Preference(). '
          'Set the other objective, or prepare a mixture without such rows'
        )

  def stored_reference(self, model, source) -> str | None:
    """Digest of the model whose stored log-probabilities a run needs; None = it needs none.

    Args:
      model: of the run; with adapters the reference is the model without them.
      source: the `SavedModel` that the run starts from, or None.

    Raises:
      ObjectiveError: the run starts from no checkpoint.
    """
    if not self.has_reference:
      return None
    if source is None:
      raise ObjectiveError(
        f'the reference of @{type(self).__name__}() is the model that the run starts from: set '
        'train.initial_checkpoint (INITIAL_CHECKPOINT_PATH)'
      )
    return None if self.has_second_pass(model) and not source.has_adapters else source.digest

  def features(self, model, layout: str) -> dict[str, type]:
    """Names and dtypes of what a batch has for this objective beside `stream.FEATURES`."""
    return pair_layout.features(layout, self.has_reference and not self.has_second_pass(model))

  def has_second_pass(self, model) -> bool:
    """Whether a step computes the reference itself: the model without its adapters."""
    adapters = lora.of_model(model)
    return self.has_reference and adapters is not None and not adapters.train_embeddings

  def figures(self) -> list[str]:
    """Names of what is reported of pairs beside their number and loss."""
    one = jax.ShapeDtypeStruct((1, 1, pair_layout.ANSWERS), jnp.float32)
    answers = Answers(one, one)
    *_, figures = jax.eval_shape(self.of_pairs, answers, answers if self.has_reference else None)
    return list(figures)

  def __call__(
    self, model, params, batch, tasks: int, z_loss: float = 0.0, dropout_key=None
  ) -> tuple[jax.Array, LossSums]:
    """As `losses.batch_loss`: the sum to differentiate, and the sums, whose weight is the number of
    pairs and rows.
    """
    del z_loss  # see `check`
    loss_BL, _, of_router = losses.cross_entropy(model, params, batch, dropout_key)
    policy = answers_of(batch, loss_BL)
    reference = self._reference(model, params, batch, policy) if self.has_reference else None
    loss_BP, exists_BP, figures = self.of_pairs(policy, reference)
    row_loss_BP, row_exists_BP = means_of_rows(batch, loss_BL)
    pair_tasks_BP = tasks_at(batch, 'decoder_pair_ids')
    row_tasks_BP = tasks_at(batch, 'decoder_segment_ids')

    def by_task(values_BP, where_BP, tasks_BP):
      values_BP = jnp.where(where_BP, values_BP, 0)
      return jnp.zeros(tasks, loss_BL.dtype).at[tasks_BP].add(values_BP)

    of_pairs = lambda values_BP: by_task(values_BP, exists_BP, pair_tasks_BP)
    of_rows = lambda values_BP: by_task(values_BP, row_exists_BP, row_tasks_BP)
    one = jnp.ones_like(loss_BP)
    loss_T, weight_T = of_pairs(loss_BP) + of_rows(row_loss_BP), of_pairs(one) + of_rows(one)
    sums = LossSums(
      loss=loss_T.sum(),
      weight=weight_T.sum(),
      tokens=(batch['decoder_segment_ids'] > 0).sum().astype(loss_BL.dtype),
      loss_by_task=loss_T,
      weight_by_task=weight_T,
      router=of_router,
      pairs={'pairs': of_pairs(one)} | {name: of_pairs(x) for name, x in figures.items()},
    )
    objective = sums.loss + losses.router_loss(model, of_router, sums.weight)
    return objective, jax.lax.stop_gradient(sums)

  def of_pairs(
    self, policy: Answers, reference: Answers | None
  ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Loss of each pair [B, P], whether there is one, and figures to report [B, P] each."""
    raise NotImplementedError

  def _reference(self, model, params: Any, batch, policy: Answers) -> Answers:
    """The answers under the reference, without gradient."""
    if pair_layout.REFERENCE in batch:
      return stored_answers(batch, policy)
    if not self.has_second_pass(model):
      raise ObjectiveError('a batch without log-probabilities of the reference, and no adapters')
    base = model.clone(config=dataclasses.replace(model.config, lora=None))
    loss_BL, *_ = losses.cross_entropy(base, lora.without_adapters(params), batch)
    return answers_of(batch, jax.lax.stop_gradient(loss_BL))


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Preference(PairObjective):
  """Chosen answers become more likely than rejected ones; equal to TRL 1.16.

  With c and r the log-probabilities of the chosen and the rejected answer, minus those under the
  reference:

  'dpo' (arXiv 2305.18290): -log sigmoid(beta (c - r)).
  'ipo' (arXiv 2310.12036): (c - r - 1 / (2 beta))^2, where c and r are means over the tokens.
  'orpo' (arXiv 2403.07691), without a reference: mean token loss of prompt and chosen answer
    - beta log sigmoid(log odds of chosen over rejected), of the means over the tokens.

  Attributes:
    kind: 'dpo', 'ipo' or 'orpo'.
    beta: above 0; for 'dpo' larger keeps the model nearer to the reference.
    label_smoothing: for 'dpo', 0 to below 0.5, the share of pairs that are labelled the wrong way
      round (arXiv 2403.00409; `robust` in TRL).
    nll: factor on the mean token loss of the chosen answer, for 'dpo' and 'ipo'.
    length_normalised: for 'dpo', c and r are means over the tokens (`sigmoid_norm` in TRL).
  """

  kind: str = 'dpo'
  beta: float = 0.1
  label_smoothing: float = 0.0
  nll: float = 0.0
  length_normalised: bool = False

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(f'Preference.kind = {self.kind!r} is none of {KINDS}')
    if self.beta <= 0 or self.nll < 0:
      raise ValueError(
        f'Preference.beta = {self.beta} must be above 0 and nll = {self.nll} not below'
      )
    if not 0 <= self.label_smoothing < 0.5:
      raise ValueError(f'Preference.label_smoothing = {self.label_smoothing} is not in [0, 0.5)')
    if self.kind != 'dpo' and (self.label_smoothing or self.length_normalised):
      raise ValueError(
        f"Preference.label_smoothing and length_normalised are of 'dpo', not of {self.kind!r}"
      )
    if self.kind == 'orpo' and self.nll:
      raise ValueError("Preference.nll: 'orpo' has the loss of the chosen answer already")

  @property
  def has_reference(self) -> bool:
    return self.kind != 'orpo'

  def of_pairs(self, policy, reference):
    """See `PairObjective.of_pairs`."""
    exists_BP = policy.exist(1, 2)
    mean = self.kind != 'dpo' or self.length_normalised
    chosen_BP, rejected_BP = (policy.logps(answer, mean) for answer in (1, 2))
    figures = {'logp_chosen': policy.logps(1), 'logp_rejected': policy.logps(2)}
    if reference is not None:
      chosen_BP, rejected_BP = (
        logps_BP - reference.logps(answer, mean)
        for answer, logps_BP in ((1, chosen_BP), (2, rejected_BP))
      )
      figures['drift'] = sum(policy.logps(a) - reference.logps(a) for a in (1, 2)) / 2
    margin_BP = chosen_BP - rejected_BP
    figures |= {'margin': margin_BP, 'accuracy': (margin_BP > 0).astype(margin_BP.dtype)}
    if self.kind == 'dpo':
      loss_BP = self._dpo(margin_BP)
    elif self.kind == 'ipo':
      loss_BP = (margin_BP - 1 / (2 * self.beta)) ** 2
    else:
      loss_BP = self._orpo(policy, exists_BP)
    if self.nll:
      loss_BP -= self.nll * policy.logps(1, mean=True)
    return loss_BP, exists_BP, figures

  def _dpo(self, margin_BP):
    clean_BP = -jax.nn.log_sigmoid(self.beta * margin_BP)
    smoothing = self.label_smoothing
    if not smoothing:
      return clean_BP
    flipped_BP = -jax.nn.log_sigmoid(-self.beta * margin_BP)
    return ((1 - smoothing) * clean_BP - smoothing * flipped_BP) / (1 - 2 * smoothing)

  def _orpo(self, policy, exists_BP):
    # Where there is no pair any finite number below 0 does. A probability of 1 has infinite odds.
    logps_BP2 = jnp.stack([policy.logps(answer, mean=True) for answer in (1, 2)], axis=-1)
    logps_BP2 = jnp.minimum(logps_BP2, -jnp.finfo(logps_BP2.dtype).eps)
    logps_BP2 = jnp.where(exists_BP[..., None], logps_BP2, -1)
    odds_BP2 = logps_BP2 - _log1mexp(logps_BP2)
    all_BP, tokens_BP = (x[..., :2].sum(axis=-1) for x in (policy.logps_BPA, policy.tokens_BPA))
    ratio_BP = jax.nn.log_sigmoid(odds_BP2[..., 0] - odds_BP2[..., 1])
    return -all_BP / jnp.maximum(tokens_BP, 1) - self.beta * ratio_BP


def _log1mexp(x: jax.Array) -> jax.Array:
  """log(1 - exp(x)) for x < 0 (Mächler 2012)."""
  near = x > -np.log(2)
  # Each branch gets numbers that the other one's gradient is finite at.
  close = jnp.log(-jnp.expm1(jnp.where(near, x, -1)))
  return jnp.where(near, close, jnp.log1p(-jnp.exp(jnp.where(near, -1, x))))


@gin.configurable
@dataclasses.dataclass(frozen=True)
class DirectConsistency(PairObjective):
  """The same question in two languages gets the same answer, right or wrong (arXiv 2603.04678).

  With o_i the log-odds of the first over the second candidate in language i under the reference,
  and r_i those of the model minus o_i: |r_1 - o_2 / beta| + |r_2 - beta o_1|. At the optimum the
  odds of both languages are the product of both under the reference. No answer counts as the right
  one.

  Attributes:
    beta: above 0; 1 treats both languages alike.
  """

  beta: float = 1.0
  halves = 2

  def __post_init__(self):
    if self.beta <= 0:
      raise ValueError(f'DirectConsistency.beta = {self.beta} must be above 0')

  def of_pairs(self, policy, reference):
    """See `PairObjective.of_pairs`."""
    odds = lambda answers: [answers.logps(a) - answers.logps(b) for a, b in ((1, 2), (3, 4))]
    (m1_BP, m2_BP), (o1_BP, o2_BP) = odds(policy), odds(reference)
    loss_BP = jnp.abs(m1_BP - o1_BP - o2_BP / self.beta) + jnp.abs(
      m2_BP - o2_BP - self.beta * o1_BP
    )
    figures = {
      'logp_chosen': (policy.logps(1) + policy.logps(3)) / 2,
      'logp_rejected': (policy.logps(2) + policy.logps(4)) / 2,
      'drift': sum(policy.logps(a) - reference.logps(a) for a in (1, 2, 3, 4)) / 4,
      'gap': jnp.abs(m1_BP - m2_BP),
      'agreement': (m1_BP * m2_BP > 0).astype(loss_BP.dtype),
    }
    return loss_BP, policy.exist(1, 2, 3, 4), figures
