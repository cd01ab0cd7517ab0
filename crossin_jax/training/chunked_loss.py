"""Cross-entropy from hidden states by chunks of the vocabulary, without all logits of a batch.

The forward pass goes over the head once and keeps each token's log-sum-exp. The backward pass
computes the logits again, and from the cotangent of every token the gradients. This costs a third
more arithmetic in the head. Because the vocabulary is cut and not the tokens, each part of the
head's gradient is complete at once: no f32 accumulator is needed, and on a mesh no device ever
holds the full head or its gradient. A frozen head gets no gradient.

Letters: B batch, L length, E model width, V vocabulary, N tokens of a device, C words of a chunk.
"""

import dataclasses
import functools
import math
from typing import Any

import flax.struct
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
  x_BLE: jax.Array, head, targets_BL: jax.Array, *, chunk: int
) -> tuple[jax.Array, jax.Array]:
  """The cross-entropy of each token, and log(Z) of its softmax.

  On a mesh every device computes its tokens and its part of the vocabulary.

  Args:
    x_BLE: hidden states.
    head: `models.head.Head`.
    targets_BL: int.
    chunk: words per chunk and device.

  Returns:
    [B, L] each, in nats, at least f32. Both have gradients towards x_BLE and head.kernel (and
    nothing else); a token whose cotangents are zero adds nothing to them, even if its loss is
    infinite.
  """
  mesh, words_axis = mesh_in_force(), 0 if head.tied else 1
  rows = axes_of('batch', x_BLE.shape[0])
  vocabulary = axes_of('vocab', head.kernel.shape[words_axis])
  # The kernel's width is sharded over some of the axes that shard the tokens: it is gathered, and
  # its gradient scattered, chunk by chunk.
  width = axes_of('embed', head.kernel.shape[1 - words_axis])
  width = tuple(axis for axis in width if axis in rows)
  shard = _Shard(
    mesh, int(chunk), head.tied, head.softcap, head.vocab_size, rows, vocabulary, width
  )
  return _cross_entropy(shard, x_BLE, head.kernel, targets_BL)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(shard: '_Shard', x_BLE, kernel, targets_BL):
  return shard.losses(x_BLE, kernel, targets_BL)


@flax.struct.dataclass
class _Kept:
  """What the backward pass needs; `wanted` says whether x and the kernel get a gradient."""

  x_BLE: jax.Array
  kernel: jax.Array
  targets_BL: jax.Array
  log_z_BL: jax.Array
  wanted: tuple[bool, bool] = flax.struct.field(pytree_node=False)


def _forward(shard: '_Shard', x_BLE, kernel, targets_BL):
  values = tuple(leaf.value for leaf in (x_BLE, kernel, targets_BL))
  loss_BL, log_z_BL = shard.losses(*values)
  return (loss_BL, log_z_BL), _Kept(*values, log_z_BL, (x_BLE.perturbed, kernel.perturbed))


def _backward(shard: '_Shard', kept: _Kept, cotangents):
  is_zero = lambda d: isinstance(d, jax.custom_derivatives.SymbolicZero)
  if all(map(is_zero, cotangents)) or not any(kept.wanted):
    return None, None, None
  d_loss_BL, d_log_z_BL = (
    jnp.zeros_like(kept.log_z_BL) if is_zero(d) else d for d in cotangents
  )  # fmt: skip
  return *shard.gradients(kept, d_loss_BL, d_log_z_BL), None


_cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)


@dataclasses.dataclass(frozen=True)
class _Shard:
  """Cross-entropy and its gradients, each on one device from its tokens and its vocabulary.

  Attributes:
    mesh: in force.
    chunk, tied, softcap, vocab_size: see `cross_entropy`.
    rows, vocabulary, width: mesh axes over which tokens, words and the kernel's width are sharded.
  """

  mesh: Any
  chunk: int
  tied: bool
  softcap: float | None
  vocab_size: int
  rows: tuple[str, ...]
  vocabulary: tuple[str, ...]
  width: tuple[str, ...]

  def losses(self, x_BLE, kernel, targets_BL):
    """(loss [B, L], log(Z) [B, L]) on any mesh."""
    states, of_kernel, tokens = self._specs()
    return self._mapped(self._losses, (states, of_kernel, tokens), (tokens, tokens))(
      x_BLE, kernel, targets_BL
    )

  def gradients(self, kept: _Kept, d_loss_BL, d_log_z_BL):
    """Gradients of x and of the kernel on any mesh, each None where it is not wanted."""
    states, of_kernel, tokens = self._specs()
    out = tuple(spec if wanted else None for spec, wanted in zip((states, of_kernel), kept.wanted))
    local = functools.partial(self._gradients, wanted=kept.wanted)
    arrays = kept.x_BLE, kept.kernel, kept.targets_BL, kept.log_z_BL, d_loss_BL, d_log_z_BL
    return self._mapped(local, (states, of_kernel, tokens, tokens, tokens, tokens), out)(*arrays)

  def _specs(self):
    """Of hidden states, of the kernel and of arrays [B, L]."""
    rows, kernel = self.rows or None, ((self.vocabulary or None), (self.width or None))
    of_kernel = PartitionSpec(*kernel[:: 1 if self.tied else -1])
    return PartitionSpec(rows, None, None), of_kernel, PartitionSpec(rows, None)

  def _mapped(self, local, in_specs, out_specs):
    if not self.rows and not self.vocabulary:
      return local
    return jax.shard_map(
      local, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )

  def _losses(self, x_BLE, kernel, targets_BL):
    """First pass, on one device."""
    target_N = targets_BL.reshape(-1)
    chunks = _Chunks(self, x_BLE.reshape(-1, x_BLE.shape[-1]), kernel)
    log_z_N, logit_N = self._log_z(chunks, target_N)
    in_vocabulary_N = (target_N >= 0) & (target_N < chunks.all_words)
    loss_N = log_z_N - jnp.where(in_vocabulary_N, logit_N, jnp.nan)
    return loss_N.reshape(targets_BL.shape), log_z_N.reshape(targets_BL.shape)

  def _log_z(self, chunks: '_Chunks', target_N):
    """Log-sum-exp over all words, and the logit of the target, [N] each."""

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

  def _gradients(
    self, x_BLE, kernel, targets_BL, log_z_BL, d_loss_BL, d_log_z_BL, *, wanted: tuple[bool, bool]
  ):
    """Second pass, on one device: computes the logits again and with them the wanted gradients."""
    x_NE = x_BLE.reshape(-1, x_BLE.shape[-1])
    target_N, log_z_N, d_loss_N, d_log_z_N = (
      array.reshape(-1) for array in (targets_BL, log_z_BL, d_loss_BL, d_log_z_BL)
    )
    chunks = _Chunks(self, x_NE, kernel)
    scale_N, counts_N = d_loss_N + d_log_z_N, (d_loss_N != 0) | (d_log_z_N != 0)
    words_axis = chunks.words_axis
    unsharded = tuple(axis for axis in self.rows if axis not in self.width)

    def step(carry, i):
      dx_NE, d_kernel = carry
      start, part, word_C, capped_NC, logits_NC = chunks.logits(i)
      d_NC = jnp.exp(logits_NC - log_z_N[:, None]) * scale_N[:, None]
      is_target_NC = (word_C == target_N[:, None]) & jnp.isfinite(logits_NC)
      d_NC -= jnp.where(is_target_NC, d_loss_N[:, None], 0)
      if self.softcap is not None:
        d_NC *= 1 - (capped_NC / self.softcap) ** 2
      # `where`, not a product: a token that does not count must not turn infinity into NaN.
      d_NC = jnp.where(counts_N[:, None], d_NC, 0).astype(x_NE.dtype)
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
    dx_NE, d_kernel = jax.lax.scan(step, start, jnp.arange(chunks.count))[0]
    if wanted[0]:
      dx_NE = _over(jax.lax.psum, dx_NE, self.vocabulary).astype(x_BLE.dtype).reshape(x_BLE.shape)
    return dx_NE, d_kernel


class _Chunks:
  """The vocabulary of one device in chunks of equal width.

  Attributes:
    size: words of a chunk. count: of chunks. offset: first word of this device.
    all_words: rows of the head on all devices.
    overlap: the last chunk is moved back to be as wide as the others, so it shares words with the
      one before.
  """

  def __init__(self, shard: _Shard, x_NE, kernel):
    self._shard, self.x_NE, self.kernel = shard, x_NE, kernel
    self.accumulate = accumulate = jnp.promote_types(x_NE.dtype, jnp.float32)
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
