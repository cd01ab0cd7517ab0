"""Parameters alone: read from and written to checkpoints and Hugging Face directories."""

import hashlib
import json
import os

from flax import traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp

from crossin_jax.checkpoints import digests
from crossin_jax.checkpoints.places import (
  COMMITTED,
  PREFIX,
  CheckpointError,
  check_room,
  latest_checkpoint,
)
from crossin_jax.data.prepared import write_json
from crossin_jax.models import lora
from crossin_jax.models.huggingface import weights
from crossin_jax.storage import remote


def restore_params(path: str, abstract_params, model):
  """Parameters alone, from a checkpoint of this project or of T5X, or from a Hugging Face
  directory.

  Args:
    path: a `checkpoint_<step>` directory, a MODEL_DIR (its latest checkpoint), or a directory with
      config.json and safetensors.
    abstract_params: shapes, dtypes and shardings of the wanted leaves: all of the model's or some.
      Of a LoRA run those that it did not train are read from where it had them.
    model: the model that they are for.

  Raises:
    CheckpointError: nothing there, damaged, or of another model.
    WeightsError: a Hugging Face directory that does not fit.
  """
  if weights.is_directory(path):
    return weights.load_params(path, model.config, abstract_params)
  path = latest_checkpoint(path)
  # T5X's own checkpoints, and copies without their digests, are read unverified.
  if remote.exists(digests.path_of(path)):
    if problem := digests.damage(path):
      raise CheckpointError(
        f'{path} is damaged: {problem}. Name another checkpoint_<step>, or copy it anew'
      )
  base = _run_of(path).get('base')
  if base is None:
    return _restore_target(path, abstract_params, partly=lora.of_model(model) is not None)
  if lora.of_model(model) is None:
    raise CheckpointError(
      f'{path} holds LoRA adapters, and the model has none; write the merged model first '
      '(crossin export-hf --format merged), or set DecoderConfig.lora'
    )
  if base_reference(base['path'])['digest'] != base['digest']:
    raise CheckpointError(
      f'{path} holds adapters for {base["path"]}, whose weights have changed since'
    )
  flat = traverse_util.flatten_dict(abstract_params)
  on_disk = traverse_util.flatten_dict(_target_shapes(path)).keys()
  part = lambda mine: traverse_util.unflatten_dict(
    {k: v for k, v in flat.items() if (k in on_disk) == mine}
  )
  return lora.merge(
    _restore_target(path, part(True)), restore_params(base['path'], part(False), model)
  )


def _restore_target(path: str, abstract_params, partly: bool = False):
  """Parameters of one checkpoint; with `partly` it may hold more of them than are wanted."""
  tree = {'target': abstract_params}
  check_shapes(path, tree, partly)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    arguments = ocp.args.PyTreeRestore(
      item=tree,
      restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
      partial_restore=True,  # what is on disk beside `target` is not read
    )
    return checkpointer.restore(os.path.join(path, 'state'), args=arguments)['target']


def base_reference(path: str) -> dict[str, str]:
  """Where the frozen parameters of a LoRA run are, and what they are: {'path', 'digest'}; of a LoRA
  run, its own base.
  """
  if weights.is_directory(path):
    return {'path': remote.absolute(path), 'digest': weights.Tensors(path).digest()}
  path = latest_checkpoint(path)
  if base := _run_of(path).get('base'):
    return base
  try:
    files = digests.read_json(digests.path_of(path))
  except (FileNotFoundError, ValueError):
    files = digests.file_digests(path)
  return {
    'path': path,
    'digest': hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(),
  }


def check_source(path: str) -> None:
  """Raises CheckpointError if parameters cannot begin from here: neither a checkpoint nor a Hugging
  Face directory.
  """
  if not weights.is_directory(path):
    latest_checkpoint(path)


def has_adapters(path: str) -> bool:
  """Whether there are LoRA adapters among its parameters: a LoRA run's, or beside the whole model
  as T5X saves them.
  """
  if weights.is_directory(path):
    return False
  return any(
    name[-1].startswith('lora_')
    for name in traverse_util.flatten_dict(_target_shapes(latest_checkpoint(path)))
  )


def check_base(saved: dict | None, base: dict) -> None:
  """Raises CheckpointError if a run that is resumed had other frozen parameters."""
  if saved is None:
    raise CheckpointError(
      'the run so far trained all parameters, now DecoderConfig.lora is set; use another MODEL_DIR'
    )
  if saved['digest'] != base['digest']:
    raise CheckpointError(
      f'the adapters were trained on {saved["path"]}, and {base["path"]} holds other weights; '
      'give the same '
      'INITIAL_CHECKPOINT_PATH, or another MODEL_DIR'
    )


def save_params(directory: str, params, step: int = 0) -> str:
  """Writes parameters as `checkpoint_<step>` with its digest, for training to begin from and for
  T5X to restore.

  Returns:
    The checkpoint's path.

  Raises:
    CheckpointError: something of that name is there.
  """
  path = os.path.join(remote.absolute(directory), f'{PREFIX}_{step}')
  remote.use(directory)
  if jax.process_index() == 0:
    check_room(directory, step)
  tree = {
    'target': params,
    'state': {'step': jax.numpy.asarray(step, jax.numpy.int32), 'param_states': {}},
  }
  with (
    remote.explaining(path),
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True)) as checkpointer,
  ):
    checkpointer.save(os.path.join(path, 'state'), args=ocp.args.PyTreeSave(tree))
  if jax.process_index() == 0:
    if remote.is_remote(path):
      remote.write_json(digests.path_of(path), digests.file_digests(path))
      remote.write(
        os.path.join(path, COMMITTED), f'Checkpoint commit was successful to {path}'.encode()
      )
    else:
      write_json(digests.path_of(path), digests.file_digests(path))
  return path


def _run_of(path: str) -> dict:
  """Where the run stood, as saved in the checkpoint; {} where a checkpoint has none."""
  try:
    return digests.read_json(os.path.join(path, 'run', 'metadata'))
  except (FileNotFoundError, NotADirectoryError):
    return {}


def _target_shapes(path: str) -> dict:
  """The tree of parameters on disk, with what Orbax knows of each."""
  metadata = ocp.PyTreeCheckpointer().metadata(os.path.join(path, 'state'))
  metadata = getattr(metadata, 'item_metadata', metadata)
  metadata = getattr(metadata, 'tree', metadata)
  return dict(metadata)['target']


def check_shapes(path: str, tree: dict, partly: bool = False) -> None:
  """Compares parameter names and shapes on disk with those wanted, before anything is read."""
  on_disk = traverse_util.flatten_dict(_target_shapes(path), sep='/')
  wanted = traverse_util.flatten_dict(tree['target'], sep='/')
  differences = [
    f'{name}: not in the checkpoint' for name in sorted(wanted.keys() - on_disk.keys())
  ]
  differences += [
    f'{name}: not in the model' for name in sorted(on_disk.keys() - wanted.keys()) if not partly
  ]
  differences += [
    f'{name}: {tuple(on_disk[name].shape)} in the checkpoint, {tuple(wanted[name].shape)} in the '
    'model'
    for name in sorted(wanted.keys() & on_disk.keys())
    if tuple(np.shape(on_disk[name]) or on_disk[name].shape) != tuple(wanted[name].shape)
  ]
  if differences:
    more = f' and {len(differences) - 5} more' if len(differences) > 5 else ''
    raise CheckpointError(
      f'{path} is of another model: {"; ".join(differences[:5])}{more}. Give the gin file that it '
      'was trained with'
    )
