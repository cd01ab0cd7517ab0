"""This project's optimizers as T5X optimizers."""

import jax
import optax

from crossin_jax.models import lora
from crossin_jax.training import optimizers


def transform(
  optimizer: optimizers.Optimizer, adapters: lora.LoraConfig | None
) -> optax.GradientTransformation:
  """The optax transform of a whole parameter tree: with LoRA, what is frozen stays as it is, bit
  for bit.

  Not `optax.masked`, which adds raw gradients to what it leaves out.
  """
  if adapters is None:
    return optimizer.transform

  def labels(params):
    of_path = lambda path, _: (
      'train' if lora.is_trained(tuple(key.key for key in path), adapters) else 'freeze'
    )
    return jax.tree_util.tree_map_with_path(of_path, params)  # T5X's FrozenDict stays one

  return optax.multi_transform(
    {'train': optimizer.transform, 'freeze': optax.set_to_zero()}, labels
  )


def wrapped(optimizer: optimizers.Optimizer, adapters: lora.LoraConfig | None = None):
  """Wraps an optimizer of this project in the OptaxWrapper of T5X."""
  from t5x import optimizers as t5x_optimizers

  register_state_rules(t5x_optimizers.OptaxStatePartitionRules)
  return t5x_optimizers.OptaxWrapper(transform(optimizer, adapters))


def register_state_rules(rules) -> None:
  """Describes the sharding of the Adafactor state to T5X.

  Args:
    rules: T5X's OptaxStatePartitionRules.
  """

  def of_factored(state, params_axes):
    nothing = lambda tree: jax.tree.map(lambda _: None, tree)
    # A moment with the shape of its parameter has the same sharding; factored moments are small
    # and replicated.
    of_moment = lambda axes, v: (
      v if isinstance(v, optax.MaskedNode) else axes if len(axes) == v.ndim else None
    )
    v = jax.tree.map(of_moment, params_axes, state.v, is_leaf=lambda leaf: isinstance(leaf, tuple))
    return optax.FactoredState(None, nothing(state.v_row), nothing(state.v_col), v)

  rules._RULES.setdefault(optax.FactoredState, of_factored)  # T5X has no other way
