"""This project's batches as a `get_dataset_fn` of T5X."""

import collections
import concurrent.futures
import json
import os

import gin
import numpy as np

from crossin_jax.checkpoints import places
from crossin_jax.data.prepared import PreparedMixture
from crossin_jax.data.stream import BatchStream, check_resume
from crossin_jax.storage.files import read_json, write_json
from crossin_jax.training.objectives import LIKELIHOOD

AHEAD = 2  # batches made ahead in a thread
# T5X does not use the task of each token, so it is not transferred to the devices.
OURS_ALONE = 'decoder_task_ids'


class StreamIterator(collections.abc.Iterator):
  """Rows of a `BatchStream` that belong to one host, as a
  `clu.data.dataset_iterator.DatasetIterator`.

  It needs no state beyond the step; `save` writes the settings too, so that changed data are
  noticed on resume.
  """

  def __init__(self, stream: BatchStream, shard_id: int = 0, num_shards: int = 1):
    """Args:
      stream: the global batches.
      shard_id, num_shards: this host's part of the rows.

    Raises:
      ValueError: the batch does not divide among the hosts.
    """
    if stream.batch_size % num_shards:
      raise ValueError(
        f'batch size {stream.batch_size} does not divide into {num_shards} shards of hosts; use a '
        'multiple'
      )
    rows = stream.batch_size // num_shards
    self._stream, self._rows = stream, slice(shard_id * rows, (shard_id + 1) * rows)
    self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix='t5x-stream')
    self._ahead: collections.deque = collections.deque()
    self._next = 0

  @property
  def element_spec(self) -> dict:
    """Shape and dtype of each feature, of this host's rows."""
    from clu.data.dataset_iterator import ArraySpec

    batch = self._batch(0)
    return {name: ArraySpec(dtype=value.dtype, shape=value.shape) for name, value in batch.items()}

  def __next__(self) -> dict[str, np.ndarray]:
    while len(self._ahead) <= AHEAD:
      self._ahead.append(self._executor.submit(self._batch, self._next + len(self._ahead)))
    self._next += 1
    return self._ahead.popleft().result()

  def get_next(self) -> dict[str, np.ndarray]:
    """As `next`."""
    return next(self)

  def seek(self, step: int) -> None:
    """Sets the next batch to that of `step`."""
    for future in self._ahead:
      future.cancel()
    self._ahead.clear()
    self._next = step

  def reset(self) -> None:
    """Restarts at the first batch."""
    self.seek(0)

  def save(self, filename) -> None:
    """Writes the position of the stream as JSON."""
    write_json(os.fspath(filename), {'step': self._next, 'stream': self._stream.settings})

  def restore(self, filename) -> None:
    """Continues from the position that `save` wrote.

    Raises:
      ValueError: the data have changed since; names what.
    """
    with open(os.fspath(filename), encoding='utf-8') as f:
      saved = json.load(f)
    self._stream = self._stream.as_begun(saved['stream'])
    check_resume(saved['stream'], _as_json(self._stream.settings))
    self.seek(saved['step'])

  load = restore

  def _batch(self, step: int) -> dict[str, np.ndarray]:
    batch = self._stream.batch(step, self._rows)
    return {name: value for name, value in batch.items() if name != OURS_ALONE}


@gin.configurable
def t5x_dataset(
  cfg,
  shard_id: int,
  num_shards: int,
  feature_converter_cls=None,
  *_,
  data_dir: str = gin.REQUIRED,
  model_dir: str | None = None,
  new_stream: bool = False,
  **__,
) -> StreamIterator:
  """The get_dataset_fn of `t5x.train`.

  Args:
    cfg: T5X's DatasetConfig: `mixture_or_task_name` names a prepared mixture,
      `task_feature_lengths` has 'targets', `batch_size` is that of all hosts, `seed` that of the
      order of rows (None = 0).
    shard_id, num_shards: of this host.
    feature_converter_cls: not used, the rows are packed already.
    data_dir: --output_dir of `crossin prepare`.
    model_dir: the settings of the stream are kept there (stream.json), and compared when the run
      goes on; None = not.
    new_stream: go on with other data settings than the run began with, on purpose.

  Raises:
    ValueError: changed data on resume; names what changed. ObjectiveError: preference pairs, which
      T5X cannot train on.
  """
  import clu.data.dataset_iterator

  clu.data.dataset_iterator.DatasetIterator.register(StreamIterator)  # T5X asks isinstance
  mixture = PreparedMixture(data_dir, cfg.mixture_or_task_name)
  LIKELIHOOD.check(mixture, z_loss=0.0)
  stream = BatchStream(
    mixture,
    batch_size=cfg.batch_size,
    length=cfg.task_feature_lengths['targets'],
    seed=cfg.seed or 0,
  )
  if model_dir:
    stream = _as_begun(stream, model_dir, new_stream, chief=shard_id == 0)
  return StreamIterator(stream, shard_id, num_shards)


def _as_begun(stream: BatchStream, model_dir: str, new_stream: bool, chief: bool) -> BatchStream:
  """The stream as the run began with it; keeps its settings in MODEL_DIR/stream.json."""
  path = os.path.join(model_dir, 'stream.json')
  begun = os.path.isdir(model_dir) and any(
    name.startswith(f'{places.PREFIX}_') for name in os.listdir(model_dir)
  )
  if begun and os.path.exists(path):
    saved = read_json(path, f'or use another MODEL_DIR than {model_dir}')
    stream = stream if new_stream else stream.as_begun(saved)
    check_resume(saved, _as_json(stream.settings), new_stream)
  if chief:
    write_json(path, _as_json(stream.settings))
  return stream


def _as_json(settings: dict) -> dict:
  return json.loads(json.dumps(settings))
