"""Streams the objects of a JSON list or of JSON lines."""

from collections.abc import Iterator
import gzip
import json
import re
from typing import Any

from crossin_jax.data.source_errors import SourceError, at, describe

_BOM = b'\xef\xbb\xbf'
# An escaped lone surrogate. ijson reads it as '?', Python's json keeps it.
_LONE = re.compile(
  rb'\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])'
  rb'|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]'
)
_REMEDY = 'fix it, or copy the file again if it is cut off'


def read_json(path: str) -> Iterator[tuple[None, Any]]:
  """Streams (None, object) for each item of the list in a file.

  Reads a malformed file a second time, all at once, to locate the error.

  Raises:
    SourceError: no list, or not valid JSON or UTF-8; with the number of complete rows before.
    OSError, EOFError, zlib.error: from the file system and the decompressor.
  """
  import ijson

  rows = 0
  with _open(path) as file:
    file.seek(len(_BOM) if file.read(len(_BOM)) == _BOM else 0)
    start = file.tell()
    if _first_character(file, path) != b'[':
      raise _no_list(path)
    file.seek(start)
    try:
      for item in ijson.items(_Scanned(file), 'item', use_float=True):
        yield None, item
        rows += 1
      return
    except (ijson.JSONError, _LoneSurrogate) as error:
      reason = str(error).strip().partition('\n')[0]
  for item in _rest(path, rows, reason):
    yield None, item


def read_jsonl(path: str) -> Iterator[tuple[int, Any]]:
  """(line number from 1, object) for each line that is not blank.

  Raises:
    SourceError: a line that is not valid JSON or UTF-8.
    OSError, EOFError, zlib.error: from the file system and the decompressor.
  """
  end, row = 0, 0
  with _open(path) as file:
    for number, line in enumerate(file, 1):  # a binary file splits at \n only
      start, end = end, end + len(line)
      if number == 1:
        head = line[:2]
        if line.startswith(_BOM):
          start, line = len(_BOM), line[len(_BOM) :]
      if not line.strip():
        continue
      where = at(path, row, number)
      try:
        text = line.decode()
      except UnicodeDecodeError as error:
        raise _not_utf8(where, start + error.start, head) from None
      hint = 'fix the line, or copy the file again if it is cut off'
      if row == 0 and line.lstrip()[:1] == b'[':
        hint = 'this seems to be a JSON list: name it .json'
      try:
        yield number, json.loads(text)
      except (ValueError, RecursionError) as error:
        raise _malformed(where, error, hint) from None
      row += 1


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


def _first_character(file, path: str) -> bytes:
  while block := file.read(1 << 16):
    if block := block.lstrip(b' \t\r\n'):
      return block[:1]
  raise SourceError(f'{path}: the file is empty (white space only); write or copy it again')


def _rest(path: str, rows: int, reason: str) -> list:
  """The items from number `rows` on if Python's json can read them (NaN); else the error."""
  try:
    return _load(path, rows)[rows:]
  except (json.JSONDecodeError, RecursionError) as error:
    raise _malformed(path, error, f'{_REMEDY}. Complete rows before it: {rows}') from None
  except SourceError:
    raise
  except ValueError as error:
    raise SourceError(
      f'{path}: not usable JSON: {error or reason}; fix the field. Complete rows before it: {rows}'
    ) from None


def _load(path: str, rows: int | None = None) -> Any:
  """The value of a file, of which `rows` complete rows are known to be valid."""
  with _open(path) as file:
    content = file.read()
  try:
    return json.loads(content.decode('utf-8-sig'))
  except UnicodeDecodeError as error:
    line = content.count(b'\n', 0, error.start) + 1
    where = f'{path}, line {line}' if rows is None else at(path, rows, line)
    offset = error.start + len(_BOM) * content.startswith(_BOM)
    raise _not_utf8(where, offset, content[:2]) from None


def _no_list(path: str) -> SourceError:
  """The error for a file that does not start with a bracket."""
  try:
    value = describe(_load(path))
  except SourceError as error:
    return error
  except (ValueError, RecursionError) as error:
    with _open(path) as file:
      lines = file.read(1 << 20).count(b'\n{')
    return _malformed(
      path, error, f'{_REMEDY}. One object per line? Then name it .jsonl' if lines else _REMEDY
    )
  return SourceError(
    f'{path}: must hold a list of rows, found {value}; put the rows in [ ], or one per line in a '
    '.jsonl file'
  )


def _open(path: str):
  return gzip.open(path, 'rb') if path.lower().endswith('.gz') else open(path, 'rb')


def _malformed(where: str, error: Exception, hint: str) -> SourceError:
  if isinstance(error, json.JSONDecodeError):
    line = f'line {error.lineno} ' if error.lineno > 1 or '\n' in error.doc.rstrip() else ''
    return SourceError(
      f'{where}: not valid JSON at {line}column {error.colno}: {error.msg}; {hint}'
    )
  if isinstance(error, RecursionError):
    return SourceError(f'{where}: JSON nested too deeply; rows are flat objects of strings')
  return SourceError(f'{where}: not usable JSON: {error}; fix the field')  # over 4,300 digits


def _not_utf8(where: str, offset: int, start: bytes) -> SourceError:
  """`start` is the first bytes of the file."""
  hint = ''
  if start.startswith(b'\x1f\x8b'):
    hint = ' (a gzip file: add .gz to its name)'
  elif start.startswith((b'\xff\xfe', b'\xfe\xff')):
    hint = ' (it starts like UTF-16)'
  return SourceError(
    f'{where}: not valid UTF-8 at byte offset {offset}{hint}; save the file as UTF-8'
  )
