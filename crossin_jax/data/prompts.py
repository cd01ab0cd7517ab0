"""Prompts: from an instruction row to tokens and loss weights, for training and inference."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from crossin_jax.data.chat import PromptDiffers
from crossin_jax.data.vocabulary import Vocabulary

_ALPACA = 'Below is an instruction that describes a task'
_ALPACA_WITH_INPUT = ', paired with an input that provides further context'
_CL_BOOST_WITH_INPUT = (
  ' in one or more languages, paired with an input in one or more language that provides further '
  'context'
)
_REQUEST = (
  '. Write a response that appropriately completes the request.\n\n### Instruction:\n'
  '{instruction}\n\n'
)
_XINS = (
  'Below is a text that describes a candidate output. Write an English instruction that can take '
  'the given text as an '
  'appropriate answer.\n\n### Text:\n{instruction}\n\n### English Instruction:'
)
_LLAMA = '[INST] <<SYS>>\nYou are a helpful assistant.\n<</SYS>>\n\n{instruction}\n{input}[/INST]'
# Template -> (with input, without input). The released prompts end in "\n " after "Response:",
# because the slot behind it is empty: docs/design/methods.md#a-4-prompt-text-and-tags.
TEMPLATES = {
  'alpaca': (
    _ALPACA + _ALPACA_WITH_INPUT + _REQUEST + '### Input:\n{input}\n\n### Response:\n ',
    _ALPACA + _REQUEST + '### Response:\n ',
  ),
  'cl_boost': (
    _ALPACA + _CL_BOOST_WITH_INPUT + _REQUEST + '### Input:\n{input}\n\n### Response:\n ',
    _ALPACA + ' in one or more languages' + _REQUEST + '### Response:\n ',
  ),
  'llama': (_LLAMA, _LLAMA.replace('\n{input}', '\n')),
  'gemma': ('{instruction}\n{input}\n', '{instruction}\n'),
  # X-Instruction: docs/design/methods.md#b-3-generation, docs/design/methods.md#b-6-prompts. The
  # instruction itself says "Answer in Urdu.", or more in the assistant style.
  'xinstruction': (
    _ALPACA + _REQUEST.replace('{instruction}', '{instruction}\n{input} ') + '### Response:',
    _ALPACA + _REQUEST.replace('{instruction}', '{instruction} ') + '### Response:',
  ),
  # Text -> English instruction: the text is in the instruction field.
  'xins': (_XINS.replace('{instruction}', '{instruction}\n{input}'), _XINS),
  # Instruction and, as input, response -> level 1, 2 or 3. This project's wording; the published
  # one is unknown.
  'xrate': (
    'Below are an English instruction and a text that may answer it. Rate the text: 3 answers the '
    'instruction well, 2 has '
    'flaws, 1 does not answer it.\n\n### Instruction:\n{instruction}\n\n### Text:\n{input}\n\n### '
    'Level:',
    'Below is an English instruction without any text to answer it.\n\n### '
    'Instruction:\n{instruction}\n\n### Level:',
  ),
  # The fields only. Running text has only an output, so its prompt is empty.
  'plain': ('{instruction}\n{input}\n', '{instruction}\n'),
}
# The chat template of the tokenizer (data/chat.py).
CHAT = 'chat'


@dataclasses.dataclass(frozen=True)
class Example:
  """One rendered example.

  Attributes:
    tokens: int32 [length], prompt, response and stop token, without BOS.
    loss_weights: float32 [length], weight of each token in the loss: 0 on the prompt.
    shortened: what was cut to fit: '', 'input', 'output' or 'input+output'; of a conversation also
      'untrained_turns': earlier answers that the chat template writes in another way later.
    branches: int8 [length], of a preference pair, see `data.pair_layout`; None = it is none.
  """

  tokens: np.ndarray
  loss_weights: np.ndarray
  shortened: str = ''
  branches: np.ndarray | None = None


class Rejected(ValueError):
  """A row that cannot become an example; `reason` is a short word for the counts."""

  def __init__(self, reason: str, detail: str = ''):
    super().__init__(f'{reason}: {detail}' if detail else reason)
    self.reason = reason


def check_template(name: str) -> str:
  """Returns the name; raises ValueError if it is unknown."""
  if name not in TEMPLATES and name != CHAT:
    raise ValueError(f'template {name!r} is not one of {", ".join((*TEMPLATES, CHAT))}')
  return name


def describe_template(vocabulary: Vocabulary, name: str) -> str:
  """The full text of a template, for fingerprints."""
  if name != CHAT:
    return f'{name}: {TEMPLATES[check_template(name)]!r}'
  options = f' with {dict(vocabulary.chat_options)!r}' if vocabulary.chat_options else ''
  if vocabulary.system_role != 'first_user':
    options += f', system_role {vocabulary.system_role}'
  return f'{name}: {vocabulary.chat}{options}'


def stop_id(vocabulary: Vocabulary, template: str) -> int:
  """The token that ends a response: the tokenizer's stop token, or the chat template's."""
  return vocabulary.chat_stop_id if template == CHAT else vocabulary.eos_id


def prompt_tokens(
  vocabulary: Vocabulary, template: str, instruction: str, input: str = '', tag: str = ''
) -> list[int]:
  """Ids of the prompt of one row, without BOS, for training and inference."""
  if template == CHAT:
    user = _user_message(instruction, input, tag)
    return vocabulary.chat_prompt([{'role': 'user', 'content': user}]) if user else []
  return _encode(vocabulary, render_prompt(template, instruction, input, tag))


def response_tokens(
  vocabulary: Vocabulary, template: str, response: str, instruction: str, input: str = '',
  tag: str = '',
) -> list[int]:  # fmt: skip
  """Ids of a response behind `prompt_tokens`, through the stop token.

  Of a chat template that writes an empty thought before a response, with that.
  """
  row = {'instruction': instruction, 'output': response}
  tokens, spans = _renderer(vocabulary, template, row, tag)(input)
  prompt = prompt_tokens(vocabulary, template, instruction, input, tag)
  start = spans[0][0] if spans else 0
  # Generation tags may begin after the prompt.
  return tokens[len(prompt) if tokens[: len(prompt)] == prompt else start :]


def _user_message(instruction: str, input: str, tag: str) -> str:
  return render_prompt('plain', instruction, input, tag)[:-1]  # without the last newline


def _renderer(vocabulary: Vocabulary, template: str, row: dict[str, str], tag: str):
  """Returns a function from the input of a row to the ids of the row through its stop token,
  without BOS, and the spans of them that are trained.
  """
  instruction, output = row['instruction'], row['output']
  is_chat = template == CHAT and (instruction or tag)
  # Prompt and response apart, as the released code does, so that the border is fixed.
  response = None if is_chat else [*vocabulary.encode(output), stop_id(vocabulary, template)]

  def render(input: str) -> tuple[list[int], list[tuple[int, int]]]:
    if response is None:
      user = _user_message(instruction, input, tag)
      turns = [{'role': 'user', 'content': user}, {'role': 'assistant', 'content': output}]
      return vocabulary.chat_turns(turns)[:2]
    prompt = prompt_tokens(vocabulary, template, instruction, input, tag)
    return [*prompt, *response], [(len(prompt), len(prompt) + len(response))]

  return render


def render_prompt(template: str, instruction: str, input: str = '', tag: str = '') -> str:
  """The text before the response.

      render_prompt('gemma', 'Give three tips.', '', '[zh]') == 'Give three tips.\\n\\n[zh]\\n'

  Args:
    template: one of TEMPLATES.
    instruction: with input and tag empty too, the row is running text and the prompt is ''.
    input: further context; may be empty.
    tag: language tag, appended to the input on a separate line, so that a tagged row always has an
      input.
  """
  if tag:
    input = f'{input}\n{tag}'
  if not instruction and not input:
    return ''
  with_input, without_input = TEMPLATES[check_template(template)]
  # NB: not str.format, because braces in a row are text; and the input last, because an instruction
  # may contain '{input}'.
  text = with_input if input else without_input
  before, after = text.split('{instruction}')
  return before.replace('{input}', input) + instruction + after.replace('{input}', input)


def render_example(
  vocabulary: Vocabulary, template: str, row: dict[str, Any], tag: str, max_length: int | None,
  trained_turns: str = 'all',
) -> Example:  # fmt: skip
  """Tokens and loss weights of one row.

  With 'chat' these are the tokens of transformers' apply_chat_template through the stop token; the
  weights are those of the template's generation tags, if it has any. The other templates tokenise
  prompt and response separately. A row that is too long loses the end of its input first, but
  neither instruction nor tag, then the end of its response with the stop token.

  Args:
    vocabulary: the tokenizer.
    template: one of TEMPLATES, or 'chat'.
    row: 'instruction', 'input', 'output'; or 'messages', which have their tags already.
    tag: language tag or ''.
    max_length: maximum tokens of the example; None = no limit.
    trained_turns: answers of a conversation that are trained, 'all' or 'last'.

  Raises:
    Rejected: 'empty_response' or 'prompt_too_long'; of a conversation also
      'conversation_needs_template_chat' and 'prompt_differs'.
  """
  if row.get('messages'):
    return _render_conversation(vocabulary, template, row['messages'], max_length, trained_turns)
  if not row['output'].strip():
    raise Rejected('empty_response')
  render = _renderer(vocabulary, template, row, tag)
  tokens, spans = render(row['input'])
  shortened = []
  if max_length is not None and len(tokens) > max_length:
    if row['input']:
      tokens, spans = _shorten_input(render, row['input'], max_length)
      shortened.append('input')
    if len(tokens) > max_length:
      tokens = tokens[:max_length]
      shortened.append('output')
    if not any(start < len(tokens) for start, _ in spans):
      prompt = spans[0][0] if spans else len(tokens)
      raise Rejected('prompt_too_long', f'{prompt} tokens of prompt leave no room in {max_length}')
  return _example(tokens, spans, shortened)


def render_whole(
  vocabulary: Vocabulary, template: str, rows: Sequence[dict[str, Any]]
) -> list[Example | None]:
  """`render_example` without a limit of many rows, whose texts are tokenised together.

  Args:
    vocabulary: the tokenizer.
    template: one of TEMPLATES, or 'chat'.
    rows: as in `render_example`, and 'tag'.

  Returns:
    The example of each row; None of a conversation, a chat prompt or an empty response.
  """
  has_prompt = lambda row: row['instruction'] or row['input'] or row['tag']
  is_simple = lambda row: (
    row['output'].strip() and not row.get('messages') and not (template == CHAT and has_prompt(row))
  )
  simple = list(filter(is_simple, rows))
  prompts = [
    render_prompt(template, row['instruction'], row['input'], row['tag']) for row in simple
  ]
  beginnings = [text.partition('{instruction}')[0] for text in TEMPLATES.get(template, ())]
  prompts = vocabulary.encode_batch(prompts, beginnings)
  responses = vocabulary.encode_batch([row['output'] for row in simple])
  stop = stop_id(vocabulary, template)
  examples = {}
  for row, prompt, response in zip(simple, prompts, responses):
    tokens = [*prompt, *response, stop]
    examples[id(row)] = _example(tokens, [(len(prompt), len(tokens))], [])
  return [examples.get(id(row)) for row in rows]


def _render_conversation(vocabulary, template, messages, max_length, trained_turns) -> Example:
  """`render_example` of a row with messages; one that is too long loses its end."""
  if template != CHAT:
    raise Rejected('conversation_needs_template_chat', f'template {template!r} has one question')
  try:
    tokens, spans, untrained = vocabulary.chat_turns(messages, trained_turns)
  except PromptDiffers as error:
    raise Rejected('prompt_differs', str(error)) from None
  shortened = []
  if max_length is not None and len(tokens) > max_length:
    tokens, shortened = tokens[:max_length], ['output']
    if not any(start < len(tokens) for start, _ in spans):
      raise Rejected('prompt_too_long', f'no answer within {max_length} tokens')
  return _example(tokens, spans, shortened + ['untrained_turns'] * bool(untrained))


def _example(tokens, spans, shortened) -> Example:
  weights = np.zeros(len(tokens), np.float32)
  for start, end in spans:
    weights[start:end] = 1.0
  # fromiter is a third faster than asarray.
  return Example(np.fromiter(tokens, np.int32, len(tokens)), weights, '+'.join(shortened))


def _encode(vocabulary: Vocabulary, text: str) -> list[int]:
  return vocabulary.encode(text) if text else []


def _shorten_input(render, input: str, room: int):
  """`render` of the longest prefix of the input with which the row fits in `room` tokens, or of
  none.
  """
  low, high = 0, len(input)  # render(input[:low]) fits, or low is 0
  while low < high:
    middle = (low + high + 1) // 2
    if len(render(input[:middle])[0]) <= room:
      low = middle
    else:
      high = middle - 1
  return render(input[:low])
