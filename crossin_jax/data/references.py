"""Stored log-probabilities of the answers of pairs under a reference model.

D/tasks/<task>/reference-<digest>/<split>-00000.arrow: float32 [4] for each example of the part of
the same name, zeros where there is no second half. The digest is that of the model's parameters.
"""

import os

import numpy as np
import pyarrow as pa

from crossin_jax.data.prepared import PreparedDataError, TaskSplit
from crossin_jax.storage import files, remote

_TYPE = pa.list_(pa.float32(), 4)


def path_of(split: TaskSplit, digest: str, part: dict) -> str:
  """The file for one part of a task."""
  return os.path.join(split.url, f'reference-{digest[:16]}', part['file'])


def exists(split: TaskSplit, digest: str, part: dict) -> bool:
  """Whether the log-probabilities of a part are stored, and for the task as it is now."""
  path = path_of(split, digest, part)
  return remote.exists(path) and _read(split, digest, part) is not None


def write(split: TaskSplit, digest: str, part: dict, logps: np.ndarray) -> None:
  """Writes the log-probabilities of one part, float [examples, 4], atomically."""
  schema = pa.schema([pa.field('logps', _TYPE)], {'of': _of(split, digest)})
  values = pa.array(np.asarray(logps, np.float32).reshape(-1), pa.float32())
  batch = pa.record_batch([pa.FixedSizeListArray.from_arrays(values, 4)], schema=schema)
  sink = pa.BufferOutputStream()
  with pa.ipc.new_file(sink, schema) as writer:
    writer.write_batch(batch)
  files.write_bytes(path_of(split, digest, part), sink.getvalue().to_pybytes())


def read(split: TaskSplit, digest: str) -> np.ndarray:
  """The log-probabilities of all examples, float32 [examples, 4].

  Raises:
    PreparedDataError: not stored for this model and this version of the task.
  """
  parts = []
  for part in split.parts:
    logps = _read(split, digest, part)
    if logps is None:
      raise PreparedDataError(
        f'{split.url} has no log-probabilities of the model that this run starts from (digest '
        f'{digest[:16]}) for {part["file"]}. The reference of a preference objective is that '
        'model: store them with `crossin prepare --reference INITIAL_CHECKPOINT_PATH`, or train '
        'LoRA adapters, whose base is the reference'
      )
    parts.append(logps)
  return np.concatenate([*parts, np.zeros((0, 4), np.float32)])


def _of(split: TaskSplit, digest: str) -> str:
  return f'{digest} {split.manifest["fingerprint"]}'


def _read(split: TaskSplit, digest: str, part: dict) -> np.ndarray | None:
  """float32 [examples, 4], or None: not there, or of another model or version of the task."""
  path = path_of(split, digest, part)
  if not remote.exists(path):
    return None
  try:
    table = pa.ipc.open_file(pa.memory_map(remote.fetched(path))).read_all()
    logps = table.column('logps').combine_chunks().flatten().to_numpy().reshape(-1, 4)
    of = (table.schema.metadata or {}).get(b'of', b'').decode()
  except (OSError, pa.ArrowInvalid, KeyError, ValueError) as error:
    raise PreparedDataError(
      f'{path} cannot be read ({error}); delete it and store it again'
    ) from None
  if of != _of(split, digest) or len(logps) != part['examples']:
    return None
  if not np.isfinite(logps).all():
    row = int(np.flatnonzero(~np.isfinite(logps).all(axis=1))[0])
    raise PreparedDataError(
      f'{path}: the log-probabilities of example {row} are not finite; delete the file and store '
      'it again'
    )
  return logps
