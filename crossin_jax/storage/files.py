"""Files that appear complete or not at all, here and on gs://: written aside, then renamed."""

from collections.abc import Iterable, Iterator
import contextlib
import json
import os
import tempfile
from typing import Any

from crossin_jax.errors import CrossinError
from crossin_jax.storage import remote


class FileError(CrossinError, ValueError):
  """A file that is missing or broken; the message names it and the remedy."""


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[str]:
  """Yields the name of a temporary file that replaces `path` when the block ends without an error.

  The permissions are those of an ordinary new file.
  """
  path = os.path.abspath(path)
  folder, name = os.path.split(path)
  os.makedirs(folder, exist_ok=True)
  handle, temporary = tempfile.mkstemp(dir=folder, prefix=f'.writing-{name[:100]}-')
  os.close(handle)
  try:
    yield temporary
    with open(temporary, 'rb+') as file:
      os.fsync(file.fileno())
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(temporary, 0o666 & ~umask)  # mkstemp creates files that only their owner may read
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(temporary)
    raise


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
  """Writes a file, or an object of gs://."""
  if remote.is_remote(os.fspath(path)):
    remote.write(os.fspath(path), content)
    return
  with replacing(path) as temporary:
    with open(temporary, 'wb') as file:
      file.write(content)


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes UTF-8 text."""
  write_bytes(path, text.encode('utf-8'))


def write_json(path: str | os.PathLike, value, **options) -> None:
  """Writes JSON, indented by one space; `options` of `json.dumps`."""
  write_text(path, json.dumps(value, ensure_ascii=False, indent=1, **options) + '\n')


def write_jsonl(path: str | os.PathLike, rows: Iterable) -> int:
  """Writes a line of JSON for each row, here or on gs://; returns how many there are."""
  lines, count = (json.dumps(row, ensure_ascii=False) + '\n' for row in rows), 0
  if remote.is_remote(os.fspath(path)):
    lines = list(lines)
    write_text(path, ''.join(lines))
    return len(lines)
  with replacing(path) as temporary, open(temporary, 'w', encoding='utf-8') as file:
    for line in lines:
      file.write(line)
      count += 1
  return count


def load_json(path: str | os.PathLike) -> Any:
  """JSON of a file or an object of gs://; raises FileNotFoundError or ValueError."""
  path = os.fspath(path)
  if remote.is_remote(path):
    return json.loads(remote.read(path))
  with open(path, encoding='utf-8') as file:
    return json.load(file)


def read_json(path: str | os.PathLike, remedy: str, error: type[Exception] = FileError) -> Any:
  """Reads JSON of a file or an object of gs://.

  Args:
    path: the file.
    remedy: what to do where it is missing or broken: 'run `crossin prepare` first'.
    error: raised in that case.
  """
  try:
    return load_json(remote.fetched(os.fspath(path)))
  except FileNotFoundError:
    raise error(f'{path} does not exist; {remedy}') from None
  except (json.JSONDecodeError, UnicodeDecodeError) as problem:
    raise error(f'{path} is not valid JSON ({problem}); delete it, then {remedy}') from None
