"""`crossin evaluate`: benchmarks, question files and held-out loss on a checkpoint."""

from collections.abc import Sequence
import contextlib
import os
import sys
import tempfile

import gin
import jax
import numpy as np

from crossin_jax import config
from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.evaluation import report
from crossin_jax.evaluation.answers import open_answers
from crossin_jax.evaluation.answers.predictions import write_predictions
from crossin_jax.evaluation.asking import (
  Answers,
  answer_questions,
  choice_predictions,
  choice_summary,
)
from crossin_jax.evaluation.benchmarks.declarations import BENCHMARKS, LoadedBenchmark
from crossin_jax.evaluation.measures import consistency
from crossin_jax.evaluation.questions import Questions, read_questions
from crossin_jax.evaluation.results import METHODS, build_run, median_summary, write_results
from crossin_jax.processes import distributed
from crossin_jax.storage import mirror
from crossin_jax.storage.files import write_json
from crossin_jax.workflow import command_line

MARKERS = ('results.json', 'figures.json')  # the last to reach a remote output directory


class _Asked:
  """One benchmark or question file under all its prompts."""

  def __init__(
    self,
    name: str,
    prompts: list[list[Questions]],
    methods: Sequence[str],
    notes: Sequence[str] = (),
  ):
    """Args:
    name: for figures and files.
    prompts: for each form the `Questions`: one, or one a language where they are not parallel.
    methods: how it may be answered.
    notes: for people.
    """
    self.name, self.prompts, self.methods, self.notes = name, prompts, methods, notes
    first = prompts[0]
    self.kind, self.items = first[0].kind, max(len(questions.ids) for questions in first)
    self.languages = [language for questions in first for language in questions.languages]

  def answer(self, ask, method: str, predictions_dir: str) -> tuple[dict, str, list[np.ndarray]]:
    """Asks, writes the predictions and gives (summary, protocol, choices of each prompt)."""
    summaries, chosen, protocol = [], [], 'strict'
    for forms in self.prompts:
      answers = [ask(questions, method) for questions in forms]
      form = f'.p{forms[0].prompt}' if len(self.prompts) > 1 else ''
      path = os.path.join(predictions_dir, f'{self.name.replace("/", ".")}{form}.{method}.jsonl')
      if self.kind == 'choice':
        write_predictions(path, choice_predictions(forms[0], answers[0]))
        summary, chosen_NL = choice_summary(forms[0], answers[0])
        chosen.append(chosen_NL)
      else:
        protocol = open_answers.PROTOCOLS[self.name]
        found = open_answers.of_questions(forms, [own.texts for own in answers])
        open_answers.write_predictions(path, found)
        summary = open_answers.summarise(found, protocol)
      summaries.append(summary)
    return summaries[0] if len(summaries) == 1 else median_summary(summaries), protocol, chosen


@gin.configurable
def evaluate(
  checkpoint: str,
  question_files: list[str],
  output_dir: str,
  variant: str,
  seed: int | None = None,
  benchmarks: Sequence[tuple[str, str]] = (),
  languages: Sequence[str] | None = None,
  prompt_forms: Sequence[int] | None = None,
  split: str | None = None,
  limit: int | None = None,
  methods: Sequence[str] | None = None,
  model=gin.REQUIRED,
  evaluators: tuple = (),
  partitioner=Partitioner,
) -> tuple[list[dict], dict]:
  """Answers benchmarks and question files with a checkpoint and runs evaluators on it.

  Writes predictions/*.jsonl, results.json and a page for each benchmark where there are questions,
  and figures.json.

  Args:
    checkpoint: a MODEL_DIR or one of its checkpoints, or a Hugging Face directory.
    question_files: see `questions.read_questions`.
    output_dir: where results go, on this machine.
    variant, seed: written into the results.
    benchmarks: (name of `BENCHMARKS`, file or folder) of each.
    languages, split, limit: see `LoadedBenchmark`.
    prompt_forms: which forms of a benchmark's prompt, from 1; None = all.
    methods: of 'likelihood' and 'generate'; None = what `answer_questions.methods` says.
    model: the model of the checkpoint.
    evaluators: as in training, for instance `HeldoutLoss`.
    partitioner: mesh and axis rules.

  Returns:
    The runs of results.json, and the evaluators' figures.
  """
  asked = [
    _Asked((q := read_questions(file, limit)).name, [[q]], METHODS) for file in question_files
  ]
  for name, path in benchmarks:
    loaded = LoadedBenchmark(name, path, languages, split, limit)
    forms = prompt_forms or range(1, len(loaded.declaration.prompts) + 1)
    forms = [number for number in forms if number <= len(loaded.declaration.prompts)] or [1]
    asked.append(
      _Asked(
        name,
        [loaded.questions(number) for number in forms],
        loaded.declaration.methods,
        loaded.notes,
      )
    )
  source = SavedModel.open(checkpoint)
  prompts = source.prompts if asked else None
  partition, runs = partitioner(), []
  partition.suit(model, training=False)
  with partition.activate():
    params = source.params(model, partition)

    def ask(questions: Questions, method: str) -> Answers:
      return answer_questions(model, params, partition, questions, prompts, methods=(method,))[
        method
      ]

    for one in asked:
      print(
        f'evaluate {variant}: {one.items} items in {", ".join(one.languages)} ({one.name})',
        file=sys.stderr,
      )
      for note in one.notes:
        print(f'  {note}', file=sys.stderr)
      wanted = methods or config.bound('answer_questions.methods') or METHODS
      used = [method for method in one.methods if method in wanted]
      if not used:
        print(
          f'  not asked: {one.name} is answered by {", ".join(one.methods)} only', file=sys.stderr
        )
      choices = {}
      for method in used:
        summary, protocol, chosen = one.answer(ask, method, os.path.join(output_dir, 'predictions'))
        accuracies = [own['accuracy'] for own in summary.get('by_prompt', [summary])]
        runs.append(
          build_run(
            summary, variant=variant, seed=seed, benchmark=one.name, protocol=protocol,
            method=method,
            prompt_accuracies=accuracies,
          )
        )  # fmt: skip
        _warn_of_constant_answers(one, chosen, method)
        if chosen:
          choices[variant, seed or 0, 'untagged', method] = chosen[len(chosen) // 2]
      if choices and len(one.languages) > 1:
        _write_page(output_dir, one, choices, variant, alone=len(asked) == 1)
    figures = {
      name: value for evaluator in evaluators for name, value in evaluator(model, params, partition)
    }
  if runs:
    write_results(os.path.join(output_dir, 'results.json'), runs)
  write_json(os.path.join(output_dir, 'figures.json'), figures)
  return runs, figures


def _warn_of_constant_answers(one: _Asked, chosen: Sequence[np.ndarray], method: str) -> None:
  for forms, chosen_NL in zip(one.prompts, chosen):
    if warning := consistency.constant_answer_warning(chosen_NL, forms[0].answers):
      print(
        f'warning: {one.name} by {method}, prompt {forms[0].prompt}: {warning}', file=sys.stderr
      )


def _write_page(output_dir: str, one: _Asked, choices: dict, variant: str, alone: bool) -> None:
  """report.html, or report.NAME.html where there are several benchmarks."""
  questions = one.prompts[len(one.prompts) // 2][0]
  asked_text = lambda row: (
    row['prompt']
    if 'prompt' in row
    else '\n'.join(filter(None, (row['instruction'], row['input'])))
  )
  page = report.Report(
    title=f'{variant} on {one.name}',
    languages=questions.languages,
    arms=[report.Arm(variant)],
    answers=questions.answers,
    choices=choices,
    items=[
      report.Item(id_, {row['language']: asked_text(row) for row in item}, {row['language']: row['choices'] for row in item})
      for id_, item in zip(questions.ids, questions.rows)
    ],
    benchmark=one.name,
    prompts=len(one.prompts),
    options=max(len(row['choices']) for item in questions.rows for row in item),
    command='crossin ' + ' '.join(sys.argv[1:]),
    method=next(iter(choices))[3],
  )  # fmt: skip
  name = 'report.html' if alone else f'report.{one.name.replace("/", ".")}.html'
  report.write_report(os.path.join(output_dir, name), page)


def _of_kind(evaluators, kind: str) -> tuple:
  """Those of a tuple of gin references that make a given class."""
  return tuple(e for e in evaluators or () if e.selector.split('.')[-1] == kind)


def _named_paths(values: Sequence[str]) -> list[tuple[str, str]]:
  """('cross_mmlu', 'data/mmlu.json') of 'cross_mmlu=data/mmlu.json'."""
  pairs = []
  for value in values:
    name, equals, path = value.partition('=')
    if not equals or name not in BENCHMARKS or not path:
      raise config.ConfigError(
        f'--benchmark {value!r}: write NAME=PATH, NAME one of {", ".join(BENCHMARKS)}'
      )
    pairs.append((name, path))
  return pairs


def _split(text: str | None, kind=str) -> list | None:
  return [kind(part.strip()) for part in text.split(',')] if text else None


def main(argv: list[str]) -> int:
  """The command line of `crossin evaluate`."""
  parser = command_line.Parser(
    'evaluate',
    'Answer benchmarks with a checkpoint, by likelihood and by greedy generation; held-out loss.',
    'crossin evaluate --checkpoint runs/a --benchmark cross_mmlu=data/cross_mmlu.json --benchmark '
    'xcopa=data/xcopa --languages en,zh,vi --output_dir runs/a/eval',
    gin=True,
    processes=True,
  )
  parser.add_argument(
    '--checkpoint',
    required=True,
    help='a MODEL_DIR, checkpoint_<step> (its config.gin is read first) or Hugging Face directory',
  )
  parser.add_argument(
    '--benchmark',
    action='append',
    default=[],
    metavar='NAME=PATH',
    help=f'may be repeated; {", ".join(BENCHMARKS)}',
  )
  parser.add_argument(
    '--questions', action='append', default=[], help='question file (JSONL); may be repeated'
  )
  parser.add_argument(
    '--languages', help='codes, e.g. en,zh,vi,es (default: all that a benchmark has)'
  )
  parser.add_argument(
    '--prompts', help="forms of a benchmark's prompt, e.g. 1,2 (default: all; figures are medians)"
  )
  parser.add_argument(
    '--methods', help='likelihood,generate (default: both, where a benchmark has both)'
  )
  parser.add_argument(
    '--split', help="part of the files' names that chooses, where there are several, e.g. test"
  )
  parser.add_argument('--limit', type=int, help='first so many items of each')
  parser.add_argument(
    '--output_dir', required=True, help='for results.json, predictions/ and the pages'
  )
  parser.add_argument('--variant', help='name in results.json (default: name of the MODEL_DIR)')
  parser.add_argument('--seed', type=int, help='seed of the run, for results.json')
  args = parser.parse_args(argv)
  benchmarks, languages = _named_paths(args.benchmark), _split(args.languages)
  methods = _split(args.methods)
  if unknown := set(methods or ()) - set(METHODS):
    raise config.ConfigError(
      f'--methods: {", ".join(sorted(unknown))} is none of {", ".join(METHODS)}'
    )
  source = SavedModel.open(args.checkpoint)
  source.parse(args)
  # Questions of the run's own loop are asked again only where named: they may be the same file.
  heldout = config.resolve(_of_kind(config.bound('train.evaluators'), 'HeldoutLoss'))
  distributed.initialize(args)
  variant = args.variant or source.name
  with contextlib.ExitStack() as stack:
    # All processes come to the same figures; those of the others are thrown away.
    chief = jax.process_index() == 0
    if not chief:
      output_dir = stack.enter_context(tempfile.TemporaryDirectory())
    else:
      output_dir = stack.enter_context(mirror.written(args.output_dir, MARKERS)).path
    runs, figures = evaluate(
      args.checkpoint, args.questions, output_dir, variant, args.seed, benchmarks, languages,
      _split(args.prompts, int), args.split, args.limit, methods,
      model=config.resolve(config.bound('train.model')), evaluators=heldout,
    )  # fmt: skip
  if not chief:
    return 0
  for name, value in figures.items():
    print(f'{name}: {value}', file=sys.stderr)
  for run in runs:
    print(_sentence(run), file=sys.stderr)
  return command_line.finish(args, {'runs': runs, 'figures': figures})


def _sentence(run: dict) -> str:
  """A run in a line."""
  by_language = ' '.join(
    f'{language} {value:.3f}' for language, value in run['accuracy_by_language'].items()
  )
  third = '3' if '3' in run['ac3'] else max(run['ac3'], default=None)
  more = (
    f', C_{third} {run["consistency"][third]:.3f}, AC3_{third} {run["ac3"][third]:.3f}'
    if third
    else ''
  )
  more += f', F1 {run["f1"]:.3f}' if 'f1' in run else ''
  spread = run['prompts']
  if spread['min'] < spread['max']:
    more += f', over prompts {spread["min"]:.3f} to {spread["max"]:.3f}'
  return (
    f'{run["benchmark"]} by {run["method"]}: accuracy {run["accuracy"]:.3f} ({by_language}){more}, '
    f'unparsed {run["unparsed_rate"]:.3f}'
  )
