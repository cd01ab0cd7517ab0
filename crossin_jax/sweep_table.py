"""What a sweep found: rows of figures with intervals, as JSON, text, Markdown and a plot."""

from collections.abc import Sequence
from dataclasses import asdict
import io
import os

import numpy as np

from crossin_jax.config import ConfigError
from crossin_jax.data.prepared import write_json
from crossin_jax.evaluation import bootstrap
from crossin_jax.evaluation.consistency import ac3
from crossin_jax.evaluation.plots import COLOURS
from crossin_jax.evaluation.predictions import Predictions, read_predictions
from crossin_jax.evaluation.results import write_bytes, write_text
from crossin_jax.sweep_points import question_name, told
from seqio_tasks.crossin import CROSSIN_MODES

LOSS = 'eval/heldout/loss'


def write(sweep) -> dict:
  """Writes sweep.json, sweep.md and sweep.png from the points that are finished.

  Args:
    sweep: a `sweep.Sweep` after its run.

  Returns:
    What sweep.json holds, 'text' with the table for a terminal, and 'plot', the path of the PNG:
    {'axes': {axis: [value]}, 'points': [{'values', 'seed', 'mixture', 'directory', 'evaluation', 'figures': {name: fraction, or nats per
    token}, 'runs': as in results.json, 'seconds'}], 'table': [{'values', 'benchmark', 'method', 'seeds', 'figures': {name:
    {'estimate', 'low', 'high', ...}}}], 'chance': {name: fraction} of the first question file}.
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
      mine = [point for point in done if point.values == values]
      if not mine:
        continue
      answered = [_predictions(sweep, point, benchmark) for point in mine] if benchmark else []
      losses = [results[id(p)]['heldout'][LOSS] for p in mine if LOSS in results[id(p)]['heldout']]
      table.append({
        'values': values,
        'benchmark': benchmark and benchmark.replace('.', '/', 1),
        'method': benchmark and settings.method,
        'seeds': [point.seed for point in mine],
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
  if table:
    write_text(os.path.join(sweep.out, 'sweep.md'), markdown(table) + '\n' + caption(table, sweep.points) + '\n')
    write_bytes(path, plot(table, summary['axes'], settings.figure, chance))
  text = f'{terminal(table)}\n\n{caption(table, sweep.points)}\nPlot: {path}' if table else 'No point is finished.'
  return summary | {'text': text, 'plot': path}


def _distinct(values: list[dict]) -> list[dict]:
  return [v for i, v in enumerate(values) if v not in values[:i]]


def _predictions(sweep, point, benchmark: str) -> Predictions:
  path = os.path.join(sweep.evaluation(point), 'predictions', f'{benchmark}.{sweep.settings.method}.jsonl')
  if not os.path.exists(path):
    raise ConfigError(f'{path} is not there: sweep.method must be one of answer_questions.methods of the run')
  return read_predictions(path)


# ---- figures -------------------------------------------------------------------------------------------------------


def question_figures(answered: Sequence[Predictions]) -> dict[str, dict]:
  """Accuracy in English and elsewhere, C_s and AC3_s, s = 3 or the number of languages, of one answered file per seed.

  Returns:
    name -> {'estimate', 'low', 'high', 'items', 'seeds', 'note', ...}: fractions, 95 % over items and seeds.
  """
  if not answered:
    return {}
  languages, answers = answered[0].languages, answered[0].answers
  choices = [one.extract('strict') for one in answered]
  own = any(one.ids != answered[0].ids for one in answered)  # or answers: another world under the same names
  own = own or any(not np.array_equal(one.answers, answers) for one in answered)
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
      choices, [one.answers for one in answered] if own else answers, statistic, columns=columns, s=max(2, size)
    )
  )
  return {name: interval(*how) for name, how in wanted.items()}


def loss_figures(losses: Sequence[float]) -> dict[str, dict]:
  """Held-out loss in nats per token: mean, smallest and largest of the seeds (none with one seed)."""
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
  """Figures of one point: of the first question file by `method`, and its held-out loss."""
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
        figures |= {f'consistency_{size}': run['consistency'][size], f'ac3_{size}': run['ac3'][size]}
  if LOSS in result['heldout']:
    figures['heldout_loss'] = result['heldout'][LOSS]
  return figures


def chance_figures(answered: Predictions) -> dict[str, float]:
  """What choosing at random would give: with k options accuracy is 1 / k and C_s is k ** (1 - s)."""
  counts = np.array([len(item[0]) for item in answered.choices], float)
  size = min(3, len(answered.languages))
  accuracy, agreement = float(np.mean(1 / counts)), float(np.mean(counts ** (1 - size)))
  figures = {'accuracy_en': accuracy, 'accuracy_elsewhere': accuracy}
  return figures | {f'consistency_{size}': agreement, f'ac3_{size}': float(ac3(accuracy, agreement))}


# ---- words ---------------------------------------------------------------------------------------------------------

_TITLES = {
  'accuracy_en': 'accuracy, English',
  'accuracy_elsewhere': 'accuracy, elsewhere',
  'heldout_loss': 'held-out loss',
}


def title(figure: str) -> str:
  """'ac3_3' -> 'AC3_3', 'consistency_3' -> 'C_3', the others in words."""
  return _TITLES.get(figure, figure.replace('consistency', 'C').replace('ac3', 'AC3'))


def variant_labels(variants: Sequence[str]) -> dict[str, str]:
  """Variants in words, without the components that all of them have, unless that leaves one of them bare.

  ('base_x2x', 'base_x2x_trans') -> 'x2x', 'x2x + trans'
  """
  short = {v: ' + '.join(c for c in v.split('_') if c in CROSSIN_MODES) or 'base' for v in variants}
  return short if len(set(short.values())) == len(short) else {v: v.replace('_', ' + ') for v in variants}


def _label(axis: str, value, variants: dict[str, str], values: Sequence = ()) -> str:
  if isinstance(value, dict):
    return told(value, values)
  if axis == 'variant':
    return variants[value]
  if axis == 'languages':
    return value.replace('_', ', ') if isinstance(value, str) else ', '.join(value)
  if isinstance(value, int) and not isinstance(value, bool):
    return f'{value:,}'
  return f'{value:g}' if isinstance(value, float) else str(value)


def _cells(table: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
  """Head and rows as text; a row is a combination of values on one question file."""
  axes = list(table[0]['values'])
  figures = list(dict.fromkeys(name for row in table for name in row['figures']))
  variants = variant_labels([row['values']['variant'] for row in table]) if 'variant' in axes else {}
  values = {axis: [row['values'][axis] for row in table] for axis in axes}
  several = len({row['benchmark'] for row in table}) > 1
  head = [*axes, *(['questions'] if several else []), 'seeds', *map(title, figures)]
  rows = []
  for row in table:
    cells = [_label(axis, row['values'][axis], variants, values[axis]) for axis in axes]
    cells += [row['benchmark']] if several else []
    rows.append([*cells, str(len(row['seeds'])), *[_figure(row['figures'].get(name)) for name in figures]])
  return head, rows


def _figure(figure: dict | None) -> str:
  if figure is None:
    return '-'
  ends = f' [{figure["low"]:.3f}, {figure["high"]:.3f}]' if figure['low'] is not None else ''
  return f'{figure["estimate"]:.3f}{ends}'


def terminal(table: Sequence[dict]) -> str:
  """Aligned columns."""
  head, rows = _cells(table)
  widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
  return '\n'.join('  '.join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in [head, *rows])


def markdown(table: Sequence[dict]) -> str:
  """A Markdown table."""
  head, rows = _cells(table)
  lines = [head, ['---'] * len(head), *rows]
  return '\n'.join('| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |' for row in lines) + '\n'


def caption(table: Sequence[dict], points) -> str:
  """What the brackets of the table are."""
  text = []
  asked = [figure for row in table for figure in row['figures'].values() if 'resamples' in figure]
  if asked:
    notes = sorted({figure['note'] for figure in asked})
    text.append(f'Fractions with 95 % bootstrap intervals in brackets; {"; ".join(notes)}.')
  if any('heldout_loss' in row['figures'] for row in table):
    mixtures = sorted({point.heldout.mixture for point in points if point.heldout})
    text.append(
      f'Held-out loss: nats per trained token on the validation rows of {", ".join(mixtures)}; mean over seeds, in brackets '
      'the smallest and the largest of them.'
    )
  return ' '.join(text)


# ---- the plot ------------------------------------------------------------------------------------------------------


def x_axis(axes: dict[str, list]) -> str:
  """The last axis of numbers ('all' counts as one), else the last axis."""
  number = lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)
  numeric = [axis for axis, values in axes.items() if all(number(v) or v == 'all' for v in values)]
  return (numeric or list(axes))[-1]


def plot(table: Sequence[dict], axes: dict[str, list], figure: str | None, chance: dict[str, float]) -> bytes:
  """A PNG: the figure over the last numeric axis, a line per combination of the other axes, with the table's intervals.

  Args:
    table: rows of sweep.json; those of its first question file are drawn.
    axes: axis -> values, in the order they are drawn.
    figure: see `Settings.figure`.
    chance: name -> fraction, drawn as a dashed line.

  Raises:
    ConfigError: no row has that figure.
  """
  from matplotlib.figure import Figure  # half a second to import

  table = [row for row in table if row['benchmark'] == table[0]['benchmark']]
  known = list(dict.fromkeys(name for row in table for name in row['figures']))
  default = next((name for name in known if name.startswith('ac3')), 'heldout_loss')
  figure = figure or default
  if figure not in known:
    raise ConfigError(f'sweep.figure = {figure!r}: nothing of that name was measured, only {", ".join(known)}')
  table = [row for row in table if figure in row['figures']]
  table, axes = _in_words(table, axes)
  factor = 1 if figure == 'heldout_loss' else 100  # fractions are drawn in per cent
  along = x_axis(axes)
  scale, place = _scale(axes[along])
  variants = variant_labels(list(axes['variant'])) if 'variant' in axes else {}
  lines: dict[str, list[dict]] = {}
  for row in table:
    lines.setdefault(_line_label(row['values'], along, variants), []).append(row)

  page = Figure(figsize=(5.6, 3.5), dpi=220, layout='constrained')
  panel = page.add_subplot()
  panel.set_xscale(scale)
  styles = _styles(list(lines))
  xlim = _room(min(place.values()), max(place.values()), 0.06, scale == 'log')
  # Lines stand side by side by so many parts of the axis; where all are one point (volume 0), they meet.
  spread = min(0.015, 0.07 / len(lines))
  at = {value: [row['figures'][figure] for row in table if row['values'][along] == value] for value in place}
  shared = {value for value, found in at.items() if len(found) > 1 and all(one == found[0] for one in found)}
  for k, (label, rows) in enumerate(lines.items()):
    rows = sorted(rows, key=lambda row: place[row['values'][along]])
    moved = [0 if row['values'][along] in shared else (k - (len(lines) - 1) / 2) * spread for row in rows]
    x = [_move(place[row['values'][along]], part, xlim, scale) for row, part in zip(rows, moved)]
    y, low, high = _arrays([row['figures'][figure] for row in rows], factor)
    colour, marker, again = styles[label]
    panel.errorbar(
      x, y, yerr=np.maximum(0, [y - low, high - y]), label=label, color=colour, marker=marker, markersize=5, linewidth=1.5,
      elinewidth=1, capsize=2.5, linestyle=(0, (3.5, 1.5)) if again else '-', markerfacecolor='white' if again else colour,
    )  # fmt: skip
  for value in shared:
    y, low, high = _arrays(at[value][:1], factor)
    panel.errorbar([place[value]], y, yerr=np.maximum(0, [y - low, high - y]), color='#333', marker='o', markersize=5.5,
                   elinewidth=1, capsize=2.5, zorder=4)  # fmt: skip
  if figure in chance:
    panel.axhline(100 * chance[figure], color='#555', linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    panel.annotate(
      'chance', (1, 100 * chance[figure]), xycoords=('axes fraction', 'data'), xytext=(4, 0), textcoords='offset points',
      va='center', fontsize=8.5, color='#555',
    )  # fmt: skip
  panel.set_xticks(list(place.values()), [_label(along, value, variants) for value in place], minor=False)
  panel.xaxis.minorticks_off()
  panel.set_xlim(xlim)
  seen = [v * factor for row in table for v in _ends(row['figures'][figure])]
  bottom, top = _room(min(seen), max(seen), 0.08)
  panel.set_ylim((0, max(top, 110 * chance.get(figure, 0))) if factor == 100 else (bottom, top))
  if place.get('all', 0) > 0:
    # 'all' is no number: the axis is broken before it.
    panel.annotate('//', (place['all'] - 0.5, 0), xycoords=('data', 'axes fraction'), ha='center', va='center', fontsize=9,
                   bbox={'boxstyle': 'square,pad=0.02', 'facecolor': 'white', 'edgecolor': 'none'})  # fmt: skip
  panel.set_xlabel(_X_TITLES.get(along, along))
  panel.set_ylabel(_Y_TITLES.get(figure) or _mathematical(title(figure)) + ' (%)')
  panel.spines[['top', 'right']].set_visible(False)
  panel.grid(axis='y', alpha=0.2, linewidth=0.7)
  panel.set_axisbelow(True)
  if len(lines) > 1 or next(iter(lines)):
    page.legend(
      loc='outside upper left', ncols=min(len(lines), 3), frameon=False, fontsize=9, handlelength=2.9, columnspacing=1.4
    )
  buffer = io.BytesIO()
  page.savefig(buffer, format='png', metadata={'Software': None})
  return buffer.getvalue()


_COLOURS = COLOURS[1:6]  # without the grey, which is for baselines
_MARKERS = 'osD^v'
_X_TITLES = {
  'volume': 'examples per CrossIn component',
  'variant': '',
  'BATCH_SIZE': 'batch size',
  'TRAIN_STEPS': 'steps',
}
_Y_TITLES = {
  'heldout_loss': 'held-out loss (nats per token)',
  'accuracy_en': 'accuracy in English (%)',
  'accuracy_elsewhere': 'accuracy elsewhere (%)',
}


def _in_words(table: Sequence[dict], axes: dict[str, list]) -> tuple[list[dict], dict[str, list]]:
  """Dicts (shares) as the words that tell them apart, a line each, and lists as tuples: places are found by value."""

  def plain(axis: str, value):
    if isinstance(value, dict):
      return told(value, axes[axis]).replace(', ', '\n')
    return tuple(value) if isinstance(value, list) else value

  rows = [row | {'values': {axis: plain(axis, value) for axis, value in row['values'].items()}} for row in table]
  return rows, {axis: [plain(axis, value) for value in values] for axis, values in axes.items()}


def _scale(values: Sequence) -> tuple[str, dict]:
  """Scale of the axis, and value -> place: evenly for words and volumes, else where the number lies."""
  if not all(isinstance(value, (int, float)) for value in values) or len(set(values)) < len(values):
    return 'linear', {value: i for i, value in enumerate(dict.fromkeys(values))}
  place = {value: value for value in values}
  if min(values) > 0 and max(values) / min(values) >= 8:
    return 'log', place
  return 'linear', place


def _room(low: float, high: float, part: float, log: bool = False) -> tuple[float, float]:
  """The range widened on both sides by a part of it."""
  if log:
    return low / (high / low) ** part, high * (high / low) ** part
  room = part * ((high - low) or abs(high) or 1)
  return low - room, high + room


def _move(place: float, part: float, limits: tuple[float, float], scale: str) -> float:
  low, high = limits
  return place * (high / low) ** part if scale == 'log' else place + part * (high - low)


def _arrays(figures: Sequence[dict], factor: float) -> list[np.ndarray]:
  """Estimates and ends of intervals, NaN where there is none."""
  return [
    np.array([np.nan if one[key] is None else one[key] * factor for one in figures])
    for key in ('estimate', 'low', 'high')
  ]


def _ends(figure: dict) -> list[float]:
  return [figure[key] for key in ('estimate', 'low', 'high') if figure[key] is not None]


def _line_label(values: dict, along: str, variants: dict[str, str]) -> str:
  parts = []
  for axis, value in values.items():
    if axis != along:
      name = '' if axis in ('variant', 'languages', 'preset') else f'{axis.split(".")[-1].lower()} '
      parts.append(name + _label(axis, value, variants))
  return ', '.join(parts)


def _styles(labels: Sequence[str]) -> dict[str, tuple[str, str, bool]]:
  """Colour, marker, and whether dashed and hollow: what a line with Trans is, in the colour of the same line without it."""
  stem = lambda label: label.replace(' + trans', '')
  stems = list(dict.fromkeys(map(stem, labels)))
  styles = {}
  for label in labels:
    k = stems.index(stem(label))
    again = (stem(label) != label and stem(label) in labels) != bool(k // len(_COLOURS) % 2)
    styles[label] = _COLOURS[k % len(_COLOURS)], _MARKERS[(k + k // len(_COLOURS)) % len(_MARKERS)], again
  return styles


def _mathematical(text: str) -> str:
  """'AC3_3' -> 'AC3$_3$'."""
  base, _, index = text.rpartition('_')
  return f'{base}$_{{{index}}}$' if base else text
