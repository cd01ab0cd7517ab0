"""`crossin plan`: memory, least time and cost of a run on hardware that need not be present, and
settings that fit if the given ones do not.
"""

import argparse
import sys
from typing import Any

import gin

from crossin_jax import config
from crossin_jax.decoding.sampling import Sampling
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder_config import DecoderConfig
from crossin_jax.plan import flags
from crossin_jax.plan import report as plan_report
from crossin_jax.plan import search as plan_search
from crossin_jax.plan import step as plan_step
from crossin_jax.plan import topology as plan_topology
from crossin_jax.processes import interruption
from crossin_jax.training import optimizers
from crossin_jax.training.objectives import LIKELIHOOD
from crossin_jax.workflow import command_line

# Values that a run needs and a plan does not (HF_DIR only if something else names the model).
PLACEHOLDERS = {
  'MODEL_DIR': "'plan'", 'DATA_DIR': "'plan'", 'MIXTURE_OR_TASK_NAME': "'plan'",
  'TRAIN_STEPS': '1000000', 'HF_DIR': "'plan'",
}  # fmt: skip
SHARED = (
  'model', 'optimizer', 'objective', 'batch_size', 'length', 'microbatches', 'z_loss',
  'total_steps', 'partitioner',
)  # fmt: skip
MACROS = {name: name.upper() for name in ('model', 'batch_size', 'length', 'optimizer')}


@gin.configurable
def plan_settings(
  model=gin.REQUIRED,
  optimizer=optimizers.adamw,
  batch_size: int = 16,
  length: int = 2048,
  microbatches: int = 1,
  z_loss: float = 0.0,
  objective: Any = None,
  total_steps: int | None = None,
  partitioner=Partitioner,
) -> tuple[plan_step.Setting, type]:
  """The settings of the planned run; the default of each is the value of `train`.

  Args:
    model, optimizer, objective, batch_size, length, microbatches: see `train`.
    z_loss, total_steps, partitioner: see `train`.

  Returns:
    (setting, partitioner).

  Raises:
    ValueError: a model without DecoderConfig.
  """
  if not isinstance(getattr(model, 'config', None), DecoderConfig):
    raise ValueError(
      f'crossin plan needs a model with a DecoderConfig; {type(model).__name__} has none'
    )
  if batch_size % microbatches:
    raise ValueError(f'batch_size = {batch_size} is no multiple of microbatches = {microbatches}')
  optimizer = optimizer(total_steps=total_steps or 1_000_000)  # the schedule changes no shape
  setting = plan_step.Setting(
    model, optimizer, batch_size, length, microbatches, z_loss, objective or LIKELIHOOD
  )
  return setting, partitioner


def parse_gin(args: argparse.Namespace) -> None:
  """Parses gin flags, with placeholders for what only a run needs.

  Raises:
    ConfigError: as `config.parse`, and without a model.
  """
  directory_missing = config.parse_with(args, PLACEHOLDERS, tuple(MACROS.values())).get('HF_DIR')
  # A later file of gin_configs/models may name another model, which needs no directory.
  if directory_missing and 'from_huggingface' in str(config.bound('Decoder.config')):
    raise directory_missing
  if 'model' not in shared_settings() and config.bound('plan_settings.model') is None:
    raise config.ConfigError('no model: give a file of gin_configs/models or gin_configs/runs')


def shared_settings() -> dict:
  """Settings of `train` that `plan_settings` does not bind, with unresolved references."""
  settings = {}
  for name in SHARED:
    if config.bound(f'plan_settings.{name}') is not None:
      continue
    if (value := config.bound(f'train.{name}')) is not None:
      settings[name] = value
    elif name in MACROS and (value := config.macro(MACROS[name])) is not None:
      settings[name] = value
  return settings


def plan(args: argparse.Namespace, topologies: list[plan_topology.Topology]) -> dict:
  """Makes and prints the plan; returns it as JSON."""
  setting, partitioner = plan_settings(**config.resolve(shared_settings()))
  planner = plan_search.Planner(partitioner, args.effort)
  price = args.price_per_chip_hour
  if args.search or args.smallest:
    if args.smallest:
      trial = plan_search.smallest(planner, setting, sorted(topologies, key=lambda t: t.chips))
      rows = [('smallest', trial, trial.topology if trial else topologies[-1])]
    else:
      rows = plan_search.search(planner, setting, topologies, args.proofs)
    print(plan_report.search_text(rows, price))
    first = rows[0][1]
    result = plan_report.as_json(first, price) if first else {'fits': False}
    result['ranking'] = []
    for name, trial, topology in rows:
      nothing = {'topology': topology.name, 'fits': False}
      row = plan_report.as_json(trial, price) if trial else nothing
      result['ranking'].append({'rank': name, **row})
    return result
  asked = planner.asked(setting, topologies[0])
  if not asked.topology.compiles:
    print(
      f'{asked.topology}: XLA compiles for GPUs only on a GPU; all values are by formula',
      file=sys.stderr,
    )
  asked = planner.prove(asked)
  print(plan_report.as_text(asked, price))
  result = plan_report.as_json(asked, price)
  if not asked.fits:
    trials = plan_search.nearest(planner, asked, args.proofs) if args.proofs else []
    if args.proofs:
      print(plan_report.nearest_text(asked, trials))
    result['what_fits'] = [plan_report.as_json(trial, price) for trial in trials]
  if args.decode:
    result['decode'] = _decode(args, asked)
  return result


def _decode(args: argparse.Namespace, asked: plan_search.Trial) -> dict | None:
  if not asked.topology.compiles:
    print('decoding  plans are for TPUs only', file=sys.stderr)
    return None
  ways, rows = asked.partition.batch_ways, asked.partition.batch_ways
  while rows < args.decode_rows:  # as `Generator` rounds
    rows *= 2
  if rows != args.decode_rows:
    print(
      f'decoding  {rows} rows: a power of two times the {ways} parts of the mesh', file=sys.stderr
    )
  decoding = plan_step.decode_step(
    asked.setting,
    asked.partition,
    asked.topology,
    rows=rows,
    capacity=args.decode_tokens,
    sampling=Sampling(),
    effort=args.effort,
  )
  print(plan_report.decode_text(asked, decoding))
  return plan_report.decode_json(asked, decoding)


def main(argv: list[str]) -> int:
  """The command line of `crossin plan`."""
  args = flags.parser().parse_args(argv)
  names = [name for name in args.topology.split(',') if name.strip()]
  if len(names) != 1 and not (args.search or args.smallest):
    raise config.ConfigError(f'--topology {args.topology}: give one, or --search among several')
  if not -1 <= args.effort <= 1:
    raise config.ConfigError(f'--effort {args.effort:g} is not between -1 and 1')
  plan_topology.without_accelerator()
  try:
    topologies = [plan_topology.parse(name, args.num_slices) for name in names]
  except ValueError as error:
    raise config.ConfigError(str(error)) from None
  parse_gin(args)
  with interruption.StopSignal(at_once=True):
    result = plan(args, topologies)
  return command_line.finish(args, result, 0 if result['fits'] else 1)
