"""`crossin <command>`: every command, its flags and the function that runs it."""

from collections.abc import Callable
import functools
import importlib
import json
import os
import sys
from typing import NamedTuple
import warnings

from crossin_jax.errors import CrossinError, Interrupted
from crossin_jax.processes import platforms, signals
from crossin_jax.processes.exit_status import FAILED, RESTART


class Command(NamedTuple):
  """A command.

  Attributes:
    what: it does, for `crossin --help`.
    flags: module:function that returns its parser. That module imports no heavy library, so that
      help and usage errors show at once; `tests/test_help.py` checks it.
    run: module:function that runs it with the arguments behind its name.
  """

  what: str
  flags: str
  run: str


COMMANDS = {
  'new': Command(
    'write the file of a job for `crossin run`',
    'crossin_jax.run.flags:new_parser',
    'crossin_jax.run.new:main',
  ),
  'run': Command(
    'one job from one file: prepare, evaluate, train, compare, export',
    'crossin_jax.run.flags:run_parser',
    'crossin_jax.run.command:main',
  ),
  'quickstart': Command(
    'the method on an invented world: five ways of tuning, one report',
    'crossin_jax.quickstart.flags:parser',
    'crossin_jax.quickstart.quickstart:main',
  ),
  'prepare': Command(
    'tokenise the tasks of a mixture',
    'seqio_tasks.flags:prepare_parser',
    'seqio_tasks.prepare:main',
  ),
  'inspect': Command(
    'shares, lengths, dropped rows and examples of a mixture',
    'crossin_jax.data.flags:parser',
    'crossin_jax.data.inspection:main',
  ),
  'train': Command(
    'train or resume in MODEL_DIR',
    'crossin_jax.workflow.run_flags:train_parser',
    'crossin_jax.train:main',
  ),
  'import-hf': Command(
    'convert a Hugging Face directory to a checkpoint',
    'crossin_jax.checkpoints.flags:import_parser',
    'crossin_jax.checkpoints.conversion:import_main',
  ),
  'export-hf': Command(
    'convert a checkpoint for transformers, PEFT or T5X',
    'crossin_jax.checkpoints.flags:export_parser',
    'crossin_jax.checkpoints.conversion:export_main',
  ),
  'evaluate': Command(
    'benchmarks and held-out loss on a checkpoint',
    'crossin_jax.evaluation.flags:evaluate_parser',
    'crossin_jax.evaluation.evaluate:main',
  ),
  'harness': Command(
    'run tasks of lm-evaluation-harness on a checkpoint',
    'crossin_jax.evaluation.harness.flags:parser',
    'crossin_jax.evaluation.harness.command:main',
  ),
  'build-cross-xquad': Command(
    'build Cross-XQuAD from XQuAD, for any of its languages',
    'crossin_jax.evaluation.benchmarks.flags:parser',
    'crossin_jax.evaluation.benchmarks.cross_xquad:main',
  ),
  'generate': Command(
    'answer the prompts of a JSONL file with a checkpoint',
    'crossin_jax.decoding.flags:parser',
    'crossin_jax.decoding.generate:main',
  ),
  'serve': Command(
    'an OpenAI-compatible server on a checkpoint, and a page to ask it',
    'crossin_jax.serve.flags:parser',
    'crossin_jax.serve.command:main',
  ),
  'score': Command(
    'metrics from saved predictions',
    'crossin_jax.evaluation.flags:score_parser',
    'crossin_jax.evaluation.score:main',
  ),
  'compare': Command(
    'compare two models: which differences are significant',
    'crossin_jax.evaluation.comparison.flags:parser',
    'crossin_jax.evaluation.comparison.compare:main',
  ),
  'contamination': Command(
    'find benchmark texts in a training mixture',
    'crossin_jax.evaluation.contamination.flags:parser',
    'crossin_jax.evaluation.contamination.contamination:main',
  ),
  'ask': Command(
    'write prompts for open questions, in English and in the output language',
    'crossin_jax.evaluation.responses.flags:ask_parser',
    'crossin_jax.evaluation.responses.files:ask_main',
  ),
  'responses': Command(
    'measure language, repetition and length of open answers',
    'crossin_jax.evaluation.responses.flags:responses_parser',
    'crossin_jax.evaluation.responses.measure:main',
  ),
  'judge': Command(
    'compare two systems with a judge model behind an endpoint',
    'crossin_jax.evaluation.judging.flags:parser',
    'crossin_jax.evaluation.judging.judge:main',
  ),
  'translate': Command(
    'translate English rows with an endpoint or a model',
    'crossin_jax.translation.flags:parser',
    'crossin_jax.translation.translate:main',
  ),
  'pairs': Command(
    'make pairs of answers across languages, for preference optimisation',
    'crossin_jax.pairs.flags:parser',
    'crossin_jax.pairs.command:main',
  ),
  'xinstruction': Command(
    'build an instruction set from natural text, step by step',
    'crossin_jax.xinstruction.flags:parser',
    'crossin_jax.xinstruction.pipeline:main',
  ),
  'bench': Command(
    'measure throughput: training, decoding, data loading',
    'crossin_jax.workflow.run_flags:bench_parser',
    'crossin_jax.bench:main',
  ),
  'plan': Command(
    'compile for a TPU slice without renting it: memory, time, cost',
    'crossin_jax.plan.flags:parser',
    'crossin_jax.plan.command:main',
  ),
  'sweep': Command(
    'run ablations over gin values: one table, one plot',
    'crossin_jax.sweep.flags:parser',
    'crossin_jax.sweep.command:main',
  ),
  'fit': Command(
    'laws of the shares of a sweep, and the best shares',
    'crossin_jax.mixing_laws.flags:parser',
    'crossin_jax.mixing_laws.fit:main',
  ),
  'settings': Command(
    'list what can be set as NAME=VALUE',
    'crossin_jax.workflow.settings_flags:parser',
    'crossin_jax.workflow.settings:main',
  ),
}
# Commands of two words that have flags and a module of their own.
NESTED = {
  'xinstruction chunks': Command(
    'a share of the generation or rating, on any number of hosts',
    'crossin_jax.xinstruction.flags:chunks_parser',
    'crossin_jax.xinstruction.chunk_worker:main',
  ),
  'xinstruction translated': Command(
    'translated rows to compare the set with',
    'seqio_tasks.flags:translated_parser',
    'seqio_tasks.translated:main',
  ),
  'xinstruction distill': Command(
    'rows of a teacher to compare the set with',
    'crossin_jax.xinstruction.baselines.flags:parser',
    'crossin_jax.xinstruction.baselines.distill:main',
  ),
  'xinstruction quickstart': Command(
    'all of X-Instruction on the embedded world',
    'crossin_jax.xinstruction.quickstart.flags:parser',
    'crossin_jax.xinstruction.quickstart.quickstart:main',
  ),
}


def main(argv: list[str] | None = None) -> int:
  """Runs a command and returns its exit status, see `processes.exit_status`."""
  is_process = argv is None
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
    print(
      f'crossin: no command {argv[0]!r}{hint or "; crossin --help lists them"}', file=sys.stderr
    )
    return 2
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  from absl import logging
  import gin

  from crossin_jax import config
  from crossin_jax.storage import remote

  # Orbax and JAX log internals here; this project uses warnings and stderr.
  logging.set_verbosity(logging.ERROR)
  warnings.showwarning = lambda message, *_: print(f'warning: {message}', file=sys.stderr)
  warnings.filterwarnings('ignore', category=DeprecationWarning)

  try:
    command, flags = _chosen(config.rewrite(argv))
    with gin.unlock_config():  # another command may have run in this process
      # Help and usage errors end here, before the heavy imports of the command.
      parser = _loaded(command.flags)()
      flags = parser.explicit(flags)
      parser.parse_known_args(flags)
      remote.check_flags(argv[0], flags)
      # Only of a process that runs this command alone: it may end the process.
      with signals.Watch(functools.partial(_say_interrupted, argv), is_process) as watch:
        status = watch.status = _loaded(command.run)(flags)
  except Interrupted as reason:
    status = _say_interrupted(argv, RESTART, str(reason))
  except config.ConfigError as error:
    print(f'crossin {argv[0]}: {str(error).split(_GIN_NOTE)[0]}', file=sys.stderr)
    return error.exit_status
  except KeyboardInterrupt:
    status = _say_interrupted(argv, FAILED)
    if is_process:  # the interpreter's own exit would wait for the step that XLA computes
      signals.end(status)
    return status
  except Exception as error:  # the last place to report it without a traceback
    return _failed(argv[0], config.of_call(error) or error)
  return _leave(status)


def _say_interrupted(argv: list[str], status: int, reason: str = '') -> int:
  """Reports an interruption; returns the exit status."""
  detail = f' ({reason})' if reason else ''
  if status == RESTART:
    detail += '; start the same command again to continue'
    if '--json' in argv:
      print(json.dumps({'status': status}))
  print(f'crossin {argv[0]}: interrupted{detail}', file=sys.stderr)
  return status


def _chosen(argv: list[str]) -> tuple[Command, list[str]]:
  """The command that the first words name, and its arguments."""
  if command := NESTED.get(' '.join(argv[:2])):
    return command, argv[2:]
  return COMMANDS[argv[0]], argv[1:]


def _loaded(name: str) -> Callable:
  """The function of 'module:function'."""
  module, _, function = name.partition(':')
  return getattr(importlib.import_module(module), function)


def _failed(command: str, error: Exception) -> int:
  """Reports an error; a bug, whose message was not written for the user, with its traceback."""
  error = platforms.explained(error) or error
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
  lines = [f'  {name:<{width}}  {command.what}' for name, command in COMMANDS.items()]
  return (
    'usage: crossin <command> [FILE.gin] [NAME=VALUE] [flags]\n'
    'crossin <command> --help for each\n\n' + '\n'.join(lines)
  )


if __name__ == '__main__':
  sys.exit(main())
