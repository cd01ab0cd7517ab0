"""A tokenizer from a file: a SentencePiece `.model` or a Hugging Face `tokenizer.json`."""

import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil

from crossin_jax import config
from crossin_jax.data import chat
from crossin_jax.storage import files, remote

# Other files read from the folder of a tokenizer.
BESIDE = ('chat_template.jinja', 'tokenizer_config.json')


@config.configurable(commands=('prepare',))
@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Text to ids and back. Pickles as its path, so that worker processes open the file again.

  Attributes:
    path: a SentencePiece model (`*.model`) or a tokenizers file (`*.json`).
    bos_token: first token of every sequence; None = that of the file (or of `tokenizer_config.json`
      beside it), else the stop token.
    eos_token: the stop token, trained at the end of every response; None = that of the file.
    chat_template: Jinja text for prompts of the template 'chat'; None = that beside the file.
  """

  path: str
  bos_token: str | None = None
  eos_token: str | None = None
  chat_template: str | None = None

  def __post_init__(self):
    if remote.is_remote(self.path):
      folder, name = self.path.rsplit('/', 1)
      here = remote.fetched(folder, [name])
      remote.fetched(folder, BESIDE, optional=True)
      object.__setattr__(self, 'path', os.path.join(here, name))
    if not os.path.isfile(self.path):
      raise FileNotFoundError(
        f'vocabulary {self.path!r} is not a file; set Vocabulary.path to a SentencePiece .model '
        'or a tokenizer.json'
      )

  def __getstate__(self):
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

  @functools.cached_property
  def _backend(self):
    return (_Tokenizers if self.path.endswith('.json') else _SentencePiece)(self.path)

  @functools.cached_property
  def size(self) -> int:
    """Number of ids; the model's vocab_size must be at least this."""
    return self._backend.size

  @functools.cached_property
  def digest(self) -> str:
    """SHA-256 of the file and of the two special tokens, hexadecimal."""
    with open(self.path, 'rb') as f:
      digest = hashlib.sha256(f.read())
    digest.update(f'\0{self.bos_id}\0{self.eos_id}'.encode())
    return digest.hexdigest()

  @functools.cached_property
  def eos_id(self) -> int:
    """Id of the stop token."""
    return self._special('eos_token', self.eos_token)

  @functools.cached_property
  def bos_id(self) -> int:
    """Id of the first decoder input; the stop token if the tokenizer has no BOS (Qwen)."""
    try:
      return self._special('bos_token', self.bos_token)
    except ValueError:
      if self.bos_token is not None:
        raise
      return self.eos_id

  @functools.cached_property
  def chat(self) -> str:
    """Text of the chat template.

    Raises:
      ChatTemplateError: there is none.
    """
    text = self.chat_template or chat.find(self.path)
    if text is None:
      raise chat.ChatTemplateError(
        f'no chat template beside {self.path} (chat_template.jinja, or tokenizer_config.json); set '
        'Vocabulary.chat_template, or choose another MixtureSettings.template'
      )
    return text

  def chat_prompt(self, user: str) -> list[int]:
    """Ids before the response to a user message, without BOS, which the decoder input adds."""
    ids = self.encode_with_specials(chat.prompt(self.chat, user, **self._special_texts))
    has_bos = ids[:1] == [self.bos_id] and self._backend.special('bos_token') is not None
    return ids[1:] if has_bos else ids

  @functools.cached_property
  def chat_stop_id(self) -> int:
    """The token that ends a response in the chat template.

    Raises:
      ChatTemplateError: no special token follows the response.
    """
    after = chat.after_response(self.chat, **self._special_texts)
    first = self.encode_with_specials(after.lstrip())[0]
    if first not in self._backend.specials.values():
      raise chat.ChatTemplateError(
        f'the chat template ends a response with {after!r}, which is not a special token of '
        f'{self.path}; generation could not stop there'
      )
    return first

  @property
  def _special_texts(self) -> dict[str, str]:
    return {
      'bos_token': self._backend.text_of(self.bos_id),
      'eos_token': self._backend.text_of(self.eos_id),
    }

  def encode_with_specials(self, text: str) -> list[int]:
    """Ids of a text that may contain special tokens (`<|im_start|>`)."""
    return self._backend.encode_with_specials(text)

  def _special(self, kind: str, token: str | None) -> int:
    if token is None:
      index = self._backend.special(kind)
      if index is None:
        raise ValueError(f'{self.path} does not name its {kind}; set Vocabulary.{kind}')
      return index
    index = self._backend.id_of(token)
    if index is None:
      raise ValueError(f'Vocabulary.{kind} = {token!r} is not a token of {self.path}')
    return index

  def token_text(self, index: int) -> str:
    """The text of a special token."""
    return self._backend.text_of(index)

  def save_for_transformers(self, directory: str) -> None:
    """Writes the tokenizer in the format of transformers' AutoTokenizer."""
    name, kind = (
      ('tokenizer.json', 'PreTrainedTokenizerFast')
      if self.path.endswith('.json')
      else ('tokenizer.model', 'LlamaTokenizer')
    )
    shutil.copyfile(self.path, os.path.join(directory, name))
    settings = {
      'tokenizer_class': kind,
      'bos_token': self.token_text(self.bos_id),
      'eos_token': self.token_text(self.eos_id),
      'add_bos_token': True,
      'add_eos_token': False,
      'clean_up_tokenization_spaces': False,
    }
    if chat_template := self.chat_template or chat.find(self.path):
      settings['chat_template'] = chat_template
    files.write_json(os.path.join(directory, 'tokenizer_config.json'), settings)

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without BOS or stop token."""
    return self._backend.encode(text)

  def encode_batch(self, texts: list[str]) -> list[list[int]]:
    """`encode` of many texts, faster."""
    return self._backend.encode_batch(texts)

  def decode(self, ids) -> str:
    """The text of ids, without special tokens and ids outside the vocabulary."""
    drop = {self.bos_id, self.eos_id}
    return self._backend.decode(
      [int(i) for i in ids if 0 <= int(i) < self.size and int(i) not in drop]
    )

  def piece(self, index: int) -> str:
    """One token as text, for display."""
    return self._backend.piece(int(index))


class _SentencePiece:
  def __init__(self, path: str):
    import sentencepiece

    self.processor = sentencepiece.SentencePieceProcessor()
    try:
      self.processor.LoadFromFile(path)
    except (RuntimeError, OSError) as error:
      raise ValueError(
        f'{path} is not a SentencePiece model ({error}); a tokenizers file must end in .json'
      ) from None
    self.size = self.processor.vocab_size()
    kinds = (self.processor.IsControl, getattr(self.processor, 'is_user_defined', lambda i: False))
    self.specials = {
      self.processor.IdToPiece(i): i for i in range(self.size) if any(kind(i) for kind in kinds)
    }

  def text_of(self, index):
    return self.processor.IdToPiece(index)

  def encode_with_specials(self, text):
    if not self.specials:
      return self.encode(text)
    longest_first = sorted(self.specials, key=len, reverse=True)
    ids = []
    for part in re.split(f'({"|".join(map(re.escape, longest_first))})', text):
      if part:
        ids += [self.specials[part]] if part in self.specials else self.encode(part)
    return ids

  def special(self, kind):
    index = self.processor.bos_id() if kind == 'bos_token' else self.processor.eos_id()
    return index if index >= 0 else None

  def id_of(self, token):
    index = self.processor.PieceToId(token)
    return index if self.processor.IdToPiece(index) == token else None

  def encode(self, text):
    return self.processor.encode(text)

  def encode_batch(self, texts):
    return self.processor.encode(texts, num_threads=1)

  def decode(self, ids):
    return self.processor.decode([i for i in ids if not self.processor.IsControl(i)])

  def piece(self, index):
    return self.processor.IdToPiece(index).replace('\u2581', ' ')


class _Tokenizers:
  def __init__(self, path: str):
    import tokenizers

    try:
      self.tokenizer = tokenizers.Tokenizer.from_file(path)
    except Exception as error:  # tokenizers raises bare Exception
      raise ValueError(f'{path} is not a tokenizers file ({error})') from None
    self.tokenizer.no_truncation()
    self.tokenizer.no_padding()
    self.size = self.tokenizer.get_vocab_size(with_added_tokens=True)
    config = os.path.join(os.path.dirname(path), 'tokenizer_config.json')
    self.config = {}
    if os.path.isfile(config):
      with open(config, encoding='utf-8') as f:
        self.config = json.load(f)
    added = self.tokenizer.get_added_tokens_decoder()
    self.specials = {token.content: i for i, token in added.items()}

  def text_of(self, index):
    return self.tokenizer.id_to_token(index)

  def encode_with_specials(self, text):
    return self.encode(text)  # the library knows its added tokens in any text

  def special(self, kind):
    token = self.config.get(kind)
    token = token.get('content') if isinstance(token, dict) else token
    return None if token is None else self.id_of(token)

  def id_of(self, token):
    return self.tokenizer.token_to_id(token)

  def encode(self, text):
    return self.tokenizer.encode(text, add_special_tokens=False).ids

  def encode_batch(self, texts):
    return [e.ids for e in self.tokenizer.encode_batch(texts, add_special_tokens=False)]

  def decode(self, ids):
    return self.tokenizer.decode(ids, skip_special_tokens=True)

  def piece(self, index):
    # A byte-level token may be part of a character, which decodes to U+FFFD.
    return self.tokenizer.decode([index], skip_special_tokens=False)
