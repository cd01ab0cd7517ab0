"""Rendering of the HTML pages: Jinja with the shared style sheet, filters and language names."""

from collections.abc import Mapping, Sequence
import os
from pathlib import Path
import re

from crossin_jax.pages import words
from crossin_jax.storage.files import write_text

TEMPLATES = Path(__file__).parent / 'templates'


def write(path: str | os.PathLike, template: str, values: Mapping, **filters) -> None:
  """Renders a template into a file, atomically; the arguments are those of `render`."""
  write_text(path, render(template, values, **filters))


def render(template: str, values: Mapping, **filters) -> str:
  """The text of a page.

  Args:
    template: name of a file in `TEMPLATES`; it may include "style.css.j2".
    values: variables of the template; a missing one is an error.
    **filters: filters in addition to `percent`, `points` and `sub`.
  """
  from jinja2 import Environment, FileSystemLoader, StrictUndefined

  environment = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters.update(percent=words.percent, points=words.points, sub=sub, **filters)
  return environment.get_template(template).render(**values)


def language(code: str) -> dict:
  """{'code', 'name' (English), 'native' (name in the language itself), 'dir' ('ltr' or 'rtl')}."""
  from babel import Locale, UnknownLocaleError

  try:
    locale = Locale.parse(code, sep='-')
    native, direction = locale.languages.get(code, code), locale.text_direction
  except (UnknownLocaleError, ValueError):
    native, direction = code, 'ltr'
  return {'code': code, 'name': words.language_name(code), 'native': native, 'dir': direction}


def sub(text: str):
  """'AC3_3' and 'C_2' with a subscript, and a no-break space before a per cent sign."""
  from markupsafe import Markup, escape

  text = str(escape(text)).replace(' %', '\N{NO-BREAK SPACE}%')
  return Markup(re.sub(r'\b(AC3|C)_(\d+)', r'\1<sub>\2</sub>', text))


def evenly_spaced(elements: Sequence, count: int) -> list:
  """At most `count` elements, evenly spaced over the sequence."""
  count = min(count, len(elements))
  return [elements[int((k + 0.5) * len(elements) / count)] for k in range(count)]
