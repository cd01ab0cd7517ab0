"""Every family against its own transformers class: logits, gradients, decoding, and the way of its
weights in and out.
"""

import functools

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import Decoder, unrolled
from crossin_jax.models.huggingface import families, weights
from crossin_jax.models.huggingface.leaves import joined, tensor_leaves
from crossin_jax.training import state as train_state

REASON = 'the comparison with the real models needs the extra `test`'
torch = pytest.importorskip('torch', reason=REASON)
transformers = pytest.importorskip('transformers', reason=REASON)

SIZES = {
    'vocab_size': 199, 'hidden_size': 48, 'intermediate_size': 80, 'num_hidden_layers': 3,
    'num_attention_heads': 4,
    'num_key_value_heads': 2, 'head_dim': 16, 'max_position_embeddings': 96, 'bos_token_id': 1,
    'eos_token_id': 2,
    'pad_token_id': 0, 'attn_implementation': 'eager',
}  # fmt: skip
LLAMA3_ROPE = {
    'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
    'original_max_position_embeddings': 32,
}  # fmt: skip
# name -> (configuration class, changes of SIZES)
MODELS = {
    'llama2': ('LlamaConfig', {'num_key_value_heads': 4, 'rms_norm_eps': 1e-5}),
    'llama3': ('LlamaConfig', {'rope_theta': 500_000.0, 'rope_scaling': LLAMA3_ROPE}),
    'llama_biases': ('LlamaConfig', {'attention_bias': True, 'mlp_bias': True, 'tie_word_embeddings': True}),
    'llama_linear': ('LlamaConfig', {'rope_scaling': {'rope_type': 'linear', 'factor': 4.0}}),
    'llama_yarn': ('LlamaConfig', {'rope_scaling': {
        'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 24}}),
    'mistral': ('MistralConfig', {'sliding_window': 7}),
    'mistral_no_window': ('MistralConfig', {'sliding_window': None}),
    'qwen2': ('Qwen2Config', {'tie_word_embeddings': True, 'head_dim': None}),
    'qwen2_window': ('Qwen2Config', {'use_sliding_window': True, 'sliding_window': 5, 'max_window_layers': 1,
                                     'head_dim': None}),
    'qwen3': ('Qwen3Config', {'rope_theta': 1e6}),
    'gemma': ('GemmaConfig', {'num_key_value_heads': 1}),
    'gemma2': ('Gemma2Config', {'sliding_window': 6, 'query_pre_attn_scalar': 24, 'attn_logit_softcapping': 5.0,
                                'final_logit_softcapping': 3.0}),
    'gemma3': ('Gemma3TextConfig', {'sliding_window': 6, 'num_hidden_layers': 8, 'query_pre_attn_scalar': 24,
                                    'sliding_window_pattern': 3,
                                    'rope_scaling': {'rope_type': 'linear', 'factor': 8.0}}),
    'phi3': ('Phi3Config', {'head_dim': None}),
    'phi3_long': ('Phi3Config', {
        'head_dim': None, 'original_max_position_embeddings': 24, 'partial_rotary_factor': 0.5,
        'rope_scaling': {'type': 'longrope', 'short_factor': [1.0, 1.5, 2.0], 'long_factor': [2.0, 4.0, 8.0]}}),
    'olmo2': ('Olmo2Config', {'head_dim': None}),
    'olmo3': ('Olmo3Config', {
        'head_dim': None, 'sliding_window': 6, 'num_hidden_layers': 5, 'rope_parameters': {
            'sliding_attention': {'rope_type': 'default', 'rope_theta': 5e5},
            'full_attention': {'rope_type': 'yarn', 'rope_theta': 5e5, 'factor': 8.0,
                               'original_max_position_embeddings': 24, 'attention_factor': 1.2,
                               'beta_fast': 32.0, 'beta_slow': 1.0}}}),
    'seed_oss': ('SeedOssConfig', {'attention_dropout': 0.1, 'residual_dropout': 0.1}),
    'ministral': ('MinistralConfig', {
        'sliding_window': 7, 'num_hidden_layers': 4,
        'layer_types': ['full_attention', 'sliding_attention'] * 2}),
    'ministral3': ('Ministral3Config', {'tie_word_embeddings': True, 'rope_parameters': {
        'rope_type': 'yarn', 'rope_theta': 1e6, 'factor': 16.0, 'beta_fast': 32.0, 'beta_slow': 1.0,
        'original_max_position_embeddings': 16, 'mscale': 1.0, 'mscale_all_dim': 1.0,
        'llama_4_scaling_beta': 0.1}}),
    'granite': ('GraniteConfig', {
        'head_dim': None, 'embedding_multiplier': 6.0, 'residual_multiplier': 0.22,
        'attention_multiplier': 0.05, 'logits_scaling': 0.25, 'tie_word_embeddings': True}),
    'smollm3': ('SmolLM3Config', {'num_hidden_layers': 5, 'head_dim': None}),
    'cohere': ('CohereConfig', {'head_dim': None, 'logit_scale': 1.5}),
    'cohere_plus': ('CohereConfig', {'head_dim': None, 'logit_scale': 1.5, 'use_qk_norm': True}),
    'cohere2': ('Cohere2Config', {
        'head_dim': None, 'sliding_window': 6, 'num_hidden_layers': 5, 'logit_scale': 2.0}),
    'apertus': ('ApertusConfig', {'head_dim': None}),
    'qwen3_moe': ('Qwen3MoeConfig', {
        'num_experts': 6, 'num_experts_per_tok': 3, 'moe_intermediate_size': 24,
        'norm_topk_prob': True}),
    'mixtral': ('MixtralConfig', {'num_local_experts': 4, 'num_experts_per_tok': 2}),
    'olmoe': ('OlmoeConfig', {'head_dim': None, 'num_experts': 5, 'num_experts_per_tok': 2}),
    'gpt_oss': ('GptOssConfig', {
        'num_local_experts': 5, 'num_experts_per_tok': 2, 'sliding_window': 6,
        'swiglu_limit': 1.0, 'rope_parameters': {
            'rope_type': 'yarn', 'rope_theta': 15e4, 'factor': 32.0, 'beta_fast': 32.0,
            'beta_slow': 1.0, 'truncate': False, 'original_max_position_embeddings': 24}}),
    'gemma4': ('Gemma4TextConfig', {
        'sliding_window': 6, 'num_hidden_layers': 6, 'hidden_size_per_layer_input': 0,
        'global_head_dim': 24, 'num_global_key_value_heads': 1, 'attention_k_eq_v': True,
        'final_logit_softcapping': 30.0}),
    'gemma4_separate': ('Gemma4TextConfig', {
        'sliding_window': 6, 'num_hidden_layers': 3, 'hidden_size_per_layer_input': 0,
        'global_head_dim': 24}),
    'gemma4_unified': ('Gemma4UnifiedTextConfig', {
        'sliding_window': 6, 'num_hidden_layers': 6, 'global_head_dim': 24,
        'num_global_key_value_heads': 1, 'attention_k_eq_v': True,
        'final_logit_softcapping': 30.0}),
    'smollm': ('LlamaConfig', {'num_attention_heads': 3, 'num_key_value_heads': 1, 'head_dim': 16,
                               'tie_word_embeddings': True}),
}  # fmt: skip


def their_model(name, seed=0, **changes):
  """A random model of realistic scale: logits of a few units, norms away from one."""
  kind, own = MODELS[name]
  settings = {
    key: value
    for key, value in {**SIZES, **own, **changes}.items()
    if value is not None or key == 'sliding_window'
  }
  torch.manual_seed(seed)
  model = transformers.AutoModelForCausalLM.from_config(
    getattr(transformers, kind)(**settings)
  ).eval()
  return randomised(model)


def randomised(model):
  """The model with norms away from one, and matrices that keep the scale of their inputs."""
  with torch.no_grad():
    for buffer_name, buffer in model.named_buffers():
      if buffer_name.endswith('layer_scalar'):
        buffer.mul_(0.9)
    for _, parameter in model.named_parameters():
      if parameter.ndim == 1:
        parameter.add_(0.2 * torch.randn_like(parameter))
      else:
        parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
  return model


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A function: name -> (their model, its directory, our model, our parameters); made once each."""
  made = {}

  def get(name):
    if name not in made:
      model = their_model(name)
      directory = str(tmp_path_factory.mktemp('hf') / name)
      model.save_pretrained(directory, max_shard_size='40KB' if name == 'llama3' else '5GB')
      config = families.from_huggingface(directory)
      made[name] = (model, directory, Decoder(config), load(directory, config))
    return made[name]

  return get


def load(directory, config, partition=None):
  partition = partition or Partitioner(mesh_shape=(1, 1, 1), devices=jax.devices()[:1])
  with partition.activate():
    return weights.load_params(
      directory, config, train_state.parameter_shapes(Decoder(config), partition)
    )


def their_logits(model, tokens, **kwargs):
  with torch.no_grad():
    return model(torch.tensor(np.asarray(tokens)), **kwargs).logits.float().numpy()


@functools.lru_cache(maxsize=8)
def forward(model):
  """Compiled once for each shape."""
  return jax.jit(
    lambda params, tokens, **kwargs: model.apply(
      {'params': params}, tokens, tokens, enable_dropout=False, **kwargs
    )
  )


def our_logits(model, params, tokens, **kwargs):
  kwargs = {name: jnp.asarray(value) for name, value in kwargs.items()}
  return np.asarray(forward(model)(params, jnp.asarray(tokens), **kwargs))


def ragged(seed=0, rows=3, length=40):
  rng = np.random.default_rng(seed)
  return rng.integers(3, 199, (rows, length)), np.array([length, 23, 9])[:rows]


@pytest.mark.parametrize('name', MODELS)
def test_logits_equal_transformers(saved, name):
  """Whole rows, longer than the window and than the original length of the rotary positions; right-
  and left-padded.
  """
  theirs, _, model, params = saved(name)
  tokens, lengths = ragged()
  expected = their_logits(theirs, tokens[:1])
  assert np.abs(expected).max() > 1
  np.testing.assert_allclose(our_logits(model, params, tokens[:1]), expected, atol=2e-4)
  # One batch, compiled once: the rows one after the other in one; then each padded on the right,
  # then on the left.
  width, sides = lengths.sum(), ('right', 'left')
  inputs, segments, positions = np.zeros((3, 7, width), int)
  inputs[0] = np.concatenate([row[:n] for row, n in zip(tokens, lengths)])
  segments[0] = np.concatenate([np.full(n, i + 1) for i, n in enumerate(lengths)])
  positions[0] = np.concatenate([np.arange(n) for n in lengths])
  for side, first in zip(sides, (1, 4)):
    for i, n in enumerate(lengths, first):
      place = slice(0, n) if side == 'right' else slice(width - n, width)
      inputs[i, place], segments[i, place] = tokens[i - first, :n], 1
  positions[1:] = np.clip(segments[1:].cumsum(axis=1) - 1, 0, None)
  found = our_logits(
    model, params, inputs, decoder_segment_ids=segments, decoder_positions=positions
  )
  # With LongRoPE the longest row of a batch decides over all of them, in transformers too.
  alone = name != 'phi3_long'
  start = 0
  for row, n in zip(tokens, lengths if alone else ()):
    np.testing.assert_allclose(
      found[0, start : start + n], their_logits(theirs, row[None, :n])[0], atol=2e-4
    )
    start += n
  for first in (1, 4):
    rows = slice(first, first + (3 if alone else 1))
    real = segments[rows] > 0
    expected = their_logits(
      theirs,
      inputs[rows],
      attention_mask=torch.tensor(segments[rows]),
      position_ids=torch.tensor(positions[rows]),
    )
    np.testing.assert_allclose(found[rows][real], expected[real], atol=2e-4)


def as_published(tensors: dict, model_type: str) -> dict:
  """Names and shapes of published experts, for those that transformers holds in one tensor."""
  if model_type == 'gpt_oss':  # published like that
    return tensors
  found = {}
  mixtral = model_type == 'mixtral'
  module = 'block_sparse_moe' if mixtral else 'mlp'
  gate, up, down = ('w1', 'w3', 'w2') if mixtral else ('gate_proj', 'up_proj', 'down_proj')
  for name, value in tensors.items():
    stem, _, last = name.partition('.mlp.')
    if last == 'experts.gate_up_proj':
      for i, (one, other) in enumerate(np.split(matrix, 2) for matrix in value):
        found[f'{stem}.{module}.experts.{i}.{gate}.weight'] = one
        found[f'{stem}.{module}.experts.{i}.{up}.weight'] = other
    elif last == 'experts.down_proj':
      for i, matrix in enumerate(value):
        found[f'{stem}.{module}.experts.{i}.{down}.weight'] = matrix
    else:
      found[f'{stem}.{module}.{last}' if last == 'gate.weight' else name] = value
  return found


@pytest.mark.parametrize('name', MODELS)
def test_gradients_equal_autograd(saved, name):
  theirs, directory, model, params = saved(name)
  tokens, _ = ragged(1, 2, 20)
  theirs.zero_grad()
  logits = theirs(torch.tensor(tokens)).logits.float()
  torch.nn.functional.cross_entropy(
    logits[:, :-1].flatten(0, 1), torch.tensor(tokens[:, 1:]).flatten()
  ).backward()

  def loss(params):
    logits = model.apply({'params': params}, tokens, tokens, enable_dropout=False)[:, :-1]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1).mean()

  flat = traverse_util.flatten_dict(jax.jit(jax.grad(loss))(params)['decoder'], sep='/')
  expected = {n: p.grad.numpy() for n, p in theirs.named_parameters()}
  expected = as_published(expected, theirs.config.model_type)
  table = tensor_leaves(families.read_json_config(directory)['model_type'], model.config)
  assert table.keys() == expected.keys() | dict(theirs.named_buffers()).keys() & table.keys()
  for tensor, leaves in table.items():
    if tensor not in expected:  # a constant
      assert not any(np.any(flat[path]) for path, _ in leaves)
      continue
    parts = [np.asarray(flat[path][index]) for path, index in leaves]
    ours, wanted = joined(parts, leaves[0][0]).ravel(), expected[tensor].ravel()
    cosine = ours @ wanted / (np.linalg.norm(ours) * np.linalg.norm(wanted))
    assert cosine > 0.9999, (tensor, cosine)
    assert 0.999 < np.linalg.norm(ours) / np.linalg.norm(wanted) < 1.001, tensor


@pytest.mark.parametrize('name', MODELS)
def test_scanned_forward_and_unrolled_cached_decoding_agree(saved, name):
  """Prefill of ragged prompts, single tokens and several at a time give the logits of the whole
  row, which are those of transformers, scanned and unrolled.
  """
  theirs, _, model, params = saved(name)
  plain, plain_params = unrolled(model, params)
  tokens, _ = ragged(2, 3, 30)
  if name == 'phi3_long':
    # beyond, keys in the cache were turned by the short factors; transformers does the same
    tokens = tokens[:, :22]
  full = our_logits(model, params, tokens)
  np.testing.assert_allclose(full, their_logits(theirs, tokens), atol=2e-4)
  np.testing.assert_allclose(our_logits(plain, plain_params, tokens), full, atol=2e-5)
  length = tokens.shape[1]
  lengths = np.array([15, 4, 9])
  ones = jnp.ones((3, length), jnp.int32)
  apply = lambda *args, **kwargs: plain.apply(
    *args, enable_dropout=False, mutable=['cache'], **kwargs
  )
  shapes = jax.eval_shape(lambda: apply({'params': plain_params}, ones, ones, decode=True)[1])
  cache = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
  prefill = jax.jit(
    lambda cache, t: apply(
      {'params': plain_params, **cache}, t, t, prefill=True, prefill_lengths=lengths
    )
  )
  logits, cache = prefill(cache, tokens[:, :16])
  step = jax.jit(lambda cache, t: apply({'params': plain_params, **cache}, t, t, decode=True))
  at = lengths.copy()
  for width in (1, 1, 5, 1, 1, 3, 1):
    if at.max() + width > length:
      break
    logits, cache = step(cache, np.stack([row[i : i + width] for row, i in zip(tokens, at)]))
    for row, i in enumerate(at):
      np.testing.assert_allclose(
        logits[row], full[row, i : i + width], atol=5e-5, err_msg=f'{width} tokens at {i}'
      )
    at += width
  if model.config.window:
    local = [
      leaf
      for path, leaf in traverse_util.flatten_dict(cache['cache']).items()
      if path[-1] == 'cached_key'
    ]
    assert min(leaf.shape[-2] for leaf in local) == model.config.window
