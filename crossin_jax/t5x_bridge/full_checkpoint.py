"""Adapters and their base model as one checkpoint."""

import os

from crossin_jax.checkpoints import parameters, places
from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.training import state as train_state


def write(checkpoint: str, output_dir: str, model, partitioner=Partitioner) -> str:
  """Writes all parameters of a checkpoint as `output_dir`/checkpoint_<step>; returns its path.

  Args:
    checkpoint: a MODEL_DIR or checkpoint_<step>, of a LoRA run or not.
    output_dir: must not hold that step yet.
    model: the model of the checkpoint.
    partitioner: mesh and axis rules.

  Raises:
    CheckpointError: nothing to read, or the step is there already.
  """
  source = SavedModel.open(checkpoint)
  path = source.path
  name = os.path.basename(path)
  if os.path.exists(os.path.join(output_dir, name)):
    raise places.CheckpointError(
      f'{os.path.join(output_dir, name)} is there already; give another --output_dir'
    )
  partition = partitioner()
  with partition.activate():
    params = source.restore(train_state.parameter_shapes(model, partition), model)
    return parameters.save_params(output_dir, params, int(name.rsplit('_', 1)[1]))
