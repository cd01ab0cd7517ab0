"""mesh = 'auto', and devices in their places, on TPU slices that are only described."""

import dataclasses
import json

import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from crossin_jax.devices import chips, flops, meshes
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import Decoder
from crossin_jax.models.decoder_config import DecoderConfig
from crossin_jax.models.huggingface import families  # noqa: F401  # registers what the gin files name
from crossin_jax.models.lora import LoraConfig

GIB = chips.GIB
LLAMA3_8B = DecoderConfig(
  vocab_size=128256, embed_dim=4096, num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128,
  mlp_dim=14336,
  tie_embeddings=False,
)  # fmt: skip
SMALL = DecoderConfig(
  vocab_size=512, embed_dim=64, num_layers=2, num_heads=4, num_kv_heads=2, mlp_dim=128
)


@pytest.fixture(scope='module')
def described():
  """topology name -> devices of a slice that is not there."""
  pytest.importorskip('libtpu', reason='TPU slices need libtpu, of the extra `test`')
  from jax.experimental import topologies

  return lambda name, **more: (
    topologies.get_topology_desc(platform='tpu', topology_name=name, **more).devices
  )


def test_bytes_of_a_state_are_those_of_the_tree():
  from crossin_jax.training import optimizers
  from crossin_jax.training import state as train_state

  for config in (SMALL, dataclasses.replace(SMALL, tie_embeddings=False)):
    partition = Partitioner((1, 1, 1), devices=jax.devices()[:1])
    state = train_state.state_shardings(
      Decoder(config), optimizers.adamw(total_steps=1).transform, partition
    )
    size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    found = meshes.state_bytes(config, training=True)
    np.testing.assert_allclose(found, size(state.params) * 2 + size(state.opt_state), rtol=0.01)
    np.testing.assert_allclose(
      meshes.state_bytes(config, training=False), size(state.params), rtol=0.01
    )


@hypothesis.given(
  count=st.sampled_from([1, 2, 4, 8, 12, 16, 64, 256]), slices=st.sampled_from([1, 2, 4]),
  batch=st.none() | st.integers(1, 512),
  memory=st.none() | st.floats(1e6, 2e11), training=st.booleans(), large=st.booleans(),
)  # fmt: skip
def test_sizes_go_round(count, slices, batch, memory, training, large):
  config = LLAMA3_8B if large else SMALL
  hypothesis.assume(count % slices == 0)
  try:
    shape, why = meshes.auto_shape(
      config, count, memory, slices=slices, training=training, batch_size=batch
    )
  except ValueError as error:
    assert batch and 'cannot be divided' in str(error)
    return
  data, fsdp, tensor = shape
  assert data * fsdp * tensor == count and data % slices == 0 and why
  assert config.num_heads % tensor == 0 and config.mlp_dim % tensor == 0
  if batch:
    assert batch % (data * fsdp) == 0
  fits = lambda cuts: (
    memory is not None
    and meshes.state_bytes(config, training) / cuts <= meshes.STATE_SHARE * memory
  )
  if fits(fsdp * tensor) and tensor == 1:  # no fewer cuts would do
    assert not any(fits(f) for f in range(1, fsdp) if (count // slices) % f == 0)
  if not fits(fsdp * tensor):
    assert 'may not fit' in why or memory is None


@pytest.mark.parametrize('config, count, memory, more, expected', [
  (SMALL, 8, 16 * GIB, {}, (8, 1, 1)),                                # small: whole copies
  # 112 to 120 GiB of state, 47.5 a v5p chip
  (LLAMA3_8B, 16, 95 * GIB, {}, (4, 4, 1)),
  (LLAMA3_8B, 16, 16 * GIB, {}, (1, 16, 1)),                          # v5e: all of them
  # 30 GiB of float32 to answer with
  (LLAMA3_8B, 16, 95 * GIB, {'training': False}, (16, 1, 1)),
  (LLAMA3_8B, 16, 95 * GIB, {'batch_size': 8}, (4, 2, 2)),            # fewer rows than chips
  # parameters are not cut between slices
  (LLAMA3_8B, 32, 95 * GIB, {'slices': 2}, (8, 4, 1)),
  (LLAMA3_8B, 8, None, {}, (1, 8, 1)),
  (dataclasses.replace(LLAMA3_8B, lora=LoraConfig(rank=16, base_dtype='bfloat16')), 8, 95 * GIB, {}, (8, 1, 1)),
])  # fmt: skip
def test_choices(config, count, memory, more, expected):
  assert meshes.auto_shape(config, count, memory, **more)[0] == expected


def test_a_partitioner_suits_its_model():
  partition = Partitioner('auto')
  assert tuple(partition.mesh.shape.values()) == (1, len(jax.devices()), 1)
  choice = partition.suit(Decoder(SMALL), batch_size=2)
  assert (
    tuple(partition.mesh.shape.values()) == (1, 2, 2)
    and 'tensor 2' in choice
    and 'unknown' in choice
  )
  assert Partitioner((1, -1, 1)).suit(Decoder(SMALL)) is None
  with pytest.raises(ValueError, match="or 'auto'"):
    Partitioner('automatic')


def test_neighbours_stand_together(described):
  partition = Partitioner((1, 2, 4), devices=described('v5e:2x4'))
  coordinates = np.vectorize(lambda device: device.coords, otypes=[object])(partition.mesh.devices)
  for line in coordinates[0]:  # each tensor group is a connected piece of the slice
    near = lambda a, b: sum(abs(x - y) for x, y in zip(a, b)) == 1
    assert all(any(near(a, b) for b in line if b != a) for a in line)
  kinds = {
    name: chips.kind_of(described(name)[0]).name
    for name in ('v5e:2x2', 'v5p:2x2x1', 'v6e:2x2', 'v4:2x2x1')
  }
  assert kinds == {'v5e:2x2': 'v5 lite', 'v5p:2x2x1': 'v5', 'v6e:2x2': 'v6 lite', 'v4:2x2x1': 'v4'}
  assert chips.memory_of(described('v5p:2x2x1')[0]) == 95 * GIB
  assert flops.peak_flops(described('v6e:2x2')[0]) == 918e12


def test_only_data_crosses_slices(described):
  two = described('v5e:2x4', num_slices=2)
  assert chips.slices_of(two) == 2
  partition = Partitioner((2, 4, 2), devices=two)
  slices = np.vectorize(lambda device: device.slice_index)(partition.mesh.devices)
  assert all(len(set(copy.flat)) == 1 for copy in slices) and slices[0, 0, 0] != slices[1, 0, 0]
  with pytest.raises(ValueError, match='multiple of the 2 slices'):
    Partitioner((1, 16, 1), devices=two)
  auto = Partitioner('auto', devices=two)
  assert 'each of 2 slices' in auto.suit(Decoder(LLAMA3_8B)) and tuple(
    auto.mesh.shape.values()
  ) == (2, 8, 1)


def test_the_table_is_sound():
  assert len({kind.name for kind in chips.KINDS}) == len(chips.KINDS)
  for kind in chips.KINDS:
    assert (
      1e13 < kind.flops < 1e16
      and 1e10 < kind.memory < 1e12
      and kind.links < kind.bandwidth < kind.flops
    )
  assert json.dumps([dataclasses.asdict(kind) for kind in chips.KINDS])
