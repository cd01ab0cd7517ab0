"""gin as T5X uses it: --gin_file, --gin_search_paths, --gin.NAME=VALUE."""

import argparse
import difflib
import logging
import os
import re
import tokenize

import gin


class ConfigError(ValueError):
  """A gin file, name or value that is wrong; the message says where and what was meant."""


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the gin flags; `--gin.NAME=VALUE` is read by `parse` from what argparse leaves over."""
  group = parser.add_argument_group('configuration')
  group.add_argument('--gin_file', action='append', default=[], help='a gin file; may be repeated, later ones win')
  group.add_argument('--gin_search_paths', default='', help='comma-separated folders in which gin files are looked for')
  group.add_argument('--gin_bindings', action='append', default=[], metavar='BINDING', help="'NAME = VALUE'")
  group.add_argument(
      '--gin.NAME', dest='_shown_in_help_only', metavar='VALUE', help='set a gin value: --gin.train.total_steps=100'
  )


def rewrite(argv: list[str]) -> list[str]:
  """Turns `--gin.NAME=VALUE` into `--gin_bindings=NAME = VALUE`, as T5X does."""
  result = []
  for argument in argv:
    match = re.match(r'--gin\.([^=]+)=(.*)\Z', argument, re.DOTALL)
    if argument.startswith('--gin.') and not match:
      raise ConfigError(f'{argument}: write --gin.NAME=VALUE in one piece')
    result.append(f'--gin_bindings={match[1]} = {match[2]}' if match else argument)
  return result


def parse(args: argparse.Namespace) -> None:
  """Parses gin files and bindings, replacing what was parsed before.

  Raises:
    ConfigError: a missing file, an unknown name (with the nearest known), a value that gin cannot read.
  """
  root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  gin.clear_config()
  paths = [path for path in args.gin_search_paths.split(',') if path]
  for path in [*paths, root]:
    gin.add_config_file_search_path(path)
  for path in args.gin_file:
    if not any(os.path.isfile(os.path.join(folder, path)) for folder in ('', *paths, root)):
      raise ConfigError(f'gin file {path!r} is not there (looked in: current folder, {", ".join([*paths, root])})')
  # gin's other reader takes folders for Python packages, and breaks on ours, which has no __init__.py.
  gin.config._FILE_READERS[:] = [(open, os.path.isfile)]  # pylint: disable=protected-access
  # gin logs an error for every search path that a file is not in.
  logging.disable(logging.ERROR)
  try:
    gin.parse_config_files_and_bindings(args.gin_file, args.gin_bindings, finalize_config=True)
  except (ValueError, SyntaxError, NameError, OSError, ImportError, AttributeError) as error:
    raise ConfigError(f'{_explain(str(error))}') from error
  except tokenize.TokenError as error:  # gin does not say in which file
    where = ', '.join([*args.gin_file, *args.gin_bindings])
    raise ConfigError(f'a bracket or a quotation mark is not closed in one of: {where} ({error})') from error
  finally:
    logging.disable(logging.NOTSET)


def _explain(message: str) -> str:
  """Adds the nearest known name to gin's message."""
  names = set()
  wanted = None
  if match := re.search(r"No configurable matching (?:reference )?'?@?([\w./]+?)(?:\(\))?'", message):
    wanted = match[1].split('/')[-1]
    for selector, _ in gin.config._REGISTRY.items():  # pylint: disable=protected-access  # gin has no public list
      names.add(selector)
      names.add(selector.split('.')[-1])
  elif match := re.search(r"Configurable '([\w.]+)' doesn't have a parameter named '(\w+)'", message):
    import inspect

    wanted = match[2]
    found = gin.config._REGISTRY.get_match(match[1].split('.')[-1])  # pylint: disable=protected-access
    if found is not None:
      names = set(inspect.signature(found.wrapped).parameters)
  if wanted is None:
    return message
  near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
  return f'{message}\n  Nearest known: {", ".join(near)}' if near else message


def macro(name: str):
  """Value of a gin macro such as MODEL_DIR, or None if it is not set."""
  try:
    return gin.query_parameter(f'%{name}')
  except ValueError:
    return None


def bound(parameter: str):
  """What gin binds a parameter to ('train.evaluators'), references unresolved; None if it is not bound."""
  try:
    return gin.query_parameter(parameter)
  except ValueError:
    return None
