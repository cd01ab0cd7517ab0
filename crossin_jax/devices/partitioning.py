"""The device mesh, and which logical axis lies on which mesh axis."""

import contextlib
import os

import flax.core
from flax.linen import partitioning as nn_partitioning
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from crossin_jax import config
from crossin_jax.devices import chips, meshes
from crossin_jax.models.decoder_config import DecoderConfig

MESH_AXES = meshes.AXES


@config.configurable(commands=('train', 'chunks'))
def standard_logical_axis_rules() -> tuple[tuple[str, object], ...]:
  """T5X's canonical logical axes on this project's mesh axes.

  Parameters are cut along `embed` over `fsdp` and along heads, MLP and vocabulary over `tensor`;
  batches over `data` and `fsdp`. A T5X rule list may be given instead: `model` is read as `tensor`.
  """
  return (
    ('batch', ('data', 'fsdp')),
    ('vocab', 'tensor'),
    ('embed', 'fsdp'),
    ('mlp', 'tensor'),
    ('heads', 'tensor'),
    ('joined_kv', 'tensor'),
    ('kv', None),
    ('length', None),
    ('layers', None),
    ('embed_activation', None),
  )


@config.configurable(commands=('train', 'chunks'))
class Partitioner:
  """A mesh over all devices of all processes, and the shardings that follow from it.

  Attributes:
    mesh: axes 'data', 'fsdp', 'tensor'.
    rules: logical axis -> mesh axis, mesh axes or None.
  """

  def __init__(self, mesh_shape=(1, -1, 1), logical_axis_rules=None, devices=None, platform=None):
    """Args:
      mesh_shape: sizes of data, fsdp and tensor, of which one may be -1 (all devices that are
        left); or 'auto': chosen by `suit` from model, batch and device memory, and until then
        parameters are cut over all devices of a slice.
      logical_axis_rules: rule list; None = `standard_logical_axis_rules()`.
      devices: which; None = all of them.
      platform: 'cpu', 'gpu' or 'tpu' to insist on that kind; None = what JAX finds.

    Raises:
      ValueError: no device of that platform, sizes that do not multiply to the number of devices,
        or a rule that names no mesh axis.
    """
    try:
      devices = list(jax.devices(platform) if devices is None else devices)
    except RuntimeError as error:
      wanted = platform or os.environ.get('JAX_PLATFORMS', 'any')
      raise ValueError(
        f'no device of the kind asked for ({wanted}): {str(error).splitlines()[0]} Install the '
        'extra for it '
        "(pip install 'crossin-jax[tpu]' or '[cuda]'), or unset JAX_PLATFORMS and "
        'Partitioner.platform'
      ) from None
    self._devices, self._auto = devices, mesh_shape == 'auto'
    if self._auto:
      slices = chips.slices_of(devices)
      mesh_shape = (slices, len(devices) // slices, 1)
    shape = list(mesh_shape)
    if (
      len(shape) != 3
      or shape.count(-1) > 1
      or any(not isinstance(s, int) or s < 1 and s != -1 for s in shape)
    ):
      raise ValueError(
        f'Partitioner.mesh_shape = {mesh_shape!r}: three sizes for {MESH_AXES}, one of them may '
        "be -1; or 'auto'"
      )
    known = int(np.prod([s for s in shape if s > 0]))
    if -1 in shape and len(devices) % known == 0:
      shape[shape.index(-1)] = len(devices) // known
    if int(np.prod(shape)) != len(devices):
      raise ValueError(
        f'Partitioner.mesh_shape = {tuple(mesh_shape)} does not fit {len(devices)} '
        f'{devices[0].platform} devices; '
        'the sizes of data, fsdp and tensor must multiply to that number'
      )
    self._arrange(tuple(shape))
    self.rules = tuple(
      (name, _renamed(axis)) for name, axis in (logical_axis_rules or standard_logical_axis_rules())
    )
    for name, axis in self.rules:
      for part in axis if isinstance(axis, tuple) else (axis,):
        if part is not None and part not in MESH_AXES:
          raise ValueError(
            f'logical axis rule ({name!r}, {axis!r}): {part!r} is not one of {MESH_AXES} (or '
            "T5X's model)"
          )

  def suit(self, model, *, batch_size: int | None = None, training: bool = True) -> str | None:
    """With mesh_shape = 'auto', chooses the mesh for a model; to be called before anything lies on
    it.

    Args:
      model: with a `DecoderConfig` as `config`; for others the mesh stays.
      batch_size: rows that are computed at once, None = any.
      training: or inference alone.

    Returns:
      What was chosen and why; None where the sizes were given.

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

  def _arrange(self, shape: tuple[int, int, int]) -> None:
    arranged = meshes.arranged(self._devices, shape)
    self.mesh = Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * 3)

  @contextlib.contextmanager
  def activate(self):
    """Inside it, the model's sharding constraints mean this mesh and these rules."""
    with jax.set_mesh(self.mesh), nn_partitioning.axis_rules(self.rules):
      yield self

  @property
  def batch_ways(self) -> int:
    """Into how many parts a batch is cut."""
    rules = dict(self.rules)
    axes = rules.get('batch') or ()
    return int(
      np.prod([self.mesh.shape[a] for a in (axes if isinstance(axes, tuple) else (axes,))])
    )

  @property
  def batch_sharding(self) -> NamedSharding:
    """Of arrays [batch, length]."""
    return self.sharding(('batch', 'length'))

  @property
  def replicated(self) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(self.mesh, PartitionSpec())

  def sharding(self, logical_axes) -> NamedSharding:
    """Of an array with these logical axes; unknown names are not cut."""
    return NamedSharding(
      self.mesh, nn_partitioning.logical_to_mesh_axes(tuple(logical_axes), self.rules)
    )

  def parameter_shardings(self, params_axes, params):
    """Shardings of a parameter tree from its `params_axes` collection.

    A dimension that the mesh axis does not divide (an odd vocabulary, say) is not cut.
    """
    names = flax.core.unfreeze(nn_partitioning.get_axis_names(params_axes))

    def of_leaf(axes, leaf):
      spec = list(self.sharding(axes).spec) + [None] * (len(leaf.shape) - len(axes))
      for i, axis in enumerate(spec):
        parts = axis if isinstance(axis, tuple) else (axis,) if axis else ()
        if leaf.shape[i] % int(np.prod([self.mesh.shape[p] for p in parts])):
          spec[i] = None
      return NamedSharding(self.mesh, PartitionSpec(*spec))

    return jax.tree.map(of_leaf, names, params, is_leaf=lambda x: isinstance(x, PartitionSpec))


def _renamed(axis):
  if isinstance(axis, (tuple, list)):
    return tuple(_renamed(part) for part in axis)
  return 'tensor' if axis == 'model' else axis
