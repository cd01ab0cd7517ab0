"""report.html of `crossin xinstruction quickstart`: what refinement kept, and what the kept set is worth."""

from collections.abc import Mapping
import os
from pathlib import Path

from crossin_jax.evaluation import pages
from crossin_jax.languages import ENGLISH_NAMES
from crossin_jax.metrics import duration

HEARD = ('right', 'wrong value', 'about something else', 'other language', 'no whole sentence')


def write_page(path: str | os.PathLike, found: Mapping) -> None:
  """Writes the page; it appears by rename.

  Args:
    path: of the page.
    found: what `quickstart_results.results` returned, with 'settings', 'seconds', 'steps', 'world' and 'command' of the quickstart.
  """
  pages.write(
    path,
    'quickstart.html.j2',
    {
      'found': found,
      'names': {code: ENGLISH_NAMES[code] for code in found['settings']['languages']},
      'heard': HEARD,
      'seconds': {**{name: s for name, s in found['seconds'].items() if name != 'pipeline'}, **found['steps']},
      'total': duration(sum(found['seconds'].values())),
    },
    folder=Path(__file__).parent / 'templates',
    language=pages.language,
    level=lambda value: '–' if value is None or value != value else f'{value:.2f}',
  )
