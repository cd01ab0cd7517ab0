"""How many answers SeaEval's protocols draw at random, and how far figures move with them."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from crossin_jax.evaluation.answers import extraction
from crossin_jax.evaluation.answers.predictions import Predictions
from crossin_jax.evaluation.answers.seaeval import candidates
from crossin_jax.evaluation.measures import consistency
from crossin_jax.evaluation.measures.consistency import Summary

_REDRAWS, _LEVEL = 1000, 0.95


def drawn_among(predictions: Predictions, *, first_line: bool = False) -> list[list[list[int]]]:
  """The options among which `seaeval` draws each answer, [item][language]; one if it finds one.

  Args:
    predictions: the texts.
    first_line: as in `Predictions.extract`.
  """
  cut = extraction.first_line if first_line else lambda text: text
  return [
    [candidates(cut(text), choices) for text, choices in zip(*item)]
    for item in zip(predictions.texts, predictions.choices)
  ]


def with_draws(summary: Summary, predictions: Predictions, open_NL: list) -> Summary:
  """The summary with `drawn`, from all draws made anew 1,000 times; None if nothing was drawn.

  Args:
    summary: of the predictions.
    predictions: their answers and languages are used.
    open_NL: the options among which each answer is drawn, [item][language].
  """
  items = np.array([[len(options) > 1 for options in item] for item in open_NL])
  if not items.any():
    return summary
  languages = predictions.languages
  drawn = {
    'items': int(items.any(axis=1).sum()),
    'by_language': dict(zip(languages, items.sum(axis=0).tolist())),
    **_intervals(open_NL, predictions.answers, languages),
  }
  return replace(summary, drawn=drawn)


def _intervals(open_NL, answers_NL: np.ndarray, languages: list[str]) -> dict[str, object]:
  """95 % intervals of the figures, in the structure of `Summary`."""
  rng, summaries = np.random.default_rng(0), []
  chosen_NL = np.array([[options[0] for options in item] for item in open_NL])
  cells = [(i, j, o) for i, item in enumerate(open_NL) for j, o in enumerate(item) if len(o) > 1]
  at = tuple(np.array([(i, j) for i, j, _ in cells]).T)
  sizes = np.array([len(options) for _, _, options in cells])
  table = np.zeros((len(cells), sizes.max()), int)  # the options of each cell
  for row, (_, _, options) in zip(table, cells):
    row[: len(options)] = options
  for _ in range(_REDRAWS):
    chosen_NL[at] = table[np.arange(len(cells)), rng.integers(sizes)]
    summaries.append(consistency.summarise(chosen_NL, answers_NL, languages))
  tail = (1 - _LEVEL) / 2

  def interval(values) -> list[float]:
    return np.quantile(list(values), [tail, 1 - tail]).tolist()

  found: dict[str, object] = {}
  for name in ('accuracy', 'accuracy_by_language', 'consistency', 'ac3'):
    columns = [getattr(summary, name) for summary in summaries]
    if isinstance(columns[0], Mapping):
      found[name] = {key: interval(column[key] for column in columns) for key in columns[0]}
    else:
      found[name] = interval(columns)
  return found
