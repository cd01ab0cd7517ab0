"""Streams documents from JSON lines, JSON lists, Parquet and plain text, also .gz and .zst.

A file is read in blocks of complete records of about 1 MiB, which any process can decode. A
document without an id gets the id 'file:position': the line on which it begins, or the row of a
Parquet file or a list, counted from 1. Records that are not documents are counted.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
import glob
import gzip
import io
import json
import os
import re
from typing import BinaryIO
import zlib

from crossin_jax import config
from crossin_jax.storage import hub_names, remote
from crossin_jax.storage.json_rows import skip_mark

# reason -> why a record of a file is not a document
REFUSALS = {
  'too_large': 'the record is longer than Reading.most_bytes',
  'invalid_json': 'a line that is not valid JSON, or neither object nor text',
  'no_text': 'no text under Reading.field',
  'invalid_utf8': 'bytes that are not UTF-8',
}
KINDS = {
  '.jsonl': 'json', '.ndjson': 'json', '.json': 'json', '.parquet': 'parquet', '.txt': 'text',
}  # fmt: skip
_BLOCK = 1 << 20  # bytes
_ROWS = 256  # of a Parquet file in a block
_ESCAPED = re.compile('[\udc80-\udcff]')
_EMPTY_LINES = re.compile(rb'\n[ \t\r]*(?=\n)')
_UNPRINTABLE = re.compile(
  '[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\uffff]'
)


@config.configurable(commands=())
@dataclass(frozen=True)
class Reading:
  """How files hold documents.

  Attributes:
    field: name of the JSON field or Parquet column with the text.
    id_field: name of the field or column with the id, a text of up to 200 characters or an integer.
    text_files: documents of a .txt file: 'paragraphs' (separated by empty lines) or 'lines'.
    most_bytes: longest record, from 1 on; longer ones are counted and skipped without being read
      completely.
  """

  field: str = 'text'
  id_field: str = 'id'
  text_files: str = 'paragraphs'
  most_bytes: int = 16 << 20

  def __post_init__(self):
    if self.text_files not in ('paragraphs', 'lines'):
      raise ValueError(
        f"Reading.text_files = {self.text_files!r}: it must be 'paragraphs' or 'lines'"
      )
    if self.most_bytes < 1:
      raise ValueError(f'Reading.most_bytes = {self.most_bytes}: it must be 1 or more')


@dataclass(frozen=True)
class Document:
  """A text with its id.

  Attributes:
    id: from the record, or 'file:position'.
    text: unchanged from the file, valid UTF-8.
    source: path of the file, relative to the folder that all files share.
  """

  id: str
  text: str
  source: str


@dataclass(frozen=True)
class Block:
  """Complete records of one file.

  Attributes:
    source: of the file.
    kind: 'json', 'parquet' (an Arrow stream) or 'text'.
    first: position of the first record.
    content: the records.
  """

  source: str
  kind: str
  first: int
  content: bytes


def find_files(paths: str | Sequence[str]) -> dict[str, str]:
  """Finds files; folders are searched at any depth, hidden files and folders are skipped.

  Args:
    paths: files, folders and globs ('texts/**/*.jsonl.gz'), or files and folders of
      hf:datasets/ORG/NAME.

  Returns:
    source -> path of each file, sorted by path.

  Raises:
    FileNotFoundError: an element of `paths` matches no file.
  """
  files: dict[str, None] = {}
  for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
    path = os.fspath(path)
    path = remote.fetched(hub_names.pinned(path)) if hub_names.is_name(path) else path
    if os.path.isfile(path):
      names = [path]
    elif os.path.isdir(path):
      names = [os.path.join(folder, name) for folder, _, own in os.walk(path) for name in own]
      hidden = lambda name: any(
        part.startswith('.') for part in os.path.relpath(name, path).split(os.sep)
      )
      names = [name for name in names if not hidden(name)]
    else:
      names = [name for name in glob.glob(path, recursive=True) if os.path.isfile(name)]
    if not names:
      raise FileNotFoundError(
        f'{path}: no such file, and no folder or pattern with files; give texts as .jsonl, '
        '.parquet or .txt'
      )
    files.update(dict.fromkeys(map(os.path.realpath, names)))
  shared = os.path.commonpath([os.path.dirname(name) for name in files])
  return {_UNPRINTABLE.sub('?', os.path.relpath(name, shared)): name for name in sorted(files)}


class Reader:
  """Reads files as blocks and records what could not be read.

  Attributes:
    files: source -> path.
    problems: source -> what is wrong with a file; what precedes the damage is read.
    refused: reason of `REFUSALS` -> records that are in no block.
    bytes_read: of the files on disk.
    bytes_total: of all files.
  """

  def __init__(self, files: dict[str, str], reading: Reading):
    self.files, self._reading = files, reading
    self.problems: dict[str, str] = {}
    self.refused: Counter[str] = Counter()
    self.bytes_read, self.bytes_total = 0, sum(map(_size, files.values()))

  def blocks(self) -> Iterator[Block]:
    """The blocks of all files, in order."""
    done = 0
    for source, path in self.files.items():
      self.bytes_read = done
      try:
        for position, block in self._file(source, path):
          self.bytes_read = done + position
          yield block
      except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        self.problems[source] = (
          f'the gzip stream is damaged or cut off ({error}); what precedes the damage was read'
        )
      except (OSError, ValueError) as error:  # of Arrow's zstd too
        self.problems[source] = str(error)
      done += _size(path)
    self.bytes_read = done

  def _file(self, source: str, path: str) -> Iterator[tuple[int, Block]]:
    stem = source.removesuffix('.gz').removesuffix('.zst')
    kind = KINDS.get(os.path.splitext(stem)[1].lower())
    if kind is None:
      raise ValueError(
        f'unknown kind of file; known are {", ".join(KINDS)}, each also with .gz or .zst'
      )
    if kind == 'parquet':
      yield from self._parquet(source, path)
      return
    with open(path, 'rb') as raw:
      file = _unpacked(raw)
      skip_mark(file)
      if kind == 'json' and stem.lower().endswith('.json') and _begins_list(file):
        for first, content in _list_items(file):
          yield raw.tell(), Block(source, kind, first, content)
        return
      paragraphs = kind == 'text' and self._reading.text_files == 'paragraphs'
      for first, content in self._records(file, paragraphs):
        yield raw.tell(), Block(source, kind, first, content)

  def _records(self, file, paragraphs: bool) -> Iterator[tuple[int, bytes]]:
    """(line, content) of complete records."""
    line, rest, skipping = 1, b'', False
    while chunk := file.read(_BLOCK):
      rest += chunk
      end = _last_end(rest, paragraphs)
      if skipping and (start := _first_end(rest, paragraphs)):
        line, rest, end = line + rest.count(b'\n', 0, start), rest[start:], end - start
        skipping = False
      if skipping or (not end and len(rest) > self._reading.most_bytes):
        self.refused['too_large'] += not skipping
        # NB: an empty last line may be half of the separator of two paragraphs.
        keep = rest.rfind(b'\n')
        keep = keep if keep >= 0 and not rest[keep:].strip() else len(rest)
        line, rest, skipping = line + rest.count(b'\n', 0, keep), rest[keep:], True
      elif end:
        yield line, rest[:end]
        line, rest = line + rest.count(b'\n', 0, end), rest[end:]
    if rest.strip() and not skipping:
      yield line, rest

  def _parquet(self, source: str, path: str) -> Iterator[tuple[int, Block]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open(path, 'rb') as raw, pq.ParquetFile(raw) as file:
      names = file.schema_arrow.names
      if self._reading.field not in names:
        raise ValueError(
          f'no column {self._reading.field!r} (columns: {", ".join(names)}); set Reading.field=NAME'
        )
      wanted = dict.fromkeys((self._reading.field, self._reading.id_field))
      rows = 0
      for batch in file.iter_batches(_ROWS, columns=[name for name in wanted if name in names]):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
          writer.write_batch(batch)
        position = _size(path) * (rows + len(batch)) // max(1, file.metadata.num_rows)
        yield position, Block(source, 'parquet', rows + 1, sink.getvalue().to_pybytes())
        rows += len(batch)


def _unpacked(raw: BinaryIO) -> BinaryIO:
  """The content of a file that may be gzip or zstd, told by its first bytes.

  NB: Arrow's stream closes the file with itself.
  """
  magic = raw.peek(4)[:4]
  if magic[:2] == b'\x1f\x8b':
    return gzip.GzipFile(fileobj=raw)
  if magic == b'\x28\xb5\x2f\xfd':
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, 'r'), 'zstd'))
  return raw


def _begins_list(file: BinaryIO) -> bool:
  """Whether the file holds a JSON list. NB: a line may be one, so '[{' or '["' is wanted."""
  start = file.peek(4096).lstrip()
  return start[:1] == b'[' and start[1:].lstrip()[:1] in (b'{', b'"', b']', b'')


def _list_items(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
  """(number of the first item, items as lines) of a JSON list, read as a stream."""
  import ijson

  first, lines, size = 1, [], 0
  try:
    for item in ijson.items(file, 'item', use_float=True):
      line = json.dumps(item, ensure_ascii=False).encode('utf-8', 'surrogatepass') + b'\n'
      lines.append(line)
      size += len(line)
      if size >= _BLOCK:
        yield first, b''.join(lines)
        first, lines, size = first + len(lines), [], 0
  except ijson.JSONError as error:
    if lines:
      yield first, b''.join(lines)
    raise ValueError(
      f'not a valid JSON list behind item {first + len(lines) - 1} ({error}); what precedes the '
      'damage was read'
    ) from None
  if lines:
    yield first, b''.join(lines)


def read_documents(
  paths: str | Sequence[str], reading: Reading, tally: Counter[str]
) -> Iterator[Document]:
  """All documents of some files; unreadable files are skipped.

  `tally` counts 'read' and the reasons of `REFUSALS`.
  """
  reader = Reader(find_files(paths), reading)
  for block in reader.blocks():
    yield from decode(block, reading, tally)
  tally.update(reader.refused)
  tally['read'] += reader.refused.total()


def decode(block: Block, reading: Reading, tally: Counter[str]) -> Iterator[Document]:
  """The documents of a block.

  `tally` counts 'read' for every record, a reason of `REFUSALS` for each that is not a document,
  and 'invalid_bytes' for each byte that is not UTF-8.
  """
  records = _rows(block, reading) if block.kind == 'parquet' else _pieces(block, reading)
  for position, raw, id_ in records:
    tally['read'] += 1
    if raw is not None and len(raw) > reading.most_bytes:
      tally['too_large'] += 1
      continue
    try:
      text = None if raw is None else raw.decode()
    except UnicodeDecodeError:
      tally['invalid_utf8'] += 1
      tally['invalid_bytes'] += len(_ESCAPED.findall(raw.decode('utf-8', 'surrogateescape')))
      continue
    if block.kind == 'json':
      try:
        record = json.loads(text)
      except (ValueError, RecursionError):
        record = None
      if isinstance(record, dict):
        text, id_ = record.get(reading.field), record.get(reading.id_field)
      elif isinstance(record, str):
        text, id_ = record, None
      else:
        tally['invalid_json'] += 1
        continue
    if not isinstance(text, str) or not text.strip():
      tally['no_text'] += 1
      continue
    yield Document(_id(id_) or f'{block.source}:{position}', text, block.source)


def _pieces(block: Block, reading: Reading) -> Iterator[tuple[int, bytes, None]]:
  """(line, record, None) of lines or paragraphs."""
  if block.kind == 'json' or reading.text_files == 'lines':
    pieces = enumerate(block.content.split(b'\n'), block.first)
  else:
    pieces = _paragraphs(block.content, block.first)
  for line, piece in pieces:
    if piece.strip():
      yield line, piece, None


def _paragraphs(content: bytes, line: int) -> Iterator[tuple[int, bytes]]:
  start = 0
  for end in [*(match.end() for match in _EMPTY_LINES.finditer(content)), len(content)]:
    piece = content[start:end]
    yield line + piece.count(b'\n', 0, len(piece) - len(piece.lstrip())), piece
    line, start = line + piece.count(b'\n'), end


def _rows(block: Block, reading: Reading) -> Iterator[tuple[int, bytes | None, object]]:
  import pyarrow as pa

  table = pa.ipc.open_stream(block.content).read_all()
  column = table[reading.field]
  nothing = [None] * len(table)
  try:
    if pa.types.is_dictionary(column.type):
      column = column.cast(column.type.value_type)
    # NB: as bytes, because texts of a Parquet file that are not UTF-8 cannot become str.
    texts = column.cast(pa.large_binary()).to_pylist()
  except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
    texts = nothing
  try:
    has_ids = reading.id_field in table.column_names
    ids = table[reading.id_field].to_pylist() if has_ids else nothing
  except UnicodeDecodeError:
    ids = nothing
  yield from zip(range(block.first, block.first + len(texts)), texts, ids)


def _id(value: object) -> str | None:
  if isinstance(value, bool) or not isinstance(value, (str, int)) or value == '':
    return None
  try:
    text = _UNPRINTABLE.sub('', str(value))
  except ValueError:  # an integer of thousands of digits
    return None
  return text if 0 < len(text) <= 200 else None


def _last_end(content: bytes, paragraphs: bool) -> int:
  """End of the last record that is certainly complete; 0 if there is none."""
  end = content.rfind(b'\n')
  while paragraphs and end >= 0:
    before = content.rfind(b'\n', 0, end)
    if before >= 0 and not content[before:end].strip(b' \t\r\n'):
      break
    end = before
  return end + 1


def _first_end(content: bytes, paragraphs: bool) -> int:
  """End of the first record; 0 if it is incomplete."""
  if not paragraphs:
    return content.find(b'\n') + 1
  match = _EMPTY_LINES.search(content)
  return match.end() + 1 if match else 0


def _size(path: str) -> int:
  try:
    return os.path.getsize(path)
  except OSError:
    return 0
