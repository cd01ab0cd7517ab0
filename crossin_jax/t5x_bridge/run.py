"""T5X's own programs, with this project's gin files within reach.

python -m crossin_jax.t5x_bridge.run t5x.train --gin_file=gin_configs/models/llama_60m.gin
--gin_file=gin_configs/t5x/pretrain.gin ...
"""

import importlib
import runpy
import sys

from crossin_jax.t5x_bridge import checkout

# Their gin names must be known before T5X reads the gin files: it takes no new ones afterwards.
CONFIGURED = (
  'crossin_jax.data.stream',
  'seqio_tasks.registration',
  'seqio_tasks.benchmark_tasks',
  'seqio_tasks.feature_converter',
)
PROGRAMS = ('t5x.train', 't5x.eval', 't5x.infer', 't5x.main', 't5x.precompile')
HELP = f"""usage: python -m crossin_jax.t5x_bridge.run PROGRAM [flags of PROGRAM]

Runs one of {', '.join(PROGRAMS)} from the T5X checkout in {checkout.HOME} (or on PYTHONPATH).
It finds this project's gin files. A model file comes before a file of gin_configs/t5x.

example:
  {checkout.HOME}=~/t5x python -m crossin_jax.t5x_bridge.run t5x.train \\
    --gin_file=gin_configs/models/llama_60m.gin --gin_file=gin_configs/t5x/pretrain.gin \\
    --gin.DATA_DIR="'prepared'" \\
    --gin.MIXTURE_OR_TASK_NAME="'alpaca.base_x2x.all.en_zh_vi.default'" \\
    --gin.TRAIN_STEPS=100 --gin.MODEL_DIR="'runs/t5x'"
"""


def main(argv: list[str]) -> int:
  """Runs a program of T5X as `__main__`; its own way out (SystemExit) goes through.

  Returns:
    0 for --help, 1 without T5X or what it needs, 2 for an unknown program.
  """
  if argv[:1] in (['--help'], ['-h']):
    print(HELP)
    return 0
  if not argv or argv[0] not in PROGRAMS:
    print(
      f'{HELP}\n{argv[0] if argv else "nothing"!r} is not one of {", ".join(PROGRAMS)}',
      file=sys.stderr,
    )
    return 2
  try:
    checkout.load()
  except checkout.BridgeError as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  for module in CONFIGURED:
    importlib.import_module(module)
  reach_gin_files()
  sys.argv = [argv[0], *argv[1:]]
  # T5X's gin files say `import __main__ as train_script`.
  runpy.run_module(argv[0], run_name='__main__', alter_sys=True)
  return 0


def reach_gin_files() -> None:
  """Lets gin find `gin_configs/...` from any folder."""
  import gin

  from crossin_jax import config

  gin.add_config_file_search_path(config.REPOSITORY)
  config.use_file_reader()


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
