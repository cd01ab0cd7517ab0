"""The rows of a JSON file as a stream: JSON Lines or a JSON list, plain or gzipped."""

from collections.abc import Callable, Iterator
import contextlib
from dataclasses import dataclass
import gzip
import io
import json
import os
import re
import reprlib
from typing import Any, BinaryIO
import zlib

from crossin_jax.errors import RowError
from crossin_jax.storage import remote

_BOM = b'\xef\xbb\xbf'
_SPACE = b' \t\r\n'
# An escaped lone surrogate. ijson reads it as '?', Python's json keeps it.
_LONE = re.compile(
  rb'\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])'
  rb'|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]'
)


def located(path: str | os.PathLike, row: int, line: int | None) -> str:
  """The position of a row, of which `row` (from 0) are before it: 'a.jsonl, line 3' or, in a list,
  'a.json, record 3', both counted from 1.
  """
  return f'{path}, record {row + 1}' if line is None else f'{path}, line {line}'


def describe(value: Any) -> str:
  """A value in messages, shortened: describe(3) == 'int 3', describe(None) == 'null'."""
  return 'null' if value is None else f'{type(value).__name__} {reprlib.repr(value)}'


def is_gzip(path: str | os.PathLike) -> bool:
  """Whether a local file starts as gzip does, whatever its name."""
  with open(path, 'rb') as file:
    return file.read(2) == b'\x1f\x8b'


@contextlib.contextmanager
def unpacked(path: str | os.PathLike, error: type[RowError] = RowError) -> Iterator[BinaryIO]:
  """Opens a file, here or on gs://, and yields its bytes, unpacked if they are gzipped.

  Raises:
    error: a gzip stream that is damaged or cut off, also from the block.
    OSError: from the file system, also from the block.
  """
  try:
    # One opening, because a pipe has no second.
    with open(remote.fetched(os.fspath(path)), 'rb') as file:
      if file.peek(2)[:2] == b'\x1f\x8b':
        yield io.BufferedReader(gzip.GzipFile(fileobj=file))
      else:
        yield file
  except gzip.BadGzipFile as problem:
    raise error(f'{path}: not a complete gzip file ({problem}); copy it again') from None
  except EOFError:
    raise error(f'{path}: the gzip file is cut off before its end; copy it again') from None
  except zlib.error as problem:
    raise error(f'{path}: the gzip file is damaged ({problem}); copy it again') from None


def skip_mark(file: BinaryIO) -> int:
  """Moves a file that is at its start behind its byte order mark; returns the bytes skipped."""
  has_mark = file.peek(len(_BOM)).startswith(_BOM)
  return len(file.read(len(_BOM))) if has_mark else 0


def not_utf8(offset: int, start: bytes) -> str:
  """What is wrong at a byte that is not UTF-8; `start` is the first bytes of the file."""
  hint = ' (it starts like UTF-16)' if start.startswith((b'\xff\xfe', b'\xfe\xff')) else ''
  return f'not valid UTF-8 at byte offset {offset}{hint}; save the file as UTF-8'


@dataclass(frozen=True)
class JsonRows:
  """The rows of one file, whose errors name the file, the line and the remedy.

  Both forms may be gzipped and start with a byte order mark. A row is any JSON value: what it must
  hold is the caller's to check.

  Attributes:
    path: here or on gs://.
    error: raised for a malformed file.
    position: (path, rows before it, line from 1 or None) -> where, in messages.
  """

  path: str | os.PathLike
  error: type[RowError] = RowError
  position: Callable[[Any, int, int | None], str] = located

  def rows(
    self, malformed: Callable[[str], None] | None = None
  ) -> Iterator[tuple[int | None, Any]]:
    """`items` of a file that starts with a bracket, `lines` of any other; raises as they do."""
    with unpacked(self.path, self.error) as file:
      is_list = file.peek(len(_BOM)).removeprefix(_BOM).lstrip(_SPACE)[:1] == b'['
      yield from self._items(file) if is_list else self._lines(file, malformed)

  def lines(self, malformed: Callable[[str], None] | None = None) -> Iterator[tuple[int, Any]]:
    """(line from 1, row) of each line that is not blank; lines end at newline characters only.

    Args:
      malformed: receives the message for each line that is not valid JSON, and the next line is
        read; None = the first is raised.

    Raises:
      error: a line that is not valid JSON or UTF-8, or damaged gzip.
      OSError: from the file system.
    """
    with unpacked(self.path, self.error) as file:
      yield from self._lines(file, malformed)

  def items(self) -> Iterator[tuple[None, Any]]:
    """(None, row) for each item of a list, with one in memory at a time.

    Reads a malformed file a second time, all at once, to locate the error.

    Raises:
      error: no list, not valid JSON or UTF-8, or damaged gzip.
      OSError: from the file system.
    """
    with unpacked(self.path, self.error) as file:
      yield from self._items(file)

  def _lines(self, file: BinaryIO, malformed) -> Iterator[tuple[int, Any]]:
    end, row, head = skip_mark(file), 0, b''
    for number, line in enumerate(file, 1):  # a binary file splits at \n only
      start, end = end, end + len(line)
      if number == 1:
        head = line[:2]
      try:
        text = line.decode()
      except UnicodeDecodeError as error:
        where = self.position(self.path, row, number)
        raise self.error(f'{where}: {not_utf8(start + error.start, head)}') from None
      if not text.strip():
        continue
      try:
        value = json.loads(text)
      except (ValueError, RecursionError) as error:
        hint = 'fix the line, or copy the file again if it is cut off'
        if row == 0 and text.lstrip().startswith('['):
          hint = 'this seems to be a JSON list: name it .json'
        column = getattr(error, 'pos', 0) + 1  # `colno` would count from the newline at the end
        where = self.position(self.path, row, number)
        message = f'{where}: {_problem(error, column, hint)}'
        if malformed is None:
          raise self.error(message) from None
        malformed(message)
      else:
        yield number, value
      row += 1

  def _items(self, file: BinaryIO) -> Iterator[tuple[None, Any]]:
    import ijson

    skip_mark(file)
    while (block := file.peek(1)) and not block.strip(_SPACE):
      file.read(len(block))
    if not block:
      raise self.error(f'{self.path}: the file is empty (white space only); write or copy it again')
    if block.lstrip(_SPACE)[:1] != b'[':
      raise self._no_list()
    rows = 0
    try:
      for item in ijson.items(_Scanned(file), 'item', use_float=True):
        yield None, item
        rows += 1
      return
    except (ijson.JSONError, _LoneSurrogate):
      pass
    # Python's json may read what ijson does not (NaN, lone surrogates), and locates the error.
    for item in self._document(rows, 'fix it, or copy the file again if it is cut off')[rows:]:
      yield None, item

  def _document(self, rows: int, hint: str) -> Any:
    """The value of the file, of which `rows` complete rows are known to be valid."""
    with unpacked(self.path, self.error) as file:
      content = file.read()
    line = None
    try:
      return json.loads(content.decode('utf-8-sig'))
    except UnicodeDecodeError as error:
      line = content.count(b'\n', 0, error.start) + 1
      problem = not_utf8(error.start + len(_BOM) * content.startswith(_BOM), content[:2])
    except json.JSONDecodeError as error:
      line, problem = error.lineno, _problem(error, error.colno, hint)
    except (ValueError, RecursionError) as error:
      problem = _problem(error, 0, hint)
    raise self.error(f'{self.position(self.path, rows, line)}: {problem}')

  def _no_list(self) -> RowError:
    """The error for a file that does not start with a bracket."""
    hint = 'fix it, or copy the file again if it is cut off'
    with unpacked(self.path, self.error) as file:
      if b'\n{' in file.read(1 << 20):
        hint += '. One object per line? Then name it .jsonl'
    try:
      value = describe(self._document(0, hint))
    except self.error as error:
      return error
    return self.error(
      f'{self.path}: must hold a list of rows, found {value}; put the rows in [ ], or one per line '
      'in a .jsonl file'
    )


def _problem(error: Exception, column: int, hint: str) -> str:
  if isinstance(error, json.JSONDecodeError):
    return f'not valid JSON at column {column}: {error.msg}; {hint}'
  if isinstance(error, RecursionError):
    return 'JSON nested too deeply; fix the row, or remove it'
  return f'not usable JSON: {error}; fix the field'  # over 4,300 digits


class _LoneSurrogate(Exception):
  """A file with a lone surrogate."""


class _Scanned:
  """A binary file whose `read` raises _LoneSurrogate before it returns a lone surrogate."""

  def __init__(self, file):
    self._file, self._before, self._next = file, b'', b''

  def read(self, size: int) -> bytes:
    if size == 0:  # ijson asks whether the file is binary
      return b''
    block = self._file.read(size)
    # The end of a block may cut an escape: keep 12 bytes for the next one.
    content = self._next + block
    keep = 12 if block else 0
    content, self._next = content[: len(content) - keep], content[len(content) - keep :]
    window = self._before + content + self._next
    if (b'\\ud' in window or b'\\uD' in window) and _LONE.search(window):
      raise _LoneSurrogate
    self._before = content[-6:]
    return content or (self.read(size) if block else b'')
