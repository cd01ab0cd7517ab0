"""Cross-entropy straight from hidden states, some words of the vocabulary at a time: the logits of
a batch are never held.

A first pass over the head finds each token's log-sum-exp; in training a second one computes the
logits again and takes the gradients along, which the backward pass only has to scale (the loss is a
sum). That is a third more arithmetic in the head than with whole logits. Cutting the vocabulary,
not the tokens, means that every part of the head's gradient is finished when it is made: no copy of
it in f32 is added to, and on a mesh neither the head nor its gradient is ever whole on a device. Of
a frozen head no gradient is computed.

Letters: B batch, L length, E model width, V vocabulary, N tokens of a device, C words of a chunk.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from crossin_jax.models.attention.shards import axes_of, mesh_in_force

LARGE = 1 << 29  # bytes of logits on a device up to which they are held whole
CHUNK = 1 << 27  # bytes of a chunk's


def auto_chunk(rows: int, length: int, vocabulary: int, bytes_each: int = 4) -> int | None:
  """Words that a device takes at a time under the mesh in force; None where all its logits are
  small.

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

  Under a mesh with axis rules every device takes its tokens and its part of the vocabulary.

  Args:
    x_BLE: hidden states.
    head: `models.head.Head`.
    targets_BL: int.
    weights_BL: float; tokens of weight 0 do not count, whatever their loss.
    z_loss: see `losses.batch_loss`.
    chunk: words of a device at a time.

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
  """(objective [], loss [B, L], gradient of x or None, of the kernel or None), whatever the mesh."""
  z_loss, chunk, tied, softcap, vocab_size = settings
  mesh, (words_axis, width_axis) = mesh_in_force(), (0, 1) if tied else (1, 0)
  rows = axes_of('batch', x_BLE.shape[0])
  vocabulary = axes_of('vocab', kernel.shape[words_axis])
  # The kernel's width lies over some of the axes that tokens lie over: it is gathered, and its
  # gradient summed, chunk by chunk.
  width = tuple(axis for axis in axes_of('embed', kernel.shape[width_axis]) if axis in rows)
  local = functools.partial(
    _local, wanted=wanted, z_loss=z_loss, chunk=chunk, tied=tied, softcap=softcap,
    vocab_size=vocab_size, rows=rows,
    vocabulary=vocabulary, width=width,
  )  # fmt: skip
  if not rows and not vocabulary:
    return local(x_BLE, kernel, targets_BL, weights_BL)
  tokens, states = PartitionSpec(rows or None, None), PartitionSpec(rows or None, None, None)
  of_kernel = PartitionSpec(*(((vocabulary or None), (width or None))[:: 1 if tied else -1]))
  out = (PartitionSpec(), tokens, states if wanted[0] else None, of_kernel if wanted[1] else None)
  mapped = jax.shard_map(
    local, mesh=mesh, in_specs=(states, of_kernel, tokens, tokens), out_specs=out, check_vma=False
  )  # fmt: skip
  return mapped(x_BLE, kernel, targets_BL, weights_BL)


def _local(
  x_BLE,
  kernel,
  targets_BL,
  weights_BL,
  *,
  wanted,
  z_loss,
  chunk,
  tied,
  softcap,
  vocab_size,
  rows,
  vocabulary,
  width,
):
  """The same for the tokens and the part of the vocabulary that one device has."""
  accumulate = jnp.promote_types(x_BLE.dtype, jnp.float32)
  product = functools.partial(jnp.einsum, preferred_element_type=accumulate)
  over = lambda reduce, x, axes: reduce(x, axes) if axes else x
  words_axis, width_axis, layout = (0, 1, 'ce') if tied else (1, 0, 'ec')
  x_NE = x_BLE.reshape(-1, x_BLE.shape[-1])
  target_N, weight_N = targets_BL.reshape(-1), weights_BL.reshape(-1).astype(accumulate)

  words = kernel.shape[words_axis]
  offset = jax.lax.axis_index(vocabulary) * words if vocabulary else 0
  all_words = words * (jax.lax.psum(1, vocabulary) if vocabulary else 1)
  size = min(words, -(-words // -(-words // chunk) // 128) * 128)  # as even as can be
  chunks = -(-words // size)

  def logits(i):
    """Of chunk i: where it begins, its kernel, its words; logits [N, C] as capped, and as they
    count.

    The last chunk is moved back to be as wide as the others; what it has in common with the one
    before counts there.
    """
    start = jnp.minimum(i * size, words - size)
    part = jax.lax.dynamic_slice_in_dim(kernel, start, size, words_axis).astype(x_NE.dtype)
    if width:
      part = jax.lax.all_gather(part, width, axis=width_axis, tiled=True)
    word_C = start + jnp.arange(size)
    capped_NC = product(f'ne,{layout}->nc', x_NE, part)
    if softcap is not None:
      capped_NC = softcap * jnp.tanh(capped_NC / softcap)
    logits_NC, word_all_C = capped_NC, offset + word_C
    if all_words > vocab_size:
      logits_NC = jnp.where(word_all_C < vocab_size, logits_NC, jnp.finfo(accumulate).min)
    if words % size:
      logits_NC = jnp.where(word_C >= i * size, logits_NC, -jnp.inf)
    return start, part, word_all_C, capped_NC, logits_NC

  def first_pass(carry, i):
    highest_N, total_N, of_target_N = carry
    _, _, word_C, _, logits_NC = logits(i)
    new_N = jnp.maximum(highest_N, logits_NC.max(axis=-1))
    safe_N = jnp.where(jnp.isfinite(new_N), new_N, 0)
    total_N = total_N * jnp.exp(highest_N - safe_N) + jnp.exp(logits_NC - safe_N[:, None]).sum(
      axis=-1
    )
    at_N = target_N - word_C[0]
    found_N = jnp.take_along_axis(logits_NC, jnp.clip(at_N, 0, size - 1)[:, None], axis=-1)[:, 0]
    # Twice in the common part of the last two chunks, once of them as -inf.
    here_N = (at_N >= 0) & (at_N < size) & (target_N - offset >= i * size)
    return (new_N, total_N, jnp.where(here_N, found_N, of_target_N)), None

  lowest_N = jnp.full(target_N.shape, -jnp.inf, accumulate)
  start = (lowest_N, jnp.zeros_like(lowest_N), lowest_N)
  (highest_N, total_N, of_target_N), _ = jax.lax.scan(first_pass, start, jnp.arange(chunks))
  if vocabulary:
    mine_N, highest_N = highest_N, jax.lax.pmax(highest_N, vocabulary)
    safe_N = jnp.where(jnp.isfinite(highest_N), highest_N, 0)
    total_N = jax.lax.psum(total_N * jnp.exp(mine_N - safe_N), vocabulary)
    of_target_N = jax.lax.pmax(of_target_N, vocabulary)
  safe_N = jnp.where(jnp.isfinite(highest_N), highest_N, 0)
  log_z_N = jnp.log(total_N) + safe_N
  known_N = (target_N >= 0) & (target_N < all_words)
  loss_N = log_z_N - jnp.where(known_N, of_target_N, jnp.nan)
  # where, not a bare product: a token without weight must not turn an infinite loss into NaN.
  counts_N = weight_N != 0
  objective_N = jnp.where(
    counts_N, weight_N * (loss_N + z_loss * log_z_N**2 if z_loss else loss_N), 0
  )
  objective = over(jax.lax.psum, objective_N.sum(), rows)
  loss_BL = loss_N.reshape(targets_BL.shape)
  if not any(wanted):
    return objective, loss_BL, None, None

  def second_pass(carry, i):
    dx_NE, d_kernel = carry
    start, part, word_C, capped_NC, logits_NC = logits(i)
    d_NC = jnp.exp(logits_NC - log_z_N[:, None]) * (weight_N * (1 + 2 * z_loss * log_z_N))[:, None]
    d_NC -= jnp.where((word_C == target_N[:, None]) & jnp.isfinite(logits_NC), weight_N[:, None], 0)
    if softcap is not None:
      d_NC *= 1 - (capped_NC / softcap) ** 2
    d_NC = jnp.where(counts_N[:, None], d_NC, 0).astype(x_NE.dtype)
    if wanted[0]:
      dx_NE += product(f'nc,{layout}->ne', d_NC, part)
    if wanted[1]:
      d_part = product(f'ne,nc->{layout}', x_NE, d_NC)
      if width:
        d_part = jax.lax.psum_scatter(d_part, width, scatter_dimension=width_axis, tiled=True)
      d_part = over(jax.lax.psum, d_part, tuple(axis for axis in rows if axis not in width)).astype(
        kernel.dtype
      )
      if words % size:
        d_part += jax.lax.dynamic_slice_in_dim(d_kernel, start, size, words_axis)
      d_kernel = jax.lax.dynamic_update_slice_in_dim(d_kernel, d_part, start, words_axis)
    return (dx_NE, d_kernel), None

  start = (
    jnp.zeros(x_NE.shape, accumulate) if wanted[0] else None,
    jnp.zeros_like(kernel) if wanted[1] else None,
  )
  (dx_NE, d_kernel), _ = jax.lax.scan(second_pass, start, jnp.arange(chunks))
  if wanted[0]:
    dx_NE = over(jax.lax.psum, dx_NE, vocabulary).astype(x_BLE.dtype).reshape(x_BLE.shape)
  return objective, loss_BL, dx_NE, d_kernel
