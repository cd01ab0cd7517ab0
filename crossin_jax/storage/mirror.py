"""A remote folder of small files that a command writes: a local copy whose changes are pushed."""

from collections.abc import Callable, Sequence
import contextlib
import fnmatch
import hashlib
import os
import shutil
import sys
import tempfile
import threading

from crossin_jax.storage import lease, locks, remote
from crossin_jax.storage.lease import InUse


class Folder:
  """A local folder with the interface of `Mirror`.

  Attributes:
    path: the folder.
    url: its name in messages.
  """

  def __init__(self, path: str):
    self.path = self.url = path

  def push(self) -> None:
    """Returns when all changes are stored."""

  def check(self) -> None:
    """Raises InUse if another process took the folder over."""


class Mirror(Folder):
  """The local copy of a remote folder.

  On entry the remote files are copied here and local leftovers of a killed process are deleted.
  Changes are then pushed by a thread every PERIOD seconds, by `push`, and on exit. A file that is
  removed locally is removed remotely. Temporary files (`.name`, `name.writing`) and `lock` are not
  pushed.

  Markers are pushed last, in their order, so that a reader who finds one finds everything that it
  stands for; removed markers go first. A failed push of the thread is reported once and retried; on
  exit it is raised. If the block ends with an error, one attempt of SHORT seconds is made.

  Attributes:
    path: the local folder.
    url: the remote folder.
  """

  def __init__(
    self,
    url: str,
    *,
    folders: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    pull: Callable[[set[str]], set[str]] | None = None,
    markers: Sequence[str] = (),
    replace: bool = False,
    period: float | None = None,
  ):
    """Args:
    url: the remote folder.
    folders: only these sub-folders; None = all.
    names: only these files; None = all.
    pull: chooses which of the remote names are copied on entry; None = all. The others stay as
      they are.
    markers: patterns of names, pushed in this order after everything else.
    replace: the existing markers stand for results that are about to be replaced; they are removed
      locally now, and remotely before the first change is pushed.
    period: seconds between pushes; None = PERIOD.
    """
    # No local folder is inside another one.
    known = hashlib.sha256('\n'.join([url.rstrip('/'), *(names or ())]).encode()).hexdigest()[:16]
    super().__init__(remote.cache('mirrors', f'{remote.split(url)[0]}-{known}'))
    self.url, self._folders, self._only, self._pull = url.rstrip('/'), folders, names, pull
    self._markers, self._replace, self._period = tuple(markers), replace, period or lease.PERIOD
    self._pushed: dict[str, tuple] = {}
    self._outlived: list[str] = []  # markers there of what is about to be replaced
    self._thread, self._limit = (
      threading.Thread(target=self._keep_pushing, daemon=True, name='mirror'),
      remote.Limit(),
    )
    self._pushing, self._ending, self._problem = threading.RLock(), threading.Event(), None
    self._open = contextlib.ExitStack()

  def __enter__(self):
    remote.filesystem()
    os.makedirs(self.path, exist_ok=True)
    held = self._open.enter_context(open(f'{self.path}.lock', 'ab'))
    try:
      try:
        locks.take(held, self.url)
      except locks.InUse:
        raise InUse(
          f'{self.url} is being written by another process of this machine; wait for it or stop it'
        ) from None
      self._pull_files()
    except BaseException:
      self._open.close()
      raise
    self._thread.start()
    return self

  def __exit__(self, kind, error, traceback):
    self._ending.set()
    if kind is not None:
      self._limit.set(lease.SHORT)  # also for a push in progress in the thread
    try:
      self._thread.join(None if kind is None else lease.SHORT + 1)
      with self._limit.applied():
        self.push()
    except remote.RemoteError as problem:
      if kind is None:
        raise
      if str(problem) != str(error):  # the error being raised says more
        print(f'warning: {problem}', file=sys.stderr)
    finally:
      self._open.close()

  def push(self) -> None:
    """Pushes all changes.

    Raises:
      RemoteError: it failed after retries.
    """
    self.check()
    with self._pushing:
      # Markers are listed before the other files: a marker never stands for a file not yet seen.
      markers = {name: signature for name, signature in self._here().items() if self._rank(name)}
      here = {
        name: signature for name, signature in self._here().items() if not self._rank(name)
      } | markers
      gone = sorted(self._pushed.keys() - here.keys())
      changed = sorted(
        (name for name in here if self._pushed.get(name) != here[name]),
        key=lambda n: (self._rank(n), n),
      )
      for name in [name for name in gone if self._rank(name)]:
        self._remove(name)
      while changed and self._outlived:
        remote.remove(f'{self.url}/{self._outlived[-1]}')
        self._outlived.pop()
      ordinary = [name for name in changed if not self._rank(name)]
      remote.map_in_threads(lambda name: self._upload(name, here[name]), ordinary)
      for name in changed[len(ordinary) :]:
        self._upload(name, here[name])
      for name in [name for name in gone if not self._rank(name)]:
        self._remove(name)

  def _pull_files(self) -> None:
    there = (
      remote.listing(self.url) if self._folders is None and self._only is None else self._some()
    )
    there = {name: entry for name, entry in there.items() if self._is_ours(name)}
    if self._replace:
      self._outlived = [name for name in there if self._rank(name)]
      there = {name: entry for name, entry in there.items() if not self._rank(name)}
    wanted = set(there) if self._pull is None else self._pull(set(there))
    for name in self._here():
      entry = there.get(name)
      if entry is None or (
        name not in wanted and not remote.is_current(os.path.join(self.path, name), entry)
      ):
        os.unlink(os.path.join(self.path, name))
    remote.download({name: there[name] for name in wanted}, self.url, self.path)
    self._pushed = self._here()

  def _some(self) -> dict[str, remote.Entry]:
    if self._only is not None:
      found = {name: remote.stat(f'{self.url}/{name}') for name in self._only}
      return {name: entry for name, entry in found.items() if entry}
    found = {
      name: e for name, e in remote.listing(self.url, deep=False).items() if not name.endswith('/')
    }
    for folder in self._folders:
      found |= {
        f'{folder}/{name}': entry for name, entry in remote.listing(f'{self.url}/{folder}').items()
      }
    return found

  def _is_ours(self, name: str) -> bool:
    first, _, rest = name.partition('/')
    last = name.rpartition('/')[2]
    if last.startswith('.') or last.endswith('.writing') or last == 'lock':
      return False
    if self._only is not None:
      return name in self._only
    return self._folders is None or not rest or first in self._folders

  def _rank(self, name: str) -> int:
    """0, or the position of a marker from 1."""
    return next(
      (i for i, pattern in enumerate(self._markers, 1) if fnmatch.fnmatchcase(name, pattern)), 0
    )

  def _here(self) -> dict[str, tuple]:
    """Name -> (size, modification time, inode)."""
    found = {}
    for folder, _, names in os.walk(self.path):
      for name in names:
        path = os.path.join(folder, name)
        relative = os.path.relpath(path, self.path)
        if self._is_ours(relative):
          with contextlib.suppress(FileNotFoundError):
            stat = os.stat(path)
            found[relative] = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
    return found

  def _upload(self, name: str, signature: tuple) -> None:
    os.makedirs(remote.cache('pushing'), exist_ok=True)
    handle, copy = tempfile.mkstemp(dir=remote.cache('pushing'))
    os.close(handle)
    try:
      shutil.copyfile(os.path.join(self.path, name), copy)  # the file may grow during the upload
      remote.upload(copy, f'{self.url}/{name}')
      self._pushed[name] = signature
    except FileNotFoundError as error:
      if isinstance(error, remote.RemoteError):
        raise  # no such bucket; a file that was removed locally is handled by the next push
    finally:
      os.unlink(copy)

  def _remove(self, name: str) -> None:
    remote.remove(f'{self.url}/{name}')
    del self._pushed[name]

  def _keep_pushing(self) -> None:
    while not self._ending.wait(self._period):
      try:
        with self._limit.applied(), self._pushing:
          if self._ending.is_set():
            return
          self.push()
        self._problem = None
      except Exception as error:  # the thread must continue
        if self._problem is None and not self._ending.is_set():  # otherwise __exit__ reports it
          print(f'warning: {error}; retrying every {self._period:.0f} s', file=sys.stderr)
        self._problem = error


def written(path: str, markers: Sequence[str] = ()) -> contextlib.AbstractContextManager[Folder]:
  """A folder to write results in; for a remote one a Mirror that copies nothing on entry.

  Existing results keep their markers until the first new file is pushed.
  """
  if not remote.is_remote(path):
    return contextlib.nullcontext(Folder(path))
  return Mirror(path, pull=lambda names: set(), markers=markers, replace=True)
