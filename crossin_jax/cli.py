"""`crossin <command>`: every command and the function that runs it."""

import importlib
import json
import os
import sys
import warnings

from crossin_jax.errors import CrossinError, Interrupted
from crossin_jax.processes.exit_status import FAILED, RESTART

# command -> (module, function, what it does)
COMMANDS = {
  'quickstart': (
    'crossin_jax.quickstart.quickstart',
    'main',
    'the method on an invented world: five ways of tuning, one report',
  ),
  'prepare': ('seqio_tasks.prepare', 'main', 'tokenise the tasks of a mixture'),
  'inspect': (
    'crossin_jax.data.inspection',
    'main',
    'shares, lengths, dropped rows and examples of a mixture',
  ),
  'train': ('crossin_jax.train', 'main', 'train or resume in MODEL_DIR'),
  'import-hf': (
    'crossin_jax.checkpoints.conversion',
    'import_main',
    'convert a Hugging Face directory to a checkpoint',
  ),
  'export-hf': (
    'crossin_jax.checkpoints.conversion',
    'export_main',
    'convert a checkpoint for transformers, PEFT or T5X',
  ),
  'evaluate': (
    'crossin_jax.evaluation.evaluate',
    'main',
    'benchmarks and held-out loss on a checkpoint',
  ),
  'harness': (
    'crossin_jax.evaluation.harness.command',
    'main',
    'run tasks of lm-evaluation-harness on a checkpoint',
  ),
  'build-cross-xquad': (
    'crossin_jax.evaluation.benchmarks.cross_xquad',
    'main',
    'build Cross-XQuAD from XQuAD, for any of its languages',
  ),
  'generate': (
    'crossin_jax.decoding.generate',
    'main',
    'answer the prompts of a JSONL file with a checkpoint',
  ),
  'serve': (
    'crossin_jax.serve.command',
    'main',
    'an OpenAI-compatible server on a checkpoint, and a page to ask it',
  ),
  'score': ('crossin_jax.evaluation.score', 'main', 'metrics from saved predictions'),
  'compare': (
    'crossin_jax.evaluation.comparison.compare',
    'main',
    'compare two models: which differences are significant',
  ),
  'contamination': (
    'crossin_jax.evaluation.contamination.contamination',
    'main',
    'find benchmark texts in a training mixture',
  ),
  'ask': (
    'crossin_jax.evaluation.responses.files',
    'ask_main',
    'write prompts for open questions, in English and in the output language',
  ),
  'responses': (
    'crossin_jax.evaluation.responses.measure',
    'main',
    'measure language, repetition and length of open answers',
  ),
  'judge': (
    'crossin_jax.evaluation.judging.judge',
    'main',
    'compare two systems with a judge model behind an endpoint',
  ),
  'translate': (
    'crossin_jax.translation.translate',
    'main',
    'translate English rows with an endpoint or a model',
  ),
  'pairs': (
    'crossin_jax.pairs.command',
    'main',
    'make pairs of answers across languages, for preference optimisation',
  ),
  'xinstruction': (
    'crossin_jax.xinstruction.pipeline',
    'main',
    'build an instruction set from natural text, step by step',
  ),
  'bench': ('crossin_jax.bench', 'main', 'measure throughput: training, decoding, data loading'),
  'plan': (
    'crossin_jax.plan.command',
    'main',
    'compile for a TPU slice without renting it: memory, time, cost',
  ),
  'sweep': (
    'crossin_jax.sweep.command',
    'main',
    'run ablations over gin values: one table, one plot',
  ),
  'fit': (
    'crossin_jax.mixing_laws.fit',
    'main',
    'laws of the shares of a sweep, and the best shares',
  ),
}


def main(argv: list[str] | None = None) -> int:
  """Runs a command and returns its exit status, see `processes.exit_status`."""
  argv = list(sys.argv[1:] if argv is None else argv)
  if not argv or argv[0] in ('-h', '--help'):
    print(_help(), file=sys.stdout if argv else sys.stderr)
    return 0 if argv else 2
  if argv[0] == '--version':
    from crossin_jax import __version__

    print(__version__)
    return 0
  if argv[0] not in COMMANDS:
    import difflib

    near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
    hint = f'; did you mean {near[0]}?' if near else ''
    print(f'{_help()}\n\ncrossin: no command {argv[0]!r}{hint}', file=sys.stderr)
    return 2
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  module, function, _ = COMMANDS[argv[0]]
  from absl import logging
  import gin

  from crossin_jax import config
  from crossin_jax.storage import remote

  # Orbax and JAX log internals here; this project uses warnings and stderr.
  logging.set_verbosity(logging.ERROR)
  warnings.showwarning = lambda message, *_: print(f'warning: {message}', file=sys.stderr)
  warnings.filterwarnings('ignore', category=DeprecationWarning)

  try:
    remote.check_flags(argv[0], argv[1:])
    with gin.unlock_config():  # another command may have run in this process
      command = getattr(importlib.import_module(module), function)
    status = command(config.rewrite(argv[1:]))
  except Interrupted as reason:
    detail = f' ({reason})' if str(reason) else ''
    print(
      f'crossin {argv[0]}: interrupted{detail}; start the same command again to continue',
      file=sys.stderr,
    )
    if '--json' in argv:
      print(json.dumps({'status': RESTART}))
    status = RESTART
  except config.ConfigError as error:
    print(f'crossin {argv[0]}: {error}', file=sys.stderr)
    return error.exit_status
  except KeyboardInterrupt:
    print(f'crossin {argv[0]}: interrupted', file=sys.stderr)
    return FAILED
  except Exception as error:  # the last place to report it without a traceback
    return _failed(argv[0], error)
  return _leave(status)


def _failed(command: str, error: Exception) -> int:
  """Reports an error; a bug, whose message was not written for the user, with its traceback."""
  expected = isinstance(error, (CrossinError, ValueError, OSError))
  if os.environ.get('CROSSIN_TRACEBACK') or not expected:
    import traceback

    traceback.print_exc()
  message = str(error).split(_GIN_NOTE)[0]  # gin adds where a call was configured
  status = getattr(error, 'exit_status', FAILED)
  # Imported only by commands that run in several processes.
  if distributed := sys.modules.get('crossin_jax.processes.distributed'):
    message = distributed.notify_failed(message)
  print(f'crossin {command}: {message}', file=sys.stderr)
  if distributed:
    distributed.leave(status)
  return status


def _leave(status: int) -> int:
  """Exits at once if XLA still compiles in a thread: Python's own exit waits for it or crashes."""
  compiled = sys.modules.get('crossin_jax.training.compiled')
  if compiled and compiled.left_behind():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  return status


_GIN_NOTE = '\n  In call to configurable'


def _help() -> str:
  width = max(map(len, COMMANDS))
  lines = [f'  {name:<{width}}  {what}' for name, (_, _, what) in COMMANDS.items()]
  return 'usage: crossin <command> [flags]; crossin <command> --help for each\n\n' + '\n'.join(
    lines
  )


if __name__ == '__main__':
  sys.exit(main())
