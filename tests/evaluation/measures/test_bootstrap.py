"""Intervals: coverage on simulated data, pairing, determinism, and honesty about one seed."""

import time

import numpy as np
import pytest

from crossin_jax.evaluation.measures import bootstrap, consistency


def simulate(generator, seeds, items, languages, shift=0.0, difficulty=None):
  difficulty = generator.normal(size=(1, items, 1)) if difficulty is None else difficulty
  probability = 1 / (1 + np.exp(-(difficulty + shift)))
  return generator.random((seeds, items, languages)) < probability


def test_coverage_of_items():
  generator = np.random.default_rng(0)
  truth = (1 / (1 + np.exp(-np.random.default_rng(1).normal(size=400_000)))).mean()
  hits = 0
  for trial in range(300):
    found = bootstrap.interval(simulate(generator, 1, 200, 3), None, resamples=400, seed=trial)
    hits += found.low <= truth <= found.high
  assert 0.90 <= hits / 300 <= 0.985


def test_paired_difference_covers_and_is_narrower_than_unpaired():
  generator = np.random.default_rng(2)
  normal = np.random.default_rng(3).normal(size=400_000)
  truth = (1 / (1 + np.exp(-normal))).mean() - (1 / (1 + np.exp(-normal + 0.5))).mean()
  hits, trials = 0, 200
  for trial in range(trials):
    difficulty = generator.normal(size=(1, 200, 1))
    one = simulate(generator, 1, 200, 3, 0.0, difficulty)
    two = simulate(generator, 1, 200, 3, -0.5, difficulty)
    found = bootstrap.difference(one, two, None, resamples=400, seed=trial)
    hits += found.low <= truth <= found.high
  assert 0.89 <= hits / trials <= 0.99
  hard = 4 * np.random.default_rng(4).normal(size=(1, 300, 1))
  one, two = simulate(generator, 1, 300, 2, 0.0, hard), simulate(generator, 1, 300, 2, 0.0, hard)
  paired = bootstrap.difference(one, two, None)
  alone = bootstrap.interval(one, None)
  assert paired.high - paired.low < alone.high - alone.low


def test_seeds_with_items_of_their_own_cover():
  generator, hits = np.random.default_rng(7), 0
  normal = np.random.default_rng(8).normal(size=(400_000, 1)) + 0.3 * np.random.default_rng(
    9
  ).normal(size=(1, 1000))
  truth = (1 / (1 + np.exp(-normal[:2000]))).mean()
  for trial in range(200):
    runs = [
      simulate(generator, 1, 60, 2, 0.3 * generator.normal())[0].astype(int) for _ in range(5)
    ]
    answers = [np.ones(60, int)] * 5
    found = bootstrap.interval(runs, answers, resamples=300, seed=trial)
    hits += found.low <= truth <= found.high
  assert 0.86 <= hits / 200 <= 0.99
  with pytest.raises(ValueError, match='answers of 1 seeds'):
    bootstrap.difference(runs, runs, [answers[0]])


def test_estimates_are_the_statistics_themselves():
  generator = np.random.default_rng(5)
  runs = generator.integers(-1, 4, (3, 60, 4))
  answers = generator.integers(0, 4, 60)
  wanted = [
    consistency.ac3(consistency.accuracy(run, answers), consistency.consistency(run, 3))
    for run in runs
  ]
  assert bootstrap.interval(runs, answers, 'ac3').estimate == pytest.approx(np.mean(wanted))
  subset = bootstrap.interval(runs, answers, 'accuracy', columns=[1, 3])
  assert subset.estimate == pytest.approx(
    np.mean([consistency.accuracy(run[:, [1, 3]], answers) for run in runs])
  )
  level = bootstrap.interval(runs, answers, 'consistency', s=2)
  assert level.estimate == pytest.approx(np.mean([consistency.consistency(run, 2) for run in runs]))


def test_resampled_ac3_is_recomputed_not_averaged():
  """One resample by hand: with the drawn items in an array, the statistic is the same."""
  generator = np.random.default_rng(6)
  runs, answers = generator.integers(0, 4, (1, 30, 3)), generator.integers(0, 4, 30)
  found = bootstrap.interval(runs, answers, 'ac3', resamples=1, seed=9)
  drawn = np.random.default_rng(9).integers(30, size=(1, 30))[0]
  chosen = runs[0][drawn]
  by_hand = consistency.ac3(
    consistency.accuracy(chosen, answers[drawn]), consistency.consistency(chosen, 3)
  )
  assert found.low == pytest.approx(by_hand) == pytest.approx(found.high)


def test_real_and_absent_differences():
  generator = np.random.default_rng(7)
  one, two = simulate(generator, 3, 500, 4, 0.6), simulate(generator, 3, 500, 4, 0.0)
  gain = bootstrap.difference(one, two, None)
  assert gain.low > 0 and gain.share_above_zero > 0.99
  same = bootstrap.difference(one, one, None)
  assert (
    same.low == same.high == same.estimate == 0.0
    and same.low <= 0 <= same.high
    and same.share_above_zero == 0.5
  )


def test_seeds_widen_the_interval_and_one_seed_says_so():
  generator = np.random.default_rng(8)
  difficulty = generator.normal(size=(1, 400, 1))
  spread = np.array([-0.8, 0.0, 0.8])[:, None, None]
  runs = generator.random((3, 400, 4)) < 1 / (1 + np.exp(-(difficulty + spread)))
  together = bootstrap.interval(runs, None)
  alone = bootstrap.interval(runs[1:2], None)
  assert together.high - together.low > 2 * (alone.high - alone.low)
  assert 'one seed' in alone.note and '3 seeds' in together.note


def test_deterministic_and_fast():
  generator = np.random.default_rng(9)
  runs, answers = generator.integers(0, 4, (3, 500, 4)), generator.integers(0, 4, 500)
  start = time.perf_counter()
  one = bootstrap.difference(runs, runs[::-1], answers, 'ac3', resamples=2000, seed=3)
  assert time.perf_counter() - start < 1.0
  assert one == bootstrap.difference(runs, runs[::-1], answers, 'ac3', resamples=2000, seed=3)
  assert one != bootstrap.difference(runs, runs[::-1], answers, 'ac3', resamples=2000, seed=4)


def test_bad_input_is_named():
  runs = np.zeros((2, 5, 3), int)
  with pytest.raises(ValueError, match='same seeds'):
    bootstrap.difference(runs, runs[:1], np.zeros(5, int))
  with pytest.raises(ValueError, match='different items'):
    bootstrap.difference(runs, runs[:, :4], None)
  with pytest.raises(ValueError, match='no seeds'):
    bootstrap.interval([], None)
  with pytest.raises(ValueError, match='statistic'):
    bootstrap.interval(runs, None, 'f1')
  with pytest.raises(ValueError, match='not correctness'):
    bootstrap.interval(runs, None, 'ac3')
