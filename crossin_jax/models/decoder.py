"""A decoder in Flax Linen for the Llama, Mistral, Qwen, Gemma, Phi and OLMo families, with T5X's
call signature, parameter axes and cache.

Letters: B batch, L length, E model width, H query heads, K key/value heads, D head size, F MLP
width, V vocabulary, S slots of a cache.
"""

import dataclasses
from typing import Any

from flax import linen as nn
from flax.linen import partitioning as nn_partitioning
import flax.struct
import jax
import jax.numpy as jnp

from crossin_jax import config
from crossin_jax.models import lora, rotary
from crossin_jax.models.attention.attention import attention, cached_attention
from crossin_jax.models.attention.blockwise import KEPT
from crossin_jax.models.cache import KVCache
from crossin_jax.models.decoder_config import ACTIVATIONS, DecoderConfig
from crossin_jax.models.head import Head, product

param_with_axes = nn_partitioning.param_with_axes
with_sharding_constraint = nn_partitioning.with_sharding_constraint


@flax.struct.dataclass
class Tokens:
  """What every layer needs to know about the tokens.

  Attributes:
    segments_BL: int, 0 = padding; None = every row is one segment.
    prefix_BL: int, 1 where a prompt is read in both directions; None = causal.
    prefill_lengths_B: int, real tokens of each prompt; None outside prefill.
    branches_BL: int, see `attention`; None = no branches.
    positions_BL: int, positions within the segment; None without branches.
    rope: kind of layer -> (sine, cosine) [B, L, R] of the positions.
  """

  segments_BL: jax.Array | None
  prefix_BL: jax.Array | None
  prefill_lengths_B: jax.Array | None
  branches_BL: jax.Array | None
  positions_BL: jax.Array | None
  rope: dict[str, tuple[jax.Array, jax.Array]]


class Dense(nn.Module):
  """A matrix product with kernel [inputs, features], plus a LoRA adapter where `lora` has one."""

  features: int
  axes: tuple[str, str]
  config: DecoderConfig
  bias: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
    dtype, param_dtype = jnp.dtype(self.config.dtype), jnp.dtype(self.config.param_dtype)
    fan_in = nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')
    shape = (x.shape[-1], self.features)
    kernel = param_with_axes('kernel', fan_in, shape, param_dtype, axes=self.axes)
    y = product(
      x, lora.dequantised(kernel, dtype)
    )  # the frozen kernel of a LoRA run may be quantised
    if self.bias:
      bias = param_with_axes(
        'bias', nn.initializers.zeros, (self.features,), param_dtype, axes=self.axes[1:]
      )
      y += bias.astype(dtype)
    adapters = self.config.lora
    if adapters is not None and self.name in adapters.targets:
      # A as PEFT draws it: uniform within 1 / sqrt(inputs).
      spread = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
      a = param_with_axes(
        'lora_a', spread, (shape[0], adapters.rank), param_dtype, axes=(self.axes[0], 'lora_rank')
      )
      b = param_with_axes(
        'lora_b',
        nn.initializers.zeros,
        (adapters.rank, shape[1]),
        param_dtype,
        axes=('lora_rank', self.axes[1]),
      )
      low = product(nn.Dropout(adapters.dropout, deterministic=deterministic)(x), a.astype(dtype))
      y += product(low, b.astype(dtype)) * jnp.asarray(adapters.scale, dtype)
    return y


class RMSNorm(nn.Module):
  """x / sqrt(mean(x^2) + epsilon) * (scale + offset), in at least f32 (Zhang and Sennrich 2019)."""

  config: DecoderConfig
  axis: str = 'embed'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    config = self.config
    init = nn.initializers.constant(1.0 - config.norm_offset)
    scale = param_with_axes(
      'scale', init, (x.shape[-1],), jnp.dtype(config.param_dtype), axes=(self.axis,)
    )
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + config.norm_epsilon)
    return (wide * (scale.astype(wide.dtype) + config.norm_offset)).astype(config.dtype)


class SelfAttention(nn.Module):
  """Grouped-query self-attention with rotary positions and, while decoding, a cache."""

  config: DecoderConfig
  kind: str

  @nn.compact
  def __call__(self, x_BLE, tokens: Tokens, decode: bool, prefill: bool, deterministic: bool):
    config, window = self.config, self.config.window_of(self.kind)
    batch, length, _ = x_BLE.shape

    def project(name, heads, norm=None):
      bias = config.attention_bias != 'none'
      dense = Dense(heads * config.head_dim, ('embed', 'joined_kv'), config, bias, name=name)
      joined = dense(x_BLE, deterministic)
      if norm and config.qk_norm == 'joined':
        joined = RMSNorm(config, 'joined_kv', name=norm)(joined)
      split = joined.reshape(batch, length, heads, config.head_dim)
      return RMSNorm(config, 'kv', name=norm)(split) if norm and config.qk_norm == 'head' else split

    q_BLHD = project('query', config.num_heads, 'query_norm')
    k_BLKD = project('key', config.num_kv_heads, 'key_norm')
    v_BLKD = project('value', config.num_kv_heads)

    rope, appending = tokens.rope[self.kind], False
    if decode or prefill:
      cache = KVCache(self, k_BLKD.shape, window, jnp.dtype(config.dtype))
      appending = decode and cache.exists
    if appending:
      q_index_BL = cache.positions(length)
      rope = rotary.tables(config, self.kind, q_index_BL)
    constrain = lambda x: with_sharding_constraint(x, ('batch', 'length', 'heads', 'kv'))
    q_BLHD, k_BLKD = (
      constrain(rotary.rotate(q_BLHD, *rope)),
      constrain(rotary.rotate(k_BLKD, *rope)),
    )
    v_BLKD = constrain(v_BLKD)

    options = {'window': window, 'scale': config.query_scale, 'softcap': config.attention_softcap}
    if appending:
      keys, values, k_index_BS = cache.append(k_BLKD, v_BLKD)
      out_BLHD = cached_attention(
        q_BLHD, keys, values, q_index_BT=q_index_BL, k_index_BS=k_index_BS, **options
      )
    else:
      if prefill:
        cache.fill(k_BLKD, v_BLKD, jnp.asarray(tokens.prefill_lengths_B, jnp.int32))
      out_BLHD = attention(
        q_BLHD, k_BLKD, v_BLKD, q_segments_BT=tokens.segments_BL,
        k_segments_BS=tokens.segments_BL, prefix_BS=tokens.prefix_BL,
        branches_BS=tokens.branches_BL, positions_BS=tokens.positions_BL,
        implementation=config.attention, **options,
      )  # fmt: skip
    out_BLE = out_BLHD.reshape(batch, length, config.num_heads * config.head_dim)
    bias = config.attention_bias == 'all'
    dense = Dense(config.embed_dim, ('joined_kv', 'embed'), config, bias, name='out')
    return dense(out_BLE, deterministic)


class GatedMLP(nn.Module):
  """down(activation(gate(x)) * up(x)) (Shazeer 2020)."""

  config: DecoderConfig

  @nn.compact
  def __call__(self, x_BLE: jax.Array, deterministic: bool) -> jax.Array:
    config = self.config
    dense = lambda name, features, axes: Dense(features, axes, config, config.mlp_bias, name=name)
    gate_BLF = dense('gate', config.mlp_dim, ('embed', 'mlp'))(x_BLE, deterministic)
    up_BLF = dense('up', config.mlp_dim, ('embed', 'mlp'))(x_BLE, deterministic)
    hidden_BLF = ACTIVATIONS[config.mlp_activation](gate_BLF) * up_BLF
    hidden_BLF = with_sharding_constraint(hidden_BLF, ('batch', 'length', 'mlp'))
    return dense('down', config.embed_dim, ('mlp', 'embed'))(hidden_BLF, deterministic)


class Block(nn.Module):
  """One layer: attention and MLP with norms before, after or both, each added to the residual."""

  config: DecoderConfig
  kind: str

  @nn.compact
  def __call__(self, x_BLE, tokens: Tokens, decode: bool, prefill: bool, deterministic: bool):
    config = self.config

    def add(x_BLE, name, function):
      y_BLE = x_BLE
      if config.norm_placement != 'post':
        y_BLE = RMSNorm(config, name=f'pre_{name}_norm')(y_BLE)
      y_BLE = function(y_BLE)
      if config.norm_placement != 'pre':
        y_BLE = RMSNorm(config, name=f'post_{name}_norm')(y_BLE)
      return x_BLE + nn.Dropout(
        config.dropout_rate, broadcast_dims=(-2,), deterministic=deterministic
      )(y_BLE)

    x_BLE = with_sharding_constraint(x_BLE, ('batch', 'length', 'embed_activation'))
    attend = SelfAttention(config, self.kind, name='self_attention')
    x_BLE = add(x_BLE, 'attention', lambda y: attend(y, tokens, decode, prefill, deterministic))
    x_BLE = add(x_BLE, 'mlp', lambda y: GatedMLP(config, name='mlp')(y, deterministic))
    # nn.scan wants (carry, output of the layer).
    return x_BLE, None


def remat_block(policy: str):
  """`Block`, wrapped to keep only what the policy names for the backward pass."""
  if policy == 'none':
    return Block
  policies, keep = jax.checkpoint_policies, None
  if policy == 'minimal':
    # The first policy does not cover blockwise and splash attention.
    keep = policies.save_from_both_policies(
      policies.checkpoint_dots_with_no_batch_dims, policies.save_only_these_names(KEPT)
    )
  # Arguments 3 to 5 (decode, prefill, deterministic) are Python bools; 0 is the module itself.
  return nn.remat(Block, prevent_cse=False, policy=keep, static_argnums=(3, 4, 5))


class Turn(nn.Module):
  """The layers of one period of `layer_pattern`."""

  config: DecoderConfig

  @nn.compact
  def __call__(self, x_BLE, *arguments):
    block = remat_block(self.config.remat)
    for j, kind in enumerate(self.config.layer_pattern):
      x_BLE, _ = block(self.config, kind, name=f'block_{j}')(x_BLE, *arguments)
    return x_BLE, None


class DecoderStack(nn.Module):
  """Embedding, blocks and final norm; then logits, or with `split` hidden states and the head."""

  config: DecoderConfig

  @nn.compact
  def __call__(
    self,
    inputs_BL,
    positions_BL,
    places_BM,
    tokens: Tokens,
    decode: bool,
    prefill: bool,
    deterministic: bool,
    split: bool,
  ):
    config = self.config
    dtype, param_dtype = jnp.dtype(config.dtype), jnp.dtype(config.param_dtype)
    embedding_VE = param_with_axes(
      'token_embedding',
      nn.initializers.normal(stddev=1.0 if not config.tie_embeddings else config.embed_dim**-0.5),
      (config.padded_vocab_size, config.embed_dim),
      param_dtype,
      axes=('vocab', 'embed'),
    )
    x_BLE = jnp.take(embedding_VE.astype(dtype), inputs_BL, axis=0)
    if config.embedding_scale:
      x_BLE *= jnp.asarray(config.embed_dim**0.5, dtype)
    kinds = {config.kind(i) for i in range(config.num_layers)}
    tokens = tokens.replace(
      rope={kind: rotary.tables(config, kind, positions_BL) for kind in sorted(kinds)}
    )
    arguments = (tokens, decode, prefill, deterministic)
    block, period = remat_block(config.remat), len(config.layer_pattern)
    turns = config.num_layers // period if config.scan_layers else 0
    if turns:
      # The cache is stacked along axis 0 too: its batch axis is 1, which T5X infers from
      # scan_layers.
      layers = nn_partitioning.scan_with_axes(
        block if period == 1 else Turn,
        variable_axes={'params': 0, 'cache': 0},
        split_rngs={'params': True, 'dropout': True},
        in_axes=(nn.broadcast,) * len(arguments),
        length=turns,
        axis_name='layers',
      )
      settings = (config, config.layer_pattern[0]) if period == 1 else (config,)
      x_BLE, _ = layers(*settings, name='layers')(x_BLE, *arguments)
    for i in range(turns * period, config.num_layers):
      x_BLE, _ = block(config, config.kind(i), name=config.layer_path(i)[0])(x_BLE, *arguments)
    if places_BM is not None:
      x_BLE = jnp.take_along_axis(x_BLE, places_BM[..., None], axis=1)
    x_BLE = RMSNorm(config, name='final_norm')(x_BLE)
    kernel = embedding_VE
    if not config.tie_embeddings:
      kernel = param_with_axes(
        'lm_head',
        nn.initializers.normal(stddev=config.embed_dim**-0.5),
        (config.embed_dim, config.padded_vocab_size),
        param_dtype,
        axes=('embed', 'vocab'),
      )
    head = Head(kernel, config.tie_embeddings, config.logit_softcap, config.vocab_size)
    if split:
      return x_BLE, head
    return with_sharding_constraint(head.logits(x_BLE), ('batch', 'length', 'vocab'))


@config.configurable(commands=('train', 'chunks'))
class Decoder(nn.Module):
  """The language model, called as T5X's DecoderOnlyModel calls its module.

  Parameters live under `decoder/`; collection `params_axes` names the logical axes of each.
  """

  config: DecoderConfig

  @property
  def scan_layers(self) -> bool:
    """T5X asks the module for this to find the batch axis of the cache."""
    return self.config.scan_layers

  def setup(self):
    self.decoder = DecoderStack(self.config)

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
    decoder_branches: jax.Array | None = None,
    decoder_logit_places: jax.Array | None = None,
  ) -> jax.Array:
    """Logits of the next token.

    Args:
      decoder_input_tokens: int [B, L], the targets shifted right within their segment, BOS first.
      decoder_target_tokens: int [B, L]; ignored: part of T5X's signature. Padding is known from
        segment ids, because id 0 may be a real token.
      decoder_segment_ids: int [B, L], 0 = padding; None = every row is one segment.
      decoder_positions: int [B, L], position within the segment; None = arange(L).
      decoder_causal_attention: int [B, L], 1 on prompts with bidirectional attention; None =
        causal.
      enable_dropout: whether dropout acts; needs the 'dropout' rng if its rate is above 0.
      decode: without a cache: creates one with room for L tokens. With one: appends L tokens per
        row, usually 1, which must fit. On local layers padding pushes older tokens out of the ring,
        so several tokens may be followed by more only where none of them was padding.
      max_decode_length: ignored; the cache has its length.
      prefill: fills the cache from complete, right-padded prompts.
      prefill_lengths: int [B], real tokens of each prompt (BOS counted).
      decoder_branches: int [B, L], 0 = trunk of the segment, n = its n-th branch, which sees the
        trunk and itself; None = no branches. With branches `decoder_positions` are required: every
        branch continues at the end of the trunk.
      decoder_logit_places: int [B, M], columns whose logits are computed; None = all.

    Returns:
      float [B, L or M, V], at least f32; V is vocab_size rounded up to vocab_multiple.

    Raises:
      ValueError: decode and prefill together, prefill without lengths, branches without positions.
    """
    del decoder_target_tokens, max_decode_length
    if decode and prefill:
      raise ValueError('decode and prefill exclude each other')
    if prefill and prefill_lengths is None:
      raise ValueError('prefill needs prefill_lengths')
    tokens, positions = self._tokens(
      decoder_input_tokens,
      decoder_segment_ids,
      decoder_positions,
      decoder_causal_attention,
      prefill_lengths,
      decoder_branches,
    )
    return self.decoder(
      decoder_input_tokens,
      positions,
      decoder_logit_places,
      tokens,
      decode,
      prefill,
      not enable_dropout,
      False,
    )

  def hidden(
    self,
    decoder_input_tokens: jax.Array,
    decoder_segment_ids: jax.Array | None = None,
    decoder_positions: jax.Array | None = None,
    decoder_causal_attention: jax.Array | None = None,
    *,
    enable_dropout: bool = True,
  ) -> tuple[jax.Array, Head]:
    """Hidden states [B, L, E] after the final norm, and the head that makes them logits.

    For a loss that never holds all logits: `model.apply(..., method='hidden')`.
    """
    tokens, positions = self._tokens(
      decoder_input_tokens, decoder_segment_ids, decoder_positions, decoder_causal_attention
    )
    return self.decoder(
      decoder_input_tokens, positions, None, tokens, False, False, not enable_dropout, True
    )

  def _tokens(
    self, inputs_BL, segments_BL, positions_BL, prefix_BL, prefill_lengths_B=None, branches_BL=None
  ):
    """`Tokens` for the layers, without rotary tables, and the positions [B, L]."""
    if branches_BL is not None and positions_BL is None:
      raise ValueError('decoder_branches needs decoder_positions')
    of_branches = None if branches_BL is None else positions_BL
    if positions_BL is None:
      positions_BL = jnp.broadcast_to(jnp.arange(inputs_BL.shape[1]), inputs_BL.shape)
    return Tokens(
      segments_BL, prefix_BL, prefill_lengths_B, branches_BL, of_branches, {}
    ), positions_BL


def unrolled(model: Decoder, params: Any) -> tuple[Decoder, Any]:
  """The same model for decoding: layers unrolled, parameters in the compute dtype.

  A scan would copy the full cache at every step, and casts would be repeated.

  Args:
    model: a Decoder; anything else is returned as it is.
    params: its parameters, in their shards.

  Returns:
    A model without scan, and its parameters with unchanged shardings.
  """
  config = getattr(model, 'config', None)
  if not isinstance(config, DecoderConfig):
    return model, params
  plain = dataclasses.replace(config, scan_layers=False, remat='none')

  def unstack(params):
    is_whole = lambda leaf: not isinstance(leaf, dict)
    params = jax.tree.map(
      lambda leaf: lora.dequantised(leaf, config.dtype), params, is_leaf=is_whole
    )
    stack = dict(params['decoder'])
    layers = {}
    for i in range(config.num_layers):
      path, index = config.layer_path(i)
      node = stack
      for key in path.split('/'):
        node = node[key]
      layers[plain.layer_path(i)[0]] = (
        node if index is None else jax.tree.map(lambda leaf: leaf[index], node)
      )
    rest = {key: value for key, value in stack.items() if not key.startswith(('layers', 'tail_'))}
    return {'decoder': {**rest, **layers}}

  return Decoder(plain), jax.jit(unstack)(params)
