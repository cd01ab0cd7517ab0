"""report.html: what was run, what came out, and what may be said about it, on one page that needs
nothing else.

Figures are computed here from the single answers, so that each has an interval; where only
results.json runs are at hand the figures stand without one and no gain is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
import os

import numpy as np

from crossin_jax.evaluation.measures import consistency, tables
from crossin_jax.pages import page, plots, words
from crossin_jax.pages.words import duration, thousands

EXPLANATIONS = {
  'floor': 'Never read the facts that are asked about; otherwise treated like Base. What it '
  'scores is what guessing is worth.',
  'base': 'Read the facts in English and was tuned on English questions: the English-centred '
  'model that everybody starts from.',
  'mono': 'As Base, but tuned on the same questions in every language, question and answer always '
  'in the same one.',
  'x2x': 'As Mono, but the question comes in one language and the answer is asked for in another: '
  'the CrossIn mixture.',
  'x2xtrans': 'As x2x, with translation exercises as part of the mixture.',
}
Key = tuple[str, int, str, str]  # (arm, seed, 'untagged' or 'tagged', 'likelihood' or 'generate')


@dataclass(frozen=True)
class Arm:
  """One way of training."""

  name: str  # as in `Report.choices` and as 'variant' in results.json, e.g. 'x2x'
  title: str = ''  # as shown; the name if empty
  explanation: str = ''  # one or two plain sentences; for the quickstart's arms one is known


@dataclass(frozen=True)
class Item:
  """One question in every language, to be shown as an example."""

  id: str
  questions: Mapping[str, str]  # language code -> text
  options: Mapping[str, Sequence[str]]  # language code -> option texts, parallel across languages


@dataclass
class Report:
  """Everything the page shows. All but the first four fields may be empty; the page then says less.

  `choices[arm, seed, form, method]` is an int array [items, languages] of option indices, -1 =
  unparsed, columns in the order of `languages`.
  """

  title: str
  languages: Sequence[str]  # codes, the language of the facts first
  # from the plainest to the one of interest: Floor, Base, Mono, x2x, x2x + Trans
  arms: Sequence[Arm]
  answers: np.ndarray  # int [items] or [items, languages]
  choices: Mapping[Key, np.ndarray] = field(default_factory=dict)
  runs: Sequence[Mapping] = ()  # results.json runs, used where an arm has no choices
  # 'lexical overlap' -> int [items, languages]
  guessers: Mapping[str, np.ndarray] = field(default_factory=dict)
  items: Sequence[Item] = ()  # parallel to the rows of the choices
  metrics: Mapping[tuple[str, int], Sequence[Mapping]] = field(
    default_factory=dict
  )  # (arm, seed) -> rows of metrics.jsonl
  # what the world holds: 'territories' -> 120
  world: Mapping[str, object] = field(default_factory=dict)
  # arm -> training time, all its seeds together
  seconds: Mapping[str, float] = field(default_factory=dict)
  # arm -> tokens trained on, all its seeds together
  tokens: Mapping[str, int] = field(default_factory=dict)
  benchmark: str = ''  # name of a benchmark that the questions come from; '' = the embedded world
  prompts: int = 1  # prompt forms that the benchmark was asked under
  summary: str = ''  # a paragraph of its own, before the generated findings
  config: str = ''  # operative gin
  command: str = ''
  versions: Mapping[str, str] = field(default_factory=dict)  # package -> version
  form: str = 'untagged'  # the stated prompt form, which the main tables use
  method: str = 'likelihood'  # the stated method, which the main tables use
  options: int = 4  # options per question
  examples: int = 2  # items to show, spread evenly over the list: not chosen by outcome
  resamples: int = 2000  # of every bootstrap


def write_report(path: str | os.PathLike, report: Report) -> None:
  """Writes the page; the file appears by rename. Raises ValueError where arrays and languages do
  not fit.
  """
  page.write(
    path, 'report.html.j2', _context(_with_figures(report)), duration=duration, thousands=thousands
  )


def _with_figures(report: Report) -> Report:
  """The report, with form and method set to ones that were run, should the stated ones be absent."""
  run = [(form, method) for _, _, form, method in report.choices]
  run += [(tables.form_of(run), run['method']) for run in report.runs]
  if not run or (report.form, report.method) in run:
    return report
  return replace(report, form=run[0][0], method=run[0][1])


def _context(report: Report) -> dict:
  languages = list(report.languages)
  if len(languages) < 2:
    raise ValueError(
      'a report needs at least two languages: the language of the facts and one more'
    )
  known = {arm.name for arm in report.arms}
  for key, array in report.choices.items():
    if (
      np.shape(array)[1:] != (len(languages),) or np.shape(array)[0] != np.shape(report.answers)[0]
    ):
      raise ValueError(
        f'choices of {key} have shape {np.shape(array)}; expected [{np.shape(report.answers)[0]}, '
        f'{len(languages)}]'
      )
    if key[0] not in known:
      raise ValueError(
        f'choices name the arm {key[0]!r}, which is not among the arms {", ".join(sorted(known))}'
      )
  figures = tables.Figures(report)
  rows = [figures.arm_row(arm, report.form, report.method) for arm in report.arms]
  gains = figures.gains()
  guessers = [figures.guesser_row(name, array) for name, array in report.guessers.items()]
  return {
    'report': report,
    'languages': [page.language(code) for code in languages],
    's': figures.s,
    'arms': [
      {
        'name': arm.name,
        'title': tables.title(arm),
        'explanation': arm.explanation or _explanation(arm.name),
        'colour': plots.COLOURS[i % len(plots.COLOURS)],
      }
      for i, arm in enumerate(report.arms)
    ],
    'rows': rows,
    'guessers': guessers,
    'chance': figures.chance,
    'wide': len(languages) > 5,
    'gains': gains,
    'variants': figures.variants(),
    'seeds': sorted(
      {key[1] for key in report.choices}
      | {run['seed'] for run in report.runs if run['seed'] is not None}
    ),
    'intervals': any(row['other']['low'] is not None for row in rows),
    'findings': _findings(report, rows, gains, guessers, figures),
    'plots': _plots(report, rows, figures),
    'heat': figures.heat(),
    'examples': _examples(report),
    'costs': _costs(report),
    'items': int(np.shape(report.answers)[0]),
  }


def _explanation(name: str) -> str:
  return EXPLANATIONS.get(''.join(filter(str.isalnum, name.casefold())), '')


def _findings(
  report: Report, rows: list[dict], gains: list[dict], guessers: list[dict], figures: tables.Figures
) -> list[str]:
  """What may be said, in plain sentences, the most important first."""
  home, found, percent = words.language_name(report.languages[0]), [], words.percent
  base = next(
    (row for row in rows if row['name'].casefold() == 'base' and row['other']['value'] is not None),
    None,
  )
  if base:
    found.append(
      f'The {base["title"]} model answers {percent(base["languages"][0]["value"])} % of the '
      f'questions in {home} and '
      f'{percent(base["other"]["value"])} % in the other languages; blind guessing gives '
      f'{percent(figures.chance["accuracy"])} %.'
    )
  for row in gains:
    if not tables.is_baseline(row['name']) and row['base_name'].casefold() != 'floor':
      found.append(f'{row["other"]["sentence"]} {row["ac3"]["sentence"]}')
  if gains and not any(row[key]['verdict'] == 'gain' for row in gains for key in ('other', 'ac3')):
    found.append('No comparison on this page shows a gain.')
  for row in guessers:
    if not row['at_chance']:
      found.append(
        f'Caution: the {row["name"]} guesser is not at chance '
        f'({percent(row["languages"][0]["value"])} % '
        f'in {home}, {percent(row["other"]["value"])} % elsewhere), '
        'so part of every score can be had without knowing the facts.'
      )
  for arm in report.arms:
    for array in list(figures.by_seed(arm.name, report.form, report.method).values())[:1]:
      warning = consistency.constant_answer_warning(array, report.answers)
      if warning:
        found.append(f'Caution, {tables.title(arm)}: {warning}')
  return found


def _plots(report: Report, rows: list[dict], figures: tables.Figures) -> dict[str, object]:
  from markupsafe import Markup

  def ready(svg: str, name: str) -> Markup:
    return Markup(plots.unique_ids(svg, name))

  drawn: dict[str, object] = dict.fromkeys(('accuracy', 'training', 'heldout', 'by_language'), '')
  style = {arm.name: i for i, arm in enumerate(report.arms)}
  shown = [row for row in rows if row['other']['value'] is not None]
  if shown:
    series = []
    for row in shown:
      cells = [*row['languages'], row['other']]
      ends = [
        [np.nan if cell[end] is None else 100 * cell[end] for cell in cells]
        for end in ('low', 'high')
      ]
      series.append(
        plots.Series(
          row['title'],
          style[row['name']],
          range(len(cells)),
          [100 * cell['value'] for cell in cells],
          *ends,
        )
      )
    labels = [*report.languages, 'mean of\nothers']
    drawn['accuracy'] = ready(
      plots.points(series, labels, 'accuracy (%)', 100 * figures.chance['accuracy'], 'chance'),
      'accuracy',
    )
  for name, key, ylabel in (
    ('training', 'loss', 'training loss'),
    ('heldout', 'eval/heldout/loss', 'held-out loss'),
  ):
    series = _curves(report, style, lambda row, key=key: row.get(key))
    if series:
      drawn[name] = ready(plots.curves(series, ylabel), name)
  key = _language_losses(report)
  panels = {
    code: _curves(report, style, lambda row, code=code: (row.get(key) or {}).get(code))
    for code in report.languages
  }
  panels = {code: series for code, series in panels.items() if series}
  if panels:
    drawn['by_language'] = ready(plots.small_curves(panels, 'loss'), 'by-language')
  return drawn


def _language_losses(report: Report) -> str:
  """The key of metrics rows whose losses by language are drawn: of training if it is there, else
  held out.

  Never both: the two alternate in a run and would make a saw of one line.
  """
  keys = ('loss_by_language', 'eval/heldout/loss_by_language')
  rows = [row for rows in report.metrics.values() for row in rows]
  return next(
    (key for key in keys if any(isinstance(row.get(key), Mapping) for row in rows)), keys[0]
  )


def _curves(report: Report, style: Mapping[str, int], pick) -> list[plots.Series]:
  """A line per arm, mean over its seeds at the steps that all of them have."""
  series = []
  for arm in report.arms:
    seeds = []
    for (name, _), rows in sorted(report.metrics.items()):
      if name == arm.name:
        seeds.append(
          {row['step']: float(pick(row)) for row in rows if 'step' in row and pick(row) is not None}
        )
    seeds = [values for values in seeds if values]
    steps = sorted(set.intersection(*(set(values) for values in seeds))) if seeds else []
    if steps:
      means = [float(np.mean([values[step] for values in seeds])) for step in steps]
      series.append(plots.Series(tables.title(arm), style[arm.name], steps, means))
  return series


def _examples(report: Report) -> list[dict]:
  """Items spread evenly over the list, with what each arm chose in its first seed."""
  count = min(report.examples, len(report.items))
  answers = np.asarray(report.answers)
  shown = []
  for i in [int((k + 0.5) * len(report.items) / count) for k in range(count)]:
    item, cards = report.items[i], []
    for j, code in enumerate(report.languages):
      if code not in item.questions or code not in item.options:
        continue
      right = int(answers[i] if answers.ndim == 1 else answers[i, j])
      options = [
        {'text': text, 'right': o == right, 'arms': []} for o, text in enumerate(item.options[code])
      ]
      silent = []
      for a, arm in enumerate(report.arms):
        chosen = _first_choice(report, arm.name, i, j)
        if chosen is not None:
          chip = {'title': tables.title(arm), 'colour': plots.COLOURS[a % len(plots.COLOURS)]}
          (silent if chosen < 0 else options[chosen]['arms']).append(chip)
      cards.append(
        {
          'language': page.language(code),
          'question': item.questions[code],
          'options': options,
          'silent': silent,
        }
      )
    shown.append({'id': item.id, 'cards': cards})
  return shown


def _first_choice(report: Report, arm: str, i: int, j: int) -> int | None:
  keys = sorted(
    key for key in report.choices if (key[0], key[2], key[3]) == (arm, report.form, report.method)
  )
  return int(np.asarray(report.choices[keys[0]])[i, j]) if keys else None


def _costs(report: Report) -> list[dict]:
  rows = []
  for arm in report.arms:
    seconds, tokens = report.seconds.get(arm.name), report.tokens.get(arm.name)
    if seconds is not None or tokens is not None:
      rate = tokens / seconds if seconds and tokens is not None else None
      rows.append(
        {
          'title': tables.title(arm),
          'name': arm.name,
          'seconds': seconds,
          'tokens': tokens,
          'rate': rate,
        }
      )
  return rows
