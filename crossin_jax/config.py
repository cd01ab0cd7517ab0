"""gin as T5X uses it: --gin_file, --gin_search_paths, --gin.NAME=VALUE.

The one place that reads gin's private registry: gin has no public list of what is bound.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
import copy
import difflib
import inspect
import io
import logging
import os
import re
import tokenize
import types
import typing
from typing import NamedTuple

import gin

from crossin_jax import moved
from crossin_jax.errors import CrossinError
from crossin_jax.storage import remote


class ConfigError(CrossinError, ValueError):
  """A wrong gin file, name or value; the message says where, with the nearest known names."""

  exit_status = 2

  def __init__(self, message: str, missing: str | None = None):
    """Args:
    message: for the user.
    missing: the macro that must be set and is not.
    """
    super().__init__(message)
    self.missing = missing


REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


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


class Binding(NamedTuple):
  """One bound parameter.

  Attributes:
    name: as users write it: 'train.log_period', with its scope 'eval/Sampling.top_k'.
    value: with references unresolved.
    module: that defines the configurable.
    commands: see `configurable`.
  """

  name: str
  value: object
  module: str
  commands: tuple[str, ...]


def bindings() -> Iterator[Binding]:
  """All bound parameters except macros."""
  for (scope, selector), values in gin.config._CONFIG.items():
    if selector == 'gin.macro':
      continue
    wrapped = gin.config._REGISTRY[selector].wrapped
    short = gin.config._REGISTRY.minimal_selector(selector)
    for name, value in values.items():
      yield Binding(
        f'{scope}/{short}.{name}'.lstrip('/'),
        value,
        wrapped.__module__,
        getattr(wrapped, 'gin_commands', ('train',)),
      )


def macros() -> dict[str, object]:
  """Name -> value of all macros, references unresolved."""
  return {
    scope: values['value']
    for (scope, selector), values in gin.config._CONFIG.items()
    if selector == 'gin.macro'
  }


def references(value) -> Iterator:
  """The references in a value, those behind its macros included."""
  if isinstance(value, gin.config.ConfigurableReference):
    yield value
    known = macros()
    if is_macro(value) and value.scopes[-1] in known:
      yield from references(known[value.scopes[-1]])
  elif isinstance(value, dict):
    for part in (*value.keys(), *value.values()):
      yield from references(part)
  elif isinstance(value, (list, tuple)):
    for part in value:
      yield from references(part)


def is_macro(reference) -> bool:
  """Whether a reference is `%NAME`."""
  return reference.selector == 'gin.macro'


def resolve(value):
  """The value behind gin references: `@Decoder()` becomes the model."""
  return copy.deepcopy(value)  # a reference evaluates itself when it is copied


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the gin flags; `rewrite` turns `--gin.NAME=VALUE` into `--gin_bindings`."""
  group = parser.add_argument_group('configuration')
  group.add_argument(
    '--gin_file', action='append', default=[], help='gin file; may be repeated, the last one wins'
  )
  group.add_argument(
    '--gin_search_paths', default='', help='comma-separated folders to search for gin files'
  )
  group.add_argument(
    '--gin_bindings', action='append', default=[], metavar='BINDING', help="'NAME = VALUE'"
  )
  group.add_argument(
    '--gin.NAME',
    dest='_shown_in_help_only',
    metavar='VALUE',
    help='set a gin value: --gin.train.total_steps=100',
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
  """Parses gin files and bindings; earlier bindings are cleared.

  Raises:
    ConfigError: a missing file, an unknown name (with the nearest known), a value that gin cannot
      read.
  """
  gin.clear_config()
  args.gin_file[:] = map(remote.fetched, args.gin_file)
  paths = [path for path in args.gin_search_paths.split(',') if path]
  for path in [*paths, REPOSITORY]:
    gin.add_config_file_search_path(path)
  for path in args.gin_file:
    if not any(os.path.isfile(os.path.join(folder, path)) for folder in ('', *paths, REPOSITORY)):
      raise ConfigError(
        f'gin file {path!r} does not exist (searched: current folder, '
        f'{", ".join([*paths, REPOSITORY])})'
      )
  use_file_reader()
  # gin logs an error for every search path that a file is not in.
  logging.disable(logging.ERROR)
  try:
    gin.parse_config_files_and_bindings(
      args.gin_file, list(map(moved.renamed, args.gin_bindings)), finalize_config=True
    )
    _check_types()
  except ConfigError:
    raise
  except (ValueError, SyntaxError, NameError, OSError, ImportError, AttributeError) as error:
    raise _explained(str(error)) from error
  except tokenize.TokenError as error:  # gin does not say in which file
    where = ', '.join([*args.gin_file, *args.gin_bindings])
    raise ConfigError(
      f'an unclosed bracket or quotation mark in one of: {where} ({error})'
    ) from error
  finally:
    logging.disable(logging.NOTSET)


def parse_with(args: argparse.Namespace, placeholders: Mapping[str, str]) -> dict[str, ConfigError]:
  """`parse`, for a command that does not need all macros of the gin files of runs.

  Args:
    args: as in `parse`.
    placeholders: macro -> gin value that it has where it must be set and is not.

  Returns:
    Macro -> the error that it would be, of the placeholders that were used.

  Raises:
    ConfigError: as `parse`.
  """
  used: dict[str, ConfigError] = {}
  while True:
    try:
      parse(args)
      return used
    except ConfigError as error:
      if error.missing not in placeholders or error.missing in used:
        raise
      args.gin_bindings.append(f'{error.missing} = {placeholders[error.missing]}')
      used[error.missing] = error


def use_file_reader() -> None:
  """Makes gin read files only as files."""
  # gin's other reader takes folders for Python packages and fails on ours, which has no
  # __init__.py.
  gin.config._FILE_READERS[:] = [(_open_renamed, os.path.isfile)]


def _open_renamed(path: str) -> io.StringIO:
  with open(path, encoding='utf-8-sig') as f:
    return io.StringIO(moved.renamed(f.read()))


def _check_types() -> None:
  """Compares every bound value with the annotation of its parameter; gin accepts anything.

  Raises:
    ConfigError: names the parameter, the value and the expected type.
  """
  for (_, selector), parameters in gin.config._CONFIG.items():
    entry = gin.config._REGISTRY.get(selector)
    if entry is None or selector == 'gin.macro':
      continue
    function = entry.wrapped.__init__ if inspect.isclass(entry.wrapped) else entry.wrapped
    try:
      annotations = typing.get_type_hints(function)
    except Exception:  # an annotation that cannot be resolved is no check
      continue
    for name, value in parameters.items():
      if isinstance(value, gin.config.ConfigurableReference):
        value = _macro_value(value)
      if name in annotations and not _fits(value, annotations[name]):
        short = selector.split('.')[-1]
        wanted = str(getattr(annotations[name], '__name__', annotations[name])).replace(
          'typing.', ''
        )
        raise ConfigError(
          f'{short}.{name} = {value!r} is a {type(value).__name__}, it must be {wanted}'
        )


_UNKNOWN = object()


def _macro_value(reference):
  """The literal behind `%NAME`; _UNKNOWN for references to configurables."""
  for _ in range(10):
    if not isinstance(reference, gin.config.ConfigurableReference):
      return reference
    if reference.selector != 'gin.macro':
      return _UNKNOWN
    try:
      reference = gin.query_parameter(f'%{reference.scopes[-1]}')
    except ValueError:
      return _UNKNOWN
  return _UNKNOWN


def _fits(value, annotation) -> bool:
  """Whether a literal has the annotated type; only plain types are checked."""
  if value is _UNKNOWN or annotation is typing.Any:
    return True
  arguments = typing.get_args(annotation)
  origin = typing.get_origin(annotation)
  if origin in (typing.Union, types.UnionType):
    return any(_fits(value, argument) for argument in arguments)
  if annotation is type(None) or annotation is None:
    return value is None
  if annotation is float:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
  if annotation is int:
    return isinstance(value, int) and not isinstance(value, bool)
  if annotation in (str, bool):
    return isinstance(value, annotation)
  if origin in (tuple, list) or annotation in (tuple, list):
    return isinstance(value, (tuple, list)) or not isinstance(value, (str, int, float, bool, dict))
  if origin is dict or annotation is dict:
    return isinstance(value, dict) or not isinstance(value, (str, int, float, bool, list, tuple))
  return True


def _explained(message: str) -> ConfigError:
  """gin's message with the nearest known name."""
  if match := re.search(r'(\w+)/macro.value set to `%gin.REQUIRED`', message):
    return ConfigError(
      f'{match[1]} is not set: give --gin.{match[1]}=VALUE (a text in both quotes: '
      f'--gin.{match[1]}="\'text\'")',
      missing=match[1],
    )
  names = set()
  wanted = None
  if match := re.search(
    r"No configurable matching (?:reference )?'?@?([\w./]+?)(?:\(\))?'", message
  ):
    wanted = match[1].split('/')[-1]
    for selector, _ in gin.config._REGISTRY.items():
      names.add(selector)
      names.add(selector.split('.')[-1])
  elif match := re.search(
    r"Configurable '([\w.]+)' doesn't have a parameter named '(\w+)'", message
  ):
    wanted = match[2]
    found = gin.config._REGISTRY.get_match(match[1].split('.')[-1])
    if found is not None:
      names = set(inspect.signature(found.wrapped).parameters)
  if wanted is None:
    return ConfigError(message)
  near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
  return ConfigError(f'{message}\n  Nearest known: {", ".join(near)}' if near else message)


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
