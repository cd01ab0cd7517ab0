"""Answers to requests, kept in a file: a run that was killed asks only what is missing."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import hashlib
import json
from typing import Any

from crossin_jax.decoding import journal as journals
from crossin_jax.decoding.journal import Journal
from crossin_jax.processes import sharing

Key = tuple[str, int]  # digest of a request, and which of several draws


def keys_of(kind: str, requests: Sequence[tuple], drawn: Sequence[bool]) -> list[Key]:
  """Keys of requests by their content. Equal requests are one, unless their answers are drawn.

  Args:
    kind: 'loglikelihood' ...
    requests: their arguments, JSON values.
    drawn: whether the answer of each is a random draw.
  """
  seen: dict[str, int] = {}
  keys = []
  for arguments, is_drawn in zip(requests, drawn):
    text = json.dumps([kind, *arguments], ensure_ascii=False, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    sample = seen.get(digest, 0) if is_drawn else 0
    seen[digest] = sample + 1
    keys.append((digest, sample))
  return keys


class Answered:
  """Key -> answer, a JSON value. New answers are also appended to the journal of process 0."""

  def __init__(self, journal: Journal | None = None):
    self._journal = journal
    rows = journal.rows() if journal else []
    known = [[row['index'], row.get('sample', 0), row['answer']] for row in rows]
    self._known: dict[Key, Any] = {
      (index, sample): answer for index, sample, answer in sharing.json_from_chief(known)
    }

  def __contains__(self, key: Key) -> bool:
    return key in self._known

  def __getitem__(self, key: Key) -> Any:
    return self._known[key]

  def __len__(self) -> int:
    return len(self._known)

  def add(self, key: Key, answer: Any) -> None:
    """Keeps an answer; it is in the file when this returns."""
    self._known[key] = answer
    if self._journal:
      index, sample = key
      self._journal.append({'index': index, 'sample': sample, 'answer': answer})


@contextlib.contextmanager
def opened(path: str, name: str, engine, settings: dict[str, Any]) -> Iterator[Answered]:
  """The answers of a file that belongs to one model and its settings.

  Args:
    path: of the local file.
    name: what messages call it.
    engine: the model.
    settings: what answers depend on beside the model and the requests, flat.

  Raises:
    JournalError: the file belongs to another model or other settings, or is in use.
  """

  def all_settings() -> dict[str, Any]:
    fields = {
      f'DecoderConfig.{field.name}': str(getattr(engine.config, field.name))
      for field in dataclasses.fields(engine.config)
    }
    return {
      'digest of the weights': engine.source.digest,
      'tokenizer': engine.vocabulary.digest,
      'max_length': engine.max_length,
      **settings,
      **fields,
    }

  with journals.on_chief(path, name, all_settings) as journal:
    yield Answered(journal)
