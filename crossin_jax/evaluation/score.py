"""`crossin score`: figures from saved predictions of any system."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
import sys

from crossin_jax.evaluation import results
from crossin_jax.evaluation.answers import extraction, open_answers
from crossin_jax.evaluation.answers.predictions import Predictions, read_predictions
from crossin_jax.evaluation.measures import consistency
from crossin_jax.languages import ENGLISH_NAMES
from crossin_jax.workflow import command_line

# Items of the published benchmarks (METHODS.md A.6), to notice a part of one.
TASK_ITEMS = {'cross_mmlu': 150, 'cross_logiqa': 176, 'cross_xquad': 1190}


def main(argv: Sequence[str]) -> int:
  """The command line of `crossin score`."""
  parser = command_line.Parser(
    'score',
    'Accuracy, consistency and AC3 from saved predictions.',
    'crossin score --task cross_mmlu --predictions predictions/cross_mmlu.jsonl.gz --protocol '
    'seaeval --json',
  )
  parser.add_argument(
    '--task',
    required=True,
    help='name of the benchmark, e.g. cross_mmlu, cross_logiqa, cross_xquad',
  )
  parser.add_argument(
    '--predictions',
    required=True,
    metavar='FILE',
    help="a line per item and language, or SeaEval's record per item; .gz too",
  )
  parser.add_argument(
    '--protocol',
    choices=extraction.PROTOCOLS,
    default='strict',
    help='strict: unparsed and tied answers are wrong (default); seaeval: the published rule',
  )
  parser.add_argument(
    '--first_line',
    '--first-line',
    action='store_true',
    help='cut each prediction at its first newline (few-shot runs)',
  )
  parser.add_argument(
    '--allow-partial',
    '--allow_partial',
    action='store_true',
    help='leave out malformed lines and items that lack a language, instead of refusing the file',
  )
  parser.add_argument(
    '--prompt',
    type=int,
    default=1,
    help='number of the prompt; seeds the draws of seaeval (default 1)',
  )
  parser.add_argument(
    '--variant', help='name of the model in the result (default: the name of the file)'
  )
  parser.add_argument('--seed', type=int, help='training seed of the model, copied to the result')
  options = parser.parse_args(argv)
  options.variant = options.variant or Path(options.predictions).name.split('.')[0] or 'model'
  run = _score_open(options) if options.task in open_answers.PROTOCOLS else _score_choices(options)
  return command_line.finish(options, run)


def _score_open(options: argparse.Namespace) -> dict:
  predictions = open_answers.read_predictions(
    options.predictions, allow_partial=options.allow_partial
  )
  protocol = open_answers.PROTOCOLS[options.task]
  if options.first_line:
    for texts in predictions.texts.values():
      texts.update({item_id: extraction.first_line(text) for item_id, text in texts.items()})
  run = results.build_run(
    open_answers.summarise(predictions, protocol), variant=options.variant, seed=options.seed,
    benchmark=options.task,
    protocol=protocol, method='generate',
  )  # fmt: skip
  print(f'{options.task}: {run["items"]} items, by {protocol}', file=sys.stderr)
  for line in [*(f'left out: {text}' for text in predictions.malformed), *open_answers.table(run)]:
    print(line, file=sys.stderr)
  return run


def _score_choices(options: argparse.Namespace) -> dict:
  predictions = read_predictions(options.predictions, allow_partial=options.allow_partial)
  chosen_NL = predictions.extract(
    options.protocol, first_line=options.first_line, prompt=options.prompt
  )
  summary = consistency.summarise(chosen_NL, predictions.answers, predictions.languages)
  run = results.build_run(
    summary,
    variant=options.variant,
    seed=options.seed,
    benchmark=options.task,
    protocol=options.protocol,
    method='generate',
  )
  _print_table(run, predictions)
  warning = consistency.constant_answer_warning(chosen_NL, predictions.answers)
  if warning:
    print(f'warning: {warning}', file=sys.stderr)
  return run


def _print_table(run: Mapping, predictions: Predictions) -> None:
  def say(text: str = '') -> None:
    print(text, file=sys.stderr)

  say(
    f'{run["benchmark"]}: {run["items"]} items in {len(predictions.languages)} languages, '
    f'protocol {run["protocol"]}'
  )
  for text in predictions.malformed:
    say(f'left out: {text}')
  if predictions.left_out:
    examples = ', '.join(predictions.left_out[:5]) + (
      ', ...' if len(predictions.left_out) > 5 else ''
    )
    say(f'left out, for want of a language: {len(predictions.left_out)} items ({examples})')
  expected = TASK_ITEMS.get(run['benchmark'])
  if expected and run['items'] != expected:
    say(f'note: {run["benchmark"]} has {expected} items; these figures are of {run["items"]}')
  say()
  for language, value in run['accuracy_by_language'].items():
    say(f'  {ENGLISH_NAMES[language]:<14}{100 * value:7.1f} %')
  say(f'  {"accuracy":<14}{100 * run["accuracy"]:7.1f} %')
  for s, value in run['consistency'].items():
    say(f'  {"C_" + s:<14}{100 * value:7.1f} %    {"AC3_" + s:<6}{100 * run["ac3"][s]:7.1f} %')
  say(f'  {"unparsed":<14}{100 * run["unparsed_rate"]:7.1f} %')
