"""The three levels of the rater: its training rows, and expected levels from probabilities.

See docs/design/methods.md#c-16.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from crossin_jax.xinstruction.rows import fraction, plain

LEVELS = (1, 2, 3)
FLAWS = ('language', 'cut', 'joined')


def rating_rows(
  seed: Mapping[str, Sequence[Mapping]],
  language: str,
  responses: Mapping[str, str],
  flaws: Sequence[str] = FLAWS,
) -> list[dict]:
  """Training rows of template 'xrate' (docs/design/methods.md#c-16, #b-4-refinement).

      level 3  seed instruction, its own response
      level 2  seed instruction, the current model's response
      level 1  seed instruction, another seed row's response
      level 1  'language': seed instruction, its response in another language (or another row's), if
        the seed has another
      level 1  seed instruction, its own response spoiled in one of the other ways of `flaws`, drawn
      by a hash:
               'cut'       the response, broken off behind a third to five sixths of it
               'joined'    the response and the second half of another row's

  The instruction ends with "Answer in Swahili.", because otherwise a wrong language would be
  undetectable.

  Args:
    seed: language -> rows {"id", "instruction", "output"}.
    language: of the rows.
    responses: id -> what the current response model wrote to the instruction; rows without one give
      no level 2.
    flaws: of FLAWS; () leaves the last kind out.

  Returns:
    {"id", "instruction", "input": the response, "output": the level}.
  """
  own = seed[language]
  others = [code for code in sorted(seed) if code != language and seed[code]]
  broken = [flaw for flaw in flaws if flaw != 'language']
  foreign = [seed[code] for code in others]
  order = sorted(own, key=lambda row: fraction('other', str(row['id'])))
  other = {
    row['id']: following['output'] for row, following in zip(order, [*order[1:], *order[:1]])
  }
  rows = []
  for row in own:
    id_, text = str(row['id']), row['output'].strip()
    examples = [('3', 3, text), ('2', 2, responses.get(row['id'], ''))]
    if len(own) > 1:
      examples.append(('1', 1, other[row['id']]))
    spoil = lambda flaw: _spoiled(flaw, id_, text, other[row['id']], language, foreign)
    if others and 'language' in flaws:
      examples.append(('language', 1, spoil('language')))
    if broken:
      flaw = broken[int(fraction('flaw', id_, language) * len(broken))]
      examples.append((flaw, 1, spoil(flaw)))
    rows += [
      {
        'id': f'{id_}.{kind}',
        'instruction': plain(row['instruction'], language),
        'input': input_text,
        'output': str(level),
      }
      for kind, level, input_text in examples
      if input_text.strip() and not (level < 3 and input_text.strip() == text)
    ]
  return rows


def _spoiled(
  flaw: str, id_: str, text: str, other: str, language: str, foreign: Sequence[Sequence[Mapping]]
) -> str:
  """A spoiled response; '' if the response is too short."""
  if flaw == 'language':
    rows = foreign[int(fraction('foreign', id_, language) * len(foreign))]
    # parallel seeds: the right answer in the wrong language
    same = [row for row in rows if row['id'] == id_]
    row = same[0] if same else rows[int(fraction('row', id_, language) * len(rows))]
    return row['output']
  if flaw == 'cut':
    return text[: int(len(text) * (1 / 3 + fraction('cut', id_, language) / 2))].rstrip()
  return f'{text} {other[len(other) // 2 :].strip()}'


def expected_level(log_probabilities_N3: np.ndarray) -> np.ndarray:
  """Expected level, float64 [N] from 1 to 3; the probabilities are normalised to sum to 1.

  [log 0.1, log 0.1, log 0.2] -> 1 * 0.25 + 2 * 0.25 + 3 * 0.5 = 2.25
  """
  shares = np.exp(log_probabilities_N3 - log_probabilities_N3.max(axis=-1, keepdims=True))
  return shares @ np.array(LEVELS, np.float64) / shares.sum(axis=-1)


def kept(
  scores: np.ndarray, ids: Sequence[str], keep_fraction: float, least_level: float
) -> np.ndarray:
  """Indices of the top fraction of the candidates whose level is high enough.

  Ties are ordered by a hash of the id (docs/design/methods.md#c-17).
  """
  order = sorted(range(len(ids)), key=lambda i: (-scores[i], fraction('kept', ids[i])))
  best = order[: int(len(order) * keep_fraction + 0.5)]
  return np.array(sorted(i for i in best if scores[i] >= least_level), np.int64)
