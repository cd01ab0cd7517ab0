"""What all command lines share: flags, their spelling, settings as words, help, and JSON output."""

import argparse
from collections.abc import Sequence
import json

from crossin_jax import config
from crossin_jax.config import words
from crossin_jax.processes import exit_status
from crossin_jax.processes import flags as process_flags

STATUSES = '0 done, 75 interrupted (run it again to continue), 1 failed, 2 usage'


class _Help(argparse.HelpFormatter):
  """Adds the default to the help of a flag that has one."""

  def _get_help_string(self, action):
    text = action.help or ''
    if action.default in (None, False, (), [], '', argparse.SUPPRESS) or '(default' in text:
      return text
    return f'{text} (default: %(default)s)'.strip()


class Parser(argparse.ArgumentParser):
  """The flags of a command. `--some-flag` is accepted for `--some_flag`, and gin files and settings
  as words: `crossin train FILE.gin MODEL_DIR=runs/a`.
  """

  def __init__(
    self,
    command: str,
    description: str,
    example: str,
    *,
    gin: bool | str = False,
    processes: bool = False,
    statuses: str = STATUSES,
  ):
    """Adds `--json` and the requested groups of flags.

    Args:
    command: the words after `crossin`, or a full command that starts with 'python'.
    description: of the command.
    example: a complete command.
    gin: add the gin flags; 'settings' = without those of gin files.
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
      process_flags.add_flags(self)
    self._gin = gin
    if gin:
      config.add_flags(self, files=gin is True)

  def parse_known_args(self, args=None, namespace=None):
    return super().parse_known_args(self.explicit(args), namespace)

  def parse_args(self, args=None, namespace=None):
    found, stray = self.parse_known_args(args, namespace)
    self.refuse(stray)
    return found

  def refuse(self, stray: Sequence[str]) -> None:
    """Exits with a usage error if there are any arguments that the command does not know."""
    if stray and self._gin and not stray[0].startswith('-'):
      form = 'NAME=VALUE' if self._gin == 'settings' else 'FILE.gin or NAME=VALUE'
      self.error(f'{stray[0]!r} is not understood; settings are given as {form}')
    if stray:
      self.error(f'unrecognized arguments: {" ".join(stray)}')

  def error(self, message: str):
    """Exits with one line instead of argparse's usage, which is longer than the help is."""
    self.exit(2, f'{self.prog}: error: {message} (see {self.prog} --help)\n')

  def explicit(self, argv: Sequence[str]) -> list[str]:
    """The arguments with the known spelling of flags, and words for gin as flags."""
    argv = [self._spelled(word) for word in argv]
    return words.explicit(argv, self._takes_value, self._gin is True) if self._gin else argv

  def _takes_value(self, flag: str) -> bool:
    known = self._option_string_actions
    names = [flag] if flag in known else [name for name in known if name.startswith(flag)]
    return any(known[name].nargs != 0 for name in names)

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
