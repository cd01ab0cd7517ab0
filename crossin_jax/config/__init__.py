"""gin as T5X uses it: --gin_file, --gin_search_paths, --gin.NAME=VALUE; and without double quotes,
as words: FILE.gin NAME=VALUE (`words.py`).
"""

import argparse
from collections.abc import Callable, Mapping
import contextlib
import copy
import io
import logging
import os
import re
import tokenize
import warnings

import gin

from crossin_jax import moved
from crossin_jax.config import messages, registry, types, words
from crossin_jax.config.errors import ConfigError
from crossin_jax.config.messages import REPOSITORY, shipped_macros, unknown_macro
from crossin_jax.config.registry import Binding, bindings, is_macro, macros, references
from crossin_jax.config.words import argument, name_of
from crossin_jax.storage import remote


def configurable(name: str | None = None, *, commands: tuple[str, ...], **options) -> Callable:
  """`gin.configurable` for settings that a pipeline passes on to the commands it starts.

  Args:
    name: in gin files; None = that of the function or class.
    commands: those of 'prepare', 'train', 'chunks' and 'evaluate' that read the settings; the first
      one counts when a pipeline decides which steps are stale. () = none. What is registered with
      `gin.configurable` itself belongs to 'train'.
    **options: of `gin.configurable`.
  """

  def register(target):
    target.gin_commands = commands
    return gin.configurable(name, **options)(target)

  return register


def resolve(value):
  """The value behind gin references: `@Decoder()` becomes the model."""
  return copy.deepcopy(value)  # a reference evaluates itself when it is copied


def add_flags(parser: argparse.ArgumentParser, files: bool = True) -> None:
  """Adds the gin flags; `rewrite` turns `--gin.NAME=VALUE` into `--gin_bindings`.

  Args:
    parser: whose flags they are.
    files: add those of gin files too.
  """
  group = parser.add_argument_group(
    'configuration', 'also as words: FILE.gin NAME=VALUE; `crossin settings` lists the names'
  )
  if files:
    group.add_argument(
      '--gin_file',
      action='append',
      default=[],
      help='gin file, as the word FILE.gin; may be repeated, the last one wins',
    )
    group.add_argument(
      '--gin_search_paths', default='', help='comma-separated folders to search for gin files'
    )
  group.add_argument(
    '--gin_bindings', action='append', default=[], metavar='BINDING', help="'NAME = VALUE'"
  )
  group.add_argument(
    words.FLAG,
    dest='gin_bindings',
    action='append',
    type=words.Word,
    default=[],
    help=argparse.SUPPRESS,
  )
  group.add_argument(
    '--gin.NAME',
    dest='_shown_in_help_only',
    metavar='VALUE',
    help="a value in gin's own syntax: --gin.MODEL_DIR=\"'runs/a'\"",
  )


def rewrite(argv: list[str]) -> list[str]:
  """Turns `--gin.NAME=VALUE` into `--gin_bindings=NAME = VALUE`, as T5X does."""
  result = []
  for word in argv:
    match = re.match(r'--gin\.([^=]+)=(.*)\Z', word, re.DOTALL)
    if word.startswith('--gin.') and not match:
      raise ConfigError(f'{word}: write NAME=VALUE or --gin.NAME=VALUE in one piece')
    result.append(f'--gin_bindings={match[1]} = {match[2]}' if match else word)
  return result


def parse(args: argparse.Namespace, read: Mapping | tuple[str, ...] = ()) -> None:
  """Parses gin files and bindings; earlier bindings are cleared.

  Args:
    args: the flags of `add_flags`. Where it has `known_macros`, these may be set on the command
      line although nothing uses them here: a pipeline forwards them.
    read: macros that the code of the command reads.

  Raises:
    ConfigError: a missing file, an unknown name (with the nearest known), a value that gin cannot
      read, a macro of the command line that nothing uses, settings that are missing.
  """
  gin.clear_config()
  _texts.clear()
  args.gin_file[:] = map(remote.fetched, args.gin_file)
  paths = [path for path in args.gin_search_paths.split(',') if path]
  for path in [*paths, REPOSITORY]:
    gin.add_config_file_search_path(path)
  for path in args.gin_file:
    _check_exists(path, paths)
  use_file_reader()
  # gin logs an error for every search path that a file is not in.
  logging.disable(logging.ERROR)
  try:
    for path in args.gin_file:
      with _explaining(path):
        gin.parse_config_file(path)
    of_files = set(macros())
    for binding in args.gin_bindings:
      with _explaining(binding=binding):
        _bind(binding)
    _check_macros(args, of_files, {'MODEL', *read})
    absent = [name for name, value in macros().items() if registry.is_required(value)]
    if absent := absent + sorted(registry.used_macros() - set(macros())):
      raise messages.missing(absent, _texts | messages.shipped_texts())
    with _explaining(', '.join(args.gin_file)):
      gin.finalize()
    _check_types()
  finally:
    logging.disable(logging.NOTSET)


def _check_exists(path: str, search: list[str]) -> None:
  """Raises ConfigError for a gin file that is in no folder, with the nearest names."""
  folders = ['', *search, REPOSITORY]
  if any(os.path.isfile(os.path.join(folder, path)) for folder in folders):
    return
  shipped = [os.path.relpath(name, REPOSITORY) for name in messages.shipped_texts()]
  beside = os.path.dirname(path)
  own = [os.path.join(beside, n) for n in _listed(beside or '.') if n.endswith('.gin')]
  same = [name for name in shipped if os.path.basename(name) == os.path.basename(path)]
  near = f'; do you mean {" or ".join(same)}?' if same else messages.hint(path, [*shipped, *own])
  raise ConfigError(
    f'gin file {path!r} does not exist (searched: current folder, '
    f'{", ".join([*search, REPOSITORY])}){near}'
  )


def _listed(folder: str) -> list[str]:
  return os.listdir(folder) if os.path.isdir(folder) else []


@contextlib.contextmanager
def _explaining(path: str = '', binding: str = ''):
  """Turns gin's errors into a ConfigError of one sentence."""
  try:
    yield
  except ConfigError:
    raise
  except (ValueError, SyntaxError, NameError, OSError, ImportError, AttributeError) as error:
    raise messages.explained(error, binding) from error
  except tokenize.TokenError as error:  # gin does not say in which file
    raise ConfigError(
      f'an unclosed bracket or quotation mark in {binding or path} ({error})'
    ) from error


def _bind(binding: str) -> None:
  """Applies one entry of gin_bindings."""
  if not isinstance(binding, words.Word):
    gin.parse_config(moved.renamed(binding))
    return
  name, value = name_of(binding), words.value_of(binding)
  if isinstance(value, words.Word):
    gin.parse_config(f'{name} = {value}')
  else:
    gin.bind_parameter(name if '.' in name else (name, 'gin.macro', 'value'), value)


def _check_macros(args: argparse.Namespace, of_files: set[str], read: set[str]) -> None:
  """Refuses macros of the command line that nothing uses, and warns of those in users' own files.

  A macro that another file of the project sets may stand in a file that several commands share.
  """
  used = registry.used_macros() | read
  shipped = shipped_macros()
  legal = used | of_files | set(getattr(args, 'known_macros', ()))
  for binding in args.gin_bindings:
    name = name_of(binding).split('/')[-1]
    if name and '.' not in name and name not in legal:
      raise unknown_macro(binding, legal, bool(args.gin_file))
  for path, text in _texts.items():
    for name in re.findall(r'(?m)^([A-Za-z_]\w*)[ ]*=', text):
      # The config.gin of a run is gin's own list of what the run read.
      if name not in used | shipped and os.path.basename(path) != 'config.gin':
        near = messages.hint(name, used)
        warnings.warn(f'{path}: nothing uses {name}{near}', stacklevel=2)


def parse_with(
  args: argparse.Namespace, placeholders: Mapping[str, str], read: tuple[str, ...] = ()
) -> dict[str, ConfigError]:
  """`parse`, for a command that does not need all macros of the gin files of runs.

  Args:
    args: as in `parse`.
    placeholders: macro -> gin value that it has where it must be set and is not.
    read: as in `parse`.

  Returns:
    Macro -> the error that it would be, of the placeholders that were used.

  Raises:
    ConfigError: as `parse`.
  """
  used: dict[str, ConfigError] = {}
  while True:
    try:
      parse(args, read)
      return used
    except ConfigError as error:
      absent = set(error.missing)
      if not absent or absent & set(used):
        raise
      if needed := [name for name in error.missing if name not in placeholders]:
        raise messages.missing(needed, _texts | messages.shipped_texts()) from None
      for name in error.missing:
        args.gin_bindings.append(f'{name} = {placeholders[name]}')
        used[name] = messages.missing([name], _texts | messages.shipped_texts())


def use_file_reader() -> None:
  """Makes gin read files only as files."""
  # gin's other reader takes folders for Python packages and fails on ours, which has no
  # __init__.py.
  gin.config._FILE_READERS[:] = [(_open_renamed, os.path.isfile)]


def _open_renamed(path: str) -> io.StringIO:
  with open(path, encoding='utf-8-sig') as f:
    text = moved.renamed(f.read())
  _texts[path] = text
  file = io.StringIO(text)
  file.name = path  # for gin's messages
  return file


_texts: dict[str, str] = {}  # path -> text of the gin files that `parse` read


def _check_types() -> None:
  """Compares every bound value with the annotation of its parameter; gin accepts anything.

  Raises:
    ConfigError: names the parameter, the value and the expected type.
  """
  for (_, selector), parameters in gin.config._CONFIG.items():
    entry = gin.config._REGISTRY.get(selector)
    if entry is None or selector == 'gin.macro':
      continue
    annotations = registry.annotations(entry)
    for name, value in parameters.items():
      value = registry.literal_behind(value)
      if name in annotations and not types.fits(value, annotations[name]):
        raise ConfigError(
          f'{selector.split(".")[-1]}.{name} = {value!r} is a {type(value).__name__}, it must be '
          f'{types.in_words(annotations[name])}'
        )


def of_call(error: Exception) -> ConfigError | None:
  """What a call of a configurable lacked, with what it means; None = another error."""
  return messages.of_call(error, files=bool(_texts))


def macro(name: str):
  """Value of a gin macro such as MODEL_DIR, or None if it is not set."""
  try:
    return gin.query_parameter(f'%{name}')
  except ValueError:
    return None


def bound(parameter: str):
  """What gin binds a parameter to ('train.evaluators'), references unresolved; None if it is not
  bound.

  In a scope its own binding comes first: within a macro M, the value of 'M/train.evaluators'.
  """
  scope = gin.current_scope()
  for depth in range(len(scope), -1, -1):
    try:
      return gin.query_parameter('/'.join([*scope[:depth], parameter]))
    except ValueError:
      pass
  return None


__all__ = [
  'Binding', 'ConfigError', 'REPOSITORY', 'add_flags', 'argument', 'bindings', 'bound',
  'configurable', 'is_macro', 'macro', 'macros', 'name_of', 'of_call', 'parse', 'parse_with',
  'references', 'resolve', 'rewrite', 'shipped_macros',
  'unknown_macro', 'use_file_reader',
]  # fmt: skip
