"""A plan as text and as one JSON object."""

import dataclasses
import math

from crossin_jax.devices.chips import GIB
from crossin_jax.plan import costs
from crossin_jax.plan.collectives import BETWEEN_SLICES
from crossin_jax.plan.expected import Expected
from crossin_jax.plan.search import Trial
from crossin_jax.plan.step import Decoding
from crossin_jax.plan.work import PRODUCTS

SHOWN = 0.001  # share of a step from which a collective that is not hidden is listed


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of one chip, which add up to the peak.

  Attributes:
    parameters, optimizer: exact, from shardings.
    gradients: with their sums over microbatches; at most XLA's temporaries.
    activations: the other temporaries: residuals and scratch.
    other: batch, padding of XLA, the program.
  """

  parameters: float
  optimizer: float
  gradients: float
  activations: float
  other: float


def memory_of(trial: Trial) -> Memory:
  """The parts of the peak."""
  state, figures = trial.state, trial.figures
  if trial.compiled is None:
    activations = trial.peak - state.parameters - state.optimizer - figures.gradients - state.batch
    return Memory(state.parameters, state.optimizer, figures.gradients, activations, state.batch)
  temporaries = trial.compiled.temporaries
  gradients = min(figures.gradients, temporaries)
  other = trial.peak - state.parameters - state.optimizer - temporaries
  return Memory(state.parameters, state.optimizer, gradients, temporaries - gradients, other)


def as_json(trial: Trial, price: float | None = None) -> dict:
  """The JSON of a plan; bytes are of the complete model unless the name says per chip."""
  bound, state, topology = trial.bound, trial.state, trial.topology
  config = trial.setting.model.config
  return {
    'topology': topology.name,
    'num_slices': topology.slices,
    'chips': topology.chips,
    'device_kind': topology.devices[0].device_kind,
    'mesh': dict(trial.partition.mesh.shape),
    'mesh_why': trial.why or None,
    'batch_size': trial.setting.batch_size,
    'length': trial.setting.length,
    'microbatches': trial.setting.microbatches,
    'remat': config.remat,
    'lora_rank': config.lora.rank if config.lora else None,
    'compiled': trial.compiled is not None,
    'fits': trial.fits,
    'hbm_bytes_per_chip': round(topology.usable),
    'peak_bytes_per_chip': round(trial.peak),
    'memory_per_chip': {
      name: round(size) for name, size in dataclasses.asdict(memory_of(trial)).items()
    },
    'parameter_bytes': round(state.all_parameters),
    'optimizer_bytes': round(state.all_optimizer),
    'flops_per_step': trial.figures.model_flops,
    'executed_flops_per_step': trial.figures.executed_flops,
    'hbm_traffic_bytes_per_chip': round(trial.figures.memory_bytes),
    'sent_bytes_per_chip': {axis: round(size) for axis, size in trial.sent.items()},
    'sent_bytes_per_chip_by_formula': {
      axis: round(size) for axis, size in trial.figures.sent.items()
    },
    'step_seconds_bound': bound.seconds,
    'bound_by': bound.binds,
    'seconds': bound.parts,
    'mfu_bound': trial.utilisation,
    'step_seconds_expected': trial.expected.seconds if trial.expected else None,
    'expected': trial.expected.as_json() if trial.expected else None,
    'tokens_per_step': trial.tokens,
    'tokens_per_second_bound': trial.tokens / bound.seconds,
    'dollars_per_million_tokens': None if price is None else _dollars(trial, price),
    'compile_seconds': round(trial.compiled.seconds, 1) if trial.compiled else None,
    'refused': (trial.compiled.refused or None) if trial.compiled else None,
    'changes': list(trial.changes),
  }


def _dollars(trial: Trial, price: float) -> float:
  return costs.dollars_per_million_tokens(
    price, trial.topology.chips, trial.bound.seconds, trial.tokens
  )


def as_text(trial: Trial, price: float | None = None) -> str:
  """A human-readable page."""
  topology, setting, bound = trial.topology, trial.setting, trial.bound
  config, kind = setting.model.config, topology.kind
  mesh = ', '.join(f'{axis} {size}' for axis, size in trial.partition.mesh.shape.items())
  tuned = (
    f'LoRA rank {config.lora.rank} on {config.lora.base_dtype}' if config.lora else 'all parameters'
  )
  parts = f'{setting.microbatches} microbatch{"es" if setting.microbatches > 1 else ""}'
  lines = [
    f'{topology}: {topology.counted} ({topology.devices[0].device_kind}), '
    f'{_gib(topology.usable)} each for programs',
    f'mesh      {trial.why.removeprefix("mesh ") or mesh}',
    f'step      {setting.batch_size} rows of {setting.length:,} tokens, {parts}, remat '
    f'{config.remat}, {config.dtype}, {tuned}',
    f'memory    of a chip, {"as compiled" if trial.compiled else "by formula"}',
  ]
  names = {
    'parameters': 'parameters',
    'optimizer': 'optimizer',
    'gradients': 'gradients',
    'activations': 'activations, scratch',
    'other': 'batch, program, padding',
  }
  for name, size in dataclasses.asdict(memory_of(trial)).items():
    lines.append(f'          {names[name]:<24}{_gib(size):>11}')
  verdict = 'fits' if trial.fits else f'DOES NOT FIT, {_gib(trial.peak - topology.usable)} too much'
  lines.append(
    f'          {"total":<24}{_gib(trial.peak):>11} of {_gib(topology.usable)}: {verdict}'
  )
  if trial.compiled and trial.compiled.refused:
    lines.append(f'          XLA: {trial.compiled.refused}')
  factor = trial.figures.executed_flops / trial.figures.model_flops
  lines += [
    f'time      at least {_seconds(bound.seconds)} a step: {bound.binds} binds; '
    f'{trial.tokens / bound.seconds:,.0f} tokens/s, '
    f'MFU at most {trial.utilisation:.0%}',
    *([f'          {expected_text(trial.expected)}'] if trial.expected else []),
    f'          compute   {_seconds(bound.compute)}: {trial.figures.model_flops / 1e12:,.1f} '
    f'TFLOP of the model, times {factor:.2f} for recomputation, at {kind.flops / 1e12:.0f} '
    'TFLOP/s a chip',
    f'          HBM       {_seconds(bound.memory)}: {trial.figures.memory_bytes / 1e9:,.1f} GB a '
    f'chip at {kind.bandwidth / 1e9:,.0f} GB/s (formula)',
  ]
  lines += _traffic(trial)
  if price is not None:
    lines.append(
      f'cost      at least ${_dollars(trial, price):,.4f} per million tokens at ${price:g} a chip '
      'and hour'
    )
  slower = f' (of bfloat16: the model computes in {config.dtype}, which is slower)'
  lines.append(
    f'assumed   arithmetic{"" if config.dtype == "bfloat16" else slower}, memory and each network '
    'at the full speed of their specifications, all at the same time'
  )
  if trial.compiled:
    lines.append(f'compiled  in {trial.compiled.seconds:.0f} s')
  return '\n'.join(lines)


def _traffic(trial: Trial) -> list[str]:
  """A line for each mesh axis with traffic."""
  lines, bound = [], trial.bound
  for axis in sorted({*trial.sent, *trial.figures.sent}):
    compiled, formula = trial.sent.get(axis, 0.0), trial.figures.sent.get(axis, 0.0)
    if max(compiled, formula) < 1e6:
      continue  # sums of losses and norms
    seconds = bound.network if axis == BETWEEN_SLICES else bound.links.get(axis, 0.0)
    sizes = f'{formula / 1e9:,.2f} GB a chip (formula)'
    if trial.expected:
      sizes = f'{compiled / 1e9:,.2f} GB a chip (formula: {formula / 1e9:,.2f})'
    lines.append(f'          {axis:<9} {_seconds(seconds)}: {sizes}')
  return lines


def expected_text(expected: Expected) -> str:
  """What XLA expects a step to take, in one line."""
  kinds = [
    f'{kind} {_seconds(seconds)}'
    + (f' ({_seconds(expected.products_at_peak)} at peak)' if kind == PRODUCTS else '')
    for kind, seconds in expected.seconds_by_kind.items()
    if seconds
  ]
  exposed = [
    f'{operation} {_seconds(seconds)}'
    for operation, seconds in expected.exposed.items()
    if seconds >= SHOWN * expected.seconds
  ]
  notes = ''
  if expected.replaced:
    notes += f'; {expected.replaced} absurd estimates replaced'
  if expected.guessed:
    notes += f'; iterations of {len(expected.guessed)} loops are guessed'
  return (
    f'XLA expects {_seconds(expected.seconds)} a step: {", ".join(kinds)}; not hidden: '
    f'{", ".join(exposed) or "nothing"}; {expected.hbm_bytes / 1e9:,.1f} GB to and from HBM{notes}'
  )


def nearest_text(asked: Trial, trials: list[Trial]) -> str:
  """The settings that fit, and their costs."""
  if not trials:
    return 'no similar setting fits; use a larger slice, shorter rows or a smaller model'
  lines = ['what fits:']
  for trial in trials:
    slower = trial.bound.seconds / asked.bound.seconds
    proven = f'compiled in {trial.compiled.seconds:.0f} s' if trial.compiled else 'by formula'
    expects = f'; XLA expects {_seconds(trial.expected.seconds)}' if trial.expected else ''
    lines.append(f'  {" ".join(trial.changes)}')
    lines.append(
      f'    {_gib(trial.peak)} of {_gib(trial.topology.usable)} ({proven}); a step takes at least '
      f'{_seconds(trial.bound.seconds)}, '
      f'{slower:.2f} times as long{expects}{_note(trial)}'
    )
  return '\n'.join(lines)


def _note(trial: Trial) -> str:
  if any('lora' in change for change in trial.changes):
    return '; adapters need a base model: set INITIAL_CHECKPOINT_PATH'
  return ''


def search_text(rows: list[tuple[str, Trial | None, object]], price: float | None) -> str:
  """The settings of a search, one entry each."""
  lines = []
  for name, trial, topology in rows:
    if trial is None:
      lines.append(f'{name:<13}{topology}: nothing fits')
      continue
    how = f'compiled in {trial.compiled.seconds:.0f} s' if trial.compiled else 'by formula'
    cost = f', ${_dollars(trial, price):,.4f} per million tokens' if price is not None else ''
    expects = f'XLA expects {_seconds(trial.expected.seconds)}, ' if trial.expected else ''
    lines.append(
      f'{name:<13}{topology} ({topology.counted}): {expects}at least '
      f'{_seconds(trial.bound.seconds)} a step ({trial.bound.binds}), MFU at most '
      f'{trial.utilisation:.0%}, {_gib(trial.peak)} of {_gib(topology.usable)}{cost}; '
      f'{how}\n{"":<13}{" ".join(trial.changes)}'
    )
  return '\n'.join(lines)


def decode_json(trial: Trial, decoding: Decoding) -> dict:
  """The JSON of the decode step."""
  seconds = _decode_seconds(trial, decoding)
  least = max(seconds.values())
  return {
    'rows': decoding.rows,
    'capacity': decoding.capacity,
    'fits': decoding.compiled.fits,
    'peak_bytes_per_chip': round(decoding.compiled.peak),
    'parameter_bytes_per_chip': round(decoding.parameters),
    'cache_bytes_per_chip': round(decoding.cache),
    'step_seconds_bound': least,
    'bound_by': max(seconds, key=seconds.get),
    'tokens_per_second_bound': decoding.rows / least,
    'compile_seconds': round(decoding.compiled.seconds, 1),
    'refused': decoding.compiled.refused or None,
  }


def decode_text(trial: Trial, decoding: Decoding) -> str:
  """The decode step, human-readable."""
  report = decode_json(trial, decoding)
  verdict = 'fits' if report['fits'] else 'DOES NOT FIT'
  return (
    f'decoding  {decoding.rows} rows of up to {decoding.capacity:,} tokens: '
    f'{_gib(decoding.compiled.peak)} a chip '
    f'(parameters {_gib(decoding.parameters)}, cache {_gib(decoding.cache)}): {verdict}; at least '
    f'{_seconds(report["step_seconds_bound"])} a token of every row ({report["bound_by"]} binds), '
    f'{report["tokens_per_second_bound"]:,.0f} tokens/s; '
    f'compiled in {decoding.compiled.seconds:.0f} s'
  )


def _decode_seconds(trial: Trial, decoding: Decoding) -> dict:
  rows = decoding.rows / math.prod(trial.mesh)
  # fsdp gathers parameters: each chip reads the complete matrices.
  parameters = decoding.parameters * trial.mesh[1]
  return costs.decode_seconds(
    trial.setting.model.config, trial.topology, parameters, decoding.cache, rows
  )


def _gib(size: float) -> str:
  return f'{size / GIB:,.2f} GiB' if size >= 0.1 * GIB else f'{size / (1 << 20):,.2f} MiB'


def _seconds(seconds: float) -> str:
  return f'{seconds:.3f} s' if seconds >= 0.1 else f'{seconds * 1e3:.3f} ms'
