"""Chat templates of transformers: Jinja text, rendered in a sandbox as transformers does."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import datetime
import functools
import json
import os
import re
from typing import Any

from crossin_jax.data.conversations import Message, is_single
from crossin_jax.errors import CrossinError

# Two responses without a common character, to find what the template writes around one.
_MARKS = ('1111', '2222')
# Stands for a special token that the text of a row quotes, with a private character for which one.
_QUOTE, _FIRST = '\ufdd1', 0xF0000
# The end of a message that an answer continues.
_BEGUN = '\ufdd2'
# Before a special token that the template itself writes, where the row quotes others.
ALIAS = '\ufdd0'


class ChatTemplateError(CrossinError, ValueError):
  """A chat template that is missing, broken or unsuitable; the message has the remedy."""


class PromptDiffers(ChatTemplateError):
  """What a template writes before an answer in training is not what it prompts with.

  Attributes:
    asked: the prompt.
    trained: the text of training from where it leaves the prompt.
  """

  def __init__(self, asked: str, whole: str):
    common = len(os.path.commonprefix([asked, whole]))
    super().__init__(
      f'the chat template prompts with {asked[common - 20 :][:60]!r} and trains '
      f'{whole[common - 20 :][:60]!r}'
    )
    self.asked, self.trained = asked, whole[common:]


@functools.lru_cache(maxsize=16)
def _compiled(text: str):
  """The template with what transformers gives it, and the list that collects marked spans."""
  import jinja2
  from jinja2 import ext, nodes, sandbox

  blocks, spans = [], []

  class Generation(ext.Extension):
    """`{% generation %} ... {% endgeneration %}`: what the assistant wrote."""

    tags = {'generation'}

    def parse(self, parser):
      line = next(parser.stream).lineno
      body = parser.parse_statements(['name:endgeneration'], drop_needle=True)
      return nodes.CallBlock(self.call_method('_mark'), [], [], body).set_lineno(line)

    def _mark(self, caller):
      text = caller()
      start = sum(map(len, blocks))
      spans.append((start, start + len(text)))
      return text

  def refuse(message):
    raise jinja2.TemplateError(f'it refuses the conversation: {message}')

  def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
      value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )

  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, 'jinja2.ext.loopcontrols']
  )
  environment.filters['tojson'] = to_json
  environment.globals['raise_exception'] = refuse
  environment.globals['strftime_now'] = lambda form: datetime.datetime.now().strftime(form)
  try:
    return environment.from_string(text), blocks, spans
  except jinja2.TemplateError as error:
    raise ChatTemplateError(f'the chat template is not valid Jinja ({error})') from None


def render(
  text: str, messages: Sequence[Message], add_generation_prompt: bool = False, **variables: Any
) -> str:
  """Renders a conversation.

  Args:
    text: the template.
    messages: {'role': 'user', 'assistant' or 'system', 'content': text}.
    add_generation_prompt: end with the text before a response.
    **variables: `bos_token`, `eos_token` and what else the template reads (`enable_thinking`).

  Raises:
    ChatTemplateError: the template is broken or refuses the conversation.
  """
  return _render(text, messages, add_generation_prompt, variables)[0]


def _render(text, messages, add_generation_prompt, variables) -> tuple[str, list[tuple[int, int]]]:
  """The rendered text and the spans between generation tags, in characters."""
  template, blocks, spans = _compiled(text)
  blocks.clear()
  spans.clear()
  variables = {
    'tools': None, 'documents': None, **variables, 'messages': messages,
    'add_generation_prompt': add_generation_prompt,
  }  # fmt: skip
  try:
    for block in template.generate(**variables):
      blocks.append(block)
  except Exception as error:  # a template is a program: it can raise anything
    raise ChatTemplateError(f'the chat template cannot be rendered ({error})') from None
  return ''.join(blocks), list(spans)


def prompt(text: str, messages: str | Sequence[Message], **variables: Any) -> str:
  """The text before the answer to messages, or to one user message."""
  if isinstance(messages, str):
    messages = [{'role': 'user', 'content': messages}]
  return render(text, messages, add_generation_prompt=True, **variables)


def begun(text: str, messages: Sequence[Message], **variables: Any) -> str:
  """The text of a conversation whose last message goes on, up to its end
  (`continue_final_message` of transformers).

  Raises:
    ChatTemplateError: the template does not write the last message.
  """
  *others, last = messages
  mark = f'{_BEGUN} '
  marked = [*others, {**last, 'content': last['content'] + mark}]
  rendered = render(text, marked, **variables)
  at = rendered.rfind(_BEGUN)
  if at < 0:
    raise ChatTemplateError('the chat template leaves out the message that an answer continues')
  # Where the template trims a message, the space behind the mark is gone.
  return rendered[:at] if rendered.startswith(mark, at) else rendered[:at].rstrip()


def exported(text: str, options: Mapping[str, Any], eos_token: str | None = None) -> str:
  """A template for transformers that renders as in training.

  Args:
    text: the template.
    options: scalars that variables have where nobody sets them.
    eos_token: what the template writes for it, where the tokenizer's will be another.
  """
  literal = lambda value: 'none' if value is None else json.dumps(value, ensure_ascii=False)
  lines = [
    f'{{% if {name} is not defined %}}{{% set {name} = {literal(value)} %}}{{% endif %}}\n'
    for name, value in options.items()
  ]
  if eos_token is not None and 'eos_token' in text:
    lines.append(f'{{% set eos_token = {literal(eos_token)} %}}\n')
  # Templates are read with trim_blocks: these lines leave nothing.
  return ''.join([*lines, text])


def _turns(user: str, response: str) -> list[dict[str, str]]:
  return [{'role': 'user', 'content': user}, {'role': 'assistant', 'content': response}]


def around_response(text: str, **variables: Any) -> tuple[str, str]:
  """What a template writes before and after the response to 'question'.

  Raises:
    ChatTemplateError: the template omits the response.
  """
  first, second = (render(text, _turns('question', mark), **variables) for mark in _MARKS)
  if first == second:
    raise ChatTemplateError('the chat template omits the response; no token would be trained')
  before = os.path.commonprefix([first, second])
  after = os.path.commonprefix([first[::-1], second[::-1]])[::-1]
  return before, after


def shows(text: str, what: str, variables: Mapping[str, Any]) -> bool:
  """Whether a template writes the text of a 'system' turn, or the field `what` of an answer."""
  mark, messages = 'qzxq', _turns('question', 'answer')
  if what == 'system':
    messages = [{'role': 'system', 'content': mark}, *messages]
  else:
    messages[1][what] = mark
  try:
    return mark in render(text, messages, **variables)
  except ChatTemplateError:
    return False


def prompts_alike(text: str, variables: Mapping[str, Any]) -> bool:
  """Whether a template trains what it prompts with."""
  before, _ = around_response(text, **variables)
  return before.startswith(prompt(text, 'question', **variables).rstrip())


def unprompted(text: str, before: str, asked: str, variables: Mapping[str, Any]) -> str:
  """What a template without a generation prompt writes before a response; '' = nothing to speak of.

  Args:
    text: the template.
    before: what it writes before the response to 'question'.
    asked: the prompt of 'question'.
    variables: see `render`.
  """
  question = [{'role': 'user', 'content': 'question'}]
  if asked != render(text, question, **variables):
    return ''
  return before[len(asked) :].strip()


def argument(
  text: str, variables: Mapping[str, Any], agrees: Callable[[dict[str, Any]], Any]
) -> dict[str, bool] | None:
  """The first yes-or-no argument of a template with which `agrees` is true and raises nothing.

  argument(QWEN3, {'enable_thinking': False}, ...) -> {'enable_thinking': True}
  """
  from jinja2 import meta

  template, _, _ = _compiled(text)
  names = meta.find_undeclared_variables(template.environment.parse(text))
  for name in sorted(names - {'messages', 'tools', 'documents', 'add_generation_prompt'}):
    for value in (False, True):
      if isinstance(variables.get(name), str) or variables.get(name) is value:
        continue
      try:
        if agrees({**variables, name: value}):
          return {name: value}
      except ChatTemplateError:
        continue
  return None


@dataclasses.dataclass(frozen=True)
class Turn:
  """A rendered conversation.

  Attributes:
    text: from the start of the conversation through the last stop token.
    trained: spans of characters that the model has to write, with the stop tokens.
    marked: whether generation tags of the template say what these are.
    untrained: earlier answers that are not trained.
  """

  text: str
  trained: tuple[tuple[int, int], ...]
  marked: bool
  untrained: int = 0


def turn(
  text: str, messages: Sequence[Message], *, which: str = 'all', after: str, end: int,
  appended: str, variables: Mapping[str, Any],
) -> Turn:  # fmt: skip
  """Renders messages for training.

  What is trained are the spans between the template's generation tags. Without tags it is what
  follows the prompts of inference: thoughts that the template writes before an answer belong to it.

  Args:
    text: the template.
    messages: the last is an answer.
    which: 'all' answers or the 'last'.
    after: what the template writes after a response.
    end: characters of `after` through the stop token.
    appended: written behind, where the template has no stop token.
    variables: see `render`.

  Raises:
    PromptDiffers: the text before the last answer is not the prompt of inference. Of one question
      and answer, what the template trains is trained nevertheless.
  """
  whole, spans = _render(text, messages, False, variables)
  kept = _through_stop(whole, after, end)
  marked, untrained = bool(spans), 0
  if marked and which == 'last':
    before = os.path.commonprefix([whole, render(text, messages[:-1], **variables)])
    spans = [span for span in spans if span[1] > len(before)]
  elif not marked and is_single(messages):
    spans = [(_start(text, whole, messages, variables), kept)]
  elif not marked:
    asked = prompt(text, messages[:-1], **variables)
    if not whole.startswith(asked):
      raise PromptDiffers(asked, whole)
    spans = [(len(asked), kept)]
    if which == 'all':
      earlier = [
        _earlier(text, whole, messages[: i + 1], after, end, appended, variables)
        for i, message in enumerate(messages[:-1])
        if message['role'] == 'assistant'
      ]
      untrained = earlier.count(None)
      spans = [*filter(None, earlier), *spans]
  whole = whole[:kept] + appended
  if appended:
    spans.append((kept, len(whole)))
  trained = tuple((start, min(stop, len(whole))) for start, stop in spans if start < len(whole))
  return Turn(whole, trained, marked, untrained)


def _through_stop(whole: str, after: str, end: int) -> int:
  """Characters of a rendered conversation through its last stop token."""
  if whole.endswith(after):
    return len(whole) - len(after) + end
  # The template writes something else after this response.
  at = whole.rfind(after[:end].strip()) if end else -1
  return at + len(after[:end].strip()) if at >= 0 else len(whole)


def _earlier(text, whole, messages, after, end, appended, variables) -> tuple[int, int] | None:
  """The span of an answer that others follow, where prompt and answer are in the rendered
  conversation as they were when the answer was the last one; else None. Without the stop token,
  where that is another one then (OLMo 3), or none of the template's.
  """
  asked = prompt(text, messages[:-1], **variables)
  then = render(text, messages, **variables)
  stop = _through_stop(then, after, end)
  for kept in (stop - end,) if appended else (stop, stop - end):
    if kept > len(asked) and then.startswith(asked) and whole.startswith(then[:kept]):
      return len(asked), kept
  return None


def _start(text: str, whole: str, messages: Sequence[Message], variables) -> int:
  """Characters of `whole` before what is trained of one question and answer."""
  user, response = (message['content'] for message in messages)
  asked = prompt(text, user, **variables)
  if whole.startswith(asked):
    return len(asked)
  # The template prompts in another way than it trains; it does so before the response at least.
  other = _MARKS[response.lstrip().startswith(_MARKS[0][0])]
  before = len(os.path.commonprefix([whole, render(text, _turns(user, other), **variables)]))
  common = min(before, len(os.path.commonprefix([whole, asked])))
  return before if user.strip() in whole[common:before] else common


# ---- special tokens in the texts of rows ----


class Quotes:
  """Keeps special tokens that a row's text quotes apart from those that the template writes.

  hide('a </s> b') -> 'a \\ufdd1\\U000f0000 b', which the template leaves as it is;
  alias of the rendered text: ALIAS before its own '</s>', and the quoted one is '</s>' again
  """

  def __init__(self, specials):
    """specials: texts of the special tokens."""
    self._specials = sorted(specials, key=len, reverse=True)
    self._numbers = {token: i for i, token in enumerate(self._specials)}
    self._pattern = re.compile('|'.join(map(re.escape, self._specials)) or r'(?!)')
    self._hidden = re.compile(f'{_QUOTE}([{chr(_FIRST)}-{chr(_FIRST + 0xFFFD)}])')

  def inside(self, text: str) -> bool:
    """Whether a text quotes a special token."""
    return self._pattern.search(text) is not None

  def hide(self, text: str) -> str:
    """The text with stand-ins."""
    return self._pattern.sub(lambda m: f'{_QUOTE}{chr(_FIRST + self._numbers[m[0]])}', text)

  def alias(self, text: str) -> str:
    """The rendered text: ALIAS before the template's special tokens, quoted ones as they were."""
    text = self._pattern.sub(lambda m: ALIAS + m[0], text)
    return self._hidden.sub(lambda m: self._specials[ord(m[1]) - _FIRST], text)
