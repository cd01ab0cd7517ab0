"""The model families: what each one has that others do not.

A family declares the fields in which it differs, the keys of config.json that it reads, and the
names of its tensors. Any other key is an error, unless it is known to have no effect.
"""

from collections.abc import Callable, Mapping
import dataclasses

from crossin_jax.models.decoder_config import DecoderConfig
from crossin_jax.models.huggingface.json_keys import ArchitectureError
from crossin_jax.models.huggingface.tensor_names import (
  APERTUS_TENSORS,
  EXPERT_TENSORS,
  FUSED_TENSORS,
  GEMMA4_TENSORS,
  GPT_OSS_TENSORS,
  LLAMA_TENSORS,
  MIXTRAL_TENSORS,
  POST_NORM_TENSORS,
)

# config.json key -> DecoderConfig field with the same value.
SAME = {
  'vocab_size': 'vocab_size',
  'hidden_size': 'embed_dim',
  'intermediate_size': 'mlp_dim',
  'num_hidden_layers': 'num_layers',
  'num_attention_heads': 'num_heads',
  'num_key_value_heads': 'num_kv_heads',
  'head_dim': 'head_dim',
  'rms_norm_eps': 'norm_epsilon',
  'tie_word_embeddings': 'tie_embeddings',
  'mlp_bias': 'mlp_bias',
  'attn_logit_softcapping': 'attention_softcap',
  'final_logit_softcapping': 'logit_softcap',
}
ACTIVATION_NAMES = {
  'silu': 'silu', 'swish': 'silu', 'gelu_pytorch_tanh': 'gelu', 'gelu': 'gelu_exact',
  'xielu': 'xielu',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Family:
  """The differences of one `model_type`.

  Attributes:
    architecture: class in transformers.
    fields: DecoderConfig fields of all its models.
    same: additional keys of config.json -> DecoderConfig field with the same value.
    keys: additional keys of config.json that are read otherwise.
    fixed: additional keys of config.json -> values that are supported.
    defaults: values of missing keys.
    tensors: names inside `model.layers.<i>.` -> leaves of a block.
    activation_key: the key that names the activation.
    without_positions: layers without rotary positions: 'none', 'global', or those that
      `no_rope_layers` lists with 0 ('listed').
    relatives: sentence for models with unsupported values: which near relative works.
    read: values of config.json -> more DecoderConfig fields.
    write: DecoderConfig -> more values of config.json.
  """

  architecture: str
  fields: Mapping = dataclasses.field(default_factory=dict)
  same: Mapping = dataclasses.field(default_factory=dict)
  keys: tuple[str, ...] = ()
  fixed: Mapping = dataclasses.field(default_factory=dict)
  defaults: Mapping = dataclasses.field(default_factory=dict)
  tensors: Mapping = dataclasses.field(default_factory=lambda: LLAMA_TENSORS)
  activation_key: str = 'hidden_act'
  without_positions: str = 'none'
  relatives: str = ''
  read: Callable[[Mapping], dict] = lambda values: {}
  write: Callable[[DecoderConfig], dict] = lambda config: {}


# Keys without a default.
SIZES = (
  'vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads',
)  # fmt: skip
# Keys of all families.
COMMON = (
  *SIZES, 'num_key_value_heads',
  'head_dim', 'rms_norm_eps', 'tie_word_embeddings', 'rope_theta', 'rope_scaling',
  'rope_parameters',
)  # fmt: skip
_GEMMA = {'norm_offset': 1.0, 'embedding_scale': True}
_GEMMA_DEFAULTS = {
    'tie_word_embeddings': True, 'rms_norm_eps': 1e-6, 'head_dim': 256, 'rope_theta': 10_000.0,
    'hidden_act': 'gelu_pytorch_tanh', 'hidden_activation': 'gelu_pytorch_tanh',
    'attention_bias': False,
}  # fmt: skip
_SOFTCAPS = ('attn_logit_softcapping', 'final_logit_softcapping')
_QWEN_WINDOWS = ('use_sliding_window', 'sliding_window', 'max_window_layers', 'layer_types')
_WINDOWS = ('sliding_window', 'sliding_window_pattern', '_sliding_window_pattern', 'layer_types')


def _of_olmo3(values: Mapping) -> dict:
  """Checks the base of the rotary positions, which versions of transformers read differently."""
  if not values.get('rope_parameters') and values['rope_theta'] != 500_000.0:
    raise ArchitectureError(
      f'rope_theta = {values["rope_theta"]} stands outside of rope_parameters: transformers 5 '
      'gives it to global layers and 500000 to local ones, transformers 4 gives it to both. Write '
      'rope_parameters with full_attention and sliding_attention'
    )
  return {}


def _seed_biases(values: Mapping) -> dict:
  """Seed-OSS has a switch of its own for the bias of the output."""
  both = values['attention_bias'], values['attention_out_bias']
  names = {(False, False): 'none', (True, False): 'qkv', (True, True): 'all'}
  if both not in names:
    raise ArchitectureError('attention_out_bias without attention_bias is not supported')
  return {'attention_bias': names[both]}


def _router_loss(values: Mapping) -> dict:
  """transformers adds the router's loss where `output_router_logits` is on."""
  on = values.get('output_router_logits')
  return {'router_loss': float(values['router_aux_loss_coef']) if on else 0.0}


def _of_gpt_oss(values: Mapping) -> dict:
  """Checks that experts are quantised as published, if at all."""
  quantised = values.get('quantization_config')
  if quantised and quantised.get('quant_method') != 'mxfp4':
    raise ArchitectureError(f'quantization_config = {quantised!r} is not supported (only mxfp4 is)')
  return _router_loss(values)


_EXPERT_KEYS = ('output_router_logits', 'router_aux_loss_coef')
_ROUTER = {
  'read': _router_loss,
  'write': lambda config: {
    'output_router_logits': config.router_loss > 0, 'router_aux_loss_coef': config.router_loss,
  },
}  # fmt: skip
_COHERE = {
  'fields': {'norm': 'layer', 'norm_placement': 'parallel', 'rope_interleaved': True},
  'same': {'layer_norm_eps': 'norm_epsilon', 'logit_scale': 'logit_scale'},
  # Records of the original implementation.
  'fixed': {
    'use_parallel_block': (True,), 'use_gated_activation': (True,), 'rotary_pct': (1.0,),
    'position_embedding_type': ('rope_gptj',), 'order_of_interleaved_layers': ('local_attn_first',),
    'use_embedding_sharing': (True, False), 'use_parallel_embedding': (True, False),
    'layer_switch': (4,),
  },
}  # fmt: skip
_COHERE_DEFAULTS = {'tie_word_embeddings': True, 'layer_norm_eps': 1e-5, 'logit_scale': 0.0625}


def _of_gemma4(values: Mapping) -> dict:
  """Global layers have a head size, key/value heads and rotary positions of their own."""
  own = {'head_dim': values['global_head_dim']}
  if values['attention_k_eq_v'] and values.get('num_global_key_value_heads'):
    own['num_key_value_heads'] = values['num_global_key_value_heads']
  if by_layer := values.get('per_layer_config'):  # as transformers saves it
    own, *others = by_layer.values()
    if any(other != own for other in others) or own.keys() - {'head_dim', 'num_key_value_heads'}:
      raise ArchitectureError('per_layer_config must give all global layers the same sizes')
  globally = {'head_dim': own.get('head_dim', values['head_dim'])}
  globally['num_kv_heads'] = own.get('num_key_value_heads', values['num_key_value_heads'])
  globally['key_is_value'] = values['attention_k_eq_v']
  return {'query_scale': 1.0, 'layer_overrides': {'global': globally}}


def _as_gemma4(config: DecoderConfig) -> dict:
  globally = config.of_kind('global')
  own = {'head_dim': globally.head_dim, 'num_key_value_heads': globally.num_kv_heads}
  kinds = [config.kind(i) for i in range(config.num_layers)]
  return {
    'attention_k_eq_v': globally.key_is_value,
    'per_layer_config': {str(i): own for i, kind in enumerate(kinds) if kind == 'global'},
    'hidden_size_per_layer_input': 0,
  }


_GEMMA4 = {
  'fields': {
    'norm_placement': 'both', 'qk_norm': 'head', 'value_norm': True, 'embedding_scale': True,
    'layer_scalars': True,
  },
  'keys': (
    'attention_bias', 'final_logit_softcapping', *_WINDOWS, 'hidden_act', 'global_head_dim',
    'num_global_key_value_heads', 'per_layer_config', 'attention_k_eq_v',
    'vocab_size_per_layer_input', 'top_k_experts', 'num_experts', 'moe_intermediate_size',
  ),
  'fixed': {
    'hidden_size_per_layer_input': (0,), 'num_kv_shared_layers': (0,),
    'enable_moe_block': (False,), 'use_double_wide_mlp': (False,),
    'use_bidirectional_attention': (None, 'vision'),
  },
  'tensors': GEMMA4_TENSORS,
  'activation_key': 'hidden_activation',
  'read': _of_gemma4,
  'write': _as_gemma4,
}  # fmt: skip
_GEMMA4_DEFAULTS = {
    **_GEMMA_DEFAULTS, 'sliding_window_pattern': 6, 'global_head_dim': 512,
    'attention_k_eq_v': False, 'rope_local_base_freq': 10_000.0,
    'rope_parameters': {
        'rope_type': 'proportional', 'partial_rotary_factor': 0.25, 'rope_theta': 1e6,
    },
}  # fmt: skip


FAMILIES = {
  'llama': Family('LlamaForCausalLM', keys=('attention_bias', 'mlp_bias')),
  'mistral': Family(
    'MistralForCausalLM', keys=('sliding_window',), defaults={'sliding_window': 4096}
  ),
  'qwen2': Family(
    'Qwen2ForCausalLM',
    fields={'attention_bias': 'qkv'},
    keys=_QWEN_WINDOWS,
  ),
  'qwen3': Family(
    'Qwen3ForCausalLM',
    fields={'qk_norm': 'head'},
    keys=(*_QWEN_WINDOWS, 'attention_bias'),
    defaults={'head_dim': 128},
  ),
  'gemma': Family(
    'GemmaForCausalLM',
    fields=_GEMMA,
    keys=('attention_bias', 'hidden_activation'),
    defaults={**_GEMMA_DEFAULTS, 'hidden_activation': None},
  ),
  'gemma2': Family(
    'Gemma2ForCausalLM',
    fields={**_GEMMA, 'norm_placement': 'both'},
    keys=(
        'attention_bias', 'query_pre_attn_scalar', *_SOFTCAPS, 'sliding_window', 'layer_types',
        'hidden_act',
    ),
    defaults={
        **_GEMMA_DEFAULTS, 'query_pre_attn_scalar': 256, 'attn_logit_softcapping': 50.0,
        'final_logit_softcapping': 30.0,
        'sliding_window': 4096, 'sliding_window_pattern': 2,
    },
    tensors=POST_NORM_TENSORS,
    activation_key='hidden_activation',
  ),
  'gemma3_text': Family(
    'Gemma3ForCausalLM',
    fields={**_GEMMA, 'norm_placement': 'both', 'qk_norm': 'head'},
    keys=(
        'attention_bias', 'query_pre_attn_scalar', *_SOFTCAPS, *_WINDOWS,
        'rope_local_base_freq', 'hidden_act',
    ),
    # Those of transformers: the published config.json of the 4B model omits nearly all keys.
    defaults={
        **_GEMMA_DEFAULTS, 'vocab_size': 262_208, 'num_attention_heads': 8,
        'num_key_value_heads': 4, 'rope_theta': 1e6,
        'query_pre_attn_scalar': 256, 'sliding_window': 4096, 'sliding_window_pattern': 6,
        'rope_local_base_freq': 10_000.0,
    },
    tensors=POST_NORM_TENSORS,
    activation_key='hidden_activation',
  ),
  'phi3': Family(
    'Phi3ForCausalLM',
    keys=('sliding_window', 'partial_rotary_factor', 'original_max_position_embeddings'),
    defaults={'rms_norm_eps': 1e-5, 'sliding_window': None},
    tensors=FUSED_TENSORS,
  ),
  'olmo2': Family(
    'Olmo2ForCausalLM',
    fields={'qk_norm': 'joined', 'norm_placement': 'post'},
    keys=('attention_bias',),
    defaults={'rms_norm_eps': 1e-5},
    tensors=POST_NORM_TENSORS,
  ),
  'olmo3': Family(
    'Olmo3ForCausalLM',
    fields={'qk_norm': 'joined', 'norm_placement': 'post'},
    keys=('attention_bias', *_WINDOWS),
    defaults={
        'rms_norm_eps': 1e-5, 'rope_theta': 500_000.0, 'rope_local_base_freq': 500_000.0,
        'sliding_window': 4096, 'sliding_window_pattern': 4,
    },
    tensors=POST_NORM_TENSORS,
    read=_of_olmo3,
  ),
  'seed_oss': Family(
    'SeedOssForCausalLM',
    keys=(
        'attention_bias', 'attention_out_bias', 'mlp_bias', 'attention_dropout',
        'residual_dropout',
    ),
    defaults={'head_dim': 128, 'attention_bias': True, 'attention_out_bias': False},
    read=_seed_biases,
    write=lambda config: {
      'attention_bias': config.attention_bias != 'none',
      'attention_out_bias': config.attention_bias == 'all',
    },
  ),
  'ministral': Family(
    'MinistralForCausalLM',
    keys=('sliding_window', 'layer_types'),
    defaults={'sliding_window': 4096},
  ),
  'ministral3': Family(
    'Ministral3ForCausalLM',
    keys=('sliding_window',),
    defaults={
        'rms_norm_eps': 1e-5, 'head_dim': 128,
        'rope_parameters': {
            'rope_type': 'yarn', 'rope_theta': 1e6, 'factor': 16.0,
            'original_max_position_embeddings': 16_384, 'beta_fast': 32.0, 'beta_slow': 1.0,
            'mscale_all_dim': 1.0, 'mscale': 1.0, 'llama_4_scaling_beta': 0.1,
        },
    },
  ),
  'granite': Family(
    'GraniteForCausalLM',
    same={
        'embedding_multiplier': 'embedding_multiplier',
        'residual_multiplier': 'residual_multiplier', 'attention_multiplier': 'query_scale',
    },
    # IBM's files have an attention_dropout of 0.1.
    keys=('attention_bias', 'mlp_bias', 'logits_scaling', 'attention_dropout'),
    defaults={
        'embedding_multiplier': 1.0, 'residual_multiplier': 1.0, 'attention_multiplier': 1.0,
        'logits_scaling': 1.0,
    },
    read=lambda values: {'logit_scale': 1 / values['logits_scaling']},
    write=lambda config: {'logits_scaling': 1 / config.logit_scale},
  ),
  'smollm3': Family(
    'SmolLM3ForCausalLM',
    keys=(
        *_QWEN_WINDOWS, 'attention_bias', 'mlp_bias', 'no_rope_layers', 'no_rope_layer_interval',
    ),
    defaults={'tie_word_embeddings': True, 'rope_theta': 2e6, 'no_rope_layer_interval': 4},
    without_positions='listed',
  ),
  'cohere': Family(
    'CohereForCausalLM',
    **_COHERE,
    keys=('attention_bias', 'use_qk_norm'),
    defaults={**_COHERE_DEFAULTS, 'rope_theta': 500_000.0},
    read=lambda values: {'qk_norm': 'each_head' if values.get('use_qk_norm') else 'none'},
    write=lambda config: {'use_qk_norm': config.qk_norm == 'each_head'},
  ),
  'cohere2': Family(
    'Cohere2ForCausalLM',
    **_COHERE,
    keys=('attention_bias', *_WINDOWS),
    defaults={**_COHERE_DEFAULTS, 'sliding_window': 4096, 'sliding_window_pattern': 4},
    without_positions='global',
  ),
  'apertus': Family(
    'ApertusForCausalLM',
    fields={'mlp_gate': False, 'qk_norm': 'head'},
    keys=('attention_bias',),
    fixed={'qk_norm': (True,), 'post_norm': (False,)},
    defaults={
        'hidden_act': 'xielu', 'rms_norm_eps': 1e-5, 'rope_theta': 12e6,
        'rope_parameters': {
            'rope_type': 'llama3', 'rope_theta': 12e6, 'factor': 8.0, 'low_freq_factor': 1.0,
            'high_freq_factor': 4.0, 'original_max_position_embeddings': 8192,
        },
    },
    tensors=APERTUS_TENSORS,
  ),
  'qwen3_moe': Family(
    'Qwen3MoeForCausalLM',
    fields={'qk_norm': 'head'},
    same={
        'num_experts': 'num_experts', 'num_experts_per_tok': 'experts_per_token',
        'moe_intermediate_size': 'mlp_dim', 'norm_topk_prob': 'normalise_experts',
    },
    keys=('attention_bias', 'use_sliding_window', 'sliding_window', 'max_window_layers',
          *_EXPERT_KEYS),
    # The last two are records of the authors in Qwen3-Coder.
    fixed={
        'decoder_sparse_step': (1,), 'mlp_only_layers': ([], None),
        'shared_expert_intermediate_size': (0,), 'use_qk_norm': (True,),
    },
    defaults={
        'num_experts': 128, 'num_experts_per_tok': 8, 'moe_intermediate_size': 768,
        'norm_topk_prob': False, 'router_aux_loss_coef': 0.001,
    },
    tensors=EXPERT_TENSORS,
    **_ROUTER,
  ),
  'mixtral': Family(
    'MixtralForCausalLM',
    fields={'normalise_experts': True},
    same={'num_local_experts': 'num_experts', 'num_experts_per_tok': 'experts_per_token'},
    keys=('sliding_window', *_EXPERT_KEYS),
    fixed={'router_jitter_noise': (0.0,)},
    defaults={
        'num_local_experts': 8, 'num_experts_per_tok': 2, 'rms_norm_eps': 1e-5,
        'rope_theta': 1e6, 'sliding_window': None, 'router_aux_loss_coef': 0.001,
    },
    tensors=MIXTRAL_TENSORS,
    **_ROUTER,
  ),
  'olmoe': Family(
    'OlmoeForCausalLM',
    fields={'qk_norm': 'joined'},
    same={
        'num_experts': 'num_experts', 'num_experts_per_tok': 'experts_per_token',
        'norm_topk_prob': 'normalise_experts',
    },
    keys=('attention_bias', *_EXPERT_KEYS),
    fixed={'clip_qkv': (None,)},
    defaults={
        'num_experts': 64, 'num_experts_per_tok': 8, 'norm_topk_prob': False,
        'rms_norm_eps': 1e-5, 'router_aux_loss_coef': 0.01,
    },
    tensors=EXPERT_TENSORS,
    **_ROUTER,
  ),
  'gpt_oss': Family(
    'GptOssForCausalLM',
    fields={'attention_sinks': True, 'mlp_bias': True, 'router_bias': True},
    same={
        'num_local_experts': 'num_experts', 'num_experts_per_tok': 'experts_per_token',
        'swiglu_alpha': 'swiglu_alpha', 'swiglu_limit': 'swiglu_limit',
    },
    # The last two are records of the authors.
    keys=(
        'attention_bias', 'sliding_window', 'layer_types', 'quantization_config', *_EXPERT_KEYS,
        'experts_per_token', 'initial_context_length',
    ),
    defaults={
        'attention_bias': True, 'head_dim': 64, 'num_key_value_heads': 8,
        'num_local_experts': 128, 'num_experts_per_tok': 4,
        'swiglu_alpha': 1.702, 'swiglu_limit': 7.0, 'rms_norm_eps': 1e-5, 'sliding_window': 128,
        'sliding_window_pattern': 2, 'router_aux_loss_coef': 0.001, 'rope_theta': 150_000.0,
        'rope_parameters': {
            'rope_type': 'yarn', 'factor': 32.0, 'beta_fast': 32.0, 'beta_slow': 1.0,
            'truncate': False, 'original_max_position_embeddings': 4096,
        },
    },
    tensors=GPT_OSS_TENSORS,
    read=_of_gpt_oss,
    write=_ROUTER['write'],
  ),
  'gemma4_text': Family(
    'Gemma4ForCausalLM',
    **_GEMMA4,
    defaults={**_GEMMA4_DEFAULTS, 'sliding_window': 512, 'hidden_size_per_layer_input': 256},
    relatives='Dense Gemma 4 models without embeddings for each layer work, such as 12B and 31B',
  ),
  # The 12B model: a class of its own with the same text model.
  'gemma4_unified_text': Family(
    'Gemma4UnifiedForCausalLM',
    **_GEMMA4,
    defaults={**_GEMMA4_DEFAULTS, 'sliding_window': 1024},
  ),
}  # fmt: skip
# Multimodal models whose text model is one of the families -> its type where text_config has none.
WRAPPERS = {
  'gemma3': 'gemma3_text', 'gemma4': 'gemma4_text', 'gemma4_unified': 'gemma4_unified_text',
  'mistral3': 'mistral', 'aya_vision': 'cohere2',
  'cohere2_vision': 'cohere2', 'llava': 'llama', 'llava_next': 'llama',
  'llava_onevision': 'qwen2', 'vipllava': 'llama', 'internvl': 'qwen2',
}  # fmt: skip
# Keys of the whole model that hold for its text model, whatever text_config says.
OUTER = ('dtype', 'torch_dtype', 'tie_word_embeddings', 'quantization_config')
# Values of missing keys for all families, as in transformers.
DEFAULTS = {
  'tie_word_embeddings': False, 'rms_norm_eps': 1e-6, 'rope_theta': 10_000.0, 'hidden_act': 'silu',
}  # fmt: skip
