"""A decoder in Flax Linen for many model families, with T5X's call signature, parameter axes and
cache.

Letters: B batch, L length, M columns with logits, E model width, V vocabulary.
"""

import dataclasses
from typing import Any

from flax import linen as nn
from flax.linen import partitioning as nn_partitioning
import jax
import jax.numpy as jnp

from crossin_jax import config
from crossin_jax.models import lora, rotary
from crossin_jax.models.attention.attention import choose
from crossin_jax.models.attention.blockwise import KEPT
from crossin_jax.models.attention.mask import Mask
from crossin_jax.models.attention.shards import platform
from crossin_jax.models.decoder_config import DecoderConfig
from crossin_jax.models.experts import ROUTER, Experts
from crossin_jax.models.head import Head
from crossin_jax.models.mlp import MLP
from crossin_jax.models.norms import Norm
from crossin_jax.models.parameter import parameter
from crossin_jax.models.product import Transposed
from crossin_jax.models.self_attention import SelfAttention, Tokens

with_sharding_constraint = nn_partitioning.with_sharding_constraint


class Block(nn.Module):
  """One layer: attention and MLP, each with its norms, added to the residual."""

  config: DecoderConfig
  kind: str

  @nn.compact
  def __call__(self, x_BLE, tokens: Tokens, decode: bool, prefill: bool, deterministic: bool):
    config = self.config
    norm = lambda x_BLE, name: Norm(config, name=name)(x_BLE)
    dropout = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,), deterministic=deterministic)
    attend = SelfAttention(config, self.kind, name='self_attention')
    parts = {
      'attention': lambda y: attend(y, tokens, decode, prefill, deterministic),
      'mlp': lambda y: MLP(config, name='mlp')(y, deterministic),
    }
    if config.num_experts:
      parts['mlp'] = lambda y: Experts(config, name='mlp')(y, tokens.segments_BL)
    x_BLE = with_sharding_constraint(x_BLE, ('batch', 'length', 'embed_activation'))
    if config.norm_placement == 'parallel':
      y_BLE = norm(x_BLE, 'pre_attention_norm')
      x_BLE += dropout(sum(function(y_BLE) for function in parts.values()))
    else:
      for name, function in parts.items():
        y_BLE = x_BLE if config.norm_placement == 'post' else norm(x_BLE, f'pre_{name}_norm')
        y_BLE = function(y_BLE)
        y_BLE = y_BLE if config.norm_placement == 'pre' else norm(y_BLE, f'post_{name}_norm')
        x_BLE += dropout(scaled(y_BLE, config.residual_multiplier))
    if config.layer_scalars:
      scalar = parameter(
        self,
        'layer_scalar',
        nn.initializers.ones,
        (1,),
        jnp.dtype(config.param_dtype),
        axes=(None,),
      )
      x_BLE *= jax.lax.stop_gradient(scalar).astype(x_BLE.dtype)
    # nn.scan wants (carry, output of the layer).
    return x_BLE, None


def scaled(x: jax.Array, factor: float) -> jax.Array:
  """x times a factor in the dtype of x."""
  return x if factor == 1.0 else x * jnp.asarray(factor, x.dtype)


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
    places_BM,
    tokens: Tokens,
    decode: bool,
    prefill: bool,
    deterministic: bool,
    split: bool,
  ):
    config = self.config
    dtype, param_dtype = jnp.dtype(config.dtype), jnp.dtype(config.param_dtype)
    embedding_VE = parameter(
      self,
      'token_embedding',
      nn.initializers.normal(stddev=1.0 if not config.tie_embeddings else config.embed_dim**-0.5),
      (config.padded_vocab_size, config.embed_dim),
      param_dtype,
      axes=('vocab', 'embed'),
    )
    x_BLE = jnp.take(embedding_VE.astype(dtype), inputs_BL, axis=0)
    if config.embedding_scale:
      x_BLE *= jnp.asarray(config.embed_dim**0.5, dtype)
    x_BLE = scaled(x_BLE, config.embedding_multiplier)
    kinds = {config.kind(i) for i in range(config.num_layers)}
    tokens = tokens.replace(
      rope={
        kind: rotary.tables(config, kind, tokens.positions_BL)
        for kind in sorted(kinds)
        if config.has_positions(kind)
      }
    )
    arguments = (tokens, decode, prefill, deterministic)
    block, period = remat_block(config.remat), len(config.layer_pattern)
    turns = config.num_layers // period if config.scan_layers else 0
    if turns:
      # The cache is stacked along axis 0 too: its batch axis is 1, which T5X infers from
      # scan_layers.
      layers = nn_partitioning.scan_with_axes(
        block if period == 1 else Turn,
        variable_axes={'params': 0, 'cache': 0, ROUTER: 0},
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
    x_BLE = scaled(Norm(config, name='final_norm')(x_BLE), config.logit_scale)
    kernel = embedding_VE
    if not config.tie_embeddings:
      kernel = parameter(
        self,
        'lm_head',
        nn.initializers.normal(stddev=config.embed_dim**-0.5),
        (config.embed_dim, config.padded_vocab_size),
        param_dtype,
        axes=('embed', 'vocab'),
      )
    tied = config.tie_embeddings
    if isinstance(kernel, Transposed):
      kernel, tied = kernel.kernel_FE, True
    head = Head(kernel, tied, config.logit_softcap, config.vocab_size)
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
    tokens = self._tokens(
      decoder_input_tokens,
      decoder_segment_ids,
      decoder_positions,
      decoder_causal_attention,
      prefill_lengths,
      decoder_branches,
    )
    return self.decoder(
      decoder_input_tokens, decoder_logit_places, tokens, decode, prefill, not enable_dropout, False
    )

  def hidden(
    self,
    decoder_input_tokens: jax.Array,
    decoder_segment_ids: jax.Array | None = None,
    decoder_positions: jax.Array | None = None,
    decoder_causal_attention: jax.Array | None = None,
    *,
    enable_dropout: bool = True,
    decoder_branches: jax.Array | None = None,
  ) -> tuple[jax.Array, Head]:
    """Hidden states [B, L, E] after the final norm, and the head that makes them logits.

    For a loss that never holds all logits: `model.apply(..., method='hidden')`.
    """
    tokens = self._tokens(
      decoder_input_tokens, decoder_segment_ids, decoder_positions, decoder_causal_attention,
      branches_BL=decoder_branches,
    )  # fmt: skip
    return self.decoder(decoder_input_tokens, None, tokens, False, False, not enable_dropout, True)

  def _tokens(
    self, inputs_BL, segments_BL, positions_BL, prefix_BL, prefill_lengths_B=None, branches_BL=None
  ):
    """`Tokens` for the layers, without rotary tables."""
    if branches_BL is not None and positions_BL is None:
      raise ValueError('decoder_branches needs decoder_positions')
    if positions_BL is None:
      positions_BL = jnp.broadcast_to(jnp.arange(inputs_BL.shape[1]), inputs_BL.shape)
    return Tokens(segments_BL, prefix_BL, prefill_lengths_B, branches_BL, positions_BL, {})


def attention_kernel(model, length: int) -> str | None:
  """'splash' or 'cudnn' if a layer uses it in packed rows of this length, which then may have
  neither branches nor bidirectional prompts; None = all layers take any mask.
  """
  config = getattr(model, 'config', None)
  if not isinstance(config, DecoderConfig):
    return None
  of = lambda *shape: jax.ShapeDtypeStruct((1, length, *shape), jnp.dtype(config.dtype))
  segments = jax.ShapeDtypeStruct((1, length), jnp.int32)
  for kind in dict.fromkeys(config.layer_pattern):
    kind_config = config.of_kind(kind)
    chosen = choose(
      config.attention,
      of(kind_config.num_heads, kind_config.head_dim),
      of(kind_config.num_kv_heads, kind_config.head_dim),
      Mask(segments, segments, window=config.window_of(kind)),
      kind_config.attention_softcap,
      platform(),
      config.attention_sinks,
    )
    if chosen in ('splash', 'cudnn'):
      return chosen
  return None


def unrolled(model: Decoder, params: Any, transposed: bool = False) -> tuple[Decoder, Any]:
  """The same model for decoding: layers unrolled, parameters in the compute dtype.

  A scan would copy the full cache at every step, and casts would be repeated.

  Args:
    model: a Decoder; anything else is returned as it is.
    params: its parameters, in their shards.
    transposed: whether kernels become `product.Transposed`.

  Returns:
    A model without scan, and its parameters with unchanged shardings.
  """
  config = getattr(model, 'config', None)
  if not isinstance(config, DecoderConfig):
    return model, params
  plain = dataclasses.replace(config, scan_layers=False, remat='none')

  is_whole = lambda leaf: not isinstance(leaf, dict)
  # Parameters that this function made have transposed kernels already.
  plainly = lambda leaf: (
    leaf if isinstance(leaf, Transposed) else lora.dequantised(leaf, config.dtype)
  )

  def turned(path, leaf):
    matrix = path[-1].key in ('kernel', 'lm_head') and getattr(leaf, 'ndim', None) == 2
    return Transposed(leaf.T) if transposed and matrix else leaf

  def unstack(params):
    params = jax.tree.map(plainly, params, is_leaf=is_whole)
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
    params = {'decoder': {**rest, **layers}}
    return jax.tree_util.tree_map_with_path(turned, params, is_leaf=is_whole)

  return Decoder(plain), jax.jit(unstack)(params)
