"""Writes adapters and their base model as one checkpoint that T5X can restore.

    python -m crossin_jax.t5x_bridge.whole runs/lora --output_dir runs/lora_whole

A LoRA run of this project saves its adapters alone; T5X reads parameters from one place. Adapters
stay adapters; to fold them into the matrices, use `crossin export-hf --format t5x`.
"""

import sys

from crossin_jax.errors import CrossinError
from crossin_jax.workflow import command_line


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
  # Behind the parser: they import JAX and Orbax, which --help need not wait for.
  from crossin_jax.checkpoints.saved_model import SavedModel
  from crossin_jax.t5x_bridge.full_checkpoint import write

  try:
    model = SavedModel.open(args.checkpoint).module(args)
    print(write(args.checkpoint, args.output_dir, model), file=sys.stderr)
  except (ValueError, OSError, CrossinError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
