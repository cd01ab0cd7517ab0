"""Vocabulary and questions of the worlds that the sweeps of this folder read:
OUT/world.SEED/{world.model, questions.*.jsonl, facts.tsv}.

python benchmarks/evidence/worlds.py --gin_file=benchmarks/evidence/world.gin --seeds 0,1,2,3,4
--output_dir runs/evidence
"""

import argparse
import dataclasses
import json
import os
import sys

from crossin_jax import config
from crossin_jax.storage.files import read_json
from crossin_jax.world import sources as world_sources
from crossin_jax.world.world import World

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
    folder, world = os.path.join(args.output_dir, f'world.{seed}'), World(seed=seed)
    made, now = (
      os.path.join(folder, 'world.json'),
      json.loads(json.dumps(dataclasses.asdict(world))),
    )
    if os.path.exists(made):
      if (before := read_json(made, 'delete it')) != now:
        changed = ', '.join(
          f'{key} was {before.get(key)}, now {now[key]}'
          for key in now
          if before.get(key) != now[key]
        )
        parser.error(f'{folder} is another world: {changed}. Give another --output_dir')
    else:
      world_sources.train_vocabulary(world, PIECES, os.path.join(folder, 'world.model'))
      world_sources.write_questions(world, folder)
      print(
        f'{folder}: {len(world.questions)} questions in {", ".join(world.languages)}',
        file=sys.stderr,
      )
  return 0


if __name__ == '__main__':
  sys.exit(main(config.rewrite(sys.argv[1:])))
