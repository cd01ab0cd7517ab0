"""The next token: transformers' processors and warpers to the digit, draws in their proportions,
nothing forbidden.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossin_jax.decoding import sampling as lib
from crossin_jax.decoding.sampling import Sampling

REASON = 'the comparison with the real processors needs the extra `test`'
WARPERS = [
  {'temperature': 1.0},
  {'temperature': 0.6},
  {'temperature': 1.7, 'top_k': 7},
  {'temperature': 1.0, 'top_p': 0.8},
  {'temperature': 1.3, 'top_p': 0.3},
  {'temperature': 1.0, 'min_p': 0.1},
  {'temperature': 0.8, 'top_k': 12, 'top_p': 0.7},
  {'temperature': 1.5, 'top_k': 20, 'top_p': 0.9, 'min_p': 0.08},
  {'temperature': 1.0, 'top_k': 1},
]
show = lambda settings: ' '.join(f'{k}={v}' for k, v in settings.items())


def their_processors(names):
  """Classes of transformers by name."""
  pytest.importorskip('torch', reason=REASON)
  pytest.importorskip('transformers', reason=REASON)
  from transformers.generation import logits_process

  return [getattr(logits_process, name) for name in names]


def their_probabilities(scores, settings):
  """Softmax after transformers' warpers, in the order in which `generate` puts them."""
  temperature, top_k, top_p, min_p = their_processors(
    ['TemperatureLogitsWarper', 'TopKLogitsWarper', 'TopPLogitsWarper', 'MinPLogitsWarper']
  )
  import torch

  warpers = [temperature(float(settings['temperature']))]
  warpers += [top_k(settings['top_k'])] if 'top_k' in settings else []
  warpers += [top_p(settings['top_p'])] if 'top_p' in settings else []
  warpers += [min_p(settings['min_p'])] if 'min_p' in settings else []
  found = torch.tensor(scores)
  for warper in warpers:
    found = warper(None, found)
  return torch.softmax(found.double(), dim=-1).numpy()


def our_probabilities(scores, settings):
  """The distribution that `choose` draws from, by its own parts."""
  sampling, vocabulary = Sampling(**settings), scores.shape[-1]
  weights = lib.weights(jnp.asarray(scores), sampling)
  every = [
    lib.in_nucleus(weights, jnp.full(len(scores), v), sampling.top_p) for v in range(vocabulary)
  ]
  inside = np.stack(every, axis=-1) if sampling.top_p < 1 else np.asarray(weights) > 0
  allowed = np.where(
    inside & (np.asarray(weights) >= sampling.min_p), np.asarray(weights, np.float64), 0
  )
  return allowed / allowed.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize('settings', WARPERS, ids=show)
def test_filters_equal_those_of_transformers(settings):
  scores = 3 * np.random.default_rng(0).standard_normal((40, 61)).astype(np.float32)
  np.testing.assert_allclose(
    our_probabilities(scores, settings), their_probabilities(scores, settings), atol=2e-6
  )


def test_tokens_as_likely_as_the_last_of_the_top_k_stay_as_in_transformers():
  scores = np.round(2 * np.random.default_rng(1).standard_normal((50, 40))).astype(np.float32)
  settings = {'temperature': 1.0, 'top_k': 5}
  np.testing.assert_allclose(
    our_probabilities(scores, settings), their_probabilities(scores, settings), atol=2e-6
  )


@pytest.mark.parametrize(
  'penalty, ngram', [(1.3, 0), (0.7, 0), (1.0, 1), (1.0, 2), (1.0, 3), (1.2, 2), (1.0, 9)]
)
def test_penalties_equal_those_of_transformers(penalty, ngram):
  repetition, no_repeat = their_processors(
    ['RepetitionPenaltyLogitsProcessor', 'NoRepeatNGramLogitsProcessor']
  )
  import torch

  rng = np.random.default_rng(2)
  rows, capacity, vocabulary = 30, 24, 11
  scores = 3 * rng.standard_normal((rows, vocabulary)).astype(np.float32)
  history = rng.integers(0, vocabulary, (rows, capacity))
  lengths = rng.integers(1, capacity + 1, rows)
  sampling = Sampling(repetition_penalty=penalty, no_repeat_ngram_size=ngram)
  found = np.asarray(
    lib.penalised(jnp.asarray(scores), jnp.asarray(history), jnp.asarray(lengths), sampling)
  )
  for row, length in enumerate(lengths):
    tokens, expected = (
      torch.tensor(history[row : row + 1, :length]),
      torch.tensor(scores[row : row + 1]),
    )
    if penalty != 1:
      expected = repetition(penalty)(tokens, expected)
    if ngram:
      expected = no_repeat(ngram)(tokens, expected)
    np.testing.assert_allclose(found[row], expected[0].numpy(), rtol=1e-6, err_msg=str(row))
  assert ngram not in (1, 2) or np.isinf(found).any()


@functools.lru_cache
def _chooser(settings):
  sampling = Sampling(**dict(settings))
  keys_of = lambda seed, rows: jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(
    jnp.arange(rows)
  )
  return jax.jit(
    lambda scores, seed, rows: lib.choose(scores, keys_of(seed, rows), sampling), static_argnums=2
  )  # fmt: skip


@pytest.mark.parametrize('settings', WARPERS, ids=show)
def test_draws_come_in_the_proportions_of_the_filtered_distribution(settings):
  """Pearson's chi-square over 40,000 draws, cells below 5 joined; the 1e-4 quantile."""
  scores = 2 * np.random.default_rng(3).standard_normal((1, 61)).astype(np.float32)
  expected = our_probabilities(scores, settings)[0]
  rows = 40_000
  tokens = np.asarray(_chooser(tuple(settings.items()))(jnp.tile(scores, (rows, 1)), 5, rows))
  counts = np.bincount(tokens, minlength=61)
  assert (counts[expected == 0] == 0).all(), 'a forbidden token was drawn'
  assert chi_square_passes(counts, expected * rows)


def chi_square_passes(counts, expected):
  """Whether counts agree with expectations, by the Wilson-Hilferty bound at 1e-4."""
  common = expected >= 5
  counts = np.append(counts[common], counts[~common].sum())
  expected = np.append(expected[common], expected[~common].sum())
  counts, expected = counts[expected > 0], expected[expected > 0]
  freedom = len(counts) - 1
  if not freedom:
    return True
  value = ((counts - expected) ** 2 / expected).sum()
  bound = freedom * (1 - 2 / (9 * freedom) + 3.72 * (2 / (9 * freedom)) ** 0.5) ** 3
  return value < bound


def test_the_chi_square_test_would_notice():
  assert not chi_square_passes(np.array([5300, 4700]), np.array([5000.0, 5000.0]))


def test_a_token_without_weight_is_never_drawn():
  """Weights over many orders of magnitude, most of them zero, and uniforms at both ends."""
  rng = np.random.default_rng(4)
  weights = np.where(
    rng.random((400, 300)) < 0.05, 10.0 ** rng.uniform(-30, 0, (400, 300)), 0
  ).astype(np.float32)
  weights[:, 7] = np.where(weights.sum(axis=1) == 0, 1, weights[:, 7])
  for uniform in (0.0, 0.5, 0.9999999, np.nextafter(np.float32(1), np.float32(0))):
    token = np.asarray(jax.jit(lib.draw)(weights, jnp.full(400, uniform, jnp.float32)))
    assert (np.take_along_axis(weights, token[:, None], axis=1) > 0).all(), uniform


@pytest.mark.parametrize('vocabulary', [1, 61, 128, 300, 1216])
def test_argmax_is_the_first_greatest(vocabulary):
  rng = np.random.default_rng(5)
  for scores in (
    rng.standard_normal((9, vocabulary)),
    rng.integers(0, 3, (9, vocabulary)),
    np.zeros((9, vocabulary)),
  ):
    np.testing.assert_array_equal(
      lib.argmax(jnp.asarray(scores, jnp.float32)), scores.argmax(axis=-1)
    )


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'temperature': -1.0}, 'Sampling.temperature = -1.0 must be at least 0'),
    ({'top_p': 0.0}, 'Sampling.top_p = 0.0 must be above 0'),
    ({'min_p': 1.0}, 'Sampling.min_p = 1.0 must be at least 0 and below 1'),
    ({'top_k': -1}, 'Sampling.top_k'),
    ({'repetition_penalty': 0.0}, 'Sampling.repetition_penalty'),
    ({'max_new_tokens': 0}, 'Sampling.max_new_tokens'),
    ({'stop': ('',)}, 'Sampling.stop'),
    ({'samples': 2}, 'answers would be equal at temperature 0'),
  ],
)
def test_wrong_settings_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    Sampling(**settings)


def test_what_is_not_compiled_in_shares_a_program():
  assert (
    Sampling(temperature=0.7, seed=1, max_new_tokens=3).compiled
    == Sampling(temperature=0.7, samples=4).compiled
  )
  assert Sampling(top_k=3, top_p=0.5).compiled == Sampling().compiled, 'greedy reads no filter'
  assert Sampling(temperature=0.7).compiled != Sampling(temperature=0.8).compiled
