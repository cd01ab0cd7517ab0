"""A Llama-like decoder in Flax Linen, with T5X's call signature, parameter axes and cache.

Letters: B batch, L length, E model width, H query heads, K key/value heads, D head size, F MLP width,
V vocabulary.
"""

import dataclasses
from typing import Any

from flax import linen as nn
from flax.linen import partitioning as nn_partitioning
import gin
import jax
import jax.numpy as jnp

from crossin_jax.models.attention import attention

param_with_axes = nn_partitioning.param_with_axes
with_sharding_constraint = nn_partitioning.with_sharding_constraint

REMAT_POLICIES = ('none', 'minimal', 'full')
ACTIVATIONS = {'silu': nn.silu, 'gelu': lambda x: nn.gelu(x, approximate=True)}


@gin.configurable
@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Sizes and choices of one decoder.

  Attributes:
    vocab_size: rows of the embedding; at least the vocabulary's size. A multiple of 128 shards well.
    embed_dim: E, width of the residual stream.
    num_layers: blocks.
    num_heads: H, query heads.
    num_kv_heads: K, key/value heads; divides num_heads.
    head_dim: D; None = embed_dim / num_heads.
    mlp_dim: F, width of the gated MLP.
    mlp_activation: 'silu' or 'gelu' (tanh approximation).
    rope_theta: base of the rotary wave lengths.
    norm_epsilon: added to the mean square in RMSNorm.
    tie_embeddings: logits through the transposed embedding instead of a head of their own.
    dropout_rate: 0 to 1, on the residual branches.
    dtype: 'float32', 'bfloat16' or 'float64' for the arithmetic.
    param_dtype: dtype of the parameters.
    remat: 'none' keeps every activation, 'minimal' keeps the outputs of matrix products,
      'full' keeps only the input of each block.
    scan_layers: one compiled block for all layers (compile time does not grow with depth).
    attention: 'auto' or 'xla', see `attention`.
  """

  vocab_size: int = 32_000
  embed_dim: int = 512
  num_layers: int = 8
  num_heads: int = 8
  num_kv_heads: int = 8
  head_dim: int | None = None
  mlp_dim: int = 1376
  mlp_activation: str = 'silu'
  rope_theta: float = 10_000.0
  norm_epsilon: float = 1e-5
  tie_embeddings: bool = False
  dropout_rate: float = 0.0
  dtype: str = 'float32'
  param_dtype: str = 'float32'
  remat: str = 'none'
  scan_layers: bool = True
  attention: str = 'auto'

  def __post_init__(self):
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f'DecoderConfig.num_heads = {self.num_heads} must be a multiple of num_kv_heads = {self.num_kv_heads}'
      )
    if self.head_dim is None:
      if self.embed_dim % self.num_heads:
        raise ValueError(
          f'DecoderConfig.embed_dim = {self.embed_dim} is no multiple of num_heads = {self.num_heads}; set head_dim'
        )
      object.__setattr__(self, 'head_dim', self.embed_dim // self.num_heads)
    if self.remat not in REMAT_POLICIES:
      raise ValueError(f'DecoderConfig.remat = {self.remat!r} is not one of {REMAT_POLICIES}')
    if self.mlp_activation not in ACTIVATIONS:
      raise ValueError(f'DecoderConfig.mlp_activation = {self.mlp_activation!r} is not one of {tuple(ACTIVATIONS)}')
    if not 0.0 <= self.dropout_rate < 1.0:
      raise ValueError(f'DecoderConfig.dropout_rate = {self.dropout_rate} is not in [0, 1)')


class Dense(nn.Module):
  """A matrix product without bias; the kernel is [inputs, features]."""

  features: int
  axes: tuple[str, str]
  dtype: Any
  param_dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = param_with_axes(
      'kernel',
      nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal'),
      (x.shape[-1], self.features),
      self.param_dtype,
      axes=self.axes,
    )
    return jnp.dot(x, kernel.astype(self.dtype))


class RMSNorm(nn.Module):
  """x / sqrt(mean(x^2) + epsilon) * scale, computed in at least f32 (Zhang and Sennrich 2019)."""

  epsilon: float
  dtype: Any
  param_dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = param_with_axes('scale', nn.initializers.ones, (x.shape[-1],), self.param_dtype, axes=('embed',))
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
    return (wide * scale).astype(self.dtype)


def rotate(x_BLHD: jax.Array, positions_BL: jax.Array, theta: float) -> jax.Array:
  """Rotary position embedding (Su et al. 2021), halves layout as in the Llama checkpoints.

  Args:
    x_BLHD: queries or keys.
    positions_BL: int positions within the segment, from 0.
    theta: base; pair d of D / 2 turns by position * theta ** (-2 d / D).

  Returns:
    The rotated array in the dtype of x.
  """
  half = x_BLHD.shape[-1] // 2
  wide = jnp.promote_types(x_BLHD.dtype, jnp.float32)
  inverse_wavelength = theta ** (-jnp.arange(half, dtype=wide) / half)
  angle_BL1D = positions_BL[:, :, None, None].astype(wide) * inverse_wavelength
  sin, cos = jnp.sin(angle_BL1D), jnp.cos(angle_BL1D)
  first, second = jnp.split(x_BLHD.astype(wide), 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BLHD.dtype)


class SelfAttention(nn.Module):
  """Grouped-query self-attention with rotary positions and, while decoding, a cache."""

  config: DecoderConfig

  @nn.compact
  def __call__(self, x_BLE, segments_BL, positions_BL, prefix_BL, decode, prefill, prefill_lengths):
    config = self.config
    dtype, param_dtype = jnp.dtype(config.dtype), jnp.dtype(config.param_dtype)
    batch, length, _ = x_BLE.shape

    def project(name, heads):
      joined = Dense(heads * config.head_dim, ('embed', 'joined_kv'), dtype, param_dtype, name=name)(x_BLE)
      return joined.reshape(batch, length, heads, config.head_dim)

    q_BLHD = project('query', config.num_heads)
    k_BLKD = project('key', config.num_kv_heads)
    v_BLKD = project('value', config.num_kv_heads)

    # Cache in T5X's layout: [B, K, D, length], and an index that is scalar until prefill makes it [B].
    index_B = None
    if decode or prefill:
      ready = self.has_variable('cache', 'cached_key')
      shape = (batch, config.num_kv_heads, config.head_dim, length)
      cached_key = self.variable('cache', 'cached_key', jnp.zeros, shape, dtype)
      cached_value = self.variable('cache', 'cached_value', jnp.zeros, shape, dtype)
      cache_index = self.variable('cache', 'cache_index', lambda: jnp.zeros((), jnp.int32))
      if ready and decode:
        index_B = jnp.broadcast_to(cache_index.value, (batch,))
        positions_BL = index_B[:, None]

    q_BLHD = rotate(q_BLHD, positions_BL, config.rope_theta)
    k_BLKD = rotate(k_BLKD, positions_BL, config.rope_theta)
    q_BLHD = with_sharding_constraint(q_BLHD, ('batch', 'length', 'heads', 'kv'))
    k_BLKD = with_sharding_constraint(k_BLKD, ('batch', 'length', 'heads', 'kv'))
    v_BLKD = with_sharding_constraint(v_BLKD, ('batch', 'length', 'heads', 'kv'))

    if index_B is not None:
      if length != 1:
        raise ValueError(f'decoding takes one token a row, got {length}')
      write = jax.vmap(lambda cache, new, i: jax.lax.dynamic_update_slice(cache, new, (0, 0, i)))
      cached_key.value = write(cached_key.value, k_BLKD.transpose(0, 2, 3, 1), index_B)
      cached_value.value = write(cached_value.value, v_BLKD.transpose(0, 2, 3, 1), index_B)
      cache_index.value = index_B + 1
      out_BLHD = attention(
        q_BLHD,
        cached_key.value.transpose(0, 3, 1, 2),
        cached_value.value.transpose(0, 3, 1, 2),
        q_index_BT=index_B[:, None],
        implementation=config.attention,
      )
    else:
      if prefill:
        capacity = cached_key.value.shape[-1]
        pad = ((0, 0), (0, 0), (0, 0), (0, capacity - length))
        cached_key.value = jnp.pad(k_BLKD.transpose(0, 2, 3, 1), pad)
        cached_value.value = jnp.pad(v_BLKD.transpose(0, 2, 3, 1), pad)
        cache_index.value = jnp.asarray(prefill_lengths, jnp.int32)
      out_BLHD = attention(
        q_BLHD,
        k_BLKD,
        v_BLKD,
        q_segments_BT=segments_BL,
        k_segments_BS=segments_BL,
        prefix_BS=prefix_BL,
        implementation=config.attention,
      )
    out_BLE = out_BLHD.reshape(batch, length, config.num_heads * config.head_dim)
    return Dense(config.embed_dim, ('joined_kv', 'embed'), dtype, param_dtype, name='out')(out_BLE)


class GatedMLP(nn.Module):
  """down(activation(gate(x)) * up(x)) (Shazeer 2020)."""

  config: DecoderConfig

  @nn.compact
  def __call__(self, x_BLE: jax.Array) -> jax.Array:
    config = self.config
    dtype, param_dtype = jnp.dtype(config.dtype), jnp.dtype(config.param_dtype)
    gate_BLF = Dense(config.mlp_dim, ('embed', 'mlp'), dtype, param_dtype, name='gate')(x_BLE)
    up_BLF = Dense(config.mlp_dim, ('embed', 'mlp'), dtype, param_dtype, name='up')(x_BLE)
    hidden_BLF = ACTIVATIONS[config.mlp_activation](gate_BLF) * up_BLF
    hidden_BLF = with_sharding_constraint(hidden_BLF, ('batch', 'length', 'mlp'))
    return Dense(config.embed_dim, ('mlp', 'embed'), dtype, param_dtype, name='down')(hidden_BLF)


class Block(nn.Module):
  """One layer: pre-norm attention and pre-norm MLP, each added to the residual stream."""

  config: DecoderConfig

  @nn.compact
  def __call__(self, x_BLE, segments_BL, positions_BL, prefix_BL, prefill_lengths, decode, prefill, deterministic):
    config = self.config
    norm = lambda name: RMSNorm(config.norm_epsilon, jnp.dtype(config.dtype), jnp.dtype(config.param_dtype), name=name)
    drop = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,), deterministic=deterministic)
    x_BLE = with_sharding_constraint(x_BLE, ('batch', 'length', 'embed_activation'))
    attended = SelfAttention(config, name='self_attention')(
      norm('pre_attention_norm')(x_BLE), segments_BL, positions_BL, prefix_BL, decode, prefill, prefill_lengths
    )
    x_BLE = x_BLE + drop(attended)
    x_BLE = x_BLE + drop(GatedMLP(config, name='mlp')(norm('pre_mlp_norm')(x_BLE)))
    # nn.scan wants (carry, output of the layer).
    return x_BLE, None


def remat_block(policy: str):
  """`Block`, wrapped to keep only what the policy names for the backward pass."""
  if policy == 'none':
    return Block
  keep = jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims if policy == 'minimal' else None
  # Arguments 6 to 8 (decode, prefill, deterministic) are Python bools; 0 is the module itself.
  return nn.remat(Block, prevent_cse=False, policy=keep, static_argnums=(6, 7, 8))


class DecoderStack(nn.Module):
  """Embedding, blocks, final norm and logits."""

  config: DecoderConfig

  @nn.compact
  def __call__(self, tokens_BL, segments_BL, positions_BL, prefix_BL, prefill_lengths, decode, prefill, deterministic):
    config = self.config
    dtype, param_dtype = jnp.dtype(config.dtype), jnp.dtype(config.param_dtype)
    embedding_VE = param_with_axes(
      'token_embedding',
      nn.initializers.normal(stddev=1.0 if not config.tie_embeddings else config.embed_dim**-0.5),
      (config.vocab_size, config.embed_dim),
      param_dtype,
      axes=('vocab', 'embed'),
    )
    x_BLE = jnp.take(embedding_VE.astype(dtype), tokens_BL, axis=0)
    block = remat_block(config.remat)
    arguments = (segments_BL, positions_BL, prefix_BL, prefill_lengths, decode, prefill, deterministic)
    if config.scan_layers:
      # The cache is stacked along axis 0 too, so its batch axis is 1: T5X reads `scan_layers` for that.
      layers = nn_partitioning.scan_with_axes(
        block,
        variable_axes={'params': 0, 'cache': 0},
        split_rngs={'params': True, 'dropout': True},
        in_axes=(nn.broadcast,) * len(arguments),
        length=config.num_layers,
        axis_name='layers',
      )
      x_BLE, _ = layers(config, name='layers')(x_BLE, *arguments)
    else:
      for i in range(config.num_layers):
        x_BLE, _ = block(config, name=f'layers_{i}')(x_BLE, *arguments)
    x_BLE = RMSNorm(config.norm_epsilon, dtype, param_dtype, name='final_norm')(x_BLE)
    if config.tie_embeddings:
      head_EV = embedding_VE.T
    else:
      head_EV = param_with_axes(
        'lm_head',
        nn.initializers.normal(stddev=config.embed_dim**-0.5),
        (config.embed_dim, config.vocab_size),
        param_dtype,
        axes=('embed', 'vocab'),
      )
    logits_BLV = jnp.dot(x_BLE, head_EV.astype(dtype), preferred_element_type=jnp.promote_types(dtype, jnp.float32))
    return with_sharding_constraint(logits_BLV, ('batch', 'length', 'vocab'))


@gin.configurable
class Decoder(nn.Module):
  """The language model, called as T5X's DecoderOnlyModel calls its module.

  Parameters live under `decoder/`; collection `params_axes` names the logical axes of each.
  """

  config: DecoderConfig

  @property
  def scan_layers(self) -> bool:
    """T5X asks the module for this to find the batch axis of the cache."""
    return self.config.scan_layers

  @nn.compact
  def __call__(
    self,
    decoder_input_tokens: jax.Array,
    decoder_target_tokens: jax.Array,
    decoder_segment_ids: jax.Array | None = None,
    decoder_positions: jax.Array | None = None,
    decoder_causal_attention: jax.Array | None = None,
    *,
    enable_dropout: bool = True,
    decode: bool = False,
    max_decode_length: int | None = None,
    prefill: bool = False,
    prefill_lengths: jax.Array | None = None,
  ) -> jax.Array:
    """Logits of the next token.

    Args:
      decoder_input_tokens: int [B, L], the targets shifted right within their segment, BOS first.
      decoder_target_tokens: int [B, L]; not read (padding is known from segment ids and causality,
        because id 0 may be a real token), but part of the signature.
      decoder_segment_ids: int [B, L], 0 = padding; None = every row is one segment.
      decoder_positions: int [B, L], position within the segment; None = arange(L).
      decoder_causal_attention: int [B, L], 1 on prompts that are read in both directions; None = causal.
      enable_dropout: whether dropout acts; needs the 'dropout' rng if its rate is above 0.
      decode: without a cache: makes one of length L; with one: takes one token a row, L = 1.
      max_decode_length: not read, the cache knows its length.
      prefill: fills the cache from whole prompts, right-padded.
      prefill_lengths: int [B], real tokens of each prompt (BOS counted).

    Returns:
      float [B, L, V], at least f32.

    Raises:
      ValueError: decode and prefill together, prefill without lengths.
    """
    del decoder_target_tokens, max_decode_length
    if decode and prefill:
      raise ValueError('decode and prefill exclude each other')
    if prefill and prefill_lengths is None:
      raise ValueError('prefill needs prefill_lengths')
    if decoder_positions is None:
      decoder_positions = jnp.broadcast_to(jnp.arange(decoder_input_tokens.shape[1]), decoder_input_tokens.shape)
    return DecoderStack(self.config, name='decoder')(
      decoder_input_tokens,
      decoder_segment_ids,
      decoder_positions,
      decoder_causal_attention,
      prefill_lengths,
      decode,
      prefill,
      not enable_dropout,
    )
