"""A model that answers questions in several languages and scores texts."""

from collections.abc import Callable, Sequence

import numpy as np

from crossin_jax import config
from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.decoding import nonfinite
from crossin_jax.decoding.generate import check_vocabulary
from crossin_jax.decoding.generation import Generator
from crossin_jax.decoding.sampling import Sampling
from crossin_jax.decoding.schedule import Prompt
from crossin_jax.decoding.scoring import continuation_losses
from crossin_jax.decoding.text_vectors import mean_states
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.pairs import answers as answers_lib
from crossin_jax.pairs.answers import Answers
from crossin_jax.pairs.questions import Question, asked_of

# As ICR samples (arXiv 2503.04647). What gin binds comes first.
_DEFAULTS = {'samples': 10, 'temperature': 0.9}


def sampling() -> Sampling:
  """The gin settings; 10 answers at temperature 0.9 where gin says nothing."""
  unset = {k: v for k, v in _DEFAULTS.items() if config.bound(f'Sampling.{k}') is None}
  return Sampling(**unset)


@config.configurable(commands=())
class Sampler:
  """A checkpoint on the devices."""

  def __init__(
    self,
    source: SavedModel,
    module,
    *,
    prompt_tokens: int = 1024,
    vector_tokens: int = 1024,
    length: int = 512,
    rows: int = 32,
    partitioner=Partitioner,
  ):
    """Args:
    source: the checkpoint.
    module: its model.
    prompt_tokens: a question with a longer prompt is left out.
    vector_tokens: the vector of a text is that of its first so many tokens.
    length, rows: size of a batch that is scored.
    partitioner: mesh and axis rules.
    """
    self.prompts = source.prompts
    check_vocabulary(module, self.prompts.vocabulary)
    self._prompt_tokens, self._vector_tokens = prompt_tokens, vector_tokens
    self._length, self._rows = length, rows
    self._partition = partitioner()
    self._partition.suit(module, training=False)
    with self._partition.activate():
      # Scores use the generator's copy of the parameters.
      self._generator = Generator(
        module, source.params(module, self._partition), self._partition, bos_id=None,
        stop_ids=source.stop_ids, sampling=sampling(), decode=self.prompts.vocabulary.decode,
      )  # fmt: skip

  def answers(
    self,
    questions: Sequence[Question],
    languages: Sequence[str],
    finished: Callable[[int], None] = lambda tokens: None,
  ) -> list[Answers]:
    """The answers to questions, by question and language, where a language asks it.

    Args:
      questions: to answer.
      languages: to ask them in.
      finished: called with the number of tokens of each answer as it ends.

    Raises:
      NonFiniteLogits: names question and language.
    """
    asked = asked_of(questions, languages)
    tokens = [self.prompts.tokens(q.asked[language].row) for q, language in asked]
    fits = [i for i, ids in enumerate(tokens) if len(ids) <= self._prompt_tokens]
    prompts = [Prompt(tokens[i], answers_lib.prompt_id(*asked[i])) for i in fits]
    name = lambda index: f'question {asked[fits[index]][0].id!r} in {asked[fits[index]][1]}'
    made: dict[int, list] = {i: [] for i in fits}
    with self._partition.activate(), nonfinite.naming(name):
      for generation in self._generator.stream(prompts):
        made[fits[generation.index]].append(generation)
        finished(len(generation.tokens))
    return [
      answers_lib.of_generations(*one, sorted(made[i], key=lambda answer: answer.sample))
      if i in made
      else Answers(one[0].id, one[1], left_out='prompt_too_long')
      for i, one in enumerate(asked)
    ]

  def log_probabilities(
    self, prefixes: Sequence[list[int]], continuations: Sequence[Sequence[list[int]]]
  ) -> list[np.ndarray]:
    """log p of each continuation of each prefix, summed over its tokens, in nats; float64.

    Raises:
      NonFiniteLikelihood: names the prefix.
    """
    with self._partition.activate():
      losses = continuation_losses(
        self._generator.model, self._generator.params, self._partition, prefixes, continuations,
        bos_id=None, length=self._length, rows=self._rows,
      )  # fmt: skip
    return [-found for found in losses]

  def vectors(self, texts: Sequence[str]) -> np.ndarray:
    """Mean hidden states of texts, float32 [texts, width]."""
    vocabulary = self.prompts.vocabulary
    tokens = [vocabulary.encode(text)[: self._vector_tokens] for text in texts]
    with self._partition.activate():
      return mean_states(
        self._generator.model, self._generator.params, self._partition, tokens,
        bos_id=vocabulary.bos_id, rows=self._rows,
      )  # fmt: skip
