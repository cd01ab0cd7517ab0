"""judge.html: verdicts with their intervals and example pairs, on one self-contained page."""

from collections.abc import Mapping, Sequence
import os

from crossin_jax.evaluation.judging.verdicts import Judgement, Pair
from crossin_jax.languages import is_right_to_left
from crossin_jax.pages import page, words

LONGEST_SHOWN = 1200  # characters of a text


def write_page(
  path: str | os.PathLike,
  result,
  pairs: Sequence[Pair],
  judgements: Mapping[str, Sequence[Judgement]],
  examples: int = 3,
) -> None:
  """Writes the page atomically.

  Args:
    path: the page.
    result: `judge.Result`.
    pairs, judgements: all pairs, and model -> judgements parallel to them.
    examples: pairs shown per language, evenly spaced so that outcomes do not select them.
  """
  languages = list(result.median_characters)
  by_language = {
    code: [i for i, pair in enumerate(pairs) if pair.language == code] for code in languages
  }
  values = {
    'result': result,
    **result.systems,
    'languages': languages,
    'examples': {
      code: [
        {'pair': pairs[i], 'judgements': [(model, judgements[model][i]) for model in judgements]}
        for i in page.evenly_spaced(by_language[code], examples)
      ]
      for code in (languages if examples else ())
    },
  }
  direction = lambda code: 'rtl' if is_right_to_left(code) else 'ltr'
  page.write(
    path, 'judge.html.j2', values, language=words.language_name, direction=direction, shown=_shown
  )


def _shown(text: str) -> str:
  if len(text) <= LONGEST_SHOWN:
    return text
  more = f'({len(text) - LONGEST_SHOWN:,} characters more)'
  return f'{text[:LONGEST_SHOWN].rstrip()} \N{HORIZONTAL ELLIPSIS} {more}'
