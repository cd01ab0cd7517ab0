"""Vocabulary and questions of the worlds that the sweeps of this folder read: OUT/world.SEED/{world.model, questions.*.jsonl, facts.tsv}.

python benchmarks/evidence/worlds.py --gin_file=benchmarks/evidence/world.gin --seeds 0,1,2,3,4 --output_dir runs/evidence
"""

import argparse
import os
import sys

import gin

from crossin_jax import config
from seqio_tasks import world_sources
from seqio_tasks.world import World

PIECES = 1500  # of the vocabulary: world_1m.gin has room for 1,536


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--seeds', default='0,1,2,3,4', help='of the worlds (default: %(default)s)')
  parser.add_argument('--output_dir', required=True)
  config.add_flags(parser)
  args = parser.parse_args(argv)
  args.gin_bindings.append("VOCABULARY = ''")  # required, and made here
  config.parse(args)
  for seed in map(int, args.seeds.split(',')):
    with gin.unlock_config():
      gin.bind_parameter('World.seed', seed)
    folder, world = os.path.join(args.output_dir, f'world.{seed}'), World()
    if not os.path.exists(os.path.join(folder, 'world.json')):
      world_sources.train_vocabulary(world, PIECES, os.path.join(folder, 'world.model'))
      world_sources.write_questions(world, folder)
      print(f'{folder}: {len(world.questions)} questions in {", ".join(world.languages)}', file=sys.stderr)
  return 0


if __name__ == '__main__':
  sys.exit(main(config.rewrite(sys.argv[1:])))
