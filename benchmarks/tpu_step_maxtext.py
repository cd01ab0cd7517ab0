r"""Saves the compiled training step of MaxText for `benchmarks/tpu_step.py --text`.

    python3.12 -m venv maxtext && maxtext/bin/pip install 'maxtext[tpu]==0.2.5'
    maxtext/bin/python benchmarks/tpu_step_maxtext.py --topology v5e:4x4 --output maxtext.hlo
    python benchmarks/tpu_step.py --topologies v5e:4x4 --text maxtext.hlo

It runs in an environment of its own, with MaxText and the JAX that MaxText needs (Python 3.12 or
later), and imports nothing of this project. MaxText's own command for ahead-of-time compilation
builds the step; only the compiled program is kept. Settings are MaxText's defaults, except for the
shape: Llama-3-8B cut to 4 layers, one row of 4,096 tokens a chip. Further arguments are MaxText's,
for example `num_vocab_tiling=8` or `compile_xla_flags="--xla_tpu_scoped_vmem_limit_kib=65536"`.

Writes the text of the program to --output, and memory, seconds and versions to the same name with
.json.
"""

import argparse
import importlib.metadata
import json
import os
import time

os.environ['JAX_PLATFORMS'] = 'cpu'
for variable, value in {
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
}.items():
  os.environ.setdefault(variable, value)

VERSION = '0.2.5'
# MaxText names slices by chips, and v5p by cores.
SLICES = {'v5e:4x4': 'v5e-16', 'v5p:2x2x4': 'v5p-32', 'v6e:4x4': 'v6e-16', 'v5e:2x2': 'v5e-4'}


def arguments(topology: str, layers: int, more: list[str]) -> list[str]:
  """The command line of MaxText's train_compile."""
  import maxtext

  return [
    'train_compile',
    os.path.join(os.path.dirname(maxtext.__file__), 'configs', 'base.yml'),
    f'compile_topology={SLICES[topology]}',
    'compile_topology_num_slices=1',
    'model_name=llama3-8b',
    'override_model_config=true',
    f'base_num_decoder_layers={layers}',
    'per_device_batch_size=1',
    'max_target_length=4096',
    'dataset_type=synthetic',
    'enable_checkpointing=false',
    'run_name=tpu_step',
    *more,
  ]


def compile_step(argv: list[str]):
  """The compiled step, and the seconds that it took."""
  from maxtext.trainers.pre_train import train_compile

  kept = {}
  jit_and_compile = train_compile.jit_and_compile

  def keep(*args, **named):
    started = time.monotonic()
    kept['program'] = jit_and_compile(*args, **named)
    kept['seconds'] = time.monotonic() - started
    return kept['program']

  train_compile.jit_and_compile = keep  # main() keeps its program to itself
  train_compile.main(argv)
  return kept['program'], kept['seconds']


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--topology', required=True, choices=SLICES)
  parser.add_argument('--layers', type=int, default=4)
  parser.add_argument('--output', required=True, help='file for the text of the program')
  args, more = parser.parse_known_args()
  versions = {name: importlib.metadata.version(name) for name in ('maxtext', 'jax', 'libtpu')}
  if versions['maxtext'] != VERSION:
    parser.error(f'maxtext {versions["maxtext"]} is installed; the comparison is with {VERSION}')
  program, seconds = compile_step(arguments(args.topology, args.layers, more))
  memory = program.memory_analysis()
  facts = {
    'tuning': 'full',
    'layers': args.layers,
    'length': 4096,
    'compile_seconds': round(seconds, 1),
    'argument_bytes': memory.argument_size_in_bytes,
    'temporary_bytes': memory.temp_size_in_bytes,
    'versions': versions,
    'flags': more,
  }
  with open(args.output, 'w', encoding='utf-8') as file:
    file.write(program.as_text())
  with open(args.output + '.json', 'w', encoding='utf-8') as file:
    json.dump(facts, file)


if __name__ == '__main__':
  main()
