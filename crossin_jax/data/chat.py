"""Chat templates of transformers: Jinja text beside a tokenizer, rendered in a sandbox."""

import functools
import json
from pathlib import Path

from crossin_jax.errors import CrossinError

# A placeholder for the response, to find what the template puts around one.
_MARK = '\x02response\x03'


class ChatTemplateError(CrossinError, ValueError):
  """A chat template that is missing, broken or unsuitable; the message has the remedy."""


def find(tokenizer_path: str) -> str | None:
  """The chat template beside a tokenizer file, or None.

  This is `chat_template.jinja`, or else `chat_template` in `tokenizer_config.json` (if that is a
  list, the one named default).
  """
  folder = Path(tokenizer_path).parent
  jinja, configuration = folder / 'chat_template.jinja', folder / 'tokenizer_config.json'
  if jinja.is_file():
    return jinja.read_text(encoding='utf-8')
  if not configuration.is_file():
    return None
  template = json.loads(configuration.read_text(encoding='utf-8')).get('chat_template')
  if isinstance(template, list):
    template = {entry['name']: entry['template'] for entry in template}.get('default')
  return template


@functools.lru_cache(maxsize=16)
def _compiled(text: str):
  import jinja2
  from jinja2 import sandbox

  def refuse(message):
    raise ChatTemplateError(f'the chat template refuses the conversation: {message}')

  # The settings of transformers.
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
    raise ChatTemplateError(f'the chat template is not valid Jinja ({error})') from None


def render(
  text: str, messages: list[dict[str, str]], add_generation_prompt: bool = False, **tokens: str
) -> str:
  """Renders a conversation.

  Args:
    text: the template.
    messages: {'role': 'user' or 'assistant', 'content': text}.
    add_generation_prompt: end with the text before a response.
    **tokens: `bos_token` and `eos_token`.

  Raises:
    ChatTemplateError: the template is broken or refuses the conversation.
  """
  import jinja2

  try:
    return _compiled(text).render(
      messages=messages, add_generation_prompt=add_generation_prompt, **tokens
    )
  except jinja2.TemplateError as error:
    raise ChatTemplateError(f'the chat template cannot be rendered ({error})') from None


def prompt(text: str, user: str, **tokens: str) -> str:
  """The text before the response to one user message."""
  return render(text, [{'role': 'user', 'content': user}], add_generation_prompt=True, **tokens)


@functools.lru_cache(maxsize=16)
def after_response(text: str, bos_token: str, eos_token: str) -> str:
  """The text after a response; it starts with the stop token.

  Raises:
    ChatTemplateError: the template omits the response, writes nothing after it, or has different
      text before it in training and at inference.
  """
  tokens = {'bos_token': bos_token, 'eos_token': eos_token}
  turns = [{'role': 'user', 'content': 'question'}, {'role': 'assistant', 'content': _MARK}]
  before, mark, after = render(text, turns, **tokens).partition(_MARK)
  if not mark:
    raise ChatTemplateError('the chat template omits the response; no token would be trained')
  if not after.strip():
    raise ChatTemplateError(
      'the chat template writes no stop token after a response; generation would not end'
    )
  asked = prompt(text, 'question', **tokens)
  if asked.rstrip() != before.rstrip():
    raise ChatTemplateError(
      f'the chat template prompts with {asked[-40:]!r} and trains after {before[-40:]!r}; these '
      'must be equal'
    )
  return after
