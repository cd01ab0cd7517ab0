"""The protocol `seaeval_v2`: a judge model says which option an answer chose.

SeaEval's later versions do so (December 2024), in place of the rule of `seaeval`, so the figures of
the two cannot be compared. As there, an answer that is empty, or that the judge does not assign to
an option, gets a random one; here the draw is a hash of item, language and prompt, and counted.
"""

from collections.abc import Sequence
from pathlib import Path
import tomllib

import numpy as np

from crossin_jax.endpoint.client import Endpoint, Request
from crossin_jax.errors import CrossinError
from crossin_jax.evaluation.answers import extraction, protocols
from crossin_jax.evaluation.answers.choices import LETTERS
from crossin_jax.evaluation.answers.predictions import Predictions
from crossin_jax.evaluation.answers.seaeval import draw

PROTOCOL = protocols.JUDGED
MARK = 'The model selected:'
PROMPT = tomllib.loads(Path(__file__).with_suffix('.toml').read_text(encoding='utf-8'))['user']


class NotJudged(CrossinError, ValueError):
  """The judge has not replied to every answer; what it replied is stored."""


def request(prediction: str, choices: Sequence[str], model: str, seed: int) -> Request:
  """What is sent for an answer. The published code leaves the temperature at the server's default,
  which is 1 for vLLM.
  """
  content = PROMPT.format(prediction=prediction.strip(), choices='\n'.join(choices))
  parameters = {'max_tokens': 512, 'temperature': 1.0, 'seed': seed}
  return Request(
    ({'role': 'user', 'content': content},), parameters, model=model, expected_tokens=80
  )


def selected(reply: str, count: int) -> int | None:
  """The option of a reply: the first letter behind the last mark; None if it names none."""
  letter = next((char for char in reply.split(MARK)[-1] if char.isalpha()), '').upper()
  index = LETTERS.find(letter) if letter else -1
  return index if 0 <= index < count else None


def requests(
  predictions: Predictions, model: str, seed: int, first_line: bool = False
) -> dict[tuple[int, int], Request]:
  """(item, language) -> request, of all answers that are not empty."""
  cut = extraction.first_line if first_line else lambda text: text
  return {
    (i, j): request(cut(text), choices, model, seed)
    for i, item in enumerate(zip(predictions.texts, predictions.choices))
    for j, (text, choices) in enumerate(zip(*item))
    if cut(text).strip()
  }


def judged(
  predictions: Predictions, asked: dict[tuple[int, int], Request], endpoint: Endpoint, check
) -> list[list[list[int]]]:
  """The options among which each answer is drawn, [item][language]; one if the judge named it.

  Args:
    predictions: the answers.
    asked: of `requests`.
    endpoint: of the judge.
    check: see `Endpoint.complete`.

  Raises:
    NotJudged: replies are missing.
  """
  cells, texts = list(asked), {}
  for reply in endpoint.complete(list(asked.values()), progress='judge', check=check):
    if reply.text is not None:
      texts[cells[reply.index]] = reply.text
  if missing := len(cells) - len(texts):
    raise NotJudged(
      f'{missing} of {len(cells)} answers have no reply of the judge; start the same command again '
      'to ask for these'
    )

  def options(i: int, j: int, count: int) -> list[int]:
    found = selected(texts[i, j], count) if (i, j) in texts else None
    return list(range(count)) if found is None else [found]

  return [
    [options(i, j, len(choices)) for j, choices in enumerate(item)]
    for i, item in enumerate(predictions.choices)
  ]


def drawn(predictions: Predictions, open_NL: list, prompt: int) -> np.ndarray:
  """One of the options of each answer, int64 [items, languages]."""
  return np.array([
    [
      options[draw(len(options), id_, language, prompt)] if len(options) > 1 else options[0]
      for language, options in zip(predictions.languages, item)
    ]
    for id_, item in zip(predictions.ids, open_NL)
  ])  # fmt: skip
