"""Model families: conversion between config.json and DecoderConfig.

A family declares the fields in which it differs, the keys of config.json that it reads, and the
names of its tensors. Any other key is an error, unless it is known to have no effect.
"""

from collections.abc import Mapping
import dataclasses
import json
import os

import gin

from crossin_jax import config
from crossin_jax.errors import CrossinError
from crossin_jax.models.decoder_config import DecoderConfig
from crossin_jax.storage import remote

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
}  # fmt: skip
# Keys that do not change the forward pass of the text model.
IGNORED = frozenset(
  """
    _name_or_path architectures auto_map boi_token_index bos_token_id cache_implementation
    chunk_size_feed_forward diversity_penalty dtype eoi_token_index eos_token_id
    finetuning_task id2label image_token_index initializer_range is_decoder
    is_encoder_decoder label2id max_position_embeddings mm_tokens_per_image model_type
    output_attentions output_hidden_states pad_token_id prefix pretraining_tp problem_type
    return_dict sep_token_id task_specific_params text_config torch_dtype torchscript
    transformers_version typical_p unk_token_id use_cache vision_config image_token_id
  """.split()
)
# Keys that must have one of these values.
NEUTRAL = {
  'attention_dropout': (0, None),
  'resid_pdrop': (0, None),
  'embd_pdrop': (0, None),
  'add_cross_attention': (False, None),
  'use_bidirectional_attention': (False, None),
  'quantization_config': (None,),
  'is_causal': (True,),
}
_LAYER = {
  'self_attn.o_proj.weight': ('self_attention/out/kernel',),
  'self_attn.o_proj.bias': ('self_attention/out/bias',),
  'self_attn.q_norm.weight': ('self_attention/query_norm/scale',),
  'self_attn.k_norm.weight': ('self_attention/key_norm/scale',),
  'mlp.down_proj.weight': ('mlp/down/kernel',),
  'mlp.down_proj.bias': ('mlp/down/bias',),
  'input_layernorm.weight': ('pre_attention_norm/scale',),
}
_SEPARATE = {
  f'{module}.{theirs}_proj.{name}': (f'{path}/{ours}/{leaf}',)
  for module, path, pairs in (
    ('self_attn', 'self_attention', (('q', 'query'), ('k', 'key'), ('v', 'value'))),
    ('mlp', 'mlp', (('gate', 'gate'), ('up', 'up'))),
  )
  for theirs, ours in pairs
  for name, leaf in (('weight', 'kernel'), ('bias', 'bias'))
}
_FUSED = {
  'self_attn.qkv_proj.weight': tuple(
    f'self_attention/{name}/kernel' for name in ('query', 'key', 'value')
  ),
  'mlp.gate_up_proj.weight': ('mlp/gate/kernel', 'mlp/up/kernel'),
}
_PRE_NORMS = {'post_attention_layernorm.weight': ('pre_mlp_norm/scale',)}
_POST_NORMS = {
  'post_attention_layernorm.weight': ('post_attention_norm/scale',),
  'pre_feedforward_layernorm.weight': ('pre_mlp_norm/scale',),
  'post_feedforward_layernorm.weight': ('post_mlp_norm/scale',),
}
# Tensor names -> leaves. A tensor of several leaves concatenates them along its rows; kernels are
# stored transposed.
LLAMA_TENSORS = {**_LAYER, **_SEPARATE, **_PRE_NORMS}
POST_NORM_TENSORS = {**_LAYER, **_SEPARATE, **_POST_NORMS}
FUSED_TENSORS = {**_LAYER, **_FUSED, **_PRE_NORMS}
TOP_TENSORS = {
  'model.embed_tokens.weight': ('token_embedding',),
  'model.norm.weight': ('final_norm/scale',),
  'lm_head.weight': ('lm_head',),
}


@dataclasses.dataclass(frozen=True)
class Family:
  """The differences of one `model_type`.

  Attributes:
    architecture: class in transformers.
    fields: DecoderConfig fields of all its models.
    keys: additional keys of config.json.
    defaults: values of missing keys.
    tensors: names inside `model.layers.<i>.` -> leaves of a block.
    activation_key: the key that names the activation.
  """

  architecture: str
  fields: Mapping = dataclasses.field(default_factory=dict)
  keys: tuple[str, ...] = ()
  defaults: Mapping = dataclasses.field(default_factory=dict)
  tensors: Mapping = dataclasses.field(default_factory=lambda: LLAMA_TENSORS)
  activation_key: str = 'hidden_act'


_COMMON = (
  'vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads',
  'num_key_value_heads',
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
FAMILIES = {
  'llama': Family('LlamaForCausalLM', keys=('attention_bias', 'mlp_bias')),
  'mistral': Family(
    'MistralForCausalLM', keys=('sliding_window',), defaults={'sliding_window': 4096}
  ),
  'qwen2': Family(
    'Qwen2ForCausalLM',
    fields={'attention_bias': 'qkv'},
    keys=('use_sliding_window', 'sliding_window', 'max_window_layers', 'layer_types'),
  ),
  'qwen3': Family(
    'Qwen3ForCausalLM',
    fields={'qk_norm': 'head'},
    keys=(
        'use_sliding_window', 'sliding_window', 'max_window_layers', 'layer_types',
        'attention_bias',
    ),
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
        'attention_bias', 'query_pre_attn_scalar', *_SOFTCAPS, 'sliding_window',
        'sliding_window_pattern',
        '_sliding_window_pattern', 'layer_types', 'rope_local_base_freq', 'hidden_act',
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
}  # fmt: skip
# Values of missing keys for all families, as in transformers.
DEFAULTS = {
  'tie_word_embeddings': False, 'rms_norm_eps': 1e-6, 'rope_theta': 10_000.0, 'hidden_act': 'silu',
}  # fmt: skip


class ArchitectureError(CrossinError, ValueError):
  """An unsupported config.json; the message names the field and the supported values."""


def read_json_config(directory: str) -> dict:
  """Reads config.json of a Hugging Face directory; the text part of a multimodal one.

  Raises:
    ArchitectureError: it is missing, is not JSON, or has an unsupported model_type.
  """
  path = os.path.join(directory, 'config.json')
  try:
    with open(remote.fetched(path), encoding='utf-8') as f:
      json_config = json.load(f)
  except FileNotFoundError:
    raise ArchitectureError(
      f'{directory} has no config.json; give a Hugging Face model directory'
    ) from None
  except ValueError as error:
    raise ArchitectureError(f'{path} is not JSON ({error}); copy it again') from None
  if json_config.get('model_type') == 'gemma3' and 'text_config' in json_config:
    outer = {
      key: json_config[key]
      for key in ('dtype', 'torch_dtype', 'tie_word_embeddings')
      if key in json_config
    }
    json_config = {**outer, **json_config['text_config'], 'model_type': 'gemma3_text'}
  if json_config.get('model_type') not in FAMILIES:
    raise ArchitectureError(
      f'{path}: model_type {json_config.get("model_type")!r} is not supported; supported are '
      f'{", ".join(FAMILIES)}'
    )
  return json_config


@config.configurable(commands=('train', 'chunks'))
def from_huggingface(directory: str = gin.REQUIRED, ignore: tuple[str, ...] = ()) -> DecoderConfig:
  """The DecoderConfig of a Hugging Face directory; gin sets the rest (dtype, lora, remat ...).

  Args:
    directory: has config.json.
    ignore: unknown fields of config.json that have no effect.

  Raises:
    ArchitectureError: an unsupported field.
  """
  json_config = read_json_config(directory)
  try:
    return DecoderConfig(**decoder_fields(json_config, ignore))
  except ArchitectureError as error:
    raise ArchitectureError(f'{os.path.join(directory, "config.json")}: {error}') from None


def decoder_fields(json_config: Mapping, ignore: tuple[str, ...] = ()) -> dict:
  """The DecoderConfig fields set by a config.json.

  Raises:
    ArchitectureError: a missing or unsupported field or value.
  """
  family = FAMILIES[json_config['model_type']]
  known = {*_COMMON, *family.keys, family.activation_key}
  for key, value in json_config.items():
    if key in NEUTRAL and value not in NEUTRAL[key]:
      raise ArchitectureError(f'{key} = {value!r} is not supported (only {NEUTRAL[key][0]!r} is)')
    if (
      key in known
      or key in IGNORED
      or key in NEUTRAL
      or key in ignore
      or key in _inert(json_config)
    ):
      continue
    raise ArchitectureError(
      f'field {key} = {value!r} is not known for {json_config["model_type"]}; if it has no '
      'effect on the forward pass, add it to from_huggingface.ignore'
    )
  values = {
    **DEFAULTS,
    **family.defaults,
    **{key: value for key, value in json_config.items() if value is not None},
  }
  # An explicit null overrides the default.
  values.update(
    {key: None for key, value in json_config.items() if value is None and key in family.keys}
  )
  fields = dict(family.fields)
  for key in _COMMON[:5]:  # the sizes without a default
    if not isinstance(values.get(key), int):
      raise ArchitectureError(f'field {key} is missing or not an integer')
  for key, field in SAME.items():
    if key in known and values.get(key) is not None:
      fields[field] = values[key]
  fields.setdefault('num_kv_heads', values['num_attention_heads'])
  if values.get('attention_bias'):
    fields['attention_bias'] = 'all'
  activation = values.get(family.activation_key)
  if json_config['model_type'] == 'gemma':
    # Published Gemma files say "gelu" but mean tanh; transformers reads them like this too.
    activation = values.get('hidden_activation') or 'gelu_pytorch_tanh'
  if activation not in ACTIVATION_NAMES:
    raise ArchitectureError(
      f'{family.activation_key} = {activation!r} is not one of {", ".join(ACTIVATION_NAMES)}'
    )
  fields['mlp_activation'] = ACTIVATION_NAMES[activation]
  if 'query_pre_attn_scalar' in values and 'query_pre_attn_scalar' in known:
    fields['query_scale'] = values['query_pre_attn_scalar'] ** -0.5
  fields.update(_layers(values, known))
  fields.update(_rope(values))
  return fields


def _inert(json_config: Mapping) -> tuple[str, ...]:
  """Keys without effect because another key disables them."""
  return (
    ('sliding_window', 'max_window_layers')
    if json_config.get('use_sliding_window') is False
    else ()
  )


def _layers(values: Mapping, known) -> dict:
  """layer_pattern and window."""
  layers = values['num_hidden_layers']
  window = values.get('sliding_window') if 'sliding_window' in known else None
  if values.get('use_sliding_window') is False or (
    'use_sliding_window' in known and 'use_sliding_window' not in values
  ):
    window = None
  types = values.get('layer_types')
  period = values.get('sliding_window_pattern') or values.get('_sliding_window_pattern')
  if types is None:
    if window is None:
      types = ['full_attention'] * layers
    elif period:
      types = [
        'full_attention' if (i + 1) % period == 0 else 'sliding_attention' for i in range(layers)
      ]
    else:
      first = values.get('max_window_layers', 0) if 'max_window_layers' in known else 0
      types = ['sliding_attention' if i >= first else 'full_attention' for i in range(layers)]
  kinds = {'full_attention': 'global', 'sliding_attention': 'local'}
  if unknown := [t for t in types if t not in kinds]:
    raise ArchitectureError(f'layer_types has {unknown[0]!r}; supported are {", ".join(kinds)}')
  if len(types) != layers:
    raise ArchitectureError(
      f'layer_types names {len(types)} layers, num_hidden_layers says {layers}'
    )
  pattern = [kinds[t] for t in types]
  period = next(
    p for p in range(1, layers + 1) if all(pattern[i] == pattern[i % p] for i in range(layers))
  )
  pattern = tuple(pattern[:period])
  return {'layer_pattern': pattern, 'window': window if 'local' in pattern else None}


# rope_type -> (required, optional) keys.
_ROPE_KEYS = {
  'linear': ({'factor'}, set()),
  'llama3': (
    {'factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings'},
    set(),
  ),
  'yarn': (
    {'factor', 'original_max_position_embeddings'},
    {'attention_factor', 'beta_fast', 'beta_slow', 'mscale', 'mscale_all_dim', 'truncate'},
  ),
  'longrope': (
    {'factor', 'original_max_position_embeddings', 'short_factor', 'long_factor'},
    {'attention_factor'},
  ),
}


def _rope(values: Mapping) -> dict:
  """rope_theta, rope_local_theta, rope_scaling and rope_fraction, from old or new keys."""
  result = {'rope_theta': float(values['rope_theta'])}
  scaling = dict(values.get('rope_scaling') or {})
  if 'rope_local_base_freq' in values:
    result['rope_local_theta'] = float(values['rope_local_base_freq'])
  if new := values.get('rope_parameters'):
    if 'full_attention' in new or 'sliding_attention' in new:  # one set for each kind of layer
      local = dict(new.get('sliding_attention') or {})
      if local.get('rope_type', 'default') != 'default':
        raise ArchitectureError(
          f'rope_parameters.sliding_attention.rope_type = {local["rope_type"]!r} is not supported'
        )
      if 'rope_theta' in local:
        result['rope_local_theta'] = float(local['rope_theta'])
      new = new.get('full_attention') or {}
    scaling = dict(new)
    if 'rope_theta' in scaling:
      result['rope_theta'] = float(scaling['rope_theta'])
  fraction = scaling.pop('partial_rotary_factor', values.get('partial_rotary_factor', 1.0))
  result['rope_fraction'] = float(fraction)
  scaling.pop('rope_theta', None)
  if 'type' in scaling:
    scaling.setdefault('rope_type', scaling['type'])
    del scaling['type']
  if scaling := _rope_scaling(scaling, values):
    result['rope_scaling'] = scaling
  return result


def _rope_scaling(scaling: dict, values: Mapping) -> dict | None:
  """The checked `scaling` with its defaults from config.json; None if it has the default type."""
  kind = scaling.get('rope_type', 'default')
  kind = 'longrope' if kind == 'su' else kind
  if kind == 'default':
    if scaling.keys() - {'rope_type'}:
      raise ArchitectureError(f'rope_scaling without a rope_type has {", ".join(sorted(scaling))}')
    return None
  if kind not in _ROPE_KEYS:
    raise ArchitectureError(f'rope_type {kind!r} is not one of default, {", ".join(_ROPE_KEYS)}')
  if kind in ('yarn', 'longrope'):
    name, longest = 'original_max_position_embeddings', values.get('max_position_embeddings')
    original = scaling.get(name) or values.get(name)
    scaling[name] = original or longest
    if kind == 'longrope' or scaling.get('factor') is None:
      scaling['factor'] = scaling.get('factor') or (longest or original) / scaling[name]
  required, optional = _ROPE_KEYS[kind]
  scaling['rope_type'] = kind
  if missing := required - scaling.keys():
    raise ArchitectureError(f'rope_scaling of type {kind} lacks {", ".join(sorted(missing))}')
  if extra := scaling.keys() - required - optional - {'rope_type'}:
    raise ArchitectureError(
      f'rope_scaling of type {kind} has {", ".join(sorted(extra))}, which is not supported'
    )
  return {key: value for key, value in scaling.items() if value is not None}


def to_json_config(config: DecoderConfig, *, max_position_embeddings: int = 4096) -> dict:
  """A config.json for a model that was not imported.

  Uses the first family whose reader returns the same DecoderConfig.

  Args:
    config: the model.
    max_position_embeddings: value of this key; it has no effect on sizes in transformers.

  Raises:
    ArchitectureError: no family has this combination of fields.
  """
  structure = {field.name for field in dataclasses.fields(DecoderConfig)} - FREE_FIELDS
  for model_type, family in FAMILIES.items():
    json_config = _written(model_type, family, config, max_position_embeddings)
    try:
      again = DecoderConfig(**decoder_fields(json_config))
    except ValueError:
      continue
    if all(getattr(again, name) == getattr(config, name) for name in structure):
      return json_config
  raise ArchitectureError(f'no model family of transformers has the architecture {config}')


# DecoderConfig fields that are not part of the architecture.
FREE_FIELDS = frozenset(
  'vocab_multiple dropout_rate lora dtype param_dtype remat scan_layers attention'.split()
)


def _written(model_type: str, family: Family, config: DecoderConfig, positions: int) -> dict:
  known = {*_COMMON, *family.keys}
  json_config = {key: getattr(config, field) for key, field in SAME.items() if key in known}
  json_config |= {
    'architectures': [family.architecture],
    'model_type': model_type,
    'max_position_embeddings': positions,
    family.activation_key: {ours: theirs for theirs, ours in reversed(ACTIVATION_NAMES.items())}[
      config.mlp_activation
    ],
  }
  if model_type == 'gemma':
    json_config['hidden_activation'] = json_config['hidden_act']
  scaling = dict(config.rope_scaling or {'rope_type': 'default'})
  scaling = {
    key: list(value) if isinstance(value, tuple) else value for key, value in scaling.items()
  }
  rope = {'rope_theta': config.rope_theta, **scaling}
  if config.rope_fraction != 1.0:
    rope['partial_rotary_factor'] = config.rope_fraction
  local = 'rope_local_base_freq' in family.keys
  json_config['rope_parameters'] = rope
  if local:
    theta = config.rope_local_theta if config.rope_local_theta is not None else config.rope_theta
    json_config['rope_parameters'] = {
      'full_attention': rope,
      'sliding_attention': {'rope_type': 'default', 'rope_theta': theta},
    }
  if 'attention_bias' in family.keys:
    json_config['attention_bias'] = config.attention_bias == 'all'
  if 'query_pre_attn_scalar' in family.keys:
    scalar = config.head_dim if config.query_scale is None else config.query_scale**-2
    json_config['query_pre_attn_scalar'] = (
      round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar
    )
  if 'sliding_window' in family.keys:
    json_config['sliding_window'] = config.window
  if 'use_sliding_window' in family.keys:
    json_config['use_sliding_window'] = config.window is not None
  if 'layer_types' in family.keys:
    names = {'global': 'full_attention', 'local': 'sliding_attention'}
    json_config['layer_types'] = [names[config.kind(i)] for i in range(config.num_layers)]
  return json_config
