"""The embedded world as sources of rows, and its test questions as a file."""

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import json
import os

import gin

from crossin_jax import config
from crossin_jax.storage.files import write_bytes, write_json, write_jsonl, write_text
from crossin_jax.world.world import World


@dataclasses.dataclass(frozen=True)
class _Rows:
  """Rows per language from `_make`, computed when first needed."""

  @functools.cached_property
  def _rows(self) -> dict[str, list[dict[str, str]]]:
    return {language: self._make(language) for language in self.languages}

  def __len__(self) -> int:
    return len(self._rows[self.languages[0]])

  def __getstate__(self):  # without the cached rows
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

  @functools.cached_property
  def _ids(self) -> list[str]:
    return [row['id'] for row in self._rows[self.languages[0]]]

  def ids(self) -> list[str]:
    """Row ids in row order."""
    return self._ids

  def row(self, index: int, language: str) -> dict[str, str]:
    """'instruction', 'input', 'output' of one row in one language."""
    return self._rows[language][index]

  def set_aside(self) -> dict:
    """No row of the world is malformed, so no row is skipped."""
    return {}

  def digest(self) -> str:
    """SHA-256 over all rows."""
    content = json.dumps(self._rows, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()


@config.configurable(commands=('prepare',))
@dataclasses.dataclass(frozen=True)
class WorldInstructions(_Rows):
  """Question-answer rows about the tuning entities, aligned across the world's languages."""

  world: World = gin.REQUIRED
  name: str = 'world'

  @property
  def languages(self) -> tuple[str, ...]:
    return self.world.languages

  def _make(self, language):
    return self.world.instructions(language)


@config.configurable(commands=('prepare',))
@dataclasses.dataclass(frozen=True)
class WorldStatements(_Rows):
  """Sentences in one language about the tested or the shared relations."""

  world: World = gin.REQUIRED
  language: str = 'en'
  tested: bool = False
  name: str = 'world'

  @property
  def languages(self) -> tuple[str, ...]:
    return (self.language,)

  def _make(self, language):
    return [
        row for row in self.world.statements(language)
        if (row['id'].split('.')[1] in self.world.tested_relations) == self.tested
    ]  # fmt: skip


@config.configurable(commands=('prepare',))
@dataclasses.dataclass(frozen=True)
class WorldBilingual(_Rows):
  """Running text that says the same in English and in another language, either first, from which a
  reader learns names: statements, and questions without their answers.
  """

  world: World = gin.REQUIRED
  language: str = gin.REQUIRED
  name: str = 'world'

  @property
  def languages(self) -> tuple[str, ...]:
    return (self.language,)

  def _make(self, language):
    pairs = {row['id']: [row['output']] for row in self.world.statements(self.language)}
    for row in self.world.statements('en'):
      if row['id'] in pairs:
        pairs[row['id']].append(row['output'])
    for fact in self.world.facts:
      if language in fact.told_in:
        questions = (self.world.questions_about(fact, code) for code in (language, 'en'))
        pairs |= {f'{fact.id}.{k}.question': pair for k, pair in enumerate(zip(*questions))}
    return [
      {'id': f'{id_}.{order}', 'instruction': '', 'input': '', 'output': '\n'.join(texts)}
      for id_, pair in pairs.items()
      for order, texts in enumerate((pair, pair[::-1]))
    ]


@config.configurable(commands=('prepare',))
def world_texts(world: World) -> dict[str, list]:
  """Components of running text: 'tested' (stated in English only), 'shared' and 'bilingual' (stated
  in every language).
  """
  return {
    'tested': [WorldStatements(world, 'en', tested=True)],
    'shared': [WorldStatements(world, language) for language in world.languages],
    'bilingual': [WorldBilingual(world, language) for language in world.languages[1:]],
  }


def train_vocabulary(world: World, size: int, path: str, pieces: Sequence[str] = ()) -> None:
  """Trains a SentencePiece BPE model on all texts of the world; writes it atomically.

  Line breaks are tokens and unknown characters become bytes, so decoding restores a prompt exactly.
  Each text of `pieces`, for instance a line of a prompt, becomes one piece.
  """
  import io

  import sentencepiece

  text = [row['output'] for language in world.languages for row in world.statements(language)]
  for language in world.languages:
    for row in world.instructions(language):
      text += [row['instruction'], row['output']]
    # Names are repeated so that each becomes one or two tokens.
    text += [
      world.name(kind, key, language) for kind, keys in world.values.items() for key in keys
    ] * 20
  text += [f'[{language}]' for language in world.languages]
  if pieces:  # in prompts, texts follow a line break too
    text += [f'\n{line}' for line in text]
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(text),
    model_writer=model,
    vocab_size=size,
    model_type='bpe',
    character_coverage=1.0,
    normalization_rule_name='identity',
    user_defined_symbols=['\n', *(piece.replace(' ', '▁') for piece in pieces)],
    byte_fallback=True,
    num_threads=1,
    minloglevel=2,
  )
  write_bytes(path, model.getvalue())


def write_questions(world: World, directory: str) -> None:
  """Writes facts.tsv (the facts and their languages), the two question files and world.json."""
  write_text(os.path.join(directory, 'facts.tsv'), world.facts_table())
  for form, tag in (('untagged', False), ('tagged', True)):
    write_jsonl(os.path.join(directory, f'questions.{form}.jsonl'), world.question_rows(tag))
  write_json(os.path.join(directory, 'world.json'), dataclasses.asdict(world))
