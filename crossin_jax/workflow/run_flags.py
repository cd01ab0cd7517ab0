"""The flags of `crossin train` and `crossin bench`, whose modules stand in the root."""

from crossin_jax.workflow import command_line

MEASURED = ('train', 'decode', 'data')  # what `crossin bench` measures


def train_parser() -> command_line.Parser:
  """The flags of `crossin train`."""
  parser = command_line.Parser(
    'train',
    'Train, or resume, in MODEL_DIR.',
    'crossin train gin_configs/runs/world_tune.gin MODEL_DIR=runs/a DATA_DIR=prepared '
    'MIXTURE_OR_TASK_NAME=world.base.all.en_zh.every',
    gin=True,
    processes=True,
  )
  return parser


def bench_parser() -> command_line.Parser:
  """The flags of `crossin bench`."""
  parser = command_line.Parser(
    'bench',
    'Measured throughput on this machine: training steps, generation, or the loader.',
    'crossin bench train gin_configs/models/llama_60m.gin bench_train.batch_size=4',
    gin=True,
    processes=True,
  )
  parser.add_argument('what', choices=MEASURED)
  return parser
