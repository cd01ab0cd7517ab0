"""Names on the Hugging Face hub: `hf:ORG/NAME[@REVISION]`, `hf:datasets/ORG/NAME[@REVISION]/FILE`.

A name is pinned once, where a user gives it: `pinned` puts the commit in place of the revision, so
that it means the same files on every host and on every resume. `remote.exists` and
`remote.fetched` then take it like any other path, and only the files that are read are downloaded,
into the cache of `huggingface_hub`, which also finds the token and knows the offline mode.
"""

import dataclasses
import os
import re
import sys

from crossin_jax.errors import CrossinError
from crossin_jax.storage.gcs import map_in_threads

_PREFIX = 'hf:'
_REVISION = r'refs/pr/\d+|[^/@\s]+'
_NAME = re.compile(
  rf'hf:(?P<datasets>datasets/)?(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>{_REVISION}))?'
  r'(?:/(?P<file>.*))?'
)
_PLAIN = re.compile(rf'\w[\w.-]*/\w[\w.-]*(?:@(?:{_REVISION}))?')
_COMMIT = r'[0-9a-f]{40}'
_SMALL = ('config.json', 'adapter_config.json', '.gitattributes', 'README.md')
_KEPT: dict[tuple[str, str], str] = {}  # kind and repository -> commit, of a run that goes on
_SNAPSHOTS: dict[tuple[str, str, str | None], '_Snapshot'] = {}  # asked for once
_GIVEN: dict[str, str] = {}  # name as a user gave it -> pinned


class HubError(CrossinError, ValueError):
  """A name that cannot be found or read; the message says what was looked for and the remedy."""


@dataclasses.dataclass(frozen=True)
class _Snapshot:
  """A repository at a commit.

  Attributes:
    repo: 'ORG/NAME'.
    kind: 'model' or 'dataset'.
    commit: 40 hexadecimal digits.
    files: names; without the network those in the cache.
  """

  repo: str
  kind: str
  commit: str
  files: frozenset[str]

  @property
  def name(self) -> str:
    folder = 'datasets/' if self.kind == 'dataset' else ''
    return f'{_PREFIX}{folder}{self.repo}@{self.commit}'

  def download(self, file: str) -> str:
    """The local path of a file.

    Raises:
      HubError: it is not there, or cannot be downloaded.
    """
    if file not in self.files:
      others = ', '.join(sorted(self.files)[:8]) or 'nothing'
      where = 'the cached copy of ' if _is_offline() else ''
      raise HubError(
        f'{where}{self.name} has no {file}, it has {others}. If the hub has the file, fetch it '
        f'where there is a network: `{_command(self.repo, self.kind)} --revision {self.commit}`'
      )
    return _downloaded(self.repo, self.kind, self.commit, file)


def is_name(path: str) -> bool:
  """Whether a path is written as a name: hf:..."""
  return path.startswith(_PREFIX)


def pinned(path: str) -> str:
  """The name with its commit, of hf:... and of a plain ORG/NAME; another path is returned as is.

      pinned('Qwen/Qwen3-0.6B') == 'hf:Qwen/Qwen3-0.6B@c1899de289a04d12100db370d81485cdf75e47ca'

  Args:
    path: from a user; what exists here is never a plain name.

  Raises:
    HubError: no such repository or revision, or no network and no copy in the cache.
  """
  if path in _GIVEN:
    return _GIVEN[path]
  if is_name(path):
    name = path.rstrip('/')
  elif _PLAIN.fullmatch(path) and not os.path.exists(path):
    name = _PREFIX + path
  else:
    return path
  match = parsed(name)
  snapshot = _opened(match['repo'], _kind(match), match['revision'], path)
  _GIVEN[path] = snapshot.name + (f'/{match["file"]}' if match['file'] else '')
  return _GIVEN[path]


def exists(name: str) -> bool:
  """Whether a repository has a file."""
  match = parsed(name)
  return match['file'] in _of(match).files


def listing(name: str) -> list[str]:
  """The files and folders in a folder of a repository, sorted."""
  match = parsed(name)
  below = f'{match["file"].rstrip("/")}/' if match['file'] else ''
  inside = (file[len(below) :] for file in _of(match).files if file.startswith(below))
  return sorted({file.split('/')[0] for file in inside})


def fetched(name: str, names=None, *, optional: bool = False) -> str:
  """The local copy of a file, or of the folder with the files `names`; see `remote.fetched`."""
  match = parsed(name)
  snapshot, folder = _of(match), (match['file'] or '').rstrip('/')
  if names is None and folder in snapshot.files:
    return snapshot.download(folder)
  below = f'{folder}/' if folder else ''
  if names is None:
    wanted = [file for file in snapshot.files if file.startswith(below)]
  else:
    wanted = [below + file for file in names]
    if optional:
      wanted = [file for file in wanted if file in snapshot.files]
  if names is None and not wanted:
    snapshot.download(folder)  # raises
  map_in_threads(snapshot.download, wanted)
  return os.path.join(_folder(snapshot), folder).rstrip('/')


def title(name: str) -> str:
  """The name without its commit, for people; another path is returned as is."""
  return re.sub(f'@{_COMMIT}$', '', name) if is_name(name) else name


def read_so_far() -> list[str]:
  """The names that this process has pinned, sorted."""
  return sorted(set(_GIVEN.values()))


def recorded(text: str) -> str:
  """A gin text in which the names that were pinned have their commit."""
  quoted = re.compile(r"""(['"])([^'"\n]+)\1""")
  return quoted.sub(lambda m: f'{m[1]}{_GIVEN.get(m[2], m[2])}{m[1]}', text)


def keep(text: str) -> None:
  """Makes names without a revision mean the commits that a gin text of `recorded` has."""
  for found in re.finditer(rf'hf:(datasets/)?([\w.-]+(?:/[\w.-]+)?)@({_COMMIT})', text):
    _KEPT.setdefault((_kind({'datasets': found[1]}), found[2]), found[3])


# ---- the library ----


def _library():
  try:
    import huggingface_hub
    import huggingface_hub.constants
    import huggingface_hub.errors
  except ImportError:
    raise HubError(
      "a name on the Hugging Face hub needs huggingface_hub: pip install 'crossin-jax[hub]', or "
      'give a local directory'
    ) from None
  return huggingface_hub


def parsed(name: str) -> re.Match:
  """'repo', 'revision' and 'file' of a name; 'datasets' is None for a model.

  Raises:
    HubError: it is not written as a name.
  """
  if not (match := _NAME.fullmatch(name)):
    raise HubError(
      f'{name!r} is not a name on the Hugging Face hub; write hf:ORG/NAME, hf:ORG/NAME@REVISION, '
      'or hf:datasets/ORG/NAME/FILE for rows'
    )
  return match


def _kind(match) -> str:
  return 'dataset' if match['datasets'] else 'model'


def _of(match: re.Match) -> _Snapshot:
  return _opened(match['repo'], _kind(match), match['revision'], match[0])


def _opened(repo: str, kind: str, revision: str | None, given: str) -> _Snapshot:
  revision = revision or _KEPT.get((kind, repo))
  if found := _SNAPSHOTS.get((repo, kind, revision)):
    return found
  try:
    found = _snapshot(repo, kind, revision)
  except HubError as error:
    if is_name(given):
      raise
    raise HubError(f'{given}: no such folder here; on the hub: {error}') from None
  _SNAPSHOTS[repo, kind, revision] = _SNAPSHOTS[repo, kind, found.commit] = found
  return found


def _snapshot(repo: str, kind: str, revision: str | None) -> _Snapshot:
  hub, where = _library(), f'{_PREFIX}{"datasets/" if kind == "dataset" else ""}{repo}'
  errors = hub.errors
  try:
    info = hub.HfApi().repo_info(repo, revision=revision, repo_type=kind, timeout=20)
  except errors.HFValidationError:
    raise HubError(f'{repo!r} cannot be a name on the hub; correct the path or the name') from None
  except errors.GatedRepoError:
    raise HubError(
      f'{where} is gated: accept its terms on huggingface.co/{repo}, then use `hf auth login` or '
      'HF_TOKEN'
    ) from None
  except errors.RepositoryNotFoundError:
    raise HubError(
      f'huggingface.co has no {kind} {repo}, or this token may not read it (HF_TOKEN, '
      '`hf auth login`). Correct the path or the name'
    ) from None
  except errors.RevisionNotFoundError:
    raise HubError(
      f'{where} has no revision {revision!r}; give a branch, a tag or a commit of '
      f'huggingface.co/{repo}/tree/main'
    ) from None
  except _unreachable() as error:
    return _cached(repo, kind, revision, error)
  files = frozenset(sibling.rfilename for sibling in info.siblings)
  # This records in the cache what the revision means, for a time without the network.
  if small := next((file for file in _SMALL if file in files), None):
    _downloaded(repo, kind, revision, small)
  return _Snapshot(repo, kind, info.sha, files)


def _cached(repo: str, kind: str, revision: str | None, error: Exception) -> _Snapshot:
  """What the cache has of a repository that cannot be asked for."""
  hub = _library()
  try:
    folder = hub.snapshot_download(repo, repo_type=kind, revision=revision, local_files_only=True)
  except hub.errors.LocalEntryNotFoundError as missing:
    folder = getattr(missing, 'snapshot_path', None)  # a copy of some of the files
  if folder is None:
    wanted = f'{repo}@{revision}' if revision else repo
    flag = f' --revision {revision}' if revision else ''
    reason = 'HF_HUB_OFFLINE is set' if _is_offline() else f'no answer ({_first_line(error)})'
    raise HubError(
      f'{kind} {wanted} is not in the cache {hub.constants.HF_HUB_CACHE}, and huggingface.co '
      f'cannot be asked: {reason}.\nFetch it where there is a network, `{_command(repo, kind)}'
      f'{flag}`, or give the path of a local copy'
    )
  commit = os.path.basename(folder)
  if not _is_offline():
    print(
      f'{repo}: huggingface.co does not answer, commit {commit} is in the cache', file=sys.stderr
    )
  paths = (os.path.join(f, name) for f, _, names in os.walk(folder) for name in names)
  files = frozenset(os.path.relpath(path, folder).replace(os.sep, '/') for path in paths)
  return _Snapshot(repo, kind, commit, files)


def _downloaded(repo: str, kind: str, revision: str | None, file: str) -> str:
  hub = _library()
  try:
    return hub.hf_hub_download(repo, file, repo_type=kind, revision=revision)
  except _unreachable() as error:
    raise HubError(
      f'{file} of {kind} {repo} cannot be downloaded: {_first_line(error)}. Start the same command '
      f'again, or fetch it with `{_command(repo, kind)}`'
    ) from None


def _folder(snapshot: _Snapshot) -> str:
  """The folder of the cache in which the files of a snapshot are."""
  hub = _library()
  try:
    return hub.snapshot_download(
      snapshot.repo, repo_type=snapshot.kind, revision=snapshot.commit, local_files_only=True
    )
  except hub.errors.LocalEntryNotFoundError as partial:
    if folder := getattr(partial, 'snapshot_path', None):
      return folder
    raise HubError(
      f'none of the files of {snapshot.name} that are read here exist; is it a model?'
    ) from None


def _unreachable() -> tuple[type[Exception], ...]:
  """What the library raises without an answer."""
  # Its HTTP library depends on its version, and that one's errors are not all OSErrors.
  return (OSError, *_library().errors.HfHubHTTPError.__bases__)


def _is_offline() -> bool:
  return _library().constants.HF_HUB_OFFLINE


def _command(repo: str, kind: str) -> str:
  return f'hf download {"--repo-type dataset " if kind == "dataset" else ""}{repo}'


def _first_line(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
