"""Guessers that a model must beat."""

import collections

import numpy as np

from crossin_jax.evaluation.questions import Questions


def guessers(questions: Questions, world) -> dict[str, np.ndarray]:
  """Choices of two guessers that know no fact; they must be at chance.

  'lexical overlap' takes the choice that shares the largest part of its character bigrams with the
  question, 'frequency' the choice that English states most often for that relation. The index of
  the item resolves ties.

  Returns:
    name -> int [items, languages].
  """
  bigrams = lambda text: {text[i : i + 2].lower() for i in range(len(text) - 1)} or {text.lower()}
  overlap = np.empty(questions.answers.shape, np.int64)
  for i, item in enumerate(questions.rows):
    for j, row in enumerate(item):
      question = bigrams(row['instruction'])
      shared = [len(bigrams(c) & question) / len(bigrams(c)) for c in row['choices']]
      best = np.flatnonzero(np.isclose(shared, max(shared)))
      overlap[i, j] = best[i % len(best)]
  stated = collections.Counter(
    (fact.relation, fact.value) for fact in world.facts if 'en' in fact.told_in
  )
  frequency = np.empty(questions.answers.shape, np.int64)
  by_id = {question.id: question for question in world.questions}
  for i, id_ in enumerate(questions.ids):
    counts = [stated[by_id[id_].fact.relation, key] for key in by_id[id_].options]
    best = np.flatnonzero(np.asarray(counts) == max(counts))
    frequency[i] = best[i % len(best)]
  return {'lexical overlap': overlap, 'frequency': frequency}
