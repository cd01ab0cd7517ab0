"""One step is the same step on every mesh and in any number of microbatches; NaN changes nothing."""

import functools
import re

from conftest import init_params, ragged_batch, tiny_config
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crossin_jax.data.stream import put_batch
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import Decoder
from crossin_jax.training import losses
from crossin_jax.training import state as train_state
from crossin_jax.training.optimizers import Optimizer

MESHES = [(1, 1, 1), (1, 2, 1), (1, 2, 2), (4, 1, 1)]
TASKS, LENGTH, ROWS = 3, 16, 8


def recorder():
  """An optimizer whose state after a step is the gradient that it was given, in full precision."""
  init = lambda params: (jax.tree.map(jnp.zeros_like, params),)
  return Optimizer(
    optax.GradientTransformation(init, lambda g, s, p: (jax.tree.map(lambda x: -0.1 * x, g), (g,))),
    None,
  )


@functools.cache
def batch_of(dtype, seed=0):
  # Even vocabulary, so that the vocabulary is really cut over `tensor`.
  batch, _ = ragged_batch(np.random.default_rng(seed), ROWS, LENGTH, vocabulary=64)
  batch = dict(batch)
  if dtype == 'float64':
    batch['decoder_loss_weights'] = batch['decoder_loss_weights'].astype(np.float64)
  # Ragged and uneven: one row empty, one row with ten times the weight of others.
  for array in batch.values():
    array[3] = 0
  batch['decoder_loss_weights'][5] *= 10
  return batch


@functools.cache
def prepared_step(dtype, mesh, microbatches, tie):
  """(partition, state, compiled step); one scanned layer says as much as two and compiles in half
  the time.
  """
  model = Decoder(
    tiny_config(vocab_size=64, num_layers=1, dtype=dtype, param_dtype=dtype, tie_embeddings=tie)
  )
  optimizer = recorder()
  partition = Partitioner(mesh_shape=mesh, devices=jax.devices()[: int(np.prod(mesh))])
  with partition.activate():
    abstract = train_state.state_shardings(model, optimizer.transform, partition)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    params = init_params(model, seed=1)
    state = train_state.TrainState(
      jnp.zeros((), jnp.int32), params, optimizer.transform.init(params)
    )
    state = jax.device_put(state, shardings)
    step = train_state.make_train_step(
      model, optimizer, tasks=TASKS, microbatches=microbatches, z_loss=1e-3
    )
    step = jax.jit(step, out_shardings=(shardings, None))
    return partition, state, step.lower(state, place(partition, batch_of(dtype))).compile()


def place(partition, batch):
  make = lambda _, rows: {name: array[rows] for name, array in batch.items()}
  return put_batch(make, 0, (ROWS, LENGTH), partition.batch_sharding)


def one_step(dtype, mesh, microbatches, batch=None, tie=True):
  """((gradients, metrics, new params, old state) as NumPy, the compiled step, the new state)."""
  partition, state, compiled = prepared_step(dtype, mesh, microbatches, tie)
  new, metrics = compiled(state, place(partition, batch_of(dtype) if batch is None else batch))
  return jax.tree.map(np.asarray, (new.opt_state[0], metrics, new.params, state)), compiled, new


@functools.cache
def reference(dtype):
  with jax.enable_x64(dtype == 'float64'):
    return one_step(dtype, (1, 1, 1), 1)[0]


def assert_close(found, expected, tolerance):
  """Relative to the norm of each leaf: single elements may cancel."""
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    assert a.dtype == b.dtype and a.shape == b.shape
    difference = np.linalg.norm((a - b).ravel().astype(np.float64))
    assert difference <= tolerance * max(np.linalg.norm(b.ravel().astype(np.float64)), 1e-30), (
      difference,
      b.shape,
    )


def check(dtype, mesh, microbatches):
  (gradients, metrics, params, _), *_ = one_step(dtype, mesh, microbatches)
  expected = reference(dtype)
  tolerance = 1e-10 if dtype == 'float64' else 1e-5
  assert metrics.sums.loss.dtype == np.dtype(dtype)
  assert_close(gradients, expected[0], tolerance)
  assert_close(metrics.sums, expected[1].sums, tolerance)
  assert_close(metrics.gradient_norm, expected[1].gradient_norm, tolerance)
  assert_close(params, expected[2], tolerance)


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('microbatches', [4, 8])
def test_microbatches_change_nothing(dtype, microbatches):
  """1 x 8 equals 4 x 2 and 8 x 1, with rows of very different weight."""
  with jax.enable_x64(dtype == 'float64'):
    check(dtype, (1, 1, 1), microbatches)


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('mesh', MESHES[1:], ids=str)
def test_meshes_change_nothing(dtype, mesh):
  with jax.enable_x64(dtype == 'float64'):
    check(dtype, mesh, 1)


def test_mesh_and_microbatches_together():
  check('float32', (1, 2, 2), 2)


def test_the_gradient_is_that_of_the_mean_over_weights():
  """Independent of the step: finite differences of sum / sum in float64."""
  with jax.enable_x64(True):
    gradients, metrics, _, state = reference('float64')
    model = Decoder(
      tiny_config(
        vocab_size=64, num_layers=1, dtype='float64', param_dtype='float64', tie_embeddings=True
      )
    )
    batch = batch_of('float64')

    @jax.jit
    def mean(params):
      objective, sums = losses.batch_loss(model, params, batch, TASKS, z_loss=1e-3)
      return objective / sums.weight

    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda p: rng.standard_normal(p.shape), state.params)
    move = lambda e: mean(jax.tree.map(lambda p, d: p + e * d, state.params, direction))
    expected = (move(1e-6) - move(-1e-6)) / 2e-6
    found = sum(
      float((g * d).sum()) for g, d in zip(jax.tree.leaves(gradients), jax.tree.leaves(direction))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradients)))
    np.testing.assert_allclose(metrics.gradient_norm, norm, rtol=1e-12)


def test_state_and_activations_are_really_sharded():
  """Fails if constraints or axis rules are silently ignored: shapes of shards, and shapes in the
  compiled program.
  """
  _, compiled, new = one_step('float32', (1, 2, 2), 1, tie=False)
  shard = lambda leaf: leaf.sharding.shard_shape(leaf.shape)
  decoder = new.params['decoder']
  assert shard(decoder['token_embedding']) == (32, 8)  # vocab over tensor, embed over fsdp
  assert shard(decoder['lm_head']) == (8, 32)
  assert shard(decoder['layers']['mlp']['gate']['kernel']) == (1, 8, 12)
  assert shard(decoder['layers']['mlp']['down']['kernel']) == (1, 12, 8)
  assert shard(decoder['layers']['self_attention']['query']['kernel']) == (1, 8, 8)
  # The optimizer's copy lies as its parameter does.
  assert shard(new.opt_state[0]['decoder']['lm_head']) == (8, 32)
  text = compiled.as_text()
  shapes = set(re.findall(r'f32\[([\d,]+)\]', text))
  rows = ROWS // 2  # batch over data x fsdp
  assert f'{rows},{LENGTH},32' in shapes, 'logits: batch over fsdp, vocabulary over tensor'
  assert f'{ROWS},{LENGTH},64' not in shapes, 'whole logits on a device'
  assert f'{rows},{LENGTH},12' in shapes, 'MLP: batch over fsdp, width over tensor'
  assert f'{ROWS},{LENGTH},24' not in shapes and f'{ROWS},{LENGTH},16' not in shapes
  assert 'all-reduce' in text and 'all-gather' in text


def test_constraints_of_the_model_reach_the_program():
  """with_sharding_constraint inside the module, without any sharded input to guess from."""
  partition = Partitioner(mesh_shape=(1, 2, 2), devices=jax.devices()[:4])
  model = Decoder(tiny_config(vocab_size=64, num_layers=1))
  tokens = jnp.zeros((ROWS, LENGTH), jnp.int32)
  with partition.activate():
    logits = jax.jit(
      lambda params: model.apply({'params': params}, tokens, tokens, enable_dropout=False)
    )(init_params(model))
    assert logits.sharding.shard_shape(logits.shape) == (ROWS // 2, LENGTH, 32)


def test_microbatches_use_all_devices():
  """Cutting the batch moves no rows: each microbatch keeps its rows on their devices."""
  _, compiled, _ = one_step('float32', (4, 1, 1), 2)
  text = compiled.as_text()
  shapes = set(re.findall(r'f32\[([\d,]+)\]', text))
  assert (
    f'1,{LENGTH},64' in shapes and f'4,{LENGTH},64' not in shapes and f'2,{LENGTH},64' not in shapes
  )
  moved = [
    line
    for line in text.splitlines()
    if re.search(r'= \S+ (all-to-all|collective-permute)\(', line)
  ]
  assert not moved, moved[:3]


@pytest.mark.parametrize('bad', ['nan', 'inf'])
@pytest.mark.parametrize('microbatches', [1, 4])
def test_a_bad_row_leaves_the_state_unchanged(bad, microbatches):
  batch = {name: array.copy() for name, array in batch_of('float32').items()}
  place = np.argwhere(batch['decoder_loss_weights'] > 0)[0]
  batch['decoder_loss_weights'][tuple(place)] = float(bad)
  (gradients, metrics, params, before), _, new = one_step('float32', (1, 1, 1), microbatches, batch)
  assert metrics.skipped and int(new.step) == 1
  jax.tree.map(np.testing.assert_array_equal, params, before.params)
  jax.tree.map(np.testing.assert_array_equal, gradients, before.opt_state[0])
  assert not reference('float32')[1].skipped


def test_a_batch_without_any_weight_is_finite():
  batch = {name: np.zeros_like(array) for name, array in batch_of('float32').items()}
  (gradients, metrics, params, before), *_ = one_step('float32', (1, 1, 1), 1, batch)
  assert not metrics.skipped and float(metrics.sums.weight) == 0
  assert all((g == 0).all() for g in jax.tree.leaves(gradients))
  jax.tree.map(np.testing.assert_array_equal, params, before.params)


def test_init_lies_in_shards_and_is_the_same_on_every_mesh():
  model, optimizer = Decoder(tiny_config(vocab_size=64, num_layers=1)), recorder()
  states = []
  for mesh in ((1, 1, 1), (1, 2, 2)):
    partition = Partitioner(mesh_shape=mesh, devices=jax.devices()[: int(np.prod(mesh))])
    with partition.activate():
      abstract = train_state.state_shardings(model, optimizer.transform, partition)
      states.append(train_state.init_state(model, optimizer.transform, abstract, seed=1))
      jax.tree.map(
        lambda leaf, want: leaf.sharding == want.sharding or pytest.fail(str(leaf.sharding)),
        states[-1],
        abstract,
      )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *states)
  other = train_state.init_state(model, optimizer.transform, abstract, seed=2)
  assert (
    np.abs(
      np.asarray(other.params['decoder']['lm_head']) - states[0].params['decoder']['lm_head']
    ).max()
    > 0.1
  )


def test_dropout_of_a_step_is_keyed_by_seed_and_step():
  model = Decoder(tiny_config(vocab_size=64, dropout_rate=0.5, num_layers=1))
  optimizer = recorder()
  params = init_params(model)
  state = train_state.TrainState(jnp.zeros((), jnp.int32), params, optimizer.transform.init(params))
  steps = [
    jax.jit(train_state.make_train_step(model, optimizer, tasks=TASKS, seed=seed, dropout=True))
    for seed in (0, 1)
  ]
  run = lambda step, number: float(
    step(state.replace(step=jnp.int32(number)), batch_of('float32'))[1].sums.loss
  )
  found = [run(steps[0], 0), run(steps[0], 1), run(steps[1], 0)]
  assert len(set(found)) == 3 and run(steps[0], 0) == found[0]
