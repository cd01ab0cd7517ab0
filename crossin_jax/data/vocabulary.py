"""A tokenizer from a file: a SentencePiece `.model` or a Hugging Face `tokenizer.json`."""

import dataclasses
import functools
import hashlib
import json
import os

import gin


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Text to ids and back. Pickles as its path, so that worker processes can open their own.

  Attributes:
    path: a SentencePiece model (`*.model`) or a tokenizers file (`*.json`).
    bos_token: begins every sequence; None = what the file (or `tokenizer_config.json` beside it) says,
      else the stop token.
    eos_token: the stop token, trained at the end of every response; None = what the file says.
  """

  path: str
  bos_token: str | None = None
  eos_token: str | None = None

  def __post_init__(self):
    if not os.path.isfile(self.path):
      raise FileNotFoundError(
        f'vocabulary {self.path!r} is not a file; set Vocabulary.path to a SentencePiece .model or a tokenizer.json'
      )

  def __getstate__(self):
    return {'path': self.path, 'bos_token': self.bos_token, 'eos_token': self.eos_token}

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
    """Id that the decoder reads first; the stop token where the tokenizer has no BOS (Qwen)."""
    try:
      return self._special('bos_token', self.bos_token)
    except ValueError:
      if self.bos_token is not None:
        raise
      return self.eos_id

  def _special(self, kind: str, token: str | None) -> int:
    if token is None:
      index = self._backend.special(kind)
      if index is None:
        raise ValueError(f'{self.path} does not say which token is its {kind}; set Vocabulary.{kind}')
      return index
    index = self._backend.id_of(token)
    if index is None:
      raise ValueError(f'Vocabulary.{kind} = {token!r} is no token of {self.path}')
    return index

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without BOS or stop token."""
    return self._backend.encode(text)

  def encode_batch(self, texts: list[str]) -> list[list[int]]:
    """`encode` of many texts, faster."""
    return self._backend.encode_batch(texts)

  def decode(self, ids) -> str:
    """The text of ids; special tokens and ids outside the vocabulary are left out."""
    drop = {self.bos_id, self.eos_id}
    return self._backend.decode([int(i) for i in ids if 0 <= int(i) < self.size and int(i) not in drop])

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
      raise ValueError(f'{path} is not a SentencePiece model ({error}); a tokenizers file must end in .json') from None
    self.size = self.processor.vocab_size()

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
    # A byte-level token may hold half a character; decoding shows it as U+FFFD, which is what it is.
    return self.tokenizer.decode([index], skip_special_tokens=False)
