"""Questions in the training loop: accuracy, consistency and AC3 every so many steps, within a
budget of time.
"""

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
from crossin_jax.evaluation.questions import Questions, read_questions

SLICE = 32  # items asked between two looks at the clock


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
    """Args:
    path: question file.
    model_dir: of the run itself: template and tokenizer are read from it.
    items: first so many items of the file.
    name: prefix of the figures.
    """
    self._load = functools.cache(lambda: (read_questions(path, items), Prompts(model_dir)))
    self.name = name

  def __call__(self, model, params, partition):
    """Yields ('eval/NAME/accuracy', x), ('eval/NAME/consistency_3', x), ('eval/NAME/ac3_3', x) and
    more.
    """
    questions, prompts = self._load()
    answered = answer_questions(
      model, params, partition, questions, prompts, methods=('likelihood',)
    )['likelihood']
    yield from _figures(self.name, asking.choice_summary(questions, answered)[0])


@gin.configurable
class BenchmarkEvaluator:
  """A benchmark in the training loop, on all hosts, within a budget of time.

  The first evaluation of a process asks slice after slice of the items, in an order drawn by the
  seed, until the budget is spent (compilation counted) and settles how many items the later ones
  ask: their figures are of the same items. `eval/NAME/items` says how many.
  `CheckpointConfig.best_metric = 'eval/cross_mmlu/ac3_3'` with `best_mode = 'max'` keeps the
  checkpoint that is best by AC3.
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
    """Args:
    benchmark: of `BENCHMARKS`. path: its file or folder.
    model_dir: of the run itself: template and tokenizer are read from it.
    languages: codes; None = all that it has.
    split: part of the files' names.
    method: 'likelihood' or 'generate'; None = the first that the benchmark has.
    prompt: form of its prompt, from 1.
    items: at most so many; None = all.
    seconds: budget of one evaluation.
    seed: of the order in which items are taken.
    name: prefix of the figures; None = the benchmark's.
    """
    self._load = functools.cache(
      lambda: (
        LoadedBenchmark(benchmark, path, languages, split).questions(prompt),
        Prompts(model_dir),
      )
    )
    self._benchmark, self._method, self._most, self._seconds, self._seed = (
      benchmark,
      method,
      items,
      seconds,
      seed,
    )
    self._settled: dict[int, int] = {}  # place among the questions -> items that fit
    self.name = name or benchmark

  def __call__(self, model, params, partition):
    """Yields figures as `QuestionsEvaluator` does, with exact match and F1 for open answers, and
    'eval/NAME/items'.

    Raises:
      ValueError: a method that the benchmark does not have.
    """
    forms, prompts = self._load()
    started, results = time.monotonic(), []
    for place, questions in enumerate(forms):
      method = self._method or ('likelihood' if questions.kind == 'choice' else 'generate')
      if questions.kind != 'choice' and method != 'generate':
        raise ValueError(
          f'BenchmarkEvaluator.method = {method!r}: {self._benchmark} is answered by generation '
          'only'
        )
      order = np.random.default_rng(self._seed).permutation(len(questions.ids))[: self._most]
      limit, asked, texts, losses = self._settled.get(place, len(order)), 0, [], []
      deadline = started + self._seconds * (place + 1) / len(forms)
      while asked < limit:
        part = questions.take(order[asked : min(asked + SLICE, limit)])
        found = answer_questions(model, params, partition, part, prompts, methods=(method,))[method]
        texts += found.texts
        losses += found.losses or []
        asked += len(part.ids)
        if place not in self._settled and not _all_hosts_have_time(deadline):
          break
      self._settled.setdefault(place, asked)
      results.append((questions.take(order[:asked]), Answers(texts, losses or None)))
    yield from _figures(self.name, self._summary(results))
    yield f'eval/{self.name}/items', max(len(questions.ids) for questions, _ in results)

  def _summary(self, results: list[tuple[Questions, Answers]]) -> dict:
    if results[0][0].kind == 'choice':
      return asking.choice_summary(*results[0])[0]
    found = open_answers.of_questions(
      [questions for questions, _ in results], [answers.texts for _, answers in results]
    )
    return open_answers.summarise(found, open_answers.PROTOCOLS[self._benchmark])


def _all_hosts_have_time(deadline: float) -> bool:
  """Whether the first host's clock is before its deadline: one clock decides, or hosts would ask
  different items.
  """
  in_time = np.asarray(time.monotonic() < deadline)
  return (
    bool(multihost_utils.broadcast_one_to_all(in_time))
    if jax.process_count() > 1
    else bool(in_time)
  )


def _figures(name: str, summary: dict):
  yield f'eval/{name}/accuracy', summary['accuracy']
  yield f'eval/{name}/accuracy_by_language', summary['accuracy_by_language']
  size = str(min(3, len(summary['accuracy_by_language'])))
  if size in summary['consistency']:
    yield f'eval/{name}/consistency_{size}', summary['consistency'][size]
    yield f'eval/{name}/ac3_{size}', summary['ac3'][size]
  if 'f1' in summary:
    yield f'eval/{name}/f1', summary['f1']
  yield f'eval/{name}/unparsed_rate', summary['unparsed_rate']
