"""Rotary settings of config.json, in the spellings of transformers 4 and 5."""

from collections.abc import Mapping

from crossin_jax.models.huggingface.json_keys import ArchitectureError

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
  'proportional': (set(), {'factor', 'partial_rotary_factor'}),
}


def rope_fields(values: Mapping) -> dict:
  """rope_theta, rope_local_theta, rope_scaling and rope_fraction, from old or new keys.

  As transformers reads them: what is inside a dict goes before keys beside it, and the old
  `rope_scaling`, which people add by hand for longer texts, before `rope_parameters`.

  Raises:
    ArchitectureError: an unsupported type, or `rope_scaling` would replace another base.
  """
  result = {}
  old, new = dict(values.get('rope_scaling') or {}), dict(values.get('rope_parameters') or {})
  if 'rope_local_base_freq' in values:
    result['rope_local_theta'] = float(values['rope_local_base_freq'])
  if nested := 'full_attention' in new or 'sliding_attention' in new:  # one for each kind of layer
    local = dict(new.get('sliding_attention') or {})
    if local.get('rope_type', 'default') != 'default':
      raise ArchitectureError(
        f'rope_parameters.sliding_attention.rope_type = {local["rope_type"]!r} is not supported'
      )
    if 'rope_theta' in local:
      result['rope_local_theta'] = float(local['rope_theta'])
    new = dict(new.get('full_attention') or {})
  beside = {
    'rope_theta': values['rope_theta'],
    'partial_rotary_factor': values.get('partial_rotary_factor', 1.0),
  }
  # NB: one set for each kind of layer is updated by rope_scaling, any other is replaced.
  scaling = {**new, **old} if nested else old or new
  if old and new and not nested:
    for key, value in beside.items():
      if key in new and scaling.get(key, value) != new[key]:
        raise ArchitectureError(
          f'rope_scaling stands beside rope_parameters, and transformers reads only it, with '
          f'{key} = {scaling.get(key, value)!r} and not {new[key]!r}: put "{key}" into '
          'rope_scaling, or move everything into rope_parameters'
        )
  result['rope_theta'] = float(scaling.pop('rope_theta', beside['rope_theta']))
  if scaling.get('rope_type') != 'proportional':  # which keeps its share as a parameter
    fraction = scaling.pop('partial_rotary_factor', beside['partial_rotary_factor'])
    result['rope_fraction'] = float(fraction)
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
  if values.get('model_type') == 'ministral3':
    scaling.pop('max_position_embeddings', None)
    optional = {*optional, 'llama_4_scaling_beta'}
  scaling['rope_type'] = kind
  if missing := required - scaling.keys():
    raise ArchitectureError(f'rope_scaling of type {kind} lacks {", ".join(sorted(missing))}')
  if extra := scaling.keys() - required - optional - {'rope_type'}:
    raise ArchitectureError(
      f'rope_scaling of type {kind} has {", ".join(sorted(extra))}, which is not supported'
    )
  return {key: value for key, value in scaling.items() if value is not None}
