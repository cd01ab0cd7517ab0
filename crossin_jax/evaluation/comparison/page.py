"""compare.html: two models side by side on one self-contained page."""

from collections.abc import Sequence
import dataclasses
import os

import numpy as np

from crossin_jax.evaluation import report
from crossin_jax.evaluation.comparison.differences import Comparison, Comparisons, sentences
from crossin_jax.evaluation.comparison.pairs import Cell, Pair
from crossin_jax.evaluation.measures import tables
from crossin_jax.pages import page, plots
from crossin_jax.pages.words import shortened

STYLES = (1, 3)  # of A and B in plots
COLOURS = tuple(plots.COLOURS[style] for style in STYLES)


def write(
  path: str | os.PathLike, result: Comparisons, pairs: Sequence[Pair], examples: int, command: str
) -> None:
  """Writes the page atomically.

  Args:
    path: the page.
    result: the figures.
    pairs: those of its `comparisons`.
    examples: items shown per benchmark.
    command: the command line, for the end of the page.
  """
  values = {
    'result': result,
    'sections': [
      _section(f'p{i}', row, pair, result, examples)
      for i, (row, pair) in enumerate(zip(result.comparisons, pairs))
    ],
    'findings': sentences(result),
    'colours': COLOURS,
    'command': command,
  }
  page.write(path, 'compare.html.j2', values, p=_p)


def _section(prefix: str, row: Comparison, pair: Pair, result: Comparisons, examples: int) -> dict:
  from markupsafe import Markup

  chance, rows = _chance(pair), row.by_language.values()
  return {
    'comparison': row,
    'languages': {code: page.language(code) for code in row.languages},
    'plot': Markup(plots.unique_ids(_plot(row, result, chance), prefix)),
    'chance': chance,
    'heat': _heat(pair, result) if row.s else [],
    'examples': [_example(pair, id_) for id_ in page.evenly_spaced(pair.shared, examples)],
    'changes': {
      'right to wrong': sum(row.right_to_wrong for row in rows),
      'wrong to right': sum(row.wrong_to_right for row in rows),
    },
  }


def _p(value: float) -> str:
  return '<0.001' if value < 0.001 else f'{value:.3f}' if value < 0.1 else f'{value:.2f}'


def _chance(pair: Pair) -> float:
  """Mean accuracy of guessing, a fraction; 0 for open answers."""
  cells = [cell for by_id in pair.a[0].values() for cell in by_id.values()]
  return float(np.mean([1 / len(cell.options) if cell.options else 0.0 for cell in cells]))


def _plot(row: Comparison, result: Comparisons, chance: float) -> str:
  """Accuracy by language with intervals, and the mean if there is one."""
  rows = {**row.by_language}
  if 'accuracy' in row.measures:
    rows['mean'] = row.measures['accuracy']
  series = []
  for side, style in zip('ab', STYLES):
    figures = [dataclasses.astuple(getattr(row, side)) for row in rows.values()]
    scaled = [[100 * value for value in column] for column in zip(*figures)]
    series.append(plots.Series(getattr(result, side), style, range(len(rows)), *scaled))
  return plots.points(series, list(rows), 'accuracy (%)', 100 * chance, 'chance' if chance else '')


def _heat(pair: Pair, result: Comparisons) -> list[tables.Heat]:
  """Pairwise consistency of both models, mean over prompts."""
  choices = {
    (side, prompt, 'untagged', pair.method): array
    for side, cells in (('a', pair.a), ('b', pair.b))
    for prompt, array in zip(pair.prompts, pair.choices(cells))
  }
  drawn = report.Report(
    title='',
    languages=list(pair.ids),
    arms=[report.Arm('a', result.a), report.Arm('b', result.b)],
    answers=pair.answers(),
    choices=choices,
    method=pair.method,
  )
  return tables.Figures(drawn).heat()


def _example(pair: Pair, id_: str) -> dict:
  cards = []
  for language in pair.ids:
    cells = pair.a[0][language][id_], pair.b[0][language][id_]
    first = cells[0]
    options = [
      {
        'text': text,
        'right': o == first.answers,
        'sides': [k for k, cell in enumerate(cells) if cell.choice == o],
      }
      for o, text in enumerate(first.options)
    ]
    accepted = () if first.options else first.answers
    wrote = [_wrote(cell) for cell in cells]
    cards.append({'code': language, 'options': options, 'accepted': accepted, 'wrote': wrote})
  return {'id': id_, 'cards': cards}


def _wrote(cell: Cell) -> dict | None:
  """The predicted text, if it is more than the chosen option."""
  text = ' '.join(cell.text.split())
  if cell.choice is not None and cell.choice >= 0 and text in (cell.options[cell.choice], ''):
    return None
  return {'text': shortened(text, 300), 'right': cell.right, 'unread': cell.choice == -1}
