"""Which mesh: sizes of its axes from model and devices, and which device stands where."""

from collections.abc import Sequence
import math

import jax
from jax.experimental import mesh_utils
import numpy as np

from crossin_jax.devices import chips, flops
from crossin_jax.models.decoder_config import DecoderConfig

AXES = ('data', 'fsdp', 'tensor')
# Of a device's memory, what parameters, gradients and optimizer may take; the rest is for
# activations and XLA's scratch.
STATE_SHARE = 0.5


def state_bytes(config: DecoderConfig, training: bool) -> float:
  """Bytes of parameters, and in training of gradients and two moments, all float32; a frozen base
  counts as it is held.
  """
  parameters = flops.matrix_parameters(config) + (
    0 if config.tie_embeddings else config.padded_vocab_size * config.embed_dim
  )
  if config.lora is None:
    return parameters * (16 if training else 4)
  size = {'float32': 4, 'bfloat16': 2, 'int8': 1, 'nf4': 0.5}[config.lora.base_dtype]
  embeddings = (
    2 * config.padded_vocab_size * config.embed_dim if config.lora.train_embeddings else 0
  )
  return parameters * size + (flops.adapter_parameters(config) + embeddings) * (
    16 if training else 4
  )


def auto_shape(
  config: DecoderConfig,
  count: int,
  memory: float | None,
  *,
  slices: int = 1,
  training: bool = True,
  batch_size: int | None = None,
) -> tuple[tuple[int, int, int], str]:
  """Sizes of data, fsdp and tensor, and why.

  Parameters are cut over as few neighbours as their bytes need (`fsdp`), for every further cut
  makes messages smaller and slower; whole copies beside each other (`data`) exchange gradients
  alone, and are the only traffic between slices. `tensor` cuts what is left when the batch has
  fewer rows than there are devices.

  Args:
    config: the model.
    count: devices, of all slices.
    memory: bytes a device; None = not known: parameters are cut over all devices of a slice.
    slices: that only a slow network joins.
    training: or inference alone.
    batch_size: rows that are computed at once; None = as many as needed.

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
      # Fewest cuts of matrices first, then of parameters; what does not fit is cut as far as can
      # be.
      shapes.append(
        ((not fits, tensor, fsdp if fits else -fsdp), (count // fsdp // tensor, fsdp, tensor))
      )
  if not shapes:
    raise ValueError(
      f"mesh 'auto': a batch of {batch_size} rows cannot be divided among {count} devices; use a "
      f'multiple of {count}, or give '
      'Partitioner.mesh_shape'
    )
  (too_large, *_), shape = min(shapes)
  held = f'{needed / chips.GIB:.2f} GiB of {"parameters, gradients and moments" if training else "parameters"}'
  if memory is None:
    why = f'{held} over all devices of a slice: how much memory one has is not known'
  else:
    each = (
      f'{needed / (shape[1] * shape[2]) / chips.GIB:.2f} of {memory / chips.GIB:.0f} GiB a device'
    )
    why = f'{held}, {each}'
    if too_large:
      why += f': more than {STATE_SHARE:.0%}, it may not fit; `crossin plan` tells'
  if shape[2] > 1:
    why += f'; tensor {shape[2]}, for {batch_size} rows do not go round {count} devices'
  if slices > 1:
    why += f'; whole copies in each of {slices} slices'
  return shape, why


def arranged(devices: Sequence[jax.Device], shape: tuple[int, int, int]) -> np.ndarray:
  """Devices in the shape of the mesh, neighbours along the later axes; slices are divided along
  `data` alone.

  Raises:
    ValueError: `data` is no multiple of the number of slices.
  """
  slices = chips.slices_of(devices)
  if slices > 1:
    if shape[0] % slices:
      raise ValueError(
        f'mesh {shape}: its data axis must be a multiple of the {slices} slices; parameters are '
        'not cut across the slow network '
        'between them'
      )
    return mesh_utils.create_hybrid_device_mesh(
      (shape[0] // slices, *shape[1:]), (slices, 1, 1), devices, allow_split_physical_axes=True
    )
  if devices[0].platform == 'tpu':
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  return np.asarray(devices).reshape(shape)


def _divisors(n: int) -> list[int]:
  return [i for i in range(1, n + 1) if n % i == 0]
