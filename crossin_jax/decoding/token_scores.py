"""Log-probabilities of every token of given sequences, with the most likely tokens beside them.

Letters: B sequences, L tokens, T most likely tokens, as in `slots.token_logprobs`.
"""

from collections.abc import Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from crossin_jax.decoding.schedule import TokenLogprob
from crossin_jax.decoding.slots import token_logprobs
from crossin_jax.devices.partitioning import Partitioner

LEAST_LENGTH = 32
BLOCK = 32  # tokens of a row whose logits are held at a time


@dataclasses.dataclass(frozen=True)
class TokenScores:
  """The scores of a sequence.

  Attributes:
    logprobs: of all tokens, each given those before it.
    next: (token, log-probability) of the most likely tokens behind the sequence.
  """

  logprobs: list[TokenLogprob]
  next: list[tuple[int, float]]

  @property
  def finite(self) -> bool:
    """Whether all log-probabilities are finite."""
    values = [one.logprob for one in self.logprobs[1:]]
    return bool(np.isfinite([*values, *(logprob for _, logprob in self.next[:1])]).all())


def padded_length(length: int) -> int:
  """The power of two that sequences of a length are padded to."""
  return max(LEAST_LENGTH, 1 << (length - 1).bit_length())


def token_scores(
  model, params, partition: Partitioner, sequences: Sequence[Sequence[int]], rows: int
) -> list[TokenScores]:
  """Scores sequences in one batch. A sequence has a row of its own: none can damage another.

  Args:
    model: has the call interface of `Decoder`.
    params: its parameters, on the mesh of `partition`.
    partition: mesh; `partition.activate()` must be in force.
    sequences: as the model reads them, with BOS; none of them empty.
    rows: B, at least as many; rounded up to the mesh's batch parts. Each B and each power of two
      that L is rounded up to compiles a program.
  """
  rows = -(-rows // partition.batch_ways) * partition.batch_ways
  length = padded_length(max(map(len, sequences)))
  tokens_BL, segments_BL = np.zeros((2, rows, length), np.int32)
  for i, sequence in enumerate(sequences):
    tokens_BL[i, : len(sequence)] = sequence
    segments_BL[i, : len(sequence)] = 1
  sharding = partition.batch_sharding
  put = lambda array: jax.make_array_from_callback(array.shape, sharding, lambda at: array[at])
  scored = _program(model, partition.replicated)(params, put(tokens_BL), put(segments_BL))
  logprob_BL, top_BLT, top_logprob_BLT = map(np.asarray, scored)
  results = []
  for i, sequence in enumerate(sequences):
    top = lambda j: list(zip(top_BLT[i, j].tolist(), top_logprob_BLT[i, j].tolist()))
    own = [TokenLogprob(int(sequence[0]), None, [])]
    for j, token in enumerate(sequence[1:]):
      own.append(TokenLogprob(int(token), float(logprob_BL[i, j]), top(j)))
    results.append(TokenScores(own, top(len(sequence) - 1)))
  return results


@functools.lru_cache(maxsize=8)
def _program(model, replicated):
  """A jitted (params, tokens, segments) -> arrays of `token_logprobs` with [B, L] in front."""

  def compute(params, tokens_BL, segments_BL):
    x_BLE, head = model.apply(
      {'params': params}, tokens_BL, segments_BL, enable_dropout=False, method='hidden'
    )
    rows, length, width = x_BLE.shape
    targets_BL = jnp.roll(tokens_BL, -1, axis=1)
    block = min(BLOCK, length)
    blocks = lambda array, *rest: array.reshape(rows, -1, block, *rest).swapaxes(0, 1)

    def score(part):
      x_BKE, targets_BK = part
      logits_BKV = head.logits(x_BKE)
      scored = token_logprobs(logits_BKV.reshape(rows * block, -1), targets_BK.reshape(-1))
      return tuple(array.reshape(rows, block, *array.shape[1:]) for array in scored)

    # Block by block: the logits of all tokens would take gigabytes.
    scored = jax.lax.map(score, (blocks(x_BLE, width), blocks(targets_BL)))
    return tuple(array.swapaxes(0, 1).reshape(rows, length, *array.shape[3:]) for array in scored)

  return jax.jit(compute, out_shardings=replicated)
