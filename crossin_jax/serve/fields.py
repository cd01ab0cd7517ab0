"""From the JSON body of a request to checked settings, and what is refused."""

from collections.abc import Callable, Mapping
import dataclasses
import json
import math
import os
from typing import Any

from crossin_jax.decoding.sampling import Sampling
from crossin_jax.decoding.slots import TOP
from crossin_jax.serve.refusal import Refusal, invalid

MOST_ANSWERS, MOST_STOPS, MOST_PROMPTS = 128, 16, 256
COMPLETION_TOKENS = 16  # what OpenAI's completions generate if max_tokens is not given
# Fields that change nothing here: bookkeeping of OpenAI's own service.
IGNORED = frozenset({
  'user', 'metadata', 'store', 'service_tier', 'safety_identifier', 'prompt_cache_key',
  'prompt_cache_retention', 'parallel_tool_calls',
})  # fmt: skip
_SHARED = frozenset({
  'model', 'stream', 'stream_options', 'stop', 'seed', 'n', 'temperature', 'top_p', 'min_p',
  'max_tokens', 'logprobs',
})  # fmt: skip
FIELDS = {
  'completions': _SHARED | {'prompt', 'echo'},
  'chat': _SHARED | {'messages', 'top_logprobs', 'max_completion_tokens'},
}
# Fields that are legal only with values that ask for nothing, and why.
_NO_PENALTY = 'this server has no such penalty; start it with Sampling.repetition_penalty=VALUE'
_NO_TOOLS = 'tools and functions are not supported'
NEUTRAL: Mapping[str, tuple[tuple, str]] = {
  'presence_penalty': ((0,), _NO_PENALTY),
  'frequency_penalty': ((0,), _NO_PENALTY),
  'best_of': ((1,), 'ask for n answers'),
  'suffix': (('',), 'text cannot be inserted, only continued'),
  'logit_bias': (({},), 'logits cannot be biased'),
  'tools': (([],), _NO_TOOLS),
  'functions': (([],), _NO_TOOLS),
  'tool_choice': (('none', 'auto'), _NO_TOOLS),
  'function_call': (('none', 'auto'), _NO_TOOLS),
  'response_format': (({'type': 'text'},), 'only text is generated, without a grammar'),
  'modalities': ((['text'],), 'only text is generated'),
  'audio': ((), 'only text is generated'),
  'reasoning_effort': (('none',), 'the chat template decides about reasoning'),
  'verbosity': (('medium',), 'ask for it in words'),
  'prediction': ((), 'predicted outputs are not supported'),
  'web_search_options': ((), 'the server has no web search'),
  'ignore_eos': ((False,), 'a stop token ends an answer'),
}


@dataclasses.dataclass(frozen=True)
class Asked:
  """The checked fields of a request.

  Attributes:
    kind: 'completions' or 'chat'.
    model: name.
    prompts: texts or token lists of a completion, or one list of messages.
    sampling: temperature, top_p, min_p, seed and stop; `max_new_tokens` is 1.
    max_tokens: None = as many as fit.
    n: answers to each prompt.
    stream, echo: of OpenAI's protocol.
    usage: whether a stream ends with the counts of tokens.
    logprobs: number of most likely tokens beside each one; None = no log-probabilities.
  """

  kind: str
  model: str
  prompts: list
  sampling: Sampling
  max_tokens: int | None
  n: int
  stream: bool
  echo: bool
  usage: bool
  logprobs: int | None


def parse(body: bytes) -> dict:
  """The JSON object of a body.

  Raises:
    Refusal: 400.
  """

  def constant(name):
    raise ValueError(f'{name} is not JSON')

  try:
    # Strings that no UTF-8 text can have, such as half a surrogate pair, are found here too.
    fields = json.loads(body.decode('utf-8'), parse_constant=constant)
    json.dumps(fields, ensure_ascii=False).encode('utf-8')
  except (ValueError, RecursionError) as error:
    reason = 'it is nested too deeply' if isinstance(error, RecursionError) else error
    raise invalid(None, f'the body is not JSON in UTF-8 ({reason}); send one object') from None
  if not isinstance(fields, dict):
    raise invalid(None, f'the body is a JSON {_kind(fields)}; send one object')
  return {name: value for name, value in fields.items() if value is not None}


def asked(kind: str, fields: dict, sampling: Sampling) -> Asked:
  """Checks the fields of a request.

  Args:
    kind: 'completions' or 'chat'.
    fields: as `parse` returns them.
    sampling: of the server; its top_k and penalties stay.

  Raises:
    Refusal: 400, names the field and the remedy.
  """
  _check_names(kind, fields)
  chat = kind == 'chat'
  read = _Reader(fields)
  model = read('model', str)
  options = read('stream_options', dict, {})
  limit = read.integer('max_tokens', None if chat else COMPLETION_TOKENS, 0 if not chat else 1)
  if chat:
    limit = read.integer('max_completion_tokens', limit, 1)
  echo = read('echo', bool, False)
  if limit == 0 and not echo:
    raise invalid('max_tokens', 'max_tokens is 0 and echo is not set: there is nothing to do')
  stream = read('stream', bool, False)
  return Asked(
    kind=kind,
    model=model,
    prompts=_messages(read) if chat else _prompts(fields.get('prompt')),
    sampling=_sampling(read, sampling),
    max_tokens=limit,
    n=read.integer('n', 1, 1, MOST_ANSWERS),
    stream=stream,
    echo=echo,
    usage=stream and options.get('include_usage') is True,
    logprobs=_logprobs(read, chat),
  )


def _check_names(kind: str, fields: dict) -> None:
  for name, value in fields.items():
    if name in FIELDS[kind] or name in IGNORED:
      continue
    if name in NEUTRAL:
      legal, reason = NEUTRAL[name]
      if not any(value == one for one in legal):
        found = json.dumps(value, ensure_ascii=False)[:80]
        raise invalid(name, f'{name} = {found} is not supported: {reason}', 'unsupported')
    else:
      raise invalid(name, f'the field {name!r} is not known; remove it', 'unknown_field')


def _kind(value) -> str:
  names = {bool: 'boolean', int: 'number', float: 'number', str: 'string', list: 'array'}
  return 'null' if value is None else names.get(type(value), 'object')


class _Reader:
  """Reads typed fields of a body."""

  def __init__(self, fields: dict):
    self._fields = fields

  def __call__(self, name: str, type_: type, default: Any = dataclasses.MISSING):
    value = self._fields.get(name, default)
    if value is dataclasses.MISSING:
      raise invalid(name, f'the field {name!r} is missing')
    if value is not default and not isinstance(value, type_):
      raise invalid(name, f'{name} must be a JSON {_kind(type_())}, not a {_kind(value)}')
    return value

  def integer(self, name: str, default: int | None, least: int, most: int = 1 << 31) -> int | None:
    value = self._fields.get(name, default)
    if isinstance(value, float) and value.is_integer():
      value = int(value)
    if value is None or value is default:
      return value
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < most + 1:
      wanted = f'at least {least}' if most == 1 << 31 else f'from {least} to {most}'
      raise invalid(name, f'{name} must be an integer, {wanted}')
    return value

  def number(self, name: str, default: float, legal: Callable[[float], bool], wanted: str) -> float:
    value = self._fields.get(name, default)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or abs(value) > 1e30 or not math.isfinite(value) or not legal(value):
      raise invalid(name, f'{name} must be a number {wanted}')
    return float(value)


def _sampling(read: _Reader, server: Sampling) -> Sampling:
  stop = read._fields.get('stop', [])
  stop = [stop] if isinstance(stop, str) else stop
  if not isinstance(stop, list) or not all(isinstance(one, str) for one in stop):
    raise invalid('stop', 'stop must be a string, or an array of strings')
  stop = [one for one in stop if one]  # some clients fill up with empty ones
  if len(stop) > MOST_STOPS:
    raise invalid('stop', f'stop has {len(stop)} texts; at most {MOST_STOPS} are supported')
  seed = read.integer('seed', None, -(1 << 63), (1 << 64) - 1)
  return dataclasses.replace(
    server,
    temperature=read.number('temperature', 1.0, lambda t: 0 <= t <= 2, 'from 0 to 2'),
    top_p=read.number('top_p', 1.0, lambda p: 0 <= p <= 1, 'from 0 to 1'),
    min_p=read.number('min_p', 0.0, lambda p: 0 <= p < 1, 'from 0 to below 1'),
    seed=int.from_bytes(os.urandom(4)) >> 1 if seed is None else _int32(seed),
    stop=tuple(stop),
    samples=1,
    max_new_tokens=1,
  )


def _int32(seed: int) -> int:
  """A seed as it is if it fits; others are folded."""
  if -(1 << 31) <= seed < 1 << 31:
    return seed
  return (seed ^ seed >> 31 ^ seed >> 62) & 0x7FFFFFFF


def _logprobs(read: _Reader, chat: bool) -> int | None:
  if not chat:
    return read.integer('logprobs', None, 0, TOP)
  wanted = read('logprobs', bool, False)
  top = read.integer('top_logprobs', None, 0, TOP)
  if top and not wanted:
    raise invalid('top_logprobs', 'top_logprobs needs logprobs = true')
  return (top or 0) if wanted else None


def _messages(read: _Reader) -> list:
  messages = read('messages', list)
  if not messages:
    raise invalid('messages', 'messages is empty; give at least one turn of the user')
  return [messages]


def _prompts(prompt) -> list:
  """A text, several, a token list, or several."""
  if prompt is None:
    raise invalid('prompt', "the field 'prompt' is missing")
  is_ids = lambda value: (
    isinstance(value, list)
    and bool(value)
    and all(isinstance(i, int) and not isinstance(i, bool) for i in value)
  )
  if isinstance(prompt, str) or is_ids(prompt):
    return [prompt]
  if (
    not isinstance(prompt, list)
    or not prompt
    or not all(isinstance(one, str) or is_ids(one) for one in prompt)
  ):
    raise invalid(
      'prompt', 'prompt must be a string, an array of token ids, or an array of such; none empty'
    )
  if len(prompt) > MOST_PROMPTS:
    raise invalid('prompt', f'{len(prompt)} prompts; at most {MOST_PROMPTS} are supported')
  return prompt


def check_ids(ids: list[int], size: int) -> None:
  """Raises Refusal if an id is outside of a vocabulary."""
  if bad := [i for i in ids if not 0 <= i < size]:
    raise invalid('prompt', f'token id {bad[0]} is not in the vocabulary of {size} ids')


def check_length(prompt: int, limit: int | None, most: int, param: str) -> int:
  """The number of tokens that may be generated behind a prompt.

  Raises:
    Refusal: 400, the limit does not fit.
  """
  room = most - prompt
  if room < (1 if limit is None else limit):
    asked_for = '' if limit is None else f' and max_tokens is {limit}'
    raise Refusal(
      400,
      f"this model's context is {most} tokens here; the prompt has {prompt}{asked_for}. Shorten "
      'the prompt or lower max_tokens, or start the server with a higher --max_length',
      param=param,
      code='context_length_exceeded',
    )
  return room if limit is None else limit
