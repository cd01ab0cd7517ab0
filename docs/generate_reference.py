"""Writes docs/reference/commands.md from every command's --help, and settings.md from the docstrings of all gin configurables.

    python docs/generate_reference.py            # writes both
    python docs/generate_reference.py --check    # exit status 1 if one of them is out of date
"""

import contextlib
import importlib
import inspect
import io
import os
from pathlib import Path
import pkgutil
import re
import sys

import gin

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = REPOSITORY / 'docs' / 'reference'
HEADER = '<!-- Written by docs/generate_reference.py; do not edit. -->\n\n'


def help_of(command: str) -> str:
  """What `crossin COMMAND --help` prints."""
  from crossin_jax import cli

  os.environ['COLUMNS'] = '88'
  module, function, _ = cli.COMMANDS[command]
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
    getattr(importlib.import_module(module), function)(['--help'])
  return printed.getvalue().strip()


def commands() -> str:
  """The page of commands."""
  from crossin_jax import cli

  lines = [HEADER, '# Commands\n\nThe text of `crossin COMMAND --help` for each command.\n']
  for name, (_, _, what) in cli.COMMANDS.items():
    lines.append(f'\n## crossin {name} {{ #{name} }}\n\n{what[:1].upper()}{what[1:]}.\n\n```text\n{help_of(name)}\n```\n')
  return ''.join(lines)


def configurables() -> dict:
  """Name -> function or class of every gin configurable of both packages, once all their modules are imported."""
  for package in map(importlib.import_module, ('crossin_jax', 'seqio_tasks')):
    for module in pkgutil.walk_packages(package.__path__, f'{package.__name__}.', onerror=lambda name: None):
      with contextlib.suppress(Exception, SystemExit):  # an extra that is not installed, or T5X
        importlib.import_module(module.name)
  ours = {}
  for selector, found in gin.config._REGISTRY.items():  # pylint: disable=protected-access  # gin has no public list
    if (getattr(found.wrapped, '__module__', '') or '').split('.')[0] in ('crossin_jax', 'seqio_tasks'):
      ours[selector.split('.')[-1]] = found.wrapped
  return {name: ours[name] for name in sorted(ours, key=str.lower) if not name.startswith('_')}


def parameters_of(wrapped) -> list[inspect.Parameter]:
  """The parameters that gin may set."""
  skipped = ('parent', 'name') if hasattr(wrapped, 'scope') else ()  # of every Flax module
  kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
  found = inspect.signature(wrapped).parameters.values()
  return [p for p in found if p.kind not in kinds and p.name not in skipped and not p.name.startswith('_')]


def settings() -> str:
  """The page of settings."""
  lines = [HEADER, '# Settings\n\nEvery name that gin can set: first the macros that all runs share, then each configurable. ']
  lines.append('Set one with `--gin.NAME=VALUE`, for instance `--gin.schedule.peak=1e-4`.\n\n')
  lines.append('## Macros of a run { #macros }\n\nFrom `gin_configs/runs/defaults.gin`.\n\n| macro | default | meaning |\n|---|---|---|\n')
  defaults = (REPOSITORY / 'gin_configs/runs/defaults.gin').read_text(encoding='utf-8')
  for name, value, comment in re.findall(r'(?m)^([A-Z_]+) = (.*?)\s*(?:#\s*(.*))?$', defaults):
    lines.append(f'| `{name}` | {"required" if "REQUIRED" in value else f"`{value}`"} | {_cell(comment)} |\n')
  for name, wrapped in configurables().items():
    doc = inspect.getdoc(wrapped) or ''
    if inspect.isclass(wrapped):
      doc = '' if doc.startswith(f'{wrapped.__name__}(') else doc  # the text that dataclasses make up
      doc += '\n\n' + (inspect.getdoc(wrapped.__init__) or '')
    summary, texts = doc.split('\n\n')[0].replace('\n', ' '), described(doc)
    lines.append(f'\n## {name} {{ #{name.lower().replace("_", "-")} }}\n\n{_escape(summary)}\n\n| parameter | default | meaning |\n|---|---|---|\n')
    for parameter in parameters_of(wrapped):
      lines.append(f'| `{parameter.name}` | {_default(parameter.default)} | {_cell(texts.get(parameter.name, ""))} |\n')
  return ''.join(lines)


def described(doc: str) -> dict[str, str]:
  """Parameter -> its text in the Args and Attributes sections of a docstring; 'a, b: text' describes both."""
  texts = {}
  for section in re.findall(r'(?ms)^\s*(?:Args|Attributes):\s*\n?(.*?)(?=^\s*(?:Returns|Raises|Yields|Args|Attributes)\b|\Z)', doc):
    for entry in re.split(r'\n(?=\s*\w+(?:, \w+)*: )|(?<=[.;]) (?=[a-z]\w*: )', '\n' + section):
      if match := re.match(r'\s*(\w+(?:, \w+)*): (.*)', entry, re.DOTALL):
        text = re.sub(r'\s+', ' ', match[2].split('\n\n')[0]).strip()
        texts = {name: text for name in match[1].split(', ')} | texts
  return texts


def _default(value) -> str:
  if value is inspect.Parameter.empty or value is gin.REQUIRED:
    return 'required'
  if value.__class__.__name__ == '_HAS_DEFAULT_FACTORY_CLASS':
    return '`{}`'
  return f'`{getattr(value, "__name__", None) or repr(value)}`'


def _cell(text: str) -> str:
  return _escape(text).replace('|', '\\|')


def _escape(text: str) -> str:
  return ''.join(part if i % 2 else re.sub(r'([*_<>\[\]])', r'\\\1', part) for i, part in enumerate(re.split(r'(`[^`]*`)', text)))


def main(argv: list[str]) -> int:
  """Writes both pages, or compares them."""
  stale = 0
  for name, make in (('commands', commands), ('settings', settings)):
    path, text = PAGES / f'{name}.md', make()
    if not path.exists() or path.read_text(encoding='utf-8') != text:
      stale += 1
      print(f'{path.relative_to(REPOSITORY)} {"is out of date" if "--check" in argv else "written"}')
      if '--check' not in argv:
        path.write_text(text, encoding='utf-8')
  return 1 if stale and '--check' in argv else 0


if __name__ == '__main__':
  sys.path.insert(0, str(REPOSITORY))
  sys.exit(main(sys.argv[1:]))
