"""Published specifications of accelerators, for MFU, meshes and plans."""

from collections.abc import Sequence
import dataclasses
import os

import jax

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class DeviceKind:
  """One kind of chip, as JAX has it: one device.

  Attributes:
    name: substring of JAX's device_kind.
    flops: dense bf16 FLOP/s.
    memory: bytes of HBM.
    bandwidth: bytes/s to HBM.
    links: bytes/s from a chip to its neighbours (ICI, NVLink, PCIe), all links, one direction.
    network: bytes/s from a chip beyond its slice (TPU) or its host (GPU), one direction.
    usable: bytes of HBM that XLA gives to programs on a TPU, by its own messages; None = unknown.
    clock: cycles/s in which libtpu states its estimates; None = unknown.
    sparse_cores: whether a TPU has cores that run collectives beside the products; None = no TPU.
  """

  name: str
  flops: float
  memory: float
  bandwidth: float
  links: float
  network: float
  usable: float | None = None
  clock: float | None = None
  sparse_cores: bool | None = None


# Sources: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e, tpu7x), nvidia.com data sheets. TPU pages
# state ICI in GB/s a chip, both directions (v5e 400, v5p 1,200, v6e 800), and the data centre's
# network in Gbit/s a chip (v5p 50) or a pod of 256 (v5e 6,400, v6e 25,600). NVLink is stated for
# both directions. `network` of GPUs is a 400 (A100: 200) Gbit/s adapter each, as in DGX. `clock` is
# peak / (2 x multipliers): 4 units of 128 x 128 in v5e, 8 in v4 and v5p, 4 of 256 x 256 in v6e. A
# TPU7x chip is two devices for JAX, so its figures are those of half a chip; libtpu 0.0.52
# estimates products as if a device had the units of a v6e. The first name that a device_kind
# contains applies.
KINDS = (
  DeviceKind('H200', 989e12, 141e9, 4.8e12, 450e9, 50e9),
  DeviceKind('H100', 989e12, 80e9, 3.35e12, 450e9, 50e9),
  DeviceKind('A100', 312e12, 80e9, 2.04e12, 300e9, 25e9),
  DeviceKind('L4', 121e12, 24e9, 0.3e12, 32e9, 1.6e9),
  DeviceKind('TPU7x', 1153.5e12, 96 * GIB, 3.69e12, 300e9, 6.25e9, 94.75 * GIB, 2.2e9, True),
  DeviceKind('v6 lite', 918e12, 32 * GIB, 1.64e12, 400e9, 12.5e9, 31.25 * GIB, 1.75e9, True),
  DeviceKind('v6e', 918e12, 32 * GIB, 1.64e12, 400e9, 12.5e9, 31.25 * GIB, 1.75e9, True),
  DeviceKind('v5 lite', 197e12, 16 * GIB, 0.82e12, 200e9, 3.1e9, 15.75 * GIB, 1.5e9, False),
  DeviceKind('v5e', 197e12, 16 * GIB, 0.82e12, 200e9, 3.1e9, 15.75 * GIB, 1.5e9, False),
  DeviceKind('v5p', 459e12, 95 * GIB, 2.77e12, 600e9, 6.2e9, 95.74 * GIB, 1.75e9, True),
  DeviceKind('v5', 459e12, 95 * GIB, 2.77e12, 600e9, 6.2e9, 95.74 * GIB, 1.75e9, True),
  DeviceKind('v4', 275e12, 32 * GIB, 1.23e12, 300e9, 6.2e9, 30.75 * GIB, 1.05e9, True),
)


def kind_of(device: jax.Device) -> DeviceKind | None:
  """The table's entry for a device; None for CPUs and chips that are not in it."""
  return next((kind for kind in KINDS if kind.name in device.device_kind), None)


def memory_of(device: jax.Device) -> float | None:
  """Bytes that programs may use on a device, by its own statistics or the table; None = unknown."""
  try:
    limit = (device.memory_stats() or {}).get('bytes_limit')
  except (RuntimeError, NotImplementedError, AttributeError, ValueError):
    limit = None  # an abstract device
  return limit or (kind.memory if (kind := kind_of(device)) else None)


def room_of(device: jax.Device) -> float | None:
  """As `memory_of`; of a CPU, its share of the memory of the machine."""
  if device.platform != 'cpu':
    return memory_of(device)
  pages, size = os.sysconf('SC_PHYS_PAGES'), os.sysconf('SC_PAGE_SIZE')
  return pages * size / max(1, jax.local_device_count())


def slices_of(devices: Sequence[jax.Device]) -> int:
  """The number of TPU slices; 1 for other devices."""
  return len({getattr(device, 'slice_index', 0) or 0 for device in devices})
