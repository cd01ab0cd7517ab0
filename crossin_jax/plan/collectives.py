"""Traffic between the chips in a compiled step, by mesh axis, read from its HLO.

The body of a loop is in the text once and runs once for each iteration. libtpu writes a
reduce-scatter as an all-reduce inside a computation of that name. A gather that overlaps with
several fusions is written in each of them. Traffic between slices is a `send` to the megascale
runtime.
"""

import collections
from collections.abc import Iterator, Sequence
import dataclasses
import math
import re

import numpy as np

SIZES = {
  'pred': 1, 's4': 0.5, 'u4': 0.5, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 's32': 4, 'u32': 4,
  's64': 8, 'u64': 8, 'bf16': 2, 'f16': 2,
  'f32': 4, 'f64': 8, 'c64': 8, 'c128': 16,
}  # fmt: skip
BETWEEN_SLICES = 'slices'
_OPERATIONS = (
  'all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|'
  'collective-broadcast'
)
_OPERATION = re.compile(rf'\s({_OPERATIONS})(-start)?\(')
_HEADER = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\{$')
_ARRAY = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\]')
_CALLED = re.compile(
  r'(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)'
)
_CALLED_LIST = re.compile(r'(?:branch_computations|called_computations)=\{([^}]*)\}')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation of a program.

  Attributes:
    operation: 'all-gather', 'all-reduce', 'reduce-scatter' ...
    axis: its mesh axes, joined by +; 'slices' between slices; 'unknown' for unknown notations.
    times: runs in a step.
    bytes: that a chip sends in each run, by the ring algorithm.
  """

  operation: str
  axis: str
  times: float
  bytes: float


def collectives(
  hlo: str, mesh_shape: Sequence[int], axes: Sequence[str], slices: int = 1
) -> list[Collective]:
  """All collectives of a compiled module.

  Args:
    hlo: `compiled.as_text()`.
    mesh_shape: of the mesh; partition i is its i-th device.
    axes: names of the mesh axes.
    slices: number of slices, over which the first axis is divided; the module is that of one.
  """
  shape = (mesh_shape[0] // slices, *mesh_shape[1:])
  computations, entry = _computations(hlo)
  times = _times(computations, entry)
  items = {}
  for name, lines in computations.items():
    if not times.get(name):
      continue
    for line in lines:
      if item := _of_line(line, name, shape, axes, slices):
        # An operation that overlaps with several fusions has the same channel in each.
        channel = re.search(r'channel_id=(\d+)', line)
        key = (channel[1], item.operation, item.axis) if channel else len(items)
        items.setdefault(key, dataclasses.replace(item, times=times[name]))
  return list(items.values())


def bytes_by_axis(items: Sequence[Collective]) -> dict[str, float]:
  """Axis -> bytes that a chip sends in a step."""
  total = collections.Counter()
  for item in items:
    total[item.axis] += item.times * item.bytes
  return dict(total)


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
  """Name -> lines of each computation, and the name of the entry."""
  computations, entry, current = {}, '', None
  for line in hlo.splitlines():
    if match := _HEADER.match(line):
      entry = match[2] if match[1] else entry
      current = computations.setdefault(match[2], [])
    elif line == '}':  # the metadata of a kernel may have lines that start with a brace
      current = None
    elif current is not None:
      current.append(line)
  return computations, entry


def _times(computations: dict[str, list[str]], entry: str) -> dict[str, float]:
  """Runs of each computation in one run of the entry."""
  calls = {name: list(_calls(lines, computations)) for name, lines in computations.items()}
  order, visited = [], set()

  def visit(name):  # callees first
    stack = [(name, iter(calls.get(name, ())))]
    visited.add(name)
    while stack:
      current, rest = stack[-1]
      for callee, _ in rest:
        if callee not in visited and callee in calls:
          visited.add(callee)
          stack.append((callee, iter(calls[callee])))
          break
      else:
        order.append(current)
        stack.pop()

  visit(entry)
  times = collections.defaultdict(float, {entry: 1.0})
  for name in reversed(order):
    for callee, turns in calls[name]:
      times[callee] += times[name] * turns
  return times


def _calls(lines: list[str], computations: dict[str, list[str]]) -> Iterator[tuple[str, float]]:
  """(computation, number of calls) of these lines."""
  for line in lines:
    names = _CALLED.findall(line)
    for group in _CALLED_LIST.findall(line):
      names += [name.strip().lstrip('%') for name in group.split(',') if name.strip()]
    turns = _turns(line, computations) if ' while(' in line else 1.0
    for name in names:
      yield name, turns


def _turns(line: str, computations: dict[str, list[str]]) -> float:
  """Iterations of a loop: XLA's note, or the constant in its condition, or 1."""
  if match := re.search(r'known_trip_count\W+n\W+(\d+)', line):
    return float(match[1])
  condition = re.search(r'condition=%?([\w.\-]+)', line)
  lines = computations.get(condition[1], []) if condition else []
  text = '\n'.join(lines)
  if re.search(r'direction=LT', text) is None and (inner := _CALLED.search(text)):
    lines = lines + computations.get(inner[1], [])
    text = '\n'.join(lines)
  constants = [int(n) for n in re.findall(r's32\[\]\S* constant\((\d+)\)', text)]
  return float(constants[0]) if len(constants) == 1 and 'direction=LT' in text else 1.0


def _of_line(line: str, computation: str, shape, axes, slices: int) -> Collective | None:
  if '_xla_megascale_transfer_type' in line and re.search(r'\ssend\(', line):
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', line)[1]
    size = _bytes(line.split(' send(')[0])[0]
    share = (slices - 1) / slices
    sent = {'ALL_REDUCE': 2 * share, 'ONE_TO_ONE': 1}.get(kind, share)
    return Collective(kind.lower().replace('_', '-'), BETWEEN_SLICES, 0, size * sent)
  match = _OPERATION.search(line)
  if match is None or ' = ' not in line[: match.start()]:
    return None
  operation, started = match[1], bool(match[2])
  sizes = _bytes(line[: match.start()].split(' = ', 1)[1])
  if operation == 'collective-permute':
    pairs = [
      tuple(map(int, pair))
      for pair in re.findall(r'\{(\d+),(\d+)\}', line.split('source_target_pairs=')[1])
    ]
    moving = [pair for pair in pairs if pair[0] != pair[1]]
    axis = _axis([list(pair) for pair in moving], shape, axes) if moving else None
    return axis and Collective(operation, axis, 0, sizes[0])
  groups = _groups(line, math.prod(shape))
  axis = 'unknown' if groups is None else _axis(groups, shape, axes)
  count = len(groups[0]) if groups else math.prod(shape)
  if axis is None or count == 1:
    return None
  # The type of an asynchronous start lists operands and results.
  full = max(sizes) if started and operation != 'all-reduce' else sum(sizes)
  if operation == 'reduce-scatter':
    full *= count
  if operation == 'all-reduce' and 'reduce-scatter' in computation:
    operation = 'reduce-scatter'
  share = (count - 1) / count
  return Collective(operation, axis, 0, full * (2 * share if operation == 'all-reduce' else share))


def _bytes(text: str) -> list[float]:
  """Bytes of each array in a type, without layouts and memory spaces."""
  plain = re.sub(r'\{[^{}]*\}', '', text.split(' = ', 1)[-1])
  return [
    SIZES[dtype] * math.prod(map(int, filter(None, sides.split(','))))
    for dtype, sides in _ARRAY.findall(plain)
    if dtype in SIZES
  ] or [0]


def _groups(line: str, count: int) -> list[list[int]] | None:
  """Groups of partitions, in three notations of XLA; None for any other.

  {{0,1},{2,3}}    [2,2]<=[4]    mesh['a'=2,'b'=2] {'b'}      are the same
  """
  if match := re.search(
    r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? \{([^}]*)\}', line
  ):
    order = re.fullmatch(r'\[([\d,]+)\](?:T\(([\d,]+)\))?', match[2] or '[1]')
    return _groups_of_mesh(match[1], match[3], order if match[2] else None) if order else None
  if match := re.search(r'replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', line):
    return _transposed(match[3], match[4]).reshape(int(match[1]), int(match[2])).tolist()
  if match := re.search(r'replica_groups=\{((?:\{[\d,]*\},?)*)\}', line):
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
