"""Sources: instruction rows that say the same thing in every language, from files or TFDS.

Row i of a source is one instruction in each of its languages. A row that is unusable in one language is set
aside in all of them and counted, so that the alignment holds. TensorFlow is imported by `TfdsRows` alone, when it
reads.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import itertools
import os
import re
from typing import Protocol, runtime_checkable

import gin

from crossin_jax.languages import code_of
from seqio_tasks.readers import TEXT_FIELDS, Row, SourceError, extension, find_files, read_rows, read_tfds

# Unicode category Cc without \t \n \r, and half surrogate pairs ("\ud83d" alone in JSON), which UTF-8 cannot hold.
_UNUSABLE = re.compile('[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]')
_NAME = re.compile(r'[\w.]+')  # what SeqIO task names and TFDS config names both allow

Texts = tuple[str, str, str]  # instruction, input, output


@runtime_checkable
class Source(Protocol):
  """Rows of instructions aligned across languages.

  Attributes:
    name: letters, digits, '_' and '.'; Task names begin with it.
    languages: codes, 'en' first.

  All methods read the rows on first use and raise SourceError if that fails.
  """

  name: str
  languages: tuple[str, ...]

  def __len__(self) -> int:
    """How many rows are kept."""

  def ids(self) -> list[str]:
    """The ids of the kept rows, in row order; equal in all languages."""

  def row(self, index: int, language: str) -> dict[str, str]:
    """Row `index` in one language: exactly 'instruction', 'input', 'output'."""

  def set_aside(self) -> dict[tuple[str, str], int]:
    """(language, reason) -> how many rows were set aside."""

  def digest(self) -> str:
    """SHA-256 (hex) of ids and texts in row order."""


@dataclasses.dataclass
class _Column:
  """The rows of one language as read, before alignment: file, row numbers in it, ids and texts of equal length."""

  file: str
  numbers: list[int] = dataclasses.field(default_factory=list)
  ids: list[str | None] = dataclasses.field(default_factory=list)
  texts: list[Texts] = dataclasses.field(default_factory=list)

  def add(self, row: Row):
    self.numbers.append(row.number)
    self.ids.append(row.id)
    self.texts.append(row.texts)


@dataclasses.dataclass(frozen=True)
class _Table:
  """Aligned rows: texts[language][i] has ids[i]."""

  ids: list[str]
  texts: dict[str, list[Texts]]
  set_aside: dict[tuple[str, str], int]


class _Rows:
  """What the sources share: everything but `_columns`, which reads. Pickled as its settings, without the rows."""

  def __getstate__(self):
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

  def _check(self, default_name: str):
    """Makes `languages` a tuple of codes and fills in `name`. (gin hands over lists.)"""
    who, given = type(self).__name__, self.languages
    languages = (given,) if isinstance(given, str) else tuple(given)
    try:
      languages = tuple(code_of(language) for language in languages)
    except (ValueError, AttributeError) as error:
      raise SourceError(f'{who}.languages = {given!r}: {error}') from None
    if not languages or len(set(languages)) != len(languages):
      raise SourceError(f'{who}.languages = {given!r}: name at least one language, and none twice')
    if len(languages) > 1 and languages[0] != 'en':
      raise SourceError(f"{who}.languages = {given!r}: 'en' must come first, the others are aligned with it")
    name = self.name or re.sub(r'[^\w.]', '_', default_name)
    if not _NAME.fullmatch(name):
      near = re.sub(r'[^\w.]', '_', name)
      raise SourceError(f"{who}.name = {name!r}: names of tasks hold only letters, digits, '_' and '.'; try {near!r}")
    if not isinstance(self.max_characters, int) or self.max_characters < 1:
      raise SourceError(f'{who}.max_characters = {self.max_characters!r}: must be a whole number above 0')
    object.__setattr__(self, 'languages', languages)
    object.__setattr__(self, 'name', name)

  def _columns(self) -> tuple[dict[str, _Column], str]:
    """Reads; returns the rows of each language and how they are to be aligned."""
    raise NotImplementedError

  @functools.cached_property
  def _table(self) -> _Table:
    return _without_unusable(_aligned(*self._columns()), self.max_characters)

  def __len__(self) -> int:
    return len(self._table.ids)

  def ids(self) -> list[str]:
    """The ids of the kept rows in row order: those of the rows, or row numbers of the files ('0', '1', ...).

    The list is the source's own, not a copy: do not change it.
    """
    return self._table.ids

  def row(self, index: int, language: str) -> dict[str, str]:
    """Row `index` in one language: exactly 'instruction', 'input', 'output'.

    Raises:
      IndexError: no such row.
      SourceError: the source does not have the language.
    """
    if language not in self._table.texts:
      raise SourceError(f'{self.name} has the languages {", ".join(self.languages)}, not {language!r}')
    return dict(zip(TEXT_FIELDS, self._table.texts[language][index], strict=True))

  def set_aside(self) -> dict[tuple[str, str], int]:
    """(language, reason) -> rows set aside.

    Each row is counted once, under the first of `languages` in which it is unusable, except 'no_counterpart'
    (aligned by id: the id is missing in another language), which every language counts for itself. So for every
    language: rows read = len(self) + its own 'no_counterpart' + all other counts.
    Reasons: 'no_counterpart', 'empty_response', 'control_characters', 'lone_surrogates', 'too_long'.
    """
    return dict(self._table.set_aside)

  def digest(self) -> str:
    """SHA-256 (hex) of ids and texts in row order.

    The same rows give the same digest from every kind of file and whatever the order of `languages`; line ends
    inside texts are content. The name and what was set aside do not enter.
    """
    return self._digest

  @functools.cached_property
  def _digest(self) -> str:
    table, digest = self._table, hashlib.sha256()

    def update(text: str):
      data = text.encode()
      digest.update(len(data).to_bytes(8, 'little') + data)

    update(f'{len(table.ids)}')
    for id_ in table.ids:
      update(id_)
    for language in sorted(table.texts):
      update(language)
      for text in itertools.chain.from_iterable(table.texts[language]):
        update(text)
    return digest.hexdigest()


@gin.configurable
@dataclasses.dataclass(frozen=True)
class ParallelFiles(_Rows):
  """Instruction rows from JSON, JSONL or Parquet files.

      # alpaca_en.json: [{"instruction": "Name a colour.", "output": "Red"}]
      # alpaca_zh.json: [{"instruction": "说出一种颜色。", "output": "红色"}]
      source = ParallelFiles('/data/alpaca', ('en', 'zh'))
      source.ids() == ['0']
      source.row(0, 'zh') == {'instruction': '说出一种颜色。', 'input': '', 'output': '红色'}

  Each row has instruction, output, optionally input (missing or null = '') and id (string or whole number);
  other fields are ignored. A JSON file holds a list, a JSONL file one object per line.

  Attributes:
    path: either the stem of one file per language, `/data/alpaca` for alpaca_en.json or alpaca.en.json, .jsonl or
      .parquet, the first two also .gz; or one file in long form, whose rows have ids and a field `language`. With
      one language it may be a file without `language`.
    languages: codes (or English names); 'en' first if there are several.
    align: 'id' = rows with the same id belong together, and rows not found in all languages are set aside; 'position'
      = row n belongs to row n, and the id of a row is its number in the file; 'auto' = by id if every row of every
      language has one, else by position. Long form is always aligned by id.
    name: '' = made from the path.
    max_characters: rows with a longer field are set aside.

  Raises (the constructor for settings, the methods for files):
    SourceError: what was found where, and the remedy.
  """

  path: str
  languages: tuple[str, ...] = ('en',)
  align: str = 'auto'
  name: str = ''
  max_characters: int = 200_000

  def __post_init__(self):
    path = os.path.expanduser(os.fspath(self.path))
    object.__setattr__(self, 'path', path)
    base = os.path.basename(path.rstrip('/'))
    self._check(base.removesuffix(extension(base) or ''))
    if self.align not in ('auto', 'id', 'position'):
      raise SourceError(f"ParallelFiles.align = {self.align!r}: must be 'auto', 'id' or 'position'")

  def _columns(self) -> tuple[dict[str, _Column], str]:
    if os.path.isfile(self.path) and extension(self.path):
      rows = list(read_rows(self.path, with_language=True))
      if len(self.languages) > 1 or any(row.language for row in rows):
        return _by_language(rows, self.languages, self.path), 'id'
      files = {self.languages[0]: self.path}
    else:
      files = find_files(self.path, self.languages)
    columns = {language: _Column(file) for language, file in files.items()}
    for column in columns.values():
      for row in read_rows(column.file):
        column.add(row)
    return columns, self.align


@gin.configurable
@dataclasses.dataclass(frozen=True)
class TfdsRows(_Rows):
  """Instruction rows from a prepared TFDS dataset with the features id, language, instruction, input, output.

  Rows are in long form, one per id and language, aligned by id; other features are ignored.
  `seqio_tasks.tfds_builder.build` writes such a dataset from any source.

      directory = build(ParallelFiles('/data/alpaca', ('en', 'zh')), '/data/tfds')
      source = TfdsRows(directory, ('en', 'zh'))
      source.row(0, 'zh') == {'instruction': '说出一种颜色。', 'input': '', 'output': '红色'}

  Attributes:
    builder: directory of the prepared dataset, or its TFDS name such as 'aligned_instructions/alpaca:1.0.0'.
    languages: codes (or English names); 'en' first if there are several. Rows in others are left unread.
    split: a TFDS split, for instance 'train' or 'train[:10%]'.
    data_dir: where TFDS looks for a name; '' = its default.
    name: '' = made from `builder`.
    max_characters: rows with a longer field are set aside.

  Raises (the constructor for settings, the methods for data):
    SourceError: what was found where, and the remedy.
  """

  builder: str
  languages: tuple[str, ...] = ('en',)
  split: str = 'train'
  data_dir: str = ''
  name: str = ''
  max_characters: int = 200_000

  def __post_init__(self):
    builder = os.path.expanduser(os.fspath(self.builder))
    object.__setattr__(self, 'builder', builder)
    # Without a version: aligned_instructions/alpaca/1.0.0 and aligned_instructions/alpaca:1.0.0 are both 'alpaca'.
    self._check(os.path.basename(re.sub(r'[:/][\d.*]+/*$', '', builder).rstrip('/')))

  def _columns(self) -> tuple[dict[str, _Column], str]:
    return _by_language(read_tfds(self.builder, self.split, self.data_dir), self.languages, self.builder), 'id'


def _by_language(rows: Iterable[Row], languages: Sequence[str], file: str) -> dict[str, _Column]:
  """Rows in long form, parted; those in other languages are left out."""
  columns = collections.defaultdict(lambda: _Column(file))
  for row in rows:
    for field, value in (('language', row.language), ('id', row.id)):
      if value is None:
        hint = ''
        if field == 'language' and len(languages) > 1:
          hint = ", or give the stem of one file per language as path ('/data/alpaca' for /data/alpaca_en.json)"
        raise SourceError(
          f'{file}, row {row.number} (counted from 0): field {field!r} is missing, and one file with several '
          f'languages is aligned by it; add it{hint}'
        )
    columns[row.language].add(row)
  for language in languages:
    if language not in columns:
      raise SourceError(
        f'{file}: no rows in language {language!r}, found {", ".join(sorted(columns))}; add them, '
        f'or take {language!r} out of languages'
      )
  return {language: columns[language] for language in languages}


def _aligned(columns: Mapping[str, _Column], align: str) -> _Table:
  if align == 'id' or align == 'auto' and all(None not in column.ids for column in columns.values()):
    return _aligned_by_id(columns)
  return _aligned_by_position(columns, check_ids=align == 'auto')


def _aligned_by_id(columns: Mapping[str, _Column]) -> _Table:
  places = {}  # language -> id -> index
  for language, column in columns.items():
    places[language] = {}
    for i, id_ in enumerate(column.ids):
      where = f'{column.file}, row {column.numbers[i]} (counted from 0)'
      if id_ is None:
        raise SourceError(f"{where}: field 'id' is missing; add it, or set align = 'position'")
      first = places[language].setdefault(id_, i)
      if first != i:
        raise SourceError(
          f'{where}: id {id_!r} of language {language!r} is already that of row {column.numbers[first]}; '
          "make ids unique, or set align = 'position' if each language has its own file"
        )
  first, *others = columns
  ids = [id_ for id_ in columns[first].ids if all(id_ in places[other] for other in others)]
  if not ids:
    examples = ', '.join(f'{column.ids[0]!r} in {column.file} ({language})' for language, column in columns.items())
    raise SourceError(
      f'no id occurs in all of {", ".join(columns)}; the first ids are {examples}. Give rows that belong together '
      "the same id, or set align = 'position' if row n belongs to row n"
    )
  lone = {(language, 'no_counterpart'): len(column.ids) - len(ids) for language, column in columns.items()}
  texts = {language: [column.texts[places[language][id_]] for id_ in ids] for language, column in columns.items()}
  return _Table(ids, texts, {key: count for key, count in lone.items() if count})


def _aligned_by_position(columns: Mapping[str, _Column], check_ids: bool) -> _Table:
  first, *others = columns.values()
  for other in others:
    pairs = zip(first.ids, other.ids, strict=False)
    differing = next((i for i, (a, b) in enumerate(pairs) if a and b and a != b), None)
    parting = 'without ids the first unequal row cannot be told'
    if differing is not None:
      parting = (
        f'the first unequal row is {differing} (counted from 0), id {first.ids[differing]!r} in {first.file}, '
        f'{other.ids[differing]!r} in {other.file}'
      )
    elif any(first.ids) and any(other.ids):
      last = min(len(first.ids), len(other.ids)) - 1
      parting = f'ids are equal up to the end of the shorter file, row {last} (counted from 0)'
    if len(first.texts) != len(other.texts):
      lengths = ', '.join(f'{column.file} has {len(column.texts)}' for column in columns.values())
      raise SourceError(
        f'files aligned by position have unequal numbers of rows: {lengths}; {parting}. '
        'Mend the files, or give every row an id'
      )
    if check_ids and differing is not None:
      raise SourceError(
        f'files with an id in some rows only are aligned by position, but {parting}. Give every row an id, '
        "or set align = 'position' if the ids do not matter"
      )
  ids = [str(number) for number in first.numbers]
  return _Table(ids, {language: column.texts for language, column in columns.items()}, {})


def _without_unusable(table: _Table, max_characters: int) -> _Table:
  set_aside, kept = collections.Counter(table.set_aside), []
  for i, id_ in enumerate(table.ids):
    for language, texts in table.texts.items():
      reason = _unusable(id_, texts[i], max_characters)
      if reason:
        set_aside[language, reason] += 1
        break
    else:
      kept.append(i)
  texts = {language: [texts[i] for i in kept] for language, texts in table.texts.items()}
  return _Table([table.ids[i] for i in kept], texts, dict(set_aside))


def _unusable(id_: str, texts: Texts, max_characters: int) -> str:
  """Why the row is set aside; '' if it is not."""
  if not texts[2].strip():
    return 'empty_response'
  if max(map(len, texts)) > max_characters:
    return 'too_long'
  for text in (id_, *texts):
    if found := _UNUSABLE.search(text):
      return 'lone_surrogates' if found[0] >= '\ud800' else 'control_characters'
  return ''
