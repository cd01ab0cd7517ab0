"""A planted set: questions whose answers have known qualities, and a model that gives them.

The language of an answer, the choice of pivot and pair, the length control and the files are real;
only the model is a stand-in: its answers, vectors and log-probabilities are planted.
"""

import re

import numpy as np

from crossin_jax.decoding.schedule import Generation
from crossin_jax.pairs import answers as answers_lib
from crossin_jax.pairs.questions import Asked, Question

SENTENCES = {
  'en': 'The old harbour lies at the mouth of the river, and the boats leave early every morning. ',
  'es': 'El puerto viejo está en la boca del río, y los barcos salen temprano todas las mañanas. ',
  'ur': 'پرانی بندرگاہ دریا کے دہانے پر ہے، اور کشتیاں ہر صبح سویرے روانہ ہوتی ہیں۔ ',
}
DIMENSIONS = 24


def text_of(question: int, sample: int, quality: float, language: str, sentences: int) -> str:
  """An answer that says what it is."""
  return f'({question}.{sample} {quality:.3f}) {SENTENCES[language] * sentences}'.strip()


def quality_of(text: str) -> float:
  return float(re.match(r'\(\d+\.\d+ ([\d.]+)\)', text)[1])


def planted(questions: int, languages, samples: int = 10, seed: int = 0):
  """Questions, and their answers by (id, language).

  Of 10 answers 3 are good and 3 bad; a very long and a very short one are one of the best and one
  of the worst, either way round; 2 are in another language and score highest.
  """
  rng = np.random.default_rng(seed)
  asked, made = [], {}
  for number in range(questions):
    own = {language: Asked(f'{SENTENCES[language]} {number}?') for language in languages}
    asked.append(Question(str(number), own))
    for language in languages:
      others = [code for code in languages if code != language]
      kinds = ['good'] * 3 + ['bad'] * 3 + ['long', 'short'] + ['elsewhere'] * (samples - 8)
      best = rng.choice(['long', 'short'])
      texts = []
      for sample, kind in enumerate(rng.permutation(kinds)):
        is_good = kind in ('good', best)
        quality = rng.uniform(0.85, 1) if is_good else rng.uniform(0, 0.15)
        quality = 1.0 if kind == 'elsewhere' else quality
        written = rng.choice(others) if kind == 'elsewhere' else language
        length = {'long': 12, 'short': 1}.get(kind, int(rng.integers(2, 6)))
        texts.append(text_of(number, sample, quality, written, length))
      made[str(number), language] = texts
  return asked, made


class Prompts:
  """Ids of texts: the texts themselves."""

  def tokens(self, row):
    return [row['instruction']]

  def response(self, row, text):
    return [text]


class Model:
  """Answers, vectors and log-probabilities that were planted."""

  prompts = Prompts()

  def __init__(self, made, per_character: float = 0.0, seed: int = 0):
    """Args:
    made: (id, language) -> texts.
    per_character: nats that each character of an answer adds to its log-probability.
    seed: of the noise.
    """
    self._made, self._per_character = made, per_character
    self._rng = np.random.default_rng(seed)
    self._right = np.random.default_rng(7).standard_normal(DIMENSIONS)

  def answers(self, questions, languages, finished=lambda tokens: None):
    found = []
    for question in questions:
      for language in languages:
        texts = self._made[question.id, language]
        made = [Generation(0, i, [1], 'stop', f' {text}\n') for i, text in enumerate(texts)]
        for _ in made:
          finished(1)
        found.append(answers_lib.of_generations(question, language, made))
    return found

  def vectors(self, texts):
    """A common component, the right answer in the share that is the quality, and noise."""
    rows = []
    for text in texts:
      quality = quality_of(text) if text.startswith('(') else 0.5
      noise = self._rng.standard_normal(DIMENSIONS)
      rows.append(5.0 + quality * self._right + (1 - quality) * noise)
    return np.array(rows, np.float32)

  def log_probabilities(self, prefixes, continuations):
    assert all('harbour' in text for (text,) in prefixes), 'scored behind the English prompt'
    score = lambda text: 20 * quality_of(text) + self._per_character * len(text)
    return [
      np.array([score(text) + self._rng.normal(0, 2) for (text,) in own]) for own in continuations
    ]


class Reference(Model):
  """Gives all answers the same."""

  def log_probabilities(self, prefixes, continuations):
    return [np.zeros(len(own)) for own in continuations]
