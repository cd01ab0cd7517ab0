"""The device mesh, and the mapping of logical axes to mesh axes."""

import contextlib
import math

import flax.core
from flax.linen import partitioning as nn_partitioning
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from crossin_jax import config
from crossin_jax.devices import chips, meshes
from crossin_jax.models.decoder_config import DecoderConfig
from crossin_jax.processes import platforms

MESH_AXES = (*meshes.AXES, meshes.EXPERT)


@config.configurable(commands=('train', 'chunks', 'evaluate'))
def standard_logical_axis_rules() -> tuple[tuple[str, object], ...]:
  """T5X's canonical logical axes on this project's mesh axes.

  Parameters are sharded along `embed` over `fsdp` and along heads, MLP and vocabulary over
  `tensor`, experts over `expert`; batches over `data`, `fsdp` and `expert`. A T5X rule list also
  works: `model` means `tensor`.
  """
  return (
    ('batch', ('data', 'fsdp', 'expert')), ('expert', 'expert'), ('vocab', 'tensor'),
    ('embed', 'fsdp'), ('mlp', 'tensor'), ('heads', 'tensor'), ('joined_kv', 'tensor'),
    ('kv', None), ('length', None), ('layers', None), ('embed_activation', None),
  )  # fmt: skip


@config.configurable(commands=('train', 'chunks', 'evaluate'))
class Partitioner:
  """A mesh over all devices of all processes, and its shardings.

  Attributes:
    mesh: axes 'data', 'fsdp', 'tensor', and 'expert' if mesh_shape has four sizes.
    rules: logical axis -> mesh axis, mesh axes or None.
  """

  def __init__(self, mesh_shape=(1, -1, 1), logical_axis_rules=None, devices=None, platform=None):
    """Args:
      mesh_shape: sizes of data, fsdp and tensor, and of expert where a mixture of experts is
        sharded by experts; one may be -1 (all remaining devices). Or 'auto': `suit` chooses them by
        model, batch and device memory; until then parameters are sharded over all devices of a
        slice.
      logical_axis_rules: rule list; None = `standard_logical_axis_rules()`.
      devices: None = all.
      platform: 'cpu', 'gpu' or 'tpu' to require it; None = JAX's default.

    Raises:
      NoDevice: of that platform. ValueError: sizes that do not multiply to the number of devices,
        or a rule that names no mesh axis.
    """
    try:
      devices = list(jax.devices(platform) if devices is None else devices)
    except (RuntimeError, AssertionError) as error:
      if platform is None:
        raise platforms.explained(error) or error from None
      raise platforms.NoDevice(f'Partitioner.platform = {platform!r}', platform) from None
    self._devices, self._auto = devices, mesh_shape == 'auto'
    if self._auto:
      slices = chips.slices_of(devices)
      mesh_shape = (slices, len(devices) // slices, 1)
    self._arrange(_full_shape(mesh_shape, devices))
    self.rules = tuple(
      (name, self._present(_renamed(axis)))
      for name, axis in (logical_axis_rules or standard_logical_axis_rules())
    )
    for name, axis in self.rules:
      for part in _parts(axis):
        if part not in MESH_AXES:
          raise ValueError(
            f'logical axis rule ({name!r}, {axis!r}): {part!r} is not one of {MESH_AXES} (or '
            "T5X's model)"
          )

  def suit(self, model, *, batch_size: int | None = None, training: bool = True) -> str | None:
    """Chooses the mesh for a model if mesh_shape = 'auto'; call it before sharding any array.

    Args:
      model: with a `DecoderConfig` as `config`; for others the mesh stays the same.
      batch_size: rows of one step; None = any.
      training: False for inference.

    Returns:
      The choice and its reason; None if mesh_shape has sizes.

    Raises:
      ValueError: the batch cannot be divided among the devices.
    """
    config = getattr(model, 'config', None)
    if not self._auto or not isinstance(config, DecoderConfig):
      return None
    shape, why = meshes.auto_shape(
      config,
      len(self._devices),
      chips.memory_of(self._devices[0]),
      slices=chips.slices_of(self._devices),
      training=training,
      batch_size=batch_size,
    )
    self._arrange(shape)
    return f'mesh data {shape[0]}, fsdp {shape[1]}, tensor {shape[2]}: {why}'

  def _arrange(self, shape: tuple[int, ...]) -> None:
    arranged = meshes.arranged(self._devices, shape)
    self.mesh = Mesh(arranged, MESH_AXES[: len(shape)], axis_types=(AxisType.Auto,) * len(shape))

  def _present(self, axis):
    """The mesh axes of a rule without `expert` where the mesh has none."""
    if meshes.EXPERT in self.mesh.shape:
      return axis
    if isinstance(axis, tuple):
      return tuple(part for part in axis if part != meshes.EXPERT)
    return None if axis == meshes.EXPERT else axis

  @contextlib.contextmanager
  def activate(self):
    """A context in which the model's sharding constraints refer to this mesh and these rules."""
    with jax.set_mesh(self.mesh), nn_partitioning.axis_rules(self.rules):
      yield self

  @property
  def on_cpu(self) -> bool:
    """Whether the devices are CPUs."""
    return self.mesh.devices.flat[0].platform == 'cpu'

  @property
  def batch_ways(self) -> int:
    """Number of parts of a sharded batch."""
    return self._ways(dict(self.rules).get('batch'))

  @property
  def batch_sharding(self) -> NamedSharding:
    """Sharding of arrays [batch, length]."""
    return self.sharding(('batch', 'length'))

  @property
  def replicated(self) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(self.mesh, PartitionSpec())

  def sharding(self, logical_axes) -> NamedSharding:
    """Sharding of an array with these logical axes; unknown names are not sharded."""
    return NamedSharding(
      self.mesh, nn_partitioning.logical_to_mesh_axes(tuple(logical_axes), self.rules)
    )

  def divisible(self, spec, shape: tuple[int, ...]) -> list:
    """The mesh axes of each dimension of `shape`; None where they do not divide its size."""
    spec = [*spec, *[None] * (len(shape) - len(spec))]
    return [None if size % self._ways(axis) else axis for axis, size in zip(spec, shape)]

  def _ways(self, axis) -> int:
    return math.prod(self.mesh.shape[part] for part in _parts(axis))

  def parameter_shardings(self, params_axes, params):
    """Shardings of a parameter tree, from its `params_axes` collection.

    A dimension that the mesh axis does not divide, such as an odd vocabulary, is not sharded.
    """
    names = flax.core.unfreeze(nn_partitioning.get_axis_names(params_axes))
    of_leaf = lambda axes, leaf: NamedSharding(
      self.mesh, PartitionSpec(*self.divisible(self.sharding(axes).spec, leaf.shape))
    )
    return jax.tree.map(of_leaf, names, params, is_leaf=lambda x: isinstance(x, PartitionSpec))


def _full_shape(mesh_shape, devices) -> tuple[int, ...]:
  """`mesh_shape` with -1 replaced; ValueError if it does not fit the devices."""
  shape = list(mesh_shape)
  if (
    len(shape) not in (3, 4)
    or shape.count(-1) > 1
    or any(not isinstance(s, int) or s < 1 and s != -1 for s in shape)
  ):
    raise ValueError(
      f'Partitioner.mesh_shape = {mesh_shape!r}: three or four sizes for {MESH_AXES}, one of them '
      "may be -1; or 'auto'"
    )
  known = math.prod(s for s in shape if s > 0)
  if -1 in shape and len(devices) % known == 0:
    shape[shape.index(-1)] = len(devices) // known
  if math.prod(shape) != len(devices):
    raise ValueError(
      f'Partitioner.mesh_shape = {tuple(mesh_shape)} does not fit {len(devices)} '
      f'{devices[0].platform} devices; the sizes of {", ".join(MESH_AXES[: len(shape)])} must '
      'multiply to that number'
    )
  return tuple(shape)


def _parts(axis) -> tuple[str, ...]:
  return axis if isinstance(axis, tuple) else (axis,) if axis else ()


def _renamed(axis):
  if isinstance(axis, (tuple, list)):
    return tuple(_renamed(part) for part in axis)
  return 'tensor' if axis == 'model' else axis
