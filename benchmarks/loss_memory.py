"""Memory of loss and backward pass by the compiled program, whole logits against chunks of the
vocabulary; nothing is run.

    python benchmarks/loss_memory.py [--tokens 8192] [--words 131072] [--topologies
    cpu,v5e:2x2,v5p:2x2x1,v6e:2x2]

For this machine's CPU and for TPUs that are only described (they need libtpu), one device each: 512
wide in f32, 4,096 wide in bf16. Prints a line each on stderr and one JSON object. `temporary` is
what the program needs beside arguments and results, which are the same in both (hidden states,
head, their gradients).
"""

import argparse
import json
import os
import sys

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')

import jax
from jax.experimental import topologies

from crossin_jax.models.head import Head
from crossin_jax.training import chunked_loss, losses

ROWS = 4


def compiled(device, width: int, dtype: str, tokens: int, words: int, chunk: int | None):
  """Loss and gradients towards hidden states and head."""
  sharding = jax.sharding.SingleDeviceSharding(device)
  make = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
  shape = (ROWS, tokens // ROWS)

  def loss(x, kernel, targets, weights):
    head = Head(kernel, False, None, words)
    if chunk is not None:
      each, _ = chunked_loss.cross_entropy(x, head, targets, chunk=chunk)
    else:
      each, _ = losses.token_losses(head.logits(x), targets)
    return losses.weighted(weights, each).sum()

  arrays = (
    make((*shape, width), dtype),
    make((width, words), dtype),
    make(shape, 'int32'),
    make(shape, 'float32'),
  )
  return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arrays).compile()


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--tokens', type=int, default=8192)
  parser.add_argument('--words', type=int, default=1 << 17)
  parser.add_argument('--topologies', default='cpu,v5e:2x2,v5p:2x2x1,v6e:2x2')
  args = parser.parse_args()
  chunk = chunked_loss.auto_chunk(ROWS, args.tokens // ROWS, args.words) or args.words
  results = []
  for name in args.topologies.split(','):
    if name == 'cpu':
      device = jax.devices('cpu')[0]
    else:
      device = topologies.get_topology_desc(platform='tpu', topology_name=name).devices[0]
    for width, dtype in ((512, 'float32'), (4096, 'bfloat16')):
      figures = {}
      for kind, size in (('whole', None), ('chunks', chunk)):
        memory = compiled(device, width, dtype, args.tokens, args.words, size).memory_analysis()
        figures[kind] = {
          'temporary': memory.temp_size_in_bytes,
          'arguments_and_results': memory.argument_size_in_bytes + memory.output_size_in_bytes,
        }
      ratio = figures['whole']['temporary'] / figures['chunks']['temporary']
      results.append(
        {
          'device': name,
          'width': width,
          'dtype': dtype,
          **figures,
          'whole_over_chunks': round(ratio, 1),
        }
      )
      print(results[-1], file=sys.stderr, flush=True)
  print(
    json.dumps(
      {'tokens': args.tokens, 'words': args.words, 'words_of_a_chunk': chunk, 'figures': results}
    )
  )
  return 0


if __name__ == '__main__':
  sys.exit(main())
