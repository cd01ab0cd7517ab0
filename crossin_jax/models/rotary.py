"""Rotary position embeddings (Su et al. 2021), with the scalings of the model families.

Letters: B batch, L length, H heads, D head size, R half of the rotated part of a head.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from crossin_jax.models.attention.shards import platform


def tables(config, kind: str, positions_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Sine and cosine of every angle.

  Args:
    config: a `DecoderConfig`.
    kind: of the layer.
    positions_BL: int positions within the segment, from 0.

  Returns:
    Two arrays [B, L, R], f32 (f64 with config.dtype float64), times the scaling's attention factor.
  """
  wide = jnp.promote_types(config.dtype, jnp.float32)
  inverse, factor = wavelengths(config, kind)
  if isinstance(inverse, tuple):  # LongRoPE: the last position of a row selects short or long
    short, long, limit = inverse
    far_B11 = (positions_BL.max(axis=1) >= limit)[:, None, None]
    inverse_BLR = jnp.where(far_B11, jnp.asarray(long, wide), jnp.asarray(short, wide))
  else:
    inverse_BLR = jnp.asarray(inverse, wide)
  angle_BLR = positions_BL[:, :, None].astype(wide) * inverse_BLR
  return jnp.sin(angle_BLR) * factor, jnp.cos(angle_BLR) * factor


def rotate(
  x_BLHD: jax.Array, sin_BLR: jax.Array, cos_BLR: jax.Array, interleaved: bool = False
) -> jax.Array:
  """Rotates the first 2 R of each head; returns the dtype of x.

  A pair is (i, i + R), as in Llama, or if interleaved (2 i, 2 i + 1), as in GPT-J and Cohere.
  """
  if platform() == 'tpu':
    return rotate_by_product(x_BLHD, sin_BLR, cos_BLR, interleaved)
  rotated = 2 * sin_BLR.shape[-1]
  sin, cos = sin_BLR[:, :, None], cos_BLR[:, :, None]
  turning = x_BLHD[..., :rotated].astype(sin.dtype)
  if interleaved:
    first, second = turning[..., ::2], turning[..., 1::2]
  else:
    first, second = jnp.split(turning, 2, axis=-1)
  parts = [first * cos - second * sin, second * cos + first * sin]
  if interleaved:
    parts = [jnp.stack(parts, axis=-1).reshape(turning.shape)]
  if rotated < x_BLHD.shape[-1]:
    parts.append(x_BLHD[..., rotated:].astype(sin.dtype))
  return jnp.concatenate(parts, axis=-1).astype(x_BLHD.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def rotate_by_product(
  x_BLHD: jax.Array, sin_BLR: jax.Array, cos_BLR: jax.Array, interleaved: bool = False
) -> jax.Array:
  """`rotate`, where a product with a constant matrix brings the other number of each pair.

  The vector unit of a TPU works on 128 numbers of a row: on halves of a head it does twice the
  work, and layouts change in between. The product is exact, since every sum has one term. The
  gradient turns back; sine and cosine get none.
  """
  half, size = sin_BLR.shape[-1], x_BLHD.shape[-1]
  i = np.arange(half)
  first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
  other_DD, column_D = np.zeros((size, size), np.float32), np.zeros(size, np.int32)
  other_DD[second, first], other_DD[first, second] = -1, 1
  column_D[first] = column_D[second] = i
  other_BLHD = jnp.einsum(
    'blhd,de->blhe', x_BLHD, jnp.asarray(other_DD, x_BLHD.dtype),
    precision='highest', preferred_element_type=sin_BLR.dtype,
  )  # fmt: skip
  whole = lambda table_BLR, rest: jnp.where(
    np.arange(size) < 2 * half, table_BLR[:, :, column_D], jnp.asarray(rest, table_BLR.dtype)
  )[:, :, None]
  cos, sin = whole(cos_BLR, 1), whole(sin_BLR, 0)
  return (x_BLHD.astype(sin.dtype) * cos + other_BLHD * sin).astype(x_BLHD.dtype)


def _turned(x_BLHD, sin_BLR, cos_BLR, interleaved):
  return rotate_by_product(x_BLHD, sin_BLR, cos_BLR, interleaved), (sin_BLR, cos_BLR)


def _turned_back(interleaved, tables, d_BLHD):
  sin_BLR, cos_BLR = tables
  return rotate_by_product(d_BLHD, -sin_BLR, cos_BLR, interleaved), None, None


rotate_by_product.defvjp(_turned, _turned_back)


def scaled_queries(config, q_BLHD: jax.Array, positions_BL: jax.Array) -> jax.Array:
  """Queries times 1 + beta log(1 + floor(position / original length)), as in Ministral 3.

  beta is `llama_4_scaling_beta` of rope_scaling; without it nothing changes.
  """
  scaling = dict(config.rope_scaling or {})
  beta = scaling.get('llama_4_scaling_beta')
  if beta is None:
    return q_BLHD
  wide = jnp.promote_types(q_BLHD.dtype, jnp.float32)
  turns_BL = jnp.floor(positions_BL.astype(wide) / scaling['original_max_position_embeddings'])
  factor_BL = 1 + beta * jnp.log1p(turns_BL)
  return q_BLHD * factor_BL[:, :, None, None].astype(q_BLHD.dtype)


def wavelengths(config, kind: str):
  """Angle per position of each pair, f32 or f64 [R], and the factor on sine and cosine.

  For 'longrope' the first is (short [R], long [R], the first position that uses long).
  """
  local = config.window_of(kind) is not None and config.rope_local_theta is not None
  config = config.of_kind(kind)
  theta = config.rope_local_theta if local else config.rope_theta
  scaling = {} if local or not config.rope_scaling else dict(config.rope_scaling)
  kind_of_scaling = scaling.get('rope_type')
  dim = int(config.head_dim * config.rope_fraction)
  # f32 as in transformers: at position 100,000 the last bit of the power is an angle of 0.01.
  wide = np.float64 if config.dtype == 'float64' else np.float32
  power = wide(theta) ** (np.arange(0, dim, 2, dtype=wide) / wide(dim))
  inverse = wide(1.0) / power
  if kind_of_scaling == 'proportional':
    return _proportional(config.head_dim, theta, scaling, wide), 1.0
  if kind_of_scaling == 'linear':
    return inverse / wide(scaling['factor']), 1.0
  if kind_of_scaling == 'llama3':
    return _llama3(inverse, scaling), 1.0
  if kind_of_scaling == 'yarn':
    return _yarn(power, dim, theta, scaling)
  if kind_of_scaling == 'longrope':
    original, factor = scaling['original_max_position_embeddings'], scaling['factor']
    attention = scaling.get('attention_factor')
    if attention is None:
      attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    short, long = (
      wide(1.0) / (np.asarray(scaling[name], wide) * power)
      for name in ('short_factor', 'long_factor')
    )
    return (short, long, original), attention
  return inverse, 1.0


def _proportional(head_dim: int, theta: float, scaling: dict, wide):
  """Gemma 4: the wavelengths of a whole head; those beyond `partial_rotary_factor` do not turn."""
  angles = int(scaling.get('partial_rotary_factor', 1.0) * head_dim // 2)
  power = wide(theta) ** (np.arange(0, 2 * angles, 2, dtype=wide) / wide(head_dim))
  return np.pad(wide(1.0) / power, (0, head_dim // 2 - angles)) / wide(scaling.get('factor', 1.0))


def _llama3(inverse, scaling):
  """Llama 3.1: divides low frequencies by `factor`, keeps high ones, interpolates between."""
  factor, low, high = scaling['factor'], scaling['low_freq_factor'], scaling['high_freq_factor']
  original = scaling['original_max_position_embeddings']
  wavelength = 2 * np.pi / inverse
  blend = np.clip((original / wavelength - low) / (high - low), 0, 1)
  return ((1 - blend) * inverse / factor + blend * inverse).astype(inverse.dtype)


def _yarn(power, dim, theta, scaling):
  """YaRN (Peng et al. 2023, section 3)."""
  factor, original = scaling['factor'], scaling['original_max_position_embeddings']
  turns = lambda n: dim * math.log(original / (n * 2 * math.pi)) / (2 * math.log(theta))
  low, high = turns(scaling.get('beta_fast') or 32), turns(scaling.get('beta_slow') or 1)
  if scaling.get('truncate', True):
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, dim - 1)
  ramp = np.clip(
    (np.arange(dim // 2, dtype=power.dtype) - low) / (high - low if high > low else 0.001), 0, 1
  )
  inverse = (1 / (factor * power)) * ramp + (1 / power) * (1 - ramp)
  magnitude = lambda scale, m=1.0: 1.0 if scale <= 1 else 0.1 * m * math.log(scale) + 1.0
  attention = scaling.get('attention_factor')
  if attention is None:
    m, all_m = scaling.get('mscale'), scaling.get('mscale_all_dim')
    attention = (
      magnitude(factor, m) / magnitude(factor, all_m) if m and all_m else magnitude(factor)
    )
  return inverse.astype(power.dtype), attention
