"""Accuracy, cross-lingual consistency and AC3 of multiple-choice answers, in NumPy.

Axis letters: N items, L languages, K options. A choices array holds, for every item and language,
the index of the chosen option, or -1 (`UNPARSED`) if no option could be extracted.

Formulas: SeaEval (arXiv 2309.04766) as its scorer TiGEr-Eval computes them, see
docs/design/methods.md#a-6-metrics. Acc is the mean over languages.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from itertools import combinations
from math import comb

import numpy as np

UNPARSED = -1
_EPSILON = 1e-10  # the scorer's guard against 0 / 0 in AC3; part of the published figures


@dataclasses.dataclass(frozen=True)
class Summary:
  """All figures of one run, as fractions 0..1; None where they do not apply.

  Attributes:
    accuracy, accuracy_by_language: Acc, and its terms.
    consistency, ac3: group size s, '2' to 'L', -> C_s and AC3_s; empty where languages cannot be
      compared.
    pairwise_consistency: 'en,zh' -> share of items.
    unparsed_rate: share of -1.
    items: number.
    f1, f1_by_language: of spans.
    accuracy_norm, accuracy_norm_by_language: by loss per character.
    wrong_consistency: s -> the part of C_s that is agreement on wrong options.
    all_right: share of items that every language answers correctly; agreement on a wrong answer
      does not count, as it does for consistency.
    rankc: 'en,zh' -> RankC, see `rankc`; by likelihood.
    drawn: by the protocol `seaeval`, what it drew at random: 'items', 'by_language' (counts), and
      the 95 % intervals that the draws leave open of 'accuracy', 'accuracy_by_language',
      'consistency' and 'ac3', each [lower, upper].
    prompt_figures: 'accuracy', 'consistency_2' ... -> median, min and max over the prompts.
    by_prompt: the summaries whose medians these figures are.
  """

  accuracy: float
  accuracy_by_language: Mapping[str, float]
  consistency: Mapping[str, float]
  ac3: Mapping[str, float]
  pairwise_consistency: Mapping[str, float]
  unparsed_rate: float
  items: int
  f1: float | None = None
  f1_by_language: Mapping[str, float] | None = None
  accuracy_norm: float | None = None
  accuracy_norm_by_language: Mapping[str, float] | None = None
  wrong_consistency: Mapping[str, float] | None = None
  all_right: float | None = None
  rankc: Mapping[str, float] | None = None
  drawn: Mapping[str, object] | None = None
  prompt_figures: Mapping[str, Mapping[str, float]] | None = None
  by_prompt: Sequence['Summary'] | None = None

  def as_json(self) -> dict:
    """The keys of results.json, without those that are None."""
    present = lambda fields: {name: value for name, value in fields if value is not None}
    return dataclasses.asdict(self, dict_factory=present)


def _check_choices(choices: np.ndarray) -> np.ndarray:
  choices_NL = np.asarray(choices)
  if choices_NL.ndim != 2:
    raise ValueError(f'choices must be an array [items, languages], got shape {choices_NL.shape}')
  if 0 in choices_NL.shape:
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
  """Answers as [items, languages]; broadcasts answers of shape [items]."""
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
  """Whether the chosen option is correct, bool [items, languages]. Unparsed choices are wrong.

  Args:
    choices: int array [items, languages], 0..k-1, or -1 = unparsed.
    answers: int array [items] (same option in every language) or [items, languages].
  """
  choices_NL = _check_choices(choices)
  return choices_NL == _check_answers(answers, choices_NL.shape)


def accuracy_by_language(choices: np.ndarray, answers: np.ndarray) -> np.ndarray:
  """Share of correct answers per language, float64 [languages], 0..1.

  Example:
    choices = [[0, 0, 1],     answers = [0, 2]   ->   [0.5, 1.0, 0.5]
               [1, 2, 2]]
  """
  return correctness(choices, answers).mean(axis=0)


def accuracy(choices: np.ndarray, answers: np.ndarray) -> float:
  """Acc: the mean over languages of the accuracy per language, 0..1."""
  return float(accuracy_by_language(choices, answers).mean())


def consistency_by_item(choices: np.ndarray, s: int) -> np.ndarray:
  """Share of the groups of s languages that agree, per item; float64 [items], 0..1.

  With m_o the number of languages that chose option o, it is sum_o C(m_o, s) / C(L, s), as is
  SeaEval's C_s. An unparsed choice agrees with nothing, not even another unparsed one.

  Args:
    choices: int array [items, languages].
    s: size of the groups, 2 to `languages`.

  Example (L = 4, s = 3):
    [[1, 1, 1, 1],            4 groups of 3, all agree                -> 1.0
     [1, 1, 1, 0],            1 of 4 groups agrees                    -> 0.25
     [1, 1, 0, 0],            none                                    -> 0.0
     [2, 2, 2, -1]]           the unparsed choice breaks 3 groups     -> 0.25
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
  """C_s: the mean of `consistency_by_item`, 0..1. Agreement on a wrong option counts.

  Random choices among four options give C_2 = 0.25, C_3 = 0.0625, C_4 = 0.0156.
  """
  return float(consistency_by_item(choices, s).mean())


def pairwise_consistency(choices: np.ndarray) -> np.ndarray:
  """Share of items on which two languages agree; symmetric float64 [languages, languages].

  The diagonal is the share of parsed answers of a language, since an unparsed choice agrees with
  nothing.

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
  """AC3 = 2 * Acc * C / (Acc + C + 1e-10), the harmonic mean; also of arrays.

  AC3 is a statistic of one run: the median of AC3 over prompts is not the AC3 of the medians.
  """
  return 2.0 * accuracy * consistency / (accuracy + consistency + _EPSILON)


def summarise(choices: np.ndarray, answers: np.ndarray, languages: Sequence[str]) -> Summary:
  """All figures of one run; `choices` and `answers` as in `correctness`, a language per column."""
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
  right_NL, sizes = correctness(choices_NL, answers), range(2, len(languages) + 1)
  consistencies = {str(s): consistency(choices_NL, s) for s in sizes}
  wrong_NL = np.where(right_NL, UNPARSED, choices_NL)
  return Summary(
    accuracy=acc,
    accuracy_by_language=dict(zip(languages, by_language_L.tolist())),
    consistency=consistencies,
    ac3={s: float(ac3(acc, c)) for s, c in consistencies.items()},
    pairwise_consistency=by_pair(pairwise_consistency(choices_NL), languages),
    unparsed_rate=float((choices_NL == UNPARSED).mean()),
    items=len(choices_NL),
    wrong_consistency={str(s): consistency(wrong_NL, s) for s in sizes},
    all_right=float(right_NL.all(axis=1).mean()),
  )


def by_pair(matrix_LL: np.ndarray, languages: Sequence[str]) -> dict[str, float]:
  """The upper triangle of a matrix [languages, languages] as {'en,zh': value, ...}."""
  pairs = combinations(range(len(languages)), 2)
  return {f'{languages[i]},{languages[j]}': float(matrix_LL[i, j]) for i, j in pairs}


def constant_answer_warning(choices: np.ndarray, answers: np.ndarray) -> str:
  """A warning, or '', if consistency is high only because nearly all answers are one option.

  Languages that answer independently, each with its option frequencies p_l, agree in pairs with E =
  mean over pairs of sum_o p_l(o) p_m(o). The warning appears if C_2 is well above that of uniform
  guessing, but the agreement beyond E, (C_2 - E) / (1 - E) (Cohen's kappa), is under 0.2.
  """
  choices_NL = _check_choices(choices)
  answers_NL = _check_answers(answers, choices_NL.shape)
  languages = choices_NL.shape[1]
  if languages < 2:
    return ''
  options = int(max(choices_NL.max(), answers_NL.max())) + 1
  frequency_LK = (choices_NL[:, :, None] == np.arange(options)).mean(axis=0)
  expected_LL = frequency_LK @ frequency_LK.T
  expected = float(expected_LL[np.triu_indices(languages, 1)].mean())
  observed = consistency(choices_NL, 2)
  beyond = (observed - expected) / (1.0 - expected) if expected < 1.0 - 1e-12 else 0.0
  if observed < 1.0 / max(options, 2) + 0.15 or beyond >= 0.2:
    return ''
  share = float(frequency_LK.max(axis=1).mean())
  return (
    f'consistency is high (C_2 = {observed:.2f}) because answers hardly vary: on average '
    f"{share:.0%} of a language's answers are the same option, and the option frequencies alone "
    f'give C_2 = {expected:.2f}. Read accuracy first.'
  )
