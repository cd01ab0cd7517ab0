"""The attention of a block: projections, norms, rotary positions, and while decoding a cache.

Letters: B batch, L length, E model width, H query heads, K key/value heads, D head size, S slots of
a cache.
"""

from flax import linen as nn
from flax.linen.partitioning import with_sharding_constraint
import flax.struct
import jax
import jax.numpy as jnp

from crossin_jax.models import rotary
from crossin_jax.models.attention.attention import attention, cached_attention
from crossin_jax.models.cache import KVCache
from crossin_jax.models.decoder_config import DecoderConfig
from crossin_jax.models.dense import Dense
from crossin_jax.models.norms import Norm, root_mean_square
from crossin_jax.models.parameter import parameter


@flax.struct.dataclass
class Tokens:
  """What every layer needs to know about the tokens.

  Attributes:
    segments_BL: int, 0 = padding; None = every row is one segment.
    prefix_BL: int, 1 where a prompt is read in both directions; None = causal.
    prefill_lengths_B: int, real tokens of each prompt; None outside prefill.
    branches_BL: int, see `attention`; None = no branches.
    positions_BL: int, positions within the segment.
    rope: kind of layer -> (sine, cosine) [B, L, R] of the positions; not for layers without
      positions.
  """

  segments_BL: jax.Array | None
  prefix_BL: jax.Array | None
  prefill_lengths_B: jax.Array | None
  branches_BL: jax.Array | None
  positions_BL: jax.Array
  rope: dict[str, tuple[jax.Array, jax.Array]]


class SelfAttention(nn.Module):
  """Grouped-query self-attention with rotary positions and, while decoding, a cache."""

  config: DecoderConfig
  kind: str

  @nn.compact
  def __call__(self, x_BLE, tokens: Tokens, decode: bool, prefill: bool, deterministic: bool):
    config, window = self.config.of_kind(self.kind), self.config.window_of(self.kind)
    batch, length, _ = x_BLE.shape
    q_BLHD, k_BLKD, v_BLKD = self._projections(config, x_BLE, deterministic)

    rope, appending = tokens.rope.get(self.kind), False
    if decode or prefill:
      cache = KVCache(self, k_BLKD.shape, window, jnp.dtype(config.dtype))
      appending = decode and cache.exists
    q_index_BL = cache.positions(length) if appending else tokens.positions_BL
    if rope is not None:
      if appending:
        rope = rotary.tables(self.config, self.kind, q_index_BL)
      q_BLHD, k_BLKD = (rotary.rotate(x, *rope, config.rope_interleaved) for x in (q_BLHD, k_BLKD))
    q_BLHD = rotary.scaled_queries(config, q_BLHD, q_index_BL)
    constrain = lambda x: with_sharding_constraint(x, ('batch', 'length', 'heads', 'kv'))
    q_BLHD, k_BLKD, v_BLKD = constrain(q_BLHD), constrain(k_BLKD), constrain(v_BLKD)

    options = {'window': window, 'scale': config.query_scale, 'softcap': config.attention_softcap}
    if config.attention_sinks:
      init, shape = nn.initializers.normal(0.02), (config.num_heads,)
      dtype = jnp.dtype(config.param_dtype)
      options['sinks_H'] = parameter(self, 'sinks', init, shape, dtype, axes=('heads',))
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
        branches_BS=tokens.branches_BL,
        positions_BS=None if tokens.branches_BL is None else tokens.positions_BL,
        implementation=config.attention, **options,
      )  # fmt: skip
    out_BLE = out_BLHD.reshape(batch, length, config.num_heads * config.head_dim)
    bias = config.attention_bias == 'all'
    dense = Dense(config.embed_dim, ('joined_kv', 'embed'), config, bias, name='out')
    return dense(out_BLE, deterministic)

  def _projections(self, config: DecoderConfig, x_BLE, deterministic: bool):
    """Queries [B, L, H, D], keys and values [B, L, K, D], normalised, without positions."""

    def project(name, heads, norm=None):
      bias = config.attention_bias != 'none'
      dense = Dense(heads * config.head_dim, ('embed', 'joined_kv'), config, bias, name=name)
      joined = dense(x_BLE, deterministic)
      if norm and config.qk_norm == 'joined':
        joined = Norm(config, ('joined_kv',), name=norm)(joined)
      return joined.reshape(*x_BLE.shape[:2], heads, config.head_dim)

    def normalised(x_BLHD, norm):
      axes = {'head': ('kv',), 'each_head': ('heads', 'kv')}.get(config.qk_norm)
      return x_BLHD if axes is None else Norm(config, axes, name=norm)(x_BLHD)

    q_BLHD = normalised(project('query', config.num_heads, 'query_norm'), 'query_norm')
    projected_BLKD = project('key', config.num_kv_heads, 'key_norm')
    k_BLKD = normalised(projected_BLKD, 'key_norm')
    v_BLKD = projected_BLKD if config.key_is_value else project('value', config.num_kv_heads)
    return q_BLHD, k_BLKD, root_mean_square(v_BLKD, config) if config.value_norm else v_BLKD
