"""LoRA adapters in the format of PEFT: adapter_model.safetensors and adapter_config.json."""

from collections.abc import Callable, Iterator

from flax import traverse_util
import numpy as np

from crossin_jax.models.decoder_config import DecoderConfig
from crossin_jax.models.huggingface import peft_parameters, weights
from crossin_jax.models.huggingface.leaves import leaf_shape, tensor_leaves, tensor_shape
from crossin_jax.storage import hub_names

WEIGHTS = 'adapter_model.safetensors'
CONFIG = 'adapter_config.json'
_PREFIX = 'base_model.model.'


def adapter_tensors(
  model_type: str, config: DecoderConfig, params, dtype: str
) -> Iterator[tuple[str, tuple, Callable[[], np.ndarray]]]:
  """Yields (name, shape, function that fetches it) for every tensor, like `weights.model_tensors`.

  If a tensor has several matrices (Phi-3, gpt-oss), their adapters are combined into one of a
  multiple of the rank: stacked A, and block-diagonal B.
  """
  flat = traverse_util.flatten_dict(params['decoder'], sep='/')
  rank = config.lora.rank
  for name, leaves in tensor_leaves(model_type, config).items():
    kernels = [
      (path, index, path.removesuffix('kernel'))
      for path, index in leaves
      if path.endswith('kernel')
    ]
    adapted = [
      (path, index, module) for path, index, module in kernels if f'{module}lora_a' in flat
    ]
    if adapted and len(tensor_shape(leaves, config)) == 3:
      yield from _of_parameter(name, leaves, flat, config, dtype)
    elif adapted:
      stem = _PREFIX + name.removesuffix('.weight')
      rows, columns = tensor_shape(leaves, config)

      def a(adapted=adapted):
        return np.concatenate(
          [weights.to_host(flat[f'{m}lora_a'], i, dtype).T for _, i, m in adapted]
        )

      def b(kernels=kernels, adapted=adapted):
        blocks, column = [], 0
        for path, index, module in kernels:
          outputs = leaf_shape(path, index, config)[1]
          block = np.zeros((outputs, rank * len(adapted)), dtype)
          if f'{module}lora_b' in flat:
            adapter = weights.to_host(flat[f'{module}lora_b'], index, dtype)
            block[:, column : column + rank] = adapter.T
            column += rank
          blocks.append(block)
        return np.concatenate(blocks)

      yield f'{stem}.lora_A.weight', (rank * len(adapted), columns), a
      yield f'{stem}.lora_B.weight', (rows, rank * len(adapted)), b
  if config.lora.train_embeddings:
    for name, shape, fetch in weights.model_tensors(model_type, config, params, dtype):
      if name in ('model.embed_tokens.weight', 'lm_head.weight'):
        yield _PREFIX + name, shape, fetch
        if config.tie_embeddings:  # PEFT ties them again but expects both
          yield f'{_PREFIX}lm_head.weight', shape, fetch


def _of_parameter(name: str, leaves, flat, config: DecoderConfig, dtype: str):
  """The same for a parameter that has the matrices of all experts."""
  targets = ['down_proj'] if 'down' in config.lora.targets else []
  stem = _PREFIX + peft_parameters.module_name(name, targets)
  experts, inputs, outputs = tensor_shape(leaves, config)
  modules = [(path.removesuffix('kernel'), index) for path, index in leaves]
  ranks = experts * config.lora.rank * sum(f'{module}lora_a' in flat for module, _ in modules)

  def parts(leaf: str) -> list[np.ndarray | None]:
    paths = [(module + leaf, index) for module, index in modules]
    return [weights.to_host(flat[path], i, dtype) if path in flat else None for path, i in paths]

  a = lambda: peft_parameters.stored_a(parts('lora_a'))
  b = lambda: peft_parameters.stored_b(parts('lora_b')).astype(dtype)
  yield f'{stem}.lora_A.weight', (ranks, inputs), a
  yield f'{stem}.lora_B.weight', (outputs, ranks), b


def adapter_config(model_type: str, config: DecoderConfig, base: str) -> dict:
  """adapter_config.json.

  Args:
    model_type: of config.json.
    config: the model.
    base: path or name of the base model, for PEFT.
  """
  lora, named = config.lora, hub_names.parsed(base) if hub_names.is_name(base) else None
  parts: dict[str, int] = {}
  parameters = set()  # those of `parts` that are not modules with a weight
  for name, leaves in tensor_leaves(model_type, config).items():
    count = sum(
      path.endswith('kernel') and path.split('/')[-2] in lora.targets for path, _ in leaves
    )
    if count:
      target = name.removesuffix('.weight').split('.')[-1]
      parts[target] = count
      parameters |= set() if name.endswith('.weight') else {target}
  saved = ['embed_tokens'] + ([] if config.tie_embeddings else ['lm_head'])
  return {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    # A name on the hub as the library has it.
    'base_model_name_or_path': named['repo'] if named else base,
    **({'revision': named['revision']} if named else {}),
    'r': lora.rank,
    'lora_alpha': lora.alpha,
    'lora_dropout': lora.dropout,
    'use_rslora': lora.rs_lora,
    'target_modules': sorted(parts.keys() - parameters),
    **({'target_parameters': sorted(parameters)} if parameters else {}),
    # Keeps the scale where the rank is a multiple.
    'rank_pattern': {module: lora.rank * n for module, n in parts.items() if n > 1},
    'alpha_pattern': {
      module: lora.alpha * (n**0.5 if lora.rs_lora else n) for module, n in parts.items() if n > 1
    },
    'modules_to_save': saved if lora.train_embeddings else None,
    'ensure_weight_tying': bool(lora.train_embeddings and config.tie_embeddings),
    'bias': 'none',
    'fan_in_fan_out': False,
    'inference_mode': True,
    'init_lora_weights': True,
  }
