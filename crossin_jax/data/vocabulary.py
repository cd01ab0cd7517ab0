"""A tokenizer from a file: a SentencePiece `.model` or a Hugging Face `tokenizer.json`."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
import os
import shutil
from typing import Any, NamedTuple
import warnings

from crossin_jax import config
from crossin_jax.data import chat, tokenizer_config, tokenizer_files
from crossin_jax.data.conversations import REASONING, REASONING_FIELDS, Message
from crossin_jax.storage import files, hub_names, remote

TOKENIZERS = ('tokenizer.json', 'tokenizer.model')  # the first that a folder has is read
# Other files read from the folder of a tokenizer.
BESIDE = tokenizer_config.FILES

_WARNED: set[tuple[str, str]] = set()  # vocabulary and warning; rows are many


class Turns(NamedTuple):
  """Messages as tokens.

  Attributes:
    ids: through the last stop token.
    trained: spans of tokens (first, behind the last).
    untrained: answers that are not trained, because the template writes them in another way where
      they are not the last.
  """

  ids: list[int]
  trained: list[tuple[int, int]]
  untrained: int


@config.configurable(commands=('prepare',))
@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Text to ids and back. Pickles as its path, so that worker processes open the file again.

  Attributes:
    path: a SentencePiece model (`*.model`), a tokenizers file (`*.json`), a folder with one, or
      ORG/NAME or hf:ORG/NAME@REVISION on the Hugging Face hub.
    bos_token: first token of every sequence; '' = none; None = what the tokenizer itself puts
      there (of 'chat', what its template writes there), which is nothing for Qwen.
    eos_token: the stop token, trained at the end of every response; None = that of the file.
    chat_template: Jinja text for prompts of the template 'chat'; None = that beside the file.
    chat_options: arguments of the chat template, {'enable_thinking': False}.
    special_tokens_in_text: whether '<|im_end|>' in the text of a row is the special token. False =
      it is text.
    system_role: where a chat template has no system role: 'first_user' = its text stands at the
      start of the first user turn; 'error' = such a row is an error.
  """

  path: str
  bos_token: str | None = None
  eos_token: str | None = None
  chat_template: str | None = None
  chat_options: Any = ()
  special_tokens_in_text: bool = False
  system_role: str = 'first_user'

  def __post_init__(self):
    if self.system_role not in ('first_user', 'error'):
      raise ValueError(
        f"Vocabulary.system_role = {self.system_role!r} is not 'first_user' or 'error'"
      )
    # Pairs, so that a Vocabulary has a hash.
    object.__setattr__(self, 'chat_options', tuple(sorted(dict(self.chat_options or {}).items())))
    object.__setattr__(self, 'path', _local_file(self.path))
    if not os.path.isfile(self.path):
      raise FileNotFoundError(
        f'vocabulary {self.path!r} is not a file; set Vocabulary.path to a SentencePiece .model, '
        'a tokenizer.json, or ORG/NAME on the Hugging Face hub'
      )

  def __getstate__(self):
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

  @functools.cached_property
  def _backend(self):
    return tokenizer_files.opened(self.path)

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
  def bos_id(self) -> int | None:
    """Id of the first decoder input; None = a sequence starts with its own first token."""
    if self.bos_token is not None:
      return self._special('bos_token', self.bos_token) if self.bos_token else None
    return self._backend.bos_id

  def with_template(self, template: str) -> 'Vocabulary':
    """This vocabulary with `bos_token` as sequences of a template start."""
    if self.bos_token is not None or template != 'chat':
      return self
    ids, _ = self._encode_chat(self._rendered(chat.prompt, 'question', **self._chat_variables))
    named = self._backend.special('bos_token')
    starts = named is not None and ids[:1] == [named]
    copy = dataclasses.replace(self, bos_token=self.token_text(named) if starts else '')
    copy.__dict__['_backend'] = self._backend  # large files take seconds to open
    return copy

  @functools.cached_property
  def chat(self) -> str:
    """Text of the chat template.

    Raises:
      ChatTemplateError: there is none.
    """
    text = self.chat_template or tokenizer_config.chat_template(self.path)
    if text is None:
      raise chat.ChatTemplateError(
        f'no chat template beside {self.path} (chat_template.jinja, or tokenizer_config.json); set '
        'Vocabulary.chat_template, or choose another MixtureSettings.template'
      )
    return text

  def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
    """Ids before the answer to messages, without the BOS of `with_template`."""
    messages, quoted = self._hidden(self._placed(messages))
    text = self._rendered(chat.prompt, messages, **self._chat_variables)
    return self._without_bos(self._encode_chat(text, quoted)[0])

  def chat_turns(self, messages: Sequence[Message], which: str = 'all') -> 'Turns':
    """Ids of messages through the last stop token, and what is trained of them.

    Args:
      messages: the last is an answer.
      which: answers that are trained, 'all' or 'last'.

    Returns:
      Ids as transformers' apply_chat_template has them, without the BOS of `with_template`.

    Raises:
      ChatTemplateError: the template omits the response, or refuses the conversation.
      chat.PromptDiffers: it writes what precedes the last answer in another way than the prompt.
    """
    messages, quoted = self._hidden(self._placed(messages))
    after, end, appended = self._chat_end
    render = functools.partial(
      self._rendered, chat.turn, messages, which=which, after=after, end=end, appended=appended
    )
    try:
      turn = render(variables=self._chat_variables)
    except chat.PromptDiffers as error:
      self._warn_of_prompt(error, lambda variables: render(variables=variables))
      raise
    if turn.untrained:
      self._warn_of_untrained(lambda variables: not render(variables=variables).untrained)
    at = [place for span in turn.trained for place in span]
    ids, places = self._encode_chat(turn.text, quoted, at)
    kept = self._without_bos(ids)
    places = [max(0, place - len(ids) + len(kept)) for place in places]
    return Turns(kept, list(zip(places[::2], places[1::2])), turn.untrained)

  def _placed(self, messages: Sequence[Message]) -> Sequence[Message]:
    """The messages as the template reads them: reasoning in its field, the system text where the
    template has room for it.
    """
    if any(REASONING in message for message in messages):
      messages = [self._with_reasoning(message) for message in messages]
    if messages[0]['role'] != 'system' or self._takes_system:
      return messages
    if self.system_role == 'error':
      raise chat.ChatTemplateError(
        f'{self._chat_file}: the chat template has no system role, and a row has a system turn; '
        "set Vocabulary.system_role = 'first_user' to put its text at the start of the first user "
        'turn, or remove the turn'
      )
    system, first, *others = messages
    return [{**first, 'content': f'{system["content"]}\n\n{first["content"]}'}, *others]

  def _with_reasoning(self, message: Message) -> Message:
    reasoning = message.get(REASONING)
    plain = {key: text for key, text in message.items() if key != REASONING}
    if reasoning is None:
      return plain
    if self.reasoning_field is None:
      if self._is_first('reasoning'):
        warnings.warn(
          f'the chat template does not write {REASONING}: such rows are trained without it'
        )
      return plain
    return {**plain, self.reasoning_field: reasoning}

  @functools.cached_property
  def _takes_system(self) -> bool:
    return chat.shows(self.chat, 'system', self._chat_variables)

  @functools.cached_property
  def reasoning_field(self) -> str | None:
    """The field of an answer from which the chat template writes reasoning; None = it does not."""
    shows = lambda field: chat.shows(self.chat, field, self._chat_variables)
    return next(filter(shows, REASONING_FIELDS), None)

  def _warn_of_prompt(self, error: 'chat.PromptDiffers', agrees) -> None:
    if self._is_first('prompt'):
      warnings.warn(
        f'the chat template prompts with {error.asked[-60:]!r} where it trains '
        f'{error.trained[:60]!r}: such an answer is not trained, and its row is dropped '
        f'(prompt_differs){self._remedy(agrees)}'
      )

  def _warn_of_untrained(self, agrees) -> None:
    if self._is_first('untrained'):
      warnings.warn(
        'the chat template writes an earlier answer in another way than the last one, so only '
        f'answers that stay as they were generated are trained{self._remedy(agrees)}'
      )

  def _is_first(self, what: str) -> bool:
    """Whether a warning was not given before, for an equal vocabulary."""
    key = repr(self), what  # options may have no hash
    known = key in _WARNED
    _WARNED.add(key)
    return not known

  def _remedy(self, agrees) -> str:
    found = chat.argument(self.chat, self._chat_variables, agrees)
    return f'; Vocabulary.chat_options = {found!r} makes both equal' if found else ''

  def _hidden(self, messages: Sequence[Message]) -> tuple[list[Message], bool]:
    """Messages with stand-ins for special tokens that they quote, and whether any does."""
    quotes = self._backend.quotes
    texts = (text for message in messages for text in message.values())
    if self.special_tokens_in_text or not any(map(quotes.inside, texts)):
      return list(messages), False
    hide = lambda message: {
      key: text if key == 'role' else quotes.hide(text) for key, text in message.items()
    }
    return list(map(hide, messages)), True

  def _encode_chat(self, text: str, quoted: bool = False, at=()) -> tuple[list[int], list[int]]:
    """Ids of a rendered text, and at which token the characters `at` are."""
    if quoted or self._backend.needs_alias:
      alias = self._backend.quotes.alias
      at, text = [len(alias(text[:place])) for place in at], alias(text)
    return self._backend.encode_chat(text, at)

  def _without_bos(self, ids: list[int]) -> list[int]:
    has_bos = self.bos_id is not None and ids[:1] == [self.bos_id]
    return ids[1:] if has_bos and self._backend.special('bos_token') is not None else ids

  @functools.cached_property
  def _chat_end(self) -> tuple[str, int, str]:
    """(text after a response, its characters through the stop token, stop token to append)."""
    variables = self._chat_variables
    before, after = self._rendered(chat.around_response, **variables)
    asked = self._rendered(chat.prompt, 'question', **variables)
    if not before.startswith(asked.rstrip()):
      remedy = self._remedy(lambda changed: chat.prompts_alike(self.chat, changed))
      warnings.warn(
        f'the chat template prompts with {asked[-40:]!r} and trains after {before[-40:]!r}; '
        f'answers begin after the first, which training has not seen{remedy}'
      )
    elif header := chat.unprompted(self.chat, before, asked, variables):
      warnings.warn(
        'the chat template writes the same with and without add_generation_prompt: the model '
        f'itself writes {header!r} before an answer, and it is trained'
      )
    stop = self._backend.first_special(after)
    if stop is None:
      warnings.warn(
        f'the chat template ends a response with {after!r}, without a special token of {self.path};'
        f' {self.token_text(self.eos_id)!r} is trained behind it, so that generation ends'
      )
      return after, len(after), self.token_text(self.eos_id)
    return after, after.index(stop) + len(stop), ''

  @functools.cached_property
  def chat_stop_id(self) -> int:
    """The token that ends a response in the chat template; the tokenizer's where it has none.

    Raises:
      ChatTemplateError: the template omits the response.
    """
    after, end, appended = self._chat_end
    return self._backend.id_of(appended or self._backend.first_special(after[:end]))

  def _rendered(self, function, *args, **options):
    """A function of `chat` with the template; messages name where that is from."""
    text = self.chat
    try:
      return function(text, *args, **options)
    except chat.ChatTemplateError as error:
      if isinstance(error, chat.PromptDiffers):
        raise
      raise chat.ChatTemplateError(f'{self._chat_file}: {error}') from None

  @property
  def _chat_file(self) -> str:
    """Where the chat template is from, for messages."""
    if self.chat_template:
      return 'Vocabulary.chat_template'
    folder = os.path.dirname(self.path)
    paths = (os.path.join(folder, name) for name in tokenizer_config.FILES[:2])
    return next(filter(os.path.isfile, paths), folder)

  @functools.cached_property
  def _chat_variables(self) -> dict[str, Any]:
    names = dict(self._backend.names)
    if self.bos_token:
      names['bos_token'] = self.bos_token
    if self.eos_token is not None:
      names['eos_token'] = self.eos_token
    return names | dict(self.chat_options)

  def encode_with_specials(self, text: str) -> list[int]:
    """Ids of a text that may contain special tokens (`<|im_start|>`)."""
    return self._backend.encode_with_specials(text)

  def encode_as_transformers(self, text: str, with_specials: bool = True) -> list[int]:
    """Ids of a text, which may contain special tokens, as transformers reads the same files.

    Args:
      text: any.
      with_specials: with what stands around a sequence, such as BOS.
    """
    if self.bos_token is None or not with_specials:
      return self._backend.encode_as_transformers(text, with_specials)
    ids = self._backend.encode_as_transformers(text, False)
    return ids if self.bos_id is None else [self.bos_id, *ids]

  def decode_as_transformers(self, ids: Sequence[int]) -> str:
    """The text of ids without special tokens, as transformers reads the same files."""
    return self._backend.decode_as_transformers([int(i) for i in ids if 0 <= int(i) < self.size])

  @functools.cached_property
  def prefix_id(self) -> int:
    """The token before a text that has no other context: BOS where the files name one, whether or
    not sequences start with it; else the stop token.
    """
    named = None if self.bos_text is None else self._backend.id_of(self.bos_text)
    return self.eos_id if named is None else named

  @property
  def bos_text(self) -> str | None:
    """Text of the BOS that the files name, whether or not sequences start with it."""
    return self.bos_token or self._backend.names.get('bos_token')

  def chat_text(self, messages: Sequence[Mapping[str, str]], begun: bool = False) -> str:
    """A conversation as transformers' `apply_chat_template` renders it.

    Args:
      messages: 'role' and 'content'; special tokens in them stay special.
      begun: the last message is an answer that goes on; else the text ends before an answer.

    Raises:
      ChatTemplateError: no chat template, or one that refuses the conversation.
    """
    if not begun:
      return self._rendered(chat.prompt, list(messages), **self._chat_variables)
    return self._rendered(chat.begun, list(messages), **self._chat_variables)

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

  def has_token(self, text: str) -> bool:
    """Whether a text is one token, special or not."""
    return self._backend.id_of(text) is not None

  def token_text(self, index: int) -> str:
    """The text of a special token."""
    return self._backend.text_of(index)

  def save_for_transformers(self, directory: str, stop_id: int | None = None) -> None:
    """Writes the tokenizer in the format of transformers' AutoTokenizer, with the same ids.

    Args:
      directory: exists.
      stop_id: the token that ends a response; None = the stop token.

    Raises:
      ValueError: a SentencePiece model that has no such form, see `sentencepiece_json.convert`.
    """
    self._backend.write_json(os.path.join(directory, 'tokenizer.json'), self.bos_id)
    if not self.path.endswith('.json'):  # for tools that read this one, such as llama.cpp
      shutil.copyfile(self.path, os.path.join(directory, 'tokenizer.model'))
    settings = {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      **self._backend.names,
      'bos_token': None if self.bos_id is None else self.token_text(self.bos_id),
      'eos_token': self.token_text(self.eos_id if stop_id is None else stop_id),
      'clean_up_tokenization_spaces': False,
    }
    if self.chat_template or tokenizer_config.chat_template(self.path):
      settings['chat_template'] = self.exported_chat(stop_id)
    files.write_json(os.path.join(directory, 'tokenizer_config.json'), settings)

  def exported_chat(self, stop_id: int | None = None) -> str:
    """The chat template for a tokenizer of transformers whose `eos_token` is `stop_id`."""
    is_other = stop_id not in (None, self.eos_id)
    eos_token = self.token_text(self.eos_id) if is_other else None
    return chat.exported(self.chat, dict(self.chat_options), eos_token)

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without BOS or stop token."""
    if self.special_tokens_in_text:
      return self._backend.encode_with_specials(text)
    return self._backend.encode(text)

  def encode_batch(self, texts: list[str], beginnings: Sequence[str] = ()) -> list[list[int]]:
    """`encode` of many texts, faster.

    Args:
      texts: any.
      beginnings: with which many of them begin; they need not be tokenised each time.
    """
    if self.special_tokens_in_text:
      return [self._backend.encode_with_specials(text) for text in texts]
    return self._backend.encode_batch(texts, beginnings)

  def decode(self, ids, shown: Sequence[str] = ()) -> str:
    """The text of ids, without special tokens and ids outside the vocabulary.

    Args:
      ids: of tokens.
      shown: texts (stop texts); special tokens that they contain are not left out.
    """
    specials = self._backend.specials.items() if shown else ()
    kept = {i for token, i in specials if any(token in text for text in shown)}
    drop = {self.bos_id, self.eos_id} - kept  # None is no id
    ids = [int(i) for i in ids if 0 <= int(i) < self.size and int(i) not in drop]
    if kept.isdisjoint(ids):
      return self._backend.decode(ids)
    return self._backend.decode_with_specials(ids, kept)

  def specials_in(self, ids) -> list[str]:
    """The texts of the special tokens among ids."""
    present = {int(i) for i in ids}
    return [token for token, index in self._backend.specials.items() if index in present]

  def piece(self, index: int) -> str:
    """One token as text, for display."""
    return self._backend.piece(int(index))


def _local_file(path: str) -> str:
  """The tokenizer file on this machine, downloaded with those that are read beside it."""
  is_file = path.endswith(('.json', '.model'))
  path = hub_names.pinned(path) if not is_file or hub_names.is_name(path) else path
  if is_file and remote.is_elsewhere(path):
    folder, name = path.rsplit('/', 1)
    here = remote.fetched(folder, [name])
    remote.fetched(folder, BESIDE, optional=True)
    return os.path.join(here, name)
  if hub_names.is_name(path):
    path = remote.fetched(path, (*TOKENIZERS, *BESIDE), optional=True)
  names = (os.path.join(path, name) for name in TOKENIZERS)
  return next(filter(os.path.isfile, names), path)
