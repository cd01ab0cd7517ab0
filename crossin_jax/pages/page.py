"""What all pages share: Jinja with the style sheet, the words for languages, figures as text."""

from collections.abc import Mapping
import os
from pathlib import Path
import re

from crossin_jax.pages import words
from crossin_jax.storage.files import write_text

TEMPLATES = Path(__file__).parent / 'templates'


def write(path: str | os.PathLike, template: str, values: Mapping, **filters) -> None:
  """Renders a template into a file that appears by rename.

  Args:
    path: the page.
    template: name of a file of `TEMPLATES`; it may include "style.css.j2".
    values: what the template names; one that it names and does not find here is an error.
    **filters: more filters besides `percent`, `points` and `sub`.
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
  write_text(path, environment.get_template(template).render(**values))


def language(code: str) -> dict:
  """{'code', 'name' (English), 'own' (in the language itself), 'dir' ('ltr' or 'rtl')}."""
  from babel import Locale, UnknownLocaleError

  try:
    locale = Locale.parse(code, sep='-')
    own, direction = locale.languages.get(code, code), locale.text_direction
  except (UnknownLocaleError, ValueError):
    own, direction = code, 'ltr'
  return {'code': code, 'name': words.language_name(code), 'own': own, 'dir': direction}


def sub(text: str):
  """'AC3_3' and 'C_2' with their index set low, and no line break before a per cent sign."""
  from markupsafe import Markup, escape

  return Markup(
    re.sub(
      r'\b(AC3|C)_(\d+)', r'\1<sub>\2</sub>', str(escape(text)).replace(' %', '\N{NO-BREAK SPACE}%')
    )
  )
