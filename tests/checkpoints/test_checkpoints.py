"""Checkpoints: T5X's layout, bitwise round trips, retention, and damage that is noticed."""

import functools
import json
import os
import shutil

from conftest import init_params, tiny_config
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from crossin_jax.checkpoints import digests as digests_lib
from crossin_jax.checkpoints import manager, parameters
from crossin_jax.checkpoints.manager import (
  CheckpointConfig,
  Checkpoints,
  OptimizerStateError,
  restore_tree,
)
from crossin_jax.checkpoints.places import CheckpointError, latest_checkpoint
from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import Decoder
from crossin_jax.training import optimizers
from crossin_jax.training import state as train_state

MODEL = Decoder(tiny_config(vocab_size=64))
RUN = {'stream': {'a': 1}, 'period': None, 'best': 0.1 + 0.2}


@pytest.fixture(scope='module', params=['adamw', 'adafactor'])
def optimizer(request):
  return getattr(optimizers, request.param)(100)


@pytest.fixture(scope='module')
def adamw():
  return optimizers.adamw(100)


@functools.cache
def abstract_on(transform, mesh=(1, 1, 1), model=MODEL):
  partition = Partitioner(mesh_shape=mesh, devices=jax.devices()[: int(np.prod(mesh))])
  with partition.activate():
    return train_state.state_shardings(model, transform, partition)


@functools.cache
def state_on(transform, step=0, mesh=(1, 1, 1), seed=0):
  """A state whose every leaf is random, so that swapped or forgotten leaves are seen."""
  params = init_params(MODEL, seed)
  state = train_state.TrainState(jnp.int32(step), params, jax.eval_shape(transform.init, params))
  rng = np.random.default_rng([seed, step])

  def fill(leaf):
    if leaf.dtype == jnp.int32:
      return np.int32(step)
    return rng.standard_normal(leaf.shape).astype(leaf.dtype)

  state = jax.tree.map(fill, state)
  return jax.device_put(
    state, jax.tree.map(lambda leaf: leaf.sharding, abstract_on(transform, mesh))
  )


def save(directory, transform, steps, config=None, metrics=None, mesh=(1, 1, 1)):
  checkpoints = Checkpoints(str(directory), config or CheckpointConfig(keep=100))
  for step in steps:
    checkpoints.save(
      step, state_on(transform, step, mesh), RUN | {'step': step}, (metrics or {}).get(step)
    )
  checkpoints.close()


def restore(directory, transform, mesh=(1, 1, 1), config=None):
  checkpoints = Checkpoints(str(directory), config or CheckpointConfig(keep=100))
  found = checkpoints.restore_latest(abstract_on(transform, mesh))
  checkpoints.close()
  return found


def equal(a, b):
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y), strict=True), a, b
  )


def steps_in(directory):
  return sorted(
    int(name.split('_')[1]) for name in os.listdir(directory) if name.startswith('checkpoint_')
  )


def some_file(directory, step, item='state'):
  """The largest file of a checkpoint's item: its arrays."""
  paths = [
    os.path.join(folder, name)
    for folder, _, names in os.walk(directory / f'checkpoint_{step}' / item)
    for name in names
  ]
  return max(paths, key=os.path.getsize)


def test_layout_is_t5xs_and_plain_orbax_reads_it(tmp_path, adamw):
  save(tmp_path, adamw.transform, [7])
  assert {'state', 'run'} <= set(os.listdir(tmp_path / 'checkpoint_7'))
  tree = ocp.PyTreeCheckpointer().restore(str(tmp_path / 'checkpoint_7' / 'state'))
  assert set(tree) == {'target', 'state'} and set(tree['state']) == {'step', 'param_states'}
  assert set(tree['target']) == {'decoder'} and int(tree['state']['step']) == 7
  expected = state_on(adamw.transform, 7)
  equal(tree['target'], expected.params)
  # chain(clip, chain(scale_by_adam, ...)), empty nodes left out
  adam = tree['state']['param_states']['1']['0']
  assert set(tree['state']['param_states']) == {'1'} and set(adam) == {'count', 'mu', 'nu'}
  equal(adam['mu'], expected.opt_state[1][0].mu)
  assert tree['target']['decoder']['token_embedding'].dtype == np.float32


@pytest.mark.parametrize(
  'written, read', [((1, 1, 1), (1, 1, 1)), ((1, 2, 2), (4, 1, 1)), ((1, 1, 1), (1, 2, 2))], ids=str
)
def test_round_trip_is_bitwise_onto_any_mesh(tmp_path, optimizer, written, read):
  save(tmp_path, optimizer.transform, [3], mesh=written)
  state, run = restore(tmp_path, optimizer.transform, read)
  equal(state, state_on(optimizer.transform, 3))
  assert jax.tree.structure(state) == jax.tree.structure(state_on(optimizer.transform, 3))
  for leaf, want in zip(
    jax.tree.leaves(state), jax.tree.leaves(abstract_on(optimizer.transform, read))
  ):
    assert leaf.sharding.is_equivalent_to(want.sharding, leaf.ndim)
  assert run == RUN | {'step': 3}


def test_nothing_there_is_none(tmp_path, adamw):
  assert restore(tmp_path, adamw.transform) is None


def test_retention(tmp_path, adamw):
  save(tmp_path / 'a', adamw.transform, range(1, 5), CheckpointConfig(keep=2))
  assert steps_in(tmp_path / 'a') == [3, 4]
  save(tmp_path / 'b', adamw.transform, (2, 3, 6, 7), CheckpointConfig(keep=1, keep_period=3))
  assert steps_in(tmp_path / 'b') == [3, 6, 7]
  # Digests are those of the checkpoints that are there.
  for directory in 'ab':
    digests = {name.removesuffix('.json') for name in os.listdir(tmp_path / directory / 'digests')}
    assert digests == {f'checkpoint_{step}' for step in steps_in(tmp_path / directory)}


@pytest.mark.parametrize('mode, best', [('min', 3), ('max', 2)])
def test_the_best_stays(tmp_path, adamw, mode, best):
  metrics = {
    step: {'x': value, 'y': -value} for step, value in zip(range(1, 6), (5.0, 9.0, 1.0, 0.0, 2.0))
  }
  metrics[4] = {'y': 0.0}  # a step without the figure
  save(
    tmp_path,
    adamw.transform,
    range(1, 6),
    CheckpointConfig(keep=1, best_metric='x', best_mode=mode),
    metrics,
  )
  assert steps_in(tmp_path) == [best, 5]
  # Also after a restart.
  save(
    tmp_path,
    adamw.transform,
    [8],
    CheckpointConfig(keep=1, best_metric='x', best_mode=mode),
    {8: {'x': 5.0}},
  )
  assert steps_in(tmp_path) == [best, 8]


def flip(path):
  data = bytearray(open(path, 'rb').read())
  data[len(data) // 2] ^= 1
  open(path, 'wb').write(data)


def truncate(path):
  data = open(path, 'rb').read()
  open(path, 'wb').write(data[: len(data) // 2])


@pytest.mark.parametrize(
  'damage', [flip, truncate, os.unlink], ids=['flipped', 'truncated', 'removed']
)
@pytest.mark.parametrize('item', ['state', 'run'])
def test_damage_is_noticed_and_the_earlier_checkpoint_used(tmp_path, adamw, damage, item):
  save(tmp_path, adamw.transform, [10, 20])
  file = some_file(tmp_path, 20, item)
  damage(file)
  with pytest.warns(UserWarning) as said:
    state, run = restore(tmp_path, adamw.transform)
  message = next(str(w.message) for w in said if 'damaged' in str(w.message))
  assert (
    'checkpoint_20' in message and 'checkpoint_10' in message and os.path.basename(file) in message
  )
  equal(state, state_on(adamw.transform, 10))
  assert run['step'] == 10


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path, adamw):
  save(tmp_path, adamw.transform, [10, 20])
  flip(some_file(tmp_path, 20))
  checkpoints = Checkpoints(str(tmp_path), CheckpointConfig(keep=2))
  with pytest.warns(UserWarning, match='damaged'):
    checkpoints.restore_latest(abstract_on(adamw.transform))
  checkpoints.save(15, state_on(adamw.transform, 15), RUN)
  checkpoints.save(20, state_on(adamw.transform, 20, seed=5), RUN)
  checkpoints.close()
  assert steps_in(tmp_path) == [15, 20]
  state, _ = restore(tmp_path, adamw.transform)
  equal(state, state_on(adamw.transform, 20, seed=5))


def test_nothing_usable_is_an_error_that_names_all(tmp_path, adamw):
  save(tmp_path, adamw.transform, [10, 20])
  for step in (10, 20):
    flip(some_file(tmp_path, step))
  with pytest.raises(
    CheckpointError,
    match='checkpoint_20 is damaged.*checkpoint_10 is damaged.*train from the start',
  ):
    restore(tmp_path, adamw.transform)


def test_an_unreadable_digest_is_damage_and_a_missing_one_is_not(tmp_path, adamw):
  save(tmp_path, adamw.transform, [10, 20])
  digest = tmp_path / 'digests' / 'checkpoint_20.json'
  truncate(digest)
  with pytest.warns(UserWarning, match='digest .* is not readable'):
    assert restore(tmp_path, adamw.transform)[1]['step'] == 10
  digest.unlink()  # killed between the checkpoint and its digest
  assert restore(tmp_path, adamw.transform)[1]['step'] == 20


def test_a_half_written_checkpoint_is_no_checkpoint(tmp_path, adamw):
  save(tmp_path, adamw.transform, [10, 20])
  shutil.move(tmp_path / 'checkpoint_20', tmp_path / 'checkpoint_20.orbax-checkpoint-tmp-123')
  assert restore(tmp_path, adamw.transform)[1]['step'] == 10
  assert steps_in(tmp_path) == [10]


def test_another_model_is_an_error_that_names_the_parameters(tmp_path, adamw):
  save(tmp_path, adamw.transform, [1])
  wider = abstract_on(adamw.transform, model=Decoder(tiny_config(vocab_size=64, mlp_dim=32)))
  untied = abstract_on(
    adamw.transform, model=Decoder(tiny_config(vocab_size=64, tie_embeddings=True))
  )
  path = str(tmp_path / 'checkpoint_1')
  with pytest.raises(
    CheckpointError,
    match=r'mlp/gate/kernel: \(2, 16, 24\) in the checkpoint, \(2, 16, 32\) in the model',
  ):
    restore_tree(path, wider)
  with pytest.raises(CheckpointError, match='decoder/lm_head: not in the model'):
    SavedModel.open(path).restore(untied.params, MODEL)
  checkpoints = Checkpoints(str(tmp_path), CheckpointConfig())
  with pytest.raises(CheckpointError, match='of another model'):
    checkpoints.restore_latest(wider)
  checkpoints.close()


@pytest.mark.parametrize(
  'saved, wanted, parts',
  [
    ({}, {'clip_norm': None}, ['1/0/mu', 'in this run 0/count, 0/mu']),
    ({'clip_norm': None}, {}, ['in the checkpoint 0/count, 0/mu', '1/0/mu']),
    ({}, {'kind': optimizers.adafactor}, ['1/0/nu', '0/v_row']),
    ({'kind': optimizers.adafactor}, {}, ['0/v_row', '1/0/nu']),
    (
      {'kind': optimizers.adafactor},
      {'kind': optimizers.adafactor, 'clipping_threshold': None},
      ['2/count; in this run 0/count', '1/count'],
    ),
    (
      {'kind': optimizers.adafactor},
      {'kind': optimizers.adafactor, 'clip_norm': 1.0},
      ['in this run 1/0/count'],
    ),
  ],
)
def test_another_optimizer_is_explained_by_its_structure(tmp_path, saved, wanted, parts):
  def transform(kind=optimizers.adamw, **settings):
    return kind(10, **settings).transform

  save(tmp_path, transform(**saved), [1, 2])
  with pytest.raises(OptimizerStateError) as error:
    restore(tmp_path, transform(**wanted))
  said = str(error.value)
  assert all(part in said for part in (*parts, 'checkpoint_2. ', 'The checkpoint is complete'))
  assert 'damaged' not in said and 'elete' not in said and len(said) < 1200
  named = str(error.value.because_of(['adamw.clip_norm was 1.0, now None']))
  assert 'has changed since' in named and 'clip_norm was 1.0, now None. Undo the change' in named
  assert restore(tmp_path, transform(**saved))[1]['step'] == 2


def test_parameters_without_optimizer_state_say_how_to_start_from_them(tmp_path, adamw):
  parameters.save_params(str(tmp_path), init_params(MODEL))
  with pytest.raises(OptimizerStateError, match='in the checkpoint none') as error:
    restore(tmp_path, adamw.transform)
  assert 'INITIAL_CHECKPOINT_PATH' in str(error.value)


def test_a_complete_checkpoint_that_cannot_be_read_is_not_called_damaged(
  tmp_path, adamw, monkeypatch
):
  save(tmp_path, adamw.transform, [10, 20])

  def fail(*_):
    raise MemoryError('12 GiB\nand a trace')

  monkeypatch.setattr(manager, 'restore_tree', fail)
  with pytest.raises(
    CheckpointError, match='checkpoint_20 cannot be read .MemoryError: 12 GiB.,'
  ) as e:
    restore(tmp_path, adamw.transform)
  said = str(e.value)
  assert 'as they were saved' in said and 'damaged' not in said and 'elete' not in said
  assert 'trace' not in said
  for step in (10, 20):
    (tmp_path / 'digests' / f'checkpoint_{step}.json').unlink()
  with pytest.warns(UserWarning, match='no digest'), pytest.raises(CheckpointError) as e:
    restore(tmp_path, adamw.transform)
  said = str(e.value)
  assert 'damaged' not in said and 'elete' not in said and 'another MODEL_DIR' in said


def test_restore_params_from_either_path_and_whatever_the_optimizer(tmp_path, optimizer):
  save(tmp_path, optimizer.transform, [2, 11])
  partition = Partitioner(mesh_shape=(1, 2, 2), devices=jax.devices()[:4])
  shapes = train_state.parameter_shapes(MODEL, partition)
  for path, step in ((tmp_path, 11), (tmp_path / 'checkpoint_2', 2)):
    params = SavedModel.open(str(path)).restore(shapes, MODEL)
    equal(params, state_on(optimizer.transform, step).params)
    for leaf, want in zip(jax.tree.leaves(params), jax.tree.leaves(shapes)):
      assert leaf.sharding.is_equivalent_to(want.sharding, leaf.ndim)
  assert latest_checkpoint(str(tmp_path)).endswith('checkpoint_11')
  with pytest.raises(CheckpointError, match='neither a checkpoint_<step> directory'):
    SavedModel.open(str(tmp_path / 'nothing')).restore(shapes, MODEL)


def test_restore_params_reads_t5xs_own_tree(tmp_path):
  """Only {'target', 'state': {'step'}}, written by plain Orbax: what T5X.md 4.7 says of T5X's
  files.
  """
  params = jax.tree.map(np.asarray, init_params(MODEL))
  tree = {'target': params, 'state': {'step': np.int32(5)}, 'flax_mutables': {'x': np.zeros(2)}}
  ocp.PyTreeCheckpointer().save(str(tmp_path / 'checkpoint_5' / 'state'), tree)
  found = SavedModel.open(str(tmp_path)).restore(
    train_state.parameter_shapes(MODEL, Partitioner(mesh_shape=(1, 4, 1))), MODEL
  )
  equal(found, params)


def test_restore_params_verifies_digests(tmp_path, adamw):
  save(tmp_path, adamw.transform, [2, 11])
  flip(some_file(tmp_path, 11))
  shapes = train_state.parameter_shapes(MODEL, Partitioner(mesh_shape=(1, 4, 1)))
  with pytest.raises(CheckpointError, match='checkpoint_11 is damaged: file .* has changed'):
    SavedModel.open(str(tmp_path / 'checkpoint_11')).restore(shapes, MODEL)
  with pytest.raises(CheckpointError, match='checkpoint_11 is damaged'):
    SavedModel.open(str(tmp_path)).restore(shapes, MODEL)


@pytest.mark.parametrize('error, words', [
    (OSError(), 'cannot save a checkpoint in .*: OSError. Make room there'),
    (ValueError('full\nat line 3'), 'cannot save a checkpoint in .*: full. Make room there'),
])  # fmt: skip
def test_a_save_that_fails_says_why(tmp_path, adamw, monkeypatch, error, words):
  checkpoints = Checkpoints(str(tmp_path), CheckpointConfig())

  def fail(*_, **__):
    raise error

  with monkeypatch.context() as patch, pytest.raises(CheckpointError, match=words):
    patch.setattr(checkpoints._manager, 'wait_until_finished', fail)
    checkpoints.wait()
  checkpoints.save(3, state_on(adamw.transform, 3), RUN)
  if isinstance(error, OSError):
    with (
      monkeypatch.context() as patch,
      pytest.raises(CheckpointError, match='cannot write the digests .*OSError') as told,
    ):
      patch.setattr(digests_lib, 'file_digests', fail)
      checkpoints.wait()
    assert 'Make room' not in str(told.value)
  checkpoints.close()


def test_digests_are_sha256_of_every_file(tmp_path, adamw):
  import hashlib

  save(tmp_path, adamw.transform, [4])
  digests = json.loads((tmp_path / 'digests' / 'checkpoint_4.json').read_text())
  root = tmp_path / 'checkpoint_4'
  files = {str(path.relative_to(root)): path for path in root.rglob('*') if path.is_file()}
  assert digests == {
    name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()
  }


@pytest.mark.parametrize('change', [{'best_mode': 'least'}, {'period': -1}, {'keep': 0}])
def test_config_refuses_what_cannot_be(change):
  with pytest.raises(ValueError, match='CheckpointConfig'):
    CheckpointConfig(**change)


@pytest.mark.parametrize(
  'metric, mode',
  [
    ('eval/heldout/loss', 'min'),
    ('eval/heldout/preference/margin', 'max'),
    ('eval/cross_mmlu/ac3_3', 'max'),
    ('eval/questions/accuracy_en', 'max'),
    ('eval/questions/consistency_3', 'max'),
    ('eval/questions/unparsed_rate', 'min'),
  ],
)
def test_the_name_of_a_metric_says_what_is_best(metric, mode):
  assert CheckpointConfig(best_metric=metric).best_mode == mode
  assert CheckpointConfig(best_metric=metric, best_mode='min').best_mode == 'min'


def test_a_metric_whose_name_does_not_say_what_is_best():
  assert CheckpointConfig(best_metric='eval/own/x').best_mode is None  # `train` refuses it
