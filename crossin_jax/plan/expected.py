"""What XLA expects a compiled TPU step to take on one chip.

The sum of libtpu's estimates of everything that the main core runs, and the parts of collectives
that no other work hides. It is an estimate by the compiler, not a measurement: it knows no gaps
between fusions, no waiting for HBM beyond a fusion's own estimate, and no traffic that two
collectives compete for.
"""

import collections
from collections.abc import Callable, Sequence
import dataclasses
import functools

import numpy as np

from crossin_jax.plan import collectives as plan_collectives
from crossin_jax.plan import hlo, loops, work
from crossin_jax.plan.collectives import BETWEEN_SLICES, Collective
from crossin_jax.plan.topology import Topology


@dataclasses.dataclass(frozen=True)
class Transfer:
  """A collective and its time.

  Attributes:
    collective: what is sent, and how often in a step.
    seconds: of one run by itself.
    exposed: seconds of one run that no other work hides.
  """

  collective: Collective
  seconds: float
  exposed: float


@dataclasses.dataclass(frozen=True)
class Expected:
  """A step of one chip, by the compiler's estimates.

  Attributes:
    seconds_by_kind: `work.KINDS` -> seconds of the main core.
    flops_by_kind: 'products' and 'kernels' -> operations.
    peak: operations/s of the chip.
    hbm_bytes: to and from HBM.
    transfers: all collectives.
    replaced: absurd estimates that were replaced, each counted once.
    guessed: loops whose iterations do not follow from the text.
  """

  seconds_by_kind: dict[str, float]
  flops_by_kind: dict[str, float]
  peak: float
  hbm_bytes: float
  transfers: tuple[Transfer, ...]
  replaced: int
  guessed: tuple[str, ...]

  @functools.cached_property
  def exposed(self) -> dict[str, float]:
    """Operation -> seconds of its collectives that no other work hides, longest first."""
    return self._by_operation(lambda transfer: transfer.exposed)

  @functools.cached_property
  def sent(self) -> dict[str, float]:
    """Operation -> bytes that the chip sends, most first."""
    return self._by_operation(lambda transfer: transfer.collective.bytes)

  def _by_operation(self, of: Callable[[Transfer], float]) -> dict[str, float]:
    total = collections.Counter()
    for transfer in self.transfers:
      between = ' between slices' if transfer.collective.axis == BETWEEN_SLICES else ''
      name = transfer.collective.operation + between
      total[name] += transfer.collective.times * of(transfer)
    return dict(total.most_common())

  @property
  def busy(self) -> float:
    """Seconds of the main core."""
    return sum(self.seconds_by_kind.values())

  @property
  def seconds(self) -> float:
    """Seconds of the step: the main core, and what is sent while it waits."""
    return self.busy + sum(self.exposed.values())

  @property
  def collectives(self) -> list[Collective]:
    """All collectives without their times."""
    return [transfer.collective for transfer in self.transfers]

  @property
  def products_at_peak(self) -> float:
    """Seconds that the matrix products would take at the chip's peak."""
    return self.flops_by_kind[work.PRODUCTS] / self.peak

  def as_json(self) -> dict:
    """All figures of one chip."""
    return {
      'seconds': self.seconds,
      'busy_seconds': self.busy,
      'seconds_by_kind': self.seconds_by_kind,
      'flops_by_kind': self.flops_by_kind,
      'products_seconds_at_peak': self.products_at_peak,
      'hbm_bytes': round(self.hbm_bytes),
      'sent_bytes': {operation: round(size) for operation, size in self.sent.items()},
      'exposed_seconds': self.exposed,
      'replaced_estimates': self.replaced,
      'guessed_loops': list(self.guessed),
    }


def read(
  text: str,
  topology: Topology,
  devices: np.ndarray,
  axes: Sequence[str],
  links: float | None = None,
) -> Expected:
  """Adds up a compiled program.

  Args:
    text: `compiled.as_text()`.
    topology: what it is compiled for; its chips must have a clock.
    devices: of the mesh, in its shape. The first axis is divided over the slices.
    axes: names of the axes of the mesh.
    links: bytes/s that a chip sends in a collective; None = what the links between its members
      give.

  Raises:
    ValueError: the chip's clock is not known.
  """
  if topology.kind.clock is None:
    raise ValueError(f'the clock of {topology} is not known; add it to devices/chips.py')
  module = hlo.parse(text)
  runs = loops.runs(module)
  schedule = _Schedule(module, topology, runs)
  seconds, flops, size, replaced = collections.Counter(), collections.Counter(), 0.0, 0
  for name, works in schedule.works.items():
    for item in works:
      seconds[item.kind] += runs.times[name] * item.seconds
      flops[item.kind] += runs.times[name] * item.flops
      size += runs.times[name] * item.hbm_bytes
      replaced += item.replaced
  transfers, layout = [], (devices.shape, axes, topology.slices)
  for collective in plan_collectives.collectives(module, runs, *layout):
    alone = transfer_seconds(collective, topology, devices.flat, links)
    hidden = schedule.overlap.get(collective.key, 0.0) / collective.times
    transfers.append(Transfer(collective, alone, max(0.0, alone - hidden)))
  return Expected(
    {kind: seconds[kind] for kind in work.KINDS},
    {kind: flops[kind] for kind in (work.PRODUCTS, work.KERNELS)},
    topology.kind.flops,
    size,
    tuple(transfers),
    replaced,
    tuple(runs.guessed),
  )


def transfer_seconds(
  collective: Collective, topology: Topology, devices: Sequence, links: float | None = None
) -> float:
  """Seconds of one run of a collective that has its links to itself.

  A permute sends to a neighbour over one link. Other collectives go along the line of their
  members, see `Topology.fast_bandwidth`.
  """
  if collective.axis == BETWEEN_SLICES:
    return collective.bytes / topology.kind.network
  if collective.operation == 'collective-permute':
    link = topology.link if links is None else links / (2 * len(topology.sides))
    return collective.bytes / link
  members = [devices[i] for i in collective.members]
  known = topology.fast_bandwidth(members) if members else topology.kind.links
  return collective.bytes / (known if links is None else links)


class _Schedule:
  """The work of each computation that runs on the main core, and what hides collectives.

  Attributes:
    works: computation -> work of its instructions.
    overlap: key of a collective -> seconds of other work during all its runs in a step.
      Synchronous ones have none.
  """

  def __init__(self, module: hlo.Module, topology: Topology, runs: loops.Runs):
    self._module, self._kind, self._runs = module, topology.kind, runs
    self.works: dict[str, list[work.Work]] = {}
    self.overlap: dict[str, float] = collections.Counter()
    self._seconds: dict[str, float] = {}
    if module.entry:
      self._run(module.entry)

  def _run(self, name: str) -> float:
    """Seconds of one run of a computation, with the loops in it."""
    if name in self._seconds:
      return self._seconds[name]
    works, clock, started = self.works.setdefault(name, []), 0.0, {}
    times = self._runs.times[name]
    for instruction in self._module.computations[name].instructions.values():
      if instruction.opcode in ('while', 'call', 'conditional'):
        clock += self._inner(name, instruction)
        continue
      if instruction.opcode.endswith('-done') and instruction.operands:
        key, began = started.pop(instruction.operands[0], (None, 0.0))
        if key:
          self.overlap[key] += times * (clock - began)
        continue
      if instruction.opcode.endswith('-update') and instruction.operands:
        # What is handed to a sparse core after its program has started: only now it has its data.
        key, began = started.pop(instruction.operands[0], (None, 0.0))
        if key:
          given = len(instruction.operands) > 1
          started[instruction.name] = key, clock if given else began
        continue
      keys = self._keys_of(instruction)
      if keys and (instruction.opcode.endswith('-start') or instruction.opcode == 'send'):
        started[instruction.name] = keys[0], clock
        continue
      if keys and not self._carries(instruction):
        continue  # synchronous, or the start or end of one that fusions carry
      if item := work.work_of(self._module, instruction, self._kind):
        works.append(item)
        clock += item.seconds
        # The fusions that carry a collective move its data along with their own work. They may be
        # in a loop between its start and its end.
        for key in keys:
          self.overlap[key] += times * item.seconds
    for key, began in started.values():  # what ends in the next iteration
      self.overlap[key] += times * (clock - began)
    self._seconds[name] = clock
    return clock

  def _inner(self, name: str, instruction: hlo.Instruction) -> float:
    """Seconds of the computations that an instruction runs."""
    turns = self._runs.turns.get((name, instruction.name), 1.0)
    return sum(turns * self._run(called) for called in instruction.called)

  def _keys_of(self, instruction: hlo.Instruction) -> list[str]:
    """Keys of the collectives that an instruction does, starts or carries."""
    inner = [instruction]
    if instruction.opcode == 'fusion' or instruction.opcode.endswith('-start'):
      inner += self._module.inside(instruction)
    return [plan_collectives.key_of(each) for each in inner if plan_collectives.operation_of(each)]

  def _carries(self, instruction: hlo.Instruction) -> bool:
    """Whether a fusion has work of its own beside a collective."""
    if instruction.opcode != 'fusion':
      return False
    return work.cycles_of(instruction) is not None or work.flops(self._module, instruction) > 0
