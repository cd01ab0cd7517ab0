"""Answers of a model behind an OpenAI-compatible endpoint, `crossin serve` for instance."""

from collections.abc import Callable, Sequence
import dataclasses
import hashlib

from crossin_jax.decoding.sampling import Sampling
from crossin_jax.decoding.schedule import Generation
from crossin_jax.endpoint.client import Endpoint, EndpointError, Request
from crossin_jax.pairs import answers as answers_lib
from crossin_jax.pairs.answers import Answers
from crossin_jax.pairs.questions import Question, asked_of


def requests_of(asked: Sequence[tuple[Question, str]], sampling: Sampling) -> list[Request]:
  """One request for each sample, by question and language.

  The seed of a request depends on the question, the language and the number of the sample. A server
  that reads it answers the same again.
  """
  shared = {
    'temperature': sampling.temperature,
    'top_p': sampling.top_p,
    'max_tokens': sampling.max_new_tokens,
  } | ({'stop': list(sampling.stop)} if sampling.stop else {})
  return [
    Request(
      question.asked[language].row.get('messages')
      or [{'role': 'user', 'content': question.asked[language].prompt}],
      shared | {'seed': _seed(sampling.seed, answers_lib.prompt_id(question, language), sample)},
      sample=sample,
    )
    for question, language in asked
    for sample in range(sampling.samples)
  ]


def _seed(*parts: int) -> int:
  """An int32 that differs for other parts."""
  digest = hashlib.sha256(repr(parts).encode()).digest()
  return int.from_bytes(digest[:4], 'big') >> 1


@dataclasses.dataclass(frozen=True)
class EndpointSampler:
  """What `sampler.Sampler` is for a checkpoint; it has neither vectors nor log-probabilities.

  Attributes:
    endpoint: keeps every reply, so nothing is asked twice.
    sampling: samples, temperature, top_p, max_new_tokens, stop and seed are sent.
  """

  endpoint: Endpoint
  sampling: Sampling

  def answers(
    self,
    questions: Sequence[Question],
    languages: Sequence[str],
    finished: Callable[[int], None] = lambda tokens: None,
  ) -> list[Answers]:
    """See `Sampler.answers`.

    Raises:
      EndpointError: a request failed after all its repeats; those that did not are kept.
    """
    asked, samples = asked_of(questions, languages), self.sampling.samples
    made: list[list] = [[None] * samples for _ in asked]
    for reply in self.endpoint.complete(requests_of(asked, self.sampling), progress=None):
      item, sample = divmod(reply.index, samples)
      if reply.error:
        question, language = asked[item]
        raise EndpointError(
          f'question {question.id!r} in {language} got no answer: {reply.error}. Replies so far '
          'are stored; start the same command again'
        )
      reason = 'length' if reply.finish_reason == 'length' else 'stop'
      made[item][sample] = Generation(item, sample, [], reason, reply.text or '')
      finished(reply.usage.get('completion_tokens', 0))
    return [answers_lib.of_generations(*one, own) for one, own in zip(asked, made)]
