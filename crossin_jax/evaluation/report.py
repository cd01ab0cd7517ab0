"""report.html: configuration, figures and conclusions of a comparison, on one self-contained page.

Figures are computed from single answers, so that each has an interval. If only runs of results.json
are available, figures have no interval and the page claims no gain.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from dataclasses import dataclass, field
import os

import numpy as np

from crossin_jax.evaluation.measures import consistency, tables
from crossin_jax.evaluation.measures.tables import GainRow, Row
from crossin_jax.pages import page, plots, words
from crossin_jax.pages.words import duration, percent, thousands

Key = tuple[str, int, str, str]  # (arm, seed, 'untagged' or 'tagged', 'likelihood' or 'generate')


@dataclass(frozen=True)
class Arm:
  """One way of training.

  Attributes:
    name: as in `Report.choices` and as 'variant' in results.json, e.g. 'x2x'.
    title: on the page; the name if empty.
    explanation: one or two sentences; the quickstart's arms have a default.
  """

  name: str
  title: str = ''
  explanation: str = ''


@dataclass(frozen=True)
class Item:
  """One question in every language, as an example.

  Attributes:
    questions: language code -> text.
    options: language code -> option texts, parallel across languages.
  """

  id: str
  questions: Mapping[str, str]
  options: Mapping[str, Sequence[str]]


@dataclass
class Report:
  """Content of the page. All but the first four fields may be empty; the page then shows less.

  Attributes:
    languages: codes, the language of the facts first.
    arms: in order of complexity: Floor, Base, Mono, x2x, x2x + Trans.
    answers: int [items] or [items, languages].
    choices: option indices of each run, int [items, languages], -1 = unparsed.
    runs: of results.json, used for arms without choices.
    guessers: 'lexical overlap' -> int [items, languages].
    items: parallel to the rows of the choices.
    metrics: (arm, seed) -> rows of metrics.jsonl.
    world: counts of the embedded world: 'territories' -> 120.
    seconds, tokens: arm -> training time and tokens, summed over seeds.
    benchmark: its name; '' = the embedded world.
    prompts: number of prompt forms.
    summary: a paragraph before the generated findings.
    config: operative gin.
    versions: package -> version.
    form, method: of the main tables.
    options: number per question.
    examples: number of items to show.
  """

  title: str
  languages: Sequence[str]
  arms: Sequence[Arm]
  answers: np.ndarray
  choices: Mapping[Key, np.ndarray] = field(default_factory=dict)
  runs: Sequence[Mapping] = ()
  guessers: Mapping[str, np.ndarray] = field(default_factory=dict)
  items: Sequence[Item] = ()
  metrics: Mapping[tuple[str, int], Sequence[Mapping]] = field(default_factory=dict)
  world: Mapping[str, object] = field(default_factory=dict)
  seconds: Mapping[str, float] = field(default_factory=dict)
  tokens: Mapping[str, int] = field(default_factory=dict)
  benchmark: str = ''
  prompts: int = 1
  summary: str = ''
  config: str = ''
  command: str = ''
  versions: Mapping[str, str] = field(default_factory=dict)
  form: str = 'untagged'
  method: str = 'likelihood'
  options: int = 4
  examples: int = 2
  resamples: int = 2000


def write_report(path: str | os.PathLike, report: Report) -> None:
  """Writes the page atomically.

  Raises:
    ValueError: arrays whose shape does not match the languages or the answers.
  """
  values = _context(_with_available_form(report))
  page.write(path, 'report.html.j2', values, duration=duration, thousands=thousands)


def _with_available_form(report: Report) -> Report:
  """The report, with an available form and method if its own have no figures."""
  available = [key[2:] for key in report.choices]
  available += [(tables.form_of(run), run['method']) for run in report.runs]
  if not available or (report.form, report.method) in available:
    return report
  return dataclasses.replace(report, form=available[0][0], method=available[0][1])


def _check(report: Report) -> None:
  if len(report.languages) < 2:
    raise ValueError(
      'a report needs at least two languages: the language of the facts and one more'
    )
  expected = (np.shape(report.answers)[0], len(report.languages))
  known = {arm.name for arm in report.arms}
  for key, array in report.choices.items():
    if np.shape(array) != expected:
      raise ValueError(
        f'choices of {key} have shape {np.shape(array)}; expected [{expected[0]}, {expected[1]}]'
      )
    if key[0] not in known:
      raise ValueError(
        f'choices name the arm {key[0]!r}, which is not among the arms {", ".join(sorted(known))}'
      )


def _context(report: Report) -> dict:
  _check(report)
  figures = tables.Figures(report)
  rows = [figures.arm_row(arm) for arm in report.arms]
  gains = figures.gains()
  guessers = [figures.guesser_row(name, array) for name, array in report.guessers.items()]
  seeds = {key[1] for key in report.choices} | {run['seed'] for run in report.runs}
  return {
    'report': report,
    'languages': [page.language(code) for code in report.languages],
    's': figures.s,
    'arms': [
      {
        'name': arm.name,
        'title': tables.title(arm),
        'kind': ''.join(filter(str.isalnum, arm.name.casefold())),
        'explanation': arm.explanation,
        'colour': _colour(i),
      }
      for i, arm in enumerate(report.arms)
    ],
    'rows': rows,
    'guessers': guessers,
    'chance': figures.chance,
    'wide': len(report.languages) > 5,
    'gains': gains,
    'variants': figures.variants(),
    'seeds': sorted(seeds - {None}),
    'intervals': any(row.other.low is not None for row in rows),
    'findings': _findings(report, rows, gains, guessers, figures),
    'plots': _plots(report, rows, figures),
    'heat': figures.heat(),
    'examples': _examples(report, figures),
    'costs': _costs(report),
    'items': int(np.shape(report.answers)[0]),
  }


def _colour(i: int) -> str:
  return plots.COLOURS[i % len(plots.COLOURS)]


def _findings(
  report: Report,
  rows: list[Row],
  gains: list[GainRow],
  guessers: list[Row],
  figures: tables.Figures,
) -> list[str]:
  """Conclusions in sentences; the first is for a reader who reads no further."""
  home = words.language_name(report.languages[0])
  in_home = lambda row: f'{percent(row.languages[0].value)} %'
  in_others = lambda row: f'{percent(row.other.value)} %'
  findings = [_headline(report, rows, gains, figures)] if gains else []
  measured = (row for row in rows if row.name.casefold() == 'base' and row.other.value is not None)
  if base := next(measured, None):
    findings.append(
      f'The {base.title} model answers {in_home(base)} of the questions correctly in {home} and '
      f'{in_others(base)} in the other languages; guessing gives '
      f'{percent(figures.chance["accuracy"])} %.'
    )
  for row in gains:
    if not tables.is_baseline(row.name) and row.base_name.casefold() != 'floor':
      findings.append(f'{row.other.sentence} {row.ac3.sentence}')
  for row in guessers:
    if not row.at_chance:
      findings.append(
        f'Caution: the {row.name} guesser is not at chance ({in_home(row)} in {home}, '
        f'{in_others(row)} in the other languages), so a part of every score does not need the '
        'facts.'
      )
  for arm in report.arms:
    for array in list(figures.by_seed(arm.name).values())[:1]:
      if warning := consistency.constant_answer_warning(array, report.answers):
        findings.append(f'Caution, {tables.title(arm)}: {warning}')
  return findings


def _headline(
  report: Report, rows: list[Row], gains: list[GainRow], figures: tables.Figures
) -> str:
  """One sentence: what the page shows of the languages other than the first."""
  home, chance = words.language_name(report.languages[0]), percent(figures.chance['accuracy'])
  shown = [row for row in rows if row.other.value is not None]
  if all(row.other.interval is None for row in gains):
    return 'The single answers are not available, so no comparison on this page shows a gain.'
  known = [row for row in shown if figures.above_guessing(row.name, 'accuracy')]
  if not known:
    return (
      f'Outside {home} no model can be distinguished from guessing ({chance} %), so this run '
      'cannot show which way of tuning is better.'
    )
  real = [
    row for row in gains if row.other.verdict == 'gain' and row.base_name.casefold() != 'floor'
  ]
  if real:
    best = max(real, key=lambda row: row.other.estimate)
    value = next(row.other.value for row in rows if row.name == best.name)
    return (
      f'{best.title} answers {percent(value)} % of the questions outside {home}, '
      f'{100 * best.other.estimate:.1f} points more than {best.base}: a real gain.'
    )
  best = max(known, key=lambda row: row.other.value)
  return (
    f'Outside {home} no way of tuning is shown to be better than another: {best.title} answers '
    f'most, {percent(best.other.value)} % (guessing gives {chance} %).'
  )


def _plots(report: Report, rows: list[Row], figures: tables.Figures) -> dict[str, object]:
  from markupsafe import Markup

  svgs = {
    'accuracy': _accuracy_plot(report, rows, figures),
    'training': _curve_plot(report, 'training loss', lambda row: row.get('loss')),
    'heldout': _curve_plot(report, 'held-out loss', lambda row: row.get('eval/heldout/loss')),
    'by_language': _language_plot(report),
  }
  return {
    name: Markup(plots.unique_ids(svg, name.replace('_', '-'))) if svg else ''
    for name, svg in svgs.items()
  }


def _accuracy_plot(report: Report, rows: list[Row], figures: tables.Figures) -> str:
  series = []
  for style, row in enumerate(rows):
    if row.other.value is None:
      continue
    cells = [*row.languages, row.other]
    values, lows, highs = (
      [np.nan if value is None else 100 * value for value in column]
      for column in zip(*map(dataclasses.astuple, cells))
    )
    series.append(plots.Series(row.title, style, range(len(cells)), values, lows, highs))
  if not series:
    return ''
  labels = [*report.languages, 'mean of\nothers']
  return plots.points(series, labels, 'accuracy (%)', 100 * figures.chance['accuracy'], 'chance')


def _curve_plot(report: Report, ylabel: str, pick: Callable) -> str:
  series = _curves(report, pick)
  return plots.curves(series, ylabel) if series else ''


def _language_plot(report: Report) -> str:
  """Losses by language: of training if they are logged, otherwise held out.

  Never both: they alternate in a run and would make the line zigzag.
  """
  logged = [row for rows in report.metrics.values() for row in rows]
  in_training = any(isinstance(row.get('loss_by_language'), Mapping) for row in logged)
  key = 'loss_by_language' if in_training else 'eval/heldout/loss_by_language'
  panels = {
    code: _curves(report, lambda row, code=code: (row.get(key) or {}).get(code))
    for code in report.languages
  }
  panels = {code: series for code, series in panels.items() if series}
  return plots.small_curves(panels, 'loss') if panels else ''


def _curves(report: Report, pick: Callable) -> list[plots.Series]:
  """A line per arm: the mean over its seeds at the steps that all of them have."""
  series = []
  for style, arm in enumerate(report.arms):
    seeds = [
      {row['step']: float(pick(row)) for row in rows if 'step' in row and pick(row) is not None}
      for (name, _), rows in sorted(report.metrics.items())
      if name == arm.name
    ]
    seeds = [values for values in seeds if values]
    steps = sorted(set.intersection(*map(set, seeds))) if seeds else []
    if steps:
      means = [float(np.mean([values[step] for values in seeds])) for step in steps]
      series.append(plots.Series(tables.title(arm), style, steps, means))
  return series


def _examples(report: Report, figures: tables.Figures) -> list[dict]:
  """Evenly spaced items with the choice of each arm in its first seed."""
  first_seeds = [list(figures.by_seed(arm.name).values())[:1] for arm in report.arms]
  answers = np.asarray(report.answers)
  shown = []
  for i in page.evenly_spaced(range(len(report.items)), report.examples):
    item, cards = report.items[i], []
    for j, code in enumerate(report.languages):
      if code not in item.questions or code not in item.options:
        continue
      right = int(answers[i] if answers.ndim == 1 else answers[i, j])
      options = [
        {'text': text, 'right': o == right, 'arms': []} for o, text in enumerate(item.options[code])
      ]
      silent = []
      for a, (arm, arrays) in enumerate(zip(report.arms, first_seeds)):
        for array in arrays:
          chosen = int(array[i, j])
          chip = {'title': tables.title(arm), 'colour': _colour(a)}
          (silent if chosen < 0 else options[chosen]['arms']).append(chip)
      card = {'language': page.language(code), 'question': item.questions[code]}
      cards.append(card | {'options': options, 'silent': silent})
    shown.append({'id': item.id, 'cards': cards})
  return shown


def _costs(report: Report) -> list[dict]:
  rows = []
  for arm in report.arms:
    seconds, tokens = report.seconds.get(arm.name), report.tokens.get(arm.name)
    if seconds is not None or tokens is not None:
      rate = tokens / seconds if seconds and tokens is not None else None
      row = {'title': tables.title(arm), 'name': arm.name}
      rows.append(row | {'seconds': seconds, 'tokens': tokens, 'rate': rate})
  return rows
