"""Extraction of the chosen option from generated text: the protocols `strict` and `seaeval`.

`strict` never guesses: it returns -1 (`UNPARSED`) where the text names no option. `seaeval` always
returns an option, by the rule of the benchmark's published scorer.
"""

from collections.abc import Sequence

from crossin_jax.evaluation.answers.protocols import PROTOCOLS
from crossin_jax.evaluation.answers.seaeval import seaeval
from crossin_jax.evaluation.answers.strict import strict


def first_line(prediction: str) -> str:
  """The text up to the first newline, without the further examples of a few-shot continuation."""
  return prediction.split('\n', 1)[0]


def extract(
  prediction: str,
  choices: Sequence[str],
  protocol: str = 'strict',
  *,
  item_id: str = '',
  language: str = '',
  prompt: int = 1,
) -> int:
  """Index of the option that `prediction` chooses; -1 where `strict` finds none.

  Args:
    prediction: the generated text. For few-shot runs pass `first_line(prediction)`.
    choices: the 2 to 10 option texts as shown to the model, with or without '(A) '.
    protocol: 'strict' or 'seaeval'.
    item_id, language, prompt: seeds of the draws of `seaeval`; `strict` looks for words of the
      language, whatever the text is in.
  """
  if protocol == 'strict':
    return strict(prediction, choices, language)
  if protocol == 'seaeval':
    return seaeval(prediction, choices, item_id=item_id, language=language, prompt=prompt)
  raise ValueError(f'unknown protocol {protocol!r}; choose one of {", ".join(PROTOCOLS)}')
