"""SourceError, and the parts of its messages: the position in a file and the value there."""

import contextlib
import gzip
import reprlib
from typing import Any
import zlib

from crossin_jax.errors import CrossinError


class SourceError(CrossinError, ValueError):
  """Invalid instruction rows; the message names file, row, field, value and remedy."""


def at(path: str, number: int, line: int | None) -> str:
  """The position of a row: at('a.jsonl', 1, 3) == 'a.jsonl, row 1 (line 3)'."""
  return f'{path}, row {number} ' + ('(counted from 0)' if line is None else f'(line {line})')


def first_line(error: Exception) -> str:
  """The first line of another library's message."""
  return (str(error).strip() or type(error).__name__).splitlines()[0]


def describe(value: Any) -> str:
  """A value in messages, shortened: describe(3) == 'int 3', describe(None) == 'null'."""
  return 'null' if value is None else f'{type(value).__name__} {reprlib.repr(value)}'


@contextlib.contextmanager
def naming(path: str):
  """Turns errors of the file system and the decompressor into a SourceError that names the file."""
  try:
    yield
  except gzip.BadGzipFile as error:
    remedy = 'copy it again, or remove .gz from its name if it is not compressed'
    raise SourceError(f'{path}: not a complete gzip file ({error}); {remedy}') from None
  except EOFError:
    raise SourceError(f'{path}: the gzip file is cut off before its end; copy it again') from None
  except zlib.error as error:
    raise SourceError(f'{path}: the gzip file is damaged ({error}); copy it again') from None
  except OSError as error:
    what = error.strerror or error
    raise SourceError(
      f'{path}: cannot be read ({what}); check the disk and the permissions'
    ) from None
