"""Computes and stores the log-probabilities of preference pairs under a reference model."""

import jax
import numpy as np

from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.data import pair_layout, references
from crossin_jax.data.prepared import PreparedDataError, PreparedMixture, TaskSplit
from crossin_jax.decoding.nonfinite import NonFiniteLikelihood
from crossin_jax.decoding.scoring import sequence_losses
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.processes import distributed
from crossin_jax.progress import Progress


def store_reference(
  mixture: PreparedMixture,
  source: SavedModel,
  model,
  partition: Partitioner,
  *,
  length: int = 2048,
  rows: int = 8,
) -> dict:
  """Stores the log-probabilities of all pairs of a mixture beside its tasks, those of the held-out
  pairs too, see `data.references`.

  Parts that are stored already are kept, so a run that was killed continues.

  Args:
    mixture: prepared, of the split 'train'.
    source: the reference.
    model: its module, see `SavedModel.module`.
    partition: mesh.
    length, rows: shape of the packed batches; longer examples make longer rows.

  Returns:
    {'tasks': with pairs, 'pairs': of both splits, 'computed': pairs whose log-probabilities were
    missing, 'digest'}, the same on every process.

  Raises:
    PreparedDataError: a vocabulary larger than the model's. NonFiniteLikelihood: names the pair.
  """
  of = lambda one: [task.split for task in one.tasks if task.split.has_pairs]
  splits = of(mixture)
  tasks = len(splits)
  if mixture.has_validation:
    splits += of(PreparedMixture(mixture.directory, mixture.name, 'validation'))
  if model.config.vocab_size < mixture.vocabulary_size:
    raise PreparedDataError(
      f'the reference {source.path} has {model.config.vocab_size} ids, the vocabulary of mixture '
      f'{mixture.name} has {mixture.vocabulary_size}: prepare it with its tokenizer'
    )
  digest = source.digest
  missing = [
    [part for part in split.parts if not references.exists(split, digest, part)] for split in splits
  ]
  names = [[part['file'] for part in parts] for parts in missing]
  # Nobody writes before everybody knows what is missing: all processes compute the same batches.
  distributed.barrier('the log-probabilities of the reference', [digest, names])
  todo = sum(part['examples'] for parts in missing for part in parts)
  if todo:
    progress, done = Progress(todo, 'reference: pairs'), 0
    with partition.activate():
      params = source.params(model, partition)
      for split, parts in zip(splits, missing):
        for part, first in _with_first(split, parts):
          logps = _log_probabilities(
            model, params, partition, mixture, split, range(first, first + part['examples']),
            length, rows,
          )  # fmt: skip
          if jax.process_index() == 0:
            references.write(split, digest, part, logps)
          done += part['examples']
          progress.show(done)
  distributed.barrier('the stored log-probabilities of the reference')
  return {'tasks': tasks, 'pairs': sum(map(len, splits)), 'computed': todo, 'digest': digest}


def _with_first(split: TaskSplit, wanted: list[dict]):
  """(part, index of its first example) of the wanted parts."""
  first = 0
  for part in split.parts:
    if part in wanted:
      yield part, first
    first += part['examples']


def _log_probabilities(
  model, params, partition, mixture: PreparedMixture, split: TaskSplit, indices: range,
  length: int, rows: int,
) -> np.ndarray:  # fmt: skip
  """Of the answers of some examples, float64 [examples, 4]."""
  answers, places = [], []
  for index in indices:
    of_pair = pair_layout.sequences(*split.example(index), split.branches(index))
    answers += of_pair.values()
    places += [(index - indices.start, number - 1) for number in of_pair]
  longest = max((len(tokens) for tokens, _ in answers), default=0)
  losses = sequence_losses(
    model, params, partition, answers, bos_id=mixture.bos_id, length=max(length, longest),
    rows=rows,
  )  # fmt: skip
  if not np.isfinite(losses).all():
    index = indices.start + places[int(np.flatnonzero(~np.isfinite(losses))[0])][0]
    raise NonFiniteLikelihood(f'task {split.name}, row {split.id(index)}', index)
  logps = np.zeros((len(indices), 4))
  for place, loss in zip(places, losses):
    logps[place] = -loss
  return logps
