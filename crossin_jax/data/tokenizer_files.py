"""The two kinds of tokenizer file: SentencePiece models and files of the library tokenizers."""

import bisect
import functools
import json
import shutil

from crossin_jax.data import chat, sentencepiece_json, tokenizer_config


def opened(path: str) -> 'Backend':
  """The tokenizer of a `.json` file or a SentencePiece model."""
  return (Tokenizers if path.endswith('.json') else SentencePiece)(path)


class Backend:
  """What both kinds of file have in common.

  Attributes:
    size: number of ids.
    names: name -> text of the special tokens that the files name.
    specials: text -> id of all tokens that `encode_with_specials` knows.
    control: texts of those that are no text in `encode`.
    needs_alias: `encode_chat` knows special tokens by the ALIAS in front only.
  """

  needs_alias = False

  def __init__(self, path: str):
    self.path = path
    self.config = tokenizer_config.read(path)
    self.names = tokenizer_config.names(self.config, path)

  @functools.cached_property
  def quotes(self) -> chat.Quotes:
    return chat.Quotes(self.control)

  def first_special(self, text: str) -> str | None:
    """The special token of a text that comes first; else the first added token."""
    for tokens in (self.control, self.specials):
      at = [(place, -len(token), token) for token in tokens if (place := text.find(token)) >= 0]
      if at:
        return min(at)[2]
    return None

  def special(self, kind: str) -> int | None:
    """Id of `bos_token` or `eos_token`; None if the files name none."""
    return self.id_of(self.names[kind]) if kind in self.names else None


def _places(encoding, at) -> tuple[list[int], list[int]]:
  """Ids of an encoding of tokenizers, and the tokens at which the characters `at` are."""
  if not at:
    return encoding.ids, []
  # Where a token goes across the border, it belongs to what follows.
  ends = [end for _, end in encoding.offsets]
  return encoding.ids, [bisect.bisect_right(ends, place) for place in at]


class SentencePiece(Backend):
  needs_alias = True

  def __init__(self, path: str):
    import sentencepiece

    super().__init__(path)
    self.processor = sentencepiece.SentencePieceProcessor()
    try:
      self.processor.LoadFromFile(path)
    except (RuntimeError, OSError) as error:
      raise ValueError(
        f'{path} is not a SentencePiece model ({error}); a tokenizers file must end in .json'
      ) from None
    self.size = self.processor.vocab_size()
    pieces = [self.processor.IdToPiece(i) for i in range(self.size)]
    defined = getattr(self.processor, 'is_user_defined', lambda i: False)
    self.control = {pieces[i] for i in range(self.size) if self.processor.IsControl(i)}
    self.specials = {
      piece: i for i, piece in enumerate(pieces) if piece in self.control or defined(i)
    }
    own = {
      'bos_token': self.processor.bos_id(), 'eos_token': self.processor.eos_id(),
      'unk_token': self.processor.unk_id(),
    }  # fmt: skip
    own = {kind: pieces[i] for kind, i in own.items() if i >= 0 and kind not in self.config}
    self.names = own | self.names

  @functools.cached_property
  def bos_id(self):
    return None if self.config.get('add_bos_token') is False else self.special('bos_token')

  @functools.cached_property
  def _chats(self):
    """The same model for rendered texts: behind a special token there is no word border that the
    text does not have. Special tokens have ALIAS in front.
    """
    legacy = self.config.get('legacy') is True  # as transformers, of old models
    return sentencepiece_json.convert(self.path, prefix=chat.ALIAS, legacy=legacy)

  def write_json(self, path, bos_id):
    sentencepiece_json.convert(self.path, bos_id).save(path)

  def text_of(self, index):
    return self.processor.IdToPiece(index)

  def encode_with_specials(self, text):
    if not self.quotes.inside(text):
      return self.encode(text)
    return self.encode_chat(self.quotes.alias(text))[0]

  @functools.cached_property
  def _as_llama(self):
    """The tokenizer of transformers where the configuration names Llama's class; else None."""
    if self.config.get('tokenizer_class') not in ('LlamaTokenizer', 'LlamaTokenizerFast'):
      return None
    return sentencepiece_json.as_llama(self.path, self.config.get('legacy') is True)

  def encode_as_transformers(self, text, with_specials):
    bos = [] if self.bos_id is None or not with_specials else [self.bos_id]
    if self._as_llama is None:
      return bos + self.encode_with_specials(text)
    return bos + self._as_llama.encode(text, add_special_tokens=False).ids

  def decode_as_transformers(self, ids):
    return self.decode(ids) if self._as_llama is None else self._as_llama.decode(ids)

  def encode_chat(self, text, at=()):
    return _places(self._chats.encode(text, add_special_tokens=False), at)

  def id_of(self, token):
    index = self.processor.PieceToId(token)
    return index if self.processor.IdToPiece(index) == token else None

  def encode(self, text):
    return self.processor.encode(text)

  @functools.cached_property
  def _border(self):
    """Ids of a line end alone, if what is on both sides of one never changes the ids of the other
    side: it is a token that no other piece contains; else None.
    """
    ids = self.encode('\n')
    alone = ids and self.processor.IdToPiece(ids[-1]) in ('\n', '<0x0A>')
    pieces = map(self.processor.IdToPiece, range(self.size))
    return ids if alone and not any('\n' in piece and piece != '\n' for piece in pieces) else None

  def encode_batch(self, texts, beginnings=()):
    heads = {}
    if beginnings and self._border:
      heads = {text: self.encode(text) for text in beginnings if text.endswith('\n')}
    if not heads:
      return self.processor.encode(texts, num_threads=1)
    begun = [next(filter(text.startswith, heads), '') for text in texts]
    # The line end stays, so that what follows is not the start of a text.
    rest = [text[max(0, len(head) - 1) :] for text, head in zip(texts, begun)]
    found, skipped = self.processor.encode(rest, num_threads=1), len(self._border)
    return [heads[head] + ids[skipped:] if head else ids for head, ids in zip(begun, found)]

  def decode(self, ids):
    return self.processor.decode([i for i in ids if not self.processor.IsControl(i)])

  def decode_with_specials(self, ids, kept):
    text, part = '', []
    for i in [*ids, None]:
      if i is not None and i not in kept:
        part += [] if self.processor.IsControl(i) else [i]
        continue
      # The first word border of a text is not decoded, those behind a special token are.
      border = text and part and self.text_of(part[0]).startswith('\u2581')
      text += ' ' * bool(border) + self.processor.decode(part)
      text += '' if i is None else self.text_of(i)
      part = []
    return text

  def piece(self, index):
    return self.processor.IdToPiece(index).replace('\u2581', ' ')


class Tokenizers(Backend):
  def __init__(self, path: str):
    import tokenizers

    super().__init__(path)
    try:
      self.tokenizer = tokenizers.Tokenizer.from_file(path)
    except Exception as error:  # tokenizers raises bare Exception
      raise ValueError(f'{path} is not a tokenizers file ({error})') from None
    self.tokenizer.no_truncation()
    self.tokenizer.no_padding()
    # Ids may have holes: their number says nothing about the highest.
    self.size = 1 + max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    added = self.tokenizer.get_added_tokens_decoder()
    self.specials = {token.content: i for i, token in added.items()}
    self.control = {token.content for token in added.values() if token.special}

  @functools.cached_property
  def bos_id(self):
    # What the post-processor puts in front. Like transformers 5, which reads `add_bos_token` only
    # where there is no tokenizer.json.
    with_specials = self.tokenizer.encode('a').ids
    first = self.tokenizer.encode('a', add_special_tokens=False).ids[:1]
    return with_specials[0] if with_specials and with_specials[:1] != first else None

  @functools.cached_property
  def _aliased(self):
    """A tokenizer with ALIAS before its special tokens, so that these texts alone are text."""
    import tokenizers

    described = json.loads(self.tokenizer.to_str())
    for token in described['added_tokens']:
      if token['special']:
        token['content'] = chat.ALIAS + token['content']
    described['post_processor'] = None
    return tokenizers.Tokenizer.from_str(json.dumps(described))

  def write_json(self, path, bos_id):
    if bos_id == self.bos_id:
      shutil.copyfile(self.path, path)
      return
    import tokenizers

    changed = tokenizers.Tokenizer.from_file(self.path)
    changed.post_processor = sentencepiece_json.starting_with(self.text_of(bos_id), bos_id)
    changed.save(path)

  def text_of(self, index):
    return None if index is None else self.tokenizer.id_to_token(index)

  def encode_with_specials(self, text):
    return self._tokenized(text, False).ids

  def encode_as_transformers(self, text, with_specials):
    self.tokenizer.encode_special_tokens = False
    return self.tokenizer.encode(text, add_special_tokens=with_specials).ids

  def decode_as_transformers(self, ids):
    return self.decode(ids)

  def _tokenized(self, text, specials_are_text):
    self.tokenizer.encode_special_tokens = specials_are_text
    return self.tokenizer.encode(text, add_special_tokens=False)

  def encode_chat(self, text, at=()):
    if chat.ALIAS not in text:
      return _places(self._tokenized(text, False), at)
    encoding = self._aliased.encode(text, add_special_tokens=False)
    # The other tokenizer numbers added tokens in its own way.
    ids = [self._id_of_added(*token) for token in zip(encoding.tokens, encoding.ids)]
    return ids, _places(encoding, at)[1]

  def _id_of_added(self, token, index):
    """The id of an added token of `_aliased`; `index` of any other token."""
    text = token.rpartition(chat.ALIAS)[2]  # it may stand behind spaces that it takes with it
    return self.specials.get(text, self.specials.get(text.strip(), index))

  def id_of(self, token):
    return self.tokenizer.token_to_id(token)

  def encode(self, text):
    return self._tokenized(text, True).ids

  def encode_batch(self, texts, beginnings=()):
    del beginnings  # what follows may be part of their last token
    self.tokenizer.encode_special_tokens = True
    return [e.ids for e in self.tokenizer.encode_batch(texts, add_special_tokens=False)]

  def decode(self, ids):
    return self.tokenizer.decode(ids, skip_special_tokens=True)

  def decode_with_specials(self, ids, kept):
    hidden = {self.specials[token] for token in self.control} - kept
    ids = [i for i in ids if i not in hidden]
    return self.tokenizer.decode(ids, skip_special_tokens=False)

  def piece(self, index):
    # A byte-level token may be part of a character, which decodes to U+FFFD.
    return self.tokenizer.decode([index], skip_special_tokens=False)
