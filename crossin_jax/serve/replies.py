"""JSON of answers, as OpenAI's completions and chat completions have it."""

from collections.abc import Iterable, Sequence
import time
import uuid

from crossin_jax.data.vocabulary import Vocabulary
from crossin_jax.decoding.schedule import TokenLogprob
from crossin_jax.serve.answering import Delta
from crossin_jax.serve.fields import Asked

LEAST = -9999.0  # log-probability of what cannot be; JSON has no infinity


class Replies:
  """Writes the objects of one request.

  Attributes:
    id: of the request.
  """

  def __init__(self, asked: Asked, name: str, vocabulary: Vocabulary):
    """Args:
    asked: the request.
    name: of the model.
    vocabulary: of its tokenizer.
    """
    self._asked, self._name, self._vocabulary = asked, name, vocabulary
    self._chat = asked.kind == 'chat'
    self.id = f'{"chatcmpl" if self._chat else "cmpl"}-{uuid.uuid4().hex}'
    self._created = int(time.time())
    self._offsets: dict[int, int] = {}
    self._begun: set[int] = set()

  def _object(self, kind: str, choices: list, usage: dict | None) -> dict:
    head = {'id': self.id, 'object': kind, 'created': self._created, 'model': self._name}
    return {**head, 'choices': choices, **({} if usage is None else {'usage': usage})}

  def complete(self, deltas: Iterable[Delta], usage: dict) -> dict:
    """The object of an answer that is not streamed."""
    parts: dict[int, list[Delta]] = {}
    for delta in deltas:
      parts.setdefault(delta.index, []).append(delta)
    choices = [self._choice(index, parts[index]) for index in sorted(parts)]
    return self._object('chat.completion' if self._chat else 'text_completion', choices, usage)

  def _choice(self, index: int, deltas: Sequence[Delta]) -> dict:
    text = ''.join(delta.text for delta in deltas)
    logprobs = self._logprobs(index, [one for delta in deltas for one in delta.logprobs])
    content = {'text': text}
    if self._chat:
      content = {'message': {'role': 'assistant', 'content': text, 'refusal': None}}
    reason = deltas[-1].finish_reason
    return {'index': index, **content, 'logprobs': logprobs, 'finish_reason': reason}

  def chunk(self, delta: Delta) -> dict:
    """The object of a part of a stream."""
    content = {'text': delta.text}
    if self._chat:
      role = {} if delta.index in self._begun else {'role': 'assistant'}
      self._begun.add(delta.index)
      content = {'delta': {**role, 'content': delta.text}}
    choice = {
      'index': delta.index,
      **content,
      'logprobs': self._logprobs(delta.index, delta.logprobs),
      'finish_reason': delta.finish_reason,
    }
    kind = 'chat.completion.chunk' if self._chat else 'text_completion'
    chunk = self._object(kind, [choice], None)
    return {**chunk, 'usage': None} if self._asked.usage else chunk

  def last_chunk(self, usage: dict) -> dict:
    """The end of a stream with `stream_options.include_usage`."""
    return self._object('chat.completion.chunk' if self._chat else 'text_completion', [], usage)

  def _logprobs(self, index: int, scored: Sequence[TokenLogprob]) -> dict | None:
    if self._asked.logprobs is None:
      return None
    return self._of_chat(scored) if self._chat else self._of_completion(index, scored)

  def _of_chat(self, scored: Sequence[TokenLogprob]) -> dict:
    def entry(token: int, logprob: float) -> dict:
      text = self._vocabulary.piece(token)
      # A part of a character has no text whose bytes are its own.
      parts = None if '\N{REPLACEMENT CHARACTER}' in text else list(text.encode())
      return {'token': text, 'logprob': max(LEAST, logprob), 'bytes': parts}

    content = [
      {
        **entry(one.token, one.logprob),
        'top_logprobs': [entry(*pair) for pair in one.top[: self._asked.logprobs]],
      }
      for one in scored
    ]
    return {'content': content, 'refusal': None}

  def _of_completion(self, index: int, scored: Sequence[TokenLogprob]) -> dict:
    piece, offsets, offset = self._vocabulary.piece, [], self._offsets.get(index, 0)
    texts = [piece(one.token) for one in scored]
    for one, text in zip(scored, texts):
      offsets.append(offset)
      offset += 0 if self._vocabulary.specials_in([one.token]) else len(text)
    self._offsets[index] = offset
    return {
      'tokens': texts,
      'token_logprobs': [
        None if one.logprob is None else max(LEAST, one.logprob) for one in scored
      ],
      'top_logprobs': [self._top(one) for one in scored],
      'text_offset': offsets,
    }

  def _top(self, one: TokenLogprob) -> dict | None:
    """Text -> log-probability of the most likely tokens, and of the token itself."""
    if one.logprob is None:
      return None
    found: dict[str, float] = {}
    for token, logprob in [*one.top[: self._asked.logprobs], (one.token, one.logprob)]:
      # Of tokens with the same text the most likely one counts.
      found.setdefault(self._vocabulary.piece(token), max(LEAST, logprob))
    return found
