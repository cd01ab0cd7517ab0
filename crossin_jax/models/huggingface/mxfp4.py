"""MXFP4, the 4-bit numbers of published gpt-oss experts.

32 inputs of an output share a scale, a power of two in E8M0; each has a sign, two bits of exponent
and one of mantissa (E2M1). Two stand in a byte, the first in its lower half. The format is of the
OCP Microscaling Formats specification 1.0, sections 5.2 and 6.3.

Letters: X experts, O outputs, I inputs, G groups of 32 inputs.
"""

import functools

import ml_dtypes
import numpy as np

from crossin_jax.models.huggingface.tensor_files import BLOCKS, SCALES, Tensors

GROUP = 32


def dequantised(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
  """The numbers of some groups.

      blocks [[0x21, 0xa3, ...]], scales [128]:  [1.0, 2.0, 3.0, -2.0, ...]

  Args:
    blocks: uint8 [..., G, 16].
    scales: uint8 [..., G]; 127 is a factor of 1, 255 is not a number.

  Returns:
    float32 [..., 32 G].
  """
  values = _pairs()[blocks].reshape(*scales.shape, GROUP)
  values *= scales.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)[..., None]
  return values.reshape(*scales.shape[:-1], -1)


@functools.cache
def _pairs() -> np.ndarray:
  """Byte -> its two numbers, float32 [256, 2]."""
  byte = np.arange(256, dtype=np.uint8)
  return np.stack([byte & 15, byte >> 4], axis=-1).view(ml_dtypes.float4_e2m1fn).astype(np.float32)


def dequantise(tensors: Tensors) -> None:
  """Replaces `<name>_blocks` and `<name>_scales` by `<name>` [X, I, O], which is read on demand.

  Those whose shapes do not fit stay, and are unknown tensors.
  """
  for blocks in [name for name in tensors.shapes if name.endswith(BLOCKS)]:
    name, shape = blocks.removesuffix(BLOCKS), tensors.shapes[blocks]
    if (
      len(shape) != 4 or tensors.shapes.get(name + SCALES) != shape[:-1] or shape[-1] != GROUP // 2
    ):
      continue
    experts, outputs, groups, _ = shape
    read = functools.partial(_part, tensors.taken(blocks), tensors.taken(name + SCALES))
    tensors.add(name, (experts, groups * GROUP, outputs), read)


def _part(read_blocks, read_scales, selection: tuple[slice, slice, slice]) -> np.ndarray:
  """The numbers of some experts, inputs and outputs, [X, I, O]."""
  of_experts, of_inputs, of_outputs = selection
  first, last = of_inputs.start // GROUP, -(-of_inputs.stop // GROUP)
  groups = (of_experts, of_outputs, slice(first, last))
  values_XOI = dequantised(read_blocks((*groups, slice(None))), read_scales(groups))
  inside = slice(of_inputs.start - first * GROUP, of_inputs.stop - first * GROUP)
  return values_XOI[..., inside].swapaxes(1, 2)
