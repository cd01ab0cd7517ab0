"""The decoder: causal, isolated, equal in all its forms, and Llama to the digit."""

import dataclasses
import inspect

from conftest import init_params, ragged_batch, tiny_config
from flax import traverse_util
from flax.linen import partitioning as nn_partitioning
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossin_jax.decoding.generation import greedy
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.attention.attention import attention
from crossin_jax.models.decoder import Decoder, unrolled
from crossin_jax.models.decoder_config import REMAT_POLICIES, DecoderConfig
from crossin_jax.models.lora import LoraConfig
from crossin_jax.training import chunked_loss, losses

# Two segments and padding; id 0 inside a segment is a token.
TOKENS = np.array([[5, 0, 7, 9, 11, 0, 13, 2, 0, 0]])
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 2, 2, 0, 0]])
POSITIONS = np.array([[0, 1, 2, 3, 0, 1, 2, 3, 0, 0]])
GIVEN = TOKENS, SEGMENTS, POSITIONS


def reaches():
  """[output, input]: which input may reach which output."""
  index = np.arange(10)
  segments = SEGMENTS[0]
  return (segments[:, None] == segments[None]) & (index[None] <= index[:, None])


@pytest.fixture(scope='module')
def tiny():
  model = Decoder(tiny_config())
  return model, init_params(model)


def apply(model, params, tokens=TOKENS, segments=SEGMENTS, positions=POSITIONS, **kwargs):
  run = lambda params, tokens: model.apply(
      {'params': params}, tokens, tokens, decoder_segment_ids=segments, decoder_positions=positions,
      enable_dropout=False, **kwargs,
  )  # fmt: skip
  return jax.jit(run)(params, jnp.asarray(tokens))  # op by op costs seconds


def with_random(params, seed=0):
  """Parameters away from their initial values, norm scales too."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda p: jnp.asarray(np.asarray(p) + 0.3 * rng.standard_normal(p.shape).astype(p.dtype)),
    params,
  )


def test_nothing_reaches_back_or_across_by_perturbation(tiny):
  model, params = tiny
  forward = jax.jit(lambda tokens: apply(model, params, tokens))
  base = forward(TOKENS)
  for place in range(8):
    tokens = TOKENS.copy()
    tokens[0, place] = 40
    moved = np.asarray(jnp.abs(forward(tokens) - base).max(axis=-1)[0])
    allowed = reaches()[:, place]
    assert (moved[~allowed] == 0).all(), place
    assert (moved[allowed] > 1e-6).all(), place


@pytest.mark.parametrize('scan', [True, False])
def test_nothing_reaches_back_or_across_by_gradient(scan):
  """The gradient of each output towards each attention input, through keys and values of all
  layers.
  """
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((1, 10, 16)), jnp.float32)
  # A model with one embedding row per place, so that the gradient towards a row is that towards a
  # place.
  model = Decoder(tiny_config(vocab_size=12, scan_layers=scan))
  params = init_params(model)
  tokens = np.arange(10)[None]

  def outputs(rows):
    changed = {
      'decoder': {
        **params['decoder'],
        'token_embedding': params['decoder']['token_embedding'].at[:10].set(rows),
      }
    }
    return (apply(model, changed, tokens)[0] ** 2).sum(axis=-1)

  jacobian = np.abs(jax.jit(jax.jacrev(outputs))(x[0])).max(axis=-1)
  np.testing.assert_array_equal(jacobian > 1e-7, reaches())
  assert (jacobian[~reaches()] == 0).all()


def test_packed_logits_equal_unpacked_ones(tiny):
  model, params = tiny
  batch, examples = ragged_batch(np.random.default_rng(1), 4, 24)
  packed = jax.jit(lambda batch: losses.apply_model(model, params, batch)[0])(batch)
  alone = jax.jit(
    lambda inputs: model.apply({'params': params}, inputs, inputs, enable_dropout=False)
  )
  assert any(start for _, start, *_ in examples)
  for row, start, tokens, *_ in examples:
    inputs = np.zeros((1, 24), np.int32)
    inputs[0, : len(tokens)] = [1, *tokens[:-1]]
    np.testing.assert_allclose(
      packed[row, start : start + len(tokens)],
      alone(inputs)[0, : len(tokens)],
      atol=3e-6,
      rtol=3e-5,
    )


def stacked(params, layers):
  """Parameters of an unrolled model as those of a scanned one."""
  decoder = {k: v for k, v in params['decoder'].items() if not k.startswith('layers_')}
  each = [params['decoder'][f'layers_{i}'] for i in range(layers)]
  return {'decoder': {**decoder, 'layers': jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)}}


def test_scan_equals_unrolled(tiny):
  unrolled = Decoder(tiny_config(scan_layers=False))
  params = with_random(init_params(unrolled))
  np.testing.assert_allclose(
    apply(unrolled, params), apply(tiny[0], stacked(params, 2)), atol=1e-5, rtol=1e-5
  )


@pytest.mark.parametrize('policy', [policy for policy in REMAT_POLICIES if policy != 'none'])
def test_remat_changes_no_gradient(tiny, policy):
  batch, _ = ragged_batch(np.random.default_rng(2), 2, 16)
  grads = lambda model: jax.jit(jax.grad(lambda p: losses.batch_loss(model, p, batch, 3)[0]))(
    tiny[1]
  )
  expected, found = grads(tiny[0]), grads(Decoder(tiny_config(remat=policy)))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), expected, found)


def test_remat_computes_again():
  """The policies are not silently ignored: only under 'full' does the backward pass repeat the
  forward products.
  """
  batch, _ = ragged_batch(np.random.default_rng(2), 2, 16)
  products = {}
  for policy in REMAT_POLICIES:
    model = Decoder(tiny_config(remat=policy))
    params = jax.eval_shape(lambda model=model: init_params(model))
    grad = jax.make_jaxpr(jax.grad(lambda p, model=model: losses.batch_loss(model, p, batch, 3)[0]))
    products[policy] = str(grad(params)).count('dot_general')
  assert products['none'] <= products['minimal'] < products['full'], products


@pytest.mark.parametrize('scan', [True, False])
def test_cached_decoding_equals_full_forward_on_ragged_prompts(scan):
  model = Decoder(tiny_config(scan_layers=scan, tie_embeddings=True))
  params = with_random(init_params(model, 3), 3)
  rng = np.random.default_rng(4)
  prompts = [rng.integers(0, 61, n).tolist() for n in (0, 1, 3, 7, 15, 16, 20, 2)]
  partition = Partitioner(mesh_shape=(1, 1, 1), devices=jax.devices()[:1])
  new, eos = 6, 60
  with partition.activate():
    found = greedy(
      model, params, partition, prompts, bos_id=1, eos_id=eos, max_new_tokens=new, rows=3
    )
  forward = jax.jit(
    lambda tokens: model.apply({'params': params}, tokens, tokens, enable_dropout=False)
  )
  assert len({tuple(row) for row in found}) > 3
  for prompt, row in zip(prompts, found):
    expected = [1, *prompt]
    for _ in range(new):
      padded = np.zeros((1, 32), np.int32)
      padded[0, : len(expected)] = expected
      token = int(jnp.argmax(forward(padded)[0, len(expected) - 1]))
      if token == eos:
        break
      expected.append(token)
    assert row == expected[1 + len(prompt) :]


def test_greedy_stops_at_the_stop_token():
  model = Decoder(tiny_config(tie_embeddings=True))
  params = with_random(init_params(model, 3), 3)
  partition = Partitioner(mesh_shape=(1, 1, 1), devices=jax.devices()[:1])
  with partition.activate():
    run = lambda eos: greedy(
      model, params, partition, [[4, 5]], bos_id=1, eos_id=eos, max_new_tokens=8, rows=1
    )[0]
    free = run(60)
    stop = free[-1]
    assert run(stop) == free[: free.index(stop)]


def empty_cache(model, params, rows, length):
  ones = jnp.ones((rows, length), jnp.int32)
  make = lambda: model.apply(
    {'params': params}, ones, ones, enable_dropout=False, decode=True, mutable=['cache']
  )[1]
  return jax.jit(make)()


def test_decoding_logits_equal_full_ones_step_by_step(tiny):
  """T5X's order of calls: make the cache, prefill ragged prompts, one token a row."""
  model, params = tiny[0], with_random(tiny[1])
  rng = np.random.default_rng(5)
  tokens = rng.integers(0, 61, (3, 9)).astype(np.int32)
  lengths = np.array([2, 5, 4])
  full = jax.jit(lambda: model.apply({'params': params}, tokens, tokens, enable_dropout=False))()
  cache = empty_cache(model, params, 3, 9)
  for name, leaf in traverse_util.flatten_dict(cache['cache'], sep='/').items():
    shape = leaf.shape[1:]  # layers first: the module says scan_layers
    assert shape == (() if name.endswith('cache_index') else (3, 2, 9, 4)), name
  assert model.scan_layers
  logits, cache = jax.jit(lambda cache: model.apply(
      {'params': params, **cache}, decoder_input_tokens=tokens[:, :6],
      decoder_target_tokens=tokens[:, :6],
      enable_dropout=False, prefill=True, prefill_lengths=lengths, mutable=['cache'],
  ))(cache)  # fmt: skip
  for row, length in enumerate(lengths):
    np.testing.assert_allclose(logits[row, :length], full[row, :length], atol=1e-5, rtol=1e-4)
  step = jax.jit(lambda cache, token: model.apply(
      {'params': params, **cache}, token, token, enable_dropout=False, decode=True,
      max_decode_length=9, mutable=['cache']
  ))  # fmt: skip
  for i in range(4):
    token = tokens[np.arange(3), lengths + i][:, None]
    logits, cache = step(cache, token)
    for row, length in enumerate(lengths):
      np.testing.assert_allclose(logits[row, 0], full[row, length + i], atol=1e-5, rtol=1e-4)


def test_wrong_calls_are_refused(tiny):
  model, params = tiny
  with pytest.raises(ValueError, match='exclude each other'):
    apply(model, params, decode=True, prefill=True)
  with pytest.raises(ValueError, match='prefill_lengths'):
    apply(model, params, prefill=True, mutable=['cache'])


def test_call_signature_is_t5xs():
  """T5X.md 4.2: the keywords that DecoderOnlyModel passes, literally."""
  parameters = inspect.signature(Decoder.__call__).parameters
  assert list(parameters) == [
      'self', 'decoder_input_tokens', 'decoder_target_tokens', 'decoder_segment_ids',
      'decoder_positions',
      'decoder_causal_attention', 'enable_dropout', 'decode', 'max_decode_length', 'prefill',
      'prefill_lengths',
      'decoder_branches', 'decoder_logit_places',  # this project's own, optional
  ]  # fmt: skip
  assert {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty} == {
      'decoder_segment_ids': None, 'decoder_positions': None, 'decoder_causal_attention': None,
      'enable_dropout': True,
      'decode': False, 'max_decode_length': None, 'prefill': False, 'prefill_lengths': None,
      'decoder_branches': None, 'decoder_logit_places': None,
  }  # fmt: skip


@pytest.mark.parametrize('scan', [True, False])
@pytest.mark.parametrize('tie', [True, False])
def test_every_parameter_names_its_axes(scan, tie):
  model = Decoder(tiny_config(scan_layers=scan, tie_embeddings=tie))
  tokens = jnp.zeros((1, 4), jnp.int32)
  variables = jax.eval_shape(
    lambda key: model.init(key, tokens, tokens, enable_dropout=False), jax.random.key(0)
  )
  params = traverse_util.flatten_dict(variables['params'], sep='/')
  axes = traverse_util.flatten_dict(
    nn_partitioning.get_axis_names(variables['params_axes']), sep='/'
  )
  assert params.keys() == axes.keys()
  canonical = {'vocab', 'embed', 'mlp', 'joined_kv', 'layers'}
  for name, leaf in params.items():
    assert (
      name.startswith('decoder/')
      and len(axes[name]) == len(leaf.shape)
      and set(axes[name]) <= canonical
    ), name
    assert ('layers' in axes[name]) == (scan and '/layers/' in name), name
    if scan and '/layers/' in name:
      assert axes[name][0] == 'layers' and leaf.shape[0] == 2
  assert ('decoder/lm_head' in params) == (not tie)


def test_grouped_heads_equal_repeated_heads():
  grouped = Decoder(tiny_config(scan_layers=False))
  full = Decoder(tiny_config(scan_layers=False, num_kv_heads=4))
  params = with_random(init_params(grouped))
  repeated = jax.tree.map(lambda x: x, params)
  for layer in ('layers_0', 'layers_1'):
    for name in ('key', 'value'):
      kernel = params['decoder'][layer]['self_attention'][name]['kernel'].reshape(16, 2, 4)
      repeated['decoder'][layer]['self_attention'][name]['kernel'] = jnp.repeat(
        kernel, 2, axis=1
      ).reshape(16, 16)
  np.testing.assert_allclose(apply(grouped, params), apply(full, repeated), atol=1e-5, rtol=1e-5)


def test_float64():
  with jax.enable_x64(True):
    model = Decoder(tiny_config(dtype='float64', param_dtype='float64'))
    params = init_params(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype('float64')}
    logits = apply(model, params)
    assert logits.dtype == jnp.float64
    half = Decoder(tiny_config())
    low = apply(half, jax.tree.map(lambda x: x.astype(jnp.float32), params))
    assert low.dtype == jnp.float32
    difference = np.abs(np.asarray(logits) - np.asarray(low)).max()
    assert 0 < difference < 1e-4
    # Really 64 bits all the way: the rounding error against a float64 reference is that of float64.
    config = dataclasses.replace(LLAMA, dtype='float64', param_dtype='float64')
    params = with_random(init_params(Decoder(config)), 7)
    tokens = np.random.default_rng(8).integers(0, 67, (1, 7))
    found = apply(Decoder(config), params, tokens, None, None)
    np.testing.assert_allclose(found, numpy_llama(params, config, tokens), rtol=1e-11, atol=1e-11)


def test_bfloat16_gives_logits_in_f32(tiny):
  logits = apply(Decoder(tiny_config(dtype='bfloat16')), tiny[1])
  assert logits.dtype == jnp.float32
  expected = np.asarray(apply(*tiny))
  assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max() + 0.05


def test_dropout_needs_its_key_and_acts(tiny):
  model = Decoder(tiny_config(dropout_rate=0.5))
  run = jax.jit(
    lambda key: model.apply(
      {'params': tiny[1]}, TOKENS, TOKENS, rngs={'dropout': jax.random.key(key)}
    )
  )
  assert np.abs(run(0) - run(1)).max() > 1e-3 and np.abs(run(0) - run(0)).max() == 0
  np.testing.assert_array_equal(apply(model, tiny[1]), apply(*tiny))


def numpy_attention(q, k, v, segments, window=None, prefix=None, scale=None):
  """The definition, one query at a time, in float64."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  out = np.zeros_like(q)
  group = q.shape[2] // k.shape[2]
  for b, i, h in np.ndindex(q.shape[:3]):
    both = lambda j: prefix is not None and prefix[b, i] and prefix[b, j]
    keys = [j for j in range(k.shape[1]) if (j <= i or both(j)) and (window is None or i - j < window)
            and segments[b, i] == segments[b, j]]  # fmt: skip
    logits = k[b, keys, h // group] @ q[b, i, h] * (q.shape[-1] ** -0.5 if scale is None else scale)
    weights = np.exp(logits - logits.max())
    out[b, i, h] = weights / weights.sum() @ v[b, keys, h // group]
  return out


@pytest.mark.parametrize(
  'options',
  [{}, {'window': 3}, {'scale': 0.7}, {'prefix': True}, {'window': 1}],
  ids=lambda o: str(o),
)
def test_attention_equals_its_definition(options):
  rng = np.random.default_rng(0)
  q, k, v = (rng.standard_normal((2, 10, heads, 6)).astype(np.float32) for heads in (4, 2, 2))
  segments = np.stack([SEGMENTS[0], np.ones(10, int)])
  prefix = np.zeros((2, 10), int)
  prefix[0, [0, 1, 4, 5, 6]] = 1
  prefix[1, :4] = 1
  options = dict(options)
  use_prefix = options.pop('prefix', False)
  found = attention(
    q,
    k,
    v,
    q_segments_BT=segments,
    k_segments_BS=segments,
    prefix_BS=prefix if use_prefix else None,
    **options,
  )
  expected = numpy_attention(q, k, v, segments, prefix=prefix if use_prefix else None, **options)
  np.testing.assert_allclose(found, expected, atol=2e-6)
  assert np.isfinite(found).all()


def test_attention_refuses_bad_heads_and_back_ends():
  x = lambda heads: jnp.zeros((1, 2, heads, 4))
  with pytest.raises(ValueError, match='3 query heads are not a multiple of 2'):
    attention(x(3), x(2), x(2))
  with pytest.raises(ValueError, match="'flash' is not one of"):
    attention(x(2), x(2), x(2), implementation='flash')


@pytest.mark.parametrize('change, message', [
    ({'num_kv_heads': 3}, 'must be a multiple of num_kv_heads = 3'),
    ({'embed_dim': 18}, 'set head_dim'),
    ({'remat': 'some'}, "'some' is not one of"),
    ({'mlp_activation': 'relu6'}, 'relu6'),
    ({'dropout_rate': 1.0}, 'not in \\[0, 1\\)'),
])  # fmt: skip
def test_config_refuses_what_cannot_be(change, message):
  with pytest.raises(ValueError, match=message):
    tiny_config(**change)


def numpy_llama(params, config, tokens):
  """Llama as its paper and its checkpoints have it, in float64 and without a single line of the
  model's own.
  """
  get = lambda *path: np.asarray(_at(params, path), np.float64)
  norm = lambda x, scale: x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon) * scale
  size, half = config.head_dim, config.head_dim // 2

  def rotated(x):  # [L, heads, D]: the pairs (d, d + D/2) as complex numbers, turned
    angle = np.arange(len(x))[:, None] / config.rope_theta ** (2 * np.arange(half) / size)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)[:, None]
    return np.concatenate([turned.real, turned.imag], -1)

  rows = []
  for row in tokens:
    x = get('token_embedding')[row]
    for i in range(config.num_layers):
      layer = lambda *path, i=i: get(f'layers_{i}', *path)
      h = norm(x, layer('pre_attention_norm', 'scale'))
      q, k, v = (
        (h @ layer('self_attention', name, 'kernel')).reshape(len(row), -1, size)
        for name in ('query', 'key', 'value')
      )
      out = numpy_attention(rotated(q)[None], rotated(k)[None], v[None], np.ones((1, len(row))))[0]
      x = x + out.reshape(len(row), -1) @ layer('self_attention', 'out', 'kernel')
      h = norm(x, layer('pre_mlp_norm', 'scale'))
      gate, up = h @ layer('mlp', 'gate', 'kernel'), h @ layer('mlp', 'up', 'kernel')
      x = x + (gate / (1 + np.exp(-gate)) * up) @ layer('mlp', 'down', 'kernel')
    rows.append(norm(x, get('final_norm', 'scale')) @ get('lm_head'))
  return np.stack(rows)


def _at(tree, path):
  for key in ('decoder', *path):
    tree = tree[key]
  return tree


LLAMA = DecoderConfig(
    vocab_size=67, embed_dim=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=40,
    rope_theta=5000.0,
    norm_epsilon=1e-5, scan_layers=False,
)  # fmt: skip


def test_logits_equal_llama_written_out():
  model = Decoder(LLAMA)
  params = with_random(init_params(model), 7)
  tokens = np.random.default_rng(8).integers(0, 67, (2, 13))
  found = apply(model, params, tokens, None, None)
  expected = numpy_llama(params, LLAMA, tokens)
  assert np.abs(expected).max() > 1
  np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize('tie', [False, True])
def test_logits_equal_transformers(tie):
  reason = 'the comparison with the real LlamaForCausalLM needs the extra `test`'
  torch = pytest.importorskip('torch', reason=reason)
  transformers = pytest.importorskip('transformers', reason=reason)
  config = dataclasses.replace(LLAMA, tie_embeddings=tie)
  theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(
      vocab_size=67, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
      num_key_value_heads=2, head_dim=8,
      intermediate_size=40, rope_theta=5000.0, rms_norm_eps=1e-5, tie_word_embeddings=tie,
      attn_implementation='eager',
      max_position_embeddings=64,
  )).eval()  # fmt: skip
  names = {
      'self_attention/query': 'self_attn.q_proj', 'self_attention/key': 'self_attn.k_proj',
      'self_attention/value': 'self_attn.v_proj', 'self_attention/out': 'self_attn.o_proj',
      'mlp/gate': 'mlp.gate_proj',
      'mlp/up': 'mlp.up_proj', 'mlp/down': 'mlp.down_proj', 'pre_attention_norm': 'input_layernorm',
      'pre_mlp_norm': 'post_attention_layernorm',
  }  # fmt: skip
  model = Decoder(config)
  params = with_random(init_params(model), 9)
  flat = traverse_util.flatten_dict(params['decoder'], sep='/')
  tensor = lambda x: torch.tensor(np.array(x))
  state = {
    'model.embed_tokens.weight': tensor(flat['token_embedding']),
    'model.norm.weight': tensor(flat['final_norm/scale']),
  }
  state['lm_head.weight'] = tensor(flat['token_embedding'] if tie else flat['lm_head'].T)
  for i in range(2):
    for ours, hugging in names.items():
      kind = 'scale' if 'norm' in ours else 'kernel'
      state[f'model.layers.{i}.{hugging}.weight'] = tensor(flat[f'layers_{i}/{ours}/{kind}'].T)
  theirs.load_state_dict(state, strict=True)
  tokens = np.random.default_rng(8).integers(0, 67, (2, 13))
  with torch.no_grad():
    expected = theirs(torch.tensor(tokens)).logits.float().numpy()
  found = np.asarray(apply(model, params, tokens, None, None))
  assert np.abs(found - expected).max() < 2e-4


@pytest.mark.parametrize(
  'changes', [{}, {'tie_embeddings': True}, {'lora': LoraConfig(rank=2), 'vocab_multiple': 8}]
)
@pytest.mark.parametrize('mesh', [(1, 1, 1), (1, 2, 2)])
def test_transposed_kernels_change_nothing(changes, mesh):
  """Logits of one token and of several, and the loss from the head; nor does a second call."""
  model = Decoder(tiny_config(**changes))
  params = with_random(init_params(model))
  partition = Partitioner(mesh, devices=jax.devices()[: np.prod(mesh)])
  with partition.activate():
    plain, straight = unrolled(model, params)
    turned = unrolled(*unrolled(model, params, transposed=True), transposed=True)[1]
    up = lambda params: params['decoder']['layers_0']['mlp']['up']['kernel']
    assert up(turned).kernel_FE.shape == up(straight).T.shape
    for length in (1, 10):
      arrays = [np.repeat(x[:, :length], 1 if length == 1 else 4, axis=0) for x in GIVEN]
      np.testing.assert_allclose(
        apply(plain, turned, *arrays), apply(plain, straight, *arrays), atol=2e-5
      )

    @jax.jit
    def loss(params):
      hidden = plain.apply({'params': params}, *arrays, enable_dropout=False, method='hidden')
      return chunked_loss.cross_entropy(*hidden, arrays[0], chunk=16)[0]

    np.testing.assert_allclose(loss(turned), loss(straight), atol=2e-5)
