"""`crossin <command>`: each command is the `main` of the module that owns the noun."""

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
    'the main job on the embedded world: five arms and a report',
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
    'a Hugging Face directory as a checkpoint',
  ),
  'export-hf': (
    'crossin_jax.checkpoints.conversion',
    'export_main',
    'a checkpoint as a directory for transformers, PEFT or T5X',
  ),
  'evaluate': (
    'crossin_jax.evaluation.evaluate',
    'main',
    'benchmarks and held-out loss on a checkpoint',
  ),
  'build-cross-xquad': (
    'crossin_jax.evaluation.benchmarks.cross_xquad',
    'main',
    'Cross-XQuAD from XQuAD, for any of its languages',
  ),
  'generate': (
    'crossin_jax.decoding.generate',
    'main',
    'answer the prompts of a JSONL file with a checkpoint',
  ),
  'score': ('crossin_jax.evaluation.score', 'main', 'metrics from saved predictions'),
  'compare': (
    'crossin_jax.evaluation.comparison.compare',
    'main',
    'two models side by side: which differences are real',
  ),
  'contamination': (
    'crossin_jax.evaluation.contamination.contamination',
    'main',
    'what a training mixture shares with benchmarks',
  ),
  'ask': (
    'crossin_jax.evaluation.responses.files',
    'ask_main',
    'open questions asked in English and in the output language',
  ),
  'responses': (
    'crossin_jax.evaluation.responses.measure',
    'main',
    'language, repetition and length of open answers',
  ),
  'judge': (
    'crossin_jax.evaluation.judging.judge',
    'main',
    'two systems judged pair by pair through an endpoint',
  ),
  'translate': (
    'crossin_jax.translation.translate',
    'main',
    'aligned rows from English ones, through an endpoint or a model',
  ),
  'xinstruction': (
    'crossin_jax.xinstruction.pipeline',
    'main',
    'an instruction set from natural text, step by step',
  ),
  'bench': ('crossin_jax.bench', 'main', 'measured throughput: train, decode or data'),
  'plan': (
    'crossin_jax.plan.command',
    'main',
    'memory, time and cost of a run on a slice that is not there',
  ),
  'sweep': (
    'crossin_jax.sweep.command',
    'main',
    'ablations over gin values: one table and one plot',
  ),
  'fit': (
    'crossin_jax.mixing_laws.fit',
    'main',
    'laws of the shares of a sweep, and the best shares',
  ),
}


def main(argv: list[str] | None = None) -> int:
  """Runs a command; prints for people on stderr. Exit status: 0 done, 1 failed, 2 usage, 75 restart
  me.
  """
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

  # Orbax and JAX tell of their inner life on this channel; ours is warnings and stderr.
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
