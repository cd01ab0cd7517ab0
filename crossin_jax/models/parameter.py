"""A parameter with logical axes."""

from collections.abc import Callable

from flax import linen as nn
from flax.linen import partitioning
import jax

from crossin_jax.models.product import Transposed


def parameter(
  module: nn.Module,
  name: str,
  init: Callable,
  shape: tuple[int, ...],
  dtype,
  *,
  axes: tuple[str | None, ...],
) -> jax.Array:
  """`flax.linen.partitioning.param_with_axes`, without tracing the initialiser of what is there.

  Flax traces it at every call, to compare the shapes; for a small model that is half of the time
  that tracing takes.

  Args:
    module: whose parameter it is.
    name: its name in the module.
    init: (key, shape, dtype) -> the first value.
    shape, dtype: of the first value.
    axes: logical name of every axis.

  Returns:
    The value, constrained to its axes; a frozen kernel may be quantised, or of a decoding model
    `Transposed`.

  Raises:
    ValueError: the value that is there has another shape.
  """
  if not module.has_variable('params', name):
    return partitioning.param_with_axes(name, init, shape, dtype, axes=axes, module=module)
  value = module.get_variable('params', name)
  if isinstance(value, jax.Array) and value.shape != shape:
    raise ValueError(f'{module.name}/{name} has shape {value.shape}; the model needs {shape}')
  if isinstance(value, Transposed):
    axes = axes[::-1]
  return partitioning.with_sharding_constraint(value, jax.sharding.PartitionSpec(*axes))
