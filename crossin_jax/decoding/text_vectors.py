"""Vectors of texts: the mean hidden state of a model here, or of sentence-transformers.

Letters: N texts, D dimensions, B rows of a batch, L tokens, E width of the model.
"""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from crossin_jax.data.stream import put_batch
from crossin_jax.decoding.cache import bucket
from crossin_jax.processes import interruption


def mean_states(
  model, params, partition, tokens: Sequence[Sequence[int]], *, bos_id: int | None, rows: int = 32
) -> np.ndarray:
  """Mean of the model's last hidden states over the tokens of each text.

  Args:
    model: a `Decoder`.
    params: its parameters, on the mesh of `partition`, which must be active.
    tokens: of each text, without BOS; BOS is read before them and not counted in the mean.
    bos_id: first input; None = the first token.
    rows: texts read together, rounded up to a multiple of the mesh's batch parts.

  Returns:
    float32 [N, E]; zeros for a text without tokens.
  """
  rows = -(-rows // partition.batch_ways) * partition.batch_ways
  compute = _mean_states(model, partition.replicated)
  vectors = np.zeros((len(tokens), model.config.embed_dim), np.float32)
  shapes: dict[int, list[int]] = {}
  for i, ids in enumerate(tokens):
    if len(ids):
      shapes.setdefault(bucket(len(ids) + 1), []).append(i)
  for length, places in shapes.items():
    for first in range(0, len(places), rows):
      interruption.check()
      own = places[first : first + rows]
      inputs, segments = np.zeros((2, rows, length), np.int32)
      for row, i in enumerate(own):
        read = tokens[i] if bos_id is None else [bos_id, *tokens[i]]
        inputs[row, : len(read)] = read
        segments[row, : len(read)] = 1
      make = lambda _, selected: {'inputs': inputs[selected], 'segments': segments[selected]}
      batch = put_batch(make, 0, (rows, length), partition.batch_sharding)
      vectors[own] = np.asarray(compute(params, batch))[: len(own)]
  return vectors


@functools.lru_cache(maxsize=8)
def _mean_states(model, replicated):
  """A jitted (params, batch) -> float32 [B, E]."""

  def compute(params, batch):
    _, captured = model.apply(
      {'params': params},
      batch['inputs'],
      batch['inputs'],
      decoder_segment_ids=batch['segments'],
      enable_dropout=False,
      capture_intermediates=lambda module, method: (
        module.name == 'final_norm' and method == '__call__'
      ),
      mutable=['intermediates'],
    )
    state_BLE = captured['intermediates']['decoder']['final_norm']['__call__'][0].astype(
      jnp.float32
    )
    weight_BL = (batch['segments'] > 0).at[:, 0].set(False).astype(jnp.float32)
    return jnp.einsum('ble,bl->be', state_BLE, weight_BL) / jnp.maximum(
      weight_BL.sum(1, keepdims=True), 1
    )

  return jax.jit(compute, out_shardings=replicated)


def sentence_vectors(texts: Sequence[str], name: str) -> np.ndarray:
  """Vectors of a model of sentence-transformers, which downloads a name that is no path.

  Args:
    texts: distinct.
    name: name or path of the model.

  Returns:
    float32 [N, D].

  Raises:
    ValueError: the library is not installed.
  """
  try:
    from sentence_transformers import SentenceTransformer
  except ImportError:
    raise ValueError(
      f'vectors of {name!r} need sentence-transformers: pip install sentence-transformers; or use '
      'another embedding'
    ) from None
  # Sorted by length for little padding, and independent of the order of the texts.
  order = sorted(range(len(texts)), key=lambda i: (-len(texts[i]), texts[i]))
  encoded = SentenceTransformer(name).encode([texts[i] for i in order], convert_to_numpy=True)
  vectors = np.empty((len(texts), encoded.shape[1]), np.float32)
  vectors[order] = encoded
  return vectors
