"""Rows that are conversations: from the fields of a row to messages, and between languages."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from crossin_jax.storage.json_rows import describe

# Why a row cannot be used: a text that is null, turns that are no conversation, a value in one of
# UNREAD_FIELDS.
FAULTS = (
  'null_field', 'tool_calls', 'unknown_role', 'other_parts', 'empty_turn', 'no_answer',
  'roles_out_of_order', 'unread_field',
)  # fmt: skip
# Names that rows and chat templates have for the reasoning before an answer. The first is that of
# messages here.
REASONING_FIELDS = ('reasoning_content', 'thinking', 'reasoning')
REASONING = REASONING_FIELDS[0]
# Fields that hold turns, in place of instruction and output.
FIELDS = ('messages', 'conversations', 'prompt', 'completion')
# Fields that are part of what a row teaches, but that no prompt holds: the functions a model may
# call, pictures and sound, and the answers of a preference.
UNREAD_FIELDS = (
  'tools', 'functions', 'image', 'images', 'video', 'videos', 'audio', 'audios', 'chosen',
  'rejected',
)  # fmt: skip
_ROLES = {
  'user': 'user', 'human': 'user', 'prompter': 'user',
  'assistant': 'assistant', 'gpt': 'assistant', 'model': 'assistant', 'bot': 'assistant',
  'chatgpt': 'assistant', 'bing': 'assistant', 'bard': 'assistant',
  'system': 'system', 'developer': 'system',
}  # fmt: skip
Message = dict[str, str]


def raw_turns(fields: Mapping[str, Any]) -> tuple[str, list] | None:
  """The field of a row that holds turns, and these unchecked; None of a row in Alpaca's fields."""
  # A table of several layouts has null in the fields of the others.
  if any(fields.get(field) is not None for field in ('instruction', 'output')):
    return None
  for name in ('messages', 'conversations'):
    turns = fields.get(name)
    # `datasets` stores a Sequence of dictionaries as a dictionary of lists.
    if isinstance(turns, dict) and turns and all(isinstance(v, list) for v in turns.values()):
      turns = [dict(zip(turns, values)) for values in zip(*turns.values())]
    if isinstance(turns, list):
      return name, turns
  is_alpaca = 'instruction' in fields or 'output' in fields
  both = 'prompt' in fields and 'completion' in fields
  if not both or is_alpaca and fields['prompt'] is None and fields['completion'] is None:
    return None
  turns = []
  for field, role in (('prompt', 'user'), ('completion', 'assistant')):
    value = fields[field]
    turns += value if isinstance(value, list) else [{'role': role, 'content': value}]
  return 'prompt', turns


def messages(
  name: str, turns: Sequence[Any], fields: Mapping[str, Any], refuse: Callable[[str], Exception]
) -> tuple[tuple[Message, ...], str]:
  """The messages of a row and its fault, '' = none.

      messages('conversations', [{'from': 'human', 'value': 'Hi'}, {'from': 'gpt', 'value': 'Ho'}],
               {'system': 'Be brief.'}, ValueError)
      == (({'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Hi'},
           {'role': 'assistant', 'content': 'Ho'}), '')

  Args:
    name: of the field, for errors.
    turns: role (or from), content (or value, text: a string, or a list of text parts), and one of
      REASONING_FIELDS.
    fields: of the row: `system` and `history` (pairs of question and answer) come before `turns`;
      a system turn of `turns` replaces `system`.
    refuse: makes an error from a message.
  """
  found, fault = [], ''
  for turn in turns:
    message, problem = _message(name, turn, refuse)
    fault = fault or problem
    found += [message] if message else []
  before = _history(fields, refuse)
  system = fields.get('system')
  if isinstance(system, str) and system.strip() and 'system' not in map(_role, found):
    before = [{'role': 'system', 'content': system}, *before]
  elif system is not None and not isinstance(system, str):
    raise refuse(f"field 'system' must be a string, found {describe(system)}; fix it")
  if before and found and found[0]['role'] == 'system':
    before, found = [found[0], *before], found[1:]
  found = (*before, *found)
  return found, fault or _fault(found)


def _role(message: Message) -> str:
  return message['role']


def _message(name: str, turn: Any, refuse) -> tuple[Message | None, str]:
  """A turn as a message, None where there is none to keep, and its fault."""
  if not isinstance(turn, dict):
    raise refuse(f'field {name!r}: a turn must be an object, found {describe(turn)}; fix it')
  role = _ROLES.get(str(_first(turn, 'role', 'from')).lower())
  text, fault = _first(turn, 'content', 'value', 'text'), ''
  if turn.get('tool_calls'):
    fault = 'tool_calls'
  if isinstance(text, list) and all(isinstance(part, dict) for part in text):
    if {part.get('type', 'text') for part in text} - {'text'}:
      fault = fault or 'other_parts'
    text = ''.join(part['text'] for part in text if isinstance(part.get('text'), str))
  if role is None or text is None:
    return None, fault or ('unknown_role' if role is None else 'null_field')
  if not isinstance(text, str):
    raise refuse(
      f'field {name!r}: the text of a turn must be a string, found {describe(text)}; fix it'
    )
  if role == 'system' and not text.strip():
    return None, fault
  message, reasoning = {'role': role, 'content': text}, _first(turn, *REASONING_FIELDS)
  if role == 'assistant' and reasoning is not None:
    if not isinstance(reasoning, str):
      raise refuse(
        f'field {name!r}: the {REASONING} of a turn must be a string, found '
        f'{describe(reasoning)}; fix it'
      )
    if reasoning.strip():
      message[REASONING] = reasoning
  return message, fault


def _history(fields: Mapping[str, Any], refuse) -> list[Message]:
  """LLaMA-Factory's earlier questions and answers."""
  history, found = fields.get('history') or [], []
  for pair in history if isinstance(history, list) else [history]:
    if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) for t in pair)):
      raise refuse(
        "field 'history' must be a list of pairs of strings (question, answer), found "
        f'{describe(pair)}; fix it'
      )
    found += [{'role': role, 'content': text} for role, text in zip(('user', 'assistant'), pair)]
  return found


def _fault(found: Sequence[Message]) -> str:
  """What is wrong with the order of messages: [system], then questions and answers in turn."""
  roles = [message['role'] for message in found]
  if 'assistant' not in roles:
    return 'no_answer'
  turns = roles[roles[0] == 'system' :]
  if turns != ['user', 'assistant'] * (len(turns) // 2):
    # A last question without an answer, or an order that no template has.
    asked = ['user', 'assistant'] * (len(turns) // 2) + ['user']
    return 'no_answer' if turns == asked else 'roles_out_of_order'
  if not is_single(found) and not all(message['content'].strip() for message in found):
    return 'empty_turn'
  return ''


def question(turns: Sequence[Any], tag: str = '') -> list[Message]:
  """The messages of a conversation that waits for an answer, with a tag behind every question.

  Raises:
    ValueError: what is wrong with the turns.
  """
  found = []
  for turn in turns:
    message, fault = _message('messages', turn, ValueError)
    if fault:
      raise ValueError(f"field 'messages': {fault} in {describe(turn)}")
    found += [message] if message else []
  roles = [message['role'] for message in found]
  asked = roles[bool(roles) and roles[0] == 'system' :]
  if asked != ['user', 'assistant'] * (len(asked) // 2) + ['user']:
    raise ValueError(
      f"field 'messages' has the roles {', '.join(roles) or 'none'}; give an optional system turn, "
      'then questions and answers in turn, with a question at the end'
    )
  return [_tagged(message, tag) for message in found]


def _tagged(message: Message, tag: str) -> Message:
  """A message with a language tag, if it is a question."""
  if not tag or message['role'] != 'user':
    return message
  return {**message, 'content': f'{message["content"]}\n\n{tag}'}


def is_single(found: Sequence[Message]) -> bool:
  """Whether messages are one question and one answer without reasoning, as Alpaca's fields are."""
  roles = [message['role'] for message in found]
  return roles == ['user', 'assistant'] and found[1].keys() == {'role', 'content'}


def user_text(instruction: str, input: str) -> str:
  """The question that instruction and input of a row are."""
  return f'{instruction}\n{input}' if input else instruction


def of_row(row: Mapping[str, Any]) -> Sequence[Message]:
  """The messages of a row of a `Source`."""
  if row.get('messages'):
    return row['messages']
  return [
    {'role': 'user', 'content': user_text(row['instruction'], row['input'])},
    {'role': 'assistant', 'content': row['output']},
  ]


def first_question(row: Mapping[str, Any]) -> str:
  """The instruction of a row, or the first question of a conversation."""
  if row.get('messages'):
    return next(m['content'] for m in row['messages'] if m['role'] == 'user')
  return row['instruction']


def between(
  asked: Mapping[str, Any], answered: Mapping[str, Any], reasoned: Mapping[str, Any], tag: str
) -> list[Message]:
  """A conversation whose questions are those of one row and its answers those of another.

  Args:
    asked: row with the system turn and the questions.
    answered: the same row in another language, with the answers.
    reasoned: with the reasoning before them.
    tag: language tag behind every question, or ''; on every one, because every answer is in its
      language: docs/design/methods.md#c-23.
  """
  found = []
  for asking, answer, thought in zip(*map(of_row, (asked, answered, reasoned)), strict=True):
    if asking['role'] != 'assistant':
      found.append(_tagged(asking, tag))
    else:
      message = {'role': 'assistant', 'content': answer['content']}
      if REASONING in thought:
        message[REASONING] = thought[REASONING]
      found.append(message)
  return found


def _first(turn: dict, *names: str):
  """The first of the fields that is not null."""
  return next((turn[name] for name in names if turn.get(name) is not None), None)
