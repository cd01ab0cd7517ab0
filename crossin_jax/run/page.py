"""The page of `crossin run`: what training changed, and where everything is."""

import os

from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.evaluation import results
from crossin_jax.pages import page, words
from crossin_jax.storage.files import read_json
from crossin_jax.storage.records import read_records

HELDOUT = 'eval/heldout/loss'


def write(job) -> dict:
  """Writes index.html into the directory of a job.

  Returns:
    {'page', 'model_dir', 'exported' or None, 'training': see `of_training`, 'comparisons': of
    compare.json}.
  """
  compared = []
  if 'compare' in job.steps.steps:
    path = os.path.join(job.folder('compare'), 'compare.json')
    compared = read_json(path, 'run `crossin run --redo`')['comparisons']
  training = of_training(job.folder('train'))
  path = os.path.join(job.settings.output_dir, 'index.html')
  manifests = {name: job.steps.manifest(name) for name in job.steps.steps}
  values = {
    'title': os.path.basename(os.path.normpath(job.settings.output_dir)),
    'base': job.base,
    'mixture': job.mixture,
    'prepared': manifests['prepare']['counts'],
    'training': training,
    'comparisons': compared,
    'measured': _runs(job, 'after') if not compared else [],
    'pages': _pages(job),
    'exported': job.exported,
    'next': next_words(job),
    'steps': [
      {'name': name, 'command': job.shown(name), 'seconds': manifest['seconds']}
      for name, manifest in manifests.items()
    ],
  }
  number = lambda value: f'{value:,.4g}'
  page.write(path, 'run.html.j2', values, number=number, language=words.language_name)
  return {
    'page': path,
    'model_dir': job.folder('train'),
    'exported': job.exported,
    'training': training,
    'comparisons': compared,
  }


def of_training(model_dir: str) -> dict:
  """{'step', 'loss', 'heldout_before', 'heldout', 'tokens_per_second', 'checkpoint'} of a run; None
  where it was not measured.
  """
  lines, last = {}, {}
  for _, row in read_records(os.path.join(model_dir, 'metrics.jsonl')):
    last |= row
    if HELDOUT in row:
      lines[row['step']] = row[HELDOUT]
  return {
    'step': last.get('step'),
    'loss': last.get('loss'),
    'heldout_before': lines.get(0),
    'heldout': lines[max(lines)] if max(lines, default=0) else None,
    'tokens_per_second': last.get('tokens_per_second'),
    'checkpoint': SavedModel.open(model_dir).path,
  }


def next_words(job) -> list[str]:
  """What one does next with the model of a job."""
  model = job.exported if job.exported and job.export_format != 'peft' else job.folder('train')
  return [
    f'ask it: crossin serve --checkpoint {model}',
    f'its checkpoint: {SavedModel.open(job.folder("train")).path}',
    *([f'for transformers: {job.exported}'] if job.exported else []),
  ]


def _runs(job, step: str) -> list[dict]:
  path = os.path.join(job.folder(step), 'results.json')
  return results.read_results(path) if os.path.exists(path) else []


def _pages(job) -> list[str]:
  """Paths of the pages of the steps, relative to the page of the job."""
  found = []
  for step in ('compare', 'before', 'after'):
    if os.path.isdir(folder := job.folder(step)):
      found += [f'{step}/{name}' for name in sorted(os.listdir(folder)) if name.endswith('.html')]
  return found
