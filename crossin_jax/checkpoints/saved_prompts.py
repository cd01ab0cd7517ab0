"""How a checkpoint is to be prompted: the template and the tokenizer that it was trained with."""

import os

from crossin_jax.data import chat
from crossin_jax.data.prompts import prompt_tokens
from crossin_jax.data.vocabulary import BESIDE, Vocabulary
from crossin_jax.storage import remote
from crossin_jax.storage.files import read_json

TOKENIZERS = ('tokenizer.json', 'tokenizer.model')


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
    if remote.is_remote(directory):
      directory = _fetched(directory)
    own = [os.path.join(directory, name) for name in TOKENIZERS]
    own += [os.path.join(directory, 'huggingface', name) for name in TOKENIZERS]
    tokenizer = next((path for path in own if os.path.isfile(path)), None)
    if tokenizer and not os.path.isfile(os.path.join(directory, 'prompts.json')):
      has_chat = chat.find(tokenizer) is not None
      self.vocabulary, self.template, self.tags = (
        Vocabulary(tokenizer),
        'chat' if has_chat else 'plain',
        False,
      )
      self.stop_id = self.vocabulary.chat_stop_id if has_chat else self.vocabulary.eos_id
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
    )
    self.template, self.tags = prompts['template'], prompts.get('tags', False)
    self.stop_id = prompts.get('stop_id', self.vocabulary.eos_id)
    self.untaught = False

  def tokens(self, row: dict, tag: str = '') -> list[int]:
    """Ids of the prompt of one row ('instruction', 'input'), without BOS."""
    return prompt_tokens(
      self.vocabulary, self.template, row['instruction'], row.get('input', ''), tag
    )


def _fetched(directory: str) -> str:
  """What `Prompts` reads of a remote directory, on this machine."""
  files = (*TOKENIZERS, *BESIDE)
  here = remote.fetched(
    directory, ['prompts.json', *files, *(f'huggingface/{name}' for name in files)], optional=True
  )
  if os.path.isfile(prompts := os.path.join(here, 'prompts.json')):
    remote.fetched(directory, [read_json(prompts, 'train again')['vocabulary']['file']])
  return here
