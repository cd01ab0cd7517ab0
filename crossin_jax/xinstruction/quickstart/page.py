"""Writes report.html of `crossin xinstruction quickstart`."""

from collections.abc import Mapping
import os

from crossin_jax.languages import ENGLISH_NAMES
from crossin_jax.pages import page
from crossin_jax.progress import duration

HEARD = ('right', 'wrong value', 'about something else', 'other language', 'no whole sentence')


def write_page(path: str | os.PathLike, found: Mapping) -> None:
  """Writes the page; it appears by rename.

  Args:
    path: of the page.
    found: what `quickstart_results.results` returned, with 'settings', 'seconds', 'steps', 'world'
      and 'command' of the quickstart.
  """
  page.write(
    path,
    'quickstart.html.j2',
    {
      'found': found,
      'names': {code: ENGLISH_NAMES[code] for code in found['settings']['languages']},
      'heard': HEARD,
      'seconds': {
        **{name: s for name, s in found['seconds'].items() if name != 'pipeline'},
        **found['steps'],
      },
      'total': duration(sum(found['seconds'].values())),
    },
    language=page.language,
    level=lambda value: '–' if value is None or value != value else f'{value:.2f}',
  )
