"""Pair rows: a prompt, an answer to prefer and one to avoid; as JSON Lines, or in TRL's layouts.

{"id": "7.zh", "prompt": "树木最常见的运动是什么？", "chosen": "树木不做运动。", "rejected": "足球",
 "language": "zh", "prompt_language": "zh", "margin": 0.31, "how": "pivot"}
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import math
import os
from typing import Any

from crossin_jax.data import characters, conversations
from crossin_jax.data.conversations import Message
from crossin_jax.data.readers import holds_content, read_fields
from crossin_jax.data.source_errors import SourceError, at
from crossin_jax.languages import code_of
from crossin_jax.storage.files import write_jsonl
from crossin_jax.storage.json_rows import describe

# What made a pair: a mode of `crossin pairs`, or the user. 'options' = one half of an instance of
# direct consistency optimisation; the other half has the same id and another language.
HOWS = ('pivot', 'implicit', 'options', 'given')
# Why a row is left out; conversations have those of `conversations.FAULTS` too.
FAULTS = (
  'equal_answers', 'empty_answer', 'no_prompt', 'prompts_differ', 'has_reasoning', 'half_missing',
  *characters.FAULTS,
)  # fmt: skip
_OWN = tuple(f for f in conversations.UNREAD_FIELDS if f not in ('chosen', 'rejected'))
_COLUMNS = (
  'id', 'prompt', 'chosen', 'rejected', 'language', 'prompt_language', 'margin', 'how', 'system',
  'history', *_OWN,
)  # fmt: skip
Counts = Counter[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class PairRow:
  """A pair of answers to one prompt.

  Attributes:
    id: of the pair; the two halves of an instance of `how` 'options' share it.
    prompt: the question as text; a conversation is a tuple of messages that ends with a question.
    chosen, rejected: answers, neither empty nor equal.
    language: code of the answers.
    prompt_language: code of the prompt.
    margin: what the chosen answer scores above the rejected one, in the unit of `how`: cosine
      ('pivot'), nats ('implicit'); None = unknown.
    how: one of HOWS.
  """

  id: str
  prompt: str | tuple[Message, ...]
  chosen: str
  rejected: str
  language: str
  prompt_language: str
  margin: float | None = None
  how: str = 'given'

  def as_json(self) -> dict[str, Any]:
    """The row in a file: the answers to a conversation are messages too, as in TRL."""
    fields = dataclasses.asdict(self)
    if not isinstance(self.prompt, str):
      for name in ('chosen', 'rejected'):
        fields[name] = [{'role': 'assistant', 'content': fields[name]}]
    return fields

  def example(self, answer: str) -> dict[str, Any]:
    """The instruction row of one of the answers, as `prompts.render_example` takes it."""
    if isinstance(self.prompt, str):
      return {'instruction': self.prompt, 'input': '', 'output': answer}
    return {'messages': [*self.prompt, {'role': 'assistant', 'content': answer}]}


def write_pairs(path: str | os.PathLike, rows: Iterable[PairRow]) -> int:
  """Writes a line of JSON for each row, atomically; returns how many there are."""
  return write_jsonl(path, (row.as_json() for row in rows))


def read_pairs(
  path: str, *, language: str | None = None, left_out: Counts | None = None
) -> Iterator[PairRow]:
  """The pairs of a file, in order.

  Fields besides those of `PairRow` are ignored. TRL's layouts, which have no more than prompt,
  chosen and rejected, are read as TRL 1.16 reads them (`trl.data_utils.maybe_extract_prompt`):

      explicit prompt   {"prompt": "Name a colour.", "chosen": "Red.", "rejected": "Seven."}
      implicit prompt   {"chosen": "Q: A colour? A: Red.", "rejected": "Q: A colour? A: Seven."}
                        = prompt 'Q: A colour? A:', chosen ' Red.', rejected ' Seven.'
      conversations     {"prompt": [{"role": "user", "content": "Name a colour."}],
                         "chosen": [{"role": "assistant", "content": "Red."}], "rejected": [...]}
                        or all turns in chosen and rejected

  Unlike TRL, an answer with which the other one begins is empty, not its last character.

  Args:
    path: JSON, JSON Lines, Parquet or a saved dataset, see `readers.read_rows`.
    language: code of the rows that have no field `language`.
    left_out: counts (language, reason of FAULTS or `conversations.FAULTS`) of rows that cannot be
      used, which are not yielded.

  Raises:
    SourceError: a file that cannot be read; a row that is no object; a field that is missing or of
      the wrong type; an unknown language.
  """
  left_out = Counter() if left_out is None else left_out
  for number, line, fields in read_fields(path, _COLUMNS):
    row, fault = _checked(fields, path, number, line, language)
    if fault:
      left_out[row.language, fault] += 1
    else:
      yield row


def instances(rows: Iterable[PairRow], left_out: Counts | None = None) -> Iterator[tuple]:
  """What a loss counts as one: a pair alone, or the two halves of `how` 'options'.

  Args:
    rows: halves in any order.
    left_out: counts (language, 'half_missing') of halves without another one in another language.

  Yields:
    (row,) or (first half, second half), where the last of them stands.
  """
  left_out = Counter() if left_out is None else left_out
  waiting: dict[str, PairRow] = {}
  for row in rows:
    if row.how != 'options':
      yield (row,)
    elif row.id not in waiting:
      waiting[row.id] = row
    elif waiting[row.id].language == row.language:
      left_out[row.language, 'half_missing'] += 1
    else:
      yield waiting.pop(row.id), row
  left_out.update((row.language, 'half_missing') for row in waiting.values())


def _checked(
  fields: Any, path: str, number: int, line: int | None, language: str | None
) -> tuple[PairRow, str]:
  """A row and its fault, '' = none."""
  refuse = lambda text: SourceError(f'{at(path, number, line)}: {text}')
  if not isinstance(fields, dict):
    raise refuse(
      f'a pair must be an object with prompt, chosen and rejected, found {describe(fields)}; fix '
      'or remove it'
    )
  language = _language(fields, 'language', language, refuse)
  if language is None:
    raise refuse("field 'language' is missing; add it, or set PairFiles.language (PAIR_LANGUAGE)")
  prompt_language = _language(fields, 'prompt_language', language, refuse)
  prompt, chosen, rejected, fault = _sides(fields, refuse)
  if any(holds_content(fields.get(field)) for field in _OWN):
    fault = fault or 'unread_field'
  margin, how, id_ = fields.get('margin'), fields.get('how') or 'given', fields.get('id')
  if margin is not None and (
    isinstance(margin, bool) or not isinstance(margin, (int, float)) or not math.isfinite(margin)
  ):
    raise refuse(
      f"field 'margin' must be a finite number, found {describe(margin)}; fix or remove it"
    )
  if how not in HOWS:
    raise refuse(f"field 'how' must be one of {', '.join(HOWS)}, found {describe(how)}; fix it")
  if isinstance(id_, bool) or not isinstance(id_, (str, int, type(None))) or id_ == '':
    raise refuse(
      f"field 'id' must be an integer or a non-empty string, found {describe(id_)}; fix it"
    )
  id_ = str(number if id_ is None else id_)
  return PairRow(id_, prompt, chosen, rejected, language, prompt_language, margin, how), fault


def _language(fields: Mapping[str, Any], field: str, default: str | None, refuse) -> str | None:
  value = fields.get(field)
  if value is None:
    return default
  if not isinstance(value, str):
    raise refuse(
      f"field {field!r} must be a string, found {describe(value)}; write a code like 'zh'"
    )
  try:
    return code_of(value)
  except ValueError as error:
    raise refuse(f'field {field!r}: {error}; fix the field, or remove the row') from None


def _sides(fields: Mapping[str, Any], refuse) -> tuple[str | tuple[Message, ...], str, str, str]:
  """Prompt, chosen, rejected and the fault of a row."""
  for field in ('chosen', 'rejected'):
    if field not in fields:
      present = ', '.join(map(repr, [*fields][:8])) or 'none'
      raise refuse(f'field {field!r} is missing, found {present}; add it, or rename another field')
  prompt, chosen, rejected = (fields.get(field) for field in ('prompt', 'chosen', 'rejected'))
  if chosen is None or rejected is None:
    return '', '', '', 'null_field'
  for kind in (str, list):
    if isinstance(chosen, kind) and isinstance(rejected, kind):
      break
  else:
    raise refuse(
      "fields 'chosen' and 'rejected' must both be strings, or both lists of messages, found "
      f'{describe(chosen)} and {describe(rejected)}; fix or remove the row'
    )
  if prompt is not None and not isinstance(prompt, (str, list)):
    raise refuse(
      f"field 'prompt' must be a string or a list of messages, found {describe(prompt)}; fix it"
    )
  # As in TRL, a prompt in another layout than the answers does not count: they contain it.
  before = prompt if isinstance(prompt, kind) else None
  if kind is list:
    return _conversation(fields, before or [], chosen, rejected, refuse)
  if before is None:
    shared = 0 if chosen == rejected else _shared(chosen, rejected)
    before, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
  return before, chosen, rejected, _fault(before, chosen, rejected)


def _shared(a: str, b: str) -> int:
  """Length of the common beginning, without a space at its end."""
  length = len(os.path.commonprefix([a, b]))
  return length - 1 if length and a[length - 1] == ' ' else length


def _fault(prompt: str | tuple, chosen: str, rejected: str) -> str:
  if chosen.strip() == rejected.strip():
    return 'equal_answers'
  if not (chosen.strip() and rejected.strip()):
    return 'empty_answer'
  texts = [prompt] if isinstance(prompt, str) else [message['content'] for message in prompt]
  if not any(text.strip() for text in texts):
    return 'no_prompt'
  return next(filter(None, map(characters.fault, (*texts, chosen, rejected))), '')


def _conversation(
  fields: Mapping[str, Any], before: list, chosen: list, rejected: list, refuse
) -> tuple[str | tuple[Message, ...], str, str, str]:
  """`_sides` of a row whose answers are turns; all before the last one is the prompt."""
  sides = []
  for field, turns in (('chosen', chosen), ('rejected', rejected)):
    found, fault = conversations.messages(field, [*before, *turns], fields, refuse)
    if fault:
      # An answer without text is an empty turn only behind several others.
      return '', '', '', 'empty_answer' if fault == 'empty_turn' else fault
    sides.append(found)
  first, second = (list(found[:-1]) for found in sides)
  chosen, rejected = (found[-1] for found in sides)
  if conversations.REASONING in {*chosen, *rejected}:
    return '', '', '', 'has_reasoning'
  if first != second:
    return '', '', '', 'prompts_differ'
  prompt = first[0]['content'] if len(first) == 1 else tuple(first)
  chosen, rejected = chosen['content'], rejected['content']
  return prompt, chosen, rejected, _fault(prompt, chosen, rejected)
