"""Prepared token files, which `crossin prepare` writes and training reads.

D/tasks/<task>/manifest.json            fingerprint, counts, dropped rows by reason
D/tasks/<task>/<split>-00000.arrow      id, rank, tokens, loss_weights; one record batch a file;
                                        a Task of pairs has `branches` too, see `data.pair_layout`
D/tasks/<task>/reference-<digest>/      log-probabilities of pairs, see `data.references`
D/mixtures/<mixture>.json               tasks with rate and volume, max_length, prompts, vocabulary,
                                        hub (names that were read, with their commits)
D/vocabularies/<digest>.<suffix>        the tokenizer
"""

import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
import warnings

import numpy as np
import pyarrow as pa

from crossin_jax.errors import CrossinError
from crossin_jax.storage import files, hub_names, remote

FORMAT = 1  # increase when the files change their meaning; readers refuse other formats
SCHEMA = pa.schema(
  [
    ('id', pa.string()),
    ('rank', pa.int64()),  # position in the Task's hash order, including dropped items
    ('tokens', pa.list_(pa.int32())),
    ('loss_weights', pa.list_(pa.float32())),
  ]
)
BRANCHES = pa.field('branches', pa.list_(pa.int8()))  # one more column of Tasks of pairs


class PreparedDataError(CrossinError, ValueError):
  """Prepared files that are missing, stale or unsuitable; the message has the remedy."""


def _read_json(path: str, remedy: str) -> dict:
  return files.read_json(path, remedy, PreparedDataError)


def write_part(path: str, examples) -> None:
  """Writes one Arrow file atomically.

  Args:
    path: of the file.
    examples: (id, rank, tokens, loss_weights) tuples; of a Task of pairs with `branches` as a fifth
      (int [tokens], see `data.pair_layout`).
  """
  ids, ranks, tokens, weights, *branches = zip(*examples) if examples else ((), (), (), ())
  schema = SCHEMA.append(BRANCHES) if branches else SCHEMA
  texts = [id_.encode() for id_ in ids]
  offsets = pa.py_buffer(_offsets(texts))
  columns = [
    pa.Array.from_buffers(pa.string(), len(ids), [None, offsets, pa.py_buffer(b''.join(texts))]),
    _numbers(np.array(ranks, np.int64)),
  ]
  offsets = pa.py_buffer(_offsets(tokens))
  for field, arrays in zip(schema.types[2:], (tokens, weights, *branches)):
    dtype = field.value_type.to_pandas_dtype()
    values = _numbers(np.concatenate([*arrays, np.zeros(0, dtype)]).astype(dtype))
    columns.append(pa.Array.from_buffers(field, len(ids), [None, offsets], children=[values]))
  batch = pa.record_batch(columns, schema=schema)
  with files.replacing(path) as temporary:
    with pa.OSFile(temporary, 'wb') as sink, pa.ipc.new_file(sink, schema) as writer:
      writer.write_batch(batch)


def _offsets(parts) -> np.ndarray:
  """Where each part begins, and the last one ends, once they are joined: int32 [parts + 1]."""
  return np.cumsum([0, *map(len, parts)], dtype=np.int32)


def _numbers(values: np.ndarray) -> pa.Array:
  """`pa.array`, which would import pandas: a quarter of a second in every process."""
  dtype = pa.from_numpy_dtype(values.dtype)
  return pa.Array.from_buffers(dtype, len(values), [None, pa.py_buffer(values)])


def fingerprint(parts: dict) -> str:
  """Of everything that the tokens of a Task depend on."""
  return hashlib.sha256(json.dumps([FORMAT, parts], sort_keys=True).encode()).hexdigest()[:32]


def write_manifest(directory: str, parts: dict, task: dict, splits: dict, **more) -> dict:
  """Writes D/tasks/<task>/manifest.json, which makes the Task complete; returns it.

  Args:
    directory: D/tasks/<task>.
    parts: what the tokens depend on, see `fingerprint`.
    task: {'name', 'source', 'component', 'mode', 'source_language', 'target_language'}.
    splits: split -> {'parts': [{'file', 'examples', 'tokens', 'loss_tokens'}], counts}.
    **more: further keys.
  """
  manifest = {
    'format': FORMAT,
    'fingerprint': fingerprint(parts),
    'fingerprint_parts': parts,
    'task': task,
    'splits': splits,
    **more,
  }
  files.write_json(os.path.join(directory, 'manifest.json'), manifest)
  return manifest


def write_mixture(directory: str, name: str, tasks: list[dict], vocabulary, **more) -> None:
  """Writes D/mixtures/<name>.json, and copies the tokenizer to D/vocabularies.

  Args:
    directory: D.
    name: of the mixture.
    tasks: [{'task', 'component', 'rate', 'volume', 'fingerprint'}].
    vocabulary: a `Vocabulary`.
    **more: 'rates', 'max_length', 'languages', 'prompts'.
  """
  suffix = '.json' if vocabulary.path.endswith('.json') else '.model'
  file = os.path.join('vocabularies', vocabulary.digest[:16] + suffix)
  if not os.path.exists(copy := os.path.join(directory, file)):
    with files.replacing(copy) as temporary:
      shutil.copyfile(vocabulary.path, temporary)
  description = {
    'file': file,
    'digest': vocabulary.digest,
    'size': vocabulary.size,
    'bos_id': vocabulary.bos_id,
    'eos_id': vocabulary.eos_id,
    # By name, because the files beside the tokenizer that name them are not copied.
    'bos_token': '' if vocabulary.bos_id is None else vocabulary.token_text(vocabulary.bos_id),
    'eos_token': vocabulary.token_text(vocabulary.eos_id),
  }
  if read := hub_names.read_so_far():
    more['hub'] = read
  mixture = {'format': FORMAT, 'name': name, 'tasks': tasks, **more, 'vocabulary': description}
  files.write_json(os.path.join(directory, 'mixtures', f'{name}.json'), mixture)


def _view(array: pa.Array) -> np.ndarray:
  """The numbers of a mapped Arrow array, without a copy."""
  return np.from_dlpack(array)  # pa.Array.to_numpy imports pandas, which takes 0.4 s


class TaskSplit:
  """The examples of one split of a prepared Task, memory-mapped.

  Attributes:
    name: the Task's name.
    url: D/tasks/<name>, also of a remote D.
    parts: [{'file', 'examples', ...}] of the manifest.
    ranks: int64 [examples], position of each in the Task's hash order.
    lengths: int32 [examples], tokens of each.
    loss_tokens: float64, sum of all loss weights.
    has_pairs: whether the examples are preference pairs.
    prompt_lengths: int32 [examples], tokens of the prompts of pairs; zeros without pairs.
  """

  def __init__(self, directory: str, name: str, split: str, here: str | None = None):
    """Args:
    directory: D.
    name: of the Task.
    split: 'train' or 'validation'.
    here: the local copy of a remote D.
    """
    self.name, self.directory = name, os.path.join(here or directory, 'tasks', name)
    self.url = os.path.join(directory, 'tasks', name)
    remedy = f'run `crossin prepare` for the mixture again with --output_dir {directory}'
    self.manifest = _read_json(os.path.join(self.directory, 'manifest.json'), remedy)
    if self.manifest.get('format') != FORMAT:
      raise PreparedDataError(
        f'{self.directory} has format {self.manifest.get("format")}, this version reads {FORMAT}; '
        f'{remedy} --overwrite'
      )
    self.parts = parts = _parts(self.manifest, split)
    self._batches, lengths, ranks, prompts = [], [], [], []
    for part in parts:
      path = os.path.join(self.directory, part['file'])
      try:
        batch = pa.ipc.open_file(pa.memory_map(path)).get_batch(0)
      except (OSError, pa.ArrowInvalid, IndexError) as error:
        raise PreparedDataError(f'{path} cannot be read ({error}); {remedy} --overwrite') from None
      if batch.num_rows != part['examples']:
        raise PreparedDataError(
          f'{path} holds {batch.num_rows} examples, its manifest says {part["examples"]}; '
          f'{remedy} --overwrite'
        )
      # NumPy views on the mapped file, without copies.
      tokens, weights = batch.column('tokens'), batch.column('loss_weights')
      offsets = _view(tokens.offsets)
      branches = None
      if BRANCHES.name in batch.schema.names:
        branches = _view(batch.column(BRANCHES.name).values)
      self._batches.append(
        (batch.column('id'), offsets, _view(tokens.values), _view(weights.values), branches)
      )
      lengths.append(np.diff(offsets))
      of_prompts = np.concatenate([[0], np.cumsum(branches == 0)]) if branches is not None else None
      prompts.append(0 * lengths[-1] if of_prompts is None else np.diff(of_prompts[offsets]))
      ranks.append(_view(batch.column('rank')))
    self._starts = np.cumsum([0, *(len(r) for r in ranks)])
    self.lengths = np.concatenate([*lengths, np.zeros(0, np.int32)]).astype(np.int32)
    self.ranks = np.concatenate([*ranks, np.zeros(0, np.int64)])
    self.prompt_lengths = np.concatenate([*prompts, np.zeros(0, np.int32)]).astype(np.int32)
    self.has_pairs = any(branches is not None for *_, branches in self._batches)
    self.loss_tokens = float(sum(part['loss_tokens'] for part in parts))

  def __len__(self) -> int:
    return len(self.lengths)

  def first(self, volume: int | None) -> int:
    """Number of examples among the first `volume` items of the hash order; None = all."""
    return len(self) if volume is None else int(np.searchsorted(self.ranks, volume))

  def example(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens int32 [length] and loss weights float32 [length] of one example, as views."""
    part, row = self._locate(index)
    _, offsets, tokens, weights, _ = self._batches[part]
    start, end = offsets[row], offsets[row + 1]
    return tokens[start:end], weights[start:end]

  def branches(self, index: int) -> np.ndarray:
    """The parts of a pair, int8 [length], as a view; see `data.pair_layout`."""
    part, row = self._locate(index)
    _, offsets, *_, branches = self._batches[part]
    return branches[offsets[row] : offsets[row + 1]]

  @functools.cached_property
  def halves(self) -> np.ndarray:
    """How many prompts with two answers each example has, int8 [examples]: 0 = it is no pair."""
    found = [np.zeros(0, np.int8)]
    for _, offsets, _, _, branches in self._batches:
      full = np.diff(offsets) > 0
      found.append(np.zeros(len(full), np.int8))
      if branches is not None and full.any():
        found[-1][full] = np.maximum.reduceat(branches, offsets[:-1][full]) // 2
    return np.concatenate(found)

  def id(self, index: int) -> str:
    """The id of the example's row."""
    part, row = self._locate(index)
    return self._batches[part][0][row].as_py()

  def _locate(self, index: int) -> tuple[int, int]:
    part = int(np.searchsorted(self._starts, index, side='right')) - 1
    return part, int(index - self._starts[part])


@dataclasses.dataclass(frozen=True)
class MixtureTask:
  """One task of a mixture, its rate and its number of examples."""

  split: TaskSplit
  rate: float
  examples: int

  @property
  def info(self) -> dict:
    """'source', 'mode', 'source_language', 'target_language' of the Task."""
    return self.split.manifest['task']


class PreparedMixture:
  """A mixture written by `crossin prepare`.

  Attributes:
    description: the mixture's JSON.
    tasks: its tasks, without those that have no example or a rate of 0.
    directory: where it was prepared. The required files of a remote one are copied to this machine.
    split: 'train' or 'validation'.
  """

  def __init__(self, directory: str, name: str, split: str = 'train'):
    self.directory, self.name = directory, name
    path = os.path.join(directory, 'mixtures', f'{name}.json')
    self.description = _read_json(
      path, f'run `crossin prepare FILE.gin --mixture {name} --output_dir {directory}`'
    )
    self.split, self.tasks, manifests = split, [], []
    here = _fetched(directory, self.description, split)
    for entry in self.description['tasks']:
      task = TaskSplit(directory, entry['task'], split, here)
      if task.manifest['fingerprint'] != entry['fingerprint']:
        raise PreparedDataError(
          f'mixture {name} in {directory} was written for another version of task {entry["task"]}; '
          f'run the same `crossin prepare` again: --mixture {name} --output_dir {directory}'
        )
      manifests.append(task.manifest)
      count = task.first(entry['volume'] if split == 'train' else None)
      if count and entry['rate'] > 0:
        self.tasks.append(MixtureTask(task, float(entry['rate']), count))
      elif split == 'train':
        why = 'its rate is 0' if count else 'it has no example'
        warnings.warn(
          f'mixture {name}: task {entry["task"]} is skipped, {why}; the other rates keep their '
          'proportions'
        )
    if not self.tasks:
      remedy = _validation_remedy(manifests) if split == 'validation' else ''
      raise PreparedDataError(
        f'mixture {name} in {directory} has no example in split {split!r}{remedy}'
      )

  @property
  def has_pairs(self) -> bool:
    """Whether any task has preference pairs."""
    return any(task.split.has_pairs for task in self.tasks)

  @property
  def has_validation(self) -> bool:
    """Whether any task has validation rows."""
    parts = [part for task in self.tasks for part in _parts(task.split.manifest, 'validation')]
    return any(part['examples'] for part in parts)

  @functools.cached_property
  def bos_id(self) -> int | None:
    """First input of every example; None = its first token."""
    bos_id = self.description['vocabulary']['bos_id']
    return None if bos_id is None else int(bos_id)

  @property
  def vocabulary_size(self) -> int:
    """Number of ids of the tokenizer."""
    return int(self.description['vocabulary']['size'])

  @property
  def vocabulary_path(self) -> str:
    """The local path of the copy of the tokenizer beside the tokens."""
    return remote.fetched(os.path.join(self.directory, self.description['vocabulary']['file']))


def _fetched(directory: str, description: dict, split: str) -> str:
  """The local directory of manifests and Arrow files of a mixture; downloads remote ones."""
  if not remote.is_remote(directory):
    return directory
  manifests = [f'tasks/{entry["task"]}/manifest.json' for entry in description['tasks']]
  here = remote.fetched(directory, manifests)
  remedy = f'run `crossin prepare` again with --output_dir {directory}'
  parts = [
    f'{os.path.dirname(manifest)}/{part["file"]}'
    for manifest in manifests
    for part in _parts(_read_json(os.path.join(here, manifest), remedy), split)
  ]
  return remote.fetched(directory, parts)


def _validation_remedy(manifests: list[dict]) -> str:
  """Why tasks have no validation rows, and what to do."""
  wanted = max(
    (manifest.get('fingerprint_parts', {}).get('validation_rows', 0) for manifest in manifests),
    default=0,
  )
  why = (
    f'although MixtureSettings.validation_rows = {wanted}: at most a twentieth of a source is held '
    'out, none of one with fewer than 20 rows. Add rows'
    if wanted
    else 'because MixtureSettings.validation_rows = 0. Prepare it with more, from sources of at '
    'least 20 rows'
  )
  return f', {why}, or train without held-out loss: train.evaluators="()"'


def _parts(manifest: dict, split: str) -> list[dict]:
  return manifest['splits'].get(split, {'parts': []})['parts']


def safe_file_name(name: str) -> str:
  """Returns a task or mixture name; raises ValueError if it could leave its folder."""
  if not re.fullmatch(r'[\w.:+-]+', name) or name.startswith('.'):
    raise ValueError(
      f'{name!r} is not a valid task or mixture name: letters, digits and . : + - _ only'
    )
  return name
