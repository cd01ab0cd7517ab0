"""Cross-entropy from hidden states by chunks of the vocabulary, without all logits of a batch.

The forward pass goes over the head once and keeps each token's log-sum-exp. The backward pass needs
the probabilities again. Where memory allows it, the forward pass keeps exp(logit - maximum) in the
dtype of the hidden states; otherwise the backward pass computes the logits again, which is a third
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

from crossin_jax.devices import chips
from crossin_jax.models.attention.shards import axes_of, device_in_force, mesh_in_force
from crossin_jax.training import ring

LARGE = 1 << 29  # bytes of logits per device up to which no chunks are used
CHUNK = 1 << 27  # bytes of the logits of a chunk
KEPT = 1 << 31  # bytes per device up to which the first pass keeps what it computes
RING_COLUMNS = 128  # of the head's width per device, from which a ring of products is worthwhile


def auto_chunk(rows: int, length: int, vocabulary: int, bytes_each: int = 4) -> int | None:
  """Words per chunk and device under the mesh in force; None where all logits are small.

  Args:
    rows, length: of the batch.
    vocabulary: V.
    bytes_each: of a logit.
  """
  if _bytes(rows, length, vocabulary, bytes_each) <= LARGE:
    return None
  of_a_word = _bytes(rows, length, 1, bytes_each)
  return max(512, CHUNK // of_a_word // 128 * 128)


def auto_keep(rows: int, length: int, vocabulary: int, bytes_each: int) -> bool:
  """Whether a device under the mesh in force has room for the probabilities of all words.

  Args: as of `auto_chunk`.
  """
  return _bytes(rows, length, vocabulary, bytes_each) <= KEPT


def chosen(config, rows: int, length: int, chunk, keep) -> tuple[int | None, bool]:
  """`cross_entropy`'s chunk and keep where either is 'auto'.

  Args:
    config: a `DecoderConfig`.
    rows, length: of the batch.
    chunk, keep: of `losses.cross_entropy`.
  """
  shape, dtype = (rows, length, config.padded_vocab_size), jnp.dtype(config.dtype)
  if chunk == 'auto':
    chunk = auto_chunk(*shape, jnp.promote_types(dtype, jnp.float32).itemsize)
  if keep == 'auto':
    keep = auto_keep(*shape, dtype.itemsize)
  return chunk, keep and config.logit_softcap is None


def _bytes(rows: int, length: int, words: int, bytes_each: int) -> int:
  """Of an array [rows, length, words] on a device under the mesh in force."""
  mesh = mesh_in_force()
  ways = lambda logical, size: math.prod(mesh.shape[axis] for axis in axes_of(logical, size))
  return rows * length // ways('batch', rows) * (words // ways('vocab', words)) * bytes_each


def cross_entropy(
  x_BLE: jax.Array, head, targets_BL: jax.Array, *, chunk: int, keep: bool = False
) -> tuple[jax.Array, jax.Array]:
  """The cross-entropy of each token, and log(Z) of its softmax.

  On a mesh every device computes its tokens and its part of the vocabulary.

  Args:
    x_BLE: hidden states.
    head: `models.head.Head`.
    targets_BL: int.
    chunk: words per chunk and device.
    keep: whether the first pass keeps exp(logit - maximum) of every word in the dtype of x, so that
      the second computes no logits. In bfloat16 this rounds each probability once more, by at most
      1 in 256. A head with a softcap keeps nothing.

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
    mesh, int(chunk), keep and head.softcap is None, _wants_ring(mesh, width, x_BLE.shape[-1]),
    head.tied, head.softcap, head.vocab_size, rows, vocabulary, width,
  )  # fmt: skip
  return _cross_entropy(shard, x_BLE, head.kernel, targets_BL)


def _wants_ring(mesh, width: tuple[str, ...], size: int) -> bool:
  """Whether the head's gradient is summed while it is computed.

  A chip with sparse cores sums it beside its products anyway; XLA for GPUs does too.
  """
  kind = chips.kind_of(device) if (device := device_in_force()) else None
  if kind is None or kind.sparse_cores is not False or len(width) != 1:
    return False
  devices = mesh.shape[width[0]]
  return devices > 2 and devices % 2 == 0 and size // devices >= RING_COLUMNS


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(shard: '_Shard', x_BLE, kernel, targets_BL):
  return dataclasses.replace(shard, keep=False).losses(x_BLE, kernel, targets_BL)[:2]


@flax.struct.dataclass
class _Kept:
  """What the backward pass needs.

  Attributes:
    x_BLE, kernel, targets_BL: arguments of the loss. log_z_BL: one of its results.
    powers: (exp(logit - maximum) [chunks, N, C], the maximum so far [chunks, N]), or None.
    wanted: whether x and the kernel get a gradient.
  """

  x_BLE: jax.Array
  kernel: jax.Array
  targets_BL: jax.Array
  log_z_BL: jax.Array
  powers: tuple[jax.Array, jax.Array] | None
  wanted: tuple[bool, bool] = flax.struct.field(pytree_node=False)


def _forward(shard: '_Shard', x_BLE, kernel, targets_BL):
  values = tuple(leaf.value for leaf in (x_BLE, kernel, targets_BL))
  loss_BL, log_z_BL, powers = shard.losses(*values)
  wanted = x_BLE.perturbed, kernel.perturbed
  return (loss_BL, log_z_BL), _Kept(*values, log_z_BL, powers, wanted)


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
    chunk, keep, tied, softcap, vocab_size: see `cross_entropy`.
    ring: whether the kernel's gradient is summed by `ring.summed_product`.
    rows, vocabulary, width: mesh axes over which tokens, words and the kernel's width are sharded.
  """

  mesh: Any
  chunk: int
  keep: bool
  ring: bool
  tied: bool
  softcap: float | None
  vocab_size: int
  rows: tuple[str, ...]
  vocabulary: tuple[str, ...]
  width: tuple[str, ...]

  def losses(self, x_BLE, kernel, targets_BL):
    """(loss [B, L], log(Z) [B, L], `_Kept.powers`) on any mesh."""
    states, of_kernel, tokens, powers = self._specs()
    return self._mapped(self._losses, (states, of_kernel, tokens), (tokens, tokens, powers))(
      x_BLE, kernel, targets_BL
    )

  def gradients(self, kept: _Kept, d_loss_BL, d_log_z_BL):
    """Gradients of x and of the kernel on any mesh, each None where it is not wanted."""
    states, of_kernel, tokens, powers = self._specs()
    out = tuple(spec if wanted else None for spec, wanted in zip((states, of_kernel), kept.wanted))
    local = functools.partial(self._gradients, wanted=kept.wanted)
    arrays = (
      kept.x_BLE, kept.kernel, kept.targets_BL, kept.log_z_BL, kept.powers, d_loss_BL, d_log_z_BL,
    )  # fmt: skip
    return self._mapped(local, (states, of_kernel, tokens, tokens, powers, tokens, tokens), out)(
      *arrays
    )

  def _specs(self):
    """Of hidden states, of the kernel, of arrays [B, L] and of `_Kept.powers`."""
    rows, vocabulary, width = (axes or None for axes in (self.rows, self.vocabulary, self.width))
    of_kernel = PartitionSpec(*(vocabulary, width)[:: 1 if self.tied else -1])
    powers = PartitionSpec(None, rows, vocabulary), PartitionSpec(None, rows)
    return (
      PartitionSpec(rows, None, None),
      of_kernel,
      PartitionSpec(rows, None),
      powers if self.keep else None,
    )

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
    log_z_N, logit_N, powers = self._log_z(chunks, target_N)
    in_vocabulary_N = (target_N >= 0) & (target_N < chunks.all_words)
    loss_N = log_z_N - jnp.where(in_vocabulary_N, logit_N, jnp.nan)
    return loss_N.reshape(targets_BL.shape), log_z_N.reshape(targets_BL.shape), powers

  def _log_z(self, chunks: '_Chunks', target_N):
    """Log-sum-exp over all words and the logit of the target, [N] each, and `_Kept.powers`."""

    def step(carry, i, part, _):
      highest_N, total_N, logit_N = carry
      word_C, is_new_C = chunks.words(i)
      _, logits_NC = chunks.logits(i, part)
      new_N = jnp.maximum(highest_N, logits_NC.max(axis=-1))
      safe_N = _finite(new_N)
      powers_NC = jnp.exp(logits_NC - safe_N[:, None])
      total_N = total_N * jnp.exp(highest_N - safe_N) + powers_NC.sum(axis=-1)
      powers = None
      if self.keep:
        # Without the barrier XLA computes the exponentials twice, for the sum and for the copy.
        powers_NC, total_N = jax.lax.optimization_barrier(
          (powers_NC.astype(chunks.x_NE.dtype), total_N)
        )  # fmt: skip
        powers = powers_NC, safe_N
      column_N = target_N - word_C[0]
      clipped_N1 = jnp.clip(column_N, 0, chunks.size - 1)[:, None]
      here_N = jnp.take_along_axis(logits_NC, clipped_N1, axis=-1)[:, 0]
      # A word that the last two chunks share is in both, in the last one as -inf.
      is_here_N = (column_N >= 0) & (column_N < chunks.size) & is_new_C[clipped_N1[:, 0]]
      return (new_N, total_N, jnp.where(is_here_N, here_N, logit_N)), powers

    lowest_N = jnp.full(target_N.shape, -jnp.inf, chunks.accumulate)
    start = lowest_N, jnp.zeros_like(lowest_N), lowest_N
    (highest_N, total_N, logit_N), powers = chunks.scan(step, start, ahead=True)
    if self.vocabulary:
      local_N, highest_N = highest_N, jax.lax.pmax(highest_N, self.vocabulary)
      scaled_N = total_N * jnp.exp(local_N - _finite(highest_N))
      total_N = jax.lax.psum(scaled_N, self.vocabulary)
      logit_N = jax.lax.pmax(logit_N, self.vocabulary)
    return jnp.log(total_N) + _finite(highest_N), logit_N, powers

  def _gradients(
    self, x_BLE, kernel, targets_BL, log_z_BL, powers, d_loss_BL, d_log_z_BL,
    *, wanted: tuple[bool, bool],
  ):  # fmt: skip
    """Second pass, on one device."""
    chunks = _Chunks(self, x_BLE.reshape(-1, x_BLE.shape[-1]), kernel)
    cotangents = _Cotangents(
      *(x.reshape(-1) for x in (targets_BL, log_z_BL, d_loss_BL, d_log_z_BL))
    )

    def step(carry, i, part, powers):
      dx_NE, d_kernel = carry
      d_NC = cotangents.of_logits(chunks, i, part, powers)
      if wanted[0]:
        dx_NE += chunks.product(f'nc,{chunks.layout}->ne', d_NC, part)
      if wanted[1]:
        d_part, start, axis = chunks.of_kernel(d_NC), chunks.start(i), chunks.words_axis
        if chunks.overlap:
          d_part += jax.lax.dynamic_slice_in_dim(d_kernel, start, chunks.size, axis)
        d_kernel = jax.lax.dynamic_update_slice_in_dim(d_kernel, d_part, start, axis)
      return (dx_NE, d_kernel), None

    start = (
      jnp.zeros(chunks.x_NE.shape, chunks.accumulate) if wanted[0] else None,
      jnp.zeros_like(kernel) if wanted[1] else None,
    )
    # The products of the kernel's gradient hide the gather of their own chunk.
    (dx_NE, d_kernel), _ = chunks.scan(step, start, powers, ahead=False)
    if wanted[0]:
      dx_NE = _over(jax.lax.psum, dx_NE, self.vocabulary).astype(x_BLE.dtype).reshape(x_BLE.shape)
    return dx_NE, d_kernel


@dataclasses.dataclass(frozen=True)
class _Cotangents:
  """Of the losses and of log(Z), [N] each, with what they belong to."""

  target_N: jax.Array
  log_z_N: jax.Array
  d_loss_N: jax.Array
  d_log_z_N: jax.Array

  def of_logits(self, chunks: '_Chunks', i, part, powers) -> jax.Array:
    """Of the logits of chunk i before any softcap, [N, C], in the dtype of x."""
    word_C, is_new_C = chunks.words(i)
    scale_N, softcap = self.d_loss_N + self.d_log_z_N, chunks.shard.softcap
    if powers is None:
      capped_NC, logits_NC = chunks.logits(i, part)
      d_NC = jnp.exp(logits_NC - self.log_z_N[:, None]) * scale_N[:, None]
    else:
      powers_NC, highest_N = powers
      scale_N *= jnp.exp(highest_N - self.log_z_N)
      d_NC = powers_NC.astype(chunks.accumulate) * scale_N[:, None]
    is_target_NC = (word_C == self.target_N[:, None]) & is_new_C
    d_NC -= jnp.where(is_target_NC, self.d_loss_N[:, None], 0)
    if softcap is not None:
      d_NC *= 1 - (capped_NC / softcap) ** 2
    # `where`, not a product: a token that does not count must not turn infinity into NaN.
    counts_N = (self.d_loss_N != 0) | (self.d_log_z_N != 0)
    return jnp.where(counts_N[:, None], d_NC, 0).astype(chunks.x_NE.dtype)


class _Chunks:
  """The vocabulary of one device in chunks of equal width.

  Attributes:
    size: words of a chunk. count: of chunks. offset: first word of this device.
    all_words: rows of the head on all devices.
    overlap: the last chunk is moved back to be as wide as the others, so it shares words with the
      one before.
  """

  def __init__(self, shard: _Shard, x_NE, kernel):
    self.shard, self.x_NE, self.kernel = shard, x_NE, kernel
    self.accumulate = accumulate = jnp.promote_types(x_NE.dtype, jnp.float32)
    self.words_axis, self.layout = (0, 'ce') if shard.tied else (1, 'ec')
    self.product = functools.partial(jnp.einsum, preferred_element_type=accumulate)
    self._words = words = kernel.shape[self.words_axis]
    axes = shard.vocabulary
    self.offset = jax.lax.axis_index(axes) * words if axes else 0
    self.all_words = words * (jax.lax.psum(1, axes) if axes else 1)
    self.size = min(words, -(-words // -(-words // shard.chunk) // 128) * 128)
    self.count, self.overlap = -(-words // self.size), bool(words % self.size)

  def scan(self, step, start, powers=None, *, ahead: bool):
    """`jax.lax.scan` of step(carry, i, kernel of chunk i, powers of chunk i) over all chunks.

    Args:
      step, start: as of `jax.lax.scan`.
      powers: `_Kept.powers`.
      ahead: gather the kernel of a chunk during the step before; two are then held at a time.
    """
    ahead = ahead and bool(self.shard.width)

    def one(carry_and_part, i_and_powers):
      (carry, part), (i, powers) = carry_and_part, i_and_powers
      following = self.part(i + 1) if ahead else None
      carry, out = step(carry, i, part if ahead else self.part(i), powers)
      return (carry, following), out

    # In pairs, so that what is gathered needs no copy to take the place of what was used.
    (carry, _), out = jax.lax.scan(
      one,
      (start, self.part(0) if ahead else None),
      (jnp.arange(self.count), powers),
      unroll=2 if ahead else 1,
    )
    return carry, out

  def start(self, i):
    """The first word of chunk i, counted on this device."""
    return jnp.minimum(i * self.size, self._words - self.size)

  def words(self, i):
    """The words of chunk i [C], and whether they are in no chunk before it [C]."""
    local_C = self.start(i) + jnp.arange(self.size)
    return self.offset + local_C, local_C >= i * self.size

  def part(self, i):
    """The kernel of chunk i in the dtype of x, gathered."""
    part = jax.lax.dynamic_slice_in_dim(self.kernel, self.start(i), self.size, self.words_axis)
    part = part.astype(self.x_NE.dtype)
    if self.shard.width:
      part = jax.lax.all_gather(part, self.shard.width, axis=1 - self.words_axis, tiled=True)
    return part

  def logits(self, i, part):
    """(capped logits [N, C], logits [N, C]) of chunk i.

    Padding words count as the lowest number, words shared with the chunk before as -inf.
    """
    softcap, (word_C, is_new_C) = self.shard.softcap, self.words(i)
    capped_NC = self.product(f'ne,{self.layout}->nc', self.x_NE, part)
    if softcap is not None:
      capped_NC = softcap * jnp.tanh(capped_NC / softcap)
    logits_NC = capped_NC
    if self.all_words > self.shard.vocab_size:
      lowest = jnp.finfo(self.accumulate).min
      logits_NC = jnp.where(word_C < self.shard.vocab_size, logits_NC, lowest)
    if self.overlap:
      logits_NC = jnp.where(is_new_C, logits_NC, -jnp.inf)
    return capped_NC, logits_NC

  def of_kernel(self, d_NC) -> jax.Array:
    """The gradient of a chunk's kernel, summed over all tokens: this device's part of it.

    Between devices it has the dtype of x, as the gradients of all other kernels.
    """
    width, unsharded = self.shard.width, set(self.shard.rows) - set(self.shard.width)
    product = lambda x_NE: self.product(f'ne,nc->{self.layout}', x_NE, d_NC)
    if self.shard.ring:
      d_part = ring.summed_product(product, self.x_NE, width[0], d_NC.dtype)
    elif width:
      d_part = jax.lax.psum_scatter(
        product(self.x_NE).astype(d_NC.dtype),
        width, scatter_dimension=1 - self.words_axis, tiled=True,
      )  # fmt: skip
    else:
      d_part = product(self.x_NE)
    return _over(jax.lax.psum, d_part, tuple(unsharded)).astype(self.kernel.dtype)


def _over(reduce, x, axes):
  return reduce(x, axes) if axes else x


def _finite(x):
  return jnp.where(jnp.isfinite(x), x, 0)
