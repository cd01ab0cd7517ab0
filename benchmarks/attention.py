"""Forward and backward pass of every attention back end of this machine beside torch's
scaled_dot_product_attention.

    python benchmarks/attention.py [--lengths 2048,4096,8192] [--heads 8] [--rounds 5] [--dtype
    bfloat16]

Rows packed with ragged segments (about 300 tokens each), one batch of `--tokens` tokens, GQA with a
quarter of the heads as keys; bf16 on an accelerator, f32 on a CPU. All in one process, alternating.
torch is timed twice: over the packed row with the mask of its segments (what it does with packed
rows) and over the same row as one causal segment (its fast path, which answers another question).
Prints a line per length on stderr and one JSON object: seconds of each (and those of the processor,
which other work on the machine disturbs less), the ratio of torch's (masked) to ours, memory of the
compiled program, and the floor: the seconds that the arithmetic of what is really seen takes at the
speed of a large matrix product measured just before. On a GPU every back end's output and gradients
are also compared with the reference. Needs torch.
"""

import argparse
import functools
import json
import os
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from crossin_jax.models.attention import blockwise as attention_blockwise
from crossin_jax.models.attention import cudnn as attention_cudnn
from crossin_jax.models.attention import splash as attention_splash
from crossin_jax.models.attention import xla as attention_xla
from crossin_jax.models.attention.mask import Mask

SEGMENT = 300  # tokens of a segment, on average


def packed_segments(rng, rows: int, length: int) -> np.ndarray:
  """Segment ids [rows, length] of ragged segments that fill every row."""
  starts = rng.random((rows, length)) < 1 / SEGMENT
  return 1 + np.cumsum(starts, axis=1).astype(np.int32)


def seen_pairs(segments: np.ndarray) -> int:
  """Pairs of a query and a key that it sees."""
  total = 0
  for row in segments:
    counts = np.unique(row, return_counts=True)[1].astype(np.int64)
    total += int((counts * (counts + 1) // 2).sum())
  return total


def product_speed(dtype) -> float:
  """FLOP/s of a product of 2,048 x 2,048 matrices (4,096 on an accelerator)."""
  n = 2048 if jax.default_backend() == 'cpu' else 4096
  a = jnp.ones((n, n), dtype)
  multiply = jax.jit(jnp.matmul)
  jax.block_until_ready(multiply(a, a))
  took = []
  for _ in range(5):
    started = time.perf_counter()
    jax.block_until_ready(multiply(a, a))
    took.append(time.perf_counter() - started)
  return 2 * n**3 / min(took)


def back_ends(q, k, mask, platform: str) -> dict:
  """Name -> attend, of those that this machine has."""
  found = {'xla': attention_xla.attend, 'blockwise': attention_blockwise.attend}
  if attention_splash.refusal(q, k, mask, platform) is None:
    found['splash'] = attention_splash.attend
  if platform == 'gpu' and attention_cudnn.refusal(q, k, mask, None, platform) is None:
    found['cudnn'] = attention_cudnn.attend
  return found


def torch_runs(arrays, segments, device: str) -> dict:
  """Name -> a function that runs torch forward and backward once, finished when it returns."""
  import torch
  from torch.nn.functional import scaled_dot_product_attention

  dtype = torch.bfloat16 if arrays[0].dtype == jnp.bfloat16 else torch.float32
  tensor = lambda x: (
    torch.tensor(np.asarray(x, np.float32)).to(device, dtype).transpose(1, 2).contiguous()
  )
  q, k, v, gradient = map(tensor, arrays)
  for x in (q, k, v):
    x.requires_grad_()
  ids = torch.tensor(segments).to(device)
  causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=device).tril()
  seen = ((ids[:, :, None] == ids[:, None]) & causal)[:, None]

  def run(**options):
    out = scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1], **options)
    torch.autograd.grad(out, (q, k, v), gradient)
    if device == 'cuda':
      torch.cuda.synchronize()

  return {
    'torch_masked': lambda: run(attn_mask=seen),
    'torch_one_segment': lambda: run(is_causal=True),
  }


def largest_difference(found, expected) -> float:
  """Over output and gradients, relative to the largest number of each."""
  pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected))
  wide = lambda x: np.asarray(x, np.float32)
  return max(float(np.abs(wide(a) - wide(b)).max() / np.abs(wide(b)).max()) for a, b in pairs)


def measure(length: int, args, speed: float) -> dict:
  """Seconds of every back end at one length."""
  platform, rng = jax.default_backend(), np.random.default_rng(0)
  rows, key_heads = max(1, args.tokens // length), max(1, args.heads // 4)
  draw = lambda heads: jnp.asarray(
    rng.standard_normal((rows, length, heads, args.size)), args.dtype
  )
  q, k, v, gradient = draw(args.heads), draw(key_heads), draw(key_heads), draw(args.heads)
  segments = packed_segments(rng, rows, length)
  mask = Mask(jnp.asarray(segments), jnp.asarray(segments))
  runs, memory, compiled = {}, {}, {}
  for name, attend in back_ends(q, k, mask, platform).items():
    if name == 'xla' and args.skip_xla:
      continue
    out = functools.partial(attend, scale=None, softcap=None)

    def both(q, k, v, mask, gradient, out=out):
      result, back = jax.vjp(lambda q, k, v: out(q, k, v, mask), q, k, v)
      return result, back(gradient)

    compiled[name] = jax.jit(both).lower(q, k, v, mask, gradient).compile()
    memory[name] = compiled[name].memory_analysis().temp_size_in_bytes
    runs[name] = lambda c=compiled[name]: jax.block_until_ready(c(q, k, v, mask, gradient))
  ours = list(runs)
  differences = {}
  if platform != 'cpu' and 'xla' in compiled:
    results = {name: c(q, k, v, mask, gradient) for name, c in compiled.items()}
    differences = {
      name: largest_difference(results[name], results['xla']) for name in ours if name != 'xla'
    }
  runs |= torch_runs((q, k, v, gradient), segments, 'cuda' if platform == 'gpu' else 'cpu')
  seconds: dict[str, list[float]] = {name: [] for name in runs}
  cpu_seconds: dict[str, list[float]] = {name: [] for name in runs}
  for round_ in range(args.rounds + 1):
    for name, run in runs.items():
      started, cpu_started = time.perf_counter(), time.process_time()
      run()
      if round_:  # the first warms up
        seconds[name].append(time.perf_counter() - started)
        cpu_seconds[name].append(time.process_time() - cpu_started)
  # Two products forward, five backward (one of them the logits again), 2 operations a
  # multiplication.
  flops = 7 * 2 * args.size * args.heads * seen_pairs(segments)
  ratio = lambda name, other: statistics.median(
    b / a for a, b in zip(seconds[name], seconds[other])
  )
  return {
    'length': length,
    'rows': rows,
    'seconds': {name: round(statistics.median(values), 5) for name, values in seconds.items()},
    'cpu_seconds': {
      name: round(statistics.median(values), 5) for name, values in cpu_seconds.items()
    },
    'torch_masked_over_ours': {name: round(ratio(name, 'torch_masked'), 2) for name in ours},
    'torch_one_segment_over_ours': {
      name: round(ratio(name, 'torch_one_segment'), 2) for name in ours
    },
    'temporary_megabytes': {name: round(value / 1e6, 1) for name, value in memory.items()},
    'largest_difference_from_xla': differences,
    'floor_seconds': round(flops / speed, 5),
  }


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--lengths', default='2048,4096,8192')
  parser.add_argument(
    '--tokens', type=int, default=8192, help='of the batch; at least one row is taken'
  )
  parser.add_argument('--heads', type=int, default=8)
  parser.add_argument('--size', type=int, default=64, help='of a head')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--threads', type=int, default=2, help='on a CPU')
  parser.add_argument(
    '--dtype', default='float32' if jax.default_backend() == 'cpu' else 'bfloat16'
  )
  parser.add_argument(
    '--skip_xla', action='store_true', help='leave the reference out: its logits may not fit'
  )
  args = parser.parse_args()
  import torch

  if jax.default_backend() == 'cpu':
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    torch.set_num_threads(args.threads)
  speed, results = product_speed(args.dtype), []
  for length in map(int, args.lengths.split(',')):
    results.append(measure(length, args, speed))
    print(results[-1], file=sys.stderr, flush=True)
  device = jax.devices()[0].device_kind
  print(
    json.dumps(
      {'device': device, 'dtype': args.dtype, 'product_flops_per_second': speed, 'lengths': results}
    )
  )
  return 0


if __name__ == '__main__':
  sys.exit(main())
