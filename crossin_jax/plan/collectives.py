"""Traffic between the chips in a compiled step, by mesh axis.

libtpu writes a reduce-scatter as an all-reduce inside a computation of that name. A gather that
overlaps with several fusions is written in each of them, with the same chain_id. Traffic between
slices is a `send` to the megascale runtime.
"""

import collections
from collections.abc import Sequence
import dataclasses
import math
import re

import numpy as np

from crossin_jax.plan import hlo, loops

BETWEEN_SLICES = 'slices'


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation of a program.

  Attributes:
    operation: 'all-gather', 'all-reduce', 'reduce-scatter' ...
    axis: its mesh axes, joined by +; 'slices' between slices; 'unknown' for unknown notations.
    times: runs in a step.
    bytes: that a chip sends in each run, by the ring algorithm.
    members: partitions of one of its groups; () between slices and if unknown.
    key: see `key_of`.
  """

  operation: str
  axis: str
  times: float
  bytes: float
  members: tuple[int, ...] = ()
  key: str = ''


def collectives(
  module: hlo.Module,
  runs: loops.Runs,
  mesh_shape: Sequence[int],
  axes: Sequence[str],
  slices: int = 1,
) -> list[Collective]:
  """All collectives of a compiled module.

  Args:
    module: the program.
    runs: of its computations.
    mesh_shape: of the mesh; partition i is its i-th device.
    axes: names of the mesh axes.
    slices: number of slices, over which the first axis is divided; the module is that of one.
  """
  shape = (mesh_shape[0] // slices, *mesh_shape[1:])
  items = {}
  for name, times in runs.times.items():
    if not times:
      continue  # the body of a loop that never turns
    for instruction in module.computations[name].instructions.values():
      if item := _of_instruction(instruction, shape, axes, slices):
        items.setdefault(item.key, dataclasses.replace(item, times=times))
  return list(items.values())


def bytes_by_axis(items: Sequence[Collective]) -> dict[str, float]:
  """Axis -> bytes that a chip sends in a step."""
  total = collections.Counter()
  for item in items:
    total[item.axis] += item.times * item.bytes
  return dict(total)


def operation_of(instruction: hlo.Instruction) -> str | None:
  """The collective operation that an instruction does or starts, or None."""
  if instruction.opcode == 'send' and '_xla_megascale_transfer_type' in instruction.attributes:
    return 'send'
  operation = instruction.opcode.removesuffix('-start')
  return operation if operation in hlo.COLLECTIVES else None


def key_of(instruction: hlo.Instruction) -> str:
  """What is the same in all instructions that take part in one collective.

  Channels are no such thing: libtpu gives one channel to several collectives of a program.
  """
  chain = instruction.attribute(r'\bchain_id="(\d+)"')
  return f'chain {chain}' if chain else instruction.name


def _of_instruction(instruction: hlo.Instruction, shape, axes, slices: int) -> Collective | None:
  operation, key = operation_of(instruction), key_of(instruction)
  if operation is None:
    return None
  if operation == 'send':
    kind = instruction.attribute(r'_xla_megascale_transfer_type="(\w+)"')
    share = (slices - 1) / slices
    sent = instruction.arrays[0].bytes * {'ALL_REDUCE': 2 * share, 'ONE_TO_ONE': 1}.get(kind, share)
    return Collective(kind.lower().replace('_', '-'), BETWEEN_SLICES, 0, sent, (), key)
  size = _result_bytes(instruction, operation)
  if operation == 'collective-permute':
    return _permute(instruction, size, shape, axes, key)
  groups = _groups(instruction.attributes, math.prod(shape))
  axis = 'unknown' if groups is None else _axis(groups, shape, axes)
  count = len(groups[0]) if groups else math.prod(shape)
  if axis is None or count == 1:
    return None
  if operation == 'reduce-scatter':
    size *= count
  if operation == 'all-reduce' and 'reduce-scatter' in instruction.computation:
    operation = 'reduce-scatter'
  share = (count - 1) / count
  sent = size * (2 * share if operation == 'all-reduce' else share)
  members = tuple(groups[0]) if groups and axis != 'unknown' else ()
  return Collective(operation, axis, 0, sent, members, key)


def _result_bytes(instruction: hlo.Instruction, operation: str) -> float:
  """Bytes of the results."""
  arrays, count = instruction.arrays, len(instruction.operands)
  if instruction.opcode.endswith('-start') and operation != 'all-reduce':
    arrays = arrays[count : 2 * count]  # the type of a start lists operands, results and more
  return sum(array.bytes for array in arrays)


def _permute(instruction: hlo.Instruction, size: float, shape, axes, key) -> Collective | None:
  text = instruction.attribute(r'source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}') or ''
  pairs = [list(map(int, pair)) for pair in re.findall(r'\{(\d+),(\d+)\}', text)]
  moving = [pair for pair in pairs if pair[0] != pair[1]]
  axis = _axis(moving, shape, axes) if moving else None
  return axis and Collective('collective-permute', axis, 0, size, tuple(moving[0]), key)


def _groups(text: str, count: int) -> list[list[int]] | None:
  """Groups of partitions, in three notations of XLA; None for any other.

  {{0,1},{2,3}}    [2,2]<=[4]    mesh['a'=2,'b'=2] {'b'}      are the same
  """
  if match := re.search(
    r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? \{([^}]*)\}', text
  ):
    order = re.fullmatch(r'\[([\d,]+)\](?:T\(([\d,]+)\))?', match[2] or '[1]')
    return _groups_of_mesh(match[1], match[3], order if match[2] else None) if order else None
  if match := re.search(r'replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', text):
    return _transposed(match[3], match[4]).reshape(int(match[1]), int(match[2])).tolist()
  if match := re.search(r'replica_groups=\{((?:\{[\d,]*\},?)*)\}', text):
    groups = [list(map(int, group.split(','))) for group in re.findall(r'\{([\d,]+)\}', match[1])]
    return groups or [list(range(count))]
  return None


def _groups_of_mesh(sizes: str, chosen: str, order: re.Match | None = None) -> list[list[int]]:
  """Groups along some axes of a mesh of XLA; `'a':(2)4` is 4 of axis a after a part of 2.

  Args:
    sizes: of the axes.
    chosen: the axes of a group.
    order: sides and transposition of the partitions in the mesh; None = in order.
  """
  axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)}
  parts = collections.defaultdict(list)
  for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen):
    parts[name].append((int(before or 1), int(size or axes[name])))
  sides, taken = [], []
  for name, length in axes.items():
    done = 1
    for before, size in sorted(parts[name]):
      sides += [before // done, size]
      taken.append(len(sides) - 1)
      done = before * size
    sides.append(length // done)
  ids = np.arange(math.prod(sides))
  if order:
    ids = _transposed(order[1], order[2])
  ids = ids.reshape(sides)
  others = [i for i in range(len(sides)) if i not in taken]
  return ids.transpose(others + taken).reshape(-1, math.prod(sides[i] for i in taken)).tolist()


def _transposed(sides: str, order: str | None) -> np.ndarray:
  """0, 1, 2 ... as an array of these sides, transposed."""
  shape = list(map(int, sides.split(',')))
  ids = np.arange(math.prod(shape)).reshape(shape)
  return ids.transpose(list(map(int, order.split(',')))) if order else ids


def _axis(groups: list[list[int]], shape, axes) -> str | None:
  """The mesh axes along which the members of a group differ; None for groups of one member."""
  if max(map(max, groups)) >= math.prod(shape):
    return 'unknown'
  indices = [np.array(np.unravel_index(group, shape)) for group in groups]
  varying = [axis for i, axis in enumerate(axes) if any(len(set(x[i])) > 1 for x in indices)]
  return '+'.join(varying) or None
