"""`crossin xinstruction`: from raw text to an instruction set and a model tuned on it.

    filter, train-generator -> generate -> pairs
    seed -> train-generator, train-response.0 -> respond.0 -> train-rater.0
    pairs, train-rater.0 -> rate.0 -> keep.0 -> train-response.1 -> ... -> keep.N
    keep.N -> diversify -> export -> train, statistics

With an endpoint as generator there is no train-generator step; with one as rater there are no
train-response, respond and train-rater steps. docs/design/methods.md#b-x-instruction describes the
published steps, docs/design/methods.md#c-13 and the following the decisions of this project.
"""

from collections.abc import Callable
import dataclasses
import functools
import os
import sys

from crossin_jax import config
from crossin_jax.workflow import command_line, forwarding
from crossin_jax.workflow.forwarding import ForwardedSettings
from crossin_jax.workflow.steps import Step, StepError, Steps
from crossin_jax.xinstruction import flags
from crossin_jax.xinstruction.run import Run
from crossin_jax.xinstruction.settings import XInstruction
from crossin_jax.xinstruction.steps import candidates, export, seed
from crossin_jax.xinstruction.steps import rounds as rounds_lib

# Every step that trains has its own.
SET_BY_STEPS = ('MODEL_DIR', 'DATA_DIR', 'MIXTURE_OR_TASK_NAME')


class Pipeline:
  """The steps of one run directory.

  Attributes:
    settings: what to do.
    jobs: runs the commands of the steps.
    steps: what there is to do, in order.
  """

  def __init__(
    self,
    output_dir: str,
    settings: XInstruction,
    forwarded: ForwardedSettings | None = None,
    filters=None,
  ):
    """Args:
    output_dir: the run directory.
    settings: what to do.
    forwarded: gin settings for the commands of the steps; None = none.
    filters: see `Run`.
    """
    self.run = Run(output_dir, settings, forwarded or ForwardedSettings(), filters)
    self.settings, self.jobs = settings, self.run.jobs
    self.steps = self.run.steps = Steps(output_dir, in_order(self.run))


def in_order(run: Run) -> list[Step]:
  """All steps, with what each needs and what its output depends on."""
  s = run.settings
  if s.rater == 'endpoint' and s.rounds > 1:
    print(
      f'the rater is fixed and would say the same again: one round of rating, not {s.rounds}',
      file=sys.stderr,
    )
  spread = {'wanted': s.wanted, 'diversification': _diversification_settings()}
  steps = _candidate_steps(run)
  for i in range(run.rounds):
    steps += _round_steps(run, i)
  return steps + [
    _step(run, 'diversify', export.diversify, (f'keep.{run.rounds - 1}',), spread),
    _step(run, 'export', export.export, ('seed', 'diversify')),
    _step(run, 'train', export.train, ('seed', 'export'), _trained(run, 'response')),
    _step(run, 'statistics', export.write_statistics, ('export',), export.benchmark_stamps(s)),
  ]


def _step(
  run: Run, name: str, function: Callable, needs=(), settings: dict | None = None, *numbers: int
) -> Step:
  return Step(name, functools.partial(function, run, *numbers), needs, settings)


def _trained(run: Run, kind: str) -> dict:
  """What a model depends on besides its rows."""
  s = run.settings
  return {
    'model_gin': [_lines(path) for path in s.model_gin],
    'values': s.values | s.kind_values.get(kind, {}), 'recipe': _recipe(kind),
    'max_length': s.max_length, 'vocabulary': s.vocabulary,
  } | run.forwarded.counted('prepare', 'train')  # fmt: skip


def _candidate_steps(run: Run) -> list[Step]:
  """The steps from documents and seed to candidates."""
  s = run.settings
  documents = {
    'files': candidates.document_stamps(run), 'chunk': s.chunk, 'filters': _filter_settings(run),
  }  # fmt: skip
  steps = [
    _step(run, 'filter', candidates.filter_documents, (), documents),
    _step(run, 'seed', seed.draw, (), {'seed': seed.stamps(s), 'seed_pairs': s.seed_pairs}),
  ]
  needs, tokens = ('filter',), {'instruction_tokens': s.instruction_tokens}
  if s.generator == 'model':
    train = candidates.train_generator
    steps.append(_step(run, 'train-generator', train, ('seed',), _trained(run, 'generator')))
    needs, identity = ('filter', 'train-generator'), run.forwarded.counted('chunks')
  else:
    identity = run.teacher.identity('write')
  return steps + [
    _step(run, 'generate', candidates.generate, needs, tokens | identity),
    _step(run, 'pairs', candidates.pair, ('generate',)),
  ]


def _round_steps(run: Run, i: int) -> list[Step]:
  """The steps of round i."""
  s, answered = run.settings, run.forwarded.counted('chunks')
  best = {'keep_fraction': s.keep_fraction, 'least_level': s.least_level, 'settled': s.settled}
  keep = _step(run, f'keep.{i}', rounds_lib.keep, ('pairs', f'rate.{i}'), best, i)
  if s.rater == 'endpoint':
    identity = run.teacher.identity('rate')
    return [_step(run, f'rate.{i}', rounds_lib.rate, ('pairs',), identity, i), keep]
  kept = (f'keep.{i - 1}',) if i else ()
  raters = tuple(filter(None, [rounds_lib.rater_before(s, i)]))
  responses = {'response_tokens': s.response_tokens} | answered
  rater = _trained(run, 'rater') | {'flaws': s.flaws, 'rater_from': s.rater_from}

  def step(name, function, needs, settings):
    function = rounds_lib.unless_settled(function)
    return _step(run, f'{name}.{i}', function, needs, settings, i)

  return [
    step('train-response', rounds_lib.train_response, ('seed', *kept), _trained(run, 'response')),
    step('respond', rounds_lib.respond, ('seed', f'train-response.{i}'), responses),
    step('train-rater', rounds_lib.train_rater, ('seed', f'respond.{i}', *raters), rater),
    step('rate', rounds_lib.rate, ('pairs', f'train-rater.{i}'), answered),
    keep,
  ]


def _recipe(kind: str) -> list[str]:
  """The lines of the run file of a kind of model."""
  return _lines(f'gin_configs/xinstruction/{kind}.gin')


def _lines(path: str) -> list[str]:
  """Lines of a gin file without comments; a missing path is relative to the repository."""
  with open(
    path if os.path.isfile(path) else os.path.join(config.REPOSITORY, path), encoding='utf-8'
  ) as f:
    return [line.split('#')[0].strip() for line in f if line.split('#')[0].strip()]


def _filter_settings(run: Run) -> dict:
  from crossin_jax.xinstruction.filtering.documents import Reading

  return dataclasses.asdict(run.filters) | dataclasses.asdict(Reading())


def _diversification_settings() -> dict:
  from crossin_jax.xinstruction.diversity.diversification import Diversification

  embed = {
    name: config.bound(f'embed.{name}')
    for name in ('method', 'dimensions', 'words', 'seed', 'checkpoint')
  }
  return dataclasses.asdict(Diversification()) | {
    'embed': {name: value for name, value in embed.items() if value is not None}
  }


def _names(pipeline: Pipeline, command: str) -> list[str] | None:
  """Names of the steps of a command; None = all."""
  every = list(pipeline.steps.steps)
  if command == 'run':
    return None
  if (
    command == 'train-generator'
    and command not in every
    or command == 'train-rater'
    and 'train-rater.0' not in every
  ):
    raise StepError(
      f'there is no {command}: an endpoint does its work (XInstruction.generator, '
      'XInstruction.rater)'
    )
  rounds = {'rate': ('rate', 'keep'), 'train-rater': ('train-response', 'respond', 'train-rater')}
  if command == 'refine':
    return [name for name in every if '.' in name]
  if command == 'generate':
    return ['generate', 'pairs']
  return [
    name
    for name in every
    if name.split('.')[0] in rounds.get(command, (command,))
    and ('.' not in name or name.endswith('.0'))
  ]


def main(argv: list[str]) -> int:
  """The command line of `crossin xinstruction`."""
  args = flags.parser().parse_args(argv)
  forwarding.make_known('crossin_jax.xinstruction.chunk_worker')
  args.known_macros = forwarding.known_macros()
  config.parse(args)
  forwarded = ForwardedSettings.from_gin(SET_BY_STEPS)
  pipeline = Pipeline(args.output_dir, XInstruction(), forwarded)
  if args.command == 'status':
    states = {name: pipeline.steps.state(name) for name in pipeline.steps.steps}
    for name, (state, reason) in states.items():
      print(f'{name:<18} {state}{f" ({reason})" if reason else ""}')
    return command_line.finish(args, {name: state for name, (state, _) in states.items()})
  with pipeline.jobs.stopping_on_signals():
    done = pipeline.steps.run(_names(pipeline, args.command), args.redo)
  if args.command in ('run', 'export') and not done['export']['counts']['rows']:
    raise StepError(
      f'no row is left in {pipeline.steps.folder("export")}: the counts of filter, generate and '
      'keep above say where they went. Give more documents, or lower the levels of Filters and '
      'XInstruction'
    )
  return command_line.finish(args, {name: manifest['counts'] for name, manifest in done.items()})
