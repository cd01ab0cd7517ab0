"""Questions in the training loop: periodic accuracy, consistency and AC3 within a time budget."""

import functools
import time

import gin
import jax
from jax.experimental import multihost_utils
import numpy as np

from crossin_jax.checkpoints.saved_prompts import Prompts
from crossin_jax.evaluation import asking
from crossin_jax.evaluation.answers import open_answers
from crossin_jax.evaluation.asking import Answers, answer_questions
from crossin_jax.evaluation.benchmarks.declarations import LoadedBenchmark
from crossin_jax.evaluation.measures.consistency import Summary
from crossin_jax.evaluation.questions import Questions, read_questions

SLICE = 32  # items between two checks of the time budget


@gin.configurable
class QuestionsEvaluator:
  """A question file, by likelihood."""

  def __init__(
    self,
    path: str = gin.REQUIRED,
    model_dir: str = gin.REQUIRED,
    items: int = 100,
    name: str = 'questions',
  ):
    """Stores the settings; the first call reads the files.

    Args:
      path: question file.
      model_dir: of this run; it holds the template and the tokenizer.
      items: number of items to ask, from the start of the file.
      name: prefix of the figures.
    """
    self._questions = functools.cache(lambda: read_questions(path, items))
    self._prompts = functools.cache(lambda: Prompts(model_dir))
    self.name = name

  def figures(self) -> list[str]:
    """Names of the numbers, once the file is known to be readable.

    Raises:
      ValueError: a malformed or missing file.
    """
    return _figure_names(self.name, [self._questions()])

  def __call__(self, model, params, partition):
    """Yields 'eval/NAME/accuracy', 'eval/NAME/consistency_3', 'eval/NAME/ac3_3' and more."""
    questions, prompts = self._questions(), self._prompts()
    answers = answer_questions(
      model, params, partition, questions, prompts, methods=('likelihood',)
    )['likelihood']
    yield from _figures(self.name, asking.choice_summary(questions, answers)[0])


@gin.configurable
class BenchmarkEvaluator:
  """A benchmark in the training loop, on all hosts, within a time budget.

  The first evaluation of a process asks slices of the items, in an order drawn by the seed, until
  the budget is spent (compilation included). This fixes the items of later evaluations, so their
  figures are of the same items; `eval/NAME/items` is their number. To keep the checkpoint with the
  best AC3, set `CheckpointConfig.best_metric = 'eval/cross_mmlu/ac3_3'`.
  """

  def __init__(
    self,
    benchmark: str = gin.REQUIRED,
    path: str = gin.REQUIRED,
    model_dir: str = gin.REQUIRED,
    languages: tuple[str, ...] | None = None,
    split: str | None = None,
    method: str | None = None,
    prompt: int = 1,
    items: int | None = None,
    seconds: float = 300.0,
    seed: int = 0,
    name: str | None = None,
  ):
    """Stores the settings; the first call reads the files.

    Args:
      benchmark: a key of `BENCHMARKS`.
      path: its file or folder.
      languages: codes; None = all of the benchmark.
      split: part of the file names.
      model_dir: of this run; it holds the template and the tokenizer.
      method: 'likelihood' or 'generate'; None = the first of the benchmark.
      prompt: prompt form, from 1.
      items: maximum number of items; None = all.
      seconds: budget of one evaluation.
      seed: of the order of the items.
      name: prefix of the figures; None = the benchmark.
    """
    load = lambda: LoadedBenchmark(benchmark, path, languages, split).questions(prompt)
    self._forms = functools.cache(load)
    self._prompts = functools.cache(lambda: Prompts(model_dir))
    self._benchmark, self._method, self._most = benchmark, method, items
    self._seconds, self._seed = seconds, seed
    self._limits: dict[int, int] = {}  # index of the Questions -> items within the budget
    self.name = name or benchmark

  def figures(self) -> list[str]:
    """Names of the numbers, once the benchmark is known to be readable.

    Raises:
      ValueError: unknown names, malformed or missing files, or a method that the benchmark does not
        support.
    """
    for questions in self._forms():
      self._method_of(questions)
    return [*_figure_names(self.name, self._forms()), f'eval/{self.name}/items']

  def _method_of(self, questions: Questions) -> str:
    method = self._method or ('likelihood' if questions.kind == 'choice' else 'generate')
    if method not in asking.METHODS:
      raise ValueError(f'BenchmarkEvaluator.method = {method!r} is not one of {asking.METHODS}')
    if questions.kind != 'choice' and method != 'generate':
      raise ValueError(
        f'BenchmarkEvaluator.method = {method!r}: {self._benchmark} supports generation only'
      )
    return method

  def __call__(self, model, params, partition):
    """Yields the figures of `QuestionsEvaluator` and 'eval/NAME/items'.

    Open answers have exact match and F1.

    Raises:
      ValueError: see `figures`.
    """
    forms, prompts = self._forms(), self._prompts()
    started, results = time.monotonic(), []
    for i, questions in enumerate(forms):
      method = self._method_of(questions)
      order = np.random.default_rng(self._seed).permutation(len(questions.ids))[: self._most]
      limit, asked, texts, losses = self._limits.get(i, len(order)), 0, [], []
      deadline = started + self._seconds * (i + 1) / len(forms)
      while asked < limit:
        part = questions.take(order[asked : min(asked + SLICE, limit)])
        answers = answer_questions(model, params, partition, part, prompts, methods=(method,))
        texts += answers[method].texts
        losses += answers[method].losses or []
        asked += len(part.ids)
        if i not in self._limits and not _before(deadline):
          break
      self._limits.setdefault(i, asked)
      results.append((questions.take(order[:asked]), Answers(texts, losses or None)))
    yield from _figures(self.name, self._summary(results))
    yield f'eval/{self.name}/items', max(len(questions.ids) for questions, _ in results)

  def _summary(self, results: list[tuple[Questions, Answers]]) -> Summary:
    if results[0][0].kind == 'choice':
      return asking.summary_of_languages(results)
    questions, answers = zip(*results)
    predictions = open_answers.of_questions(questions, [one.texts for one in answers])
    return open_answers.summarise(predictions, open_answers.PROTOCOLS[self._benchmark][0])


def _before(deadline: float) -> bool:
  """Whether the clock of the first host is before its deadline.

  One clock decides for all hosts, or they would ask different items.
  """
  in_time = np.asarray(time.monotonic() < deadline)
  if jax.process_count() > 1:
    in_time = multihost_utils.broadcast_one_to_all(in_time)
  return bool(in_time)


def _figure_names(name: str, forms: list[Questions]) -> list[str]:
  """Names of the numbers of `_figures` that questions can have."""
  names = ['accuracy', 'unparsed_rate']
  languages = {language for questions in forms for language in questions.languages}
  if forms[0].kind == 'spans':
    names.append('f1')
  elif len(languages) > 1 and (forms[0].kind != 'choice' or len(forms) == 1):
    names += [f'{name}_{min(3, len(languages))}' for name in ('consistency', 'ac3')]
  return [f'eval/{name}/{figure}' for figure in names]


def _figures(name: str, summary: Summary):
  size = str(min(3, len(summary.accuracy_by_language)))
  figures = {
    'accuracy': summary.accuracy,
    'accuracy_by_language': summary.accuracy_by_language,
    f'consistency_{size}': summary.consistency.get(size),
    f'ac3_{size}': summary.ac3.get(size),
    'f1': summary.f1,
    'unparsed_rate': summary.unparsed_rate,
  }
  yield from ((f'eval/{name}/{key}', value) for key, value in figures.items() if value is not None)
