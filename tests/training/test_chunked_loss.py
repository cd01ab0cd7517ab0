"""The loss that never holds the logits of a batch is the same loss, on any mesh, and holds them
indeed not.
"""

import functools
import types

from conftest import init_params, ragged_batch, tiny_config
import gin
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models import lora
from crossin_jax.models.decoder import Decoder
from crossin_jax.models.head import Head
from crossin_jax.models.lora import LoraConfig
from crossin_jax.training import chunked_loss, losses
from crossin_jax.training import state as train_state
from crossin_jax.training.losses import weighted_losses
from crossin_jax.training.optimizers import adamw


def plain(x, head, targets, weights, z_loss):
  """The definition, over whole logits."""
  return summed(*losses.token_losses(head.logits(x), targets), weights, z_loss)


def chunked(x, head, targets, weights, z_loss, chunk, keep=False):
  losses_and_log_z = chunked_loss.cross_entropy(x, head, targets, chunk=chunk, keep=keep)
  return summed(*losses_and_log_z, weights, z_loss)


def summed(loss, log_z, weights, z_loss):
  """(the sum that training differentiates, the loss of each token)."""
  objective = losses.weighted(weights, loss).sum()
  return objective + z_loss * losses.weighted(weights, log_z**2).sum(), loss


def case(
  rng, *, rows=2, length=9, width=8, words=300, real=300, tied=False, softcap=None, dtype=np.float32
):
  x = jnp.asarray(3 * rng.standard_normal((rows, length, width)), dtype)
  kernel = jnp.asarray(rng.standard_normal((words, width) if tied else (width, words)), dtype)
  weights = rng.random((rows, length)) * (rng.random((rows, length)) < 0.7)
  targets = jnp.asarray(rng.integers(0, real, (rows, length)))
  return x, Head(kernel, tied, softcap, real), targets, jnp.asarray(weights, np.float32)


@functools.partial(jax.jit, static_argnames=('function', 'arguments'))
def gradients(function, x, head, targets, weights, arguments):
  of = lambda x, kernel: function(x, head.replace(kernel=kernel), targets, weights, *arguments)
  return jax.value_and_grad(of, (0, 1), has_aux=True)(x, head.kernel)


def assert_equal(found, expected, tolerance=1e-5):
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    assert a.shape == b.shape and a.dtype == b.dtype
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    np.testing.assert_allclose(a, b, atol=tolerance * max(1e-30, np.abs(b).max()))


@settings(max_examples=25)
@given(
  seed=st.integers(0, 2**20),
  sizes=st.sampled_from(((300, 300), (384, 301))),
  tied=st.booleans(),
  softcap=st.sampled_from((None, 4.0)),
  z_loss=st.sampled_from((0.0, 0.1)),
  chunk=st.sampled_from((1, 130, 1000)),
  keep=st.booleans(),
)
def test_equals_whole_logits(seed, sizes, tied, softcap, z_loss, chunk, keep):
  arrays = case(
    np.random.default_rng(seed), words=sizes[0], real=sizes[1], tied=tied, softcap=softcap
  )
  found = gradients(chunked, *arrays, (z_loss, chunk, keep))
  assert_equal(found, gradients(plain, *arrays, (z_loss,)))
  if sizes[0] > sizes[1]:
    d_kernel = np.asarray(found[1][1]) if tied else np.asarray(found[1][1]).T
    assert (d_kernel[sizes[1] :] == 0).all() and (d_kernel[: sizes[1]] != 0).any()


@pytest.mark.parametrize('softcap, keep', [(5.0, False), (None, False), (None, True)])
def test_in_float64_and_bfloat16(softcap, keep):
  with jax.enable_x64(True):
    arrays = case(np.random.default_rng(0), softcap=softcap, dtype=np.float64)
    arrays = (*arrays[:3], arrays[3].astype(jnp.float64))
    found = gradients(chunked, *arrays, (0.01, 130, keep))
    assert_equal(found, gradients(plain, *arrays, (0.01,)), 1e-13)
  arrays = case(np.random.default_rng(0), width=64, softcap=softcap, dtype=jnp.bfloat16)
  found = gradients(chunked, *arrays, (0.0, 130, keep))
  assert_equal(found, gradients(plain, *arrays, (0.0,)), 0.01)


def test_what_is_kept_in_bfloat16_costs_little_of_the_gradient():
  """Against the gradient in float64 of the same bf16 arrays: the arithmetic in bf16 has an error
  anyway, and keeping adds at most half of it.
  """
  arrays = case(np.random.default_rng(5), rows=4, length=32, width=128, words=2000, real=2000,
                dtype=jnp.bfloat16)  # fmt: skip
  twice, kept = (
    jax.tree.leaves(gradients(chunked, *arrays, (0.0, 512, keep))[1]) for keep in (False, True)
  )
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (arrays[0], arrays[1], arrays[3]))
    exact = gradients(plain, wide[0], wide[1], arrays[2], wide[2], (0.0,))[1]
    exact = [np.asarray(leaf) for leaf in jax.tree.leaves(exact)]
  error = lambda found, true: np.linalg.norm(np.asarray(found, np.float64) - true)
  for once, stored, true in zip(twice, kept, exact, strict=True):
    assert error(stored, true) < 1.5 * error(once, true) < 0.02 * np.linalg.norm(true)


@pytest.mark.parametrize('dtype, keep', [('float64', True), ('float32', False)])
@pytest.mark.parametrize('tied', [False, True])
def test_the_ring_sums_what_a_scatter_sums(monkeypatch, tied, dtype, keep):
  found = []
  with jax.enable_x64(dtype == 'float64'):
    x, head, targets, _ = case(np.random.default_rng(7), rows=8, width=16, tied=tied, dtype=dtype)
    for ring in (False, True):
      monkeypatch.setattr(chunked_loss, '_wants_ring', lambda *_, ring=ring: ring)
      with Partitioner(mesh_shape=(1, 4, 1)).activate():
        of = lambda x, kernel: chunked_loss.cross_entropy(
          x, head.replace(kernel=kernel), targets, chunk=130, keep=keep
        )[0].sum()
        compiled = jax.jit(jax.grad(of, (0, 1))).lower(x, head.kernel).compile()
      assert ('collective-permute' in compiled.as_text()) == ring
      found.append(compiled(x, head.kernel))
    assert_equal(*found, 1e-13 if dtype == 'float64' else 1e-5)


def test_a_ring_is_for_chips_without_sparse_cores(monkeypatch):
  mesh = types.SimpleNamespace(shape={'fsdp': 16, 'data': 3})
  ring = lambda kind, width=('fsdp',), size=4096: (
    monkeypatch.setattr(
      chunked_loss, 'device_in_force', lambda: kind and types.SimpleNamespace(device_kind=kind)
    )
    or chunked_loss._wants_ring(mesh, width, size)
  )
  assert ring('TPU v5 lite')
  assert not ring('TPU v5') and not ring('TPU v6 lite') and not ring('cpu') and not ring(None)
  assert not ring('TPU v5 lite', ('data',)) and not ring('TPU v5 lite', ('data', 'fsdp'))
  assert not ring('TPU v5 lite', size=16 * 64)


@settings(max_examples=10)
@given(
  seed=st.integers(0, 2**20),
  of_loss=st.sampled_from(('none', 'all', 'some')),
  of_log_z=st.sampled_from(('none', 'all', 'some')),
)
def test_each_token_has_its_own_gradient(seed, of_loss, of_log_z):
  """Any cotangents of the losses and of log(Z), negative ones too; a scaled loss has a scaled
  gradient.
  """
  rng = np.random.default_rng(seed)
  x, head, targets, _ = case(rng, softcap=4.0)
  shares = {'none': 0, 'all': 1, 'some': 0.5}
  draw = lambda kind: jnp.asarray(
    rng.standard_normal(targets.shape) * (rng.random(targets.shape) < shares[kind]), np.float32
  )
  cotangents = draw(of_loss), draw(of_log_z)

  def gradient(function, scale=1.0):
    of = lambda x, kernel: function(x, head.replace(kernel=kernel))
    return jax.vjp(of, x, head.kernel)[1](tuple(scale * d for d in cotangents))

  cut = lambda x, head: chunked_loss.cross_entropy(x, head, targets, chunk=130)
  found = gradient(cut)
  assert_equal(found, gradient(lambda x, head: losses.token_losses(head.logits(x), targets)))
  assert_equal(gradient(cut, -3.0), jax.tree.map(lambda d: -3 * d, found))


def test_no_gradient_of_what_is_not_asked_for():
  x, head, targets, _ = case(np.random.default_rng(1))
  losses_of = lambda x: chunked_loss.cross_entropy(x, head, targets, chunk=130)
  for used in (0, 1):
    program = str(jax.make_jaxpr(jax.grad(lambda x, used=used: losses_of(x)[used].sum()))(x))
    assert 'f32[8,300] = dynamic_update_slice' not in program  # of the kernel
    of_kernel = lambda kernel, used=used: chunked_loss.cross_entropy(
      x, head.replace(kernel=kernel), targets, chunk=130
    )[used].sum()
    assert 'f32[8,300] = dynamic_update_slice' in str(
      jax.make_jaxpr(jax.grad(of_kernel))(head.kernel)
    )
  stopped = jax.make_jaxpr(jax.grad(lambda x: jax.lax.stop_gradient(losses_of(x)[0]).sum()))(x)
  assert str(stopped).count('scan[') == 1  # the first pass alone


def test_an_infinite_token_without_weight_reaches_no_gradient():
  """Nor with z-loss, where log(Z) itself is infinite."""
  x, head, targets, weights = case(np.random.default_rng(3))
  x, weights = x.at[0, 0].set(jnp.inf), weights.at[0, 0].set(0).at[0, 1].set(1.0)

  def of(x, kernel):
    loss, log_z = chunked_loss.cross_entropy(x, head.replace(kernel=kernel), targets, chunk=130)
    log_z = jnp.where(weights != 0, log_z, 0)
    return losses.weighted(weights, loss).sum() + 0.1 * losses.weighted(weights, log_z**2).sum()

  dx, _ = jax.grad(of, (0, 1))(x, head.kernel)
  assert np.isfinite(dx).all() and (dx[0, 0] == 0).all() and (dx[0, 1] != 0).any()


@pytest.mark.parametrize('bad', ['weight', 'hidden', 'infinite target'])
def test_what_is_not_finite_shows_in_the_same_places(bad):
  """NaN in a weighted token reaches the loss; an infinite loss without weight reaches nothing."""
  x, head, targets, weights = case(np.random.default_rng(2))
  weights = weights.at[0, 0].set(0).at[0, 1].set(1.0)
  if bad == 'weight':
    weights = weights.at[0, 1].set(jnp.nan)
  elif bad == 'hidden':
    x = x.at[0, 1].set(jnp.nan)
  else:
    head = head.replace(kernel=head.kernel.at[:, 5].set(-jnp.inf * jnp.sign(x[0, 0])))
    targets = targets.at[0, 0].set(5)
    x, weights = jnp.broadcast_to(x[:1, :1], x.shape), weights * (targets != 5)
  (found, losses_found), found_gradients = gradients(chunked, x, head, targets, weights, (0.0, 130))
  (expected, losses_expected), expected_gradients = gradients(
    plain, x, head, targets, weights, (0.0,)
  )
  np.testing.assert_array_equal(np.isfinite(losses_found), np.isfinite(losses_expected))
  if bad == 'infinite target':
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.isinf(losses_found[0, 0])
  else:
    assert not np.isfinite(found) and not np.isfinite(expected)
    assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found_gradients))
    assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected_gradients))


CONFIGS = {
  'own head': {'vocab_size': 300, 'vocab_multiple': 4},
  'tied, capped, padded': {
    'vocab_size': 301,
    'vocab_multiple': 128,
    'tie_embeddings': True,
    'logit_softcap': 3.0,
  },
  'odd': {'vocab_size': 301},
}


@functools.cache
def models_loss(name):
  """(parameters, jitted (parameters, chunk) -> ((objective, sums), gradients), what whole logits
  give).
  """
  model = Decoder(tiny_config(num_layers=1, **CONFIGS[name]))
  batch, _ = ragged_batch(np.random.default_rng(0), 8, 16, vocabulary=300)

  @functools.partial(jax.jit, static_argnums=(1,))
  def run(params, chunk):
    with gin.unlock_config():
      gin.bind_parameter('cross_entropy.chunk', chunk)
    return jax.value_and_grad(
      lambda p: losses.batch_loss(model, p, batch, 3, z_loss=1e-2), has_aux=True
    )(params)

  params = init_params(model)
  return params, run, run(params, None)


@pytest.mark.parametrize('name, mesh', [
    ('own head', (1, 1, 1)), ('own head', (2, 1, 2)), ('own head', (1, 2, 2)),
    ('own head', (1, 1, 4)), ('own head', (1, 4, 1)),
    ('tied, capped, padded', (1, 1, 1)), ('tied, capped, padded', (1, 2, 2)), ('tied, capped, '
                                                                               'padded', (2, 2, 1)),
    ('odd', (2, 1, 2)),
])  # fmt: skip
def test_training_loss_on_meshes(name, mesh):
  """Loss, sums by task and every gradient, with parameters where training has them."""
  params, run, expected = models_loss(name)
  partition = Partitioner(mesh_shape=mesh, devices=jax.devices()[: int(np.prod(mesh))])
  with partition.activate():
    model = Decoder(tiny_config(num_layers=1, **CONFIGS[name]))
    on_mesh = jax.device_put(params, train_state.parameter_shardings(model, partition))
    found = run(on_mesh, 130)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found, expected)
  assert float(found[0][1].weight) > 0


def test_no_device_of_a_mesh_has_the_head_or_its_gradient_whole():
  model = Decoder(tiny_config(num_layers=1, vocab_size=1024))
  batch, _ = ragged_batch(np.random.default_rng(0), 8, 16, vocabulary=300)
  partition = Partitioner(mesh_shape=(1, 2, 2), devices=jax.devices()[:4])
  gin.bind_parameter('cross_entropy.chunk', 128)
  with partition.activate():
    params = jax.device_put(init_params(model), train_state.parameter_shardings(model, partition))
    text = (
      jax.jit(jax.grad(lambda p: losses.batch_loss(model, p, batch, 3)[0]))
      .lower(params)
      .compile()
      .as_text()
    )
  assert 'f32[8,512]' in text and 'f32[16,128]' in text  # a shard; a chunk, gathered
  assert 'f32[16,512]' not in text and 'f32[16,1024]' not in text
  # logits
  assert 'f32[64,128]' in text and 'f32[64,512]' not in text and 'f32[128,512]' not in text


def lora_model(**changes):
  """In float64: the gradients of adapters cancel in f32, whichever way they are computed."""
  wide = {'dtype': 'float64', 'param_dtype': 'float64', 'num_layers': 1}
  return Decoder(tiny_config(**wide, lora=LoraConfig(rank=2, **changes.pop('lora', {})), **changes))


@pytest.mark.parametrize('trained', [False, True])
def test_a_frozen_head_costs_no_gradient(trained):
  """LoRA: with frozen embeddings nothing of the shape of the head is computed; with trained ones it
  is, and right.
  """
  with jax.enable_x64(True):
    model = lora_model(vocab_size=384, lora={'train_embeddings': trained})
    batch, _ = ragged_batch(np.random.default_rng(0), 4, 16)
    params, frozen = lora.split(init_params(model), model.config.lora)

    def run(chunk):
      gin.bind_parameter('cross_entropy.chunk', chunk)
      of = lambda p: losses.batch_loss(model, lora.merge(p, frozen), batch, 3)[0]
      return jax.make_jaxpr(jax.grad(of))(params), jax.jit(jax.grad(of))(params)

    (program, found), (_, expected) = run(128), run(None)
    assert_equal(found, expected, 1e-6)  # the weights of the batch are f32
    assert ('f64[16,384] = dynamic_update_slice' in str(program)) == trained


@pytest.mark.parametrize('base', ['bfloat16', 'int8', 'nf4'])
def test_held_in_few_bits(base):
  pytest.importorskip('qwix', reason='int8 and nf4 need the extra `quant`')
  with jax.enable_x64(True):
    model = lora_model(vocab_size=300, embed_dim=64, lora={'base_dtype': base})
    params, frozen = lora.split(init_params(model), model.config.lora)
    frozen = lora.quantised(
      jax.tree.map(lambda x: x.astype(jnp.bfloat16), frozen), model.config.lora
    )
    batch, _ = ragged_batch(np.random.default_rng(0), 4, 16)

    def run(chunk):
      gin.bind_parameter('cross_entropy.chunk', chunk)
      of = lambda p, frozen: losses.batch_loss(model, lora.merge(p, frozen), batch, 3)[0]
      return jax.jit(jax.value_and_grad(of))(params, frozen)

    assert_equal(run(128), run(None), 1e-6)


def test_held_out_loss_is_chunked_too():
  model = Decoder(tiny_config(num_layers=1, vocab_size=300))
  params, batch = init_params(model), ragged_batch(np.random.default_rng(0), 4, 16)[0]
  partition = Partitioner(mesh_shape=(1, 1, 1), devices=jax.devices()[:1])
  found = []
  for chunk in (None, 128):
    weighted_losses.cache_clear()
    gin.bind_parameter('cross_entropy.chunk', chunk)
    with partition.activate():
      compiled = weighted_losses(model, partition.replicated).lower(params, batch).compile()
    assert ('f32[64,300]' in compiled.as_text()) == (chunk is None)
    found.append(compiled(params, batch))
  weighted_losses.cache_clear()
  np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)
  assert (np.asarray(found[0]) > 0).any()


def test_hidden_states_and_head_make_the_logits():
  model = Decoder(
    tiny_config(
      num_layers=1, vocab_size=61, vocab_multiple=32, logit_softcap=2.0, tie_embeddings=True
    )
  )
  params, tokens = init_params(model), np.arange(12).reshape(2, 6)
  x, head = model.apply({'params': params}, tokens, enable_dropout=False, method='hidden')
  assert x.shape == (2, 6, 16) and head.vocab_size == 61
  logits = model.apply({'params': params}, tokens, tokens, enable_dropout=False)
  np.testing.assert_allclose(head.logits(x), logits, atol=1e-6)


def test_auto_cuts_only_what_is_large():
  assert chunked_loss.auto_chunk(16, 64, 4000) is None  # the quickstart's
  assert chunked_loss.auto_chunk(4, 2048, 1 << 17) == 4096
  assert chunked_loss.auto_chunk(64, 4096, 1 << 17) == 512
  partition = Partitioner(mesh_shape=(1, 2, 2), devices=jax.devices()[:4])
  with partition.activate():
    # half of the tokens are another device's
    assert chunked_loss.auto_chunk(4, 2048, 1 << 17) == 8192
    assert chunked_loss.auto_chunk(4, 512, 1 << 17) is None


def test_auto_keeps_up_to_two_gib():
  assert chunked_loss.auto_keep(2, 4096, 1 << 17, 2)
  assert not chunked_loss.auto_keep(2, 4096, (1 << 17) + 1, 2)
  partition = Partitioner(mesh_shape=(1, 2, 1), devices=jax.devices()[:2])
  with partition.activate():
    assert chunked_loss.auto_keep(4, 4096, 1 << 17, 2)


def test_a_wrong_setting_is_refused():
  model = Decoder(tiny_config(num_layers=1))
  for chunk in (0, 'some', 2.5):
    gin.bind_parameter('cross_entropy.chunk', chunk)
    with pytest.raises(
      ValueError, match="cross_entropy.chunk = .* is neither 'auto' nor None nor a number of words"
    ):
      losses.batch_loss(model, {}, ragged_batch(np.random.default_rng(0), 1, 8)[0], 3)
  gin.bind_parameter('cross_entropy.chunk', 'auto')
  gin.bind_parameter('cross_entropy.keep', 'some')
  with pytest.raises(ValueError, match="cross_entropy.keep = 'some' is none of True, False and"):
    losses.batch_loss(model, {}, ragged_batch(np.random.default_rng(0), 1, 8)[0], 3)


def program(width, dtype, chunk, device=None, tokens=(4, 2048), words=1 << 17):
  """Loss and backward pass compiled for 8,192 tokens and 131,072 words; nothing is allocated."""
  sharding = None if device is None else jax.sharding.SingleDeviceSharding(device)
  make = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  def both(x, kernel, targets, weights):
    head = Head(kernel, False, None, words)
    of = lambda x, kernel: (plain if chunk is None else chunked)(
      x, head.replace(kernel=kernel), targets, weights, 0.0, *(() if chunk is None else (chunk,))
    )[0]
    return jax.value_and_grad(of, (0, 1))(x, kernel)

  arrays = (
    make((*tokens, width), dtype),
    make((width, words), dtype),
    make(tokens, 'int32'),
    make(tokens, 'float32'),
  )
  return jax.jit(both).lower(*arrays).compile().memory_analysis()


def test_memory_is_an_eighth_of_that_of_whole_logits():
  """128k words, 8,192 tokens, chunks as 'auto' has them; beyond arguments and results, which are
  the same.
  """
  chunk = chunked_loss.auto_chunk(4, 2048, 1 << 17)
  whole, cut = program(512, 'float32', None), program(512, 'float32', chunk)
  assert cut.temp_size_in_bytes < whole.temp_size_in_bytes / 8
  assert cut.temp_size_in_bytes < 2 * chunked_loss.CHUNK
  assert cut.output_size_in_bytes == whole.output_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize('topology', ['v5e:2x2', 'v5p:2x2x1', 'v6e:2x2'])
def test_memory_on_tpus(topology):
  """As wide as Llama-3-8B, in bf16."""
  pytest.importorskip('libtpu', reason='compiling for TPUs needs libtpu, of the extra `test`')
  from jax.experimental import topologies

  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    device = topologies.get_topology_desc(platform='tpu', topology_name=topology).devices[0]
  whole, cut = (program(4096, 'bfloat16', chunk, device) for chunk in (None, 4096))
  assert cut.temp_size_in_bytes < whole.temp_size_in_bytes / 8


def test_a_training_step_with_chunks_and_microbatches():
  """The whole step, microbatches scanned, equals that with whole logits."""
  model = Decoder(tiny_config(num_layers=1, vocab_size=300))
  optimizer, batch = (
    adamw(total_steps=10),
    ragged_batch(np.random.default_rng(0), 8, 16, vocabulary=300)[0],
  )
  params = init_params(model)
  state = train_state.TrainState(jnp.zeros((), jnp.int32), params, optimizer.transform.init(params))
  found = []
  for chunk in (None, 128):
    gin.bind_parameter('cross_entropy.chunk', chunk)
    step = train_state.make_train_step(model, optimizer, tasks=3, microbatches=2, z_loss=1e-3)
    found.append(jax.jit(step)(state, batch)[1])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), *found)
