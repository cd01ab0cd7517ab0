"""The results of a sweep: rows of figures with intervals, as JSON, text, Markdown and a plot."""

from collections.abc import Sequence
from dataclasses import asdict
import os

import numpy as np

from crossin_jax.config import ConfigError
from crossin_jax.evaluation.answers.predictions import Predictions, read_predictions
from crossin_jax.evaluation.measures import bootstrap
from crossin_jax.evaluation.measures.chance import chance_figures
from crossin_jax.pages.words import aligned, figure_title
from crossin_jax.storage.files import write_bytes, write_json, write_text
from crossin_jax.sweep.plot import plot
from crossin_jax.sweep.points import question_name
from crossin_jax.sweep.words import label, variant_labels

LOSS = 'eval/heldout/loss'


def write(sweep) -> dict:
  """Writes sweep.json, sweep.md and sweep.png of the finished points.

  Args:
    sweep: a `running.Sweep` after its run.

  Returns:
    The content of sweep.json, 'text' (the table for a terminal), and 'plot' (path of the PNG):
    {'axes': {axis: [value]}, 'points': [{'values', 'seed', 'mixture', 'directory', 'evaluation',
    'figures': {name: fraction, or nats per token}, 'runs': as in results.json, 'seconds'}],
    'table': [{'values', 'benchmark', 'method', 'seeds', 'figures': {name: {'estimate', 'low',
    'high', ...}}}], 'chance': {name: fraction} of the first question file}.
  """
  settings, results = sweep.settings, {}
  for point in sweep.points:
    if result := sweep.result(point):
      results[id(point)] = result
  done = [point for point in sweep.points if id(point) in results]
  table, chance = [], {}
  benchmarks = [question_name(path) for path in settings.questions] or [None]
  for benchmark in benchmarks:
    for values in _distinct([point.values for point in sweep.points]):
      same = [point for point in done if point.values == values]
      if not same:
        continue
      answered = [_predictions(sweep, point, benchmark) for point in same] if benchmark else []
      heldout = [results[id(point)]['heldout'] for point in same]
      losses = [metrics[LOSS] for metrics in heldout if LOSS in metrics]
      table.append({
        'values': values,
        'benchmark': benchmark and benchmark.replace('.', '/', 1),
        'method': benchmark and settings.method,
        'seeds': [point.seed for point in same],
        'figures': question_figures(answered) | loss_figures(losses),
      })  # fmt: skip
      if answered and benchmark == benchmarks[0]:
        chance = chance_figures(answered[0])
  summary = {
    'axes': {axis: list(values) for axis, values in settings.axes.items()},
    'points': [
      {
        'values': point.values,
        'seed': point.seed,
        'mixture': point.data.mixture,
        'directory': os.path.relpath(sweep.folder(point), sweep.out),
        'evaluation': os.path.relpath(sweep.evaluation(point), sweep.out),
        'figures': point_figures(results[id(point)], benchmarks[0], settings.method),
        'runs': results[id(point)]['runs'],
        'seconds': results[id(point)]['seconds'],
      }
      for point in done
    ],
    'table': table,
    'chance': chance,
  }
  write_json(os.path.join(sweep.out, 'sweep.json'), summary)
  path = os.path.join(sweep.out, 'sweep.png')
  text = 'No point is finished.'
  if table:
    note = caption(table, sweep.points)
    write_text(os.path.join(sweep.out, 'sweep.md'), f'{markdown(table)}\n{note}\n')
    write_bytes(path, plot(table, summary['axes'], settings.figure, chance))
    text = f'{terminal(table)}\n\n{note}\nPlot: {path}'
  return summary | {'text': text, 'plot': path}


def _distinct(values: list[dict]) -> list[dict]:
  return [v for i, v in enumerate(values) if v not in values[:i]]


def _predictions(sweep, point, benchmark: str) -> Predictions:
  path = os.path.join(
    sweep.evaluation(point), 'predictions', f'{benchmark}.{sweep.settings.method}.jsonl'
  )
  if not os.path.exists(path):
    raise ConfigError(
      f'{path} does not exist: sweep.method must be one of answer_questions.methods of the run'
    )
  return read_predictions(path)


# ---- figures ----


def question_figures(answered: Sequence[Predictions]) -> dict[str, dict]:
  """Accuracy in English and in the other languages, C_s and AC3_s, s up to 3.

  Args:
    answered: the answers of each seed.

  Returns:
    name -> {'estimate', 'low', 'high', 'items', 'seeds', 'note', ...}: fractions, 95 % over items
    and seeds.
  """
  if not answered:
    return {}
  languages, answers = answered[0].languages, answered[0].answers
  choices = [one.extract('strict') for one in answered]
  # Seeds may have different questions, or different worlds with the same names.
  differ = any(
    one.ids != answered[0].ids or not np.array_equal(one.answers, answers) for one in answered
  )
  size = min(3, len(languages))
  english = [i for i, language in enumerate(languages) if language == 'en']
  others = [i for i, language in enumerate(languages) if language != 'en']
  wanted = {}
  if english:
    wanted['accuracy_en'] = ('accuracy', english)
  if others:
    wanted['accuracy_elsewhere'] = ('accuracy', others)
  if size > 1:
    wanted |= {f'consistency_{size}': ('consistency', None), f'ac3_{size}': ('ac3', None)}
  interval = lambda statistic, columns: asdict(
    bootstrap.interval(
      choices,
      [one.answers for one in answered] if differ else answers,
      statistic,
      columns=columns,
      s=max(2, size),
    )
  )
  return {name: interval(*how) for name, how in wanted.items()}


def loss_figures(losses: Sequence[float]) -> dict[str, dict]:
  """Held-out loss in nats per token: mean, smallest and largest of several seeds."""
  if not losses:
    return {}
  ends = (min(losses), max(losses)) if len(losses) > 1 else (None, None)
  return {
    'heldout_loss': {
      'estimate': float(np.mean(losses)),
      'low': ends[0],
      'high': ends[1],
      'seeds': len(losses),
      'note': 'low and high are the smallest and the largest of the seeds, no interval',
    }
  }


def point_figures(result: dict, benchmark: str | None, method: str) -> dict[str, float]:
  """Figures of a point: those of `benchmark` by `method`, and its held-out loss."""
  figures = {}
  for run in result['runs']:
    if (run['benchmark'].replace('/', '.', 1), run['method']) == (benchmark, method):
      by_language = dict(run['accuracy_by_language'])
      size = str(min(3, len(by_language)))
      if 'en' in by_language:
        figures['accuracy_en'] = by_language.pop('en')
      if by_language:
        figures['accuracy_elsewhere'] = float(np.mean(list(by_language.values())))
      if size in run['ac3']:
        figures |= {
          f'consistency_{size}': run['consistency'][size],
          f'ac3_{size}': run['ac3'][size],
        }
  if LOSS in result['heldout']:
    figures['heldout_loss'] = result['heldout'][LOSS]
  return figures


def _cells(table: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
  """Head and rows as text; a row is a combination of values and a question file."""
  axes = list(table[0]['values'])
  figures = list(dict.fromkeys(name for row in table for name in row['figures']))
  variants = (
    variant_labels([row['values']['variant'] for row in table]) if 'variant' in axes else {}
  )
  values = {axis: [row['values'][axis] for row in table] for axis in axes}
  several = len({row['benchmark'] for row in table}) > 1
  head = [*axes, *(['questions'] if several else []), 'seeds', *map(figure_title, figures)]
  rows = []
  for row in table:
    cells = [label(axis, row['values'][axis], variants, values[axis]) for axis in axes]
    cells += [row['benchmark']] if several else []
    rows.append(
      [*cells, str(len(row['seeds'])), *[_figure(row['figures'].get(name)) for name in figures]]
    )
  return head, rows


def _figure(figure: dict | None) -> str:
  if figure is None:
    return '-'
  ends = f' [{figure["low"]:.3f}, {figure["high"]:.3f}]' if figure['low'] is not None else ''
  return f'{figure["estimate"]:.3f}{ends}'


def terminal(table: Sequence[dict]) -> str:
  """Aligned columns."""
  head, rows = _cells(table)
  return aligned([head, *rows])


def markdown(table: Sequence[dict]) -> str:
  """A Markdown table."""
  head, rows = _cells(table)
  lines = [head, ['---'] * len(head), *rows]
  return (
    '\n'.join('| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |' for row in lines)
    + '\n'
  )


def caption(table: Sequence[dict], points) -> str:
  """Explains the brackets of the table."""
  text = []
  asked = [figure for row in table for figure in row['figures'].values() if 'resamples' in figure]
  if asked:
    notes = sorted({figure['note'] for figure in asked})
    text.append(f'Fractions with 95 % bootstrap intervals in brackets; {"; ".join(notes)}.')
  if any('heldout_loss' in row['figures'] for row in table):
    mixtures = sorted({point.heldout.mixture for point in points if point.heldout})
    text.append(
      f'Held-out loss: nats per trained token on the validation rows of {", ".join(mixtures)}; '
      'mean over seeds, in brackets their smallest and largest.'
    )
  return ' '.join(text)
