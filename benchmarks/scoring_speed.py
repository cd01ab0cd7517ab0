"""Log-likelihood of four short options behind long prefixes: shared prefixes against every sequence
whole, packed.

    python benchmarks/scoring_speed.py [--rounds 3] [--questions 64]

The Llama of 58 million parameters of `decode_speed.py`, prefixes of 150 to 255 tokens (XQuAD's
contexts), options of 2 to 8. Rounds alternate. Prints one JSON object: seconds of each, their
ratio, the largest relative difference of the losses.
"""

import argparse
import json
import os
import statistics
import sys
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import numpy as np

from crossin_jax.decoding.scoring import continuation_losses, sequence_losses
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import Decoder, DecoderConfig
from crossin_jax.training import state as train_state

IDS, BOS, OPTIONS = 32_000, 1, 4


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--questions', type=int, default=64)
  args = parser.parse_args()
  rng = np.random.default_rng(0)
  prefixes = [rng.integers(3, IDS, rng.integers(150, 256)).tolist() for _ in range(args.questions)]
  options = [
    [rng.integers(3, IDS, rng.integers(2, 9)).tolist() for _ in range(OPTIONS)] for _ in prefixes
  ]
  model = Decoder(
    DecoderConfig(
      vocab_size=IDS, embed_dim=512, num_layers=8, num_heads=8, num_kv_heads=8, mlp_dim=1376
    )
  )
  partition = Partitioner()
  seconds, losses = {True: [], False: []}, {}
  with partition.activate():
    shapes = train_state.parameter_shapes(model, partition)
    fan_in = lambda leaf: leaf.shape[-2] if leaf.ndim > 1 else 1
    draw = lambda leaf: rng.standard_normal(leaf.shape, dtype=np.float32) / np.sqrt(fan_in(leaf))
    params = jax.tree.map(lambda leaf: jax.device_put(draw(leaf), leaf.sharding), shapes)
    settings = {'bos_id': BOS, 'length': 512, 'rows': 8}
    sequences = [
      (prefix + option, [0.0] * len(prefix) + [1.0] * len(option))
      for prefix, own in zip(prefixes, options)
      for option in own
    ]
    shared_prefixes = lambda: np.concatenate(
      continuation_losses(model, params, partition, prefixes, options, **settings)
    )
    whole = lambda: sequence_losses(model, params, partition, sequences, **settings)
    for round_ in range(args.rounds + 1):
      for shared in (True, False):
        started = time.perf_counter()
        losses[shared] = (shared_prefixes if shared else whole)()
        if round_:  # the first compiles
          seconds[shared].append(time.perf_counter() - started)
        print(
          f'round {round_}, shared {shared}: {time.perf_counter() - started:.2f} s', file=sys.stderr
        )
  ratios = [whole / shared for shared, whole in zip(seconds[True], seconds[False])]
  difference = np.abs(losses[True] - losses[False]) / np.abs(losses[False])
  found = {
    'sequences': len(difference),
    'seconds': {
      'shared': round(statistics.median(seconds[True]), 2),
      'whole': round(statistics.median(seconds[False]), 2),
    },
    'speed_of_shared_over_whole': round(statistics.median(ratios), 2),
    'largest_relative_difference': float(difference.max()),
  }
  print(json.dumps(found))
  return 0


if __name__ == '__main__':
  sys.exit(main())
