"""The objects of a JSON list or of JSON lines, one at a time: memory holds one object and a window
of the file.
"""

import codecs
from collections.abc import Iterator
import gzip
import json
from typing import Any

from crossin_jax.data.source_errors import SourceError, at, found

_BOM = b'\xef\xbb\xbf'
_DECODER = json.JSONDecoder()
_WINDOW = 1 << 20  # bytes read at once; more where one object is longer
_REMEDY = 'mend it, or copy the file again if it is cut off'


def read_json(path: str) -> Iterator[tuple[None, Any]]:
  """(None, object) for each item of the list in a file, as it is read.

  Raises:
    SourceError: no list, or not valid JSON or UTF-8; how many whole rows stand before the fault.
    OSError, EOFError, zlib.error: as the file system and the decompressor give them.
  """
  rows = 0
  with _open(path) as file:
    text = _Text(file)
    try:
      for item in _items(text, path):
        yield None, item
        rows += 1
    except _BadByte as bad:
      where = at(path, rows, text.end_line) if text.is_list else f'{path}, line {text.end_line}'
      raise _not_utf8(where, bad.offset, text.head) from None
    except json.JSONDecodeError as error:
      line, column = text.line_and_column(error.pos)
      hint = f'. Whole rows before it: {rows}' if text.is_list else ''
      if not text.is_list and '\n{' in text.window:
        hint = '. One object per line? Then name it .jsonl'
      raise SourceError(
        f'{path}: not valid JSON at line {line} column {column}: {error.msg}; {_REMEDY}{hint}'
      ) from None
    except RecursionError:
      raise SourceError(
        f'{path}: JSON nested too deeply; rows are flat objects of strings'
      ) from None
    except SourceError:
      raise
    except ValueError as error:  # a number of more than 4,300 digits
      raise SourceError(
        f'{path}: not usable JSON: {error}; mend the field. Whole rows before it: {rows}'
      ) from None


def read_jsonl(path: str) -> Iterator[tuple[int, Any]]:
  """(line number from 1, object) for each line that is not blank.

  Raises:
    SourceError: a line that is not valid JSON or UTF-8.
    OSError, EOFError, zlib.error: as the file system and the decompressor give them.
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
      try:
        text = line.decode()
      except UnicodeDecodeError as error:
        raise _not_utf8(at(path, row, number), start + error.start, head) from None
      hint = 'mend the line, or copy the file again if it is cut off'
      if row == 0 and line.lstrip()[:1] == b'[':
        hint = 'this seems to be a JSON list: name it .json'
      yield number, _loads(text, at(path, row, number), hint)
      row += 1


class _BadByte(Exception):
  """The file is not UTF-8 from byte `offset` on."""

  def __init__(self, offset: int):
    super().__init__(offset)
    self.offset = offset


class _Text:
  """A file's text, of which a window is in memory.

  Attributes:
    window: text from the place that was last given to `more`.
    ended: the file has nothing behind the window.
    is_list: its first character was a bracket.
    head: the first two bytes.
  """

  def __init__(self, file):
    self._file, self._decoder = file, codecs.getincrementaldecoder('utf-8')()
    self.window, self.ended, self.is_list = '', False, False
    self._line, self._column = 1, 1  # of the first character of the window
    self._bad = None  # what is to be raised when the text before it is used up
    data = file.read(_WINDOW)
    self.head, self._read = data[:2], len(_BOM) if data.startswith(_BOM) else 0
    self._add(data[self._read :])

  def _add(self, data: bytes) -> None:
    try:
      self.window += self._decoder.decode(data, final=not data)
    except UnicodeDecodeError as error:
      # error.object begins with the bytes of a character that the data before broke off in.
      self.window += error.object[: error.start].decode()
      self._bad = _BadByte(self._read + len(data) - len(error.object) + error.start)
    self._read += len(data)
    self.ended = not data and not self._bad

  def more(self, place: int) -> int:
    """Forgets what stands before `place`, reads on, and returns where `place` is now: 0.

    Raises:
      _BadByte: what follows is not UTF-8.
    """
    if self._bad:
      raise self._bad
    self._line, self._column = self.line_and_column(place)
    self.window = self.window[place:]
    # Twice as much each time, so that a long object is not begun again every million characters.
    self._add(self._file.read(max(_WINDOW, len(self.window))))
    return 0

  def skip(self, place: int) -> int:
    """The place of the next character that is not white space, or the end of the window at the end
    of the text.
    """
    while True:
      while place < len(self.window) and self.window[place] in ' \t\r\n':
        place += 1
      if place < len(self.window) or self.ended:
        return place
      place = self.more(place)

  def value(self, place: int) -> tuple[Any, int]:
    """The JSON value that begins at `place`, and where it ends."""
    while True:
      try:
        value, end = _DECODER.raw_decode(self.window, place)
        if end < len(self.window) or self.ended:  # or else a number may go on
          return value, end
      except json.JSONDecodeError as error:
        # Cut off by the window: the fault is at its end (or in a word like -Infinity), or a string
        # has no end.
        if (
          self.ended
          or error.pos < len(self.window) - 16
          and not error.msg.startswith('Unterminated string')
        ):
          raise
      place = self.more(place)

  def line_and_column(self, place: int) -> tuple[int, int]:
    """Of a place in the window, both from 1."""
    newlines = self.window.count('\n', 0, place)
    if newlines:
      return self._line + newlines, place - self.window.rfind('\n', 0, place)
    return self._line, self._column + place

  @property
  def end_line(self) -> int:
    """The line in which the window ends."""
    return self.line_and_column(len(self.window))[0]

  def check(self) -> None:
    """Raises _BadByte if the window ends at a byte that is not UTF-8."""
    if self._bad:
      raise self._bad


def _items(text: _Text, path: str) -> Iterator[Any]:
  """The items of the list; JSONDecodeError with a place in the window."""
  place = text.skip(0)
  if place == len(text.window):
    raise SourceError(f'{path}: the file is empty (white space only); write or copy it again')
  if text.window[place] != '[':
    text.check()
    raise _no_list(text, path, place)
  text.is_list = True
  place = text.skip(place + 1)
  more = text.window[place : place + 1] != ']'
  while more:
    value, place = text.value(place)
    yield value
    place = text.skip(place)
    mark = text.window[place : place + 1]
    if mark not in (',', ']'):
      raise json.JSONDecodeError("Expecting ',' delimiter", text.window, place)
    more = mark == ','
    if more:
      place = text.skip(place + 1)
  place = text.skip(place + 1)
  if place < len(text.window):
    raise json.JSONDecodeError('Extra data', text.window, place)


def _no_list(text: _Text, path: str, place: int) -> SourceError:
  """The error for a file whose first character is no bracket; JSONDecodeError if it is not JSON
  either.
  """
  try:
    value, end = _DECODER.raw_decode(text.window, place)
    seen = found(value)
    if rest := text.window[end:].lstrip():
      raise json.JSONDecodeError('Extra data', text.window, len(text.window) - len(rest))
  except json.JSONDecodeError:
    # An object that is longer than the window is not read to its end to be refused.
    if len(text.window) < _WINDOW // 4 or text.window[place] != '{' or '\n{' in text.window:
      raise
    seen = 'an object'
  return SourceError(
    f'{path}: must hold a list of rows, found {seen}; put the rows in [ ], or one per line in a '
    '.jsonl file'
  )


def _open(path: str):
  return gzip.open(path, 'rb') if path.lower().endswith('.gz') else open(path, 'rb')


def _loads(text: str, where: str, hint: str) -> Any:
  """json.loads; `where` names file and row, and the column is added."""
  try:
    return json.loads(text)
  except json.JSONDecodeError as error:
    line = f'line {error.lineno} ' if error.lineno > 1 or '\n' in text.rstrip() else ''
    raise SourceError(
      f'{where}: not valid JSON at {line}column {error.colno}: {error.msg}; {hint}'
    ) from None
  except RecursionError:
    raise SourceError(
      f'{where}: JSON nested too deeply; rows are flat objects of strings'
    ) from None
  except ValueError as error:  # a number of more than 4,300 digits
    raise SourceError(f'{where}: not usable JSON: {error}; mend the field') from None


def _not_utf8(where: str, offset: int, start: bytes) -> SourceError:
  """`start` is the first bytes of the file."""
  hint = ''
  if start.startswith(b'\x1f\x8b'):
    hint = ' (a gzip file: add .gz to its name)'
  elif start.startswith((b'\xff\xfe', b'\xfe\xff')):
    hint = ' (it begins as UTF-16 does)'
  return SourceError(
    f'{where}: not valid UTF-8 at byte offset {offset}{hint}; save the file as UTF-8'
  )
