"""What a fit reads in OUT of a sweep: the shares and the figures of every finished point."""

from collections.abc import Mapping
import glob
import os
import re

import numpy as np

from crossin_jax.evaluation.answers.predictions import read_predictions
from crossin_jax.mixing_laws.law import Figure
from crossin_jax.storage.files import read_json
from crossin_jax.sweep import table as sweep_table

_HELDOUT = 'eval/heldout/'


def read_points(output_dir: str, questions: str | None, method: str) -> tuple[list[dict], dict]:
  """Finished points that were trained and measured alike, in the order of their folders; and how
  many are left out.
  """
  folders = sorted(glob.glob(os.path.join(glob.escape(output_dir), 'points', '*', '')))
  if not folders:
    raise ValueError(
      f'{output_dir} has no points/: give the --output_dir of a `crossin sweep` that was started'
    )
  finished, counts = (
    [],
    {'points': len(folders), 'unfinished': 0, 'without_mixture': 0, 'other_settings': 0},
  )
  for folder in folders:
    results = sorted(
      glob.glob(os.path.join(glob.escape(folder), 'evaluation-*', 'point.json')),
      key=os.path.getmtime,
    )
    read = [_point(output_dir, path, questions, method) for path in results]
    counts['unfinished'] += not read
    counts['without_mixture'] += bool(read) and not any(read)
    finished.append([one for one in read if one])
  groups = _groups([one for measured in finished for one in measured])
  if not groups:
    raise ValueError(
      f'{output_dir} has {len(folders)} points, none of which is finished; start the sweep again '
      'first'
    )
  best = max(groups, key=lambda group: (len(group), max(one['time'] for one in group)))
  kept = {one['folder']: one for one in best}  # measured twice alike: the later one
  counts['other_settings'] = sum(bool(measured) for measured in finished) - len(kept)
  counts['used'] = len(kept)
  if questions and not best[0]['questions']:
    known = sorted({run['benchmark'] for run in best[0]['runs']})
    raise ValueError(
      f'no run has benchmark {questions!r} by {method}; there are '
      f'{", ".join(known) or "no questions"}'
    )
  return list(kept.values()), counts


def _point(output_dir: str, path: str, questions: str | None, method: str) -> dict | None:
  """What a point.json and its mixture say; None where the mixture is not there any more."""
  result = read_json(path, 'start the sweep again')
  settings = result['settings']
  data = os.path.join(output_dir, 'data', settings['data'])
  mixture = os.path.join(data, 'mixtures', f'{result["mixture"]}.json')
  if not os.path.exists(mixture):
    return None
  shares: dict[str, float] = {}
  for task in read_json(mixture, 'start the sweep again')['tasks']:
    shares[task['component']] = shares.get(task['component'], 0.0) + _rate(data, task)
  runs = [
    run
    for run in result['runs']
    if run['method'] == method and questions in (None, run['benchmark'])
  ]
  tasks = os.path.join(data, 'tasks')
  return {
    'name': os.path.basename(os.path.dirname(os.path.dirname(path))),
    'folder': os.path.dirname(os.path.dirname(path)),
    'path': path,
    'time': os.path.getmtime(path),
    'mixture': result['mixture'],
    'shares': shares,
    'seed': result['seed'],
    'heldout': result['heldout'],
    'runs': result['runs'],
    'run': runs[0] if runs else None,
    'questions': runs[0]['benchmark'] if runs else None,
    'run_settings': settings['run'],
    'data': [
      settings.get('heldout'),
      settings.get('questions'),
      os.path.basename(os.readlink(tasks)) if os.path.islink(tasks) else None,
    ],
  }


def _groups(points: list[dict]) -> list[list[dict]]:
  """Points that differ in their mixture and their seed alone: a law would take anything else for an
  effect of the shares.

  Rows, held-out rows and questions are the same in a group, or each seed has its own (a world for
  each).
  """
  groups: list[list[dict]] = []
  for one in points:
    group = next((g for g in groups if g[0]['data'] == one['data'] and _alike(g[0], one)), None)
    if group is None:
      groups.append([one])
    else:
      group.append(one)
  merged: list[list[dict]] = []
  for group in sorted(groups, key=len, reverse=True):
    seeds = {one['seed'] for one in group}
    other = next(
      (m for m in merged if _alike(m[0], group[0]) and not seeds & {one['seed'] for one in m}), None
    )
    if other is None:
      merged.append(group)
    else:
      other += group
  return merged


def _rate(data: str, task: Mapping) -> float:
  """Rate of a task, 0 where no example of it was left: training passes such a task over."""
  manifest = os.path.join(data, 'tasks', task['task'], 'manifest.json')
  if os.path.exists(manifest):
    train = (
      read_json(manifest, 'prepare the mixture again')['splits'].get('train', {}).get('parts', [])
    )
    if not sum(part['examples'] for part in train):
      return 0.0
  return float(task['rate'])


def _alike(a: Mapping, b: Mapping) -> bool:
  """Whether two points were trained alike but for mixture and seed; a text may name its seed
  ('read.0', 'read.1').
  """

  def same(x, y) -> bool:
    if isinstance(x, dict) and isinstance(y, dict):
      keys = (x.keys() | y.keys()) - {'RANDOM_SEED'}
      return all(same(x.get(key), y.get(key)) for key in keys)
    if isinstance(x, list) and isinstance(y, list):
      return len(x) == len(y) and all(map(same, x, y))
    if isinstance(x, str) and isinstance(y, str) and x != y:
      left, right = re.split(r'(\d+)', x), re.split(r'(\d+)', y)
      seeds = (str(a['seed']), str(b['seed']))
      return len(left) == len(right) and all(l == r or (l, r) == seeds for l, r in zip(left, right))
    return x == y

  return a['questions'] == b['questions'] and same(a['run_settings'], b['run_settings'])


def read_figures(points: list[dict], output_dir: str) -> dict[str, Figure]:
  """name -> values at every point: 'loss', 'loss/zh', 'accuracy/zh', 'consistency_3', 'ac3_3'."""
  values: dict[str, dict[int, float]] = {}

  def put(name: str, i: int, value) -> None:
    values.setdefault(name, {})[i] = np.nan if value is None else float(value)

  items = None
  for i, point in enumerate(points):
    heldout = point['heldout']
    if f'{_HELDOUT}loss' in heldout:
      put('loss', i, heldout[f'{_HELDOUT}loss'])
    for language, value in heldout.get(f'{_HELDOUT}loss_by_language', {}).items():
      put(f'loss/{language}', i, value)
    if run := point['run']:
      items = run['items']
      for language, value in run['accuracy_by_language'].items():
        put(f'accuracy/{language}', i, value)
      size = str(min(3, len(run['accuracy_by_language'])))
      for name in ('consistency', 'ac3'):
        if size in run[name]:
          put(f'{name}_{size}', i, run[name][size])
  chance = _chance(points)
  figures = {}
  for name in sorted(
    values, key=lambda n: (not n.startswith('loss'), 'accuracy' not in n, 'consist' not in n)
  ):
    column = np.array([values[name].get(i, np.nan) for i in range(len(points))])
    # A training that ran away has no place in a law.
    column[~np.isfinite(column)] = np.nan
    kind = 'loss' if name.startswith('loss') else 'fraction'
    key = 'accuracy_elsewhere' if name.startswith('accuracy') else name
    figures[name] = Figure(
      column, kind, chance.get(key, 0.0), items if name.startswith('accuracy') else None
    )
  if not figures:
    raise ValueError(
      f'{output_dir}: its points have neither held-out loss nor answers; set sweep.heldout or '
      'QUESTIONS'
    )
  return figures


def _chance(points: list[dict]) -> dict[str, float]:
  """What guessing gives, from the options of the first file of answers that is there."""
  for point in points:
    if point['run']:
      name = point['questions'].replace('/', '.', 1)
      path = os.path.join(
        os.path.dirname(point['path']), 'predictions', f'{name}.{point["run"]["method"]}.jsonl'
      )
      if os.path.exists(path):
        return sweep_table.chance_figures(read_predictions(path))
  return {}
