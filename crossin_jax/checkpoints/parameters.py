"""Parameters alone, read from and written to Orbax checkpoints."""

import os

from flax import traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp

from crossin_jax.checkpoints import digests
from crossin_jax.checkpoints.places import COMMITTED, PREFIX, CheckpointError, check_room
from crossin_jax.storage import files, remote


def restore_target(path: str, abstract_params, partly: bool = False):
  """Parameters of a checkpoint; with `partly` it may hold more than the wanted ones."""
  tree = {'target': abstract_params}
  check_shapes(path, tree, partly)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    arguments = ocp.args.PyTreeRestore(
      item=tree,
      restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
      partial_restore=True,  # reads only `target`
    )
    return checkpointer.restore(os.path.join(path, 'state'), args=arguments)['target']


def save_params(directory: str, params, step: int = 0) -> str:
  """Writes parameters as `checkpoint_<step>` with its digest, for training and T5X to start from.

  Returns:
    The checkpoint's path.

  Raises:
    CheckpointError: the checkpoint exists.
  """
  path = os.path.join(remote.absolute(directory), f'{PREFIX}_{step}')
  remote.prepare(directory)
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
    files.write_json(digests.path_of(path), digests.file_digests(path))
    if remote.is_remote(path):
      remote.write(
        os.path.join(path, COMMITTED), f'Checkpoint commit was successful to {path}'.encode()
      )
  return path


def run_of(path: str) -> dict:
  """The run state saved in a checkpoint; {} if it has none."""
  try:
    return files.load_json(os.path.join(path, 'run', 'metadata'))
  except (FileNotFoundError, NotADirectoryError):
    return {}


def target_shapes(path: str) -> dict:
  """The tree of parameters on disk with Orbax's metadata of each."""
  return state_shapes(path)['target']


def state_shapes(path: str) -> dict:
  """The tree {'target', 'state'} on disk with Orbax's metadata of each array."""
  metadata = ocp.PyTreeCheckpointer().metadata(os.path.join(path, 'state'))
  metadata = getattr(metadata, 'item_metadata', metadata)
  metadata = getattr(metadata, 'tree', metadata)
  return dict(metadata)


def check_shapes(path: str, tree: dict, partly: bool = False) -> None:
  """Compares names and shapes on disk with the wanted ones, before anything is read."""
  on_disk = traverse_util.flatten_dict(target_shapes(path), sep='/')
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
