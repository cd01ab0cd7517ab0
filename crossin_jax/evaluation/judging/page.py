"""judge.html: verdicts with their intervals and pairs to look at, on one page that needs nothing
else.
"""

from collections.abc import Mapping, Sequence
import os

from crossin_jax.evaluation.judging.verdicts import Judgement, Pair
from crossin_jax.languages import RIGHT_TO_LEFT
from crossin_jax.pages import page, words

LONGEST_SHOWN = 1200  # characters of a text


def write_page(
  path: str | os.PathLike,
  found: Mapping,
  pairs: Sequence[Pair],
  judgements: Mapping[str, Sequence[Judgement]],
  examples: int = 3,
) -> None:
  """Writes the page; it appears by rename.

  Args:
    path: of the page.
    found: what judge.json holds.
    pairs: judged ones and others.
    judgements: model -> judgements, parallel to the pairs.
    examples: pairs shown for each language, at even distances: not chosen by outcome.
  """
  values = {
    'found': found,
    'a': found['systems']['a'],
    'b': found['systems']['b'],
    'languages': list(found['median_characters']),
    'examples': _examples(pairs, judgements, examples),
    'forms': len({pair.asked_in for pair in pairs} - {None}) > 0,
  }
  direction = lambda code: 'rtl' if code in RIGHT_TO_LEFT else 'ltr'
  page.write(
    path, 'judge.html.j2', values, language=words.language_name, direction=direction, shown=_shown
  )


def _shown(text: str) -> str:
  if len(text) <= LONGEST_SHOWN:
    return text
  return f'{text[:LONGEST_SHOWN].rstrip()} \N{HORIZONTAL ELLIPSIS} ({len(text) - LONGEST_SHOWN:,} characters more)'


def _examples(
  pairs: Sequence[Pair], judgements: Mapping[str, Sequence[Judgement]], count: int
) -> dict[str, list[dict]]:
  """Language -> pairs with what each judge said."""
  found: dict[str, list[dict]] = {}
  for language in sorted({pair.language for pair in pairs}):
    places = [i for i, pair in enumerate(pairs) if pair.language == language]
    n = min(count, len(places))
    for k in range(n):
      i = places[int((k + 0.5) * len(places) / n)]
      said = [{'model': model, 'judgement': judgements[model][i]} for model in judgements]
      found.setdefault(language, []).append({'pair': pairs[i], 'said': said})
  return found
