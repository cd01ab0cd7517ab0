"""Mesh and axis rules, T5X's too."""

from flax.linen import partitioning as nn_partitioning
import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from crossin_jax.devices.partitioning import Partitioner, standard_logical_axis_rules

T5X_RULES = [
    ('batch', 'data'), ('vocab', 'model'), ('mlp', 'model'), ('heads', 'model'), ('kv', None),
    ('joined_kv', 'model'),
    ('embed', 'data'), ('relpos_buckets', None), ('length', None), ('layers', None),
    ('stack', None),
]  # fmt: skip


@pytest.mark.parametrize('shape, expected', [
    ((1, -1, 1), (1, 4, 1)), ((-1, 1, 2), (2, 1, 2)), ((1, 2, 2), (1, 2, 2)),
    ((4, 1, -1), (4, 1, 1)), ([1, -1, 1], (1, 4, 1)),
])  # fmt: skip
def test_one_size_may_be_what_is_left(shape, expected):
  partition = Partitioner(mesh_shape=shape)
  assert tuple(partition.mesh.shape.items()) == tuple(zip(('data', 'fsdp', 'tensor'), expected))
  assert partition.batch_ways == expected[0] * expected[1]


@pytest.mark.parametrize(
  'shape', [(1, 1, 1), (3, -1, 1), (1, 2, 4), (1, -1, -1), (4, 1), (0, 4, 1), (1, -2, 1)]
)
def test_sizes_that_do_not_fit_are_refused(shape):
  with pytest.raises(ValueError, match='Partitioner.mesh_shape'):
    Partitioner(mesh_shape=shape)


def test_t5xs_rules_are_read():
  partition = Partitioner(mesh_shape=(2, 1, 2), logical_axis_rules=T5X_RULES)
  assert dict(partition.rules)['mlp'] == 'tensor' and partition.batch_ways == 2
  assert partition.sharding(('embed', 'mlp')).spec == P('data', 'tensor')
  assert partition.batch_sharding.spec == P('data', None)
  nested = Partitioner(mesh_shape=(2, 1, 2), logical_axis_rules=[('batch', ['data', 'model'])])
  assert nested.batch_ways == 4


def test_a_rule_that_names_no_mesh_axis_is_refused():
  with pytest.raises(ValueError, match="'stage' is not one of"):
    Partitioner(logical_axis_rules=[('batch', 'data'), ('mlp', 'stage')])


def test_unknown_logical_axes_are_not_cut():
  assert Partitioner().sharding(('nothing', 'embed')).spec == P(None, 'fsdp')


def test_what_an_axis_does_not_divide_is_not_cut():
  partition = Partitioner(mesh_shape=(1, 2, 2))
  axes = {
    'even_axes': nn_partitioning.AxisMetadata(names=P('vocab', 'embed')),
    'odd_axes': nn_partitioning.AxisMetadata(names=P('vocab', 'embed')),
    'none_axes': nn_partitioning.AxisMetadata(names=P('kv')),
  }
  shape = lambda *s: jax.ShapeDtypeStruct(s, np.float32)
  found = partition.parameter_shardings(
    axes, {'even': shape(64, 16), 'odd': shape(61, 16), 'none': shape(8)}
  )
  specs = {name: sharding.spec for name, sharding in found.items()}
  assert specs == {'even': P('tensor', 'fsdp'), 'odd': P(None, 'fsdp'), 'none': P(None)}
  for name, sharding in found.items():
    # raises if it does not divide
    sharding.shard_shape({'even': (64, 16), 'odd': (61, 16), 'none': (8,)}[name])


def test_standard_rules_cover_t5xs_canonical_names():
  names = dict(standard_logical_axis_rules())
  assert {
    'batch',
    'vocab',
    'embed',
    'mlp',
    'heads',
    'kv',
    'joined_kv',
    'length',
    'layers',
  } <= names.keys()


def test_rules_hold_inside_activate_only():
  partition = Partitioner()
  assert not nn_partitioning.get_axis_rules()
  with partition.activate() as inside:
    assert inside is partition and tuple(nn_partitioning.get_axis_rules()) == partition.rules
    assert jax.sharding.get_mesh() == partition.mesh
  assert not nn_partitioning.get_axis_rules()
