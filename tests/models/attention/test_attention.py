"""Every attention back end against the reference, forward and gradient, and who is chosen when."""

import functools
import warnings

from conftest import init_params, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.attention import attention as attention_lib
from crossin_jax.models.attention import blockwise as attention_blockwise
from crossin_jax.models.attention import cudnn as attention_cudnn
from crossin_jax.models.attention import shards as attention_shards
from crossin_jax.models.attention import splash as attention_splash
from crossin_jax.models.attention import xla as attention_xla
from crossin_jax.models.attention.attention import attention, choose
from crossin_jax.models.attention.mask import Mask
from crossin_jax.models.decoder import Decoder


def segments_of(rng, rows, length, *, most=6):
  """Ragged packed rows: runs of rising ids, some rows with padding behind."""
  segments = np.zeros((rows, length), np.int32)
  for row in segments:
    ends = np.sort(rng.integers(1, length + 1, rng.integers(1, most + 1)))
    for i, (first, last) in enumerate(zip([0, *ends], ends), start=1):
      row[first:last] = i
  return segments


def inputs(rng, rows, queries, keys, heads, key_heads, size, dtype=np.float32):
  draw = lambda length, heads: jnp.asarray(rng.standard_normal((rows, length, heads, size)), dtype)
  return draw(queries, heads), draw(keys, key_heads), draw(keys, key_heads), draw(queries, heads)


@functools.partial(jax.jit, static_argnames=('back_end', 'options'))
def _run(back_end, options, arrays, mask):
  q, k, v, weights, *sinks = arrays
  real = (
    jnp.ones((), bool) if mask.q_segments_BT is None else (mask.q_segments_BT > 0)[..., None, None]
  )

  def objective(q, k, v, *sinks):
    out = jnp.where(real, back_end(q, k, v, mask, *sinks, **dict(options)), 0)
    return (out.astype(jnp.float32) * weights.astype(jnp.float32)).sum(), out

  inputs = (q, k, v, *sinks)
  (_, out), gradients = jax.value_and_grad(objective, range(len(inputs)), has_aux=True)(*inputs)
  return out, gradients


def both(back_end, arrays, mask, *, scale=None, softcap=None, tolerance=2e-5, **own):
  """Compares a back end with the reference; padding, whose output means nothing, is left out."""
  options = (('scale', scale), ('softcap', softcap))
  expected = _run(attention_xla.attend, options, arrays, mask)
  found = _run(back_end, (*options, *own.items()), arrays, mask)
  names = ('out', 'dq', 'dk', 'dv', 'dsinks')[: len(arrays)]
  leaves = jax.tree.leaves(expected), jax.tree.leaves(found)
  for name, a, b in zip(names, *leaves, strict=True):
    assert a.shape == b.shape and a.dtype == b.dtype
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    np.testing.assert_allclose(b, a, atol=tolerance * max(1, np.abs(a).max()), err_msg=name)


# Few shapes, each compiled once; everything else is drawn.
SHAPES = ((2, 24, 4, 2, 8), (1, 29, 2, 2, 4))


@settings(max_examples=25)
@given(
  seed=st.integers(0, 2**20),
  shape=st.sampled_from(SHAPES),
  options=st.sampled_from(
    ((None, None, True), (1, None, True), (5, 1.5, True), (5, None, False), (None, 1.5, False))
  ),
)
def test_blockwise_equals_the_reference(seed, shape, options):
  rng, (window, softcap, packed) = np.random.default_rng(seed), options
  rows, length, heads, key_heads, size = shape
  arrays = inputs(rng, rows, length, length, heads, key_heads, size)
  segments = jnp.asarray(segments_of(rng, rows, length)) if packed else None
  both(
    attention_blockwise.attend,
    arrays,
    Mask(segments, segments, window=window),
    softcap=softcap,
    block=8,
  )


def plainly(q, k, v, sinks, window):
  """Attention in one segment, with a column for the sinks, in float64."""
  q, k, v, sinks = (np.asarray(x, np.float64) for x in (q, k, v, sinks))
  k, v = (np.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
  logits = np.einsum('bthd,bshd->bhts', q, k) * q.shape[-1] ** -0.5
  back = np.arange(q.shape[1])[:, None] - np.arange(k.shape[1])
  logits = np.where((back >= 0) & (back < (window or np.inf)), logits, -np.inf)
  column = np.broadcast_to(sinks[:, None, None], (*logits.shape[:3], 1))
  weights = np.exp(np.concatenate([logits, column], axis=-1))
  weights = (weights / weights.sum(axis=-1, keepdims=True))[..., :-1]
  return np.einsum('bhts,bshd->bthd', weights, v)


@pytest.mark.parametrize('window', [None, 5])
def test_the_reference_with_sinks_has_one_more_column(window):
  rng = np.random.default_rng(0)
  q, k, v, _ = inputs(rng, 2, 24, 24, 4, 2, 8)
  sinks = jnp.asarray(3 * rng.standard_normal(4), jnp.float32)
  found = attention(q, k, v, window=window, sinks_H=sinks, implementation='xla')
  np.testing.assert_allclose(found, plainly(q, k, v, sinks, window), atol=1e-5)
  assert np.abs(found - attention(q, k, v, window=window, implementation='xla')).max() > 0.1


@settings(max_examples=10)
@given(seed=st.integers(0, 2**20), window=st.sampled_from((None, 6)), large=st.booleans())
def test_blockwise_with_sinks_equals_the_reference(seed, window, large):
  """Sinks above and below all logits."""
  rng = np.random.default_rng(seed)
  sinks = rng.standard_normal(4) * (30 if large else 1)
  arrays = (*inputs(rng, 2, 24, 24, 4, 2, 8), jnp.asarray(sinks, jnp.float32))
  segments = jnp.asarray(segments_of(rng, 2, 24))
  both(attention_blockwise.attend, arrays, Mask(segments, segments, window=window), block=8)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**20), window=st.sampled_from((None, 6)), prompts=st.booleans())
def test_blockwise_knows_prompts_and_branches(seed, window, prompts):
  rng = np.random.default_rng(seed)
  arrays = inputs(rng, 2, 24, 24, 4, 2, 8)
  segments = jnp.asarray(segments_of(rng, 2, 24))
  prefix = branches = positions = None
  if prompts:
    prefix = jnp.asarray(rng.integers(0, 2, (2, 24)))
  else:
    branches = jnp.asarray(np.sort(rng.integers(0, 3, (2, 24)), axis=1))
    positions = jnp.asarray(np.broadcast_to(np.arange(24) % 13, (2, 24)))
  mask = Mask(segments, segments, prefix, branches, positions, window)
  both(attention_blockwise.attend, arrays, mask, scale=0.3, block=8)


@pytest.mark.parametrize('queries, keys', [(9, 20), (20, 9)])
def test_blockwise_with_other_numbers_of_keys(queries, keys):
  rng = np.random.default_rng(0)
  both(attention_blockwise.attend, inputs(rng, 2, queries, keys, 4, 2, 8), Mask(), block=8)


def test_blockwise_in_float64_and_bfloat16():
  rng = np.random.default_rng(1)
  segments = segments_of(rng, 2, 24)
  with jax.enable_x64(True):
    mask = Mask(jnp.asarray(segments), jnp.asarray(segments))
    both(
      attention_blockwise.attend,
      inputs(rng, 2, 24, 24, 4, 2, 8, np.float64),
      mask,
      tolerance=1e-13,
      block=8,
    )
  mask = Mask(jnp.asarray(segments), jnp.asarray(segments))
  both(
    attention_blockwise.attend,
    inputs(rng, 2, 24, 24, 4, 2, 8, jnp.bfloat16),
    mask,
    tolerance=0.03,
    block=8,
  )


def test_pairs_are_those_of_which_something_is_seen():
  for window, ahead, size in ((None, False, 4), (3, False, 4), (9, False, 3), (None, True, 4)):
    mask = Mask(prefix_BS=jnp.ones((1, 12), jnp.int32) if ahead else None, window=window)
    seen = (
      np.asarray(mask.seen(0, 12, 0, 12))[0]
      .reshape(12 // size, size, 12 // size, size)
      .any(axis=(1, 3))
    )
    assert attention_blockwise._pairs(12, 12, size, size, mask) == tuple(
      map(tuple, np.argwhere(seen))
    )


@settings(max_examples=50)
@given(seed=st.integers(0, 2**20), rising=st.booleans())
def test_no_pair_that_shares_a_segment_is_passed_over(seed, rising):
  rng = np.random.default_rng(seed)
  ids = segments_of(rng, 2, 19) if rising else rng.integers(0, 5, (2, 19)).astype(np.int32)
  pairs = tuple((i, j) for i in range(3) for j in range(3))
  padded = jnp.pad(jnp.asarray(ids), ((0, 0), (0, 2)))
  found = np.asarray(attention_blockwise._shared(Mask(padded, padded), pairs, 7, 7))
  for (i, j), said in zip(pairs, found):
    cut = lambda n: ids[:, 7 * n : 7 * n + 7]
    assert said or not (cut(i)[:, :, None] == cut(j)[:, None]).any()
  if rising and (ids[:, 0] != ids[:, -1]).all() and (ids[:, 6] != ids[:, 14]).all():
    assert not found[pairs.index((2, 0))]


def test_blockwise_never_holds_all_logits():
  """By the compiled program: memory grows with the length, not with its square."""
  temporary = {}
  for length in (256, 1024):
    x = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
    for name, back_end in (('xla', attention_xla), ('blockwise', attention_blockwise)):
      own = {'block': 64} if name == 'blockwise' else {}
      attend = functools.partial(back_end.attend, mask=Mask(), scale=None, softcap=None, **own)
      compiled = (
        jax.jit(jax.grad(lambda q, k, v: attend(q, k, v).sum(), (0, 1, 2))).lower(x, x, x).compile()
      )
      temporary[name, length] = compiled.memory_analysis().temp_size_in_bytes
  assert temporary['blockwise', 1024] < 5 * temporary['blockwise', 256]
  assert temporary['xla', 1024] > 9 * temporary['xla', 256]
  assert temporary['blockwise', 1024] < 2 * 1024 * 1024  # half of one head's logits


@pytest.mark.parametrize('mesh', [(4, 1, 1), (2, 1, 2), (1, 2, 2), (1, 1, 4)], ids=str)
@pytest.mark.parametrize('rows, key_heads', [(4, 2), (3, 1)])
def test_back_ends_on_meshes(mesh, rows, key_heads):
  """Rows and heads cut over devices, also where they do not divide: nothing changes, and no device
  sees another's.
  """
  rng = np.random.default_rng(2)
  q, k, v, weights = inputs(rng, rows, 24, 24, 4, key_heads, 8)
  segments = jnp.asarray(segments_of(rng, rows, 24))

  def objective(implementation, q, k, v):
    out = attention(
      q, k, v, q_segments_BT=segments, k_segments_BS=segments, implementation=implementation
    )
    return jnp.where((segments > 0)[..., None, None], out * weights, 0).sum()

  expected = jax.jit(jax.grad(functools.partial(objective, 'xla'), (0, 1, 2)))(q, k, v)
  partition = Partitioner(mesh_shape=mesh, devices=jax.devices()[:4])
  with partition.activate():
    lowered = jax.jit(jax.grad(functools.partial(objective, 'blockwise'), (0, 1, 2))).lower(q, k, v)
    assert rows == 3 and mesh == (4, 1, 1) or 'manual' in lowered.as_text()
    found = lowered.compile()(q, k, v)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), expected, found)


def test_t5xs_mesh_counts_too():
  """`with mesh:` and rules that name `model`."""
  from flax.linen import partitioning as nn_partitioning

  mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ('data', 'model'))
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    with mesh, nn_partitioning.axis_rules((('batch', 'data'), ('heads', 'model'))):
      assert attention_shards.axes_of('batch', 4) == ('data',) and attention_shards.axes_of(
        'heads', 6
      ) == ('model',)
      assert (
        attention_shards.axes_of('heads', 3) == () and attention_shards.axes_of('unknown', 4) == ()
      )
  assert attention_shards.axes_of('batch', 4) == ()


@settings(max_examples=4)
@given(
  seed=st.integers(0, 2**20),
  window=st.sampled_from((None, 20)),
  softcap=st.sampled_from((None, 2.0)),
)
def test_splash_equals_the_reference(seed, window, softcap):
  """Imitated; 150 tokens are filled up to 256."""
  rng = np.random.default_rng(seed)
  arrays = inputs(rng, 2, 150, 150, 2, 1, 16)
  segments = jnp.asarray(segments_of(rng, 2, 150))
  mask = Mask(segments, segments, window=window)
  both(attention_splash.attend, arrays, mask, scale=0.3, softcap=softcap, interpret=True)


@pytest.mark.parametrize('dtype, tolerance', [('float32', 2e-5), ('bfloat16', 2e-2)])
def test_splash_with_sinks_equals_the_reference(dtype, tolerance):
  """The sinks are parameters in float32, and so are their gradients."""
  rng = np.random.default_rng(3)
  sinks = jnp.asarray(rng.integers(-8, 9, 2) / 4, jnp.float32)  # bfloat16 has them too
  arrays = (*inputs(rng, 2, 150, 150, 2, 1, 16, dtype), sinks)
  segments = jnp.asarray(segments_of(rng, 2, 150))
  mask = Mask(segments, segments)
  both(attention_splash.attend, arrays, mask, interpret=True, tolerance=tolerance)


def described(topology):
  """Devices that are not there, or a skip."""
  pytest.importorskip('libtpu', reason='compiling for TPUs needs libtpu, of the extra `test`')
  from jax.experimental import topologies

  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    return topologies.get_topology_desc(platform='tpu', topology_name=topology).devices


def lowered_for(
  devices, mesh, *, rows=4, length=1000, heads=4, key_heads=2, size=64, dtype='bfloat16', **options
):
  """The gradient of 'auto' for devices that are only described."""
  partition = Partitioner(mesh_shape=mesh, devices=devices[: int(np.prod(mesh))])
  with partition.activate():
    make = lambda shape, dtype, *axes: jax.ShapeDtypeStruct(
      shape, dtype, sharding=partition.sharding(axes)
    )
    axes = ('batch', 'length', 'heads', 'kv')
    q, k = (
      make((rows, length, heads, size), dtype, *axes),
      make((rows, length, key_heads, size), dtype, *axes),
    )
    segments = make((rows, length), 'int32', 'batch', 'length')
    attend = lambda q, k, v, s: attention(q, k, v, q_segments_BT=s, k_segments_BS=s, **options)
    gradient = jax.grad(lambda q, k, v, s: attend(q, k, v, s).astype(jnp.float32).sum(), (0, 1, 2))
    return jax.jit(gradient).lower(q, k, k, segments)


@pytest.mark.parametrize('topology', ['v5e:2x2', 'v5p:2x2x1', 'v6e:2x2'])
def test_splash_compiles_for_tpus(topology):
  """What 'auto' is on a TPU, on a mesh, with its backward pass: three kernels, and nothing as large
  as the logits.
  """
  compiled = lowered_for(described(topology), (1, 2, 2), window=300, softcap=20.0).compile()
  assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 3
  assert compiled.memory_analysis().temp_size_in_bytes < 1000 * 1000 * 4 * 2


def test_splash_with_sinks_compiles_for_tpus():
  """On a mesh that cuts the heads, and so their sinks."""
  lowered = lowered_for(described('v5e:2x2'), (1, 2, 2), sinks_H=np.ones(4, np.float32))
  assert lowered.compile().as_text().count('custom_call_target="tpu_custom_call"') == 3


@pytest.mark.slow
@pytest.mark.parametrize(
  'size, dtype', [(64, 'float32'), (80, 'bfloat16'), (128, 'bfloat16'), (256, 'bfloat16')]
)
def test_splash_compiles_for_heads_of_all_sizes(size, dtype):
  compiled = lowered_for(
    described('v5e:2x2'), (1, 1, 1), rows=1, length=1024, size=size, dtype=dtype
  ).compile()
  assert 'tpu_custom_call' in compiled.as_text()


@pytest.mark.slow
def test_blockwise_compiles_for_tpus():
  compiled = lowered_for(
    described('v5e:2x2'), (1, 2, 2), length=2048, implementation='blockwise'
  ).compile()
  assert 'tpu_custom_call' not in compiled.as_text()
  assert compiled.memory_analysis().temp_size_in_bytes < 2048 * 2048 * 4


@settings(max_examples=40)
@given(seed=st.integers(0, 2**20), most=st.integers(2, 8))
def test_places_of_segments(seed, most):
  """Every token lies in exactly one segment, in order; -1 behind the last."""
  ids = segments_of(np.random.default_rng(seed), 3, 17, most=7)
  starts, lengths, counts = map(np.asarray, attention_cudnn.offsets(jnp.asarray(ids), most))
  assert (
    starts.shape == (3, most + 1)
    and lengths.shape == (3, most)
    and starts.dtype == lengths.dtype == np.int32
  )
  for row, start, length, count in zip(ids, starts, lengths, counts):
    edges = [0, *(np.flatnonzero(np.diff(row)) + 1), 17]
    assert count == len(edges) - 1
    kept = min(count, most)
    np.testing.assert_array_equal(start[:kept], edges[:kept])
    np.testing.assert_array_equal(length[:kept], np.diff(edges)[:kept])
    assert (start[kept:] == -1).all() and (length[kept:] == -1).all()


def test_cudnns_call_lowers_for_a_gpu(monkeypatch):
  """Shapes, dtypes and arguments of the call that needs a GPU to run: both passes, and the way out
  for crowded rows.
  """
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  monkeypatch.setattr(cudnn, 'check_cudnn_version', lambda: 91000)
  monkeypatch.setattr(cudnn, 'check_compute_capability', lambda capability: True)
  rng = np.random.default_rng(0)
  q, k, v, _ = inputs(rng, 2, 64, 64, 4, 2, 16, jnp.bfloat16)
  for segments in (None, jnp.asarray(segments_of(rng, 2, 64))):
    attend = functools.partial(
      attention_cudnn.attend, mask=Mask(segments, segments), scale=None, softcap=None
    )
    gradient = jax.grad(lambda q, k, v: attend(q, k, v).astype(jnp.float32).sum(), (0, 1, 2))
    text = jax.jit(gradient).trace(q, k, v).lower(lowering_platforms=('cuda',)).as_text()
    assert '__cudnn$fmhaSoftmax' in text and '__cudnn$fmhaSoftmaxBackward' in text
    if segments is not None:
      assert 'PADDING_CAUSAL' in text and 'stablehlo.case' in text


def gpu():
  try:
    return jax.devices('gpu')[0]
  except RuntimeError:
    pytest.skip('cuDNN needs an NVIDIA GPU: set CROSSIN_TEST_PLATFORMS=cuda,cpu on one')


@pytest.mark.parametrize('packed, most', [(False, 6), (True, 6), (True, 120)])
def test_cudnn_equals_the_reference(packed, most):
  """Also with more segments in a row than cuDNN is given room for."""
  with jax.default_device(gpu()):
    rng = np.random.default_rng(0)
    arrays = inputs(rng, 2, 512, 512, 4, 2, 64, jnp.bfloat16)
    segments = jnp.asarray(segments_of(rng, 2, 512, most=most)) if packed else None
    mask = Mask(segments, segments)
    if reason := attention_cudnn.refusal(*arrays[:2], mask, None, 'gpu'):
      pytest.skip(reason)
    both(attention_cudnn.attend, arrays, mask, tolerance=0.03)


class FakeGpu:
  def __init__(self, monkeypatch, capability=(9, 0), version=91000):
    monkeypatch.setattr(attention_cudnn, '_capability', lambda: capability)
    monkeypatch.setattr(attention_cudnn, '_version', lambda: version)


def pick(
  implementation,
  platform,
  length=4096,
  *,
  dtype=jnp.bfloat16,
  size=64,
  softcap=None,
  has_sinks=False,
  keys=None,
  **mask,
):
  q = jax.ShapeDtypeStruct((1, length, 4, size), dtype)
  k = jax.ShapeDtypeStruct((1, keys or length, 2, size), dtype)
  return choose(implementation, q, k, Mask(**mask), softcap, platform, has_sinks)


def test_auto_on_a_cpu_is_the_reference_for_short_rows():
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    assert pick('auto', 'cpu', 512) == 'xla'
    assert pick('auto', 'cpu', attention_lib.LONG) == 'blockwise'
    assert pick('auto', 'tpu', 64) == pick('auto', 'gpu', 64) == 'xla'
    for name in ('xla', 'blockwise'):
      assert pick(name, 'tpu') == pick(name, 'cpu', 8) == name


@pytest.mark.parametrize('platform, change, words', [
    ('tpu', {}, None),
    ('tpu', {'window': 5, 'softcap': 2.0}, None),
    ('tpu', {'has_sinks': True}, None),
    ('gpu', {'has_sinks': True}, 'no sinks'),
    ('tpu', {'prefix_BS': 1}, 'bidirectional prompts'),
    ('tpu', {'branches_BS': 1}, 'branches'),
    ('tpu', {'keys': 2048}, 'as many queries as keys'),
    ('tpu', {'dtype': jnp.float16}, 'bfloat16 or float32'),
    ('gpu', {}, None),
    ('gpu', {'q_segments_BT': 1}, None),
    ('gpu', {'window': 5}, None),
    ('gpu', {'window': 5, 'q_segments_BT': 1}, 'no window in packed rows'),
    ('gpu', {'softcap': 2.0}, 'no soft cap'),
    ('gpu', {'dtype': jnp.float32}, 'set DecoderConfig.dtype'),
    ('gpu', {'size': 65}, 'multiples of 8'),
    ('gpu', {'branches_BS': 1}, 'branches'),
])  # fmt: skip
def test_auto_says_once_why_not(monkeypatch, platform, change, words):
  FakeGpu(monkeypatch)
  attention_lib._warn_once.cache_clear()
  kernel = {'tpu': 'splash', 'gpu': 'cudnn'}[platform]
  with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter('always')
    found = [pick('auto', platform, **change) for _ in range(3)]
  assert set(found) == {kernel if words is None else 'blockwise'}
  assert len(said) == (words is not None)
  if words:
    assert words in str(said[0].message) and "'blockwise' is used instead" in str(said[0].message)


def test_old_gpus(monkeypatch):
  attention_lib._warn_once.cache_clear()
  FakeGpu(monkeypatch, capability=(8, 0))
  assert pick('auto', 'gpu') == 'cudnn'
  with pytest.warns(match='packed rows from Hopper on'):
    assert pick('auto', 'gpu', q_segments_BT=1) == 'blockwise'
  FakeGpu(monkeypatch, version=None)
  with pytest.warns(match='cuDNN was not found'):
    assert pick('cudnn', 'gpu') == 'blockwise'
  FakeGpu(monkeypatch, version=90500)
  with pytest.warns(match='older than 9.6'):
    assert pick('cudnn', 'gpu', q_segments_BT=1) == 'blockwise'


@pytest.mark.parametrize(
  'implementation, words', [('splash', 'a kernel for TPUs, and this is a cpu'), ('cudnn', 'NVIDIA')]
)
def test_a_model_with_a_back_end_that_is_not_there_runs(implementation, words):
  attention_lib._warn_once.cache_clear()
  tokens = np.arange(12).reshape(2, 6)
  models = [Decoder(tiny_config(attention=name)) for name in ('xla', implementation)]
  params = init_params(models[0])
  with pytest.warns(match=words) as said:
    logits = [
      jax.jit(lambda t: model.apply({'params': params}, t, t, enable_dropout=False))(tokens)
      for model in models
    ]
  assert len(said) == 1
  np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize('policy, passes', [('none', 1), ('minimal', 1), ('full', 2)])
def test_minimal_remat_keeps_what_attention_gave(policy, passes):
  """The forward loop stands twice in the program of a gradient only where everything is computed
  again.
  """
  tokens = np.zeros((1, 8), np.int32)
  model = Decoder(tiny_config(attention='blockwise', remat=policy, scan_layers=False, num_layers=1))
  params = jax.eval_shape(lambda: init_params(model))
  loss = lambda params: model.apply({'params': params}, tokens, tokens, enable_dropout=False).sum()
  assert str(jax.make_jaxpr(jax.grad(loss))(params)).count('scan[') == passes + 1
