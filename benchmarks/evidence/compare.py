"""Arms of finished sweeps beside each other, and their differences: paired over the same questions
and seeds, 95 % bootstrap.

    python benchmarks/evidence/compare.py --points runs/evidence/comparison --points
    Floor=runs/evidence/floor \\
      --against Floor,Base,Mono --output runs/evidence/comparison.json

Writes a JSON file, a Markdown table and a plot of that name. Every seed has questions of its own;
an answer is the likeliest of four options, on questions without a language tag (--form tagged: with
one). Differences have a second interval beside the bootstrap's: a paired t over the seeds, which
knows nothing of questions.
"""

import argparse
import dataclasses
import json
import os
import sys

import numpy as np

from crossin_jax.evaluation.answers.predictions import read_predictions
from crossin_jax.evaluation.measures import bootstrap, consistency
from crossin_jax.storage.files import write_bytes, write_json, write_text

NAMES = {
  'base': 'Base', 'base_mono': 'Mono', 'base_en2x': 'en2x', 'base_x2en': 'x2en', 'base_x2x': 'x2x',
  'base_trans': 'Trans',
  'base_x2x_trans': 'x2x + Trans',
}  # fmt: skip
REPLAYED = ('tested', 'shared', 'bilingual')


def read_arms(
  spec: str, form: str, method: str, relation: str | None = None
) -> dict[str, dict[int, object]]:
  """Arm -> seed -> its predictions, of one sweep; 'NAME=FOLDER' gives all of it one name.
  `relation`: questions of that one only.
  """
  name, _, folder = spec.rpartition('=')
  arms: dict[str, dict] = {}
  with open(os.path.join(folder, 'sweep.json'), encoding='utf-8') as f:
    points = json.load(f)['points']
  for point in points:
    arm = name or arm_of(point)
    path = os.path.join(
      folder, point['evaluation'], 'predictions', f'questions.{form}.{method}.jsonl'
    )
    is_kept = lambda id_: relation is None or id_.split('.')[1] == relation
    arms.setdefault(arm, {})[point['seed']] = about(
      read_predictions(path), is_kept, f'--relation {relation}'
    )
  return arms


def arm_of(point: dict) -> str:
  """'x2x', 'x2x volume 300'; of an axis of shares, those of the components that are not replay:
  '0.05 base + 0.45 mono'.
  """
  if shares := point['values'].get('SHARES'):
    return ' + '.join(
      f'{share:g} {part}' for part, share in shares.items() if share and part not in REPLAYED
    )
  variant = '_'.join(
    part for part in point['mixture'].split('.')[1].split('_') if part not in REPLAYED
  )
  others = ' '.join(f'{key} {value}' for key, value in point['values'].items() if key != 'variant')
  return ' '.join(filter(None, (NAMES.get(variant, variant), others)))


def about(run, is_kept, what: str = 'that are asked for'):
  """The questions whose id is kept; ids are ENTITY.RELATION. `what`: for the message."""
  kept = [i for i, name in enumerate(run.ids) if is_kept(name)]
  if not kept:
    raise ValueError(f'{what}: no question is kept; ids are like {run.ids[0]!r}')
  pick = lambda values: [values[i] for i in kept]
  return dataclasses.replace(
    run,
    ids=pick(run.ids),
    choices=pick(run.choices),
    texts=pick(run.texts),
    answers=run.answers[kept],
  )


def figures(arms: dict[str, dict]) -> dict:
  """Per arm, its predictions being by (output directory, seed): accuracy in English, elsewhere and
  by language, C_3, AC3_3; intervals.
  """
  table = {}
  for arm, by_seed in arms.items():
    choices, answers, languages = parts_of(by_seed)
    columns = {
      'English': [languages.index('en')],
      'elsewhere': [i for i, l in enumerate(languages) if l != 'en'],
    }
    columns |= {language: [i] for i, language in enumerate(languages) if language != 'en'}
    row = {
      name: dataclasses.asdict(bootstrap.interval(choices, answers, columns=picked))
      for name, picked in columns.items()
    }
    row['C_3'] = dataclasses.asdict(bootstrap.interval(choices, answers, 'consistency'))
    row['AC3_3'] = dataclasses.asdict(bootstrap.interval(choices, answers, 'ac3'))
    row['by_seed'] = {
      f'{os.path.basename(parent)}.{seed}': {
        'English': float(consistency.correctness(c, a)[:, columns['English']].mean()),
        'elsewhere': float(consistency.correctness(c, a)[:, columns['elsewhere']].mean()),
      }
      for (parent, seed), c, a in zip(by_seed, choices, answers)
    }
    table[arm] = row
  return table


def differences(arms: dict[str, dict], against: list[str]) -> dict:
  """'A - B' -> figure -> interval, over the seeds that both have."""
  found = {}
  for other in against:
    for arm in arms:
      seeds = sorted(arms[arm].keys() & arms[other].keys())
      if arm == other or not seeds:
        continue
      first, answers, languages = parts_of({seed: arms[arm][seed] for seed in seeds})
      second, _, _ = parts_of({seed: arms[other][seed] for seed in seeds})
      elsewhere = [i for i, language in enumerate(languages) if language != 'en']
      difference = lambda *how, **columns: dataclasses.asdict(
        bootstrap.difference(first, second, answers, *how, **columns)
      )
      found[f'{arm} - {other}'] = {
        'English': difference(columns=[languages.index('en')]),
        'elsewhere': difference(columns=elsewhere),
        'AC3_3': difference('ac3'),
        'elsewhere, t over seeds': over_seeds(first, second, answers, elsewhere),
      }
  return found


def over_seeds(first, second, answers, columns) -> dict | None:
  """Mean difference in accuracy and its 95 % interval by a paired t over the seeds; None of a
  single seed.
  """
  import scipy.stats

  accuracy = lambda runs: np.array(
    [consistency.correctness(c, a)[:, columns].mean() for c, a in zip(runs, answers, strict=True)]
  )
  gaps = accuracy(first) - accuracy(second)
  if len(gaps) < 2:
    return None
  half = scipy.stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps))
  mean = float(gaps.mean())
  return {
    'estimate': mean,
    'low': mean - float(half),
    'high': mean + float(half),
    'by_seed': gaps.tolist(),
  }


def parts_of(by_seed: dict):
  """Choices of each seed, answers of each seed, languages."""
  runs = list(by_seed.values())
  return [run.extract('strict') for run in runs], [run.answers for run in runs], runs[0].languages


def told(one: dict | None, sign: bool = False) -> str:
  """'41.2 [38.0, 44.1]' in per cent, bold where an interval of a difference leaves out zero."""
  if one is None:
    return '-'
  number = lambda x: f'{100 * x:+.1f}' if sign else f'{100 * x:.1f}'
  text = f'{number(one["estimate"])} [{number(one["low"])}, {number(one["high"])}]'
  return f'**{text}**' if sign and (one['low'] > 0 or one['high'] < 0) else text


def markdown(table: dict, gaps: dict) -> str:
  """Both tables."""
  columns = [name for name in next(iter(table.values())) if name != 'by_seed']
  lines = ['| arm | ' + ' | '.join(columns) + ' |', '|' + '---|' * (len(columns) + 1)]
  lines += [
    f'| {arm} | ' + ' | '.join(told(row[name]) for name in columns) + ' |'
    for arm, row in table.items()
  ]
  lines += [
    '',
    '| difference, points | English | elsewhere | AC3_3 | elsewhere, t over seeds |',
    '|---|---|---|---|---|',
  ]
  lines += [
    f'| {name} | ' + ' | '.join(told(one, sign=True) for one in row.values()) + ' |'
    for name, row in gaps.items()
  ]
  return '\n'.join(lines) + '\n'


def plot(table: dict) -> bytes:
  """English, elsewhere and AC3_3 of every arm, each seed a dot."""
  import io

  from matplotlib.figure import Figure

  page = Figure(figsize=(7.4, 0.42 * len(table) + 1.2), dpi=160, layout='constrained')
  panels = page.subplots(1, 3, sharey=True)
  places = np.arange(len(table))[::-1]
  for panel, name in zip(panels, ('English', 'elsewhere', 'AC3_3')):
    for place, row in zip(places, table.values()):
      one = row[name]
      panel.plot(
        [100 * one['low'], 100 * one['high']], [place, place], color='#2a6f97', linewidth=2
      )
      panel.plot(100 * one['estimate'], place, 'o', color='#2a6f97', markersize=6)
      if name in ('English', 'elsewhere'):
        dots = [100 * own[name] for own in row['by_seed'].values()]
        panel.plot(dots, np.full(len(dots), place) + 0.22, '.', color='#999', markersize=4)
    panel.axvline(10 if name == 'AC3_3' else 25, color='#777', linewidth=0.9, linestyle=(0, (4, 3)))
    panel.set_title(
      {'English': 'accuracy in English (%)', 'elsewhere': 'accuracy elsewhere (%)'}.get(
        name, f'{name} (%)'
      ),
      fontsize=9,
    )
    panel.spines[['top', 'right']].set_visible(False)
    panel.grid(axis='x', alpha=0.2)
  panels[0].set_yticks(places, list(table))
  buffer = io.BytesIO()
  page.savefig(buffer, format='png', metadata={'Software': None})
  return buffer.getvalue()


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--points',
    action='append',
    required=True,
    metavar='[NAME=]OUT',
    help='a finished sweep; repeatable',
  )
  parser.add_argument(
    '--against',
    default='Base',
    help='arms that the others are compared with, separated by commas (default: %(default)s)',
  )
  parser.add_argument('--form', default='untagged', choices=('untagged', 'tagged'))
  parser.add_argument('--method', default='likelihood', choices=('likelihood', 'generate'))
  parser.add_argument('--relation', help='of the questions, e.g. trade (default: all)')
  parser.add_argument(
    '--output', required=True, help='NAME.json; NAME.md and NAME.png come beside it'
  )
  args = parser.parse_args()
  arms: dict[str, dict] = {}
  for spec in args.points:
    # Seed 0 of another output directory is another world; sweeps of one directory are about the
    # same worlds.
    parent = os.path.dirname(os.path.abspath(spec.rpartition('=')[2]))
    for arm, by_seed in read_arms(spec, args.form, args.method, args.relation).items():
      arms.setdefault(arm, {}).update({(parent, seed): run for seed, run in by_seed.items()})
  against = args.against.split(',')
  if missing := [name for name in against if name not in arms]:
    parser.error(f'--against: {", ".join(missing)} is none of {", ".join(arms)}')
  table, gaps = figures(arms), differences(arms, against)
  write_json(
    args.output,
    {
      'form': args.form,
      'method': args.method,
      'relation': args.relation,
      'arms': table,
      'differences': gaps,
    },
  )
  stem = os.path.splitext(args.output)[0]
  write_text(f'{stem}.md', markdown(table, gaps))
  write_bytes(f'{stem}.png', plot(table))
  print(markdown(table, gaps), file=sys.stderr)
  return 0


if __name__ == '__main__':
  sys.exit(main())
