"""Does the quickstart show its effect in every world? A row for each finished quickstart.

    python benchmarks/evidence/quickstarts.py runs/world.0 runs/world.1 ... --output FILE.json

The best arm outside English beside Base, Floor and chance: accuracy, and differences with 95 %
bootstrap intervals over the questions. A world counts where all three lower bounds are above 0.
"""

import argparse
import dataclasses
import os
import sys

import numpy as np

from crossin_jax.evaluation.answers.predictions import read_predictions
from crossin_jax.evaluation.measures import bootstrap, consistency
from crossin_jax.quickstart.quickstart import ARMS
from crossin_jax.storage.files import write_json

CHANCE = 0.25


def row_of(folder: str) -> dict:
  """Figures of one quickstart."""
  runs = {}
  for arm in ARMS:
    path = os.path.join(
      folder, 'models', f'{arm.lower().replace(" + ", "_")}.0', 'evaluation', 'predictions',
      'questions.untagged.likelihood.jsonl',
    )  # fmt: skip
    if os.path.exists(path):
      runs[arm] = read_predictions(path)
  base = runs['Base']
  elsewhere = [i for i, language in enumerate(base.languages) if language != 'en']
  choices = {arm: run.extract('strict') for arm, run in runs.items()}
  share = lambda arm, columns: float(
    consistency.correctness(choices[arm], base.answers)[:, columns].mean()
  )
  best = max(
    (arm for arm in runs if arm not in ('Base', 'Floor')), key=lambda a: share(a, elsewhere)
  )
  over = lambda arm: dataclasses.asdict(
    bootstrap.difference([choices[best]], [choices[arm]], [base.answers], columns=elsewhere)
  )
  alone = dataclasses.asdict(bootstrap.interval([choices[best]], [base.answers], columns=elsewhere))
  found = {
    'best': best, 'questions': len(base.answers),
    'English': {arm: share(arm, [base.languages.index('en')]) for arm in ('Base', best)},
    'elsewhere': {arm: share(arm, elsewhere) for arm in runs},
    'over chance': {key: alone[key] - CHANCE for key in ('estimate', 'low', 'high')},
    'over Base': over('Base'), 'over Floor': over('Floor'),
  }  # fmt: skip
  found['shown'] = all(found[f'over {name}']['low'] > 0 for name in ('chance', 'Base', 'Floor'))
  return found


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('quickstarts', nargs='+', help='their folders')
  parser.add_argument('--output', help='a JSON file of all figures')
  args = parser.parse_args()
  rows = {os.path.basename(os.path.normpath(folder)): row_of(folder) for folder in args.quickstarts}
  told = lambda one: (
    f'{100 * one["estimate"]:+.1f} [{100 * one["low"]:+.1f}, {100 * one["high"]:+.1f}]'
  )
  print('| world | best arm | English: Base, best | elsewhere: Floor, Base, best ', end='')
  print('| over Floor | over Base | over chance |')
  print('|---|---|---|---|---|---|---|')
  for name, row in rows.items():
    best, per_cent = row['best'], lambda x: f'{100 * x:.1f}'
    cells = [
      name, best, ', '.join(per_cent(row['English'][arm]) for arm in ('Base', best)),
      ', '.join(per_cent(row['elsewhere'][arm]) for arm in ('Floor', 'Base', best)),
      *(told(row[f'over {other}']) for other in ('Floor', 'Base', 'chance')),
    ]  # fmt: skip
    print(f'| {" | ".join(cells)} |')
  shown = sum(row['shown'] for row in rows.values())
  gains = np.array([row['over Base']['estimate'] for row in rows.values()])
  print(f'\n{shown} of {len(rows)} worlds; over Base {100 * gains.mean():+.1f} points on average')
  if args.output:
    write_json(args.output, rows)
  return 0


if __name__ == '__main__':
  sys.exit(main())
