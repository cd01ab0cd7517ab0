"""Which leaves of our parameters a tensor of Hugging Face holds, and their shapes."""

import dataclasses
import functools
import re

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from crossin_jax.models.decoder import Decoder
from crossin_jax.models.decoder_config import DecoderConfig
from crossin_jax.models.huggingface.declarations import FAMILIES
from crossin_jax.models.huggingface.tensor_names import TOP_TENSORS

# Leaves with a row for each token.
PER_TOKEN = ('token_embedding', 'lm_head')


def tensor_leaves(
  model_type: str, config: DecoderConfig
) -> dict[str, tuple[tuple[str, tuple[int, ...]], ...]]:
  """Tensor name -> its leaves, each (path below `decoder/`, index in the stacked array).

  An index has the layer, the expert, or both; it is () for a leaf that is not stacked, or of which
  the tensor has all experts.
  """
  leaves = {name: tuple((path, ()) for path in paths) for name, paths in TOP_TENSORS.items()}
  if config.tie_embeddings:
    del leaves['lm_head.weight']
  shapes, period = _block_shapes(config), len(config.layer_pattern)
  for i in range(config.num_layers):
    layer, index = config.layer_path(i)
    for name, paths in FAMILIES[model_type].tensors.items():
      if not all(path in shapes[i % period] for path in paths):
        continue
      of_layer = () if index is None else (index,)
      experts = range(config.num_experts) if '{expert}' in name else (None,)
      for expert in experts:
        at = of_layer if expert is None else (*of_layer, expert)
        tensor = f'model.layers.{i}.{name.replace("{expert}", str(expert))}'
        leaves[tensor] = tuple((f'{layer}/{path}', at) for path in paths)
  return leaves


@functools.lru_cache(maxsize=64)
def _block_shapes(config: DecoderConfig) -> list[dict[str, tuple[int, ...]]]:
  """Leaf -> shape for each layer of one period of the pattern, without adapters."""
  period = len(config.layer_pattern)
  plain = dataclasses.replace(config, scan_layers=False, num_layers=period, lora=None)
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  init = lambda tokens: Decoder(plain).init(jax.random.key(0), tokens, tokens, enable_dropout=False)
  stack = jax.eval_shape(init, tokens)['params']['decoder']
  return [
    {
      path: leaf.shape
      for path, leaf in traverse_util.flatten_dict(stack[plain.layer_path(i)[0]], sep='/').items()
    }
    for i in range(period)
  ]


def is_transposed(path: str) -> bool:
  return path.endswith('kernel') or path == 'lm_head'


_LAYER_OF = re.compile(r'(?:layers/block_|layers_|tail_)(\d+)/|layers/')


def leaf_shape(path: str, index: tuple[int, ...], config: DecoderConfig) -> tuple[int, ...]:
  """Shape of a leaf at an index of `tensor_leaves`, without padding of the vocabulary."""
  if path == 'token_embedding':
    return config.vocab_size, config.embed_dim
  if path == 'lm_head':
    return config.embed_dim, config.vocab_size
  if not (match := _LAYER_OF.match(path)):
    return (config.embed_dim,)
  shapes, leaf = _block_shapes(config), path[match.end() :]
  shape = shapes[int(match[1] or 0) % len(shapes)][leaf]
  return shape[len(index) - path.startswith('layers/') :]  # these have no axis of layers


def is_packed(path: str, shape: tuple[int, ...]) -> bool:
  """Whether a tensor has the kernels or biases of all experts, [X, inputs, F] or [X, F] (gpt-oss).

  They are not transposed, and several leaves alternate along the last axis.
  """
  return path.endswith(('kernel', 'bias')) and len(shape) == 2 + path.endswith('kernel')


def tensor_shape(leaves, config: DecoderConfig) -> tuple[int, ...]:
  """Shape of a tensor made of these leaves."""
  shapes = [leaf_shape(path, index, config) for path, index in leaves]
  path, shape = leaves[0][0], shapes[0]
  if is_packed(path, shape):
    return (*shape[:-1], len(shapes) * shape[-1])
  shapes = [shape[::-1] if is_transposed(path) else shape for shape in shapes]
  return shapes[0] if len(shapes) == 1 else (sum(n for n, *_ in shapes), *shapes[0][1:])


def joined(values: list[np.ndarray], path: str) -> np.ndarray:
  """The tensor of some leaves.

  Args:
    values: of all leaves.
    path: of one of them.
  """
  if is_packed(path, values[0].shape):
    return np.stack(values, axis=-1).reshape(*values[0].shape[:-1], -1)
  values = [value.T if is_transposed(path) else value for value in values]
  return values[0] if len(values) == 1 else np.concatenate(values)
