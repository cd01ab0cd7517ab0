"""Batches of random tokens in full rows, for measurements of speed."""

import numpy as np

from crossin_jax.data import pair_layout
from crossin_jax.data.stream import FEATURES, empty_rows

BOS = 1


def of_rows(vocabulary_size: int, batch_size: int, length: int) -> dict[str, np.ndarray]:
  """Two segments in each row, all of whose tokens are trained; features of `stream`."""
  batch = empty_rows(batch_size, length)
  tokens = np.random.default_rng(0).integers(0, vocabulary_size, (batch_size, length))
  batch['decoder_input_tokens'][:] = tokens
  batch['decoder_target_tokens'][:] = np.roll(tokens, -1, axis=1)
  batch['decoder_loss_weights'][:] = 1
  half = np.arange(length) // max(1, length // 2)
  batch['decoder_segment_ids'][:] = 1 + half
  batch['decoder_positions'][:] = np.arange(length) - half * (length // 2)
  return batch


def of_pairs(
  vocabulary_size: int,
  batch_size: int,
  length: int,
  *,
  features: dict[str, type],
  halves: int = 1,
  prompt_tokens: int,
  answer_tokens: int,
) -> dict[str, np.ndarray]:
  """As many preference pairs of one size in each row as fit.

      length 12, prompt 2, answers 1: 3 pairs in the layout 'branches', 2 in 'plain'

  Args:
    vocabulary_size, batch_size, length: of the batch.
    features: what pairs add to `stream.FEATURES`, see `pair_layout.features`.
    halves: 2 = each pair in two languages.
    prompt_tokens, answer_tokens: of each prompt, at least 0, and of each answer, at least 1.

  Raises:
    ValueError: not even one pair fits, or it has no tokens.
  """
  if prompt_tokens < 0 or answer_tokens < 1:
    raise ValueError(
      f'a pair needs prompts of at least 0 tokens and answers of at least 1, found {prompt_tokens} '
      f'and {answer_tokens}: change prompt_tokens or answer_tokens'
    )
  half = np.repeat(np.arange(3), [prompt_tokens, answer_tokens, answer_tokens])
  # The second half has the answers 3 and 4 behind its own prompt.
  parts = [np.where(half > 0, half + 2 * number, 0) for number in range(halves)]
  branches = np.concatenate(parts).astype(np.int8)
  layout = 'branches' if 'decoder_branches' in features else 'plain'
  columns = pair_layout.lengths(layout, len(branches), halves * prompt_tokens)
  if columns > length:
    raise ValueError(
      f'a pair with prompts of {prompt_tokens} and answers of {answer_tokens} tokens takes '
      f'{columns} columns, and a row has {length}: set a larger length or smaller ones'
    )
  batch, rng = empty_rows(batch_size, length, FEATURES | features), np.random.default_rng(0)
  logps = None
  if pair_layout.REFERENCE in features:  # those of a model that knows nothing
    logps = np.full(4, -answer_tokens * np.log(vocabulary_size), np.float32)
  for row in range(batch_size):
    start, segment = 0, 1
    for _ in range(length // columns):
      tokens = rng.integers(0, vocabulary_size, len(branches)).astype(np.int32)
      weights = (branches > 0).astype(np.float32)
      start, segment = pair_layout.write(
        batch, row, start, segment, tokens, weights, branches, BOS, 0, logps
      )
  return batch
