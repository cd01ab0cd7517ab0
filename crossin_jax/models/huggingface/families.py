"""Families of models: what their config.json says, as a DecoderConfig, and back.

A family is a declaration: the fields in which it differs, the keys of config.json that it reads,
and the names of its tensors. Whatever a config.json says that is neither read nor known to change
nothing is an error that names it.
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

# config.json key -> DecoderConfig field, where the value is the same in both.
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
  'silu': 'silu',
  'swish': 'silu',
  'gelu_pytorch_tanh': 'gelu',
  'gelu': 'gelu_exact',
}
# Keys that do not change the forward pass of the text model.
IGNORED = frozenset(
    """_name_or_path architectures auto_map boi_token_index bos_token_id cache_implementation chunk_size_feed_forward
    diversity_penalty dtype eoi_token_index eos_token_id finetuning_task id2label image_token_index initializer_range
    is_decoder is_encoder_decoder label2id max_position_embeddings mm_tokens_per_image model_type output_attentions
    output_hidden_states pad_token_id prefix pretraining_tp problem_type return_dict sep_token_id task_specific_params
    text_config torch_dtype torchscript transformers_version typical_p unk_token_id use_cache vision_config image_token_id""".split()
)  # fmt: skip
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
_APART = {
  f'{module}.{theirs}_proj.{name}': (f'{place}/{ours}/{leaf}',)
  for module, place, pairs in (
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
# Tensor names -> leaves. A tensor of several leaves is their concatenation along its rows; kernels
# lie transposed.
LLAMA_TENSORS = {**_LAYER, **_APART, **_PRE_NORMS}
POST_NORM_TENSORS = {**_LAYER, **_APART, **_POST_NORMS}
FUSED_TENSORS = {**_LAYER, **_FUSED, **_PRE_NORMS}
TOP_TENSORS = {
  'model.embed_tokens.weight': ('token_embedding',),
  'model.norm.weight': ('final_norm/scale',),
  'lm_head.weight': ('lm_head',),
}


@dataclasses.dataclass(frozen=True)
class Family:
  """How one `model_type` differs.

  Attributes:
    architecture: class in transformers.
    fields: DecoderConfig fields that all its models share.
    keys: keys of config.json beyond the common ones that it reads.
    defaults: what a missing key means.
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
  'mistral': Family('MistralForCausalLM', keys=('sliding_window',), defaults={'sliding_window': 4096}),
  'qwen2': Family(
    'Qwen2ForCausalLM',
    fields={'attention_bias': 'qkv'},
    keys=('use_sliding_window', 'sliding_window', 'max_window_layers', 'layer_types'),
  ),
  'qwen3': Family(
    'Qwen3ForCausalLM',
    fields={'qk_norm': 'head'},
    keys=('use_sliding_window', 'sliding_window', 'max_window_layers', 'layer_types', 'attention_bias'),
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
    keys=('attention_bias', 'query_pre_attn_scalar', *_SOFTCAPS, 'sliding_window', 'layer_types', 'hidden_act'),
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
    # Those of the class: the published config.json of a 4B model leaves nearly everything out.
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
# Where nothing is said; the classes of transformers agree.
DEFAULTS = {
  'tie_word_embeddings': False,
  'rms_norm_eps': 1e-6,
  'rope_theta': 10_000.0,
  'hidden_act': 'silu',
}


class ArchitectureError(CrossinError, ValueError):
  """A config.json that is no model of ours; the message names the field and what is supported."""


def read_json_config(directory: str) -> dict:
  """config.json of a Hugging Face directory; the text part of a multimodal one.

  Raises:
    ArchitectureError: none there, not JSON, or no family of ours.
  """
  path = os.path.join(directory, 'config.json')
  try:
    with open(remote.fetched(path), encoding='utf-8') as f:
      found = json.load(f)
  except FileNotFoundError:
    raise ArchitectureError(
      f'{directory} has no config.json; a Hugging Face model directory is wanted'
    ) from None
  except ValueError as error:
    raise ArchitectureError(f'{path} is not JSON ({error}); copy it anew') from None
  if found.get('model_type') == 'gemma3' and 'text_config' in found:
    outer = {
      key: found[key] for key in ('dtype', 'torch_dtype', 'tie_word_embeddings') if key in found
    }
    found = {**outer, **found['text_config'], 'model_type': 'gemma3_text'}
  if found.get('model_type') not in FAMILIES:
    raise ArchitectureError(
      f'{path}: model_type {found.get("model_type")!r} is not supported; supported are '
      f'{", ".join(FAMILIES)}'
    )
  return found


@config.configurable(commands=('train', 'chunks'))
def from_huggingface(directory: str = gin.REQUIRED, ignore: tuple[str, ...] = ()) -> DecoderConfig:
  """The DecoderConfig of a Hugging Face directory; its free choices (dtype, lora, remat ...) come
  from gin as usual.

  Args:
    directory: holds config.json.
    ignore: fields of config.json that this project does not know and that you know to change
      nothing.

  Raises:
    ArchitectureError: names what is not supported.
  """
  found = read_json_config(directory)
  try:
    return DecoderConfig(**decoder_fields(found, ignore))
  except ArchitectureError as error:
    raise ArchitectureError(f'{os.path.join(directory, "config.json")}: {error}') from None


def decoder_fields(found: Mapping, ignore: tuple[str, ...] = ()) -> dict:
  """DecoderConfig fields that a config.json fixes.

  Raises:
    ArchitectureError: a field that is missing, not supported, or has a value that is not.
  """
  family = FAMILIES[found['model_type']]
  known = {*_COMMON, *family.keys, family.activation_key}
  for key, value in found.items():
    if key in NEUTRAL and value not in NEUTRAL[key]:
      raise ArchitectureError(f'{key} = {value!r} is not supported (only {NEUTRAL[key][0]!r} is)')
    if key in known or key in IGNORED or key in NEUTRAL or key in ignore or key in _inert(found):
      continue
    raise ArchitectureError(
      f'field {key} = {value!r} is not known for {found["model_type"]}; if it changes nothing in '
      'the forward pass, name it '
      f'in from_huggingface.ignore'
    )
  values = {
    **DEFAULTS,
    **family.defaults,
    **{key: value for key, value in found.items() if value is not None},
  }
  # An explicit null says "none", where the class has a default.
  values.update({key: None for key, value in found.items() if value is None and key in family.keys})
  fields = dict(family.fields)
  for key in (
    'vocab_size',
    'hidden_size',
    'intermediate_size',
    'num_hidden_layers',
    'num_attention_heads',
  ):
    if not isinstance(values.get(key), int):
      raise ArchitectureError(f'field {key} is missing or no integer')
  for key, field in SAME.items():
    if key in known and values.get(key) is not None:
      fields[field] = values[key]
  fields.setdefault('num_kv_heads', values['num_attention_heads'])
  if values.get('attention_bias'):
    fields['attention_bias'] = 'all'
  activation = values.get(family.activation_key)
  if found['model_type'] == 'gemma':
    # Published Gemma files say "gelu" where tanh is meant; transformers reads them so too.
    activation = values.get('hidden_activation') or 'gelu_pytorch_tanh'
  if activation not in ACTIVATION_NAMES:
    raise ArchitectureError(
      f'{family.activation_key} = {activation!r} is not one of {", ".join(ACTIVATION_NAMES)}'
    )
  fields['mlp_activation'] = ACTIVATION_NAMES[activation]
  if 'query_pre_attn_scalar' in values and 'query_pre_attn_scalar' in known:
    fields['query_scale'] = values['query_pre_attn_scalar'] ** -0.5
  fields.update(_layers(values, known))
  fields.update(_rope(values, fields))
  return fields


def _inert(found: Mapping) -> tuple[str, ...]:
  """Keys that say nothing because another one switches them off."""
  return ('sliding_window', 'max_window_layers') if found.get('use_sliding_window') is False else ()


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


def _rope(values: Mapping, fields: Mapping) -> dict:
  """rope_theta, rope_local_theta, rope_scaling and rope_fraction, from the old keys or the new
  ones.
  """
  result = {'rope_theta': float(values['rope_theta'])}
  scaling = dict(values.get('rope_scaling') or {})
  if 'rope_local_base_freq' in values:
    result['rope_local_theta'] = float(values['rope_local_base_freq'])
  new = values.get('rope_parameters')
  if new:
    if 'full_attention' in new or 'sliding_attention' in new:  # a set for each kind of layer
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
      result['rope_theta'] = float(scaling.pop('rope_theta'))
  fraction = scaling.pop('partial_rotary_factor', values.get('partial_rotary_factor', 1.0))
  result['rope_fraction'] = float(fraction)
  scaling.pop('rope_theta', None)
  if 'type' in scaling:
    scaling.setdefault('rope_type', scaling.pop('type'))
    scaling.pop('type', None)
  kind = scaling.get('rope_type', 'default')
  kind = 'longrope' if kind == 'su' else kind
  if kind == 'default':
    if scaling.keys() - {'rope_type'}:
      raise ArchitectureError(f'rope_scaling without a rope_type has {", ".join(sorted(scaling))}')
    return result
  if kind == 'yarn' or kind == 'longrope':
    original = scaling.get('original_max_position_embeddings') or values.get(
      'original_max_position_embeddings'
    )
    scaling['original_max_position_embeddings'] = original or values.get('max_position_embeddings')
    if kind == 'longrope' or scaling.get('factor') is None:
      most = values.get('max_position_embeddings') or original
      scaling['factor'] = (
        scaling.get('factor') or most / scaling['original_max_position_embeddings']
      )
  wanted = {
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
  if kind not in wanted:
    raise ArchitectureError(f'rope_type {kind!r} is not one of default, {", ".join(wanted)}')
  needed, optional = wanted[kind]
  scaling['rope_type'] = kind
  if missing := needed - scaling.keys():
    raise ArchitectureError(f'rope_scaling of type {kind} lacks {", ".join(sorted(missing))}')
  if extra := scaling.keys() - needed - optional - {'rope_type'}:
    raise ArchitectureError(
      f'rope_scaling of type {kind} has {", ".join(sorted(extra))}, which is not supported'
    )
  result['rope_scaling'] = {key: value for key, value in scaling.items() if value is not None}
  return result


def to_json_config(config: DecoderConfig, *, max_position_embeddings: int = 4096) -> dict:
  """A config.json for a model that was not imported.

  Every family is tried, and the first whose reader gives this very DecoderConfig back is taken.

  Args:
    config: the model.
    max_position_embeddings: written into it; transformers sizes nothing by it.

  Raises:
    ArchitectureError: no family of transformers has this combination.
  """
  structure = {field.name for field in dataclasses.fields(DecoderConfig)} - FREE_FIELDS
  for model_type, family in FAMILIES.items():
    found = _written(model_type, family, config, max_position_embeddings)
    try:
      again = DecoderConfig(**decoder_fields(found))
    except ValueError:
      continue
    if all(getattr(again, name) == getattr(config, name) for name in structure):
      return found
  raise ArchitectureError(f'no model family of transformers is built like {config}')


# What a DecoderConfig says beyond the architecture.
FREE_FIELDS = frozenset(
  (
    'vocab_multiple',
    'dropout_rate',
    'lora',
    'dtype',
    'param_dtype',
    'remat',
    'scan_layers',
    'attention',
  )
)


def _written(model_type: str, family: Family, config: DecoderConfig, positions: int) -> dict:
  known = {*_COMMON, *family.keys}
  found = {key: getattr(config, field) for key, field in SAME.items() if key in known}
  found |= {
    'architectures': [family.architecture],
    'model_type': model_type,
    'max_position_embeddings': positions,
    family.activation_key: {ours: theirs for theirs, ours in reversed(ACTIVATION_NAMES.items())}[
      config.mlp_activation
    ],
  }
  if model_type == 'gemma':
    found['hidden_activation'] = found['hidden_act']
  scaling = dict(config.rope_scaling or {'rope_type': 'default'})
  scaling = {
    key: list(value) if isinstance(value, tuple) else value for key, value in scaling.items()
  }
  rope = {'rope_theta': config.rope_theta, **scaling}
  if config.rope_fraction != 1.0:
    rope['partial_rotary_factor'] = config.rope_fraction
  local = 'rope_local_base_freq' in family.keys
  found['rope_parameters'] = rope
  if local:
    theta = config.rope_local_theta if config.rope_local_theta is not None else config.rope_theta
    found['rope_parameters'] = {
      'full_attention': rope,
      'sliding_attention': {'rope_type': 'default', 'rope_theta': theta},
    }
  if 'attention_bias' in family.keys:
    found['attention_bias'] = config.attention_bias == 'all'
  if 'query_pre_attn_scalar' in family.keys:
    scalar = config.head_dim if config.query_scale is None else config.query_scale**-2
    found['query_pre_attn_scalar'] = round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar
  if 'sliding_window' in family.keys:
    found['sliding_window'] = config.window
  if 'use_sliding_window' in family.keys:
    found['use_sliding_window'] = config.window is not None
  if 'layer_types' in family.keys:
    names = {'global': 'full_attention', 'local': 'sliding_attention'}
    found['layer_types'] = [names[config.kind(i)] for i in range(config.num_layers)]
  return found
