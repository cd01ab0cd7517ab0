"""Writes docs/reference/commands.md from every command's --help, and settings.md from the
docstrings of all gin configurables.

python docs/generate_reference.py
"""

import contextlib
import io
import os
from pathlib import Path
import re
import sys

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


def settings() -> str:
  """The page of settings."""
  from crossin_jax.config import docstrings, registry
  from crossin_jax.workflow import settings as settings_lib

  page = (
    HEADER
    + '# Settings\n\nEvery name that gin can set: first the macros that all runs share, then each '
    'configurable. '
  )
  page += (
    'Set one with `NAME=VALUE` on the command line, for instance `schedule.peak=1e-4`. How a value '
    'is read: [Training](../guides/training.md#settings). `crossin settings WORD` searches '
    'them.\n\n'
  )
  page += '## Macros of a run { #macros }\n\nFrom `gin_configs/runs/defaults.gin`.\n\n'
  page += TABLE.replace('parameter', 'macro')
  for macro in settings_lib.macros('runs'):
    if macro.file.endswith('/defaults.gin'):
      page += f'| `{macro.name}` | {_default(macro.default)} | {_escape(macro.text)} |\n'
  for name, found in settings_lib.configurables().items():
    doc = docstrings.of(found.wrapped)
    summary, texts = doc.split('\n\n')[0].replace('\n', ' '), docstrings.described(doc)
    page += f'\n## {name} {{ #{name.lower().replace("_", "-")} }}\n\n{_escape(summary)}\n\n{TABLE}'
    for parameter in registry.parameters(found):
      meaning = _escape(texts.get(parameter.name, ''))
      default = _default(settings_lib.default_of(parameter))
      page += f'| `{parameter.name}` | {default} | {meaning} |\n'
  return page


def _default(text: str) -> str:
  return text if text == 'required' else f'`{text}`' if text else '`{}`'


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
