"""TensorBoard's event files of scalars.

Written here, because the libraries that write them import torch and a client of the store where
these are installed: 2 s at the start of every run, and the memory of both.

A file is a sequence of records: length uint64, its checksum, an `Event` message, its checksum
(tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto, framework/summary.proto).
"""

from collections.abc import Mapping
import os
import socket
import struct
import time

VERSION = b'brain.Event:2'
LARGEST = 3.4028234e38  # of a float32
_START = b'\x08\x01'  # SessionLog: status START


class EventFile:
  """A new event file. Every event is on disk when `log` returns."""

  def __init__(self, folder: str, first_step: int):
    """Args:
    folder: of the run; TensorBoard reads all its files in the order of their names.
    first_step: TensorBoard drops what earlier files have from this step on.
    """
    os.makedirs(folder, exist_ok=True)
    name = f'events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}'
    self._file = open(os.path.join(folder, name), 'wb')
    self._add(first_step, _bytes(3, VERSION))
    self._add(first_step, _bytes(7, _START))

  def log(self, scalars: Mapping[str, float], step: int) -> None:
    """Adds finite scalars, as one event."""
    values = (
      _bytes(
        1,
        _bytes(1, name.encode())
        + struct.pack('<Bf', 2 << 3 | 5, max(-LARGEST, min(LARGEST, value))),
      )
      for name, value in scalars.items()
    )
    self._add(step, _bytes(5, b''.join(values)))

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def _add(self, step: int, content: bytes) -> None:
    event = struct.pack('<Bd', 1 << 3 | 1, time.time()) + b'\x10' + _varint(step) + content
    length = struct.pack('<Q', len(event))
    self._file.write(length + _checksum(length) + event + _checksum(event))
    self._file.flush()


def _bytes(field: int, content: bytes) -> bytes:
  """A field of a protocol buffer that holds bytes or a message."""
  return bytes([field << 3 | 2]) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
  """_varint(300) == b'\\xac\\x02': 7 bits a byte, the lowest first."""
  result = bytearray()
  while number > 0x7F:
    result.append(number & 0x7F | 0x80)
    number >>= 7
  return bytes([*result, number])


def _checksum(data: bytes) -> bytes:
  """The masked CRC32C of a record."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
  crc ^= 0xFFFFFFFF
  return struct.pack('<I', ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _remainder(byte: int) -> int:
  for _ in range(8):
    byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)  # Castagnoli's polynomial, reversed
  return byte


_TABLE = tuple(map(_remainder, range(256)))
