"""Packed batches of a prepared mixture. Batch n is a pure function of (settings, n)."""

import collections
import concurrent.futures
import dataclasses
import functools
import json

import gin
import jax
import numpy as np

from crossin_jax.data import mixing, pair_layout, references, windows
from crossin_jax.data.packing import first_fit
from crossin_jax.data.prepared import PreparedDataError, PreparedMixture

# Names of SeqIO and T5X, and the task of each token, for losses by source and language.
FEATURES = {
  'decoder_input_tokens': np.int32,
  'decoder_target_tokens': np.int32,
  'decoder_loss_weights': np.float32,
  'decoder_segment_ids': np.int32,
  'decoder_positions': np.int32,
  'decoder_task_ids': np.int32,
}


def empty_rows(rows: int, length: int, features: dict = FEATURES) -> dict[str, np.ndarray]:
  """A batch of padding: every feature zero, [rows, length]."""
  return {name: np.zeros((rows, length), dtype) for name, dtype in features.items()}


def write_segment(batch, row, start, segment, tokens, loss_weights, bos_id, task) -> None:
  """Writes one example into a row of a batch, in place.

      tokens 7 8 2, start 0, BOS 1:  targets 7 8 2  inputs 1 7 8  positions 0 1 2  segments 1 1 1

  Args:
    batch: dict of FEATURES, [rows, length] each.
    row, start: position of its first token.
    segment: its id in the row, from 1.
    tokens: int [n].
    loss_weights: float [n].
    bos_id: first input; None = the first token is, and the last input predicts nothing:
      tokens 7 8 2 give targets 8 2 0, inputs 7 8 2.
    task: index for `decoder_task_ids`.
  """
  end = start + len(tokens)
  span = slice(start, end)
  if bos_id is None:
    batch['decoder_target_tokens'][row, start : end - 1] = tokens[1:]
    batch['decoder_input_tokens'][row, span] = tokens
    batch['decoder_loss_weights'][row, start : end - 1] = loss_weights[1:]
  else:
    batch['decoder_target_tokens'][row, span] = tokens
    batch['decoder_input_tokens'][row, start] = bos_id
    batch['decoder_input_tokens'][row, start + 1 : end] = tokens[:-1]
    batch['decoder_loss_weights'][row, span] = loss_weights
  batch['decoder_segment_ids'][row, span] = segment
  batch['decoder_positions'][row, span] = np.arange(len(tokens))
  batch['decoder_task_ids'][row, span] = task


@dataclasses.dataclass(frozen=True)
class Window:
  """The packing of one window of the mixture.

  Attributes:
    rows: for each row its examples (task, index in the task), in order.
    dropped: number of examples that fit neither into this window nor the next.
  """

  rows: list[list[tuple[int, int]]]
  dropped: int


@gin.configurable(denylist=['mixture', 'auto_pairs', 'reference'])
class BatchStream:
  """Batches of packed rows.

  The stream of examples is cut into windows. Each window has the same number of examples and of
  rows, so that the window of a row follows from its number. The next window takes examples that do
  not fit, after its own; those that do not fit there either are dropped and counted.

  Attributes:
    packing: 'in_order' or 'first_fit'.
    layout: 'branches' or 'plain', how preference pairs stand in a row; None = there are none.
    features: name -> dtype of what `batch` returns.
  """

  def __init__(
    self,
    mixture: PreparedMixture,
    *,
    batch_size: int,
    length: int,
    seed: int = 0,
    window: int = 16_384,
    packing: str = 'in_order',
    pairs: str = 'auto',
    auto_pairs: str = 'branches',
    reference: str | None = None,
  ):
    """Args:
      mixture: to read.
      batch_size: rows of the global batch.
      length: tokens in a row.
      seed: of the order of rows; has no effect on which rows belong to a volume.
      window: examples that are packed together, at least those of eight batches; larger windows
        pack tighter and take longer to start.
      packing: 'in_order' keeps the rates in every batch: a batch is a run of consecutive examples.
        'first_fit' packs a whole window as tightly as possible, so that its first rows hold more of
        its short examples; runs from before December 2026 go on with it.
      pairs: 'branches' reads the prompt of a preference pair once, with both answers as branches
        behind it; 'plain' reads it twice, once before each answer; 'auto' is 'branches' where the
        attention of the model knows them. The loss is the same.
      auto_pairs: what 'auto' is.
      reference: digest of a model whose log-probabilities of the answers are stored, see
        `data.references`; None = they are not in the batches.

    Raises:
      ValueError: an example is longer than a row, or `packing` or `pairs` is none of its values.
      PreparedDataError: nothing is stored for `reference`.
    """
    if packing not in windows.PACKINGS:
      raise ValueError(f'BatchStream.packing = {packing!r} is none of {windows.PACKINGS}')
    if pairs not in (layouts := ('auto', *pair_layout.LAYOUTS)):
      raise ValueError(f'BatchStream.pairs = {pairs!r} is none of {layouts}')
    self.pairs, self.layout, self.reference = pairs, None, reference
    if mixture.has_pairs:
      self.layout = auto_pairs if pairs == 'auto' else pairs
    self._lengths = [
      pair_layout.lengths(self.layout, task.split.lengths, task.split.prompt_lengths)[
        : task.examples
      ]
      for task in mixture.tasks
    ]
    longest = max(int(lengths.max()) for lengths in self._lengths)
    if longest > length:
      twice = ' (the prompt of a pair twice)' if self.layout == 'plain' else ''
      raise ValueError(
        f'mixture {mixture.name} was prepared with max_length {mixture.description["max_length"]} '
        f'and has an example of {longest} tokens{twice}, rows have {length}; increase the row '
        'length or prepare with a smaller max_length'
      )
    self.mixture, self.batch_size, self.length = mixture, batch_size, length
    self.seed, self.window_size, self.packing = seed, window, packing
    self.features = FEATURES | pair_layout.features(self.layout, bool(reference))
    self._logps = [
      references.read(task.split, reference) if reference and task.split.has_pairs else None
      for task in mixture.tasks
    ]
    self._keys = [mixing.fold(seed, task.split.name) for task in mixture.tasks]
    kind = windows.InOrder if packing == 'in_order' else windows.FirstFit
    self._windows = kind(mixture.tasks, self._lengths, self._examples, window, length, batch_size)
    self._dropped = {}  # window -> examples; a window may be packed again after cache eviction
    self._packed = functools.lru_cache(maxsize=3)(self._packed)
    self._window = functools.lru_cache(maxsize=2)(self._window)

  @property
  def settings(self) -> dict:
    """What the batches depend on, as JSON: streams with equal settings give equal batches."""
    return {
      'mixture': self.mixture.name,
      'tasks': [
        {
          'task': task.split.name,
          'fingerprint': task.split.manifest['fingerprint'],
          'rate': rate,
          'examples': task.examples,
          'made from': task.split.manifest['fingerprint_parts'],
        }
        for task, rate in zip(self.mixture.tasks, self._windows.order.rates)
      ],
      'batch_size': self.batch_size,
      'length': self.length,
      'seed': self.seed,
      'window': self.window_size,
      **({} if self.packing == 'first_fit' else {'packing': self.packing}),
      **({'pairs': self.layout} if self.layout else {}),
      **({'reference': self.reference} if self.reference else {}),
    }

  @property
  def rows_per_window(self) -> int:
    """Rows of each window."""
    return self._windows.rows

  @property
  def examples_per_window(self) -> int:
    """Examples of each window; with 'in_order' not exactly `window`."""
    return self._windows.examples

  def as_begun(self, saved: dict | None) -> 'BatchStream':
    """This stream, or with what a run of settings `saved` began with and a resumed one must keep.

    That is 'first_fit', for runs from before December 2026, which have no 'packing' in their
    settings; and the layout of pairs where that is 'auto'.
    """
    packing, layout = self.packing, self.layout
    if saved and 'packing' not in saved:
      packing = 'first_fit'
    if saved and self.pairs == 'auto':
      layout = saved.get('pairs', layout)
    if (packing, layout) == (self.packing, self.layout):
      return self
    return BatchStream(
      self.mixture,
      batch_size=self.batch_size,
      length=self.length,
      seed=self.seed,
      window=self.window_size,
      packing=packing,
      pairs='auto',
      auto_pairs=layout or 'branches',
      reference=self.reference,
    )

  @property
  def dropped(self) -> int:
    """Examples dropped in the windows packed so far."""
    return sum(self._dropped.values())

  def steps_for_epochs(self, epochs: float, until: str = 'all') -> int:
    """Batches until every task ('all') or one ('first') is read `epochs` times; at least 1.

    A pure function of the settings, so all hosts stop at the same step.
    """
    if until not in ('all', 'first') or epochs <= 0:
      raise ValueError(
        f"train.epochs = {epochs} must be above 0 and train.epochs_until = {until!r} 'all' or "
        "'first'"
      )
    order = self._windows.order
    ends = [
      epochs * task.examples * sum(order.rates) / rate
      for task, rate in zip(self.mixture.tasks, order.rates)
    ]
    window, rest = divmod(max(ends) if until == 'all' else min(ends), self._windows.examples)
    row = int(window) * self.rows_per_window
    row += int(np.searchsorted(self._packed(int(window)).read, rest - 1e-6))
    return max(1, -(-row // self.batch_size))

  def batch(self, step: int, rows: slice = slice(None)) -> dict[str, np.ndarray]:
    """Features of batch `step` (from 0), [rows, length] each, for `rows` of the global batch."""
    wanted = range(self.batch_size)[rows]
    batch = empty_rows(len(wanted), self.length, self.features)
    for i, row in enumerate(wanted):
      start, segment = 0, 1
      for task, index in self._row(step * self.batch_size + row):
        start, segment = self._write(batch, i, start, segment, task, index)
    return batch

  def _write(self, batch, row: int, start: int, segment: int, task: int, index: int):
    """Writes one example; returns (column behind it, next segment)."""
    split, bos_id = self.mixture.tasks[task].split, self.mixture.bos_id
    tokens, weights = split.example(index)
    if tokens.max() >= self.mixture.vocabulary_size or tokens.min() < 0:
      raise PreparedDataError(
        f'task {split.name}, row {split.id(index)} has id {tokens.max()}, the vocabulary has '
        f'{self.mixture.vocabulary_size}; prepare it again with --overwrite'
      )
    if not split.has_pairs:
      write_segment(batch, row, start, segment, tokens, weights, bos_id, task)
      return start + len(tokens), segment + 1
    logps = None if self._logps[task] is None else self._logps[task][index]
    try:
      return pair_layout.write(
        batch, row, start, segment, tokens, weights, split.branches(index), bos_id, task, logps
      )
    except ValueError as error:
      raise PreparedDataError(
        f'task {split.name}, row {split.id(index)}: {error}; prepare it again with --overwrite'
      ) from None

  def examples(self, step: int) -> list[list[tuple[str, str]]]:
    """(task, id) of every example of batch `step`, row by row, for error messages."""
    return [[self._named(*at) for at in row] for row in self._rows(step)]

  def segments(self, step: int) -> list[list[tuple[str, str]]]:
    """(task, id) of the example of every segment of batch `step`, row by row, in order."""
    return [
      [self._named(*at) for at in row for _ in range(self._parts(*at))] for row in self._rows(step)
    ]

  def _named(self, task: int, index: int) -> tuple[str, str]:
    split = self.mixture.tasks[task].split
    return split.name, split.id(index)

  def _parts(self, task: int, index: int) -> int:
    """Segments of an example."""
    halves = int(self.mixture.tasks[task].split.halves[index])
    return max(1, halves if self.layout == 'branches' else 2 * halves)

  def _rows(self, step: int) -> list[list[tuple[int, int]]]:
    first = step * self.batch_size
    return [self._row(row) for row in range(first, first + self.batch_size)]

  def epochs(self, step: int) -> dict[str, float]:
    """How often each task has been read by the start of batch `step`."""
    window, row = divmod(step * self.batch_size, self.rows_per_window)
    read = window * self._windows.examples + float(self._packed(window).read[row])
    rates = self._windows.order.rates
    return {
      task.split.name: read * rate / sum(rates) / task.examples
      for task, rate in zip(self.mixture.tasks, rates)
    }

  def _row(self, row: int) -> list[tuple[int, int]]:
    return self._window(row // self.rows_per_window).rows[row % self.rows_per_window]

  def _examples(self, order: mixing.TaskOrder, window: int) -> windows.Examples:
    tasks, ordinals = order.block(window)
    epochs, indices, lengths = (np.empty(len(tasks), np.int64) for _ in range(3))
    for t, task in enumerate(self.mixture.tasks):
      of_task = np.flatnonzero(tasks == t)
      epochs[of_task], positions = np.divmod(ordinals[of_task], task.examples)
      for epoch in np.unique(epochs[of_task]):
        of_epoch = epochs[of_task] == epoch
        key = mixing.fold(self._keys[t], int(epoch))
        indices[of_task[of_epoch]] = mixing.permute(positions[of_epoch], task.examples, key)
      lengths[of_task] = self._lengths[t][indices[of_task]]
    return windows.Examples(tasks, epochs, indices, lengths)

  def _packed(self, window: int) -> windows.Packed:
    return self._windows.pack(self._examples(self._windows.order, window))

  def _window(self, window: int) -> Window:
    packed = self._packed(window)
    rows = [[] for _ in packed.rows]

    def append(examples, chosen, bins):
      chosen, bins = chosen[bins >= 0], bins[bins >= 0]
      columns = examples.tasks[chosen], examples.indices[chosen], packed.rows[bins]
      for task, index, row in zip(*(column.tolist() for column in columns)):
        rows[row].append((task, index))

    append(packed.examples, np.arange(len(packed.bins)), packed.bins)
    dropped = 0
    if window:
      before = self._packed(window - 1)
      late = np.flatnonzero(before.bins < 0)
      bins = first_fit(before.examples.lengths[late], self.length, packed.room.copy())
      append(before.examples, late, bins)
      dropped = int((bins < 0).sum())
    self._dropped[window] = dropped
    return Window(rows, dropped)


class Loader:
  """Global arrays of a BatchStream, prefetched in a thread.

  Each host fills only the rows of its local devices.
  """

  def __init__(
    self, stream: BatchStream, sharding: jax.sharding.Sharding, first_step: int, prefetch: int = 2
  ):
    """Args:
    stream: the batches.
    sharding: of a [batch, length] array.
    first_step: step of the first batch.
    prefetch: number of batches.
    """
    self._stream, self._sharding = stream, sharding
    self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix='loader')
    self._ahead = collections.deque(
      self._executor.submit(self._load, first_step + i) for i in range(prefetch)
    )
    self._next = first_step + prefetch

  def peek(self) -> dict[str, jax.Array]:
    """The next batch, without advancing."""
    return self._ahead[0].result()

  def __next__(self) -> dict[str, jax.Array]:
    self._ahead.append(self._executor.submit(self._load, self._next))
    self._next += 1
    return self._ahead.popleft().result()

  def _load(self, step: int) -> dict[str, jax.Array]:
    return put_batch(
      self._stream.batch, step, (self._stream.batch_size, self._stream.length), self._sharding
    )

  def close(self) -> None:
    """Stops the thread and discards prefetched batches."""
    self._executor.shutdown(wait=True, cancel_futures=True)


def put_batch(
  make, step: int, shape: tuple[int, int], sharding: jax.sharding.Sharding
) -> dict[str, jax.Array]:
  """A global batch from `make(step, rows) -> features of those rows`.

  Each host makes only its local rows. `shape` applies to most features; others may have another
  length.
  """
  spans = {
    index[0].indices(shape[0])[:2]
    for index in sharding.addressable_devices_indices_map(shape).values()
  }
  first, last = min(span[0] for span in spans), max(span[1] for span in spans)
  local = make(step, slice(first, last))

  def shard(array):
    def of_index(index):
      start, stop, _ = index[0].indices(shape[0])
      return array[start - first : stop - first, index[1]]

    return jax.make_array_from_callback((shape[0], *array.shape[1:]), sharding, of_index)

  return {name: shard(array) for name, array in local.items()}


def fingerprint(settings: dict) -> str:
  """A short digest of stream settings."""
  return f'{mixing.fold(json.dumps(settings, sort_keys=True)):016x}'


def check_resume(saved: dict, now: dict, new_stream: bool = False) -> None:
  """Checks that a resumed run has the data it started with.

  Args:
    saved: `BatchStream.settings` in the checkpoint.
    now: those of this run.
    new_stream: accept changes.

  Raises:
    ValueError: names each change with the values before and after.
  """
  if saved == now or new_stream:
    return

  def flat(settings):
    values = {'packing': 'first_fit'} | settings
    del values['tasks']
    for task in settings['tasks']:
      parts = {key: task[key] for key in ('rate', 'examples')} | task.get('made from', {})
      values |= {f'{key} of task {task["task"]}': value for key, value in parts.items()}
    return values

  short = lambda value: (
    str(value) if len(str(value)) <= 60 else f'{str(value)[:28]} ... {str(value)[-28:]}'
  )
  before, after = flat(saved), flat(now)
  changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
  differences = '; '.join(
    f'{key} was {short(before.get(key))}, now {short(after.get(key))}' for key in changed[:6]
  )
  more = f'; and {len(changed) - 6} more' if len(changed) > 6 else ''
  raise ValueError(
    f'the data of this run have changed since its checkpoint: {differences}{more}. Undo the '
    'change, use another MODEL_DIR, or continue with a new stream: train.new_stream=True'
  )
