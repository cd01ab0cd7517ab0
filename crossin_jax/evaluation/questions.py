"""Questions that are parallel across languages, and question files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
import os

import numpy as np

from crossin_jax.storage.records import RecordError, read_records

# 'choice': one of the given options; 'number': a number in the text; 'spans': a text to compare
# with accepted ones.
KINDS = ('choice', 'number', 'spans')


@dataclass
class Questions:
  """The items of a benchmark under one prompt form.

  A row is a dict. The prompt is in 'prompt', used unchanged, or in 'instruction' and 'input',
  rendered with the chat template of the model; a model without template uses 'raw' instead. Kind
  'choice' has 'choices' (texts, as saved), 'answer' (index) and optionally 'continuations' (the
  texts that likelihood scores after the prompt; default: the choices). The other kinds have
  'answers', the accepted texts.

  Attributes:
    name: for figures, 'cross_mmlu' or 'questions/tagged'.
    ids: one per item.
    languages: codes.
    rows: [item][language].
    kind: one of KINDS.
    prompt: number of the prompt form, from 1.
    stop: strings that end a generated answer.
    max_new_tokens: maximum length of a generated answer; None = the caller's.
    per_token: whether likelihood compares means over tokens in place of sums.
  """

  name: str
  ids: list[str]
  languages: list[str]
  rows: list[list[dict]]
  kind: str = 'choice'
  prompt: int = 1
  stop: tuple[str, ...] = ()
  max_new_tokens: int | None = None
  per_token: bool = False

  @property
  def answers(self) -> np.ndarray:
    """Index of the correct choice, int64 [items, languages]."""
    return np.array([[row['answer'] for row in item] for item in self.rows], np.int64)

  @property
  def choices(self) -> list[list[list[str]]]:
    """Texts of the options, [item][language][option]."""
    return [[row['choices'] for row in item] for item in self.rows]

  def take(self, items: Sequence[int]) -> 'Questions':
    """The questions of some items."""
    return replace(self, ids=[self.ids[i] for i in items], rows=[self.rows[i] for i in items])


def read_questions(path: str, limit: int | None = None) -> Questions:
  """Reads a question file.

  Args:
    path: JSONL, a line per item and language: id, language, instruction, input, choices (texts,
      parallel across languages), answer (index). The file name without `.jsonl` is the name of the
      questions; the part after its first dot is the form: `questions.tagged.jsonl` is
      'questions/tagged'.
    limit: number of items to keep.

  Raises:
    ValueError: a malformed row (file, line and field), or an item that lacks a language.
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
  rows = [[items[id_][language] for language in languages] for id_ in ids]
  return Questions(name, ids, languages, rows)


def _checked(row: dict, where: str) -> dict:
  kinds = {'id': str, 'language': str, 'instruction': str, 'choices': list, 'answer': int}
  for field, kind in kinds.items():
    if not isinstance(row.get(field), kind):
      raise RecordError(f'{where}: field {field!r} must be a {kind.__name__}')
  if not 0 <= row['answer'] < len(row['choices']) or len(row['choices']) < 2:
    raise RecordError(
      f'{where}: answer {row["answer"]} is not an index into {len(row["choices"])} choices'
    )
  return {'input': '', **row}
