"""The rater's three levels (METHODS C16): rows to learn them from, and the expected level from probabilities."""

from collections.abc import Mapping, Sequence

import numpy as np

from crossin_jax.xinstruction.rows import fraction

LEVELS = (1, 2, 3)


def rating_rows(seed: Sequence[Mapping], responses: Mapping[str, str]) -> list[dict]:
  """Rows of template 'xrate' that teach the levels.

      level 3  seed instruction, its own response
      level 2  seed instruction, the current model's response
      level 1  seed instruction, another seed row's response

  Args:
    seed: rows {"id", "instruction", "output"} of one language.
    responses: id -> what the current response model wrote to the instruction; rows without one give no level 2.

  Returns:
    {"id", "instruction", "input": the response, "output": the level}.
  """
  order = sorted(seed, key=lambda row: fraction('other', str(row['id'])))
  other = {row['id']: following['output'] for row, following in zip(order, [*order[1:], *order[:1]])}
  rows = []
  for row in seed:
    texts = {3: row['output'], 2: responses.get(row['id'], ''), 1: other[row['id']] if len(seed) > 1 else ''}
    for level, text in texts.items():
      if text.strip() and not (level < 3 and text.strip() == row['output'].strip()):
        rows.append({
          'id': f'{row["id"]}.{level}', 'instruction': row['instruction'], 'input': text, 'output': str(level)
        })  # fmt: skip
  return rows


def expected_level(log_probabilities_N3: np.ndarray) -> np.ndarray:
  """Sum of level times probability, the probabilities of the three levels being made to sum to 1; float64 [N], 1 to 3.

  [log 0.1, log 0.1, log 0.2] -> 1 * 0.25 + 2 * 0.25 + 3 * 0.5 = 2.25
  """
  shares = np.exp(log_probabilities_N3 - log_probabilities_N3.max(axis=-1, keepdims=True))
  return shares @ np.array(LEVELS, np.float64) / shares.sum(axis=-1)


def kept(scores: np.ndarray, ids: Sequence[str], keep_fraction: float, least_level: float) -> np.ndarray:
  """Indices of the best candidates (METHODS C17): the top fraction, if their level is high enough; ties by a hash of the id."""
  order = sorted(range(len(ids)), key=lambda i: (-scores[i], fraction('kept', ids[i])))
  best = order[: int(len(order) * keep_fraction + 0.5)]
  return np.array(sorted(i for i in best if scores[i] >= least_level), np.int64)
