"""Digests of checkpoints: what was written, so that damage is noticed before anything is restored.

On disk they are SHA-256 of every file; on gs:// size and CRC32C as the store has them, so nothing
is read back. These find an object that is missing, cut off, or written again; what changed on the
way from this machine's memory into the store they do not find.
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


def damage(path: str) -> str | None:
  """What is wrong with the files of a `checkpoint_<step>` directory by its digest, or None."""
  digest = path_of(path)
  try:
    expected = files.load_json(digest)
  except FileNotFoundError:
    warnings.warn(
      f'{path} has no digest, the run was killed right after it was saved; it is used unverified'
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
  """Relative path -> SHA-256 of every file below a directory; of remote ones 'crc32c:...:bytes',
  which the store knows.

  Args:
    directory: a checkpoint.
    like: of the kind that these are, where a checkpoint was copied from a disk to the store or
      back. The store knows no SHA-256: what came there from a disk is looked for by name only.
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
