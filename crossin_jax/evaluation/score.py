"""`crossin score`: figures from saved predictions of any system."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
import sys

from crossin_jax.evaluation import results
from crossin_jax.evaluation.answers import extraction, open_answers
from crossin_jax.evaluation.answers.open_answers import OpenPredictions
from crossin_jax.evaluation.answers.predictions import Predictions, read_predictions
from crossin_jax.evaluation.measures import consistency
from crossin_jax.evaluation.measures.consistency import Summary
from crossin_jax.languages import ENGLISH_NAMES
from crossin_jax.workflow import command_line

# Items of the published benchmarks (docs/design/methods.md#a-6-benchmarks), to detect a subset.
TASK_ITEMS = {'cross_mmlu': 150, 'cross_logiqa': 176, 'cross_xquad': 1190}


def main(argv: Sequence[str]) -> int:
  """The command line of `crossin score`."""
  parser = command_line.Parser(
    'score',
    'Compute accuracy, consistency and AC3 from saved predictions.',
    'crossin score --task cross_mmlu --predictions predictions/cross_mmlu.jsonl.gz --protocol '
    'seaeval --json',
  )
  add = parser.add_argument
  add('--task', required=True, help='benchmark, e.g. cross_mmlu, cross_logiqa, cross_xquad')
  add(
    '--predictions',
    required=True,
    metavar='FILE',
    help="a line per item and language, or SeaEval's record per item; also .gz",
  )
  add(
    '--protocol',
    choices=extraction.PROTOCOLS,
    default='strict',
    help='strict: unparsed and tied answers are wrong; seaeval: the published rule',
  )
  add(
    '--first_line',
    action='store_true',
    help='cut each prediction at its first newline (few-shot runs)',
  )
  add(
    '--allow_partial',
    action='store_true',
    help='skip malformed lines and items that lack a language',
  )
  add('--prompt', type=int, default=1, help='number of the prompt; a seed of the draws of seaeval')
  add('--variant', help='name of the model in the result (default: the file name)')
  add('--seed', type=int, help='training seed of the model, copied to the result')
  options = parser.parse_args(argv)
  options.variant = options.variant or Path(options.predictions).name.split('.')[0] or 'model'
  protocol = open_answers.PROTOCOLS.get(options.task)
  score, table = (_score_open, _open_table) if protocol else (_score_choices, _table)
  predictions, summary, warning = score(options)
  run = results.build_run(
    summary,
    variant=options.variant,
    seed=options.seed,
    benchmark=options.task,
    protocol=protocol or options.protocol,
    method='generate',
  )
  print('\n'.join([*table(run, predictions), *warning]), file=sys.stderr)
  return command_line.finish(options, run)


def _score_open(options: argparse.Namespace) -> tuple[OpenPredictions, Summary, list[str]]:
  predictions = open_answers.read_predictions(
    options.predictions, allow_partial=options.allow_partial
  )
  if options.first_line:
    for texts in predictions.texts.values():
      texts.update({item_id: extraction.first_line(text) for item_id, text in texts.items()})
  return predictions, open_answers.summarise(predictions, open_answers.PROTOCOLS[options.task]), []


def _score_choices(options: argparse.Namespace) -> tuple[Predictions, Summary, list[str]]:
  predictions = read_predictions(options.predictions, allow_partial=options.allow_partial)
  chosen_NL = predictions.extract(
    options.protocol, first_line=options.first_line, prompt=options.prompt
  )
  summary = consistency.summarise(chosen_NL, predictions.answers, predictions.languages)
  warning = consistency.constant_answer_warning(chosen_NL, predictions.answers)
  return predictions, summary, [f'warning: {warning}'] if warning else []


def _open_table(run: Mapping, predictions: OpenPredictions) -> Iterator[str]:
  yield f'{run["benchmark"]}: {run["items"]} items, protocol {run["protocol"]}'
  yield from (f'skipped: {text}' for text in predictions.malformed)
  f1 = {**run.get('f1_by_language', {}), 'mean': run.get('f1')}
  for name, accuracy in {**run['accuracy_by_language'], 'mean': run['accuracy']}.items():
    more = '' if f1.get(name) is None else f'    F1 {100 * f1[name]:6.1f}'
    yield f'  {name:<8}{100 * accuracy:7.1f} %{more}'


def _table(run: Mapping, predictions: Predictions) -> Iterator[str]:
  task, languages = run['benchmark'], len(predictions.languages)
  yield f'{task}: {run["items"]} items in {languages} languages, protocol {run["protocol"]}'
  yield from (f'skipped: {text}' for text in predictions.malformed)
  if ids := predictions.left_out:
    examples = ', '.join(ids[:5]) + (', ...' if len(ids) > 5 else '')
    yield f'skipped {len(ids)} items that lack a language ({examples})'
  expected = TASK_ITEMS.get(task)
  if expected and run['items'] != expected:
    yield f'note: {task} has {expected} items; these figures are of {run["items"]}'
  yield ''
  for language, value in run['accuracy_by_language'].items():
    yield f'  {ENGLISH_NAMES[language]:<14}{100 * value:7.1f} %'
  yield f'  {"accuracy":<14}{100 * run["accuracy"]:7.1f} %'
  for s, value in run['consistency'].items():
    yield f'  {"C_" + s:<14}{100 * value:7.1f} %    {"AC3_" + s:<6}{100 * run["ac3"][s]:7.1f} %'
  yield f'  {"unparsed":<14}{100 * run["unparsed_rate"]:7.1f} %'
