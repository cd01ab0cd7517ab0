"""Closed forms against a brute force over all groups of languages, and what known predictors must
score.
"""

from itertools import combinations
import math

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
import numpy as np
import pytest

from crossin_jax.evaluation.measures import consistency

SHAPES = st.tuples(st.integers(1, 8), st.integers(2, 6))
CHOICES = SHAPES.flatmap(lambda shape: arrays(np.int64, shape, elements=st.integers(-1, 3)))


def brute_force(choices, s):
  groups = [
    np.mean([len(set(row[list(group)])) == 1 and row[group[0]] != -1 for row in choices])
    for group in combinations(range(choices.shape[1]), s)
  ]
  return float(np.mean(groups))


@settings(max_examples=150, deadline=None)
@given(CHOICES)
def test_closed_form_equals_brute_force(choices):
  for s in range(2, choices.shape[1] + 1):
    assert consistency.consistency(choices, s) == pytest.approx(brute_force(choices, s), abs=1e-12)
  pairs = consistency.pairwise_consistency(choices)
  upper = pairs[np.triu_indices(choices.shape[1], 1)]
  assert upper.mean() == pytest.approx(consistency.consistency(choices, 2), abs=1e-12)
  assert np.array_equal(pairs, pairs.T)


@settings(max_examples=100, deadline=None)
@given(CHOICES, st.integers(0, 2**31))
def test_invariances_and_order(choices, seed):
  generator = np.random.default_rng(seed)
  answers = generator.integers(0, 4, choices.shape[0])
  names = [f'l{i}' for i in range(choices.shape[1])]
  items, languages = (
    generator.permutation(choices.shape[0]),
    generator.permutation(choices.shape[1]),
  )
  one = consistency.summarise(choices, answers, names)
  two = consistency.summarise(
    choices[items][:, languages], answers[items], [names[i] for i in languages]
  )
  for key in ('accuracy', 'unparsed_rate', 'items'):
    assert getattr(one, key) == pytest.approx(getattr(two, key), abs=1e-12)
  for key in ('accuracy_by_language', 'consistency', 'ac3'):
    assert getattr(one, key) == pytest.approx(getattr(two, key), abs=1e-12)
  levels = list(one.consistency.values())
  assert all(a >= b - 1e-12 for a, b in zip(levels, levels[1:]))  # C_s falls with s
  for s, c in one.consistency.items():
    low, high = sorted((one.accuracy, c))
    assert low - 1e-9 <= one.ac3[s] <= high + 1e-9
  # What is no agreement on wrong options is agreement on the right one.
  total, right = choices.shape[1], (choices == answers[:, None]).sum(axis=1).tolist()
  for s, c in one.consistency.items():
    on_right = np.mean([math.comb(m, int(s)) for m in right]) / math.comb(total, int(s))
    assert one.wrong_consistency[s] == pytest.approx(c - on_right, abs=1e-12)


def test_random_constant_and_perfect_predictors():
  generator = np.random.default_rng(0)
  answers = generator.integers(0, 4, 40_000)
  guesses = consistency.summarise(generator.integers(0, 4, (40_000, 4)), answers, 'abcd')
  assert guesses.accuracy == pytest.approx(0.25, abs=0.005)
  assert guesses.consistency == pytest.approx({'2': 0.25, '3': 0.0625, '4': 0.015625}, abs=0.005)
  assert guesses.ac3['3'] == pytest.approx(0.10, abs=0.005)

  constant = consistency.summarise(np.zeros((40_000, 4), int), answers, 'abcd')
  assert set(constant.consistency.values()) == {1.0}
  assert constant.accuracy == (answers == 0).mean()

  perfect = consistency.summarise(np.tile(answers[:, None], 4), answers, 'abcd')
  assert (
    perfect.accuracy == 1.0
    and perfect.ac3['3'] == pytest.approx(1.0)
    and perfect.unparsed_rate == 0.0
  )


def test_worked_examples():
  rows = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [2, 2, 2, -1]])
  assert consistency.consistency_by_item(rows, 3).tolist() == [1.0, 0.25, 0.0, 0.25]
  assert consistency.accuracy_by_language(
    np.array([[0, 0, 1], [1, 2, 2]]), np.array([0, 2])
  ).tolist() == [0.5, 1.0, 0.5]
  assert consistency.pairwise_consistency(np.array([[0, 0, 1], [2, 1, 1]])).tolist() == [
    [1, 0.5, 0],
    [0.5, 1, 0.5],
    [0, 0.5, 1],
  ]
  assert consistency.ac3(0.36, 0.3361904761904762) == pytest.approx(0.3476880984452705, abs=1e-15)
  assert consistency.ac3(0.0, 0.0) == 0.0


def test_unparsed_agrees_with_nothing_and_is_wrong():
  silent = np.full((5, 3), -1)
  summary = consistency.summarise(silent, np.zeros(5, int), ['en', 'zh', 'vi'])
  assert (
    summary.accuracy == 0
    and summary.unparsed_rate == 1
    and set(summary.consistency.values()) == {0.0}
  )
  assert summary.pairwise_consistency == {'en,zh': 0.0, 'en,vi': 0.0, 'zh,vi': 0.0}


def test_answers_may_differ_between_languages():
  answers = np.array([[0, 1], [1, 0]])
  assert consistency.accuracy(answers.copy(), answers) == 1.0


def test_constant_answers_are_warned_about():
  generator = np.random.default_rng(1)
  answers = generator.integers(0, 4, 500)
  stuck = np.where(generator.random((500, 4)) < 0.95, 0, generator.integers(0, 4, (500, 4)))
  assert 'hardly vary' in consistency.constant_answer_warning(stuck, answers)
  assert 'hardly vary' in consistency.constant_answer_warning(np.zeros((50, 3), int), answers[:50])
  assert consistency.constant_answer_warning(generator.integers(0, 4, (500, 4)), answers) == ''
  assert consistency.constant_answer_warning(np.tile(answers[:, None], 4), answers) == ''


@pytest.mark.parametrize(
  'choices, text',
  [
    (np.zeros((0, 3), int), 'empty'),
    (np.zeros(3, int), 'shape'),
    (np.zeros((2, 2)), 'integers'),
    (np.full((2, 2), -2), '-2'),
  ],
)
def test_bad_choices_are_named(choices, text):
  with pytest.raises((ValueError, TypeError), match=text):
    consistency.consistency(choices, 2)


def test_bad_group_size_and_languages():
  with pytest.raises(ValueError, match='s = 4'):
    consistency.consistency(np.zeros((2, 3), int), 4)
  with pytest.raises(ValueError, match='twice'):
    consistency.summarise(np.zeros((2, 2), int), np.zeros(2, int), ['en', 'en'])
