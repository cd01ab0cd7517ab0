"""How a checkpoint is to be prompted: the template and the tokenizer that it was trained with."""

import copy
import functools
import os

from crossin_jax.data import conversations, tokenizer_config
from crossin_jax.data.prompts import CHAT, check_template, prompt_tokens, response_tokens, stop_id
from crossin_jax.data.vocabulary import BESIDE, TOKENIZERS, Vocabulary
from crossin_jax.storage import remote
from crossin_jax.storage.files import read_json


class Prompts:
  """Template and tokenizer of a MODEL_DIR; of a Hugging Face directory its chat template, else
  plain text.

  Attributes:
    template: name of the template.
    vocabulary: the tokenizer.
    stop_id: the token that ends a response.
    tags: whether training put language tags on prompts.
    untaught: no template is known, neither of training nor for chat.
  """

  def __init__(self, directory: str):
    """Args:
      directory: a MODEL_DIR, or a folder with tokenizer.json or tokenizer.model.

    Raises:
      PreparedDataError: neither prompts.json nor a tokenizer is there.
    """
    if remote.is_elsewhere(directory):
      directory = _fetched(directory)
    own = [os.path.join(directory, name) for name in TOKENIZERS]
    own += [os.path.join(directory, 'huggingface', name) for name in TOKENIZERS]
    tokenizer = next((path for path in own if os.path.isfile(path)), None)
    if tokenizer and not os.path.isfile(os.path.join(directory, 'prompts.json')):
      has_chat = tokenizer_config.chat_template(tokenizer) is not None
      self.vocabulary, self.template, self.tags = (
        Vocabulary(tokenizer),
        'chat' if has_chat else 'plain',
        False,
      )
      self.stop_id = stop_id(self.vocabulary, self.template)
      self.untaught = not has_chat
      return
    saved = read_json(
      os.path.join(directory, 'prompts.json'),
      'it is written by `crossin train`; give that MODEL_DIR, or a Hugging Face directory with '
      'its tokenizer',
    )
    words, prompts = saved['vocabulary'], saved['prompts']
    self.vocabulary = Vocabulary(
      os.path.join(directory, words['file']),
      words['bos_token'],
      words['eos_token'],
      prompts.get('chat_template'),
      prompts.get('chat_options'),
      # Older runs read '<|im_end|>' in a text as the special token.
      prompts.get('special_tokens_in_text', True),
      prompts.get('system_role', 'first_user'),
    )
    self.template, self.tags = prompts['template'], prompts.get('tags', False)
    self.stop_id = prompts.get('stop_id', self.vocabulary.eos_id)
    self.untaught = False

  def with_template(self, template: str) -> 'Prompts':
    """The same tokenizer with another template.

    Raises:
      ValueError: no such template. ChatTemplateError: 'chat' without a chat template.
    """
    other = copy.copy(self)
    other.__dict__.pop('_templated', None)
    other.template, other.untaught = check_template(template), False
    other.stop_id = stop_id(self.vocabulary, template)
    return other

  @functools.cached_property
  def _templated(self) -> Vocabulary:
    return self.vocabulary.with_template(self.template)

  def tokens(self, row: dict, tag: str = '') -> list[int]:
    """Ids of the prompt of one row ('instruction', 'input'; or 'messages'), with BOS if the prompt
    starts with one.

    Raises:
      ValueError: messages without a chat template, or in another order than a conversation's.
    """
    vocabulary, input = self._templated, row.get('input', '')
    if 'messages' not in row:
      ids = prompt_tokens(vocabulary, self.template, row['instruction'], input, tag)
    elif self.template == CHAT:
      ids = vocabulary.chat_prompt(conversations.question(row['messages'], tag))
    else:
      raise ValueError(
        f'a row has messages, and the model is prompted with the template {self.template!r}; give '
        "'instruction' or 'prompt', or a model that was trained with the template 'chat'"
      )
    return _start(vocabulary) + ids or [vocabulary.eos_id]  # a model reads at least one token

  def plain(self, text: str) -> list[int]:
    """Ids of a text that is a prompt as it is, with the tokenizer's BOS if it has one."""
    return self.with_bos(self.vocabulary.encode_with_specials(text) if text else [])

  def with_bos(self, ids: list[int]) -> list[int]:
    """Ids of a text as the tokenizer starts a sequence: with BOS, if it has one."""
    start = _start(self.vocabulary)
    return (ids if ids[:1] == start else start + ids) or [self.vocabulary.eos_id]

  def response(self, row: dict, response: str) -> list[int]:
    """Ids of a response to the prompt of a row, see `tokens`, through the stop token."""
    vocabulary = self._templated
    if 'messages' not in row:
      return response_tokens(
        vocabulary, self.template, response, row['instruction'], row.get('input', '')
      )
    messages = conversations.question(row['messages'])
    prompt = vocabulary.chat_prompt(messages)
    answer = {'role': 'assistant', 'content': response}
    tokens, spans, _ = vocabulary.chat_turns([*messages, answer], 'last')
    return tokens[len(prompt) if tokens[: len(prompt)] == prompt else spans[-1][0] :]


def _start(vocabulary: Vocabulary) -> list[int]:
  return [] if vocabulary.bos_id is None else [vocabulary.bos_id]


def _fetched(directory: str) -> str:
  """What `Prompts` reads of a remote directory, on this machine."""
  files = (*TOKENIZERS, *BESIDE)
  here = remote.fetched(
    directory, ['prompts.json', *files, *(f'huggingface/{name}' for name in files)], optional=True
  )
  if os.path.isfile(prompts := os.path.join(here, 'prompts.json')):
    remote.fetched(directory, [read_json(prompts, 'train again')['vocabulary']['file']])
  return here
