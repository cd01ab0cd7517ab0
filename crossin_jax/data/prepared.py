"""Prepared token files: what `crossin prepare` writes and training reads.

D/tasks/<task>/manifest.json            fingerprint, counts, what was dropped and why
D/tasks/<task>/<split>-00000.arrow      id, rank, tokens, loss_weights; one record batch a file
D/mixtures/<mixture>.json               tasks with rate and volume, max_length, prompts, vocabulary
D/vocabularies/<digest>.<suffix>        the tokenizer that made the tokens
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
from crossin_jax.storage import files, remote

FORMAT = 1  # raise when the files change their meaning: older ones are then refused
SCHEMA = pa.schema(
  [
    ('id', pa.string()),
    ('rank', pa.int64()),  # place of the item in the Task's hash order, dropped ones counted
    ('tokens', pa.list_(pa.int32())),
    ('loss_weights', pa.list_(pa.float32())),
  ]
)


class PreparedDataError(CrossinError, ValueError):
  """Prepared files that are missing, stale or not what the run asks for; the message names the
  remedy.
  """


def _read_json(path: str, remedy: str) -> dict:
  return files.read_json(path, remedy, PreparedDataError)


def write_part(path: str, examples) -> None:
  """Writes one Arrow file from (id, rank, tokens, loss_weights) tuples, atomically."""
  ids, ranks, tokens, weights = zip(*examples) if examples else ((), (), (), ())
  offsets = np.zeros(len(ids) + 1, np.int32)
  np.cumsum([len(t) for t in tokens], out=offsets[1:])
  joined = lambda arrays, dtype: np.concatenate([*arrays, np.zeros(0, dtype)]).astype(dtype)
  batch = pa.record_batch(
    [
      pa.array(ids, pa.string()),
      pa.array(ranks, pa.int64()),
      pa.ListArray.from_arrays(offsets, joined(tokens, np.int32)),
      pa.ListArray.from_arrays(offsets, joined(weights, np.float32)),
    ],
    schema=SCHEMA,
  )
  with files.replacing(path) as temporary:
    with pa.OSFile(temporary, 'wb') as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
      writer.write_batch(batch)


def fingerprint(parts: dict) -> str:
  """Hash of the format and of everything that the examples of a Task depend on."""
  return hashlib.sha256(json.dumps([FORMAT, parts], sort_keys=True).encode()).hexdigest()[:32]


def write_manifest(
  directory: str, task: str, parts: dict, info: dict, splits: dict, **extra
) -> dict:
  """Writes and returns the manifest of a finished Task.

  Args:
    directory: D.
    task: name of the Task.
    parts: see `fingerprint`.
    info: 'source', 'mode', 'source_language', 'target_language' and such.
    splits: 'train' and 'validation' -> parts and counts.
    **extra: further keys.
  """
  manifest = {
    'format': FORMAT, 'fingerprint': fingerprint(parts), 'fingerprint_parts': parts, 'task': info,
    'splits': splits, **extra,
  }  # fmt: skip
  files.write_json(os.path.join(directory, 'tasks', task, 'manifest.json'), manifest)
  return manifest


def copy_vocabulary(directory: str, vocabulary) -> dict:
  """Copies a tokenizer file into D/vocabularies; returns its description in a mixture's JSON."""
  suffix = '.json' if vocabulary.path.endswith('.json') else '.model'
  file = os.path.join('vocabularies', vocabulary.digest[:16] + suffix)
  path = os.path.join(directory, file)
  if not os.path.exists(path):
    with files.replacing(path) as temporary:
      shutil.copyfile(vocabulary.path, temporary)
  return {
    'file': file, 'digest': vocabulary.digest, 'size': vocabulary.size,
    'bos_id': vocabulary.bos_id, 'eos_id': vocabulary.eos_id,
    # By name, because the files that define them are not copied.
    'bos_token': vocabulary.token_text(vocabulary.bos_id),
    'eos_token': vocabulary.token_text(vocabulary.eos_id),
  }  # fmt: skip


def write_mixture(
  directory: str, name: str, tasks: list[dict], vocabulary, *, rates, max_length: int,
  languages: list[str], prompts: dict,
) -> None:  # fmt: skip
  """Writes a mixture and the tokenizer of its tokens.

  Args:
    directory: D.
    name: of the mixture.
    tasks: {'task', 'component', 'rate', 'volume', 'fingerprint'} of each Task.
    vocabulary: the `Vocabulary`.
    rates: how the rates were computed.
    max_length: most tokens of an example.
    languages: codes.
    prompts: 'template', 'tags', 'chat_template', 'stop_id'.
  """
  description = {
    'format': FORMAT, 'name': name, 'tasks': tasks, 'rates': rates, 'max_length': max_length,
    'languages': languages, 'prompts': prompts,
    'vocabulary': copy_vocabulary(directory, vocabulary),
  }  # fmt: skip
  files.write_json(os.path.join(directory, 'mixtures', f'{name}.json'), description)


class TaskSplit:
  """The examples of one split of a prepared Task, memory-mapped.

  Attributes:
    name: the Task's name.
    ranks: int64 [examples], place of each in the Task's hash order.
    lengths: int32 [examples], tokens of each.
    loss_tokens: float64, sum of all loss weights.
  """

  def __init__(self, directory: str, name: str, split: str, here: str | None = None):
    """Args:
    directory: D. name: of the Task. split: 'train' or 'validation'.
    here: its copy on this machine, where D is remote.
    """
    self.name, self.directory = name, os.path.join(here or directory, 'tasks', name)
    remedy = f'run `crossin prepare` for the mixture again with --output_dir {directory}'
    self.manifest = _read_json(os.path.join(self.directory, 'manifest.json'), remedy)
    if self.manifest.get('format') != FORMAT:
      raise PreparedDataError(
        f'{self.directory} has format {self.manifest.get("format")}, this version reads {FORMAT}; '
        f'{remedy} --overwrite'
      )
    parts = self.manifest['splits'].get(split, {'parts': []})['parts']
    self._batches, lengths, ranks = [], [], []
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
      # NumPy views on the mapped file: nothing is copied until a row is asked for.
      tokens, weights = batch.column('tokens'), batch.column('loss_weights')
      offsets = tokens.offsets.to_numpy()
      self._batches.append(
        (batch.column('id'), offsets, tokens.values.to_numpy(), weights.values.to_numpy())
      )
      lengths.append(np.diff(offsets))
      ranks.append(batch.column('rank').to_numpy())
    self._starts = np.cumsum([0, *(len(r) for r in ranks)])
    self.lengths = np.concatenate([*lengths, np.zeros(0, np.int32)]).astype(np.int32)
    self.ranks = np.concatenate([*ranks, np.zeros(0, np.int64)])
    self.loss_tokens = float(sum(part['loss_tokens'] for part in parts))

  def __len__(self) -> int:
    return len(self.lengths)

  def first(self, volume: int | None) -> int:
    """How many examples the first `volume` items of the hash order left; None = all."""
    return len(self) if volume is None else int(np.searchsorted(self.ranks, volume))

  def example(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens int32 [length] and loss weights float32 [length] of one example, as views."""
    part, row = self._locate(index)
    _, offsets, tokens, weights = self._batches[part]
    start, end = offsets[row], offsets[row + 1]
    return tokens[start:end], weights[start:end]

  def id(self, index: int) -> str:
    """The id of the row that an example was made from."""
    part, row = self._locate(index)
    return self._batches[part][0][row].as_py()

  def _locate(self, index: int) -> tuple[int, int]:
    part = int(np.searchsorted(self._starts, index, side='right')) - 1
    return part, int(index - self._starts[part])


@dataclasses.dataclass(frozen=True)
class MixtureTask:
  """One task of a mixture: which, how often, how much of it."""

  split: TaskSplit
  rate: float
  examples: int

  @property
  def info(self) -> dict:
    """'source', 'mode', 'source_language', 'target_language' of the Task."""
    return self.split.manifest['task']


class PreparedMixture:
  """A mixture as `crossin prepare` wrote it.

  Attributes:
    description: the mixture's JSON.
    tasks: its tasks, those with no example or no rate left out.
    directory: where it was prepared. Of a remote one, what this mixture needs of it is copied to
      this machine.
  """

  def __init__(self, directory: str, name: str, split: str = 'train'):
    self.directory, self.name = directory, name
    path = os.path.join(directory, 'mixtures', f'{name}.json')
    self.description = _read_json(
      path, f'run `crossin prepare --mixture {name} --output_dir {directory}`'
    )
    self.tasks = []
    here = _fetched(directory, self.description, split)
    for entry in self.description['tasks']:
      task = TaskSplit(directory, entry['task'], split, here)
      if task.manifest['fingerprint'] != entry['fingerprint']:
        raise PreparedDataError(
          f'mixture {name} in {directory} was written for another version of task {entry["task"]}; '
          f'run `crossin prepare --mixture {name} --output_dir {directory}` again'
        )
      count = task.first(entry['volume'] if split == 'train' else None)
      if count and entry['rate'] > 0:
        self.tasks.append(MixtureTask(task, float(entry['rate']), count))
      elif split == 'train':
        why = 'its rate is 0' if count else 'it has no example'
        warnings.warn(
          f'mixture {name}: task {entry["task"]} is left out, {why}; the other rates keep their '
          'proportions'
        )
    if not self.tasks:
      remedy = (
        '; prepare it with MixtureSettings.validation_rows above 0' if split == 'validation' else ''
      )
      raise PreparedDataError(
        f'mixture {name} in {directory} has no example in split {split!r}{remedy}'
      )

  @functools.cached_property
  def bos_id(self) -> int:
    return int(self.description['vocabulary']['bos_id'])

  @property
  def vocabulary_size(self) -> int:
    """Number of ids in the tokenizer that made the tokens."""
    return int(self.description['vocabulary']['size'])

  @property
  def vocabulary_path(self) -> str:
    """The copy of the tokenizer beside the tokens, on this machine."""
    return remote.fetched(os.path.join(self.directory, self.description['vocabulary']['file']))


def _fetched(directory: str, description: dict, split: str) -> str:
  """Where manifests and Arrow files of a mixture lie on this machine; what is remote is copied,
  many files at a time.
  """
  if not remote.is_remote(directory):
    return directory
  manifests = [f'tasks/{entry["task"]}/manifest.json' for entry in description['tasks']]
  here = remote.fetched(directory, manifests)
  parts = []
  for manifest in manifests:
    found = _read_json(
      os.path.join(here, manifest), f'run `crossin prepare` again with --output_dir {directory}'
    )
    parts += [
      f'{os.path.dirname(manifest)}/{part["file"]}'
      for part in found['splits'].get(split, {'parts': []})['parts']
    ]
  return remote.fetched(directory, parts)


def safe_file_name(name: str) -> str:
  """Raises ValueError for a task or mixture name that could leave its folder."""
  if not re.fullmatch(r'[\w.:+-]+', name) or name.startswith('.'):
    raise ValueError(
      f'{name!r} is no legal task or mixture name: letters, digits and . : + - _ only'
    )
  return name
