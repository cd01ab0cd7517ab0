"""SourceError, and the parts of its messages."""

import contextlib

from crossin_jax.errors import RowError


class SourceError(RowError):
  """Invalid instruction rows; the message names file, row, field, value and remedy."""


def at(path: str, number: int, line: int | None) -> str:
  """The position of a row: at('a.jsonl', 1, 3) == 'a.jsonl, row 1 (line 3)'."""
  return f'{path}, row {number} ' + ('(counted from 0)' if line is None else f'(line {line})')


def first_line(error: Exception) -> str:
  """The first line of another library's message."""
  return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def naming(path: str):
  """Turns errors of the file system into a SourceError that names the file."""
  try:
    yield
  except OSError as error:
    what = error.strerror or error
    raise SourceError(
      f'{path}: cannot be read ({what}); check the disk and the permissions'
    ) from None
