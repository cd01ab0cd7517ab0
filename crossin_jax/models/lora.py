"""LoRA: low-rank adapters of frozen matrices (Hu et al. 2021), and the leaves that a run trains."""

import dataclasses
import math

from flax import traverse_util
import jax
import jax.numpy as jnp

from crossin_jax import config

# Modules whose matrices may have an adapter.
TARGETS = ('query', 'key', 'value', 'out', 'gate', 'up', 'down')
QUANTISED = ('int8', 'nf4')
BASE_DTYPES = ('float32', 'bfloat16', *QUANTISED)
TILE = 64  # inputs that share a scale in nf4, as in QLoRA (Dettmers et al. 2023)


@config.configurable(commands=('train', 'chunks'))
@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Adapters: W x becomes W x + scale B A dropout(x), with B = 0 initially.

  Attributes:
    rank: r, columns of A and rows of B.
    alpha: scale = alpha / rank, or alpha / sqrt(rank) with rs_lora.
    dropout: 0 to 1, on the adapter's input.
    targets: of 'query', 'key', 'value', 'out', 'gate', 'up', 'down'.
    rs_lora: rank-stabilised scale (Kalajdzievski 2023).
    train_embeddings: train embedding and output head in full; tied ones stay tied.
    base_dtype: of the frozen parameters: 'float32' or 'bfloat16'; or of their matrices, the rest in
      bf16: 'int8' (a scale per output) or 'nf4' (a scale per 64 inputs and output). These two need
      the extra `quant`.
  """

  rank: int = 16
  alpha: float = 32.0
  dropout: float = 0.0
  targets: tuple[str, ...] = TARGETS
  rs_lora: bool = False
  train_embeddings: bool = False
  base_dtype: str = 'bfloat16'

  def __post_init__(self):
    object.__setattr__(self, 'targets', tuple(self.targets))
    if self.rank < 1:
      raise ValueError(f'LoraConfig.rank = {self.rank} must be at least 1')
    if not 0.0 <= self.dropout < 1.0:
      raise ValueError(f'LoraConfig.dropout = {self.dropout} is not in [0, 1)')
    if unknown := [target for target in self.targets if target not in TARGETS]:
      raise ValueError(f'LoraConfig.targets = {unknown} are not among {TARGETS}')
    if not self.targets:
      raise ValueError(f'LoraConfig.targets is empty; name some of {TARGETS}')
    if self.base_dtype not in BASE_DTYPES:
      raise ValueError(f'LoraConfig.base_dtype = {self.base_dtype!r} is not one of {BASE_DTYPES}')

  @property
  def held_dtype(self) -> str:
    """The dtype of frozen leaves that are not quantised."""
    return 'bfloat16' if self.base_dtype in QUANTISED else self.base_dtype

  @property
  def scale(self) -> float:
    """Factor on the adapter's output."""
    return self.alpha / (math.sqrt(self.rank) if self.rs_lora else self.rank)


def is_trained(path: tuple[str, ...], lora: LoraConfig | None) -> bool:
  """Whether a run trains the leaf at this path of the parameter tree."""
  if lora is None or path[-1].startswith('lora_'):
    return True
  return lora.train_embeddings and path[-1] in ('token_embedding', 'lm_head')


def split(params, lora: LoraConfig | None):
  """(trained, frozen) parts of a parameter tree; frozen is {} without LoRA."""
  if lora is None:
    return params, {}
  trained = lambda path: is_trained(path, lora)
  return _select(params, trained), _select(params, lambda path: not trained(path))


def _select(params, condition):
  flat = traverse_util.flatten_dict(params)
  return traverse_util.unflatten_dict({k: v for k, v in flat.items() if condition(k)})


def merge(trained, frozen):
  """The full tree of both parts of `split`."""
  if not frozen:
    return trained
  return traverse_util.unflatten_dict(
    {**traverse_util.flatten_dict(frozen), **traverse_util.flatten_dict(trained)}
  )


def without_adapters(params):
  """The tree without its adapters."""
  return _select(params, lambda path: not path[-1].startswith('lora_'))


def quantised(params, adapters: LoraConfig | None):
  """The tree with the frozen matrices as qwix.QArray if `base_dtype` asks for it.

  Quantises and donates one leaf at a time; keeps shardings.

  Raises:
    ImportError: qwix is not installed.
  """
  if adapters is None or adapters.base_dtype not in QUANTISED:
    return params
  try:
    import qwix
  except ImportError as error:
    raise ImportError(
      f'LoraConfig.base_dtype = {adapters.base_dtype!r} needs qwix: pip install '
      "'crossin-jax[quant]'"
    ) from error

  def quantise(leaf):
    *layers, inputs, outputs = range(leaf.ndim)
    tiles = (
      {inputs: TILE} if adapters.base_dtype == 'nf4' and leaf.shape[inputs] % TILE == 0 else {}
    )
    return qwix.quantize(
      leaf, adapters.base_dtype, channelwise_axes=[*layers, outputs], tiled_axes=tiles
    )

  one = jax.jit(quantise, donate_argnums=0)
  return traverse_util.path_aware_map(
    lambda path, leaf: one(leaf) if path[-1] == 'kernel' else leaf, params
  )


def dequantised(kernel, dtype):
  """A kernel as a plain array, dequantised if necessary."""
  if isinstance(kernel, jax.Array):
    return kernel.astype(dtype)
  import qwix

  return qwix.dequantize(kernel).astype(dtype)


def of_model(model) -> LoraConfig | None:
  """The adapters of a model, or None."""
  return getattr(getattr(model, 'config', None), 'lora', None)


def folded(params, adapters: LoraConfig | None):
  """The tree with every adapter added to its kernel in f32; keeps dtypes and shardings."""
  if adapters is None:
    return params

  def fold(params):
    flat = traverse_util.flatten_dict(params)
    kernels = {path: leaf for path, leaf in flat.items() if not path[-1].startswith('lora_')}
    for path, leaf in kernels.items():
      if path[-1] == 'kernel' and (*path[:-1], 'lora_a') in flat:
        a, b = flat[*path[:-1], 'lora_a'], flat[*path[:-1], 'lora_b']
        delta = jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32), precision='highest')
        kernels[path] = (leaf.astype(jnp.float32) + adapters.scale * delta).astype(leaf.dtype)
    return traverse_util.unflatten_dict(kernels)

  return jax.jit(fold)(params)
