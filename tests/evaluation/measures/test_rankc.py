"""RankC against its definition, written out, and on cases worked by hand."""

import math

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from crossin_jax.evaluation.asking import Answers, choice_summary
from crossin_jax.evaluation.measures.rankc import rankc, rankc_of_item
from crossin_jax.evaluation.questions import Questions


def as_defined(one, other):
  """Sets of the first j, as the paper writes it."""
  size = len(one)
  rank = lambda losses: sorted(range(size), key=lambda i: (losses[i], i))
  weights = [math.exp(size - j) for j in range(1, size + 1)]
  shares = [len(set(rank(one)[:j]) & set(rank(other)[:j])) / j for j in range(1, size + 1)]
  return sum(w * s for w, s in zip(weights, shares)) / sum(weights)


@hypothesis.given(st.data(), st.integers(1, 12))
def test_is_the_sum_over_sets(data, size):
  losses = st.lists(st.integers(0, 5), min_size=size, max_size=size)
  one, other = data.draw(losses), data.draw(losses)
  found = rankc_of_item(np.array(one, float), np.array(other, float))
  np.testing.assert_allclose(found, as_defined(one, other), rtol=1e-12)
  np.testing.assert_allclose(rankc_of_item(np.array(one), np.array(one)), 1.0)


def test_by_hand():
  """Three options: P@1 = 0, P@2 = 1/2, P@3 = 1 with weights e^2, e, 1."""
  e = math.e
  expected = (e / 2 + 1) / (e**2 + e + 1)
  np.testing.assert_allclose(rankc_of_item(np.array([0, 1, 2]), np.array([2, 0, 1])), expected)
  # the first choice weighs most: equal first, the others swapped
  np.testing.assert_allclose(
    rankc_of_item(np.array([0, 1, 2]), np.array([0, 2, 1])), (e**2 + e / 2 + 1) / (e**2 + e + 1)
  )


def test_many_options_do_not_overflow():
  losses = np.random.default_rng(0).random((2, 2000))
  assert 0 <= rankc_of_item(*losses) <= 1


def test_languages_and_items():
  same, other = np.array([0.0, 1, 2]), np.array([2.0, 0, 1])
  found = rankc([[same, same, other], [same, other, other]])
  low = rankc_of_item(same, other)
  np.testing.assert_allclose(found, found.T)
  np.testing.assert_allclose(np.diag(found), 1)
  np.testing.assert_allclose(
    [found[0, 1], found[0, 2], found[1, 2]], [(1 + low) / 2, low, (low + 1) / 2]
  )


def test_other_options_are_refused():
  with pytest.raises(ValueError, match='item 0: its languages have 2, 3 options'):
    rankc([[np.zeros(2), np.zeros(3)]])
  with pytest.raises(ValueError, match='no items'):
    rankc([])


def test_summaries_by_likelihood_have_it():
  rows = [[{'choices': ['a', 'b'], 'answer': 0}] * 2] * 2
  questions = Questions('x', ['0', '1'], ['en', 'zh'], rows)
  same, other = np.array([0.0, 1.0]), np.array([1.0, 0.0])
  answers = Answers([['a', 'a'], ['a', 'b']], [[same, same], [same, other]])
  summary, _ = choice_summary(questions, answers)
  np.testing.assert_allclose(summary.rankc['en,zh'], (1 + rankc_of_item(same, other)) / 2)
  assert summary.all_right == 0.5
  assert choice_summary(questions, Answers(answers.texts))[0].rankc is None
