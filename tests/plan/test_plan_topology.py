"""Slices that are only described: names, refusals, and how fast an axis can send."""

import numpy as np
import pytest

from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.plan import topology as plan_topology

libtpu = pytest.importorskip('libtpu', reason='TPU slices need libtpu, of the extra `test`')


@pytest.mark.parametrize('name, slices, chips, kind', [
  ('v5e:4x4', 1, 16, 'TPU v5 lite'), ('v5litepod-16', 1, 16, 'TPU v5 lite'),
  ('v5e-1', 1, 1, 'TPU v5 lite'), ('V5E=2x4', 1, 8, 'TPU v5 lite'),
  ('v5p-2048', 2, 2048, 'TPU v5'), ('v5p:4x4x12', 1, 192, 'TPU v5'), ('v6e-8', 1, 8, 'TPU v6 lite'),
  ('v4:2x2x2', 1, 8, 'TPU v4'),
  ('h100:8', 1, 8, 'NVIDIA H100'), ('l4:1', 2, 2, 'NVIDIA L4'),
])  # fmt: skip
def test_names(name, slices, chips, kind):
  topology = plan_topology.parse(name, slices)
  assert (topology.chips, topology.devices[0].device_kind) == (chips, kind)
  assert topology.compiles == kind.startswith('TPU')
  assert 0.5 * topology.kind.memory < topology.usable <= 1.01 * topology.kind.memory


def test_a_tpu7x_chip_is_two_devices():
  try:
    topology = plan_topology.parse('tpu7x-8')
  except ValueError as error:
    pytest.skip(f'this libtpu does not know it: {error}')
  assert (topology.name, topology.chips, len(topology.devices)) == ('tpu7x:2x2x1', 4, 8)
  assert topology.counted == '4 chips, 8 devices' and topology.kind.clock
  assert plan_topology.parse('v5e:2x2').counted == '4 chips'


@pytest.mark.parametrize('name, said', [
  ('v5z:4x4', 'Examples: v5e:4x4'), ('nonsense', 'Examples'), ('v5e', 'Examples'),
  ('v9-8', 'Examples'), ('v5e:3x5', '2x4, 4x4'),
  ('v5e:32x32', 'at most 256'), ('v5p:4x4', '2x2x1'), ('v5p:2x4x8', '2x4x4'), ('v5e-7', 'v5e-8'),
  ('h100:0', 'at least one'),
])  # fmt: skip
def test_what_is_not_there(name, said):
  with pytest.raises(ValueError, match=said):
    plan_topology.parse(name)
  with pytest.raises(ValueError, match='num_slices'):
    plan_topology.parse('v5e:2x2', 0)


def test_smaller():
  names = ['v5e:4x4']
  while (less := plan_topology.smaller(plan_topology.parse(names[-1]))) is not None:
    names.append(less.name)
  assert names == ['v5e:4x4', 'v5e:2x4', 'v5e:2x2', 'v5e:1x1']
  assert plan_topology.smaller(plan_topology.parse('h100:8')).chips == 4
  for kind, generation in plan_topology.GENERATIONS.items():
    if kind == 'tpu7x':
      continue  # not every libtpu knows it
    for chips, name in zip(sorted(generation.slices), plan_topology.all_smaller_first(kind)):
      if chips <= 64:
        assert plan_topology.parse(name).chips == chips


@pytest.mark.parametrize('name, mesh, expected', [
  # v5e: four links of 50 GB/s. One row of a small slice is a line, whose ends have one neighbour.
  ('v5e:4x4', (1, 4, 4), {'fsdp': 50e9, 'tensor': 50e9}),
  ('v5e:4x4', (1, 16, 1), {'fsdp': 100e9}),
  # A whole pod wraps around: two neighbours along each side.
  ('v5e:16x16', (1, 16, 16), {'fsdp': 100e9, 'tensor': 100e9}),
  ('v5e:16x16', (1, 256, 1), {'fsdp': 200e9}),
  # v5p: six links of 100 GB/s; whole cubes wrap around.
  ('v5p:4x4x4', (4, 4, 4), {'data': 200e9, 'fsdp': 200e9, 'tensor': 200e9}),
  ('v5p:4x4x4', (1, 64, 1), {'fsdp': 600e9}),
  ('v5p:2x2x2', (1, 8, 1), {'fsdp': 300e9}),
  ('h100:8', (1, 8, 1), {'fsdp': 450e9}),
  ('h100:16', (1, 16, 1), {'fsdp': 400e9}),  # eight adapters of 50 GB/s between two hosts
])  # fmt: skip
def test_bandwidth_of_an_axis(name, mesh, expected):
  topology = plan_topology.parse(name)
  along = plan_topology.lines(Partitioner(mesh, devices=topology.devices).mesh, 1)
  assert {axis: len(line) for axis, line in along.items()} == dict(
    zip(('data', 'fsdp', 'tensor'), mesh)
  )
  for axis, speed in expected.items():
    np.testing.assert_allclose(topology.fast_bandwidth(along[axis]), speed)
