"""`crossin settings [WORD]`: what gin can set, with defaults, types and what the docstrings say.

docs/reference/settings.md is written from the same lists (docs/generate_reference.py).
"""

import contextlib
import dataclasses
import importlib
import inspect
import os
from pathlib import Path
import re
import textwrap

import gin

from crossin_jax import config
from crossin_jax.config import docstrings, errors, messages, registry, types
from crossin_jax.errors import CrossinError
from crossin_jax.workflow import command_line, settings_flags

PACKAGES = ('crossin_jax', 'seqio_tasks')
_REGISTERS = re.compile(r'\b(?:gin|config)\.(?:external_)?configurable\b')


class UnknownSetting(CrossinError, LookupError):
  """No setting has the word in its name or text."""


@dataclasses.dataclass(frozen=True)
class Setting:
  """What can be set as NAME=VALUE.

  Attributes:
    name: of the macro, or 'configurable.parameter'.
    default: as gin or Python writes it; 'required' where there is none.
    kind: the annotated type; '' = not known.
    text: what is said of it.
    file: the gin file that sets the macro; '' = a parameter.
  """

  name: str
  default: str
  kind: str
  text: str
  file: str = ''


def macros(*folders: str) -> list[Setting]:
  """The macros of the gin files that ship with the project, those that all runs share first."""
  found = {}
  for path, text in messages.shipped_texts(*folders).items():
    file = os.path.relpath(path, config.REPOSITORY)
    for name, value, comment in re.findall(
      r'(?m)^([A-Z_]+) = (.*?)[ ]*(?:(?<=[ ])#[ ]*(.*))?$', text
    ):
      default = 'required' if value.strip() == '%gin.REQUIRED' else value.strip()
      setting = Setting(name, default, '', comment, file)
      found.setdefault((name, default, comment), setting)
  return sorted(found.values(), key=lambda s: s.file != 'gin_configs/runs/defaults.gin')


def configurables() -> dict:
  """Name -> gin's entry of every configurable of both packages, once the modules that register
  them are imported.
  """
  for package in PACKAGES:
    root = Path(importlib.import_module(package).__file__).parent
    for path in sorted(root.rglob('*.py')):
      if _REGISTERS.search(path.read_text(encoding='utf-8')):
        parts = path.relative_to(root.parent).with_suffix('').parts
        with contextlib.suppress(ImportError):  # an extra that is not installed, or T5X
          importlib.import_module('.'.join(parts).removesuffix('.__init__'))
  named = {
    selector.split('.')[-1]: found
    for selector, found in registry.configurables().items()
    if (getattr(found.wrapped, '__module__', '') or '').split('.')[0] in PACKAGES
  }
  return {name: named[name] for name in sorted(named, key=str.lower) if not name.startswith('_')}


def parameters() -> list[Setting]:
  """Every parameter that gin can set."""
  settings = []
  for owner, found in configurables().items():
    texts = docstrings.described(docstrings.of(found.wrapped))
    annotations = registry.annotations(found)
    for parameter in registry.parameters(found):
      kind = types.in_words(annotations[parameter.name]) if parameter.name in annotations else ''
      text, default = texts.get(parameter.name, ''), default_of(parameter)
      settings.append(Setting(f'{owner}.{parameter.name}', default, _short(kind), text))
  return settings


def default_of(parameter: inspect.Parameter) -> str:
  """Its default as Python writes it; '' = made at every call."""
  value = parameter.default
  if value is inspect.Parameter.empty or value is gin.REQUIRED:
    return 'required'
  if value.__class__.__name__ == '_HAS_DEFAULT_FACTORY_CLASS':
    return ''
  return getattr(value, '__name__', None) or repr(value)


def _short(kind: str) -> str:
  """A type without the names of modules."""
  return re.sub(r'\b(?:\w+\.)+(?=\w)', '', kind)


def summary(text: str) -> str:
  """The first sentence, and every other one that quotes legal choices."""
  first, *others = re.split(r'(?<=\.) (?=[A-Z\'"`])', re.sub(r'\s+', ' ', text).strip())
  return ' '.join([first, *(other for other in others if re.search(r"'\w+'", other))]).rstrip('.')


def matching(settings: list[Setting], word: str) -> list[Setting]:
  """The settings with a word in their names or texts.

  Raises:
    UnknownSetting: none; names the nearest.
  """
  lower = word.lower()
  if found := [s for s in settings if lower in f'{s.name} {s.text}'.lower()]:
    return found
  parts = {part: s.name for s in settings for part in (s.name, s.name.split('.')[-1])}
  near = dict.fromkeys(parts[part] for part in errors.nearest(word, parts))
  hint = f'; the nearest are {", ".join(near)}' if near else ''
  raise UnknownSetting(f'no setting has {word!r} in its name or text{hint}')


def as_text(setting: Setting) -> str:
  """NAME = default (type), and below it what is said of it."""
  default = setting.default or 'made for each'
  head = f'{setting.name}  required' if default == 'required' else f'{setting.name} = {default}'
  head += f'  ({setting.kind})' if setting.kind else ''
  head += f'  [{setting.file}]' if setting.file else ''
  body = textwrap.fill(summary(setting.text), 96, initial_indent='    ', subsequent_indent='    ')
  return f'{head}\n{body}' if body else head


def main(argv: list[str]) -> int:
  """The command line of `crossin settings`."""
  args = settings_flags.parser().parse_args(argv)
  every = [*macros(), *parameters()]
  found = matching(every, args.word) if args.word else every
  if args.json:
    return command_line.finish(args, {'settings': list(map(dataclasses.asdict, found))})
  print('\n'.join(map(as_text, found)))
  return 0
