"""Log-likelihood of given sequences, packed: one compile whatever their lengths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from crossin_jax import interruption, losses
from crossin_jax.data.packing import first_fit
from crossin_jax.data.stream import empty_rows, put_batch, write_segment
from crossin_jax.partitioning import Partitioner


def sequence_losses(
  model, params, partition: Partitioner, sequences, *, bos_id: int, length: int = 512, rows: int = 32
) -> np.ndarray:
  """Sum of weighted token losses of each sequence, in nats; its negative is the log-likelihood.

  Args:
    model: called as `Decoder` is.
    params: its parameters, on the mesh of `partition`.
    partition: mesh; `partition.activate()` must be in force.
    sequences: list of (tokens int [n], weights float [n]); no BOS among the tokens.
    bos_id: first decoder input of each.
    length: tokens in a packed row; at least the longest sequence.
    rows: rows of a batch, rounded up to a multiple of the mesh's batch parts.

  Returns:
    float64 [sequences], the same on every host.

  Raises:
    ValueError: a sequence longer than a row.
  """
  if not sequences:
    return np.zeros(0)
  lengths = np.array([len(tokens) for tokens, _ in sequences])
  if lengths.max() > length:
    raise ValueError(f'a sequence of {lengths.max()} tokens does not fit in rows of {length}')
  rows = -(-rows // partition.batch_ways) * partition.batch_ways
  # Longest first packs tightest, and nothing here depends on order.
  order = np.argsort(-lengths, kind='stable')
  room = np.full(len(sequences), length)
  bins = first_fit(lengths[order], length, room)
  contents = [[] for _ in range(bins.max() + 1)]
  for item, bin_ in zip(order, bins):
    contents[bin_].append(int(item))
  losses_fn = weighted_losses(model, partition.replicated)
  totals = np.zeros(len(sequences))

  def make(step, selected):
    batch = empty_rows(rows, length)
    for i, row in enumerate(contents[step * rows : (step + 1) * rows]):
      start = 0
      for segment, item in enumerate(row, start=1):
        tokens, weights = sequences[item]
        write_segment(batch, i, start, segment, np.asarray(tokens), weights, bos_id, 0)
        start += len(tokens)
    return {name: values[selected] for name, values in batch.items()}

  for step in range(-(-len(contents) // rows)):
    interruption.check()
    batch = put_batch(make, step, (rows, length), partition.batch_sharding)
    weighted_BL = np.asarray(losses_fn(params, batch), np.float64)
    for i, row in enumerate(contents[step * rows : (step + 1) * rows]):
      start = 0
      for item in row:
        totals[item] = weighted_BL[i, start : start + lengths[item]].sum()
        start += lengths[item]
  return totals


@functools.lru_cache(maxsize=8)
def weighted_losses(model, replicated):
  """A jitted (params, batch) -> float [B, L], token losses times weights, whole on every device."""

  def compute(params, batch):
    loss_BL, _ = losses.token_losses(losses.apply_model(model, params, batch), batch['decoder_target_tokens'])
    weight_BL = batch['decoder_loss_weights']
    return jnp.where(weight_BL != 0, loss_BL * weight_BL, 0)

  return jax.jit(compute, out_shardings=replicated)
