"""Digests of checkpoints, checked before anything is restored.

On disk: SHA-256 of every file. On gs://: size and CRC32C from the store's metadata, so nothing is
read back; they detect missing, truncated and replaced objects, but not errors during the upload.
"""

import hashlib
import os
import warnings

from crossin_jax.storage import files, remote


def path_of(checkpoint: str) -> str:
  """MODEL_DIR/digests/checkpoint_<step>.json."""
  return os.path.join(
    os.path.dirname(checkpoint), 'digests', f'{os.path.basename(checkpoint)}.json'
  )


def exists(path: str) -> bool:
  """Whether a `checkpoint_<step>` directory has a digest."""
  return remote.exists(path_of(path))


def damage(path: str) -> str | None:
  """How the files of a `checkpoint_<step>` directory differ from its digest, or None."""
  digest = path_of(path)
  try:
    expected = files.load_json(digest)
  except FileNotFoundError:
    warnings.warn(
      f'{path} has no digest, because the run was killed after the save; it is used unverified'
    )
    return None
  except ValueError as error:
    return f'its digest {digest} is not readable ({error})'
  found = file_digests(path, expected)
  for name in sorted(expected):
    if name not in found:
      return f'file {name} is missing'
    if found[name] != expected[name]:
      return f'file {name} has changed since it was written'
  return None


def file_digests(directory: str, like: dict[str, str] | None = None) -> dict[str, str]:
  """Relative path -> SHA-256 of every file below a directory; 'crc32c:...:bytes' for remote ones.

  Args:
    directory: a checkpoint.
    like: digests whose kind is used, for a checkpoint that was copied between disk and store. The
      store has no SHA-256: files that came from a disk are only looked up by name.
  """
  like = like or {}
  if remote.is_remote(directory):
    there = remote.listing(directory)
    return {
      n: e.digest if like.get(n, 'crc32c:').startswith('crc32c:') else like[n]
      for n, e in there.items()
    }
  digests = {}
  for folder, _, names in os.walk(directory):
    for name in names:
      path = os.path.join(folder, name)
      relative = os.path.relpath(path, directory)
      if like.get(relative, '').startswith('crc32c:'):
        digests[relative] = f'crc32c:{remote.crc32c(path)}:{os.path.getsize(path)}'
        continue
      with open(path, 'rb') as f:
        digests[relative] = hashlib.file_digest(f, 'sha256').hexdigest()
  return digests
