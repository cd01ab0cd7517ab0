"""How a tokenizer cuts each language of a mixture: tokens per word and per character."""

from collections.abc import Collection
import dataclasses

import numpy as np

from crossin_jax import languages
from crossin_jax.data.prepared import PreparedMixture
from crossin_jax.data.vocabulary import Vocabulary

# Scripts of languages that put no spaces between words.
_WITHOUT_SPACES = frozenset(('Hans', 'Hant', 'Jpan', 'Thai', 'Laoo', 'Khmr', 'Mymr', 'Tibt'))


@dataclasses.dataclass
class _Counts:
  tokens: int = 0
  words: int = 0
  characters: int = 0
  ids: set = dataclasses.field(default_factory=set)

  def add(self, ids: list[int], text: str) -> None:
    self.tokens += len(ids)
    self.words += len(text.split())
    self.characters += len(text)
    self.ids.update(ids)


def fertility(
  mixture: PreparedMixture,
  vocabulary: Vocabulary,
  *,
  examples: int = 2000,
  stop_ids: Collection[int] = (),
) -> list[dict]:
  """Counts over the trained tokens of each language, which no prompt in English is part of.

  Args:
    mixture: prepared.
    vocabulary: of the mixture.
    examples: most examples of a task that are read.
    stop_ids: tokens that end a response; they are not counted.

  Returns:
    [{'language', 'tokens', 'tokens_per_word' (None for languages without spaces),
    'tokens_per_character', 'vocabulary_share': distinct ids of these tokens / size of the
    vocabulary}], in the order of the table of languages.
  """
  counts: dict[str, _Counts] = {}
  for task in mixture.tasks:
    if task.info['mode'] == 'x2en2x':  # reasoning and answer are in two languages
      continue
    found = counts.setdefault(task.info['target_language'], _Counts())
    for index in range(min(examples, task.examples)):
      tokens, weights = task.split.example(index)
      ids = [i for i in np.asarray(tokens)[np.asarray(weights) > 0].tolist() if i not in stop_ids]
      found.add(ids, vocabulary.decode(ids))
  known = dict.fromkeys(languages.in_order(counts))
  return [
    {
      'language': language,
      'tokens': counts[language].tokens,
      'tokens_per_word': _tokens_per_word(language, counts[language]),
      'tokens_per_character': counts[language].tokens / max(1, counts[language].characters),
      'vocabulary_share': len(counts[language].ids) / vocabulary.size,
    }
    for language in (*known, *sorted(counts.keys() - known))
  ]


def _tokens_per_word(language: str, counts: _Counts) -> float | None:
  known = languages.languages().get(language)
  if known is not None and known.script in _WITHOUT_SPACES:
    return None
  return counts.tokens / max(1, counts.words)


def table(rows: list[dict]) -> str:
  """The result of `fertility` as text."""
  head = ('tokens', 'per word', 'per character', 'of the vocabulary')
  widths = (12, 10, 15, 19)
  lines = [f'{"language":10}' + ''.join(f'{h:>{w}}' for h, w in zip(head, widths))]
  for row in rows:
    word = '-' if row['tokens_per_word'] is None else f'{row["tokens_per_word"]:.2f}'
    cells = (
      f'{row["tokens"]:,}', word, f'{row["tokens_per_character"]:.3f}',
      f'{row["vocabulary_share"]:.2%}',
    )  # fmt: skip
    lines.append(f'{row["language"]:10}' + ''.join(f'{c:>{w}}' for c, w in zip(cells, widths)))
  return '\n'.join(lines)
