r"""The smallest TPU slices for known models, and the least time of a step from 16 chips to two
v5p-2048: tables for RESULTS.md.

    python benchmarks/plan_table.py smallest --models llama3_8b,gemma_2b,qwen3_0.6b \
      --kinds v5e,v5p --tuning full,lora --output smallest.jsonl
    python benchmarks/plan_table.py times --models llama3_8b --kinds v5e,v5p

`smallest` compiles the real step on ever larger slices until one fits; a row of 4,096 tokens for
each chip, at least 16 rows. `times` is by formula. No accelerator is needed for either. Compiling
takes minutes each: with --output, what the file has already is not done again.
"""

import argparse
import itertools
import json
import os
import time

os.environ['JAX_PLATFORMS'] = 'cpu'

from crossin_jax import config
from crossin_jax.devices.chips import GIB
from crossin_jax.plan import command as plan_command
from crossin_jax.plan import flags as plan_flags
from crossin_jax.plan import search as plan_search
from crossin_jax.plan import topology as plan_topology
from crossin_jax.storage.json_rows import JsonRows

LENGTH, ROWS = 4096, 16
LORA = ['--gin.DecoderConfig.lora=@LoraConfig()', '--gin.LoraConfig.rank=64']
SLICES = {
  'v5e': [('v5e:4x4', 1), ('v5e:4x8', 1), ('v5e:8x8', 1), ('v5e:8x16', 1), ('v5e:16x16', 1)],
  'v6e': [('v6e:4x4', 1), ('v6e:4x8', 1), ('v6e:8x8', 1), ('v6e:8x16', 1), ('v6e:16x16', 1)],
  'v5p': [
    ('v5p:2x2x4', 1),
    ('v5p:2x4x4', 1),
    ('v5p:4x4x4', 1),
    ('v5p:4x4x8', 1),
    ('v5p:4x8x8', 1),
    ('v5p-2048', 2),
  ],
}


def setting_of(model: str, tuning: str, rows: int):
  """(setting, partitioner) of a model file; as `crossin plan` reads it."""
  flags = [
    f'--gin_file=gin_configs/models/{model}.gin',
    '--gin_file=gin_configs/runs/defaults.gin',
    f'--gin.LENGTH={LENGTH}',
    f'--gin.BATCH_SIZE={rows}',
  ]
  arguments = ['--topology=v5e:2x2', *flags, *(LORA if tuning == 'lora' else [])]
  plan_command.parse_gin(plan_flags.parser().parse_args(config.rewrite(arguments)))
  return plan_command.plan_settings(**config.resolve(plan_command.shared_settings()))


def smallest(model: str, kind: str, tuning: str, by_formula: bool = False) -> dict:
  """The smallest slice on which the step fits, its plan, and the seconds that this took."""
  started = time.monotonic()
  setting, partitioner = setting_of(model, tuning, ROWS)
  planner = plan_search.Planner(partitioner)
  names = [
    name
    for name in plan_topology.all_smaller_first(kind)
    if plan_topology.parse(name).chips <= 2 * ROWS
  ]
  topologies = [plan_topology.parse(name) for name in names]
  if by_formula:
    found = next(
      (trials[0] for t in topologies if (trials := plan_search.ranked(planner, setting, t))), None
    )
  else:
    found = plan_search.smallest(planner, setting, topologies)
  if found is None:
    return {'model': model, 'tuning': tuning, 'kind': kind, 'fits': False}
  return {
    'model': model,
    'tuning': tuning,
    'kind': kind,
    'topology': found.topology.name,
    'mesh': found.mesh,
    'microbatches': found.setting.microbatches,
    'remat': found.setting.model.config.remat,
    'peak_gib': round(found.peak / GIB, 2),
    'usable_gib': found.topology.usable / GIB,
    'step_seconds_bound': round(found.bound.seconds, 3),
    'bound_by': found.bound.binds,
    'mfu_bound': round(found.utilisation, 3),
    'compile_seconds': round(found.compiled.seconds) if found.compiled else None,
    'seconds': round(time.monotonic() - started),
  }


def times(model: str, kind: str, tuning: str) -> list[dict]:
  """The least time of a step on larger and larger slices, by formula."""
  rows = []
  for name, slices in SLICES[kind]:
    topology = plan_topology.parse(name, slices)
    setting, partitioner = setting_of(model, tuning, max(ROWS, len(topology.devices)))
    trials = plan_search.ranked(plan_search.Planner(partitioner), setting, topology)
    if not trials:
      continue
    first = trials[0]
    rows.append({
        'model': model,
        'tuning': tuning,
        'kind': kind,
        'topology': str(topology),
        'chips': topology.chips,
        'tokens': first.tokens,
        'mesh': first.mesh,
        'microbatches': first.setting.microbatches,
        'remat': first.setting.model.config.remat,
        'step_seconds_bound': round(first.bound.seconds, 3),
        'bound_by': first.bound.binds,
        'seconds': {part: round(value, 3) for part, value in first.bound.parts.items()},
        'mfu_bound': round(first.utilisation, 3),
    })  # fmt: skip
  return rows


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('what', choices=('smallest', 'times'))
  parser.add_argument('--models', default='llama3_8b,gemma_2b,qwen3_0.6b')
  parser.add_argument('--kinds', default='v5e,v5p')
  parser.add_argument('--tuning', default='full,lora')
  parser.add_argument('--by_formula', action='store_true', help='smallest: compile nothing')
  parser.add_argument('--output', help='a JSONL file to go on with')
  args = parser.parse_args()
  done = set()
  if args.output and os.path.exists(args.output):
    rows = (row for _, row in JsonRows(args.output).lines())
    done = {(row['model'], row['tuning'], row['kind']) for row in rows}
  for model, tuning, kind in itertools.product(
    args.models.split(','), args.tuning.split(','), args.kinds.split(',')
  ):
    if (model, tuning, kind) in done:
      continue
    rows = (
      [smallest(model, kind, tuning, args.by_formula)]
      if args.what == 'smallest'
      else times(model, kind, tuning)
    )
    text = ''.join(f'{json.dumps(row)}\n' for row in rows)
    print(text, end='', flush=True)
    if args.output:
      with open(args.output, 'a', encoding='utf-8') as f:
        f.write(text)


if __name__ == '__main__':
  main()
