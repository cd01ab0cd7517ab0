"""Directories as people have them: each is read as transformers reads it, or one message says what
is ambiguous.
"""

import json
import warnings

import jax
import numpy as np
import pytest

from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import Decoder
from crossin_jax.models.huggingface import families, tensor_files, weights
from crossin_jax.training import state as train_state

REASON = 'the comparison with the real models needs the extra `test`'
torch = pytest.importorskip('torch', reason=REASON)
transformers = pytest.importorskip('transformers', reason=REASON)
safetensors_torch = pytest.importorskip('safetensors.torch', reason=REASON)

SIZES = {
    'vocab_size': 150, 'hidden_size': 48, 'intermediate_size': 80, 'num_hidden_layers': 2,
    'num_attention_heads': 4, 'num_key_value_heads': 2, 'head_dim': 12,
    'max_position_embeddings': 128, 'bos_token_id': None, 'eos_token_id': None,
    'pad_token_id': None,
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(3, 140, (2, 60))
KINDS = {
  'llama': 'LlamaConfig', 'mistral': 'MistralConfig', 'qwen2': 'Qwen2Config',
  'qwen3': 'Qwen3Config', 'gemma': 'GemmaConfig', 'gemma2': 'Gemma2Config',
  'gemma3_text': 'Gemma3TextConfig', 'phi3': 'Phi3Config', 'olmo2': 'Olmo2Config',
}  # fmt: skip


def randomised(model, seed=0):
  torch.manual_seed(seed)
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.ndim == 1:
        parameter.add_(0.2 * torch.randn_like(parameter))
      else:
        parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
  return model.eval()


def save(folder, family='llama', shard='5GB', **changes):
  """A small random model, saved by transformers."""
  config = getattr(transformers, KINDS[family])(**{**SIZES, **changes})
  model = randomised(transformers.AutoModelForCausalLM.from_config(config))
  model.save_pretrained(folder, max_shard_size=shard)
  return model


def edit(folder, change):
  path = folder / 'config.json'
  path.write_text(json.dumps(change(json.loads(path.read_text()))))


def rename(folder, change):
  """Renames the tensors of a single file; None leaves one out."""
  path = str(folder / 'model.safetensors')
  tensors = {change(name): value for name, value in safetensors_torch.load_file(path).items()}
  tensors.pop(None, None)
  safetensors_torch.save_file(tensors, path, metadata={'format': 'pt'})


def theirs(folder):
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype='float32')
  return logits(model)


def logits(model):
  with torch.no_grad():
    return model(torch.tensor(TOKENS)).logits.float().numpy()


def ours(folder):
  model = Decoder(families.from_huggingface(str(folder)))
  partition = Partitioner(mesh_shape=(1, 1, 1), devices=jax.devices()[:1])
  with partition.activate():
    shapes = train_state.parameter_shapes(model, partition)
    params = weights.load_params(str(folder), model.config, shapes)
  return np.asarray(model.apply({'params': params}, TOKENS, TOKENS, enable_dropout=False))


def same(folder):
  np.testing.assert_allclose(ours(folder), theirs(folder), atol=2e-4, rtol=1e-4)


# ---- keys that change nothing ----


@pytest.mark.parametrize(
  'family, keys',
  [
    ('llama', {'max_sequence_length': 2048, 'pretraining_tp': 1, 'num_labels': 2}),
    ('llama', {'_flash_attn_2_enabled': True, '_commit_hash': 'a1', 'gradient_checkpointing': True}),
    ('llama', {'keys_to_ignore_at_inference': ['past_key_values']}),
    ('llama', {'unsloth_fixed': True, 'unsloth_version': '2025.1', 'unsloth_tied': False}),
    ('llama', {'rope_interleaved': False, 'is_llama_config': True, 'seq_length': 512}),
    ('llama', {'quantization_config': None, 'sliding_window': None, 'rope_local_base_freq': None}),
    ('llama', {'bias': False, 'qkv_bias': False, 'use_qk_norm': False, 'lm_head_bias': False}),
    ('llama', {'pruned_heads': {}, 'tie_encoder_decoder': False, 'use_bfloat16': True}),
    ('llama', {'max_length': 4096, 'num_beams': 4, 'top_k': 50, 'suppress_tokens': [1, 2]}),
    ('mistral', {'attention_bias': False, 'neftune_noise_alpha': 5, 'model_max_length': 32768}),
    ('qwen2', {'use_mrope': False, 'use_sliding_window': False, 'max_window_layers': 2}),
    ('qwen2', {'attention_bias': False, 'forced_eos_token_id': 2, 'length_penalty': 1.0}),
    ('qwen3', {'tokenizer_class': 'Qwen2Tokenizer', 'do_sample': True, 'temperature': 0.6}),
    ('gemma2', {'sliding_window_size': 64, 'hidden_act': 'gelu_pytorch_tanh'}),
    ('phi3', {'attention_bias': False, 'full_attn_mod': 1, 'interpolate_factor': 1.0}),
    ('olmo2', {'transformers.js_config': {'dtype': 'q4'}, 'embd_pdrop': 0.0}),
  ],
  ids=str,
)  # fmt: skip
def test_keys_that_change_nothing(tmp_path, family, keys):
  save(tmp_path, family)
  edit(tmp_path, lambda config: {**config, **keys})
  same(tmp_path)


@pytest.mark.parametrize(
  'family, keys, message',
  [
    ('llama', {'residual_multiplier': 0.5}, 'residual_multiplier = 0.5 is not known for llama'),
    ('llama', {'rope_interleaved': True}, 'rope_interleaved = True is not supported'),
    ('llama', {'use_rope': False}, 'use_rope = False is not supported'),
    ('llama', {'use_qk_norm': True}, 'use_qk_norm = True is not known'),
    ('llama', {'quantization': {'bits': 4}}, 'quantization = '),
    ('llama', {'sliding_window': 64}, 'sliding_window = 64 is not known'),
    ('qwen2', {'use_mrope': True}, 'use_mrope = True is not supported'),
    ('mistral', {'attention_bias': True}, 'attention_bias = True is not supported'),
    ('phi3', {'lm_head_bias': True}, 'lm_head_bias = True is not supported'),
    ('phi3', {'interpolate_factor': 2}, 'interpolate_factor = 2 is not supported'),
    ('gemma', {'partial_rotary_factor': 0.5}, 'partial_rotary_factor = 0.5 is not supported'),
  ],
  ids=str,
)
def test_keys_that_change_the_model_are_refused(tmp_path, family, keys, message):
  save(tmp_path, family)
  edit(tmp_path, lambda config: {**config, **keys})
  with pytest.raises(families.ArchitectureError, match=message):
    families.from_huggingface(str(tmp_path))


@pytest.mark.parametrize('text', ['[]', '3', '{"model_type": "llama",}', ''])
def test_a_config_that_is_no_object(tmp_path, text):
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(families.ArchitectureError, match='config.json is (not|a list|a int)'):
    families.from_huggingface(str(tmp_path))


# ---- names of a base class ----


@pytest.mark.parametrize('family', ['llama', 'mistral', 'qwen2', 'qwen3', 'gemma', 'gemma3_text'])
def test_names_of_the_base_class(tmp_path, family):
  save(tmp_path, family, tie_word_embeddings=True)
  rename(tmp_path, lambda name: name.removeprefix('model.'))
  same(tmp_path)


def test_names_of_the_base_class_in_shards(tmp_path):
  config = transformers.LlamaConfig(**SIZES, tie_word_embeddings=True)
  randomised(transformers.AutoModel.from_config(config)).save_pretrained(
    tmp_path, max_shard_size='40KB'
  )
  assert len(list(tmp_path.glob('*.safetensors'))) > 1
  same(tmp_path)


def test_names_of_the_base_class_beside_a_head(tmp_path):
  save(tmp_path)
  rename(tmp_path, lambda name: name.removeprefix('model.'))
  same(tmp_path)


def test_a_base_class_without_a_head_says_what_is_missing(tmp_path):
  save(tmp_path)
  rename(tmp_path, lambda name: None if 'lm_head' in name else name.removeprefix('model.'))
  with pytest.raises(tensor_files.WeightsError, match='tensor lm_head.weight is missing'):
    ours(tmp_path)


def test_a_tensor_under_two_names_is_refused(tmp_path):
  save(tmp_path, tie_word_embeddings=True)
  path = str(tmp_path / 'model.safetensors')
  tensors = safetensors_torch.load_file(path)
  tensors['norm.weight'] = tensors['model.norm.weight'] + 1
  safetensors_torch.save_file(tensors, path, metadata={'format': 'pt'})
  with pytest.raises(tensor_files.WeightsError, match='norm.weight is both in'):
    ours(tmp_path)


# ---- a head of its own where the configuration says tied ----


@pytest.mark.parametrize('shard', ['5GB', '40KB'])
@pytest.mark.parametrize('family', ['llama', 'qwen2', 'gemma2'])
def test_a_head_of_its_own_in_a_tied_model_is_refused(tmp_path, family, shard):
  model = save(tmp_path, family, shard, tie_word_embeddings=False)
  assert model.lm_head.weight is not model.model.embed_tokens.weight
  edit(tmp_path, lambda config: {**config, 'tie_word_embeddings': True})
  with pytest.raises(
    tensor_files.WeightsError, match='lm_head.weight is a tensor of its own'
  ) as error:
    ours(tmp_path)
  assert '"tie_word_embeddings": false' in str(error.value)
  wanted = theirs(tmp_path)  # transformers 5 keeps both
  edit(tmp_path, lambda config: {**config, 'tie_word_embeddings': False})
  np.testing.assert_allclose(ours(tmp_path), wanted, atol=2e-4, rtol=1e-4)


def add_head(folder, change):
  path = str(folder / 'model.safetensors')
  tensors = safetensors_torch.load_file(path)
  tensors['lm_head.weight'] = change(tensors['model.embed_tokens.weight'])
  safetensors_torch.save_file(tensors, path, metadata={'format': 'pt'})


@pytest.mark.parametrize(
  'change, is_equal',
  [
    (lambda table: table.clone(), True),
    (lambda table: table + (torch.arange(150) == 149)[:, None] * 1e-3, False),
    (lambda table: torch.cat([table, table[:2]]), False),
    (lambda table: torch.zeros_like(table), False),
  ],
  ids=['equal', 'the last row', 'longer', 'zeros'],
)
def test_a_stored_tied_head_must_equal_the_embedding(tmp_path, change, is_equal):
  save(tmp_path, tie_word_embeddings=True)
  add_head(tmp_path, change)
  if is_equal:
    same(tmp_path)
  else:
    with pytest.raises(tensor_files.WeightsError, match='lm_head.weight is a tensor of its own'):
      ours(tmp_path)


def test_a_tied_model_that_stores_its_head_only(tmp_path):
  save(tmp_path, tie_word_embeddings=True)
  rename(tmp_path, lambda name: 'lm_head.weight' if 'embed_tokens' in name else name)
  same(tmp_path)


# ---- rotary settings in both spellings ----

YARN = {'type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 32}
LINEAR = {'rope_type': 'linear', 'factor': 2.0}
LLAMA3 = {
  'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
  'original_max_position_embeddings': 32,
}  # fmt: skip


@pytest.mark.parametrize(
  'family, rope',
  [
    ('llama', {'rope_parameters': {'rope_type': 'default'}, 'rope_scaling': LLAMA3}),
    ('qwen3', {'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e4}, 'rope_scaling': YARN}),
    (
      'qwen2',
      {
        'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e6},
        'rope_scaling': {**YARN, 'rope_theta': 1e6},
      },
    ),
    ('mistral', {'rope_parameters': LINEAR, 'rope_scaling': {**LINEAR, 'factor': 8.0}}),
    ('llama', {'rope_parameters': {**LINEAR, 'rope_theta': 5e5}, 'rope_scaling': None}),
    ('llama', {'rope_parameters': {**LINEAR, 'rope_theta': 5e5}, 'rope_scaling': {}}),
    ('llama', {'rope_parameters': None, 'rope_scaling': {**LINEAR, 'rope_theta': 5e5}}),
    ('llama', {'rope_scaling': {**YARN, 'rope_theta': 5e5}, 'rope_theta': 1e4}),
    ('llama', {'rope_parameters': {'rope_theta': 5e5, 'rope_type': 'default'}, 'rope_theta': 7e5}),
    (
      'llama',
      {
        'rope_theta': 5e5,
        'rope_parameters': {'rope_theta': 5e5, 'rope_type': 'default'},
        'rope_scaling': LLAMA3,
      },
    ),
    ('gemma3_text', {'rope_scaling': {'rope_type': 'linear', 'factor': 8.0}}),
    (
      'gemma3_text',
      {
        'rope_parameters': {
          'full_attention': {'rope_type': 'default', 'rope_theta': 5e5},
          'sliding_attention': {'rope_type': 'default', 'rope_theta': 2e4},
        },
        'rope_scaling': {'rope_type': 'linear', 'factor': 8.0},
      },
    ),
    ('phi3', {'rope_theta': 5e5, 'rope_parameters': None, 'rope_scaling': None}),
  ],
  ids=str,
)  # fmt: skip
def test_rotary_settings_as_transformers_reads_them(tmp_path, family, rope):
  save(tmp_path, family)
  edit(tmp_path, lambda config: {**without(config, 'rope_parameters'), **rope})
  same(tmp_path)


def without(config, *keys):
  return {key: value for key, value in config.items() if key not in keys}


@pytest.mark.parametrize(
  'rope, message',
  [
    (
      {'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e6}, 'rope_scaling': YARN},
      'with rope_theta = 10000.0 and not 1000000.0: put "rope_theta" into rope_scaling',
    ),
    (
      {
        'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e6},
        'rope_scaling': YARN,
        'rope_theta': 5e5,
      },
      'with rope_theta = 500000.0 and not 1000000.0',
    ),
  ],
)
def test_rotary_settings_that_would_lose_the_base_are_refused(tmp_path, rope, message):
  save(tmp_path)
  edit(tmp_path, lambda config: {**without(config, 'rope_parameters'), **rope})
  with pytest.raises(families.ArchitectureError, match=message):
    families.from_huggingface(str(tmp_path))


# ---- multimodal models ----

VISION = {
    'hidden_size': 32, 'intermediate_size': 32, 'num_hidden_layers': 1, 'num_attention_heads': 2,
    'image_size': 28, 'patch_size': 14, 'head_dim': 16,
}  # fmt: skip


def wrapper(kind, text, vision, **more):
  """A small multimodal model of transformers around a text model."""
  own = getattr(transformers, KINDS[text])(**{**SIZES, 'num_hidden_layers': 3})
  config = getattr(transformers, f'{kind}Config')(
    text_config=own.to_dict(), vision_config={**VISION, 'model_type': vision}, **more
  )
  return randomised(getattr(transformers, f'{kind}ForConditionalGeneration')(config))


@pytest.mark.parametrize('names', ['as saved', 'in memory'])
@pytest.mark.parametrize(
  'kind, text, vision',
  [
    ('Mistral3', 'mistral', 'pixtral'),
    ('Llava', 'llama', 'clip_vision_model'),
    ('Llava', 'mistral', 'clip_vision_model'),
    ('Llava', 'qwen2', 'clip_vision_model'),
    ('LlavaNext', 'mistral', 'clip_vision_model'),
    ('VipLlava', 'llama', 'clip_vision_model'),
    ('Gemma3', 'gemma3_text', 'siglip_vision_model'),
  ],
)
def test_the_text_model_of_a_multimodal_one(tmp_path, kind, text, vision, names):
  more = {'mm_tokens_per_image': 4} if kind == 'Gemma3' else {}
  model = wrapper(kind, text, vision, **more)
  model.save_pretrained(tmp_path)
  files = safetensors_torch.load_file(str(tmp_path / 'model.safetensors'))
  if names == 'in memory':  # as versions from 4.52 on saved them
    state = {name: value.clone() for name, value in model.state_dict().items()}
    safetensors_torch.save_file(state, str(tmp_path / 'model.safetensors'), {'format': 'pt'})
    assert state.keys() != files.keys()
  np.testing.assert_allclose(ours(tmp_path), logits(model), atol=2e-4, rtol=1e-4)


def test_a_multimodal_model_of_another_text_model_names_it(tmp_path):
  config = {'model_type': 'mistral3', 'text_config': {'model_type': 'granitemoe'}}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(families.ArchitectureError, match='mistral3 with a text model of type grani'):
    families.from_huggingface(str(tmp_path))


def test_a_quantised_multimodal_model_is_refused(tmp_path):
  wrapper('Mistral3', 'mistral', 'pixtral').save_pretrained(tmp_path)
  edit(tmp_path, lambda config: {**config, 'quantization_config': {'quant_method': 'fp8'}})
  with pytest.raises(families.ArchitectureError, match='quantization_config'):
    families.from_huggingface(str(tmp_path))


# ---- a single file beside an index ----


def test_a_single_file_goes_before_an_older_index(tmp_path):
  save(tmp_path, shard='40KB')
  older = theirs(tmp_path)
  config = transformers.LlamaConfig(**SIZES)
  newer = randomised(transformers.AutoModelForCausalLM.from_config(config), seed=1)
  path = tmp_path / 'model.safetensors'
  state = {name: value.contiguous() for name, value in newer.state_dict().items()}
  safetensors_torch.save_file(state, str(path), metadata={'format': 'pt'})
  assert (tmp_path / tensor_files.INDEX).exists()
  with pytest.warns(UserWarning, match='model.safetensors is read, as transformers does'):
    same(tmp_path)
  assert np.abs(theirs(tmp_path) - older).max() > 0.1
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    digest = tensor_files.Tensors(str(tmp_path)).digest()
  for shard in tmp_path.glob('model-*'):
    shard.unlink()  # the index now names files that are not there
  with pytest.warns(UserWarning, match='Remove what is outdated'):
    same(tmp_path)
  (tmp_path / tensor_files.INDEX).unlink()
  assert tensor_files.Tensors(str(tmp_path)).digest() == digest
  same(tmp_path)


def test_an_index_of_the_single_file_says_nothing(tmp_path):
  save(tmp_path)
  names = tensor_files.Tensors(str(tmp_path)).shapes
  index = {'metadata': {}, 'weight_map': dict.fromkeys(names, tensor_files.SINGLE)}
  (tmp_path / tensor_files.INDEX).write_text(json.dumps(index))
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    ours(tmp_path)
  same(tmp_path)
