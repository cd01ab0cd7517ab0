"""Stores the rows of one language on disk; memory holds 28 bytes per row."""

from collections.abc import Iterator
import contextlib
import functools
import hashlib
import json
import os
import struct
import tempfile

import numpy as np

from crossin_jax.data import characters, conversations
from crossin_jax.data.readers import Row
from crossin_jax.data.source_errors import SourceError

# What is wrong with a row; a row's fault is an index into this.
FAULTS = (
  '', 'empty_response', 'too_long', *characters.FAULTS, 'turns_not_aligned', *conversations.FAULTS,
)  # fmt: skip
# row number, bytes of id (-1 = none), instruction, input, output and messages
_HEADER = struct.Struct('<qiIIII')
# What memory holds of a row until rows are aligned: where its record ends, digest of its id,
# faults, number of messages.
_ENTRY = struct.Struct('<q16sBBH')
_ENTRIES = np.dtype([
  ('end', '<i8'), ('id', 'S16'), ('text_fault', 'u1'), ('id_fault', 'u1'), ('turns', '<u2'),
])  # fmt: skip
_NO_ID = bytes(16)
_PIECE_ROWS, _PIECE_BYTES = 1024, 4 << 20  # read at once


class Column:
  """The rows of one language: first added, then, after `seal`, read by number.

  The files have no name, so nothing is left behind however the process ends; forked processes share
  them. They are read with pread, not mapped: mapped pages count as the memory of the process that
  touched them.

  Attributes:
    file: where the rows come from, for messages.
    id_digests: S16 [rows], a 128-bit digest of each id; all zero = the row has none. Equal ids,
      equal digests.
    text_faults: uint8 [rows], index into FAULTS: what is wrong with the texts.
    id_faults: uint8 [rows], what is wrong with the id.
    turns: uint16 [rows], messages of the row, 2 where it is one question and one answer. With the
      order that `conversations` demands, an even number has no system turn, an odd number has one.
  """

  def __init__(self, file: str, max_characters: int):
    self.file, self._max_characters = file, max_characters
    self._folder, self._end = _folder(), 0
    with self._keeping():
      self._rows = tempfile.TemporaryFile(dir=self._folder, buffering=1 << 20)
      # Beside the rows, not in arrays that grow: those leave holes in memory as large as
      # themselves.
      self._entries = tempfile.TemporaryFile(dir=self._folder, buffering=1 << 18)

  def add(self, row: Row) -> None:
    """Appends a row.

    Raises:
      SourceError: the disk is full.
    """
    # Half surrogate pairs cannot be UTF-8, but such rows are to be counted, not to end the reading.
    messages = json.dumps(row.messages, ensure_ascii=False) if row.messages else ''
    texts = [text.encode('utf-8', 'surrogatepass') for text in (*row.texts, messages)]
    id_ = b'' if row.id is None else row.id.encode('utf-8', 'surrogatepass')
    header = _HEADER.pack(row.number, -1 if row.id is None else len(id_), *map(len, texts))
    record = b''.join((header, id_, *texts))
    self._end += len(record)
    entry = _ENTRY.pack(
      self._end,
      _NO_ID if row.id is None else hashlib.blake2b(id_, digest_size=16).digest(),
      _fault_of_row(row, self._max_characters),
      0 if row.id is None else _fault_of_characters(row.id),
      min(len(row.messages) or 2, 0xFFFF),
    )
    with self._keeping():
      self._rows.write(record)
      self._entries.write(entry)

  def seal(self) -> 'Column':
    """Finishes the column and returns it."""
    with self._keeping():
      self._rows.flush()
      self._entries.seek(0)  # flushes too
      entries = np.fromfile(self._entries, _ENTRIES)
      self._entries.close()
    self._starts = np.concatenate([np.zeros(1, np.int64), entries['end']])
    self.id_digests, self.text_faults, self.id_faults, self.turns = (
      entries[name] for name in ('id', 'text_fault', 'id_fault', 'turns')
    )
    return self

  def __len__(self) -> int:
    return len(self._starts) - 1

  def forget_bookkeeping(self) -> None:
    """Frees digests, faults and turns, which only the alignment needs."""
    self.id_digests = self.text_faults = self.id_faults = self.turns = None
    self.__dict__.pop('has_id', None)

  @functools.cached_property
  def has_id(self) -> np.ndarray:
    """bool [rows]."""
    return self.id_digests != b''

  def number(self, place: int) -> int:
    """The row's number in the file, from 0."""
    return _HEADER.unpack_from(self._record(place))[0]

  def id(self, place: int) -> str | None:
    """The id of the row, or None."""
    id_ = _fields(self._record(place))[0]
    return None if id_ is None else id_.decode('utf-8', 'surrogatepass')

  def texts(self, place: int) -> tuple[str, str, str]:
    """Instruction, input and output of a row without fault."""
    record = self._record(place)
    # As `_fields`, but this is called for every example.
    _, id_, first, second, third, _ = _HEADER.unpack_from(record)
    start = _HEADER.size + max(id_, 0)
    first, second, third = start + first, start + first + second, start + first + second + third
    return (
      record[start:first].decode(),
      record[first:second].decode(),
      record[second:third].decode(),
    )

  def messages(self, place: int) -> list[dict[str, str]]:
    """The messages of a row without fault; [] where it is one question and one answer."""
    _, _, _, _, *messages = _fields(self._record(place))
    return json.loads(messages[0]) if messages else []

  def fields(self, places: np.ndarray) -> Iterator[tuple[bytes | None, ...]]:
    """Id, instruction, input and output of many rows in UTF-8, and the messages as JSON of a row
    that has some; reads the file in pieces.
    """
    for first in range(0, len(places), _PIECE_ROWS):
      some = places[first : first + _PIECE_ROWS]
      starts, ends = self._starts[some], self._starts[some + 1]
      low, high = int(starts.min()), int(ends.max())
      if high - low > _PIECE_BYTES:
        yield from (_fields(self._record(place)) for place in some)
        continue
      piece = os.pread(self._rows.fileno(), high - low, low)
      for start, end in zip((starts - low).tolist(), (ends - low).tolist()):
        yield _fields(piece[start:end])

  def _record(self, place: int) -> bytes:
    start, end = int(self._starts[place]), int(self._starts[place + 1])
    return os.pread(self._rows.fileno(), end - start, start)

  @contextlib.contextmanager
  def _keeping(self):
    try:
      yield
    except OSError as error:
      raise SourceError(
        f'{self.file}: its rows cannot be kept in {self._folder} ({error.strerror or error}); '
        'make room there for as '
        'much text as the file holds, or set TMPDIR to a folder that has it'
      ) from error


def _fields(record: bytes) -> tuple[bytes | None, ...]:
  _, id_, *lengths = _HEADER.unpack_from(record)
  start = _HEADER.size + max(id_, 0)
  fields = [None if id_ < 0 else record[_HEADER.size : start]]
  for length in lengths if lengths[-1] else lengths[:-1]:
    fields.append(record[start : start + length])
    start += length
  return tuple(fields)


def _folder() -> str:
  """Folder of the rows: TMPDIR or /var/tmp, because /tmp is in memory on many systems."""
  if folder := os.environ.get('TMPDIR'):
    return folder
  return '/var/tmp' if os.access('/var/tmp', os.W_OK | os.X_OK) else tempfile.gettempdir()


def _fault_of_row(row: Row, max_characters: int) -> int:
  if row.fault:
    return FAULTS.index(row.fault)
  texts = row.texts
  if row.messages:
    texts = [text for message in row.messages for text in message.values()]
  elif not texts[2].strip():
    return FAULTS.index('empty_response')
  if max(map(len, texts)) > max_characters:
    return FAULTS.index('too_long')
  for text in texts:
    if fault := _fault_of_characters(text):
      return fault
  return 0


def _fault_of_characters(text: str) -> int:
  return FAULTS.index(characters.fault(text))
