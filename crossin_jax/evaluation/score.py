"""`crossin score`: figures from saved predictions of any system."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from crossin_jax.endpoint import session as endpoint_session
from crossin_jax.evaluation import flags, results
from crossin_jax.evaluation.answers import extraction, open_answers
from crossin_jax.evaluation.answers.draws import drawn_among, with_draws
from crossin_jax.evaluation.answers.open_answers import OpenPredictions
from crossin_jax.evaluation.answers.predictions import Predictions, read_predictions
from crossin_jax.evaluation.judging import choices as judge_choices
from crossin_jax.evaluation.measures import consistency
from crossin_jax.evaluation.measures.consistency import Summary
from crossin_jax.languages import english_name
from crossin_jax.storage.records import RecordError
from crossin_jax.workflow import command_line

# Items of the published benchmarks (docs/design/methods.md#a-6-benchmarks), to detect a subset.
TASK_ITEMS = {'cross_mmlu': 150, 'cross_logiqa': 176, 'cross_xquad': 1190}


def main(argv: Sequence[str]) -> int:
  """The command line of `crossin score`."""
  options = flags.score_parser().parse_args(argv)
  options.variant = options.variant or Path(options.predictions).name.split('.')[0] or 'model'
  is_open = open_answers.benchmark_protocol(options.task) is not None
  if is_open or options.protocol != judge_choices.PROTOCOL:
    options.protocol = open_answers.chosen_protocol(options.task, options.protocol)
  score, table = (_score_open, _open_table) if is_open else (_score_choices, _table)
  predictions, summary, warning = score(options)
  run = results.build_run(
    summary,
    variant=options.variant,
    seed=options.seed,
    benchmark=options.task,
    protocol=options.protocol,
    method='generate',
  )
  print('\n'.join([*table(run, predictions), *warning]))
  return command_line.finish(options, run)


def _score_open(options: argparse.Namespace) -> tuple[OpenPredictions, Summary, list[str]]:
  predictions = open_answers.read_predictions(
    options.predictions, allow_partial=options.allow_partial
  )
  if options.first_line:
    for texts in predictions.texts.values():
      texts.update({item_id: extraction.first_line(text) for item_id, text in texts.items()})
  warnings = []
  if missing := predictions.missing:
    every = max(map(len, predictions.texts.values()))
    text = '; '.join(
      f'{language} lacks {len(ids)} of the items that others have '
      f'({", ".join(ids[:5])}{", ..." if len(ids) > 5 else ""})'
      for language, ids in missing.items()
    )
    # MLQA has other questions in each language.
    if options.task != 'mlqa' and not options.allow_partial:
      raise RecordError(
        f'{options.predictions}: {text}. Figures of different items cannot be compared; add the '
        'missing answers, or score what is there with --allow_partial'
      )
    warnings = [f'warning: {text}; at most {every} items in a language']
  return predictions, open_answers.summarise(predictions, options.protocol), warnings


def _score_choices(options: argparse.Namespace) -> tuple[Predictions, Summary, list[str]]:
  predictions = read_predictions(options.predictions, allow_partial=options.allow_partial)
  open_NL = None  # the options among which a protocol draws
  if options.protocol == judge_choices.PROTOCOL:
    open_NL = _judged(options, predictions)
    chosen_NL = judge_choices.drawn(predictions, open_NL, options.prompt)
  else:
    chosen_NL = predictions.extract(
      options.protocol, first_line=options.first_line, prompt=options.prompt
    )
  if options.protocol == 'seaeval':
    open_NL = drawn_among(predictions, first_line=options.first_line)
  summary = consistency.summarise(chosen_NL, predictions.answers, predictions.languages)
  if open_NL is not None:
    summary = with_draws(summary, predictions, open_NL)
  warning = consistency.constant_answer_warning(chosen_NL, predictions.answers)
  return predictions, summary, [f'warning: {warning}'] if warning else []


def _judged(options: argparse.Namespace, predictions: Predictions) -> list:
  if not (options.endpoint and options.judge_model):
    raise ValueError(
      '--protocol seaeval_v2 asks a judge model: give --endpoint URL and --judge_model NAME'
    )
  asked = judge_choices.requests(
    predictions, options.judge_model, options.judge_seed, options.first_line
  )
  directory, models = f'{options.predictions}.judged', [options.judge_model]
  what = f'{len(asked):,} answers'
  with endpoint_session.session(options, models, directory, list(asked.values()), what) as session:
    if options.dry_run:
      raise SystemExit(0)
    return judge_choices.judged(predictions, asked, session.endpoint, session.check)


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
    yield f'  {english_name(language):<14}{100 * value:7.1f} %'
  yield f'  {"accuracy":<14}{100 * run["accuracy"]:7.1f} %'
  for s, value in run['consistency'].items():
    wrong = 100 * run['wrong_consistency'][s]
    yield (
      f'  {"C_" + s:<14}{100 * value:7.1f} %    {"AC3_" + s:<6}{100 * run["ac3"][s]:7.1f} %    '
      f'on wrong options {wrong:.1f} %'
    )
  if drawn := run.get('drawn'):
    counts = ', '.join(f'{code} {count}' for code, count in drawn['by_language'].items() if count)
    low, high = (100 * value for value in drawn['accuracy'])
    yield f'  drawn at random: answers to {drawn["items"]} items ({counts}); other draws give an '
    yield f'  accuracy of {low:.1f} to {high:.1f} % (95 %)'
  yield f'  {"all right":<14}{100 * run["all_right"]:7.1f} %'
  yield f'  {"unparsed":<14}{100 * run["unparsed_rate"]:7.1f} %'
