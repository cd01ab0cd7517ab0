"""Questions that are parallel across languages, ready to be put to a model, and files of them."""

from collections.abc import Sequence
from dataclasses import dataclass
import os

import numpy as np

from crossin_jax.storage.records import RecordError, read_records

# 'choice': one of given options; 'number': a number is read from the text; 'spans': a text is
# compared with accepted ones.
KINDS = ('choice', 'number', 'spans')


@dataclass
class Questions:
  """The items of a benchmark under one prompt.

  A row is a dict. What the model is asked stands in 'prompt', which is taken as it is, or in
  'instruction' and 'input', rendered with the template of the model; 'raw' stands for those where a
  model has no template. Kind 'choice' has 'choices' (texts, as saved), 'answer' (index) and perhaps
  'continuations' (what likelihood compares behind the prompt; default: the choices). The other
  kinds have 'answers', the accepted texts.

  Attributes:
    name: for figures, 'cross_mmlu' or 'questions/tagged'.
    ids: [items]; languages: codes.
    rows: [item][language].
    kind: of KINDS.
    prompt: number of the prompt form, from 1.
    stop: texts that end a generated answer.
    max_new_tokens: most tokens of a generated answer; None = the caller's.
  """

  name: str
  ids: list[str]
  languages: list[str]
  rows: list[list[dict]]
  kind: str = 'choice'
  prompt: int = 1
  stop: tuple[str, ...] = ()
  max_new_tokens: int | None = None

  @property
  def answers(self) -> np.ndarray:
    """Index of the right choice, int64 [items, languages]."""
    return np.array([[row['answer'] for row in item] for item in self.rows], np.int64)

  @property
  def choices(self) -> list[list[list[str]]]:
    """Texts of the options, [item][language][option]."""
    return [[row['choices'] for row in item] for item in self.rows]

  def take(self, items: Sequence[int]) -> 'Questions':
    """These items alone."""
    fields = {
      name: getattr(self, name)
      for name in ('name', 'languages', 'kind', 'prompt', 'stop', 'max_new_tokens')
    }
    return Questions(ids=[self.ids[i] for i in items], rows=[self.rows[i] for i in items], **fields)


def read_questions(path: str, limit: int | None = None) -> Questions:
  """The items of a question file.

  Args:
    path: JSONL, a line per item and language: id, language, instruction, input, choices (texts,
      parallel across languages), answer (index). Its name without folder and `.jsonl` is the
      questions' name, the part after the first dot the form (`questions.tagged.jsonl` is
      'questions/tagged').
    limit: first so many items only.

  Raises:
    ValueError: names file, line and field of a malformed row, or the item that lacks a language.
  """
  items: dict[str, dict[str, dict]] = {}
  for where, record in read_records(path):
    row = _checked(record, where)
    items.setdefault(row['id'], {})[row['language']] = row
  if not items:
    raise RecordError(f'{path} holds no question')
  languages = list(dict.fromkeys(language for item in items.values() for language in item))
  for id_, item in items.items():
    if missing := [language for language in languages if language not in item]:
      raise RecordError(
        f'{path}: item {id_!r} has no question in {", ".join(missing)}; consistency needs every '
        'language'
      )
  ids = list(items)[:limit]
  name = os.path.basename(path).removesuffix('.jsonl').replace('.', '/', 1)
  return Questions(
    name, ids, languages, [[items[id_][language] for language in languages] for id_ in ids]
  )


def _checked(row: dict, where: str) -> dict:
  for field, kind in (
    ('id', str),
    ('language', str),
    ('instruction', str),
    ('choices', list),
    ('answer', int),
  ):
    if not isinstance(row.get(field), kind):
      raise RecordError(f'{where}: field {field!r} must be a {kind.__name__}')
  if not 0 <= row['answer'] < len(row['choices']) or len(row['choices']) < 2:
    raise RecordError(
      f'{where}: answer {row["answer"]} is no index into {len(row["choices"])} choices'
    )
  return {'input': '', **row}
