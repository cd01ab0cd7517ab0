"""Losses and metrics of the router of a mixture of experts.

Letters: X experts, K experts of a token.
"""

from collections.abc import Mapping

from flax import traverse_util
import flax.struct
import jax
import jax.numpy as jnp

from crossin_jax.models.experts import ROUTER


@flax.struct.dataclass
class RouterSums:
  """Sums over the real tokens of all layers.

  Attributes:
    chosen_X: float, times that each expert was chosen.
    probability_X: float, sum of the router's probabilities.
    squared_log_z: float [], sum of the squared log(Z) of the router's softmax.
    tokens: float [], tokens times layers.
  """

  chosen_X: jax.Array
  probability_X: jax.Array
  squared_log_z: jax.Array
  tokens: jax.Array


def sums_of(variables: Mapping) -> RouterSums:
  """Collects what all layers sowed in the collection `experts.ROUTER`."""
  total: dict[str, jax.Array] = {}
  for path, leaf in traverse_util.flatten_dict(variables[ROUTER]).items():
    # With a scan the layers are stacked.
    value = leaf.reshape(-1, leaf.shape[-1]).sum(0) if _of_experts(path) else leaf.sum()
    total[path[-1]] = total.get(path[-1], 0) + value
  names = ('chosen', 'probability', 'squared_log_z', 'tokens')
  return RouterSums(*(total[name] for name in names))


def _of_experts(path: tuple[str, ...]) -> bool:
  return path[-1] in ('chosen', 'probability')


def balance_loss(sums: RouterSums) -> jax.Array:
  """X times the sum over experts of share of choices x mean probability; K if all are even.

  Fedus et al. 2021, equations 4 to 6, over the tokens of all layers together, as in transformers'
  `load_balancing_loss_func`.
  """
  tokens = jnp.maximum(sums.tokens, 1)
  experts = sums.chosen_X.shape[0]
  return experts * jnp.sum(sums.chosen_X / tokens * sums.probability_X / tokens)


def objective(sums: RouterSums, router_loss: float, router_z_loss: float) -> jax.Array:
  """What the router adds to the mean loss, see `DecoderConfig.router_loss` and `router_z_loss`."""
  z_loss = sums.squared_log_z / jnp.maximum(sums.tokens, 1)
  return router_loss * balance_loss(sums) + router_z_loss * z_loss
