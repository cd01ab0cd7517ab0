"""Reads OUT of a sweep: the shares and the figures of every finished point."""

from collections.abc import Mapping
import glob
import json
import os
import re

import numpy as np

from crossin_jax.evaluation.answers.predictions import read_predictions
from crossin_jax.evaluation.measures.chance import chance_figures
from crossin_jax.mixing_laws.law import Figure
from crossin_jax.storage.files import read_json

_HELDOUT = 'eval/heldout/'


def read_points(output_dir: str, questions: str | None, method: str) -> tuple[list[dict], dict]:
  """Finished points that were trained and measured alike, by folder; and counts of the others."""
  folders = sorted(glob.glob(os.path.join(glob.escape(output_dir), 'points', '*', '')))
  if not folders:
    raise ValueError(
      f'{output_dir} has no points/: give the --output_dir of a `crossin sweep` that was started'
    )
  finished, counts = [], {'points': len(folders), 'unfinished': 0, 'without_mixture': 0}
  for folder in folders:
    pattern = os.path.join(glob.escape(folder), 'evaluation-*', 'point.json')
    paths = sorted(glob.glob(pattern), key=os.path.getmtime)
    measured = [p for p in (_point(output_dir, path, questions, method) for path in paths) if p]
    counts['unfinished'] += not paths
    counts['without_mixture'] += bool(paths) and not measured
    finished += measured
  if not finished:
    raise ValueError(
      f'{output_dir} has {len(folders)} points, none of which is finished; start the sweep again '
      'first'
    )
  used = max(_groups(finished), key=lambda g: (len(g), max(point['time'] for point in g)))
  counts['other_settings'] = len({point['name'] for point in finished}) - len(used)
  counts['used'] = len(used)
  if questions and not used[0]['questions']:
    known = sorted({run['benchmark'] for run in used[0]['runs']})
    raise ValueError(
      f'no run has benchmark {questions!r} by {method}; there are '
      f'{", ".join(known) or "no questions"}'
    )
  return used, counts


def _point(output_dir: str, path: str, questions: str | None, method: str) -> dict | None:
  """A point.json and the shares of its mixture; None if the mixture no longer exists."""
  result = read_json(path, 'start the sweep again')
  settings, folder = result['settings'], os.path.dirname(os.path.dirname(path))
  data = os.path.join(output_dir, 'data', settings['data'])
  mixture = os.path.join(data, 'mixtures', f'{result["mixture"]}.json')
  if not os.path.exists(mixture):
    return None
  shares: dict[str, float] = {}
  for task in read_json(mixture, 'start the sweep again')['tasks']:
    shares[task['component']] = shares.get(task['component'], 0.0) + _rate(data, task)
  asked = lambda run: run['method'] == method and questions in (None, run['benchmark'])
  run = next(filter(asked, result['runs']), None)
  tasks = os.path.join(data, 'tasks')
  tokens = os.path.basename(os.readlink(tasks)) if os.path.islink(tasks) else None
  return result | {
    'name': os.path.basename(folder),
    'path': path,
    'time': os.path.getmtime(path),
    'shares': shares,
    'run': run,
    'questions': run and run['benchmark'],
    'data': [settings.get('heldout'), settings.get('questions'), tokens],
  }


def _groups(points: list[dict]) -> list[list[dict]]:
  """Groups of points that differ only in mixture and seed; each seed may have rows of its own."""
  groups: list[list[dict]] = []
  for point in points:
    fitting = [
      group
      for group in groups
      if _alike(group[0], point)
      and all(p['data'] == point['data'] for p in group if p['seed'] == point['seed'])
    ]
    if fitting:
      # The group with these rows, if there is one: two worlds under the same seeds are two groups.
      max(fitting, key=lambda group: point['data'] in [p['data'] for p in group]).append(point)
    else:
      groups.append([point])
  return groups


def _rate(data: str, task: Mapping) -> float:
  """Rate of a task; 0 if it has no training example, since training skips such a task."""
  manifest = os.path.join(data, 'tasks', task['task'], 'manifest.json')
  if os.path.exists(manifest):
    splits = read_json(manifest, 'prepare the mixture again')['splits']
    if not sum(part['examples'] for part in splits.get('train', {}).get('parts', [])):
      return 0.0
  return float(task['rate'])


def _alike(a: Mapping, b: Mapping) -> bool:
  """Whether two points differ only in mixture and seed; a text may name its seed ('read.0')."""
  text = lambda p: json.dumps([p['questions'], p['settings']['run']], sort_keys=True)
  left, right = (re.split(r'(\d+)', text(point)) for point in (a, b))
  seeds = (str(a['seed']), str(b['seed']))
  return len(left) == len(right) and all(l == r or (l, r) == seeds for l, r in zip(left, right))


def read_figures(points: list[dict], output_dir: str) -> dict[str, Figure]:
  """name -> values at every point: 'loss', 'loss/zh', 'accuracy/zh', 'consistency_3', 'ac3_3'."""
  rows = [_figures(point) for point in points]
  names = dict.fromkeys(name for row in rows for name in row)
  if not names:
    raise ValueError(
      f'{output_dir}: its points have neither held-out loss nor answers; set sweep.heldout or '
      'QUESTIONS'
    )
  chance, figures = _chance(points), {}
  for name in names:
    values = np.array([row.get(name) for row in rows], float)  # None becomes NaN
    values[~np.isfinite(values)] = np.nan  # of runs that diverged
    kind = 'loss' if name.startswith('loss') else 'fraction'
    level = 'accuracy_elsewhere' if name.startswith('accuracy') else name
    if np.isfinite(values).any():
      figures[name] = Figure(values, kind, chance.get(level, 0.0))
  return figures


def _figures(point: Mapping) -> dict[str, float | None]:
  heldout, run, figures = point['heldout'], point['run'], {}
  if f'{_HELDOUT}loss' in heldout:
    figures['loss'] = heldout[f'{_HELDOUT}loss']
  for language, value in heldout.get(f'{_HELDOUT}loss_by_language', {}).items():
    figures[f'loss/{language}'] = value
  if run:
    accuracy = run['accuracy_by_language']
    figures |= {f'accuracy/{language}': value for language, value in accuracy.items()}
    size = str(min(3, len(accuracy)))
    names = [name for name in ('consistency', 'ac3') if size in run[name]]
    figures |= {f'{name}_{size}': run[name][size] for name in names}
  return figures


def _chance(points: list[dict]) -> dict[str, float]:
  """Chance levels, from the options in the first file of answers that exists."""
  for point in points:
    if run := point['run']:
      name = f'{point["questions"].replace("/", ".", 1)}.{run["method"]}.jsonl'
      path = os.path.join(os.path.dirname(point['path']), 'predictions', name)
      if os.path.exists(path):
        return chance_figures(read_predictions(path))
  return {}
