"""Settings without quotes: `crossin train FILE.gin MODEL_DIR=runs/a LANGUAGES=en,zh,vi`.

text of VALUE             parameter annotated as     value
7, None, 'a', (1, 2)      anything that it fits      as gin reads it
@Decoder(), %MODEL        anything                   as gin reads it
runs/a,b    7             str                        'runs/a,b'   '7'
zh    en,zh               tuple[str, ...]            ('zh',)      ('en', 'zh')
en,zh    1,4,2    runs/a  nothing that is known      ('en', 'zh') (1, 4, 2)  'runs/a'
"""

import ast
from collections.abc import Callable, Sequence
import re
import typing

from crossin_jax.config import registry, types
from crossin_jax.config.errors import ConfigError

SETTING = re.compile(r'((?:\w+/)*[A-Za-z_]\w*(?:\.\w+)*)=(.*)\Z', re.DOTALL)
FLAG = '--gin_setting'  # how a word reaches argparse, see `explicit`
_LITERALS = (int, float, str, bool, type(None))


class Word(str):
  """NAME=VALUE as it was typed; the other entries of gin_bindings are 'NAME = VALUE' of gin."""

  __slots__ = ()


def explicit(argv: Sequence[str], takes_value: Callable[[str], bool], files: bool) -> list[str]:
  """Words of the command line as flags, in their places.

      explicit(['a.gin', '--name', 'X=1', 'Y=2'], ...) ==
      ['--gin_file=a.gin', '--name', 'X=1', '--gin_setting=Y=2']

  Args:
    argv: the arguments of a command.
    takes_value: whether the word after this flag is its value.
    files: whether the command takes gin files.
  """
  result, value_next = [], False
  for i, word in enumerate(argv):
    if word == '--':
      return [*result, *argv[i:]]
    if value_next or word.startswith('-'):
      value_next = word.startswith('--') and '=' not in word and takes_value(word)
      result.append(word)
    elif files and word.endswith('.gin'):
      result.append(f'--gin_file={word}')
    else:
      result.append(f'{FLAG}={word}' if SETTING.match(word) else word)
  return result


def argument(binding: str) -> str:
  """What stands on the command line of another `crossin` command for an entry of gin_bindings."""
  return str(binding) if isinstance(binding, Word) else f'--gin_bindings={binding}'


def name_of(binding: str) -> str:
  """NAME of 'NAME = VALUE' or NAME=VALUE; '' of an import."""
  match = re.match(r'\s*([\w./]+)\s*=', binding)
  return match[1] if match else ''


def value_of(word: Word):
  """The value of a word for the parameter or macro that it names, after the gin files were read.

  Returns:
    The value, or, where gin must look up references in it, its text in gin's syntax as a `Word`.

  Raises:
    ConfigError: the parameters that share a macro need different values.
    ValueError: no such configurable.
  """
  name, text = SETTING.match(word).groups()
  found = [read(text, annotation) for annotation in _annotations(name)]
  if any(value != found[0] or type(value) is not type(found[0]) for value in found):
    shown = ' or '.join(dict.fromkeys(map(repr, found)))
    raise ConfigError(
      f'{word}: {name} is used by parameters of different types, so the value may be {shown}; '
      f'write --gin.{name}="VALUE" in gin\'s syntax'
    )
  return found[0]


def _annotations(name: str) -> list:
  """The types that a setting may have: by annotation, else by the value that it has."""
  owner, _, parameter = name.rpartition('.')
  if owner:
    entry = registry.entry(owner)
    users = [(entry, parameter)] if entry else []
    present = [b.value for b in registry.bindings() if b.name == name]
  else:
    users, present = registry.users(name), [registry.macros().get(name)]
  known = []
  for entry, parameter in users:
    annotation = registry.annotations(entry).get(parameter, typing.Any)
    if annotation is not typing.Any:
      known.append(annotation)
  return known or [types.of_value(registry.literal_behind(v)) for v in present] or [typing.Any]


def read(text: str, annotation=typing.Any):
  """VALUE for a parameter of this type; references stay a `Word` in gin's syntax.

  read('en,zh', tuple[str, ...]) == ('en', 'zh') and read('en,zh', str) == 'en,zh'
  """
  stripped = text.strip()
  if re.match(r'[@%][A-Za-z_]', stripped):
    return Word(f'({stripped},)' if re.search(r',\s*[@%]', stripped) else stripped)
  value = literal(stripped)
  known = value is not registry.UNKNOWN
  if not known and stripped[:1] in ('(', '[', '{') and re.search(r'[@%][A-Za-z_]', stripped):
    return Word(stripped)
  if known and _fits(value, annotation):
    return value
  text_only = types.is_text(annotation) and not types.is_sequence(annotation)
  if not text_only and (
    ',' in text or (types.is_sequence(annotation) and not types.is_text(annotation))
  ):
    return _parts(stripped, types.has_texts(annotation))
  if types.is_text(annotation) or not known:
    return text
  return value


def _parts(text: str, texts: bool) -> tuple:
  """The parts between commas: texts, or, if all of them are, numbers and other literals."""
  if match := re.fullmatch(r'\((.*)\)|\[(.*)\]', text, re.DOTALL):
    text = match[1] if match[1] is not None else match[2]
  parts = [part.strip() for part in text.split(',')]
  if not parts[-1]:
    parts.pop()
  values = [literal(part) for part in parts]
  if not texts and registry.UNKNOWN not in values:
    return tuple(values)
  return tuple(v if isinstance(v, str) else part for part, v in zip(parts, values))


def _fits(value, annotation) -> bool:
  """As `types.fits`, the parts of a tuple of texts included."""
  if isinstance(value, str) and not types.is_text(annotation) and types.is_sequence(annotation):
    return False
  if types.is_sequence(annotation) and not isinstance(value, (tuple, list, dict, type(None))):
    scalars = [arm for arm in types.arms(annotation) if not types.is_sequence(arm)]
    return any(types.fits(value, arm) for arm in scalars)
  if isinstance(value, (tuple, list)) and types.has_texts(annotation):
    return all(isinstance(part, str) for part in value)
  return types.fits(value, annotation)


def literal(text: str):
  """What a text is in gin's syntax: a number, quoted text, tuple, ...; UNKNOWN = nothing."""
  if '#' in text and text[:1] not in ('"', "'", '(', '[', '{'):  # Python would see a comment
    return registry.UNKNOWN
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    return registry.UNKNOWN
  return value if _is_gin(value) else registry.UNKNOWN


def _is_gin(value) -> bool:
  if isinstance(value, (tuple, list)):
    return all(map(_is_gin, value))
  if isinstance(value, dict):
    return all(map(_is_gin, (*value, *value.values())))
  return isinstance(value, _LITERALS)
