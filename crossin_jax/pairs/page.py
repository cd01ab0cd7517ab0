"""pairs.html: margins, lengths, languages and examples of the pairs of a run."""

from collections.abc import Mapping
import os
from typing import Any

import numpy as np

from crossin_jax.data.pair_rows import PairRow, read_pairs
from crossin_jax.pages import page, plots
from crossin_jax.pages.words import language_name, shown, thousands

SHOWN = 600  # characters of a text
REASONS = {
  'no_prompt': 'the language lacks the prompt',
  'prompt_too_long': 'the prompt is longer than Sampler.prompt_tokens',
  'no_english_prompt': 'no English prompt',
  'no_english_answer': 'not asked in English',
  'no_pivot': 'no English answer that could be the pivot',
  'nothing_to_choose': 'no complete answer in the language',
  'no_worse_answer': 'no answer is worse than the one to choose',
  'no_choices': 'no options',
  'choices_differ': 'options or right answer differ between languages',
  'one_language': 'options in one language only',
  'no_right_answer': 'the right option is not known',
  'too_few_candidates': 'fewer than two different options',
}


def write(path: str | os.PathLike, pairs: str, results: Mapping[str, Any], examples: int) -> None:
  """Writes the page atomically.

  Args:
    path: the page.
    pairs: file of the pairs.
    results: what pairs.json has.
    examples: of each language.
  """
  from markupsafe import Markup

  by_language = results['by_language']
  count = {language: own['pairs'] for language, own in by_language.items()}
  wanted = {
    language: set(page.evenly_spaced(range(n), examples)) if n else set()
    for language, n in count.items()
  }
  seen, chosen, margins = dict.fromkeys(count, 0), {c: [] for c in count}, {c: [] for c in count}
  for row in read_pairs(pairs) if results['pairs'] else ():  # a file without rows is refused
    language = row.language
    if seen[language] in wanted[language]:
      chosen[language].append(_example(row))
    seen[language] += 1
    if row.margin is not None:
      margins[language].append(row.margin)
  values = {
    'results': results,
    'languages': {code: page.language(code) for code in by_language},
    'plot': Markup(_plot(margins, results['by'])) if any(margins.values()) else '',
    'examples': chosen,
    'reasons': lambda name: REASONS.get(name, name.replace('_', ' ')),
  }
  page.write(path, 'pairs.html.j2', values, thousands=thousands, language=language_name)


def _plot(margins: Mapping[str, list[float]], by: str) -> str:
  """The margin that a share of the pairs of a language has at most."""
  shares = np.linspace(0, 1, 51)
  series = [
    plots.Series(code, i, 100 * shares, np.quantile(own, shares))
    for i, (code, own) in enumerate(margins.items())
    if own
  ]
  unit = 'nats' if by == 'implicit' else 'cosine'
  return plots.curves(series, f'margin ({unit})', 'share of the pairs with at most this margin (%)')


def _example(row: PairRow) -> dict[str, Any]:
  turns = row.prompt
  if not isinstance(turns, str):
    turns = '\n\n'.join(f'{turn["role"]}: {turn["content"]}' for turn in turns)
  return {
    'id': row.id, 'prompt': shown(turns, SHOWN), 'chosen': shown(row.chosen, SHOWN),
    'rejected': shown(row.rejected, SHOWN), 'margin': row.margin,
    'characters': (len(row.chosen), len(row.rejected)),
    'prompt_language': page.language(row.prompt_language),
  }  # fmt: skip
