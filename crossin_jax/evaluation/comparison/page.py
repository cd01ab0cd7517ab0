"""compare.html: two models side by side on one page that needs nothing else."""

from collections.abc import Sequence
import os

import numpy as np

from crossin_jax.evaluation import report
from crossin_jax.evaluation.comparison.differences import sentences
from crossin_jax.evaluation.comparison.pairs import Cell, Pair
from crossin_jax.evaluation.measures import tables
from crossin_jax.pages import page, plots

COLOURS = (plots.COLOURS[1], plots.COLOURS[3])  # of A and B


def write(
  path: str | os.PathLike, found: dict, pairs: Sequence[Pair], examples: int, command: str
) -> None:
  """Writes the page; the file appears by rename.

  Args:
    path: the file.
    found: the object of compare.json.
    pairs: what is behind its "comparisons".
    examples: items shown of each benchmark.
    command: the command line, shown at the end.
  """
  from markupsafe import Markup

  sections = []
  for i, (own, pair) in enumerate(zip(found['comparisons'], pairs)):
    sections.append({
      'own': own,
      'languages': {code: page.language(code) for code in own['languages']},
      'plot': Markup(plots.unique_ids(_plot(own, found, _chance(pair)), f'p{i}')),
      'chance': _chance(pair),
      'heat': _heat(pair, found) if pair.has_options and own['s'] else [],
      'examples': [_example(pair, id_) for id_ in _spread(pair.shared, examples)],
      'changes': {
        change: sum(row[key] for row in own['by_language'].values())
        for change,
        key in (('right to wrong', 'right_to_wrong'), ('wrong to right', 'wrong_to_right'))
      },
    })  # fmt: skip
  values = {
    'found': found,
    'sections': sections,
    'findings': sentences(found),
    'colours': COLOURS,
    'command': command,
  }
  page.write(path, 'compare.html.j2', values, p=_p)


def _p(value: float) -> str:
  return '<0.001' if value < 0.001 else f'{value:.3f}' if value < 0.1 else f'{value:.2f}'


def _chance(pair: Pair) -> float:
  """What guessing gives on average, a fraction; 0 where answers are no options."""
  cells = [cell for own in pair.a[0].values() for cell in own.values()]
  return float(np.mean([1 / len(cell.options) if cell.options else 0.0 for cell in cells]))


def _plot(own: dict, found: dict, chance: float) -> str:
  """Accuracy by language with intervals, and the mean where there is one."""
  rows = list(own['by_language'].values()) + [
    own['measures'][key] for key in ('accuracy',) if key in own['measures']
  ]
  labels = [*own['by_language'], 'mean'][: len(rows)]
  series = []
  for side, style in (('a', 1), ('b', 3)):
    cells = [row[side] for row in rows]
    scaled = [[100 * cell[key] for cell in cells] for key in ('value', 'low', 'high')]
    series.append(plots.Series(found[side], style, range(len(rows)), *scaled))
  return plots.points(series, labels, 'accuracy (%)', 100 * chance, 'chance' if chance else '')


def _heat(pair: Pair, found: dict) -> list[dict]:
  """Pairwise consistency of both, mean over prompts."""
  names = (found['a'], found['b'])
  choices = {
    (side, prompt, 'untagged', pair.method): array
    for side, cells in (('a', pair.a), ('b', pair.b))
    for prompt, array in zip(pair.prompts, pair.choices(cells))
  }
  answers = np.array([[pair.a[0][l][id_].answers for l in pair.ids] for id_ in pair.shared])
  drawn = report.Report(
    title='', languages=list(pair.ids),
    arms=[report.Arm(side, name) for side, name in zip('ab', names)],
    answers=answers, choices=choices, method=pair.method,
  )  # fmt: skip
  return [{**one, 'colour': colour} for one, colour in zip(tables.Figures(drawn).heat(), COLOURS)]


def _spread(ids: Sequence[str], count: int) -> list[str]:
  """So many, evenly over the list: not chosen by outcome."""
  count = min(count, len(ids))
  return [ids[int((k + 0.5) * len(ids) / count)] for k in range(count)]


def _example(pair: Pair, id_: str) -> dict:
  cards = []
  for language in pair.ids:
    one, two = pair.a[0][language][id_], pair.b[0][language][id_]
    options = [
      {
        'text': text,
        'right': o == one.answers,
        'sides': [k for k, cell in enumerate((one, two)) if cell.choice == o],
      }
      for o, text in enumerate(one.options)
    ]
    cards.append({
      'code': language, 'options': options, 'accepted': () if one.options else one.answers,
      'wrote': [_wrote(cell) for cell in (one, two)],
    })  # fmt: skip
  return {'id': id_, 'cards': cards}


def _wrote(cell: Cell) -> dict | None:
  """What a model wrote, where that is more than the option it chose."""
  text = ' '.join(cell.text.split())
  if cell.choice is not None and cell.choice >= 0 and text in (cell.options[cell.choice], ''):
    return None
  return {
    'text': text if len(text) <= 300 else text[:299] + '…',
    'right': cell.right,
    'unread': cell.choice == -1,
  }
