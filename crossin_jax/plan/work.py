"""What one run of an instruction of a compiled TPU program costs a chip.

libtpu leaves its own guess, `estimated_cycles`, in the text of each fusion. It is of the fusion by
itself, without gaps between fusions. What has no estimate takes the time of its operations at peak
or of its bytes at full bandwidth, whichever is longer.
"""

import dataclasses
import functools
import math
import re

import numpy as np

from crossin_jax.devices.chips import DeviceKind
from crossin_jax.plan import hlo

PRODUCTS, KERNELS, ELEMENTWISE, LAYOUT = 'products', 'kernels', 'element-wise', 'layout changes'
KINDS = (PRODUCTS, KERNELS, ELEMENTWISE, LAYOUT)
KERNEL_SHARE = 0.5  # of peak that Pallas kernels are assumed to reach
# An estimate is absurd if it is this many times what bytes and operations explain, and this long.
ABSURD, ABSURD_SECONDS = 100, 1e-3
VMEM_BYTES_PER_CYCLE = 4096
# Products of queries, keys, values and their gradients, by the pass in the kernel's name.
_ATTENTION = {'fwd': 2, 'dkv': 4, 'dq': 3, 'bwd': 5}
_MOVES = frozenset((
  'bitcast', 'bitcast-convert', 'broadcast', 'concatenate', 'constant', 'copy', 'custom-call',
  'dynamic-slice', 'dynamic-update-slice', 'gather', 'get-tuple-element', 'iota', 'pad',
  'parameter', 'partition-id', 'reshape', 'reverse', 'scatter', 'slice', 'transpose', 'tuple',
))  # fmt: skip
_SLICES = frozenset(('dynamic-slice', 'slice', 'gather'))
_VIEWS = frozenset(('bitcast', 'copy', 'reshape', 'transpose'))
_FREE = frozenset((
  'add-dependency', 'after-all', 'bitcast', 'constant', 'domain', 'get-dimension-size',
  'get-tuple-element', 'opt-barrier', 'optimization-barrier', 'parameter', 'partition-id',
  'replica-id', 'tuple',
))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Work:
  """One run of an instruction.

  Attributes:
    kind: one of KINDS.
    seconds: estimated.
    flops: of its products and kernels.
    hbm_bytes: read from and written to HBM.
    replaced: whether an absurd estimate was replaced.
  """

  kind: str
  seconds: float
  flops: float
  hbm_bytes: float
  replaced: bool = False


def work_of(module: hlo.Module, instruction: hlo.Instruction, chip: DeviceKind) -> Work | None:
  """The work of an instruction on the main core, or None if it needs none.

  Args:
    module: the program.
    instruction: no loop, call or collective.
    chip: must have a clock.
  """
  opcode = instruction.opcode
  if opcode in _FREE or opcode.endswith(('-done', '-update')):
    return None
  if opcode in ('copy-start', 'slice-start'):
    return Work(LAYOUT, 0.0, 0.0, _moved_bytes(instruction))  # a DMA beside the core
  if opcode.endswith('-start'):
    return None
  if opcode == 'custom-call' and 'tpu_custom_call' not in instruction.attributes:
    return None
  size = hbm_bytes(module, instruction)
  if opcode == 'custom-call':
    operations = kernel_flops(module, instruction)
    seconds = max(operations / (KERNEL_SHARE * chip.flops), size / chip.bandwidth)
    return Work(KERNELS, seconds, operations, size)
  operations = flops(module, instruction)
  kind = PRODUCTS if operations else _kind(module, instruction)
  least = max(operations / chip.flops, size / chip.bandwidth)
  if (cycles := cycles_of(instruction)) is None:
    return Work(kind, least, operations, size)
  seconds = cycles / chip.clock
  near = _all_bytes(module, instruction) / (VMEM_BYTES_PER_CYCLE * chip.clock)
  if cycles < 0 or seconds > ABSURD * max(least, near) + ABSURD_SECONDS:
    return Work(kind, max(least, near), operations, size, replaced=True)
  return Work(kind, seconds, operations, size)


def cycles_of(instruction: hlo.Instruction) -> int | None:
  """libtpu's estimate in cycles, or None if it left none."""
  cycles = instruction.attribute(r'"estimated_cycles":"?(-?\d+)')
  return None if cycles is None else int(cycles)


def flops(module: hlo.Module, instruction: hlo.Instruction) -> float:
  """Operations of the matrix products of an instruction, with those inside a fusion."""
  if instruction.opcode == 'fusion':
    return sum(flops(module, inner) for inner in module.inside(instruction))
  if instruction.opcode == 'dot':
    left = module.operand(instruction).arrays[0].shape
    sides = instruction.attribute(r'lhs_contracting_dims=\{([\d,]*)\}')
    summed = math.prod(left[int(side)] for side in sides.split(',') if side)
    return 2.0 * instruction.arrays[0].elements * summed
  return _convolution_flops(module, instruction) if instruction.opcode == 'convolution' else 0.0


def _convolution_flops(module: hlo.Module, instruction: hlo.Instruction) -> float:
  """Operations of a convolution, as which XLA writes products for TPUs.

  For each output position only those window positions count that are inside the input: a batched
  product is a window as long as the batch, of which each output uses one position.
  """
  left, right = (module.operand(instruction, i).arrays[0].shape for i in (0, 1))
  out = instruction.arrays[0].shape
  labels = instruction.attribute(r'dim_labels=([\w?]+_[\w?]+->[\w?]+)').replace('->', '_')
  left_labels, right_labels, out_labels = labels.split('_')
  window = dict(
    part.split('=') for part in (instruction.attribute(r'window=\{([^}]*)\}') or '').split()
  )
  sizes = [int(size) for size in window.get('size', '').split('x') if size]
  numbers = lambda key: [int(n) for n in window.get(key, 'x'.join('1' * len(sizes))).split('x')]
  pads = window.get('pad', 'x'.join(['0_0'] * len(sizes))).split('x')
  pairs = 1
  for i, size in enumerate(sizes):
    pairs *= _pairs(
      left[left_labels.index(str(i))],
      out[out_labels.index(str(i))],
      size,
      int(pads[i].split('_')[0]),
      numbers('stride')[i],
      numbers('lhs_dilate')[i],
      numbers('rhs_dilate')[i],
    )
  rows, columns = out[out_labels.index('b')], out[out_labels.index('f')]
  return 2.0 * rows * columns * right[right_labels.index('i')] * pairs


@functools.lru_cache(maxsize=1024)
def _pairs(length, outputs, size, low, stride, left_dilation, right_dilation) -> int:
  """Pairs of an output and a window position that meet an element of the input."""
  starts, count = np.arange(outputs) * stride - low, 0
  for position in range(size):
    at = starts + position * right_dilation
    inside = (at >= 0) & (at <= (length - 1) * left_dilation) & (at % left_dilation == 0)
    count += int(inside.sum())
  return count


def kernel_flops(module: hlo.Module, instruction: hlo.Instruction) -> float:
  """Operations of a Pallas kernel of attention or of experts by its shapes; 0 for other kernels."""
  name = instruction.attribute(r'/([^/"]+)/pallas_call') or instruction.name
  inputs = [module.operand(instruction, i) for i in range(len(instruction.operands))]
  matrices = [
    array
    for source in inputs
    for array in (source.arrays[:1] if source else ())
    if len(array.shape) >= 2 and array.dtype in ('bf16', 'f32')
  ]
  if len(matrices) < 2:
    return 0.0
  if 'ragged-dot' in name or 'gmm' in name:
    # A row meets the matrix of its group; or rows of a group give the gradient of its matrix.
    left, out = matrices[0].shape, instruction.arrays[0]
    each = left[0] / out.shape[0] if len(out.shape) == 3 else left[-1]
    return 2.0 * out.elements * each
  if any(word in name for word in ('attention', 'flash', 'splash', 'mha', 'mqa')):
    return _attention_flops(name, [m for m in matrices if len(m.shape) >= 3], instruction.arrays)
  return 0.0


def _attention_flops(name: str, inputs: list[hlo.Array], results: tuple[hlo.Array, ...]) -> float:
  """Operations of a kernel of causal attention.

  Half of the square of queries and keys counts: packed rows and windows need less.

  Args:
    name: of the kernel. Names of block sizes may follow, with words such as dkv in them.
    inputs: queries, keys and more, [..., heads, length, size].
    results: of the kernel.
  """
  if len(inputs) < 2:
    return 0.0
  queries, keys = inputs[:2]
  phase = re.search(r'_(fwd|dkv|dq|bwd)(?:_|$)', name)
  products = _ATTENTION[phase[1] if phase else 'fwd']
  if phase and phase[1] == 'dkv':
    of_keys = 2 if keys.elements >= queries.elements else 0
    if sum(array.elements >= queries.elements for array in results) > of_keys:
      products = 5  # the gradient of the queries comes out of the same kernel
  return products * 2 * queries.elements * keys.shape[-2] / 2


def hbm_bytes(module: hlo.Module, instruction: hlo.Instruction) -> float:
  """Bytes of the operands that are read from HBM and of the results that are written to it.

  Of an operand that is only sliced, the slice counts. Of an array that is updated in place, the
  update counts. What collectives read and write does not count, also in fusions that carry one.
  """
  if instruction.opcode == 'fusion':
    return _fusion_bytes(module, instruction)
  written = sum(array.hbm_bytes for array in instruction.arrays)
  operands = [module.operand(instruction, i) for i in range(len(instruction.operands))]
  if instruction.opcode == 'dynamic-update-slice':
    update = operands[1].arrays[0] if operands[1] else None
    return (update.bytes if written else 0.0) + update.hbm_bytes if update else written
  if instruction.opcode in _SLICES:
    source = operands[0].arrays[0] if operands[0] else None
    return written + (instruction.arrays[0].bytes if source and not source.space else 0.0)
  return written + sum(array.hbm_bytes for source in operands if source for array in source.arrays)


def _fusion_bytes(module: hlo.Module, instruction: hlo.Instruction) -> float:
  body, total = module.callee(instruction, 'calls'), 0.0
  for i in range(len(instruction.operands)):
    source = module.operand(instruction, i)
    if source is None or source.opcode == 'tuple':
      continue
    size = sum(array.hbm_bytes for array in source.arrays)
    used = _used_bytes(module, body.parameters.get(i)) if body and size else None
    total += size if used is None else min(size, used)
  results = [body.root] if body and body.root else []
  if results and results[0].opcode == 'tuple':
    results = [module.operand(results[0], i) for i in range(len(results[0].operands))]
  for i, array in enumerate(instruction.arrays):
    source = _behind_views(module, results[i]) if i < len(results) else None
    update = None
    if source is not None and source.opcode == 'dynamic-update-slice':
      update = module.operand(source, 1)
    size = array.hbm_bytes
    if source is not None and (source.opcode == 'parameter' or source.opcode in hlo.COLLECTIVES):
      size = 0.0  # the buffer of a collective that the fusion carries along
    total += min(size, update.arrays[0].bytes) if update else size
  return total


def _used_bytes(module: hlo.Module, parameter: hlo.Instruction | None) -> float | None:
  """Bytes of a fusion's parameter that it reads, or None for all of them."""
  if parameter is None:
    return None
  total = 0.0
  for user in module.computations[parameter.computation].instructions.values():
    if parameter.name not in user.operands:
      continue
    first = user.operands[0] == parameter.name
    if user.opcode in _SLICES and first:
      used = user.arrays[0].bytes
    elif user.opcode == 'dynamic-update-slice' and first:
      used = 0.0
    elif user.opcode in hlo.COLLECTIVES or user.opcode == 'tuple':
      used = 0.0  # carried along, or handed on as it is
    elif user.opcode == 'bitcast':
      used = _used_bytes(module, user)
    elif user.opcode == 'fusion' and (body := module.callee(user, 'calls')):
      used = _used_bytes(module, body.parameters.get(user.operands.index(parameter.name)))
    else:
      used = None
    if used is None:
      return None
    total += used
  return total


def _behind_views(module: hlo.Module, source: hlo.Instruction | None) -> hlo.Instruction | None:
  """The instruction whose result is handed on by views, copies and inner fusions."""
  while source is not None:
    if source.opcode in _VIEWS:
      source = module.operand(source)
    elif source.opcode == 'fusion' and (body := module.callee(source, 'calls')):
      source = body.root
    else:
      break
  return source


def _moved_bytes(instruction: hlo.Instruction) -> float:
  """HBM traffic of an asynchronous copy or slice: what is moved, for each end that is in HBM."""
  first, second = instruction.arrays[:2]
  ends = (first.space == 0) + (second.space == 0)
  return ends * min(first.bytes, second.bytes)


def _all_bytes(module: hlo.Module, instruction: hlo.Instruction) -> float:
  """Bytes of all operands and results, wherever they are."""
  operands = [module.operand(instruction, i) for i in range(len(instruction.operands))]
  arrays = [array for source in operands if source for array in source.arrays]
  return sum(array.bytes for array in (*arrays, *instruction.arrays))


def _kind(module: hlo.Module, instruction: hlo.Instruction) -> str:
  """LAYOUT if nothing but scalars is computed, such as positions of slices."""
  inner = list(module.inside(instruction)) if instruction.opcode == 'fusion' else [instruction]
  computes = lambda each: each.opcode not in _MOVES and any(a.shape for a in each.arrays)
  return ELEMENTWISE if any(map(computes, inner)) else LAYOUT
