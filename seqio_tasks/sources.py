"""Sources of instruction rows that are parallel across languages, from files or TFDS.

Row i of a source is one instruction in each of its languages. A row that is unusable in one
language is set aside in all of them and counted, so that the alignment holds. The text stays on
disk (`columns.Column`), so that a source may be larger than memory. TensorFlow is imported by
`TfdsRows` alone, when it reads.
"""

import collections
from collections.abc import Iterable, Sequence
import dataclasses
import functools
import hashlib
import os
import re
from typing import Any, Protocol, runtime_checkable

from crossin_jax import config
from crossin_jax.data.readers import (
  TEXT_FIELDS,
  Row,
  extension,
  find_files,
  is_rows,
  other_files,
  read_rows,
)
from crossin_jax.data.source_errors import SourceError
from crossin_jax.languages import code_of, english_name
from crossin_jax.storage import hub_names
from seqio_tasks.alignment import Table, aligned
from seqio_tasks.columns import Column
from seqio_tasks.tfds_rows import read_tfds

_NAME = re.compile(r'[\w.]+')  # what SeqIO task names and TFDS config names both allow


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
    """Number of kept rows."""

  def ids(self) -> Sequence[str]:
    """The ids of the kept rows, in row order; equal in all languages."""

  def row(self, index: int, language: str) -> dict[str, Any]:
    """Row `index` in one language: 'instruction', 'input', 'output'; of a conversation these are
    empty, and 'messages' has its turns: [{'role': 'user', 'content': text}, ...].
    """

  def set_aside(self) -> dict[tuple[str, str], int]:
    """(language, reason) -> number of skipped rows."""

  def digest(self) -> str:
    """SHA-256 (hex) of ids and texts in row order."""


class Rows:
  """What the sources share: everything but `_columns`, which reads. Pickled as its settings,
  without the rows.
  """

  def __getstate__(self):
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

  def _check(self, default_name: str):
    """Converts `languages` to a tuple of codes and sets `name`."""
    who, given = type(self).__name__, self.languages
    languages = (given,) if isinstance(given, str) else tuple(given)
    try:
      languages = tuple(code_of(language) for language in languages)
    except (ValueError, AttributeError) as error:
      raise SourceError(f'{who}.languages = {given!r}: {error}') from None
    if not languages or len(set(languages)) != len(languages):
      raise SourceError(f'{who}.languages = {given!r}: name at least one language, and none twice')
    if len(languages) > 1 and languages[0] != 'en':
      raise SourceError(
        f"{who}.languages = {given!r}: 'en' must come first, the others are aligned with it"
      )
    name = self.name or re.sub(r'[^\w.]', '_', default_name)
    if not _NAME.fullmatch(name):
      near = re.sub(r'[^\w.]', '_', name)
      raise SourceError(
        f"{who}.name = {name!r}: names of tasks hold only letters, digits, '_' and '.'; try "
        f'{near!r}'
      )
    if not isinstance(self.max_characters, int) or self.max_characters < 1:
      raise SourceError(
        f'{who}.max_characters = {self.max_characters!r}: must be a whole number above 0'
      )
    object.__setattr__(self, 'languages', languages)
    object.__setattr__(self, 'name', name)

  def _columns(self) -> tuple[dict[str, Column], str]:
    """Returns the rows of each language and how to align them."""
    raise NotImplementedError

  @functools.cached_property
  def _table(self) -> Table:
    return aligned(*self._columns())

  def __len__(self) -> int:
    return len(self._table)

  def ids(self) -> Sequence[str]:
    """The ids of the kept rows in row order: those of the rows, or row numbers of the files ('0',
    '1', ...).

    They are read when they are asked for; a list of them takes memory.
    """
    return self._table.ids

  def row(self, index: int, language: str) -> dict[str, Any]:
    """Row `index` in one language, as in `Source`.

    Raises:
      IndexError: no such row.
      SourceError: the source does not have the language.
    """
    if language not in self._table.columns:
      raise SourceError(
        f'{self.name} has the languages {", ".join(self.languages)}, not {language!r}'
      )
    row = dict(zip(TEXT_FIELDS, self._table.texts(index, language), strict=True))
    if not row['output']:  # only a conversation has none
      row['messages'] = self._table.messages(index, language)
    return row

  def set_aside(self) -> dict[tuple[str, str], int]:
    """(language, reason) -> number of skipped rows.

    Each row is counted once, under the first of `languages` in which it is unusable, except
    'no_counterpart' (aligned by id: the id is missing in another language), which every language
    counts for itself. So for every
    language: rows read = len(self) + its own 'no_counterpart' + all other counts.
    Reasons: 'no_counterpart', 'empty_response', 'control_characters', 'lone_surrogates',
      'too_long', 'turns_not_aligned' (another number of turns, or a system turn, than in the first
      language), and those of `conversations.FAULTS`.
    """
    return dict(self._table.set_aside)

  def notes(self) -> list[str]:
    """Sentences on rows and files that were not read, since their language is not asked for."""
    len(self)  # reads
    return [
      f'{self.name}: {what} not read, {english_name(language)} is not in its languages '
      f'{", ".join(self.languages)}'
      for language, what in self.__dict__.get('_unread', {}).items()
    ]

  def digest(self) -> str:
    """SHA-256 (hex) of ids and texts in row order.

    The same rows give the same digest from every kind of file and whatever the order of
    `languages`; line ends inside texts are content. The name and what was set aside do not enter.
    """
    return self._digest

  @functools.cached_property
  def _digest(self) -> str:
    table, digest = self._table, hashlib.sha256()

    def update(*texts: bytes):
      digest.update(b''.join(len(text).to_bytes(8, 'little') + text for text in texts))

    update(str(len(table)).encode())
    for id_ in table.ids:
      update(id_.encode())
    for language in sorted(table.columns):
      update(language.encode())
      for _, *texts in table.fields(language):
        update(*texts)  # three texts, or four of a conversation
    return digest.hexdigest()


@config.configurable(commands=('prepare',))
@dataclasses.dataclass(frozen=True)
class ParallelFiles(Rows):
  """Instruction rows and conversations from JSON, JSONL or Parquet files and saved datasets.

      # alpaca_en.json: [{"instruction": "Name a colour.", "output": "Red"}]
      # alpaca_zh.json: [{"instruction": "说出一种颜色。", "output": "红色"}]
      source = ParallelFiles('/data/alpaca', ('en', 'zh'))
      source.ids() == ['0']
      source.row(0, 'zh') == {'instruction': '说出一种颜色。', 'input': '', 'output': '红色'}

  Each row has instruction, output, optionally input (missing or null = '') and id (string or whole
  number), or turns in messages (role, content) or conversations (from, value); other fields are
  ignored. A JSON file holds a list, a JSONL file one object per line. A directory that
  `datasets.save_to_disk` wrote stands for a file.

  Attributes:
    path: either the stem of one file per language, `/data/alpaca` for alpaca_en.json or
      alpaca.en.json, .jsonl or .parquet, the first two also .gz; or one file in long form, whose
      rows have ids and a field `language`. With one language it may be a file without `language`.
      Both also on the Hugging Face hub: hf:datasets/ORG/NAME[@REVISION]/PATH.
      None = no rows: `MixtureSettings.english` leaves such a source out.
    languages: codes (or English names); 'en' first if there are several.
    align: 'id' = rows with the same id belong together, and rows not found in all languages are set
      aside; 'position' = row n belongs to row n, and the id of a row is its number in the file;
      'auto' = by id if every row of every language has one, else by position. Long form is always
      aligned by id.
    name: '' = made from the path.
    max_characters: rows with a longer field are set aside.

  Raises (the constructor for settings, the methods for files):
    SourceError: what was found where, and the remedy.
  """

  path: str | None
  languages: tuple[str, ...] = ('en',)
  align: str = 'auto'
  name: str = ''
  max_characters: int = 200_000

  def __post_init__(self):
    path = rows_path(self.path) if self.path else ''
    object.__setattr__(self, 'path', path or None)
    base = os.path.basename(hub_names.title(path.rstrip('/')))
    self._check(base.removesuffix(extension(base) or ''))
    if self.align not in ('auto', 'id', 'position'):
      raise SourceError(f"ParallelFiles.align = {self.align!r}: must be 'auto', 'id' or 'position'")

  def _columns(self) -> tuple[dict[str, Column], str]:
    if is_rows(self.path):
      rows, one = read_rows(self.path, with_language=True), len(self.languages) == 1
      columns, unread, long_form = _by_language(
        rows, self.languages, self.path, self.max_characters, may_be_plain=one
      )
      object.__setattr__(self, '_unread', unread)
      return columns, 'id' if long_form else self.align
    files, columns = find_files(self.path, self.languages), {}
    object.__setattr__(self, '_unread', other_files(self.path, self.languages))
    for language, file in files.items():
      columns[language] = Column(file, self.max_characters)
      for row in read_rows(file):
        columns[language].add(row)
      columns[language].seal()
    return columns, self.align


def rows_path(path: str | os.PathLike) -> str:
  """A path of rows as a source keeps it: a name on the hub with its commit."""
  path = os.path.expanduser(os.fspath(path))
  return hub_names.pinned(path) if hub_names.is_name(path) else path


@config.configurable(commands=('prepare',))
def one_language_files(
  stems: dict[str, str | None], languages: Sequence[str], name: str
) -> dict[str, list[ParallelFiles]]:
  """Components of unaligned rows, one file per language.

      one_language_files({'rows': 'out/plain'}, ('sw', 'ta'), 'xi')  ->  out/plain_sw.json and
      out/plain_ta.json as component 'rows'

  Args:
    stems: component -> stem of its files, see `ParallelFiles.path`; None leaves it out.
    languages: codes.
    name: of the sources.
  """
  files = lambda component, stem: [
    ParallelFiles(find_files(stem, (language,))[language], (language,), name=f'{name}.{component}')
    for language in languages
  ]
  return {component: files(component, stem) for component, stem in stems.items() if stem}


@config.configurable(commands=('prepare',))
@dataclasses.dataclass(frozen=True)
class TfdsRows(Rows):
  """Instruction rows from a prepared TFDS dataset with the features id, language, instruction,
  input, output.

  Rows are in long form, one per id and language, aligned by id; other features are ignored.
  `seqio_tasks.tfds_builder.build` writes such a dataset from any source.

      directory = build(ParallelFiles('/data/alpaca', ('en', 'zh')), '/data/tfds')
      source = TfdsRows(directory, ('en', 'zh'))
      source.row(0, 'zh') == {'instruction': '说出一种颜色。', 'input': '', 'output': '红色'}

  Attributes:
    builder: directory of the prepared dataset, or its TFDS name such as
      'aligned_instructions/alpaca:1.0.0'.
    languages: codes (or English names); 'en' first if there are several. Rows in others are left
      unread.
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
    # Without a version: aligned_instructions/alpaca/1.0.0 and aligned_instructions/alpaca:1.0.0 are
    # both 'alpaca'.
    self._check(os.path.basename(re.sub(r'[:/][\d.*]+/*$', '', builder).rstrip('/')))

  def _columns(self) -> tuple[dict[str, Column], str]:
    rows = read_tfds(self.builder, self.split, self.data_dir)
    columns, unread, _ = _by_language(rows, self.languages, self.builder, self.max_characters)
    object.__setattr__(self, '_unread', unread)
    return columns, 'id'


def _by_language(
  rows: Iterable[Row],
  languages: Sequence[str],
  file: str,
  max_characters: int,
  may_be_plain: bool = False,
) -> tuple[dict[str, Column], dict[str, str], bool]:
  """Splits rows in long form by language; rows in other languages are counted.

  Args:
    rows: as read.
    languages: those wanted.
    file: for messages.
    max_characters: of a usable field.
    may_be_plain: rows without any language are those of the one language wanted.

  Returns:
    language -> rows; other language -> how many rows; whether the file is in long form.
  """
  columns = {language: Column(file, max_characters) for language in languages}
  found, incomplete = collections.Counter(), None
  for row in rows:
    if incomplete is None and (row.language is None or row.id is None):
      incomplete = row.number, 'language' if row.language is None else 'id'
    found[row.language] += 1
    language = languages[0] if may_be_plain and row.language is None else row.language
    if language in columns:
      columns[language].add(row)
  columns = {language: column.seal() for language, column in columns.items()}
  if may_be_plain and found.keys() == {None}:
    return columns, {}, False
  if incomplete:
    number, field = incomplete
    hint = ''
    if field == 'language' and len(languages) > 1:
      hint = (
        ", or give the stem of one file per language as path ('/data/alpaca' for "
        '/data/alpaca_en.json)'
      )
    raise SourceError(
      f'{file}, row {number} (counted from 0): field {field!r} is missing, and one file with '
      'several '
      f'languages is aligned by it; add it{hint}'
    )
  for language in languages:
    if language not in found:
      raise SourceError(
        f'{file}: no rows in language {language!r}, found {", ".join(sorted(found))}; add them, '
        f'or take {language!r} out of languages'
      )
  unread = {other: f'{n:,} rows' for other, n in found.items() if other not in columns}
  return columns, unread, True
