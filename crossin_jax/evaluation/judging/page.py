"""judge.html: verdicts with their intervals and example pairs, on one self-contained page."""

from collections.abc import Mapping, Sequence
import os

from crossin_jax.evaluation.judging.verdicts import Judgement, Pair
from crossin_jax.languages import RIGHT_TO_LEFT
from crossin_jax.pages import page, words

LONGEST_SHOWN = 1200  # characters of a text


def write_page(
  path: str | os.PathLike,
  result: Mapping,
  pairs: Sequence[Pair],
  judgements: Mapping[str, Sequence[Judgement]],
  examples: int = 3,
) -> None:
  """Writes the page atomically.

  Args:
    path: the page.
    result: the object of judge.json.
    pairs, judgements: all pairs, and model -> judgements parallel to them.
    examples: pairs shown per language, evenly spaced so that outcomes do not select them.
  """
  values = {
    'result': result,
    'a': result['systems']['a'],
    'b': result['systems']['b'],
    'languages': list(result['median_characters']),
    'examples': _examples(pairs, judgements, examples),
  }
  direction = lambda code: 'rtl' if code in RIGHT_TO_LEFT else 'ltr'
  page.write(
    path, 'judge.html.j2', values, language=words.language_name, direction=direction, shown=_shown
  )


def _shown(text: str) -> str:
  if len(text) <= LONGEST_SHOWN:
    return text
  more = f'({len(text) - LONGEST_SHOWN:,} characters more)'
  return f'{text[:LONGEST_SHOWN].rstrip()} \N{HORIZONTAL ELLIPSIS} {more}'


def _examples(
  pairs: Sequence[Pair], judgements: Mapping[str, Sequence[Judgement]], count: int
) -> dict[str, list[dict]]:
  """Language -> pairs with their judgements."""
  return {
    language: [
      {'pair': pairs[i], 'judgements': [(model, judgements[model][i]) for model in judgements]}
      for i in page.evenly_spaced(
        [i for i, pair in enumerate(pairs) if pair.language == language], count
      )
    ]
    for language in (sorted({pair.language for pair in pairs}) if count else ())
  }
