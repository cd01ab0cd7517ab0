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
    ({'temperature': -1.0}, 'Sampling.temperature = -1.0 must be finite and at least 0'),
    ({'temperature': float('inf')}, 'Sampling.temperature = inf must be finite'),
    ({'temperature': float('nan')}, 'Sampling.temperature = nan must be finite'),
    ({'top_p': -0.1}, 'Sampling.top_p = -0.1 must be at least 0'),
    ({'top_p': float('nan')}, 'Sampling.top_p = nan must be at least 0'),
    ({'min_p': 1.0}, 'Sampling.min_p = 1.0 must be at least 0 and below 1'),
    ({'top_k': -1}, 'Sampling.top_k'),
    ({'repetition_penalty': 0.0}, 'Sampling.repetition_penalty'),
    ({'max_new_tokens': 0}, 'Sampling.max_new_tokens'),
    ({'stop': ('',)}, 'Sampling.stop'),
    ({'repetition_penalty': float('inf')}, 'Sampling.repetition_penalty = inf must be finite'),
    ({'samples': 2}, 'answers would be equal at temperature 0'),
    ({'samples': 2, 'temperature': 1e-9}, 'answers would be equal at temperature 0'),
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
  assert Sampling(temperature=1e-9, top_p=0.5).compiled == Sampling().compiled


@pytest.mark.parametrize('temperature', [1e-5, 1e-4, 1e-3])
@pytest.mark.parametrize('filters', [{}, {'top_p': 0.9}, {'top_k': 3, 'top_p': 0.5, 'min_p': 0.2}])
def test_low_temperatures_choose_the_most_likely_token(temperature, filters):
  scores = 30 * np.random.default_rng(6).standard_normal((50, 300)).astype(np.float32)
  settings = {'temperature': temperature, **filters}
  exactly = their_probabilities(scores.astype(np.float64), settings)
  np.testing.assert_allclose(our_probabilities(scores, settings), exactly, atol=2e-6)
  tokens = _chooser(tuple(settings.items()))(jnp.asarray(scores), 1, 50)
  np.testing.assert_array_equal(tokens, scores.argmax(axis=-1))


@pytest.mark.parametrize('temperature', [0.0, 1e-45, 1e-40, 1e-38, 1e-7, 9e-6])
def test_tiny_temperatures_are_greedy(temperature):
  assert Sampling(temperature=temperature, top_p=0.9).greedy
  scores = np.random.default_rng(7).standard_normal((20, 61)).astype(np.float32)
  settings = (('temperature', temperature), ('top_p', 0.9), ('top_k', 5))
  np.testing.assert_array_equal(_chooser(settings)(scores, 1, 20), scores.argmax(axis=-1))


@pytest.mark.parametrize('top_p', [0.0, 1e-45, 1e-12, 1e-4])
@pytest.mark.parametrize('temperature', [0.5, 1.0, 3.0])
def test_a_tiny_top_p_keeps_the_most_likely_token_as_in_transformers(top_p, temperature):
  scores = np.random.default_rng(8).standard_normal((40, 61)).astype(np.float32)
  settings = {'temperature': temperature, 'top_p': top_p}
  np.testing.assert_allclose(
    our_probabilities(scores, settings), their_probabilities(scores, settings), atol=2e-6
  )
  tokens = _chooser(tuple(settings.items()))(scores, 2, 40)
  np.testing.assert_array_equal(tokens, scores.argmax(axis=-1))


@pytest.mark.parametrize('top_p', [0.999999, 0.9999999999, 1.0])
def test_a_top_p_next_to_one_ends_on_many_equal_tokens(top_p):
  scores = np.zeros((4, 5000), np.float32)
  tokens = _chooser((('temperature', 1.0), ('top_p', top_p)))(scores, 3, 4)
  assert ((tokens >= 0) & (tokens < 5000)).all()


@pytest.mark.parametrize('temperature', [1e30, 1e38, 1e300])
def test_a_huge_temperature_draws_evenly_and_nothing_forbidden(temperature):
  scores = np.where(np.arange(40) % 2, -np.inf, 9.0 * np.arange(40)).astype(np.float32)
  scores = np.tile(scores, (4000, 1))
  for filters in ((), (('top_p', 0.9),)):
    tokens = np.asarray(_chooser((('temperature', temperature), *filters))(scores, 4, 4000))
    assert not (tokens % 2).any()
    assert chi_square_passes(np.bincount(tokens, minlength=40)[::2], np.full(20, 200.0))


@pytest.mark.parametrize('settings', [{}, *WARPERS, {'temperature': 1.0, 'top_p': 0.0}], ids=show)
@pytest.mark.parametrize(
  'damage',
  [
    [(5, np.nan)],
    [(5, np.inf)],
    [(0, np.inf), (1, -np.inf)],
    [(5, np.nan), (6, np.inf)],
    [(slice(None), np.nan)],
    [(slice(None), -np.inf)],
  ],
  ids=['nan', 'inf', 'both infinities', 'nan and inf', 'all nan', 'all forbidden'],
)
def test_a_row_without_finite_logits_has_no_token_and_harms_no_other(settings, damage):
  scores = np.random.default_rng(9).standard_normal((6, 200)).astype(np.float32)
  damaged = scores.copy()
  for at, value in damage:
    damaged[1, at] = damaged[4, at] = value
  pick = _chooser(tuple(settings.items()))
  found, whole = np.asarray(pick(damaged, 5, 6)), np.asarray(pick(scores, 5, 6))
  assert (found[[1, 4]] == lib.NO_TOKEN).all()
  np.testing.assert_array_equal(found[[0, 2, 3, 5]], whole[[0, 2, 3, 5]])


@pytest.mark.parametrize('settings', [{}, *WARPERS], ids=show)
def test_forbidden_tokens_are_no_damage(settings):
  scores = np.full((8, 200), -np.inf, np.float32)
  scores[np.arange(8), 20 * np.arange(8)] = 2.0
  tokens = _chooser(tuple(settings.items()))(scores, 6, 8)
  np.testing.assert_array_equal(tokens, 20 * np.arange(8))
