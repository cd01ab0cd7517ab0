"""The sizes of the mesh axes for a model, and the arrangement of devices in the mesh."""

from collections.abc import Sequence
import math

import jax
from jax.experimental import mesh_utils
import numpy as np

from crossin_jax.devices import chips, flops
from crossin_jax.models.decoder_config import DecoderConfig

AXES = ('data', 'fsdp', 'tensor')
EXPERT = 'expert'  # a fourth axis
# Fraction of a device's memory for parameters, gradients and optimizer state; activations and XLA's
# scratch space take the rest.
STATE_SHARE = 0.5


def state_bytes(config: DecoderConfig, training: bool) -> float:
  """Bytes of parameters and, in training, of gradients and two moments, all float32.

  Frozen parameters count in their own dtype.
  """
  parameters = flops.matrix_parameters(config) + (
    0 if config.tie_embeddings else config.padded_vocab_size * config.embed_dim
  )
  if config.lora is None:
    return parameters * (16 if training else 4)
  trained = flops.adapter_parameters(config)
  if config.lora.train_embeddings:
    trained += 2 * config.padded_vocab_size * config.embed_dim
  size = {'float32': 4, 'bfloat16': 2, 'int8': 1, 'nf4': 0.5}[config.lora.base_dtype]
  return parameters * size + trained * (16 if training else 4)


def auto_shape(
  config: DecoderConfig,
  count: int,
  memory: float | None,
  *,
  slices: int = 1,
  training: bool = True,
  batch_size: int | None = None,
) -> tuple[tuple[int, int, int], str]:
  """Sizes of data, fsdp and tensor, and the reason for them.

  `fsdp` shards parameters over as few neighbours as their bytes need, because more shards make
  messages smaller and slower. `data` replicates them; replicas exchange only gradients, the only
  traffic between slices. `tensor` is used if the batch has fewer rows than there are devices.

  Args:
    config: the model.
    count: devices of all slices.
    memory: bytes of a device; None = unknown: shards parameters over all devices of a slice.
    slices: groups of devices, connected by a slow network.
    training: False for inference.
    batch_size: rows of one step; None = any.

  Raises:
    ValueError: no sizes fit the batch.
  """
  a_slice, needed = count // slices, state_bytes(config, training)
  least = math.inf if memory is None else needed / (STATE_SHARE * memory)
  shapes = []
  for tensor in _divisors(a_slice):
    if (
      config.num_heads % tensor
      or config.mlp_dim % tensor
      or (batch_size and batch_size % (count // tensor))
    ):
      continue
    for fsdp in _divisors(a_slice // tensor):
      fits = fsdp * tensor >= least
      # Prefer a small tensor, then a small fsdp; a model that does not fit is sharded most.
      shapes.append(
        ((not fits, tensor, fsdp if fits else -fsdp), (count // fsdp // tensor, fsdp, tensor))
      )
  if not shapes:
    raise ValueError(
      f"mesh 'auto': a batch of {batch_size} rows cannot be divided among {count} devices; use a "
      f'multiple of {count}, or set Partitioner.mesh_shape'
    )
  (too_large, *_), shape = min(shapes)
  state = 'parameters, gradients and moments' if training else 'parameters'
  why = f'{needed / chips.GIB:.2f} GiB of {state}'
  if memory is None:
    why += ' over all devices of a slice: the memory of a device is unknown'
  else:
    each = needed / (shape[1] * shape[2]) / chips.GIB
    why += f', {each:.2f} of {memory / chips.GIB:.0f} GiB a device'
    if too_large:
      why += f': more than {STATE_SHARE:.0%}, it may not fit; check with `crossin plan`'
  if shape[2] > 1:
    why += f'; tensor {shape[2]}, because {batch_size} rows are too few for {count} devices'
  if slices > 1:
    why += f'; a full copy in each of {slices} slices'
  return shape, why


def batch_ways(mesh: Sequence[int]) -> int:
  """Parts of a batch on a mesh of data, fsdp, tensor and perhaps expert."""
  return math.prod(mesh) // mesh[2]


def arranged(devices: Sequence[jax.Device], shape: tuple[int, ...]) -> np.ndarray:
  """Devices in the shape of the mesh, neighbours along the later axes, slices along `data` only.

  Raises:
    ValueError: `data` is not a multiple of the number of slices.
  """
  slices = chips.slices_of(devices)
  if slices > 1:
    if shape[0] % slices:
      raise ValueError(
        f'mesh {shape}: its data axis must be a multiple of the {slices} slices; parameters are '
        'not sharded across the slow network between them'
      )
    return mesh_utils.create_hybrid_device_mesh(
      (shape[0] // slices, *shape[1:]),
      (slices, *[1] * (len(shape) - 1)),
      devices,
      allow_split_physical_axes=True,
    )
  if devices[0].platform == 'tpu':
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  return np.asarray(devices).reshape(shape)


def _divisors(n: int) -> list[int]:
  return [i for i in range(1, n + 1) if n % i == 0]
