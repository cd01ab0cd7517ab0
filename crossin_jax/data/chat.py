"""Chat templates as transformers has them: Jinja text beside a tokenizer, rendered in a sandbox."""

import functools
import json
import os

from crossin_jax.errors import CrossinError

# Stands for the response while the template shows what it puts around one.
_MARK = '\x02response\x03'


class ChatTemplateError(CrossinError, ValueError):
  """A chat template that is missing, broken or shows no response; the message says which and what
  to do.
  """


def find(tokenizer_path: str) -> str | None:
  """Text of the chat template that lies beside a tokenizer file, or None.

  `chat_template.jinja` is looked for first, then `chat_template` in `tokenizer_config.json` (where
  several are named: the one called default).
  """
  folder = os.path.dirname(tokenizer_path)
  jinja = os.path.join(folder, 'chat_template.jinja')
  if os.path.isfile(jinja):
    with open(jinja, encoding='utf-8') as f:
      return f.read()
  configuration = os.path.join(folder, 'tokenizer_config.json')
  if not os.path.isfile(configuration):
    return None
  with open(configuration, encoding='utf-8') as f:
    found = json.load(f).get('chat_template')
  if isinstance(found, list):
    found = {entry['name']: entry['template'] for entry in found}.get('default')
  return found


@functools.lru_cache(maxsize=16)
def _compiled(text: str):
  import jinja2
  from jinja2 import sandbox

  def refuse(message):
    raise ChatTemplateError(f'the chat template refuses the conversation: {message}')

  # The settings that templates are written for.
  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=['jinja2.ext.loopcontrols']
  )
  environment.filters['tojson'] = lambda value, **options: json.dumps(
    value, ensure_ascii=False, **options
  )
  environment.globals['raise_exception'] = refuse
  try:
    return environment.from_string(text)
  except jinja2.TemplateError as error:
    raise ChatTemplateError(f'the chat template is no valid Jinja ({error})') from None


def render(
  text: str, messages: list[dict[str, str]], add_generation_prompt: bool = False, **tokens: str
) -> str:
  """A conversation as text.

  Args:
    text: the template.
    messages: {'role': 'user' or 'assistant', 'content': text}.
    add_generation_prompt: end with what comes before a response.
    **tokens: `bos_token` and `eos_token`, which templates write out.

  Raises:
    ChatTemplateError: the template is broken or refuses.
  """
  import jinja2

  try:
    return _compiled(text).render(
      messages=messages, add_generation_prompt=add_generation_prompt, **tokens
    )
  except jinja2.TemplateError as error:
    raise ChatTemplateError(f'the chat template cannot be rendered ({error})') from None


def prompt(text: str, user: str, **tokens: str) -> str:
  """Everything before the response to one message of the user."""
  return render(text, [{'role': 'user', 'content': user}], add_generation_prompt=True, **tokens)


@functools.lru_cache(maxsize=16)
def after_response(text: str, bos_token: str, eos_token: str) -> str:
  """What the template puts after a response: the text whose beginning is the stop token.

  Raises:
    ChatTemplateError: the response does not appear, or nothing follows it, so that no token could
      be trained or none would end it.
  """
  tokens = {'bos_token': bos_token, 'eos_token': eos_token}
  turns = [{'role': 'user', 'content': 'question'}, {'role': 'assistant', 'content': _MARK}]
  whole = render(text, turns, **tokens)
  before, mark, after = whole.partition(_MARK)
  if not mark:
    raise ChatTemplateError('the chat template leaves the response out; nothing would be trained')
  if not after.strip():
    raise ChatTemplateError(
      'the chat template writes no stop token after a response; it would never end'
    )
  asked = prompt(text, 'question', **tokens)
  if asked.rstrip() != before.rstrip():
    raise ChatTemplateError(
      f'the chat template asks with {asked[-40:]!r} and trains after {before[-40:]!r}; these must '
      'be the same'
    )
  return after
