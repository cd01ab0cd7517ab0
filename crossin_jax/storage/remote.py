"""Remote storage: `gs://` paths, through gcsfs and never through TensorFlow; and hub names, which
are only read (`hub_names.py`).

Files are read through a local cache (`fetched`): $CROSSIN_CACHE, else ~/.cache/crossin_jax. It has
files/BUCKET/NAME for every object that was read and mirrors/ for folders that are written
(`mirror.py`). The modification time of a copy encodes the object's generation, so a reader knows
without reading it whether it is current. Delete the cache at any time when no command runs.
Checkpoints are not cached: Orbax reads and writes them on gs:// directly.
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

from crossin_jax.storage import gcs, hub_names, locks
from crossin_jax.storage.gcs import (
  Entry,
  Limit,
  NotThere,
  Outrun,
  RemoteError,
  call,
  crc32c,
  explained,
  explaining,
  filesystem,
  is_remote,
  listing,
  map_in_threads,
  read,
  remove,
  remove_folder,
  retry,
  split,
  stat,
  upload,
  upload_folder,
  write,
)

_WRITING = '.writing-'  # prefix of copies in progress


def absolute(path: str) -> str:
  """`os.path.abspath` of a local path; a URL or a hub name without its trailing slash."""
  return path.rstrip('/') if is_elsewhere(path) else os.path.abspath(path)


def is_elsewhere(path: str) -> bool:
  """Whether a path must be `fetched` to be read: a URL or a hub name."""
  return is_remote(path) or hub_names.is_name(path)


def exists(path: str) -> bool:
  """Whether a file exists: here, as an object, or in a repository of the hub."""
  return hub_names.exists(path) if hub_names.is_name(path) else gcs.exists(path)


def cache(*parts: str) -> str:
  """A path in the cache of this machine."""
  root = os.environ.get('CROSSIN_CACHE') or os.path.join(
    os.path.expanduser('~'), '.cache', 'crossin_jax'
  )
  return os.path.join(os.path.abspath(root), *parts)


def cache_path(path: str) -> str:
  """The path of a remote file in the cache; a local path is returned as is.

  Raises:
    RemoteError: a URL without a bucket, or with '..' in it.
  """
  return cache('files', *_parts(path)) if is_remote(path) else path


def _parts(url: str) -> list[str]:
  bucket, name = split(url)
  parts = [bucket, *(name.split('/') if name else ())]
  if {'', '.', '..'} & set(parts):
    raise RemoteError(f'{url!r} has an empty part, or . or .. as a part; remove it')
  return parts


def prepare(*paths) -> bool:
  """Whether any path is remote; if so, prepares Orbax and JAX for it.

  etils, which they use to open files, would otherwise import TensorFlow where it is installed.

  Raises:
    ValueError: gcsfs is not installed.
  """
  if not any(map(is_remote, paths)):
    return False
  filesystem()
  return True


# Commands that take gs:// paths: in all arguments (None), or only in these and in gin values.
_TAKE = {
  'train': None, 'evaluate': None, 'generate': None, 'import-hf': None, 'export-hf': None,
  'inspect': None, 'compare': None, 'serve': None,
  'score': None, 'plan': None, 'bench': None, 'prepare': ('--output_dir', '--reference'),
  'sweep': ('--remote_dir',), 'contamination': ('--data_dir',),
  'translate': ('--checkpoint',), 'pairs': ('--checkpoint', '--reference'),
}  # fmt: skip


def check_flags(command: str, argv: list[str]) -> None:
  """Refuses gs:// paths in arguments that a command takes for local paths.

  Args:
    command: of `crossin COMMAND`.
    argv: its arguments.

  Raises:
    ValueError: names the argument and the remedy.
  """
  flag = ''
  for argument in argv:
    name, equals, value = (
      argument.partition('=') if argument.startswith('--') else (flag, '', argument)
    )
    flag = name if argument.startswith('--') and not equals else ''
    if name in ('--gin_bindings', '--gin_setting'):  # NAME = VALUE
      name, _, value = value.partition('=')
      name = f'--gin.{name.strip()}'
    value = value.partition('=')[2] if name == '--benchmark' else value
    if not is_remote(value.strip().strip('\'"()')):
      continue
    allowed = _TAKE.get(command, ())
    if allowed is not None and name not in allowed and not (allowed and name.startswith('--gin.')):
      raise ValueError(
        f'{name.removeprefix("--gin.") or command}: {value} is remote, but `crossin {command}` '
        'needs a local path there; copy it with `gcloud storage cp --recursive` and give the copy'
      )
    filesystem()
  prepare(os.environ.get('JAX_COMPILATION_CACHE_DIR'))


# ---- copies on this machine ----


def fetched(path: str, names: Iterable[str] | None = None, *, optional: bool = False) -> str:
  """The up-to-date local copy of a remote file or folder; a local path is returned as is.

  Several processes may call it at once: one copies. Copies are compared with size and CRC32C of the
  store. In a folder, files that no longer exist remotely are removed from the cache.

  Args:
    path: a file or a folder.
    names: only these files of a folder.
    optional: ignore `names` that do not exist.

  Raises:
    NotThere: no such file or folder. RemoteError: no bucket, permission, network or room.
      HubError: the same of a hub name.
  """
  if hub_names.is_name(path):
    return hub_names.fetched(path, names, optional=optional)
  if not is_remote(path):
    return path
  filesystem()
  root, path = cache_path(path), path.rstrip('/')
  with _alone(path):
    if names is None:
      single = stat(path)
      found = {'': single} if single else listing(path)
      if not found:
        raise explained(FileNotFoundError(path), path)
    else:
      names = list(dict.fromkeys(names))
      found = dict(zip(names, map_in_threads(lambda name: stat(f'{path}/{name}'), names)))
      if missing := [name for name in names if found[name] is None]:
        if not optional:
          raise explained(FileNotFoundError(path), f'{path}/{missing[0]}')
        for name in missing:  # a stale copy
          with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(root, name))
    if names is None and '' not in found:
      _remove_gone(found, path, root)
    download({name: entry for name, entry in found.items() if entry}, path, root)
  return root


def _remove_gone(there: dict[str, Entry], url: str, root: str) -> None:
  """Removes copies of objects that no longer exist."""
  here = [
    os.path.relpath(os.path.join(f, n), root) for f, _, inside in os.walk(root) for n in inside
  ]
  extra = [
    name for name in here if name not in there and not os.path.basename(name).startswith(_WRITING)
  ]
  # Another process may have copied new objects since the listing.
  for name, entry in zip(extra, map_in_threads(lambda name: stat(f'{url}/{name}'), extra)):
    if entry is None:
      with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(root, name))


def download(entries: dict[str, Entry], url: str, root: str) -> None:
  """Downloads the objects whose copy below `root` is missing or stale.

  Args:
    entries: name relative to `url` -> metadata; '' = the object at `url` itself.
    url: the folder.
    root: of the copies.
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
  map_in_threads(
    lambda name: retry(
      functools.partial(_download, f'{url}/{name}'.rstrip('/'), _below(root, name, url))
    ),
    todo,
  )


def is_current(path: str, entry: Entry) -> bool:
  """Whether a file is a copy of the current object."""
  try:
    found = os.stat(path)
  except (FileNotFoundError, NotADirectoryError):
    return False
  if found.st_size != entry.size:
    return False
  # Some file systems store modification times in full seconds only.
  return found.st_mtime_ns == entry.generation * 1000 or crc32c(path) == entry.crc32c


def _below(root: str, name: str, url: str) -> str:
  if not name:
    return root
  _parts(f'{url}/{name}')  # refuses names that leave the folder
  return os.path.join(root, name)


def _download(url: str, path: str) -> None:
  entry = stat(url)  # at every attempt, because it may have been replaced
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
      f'{url}: an object and a folder have the same name, which no local disk allows; rename one'
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
  """One process of this machine at a time."""
  path = cache('locks', hashlib.sha256(url.encode()).hexdigest()[:32])
  with locks.locked(path, url, wait=True):
    yield


__all__ = [
  'Entry', 'Limit', 'NotThere', 'Outrun', 'RemoteError', 'absolute', 'cache', 'cache_path',
  'call', 'check_flags', 'crc32c', 'download', 'exists', 'explained', 'explaining', 'fetched',
  'filesystem', 'is_current', 'is_remote', 'listing', 'map_in_threads', 'prepare', 'read',
  'remove', 'remove_folder', 'split', 'stat', 'upload', 'upload_folder', 'write',
]  # fmt: skip
