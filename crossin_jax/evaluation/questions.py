"""`crossin evaluate`: four-option questions, parallel across languages, answered by likelihood and by generation."""

import argparse
import functools
import json
import os
import sys

import gin
import numpy as np

from crossin_jax import checkpoints, config, run_directory, train_state
from crossin_jax.data.prepared import write_json
from crossin_jax.data.saved_prompts import Prompts
from crossin_jax.decoding.generation import greedy
from crossin_jax.decoding.scoring import continuation_losses
from crossin_jax.evaluation.consistency import summarise
from crossin_jax.evaluation.predictions import Predictions, write_predictions
from crossin_jax.evaluation.results import METHODS, build_run, write_results
from crossin_jax.models import huggingface, lora
from crossin_jax.partitioning import Partitioner


class Questions:
  """The items of a question file.

  Attributes:
    name: for figures: the file's name without folder and `.jsonl`, the part after the first dot as form
      (`questions.tagged.jsonl` is 'questions/tagged').
    ids: [items]; languages: codes in order of appearance.
    rows: [item][language] of {'instruction', 'input', 'choices', 'answer'}.
    answers: int64 [items, languages], index of the right choice.
  """

  def __init__(self, path: str, limit: int | None = None):
    """Args:
      path: JSONL, a line per item and language: id, language, instruction, input, choices (texts, parallel
        across languages), answer (index).
      limit: first so many items only.

    Raises:
      ValueError: names file, line and field of a malformed row, or the item that lacks a language.
    """
    stem = os.path.basename(path).removesuffix('.jsonl')
    self.name = stem.replace('.', '/', 1)
    items: dict[str, dict[str, dict]] = {}
    with open(path, encoding='utf-8') as f:
      for number, line in enumerate(f, start=1):
        if not line.strip():
          continue
        row = _question(line, f'{path}, line {number}')
        items.setdefault(row['id'], {})[row['language']] = row
    if not items:
      raise ValueError(f'{path} holds no question')
    self.languages = list(dict.fromkeys(language for item in items.values() for language in item))
    for id_, item in items.items():
      if missing := [language for language in self.languages if language not in item]:
        raise ValueError(
          f'{path}: item {id_!r} has no question in {", ".join(missing)}; consistency needs every language'
        )
    self.ids = list(items)[:limit]
    self.rows = [[items[id_][language] for language in self.languages] for id_ in self.ids]
    self.answers = np.array([[row['answer'] for row in item] for item in self.rows], np.int64)


def _question(line: str, where: str) -> dict:
  try:
    row = json.loads(line)
  except ValueError as error:
    raise ValueError(f'{where}: not valid JSON ({error})') from None
  for field, kind in (('id', str), ('language', str), ('instruction', str), ('choices', list), ('answer', int)):
    if not isinstance(row.get(field) if isinstance(row, dict) else None, kind):
      raise ValueError(f'{where}: field {field!r} must be a {kind.__name__}')
  if not 0 <= row['answer'] < len(row['choices']) or len(row['choices']) < 2:
    raise ValueError(f'{where}: answer {row["answer"]} is no index into {len(row["choices"])} choices')
  return {'input': '', **row}


def choose_by_likelihood(
  model, params, partition: Partitioner, questions: Questions, prompts: Prompts, *, length: int, rows: int
) -> np.ndarray:
  """The choice to which the model gives the highest probability, stop token included.

  Returns:
    int64 [items, languages].
  """
  rows_asked = [row for item in questions.rows for row in item]
  losses = continuation_losses(
      model, params, partition,
      [prompts.tokens(row) for row in rows_asked],
      [[[*prompts.vocabulary.encode(choice), prompts.stop_id] for choice in row['choices']] for row in rows_asked],
      bos_id=prompts.vocabulary.bos_id, length=length, rows=rows,
  )  # fmt: skip
  chosen = [int(np.argmin(of_choices)) for of_choices in losses]
  return np.array(chosen, np.int64).reshape(questions.answers.shape)


def generate_answers(
  model, params, partition: Partitioner, questions: Questions, prompts: Prompts, *, max_new_tokens: int, rows: int
) -> list[list[str]]:
  """Greedy answers as text, [item][language]."""
  tokens = [prompts.tokens(row) for item in questions.rows for row in item]
  vocabulary = prompts.vocabulary
  new = greedy(
      model, params, partition, tokens,
      bos_id=vocabulary.bos_id, eos_id=prompts.stop_id, max_new_tokens=max_new_tokens, rows=rows,
  )  # fmt: skip
  texts = iter(vocabulary.decode(ids) for ids in new)
  return [[next(texts) for _ in item] for item in questions.rows]


@gin.configurable
def answer_questions(
  model,
  params,
  partition: Partitioner,
  questions: Questions,
  prompts: Prompts,
  *,
  methods: tuple[str, ...] = METHODS,
  length: int = 512,
  rows: int = 32,
  max_new_tokens: int = 32,
) -> dict[str, Predictions]:
  """Answers by each method, with what the model wrote (by likelihood: the text of its choice).

  Args:
    model, params, partition: the model on its mesh.
    questions: the items.
    prompts: template and tokenizer.
    methods: of 'likelihood' and 'generate'.
    length, rows: shape of the packed batches that score choices.
    max_new_tokens: most tokens of a generated answer.

  Returns:
    method -> Predictions.
  """
  results = {}
  for method in methods:
    if method == 'likelihood':
      chosen = choose_by_likelihood(model, params, partition, questions, prompts, length=length, rows=rows)
      texts = [[row['choices'][c] for row, c in zip(item, cs)] for item, cs in zip(questions.rows, chosen)]
    elif method == 'generate':
      texts = generate_answers(
        model, params, partition, questions, prompts, max_new_tokens=max_new_tokens, rows=rows * 4
      )
    else:
      raise ValueError(f'method {method!r} is not one of {METHODS}')
    choices = [[row['choices'] for row in item] for item in questions.rows]
    results[method] = Predictions(questions.ids, questions.languages, choices, questions.answers, texts)
  return results


@gin.configurable
class QuestionsEvaluator:
  """Questions in the training loop, by likelihood: accuracy, C_3, AC3_3 and accuracy by language."""

  def __init__(
    self, path: str = gin.REQUIRED, model_dir: str = gin.REQUIRED, items: int = 100, name: str = 'questions'
  ):
    """Args:
    path: question file.
    model_dir: of the run itself: template and tokenizer are read from it.
    items: first so many items of the file.
    name: prefix of the figures.
    """
    self._load = functools.cache(lambda: (Questions(path, items), Prompts(model_dir)))
    self.name = name

  def __call__(self, model, params, partition):
    """Yields ('eval/NAME/accuracy', x), ('eval/NAME/consistency_3', x), ('eval/NAME/ac3_3', x) and more."""
    questions, prompts = self._load()
    answered = answer_questions(model, params, partition, questions, prompts, methods=('likelihood',))['likelihood']
    summary = summarise(answered.extract('strict'), questions.answers, questions.languages)
    yield f'eval/{self.name}/accuracy', summary['accuracy']
    yield f'eval/{self.name}/accuracy_by_language', summary['accuracy_by_language']
    size = str(min(3, len(questions.languages)))
    if size in summary['consistency']:
      yield f'eval/{self.name}/consistency_{size}', summary['consistency'][size]
      yield f'eval/{self.name}/ac3_{size}', summary['ac3'][size]


@gin.configurable
def evaluate(
  checkpoint: str,
  question_files: list[str],
  output_dir: str,
  variant: str,
  seed: int | None = None,
  model=gin.REQUIRED,
  evaluators: tuple = (),
  partitioner=Partitioner,
) -> tuple[list[dict], dict]:
  """Answers question files with a checkpoint and runs evaluators on it.

  Writes predictions/*.jsonl and results.json where there are questions, and figures.json.

  Args:
    checkpoint: a MODEL_DIR or one of its checkpoints, or a Hugging Face directory.
    question_files: see `Questions`.
    output_dir: where results go.
    variant, seed: written into the results.
    model: the model of the checkpoint.
    evaluators: as in training, for instance `HeldoutLoss`.
    partitioner: mesh and axis rules.

  Returns:
    The runs of results.json, and the evaluators' figures.
  """
  if not (is_imported := huggingface.is_directory(checkpoint)):
    checkpoint = checkpoints.latest_checkpoint(checkpoint)
  prompts = Prompts(checkpoint if is_imported else os.path.dirname(checkpoint)) if question_files else None
  partition = partitioner()
  runs = []
  with partition.activate():
    abstract = train_state.parameter_shapes(model, partition)
    params = lora.quantised(checkpoints.restore_params(checkpoint, abstract, model), lora.of_model(model))
    for file in question_files:
      questions = Questions(file)
      print(
        f'evaluate {variant}: {len(questions.ids)} items in {", ".join(questions.languages)} ({questions.name})',
        file=sys.stderr,
      )
      for method, answered in answer_questions(model, params, partition, questions, prompts).items():
        name = questions.name.replace('/', '.')
        write_predictions(os.path.join(output_dir, 'predictions', f'{name}.{method}.jsonl'), answered)
        summary = summarise(answered.extract('strict'), questions.answers, questions.languages)
        runs.append(
          build_run(summary, variant=variant, seed=seed, benchmark=questions.name, protocol='strict', method=method)
        )
    figures = {name: value for evaluator in evaluators for name, value in evaluator(model, params, partition)}
  if runs:
    write_results(os.path.join(output_dir, 'results.json'), runs)
  write_json(os.path.join(output_dir, 'figures.json'), figures)
  return runs, figures


def _of_kind(evaluators, kind: str) -> tuple:
  """Those of a tuple of gin references that make a given class."""
  return tuple(e for e in evaluators or () if e.selector.split('.')[-1] == kind)


def main(argv: list[str]) -> int:
  """The command line of `crossin evaluate`."""
  parser = argparse.ArgumentParser(
    prog='crossin evaluate',
    description='Answer four-option questions with a checkpoint, by likelihood and by greedy generation; held-out loss.',
    epilog='example: crossin evaluate --checkpoint runs/a --questions world/questions.untagged.jsonl --output_dir runs/a/eval',
  )
  parser.add_argument(
    '--checkpoint',
    required=True,
    help='a MODEL_DIR, checkpoint_<step> (its config.gin is read first) or Hugging Face directory',
  )
  parser.add_argument('--questions', action='append', default=[], help='question file (JSONL); may be repeated')
  parser.add_argument('--output_dir', required=True, help='for results.json and predictions/')
  parser.add_argument('--variant', help='name in results.json (default: name of the MODEL_DIR)')
  parser.add_argument('--seed', type=int, help='seed of the run, for results.json')
  parser.add_argument('--json', action='store_true', help='one JSON object as last line on stdout')
  config.add_flags(parser)
  args = parser.parse_args(argv)
  run_directory.parse_saved(args, args.checkpoint)
  with gin.unlock_config():
    gin.bind_parameter('evaluate.model', gin.query_parameter('train.model'))
    # Questions of the run's own loop are asked again only where named: they may be the same file.
    gin.bind_parameter('evaluate.evaluators', _of_kind(config.bound('train.evaluators'), 'HeldoutLoss'))
  variant = args.variant or run_directory.name_of(args.checkpoint)
  runs, figures = evaluate(args.checkpoint, args.questions, args.output_dir, variant, args.seed)
  for name, value in figures.items():
    print(f'{name}: {value}', file=sys.stderr)
  for run in runs:
    by_language = ' '.join(f'{language} {value:.3f}' for language, value in run['accuracy_by_language'].items())
    third = '3' if '3' in run['ac3'] else max(run['ac3'], default=None)
    more = f', C_{third} {run["consistency"][third]:.3f}, AC3_{third} {run["ac3"][third]:.3f}' if third else ''
    print(
      f'{run["benchmark"]} by {run["method"]}: accuracy {run["accuracy"]:.3f} ({by_language}){more}, '
      f'unparsed {run["unparsed_rate"]:.3f}',
      file=sys.stderr,
    )
  if args.json:
    print(json.dumps({'runs': runs, 'figures': figures}))
  return 0
