"""cuDNN's fused attention on NVIDIA GPUs; packed rows need Hopper or later.

Letters: B batch, T length, H query heads, K key/value heads, D head size, M maximum segments of a
row.
"""

import jax
import jax.numpy as jnp

from crossin_jax.models.attention import blockwise as attention_blockwise
from crossin_jax.models.attention.mask import Mask

OLDEST_CUDNN = 90600  # 9.6, the first with segment offsets


def refusal(
  q_BTHD, k_BSKD, mask: Mask, softcap: float | None, platform: str, has_sinks: bool = False
) -> str | None:
  """Why cuDNN cannot be used; None = it can."""
  packed = mask.q_segments_BT is not None
  size = q_BTHD.shape[-1]
  if platform != 'gpu':
    return f"cuDNN's attention is for NVIDIA GPUs, and this is a {platform}"
  if q_BTHD.dtype not in (jnp.bfloat16, jnp.float16):
    return (
      f"cuDNN's attention computes in bfloat16 or float16, not {q_BTHD.dtype}; set "
      'DecoderConfig.dtype'
    )
  if not mask.is_plain:
    return "cuDNN's attention supports neither bidirectional prompts nor branches"
  if softcap is not None:
    return "cuDNN's attention has no soft cap"
  if has_sinks:
    return "cuDNN's attention has no sinks in JAX"
  if q_BTHD.shape[1] != k_BSKD.shape[1]:
    queries, keys = q_BTHD.shape[1], k_BSKD.shape[1]
    return f"cuDNN's attention needs as many queries as keys, not {queries} and {keys}"
  if packed and mask.window is not None and mask.window < q_BTHD.shape[1]:
    return "cuDNN's attention supports no window in packed rows"
  capability, version = _capability(), _version()
  largest = 256 if capability >= (9, 0) else 128
  if size % 8 or size > largest:
    return f'cuDNN needs head sizes that are multiples of 8 up to {largest}, not {size}'
  if capability < ((9, 0) if packed else (8, 0)):
    what, oldest = ('packed rows', 'Hopper') if packed else ('attention', 'Ampere')
    return f'cuDNN supports {what} from {oldest} on'
  if version is None:
    return 'cuDNN was not found'
  if packed and version < OLDEST_CUDNN:
    return f'cuDNN {version} is older than 9.6, which packed rows need'
  return None


def _capability() -> tuple[int, ...]:
  """Compute capability of the first GPU; Hopper has (9, 0)."""
  return tuple(map(int, jax.local_devices(backend='gpu')[0].compute_capability.split('.')))


def _version() -> int | None:
  """cuDNN's version, 90600 = 9.6; None if it is not installed."""
  try:
    from jax._src.cudnn.fused_attention_stablehlo import check_cudnn_version

    return check_cudnn_version()
  except (ImportError, RuntimeError):
    return None


def most_segments(length: int) -> int:
  """M; rows with more segments use the blockwise back end.

  cuDNN's log-sum-exp has B x M x H x T numbers, so M must be smaller than T.
  """
  return min(length, max(32, length // 64))


def offsets(segments_BT: jax.Array, most: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Start and length of each segment of a row; padding counts as a segment.

      segments 1 1 1 2 2 0, most 4:  starts 0 3 5 -1 -1, lengths 3 2 1 -1, count 3

  Args:
    segments_BT: ids; a segment is a run of equal ids.
    most: M.

  Returns:
    int32 starts [B, M + 1] and lengths [B, M], -1 behind the last segment; int32 counts [B].
  """
  length = segments_BT.shape[1]
  first_BT = jnp.pad(
    segments_BT[:, 1:] != segments_BT[:, :-1], ((0, 0), (1, 0)), constant_values=True
  )
  starts_BT = jnp.sort(jnp.where(first_BT, jnp.arange(length), length), axis=1)
  starts_BN = jnp.pad(starts_BT, ((0, 0), (0, 1)), constant_values=length)[:, : most + 1].astype(
    jnp.int32
  )
  lengths_BM = jnp.where(starts_BN[:, :-1] < length, jnp.diff(starts_BN, axis=1), -1)
  # One entry more than segments, as cuDNN expects; the last is never a segment's start.
  starts_BN = jnp.where(starts_BN < length, starts_BN, -1).at[:, -1].set(-1)
  return starts_BN, lengths_BM, first_BT.sum(axis=1, dtype=jnp.int32)


def attend(
  q_BTHD, k_BTKD, v_BTKD, mask: Mask, sinks_H=None, *, scale: float | None, softcap: float | None
) -> jax.Array:
  """See `attention.attention`, on one device."""
  assert softcap is None and sinks_H is None
  length, heads, size = q_BTHD.shape[1:]
  scale = size**-0.5 if scale is None else scale
  if mask.q_segments_BT is None:
    window = None if mask.window is None else (mask.window - 1, 0)
    return jax.nn.dot_product_attention(
      q_BTHD, k_BTKD, v_BTKD, scale=scale, is_causal=True, local_window_size=window,
      implementation='cudnn',
    )  # fmt: skip
  from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

  most = most_segments(length)
  starts_BN, lengths_BM, count_B = offsets(mask.q_segments_BT, most)

  def packed(q_BTHD, k_BTKD, v_BTKD):
    # NB: up to JAX 0.10, cuDNN's key offsets use the number of query heads (jax-ml/jax#39521): with
    # fewer key heads they silently point at other tokens. Repeated heads work in every version.
    group = heads // k_BTKD.shape[2]
    k_BTHD, v_BTHD = (jnp.repeat(x, group, axis=2) if group > 1 else x for x in (k_BTKD, v_BTKD))
    return dot_product_attention(
      q_BTHD, k_BTHD, v_BTHD, q_seqlen=lengths_BM, kv_seqlen=lengths_BM, q_offsets=starts_BN,
      kv_offsets=starts_BN,
      scale=scale, mask_type=MaskType.PADDING_CAUSAL,
    )  # fmt: skip

  def crowded(q_BTHD, k_BTKD, v_BTKD):
    return attention_blockwise.attend(q_BTHD, k_BTKD, v_BTKD, mask, scale=scale, softcap=None)

  return jax.lax.cond(count_B.max() <= most, packed, crowded, q_BTHD, k_BTKD, v_BTKD)
