"""Runs a single-device kernel on every device, over the local rows and heads.

Letters: B batch, T query length, S key length, H query heads, K key/value heads, D head size.
"""

from collections.abc import Callable
import math
import warnings

from flax.linen import partitioning as nn_partitioning
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from crossin_jax.models.attention.mask import Mask


def mesh_in_force() -> jax.sharding.AbstractMesh | jax.sharding.Mesh:
  """The mesh of `jax.set_mesh`, or of `with mesh:` in T5X; empty if there is none."""
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty:
    return mesh
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', DeprecationWarning)
      from jax.interpreters import pxla

      return pxla.thread_resources.env.physical_mesh
  except (ImportError, AttributeError):
    return mesh


def device_in_force():
  """What the mesh in force knows of its devices, with `device_kind`; None if there is no mesh."""
  return getattr(jax.sharding.get_abstract_mesh(), 'abstract_device', None)


def platform() -> str:
  """'tpu', 'gpu' or 'cpu', of the mesh in force (it may be abstract), or else of this machine."""
  device = device_in_force()
  name = getattr(device, 'platform', None) or (
    'tpu' if 'TPU' in str(getattr(device, 'device_kind', '')) else None
  )
  name = name or jax.default_backend()
  return 'gpu' if name in ('cuda', 'rocm') else name


def axes_of(logical: str, size: int) -> tuple[str, ...]:
  """Mesh axes that shard a dimension by the rules in force, without those that do not divide it."""
  mesh = mesh_in_force()
  if mesh.empty or not nn_partitioning.get_axis_rules():
    return ()
  axis = nn_partitioning.logical_to_mesh_axes((logical,))[0]
  chosen: tuple[str, ...] = ()
  for name in axis if isinstance(axis, tuple) else (axis,) if axis else ():
    if size % math.prod(mesh.shape[a] for a in (*chosen, name)) == 0:
      chosen = (*chosen, name)
  return tuple(name for name in chosen if mesh.shape[name] > 1)


def per_device(
  kernel: Callable,
  q_BTHD: jax.Array,
  k_BSKD: jax.Array,
  v_BSKD: jax.Array,
  mask: Mask,
  sinks_H: jax.Array | None = None,
) -> jax.Array:
  """kernel(q, k, v, mask, sinks) over the global batch and all heads, without communication.

  Repeats key/value heads if there are fewer of them than shards of heads.
  """
  mesh = mesh_in_force()
  rows, heads = axes_of('batch', q_BTHD.shape[0]), axes_of('heads', q_BTHD.shape[2])
  if not rows and not heads:
    return kernel(q_BTHD, k_BSKD, v_BSKD, mask, sinks_H)
  parts, key_heads = math.prod(mesh.shape[axis] for axis in heads), k_BSKD.shape[2]
  if key_heads % parts:
    times = parts // math.gcd(parts, key_heads)
    if q_BTHD.shape[2] % (key_heads * times):
      heads = ()
    else:
      k_BSKD, v_BSKD = jnp.repeat(k_BSKD, times, axis=2), jnp.repeat(v_BSKD, times, axis=2)
  spec = PartitionSpec(rows or None, None, heads or None, None)
  of_mask = jax.tree.map(
    lambda x: PartitionSpec(rows if len(x) == q_BTHD.shape[0] and rows else None, None), mask
  )
  of_inputs = (spec, spec, spec, of_mask, PartitionSpec(heads or None))
  mapped = jax.shard_map(kernel, mesh=mesh, in_specs=of_inputs, out_specs=spec, check_vma=False)
  return mapped(q_BTHD, k_BSKD, v_BSKD, mask, sinks_H)
