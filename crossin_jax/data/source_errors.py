"""SourceError, and the phrases that its messages share: where it was, what was found."""

import contextlib
import gzip
import reprlib
from typing import Any
import zlib

from crossin_jax.errors import CrossinError


class SourceError(CrossinError, ValueError):
  """Instruction rows that cannot be read; the message names file, row, field, what was found and
  the remedy.
  """


def at(path: str, number: int, line: int | None) -> str:
  """at('a.jsonl', 1, 3) == 'a.jsonl, row 1 (line 3)'; without a line 'a.json, row 1 (counted from
  0)'.
  """
  return f'{path}, row {number} ' + ('(counted from 0)' if line is None else f'(line {line})')


def first_line(error: Exception) -> str:
  """The first line of another library's message."""
  return (str(error).strip() or type(error).__name__).splitlines()[0]


def found(value: Any) -> str:
  """A value as messages show it: found(3) == 'int 3', found(None) == 'null'; long ones are
  shortened.
  """
  return 'null' if value is None else f'{type(value).__name__} {reprlib.repr(value)}'


@contextlib.contextmanager
def naming(path: str):
  """Errors of the file system and of the decompressor become a SourceError with the file's name."""
  try:
    yield
  except gzip.BadGzipFile as error:
    remedy = 'copy it again, or take .gz off its name if it is plain'
    raise SourceError(f'{path}: not a whole gzip file ({error}); {remedy}') from None
  except EOFError:
    raise SourceError(f'{path}: the gzip file is cut off before its end; copy it again') from None
  except zlib.error as error:
    raise SourceError(f'{path}: the gzip file is damaged ({error}); copy it again') from None
  except OSError as error:
    what = error.strerror or error
    raise SourceError(
      f'{path}: cannot be read ({what}); check the disk and the permissions'
    ) from None
