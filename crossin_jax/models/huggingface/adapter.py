"""LoRA adapters of PEFT on disk: which model they are for, their settings, and their tensors."""

from collections.abc import Mapping
import functools
import json
import os
import re

from flax import traverse_util
import jax
import numpy as np

from crossin_jax.errors import CrossinError
from crossin_jax.models import lora
from crossin_jax.models.decoder_config import DecoderConfig
from crossin_jax.models.huggingface import peft_parameters, tensor_files
from crossin_jax.models.huggingface.leaves import leaf_shape, tensor_leaves, tensor_shape
from crossin_jax.models.huggingface.peft import CONFIG, WEIGHTS
from crossin_jax.storage import remote

# Settings of adapter_config.json that make another function of the adapter -> values that do not.
_NEUTRAL = {
  'alora_invocation_tokens': (None,),
  'arrow_config': (None,),
  'bias': ('none', None),
  'fan_in_fan_out': (False, None),
  'kasa_config': (None,),
  'layer_replication': (None,),
  'lora_bias': (False, None),
  'monteclora_config': (None,),
  'trainable_token_indices': (None,),
  'use_bdlora': (None, False),
  'use_dora': (False, None),
  'use_qalora': (False, None),
  'velora_config': (None,),
}
# These take a part of the base into the adapter, so it fits a changed base only.
_CHANGES_BASE = ('pissa', 'olora', 'corda', 'loftq', 'lora_ga')
_EMBEDDINGS = {'model.embed_tokens.weight': 'token_embedding', 'lm_head.weight': 'lm_head'}


class AdapterError(CrossinError, ValueError):
  """An adapter that cannot be read or does not fit; the message names the file and the remedy."""


def is_adapter(path: str) -> bool:
  """Whether this directory holds an adapter of PEFT."""
  return remote.exists(os.path.join(path, CONFIG))


class Adapter:
  """A directory with adapter_config.json and adapter_model.safetensors.

  Attributes:
    directory: local.
    path: as given.
  """

  def __init__(self, path: str):
    """Reads the settings.

    Raises:
      AdapterError: another kind of adapter, or a setting that is not supported.
    """
    self.path = path
    self.directory = remote.fetched(path, [CONFIG, WEIGHTS], optional=True)
    file = os.path.join(path, CONFIG)
    try:
      with open(os.path.join(self.directory, CONFIG), encoding='utf-8') as f:
        self._config = dict(json.load(f))
    except (ValueError, TypeError) as error:
      raise AdapterError(f'{file} is not a JSON object ({error}); copy it again') from None
    if (kind := self._config.get('peft_type')) != 'LORA':
      raise AdapterError(f'{file}: peft_type = {kind!r} is not supported (only "LORA" is)')
    for key, neutral in _NEUTRAL.items():
      if self._config.get(key, neutral[0]) not in neutral:
        raise AdapterError(
          f'{file}: {key} = {self._config[key]!r} is not supported; merge the adapter with PEFT '
          '(merge_and_unload) and give the merged model'
        )
    start = str(self._config.get('init_lora_weights', True)).lower()
    if start.startswith(_CHANGES_BASE):
      raise AdapterError(
        f'{file}: init_lora_weights = {start!r} changes the base model too; convert the adapter '
        'with save_pretrained(..., path_initial_model_for_weight_conversion=...), or merge it with '
        'PEFT'
      )

  @property
  def base_name(self) -> str | None:
    """Path or name of the base model, as PEFT wrote it."""
    return self._config.get('base_model_name_or_path')

  @property
  def base_revision(self) -> str | None:
    """Of a base on the hub: a branch, tag or commit."""
    return self._config.get('revision')

  @functools.cached_property
  def _tensors(self) -> Mapping[str, np.ndarray]:
    """Name in the base model, without `.weight` -> {'lora_A', 'lora_B', 'weight'} -> tensor."""
    import ml_dtypes  # noqa: F401  (NumPy's bfloat16)
    from safetensors import SafetensorError, safe_open

    path = os.path.join(self.directory, WEIGHTS)
    if not os.path.isfile(path):
      others = [name for name in sorted(os.listdir(self.directory)) if name.endswith('.bin')]
      hint = f', only {others[0]}, which is not opened because it could run code' if others else ''
      raise AdapterError(
        f'{self.path} has no {WEIGHTS}{hint}; save it with save_pretrained(safe_serialization=True)'
      )
    found: dict = {}
    try:
      with safe_open(path, 'np') as file:
        for name in file.keys():
          module, part = self._split(name)
          if part in found.setdefault(module, {}):
            raise AdapterError(f'{path}: tensor {name} is there under another name too')
          found[module][part] = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
      raise AdapterError(f'{path} is damaged or cut off ({error}); copy it again') from None
    return found

  def _split(self, name: str) -> tuple[str, str]:
    """'base_model.model.X.lora_A.default.weight' -> (X as in a text-only model, 'lora_A')."""
    # Below `experts` the name tells the adapters of several parameters apart.
    plain = re.sub(r'(?<!\.experts)\.base_layer\.', '.', name.removeprefix('base_model.model.'))
    plain = re.sub(r'\.modules_to_save(\.default)?\.', '.', plain)
    match = re.fullmatch(r'(.*)\.(lora_A|lora_B)(\.default)?\.weight', plain)
    module, part = match.group(1, 2) if match else (plain.removesuffix('.weight'), 'weight')
    return (tensor_files.plain_name(f'{module}.weight') or module).removesuffix('.weight'), part

  def _scale(self, module: str, rank: int) -> float:
    """The factor of PEFT on B A of a module."""
    alpha = self._config.get('lora_alpha') or 8
    for pattern, value in (self._config.get('alpha_pattern') or {}).items():
      if re.match(rf'(.*\.)?({pattern})$', module):
        alpha = value
        break
    return alpha / (rank**0.5 if self._config.get('use_rslora') else rank)

  def _adapted(self, model_type: str, config: DecoderConfig) -> dict[str, tuple]:
    """Module -> (its tensor in the model, leaves), for modules with an adapter; checks that all
    tensors are known.

    Raises:
      AdapterError: a tensor that is not part of the model, or has another shape.
    """
    targets, table = self._config.get('target_parameters') or (), {}
    for name, leaves in tensor_leaves(model_type, config).items():
      is_target = peft_parameters.is_target(name, targets)
      module = peft_parameters.module_name(name, targets) if is_target else name
      table[module.removesuffix('.weight')] = (name, leaves)
    adapted, path = {}, os.path.join(self.path, WEIGHTS)
    for module, parts in self._tensors.items():
      if f'{module}.weight' in _EMBEDDINGS and parts.keys() == {'weight'}:
        continue
      kernels = module in table and all(leaf.endswith('kernel') for leaf, _ in table[module][1])
      if not kernels or parts.keys() != {'lora_A', 'lora_B'}:
        raise AdapterError(
          f'{path}: {module} with {", ".join(sorted(parts))} is no adapter of a matrix of this '
          'model; merge the adapter with PEFT and give the merged model'
        )
      outputs, inputs, ranks = self._sizes(module, table[module][1], config)
      found = (parts['lora_A'].shape, parts['lora_B'].shape)
      if found != ((ranks, inputs), (outputs, ranks)):
        raise AdapterError(
          f'{path}: {module} has A {found[0]} and B {found[1]}, the base model needs '
          f'{(ranks, inputs)} and {(outputs, ranks)}; is {self.base_name} its base?'
        )
      adapted[module] = table[module]
    if not adapted:
      raise AdapterError(f'{path} has no adapter')
    return adapted

  def _sizes(self, module: str, leaves, config: DecoderConfig) -> tuple[int, int, int]:
    """Outputs and inputs of a matrix, and ranks: of all experts if a parameter has them."""
    *experts, first, second = tensor_shape(leaves, config)
    rank = self._rank(module, leaves, config)
    return (second, first, experts[0] * rank) if experts else (first, second, rank)

  def _rank(self, module: str, leaves, config: DecoderConfig) -> int:
    rows = self._tensors[module]['lora_A'].shape[0]
    return rows // config.num_experts if _has_all_experts(leaves, config) else rows

  def settings(self, model_type: str, config: DecoderConfig) -> dict:
    """`LoraConfig` fields of the adapter.

    Modules of several ranks get the largest one, filled up with zeros, and B carries the ratio of
    their scales: the function is the same.

    Args:
      model_type: of the base's config.json.
      config: of the base.
    """
    adapted = self._adapted(model_type, config)
    found = {leaf.split('/')[-2] for _, leaves in adapted.values() for leaf, _ in leaves}
    ranks = [self._rank(module, leaves, config) for module, (_, leaves) in adapted.items()]
    return {
      'rank': max(ranks),
      'alpha': float(self._config.get('lora_alpha') or 8),
      'dropout': float(self._config.get('lora_dropout') or 0.0),
      'targets': tuple(target for target in lora.TARGETS if target in found),
      'rs_lora': bool(self._config.get('use_rslora')),
      'train_embeddings': any(f'{module}.weight' in _EMBEDDINGS for module in self._tensors),
    }

  def load(self, model_type: str, config: DecoderConfig, abstract) -> dict:
    """Reads the leaves of `abstract` that the adapter has.

    Args:
      model_type: of the base's config.json.
      config: of the model, with `lora`.
      abstract: tree `{'decoder': ...}` of jax.ShapeDtypeStruct with shardings.

    Returns:
      A tree of arrays: adapters, and the embedding and head if the adapter has them.

    Raises:
      AdapterError: the adapter does not fit the model; names the settings that do.
    """
    wanted = self.settings(model_type, config)
    own = config.lora
    if (
      own.rank != wanted['rank']
      or set(own.targets) != set(wanted['targets'])
      or (wanted['train_embeddings'] and not own.train_embeddings)
    ):
      names = ('rank', 'alpha', 'targets', 'train_embeddings')
      flags = ' '.join(f'LoraConfig.{name}="{wanted[name]!r}"' for name in names)
      raise AdapterError(
        f'{self.path} is an adapter of rank {wanted["rank"]} on {", ".join(wanted["targets"])}'
        f'{" with trained embeddings" if wanted["train_embeddings"] else ""}, the model has rank '
        f'{own.rank} on {", ".join(own.targets)}: give {flags}'
      )
    adapted = self._adapted(model_type, config)
    values = self._embeddings(config)
    values |= self._factors(
      adapted, config, traverse_util.flatten_dict(abstract['decoder'], sep='/')
    )
    flat = traverse_util.flatten_dict(abstract['decoder'], sep='/')
    arrays = {path: _sharded(value, flat[path]) for path, value in values.items() if path in flat}
    return {'decoder': traverse_util.unflatten_dict(arrays, sep='/')}

  def _embeddings(self, config: DecoderConfig) -> dict[str, np.ndarray]:
    """Leaf -> values, of the embedding and the head that the adapter replaces."""
    found = {
      path: self._tensors[name.removesuffix('.weight')]['weight']
      for name, path in _EMBEDDINGS.items()
      if name.removesuffix('.weight') in self._tensors
    }
    for path, value in found.items():
      if value.shape != (config.vocab_size, config.embed_dim):
        raise AdapterError(
          f'{os.path.join(self.path, WEIGHTS)}: {path} has shape {value.shape}, the base '
          f'{(config.vocab_size, config.embed_dim)}. A model with more tokens must be merged and '
          'saved with PEFT first'
        )
    if config.tie_embeddings and (head := found.pop('lm_head', None)) is not None:
      if not np.array_equal(found.setdefault('token_embedding', head), head):
        raise AdapterError(
          f'{os.path.join(self.path, WEIGHTS)} has an embedding and a head with other values, but '
          'config.json of the base says tie_word_embeddings; merge the adapter with PEFT and set '
          '"tie_word_embeddings": false'
        )
    if 'lm_head' in found:
      found['lm_head'] = found['lm_head'].T
    return found

  def _factors(self, adapted: Mapping, config: DecoderConfig, flat: Mapping) -> dict:
    """Leaf -> values of lora_a [..., inputs, rank] and lora_b [..., rank, outputs]."""
    values = {
      path: np.zeros(leaf.shape, np.float32)
      for path, leaf in flat.items()
      if path.endswith(('lora_a', 'lora_b'))
    }
    for module, (name, leaves) in adapted.items():
      rank, first = self._rank(module, leaves, config), 0
      a = self._tensors[module]['lora_A'].astype(np.float32)
      b = self._tensors[module]['lora_B'].astype(np.float32)
      ratio = self._scale(name.removesuffix('.weight'), rank) / config.lora.scale
      b = b if ratio == 1 else b * np.float32(ratio)
      for number, (path, index) in enumerate(leaves):
        outputs = leaf_shape(path, index, config)[-1]
        stem, (of_a, of_b) = path.removesuffix('kernel'), (a.T, b[first : first + outputs].T)
        if _has_all_experts(leaves, config):
          of_a = peft_parameters.a_of(a, config.num_experts)
          of_b = peft_parameters.b_of(b, config.num_experts, number, len(leaves))
        if f'{stem}lora_a' in values:
          values[f'{stem}lora_a'][index][..., :rank] = of_a
          values[f'{stem}lora_b'][index][..., :rank, :] = of_b
        first += outputs
    return values


def _has_all_experts(leaves, config: DecoderConfig) -> bool:
  """Whether a tensor of these leaves is a parameter with the matrices of all experts."""
  return len(tensor_shape(leaves, config)) == 3


def _sharded(value: np.ndarray, leaf) -> jax.Array:
  """A NumPy array with dtype and sharding of `leaf`; vocabulary padding is zero."""
  value = np.asarray(value).astype(leaf.dtype)
  value = np.pad(value, [(0, want - have) for want, have in zip(leaf.shape, value.shape)])
  return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])
