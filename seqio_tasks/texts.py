"""Documents of running text, for continued pretraining: from JSONL and Parquet, file by file."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import os

import pyarrow as pa
import pyarrow.parquet as pq

from crossin_jax import config
from crossin_jax.data.readers import Row, extension
from crossin_jax.data.source_errors import SourceError, at, first_line
from crossin_jax.storage import hub_names, remote
from crossin_jax.storage.json_rows import JsonRows, describe
from seqio_tasks.columns import Column
from seqio_tasks.sources import Rows, one_language_files, rows_path


@config.configurable(commands=('prepare',))
@dataclasses.dataclass(frozen=True)
class TextFiles(Rows):
  """Documents in one language; every token of them is trained, without a prompt.

      # sw/part-0.jsonl: {"text": "Mto Rufiji ni mrefu.\\n\\nUnapita ..."}
      source = TextFiles('/data/sw', ('sw',))
      source.row(0, 'sw') == {'instruction': '', 'input': '', 'output': 'Mto Rufiji ni mrefu. ...'}

  Files are read one document at a time. A long document becomes several rows, cut at a paragraph,
  else at a line, else at a space.

  Attributes:
    path: a .jsonl, .json (a list) or .parquet file, the first two also .gz, or a folder of such
      files, which are read in the order of their names; or such a name on the hub, see
      `ParallelFiles.path`.
    languages: the code of its language.
    column: the field with the text; others are ignored.
    part_characters: most characters of a row. As many as MixtureSettings.max_length tokens have:
      `crossin inspect` says the tokens per character.
    name: '' = made from the path.
    max_characters: longer documents are set aside.

  Raises (the constructor for settings, the methods for files):
    SourceError: what was found where, and the remedy.
  """

  path: str
  languages: tuple[str, ...]
  column: str = 'text'
  part_characters: int = 6_000
  name: str = ''
  max_characters: int = 10_000_000

  def __post_init__(self):
    path = rows_path(self.path)
    object.__setattr__(self, 'path', path)
    base = os.path.basename(hub_names.title(path.rstrip('/')))
    self._check(base.removesuffix(extension(base) or ''))
    if len(self.languages) != 1:
      raise SourceError(f'TextFiles.languages = {self.languages!r}: name one language')
    if not isinstance(self.part_characters, int) or self.part_characters < 1:
      raise SourceError(
        f'TextFiles.part_characters = {self.part_characters!r}: must be a whole number above 0'
      )

  def _columns(self) -> tuple[dict[str, Column], str]:
    column, number = Column(self.path, self.max_characters), 0
    for file in self._files():
      for text in self._texts(file):
        # Counted as a whole where it is null or too long.
        is_kept = text is not None and len(text) <= self.max_characters
        for part in parts(text, self.part_characters) if is_kept else [text or '']:
          fault = 'null_field' if text is None else ''
          column.add(Row(number, None, None, ('', '', part), fault))
          number += 1
    if not number:
      raise SourceError(f'{self.path}: has no documents; write or copy the files again')
    return {self.languages[0]: column.seal()}, 'position'

  def _files(self) -> list[str]:
    path = remote.fetched(self.path) if hub_names.is_name(self.path) else self.path
    if not os.path.isdir(path):
      return [path]
    found = [os.path.join(path, name) for name in sorted(os.listdir(path))]
    if not (files := [path for path in found if extension(path)]):
      raise SourceError(
        f'{self.path}: no file that ends in .jsonl, .json or .parquet; correct the path'
      )
    return files

  def _texts(self, path: str) -> Iterator[str | None]:
    """The texts of one file, None for null."""
    ext = extension(path)
    if ext is None or not os.path.isfile(path):
      what = (
        'unknown kind of file, use .jsonl, .json or .parquet' if ext is None else 'no such file'
      )
      raise SourceError(f'{path}: {what}; correct the path')
    if ext == '.parquet':
      yield from self._parquet(path)
      return
    rows = JsonRows(path, SourceError, at)
    items = rows.lines() if ext.startswith('.jsonl') else rows.items()
    for number, (line, fields) in enumerate(items):
      text = fields.get(self.column, fields) if isinstance(fields, dict) else fields
      if text is not None and not isinstance(text, str):
        raise SourceError(
          f'{at(path, number, line)}: a document must be an object with the text in '
          f'{self.column!r}, found {describe(fields)}; fix it, or set TextFiles.column'
        )
      yield text

  def _parquet(self, path: str) -> Iterator[str | None]:
    try:
      # With a buffer, Parquet reads single pages, not a full column of a row group.
      with pq.ParquetFile(path, buffer_size=1 << 20) as file:
        names = file.schema_arrow.names
        if self.column not in names:
          raise SourceError(
            f'{path}: column {self.column!r} is missing, found the columns {", ".join(names)}; set '
            'TextFiles.column'
          )
        for batch in file.iter_batches(batch_size=256, columns=[self.column]):
          yield from batch.column(0).to_pylist()
    except (pa.ArrowException, OSError) as error:
      raise SourceError(
        f'{path}: not a complete Parquet file ({first_line(error)}); write or copy it again'
      ) from None


def parts(text: str, most: int) -> Iterator[str]:
  """Cuts a document into rows of at most `most` characters.

  list(parts('One.\\n\\nTwo three.', 8)) == ['One.', 'Two', 'three.']
  """
  rest = text.strip()
  while len(rest) > most:
    places = (rest.rfind(mark, 1, most + 1) for mark in ('\n\n', '\n', ' '))
    cut = next((place for place in places if place > most // 4), most)  # no tiny rows
    yield rest[:cut].rstrip()
    rest = rest[cut:].lstrip()
  yield rest


@config.configurable(commands=('prepare',))
def text_components(
  documents: Mapping[str, tuple[str, str]],
  rows: str | None = None,
  languages: Sequence[str] = (),
  name: str = 'continued',
  part_characters: int = 6_000,
) -> dict[str, list]:
  """Components of running text and, as component `rows`, of instruction rows in one language each.

      text_components({'native': ('sw', 'data/sw'), 'replay': ('en', 'data/en.parquet')})

  Args:
    documents: component -> (language, path), see `TextFiles`.
    rows: stem of the files with instruction rows, see `one_language_files`; None = none.
    languages: of `rows`.
    name: of the sources.
    part_characters: see `TextFiles`.
  """
  components = {
    component: [
      TextFiles(
        path, (language,), part_characters=part_characters, name=f'{name}.{component}'
      )
    ]
    for component, (language, path) in documents.items()
  }  # fmt: skip
  return components | (one_language_files({'rows': rows}, languages, name) if rows else {})
