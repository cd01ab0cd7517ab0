"""Choosing the next token: penalties on earlier tokens, filters, and one draw for each row.

Order and meaning follow transformers' LogitsProcessors: repetition penalty, no-repeat-n-gram; then,
unless greedy, temperature, top-k, top-p, min-p.

Letters: R rows, V vocabulary, C positions of the history.
"""

import dataclasses
import math

import flax.struct
import jax
import jax.numpy as jnp

from crossin_jax import config

# A search over blocks, then inside of one, is cheaper than one over the full vocabulary.
_BLOCK = 128

# Differences between float32 logits are not exact to this, so a lower temperature means greedy.
_LOWEST_TEMPERATURE = 1e-5
NO_TOKEN = -1  # of a row whose logits are not finite


@config.configurable(commands=('chunks', 'evaluate'))
@dataclasses.dataclass(frozen=True)
class Sampling:
  """Sampling settings.

  Attributes:
    temperature: divides the logits; 0, like all below 1e-5, = greedy, always the most likely token.
    top_k: keep the k most likely tokens and those equal to the k-th; 0 = all.
    top_p: keep the most likely tokens up to this total probability, [0, 1], and the most likely
      one always; 1 = all.
    min_p: keep tokens with at least this fraction of the highest probability, [0, 1); 0 = all.
    repetition_penalty: divides positive and multiplies negative logits of tokens in prompt or
      answer (Keskar et al. 2019); 1 = none.
    no_repeat_ngram_size: n-grams of this size occur only once in prompt and answer; 0 = off.
    max_new_tokens: maximum tokens of an answer, including its stop token.
    stop: texts that end an answer; they and what follows are cut off.
    seed: of the draws. A draw depends on it, the id of the row, the sample and the position in the
      answer, not on other rows.
    samples: answers to each prompt.
  """

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  repetition_penalty: float = 1.0
  no_repeat_ngram_size: int = 0
  max_new_tokens: int = 256
  stop: tuple[str, ...] = ()
  seed: int = 0
  samples: int = 1

  def __post_init__(self):
    object.__setattr__(
      self, 'stop', (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
    )
    legal = {
      'temperature': (0 <= self.temperature < math.inf, 'finite and at least 0 (0 = greedy)'),
      'top_k': (self.top_k >= 0, 'at least 0 (0 = all)'),
      'top_p': (0 <= self.top_p <= 1, 'at least 0 and at most 1'),
      'min_p': (0 <= self.min_p < 1, 'at least 0 and below 1'),
      'repetition_penalty': (0 < self.repetition_penalty < math.inf, 'finite and above 0'),
      'no_repeat_ngram_size': (self.no_repeat_ngram_size >= 0, 'at least 0 (0 = off)'),
      'max_new_tokens': (self.max_new_tokens >= 1, 'at least 1'),
      'stop': (all(isinstance(s, str) and s for s in self.stop), 'non-empty strings'),
      'samples': (self.samples >= 1, 'at least 1'),
    }
    for name, (ok, wanted) in legal.items():
      if not ok:
        raise ValueError(f'Sampling.{name} = {getattr(self, name)!r} must be {wanted}')
    if self.samples > 1 and self.greedy:
      raise ValueError(
        f'Sampling.samples = {self.samples} answers would be equal at temperature 0; set '
        'Sampling.temperature'
      )

  @property
  def greedy(self) -> bool:
    """Whether tokens are chosen without a draw."""
    return self.temperature < _LOWEST_TEMPERATURE

  @property
  def needs_history(self) -> bool:
    """Whether a penalty reads earlier tokens."""
    return self.repetition_penalty != 1 or self.no_repeat_ngram_size > 0

  @property
  def compiled(self) -> 'Sampling':
    """The settings that are compiled into a program, the others at their defaults."""
    changes = {'max_new_tokens': 1, 'stop': (), 'seed': 0, 'samples': 1}
    if self.greedy:
      changes |= {'temperature': 0.0, 'top_k': 0, 'top_p': 1.0, 'min_p': 0.0}
    return dataclasses.replace(self, **changes)


@flax.struct.dataclass
class RowSampling:
  """Settings that every row has for itself; the others are those of `Sampling`.

  Attributes:
    temperature_R, top_p_R, min_p_R: float32 [R], see `Sampling`.
  """

  temperature_R: jax.Array
  top_p_R: jax.Array
  min_p_R: jax.Array


def penalised(
  scores_RV: jax.Array, history_RC: jax.Array, lengths_R: jax.Array, sampling: Sampling
) -> jax.Array:
  """Scores after repetition penalty and no-repeat-n-gram.

      history [5 7 5 _], length 3, n = 2: "5 7" occurred, so 7 is forbidden after this 5

  Args:
    scores_RV: float logits.
    history_RC: int tokens of BOS, prompt and answer so far; entries behind them are ignored.
    lengths_R: int, number of these tokens.
    sampling: repetition_penalty and no_repeat_ngram_size are read.
  """
  rows, vocabulary = scores_RV.shape
  capacity = history_RC.shape[1]
  row_R1 = jnp.arange(rows)[:, None]
  if sampling.repetition_penalty != 1:
    real_RC = jnp.arange(capacity)[None] < lengths_R[:, None]
    at_RC = jnp.where(real_RC, history_RC, vocabulary)  # out of range: dropped below
    old_RC = jnp.take_along_axis(scores_RV, jnp.minimum(at_RC, vocabulary - 1), axis=1)
    factor = sampling.repetition_penalty
    new_RC = jnp.where(old_RC < 0, old_RC * factor, old_RC / factor)
    # A token that occurs twice is written twice, with the same value.
    scores_RV = scores_RV.at[row_R1, at_RC].set(new_RC, mode='drop')
  n = sampling.no_repeat_ngram_size
  if 0 < n <= capacity:
    starts = capacity - n + 1
    match_RS = jnp.arange(starts)[None] + n <= lengths_R[:, None]
    for j in range(n - 1):
      last_R1 = jnp.take_along_axis(
        history_RC, jnp.maximum(lengths_R[:, None] - (n - 1) + j, 0), axis=1
      )
      match_RS &= history_RC[:, j : j + starts] == last_R1
    banned_RS = jnp.where(match_RS, history_RC[:, n - 1 :], vocabulary)
    scores_RV = scores_RV.at[row_R1, banned_RS].set(-jnp.inf, mode='drop')
  return scores_RV


def choose(scores_RV: jax.Array, keys_R: jax.Array | None, sampling: Sampling) -> jax.Array:
  """The next token of each row.

  Args:
    scores_RV: float logits after penalties.
    keys_R: a random key for each row; not read when greedy.
    sampling: temperature, top_k, top_p and min_p are read.

  Returns:
    int32 [R]; `NO_TOKEN` where the highest score is not finite (a NaN, an infinity, or all tokens
    forbidden).
  """
  usable_R = jnp.isfinite(scores_RV.max(axis=-1))
  if sampling.greedy:
    return jnp.where(usable_R, argmax(scores_RV), NO_TOKEN)
  # A row without a token to draw would never leave the loop below, and with it the whole batch.
  token_R = _drawn(jnp.where(usable_R[:, None], scores_RV, 0), keys_R, sampling)
  return jnp.where(usable_R, token_R, NO_TOKEN)


def choose_by_row(
  scores_RV: jax.Array, keys_R: jax.Array, rows: RowSampling, sampling: Sampling
) -> jax.Array:
  """`choose` with the settings of each row: the same token as `choose` with these settings.

  Args:
    scores_RV: float logits after penalties.
    keys_R: a random key for each row; not read of rows that are greedy.
    rows: temperature, top-p and min-p.
    sampling: only top_k is read.
  """
  usable_R = jnp.isfinite(scores_RV.max(axis=-1))
  greedy_R = rows.temperature_R < _LOWEST_TEMPERATURE

  def drawn():
    by_row = _ByRow(
      # Rows that are greedy, or without a request, accept their first draw, which nobody reads.
      temperature=jnp.where(greedy_R, 1, jnp.minimum(rows.temperature_R, 1e30))[:, None],
      top_k=sampling.top_k,
      top_p=jnp.where(greedy_R, 1, rows.top_p_R),
      min_p=jnp.where(greedy_R, 0, rows.min_p_R)[:, None],
    )
    token_R = _drawn(jnp.where(usable_R[:, None], scores_RV, 0), keys_R, by_row)
    return jnp.where(greedy_R, argmax(scores_RV), token_R)

  token_R = jax.lax.cond(greedy_R.all(), lambda: argmax(scores_RV), drawn)
  return jnp.where(usable_R, token_R, NO_TOKEN)


@dataclasses.dataclass(frozen=True)
class _ByRow:
  """What `_drawn` and `weights` read of a `Sampling`, with arrays [R] or [R, 1] in it."""

  temperature: jax.Array
  top_k: int
  top_p: jax.Array
  min_p: jax.Array


def _drawn(scores_RV: jax.Array, keys_R: jax.Array, sampling: 'Sampling | _ByRow') -> jax.Array:
  """A token of each row by its random key; the highest score of each row is finite."""
  weights_RV, by_row = weights(scores_RV, sampling), isinstance(sampling, _ByRow)
  allowed_RV = (
    weights_RV
    if not by_row and sampling.min_p == 0
    else jnp.where(weights_RV < sampling.min_p, 0, weights_RV)
  )
  uniform = lambda attempt: jax.vmap(
    lambda key: jax.random.uniform(jax.random.fold_in(key, attempt))
  )(keys_R)
  if not by_row and sampling.top_p == 1:
    return draw(allowed_RV, uniform(0))

  # Top-p without sorting: draw from all tokens and accept one inside the nucleus. A token outside
  # rules out itself and all less likely ones, so the next draw is from the rest. This takes about
  # as many draws as quickselect takes steps, mostly one.
  def attempt(carry):
    number, _, floor_R, chosen_R = carry
    token_R = draw(jnp.where(weights_RV > floor_R[:, None], allowed_RV, 0), uniform(number))
    inside_R = in_nucleus(weights_RV, token_R, sampling.top_p)
    if by_row:  # rounding puts no token outside the nucleus of all
      inside_R |= sampling.top_p >= 1
    weight_R = jnp.take_along_axis(weights_RV, token_R[:, None], axis=1)[:, 0]
    newly_R = inside_R & (chosen_R < 0)
    return (
      number + 1,
      (chosen_R >= 0) | inside_R,
      jnp.where(inside_R, floor_R, jnp.maximum(floor_R, weight_R)),
      jnp.where(newly_R, token_R, chosen_R),
    )

  rows = scores_RV.shape[0]
  start = (
    0,
    jnp.zeros(rows, bool),
    jnp.full(rows, -1.0, weights_RV.dtype),
    jnp.full(rows, -1, jnp.int32),
  )
  return jax.lax.while_loop(lambda carry: ~carry[1].all(), attempt, start)[-1]


def weights(scores_RV: jax.Array, sampling: 'Sampling | _ByRow') -> jax.Array:
  """Probabilities after temperature and top-k, relative to the highest: float [R, V]."""
  weights_RV = scores_RV - scores_RV.max(axis=-1, keepdims=True)
  if isinstance(sampling, _ByRow):
    weights_RV /= sampling.temperature
  elif sampling.temperature != 1:
    # The bound keeps 1 / temperature above 0: a forbidden token, at minus infinity, times 0 is NaN.
    weights_RV /= min(sampling.temperature, 1e30)
  weights_RV = jnp.exp(weights_RV)
  if 0 < sampling.top_k < scores_RV.shape[-1]:
    # The barrier keeps XLA from turning "the last of the top k" into a sort of the whole row.
    kth_R1 = jax.lax.optimization_barrier(jax.lax.top_k(scores_RV, sampling.top_k)[0])[:, -1:]
    weights_RV = jnp.where(scores_RV < kth_R1, 0, weights_RV)
  return weights_RV


def in_nucleus(weights_RV: jax.Array, token_R: jax.Array, top_p: float | jax.Array) -> jax.Array:
  """Whether the tokens more likely than this one have a total probability below top_p: bool [R].

  The most likely token is always inside.
  Of equally likely tokens at the border, transformers keeps some; this function keeps all.
  """
  weight_R1 = jnp.take_along_axis(weights_RV, token_R[:, None], axis=1)
  above_R = jnp.where(weights_RV > weight_R1, weights_RV, 0).sum(axis=-1)
  inside_R = (above_R == 0) | (above_R < top_p * weights_RV.sum(axis=-1))
  return inside_R & (weight_R1[:, 0] > 0)


def draw(weights_RV: jax.Array, uniform_R: jax.Array) -> jax.Array:
  """Draws a token of each row in proportion to its weight; never one of weight 0.

      weights [1 0 3], uniform 0.2 -> 0;  uniform 0.3 -> 2

  Args:
    weights_RV: float, at least one above 0 in each row.
    uniform_R: float in [0, 1).

  Returns:
    int32 [R].
  """
  blocks_RNB = _blocks(weights_RV, 0)
  block_sums_RN = blocks_RNB.sum(axis=-1)
  target_R = uniform_R * block_sums_RN.sum(axis=-1)
  block_R, rest_R = _first_above(block_sums_RN, target_R)
  inside_RB = jnp.take_along_axis(blocks_RNB, block_R[:, None, None], axis=1)[:, 0]
  offset_R, _ = _first_above(inside_RB, rest_R)
  return (block_R * _BLOCK + offset_R).astype(jnp.int32)


def _first_above(weights_RN: jax.Array, target_R: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The first index whose cumulative weight exceeds the target, and the rest of the target in it.

  Rounding may leave the total just below the target, and the cumulative sum does not rise at zero
  weights. An index of weight 0 is never returned.
  """
  cumulative_RN = jnp.cumsum(weights_RN, axis=-1)
  hit_RN = (cumulative_RN > target_R[:, None]) & (weights_RN > 0)
  index_R = jnp.where(
    hit_RN.any(axis=-1), jnp.argmax(hit_RN, axis=-1), jnp.argmax(weights_RN, axis=-1)
  )
  before_RN = cumulative_RN - weights_RN
  return index_R, jnp.maximum(
    target_R - jnp.take_along_axis(before_RN, index_R[:, None], axis=1)[:, 0], 0
  )


def argmax(scores_RV: jax.Array) -> jax.Array:
  """jnp.argmax over the last axis, in blocks: XLA's own is slow on CPUs. Returns int32 [R]."""
  blocks_RNB = _blocks(scores_RV, -jnp.inf)
  block_R = jnp.argmax(blocks_RNB.max(axis=-1), axis=-1)
  inside_RB = jnp.take_along_axis(blocks_RNB, block_R[:, None, None], axis=1)[:, 0]
  return (block_R * _BLOCK + jnp.argmax(inside_RB, axis=-1)).astype(jnp.int32)


def _blocks(x_RV: jax.Array, fill: float) -> jax.Array:
  """[R, V] as [R, blocks, _BLOCK], padded at the end with `fill`."""
  rows, vocabulary = x_RV.shape
  if missing := -vocabulary % _BLOCK:
    x_RV = jnp.pad(x_RV, ((0, 0), (0, missing)), constant_values=fill)
  return x_RV.reshape(rows, -1, _BLOCK)
