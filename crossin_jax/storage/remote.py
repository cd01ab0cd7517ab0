"""Remote storage: `gs://` paths, through gcsfs and never through TensorFlow.

What is read is copied to this machine first (`fetched`): $CROSSIN_CACHE, else ~/.cache/crossin_jax,
holds files/BUCKET/NAME for every object that was read, and mirrors/ for folders that are written
(`mirror.py`). A copy bears the object's generation as its time of change and its size, so the next
reader knows without reading it whether it is still the same. The cache may be deleted whenever no
command is at work. Checkpoints are not copied: Orbax reads and writes them where they are.
"""

from collections.abc import Iterable
import contextlib
import errno
import functools
import hashlib
import os
import shutil
import sys
import tempfile

from crossin_jax.storage import locks
from crossin_jax.storage.gcs import (
  Entry,
  Limit,  # fmt: skip
  NotThere,  # fmt: skip
  Outrun,  # fmt: skip
  RemoteError,
  call,  # fmt: skip
  crc32c,
  exists,  # fmt: skip
  explained,
  explaining,
  filesystem,
  insist,
  is_remote,
  listing,
  read,  # fmt: skip
  remove,  # fmt: skip
  remove_folder,  # fmt: skip
  split,
  stat,
  together,
  upload,  # fmt: skip
  upload_folder,  # fmt: skip
  write,  # fmt: skip
)

_WRITING = '.writing-'  # begins the names of copies that are being made


def absolute(path: str) -> str:
  """`os.path.abspath`, and a URL without a slash at its end."""
  return path.rstrip('/') if is_remote(path) else os.path.abspath(path)


def cache(*parts: str) -> str:
  """A path in the cache of this machine."""
  root = os.environ.get('CROSSIN_CACHE') or os.path.join(
    os.path.expanduser('~'), '.cache', 'crossin_jax'
  )
  return os.path.join(os.path.abspath(root), *parts)


def place(path: str) -> str:
  """Where the copy of a remote path lies in the cache; a local path as it is.

  Raises:
    RemoteError: a URL without a bucket, or with '..' in it.
  """
  return cache('files', *_parts(path)) if is_remote(path) else path


def _parts(url: str) -> list[str]:
  bucket, name = split(url)
  parts = [bucket, *(name.split('/') if name else ())]
  if {'', '.', '..'} & set(parts):
    raise RemoteError(f'{url!r} has an empty part, or . or .. among its parts; write it without')
  return parts


def use(*paths) -> bool:
  """Whether any of the paths is remote; if so, readies the libraries beneath (Orbax, JAX) for it.

  etils, through which they open files, would import TensorFlow where that is installed.

  Raises:
    ValueError: gcsfs is not installed.
  """
  if not any(map(is_remote, paths)):
    return False
  filesystem()
  return True


# Commands that take gs:// paths: in any of their arguments, or in these alone and in gin values.
_TAKE = {
  'train': None, 'evaluate': None, 'generate': None, 'import-hf': None, 'export-hf': None,
  'inspect': None, 'compare': None,
  'score': None, 'plan': None, 'bench': None, 'prepare': ('--output_dir',),
  'sweep': ('--remote_dir',), 'contamination': ('--data_dir',),
  'translate': ('--checkpoint',),
}  # fmt: skip


def check_flags(command: str, argv: list[str]) -> None:
  """Refuses gs:// paths where a command would take them for local ones, and readies the libraries
  where it takes them.

  Args:
    command: `crossin COMMAND`.
    argv: its arguments, as they were given.

  Raises:
    ValueError: names the argument and the remedy.
  """
  flag = ''
  for argument in argv:
    name, equals, value = (
      argument.partition('=') if argument.startswith('--') else (flag, '', argument)
    )
    flag = name if argument.startswith('--') and not equals else ''
    value = value.partition('=')[2] if name in ('--benchmark', '--gin_bindings') else value
    if not is_remote(value.strip().strip('\'"()')):
      continue
    allowed = _TAKE.get(command, ())
    if (
      allowed is not None
      and name not in allowed
      and not (allowed and name.startswith(('--gin.', '--gin_bindings')))
    ):
      raise ValueError(
        f'{name or command}: {value} is remote, and `crossin {command}` reads and writes there on '
        'disks only; copy it with '
        '`gcloud storage cp --recursive` and give the copy'
      )
    filesystem()
  use(os.environ.get('JAX_COMPILATION_CACHE_DIR'))


# ---- copies on this machine ----


def fetched(path: str, names: Iterable[str] | None = None, *, optional: bool = False) -> str:
  """The local copy of a remote file or folder, made or brought up to date; a local path as it is.

  Several processes may ask for the same at once: one copies, the others find it. Whatever was
  copied is compared with size and CRC32C of the store; of a folder, what is gone there is removed
  here.

  Args:
    path: a file or a folder.
    names: of a folder only these files in it.
    optional: leave out what of `names` is not there.

  Raises:
    NotThere: no such file or folder. RemoteError: no bucket, permission, network or room.
  """
  if not is_remote(path):
    return path
  filesystem()
  root, path = place(path), path.rstrip('/')
  with _alone(path):
    if names is None:
      single = stat(path)
      found = {'': single} if single else listing(path)
      if not found:
        raise explained(FileNotFoundError(path), path)
    else:
      names = list(dict.fromkeys(names))
      found = dict(zip(names, together(lambda name: stat(f'{path}/{name}'), names)))
      if missing := [name for name in names if found[name] is None]:
        if not optional:
          raise explained(FileNotFoundError(path), f'{path}/{missing[0]}')
        for name in missing:  # an older copy of what is gone
          with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(root, name))
    if names is None and '' not in found:
      _remove_gone(found, path, root)
    bring({name: entry for name, entry in found.items() if entry}, path, root)
  return root


def _remove_gone(there: dict[str, Entry], url: str, root: str) -> None:
  """Removes copies of objects that the store has no more."""
  here = [
    os.path.relpath(os.path.join(f, n), root) for f, _, inside in os.walk(root) for n in inside
  ]
  extra = [
    name for name in here if name not in there and not os.path.basename(name).startswith(_WRITING)
  ]
  # Another process may have copied since the listing what is new.
  for name, entry in zip(extra, together(lambda name: stat(f'{url}/{name}'), extra)):
    if entry is None:
      with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(root, name))


def bring(entries: dict[str, Entry], url: str, root: str) -> None:
  """Copies those objects (named relative to `url`, '' = itself) below `root` that are not there as
  they are now.
  """
  todo = {
    name: entry for name, entry in entries.items() if not is_current(_below(root, name, url), entry)
  }
  size = sum(entry.size for entry in todo.values())
  if not todo:
    return
  os.makedirs(root if '' not in todo else os.path.dirname(root), exist_ok=True)
  free = shutil.disk_usage(os.path.dirname(root)).free
  if size > 0.98 * free:
    raise RemoteError(
      f'{url} is {size / 1e9:.2f} GB, and {os.path.dirname(root)} has {free / 1e9:.2f} GB left; '
      'make room there, or set '
      'CROSSIN_CACHE to a folder on a larger disk'
    )
  if size > 3e8:
    print(f'copying {size / 1e9:.1f} GB from {url} to {root}', file=sys.stderr)
  together(
    lambda name: insist(
      functools.partial(_download, f'{url}/{name}'.rstrip('/'), _below(root, name, url))
    ),
    todo,
  )


def is_current(path: str, entry: Entry) -> bool:
  """Whether a file is a copy of the object as it is now."""
  try:
    found = os.stat(path)
  except (FileNotFoundError, NotADirectoryError):
    return False
  if found.st_size != entry.size:
    return False
  # Some file systems keep times in whole seconds only.
  return found.st_mtime_ns == entry.generation * 1000 or crc32c(path) == entry.crc32c


def _below(root: str, name: str, url: str) -> str:
  if not name:
    return root
  _parts(f'{url}/{name}')  # no way out of the folder
  return os.path.join(root, name)


def _download(url: str, path: str) -> None:
  entry = stat(url)  # anew at every attempt: it may have been written again
  if entry is None:
    raise explained(FileNotFoundError(url), url)
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=_WRITING)
    os.close(handle)
    try:
      with explaining(url):
        filesystem().get_file(url, temporary)
      if (os.path.getsize(temporary), crc32c(temporary)) != (entry.size, entry.crc32c):
        raise RemoteError(f'{url} arrived damaged; start the same command again')
      os.chmod(temporary, 0o644)
      os.utime(temporary, ns=(entry.generation * 1000, entry.generation * 1000))
      os.replace(temporary, path)
    finally:
      with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
  except (IsADirectoryError, NotADirectoryError, FileExistsError):
    raise RemoteError(
      f'{url}: an object and a folder have the same name, which no disk can hold; rename one'
    ) from None
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
      raise
    raise RemoteError(
      f'{url} cannot be copied to {path} ({error.strerror}); make room there, or set '
      'CROSSIN_CACHE to another folder'
    ) from error


@contextlib.contextmanager
def _alone(url: str):
  """Only one process of this machine at a time."""
  path = cache('locks', hashlib.sha256(url.encode()).hexdigest()[:32])
  with locks.locked(path, url, wait=True):
    yield


__all__ = [
  'Entry', 'Limit', 'NotThere', 'Outrun', 'RemoteError', 'absolute', 'bring', 'cache', 'call',
  'check_flags', 'crc32c', 'exists',
  'explained', 'explaining', 'fetched', 'filesystem', 'is_current', 'is_remote', 'listing', 'place',
  'read', 'remove', 'remove_folder', 'split',
  'stat', 'together', 'upload', 'upload_folder', 'use', 'write',
]  # fmt: skip
