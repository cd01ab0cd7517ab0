"""Cross-entropy from hidden states by chunks of the vocabulary, without all logits of a batch.

A first pass over the head computes each token's log-sum-exp. In training a second pass computes the
logits again together with the gradients; the backward pass only scales them, because the loss is a
sum. This costs a third more arithmetic in the head. Because the vocabulary is cut and not the
tokens, each part of the head's gradient is complete at once: no f32 accumulator is needed, and on a
mesh no device ever holds the full head or its gradient. A frozen head gets no gradient.

Letters: B batch, L length, E model width, V vocabulary, N tokens of a device, C words of a chunk.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from crossin_jax.models.attention.shards import axes_of, mesh_in_force

LARGE = 1 << 29  # bytes of logits per device up to which no chunks are used
CHUNK = 1 << 27  # bytes of the logits of a chunk


def auto_chunk(rows: int, length: int, vocabulary: int, bytes_each: int = 4) -> int | None:
  """Words per chunk and device under the mesh in force; None where all logits are small.

  Args:
    rows, length: of the batch.
    vocabulary: V.
    bytes_each: of a logit.
  """
  mesh = mesh_in_force()
  ways = lambda logical, size: math.prod(mesh.shape[axis] for axis in axes_of(logical, size))
  of_a_word = rows * length // ways('batch', rows) * bytes_each
  if of_a_word * (vocabulary // ways('vocab', vocabulary)) <= LARGE:
    return None
  return max(512, CHUNK // of_a_word // 128 * 128)


def cross_entropy(
  x_BLE: jax.Array,
  head,
  targets_BL: jax.Array,
  weights_BL: jax.Array,
  *,
  z_loss: float = 0.0,
  chunk: int,
) -> tuple[jax.Array, jax.Array]:
  """The sum of weight x cross-entropy + z_loss x weight x log(Z)^2.

  On a mesh every device computes its tokens and its part of the vocabulary.

  Args:
    x_BLE: hidden states.
    head: `models.head.Head`.
    targets_BL: int.
    weights_BL: float; tokens of weight 0 do not count, whatever their loss.
    z_loss: see `losses.batch_loss`.
    chunk: words per chunk and device.

  Returns:
    The sum, a scalar to differentiate towards x_BLE and head.kernel (and nothing else); and the
    cross-entropy of each token [B, L], which has no gradient.
  """
  settings = (float(z_loss), int(chunk), head.tied, head.softcap, head.vocab_size)
  objective, loss_BL = _cross_entropy(settings, x_BLE, head.kernel, targets_BL, weights_BL)
  return objective, jax.lax.stop_gradient(loss_BL)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(settings, x_BLE, kernel, targets_BL, weights_BL):
  return _on_devices(settings, x_BLE, kernel, targets_BL, weights_BL, (False, False))[:2]


def _forward(settings, x_BLE, kernel, targets_BL, weights_BL):
  wanted = (x_BLE.perturbed, kernel.perturbed)
  values = (leaf.value for leaf in (x_BLE, kernel, targets_BL, weights_BL))
  objective, loss_BL, dx_BLE, d_kernel = _on_devices(settings, *values, wanted)
  return (objective, loss_BL), (dx_BLE, d_kernel)


def _backward(settings, kept, gradients):
  del settings
  scale = gradients[0]
  if isinstance(scale, jax.custom_derivatives.SymbolicZero):
    return None, None, None, None
  return *(None if d is None else d * scale.astype(d.dtype) for d in kept), None, None


_cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)


def _on_devices(settings, x_BLE, kernel, targets_BL, weights_BL, wanted: tuple[bool, bool]):
  """(objective [], loss [B, L], gradient of x or None, of the kernel or None) on any mesh."""
  z_loss, chunk, tied, softcap, vocab_size = settings
  mesh, (words_axis, width_axis) = mesh_in_force(), (0, 1) if tied else (1, 0)
  rows = axes_of('batch', x_BLE.shape[0])
  vocabulary = axes_of('vocab', kernel.shape[words_axis])
  # The kernel's width is sharded over some of the axes that shard the tokens: it is gathered, and
  # its gradient scattered, chunk by chunk.
  width = tuple(axis for axis in axes_of('embed', kernel.shape[width_axis]) if axis in rows)
  shard = _Shard(z_loss, chunk, tied, softcap, vocab_size, rows, vocabulary, width)
  local = functools.partial(shard, wanted=wanted)
  if not rows and not vocabulary:
    return local(x_BLE, kernel, targets_BL, weights_BL)
  tokens, states = PartitionSpec(rows or None, None), PartitionSpec(rows or None, None, None)
  of_kernel = PartitionSpec(*(((vocabulary or None), (width or None))[:: 1 if tied else -1]))
  out = (PartitionSpec(), tokens, states if wanted[0] else None, of_kernel if wanted[1] else None)
  mapped = jax.shard_map(
    local, mesh=mesh, in_specs=(states, of_kernel, tokens, tokens), out_specs=out, check_vma=False
  )  # fmt: skip
  return mapped(x_BLE, kernel, targets_BL, weights_BL)


@dataclasses.dataclass(frozen=True)
class _Shard:
  """The loss of the tokens and the part of the vocabulary that one device has.

  Attributes:
    z_loss, chunk, tied, softcap, vocab_size: see `cross_entropy`.
    rows, vocabulary, width: mesh axes over which tokens, words and the kernel's width are sharded.
  """

  z_loss: float
  chunk: int
  tied: bool
  softcap: float | None
  vocab_size: int
  rows: tuple[str, ...]
  vocabulary: tuple[str, ...]
  width: tuple[str, ...]

  def __call__(self, x_BLE, kernel, targets_BL, weights_BL, *, wanted: tuple[bool, bool]):
    accumulate = jnp.promote_types(x_BLE.dtype, jnp.float32)
    x_NE = x_BLE.reshape(-1, x_BLE.shape[-1])
    target_N, weight_N = targets_BL.reshape(-1), weights_BL.reshape(-1).astype(accumulate)
    chunks = _Chunks(self, x_NE, kernel, accumulate)
    log_z_N, logit_N = self._log_z(chunks, target_N)
    in_vocabulary_N = (target_N >= 0) & (target_N < chunks.all_words)
    loss_N = log_z_N - jnp.where(in_vocabulary_N, logit_N, jnp.nan)
    # `where`, not a product: a token of weight 0 must not turn an infinite loss into NaN.
    penalised_N = loss_N + self.z_loss * log_z_N**2 if self.z_loss else loss_N
    objective_N = jnp.where(weight_N != 0, weight_N * penalised_N, 0)
    objective = _over(jax.lax.psum, objective_N.sum(), self.rows)
    loss_BL = loss_N.reshape(targets_BL.shape)
    if not any(wanted):
      return objective, loss_BL, None, None
    dx_NE, d_kernel = self._gradients(chunks, target_N, weight_N, log_z_N, wanted)
    if wanted[0]:
      dx_NE = _over(jax.lax.psum, dx_NE, self.vocabulary).astype(x_BLE.dtype).reshape(x_BLE.shape)
    return objective, loss_BL, dx_NE, d_kernel

  def _log_z(self, chunks: '_Chunks', target_N):
    """First pass: log-sum-exp over all words, and the logit of the target, [N] each."""

    def step(carry, i):
      highest_N, total_N, logit_N = carry
      _, _, word_C, _, logits_NC = chunks.logits(i)
      new_N = jnp.maximum(highest_N, logits_NC.max(axis=-1))
      safe_N = _finite(new_N)
      total_N = total_N * jnp.exp(highest_N - safe_N)
      total_N += jnp.exp(logits_NC - safe_N[:, None]).sum(axis=-1)
      column_N = target_N - word_C[0]
      clipped_N1 = jnp.clip(column_N, 0, chunks.size - 1)[:, None]
      here_N = jnp.take_along_axis(logits_NC, clipped_N1, axis=-1)[:, 0]
      # A word that the last two chunks share is in both, in the last one as -inf.
      is_here_N = (column_N >= 0) & (column_N < chunks.size)
      is_here_N &= target_N - chunks.offset >= i * chunks.size
      return (new_N, total_N, jnp.where(is_here_N, here_N, logit_N)), None

    lowest_N = jnp.full(target_N.shape, -jnp.inf, chunks.accumulate)
    start = (lowest_N, jnp.zeros_like(lowest_N), lowest_N)
    (highest_N, total_N, logit_N), _ = jax.lax.scan(step, start, jnp.arange(chunks.count))
    if self.vocabulary:
      local_N, highest_N = highest_N, jax.lax.pmax(highest_N, self.vocabulary)
      scaled_N = total_N * jnp.exp(local_N - _finite(highest_N))
      total_N = jax.lax.psum(scaled_N, self.vocabulary)
      logit_N = jax.lax.pmax(logit_N, self.vocabulary)
    return jnp.log(total_N) + _finite(highest_N), logit_N

  def _gradients(self, chunks: '_Chunks', target_N, weight_N, log_z_N, wanted):
    """Second pass: computes the logits again and with them the wanted gradients."""
    x_NE, kernel, words_axis = chunks.x_NE, chunks.kernel, chunks.words_axis
    scale_N = weight_N * (1 + 2 * self.z_loss * log_z_N)
    unsharded = tuple(axis for axis in self.rows if axis not in self.width)

    def step(carry, i):
      dx_NE, d_kernel = carry
      start, part, word_C, capped_NC, logits_NC = chunks.logits(i)
      d_NC = jnp.exp(logits_NC - log_z_N[:, None]) * scale_N[:, None]
      is_target_NC = (word_C == target_N[:, None]) & jnp.isfinite(logits_NC)
      d_NC -= jnp.where(is_target_NC, weight_N[:, None], 0)
      if self.softcap is not None:
        d_NC *= 1 - (capped_NC / self.softcap) ** 2
      d_NC = jnp.where((weight_N != 0)[:, None], d_NC, 0).astype(x_NE.dtype)
      if wanted[0]:
        dx_NE += chunks.product(f'nc,{chunks.layout}->ne', d_NC, part)
      if wanted[1]:
        d_part = chunks.product(f'ne,nc->{chunks.layout}', x_NE, d_NC)
        if self.width:
          d_part = jax.lax.psum_scatter(
            d_part, self.width, scatter_dimension=1 - words_axis, tiled=True
          )
        d_part = _over(jax.lax.psum, d_part, unsharded).astype(kernel.dtype)
        if chunks.overlap:
          d_part += jax.lax.dynamic_slice_in_dim(d_kernel, start, chunks.size, words_axis)
        d_kernel = jax.lax.dynamic_update_slice_in_dim(d_kernel, d_part, start, words_axis)
      return (dx_NE, d_kernel), None

    start = (
      jnp.zeros(x_NE.shape, chunks.accumulate) if wanted[0] else None,
      jnp.zeros_like(kernel) if wanted[1] else None,
    )
    return jax.lax.scan(step, start, jnp.arange(chunks.count))[0]


class _Chunks:
  """The vocabulary of one device in chunks of equal width.

  Attributes:
    size: words of a chunk. count: of chunks. offset: first word of this device.
    all_words: rows of the head on all devices.
    overlap: the last chunk is moved back to be as wide as the others, so it shares words with the
      one before.
  """

  def __init__(self, shard: _Shard, x_NE, kernel, accumulate):
    self._shard, self.x_NE, self.kernel, self.accumulate = shard, x_NE, kernel, accumulate
    self.words_axis, self.layout = (0, 'ce') if shard.tied else (1, 'ec')
    self.product = functools.partial(jnp.einsum, preferred_element_type=accumulate)
    self._words = words = kernel.shape[self.words_axis]
    axes = shard.vocabulary
    self.offset = jax.lax.axis_index(axes) * words if axes else 0
    self.all_words = words * (jax.lax.psum(1, axes) if axes else 1)
    self.size = min(words, -(-words // -(-words // shard.chunk) // 128) * 128)
    self.count, self.overlap = -(-words // self.size), bool(words % self.size)

  def logits(self, i):
    """(first word, kernel, words [C], capped logits [N, C], logits [N, C]) of chunk i.

    Padding words count as the lowest number, words shared with the chunk before as -inf.
    """
    shard, size = self._shard, self.size
    start = jnp.minimum(i * size, self._words - size)
    part = jax.lax.dynamic_slice_in_dim(self.kernel, start, size, self.words_axis)
    part = part.astype(self.x_NE.dtype)
    if shard.width:
      part = jax.lax.all_gather(part, shard.width, axis=1 - self.words_axis, tiled=True)
    local_C = start + jnp.arange(size)
    capped_NC = self.product(f'ne,{self.layout}->nc', self.x_NE, part)
    if shard.softcap is not None:
      capped_NC = shard.softcap * jnp.tanh(capped_NC / shard.softcap)
    logits_NC, word_C = capped_NC, self.offset + local_C
    if self.all_words > shard.vocab_size:
      lowest = jnp.finfo(self.accumulate).min
      logits_NC = jnp.where(word_C < shard.vocab_size, logits_NC, lowest)
    if self.overlap:
      logits_NC = jnp.where(local_C >= i * size, logits_NC, -jnp.inf)
    return start, part, word_C, capped_NC, logits_NC


def _over(reduce, x, axes):
  return reduce(x, axes) if axes else x


def _finite(x):
  return jnp.where(jnp.isfinite(x), x, 0)
