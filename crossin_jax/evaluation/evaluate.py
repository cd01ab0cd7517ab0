"""`crossin evaluate`: benchmarks, question files and held-out loss on a checkpoint."""

from collections.abc import Sequence
import contextlib
from dataclasses import dataclass
import os
import sys
import tempfile

import gin
import jax

from crossin_jax import config
from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.evaluation import flags, report
from crossin_jax.evaluation.answers import open_answers
from crossin_jax.evaluation.answers.predictions import write_predictions
from crossin_jax.evaluation.asking import (
  Answers,
  answer_questions,
  choice_predictions,
  choice_summary,
  summary_of_languages,
)
from crossin_jax.evaluation.benchmarks.declarations import BENCHMARKS, LoadedBenchmark
from crossin_jax.evaluation.contamination import choice_confusion
from crossin_jax.evaluation.measures import consistency
from crossin_jax.evaluation.measures.consistency import Summary
from crossin_jax.evaluation.questions import Questions, read_questions
from crossin_jax.evaluation.results import METHODS, build_run, median_summary, write_results
from crossin_jax.processes import distributed
from crossin_jax.storage import mirror
from crossin_jax.storage.files import write_json
from crossin_jax.workflow import command_line

MARKERS = ('results.json', 'figures.json')  # uploaded last to a remote output directory


@dataclass(frozen=True)
class _Task:
  """A benchmark or question file with all its prompt forms."""

  name: str
  forms: list[list[Questions]]  # per prompt form one, or one per language if not parallel
  methods: Sequence[str]
  notes: Sequence[str] = ()

  @property
  def languages(self) -> list[str]:
    return [language for questions in self.forms[0] for language in questions.languages]

  def answer(self, ask, method: str, predictions_dir: str) -> tuple[Summary, str, list]:
    """Asks, writes the predictions, returns (summary, protocol, choices of each prompt form)."""
    summaries, choices, protocol = [], [], 'strict'
    for form in self.forms:
      answers = [ask(questions, method) for questions in form]
      name = self.name.replace('/', '.') + (f'.p{form[0].prompt}' if len(self.forms) > 1 else '')
      path = os.path.join(predictions_dir, f'{name}.{method}.jsonl')
      if form[0].kind == 'choice' and len(form) == 1:
        write_predictions(path, choice_predictions(form[0], answers[0]))
        summary, chosen_NL = choice_summary(form[0], answers[0])
        choices.append(chosen_NL)
      elif form[0].kind == 'choice':
        for questions, found in zip(form, answers):
          path = os.path.join(predictions_dir, f'{name}.{questions.languages[0]}.{method}.jsonl')
          write_predictions(path, choice_predictions(questions, found))
        summary = summary_of_languages(list(zip(form, answers)))
      else:
        protocol = open_answers.PROTOCOLS[self.name][0]
        predictions = open_answers.of_questions(form, [one.texts for one in answers])
        open_answers.write_predictions(path, predictions)
        summary = open_answers.summarise(predictions, protocol)
      summaries.append(summary)
    summary = summaries[0] if len(summaries) == 1 else median_summary(summaries)
    return summary, protocol, choices


def _tasks(
  question_files, benchmarks, languages, prompt_forms, split, limit, confuse_choices
) -> list[_Task]:
  tasks = []
  for file in question_files:
    questions = read_questions(file, limit)
    tasks.append(_Task(questions.name, [[questions]], METHODS))
  for name, path in benchmarks:
    loaded = LoadedBenchmark(name, path, languages, split, limit)
    available = range(1, len(loaded.declaration.prompts) + 1)
    numbers = [number for number in prompt_forms or available if number <= available[-1]] or [1]
    versions = {name: loaded}
    if confuse_choices:
      versions[name + choice_confusion.SUFFIX] = choice_confusion.confused(loaded)
    for version, read in versions.items():
      forms = [read.questions(number) for number in numbers]
      tasks.append(_Task(version, forms, loaded.declaration.methods, loaded.notes))
  return tasks


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
  confuse_choices: bool = False,
  template: str | None = None,
  model=gin.REQUIRED,
  evaluators: tuple = (),
  partitioner=Partitioner,
) -> tuple[list[dict], dict]:
  """Answers benchmarks and question files with a checkpoint and runs evaluators on it.

  Writes figures.json and, for questions, predictions/*.jsonl, results.json and a page for each
  benchmark.

  Args:
    checkpoint: a MODEL_DIR or one of its checkpoints, or a Hugging Face directory.
    question_files: see `questions.read_questions`.
    output_dir: local directory of the results.
    variant, seed: copied to the results.
    benchmarks: (key of `BENCHMARKS`, file or folder) of each.
    languages, split, limit: see `LoadedBenchmark`.
    prompt_forms: numbers of the prompt forms, from 1; None = all.
    methods: of 'likelihood' and 'generate'; None = `answer_questions.methods`.
    confuse_choices: ask each benchmark again as NAME/confused, see `choice_confusion`.
    template: of the prompts; None = that of the checkpoint.
    model: the model of the checkpoint.
    evaluators: as in training, for instance `HeldoutLoss`.
    partitioner: mesh and axis rules.

  Returns:
    The runs of results.json, and the figures of the evaluators.
  """
  tasks = _tasks(question_files, benchmarks, languages, prompt_forms, split, limit, confuse_choices)
  source = SavedModel.open(checkpoint)
  prompts = source.prompts if tasks else None
  if prompts and template:
    prompts = prompts.with_template(template)
  partition, runs, correct = partitioner(), [], {}
  partition.suit(model, training=False)
  with partition.activate():
    params = source.params(model, partition)

    def ask(questions: Questions, method: str) -> Answers:
      answers = answer_questions(model, params, partition, questions, prompts, methods=(method,))
      return answers[method]

    for task in tasks:
      items = max(len(questions.ids) for questions in task.forms[0])
      _log(f'evaluate {variant}: {items} items in {", ".join(task.languages)} ({task.name})')
      for note in task.notes:
        _log(f'  {note}')
      wanted = methods or config.bound('answer_questions.methods') or METHODS
      used = [method for method in task.methods if method in wanted]
      if not used:
        _log(f'  not asked: {task.name} supports {", ".join(task.methods)} only')
      by_method = {}
      for method in used:
        predictions_dir = os.path.join(output_dir, 'predictions')
        summary, protocol, choices = task.answer(ask, method, predictions_dir)
        runs.append(
          build_run(
            summary,
            variant=variant,
            seed=seed,
            benchmark=task.name,
            protocol=protocol,
            method=method,
          )
        )
        for form, chosen_NL in zip(task.forms, choices):
          if warning := consistency.constant_answer_warning(chosen_NL, form[0].answers):
            _log(f'warning: {task.name} by {method}, prompt {form[0].prompt}: {warning}')
        if choices:
          middle = len(choices) // 2
          correct[task.name, method] = choices[middle] == task.forms[middle][0].answers
          by_method[variant, seed or 0, 'untagged', method] = choices[middle]
      if by_method and len(task.languages) > 1:
        _write_page(output_dir, task, by_method, variant, alone=len(tasks) == 1)
    figures = {
      name: value for evaluator in evaluators for name, value in evaluator(model, params, partition)
    }
  _write_confusion(output_dir, tasks, correct)
  if runs:
    write_results(os.path.join(output_dir, 'results.json'), runs)
  write_json(os.path.join(output_dir, 'figures.json'), figures)
  return runs, figures


def _write_confusion(output_dir: str, tasks: Sequence[_Task], correct: dict) -> None:
  """Writes choice_confusion.json, if benchmarks were asked with confused choices."""
  languages, found = {task.name: task.languages for task in tasks}, []
  for (name, method), original_NL in correct.items():
    if (confused_NL := correct.get((name + choice_confusion.SUFFIX, method))) is not None:
      changes = choice_confusion.changes(original_NL, confused_NL, languages[name])
      found.append({'benchmark': name, 'method': method, 'changes': changes})
      _log(choice_confusion.sentence(name, method, changes))
  if found:
    write_json(os.path.join(output_dir, 'choice_confusion.json'), found)


def _log(text: str) -> None:
  print(text, file=sys.stderr)


def _write_page(output_dir: str, task: _Task, choices: dict, variant: str, alone: bool) -> None:
  """Writes report.html, or report.NAME.html if there are several benchmarks."""
  questions = task.forms[len(task.forms) // 2][0]

  def text(row: dict) -> str:
    return row.get('prompt') or '\n'.join(filter(None, map(row.get, ('instruction', 'input'))))

  page = report.Report(
    title=f'{variant} on {task.name}',
    languages=questions.languages,
    arms=[report.Arm(variant)],
    answers=questions.answers,
    choices=choices,
    items=[
      report.Item(
        id_,
        {row['language']: text(row) for row in item},
        {row['language']: row['choices'] for row in item},
      )
      for id_, item in zip(questions.ids, questions.rows)
    ],
    benchmark=task.name,
    prompts=len(task.forms),
    options=max(len(row['choices']) for item in questions.rows for row in item),
    command='crossin ' + ' '.join(sys.argv[1:]),
    method=next(iter(choices))[3],
  )
  name = 'report.html' if alone else f'report.{task.name.replace("/", ".")}.html'
  report.write_report(os.path.join(output_dir, name), page)


def _named_paths(values: Sequence[str]) -> list[tuple[str, str]]:
  """'cross_mmlu=data/mmlu.json' -> ('cross_mmlu', 'data/mmlu.json')."""
  pairs = []
  for value in values:
    name, _, path = value.partition('=')
    if name not in BENCHMARKS or not path:
      raise config.ConfigError(
        f'--benchmark {value!r}: write NAME=PATH, NAME one of {", ".join(BENCHMARKS)}'
      )
    pairs.append((name, path))
  return pairs


def _split(text: str | None, kind=str) -> list | None:
  return [kind(part.strip()) for part in text.split(',')] if text else None


def main(argv: list[str]) -> int:
  """The command line of `crossin evaluate`."""
  args = flags.evaluate_parser().parse_args(argv)
  benchmarks, languages = _named_paths(args.benchmark), _split(args.languages)
  methods = _split(args.methods)
  if unknown := set(methods or ()) - set(METHODS):
    raise config.ConfigError(
      f'--methods: {", ".join(sorted(unknown))} is none of {", ".join(METHODS)}'
    )
  source = SavedModel.open(args.checkpoint)
  source.parse(args)
  # The questions of the training loop are not asked: --questions may name the same file.
  trained = config.bound('train.evaluators') or ()
  heldout = config.resolve(tuple(e for e in trained if e.selector.split('.')[-1] == 'HeldoutLoss'))
  distributed.initialize(args)
  variant = args.variant or source.name
  with contextlib.ExitStack() as stack:
    # All processes compute the same figures; only those of the first one are kept.
    chief = jax.process_index() == 0
    if chief:
      output_dir = stack.enter_context(mirror.written(args.output_dir, MARKERS)).path
    else:
      output_dir = stack.enter_context(tempfile.TemporaryDirectory())
    runs, figures = evaluate(
      args.checkpoint,
      args.questions,
      output_dir,
      variant,
      args.seed,
      benchmarks,
      languages,
      _split(args.prompts, int),
      args.split,
      args.limit,
      methods,
      args.confuse_choices,
      args.template,
      model=config.resolve(config.bound('train.model')),
      evaluators=heldout,
    )
  if not chief:
    return 0
  for line in (*(f'{name}: {value}' for name, value in figures.items()), *map(_sentence, runs)):
    print(line)
  if not runs and not figures:
    _log(
      'warning: nothing was measured: give --benchmark or --questions, or train with '
      'train.evaluators = (@HeldoutLoss(),)'
    )
  return command_line.finish(args, {'runs': runs, 'figures': figures})


def _sentence(run: dict) -> str:
  """A run in one line."""
  by_language = ' '.join(
    f'{language} {value:.3f}' for language, value in run['accuracy_by_language'].items()
  )
  text = f'{run["benchmark"]} by {run["method"]}: accuracy {run["accuracy"]:.3f} ({by_language})'
  if s := '3' if '3' in run['ac3'] else max(run['ac3'], default=None):
    wrong = run.get('wrong_consistency', {}).get(s)
    part = '' if wrong is None else f' ({wrong:.3f} on wrong options)'
    text += f', C_{s} {run["consistency"][s]:.3f}{part}, AC3_{s} {run["ac3"][s]:.3f}'
    text += f', all languages right {run["all_right"]:.3f}'
  if pairs := run.get('rankc'):
    text += f', RankC {sum(pairs.values()) / len(pairs):.3f}'
  if 'f1' in run:
    text += f', F1 {run["f1"]:.3f}'
  spread = run['prompts']
  if spread['min'] < spread['max']:
    text += f', over prompts {spread["min"]:.3f} to {spread["max"]:.3f}'
  return f'{text}, unparsed {run["unparsed_rate"]:.3f}'
