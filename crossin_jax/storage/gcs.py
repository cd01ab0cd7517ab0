"""Objects of Google Cloud Storage through gcsfs: listing, reading, writing, readable errors."""

import asyncio
import base64
from collections.abc import Callable, Coroutine, Iterable
import concurrent.futures
import contextlib
import contextvars
import dataclasses
import functools
import logging
import os
import sys
import time
import urllib.parse

from crossin_jax.errors import CrossinError

SCHEME = 'gs://'
ATTEMPTS = 4  # per file, on top of the retries of gcsfs
AT_ONCE = 8  # files copied at a time
_FIELDS = 'name,size,crc32c,generation,updated'


class RemoteError(CrossinError, OSError):
  """Remote storage that cannot be used as asked; the message names the URL and what to do."""


class PermissionDenied(RemoteError, PermissionError):
  """The credentials are missing or insufficient; a retry does not help."""


class NotThere(RemoteError, FileNotFoundError):
  """No such object or folder."""


class Outrun(RemoteError):
  """An object that was to be replaced has another generation by now."""


@dataclasses.dataclass(frozen=True)
class Entry:
  """Metadata of an object.

  Attributes:
    size: bytes.
    crc32c: of the content, base64.
    generation: version of the content; every write gives the name a new one.
  """

  size: int
  crc32c: str
  generation: int

  @classmethod
  def of(cls, resource: dict) -> 'Entry':
    """From the JSON of the store."""
    return cls(int(resource['size']), resource['crc32c'], int(resource['generation']))

  @property
  def digest(self) -> str:
    """The digest of content that is not read: 'crc32c:...:size'."""
    return f'crc32c:{self.crc32c}:{self.size}'


_limits: contextvars.ContextVar[tuple['Limit', ...]] = contextvars.ContextVar('limits', default=())


class Limit:
  """A deadline for requests; another thread may set it while they run."""

  def __init__(self, seconds: float | None = None):
    """Args:
    seconds: from now; None = as long as it takes.
    """
    self._end = None
    if seconds is not None:
      self.set(seconds)

  def set(self, seconds: float) -> None:
    """Sets the deadline to `seconds` from now."""
    self._end = time.monotonic() + seconds

  def left(self) -> float | None:
    """Seconds left, at least 0; None = no deadline."""
    return None if self._end is None else max(0.0, self._end - time.monotonic())

  @contextlib.contextmanager
  def applied(self):
    """Applies the deadline to requests in the block, also to those of `map_in_threads`; once it is
    set, nothing is retried.
    """
    before = _limits.set((*_limits.get(), self))
    try:
      yield
    finally:
      _limits.reset(before)


def _left() -> float | None:
  """Seconds that requests may still take; None = no deadline."""
  return min((left for limit in _limits.get() if (left := limit.left()) is not None), default=None)


def is_remote(path) -> bool:
  """Whether this is a gs:// path."""
  return isinstance(path, str) and path.startswith(SCHEME)


def split(url: str) -> tuple[str, str]:
  """Bucket and name of the object."""
  bucket, _, name = url.removeprefix(SCHEME).rstrip('/').partition('/')
  if not bucket:
    raise RemoteError(f'{url!r} has no bucket; write gs://BUCKET/FOLDER')
  return bucket, name


@functools.cache
def filesystem():
  """gcsfs without a listings cache, because other processes write too."""
  os.environ.setdefault('EPATH_USE_TF', '0')
  # The client for zonal buckets opens gRPC channels for every bucket; set it to true for those.
  os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
  if (gpath := sys.modules.get('etils.epath.gpath')) and hasattr(gpath, '_is_tf_installed'):
    gpath._is_tf_installed.cache_clear()  # it may be cached already
  try:
    import aiohttp
    import fsspec.config
    import gcsfs  # noqa: F401
  except ImportError:
    raise ValueError("gs:// paths need gcsfs: pip install 'crossin-jax[gcs]'") from None
  # Applies to the file system that etils creates too. Without a timeout a hanging connection blocks
  # for ever.
  timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=120)
  fsspec.config.conf.setdefault('gcs', {}).update(
    use_listings_cache=False, requests_timeout=timeout
  )
  logging.getLogger('gcsfs').setLevel(
    logging.CRITICAL
  )  # tracebacks of errors that are raised anyway
  return fsspec.filesystem('gcs')


def explained(error: Exception, url: str) -> Exception:
  """The `RemoteError` for an error of the underlying libraries; other errors are returned as is."""
  if isinstance(error, RemoteError):
    return error
  kind, text = type(error).__name__, str(error).strip()
  bucket = split(url)[0]
  code = getattr(error, 'code', None)
  if isinstance(error, FileNotFoundError):
    return NotThere(
      f'{url} does not exist, or there is no bucket {bucket}; list it with `gcloud storage ls '
      f'gs://{bucket}`'
    )
  if isinstance(error, FileExistsError):
    return Outrun(f'{url} was written by another process in the meantime')
  if (
    text.startswith('Forbidden')
    or str(code) in ('401', '403')
    or kind in ('Forbidden', 'Unauthorized')
  ):
    return PermissionDenied(
      f'no permission for {url} ({text.splitlines()[-1] if text else kind}). Log in (`gcloud auth '
      'application-default login`), '
      'or give the account of this machine a role on the bucket: `gcloud storage buckets '
      f'add-iam-policy-binding gs://{bucket} '
      '--member=serviceAccount:ACCOUNT --role=roles/storage.objectAdmin`, and the same with '
      'roles/storage.legacyBucketReader'
    )
  module = type(error).__module__
  if 'Credentials' in kind or module.startswith('google.auth'):
    return PermissionDenied(
      f'no credentials for {url} ({text}); run `gcloud auth application-default login`'
    )
  if module.startswith(('gcsfs', 'aiohttp', 'requests', 'google', 'fsspec')) or isinstance(
    error, (TimeoutError, ConnectionError)
  ):
    return RemoteError(
      f'{url} cannot be reached: {kind} {text}. Check the network and start the same command again'
    )
  return error


@contextlib.contextmanager
def explaining(url: str):
  """Turns errors of the underlying libraries into `RemoteError`, except for local paths."""
  try:
    yield
  except Exception as error:  # each library has its own classes
    if not is_remote(url) or (found := explained(error, url)) is error:
      raise
    raise found from error


def _result(coroutine: Coroutine):
  """The result of a gcsfs coroutine; cancelled with TimeoutError at the end of the `Limit`."""
  future = asyncio.run_coroutine_threadsafe(coroutine, filesystem().loop)
  try:
    while not future.done():
      if (left := _left()) == 0:
        raise TimeoutError('deadline reached')
      # The deadline may be set in the meantime.
      concurrent.futures.wait([future], min(0.5, 0.5 if left is None else left))
    return future.result()
  finally:
    future.cancel()


def call(url: str, method: str, path: str, *args, **kwargs):
  with explaining(url):
    return _result(filesystem()._call(method, path, *args, **kwargs))


def stat(url: str) -> Entry | None:
  """Metadata of an object; None if it does not exist."""
  bucket, name = split(url)
  try:
    return (
      Entry.of(call(url, 'GET', 'b/{}/o/{}', bucket, name, json_out=True, fields=_FIELDS))
      if name
      else None
    )
  except NotThere:
    return None


def exists(path: str) -> bool:
  """Whether a file or an object exists."""
  return stat(path) is not None if is_remote(path) else os.path.isfile(path)


def listing(url: str, *, deep: bool = True) -> dict[str, Entry]:
  """Name relative to the folder -> object, of all objects below a folder; {} if there is none.

  Args:
    url: the folder.
    deep: False = only the folder's own objects, and its sub-folders as 'NAME/' with an empty Entry.

  Raises:
    RemoteError: no such bucket, or no permission.
  """
  bucket, name = split(url)
  prefix = f'{name}/' if name else ''
  found, token = {}, None
  while True:
    page = call(
      url, 'GET', 'b/{}/o', bucket, prefix=prefix, delimiter=None if deep else '/', pageToken=token,
      fields=f'nextPageToken,prefixes,items({_FIELDS})', json_out=True,
    )  # fmt: skip
    for item in page.get('items', ()):
      if not item['name'].endswith('/'):  # a placeholder that some tools write for an empty folder
        found[item['name'].removeprefix(prefix)] = Entry.of(item)
    for folder in page.get('prefixes', ()):
      found[folder.removeprefix(prefix)] = Entry(0, '', 0)
    if not (token := page.get('nextPageToken')):
      return found


def read(url: str) -> bytes:
  """The content of an object; NotThere if it does not exist."""
  with explaining(url):
    return _result(filesystem()._cat_file(url))


def write(url: str, data: bytes, generation: int | None = None) -> Entry:
  """Writes an object atomically.

  Args:
    url: of the object.
    data: its content.
    generation: write only if the object has this generation, 0 = does not exist; None = always.

  Raises:
    Outrun: the object has another generation.
  """
  bucket, name = split(url)
  path = f'{filesystem()._location}/upload/storage/v1/b/{urllib.parse.quote(bucket, safe="")}/o'
  condition = {} if generation is None else {'ifGenerationMatch': str(generation)}
  headers = {'Content-Type': 'application/octet-stream'}
  resource = call(
    url,
    'POST',
    path,
    uploadType='media',
    name=name,
    headers=headers,
    data=data,
    json_out=True,
    **condition,
  )
  return Entry.of(resource)


def remove(url: str, generation: int | None = None) -> None:
  """Removes an object if it exists (and has this generation)."""
  bucket, name = split(url)
  condition = {} if generation is None else {'ifGenerationMatch': str(generation)}
  with contextlib.suppress(NotThere, Outrun):
    call(url, 'DELETE', 'b/{}/o/{}', bucket, name, **condition)


def remove_folder(url: str, last: Iterable[str] = ()) -> None:
  """Removes all objects below a folder; those named in `last` at the end."""
  names = list(listing(url))
  rest = [name for name in last if name in names]
  map_in_threads(lambda name: remove(f'{url}/{name}'), [name for name in names if name not in rest])
  for name in rest:
    remove(f'{url}/{name}')


def upload(path: str, url: str) -> Entry:
  """Uploads a file and compares size and CRC32C with those of the stored object.

  Raises:
    RemoteError: all attempts failed.
  """

  def attempt() -> Entry:
    with explaining(url):
      _result(filesystem()._put_file(path, url))
    entry = stat(url)
    if entry is None or (entry.size, entry.crc32c) != (os.path.getsize(path), crc32c(path)):
      raise RemoteError(f'{url} arrived damaged; start the same command again')
    return entry

  return retry(attempt)


def upload_folder(path: str, url: str, last: Iterable[str] = ()) -> None:
  """Uploads all files below a folder; those named in `last` at the end, in that order."""
  names = [
    os.path.relpath(os.path.join(f, n), path) for f, _, inside in os.walk(path) for n in inside
  ]
  rest = [name for name in last if name in names]
  map_in_threads(
    lambda name: upload(os.path.join(path, name), f'{url}/{name}'),
    [n for n in names if n not in rest],
  )
  for name in rest:
    upload(os.path.join(path, name), f'{url}/{name}')


def crc32c(path: str) -> str:
  """CRC32C of a file, base64 as in `Entry`."""
  import google_crc32c

  checksum = google_crc32c.Checksum()
  with open(path, 'rb') as f:
    while block := f.read(1 << 20):
      checksum.update(block)
  return base64.b64encode(checksum.digest()).decode()


def retry(attempt: Callable):
  """The result of `attempt`, retried where the failure may be temporary."""
  for number in range(ATTEMPTS):
    try:
      return attempt()
    except (NotThere, Outrun):
      raise
    except RemoteError as error:
      if number == ATTEMPTS - 1 or isinstance(error, PermissionDenied) or _left() is not None:
        raise
      time.sleep(0.2 * 4**number)
  raise AssertionError


def map_in_threads(function: Callable, items: Iterable) -> list:
  """[function(item) for each item], several at a time."""
  with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
    # Each call gets its own context, because a context cannot be entered twice at a time.
    futures = [pool.submit(contextvars.copy_context().run, function, item) for item in items]
    try:
      return [future.result() for future in futures]
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise
