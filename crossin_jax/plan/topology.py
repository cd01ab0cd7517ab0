"""Described hardware: number of chips, their links, and their usable memory."""

from collections.abc import Sequence
import dataclasses
import functools
import math
import os
import re

import jax
import numpy as np

from crossin_jax.devices import chips as devices_lib
from crossin_jax.devices import meshes
from crossin_jax.plan.flags import EXAMPLES

# Slices that clouds offer, by chips. v4 and v5p also have other multiples of 4x4x4.
FLAT = {1: '1x1', 4: '2x2', 8: '2x4', 16: '4x4', 32: '4x8', 64: '8x8', 128: '8x16', 256: '16x16'}
CUBIC = {
  4: '2x2x1', 8: '2x2x2', 16: '2x2x4', 32: '2x4x4', 64: '4x4x4', 128: '4x4x8', 256: '4x8x8',
  512: '8x8x8', 1024: '8x8x16',
  2048: '8x16x16', 4096: '16x16x16',
}  # fmt: skip
GPUS_PER_HOST = 8
# Share of a GPU's memory that JAX uses by default (XLA_PYTHON_CLIENT_MEM_FRACTION).
GPU_SHARE = 0.75


@dataclasses.dataclass(frozen=True)
class Generation:
  """The slices of one kind of TPU.

  Attributes:
    slices: chips -> topology.
    largest: chips of the largest slice.
    names_count_cores: names of gcloud (v5p-16) count two cores for each chip.
    options: for libtpu, so that its description matches JAX's devices.
    devices_per_chip: that JAX has.
  """

  slices: dict[int, str]
  largest: int
  names_count_cores: bool = False
  options: tuple = ()
  devices_per_chip: int = 1


GENERATIONS = {
  'v4': Generation(CUBIC, 4096, True, (('chip_config_name', 'megacore'),)),
  'v5e': Generation(FLAT, 256),
  'v5p': Generation(CUBIC, 6144, True),
  'v6e': Generation(FLAT, 256),
  'tpu7x': Generation(CUBIC, 9216, True, devices_per_chip=2),
}
GPUS = ('h200', 'h100', 'a100', 'l4')


@dataclasses.dataclass(frozen=True)
class DescribedGpu:
  """Enough of a jax.Device for a mesh; XLA cannot compile for it."""

  id: int
  device_kind: str
  process_index: int
  platform: str = 'gpu'


@dataclasses.dataclass(frozen=True)
class Topology:
  """Slices of chips.

  Attributes:
    name: of one slice.
    slices: number of slices, connected by the data centre's network.
    devices: of all slices, in the order of a mesh.
    kind: data of one device.
    sides: chips along each side of a slice; for GPUs the number in a host.
  """

  name: str
  slices: int
  devices: tuple
  kind: devices_lib.DeviceKind
  sides: tuple[int, ...]

  @property
  def chips(self) -> int:
    """Number of chips in all slices, as they are sold."""
    generation = GENERATIONS.get(self.name.split(':')[0])
    return len(self.devices) // (generation.devices_per_chip if generation else 1)

  @property
  def counted(self) -> str:
    """The number of chips in words, with that of devices where it is another."""
    more = '' if self.chips == len(self.devices) else f', {len(self.devices)} devices'
    return f'{self.chips} chips{more}'

  @property
  def compiles(self) -> bool:
    """Whether XLA can compile for it here; for a GPU it needs one."""
    return self.devices[0].platform == 'tpu'

  @property
  def usable(self) -> float:
    """Bytes of a chip's memory that a program may use."""
    return self.kind.usable or self.kind.memory * float(
      os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION', GPU_SHARE)
    )

  @property
  def link(self) -> float:
    """Bytes/s that a chip can send to one neighbour."""
    return self.kind.links / (2 * len(self.sides)) if self.compiles else self.kind.links

  def __str__(self) -> str:
    return self.name if self.slices == 1 else f'{self.slices} x {self.name}'

  def fast_bandwidth(self, line: Sequence) -> float:
    """Bytes/s that a chip can send to the others of a mesh axis inside its slice.

    Along one side of a slice a chip has two neighbours. Without a wrap-around the ends of the line
    have only one, and they limit the speed. An axis over several sides uses the links of all.

    Args:
      line: the devices of one slice along the axis.
    """
    if not self.compiles:
      per_host = max(1, sum(device.process_index == line[0].process_index for device in line))
      network = np.inf if per_host == len(line) else self.kind.network * per_host
      return min(self.kind.links, network)
    coords = np.array([device.coords for device in line])
    used = 0
    for side, length in enumerate(self.sides):
      if covered := len(set(coords[:, side])) - 1:
        used += 2 if covered + 1 == length and self._wraps(length) else 1
    return self.link * max(1, used)

  def _wraps(self, side: int) -> bool:
    """Whether the chips along a side of that length form a ring."""
    if len(self.sides) == 2:
      return side == 16
    return side > 2 and all(length % 4 == 0 for length in self.sides)


def parse(name: str, num_slices: int = 1) -> Topology:
  """A topology by name: `v5e:4x4`, gcloud's `v5e-16`, or `h100:8`.

  Args:
    name: of one slice, or of GPUs.
    num_slices: number of slices.

  Raises:
    ValueError: no such topology (with examples), or libtpu is not installed.
  """
  if num_slices < 1:
    raise ValueError(f'--num_slices {num_slices} must be at least 1')
  text = name.strip().lower().replace('v5litepod', 'v5e')
  if match := re.fullmatch(rf'({"|".join(GPUS)})[:=](\d+)', text):
    return _gpus(match[1], int(match[2]), num_slices)
  if match := re.fullmatch(r'(\w+)-(\d+)', text):
    text = _of_accelerator_type(name, match[1], int(match[2]))
  match = re.fullmatch(r'(\w+)[:=](\d+(?:x\d+)*)', text)
  generation = GENERATIONS.get(match[1]) if match else None
  if generation is None:
    raise ValueError(f'--topology {name!r} is not known. Examples: {EXAMPLES}')
  sides = tuple(map(int, match[2].split('x')))
  known = f'{match[1]} comes as {", ".join(generation.slices.values())}'
  if math.prod(sides) > generation.largest:
    raise ValueError(
      f'--topology {name!r}: a slice of {match[1]} has at most {generation.largest} chips; use '
      '--num_slices'
    )
  if len(sides) != len(next(iter(generation.slices.values())).split('x')):
    raise ValueError(f'--topology {name!r} has {len(sides)} sides; {known}')
  if match[2] not in generation.slices.values() and (
    len(sides) == 2 or any(side % 4 for side in sides)
  ):
    raise ValueError(f'--topology {name!r} is no slice that clouds offer; {known}')
  described = _described(f'{match[1]}:{match[2]}', sides, num_slices, generation.options)
  kind = devices_lib.kind_of(described[0])
  return Topology(f'{match[1]}:{match[2]}', num_slices, described, kind, sides)


def _of_accelerator_type(name: str, kind: str, count: int) -> str:
  generation = GENERATIONS.get(kind)
  if generation is None:
    raise ValueError(f'--topology {name!r} is not known. Examples: {EXAMPLES}')
  chips = count // 2 if generation.names_count_cores else count
  if chips not in generation.slices:
    names = [f'{kind}-{n * 2 if generation.names_count_cores else n}' for n in generation.slices]
    raise ValueError(
      f'--topology {name!r} is not known; {kind} comes as {", ".join(names)}, or give its sides '
      f'({EXAMPLES})'
    )
  return f'{kind}:{generation.slices[chips]}'


def _gpus(kind: str, count: int, hosts: int) -> Topology:
  if count < 1:
    raise ValueError(f'--topology {kind}:{count}: at least one GPU')
  total = count * hosts
  devices = tuple(
    DescribedGpu(i, f'NVIDIA {kind.upper()}', i // min(count, GPUS_PER_HOST)) for i in range(total)
  )
  return Topology(
    f'{kind}:{total}', 1, devices, devices_lib.kind_of(devices[0]), (min(count, GPUS_PER_HOST),)
  )


@functools.lru_cache(maxsize=32)
def _described(text: str, sides: tuple[int, ...], num_slices: int, options: tuple) -> tuple:
  """Devices of slices, as libtpu describes them."""
  # Without these, libtpu queries a metadata server, and prints errors if there is none.
  for key, value in {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_LOG_DIR': 'disabled',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  }.items():
    os.environ.setdefault(key, value)
  from jax.experimental import topologies

  more = dict(options) | ({'num_slices': num_slices} if num_slices > 1 else {})
  if math.prod(sides) < 4:
    more['chips_per_host_bounds'] = (1, 1, 1)
  try:
    return tuple(topologies.get_topology_desc(platform='tpu', topology_name=text, **more).devices)
  except (RuntimeError, ImportError, NotImplementedError) as error:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise ValueError(
      f"--topology {text}: {first}. Plans for TPUs need libtpu: pip install 'crossin-jax[tpu]'"
    ) from None


def smaller(topology: Topology) -> Topology | None:
  """The same number of the next smaller slices, or None."""
  if not topology.compiles:
    each = topology.chips // 2
    return parse(f'{topology.name.split(":")[0]}:{each}') if each else None
  kind, per_slice = topology.name.split(':')[0], topology.chips // topology.slices
  fewer = [n for n in GENERATIONS[kind].slices if n < per_slice]
  return parse(f'{kind}:{GENERATIONS[kind].slices[max(fewer)]}', topology.slices) if fewer else None


def all_smaller_first(kind: str) -> list[str]:
  """Topologies of a kind of TPU, smallest first."""
  return [f'{kind}:{sides}' for _, sides in sorted(GENERATIONS[kind].slices.items())]


def without_accelerator() -> None:
  """Keeps JAX off the accelerators of this machine, which a run may be using."""
  jax.config.update('jax_platforms', 'cpu')


def lines(mesh: jax.sharding.Mesh, slices: int) -> dict[str, list]:
  """Mesh axis -> the devices along it inside the first slice."""
  shape = mesh.devices.shape
  first = mesh.devices[: shape[0] // slices]
  devices = {}
  for i, axis in enumerate(meshes.AXES):
    index = [0] * first.ndim
    index[i] = slice(None)
    devices[axis] = list(first[tuple(index)])
  return devices
