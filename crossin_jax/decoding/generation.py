"""Greedy generation with a KV cache: prompts in buckets of length, one compile a bucket."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from crossin_jax import interruption
from crossin_jax.data.stream import put_batch
from crossin_jax.partitioning import Partitioner

BUCKET = 16  # prompt lengths are rounded up to a multiple of it


def greedy(
  model, params, partition: Partitioner, prompts, *, bos_id: int, eos_id: int, max_new_tokens: int = 32, rows: int = 64
) -> list[list[int]]:
  """The most likely next token, again and again, until the stop token.

  Args:
    model: called as `Decoder` is.
    params: its parameters.
    partition: mesh; `partition.activate()` must be in force.
    prompts: list of token lists, without BOS; each may have any length.
    bos_id: put before each prompt. eos_id: ends a row.
    max_new_tokens: most tokens generated for a prompt.
    rows: prompts decoded at a time, rounded up to a multiple of the mesh's batch parts.

  Returns:
    The new tokens of each prompt in the order given, without the stop token.
  """
  rows = -(-rows // partition.batch_ways) * partition.batch_ways
  order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
  results: list[list[int]] = [[] for _ in prompts]
  for first in range(0, len(order), rows):
    interruption.check()
    chunk = order[first : first + rows]
    longest = 1 + max(len(prompts[i]) for i in chunk)
    length = -(-longest // BUCKET) * BUCKET

    def make(_, selected, chunk=chunk, length=length):
      tokens = np.full((rows, length), bos_id, np.int32)
      real = np.zeros((rows, length), np.int32)
      real[:, 0] = 1
      for row, item in enumerate(chunk):
        tokens[row, 1 : 1 + len(prompts[item])] = prompts[item]
        real[row, : 1 + len(prompts[item])] = 1
      return {'tokens': tokens[selected], 'real': real[selected]}

    batch = put_batch(make, 0, (rows, length), partition.batch_sharding)
    new = np.asarray(_decode(model, max_new_tokens, partition.replicated)(params, batch, eos_id))
    for row, item in enumerate(chunk):
      stop = np.flatnonzero(new[row] == eos_id)
      results[item] = new[row, : stop[0] if len(stop) else None].tolist()
  return results


@functools.lru_cache(maxsize=32)
def _decode(model, max_new_tokens: int, replicated):
  """A jitted (params, batch, eos) -> new tokens int32 [rows, max_new_tokens]."""

  def run(params, batch, eos_id):
    tokens, lengths = batch['tokens'], batch['real'].sum(axis=1)
    rows, length = tokens.shape
    full = jnp.ones((rows, length + max_new_tokens), jnp.int32)
    create = lambda: model.apply({'params': params}, full, full, enable_dropout=False, decode=True, mutable=['cache'])[
      1
    ]
    cache = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(create))
    logits, cache = model.apply(
      {'params': params, **cache},
      tokens,
      tokens,
      enable_dropout=False,
      prefill=True,
      prefill_lengths=lengths,
      mutable=['cache'],
    )
    last = jnp.take_along_axis(logits, (lengths - 1)[:, None, None], axis=1)[:, 0]
    token = jnp.argmax(last, axis=-1).astype(jnp.int32)
    new = jnp.full((rows, max_new_tokens), eos_id, jnp.int32).at[:, 0].set(token)

    def unfinished(carry):
      step, _, _, done, _ = carry
      return (step < max_new_tokens) & ~done.all()

    def advance(carry):
      step, token, cache, done, new = carry
      logits, cache = model.apply(
        {'params': params, **cache},
        token[:, None],
        token[:, None],
        enable_dropout=False,
        decode=True,
        max_decode_length=length + max_new_tokens,
        mutable=['cache'],
      )
      token = jnp.where(done, eos_id, jnp.argmax(logits[:, 0], axis=-1)).astype(jnp.int32)
      return step + 1, token, cache, done | (token == eos_id), new.at[:, step].set(token)

    return jax.lax.while_loop(unfinished, advance, (1, token, cache, token == eos_id, new))[-1]

  return jax.jit(run, out_shardings=replicated)
