r"""What XLA expects a training step on TPUs to take, compiled here, beside other programs.

    python benchmarks/tpu_step.py [--topologies v5e:4x4,v5p:2x2x4,v6e:4x4] [--tuning full,lora] \
      [--layers 4] [--save DIR] [--output rows.jsonl]
    python benchmarks/tpu_step.py --topologies v5e:4x4 --text maxtext.hlo

Llama-3-8B cut to 4 layers (`--layers 32`: the full model): one row of 4,096 tokens a chip, fsdp
over all chips, AdamW in f32, arithmetic in bf16, full remat; `lora` is rank 64 on a frozen bf16
base. Each program gives a JSON line on stdout and, at the end, a row of a Markdown table on
stderr. With `--text` nothing is compiled: the file is the text of a compiled program, such as
`tpu_step_maxtext.py` saves, and is read by the same rules. Further flags are gin's, for example
`--gin.cross_entropy.chunk=None`; `--compiler_options NAME=VALUE,...` are XLA's, and by default
those that `crossin train` sets.

The times are the compiler's estimates, not measurements: its cycles of each fusion, added up over
loops, and the time of collectives that no other work hides. Pallas kernels carry no estimate and
are taken to run at half of peak. Nothing runs on a TPU; libtpu is needed (extra `tpu`).
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import sys
import time

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')

import jax
import numpy as np

from crossin_jax import config
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.plan import command as plan_command
from crossin_jax.plan import expected, work
from crossin_jax.plan import flags as plan_flags
from crossin_jax.plan import step as plan_step
from crossin_jax.plan import topology as plan_topology
from crossin_jax.training import compiled

LENGTH = 4096
LORA = ['--gin.DecoderConfig.lora=@LoraConfig()', '--gin.LoraConfig.rank=64']
# What a comparison with MaxText has to say.
NOT_EQUAL = """\
Equal on both sides: shapes, rows, one row of 4,096 tokens a chip, fsdp over all chips, f32
parameters and AdamW moments, bf16 arithmetic, full remat, gradients clipped by the global norm, a
Pallas kernel for causal attention with segment ids.
Not equal:
- jax and libtpu: each side has the versions of its own environment (in the rows).
- compiler options: each program has the ones it is compiled with by default; the rows say which.
- the loss: ours computes logits in chunks of the vocabulary and keeps exp(logit - maximum) in
  bf16; MaxText keeps all logits in bf16 (num_vocab_tiling=1).
- weight decay: ours does not decay scales of norms; MaxText decays everything.
- metrics: ours sums the loss by task and checks for values that are not finite; MaxText reports
  norms of gradients and parameters.
- attention kernels carry no estimate: half of peak is assumed for both, whatever their blocks."""
COLUMNS = (
  'program', 'chips', 'tuning', 'layers', 'expected ms', 'fusions ms',
  'products at peak ms (TFLOP)', 'not hidden ms', 'HBM GB', 'arguments + temporaries GB',
  'compiled in s',
)  # fmt: skip


def setting_of(layers: int, tuning: str, topology, flags: list[str]) -> plan_step.Setting:
  """The training step as `crossin plan` reads it from gin."""
  arguments = [
    '--topology=v5e:2x2',
    '--gin_file=gin_configs/models/llama3_8b.gin',
    '--gin_file=gin_configs/runs/defaults.gin',
    f'--gin.LENGTH={LENGTH}',
    f'--gin.BATCH_SIZE={len(topology.devices)}',
    f'--gin.DecoderConfig.num_layers={layers}',
    *(LORA if tuning == 'lora' else []),
    *flags,
  ]
  plan_command.parse_gin(plan_flags.parser().parse_args(config.rewrite(arguments)))
  return plan_command.plan_settings(**config.resolve(plan_command.shared_settings()))[0]


def compile_step(setting: plan_step.Setting, topology, options: dict[str, str]):
  """(text, facts, mesh) of our step on all chips as fsdp."""
  partition = Partitioner(mesh_shape=(1, len(topology.devices), 1), devices=topology.devices)
  started = time.monotonic()
  lowered = plan_step.lowered_step(setting, partition)
  with partition.activate(), plan_step.announced(f'compiling for {topology}'):
    program = compiled.in_thread(lambda: lowered.compile(compiler_options=options or None))
  seconds = time.monotonic() - started
  memory = program.memory_analysis()
  facts = {
    'compile_seconds': round(seconds, 1),
    'argument_bytes': memory.argument_size_in_bytes,
    'temporary_bytes': memory.temp_size_in_bytes,
    'versions': {name: importlib.metadata.version(name) for name in ('jax', 'libtpu')},
    'compiler_options': options,
  }
  return program.as_text(), facts, partition.mesh


def row_of(name: str, text: str, facts: dict, topology, mesh, args) -> dict:
  """All figures of one program."""
  links = args.link_gbps and args.link_gbps * 1e9
  found = expected.read(text, topology, mesh.devices, mesh.axis_names, links)
  return {
    'program': name,
    'date': datetime.date.today().isoformat(),
    'topology': topology.name,
    'kernel_share_of_peak': work.KERNEL_SHARE,
    'link_bytes_per_second': links,
    **facts,
    **found.as_json(),
  }


def markdown(row: dict) -> str:
  """The row of a table."""
  milliseconds = lambda seconds: f'{1e3 * seconds:,.1f}'
  exposed = [
    f'{operation} {milliseconds(seconds)}'
    for operation, seconds in row['exposed_seconds'].items()
    if seconds >= 5e-5
  ]
  products = row['flops_by_kind'][work.PRODUCTS] / 1e12
  memory = [row.get('argument_bytes'), row.get('temporary_bytes')]
  cells = [
    row['program'],
    row['topology'],
    row.get('tuning', ''),
    row.get('layers', ''),
    milliseconds(row['seconds']),
    milliseconds(row['busy_seconds']),
    f'{milliseconds(row["products_seconds_at_peak"])} ({products:,.1f})',
    ', '.join(exposed) or '0',
    f'{row["hbm_bytes"] / 1e9:,.1f}',
    '' if None in memory else f'{sum(memory) / 1e9:,.2f}',
    row.get('compile_seconds', ''),
  ]
  return f'| {" | ".join(map(str, cells))} |'


def rows(args, flags: list[str]):
  """Yields a row for each program."""
  for name in args.topologies.split(','):
    topology = plan_topology.parse(name)
    if args.text:
      with open(args.text, encoding='utf-8') as file:
        text = file.read()
      facts = {}
      if os.path.exists(args.text + '.json'):
        with open(args.text + '.json', encoding='utf-8') as file:
          facts = json.load(file)
      mesh = jax.sharding.Mesh(np.array(topology.devices, object), ('chips',))
      yield row_of(args.text, text, facts, topology, mesh, args)
      continue
    for tuning in args.tuning.split(','):
      setting = setting_of(args.layers, tuning, topology, flags)
      text, facts, mesh = compile_step(setting, topology, options_of(args, topology))
      facts |= {'tuning': tuning, 'layers': args.layers, 'length': setting.length, 'flags': flags}
      if args.save:
        path = os.path.join(args.save, f'{name.replace(":", "_")}_{tuning}_{args.layers}.hlo')
        save(path, text, facts)
      yield row_of('crossin', text, facts, topology, mesh, args)


def options_of(args, topology) -> dict[str, str]:
  """XLA's options of --compiler_options."""
  if args.compiler_options == 'auto':
    return compiled.compiler_options(topology.devices[0])
  return dict(pair.split('=', 1) for pair in args.compiler_options.split(',') if pair)


def save(path: str, text: str, facts: dict) -> None:
  """Writes a program and what is known about it, for `--text`."""
  os.makedirs(os.path.dirname(path), exist_ok=True)
  for name, content in ((path, text), (path + '.json', json.dumps(facts))):
    with open(name, 'w', encoding='utf-8') as file:
      file.write(content)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--topologies', default='v5e:4x4,v5p:2x2x4,v6e:4x4')
  parser.add_argument('--tuning', default='full,lora')
  parser.add_argument('--layers', type=int, default=4)
  parser.add_argument('--text', help='a saved program to read instead of compiling')
  parser.add_argument('--save', help='a directory for the texts of what is compiled')
  parser.add_argument('--output', help='a JSONL file to which rows are added')
  parser.add_argument(
    '--compiler_options',
    default='auto',
    help="XLA's: NAME=VALUE,..., '' for its own, or 'auto' for those that `train` sets",
  )
  parser.add_argument(
    '--link_gbps',
    type=float,
    help='GB/s that a chip sends in a collective; by default what the links between its members '
    'give, which on a slice without wrap-around is less than all links of a chip',
  )
  args, flags = parser.parse_known_args()
  if unknown := [flag for flag in flags if not flag.startswith('--gin')]:
    parser.error(f'unknown: {" ".join(unknown)}')
  table = []
  for row in rows(args, flags):
    line = json.dumps(row)
    print(line, flush=True)
    table.append(markdown(row))
    if args.output:
      with open(args.output, 'a', encoding='utf-8') as file:
        file.write(line + '\n')
  print(f'| {" | ".join(COLUMNS)} |\n|{"---|" * len(COLUMNS)}', file=sys.stderr)
  print('\n'.join([*table, '', NOT_EQUAL]), file=sys.stderr)


if __name__ == '__main__':
  main()
