"""A cache of huggingface_hub in the library's own layout, made from folders."""

import hashlib
import os
import pathlib

import gin

from crossin_jax.storage import hub_names


class Cache:
  """models--ORG--NAME/{blobs,refs,snapshots} below a folder.

  Attributes:
    root: what HF_HUB_CACHE is.
  """

  def __init__(self, root: pathlib.Path):
    self.root = root

  def add(self, repo: str, folder, kind: str = 'model', revision: str = 'main', names=None) -> str:
    """Stores the files of a folder as a commit that `revision` names; returns the commit.

    Args:
      repo: 'ORG/NAME'.
      folder: with the files.
      kind: 'model' or 'dataset'.
      revision: a branch or tag.
      names: of the files; None = all.
    """
    folder, place = pathlib.Path(folder), self.root / f'{kind}s--{repo.replace("/", "--")}'
    files = {
      str(path.relative_to(folder)): path.read_bytes()
      for path in sorted(folder.rglob('*'))
      if path.is_file()
    }
    digest = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
    for name, content in files.items():
      if names is not None and name not in names:
        continue
      blob = place / 'blobs' / hashlib.sha256(content).hexdigest()
      link = place / 'snapshots' / digest / name
      for path in (blob, link):
        path.parent.mkdir(parents=True, exist_ok=True)
      blob.write_bytes(content)
      link.unlink(missing_ok=True)
      link.symlink_to(os.path.relpath(blob, link.parent))
    (place / 'refs').mkdir(parents=True, exist_ok=True)
    (place / 'refs' / revision).write_text(digest)
    return digest

  @staticmethod
  def forget() -> None:
    """As in a new process."""
    gin.clear_config()
    hub_names._KEPT.clear()
    hub_names._GIVEN.clear()
    hub_names._SNAPSHOTS.clear()
