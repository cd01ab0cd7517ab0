"""The loss is one sum over weighted tokens, whatever the packing and the grouping."""

from conftest import init_params, ragged_batch, tiny_config
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossin_jax.data.stream import empty_rows, write_segment
from crossin_jax.decoding.scoring import sequence_losses
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import Decoder
from crossin_jax.training import losses


@pytest.fixture(scope='module')
def tiny():
  model = Decoder(tiny_config())
  params = init_params(model)
  return model, params, jax.jit(lambda params, batch: losses.batch_loss(model, params, batch, 3))


@pytest.fixture(scope='module')
def batch():
  return ragged_batch(np.random.default_rng(0), 6, 24)


def test_token_losses_equal_the_definition():
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((2, 5, 11)).astype(np.float32) * 20
  targets = rng.integers(0, 11, (2, 5))
  loss, log_z = losses.token_losses(jnp.asarray(logits), jnp.asarray(targets))
  wide = logits.astype(np.float64)
  expected_z = np.log(np.exp(wide - wide.max(-1, keepdims=True)).sum(-1)) + wide.max(-1)
  np.testing.assert_allclose(log_z, expected_z, rtol=1e-6)
  np.testing.assert_allclose(
    loss,
    expected_z - np.take_along_axis(wide, targets[..., None], -1)[..., 0],
    rtol=1e-5,
    atol=1e-5,
  )


def test_packed_loss_equals_the_sum_of_unpacked_ones(tiny, batch):
  model, params, loss = tiny
  packed, examples = batch
  objective, sums = loss(params, packed)
  assert len(examples) > 6
  unpacked = empty_rows(len(examples), 24)
  for i, (_, _, tokens, weights, task) in enumerate(examples):
    write_segment(unpacked, i, 0, 1, tokens, weights, 1, task)
  _, expected = loss(params, unpacked)
  for name in ('loss', 'weight', 'tokens', 'loss_by_task', 'weight_by_task'):
    np.testing.assert_allclose(
      getattr(sums, name), getattr(expected, name), rtol=1e-5, err_msg=name
    )
  assert float(objective) == float(sums.loss)
  # Against sums made by hand from the examples alone.
  assert float(sums.tokens) == sum(len(tokens) for _, _, tokens, *_ in examples)
  by_task = [sum(float(w.sum()) for *_, w, task in examples if task == t) for t in range(3)]
  np.testing.assert_allclose(sums.weight_by_task, by_task, rtol=1e-6)
  # And scoring, which packs in another way, agrees sequence by sequence.
  partition = Partitioner(mesh_shape=(1, 1, 1), devices=jax.devices()[:1])
  with partition.activate():
    scored = sequence_losses(
      model,
      params,
      partition,
      [(tokens, weights) for _, _, tokens, weights, _ in examples],
      bos_id=1,
      length=48,
      rows=3,
    )
  np.testing.assert_allclose(scored.sum(), sums.loss, rtol=1e-5)
  one = sequence_alone(tiny, examples[3])
  np.testing.assert_allclose(scored[3], one, rtol=1e-4, atol=1e-5)


def sequence_alone(tiny, example):
  row = empty_rows(6, 24)
  write_segment(row, 0, 0, 1, example[2], example[3], 1, 0)
  return float(tiny[2](tiny[1], row)[1].loss)


def test_loss_by_task_sums_to_loss_and_adding_is_grouping(tiny, batch):
  _, params, loss = tiny
  whole = loss(params, batch[0])[1]
  np.testing.assert_allclose(whole.loss_by_task.sum(), whole.loss, rtol=1e-6)
  np.testing.assert_allclose(whole.weight_by_task.sum(), whole.weight, rtol=1e-6)
  halves = [
    loss(params, {name: array[part] for name, array in batch[0].items()})[1]
    for part in (slice(2), slice(2, 6))
  ]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, halves[0] + halves[1]
  )


def test_tokens_without_weight_do_not_count_even_if_their_loss_is_infinite():
  class Model:
    """Logits that make the loss of the first token infinite."""

    def apply(self, variables, tokens, targets, **_):
      logits = variables['params'] + jnp.zeros((*tokens.shape, 5))
      return logits.at[:, 0, 2].set(-jnp.inf)

  batch = {name: jnp.asarray(a) for name, a in empty_rows(1, 3).items()}
  batch['decoder_target_tokens'] = jnp.array([[2, 1, 3]])
  batch['decoder_loss_weights'] = jnp.array([[0.0, 1.0, 1.0]])
  sums = losses.batch_loss(Model(), jnp.zeros(()), batch, 1)[1]
  np.testing.assert_allclose(sums.loss, 2 * np.log(5), rtol=1e-6)
  batch['decoder_loss_weights'] = jnp.array([[1.0, 1.0, 1.0]])
  assert not np.isfinite(losses.batch_loss(Model(), jnp.zeros(()), batch, 1)[1].loss)


def test_z_loss_enters_the_objective_alone(tiny, batch):
  model, params, _ = tiny
  objective, sums = jax.jit(lambda p, b: losses.batch_loss(model, p, b, 3, z_loss=0.1))(
    params, batch[0]
  )
  logits = jax.jit(lambda p, b: losses.apply_model(model, p, b)[0])(params, batch[0])
  log_z = np.asarray(jax.nn.logsumexp(logits, axis=-1), np.float64)
  extra = 0.1 * (log_z**2 * batch[0]['decoder_loss_weights']).sum()
  np.testing.assert_allclose(objective, float(sums.loss) + extra, rtol=1e-5)


def test_padding_changes_nothing(tiny, batch):
  """Whatever stands in padding, and ids of 0 inside segments are no padding."""
  _, params, loss = tiny
  filled = {name: array.copy() for name, array in batch[0].items()}
  padding = filled['decoder_segment_ids'] == 0
  assert padding.any() and (filled['decoder_target_tokens'][~padding] == 0).any()
  filled['decoder_target_tokens'][padding] = 17
  filled['decoder_input_tokens'][padding] = 23
  filled['decoder_positions'][padding] = 5
  a, b = loss(params, batch[0])[1], loss(params, filled)[1]
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), a, b)


def test_scoring_refuses_what_does_not_fit(tiny):
  model, params, _ = tiny
  partition = Partitioner(mesh_shape=(1, 1, 1), devices=jax.devices()[:1])
  with pytest.raises(ValueError, match='9 tokens does not fit in rows of 8'):
    sequence_losses(model, params, partition, [(np.zeros(9, int), np.ones(9))], bos_id=1, length=8)
  assert sequence_losses(model, params, partition, [], bos_id=1).shape == (0,)
