"""Writes adapters and their base model as one checkpoint that T5X can restore.

    python -m crossin_jax.t5x_bridge.whole runs/lora --output_dir runs/lora_whole

A LoRA run of this project saves its adapters alone; T5X reads parameters from one place. Adapters
stay adapters; to fold them into the matrices, use `crossin export-hf --format t5x`.
"""

import os
import sys

from crossin_jax.checkpoints import parameters, places
from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.training import state as train_state
from crossin_jax.workflow import command_line


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


def main(argv: list[str]) -> int:
  """The command line."""
  parser = command_line.Parser(
    'python -m crossin_jax.t5x_bridge.whole',
    'Write adapters and the model beneath them as one checkpoint, for T5X to go on with.',
    'python -m crossin_jax.t5x_bridge.whole runs/lora --output_dir runs/lora_whole',
    gin=True,
  )
  parser.add_argument('checkpoint', help='a MODEL_DIR or checkpoint_<step>')
  parser.add_argument('--output_dir', required=True, help='for checkpoint_<step>')
  args = parser.parse_args(argv)
  try:
    model = SavedModel.open(args.checkpoint).module(args)
    print(write(args.checkpoint, args.output_dir, model), file=sys.stderr)
  except (ValueError, OSError, places.CheckpointError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
