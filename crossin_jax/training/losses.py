"""Token losses as sums over everything, divided once at the end.

Letters: B batch, L length, V vocabulary, T tasks of the mixture.
"""

import functools
from typing import Any

import flax.struct
import gin
import jax
import jax.numpy as jnp

from crossin_jax.models.experts import ROUTER
from crossin_jax.training import chunked_loss, router
from crossin_jax.training.router import RouterSums


@functools.lru_cache(maxsize=8)
def weighted_losses(model, replicated):
  """A jitted (params, batch) -> float [B, L], weighted token losses, replicated."""

  def compute(params, batch):
    return weighted(batch['decoder_loss_weights'], cross_entropy(model, params, batch)[0])

  return jax.jit(compute, out_shardings=replicated)


@flax.struct.dataclass
class LossSums:
  """Sums over tokens; the loss over two parts is the quotient of the added sums.

  Attributes:
    loss: float [], sum of weighted token losses, without z-loss.
    weight: float [], sum of loss weights.
    tokens: float [], tokens that are not padding.
    loss_by_task: float [T]; weight_by_task: float [T].
    router: sums of the routers; None for a model without experts.
    pairs: for objectives of preference pairs name -> float [T], the number of pairs and the sums of
      the objective's figures over them; then loss and weight are sums over pairs and rows, see
      `objectives`. None for the likelihood.
  """

  loss: jax.Array
  weight: jax.Array
  tokens: jax.Array
  loss_by_task: jax.Array
  weight_by_task: jax.Array
  router: RouterSums | None = None
  pairs: dict[str, jax.Array] | None = None

  def __add__(self, other: 'LossSums') -> 'LossSums':
    return jax.tree.map(jnp.add, self, other)


def token_losses(logits_BLV: jax.Array, targets_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy of each token in nats, and log(Z) of the softmax; both [B, L], at least f32."""
  log_z_BL = jax.nn.logsumexp(logits_BLV, axis=-1)
  target_logit_BL = jnp.take_along_axis(logits_BLV, targets_BL[..., None], axis=-1)[..., 0]
  return log_z_BL - target_logit_BL, log_z_BL


def apply_model(
  model,
  params: Any,
  batch: dict[str, jax.Array],
  dropout_key: jax.Array | None = None,
  hidden: bool = False,
) -> tuple[Any, RouterSums | None]:
  """Logits [B, L, V] of a packed batch, and what the routers did.

  Args:
    model, params, batch: as in `batch_loss`.
    dropout_key: None = no dropout.
    hidden: return hidden states and head (`Decoder.hidden`) in place of logits.
  """
  tokens = [batch['decoder_input_tokens']] + [batch['decoder_target_tokens']] * (not hidden)
  has_experts = bool(getattr(getattr(model, 'config', None), 'num_experts', 0))
  output = model.apply(
    {'params': params},
    *tokens,
    decoder_segment_ids=batch['decoder_segment_ids'],
    decoder_positions=batch['decoder_positions'],
    **({'decoder_branches': batch['decoder_branches']} if 'decoder_branches' in batch else {}),
    enable_dropout=dropout_key is not None,
    rngs=None if dropout_key is None else {'dropout': dropout_key},
    method='hidden' if hidden else None,
    mutable=[ROUTER] if has_experts else False,
  )
  return (output[0], router.sums_of(output[1])) if has_experts else (output, None)


@gin.configurable(allowlist=['chunk', 'keep'])
def cross_entropy(
  model,
  params: Any,
  batch: dict[str, jax.Array],
  dropout_key: jax.Array | None = None,
  chunk: int | str | None = 'auto',
  keep: bool | str = 'auto',
) -> tuple[jax.Array, jax.Array, RouterSums | None]:
  """The loss of each token, log(Z) of its softmax, and what the routers did; all have gradients.

  Args:
    model, params, batch, dropout_key: as in `batch_loss`.
    chunk: words of a device's vocabulary per chunk; None = all logits at once; 'auto' = all at once
      up to 512 MiB per device, else chunks of 128 MiB. A model without `hidden` and `config` (see
      `Decoder`) always computes all logits.
    keep: whether chunks keep the probabilities for the backward pass, in the dtype of hidden
      states: True, False = compute the logits twice, a third more arithmetic in the head; 'auto' =
      keep up to 2 GiB per device. See `chunked_loss.cross_entropy`.

  Returns:
    [B, L] in nats, f32 or wider, also for tokens without weight; [B, L] likewise; sums of the
    routers, or None.

  Raises:
    ValueError: a chunk or a keep that is none of these.
  """
  if chunk is not None and chunk != 'auto' and not (isinstance(chunk, int) and chunk > 0):
    raise ValueError(
      f"cross_entropy.chunk = {chunk!r} is neither 'auto' nor None nor a number of words above 0"
    )
  if keep not in (True, False, 'auto'):
    raise ValueError(f"cross_entropy.keep = {keep!r} is none of True, False and 'auto'")
  targets_BL = batch['decoder_target_tokens']
  config = getattr(model, 'config', None)
  if config is None or not hasattr(model, 'hidden'):
    chunk = None
  else:
    chunk, keep = chunked_loss.chosen(config, *targets_BL.shape, chunk, keep)
  output, of_router = apply_model(model, params, batch, dropout_key, hidden=chunk is not None)
  if chunk is not None:
    each = chunked_loss.cross_entropy(*output, targets_BL, chunk=chunk, keep=keep)
    return *each, of_router
  return *token_losses(output, targets_BL), of_router


def weighted(weight_BL: jax.Array, x_BL: jax.Array) -> jax.Array:
  """weight x value, and 0 where the weight is 0, whatever the value there and its gradient are."""
  weight_BL = weight_BL.astype(x_BL.dtype)
  # Two `where`: a token of weight 0 must not turn infinity into NaN, nor a gradient of 0 times it.
  return jnp.where(weight_BL != 0, jnp.where(weight_BL != 0, x_BL, 0) * weight_BL, 0)


def summed_loss(
  model,
  params: Any,
  batch: dict[str, jax.Array],
  z_loss: float = 0.0,
  dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, RouterSums | None]:
  """The sum of weight x (cross-entropy + z_loss x log(Z)^2), to differentiate.

  Args:
    model, params, batch, z_loss, dropout_key: as in `batch_loss`.

  Returns:
    Scalar, with the losses of the routers; the loss of each token [B, L], and the sums of the
    routers, or None, both without gradient.
  """
  loss_BL, log_z_BL, of_router = cross_entropy(model, params, batch, dropout_key)
  weight_BL = batch['decoder_loss_weights']
  objective = weighted(weight_BL, loss_BL).sum()
  if z_loss:
    # Masked before it is squared: the square's gradient is infinite where log(Z) is.
    log_z_BL = jnp.where(weight_BL != 0, log_z_BL, 0)
    objective += z_loss * weighted(weight_BL, log_z_BL**2).sum()
  objective += router_loss(model, of_router, weight_BL.sum())
  return objective, jax.lax.stop_gradient(loss_BL), jax.lax.stop_gradient(of_router)


def router_loss(model, of_router: RouterSums | None, denominator: jax.Array) -> jax.Array | float:
  """What the routers add to a sum that `denominator` divides later: their losses are means."""
  config = getattr(model, 'config', None)
  if of_router is None or not (config.router_loss or config.router_z_loss):
    return 0.0
  return router.objective(of_router, config.router_loss, config.router_z_loss) * denominator


def batch_loss(
  model,
  params: Any,
  batch: dict[str, jax.Array],
  tasks: int,
  z_loss: float = 0.0,
  dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, LossSums]:
  """Sum of weighted token losses of a (micro)batch, undivided.

  Args:
    model: called as `Decoder` is.
    params: its parameters.
    batch: features of `crossin_jax.data.stream`, [B, L] each.
    tasks: T, number of tasks in `decoder_task_ids`.
    z_loss: factor on log(Z)^2 in the objective (PaLM, section 5); 0 = none.
    dropout_key: None = no dropout.

  Returns:
    The scalar to differentiate, and the sums.
  """
  objective, loss_BL, of_router = summed_loss(model, params, batch, z_loss, dropout_key)
  weight_BL = batch['decoder_loss_weights'].astype(loss_BL.dtype)
  weighted_BL = weighted(weight_BL, loss_BL)
  by_task = lambda x_BL: jnp.zeros(tasks, x_BL.dtype).at[batch['decoder_task_ids']].add(x_BL)
  sums = LossSums(
    loss=weighted_BL.sum(),
    weight=weight_BL.sum(),
    tokens=(batch['decoder_segment_ids'] > 0).sum().astype(loss_BL.dtype),
    loss_by_task=by_task(weighted_BL),
    weight_by_task=by_task(weight_BL),
    router=of_router,
  )
  return objective, jax.lax.stop_gradient(sums)
