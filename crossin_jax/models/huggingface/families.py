"""Conversion between config.json and DecoderConfig, for the families of `declarations`."""

from collections.abc import Mapping
import dataclasses
import json
import os
import warnings

import gin

from crossin_jax import config
from crossin_jax.models.decoder_config import DecoderConfig
from crossin_jax.models.huggingface import json_keys
from crossin_jax.models.huggingface.declarations import (
  ACTIVATION_NAMES,
  COMMON,
  DEFAULTS,
  FAMILIES,
  OUTER,
  SAME,
  SIZES,
  WRAPPERS,
  Family,
)
from crossin_jax.models.huggingface.json_keys import ArchitectureError
from crossin_jax.models.huggingface.rope_settings import rope_fields
from crossin_jax.models.huggingface.unsupported import REFUSED
from crossin_jax.storage import hub_names, remote


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
      f'{directory} has no config.json; give a Hugging Face model directory, or ORG/NAME on the hub'
    ) from None
  except ValueError as error:
    raise ArchitectureError(f'{path} is not JSON ({error}); copy it again') from None
  if not isinstance(json_config, dict):
    raise ArchitectureError(
      f'{path} is a {type(json_config).__name__}, not an object; copy it again'
    )
  kind, text = json_config.get('model_type'), json_config.get('text_config')
  if kind in WRAPPERS and isinstance(text, dict):
    outer = {key: json_config[key] for key in OUTER if key in json_config}
    json_config = {'model_type': WRAPPERS[kind], **text, **outer}
    if kind == 'gemma3':
      json_config['model_type'] = 'gemma3_text'
    kind = f'{kind} with a text model of type {json_config["model_type"]}'
  if (reason := REFUSED.get(json_config.get('model_type'))) is not None:
    raise ArchitectureError(f'{path}: model_type {kind!r} is not supported: {reason}')
  if json_config.get('model_type') not in FAMILIES:
    raise ArchitectureError(
      f'{path}: model_type {kind!r} is not supported; supported are {", ".join(FAMILIES)}, and as '
      f'text models of {", ".join(WRAPPERS)}'
    )
  return json_config


@config.configurable(commands=('train', 'chunks'))
def from_huggingface(directory: str = gin.REQUIRED, ignore: tuple[str, ...] = ()) -> DecoderConfig:
  """The DecoderConfig of a Hugging Face directory; gin sets the rest (dtype, lora, remat ...).

  A `DecoderConfig.vocab_size` above that of config.json gives the model new rows for new tokens:
  the mean of the old ones at first, and trained, also by a LoRA run.

  Args:
    directory: has config.json; or ORG/NAME or hf:ORG/NAME@REVISION on the Hugging Face hub.
    ignore: unknown fields of config.json that have no effect.

  Raises:
    ArchitectureError: an unsupported field. HubError: no such name.
  """
  directory = hub_names.pinned(directory)
  json_config = read_json_config(directory)
  try:
    fields = decoder_fields(json_config, ignore)
  except ArchitectureError as error:
    raise ArchitectureError(f'{os.path.join(directory, "config.json")}: {error}') from None
  wanted = config.bound('DecoderConfig.vocab_size')
  if not isinstance(wanted, int) or wanted <= fields['vocab_size']:
    return DecoderConfig(**fields)
  rows = fields.pop('vocab_size')
  decoder_config = DecoderConfig(**fields)  # gin gives vocab_size, so that the run records it
  adapters = decoder_config.lora
  if adapters is None or adapters.train_embeddings:
    return decoder_config
  warnings.warn(
    f'{wanted - rows} rows of the vocabulary are new: LoraConfig.train_embeddings '
    'is on, because adapters alone would leave them untrained'
  )
  adapters = dataclasses.replace(adapters, train_embeddings=True)
  return dataclasses.replace(decoder_config, lora=adapters)


def decoder_fields(json_config: Mapping, ignore: tuple[str, ...] = ()) -> dict:
  """The DecoderConfig fields set by a config.json.

  Raises:
    ArchitectureError: a missing or unsupported field or value.
  """
  family = FAMILIES[json_config['model_type']]
  json_config = {_own_name(key, family): value for key, value in json_config.items()}
  known = {*COMMON, *family.same, *family.keys, *family.fixed, family.activation_key}
  json_keys.check(json_config, known, (*ignore, *_inert(json_config)))
  values = {
    **DEFAULTS,
    **family.defaults,
    **{key: value for key, value in json_config.items() if value is not None},
  }
  if json_config.get('rope_scaling') and not json_config.get('rope_parameters'):
    values.pop('rope_parameters', None)  # transformers replaces the default by it
  _check_fixed(family, json_config, values)
  # An explicit null overrides the default.
  values.update(
    {key: None for key, value in json_config.items() if value is None and key in family.keys}
  )
  fields = dict(family.fields)
  for key in SIZES:  # the sizes without a default
    if not isinstance(values.get(key), int):
      raise ArchitectureError(f'field {key} is missing or not an integer')
  for key, field in {**SAME, **family.same}.items():
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
  fields.update(_layers(values, known, family.without_positions))
  fields.update(rope_fields(values))
  fields.update(family.read(values))
  return fields


def vocab_size(directory: str) -> int:
  """Rows of the embedding of a Hugging Face directory; Gemma 3's file leaves them out."""
  json_config = read_json_config(directory)
  return {**FAMILIES[json_config['model_type']].defaults, **json_config}['vocab_size']


def _own_name(key: str, family: Family) -> str:
  """transformers 5 writes num_local_experts for num_experts, and reads both."""
  other = {'num_local_experts': 'num_experts', 'num_experts': 'num_local_experts'}.get(key)
  return other if other in family.same else key


def _check_fixed(family: Family, json_config: Mapping, values: Mapping) -> None:
  """Raises ArchitectureError for the values of keys of which only some are supported."""
  for key, supported in family.fixed.items():
    if key in values and values[key] not in supported:
      written = repr(json_config[key]) if key in json_config else f'missing, so {values[key]!r}'
      raise ArchitectureError(
        f'{key} is {written}; supported: {", ".join(map(repr, supported))}'
        + (f'. {family.relatives}' if family.relatives else '')
      )


def _inert(json_config: Mapping) -> tuple[str, ...]:
  """Keys without effect because another key disables them."""
  return (
    ('sliding_window', 'max_window_layers')
    if json_config.get('use_sliding_window') is False
    else ()
  )


def _layers(values: Mapping, known, without_positions: str) -> dict:
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
    elif without_positions == 'listed':  # only layers without positions have a window
      types = ['full_attention' if rope else 'sliding_attention' for rope in _positions(values)]
    elif period:
      types = [
        'full_attention' if (i + 1) % period == 0 else 'sliding_attention' for i in range(layers)
      ]
    else:
      first = values.get('max_window_layers', 0) if 'max_window_layers' in known else 0
      types = ['sliding_attention' if i >= first else 'full_attention' for i in range(layers)]
  if values['model_type'].startswith('gemma4'):  # as transformers does, with a warning
    types = [*types[:-1], 'full_attention']
  kinds = {'full_attention': 'global', 'sliding_attention': 'local'}
  if unknown := [t for t in types if t not in kinds]:
    raise ArchitectureError(f'layer_types has {unknown[0]!r}; supported are {", ".join(kinds)}')
  if len(types) != layers:
    raise ArchitectureError(
      f'layer_types names {len(types)} layers, num_hidden_layers says {layers}'
    )
  pattern = [kinds[t] for t in types]
  if without_positions == 'listed':
    pattern = [kind if rope else f'{kind}_nope' for kind, rope in zip(pattern, _positions(values))]
  elif without_positions == 'global':
    pattern = [kind if kind == 'local' else f'{kind}_nope' for kind in pattern]
  period = next(
    p for p in range(1, layers + 1) if all(pattern[i] == pattern[i % p] for i in range(layers))
  )
  pattern = tuple(pattern[:period])
  has_windows = any(kind.startswith('local') for kind in pattern)
  return {'layer_pattern': pattern, 'window': window if has_windows else None}


def _positions(values: Mapping) -> list[int]:
  """1 for each layer with rotary positions, else 0 (SmolLM3)."""
  layers, interval = values['num_hidden_layers'], values['no_rope_layer_interval']
  listed = values.get('no_rope_layers') or [int((i + 1) % interval != 0) for i in range(layers)]
  if len(listed) < layers:
    raise ArchitectureError(
      f'no_rope_layers names {len(listed)} layers, num_hidden_layers says {layers}'
    )
  return listed[:layers]


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
  known = {*COMMON, *family.same, *family.keys}
  same = {**SAME, **family.same}
  json_config = {key: getattr(config, field) for key, field in same.items() if key in known}
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
  local = 'rope_local_base_freq' in family.defaults
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
    kinds = [config.kind(i).removesuffix('_nope') for i in range(config.num_layers)]
    json_config['layer_types'] = [names[kind] for kind in kinds]
  if family.without_positions == 'listed':
    kinds = [config.kind(i) for i in range(config.num_layers)]
    json_config['no_rope_layers'] = [int(config.has_positions(kind)) for kind in kinds]
  return json_config | family.write(config)
