"""Questions that are asked in several languages: any rows, or prompts without answers."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import Any

from crossin_jax.data import characters, conversations, readers, tables
from crossin_jax.data.conversations import Message
from crossin_jax.data.pair_rows import Counts
from crossin_jax.data.source_errors import SourceError, at
from crossin_jax.evaluation.record_fields import are_strings

_ANSWER = '-'  # stands for the answer of a row that is only a prompt
_COLUMNS = (*tables.FIELDS, 'choices', 'answer')


@dataclasses.dataclass(frozen=True)
class Asked:
  """A question in one language.

  Attributes:
    prompt: text, or messages that end with a question.
    choices: texts of its options; () = none.
    answer: index of the right one; None = unknown.
  """

  prompt: str | tuple[Message, ...]
  choices: tuple[str, ...] = ()
  answer: int | None = None

  @property
  def row(self) -> dict[str, Any]:
    """What `Prompts.tokens` takes."""
    if isinstance(self.prompt, str):
      return {'instruction': self.prompt, 'input': ''}
    return {'messages': [*self.prompt]}


@dataclasses.dataclass(frozen=True)
class Question:
  """A question: `asked` has it by language code."""

  id: str
  asked: Mapping[str, Asked]


def asked_of(questions: Sequence[Question], languages: Sequence[str]) -> list[tuple[Question, str]]:
  """Each question with each of the languages that ask it."""
  return [(q, language) for q in questions for language in languages if language in q.asked]


def read_questions(
  path: str, languages: Sequence[str], limit: int | None = None, left_out: Counts | None = None
) -> list[Question]:
  """The questions that at least one language asks, in the order of the files.

  Questions are aligned by `id` if all rows of all languages have one, else by their position.

  Args:
    path: STEM of files STEM.<language>.json and so on (`readers.find_files`), or one file whose
      rows have a field `language`. A row is one of `readers.read_rows`, whose answer is not read,
      or has no answer; `choices` (texts) and `answer` (index) are optional.
    languages: codes.
    limit: the first questions only; None = all.
    left_out: counts (language, reason) of rows without a usable prompt; a language that lacks a
      question is counted as 'no_prompt'.

  Raises:
    SourceError: see `readers.read_rows`; an id that occurs twice; files of unequal length without
      ids; no question at all.
  """
  left_out = Counter() if left_out is None else left_out
  columns = _by_language(path, languages)
  by_id = all(id_ is not None for rows in columns.values() for id_, *_ in rows)
  if not by_id and len({len(rows) for rows in columns.values()}) > 1:
    sizes = ', '.join(f'{language} {len(rows)}' for language, rows in columns.items())
    raise SourceError(
      f'{path}: rows without ids are aligned by position, and the languages have unequal numbers '
      f'({sizes}); give every row an id, or fix the files'
    )
  found: dict[str, dict[str, Asked]] = {}
  faults: dict[tuple[str, str], str] = {}
  for language, rows in columns.items():
    seen = set()
    for number, (id_, asked, fault) in enumerate(rows):
      id_ = id_ if by_id else str(number)
      if id_ in seen:
        raise SourceError(f'{path}: two rows in {language!r} have the id {id_!r}; remove one')
      seen.add(id_)
      own = found.setdefault(id_, {})
      if fault:
        faults[language, id_] = fault
      else:
        own[language] = asked
  questions = [Question(id_, own) for id_, own in found.items()][:limit]
  for question in questions:
    for language in columns:
      if language not in question.asked:
        left_out[language, faults.get((language, question.id), 'no_prompt')] += 1
  return questions


def _by_language(path: str, languages: Sequence[str]) -> dict[str, list[tuple]]:
  """Language -> (id or None, question, fault) of its rows."""
  if not readers.is_rows(path):
    files = readers.find_files(path, languages)
    return {
      language: [found[1:] for found in _rows(file, False)] for language, file in files.items()
    }
  columns = {language: [] for language in languages}
  for language, *found in _rows(path, True):
    if language in columns:
      columns[language].append(tuple(found))
  if missing := [language for language, rows in columns.items() if not rows]:
    raise SourceError(
      f'{path}: no row has the language {", ".join(missing)}; give the stem NAME of files '
      "NAME.<language>.json, or a file whose rows have 'language'"
    )
  return columns


def _rows(path: str, with_language: bool) -> Iterator[tuple[str | None, str | None, Asked, str]]:
  """(language, id, question, fault) of the rows of a file."""
  for number, line, fields in readers.read_fields(path, _COLUMNS):
    row = readers.check_row(_answered(fields), path, number, line, with_language)
    prompt = conversations.user_text(*row.texts[:2])
    if row.messages:
      turns = row.messages[:-1]
      prompt = turns[0]['content'] if len(turns) == 1 else turns
    choices, answer = _options(fields, at(path, number, line))
    texts = [prompt] if isinstance(prompt, str) else [turn['content'] for turn in prompt]
    fault = row.fault or ('' if any(map(str.strip, texts)) else 'no_prompt')
    fault = fault or next(filter(None, map(characters.fault, (*texts, *choices))), '')
    yield row.language, row.id, Asked(prompt, choices, answer), fault


def _answered(fields: Any) -> Any:
  """A row with an answer where it has none, and without those of a preference."""
  if not isinstance(fields, dict):
    return fields
  fields = {name: value for name, value in fields.items() if name not in ('chosen', 'rejected')}
  if fields.get('instruction') is not None and fields.get('output') is None:
    return fields | {'output': _ANSWER}
  for name in ('messages', 'conversations'):
    turns = fields.get(name)
    if isinstance(turns, list) and turns and isinstance(turns[-1], dict):
      role = turns[-1].get('role', turns[-1].get('from'))
      if str(role).lower() in ('user', 'human', 'prompter'):
        return fields | {name: [*turns, {'role': 'assistant', 'content': _ANSWER}]}
  if 'instruction' not in fields and 'prompt' in fields and fields.get('completion') is None:
    return fields | {'completion': _ANSWER}
  return fields


def _options(fields: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], int | None]:
  """Options and index of the right one."""
  choices, answer = fields.get('choices'), fields.get('answer')
  if choices is None:
    return (), None
  if not are_strings(choices, least=2):
    raise SourceError(
      f"{where}: field 'choices' must be a list of at least two strings, found {choices!r}; fix it"
    )
  if answer is not None and (isinstance(answer, bool) or not isinstance(answer, int)):
    raise SourceError(f"{where}: field 'answer' must be an index, found {answer!r}; fix it")
  if answer is not None and not 0 <= answer < len(choices):
    raise SourceError(
      f'{where}: answer {answer} is not an index into {len(choices)} choices; it counts from 0'
    )
  return tuple(choices), answer
