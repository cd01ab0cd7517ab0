"""Accuracy, cross-lingual consistency and AC3 of multiple-choice answers, in NumPy.

Axis letters: N items, L languages, k options. A choices array holds, for every item and language,
the index of the option that was chosen, or -1 (`UNPARSED`) where no option could be read from the
output.

Formulas: SeaEval (arXiv 2309.04766) as computed by its scorer TiGEr-Eval, see METHODS.md A.6; Acc
is the mean over languages.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import comb

import numpy as np

UNPARSED = -1
_EPSILON = 1e-10  # the scorer's own guard against 0 / 0 in AC3; part of the published figures


def _check_choices(choices: np.ndarray) -> np.ndarray:
  choices_NL = np.asarray(choices)
  if choices_NL.ndim != 2:
    raise ValueError(f'choices must be an array [items, languages], got shape {choices_NL.shape}')
  if choices_NL.shape[0] == 0 or choices_NL.shape[1] == 0:
    raise ValueError(f'choices is empty (shape {choices_NL.shape}): there is nothing to score')
  if not np.issubdtype(choices_NL.dtype, np.integer):
    raise TypeError(
      f'choices must hold integers (option index, -1 = unparsed), got dtype {choices_NL.dtype}'
    )
  if choices_NL.min() < UNPARSED:
    raise ValueError(
      f'choices holds {choices_NL.min()}; legal values are -1 (unparsed) and option indices from 0'
    )
  return choices_NL


def _check_answers(answers: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
  """Answers as [items, languages] (broadcast over languages where one answer per item was given)."""
  answers = np.asarray(answers)
  if not np.issubdtype(answers.dtype, np.integer):
    raise TypeError(f'answers must hold integers (option index), got dtype {answers.dtype}')
  if answers.shape == shape[:1]:
    answers = np.broadcast_to(answers[:, None], shape)
  if answers.shape != shape:
    raise ValueError(
      f'answers has shape {answers.shape}; expected [{shape[0]}] or [{shape[0]}, {shape[1]}]'
    )
  if answers.min() < 0:
    raise ValueError('answers holds a negative index: every item needs a correct option')
  return answers


def correctness(choices: np.ndarray, answers: np.ndarray) -> np.ndarray:
  """Bool array [items, languages]: was the chosen option the right one? An unparsed choice is
  wrong.

  Args:
    choices: int array [items, languages], 0..k-1, or -1 = unparsed.
    answers: int array [items] (same option in every language) or [items, languages].
  """
  choices_NL = _check_choices(choices)
  return choices_NL == _check_answers(answers, choices_NL.shape)


def accuracy_by_language(choices: np.ndarray, answers: np.ndarray) -> np.ndarray:
  """Share of right answers per language, float64 [languages], fractions 0..1.

  Example:
    choices = [[0, 0, 1],     answers = [0, 2]   ->   [0.5, 0.5, 0.5]
               [1, 2, 2]]     (language 0 is right on item 0 only, language 1 on both, ...)
    gives [0.5, 1.0, 0.5].
  """
  return correctness(choices, answers).mean(axis=0)


def accuracy(choices: np.ndarray, answers: np.ndarray) -> float:
  """Acc: the mean over languages of the accuracy per language, a fraction 0..1."""
  return float(accuracy_by_language(choices, answers).mean())


def consistency_by_item(choices: np.ndarray, s: int) -> np.ndarray:
  """Share of the size-s groups of languages that agree, per item; float64 [items], fractions 0..1.

  Closed form: with m_o the number of languages that chose option o, an item contributes sum_o
  C(m_o, s) / C(L, s). It equals the average over all groups of s languages of "all chose the same
  option", as SeaEval defines C_s, without listing the groups. An unparsed choice agrees with
  nothing, not even with another unparsed one.

  Args:
    choices: int array [items, languages], 0..k-1, or -1 = unparsed.
    s: size of the groups, 2 <= s <= languages.

  Example (L = 4, s = 3):
    [[1, 1, 1, 1],            4 groups of 3, all agree           -> 1.0
     [1, 1, 1, 0],            1 of 4 groups agrees               -> 0.25
     [1, 1, 0, 0],            none                               -> 0.0
     [2, 2, 2, -1]]           the unparsed one breaks 3 groups   -> 0.25
  """
  choices_NL = _check_choices(choices)
  languages = choices_NL.shape[1]
  if not 2 <= s <= languages:
    raise ValueError(f'consistency needs groups of 2 to {languages} languages, got s = {s}')
  binomial_M = np.array([comb(m, s) for m in range(languages + 1)], dtype=np.float64)
  agreeing_N = np.zeros(choices_NL.shape[0])
  for option in range(choices_NL.max() + 1):
    agreeing_N += binomial_M[(choices_NL == option).sum(axis=1)]
  return agreeing_N / comb(languages, s)


def consistency(choices: np.ndarray, s: int) -> float:
  """C_s: `consistency_by_item` averaged over items, a fraction 0..1. Being right is not required.

  Four options chosen at random give C_2 = 0.25, C_3 = 0.0625, C_4 = 0.0156.
  """
  return float(consistency_by_item(choices, s).mean())


def pairwise_consistency(choices: np.ndarray) -> np.ndarray:
  """Share of items on which two languages chose the same option; float64 [languages, languages],
  symmetric.

  The diagonal is the share of parsed answers of that language (1 where everything was parsed),
  since an unparsed choice agrees with nothing.

  Example:
    [[0, 0, 1],                 [[1.0, 0.5, 0.0],
     [2, 1, 1]]        ->        [0.5, 1.0, 0.5],
                                 [0.0, 0.5, 1.0]]
  """
  choices_NL = _check_choices(choices)
  parsed_NL = choices_NL != UNPARSED
  same_NLL = (choices_NL[:, :, None] == choices_NL[:, None, :]) & parsed_NL[:, :, None]
  return same_NLL.mean(axis=0)


def ac3(accuracy: float, consistency: float) -> float:
  """AC3 = 2 * Acc * C / (Acc + C + 1e-10): the harmonic mean of accuracy and consistency. Works on
  arrays too.

  Always the statistic of one run: the median of AC3 over prompts is not the AC3 of the medians.
  """
  return 2.0 * accuracy * consistency / (accuracy + consistency + _EPSILON)


def summarise(choices: np.ndarray, answers: np.ndarray, languages: Sequence[str]) -> dict:
  """All figures of one run under the keys of results.json.

  Args:
    choices: int array [items, languages], 0..k-1, or -1 = unparsed.
    answers: int array [items] or [items, languages].
    languages: one code per column, e.g. ["en", "zh", "vi"]; their order is that of the keys.

  Returns:
    {"accuracy": Acc, "accuracy_by_language": {"en": ...}, "consistency": {"2": C_2, ..., "L": C_L},
    "ac3": {"2": ...},
     "pairwise_consistency": {"en,zh": ...}, "unparsed_rate": share of -1, "items": N}; fractions
     0..1. With a single
    language the three consistency entries are empty.
  """
  choices_NL = _check_choices(choices)
  languages = list(languages)
  if len(languages) != choices_NL.shape[1]:
    raise ValueError(
      f'{choices_NL.shape[1]} columns of choices but {len(languages)} languages: '
      f'{", ".join(languages)}'
    )
  if len(set(languages)) != len(languages):
    raise ValueError(f'a language is named twice: {", ".join(languages)}')
  by_language_L = accuracy_by_language(choices_NL, answers)
  acc = float(by_language_L.mean())
  consistencies = {s: consistency(choices_NL, s) for s in range(2, len(languages) + 1)}
  pairs_LL = pairwise_consistency(choices_NL)
  return {
    'accuracy': acc,
    'accuracy_by_language': {name: float(x) for name, x in zip(languages, by_language_L)},
    'consistency': {str(s): c for s, c in consistencies.items()},
    'ac3': {str(s): float(ac3(acc, c)) for s, c in consistencies.items()},
    'pairwise_consistency': {
      f'{languages[i]},{languages[j]}': float(pairs_LL[i, j])
      for i, j in combinations(range(len(languages)), 2)
    },
    'unparsed_rate': float((choices_NL == UNPARSED).mean()),
    'items': int(choices_NL.shape[0]),
  }


def constant_answer_warning(choices: np.ndarray, answers: np.ndarray) -> str:
  """A sentence when consistency is high only because the same option is chosen nearly always; ''
  otherwise.

  A model that says "(A)" to everything is perfectly consistent and knows nothing. The test:
  languages that answered independently, each with its own option frequencies p_l, would agree in
  pairs with E = mean over pairs of sum_o p_l(o) p_m(o). The warning comes when C_2 is well above
  that of uniform guessing, yet the agreement beyond E, (C_2 - E) / (1 - E) (Cohen's kappa), is
  under 0.2.
  """
  choices_NL = _check_choices(choices)
  answers_NL = _check_answers(answers, choices_NL.shape)
  languages = choices_NL.shape[1]
  if languages < 2:
    return ''
  options = int(max(choices_NL.max(), answers_NL.max())) + 1
  frequency_LK = np.stack(
    [(choices_NL == option).mean(axis=0) for option in range(options)], axis=1
  )
  expected_LL = frequency_LK @ frequency_LK.T
  pairs = np.triu_indices(languages, 1)
  expected = float(expected_LL[pairs].mean())
  observed = consistency(choices_NL, 2)
  beyond = (observed - expected) / (1.0 - expected) if expected < 1.0 - 1e-12 else 0.0
  if observed < 1.0 / max(options, 2) + 0.15 or beyond >= 0.2:
    return ''
  share = float(frequency_LK.max(axis=1).mean())
  return (
    f'consistency is high (C_2 = {observed:.2f}) because answers hardly vary: on average '
    f"{share:.0%} of a language's answers "
    f'are one and the same option, and option frequencies alone would give C_2 = {expected:.2f}. '
    'Read accuracy first.'
  )
