"""The configuration of a decoder: sizes, and the differences between model families."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import linen as nn

from crossin_jax import config
from crossin_jax.models.attention.attention import IMPLEMENTATIONS
from crossin_jax.models.lora import LoraConfig

REMAT_POLICIES = ('none', 'minimal', 'full')
ACTIVATIONS = {
  'silu': nn.silu,
  'gelu': lambda x: nn.gelu(x, approximate=True),
  'gelu_exact': lambda x: nn.gelu(x, approximate=False),
  'xielu': None,  # it has parameters, see `mlp.Xielu`
}
ROPE_TYPES = ('linear', 'llama3', 'yarn', 'longrope', 'proportional')
LAYER_KINDS = ('global', 'local', 'global_nope', 'local_nope')
_OF_MLP = {'gate', 'up', 'down'}
CHOICES = {
  'norm': ('rms', 'layer'),
  'mlp_activation': tuple(ACTIVATIONS),
  'remat': REMAT_POLICIES,
  'attention_bias': ('none', 'qkv', 'all'),
  'qk_norm': ('none', 'head', 'each_head', 'joined'),
  'norm_placement': ('pre', 'post', 'both', 'parallel'),
  'attention': IMPLEMENTATIONS,
  'dtype': ('float32', 'bfloat16', 'float64'),
  'param_dtype': ('float32', 'bfloat16', 'float64'),
}


@config.configurable(commands=('train', 'chunks'))
@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Sizes and choices of one decoder.

  Attributes:
    vocab_size: number of ids; at least the vocabulary's size.
    vocab_multiple: rounds the embedding's rows up to a multiple (128 shards well); rows beyond
      vocab_size get no probability and are removed on export.
    embed_dim: E, width of the residual stream.
    num_layers: blocks.
    num_heads: H, query heads.
    num_kv_heads: K, key/value heads; divides num_heads.
    head_dim: D; None = embed_dim / num_heads.
    mlp_dim: F, width of the MLP.
    mlp_gate: whether the activation is a gate of a second product (Apertus has none).
    mlp_activation: 'silu', 'gelu' (tanh approximation), 'gelu_exact', or 'xielu' with two learned
      scalars in each layer (Apertus).
    mlp_bias: biases in the MLP, or in each expert.
    swiglu_limit: c, the gate is cut at c and the other product at -c and c, and the hidden values
      are gate sigmoid(alpha gate) (1 + other) (gpt-oss); None = `mlp_activation`.
    swiglu_alpha: alpha of the same.
    num_experts: X, MLPs of width F of which each token uses some; 0 = one MLP for all tokens.
    experts_per_token: K, how many.
    normalise_experts: whether the weights of a token's experts sum to one (Mixtral, Qwen3-MoE).
    router_bias: bias of the router.
    router_loss: factor on the load-balancing loss of the router (Fedus et al. 2021, as in
      transformers: over the tokens of all layers); 0 = none.
    router_z_loss: factor on the mean of the router's log(Z)^2 (Zoph et al. 2022); 0 = none.
    attention_bias: 'none', 'qkv' (Qwen2) or 'all' (qkv and output).
    qk_norm: norm of queries and keys: 'none', 'head' (each head, Qwen3 and Gemma 3), 'each_head'
      (the same with a scale for each head, Command R+) or 'joined' (all heads, OLMo 2).
    value_norm: RMSNorm without scale of the values of each head (Gemma 4).
    key_is_value: the key projection, before its norm, is also the value (Gemma 4).
    query_scale: factor on the attention logits; None = head_dim ** -0.5.
    attention_softcap: c, logits become c tanh(logits / c) (Gemma 2); None = off.
    attention_sinks: each head has a learned logit that joins its softmax without a value (gpt-oss).
    logit_softcap: the soft cap of the output logits.
    logit_scale: factor on the output logits, before their cap (Cohere, Granite).
    layer_pattern: kinds of layers, repeated: 'global' attends to all earlier tokens, 'local' to the
      last `window` tokens; 'global_nope' and 'local_nope' do so without rotary positions.
    layer_overrides: kind of layer -> {field: value} for attention that differs by kind, such as
      {'global': {'head_dim': 512, 'num_kv_heads': 4}} (Gemma 4); None = all are alike.
    layer_scalars: each layer ends with a factor that is read from the checkpoint and not trained
      (Gemma 4).
    window: tokens that a local layer attends to, including the query's.
    rope_theta: base of the rotary wavelengths.
    rope_local_theta: the base of local layers, without scaling (Gemma 3); None = as in global ones.
    rope_scaling: None, or a dict like `rope_parameters` of config.json: rope_type 'linear',
      'llama3', 'yarn', 'longrope' or 'proportional', and its parameters.
    rope_fraction: rotated fraction of each head (Phi-3: partial_rotary_factor).
    rope_interleaved: rotated pairs are neighbours (Cohere), not halves of the head apart (Llama).
    norm: 'rms', or 'layer', a LayerNorm without bias (Cohere).
    norm_placement: norm before attention and MLP ('pre'), on their output ('post', OLMo 2), 'both'
      (Gemma 2), or one norm before both, which run side by side ('parallel', Cohere).
    norm_epsilon: added to the mean square in a norm.
    norm_offset: added to the scale of every norm (Gemma stores scale - 1).
    residual_multiplier: factor on the output of attention and MLP (Granite).
    embedding_scale: multiply embeddings by sqrt(E) (Gemma).
    embedding_multiplier: factor on embeddings (Granite).
    tie_embeddings: use the transposed embedding as output head.
    dropout_rate: 0 to 1, on the residual branches.
    lora: None, or a `LoraConfig`: train adapters, freeze the rest.
    dtype: of the arithmetic: 'float32', 'bfloat16' or 'float64'.
    param_dtype: dtype of the parameters.
    remat: 'none' keeps every activation, 'minimal' keeps the outputs of matrix products,
      'full' keeps only the input of each block.
    scan_layers: compile one block (one period of the pattern) for all layers, so that compile time
      does not grow with depth.
    attention: 'auto', 'xla', 'blockwise', 'splash' or 'cudnn', see `attention`.
  """

  vocab_size: int = 32_000
  vocab_multiple: int = 1
  embed_dim: int = 512
  num_layers: int = 8
  num_heads: int = 8
  num_kv_heads: int = 8
  head_dim: int | None = None
  mlp_dim: int = 1376
  mlp_gate: bool = True
  mlp_activation: str = 'silu'
  mlp_bias: bool = False
  swiglu_limit: float | None = None
  swiglu_alpha: float = 1.702
  num_experts: int = 0
  experts_per_token: int = 1
  normalise_experts: bool = True
  router_bias: bool = False
  router_loss: float = 0.0
  router_z_loss: float = 0.0
  attention_bias: str = 'none'
  qk_norm: str = 'none'
  value_norm: bool = False
  key_is_value: bool = False
  query_scale: float | None = None
  attention_softcap: float | None = None
  attention_sinks: bool = False
  logit_softcap: float | None = None
  logit_scale: float = 1.0
  layer_pattern: tuple[str, ...] = ('global',)
  layer_overrides: Any = None
  layer_scalars: bool = False
  window: int | None = None
  rope_theta: float = 10_000.0
  rope_local_theta: float | None = None
  rope_scaling: Any = None
  rope_fraction: float = 1.0
  rope_interleaved: bool = False
  norm: str = 'rms'
  norm_placement: str = 'pre'
  norm_epsilon: float = 1e-5
  norm_offset: float = 0.0
  residual_multiplier: float = 1.0
  embedding_scale: bool = False
  embedding_multiplier: float = 1.0
  tie_embeddings: bool = False
  dropout_rate: float = 0.0
  lora: LoraConfig | None = None
  dtype: str = 'float32'
  param_dtype: str = 'float32'
  remat: str = 'none'
  scan_layers: bool = True
  attention: str = 'auto'

  def __post_init__(self):
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f'DecoderConfig.num_heads = {self.num_heads} must be a multiple of num_kv_heads = '
        f'{self.num_kv_heads}'
      )
    if self.head_dim is None:
      if self.embed_dim % self.num_heads:
        raise ValueError(
          f'DecoderConfig.embed_dim = {self.embed_dim} is not a multiple of num_heads = '
          f'{self.num_heads}; set head_dim'
        )
      object.__setattr__(self, 'head_dim', self.embed_dim // self.num_heads)
    for name, legal in CHOICES.items():
      if getattr(self, name) not in legal:
        raise ValueError(f'DecoderConfig.{name} = {getattr(self, name)!r} is not one of {legal}')
    if not 0.0 <= self.dropout_rate < 1.0:
      raise ValueError(f'DecoderConfig.dropout_rate = {self.dropout_rate} is not in [0, 1)')
    object.__setattr__(self, 'layer_pattern', tuple(self.layer_pattern))
    if not self.layer_pattern or not set(self.layer_pattern) <= set(LAYER_KINDS):
      raise ValueError(
        f'DecoderConfig.layer_pattern = {self.layer_pattern!r} may only contain {LAYER_KINDS}'
      )
    if any(map(_is_local, self.layer_pattern)) and not self.window:
      raise ValueError('DecoderConfig.layer_pattern has local layers; set DecoderConfig.window')
    if self.swiglu_limit is not None and (self.mlp_activation != 'silu' or not self.mlp_gate):
      raise ValueError("DecoderConfig.swiglu_limit needs mlp_activation 'silu' and mlp_gate")
    if self.num_experts and not 0 < self.experts_per_token <= self.num_experts:
      raise ValueError(
        f'DecoderConfig.experts_per_token = {self.experts_per_token} is not between 1 and the '
        f'{self.num_experts} experts'
      )
    if self.num_experts and self.lora and self.lora.dropout and set(self.lora.targets) & _OF_MLP:
      raise ValueError(
        'LoraConfig.dropout is not supported on experts (nor is it in PEFT): set it to 0, or leave '
        'gate, up and down out of LoraConfig.targets'
      )
    # Hashable, because compiled functions are cached by model.
    object.__setattr__(self, 'layer_overrides', _frozen(self.layer_overrides))
    object.__setattr__(self, 'rope_scaling', _frozen(self.rope_scaling))
    if self.rope_scaling and dict(self.rope_scaling).get('rope_type') not in ROPE_TYPES:
      raise ValueError(
        f'DecoderConfig.rope_scaling = {dict(self.rope_scaling)}: rope_type is not one of '
        f'{ROPE_TYPES}'
      )

  @property
  def padded_vocab_size(self) -> int:
    """Rows of the embedding."""
    return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

  def kind(self, layer: int) -> str:
    """One of LAYER_KINDS."""
    return self.layer_pattern[layer % len(self.layer_pattern)]

  def window_of(self, kind: str) -> int | None:
    """Tokens that a layer of this kind attends to; None = all earlier ones."""
    return self.window if _is_local(kind) else None

  def has_positions(self, kind: str) -> bool:
    """Whether layers of this kind rotate queries and keys."""
    return not kind.endswith('_nope')

  def of_kind(self, kind: str) -> 'DecoderConfig':
    """The configuration of layers of this kind."""
    overrides = dict(dict(self.layer_overrides or {}).get(kind, {}))
    return dataclasses.replace(self, layer_overrides=None, **overrides) if overrides else self

  def layer_path(self, layer: int) -> tuple[str, int | None]:
    """The path of a layer's parameters below `decoder/`, and its index in stacked arrays, or None.

    With scan: `layers` (a pattern of one layer) or `layers/block_<j>`; layers behind the last
    complete period are `tail_<j>`. Without scan: `layers_<i>`.
    """
    if not self.scan_layers:
      return f'layers_{layer}', None
    period = len(self.layer_pattern)
    repeat, j = divmod(layer, period)
    if repeat >= self.num_layers // period:
      return f'tail_{j}', None
    return ('layers' if period == 1 else f'layers/block_{j}'), repeat


def _is_local(kind: str) -> bool:
  return kind.startswith('local')


def _frozen(value):
  """Dicts and lists as nested tuples."""
  if isinstance(value, Mapping):
    return tuple(sorted((key, _frozen(item)) for key, item in value.items()))
  return tuple(_frozen(item) for item in value) if isinstance(value, (list, tuple)) else value
