"""Writes report.html of `crossin xinstruction quickstart`."""

from collections.abc import Mapping
import os

from crossin_jax.languages import english_name
from crossin_jax.pages import page
from crossin_jax.progress import duration
from crossin_jax.world.documents import ANSWERS


def write_page(path: str | os.PathLike, found: Mapping) -> None:
  """Writes the page; it appears by rename.

  Args:
    path: of the page.
    found: `results.Results` as JSON, with 'settings', 'seconds', 'steps', 'world'
      and 'command' of the quickstart.
  """
  page.write(
    path,
    'quickstart.html.j2',
    {
      'found': found,
      'names': {code: english_name(code) for code in found['settings']['languages']},
      'heard': ANSWERS,
      'seconds': {
        **{name: s for name, s in found['seconds'].items() if name != 'pipeline'},
        **found['steps'],
      },
      'total': duration(sum(found['seconds'].values())),
    },
    language=page.language,
    level=lambda value: '–' if value is None or value != value else f'{value:.2f}',
  )
