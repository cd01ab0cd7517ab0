"""Sampled answers to a question in one language, as chunk files have them."""

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
from typing import Any

from crossin_jax import language_id
from crossin_jax.data import characters
from crossin_jax.decoding.schedule import Generation
from crossin_jax.evaluation.answers.options import options_of
from crossin_jax.evaluation.responses.measure import identified
from crossin_jax.languages import with_letters
from crossin_jax.pairs.questions import Question
from crossin_jax.storage.files import write_jsonl
from crossin_jax.storage.records import read_records

SURE = 0.5  # confidence from which the identified language of an answer counts


@dataclasses.dataclass(frozen=True)
class Answer:
  """One answer.

  Attributes:
    text: without white space around it.
    finish_reason: of `schedule.Generation`.
    language: identified with a confidence of at least SURE, else ''; '' where `language_id` does
      not know the language of the question.
    score: of a mode of `crossin pairs`; None before it, and of an unusable answer.
  """

  text: str
  finish_reason: str
  language: str
  score: float | None = None

  @property
  def unusable(self) -> str:
    """Why no pair can hold it, '' = one can."""
    return characters.fault(self.text) if self.text else 'empty'

  def fault(self, language: str) -> str:
    """Why it can never be chosen as an answer in a language; '' = it can."""
    if self.unusable:
      return self.unusable
    if self.finish_reason == 'length':
      return 'cut_off'
    return 'wrong_language' if self.language not in ('', language) else ''


@dataclasses.dataclass(frozen=True)
class Answers:
  """The answers to a question in one language.

  Attributes:
    id, language: of the question.
    answers: by sample.
    left_out: why there are none, or why they have no scores; '' = they have.
  """

  id: str
  language: str
  answers: tuple[Answer, ...] = ()
  left_out: str = ''

  def scored(self, scores: Sequence[float]) -> 'Answers':
    """With scores for the usable answers, in their order."""
    left = iter(scores)
    answers = [
      a if a.unusable else dataclasses.replace(a, score=float(next(left))) for a in self.answers
    ]
    return dataclasses.replace(self, answers=tuple(answers))

  @property
  def texts(self) -> list[str]:
    """Of the usable answers."""
    return [answer.text for answer in self.answers if not answer.unusable]


def of_generations(question: Question, language: str, generations: Sequence[Generation]) -> Answers:
  """The answers of the model, with their languages."""
  choices, is_checked = question.asked[language].choices, not unknown_languages([language])
  answers = []
  for made in generations:
    text = made.text.strip()
    written_in = _language(text, choices) if is_checked else ''
    answers.append(Answer(text, made.finish_reason, written_in))
  return Answers(question.id, language, tuple(answers))


def _language(text: str, choices: Sequence[str]) -> str:
  """The language of an answer; '' for one that is an option, whatever it looks like."""
  if not text or choices and options_of(tuple(choices)).equal(text) is not None:
    return ''
  code, confidence = identified(text)
  return code if confidence >= SURE else ''


def unknown_languages(languages: Sequence[str]) -> list[str]:
  """Languages that `language_id` never identifies, so that answers in them cannot be checked."""
  known = {*language_id.CANDIDATES, *(code for code, _ in with_letters())}
  return [language for language in languages if language not in known]


def prompt_id(question: Question, language: str) -> int:
  """The id that seeds the draws of a prompt: of the question and the language, of nothing else."""
  digest = hashlib.sha256(f'{language}\0{question.id}'.encode('utf-8', 'surrogatepass')).digest()
  return int.from_bytes(digest[:4], 'big') >> 1


def write(path: str, found: Sequence[Answers]) -> None:
  """Writes a chunk, atomically."""
  write_jsonl(path, map(dataclasses.asdict, found))


def read(path: str) -> Iterator[Answers]:
  """The answers of a chunk."""
  for _, row in read_records(path):
    fields: dict[str, Any] = row | {'answers': tuple(Answer(**one) for one in row['answers'])}
    yield Answers(**fields)
