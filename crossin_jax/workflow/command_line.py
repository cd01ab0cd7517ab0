"""What all command lines share: flags, their spelling, help, and JSON output."""

import argparse
import json

from crossin_jax import config
from crossin_jax.processes import exit_status

STATUSES = '0 done, 75 interrupted (run it again to continue), 1 failed, 2 usage'


class _Help(argparse.HelpFormatter):
  """Adds the default to the help of a flag that has one."""

  def _get_help_string(self, action):
    text = action.help or ''
    if action.default in (None, False, (), [], '', argparse.SUPPRESS) or '(default' in text:
      return text
    return f'{text} (default: %(default)s)'.strip()


class Parser(argparse.ArgumentParser):
  """The flags of a command. `--some-flag` is accepted for `--some_flag`."""

  def __init__(
    self,
    command: str,
    description: str,
    example: str,
    *,
    gin: bool = False,
    processes: bool = False,
    statuses: str = STATUSES,
  ):
    """Adds `--json` and the requested groups of flags.

    Args:
    command: the words after `crossin`, or a full command that starts with 'python'.
    description: of the command.
    example: a complete command.
    gin: add the gin flags.
    processes: add the flags of runs with several processes.
    statuses: the exit statuses.
    """
    super().__init__(
      prog=command if command.startswith('python') else f'crossin {command}',
      description=f'{description} Exit status: {statuses}.',
      epilog=f'example: {example}',
      formatter_class=_Help,
    )
    self.add_argument(
      '--json', action='store_true', help='print one JSON object as the last line of stdout'
    )
    if processes:
      # Here, because it imports JAX: workers of `crossin prepare` could not be forked.
      from crossin_jax.processes import distributed

      distributed.add_flags(self)
    if gin:
      config.add_flags(self)

  def parse_known_args(self, args=None, namespace=None):
    return super().parse_known_args([self._spelled(word) for word in args], namespace)

  def _spelled(self, word: str) -> str:
    name, equals, value = word.partition('=')
    flag = '--' + name[2:].replace('-', '_')
    known = self._option_string_actions
    return f'{flag}{equals}{value}' if name.startswith('--') and flag in known else word


def add_share(parser: Parser) -> None:
  """Adds `--share`, by which workers that know nothing of each other divide chunks."""
  parser.add_argument(
    '--share', default='0/1', help='i/n: this worker takes every n-th chunk from the i-th'
  )


def share_of(args: argparse.Namespace) -> tuple[int, int]:
  """(i, n) of `--share`; raises ConfigError."""
  try:
    i, n = map(int, args.share.split('/'))
    if not 0 <= i < n:
      raise ValueError
  except ValueError:
    raise config.ConfigError(
      f'--share {args.share!r}: write i/n with 0 <= i < n, e.g. 0/4'
    ) from None
  return i, n


def finish(args: argparse.Namespace, result: dict, status: int = exit_status.DONE) -> int:
  """Prints the result as JSON with `--json`; returns the exit status."""
  if args.json:
    print(json.dumps(result, ensure_ascii=False))
  return status
