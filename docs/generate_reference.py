"""Writes docs/reference/commands.md from every command's --help, and settings.md from the
docstrings of all gin configurables.

python docs/generate_reference.py
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
TABLE = '| parameter | default | meaning |\n|---|---|---|\n'


def commands() -> str:
  """The page of commands."""
  from crossin_jax import cli

  os.environ['COLUMNS'] = '88'
  page = HEADER + '# Commands\n\nThe text of `crossin COMMAND --help` for each command.\n'
  for name, command in cli.COMMANDS.items():
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
      cli.main([name, '--help'])
    text, what = printed.getvalue().strip(), command.what
    page += f'\n## crossin {name} {{ #{name} }}\n\n{what[:1].upper()}{what[1:]}.\n\n'
    page += f'```text\n{text}\n```\n'
  return page


def configurables() -> dict:
  """Name -> gin's entry of every configurable of both packages, once all their modules are
  imported.
  """
  for package in map(importlib.import_module, ('crossin_jax', 'seqio_tasks')):
    for module in pkgutil.walk_packages(
      package.__path__, f'{package.__name__}.', onerror=lambda name: None
    ):
      with contextlib.suppress(Exception, SystemExit):  # an extra that is not installed, or T5X
        importlib.import_module(module.name)
  # pylint: disable=protected-access  # gin has no public list
  registry = gin.config._REGISTRY.items()
  named = {
    selector.split('.')[-1]: found for selector, found in registry if _is_ours(found.wrapped)
  }
  return {name: named[name] for name in sorted(named, key=str.lower) if not name.startswith('_')}


def _is_ours(wrapped) -> bool:
  return (getattr(wrapped, '__module__', '') or '').split('.')[0] in ('crossin_jax', 'seqio_tasks')


def parameters_of(found) -> list[inspect.Parameter]:
  """The parameters that gin may set."""
  no = {'parent', 'name'} if hasattr(found.wrapped, 'scope') else set()  # of every Flax module
  no |= set(found.denylist or ())
  every = inspect.signature(found.wrapped).parameters.values()
  chosen = [
    p for p in every if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in no
  ]
  return [
    p for p in chosen if p.name in (found.allowlist or [p.name]) and not p.name.startswith('_')
  ]


def settings() -> str:
  """The page of settings."""
  page = (
    HEADER
    + '# Settings\n\nEvery name that gin can set: first the macros that all runs share, then each '
    'configurable. '
  )
  page += 'Set one with `--gin.NAME=VALUE`, for instance `--gin.schedule.peak=1e-4`.\n\n'
  page += '## Macros of a run { #macros }\n\nFrom `gin_configs/runs/defaults.gin`.\n\n'
  page += TABLE.replace('parameter', 'macro')
  defaults = (REPOSITORY / 'gin_configs/runs/defaults.gin').read_text(encoding='utf-8')
  for name, value, comment in re.findall(r'(?m)^([A-Z_]+) = (.*?)[ ]*(?:#[ ]*(.*))?$', defaults):
    page += (
      f'| `{name}` | {"required" if "REQUIRED" in value else f"`{value}`"} | {_escape(comment)} |\n'
    )
  for name, found in configurables().items():
    doc = inspect.getdoc(found.wrapped) or ''
    if inspect.isclass(found.wrapped):
      doc = (
        '' if doc.startswith(f'{found.wrapped.__name__}(') else doc
      )  # the text that dataclasses make up
      doc += '\n\n' + (inspect.getdoc(found.wrapped.__init__) or '')
    summary, texts = doc.split('\n\n')[0].replace('\n', ' '), described(doc)
    page += f'\n## {name} {{ #{name.lower().replace("_", "-")} }}\n\n{_escape(summary)}\n\n{TABLE}'
    for parameter in parameters_of(found):
      meaning = _escape(texts.get(parameter.name, ''))
      page += f'| `{parameter.name}` | {_default(parameter.default)} | {meaning} |\n'
  return page


def described(doc: str) -> dict[str, str]:
  """Parameter -> its text in the Args and Attributes sections of a docstring; 'a, b: text'
  describes both.
  """
  texts = {}
  for section in re.findall(
    r'(?ms)^\s*(?:Args|Attributes):\s*\n?(.*?)(?=^\s*(?:Returns|Raises|Yields|Args|Attributes)\b|\Z)',
    doc,
  ):
    for entry in re.split(r'\n(?=\s*\w+(?:, \w+)*: )|(?<=[.;]) (?=[a-z]\w*: )', '\n' + section):
      if match := re.match(r'\s*(\w+(?:, \w+)*): (.*)', entry, re.DOTALL):
        text = re.sub(r'\s+', ' ', match[2].split('\n\n')[0]).strip()
        texts = dict.fromkeys(match[1].split(', '), text) | texts
  return texts


def _default(value) -> str:
  if value is inspect.Parameter.empty or value is gin.REQUIRED:
    return 'required'
  made = value.__class__.__name__ == '_HAS_DEFAULT_FACTORY_CLASS'
  return '`{}`' if made else f'`{getattr(value, "__name__", None) or repr(value)}`'


def _escape(text: str) -> str:
  parts = re.split(r'(`[^`]*`)', text)  # code stays as it is
  return ''.join(
    part if i % 2 else re.sub(r'([*_<>|\[\]])', r'\\\1', part) for i, part in enumerate(parts)
  )


def pages() -> dict[Path, str]:
  """Path -> text of both pages."""
  return {PAGES / 'commands.md': commands(), PAGES / 'settings.md': settings()}


if __name__ == '__main__':
  sys.path.insert(0, str(REPOSITORY))
  for path, text in pages().items():
    path.write_text(text, encoding='utf-8')
