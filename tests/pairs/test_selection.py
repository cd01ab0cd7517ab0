"""Which pairs come of planted answers: better over worse, in the language, equally long."""

from collections import Counter

import hypothesis
from hypothesis import strategies as st
import numpy as np
import planted
import pytest

from crossin_jax.decoding.nonfinite import NonFiniteLikelihood
from crossin_jax.decoding.schedule import Generation
from crossin_jax.pairs import results
from crossin_jax.pairs.answers import Answer, Answers, of_generations
from crossin_jax.pairs.chunks import Chunks
from crossin_jax.pairs.questions import Asked, Question
from crossin_jax.pairs.scores import implicit_reward, nearness
from crossin_jax.pairs.selection import STEPS, Candidates, candidates, length_alpha, pick

pytest.importorskip('py3langid', reason='language identification: pip install crossin-jax[lid]')
LANGUAGES = ['en', 'es', 'ur']
QUESTIONS = 300


def pairs_of(tmp_path, questions, scorer, model, by, controlled):
  """The rows, and figures by language, as `crossin pairs` makes them from chunk files."""
  chunks = Chunks(str(tmp_path), questions, 16)
  worker = lambda: lambda part, done: scorer(part, model.answers(part, LANGUAGES, done))
  chunks.compute(worker, (0, 1), lambda question: 40)
  assert chunks.missing() == []
  alphas = results.alphas(chunks, LANGUAGES, by) if controlled else {}
  tally = results.Tally(Counter())
  rows = list(results.rows_of(chunks, LANGUAGES, by, alphas, tally))
  return rows, tally.figures(LANGUAGES, alphas)


def precision(rows) -> float:
  better = [planted.quality_of(row.chosen) > planted.quality_of(row.rejected) for row in rows]
  return float(np.mean(better))


def check_languages(rows, made):
  """Planted answers in another language score highest and are never chosen."""
  for row in rows:
    own = planted.SENTENCES[row.language].split()[0]
    assert row.chosen.split(') ')[1].startswith(own), row
    texts = made[row.id.split('.')[0], row.language]
    assert row.chosen in texts and row.rejected in texts


def test_a_planted_set_by_implicit_reward(tmp_path):
  """Rewards grow with length, as sums over tokens do; the length control takes that away."""
  questions, made = planted.planted(QUESTIONS, LANGUAGES)
  model = planted.Model(made, per_character=0.05)
  scorer = implicit_reward(model, planted.Reference(made))
  rows, figures = pairs_of(tmp_path, questions, scorer, model, 'implicit', True)
  assert len(rows) == 3 * QUESTIONS and precision(rows) >= 0.95
  check_languages(rows, made)
  for language, own in figures.items():
    assert abs(own.characters['difference']) < 2 and own.alpha > 0, (language, own)
    assert own.questions == own.pairs == QUESTIONS and own.left_out == {}
    assert own.answers == {'sampled': 10 * QUESTIONS, 'wrong_language': 2 * QUESTIONS}
    assert own.identified[language] == 8 * QUESTIONS
  rows, figures = pairs_of(tmp_path, questions, scorer, model, 'implicit', False)
  assert precision(rows) < 0.8, 'without it'
  assert all(own.characters['difference'] > 100 for own in figures.values())


@pytest.mark.parametrize('embedded', [False, True])
def test_a_planted_set_by_pivot(tmp_path, embedded):
  questions, made = planted.planted(QUESTIONS, LANGUAGES, seed=1)
  model = planted.Model(made)
  own, embedder = model.vectors, None
  if embedded:
    model.vectors, embedder = None, lambda texts: own(texts) - 5.0
  scorer = nearness(model, questions, embedder=embedder)
  rows, figures = pairs_of(tmp_path, questions, scorer, model, 'pivot', False)
  assert precision(rows) >= 0.95 and len(rows) == 3 * QUESTIONS
  check_languages(rows, made)
  assert all(own.alpha is None for own in figures.values())
  # With the length control the pairs are still of better and worse. Another pair of answers changes
  # the mean by up to 1,000 characters / 300.
  rows, controlled = pairs_of(tmp_path, questions, scorer, model, 'pivot', True)
  assert precision(rows) >= 0.95
  for language, own in controlled.items():
    before, after = (abs(one.characters['difference']) for one in (figures[language], own))
    assert after <= min(before, 1000 / QUESTIONS), (language, own)


def test_the_pivot_of_options_is_what_most_english_answers_say():
  """Near is the same option as the pivot, in the words of each language."""
  asked = {
    'en': Asked('Which?', ('(A) red', '(B) blue')), 'es': Asked('¿Cuál?', ('(A) rojo', '(B) azul'))
  }  # fmt: skip
  texts = {'en': ['B', 'red', 'blue', '(B) blue', 'Hm.'], 'es': ['azul', '(A) rojo', 'no sé', 'B']}
  found = [
    Answers('q', code, tuple(Answer(text, 'stop', '') for text in own))
    for code, own in texts.items()
  ]
  english, spanish = nearness(None, [])([Question('q', asked)], found)
  assert [answer.score for answer in english.answers] == [1, 0, 1, 1, 0]
  assert [answer.score for answer in spanish.answers] == [1, 0, 0, 1]
  picked = pick(candidates(spanish))
  assert (picked.chosen, picked.rejected, picked.margin) == (0, 1, 1.0)


def test_without_a_pivot_there_are_no_pairs():
  spoken = tuple(Answer('hola amigos', 'stop', 'es', None) for _ in range(2))
  found = [Answers('q', 'en', spoken), Answers('q', 'es', spoken)]
  model = planted.Model({})
  model.vectors = lambda texts: np.ones((len(texts), 3))
  question = Question('q', {'en': Asked('Hello?'), 'es': Asked('¿Hola?')})
  scored = nearness(model, [question])([question], found)
  assert [one.left_out for one in scored] == ['no_pivot', 'no_pivot']
  long = [Answers('q', 'en', left_out='prompt_too_long'), found[1]]
  scored = nearness(model, [question])([question], long)
  assert [one.left_out for one in scored] == ['prompt_too_long', 'no_english_answer']


def test_vectors_and_rewards_that_are_not_finite():
  question = Question('q', {'en': Asked(planted.SENTENCES['en'])})
  found = [Answers('q', 'en', (Answer('one', 'stop', ''), Answer('two', 'stop', '')))]
  broken = lambda texts: np.full((len(texts), 3), np.nan)
  with pytest.raises(ValueError, match='vectors of answers are not finite'):
    nearness(None, [question], embedder=broken)([question], found)

  class Broken(planted.Reference):
    def log_probabilities(self, prefixes, continuations):
      raise NonFiniteLikelihood('prefix 1 of 1', 0)

  with pytest.raises(NonFiniteLikelihood, match="question 'q', answers in en: the log-prob"):
    implicit_reward(planted.Reference({}), Broken({}))([question], found)


def test_answers_that_are_never_chosen():
  texts = {
    '': 'empty', 'a\x00b': 'control_characters', 'cut': 'cut_off', 'falsch': 'wrong_language',
  }  # fmt: skip
  made = tuple(
    Answer(text, 'length' if fault == 'cut_off' else 'stop', 'de' * (fault == 'wrong_language'))
    for text, fault in texts.items()
  )
  own = Answers('q', 'en', made)
  assert [answer.fault('en') for answer in made] == list(texts.values())
  own = candidates(own.scored([5.0, 4.0]))
  assert own.texts == ['cut', 'falsch'] and pick(own) == 'nothing_to_choose'
  best = Answers('q', 'en', (Answer('good', 'stop', 'en', 1.0), Answer('cut', 'length', '', 5.0)))
  assert pick(candidates(best)) == 'no_worse_answer'
  twice = Answers('q', 'en', (Answer('good', 'stop', '', 1.0), Answer('good', 'stop', '', 0.9)))
  assert pick(candidates(twice)) == 'no_worse_answer'


def test_what_the_language_check_says():
  spanish = planted.SENTENCES['es']
  made = [
    Generation(0, i, [1], 'stop', text) for i, text in enumerate((spanish, 'Lima Torres', 'B'))
  ]
  identified = lambda language, *choices: [
    answer.language
    for answer in of_generations(
      Question('q', {language: Asked('?', choices)}), language, made
    ).answers
  ]
  assert identified('en') == ['es', '', ''], 'a name says nothing'
  assert identified('en', spanish, 'x') == ['', '', ''], 'an option is what it is'
  assert identified('mi') == ['', '', ''], 'not among those that are identified'


numbers = st.integers(-50, 50).map(float)
lists = st.lists(
  st.tuples(numbers, st.integers(1, 400).map(float), st.booleans()), min_size=1, max_size=6
)


@hypothesis.given(st.lists(lists, min_size=1, max_size=6))
def test_no_alpha_of_the_grid_is_better(questions):
  """Against the definition, written out for one alpha after the other."""
  own = [
    Candidates([str(i) for i in range(len(one))], *map(np.array, zip(*one))) for one in questions
  ]

  def difference(alpha: float) -> float:
    found = []
    for one in own:
      picked = pick(one, alpha)
      if not isinstance(picked, str):
        assert one.may_choose_K[picked.chosen] and picked.margin > 0
        found.append(one.length_K[picked.chosen] - one.length_K[picked.rejected])
    return abs(np.mean(found)) if found else np.inf

  found = difference(length_alpha(lambda: own, 'implicit'))
  assert found <= min(difference(alpha) for alpha in np.linspace(0, 1, STEPS + 1)[::37])
