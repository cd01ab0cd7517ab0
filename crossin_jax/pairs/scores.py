"""What makes one answer better than another: nearness to the English pivot, or implicit reward.

Letters: N, M texts, D dimensions.
"""

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np

from crossin_jax import config
from crossin_jax.decoding import nonfinite, text_vectors
from crossin_jax.evaluation.answers.strict import strict
from crossin_jax.pairs.answers import Answers
from crossin_jax.pairs.questions import Question
from crossin_jax.pairs.sampler import Sampler

PIVOT = 'en'
CENTRE = 256  # prompts of a language whose mean vector is subtracted
# Questions and their answers, by question and language -> the answers with scores.
Scorer = Callable[[Sequence[Question], Sequence[Answers]], list[Answers]]


# ---- nearness ----


@config.configurable(commands=())
@dataclasses.dataclass(frozen=True)
class SentenceEmbedder:
  """Vectors of a model of sentence-transformers, for `nearness.embedder`.

  Attributes:
    name: name or path of the model; it should know all languages of the pairs.
  """

  name: str

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """float32 [texts, D]."""
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return text_vectors.sentence_vectors([*place], self.name)[[place[text] for text in texts]]


@config.configurable(commands=())
def nearness(
  sampler: Sampler,
  questions: Sequence[Question],
  *,
  embedder: Callable[[Sequence[str]], np.ndarray] | None = None,
) -> Scorer:
  """Scores by nearness to the pivot: the English answer that agrees most with the other English
  ones (CM-Align, arXiv 2509.08541).

  Of a question with options, answers are near (1) if they name the option of the pivot, else far
  (0). Of the others nearness is the cosine of vectors.

  Args:
    sampler: the model. Its vectors are mean hidden states less their mean over the first 256
      prompts of the language: the large component that all texts share says nothing.
    questions: all of them.
    embedder: a function (texts) -> vectors, float [texts, D], used in place of hidden states:
      `@SentenceEmbedder()`.
  """
  centres: dict[str, np.ndarray] = {}

  def vectors(texts: Sequence[str], language: str) -> np.ndarray:
    if not texts:
      return np.zeros((0, 1), np.float32)
    if embedder is not None:
      return _unit(np.asarray(embedder(texts), np.float32))
    if language not in centres:
      prompts = [q.asked[language].prompt for q in questions if language in q.asked]
      prompts = [prompt for prompt in prompts if isinstance(prompt, str)][:CENTRE]
      centres[language] = sampler.vectors(prompts).mean(0) if len(prompts) > 1 else np.zeros(1)
    return _unit(sampler.vectors(texts) - centres[language])

  def score(asked: Sequence[Question], found: Sequence[Answers]) -> list[Answers]:
    by_id = {question.id: question for question in asked}
    in_words = [one for one in found if not by_id[one.id].asked[one.language].choices]
    vectors_of = {}
    # One call for a language: each would read its texts in batches of its own.
    for language in dict.fromkeys(one.language for one in in_words):
      own = [one for one in in_words if one.language == language]
      split = np.cumsum([len(one.texts) for one in own])[:-1]
      parts = np.split(vectors([text for one in own for text in one.texts], language), split)
      vectors_of.update(zip(((one.id, language) for one in own), parts))
    pivots = {one.id: one for one in found if one.language == PIVOT}
    return [
      _near(by_id[one.id], one, pivots.get(one.id), vectors_of) if not one.left_out else one
      for one in found
    ]

  return score


def _near(question: Question, own: Answers, english: Answers | None, vectors_of: dict) -> Answers:
  """The answers of a language, scored by nearness to the pivot."""

  def alike(one: Answers, other: Answers) -> np.ndarray:
    """float [N, M]: agreement of their texts."""
    if (one.id, one.language) in vectors_of:
      found = vectors_of[one.id, one.language] @ vectors_of[other.id, other.language].T
      return found.astype(np.float64)
    a, b = (_options(question, answers) for answers in (one, other))
    return ((a[:, None] == b) & (a[:, None] >= 0)).astype(np.float64)

  if not own.texts:
    return own
  if english is None or english.left_out:
    return dataclasses.replace(own, left_out='no_english_answer')
  has_options = {bool(question.asked[one.language].choices) for one in (own, english)}
  if len(has_options) > 1:
    return dataclasses.replace(own, left_out='choices_differ')
  may_be = np.array([not a.fault(PIVOT) for a in english.answers if not a.unusable], bool)
  if not may_be.any():
    return dataclasses.replace(own, left_out='no_pivot')
  agreement = alike(english, english)
  mean = (agreement.sum(1) - agreement.diagonal()) / max(1, len(agreement) - 1)
  pivot = int(np.argmax(np.where(may_be, mean, -np.inf)))
  return own.scored(np.round(alike(own, english)[:, pivot], 6))


def _options(question: Question, answers: Answers) -> np.ndarray:
  """The option that each text names, -1 = none; int [N]."""
  choices = question.asked[answers.language].choices
  return np.array([strict(text, choices, answers.language) for text in answers.texts], int)


def _unit(vectors_ND: np.ndarray) -> np.ndarray:
  if not np.isfinite(vectors_ND).all():
    raise ValueError(
      'vectors of answers are not finite: the weights are damaged, or they overflow in the '
      'precision of the model or embedder; try DecoderConfig.dtype=float32'
    )
  norms = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
  return np.divide(vectors_ND, norms, out=np.zeros_like(vectors_ND), where=norms > 1e-9)


# ---- implicit reward ----


def implicit_reward(sampler: Sampler, reference: Sampler) -> Scorer:
  """Scores by log p(answer | English prompt) less that of a reference, in nats, summed over tokens
  and the stop token (ICR, arXiv 2503.04647).

  Args:
    sampler: a model that was tuned on English preferences.
    reference: what it was tuned from; it reads the tokens of the sampler's prompts.
  """

  def score(asked: Sequence[Question], found: Sequence[Answers]) -> list[Answers]:
    english = {question.id: question.asked[PIVOT].row for question in asked}
    kept = [one for one in found if one.texts]
    prefixes = [sampler.prompts.tokens(english[one.id]) for one in kept]
    options = [
      [sampler.prompts.response(english[one.id], text) for text in one.texts] for one in kept
    ]
    name = lambda i: f'question {kept[i].id!r}, answers in {kept[i].language}'
    with nonfinite.naming(name):
      own, before = (model.log_probabilities(prefixes, options) for model in (sampler, reference))
    scored = {
      (one.id, one.language): one.scored(np.round(after - earlier, 4))
      for one, after, earlier in zip(kept, own, before)
    }
    return [scored.get((one.id, one.language), one) for one in found]

  return score
