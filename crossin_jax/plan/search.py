"""Finds settings that may fit by formula, and proves them by compilation."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import math
import sys

from crossin_jax.devices.meshes import batch_ways
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.lora import LoraConfig
from crossin_jax.plan import collectives, costs
from crossin_jax.plan import step as plan_step
from crossin_jax.plan import topology as plan_topology
from crossin_jax.plan.costs import Bound, Figures
from crossin_jax.plan.expected import Expected
from crossin_jax.plan.step import Compiled, Setting, State
from crossin_jax.plan.topology import Topology, smaller

TRUST = 0.93  # part of the usable memory up to which an estimate is worth a compilation
MOST_TENSOR = 8  # with more, the shards of matrices get too thin
TRIES = 3  # compilations of one kind of change before the next kind
_FULL_REMAT = 'DecoderConfig.remat=full'


@dataclasses.dataclass(frozen=True)
class Trial:
  """One setting on one topology, by formula and, if `compiled`, by XLA.

  Attributes:
    setting, topology: what runs where.
    partition: the mesh.
    why: reason for the mesh, if it was chosen.
    state, figures: by formula.
    estimate: bytes of a chip, by formula.
    changes: gin flags that change the given setting into this one.
  """

  setting: Setting
  topology: Topology
  partition: Partitioner
  why: str
  state: State
  figures: Figures
  estimate: float
  compiled: Compiled | None = None
  changes: tuple[str, ...] = ()

  @property
  def mesh(self) -> tuple[int, int, int]:
    """Sizes of data, fsdp and tensor."""
    return tuple(self.partition.mesh.shape.values())

  @property
  def fits(self) -> bool:
    """By compilation, or by formula without one."""
    return self.compiled.fits if self.compiled else self.estimate <= self.topology.usable

  @property
  def peak(self) -> float:
    """Bytes of a chip."""
    return self.compiled.peak if self.compiled else self.estimate

  @functools.cached_property
  def sent(self) -> dict[str, float]:
    """Mesh axis -> bytes that a chip sends in a step, as compiled or by formula."""
    if self.compiled and self.compiled.expected:
      return collectives.bytes_by_axis(self.compiled.expected.collectives)
    return self.figures.sent

  @functools.cached_property
  def bound(self) -> Bound:
    """The least time of a step."""
    return costs.bound(self.figures, self.topology, self.partition, self.sent)

  @property
  def expected(self) -> Expected | None:
    """What XLA expects the compiled step to take."""
    return self.compiled.expected if self.compiled else None

  @property
  def rank(self) -> tuple[float, float, int]:
    """Sort key: seconds, then traffic, then microbatches.

    A layer waits for transfers over `tensor`, so these do not overlap with its arithmetic.
    """
    links = self.bound.links
    waiting = sum(seconds for axis, seconds in links.items() if 'tensor' in axis)
    rest = {'rest': sum(links.values()) - waiting}
    seconds = dataclasses.replace(self.bound, links=rest).seconds + waiting
    return round(seconds, 4), sum(self.bound.parts.values()), self.setting.microbatches

  @property
  def utilisation(self) -> float:
    """MFU at the bound."""
    peak = len(self.topology.devices) * self.topology.kind.flops
    return self.figures.model_flops / (peak * self.bound.seconds)

  @property
  def tokens(self) -> int:
    """Tokens of a step."""
    return self.setting.batch_size * self.setting.length


class Planner:
  """Makes and compiles trials; the memory of each compilation corrects the formula.

  Attributes:
    compiled_seconds: of all compilations.
  """

  def __init__(self, partitioner: Callable[..., Partitioner], effort: float = 0.0):
    """Creates a planner without results.

    Args:
      partitioner: called with devices and mesh_shape.
      effort: see `step.train_step`.
    """
    self._partitioner, self._effort = partitioner, effort
    self._states, self._partitions = {}, {}
    self._correction = 1.0
    self.compiled_seconds = 0.0

  def asked(self, setting: Setting, topology: Topology) -> Trial:
    """The given setting, on the mesh of gin."""
    try:
      partition = self._partitioner(devices=topology.devices)
    except ValueError as error:
      raise ValueError(
        f'{str(error).splitlines()[0]}; or let the plan choose the mesh: '
        'Partitioner.mesh_shape=auto, or --search'
      ) from None
    why = partition.suit(setting.model, batch_size=setting.batch_size // setting.microbatches)
    plan_step.check_rows(setting, partition)
    return self._trial(setting, topology, partition, why or '')

  def trial(
    self, setting: Setting, topology: Topology, mesh: tuple[int, int, int], changes=()
  ) -> Trial:
    """A setting on a mesh of the given sizes."""
    key = (topology.name, topology.slices, mesh)
    if key not in self._partitions:
      self._partitions[key] = self._partitioner(devices=topology.devices, mesh_shape=mesh)
    return self._trial(setting, topology, self._partitions[key], '', tuple(changes))

  def _trial(self, setting, topology, partition, why, changes=()) -> Trial:
    mesh = tuple(partition.mesh.shape.values())
    config = dataclasses.replace(setting.model.config, remat='none')
    key = (config, setting.batch_size, setting.length, topology.name, topology.slices, mesh)
    if key not in self._states:
      self._states[key] = plan_step.state_bytes(setting, partition)
    state = self._states[key]
    figures = costs.figures(setting, mesh, state, topology.slices)
    estimate = self._estimate(state, figures)
    return Trial(setting, topology, partition, why, state, figures, estimate, changes=changes)

  def _estimate(self, state: State, figures: Figures) -> float:
    arguments = state.parameters + state.optimizer + state.batch
    return arguments + figures.gradients + figures.gathered + self._correction * figures.activations

  def updated(self, trial: Trial) -> Trial:
    """The trial with the current correction."""
    return dataclasses.replace(trial, estimate=self._estimate(trial.state, trial.figures))

  def prove(self, trial: Trial) -> Trial:
    """Compiles a trial, if XLA can compile for its topology."""
    if not trial.topology.compiles:
      return trial
    compiled = plan_step.train_step(trial.setting, trial.partition, trial.topology, self._effort)
    self.compiled_seconds += compiled.seconds
    if compiled.temporaries and trial.figures.activations:
      fixed = trial.figures.gradients + trial.figures.gathered
      correction = (compiled.temporaries - fixed) / trial.figures.activations
      self._correction = min(5.0, max(0.05, correction))
    return dataclasses.replace(trial, compiled=compiled)


def nearest(planner: Planner, asked: Trial, proofs: int = 1) -> list[Trial]:
  """Settings that fit if `asked` does not, cheapest changes first and as few as possible.

  Args:
    planner: has compiled `asked`.
    asked: a trial that does not fit.
    proofs: number of settings to find.

  Returns:
    Trials that fit, compiled if XLA can; [] if there are none.
  """
  fitting = []
  for family in (_microbatches, _remat, _mesh, _adapters, _larger):
    if len(fitting) >= proofs:
      break
    tries = 0
    for setting, mesh, changes in family(asked):
      topology = asked.topology
      if isinstance(mesh, Topology):
        topology, mesh = mesh, _mesh_on(setting, mesh)
      if mesh is None:
        continue
      trial = planner.trial(setting, topology, mesh, changes)
      if trial.estimate > TRUST * topology.usable:
        continue
      print(f'may fit: {" ".join(changes)}', file=sys.stderr)
      trial = planner.prove(trial)
      if trial.fits:
        fitting.append(trial)
        break
      tries += 1
      if tries == TRIES:
        break
  return fitting


def _divided(setting: Setting, ways: int) -> Iterator[int]:
  """Larger numbers of microbatches that divide the batch."""
  parts = setting.microbatches * 2
  while setting.batch_size % (ways * parts) == 0:
    yield parts
    parts *= 2


def _microbatches(asked: Trial):
  for parts in _divided(asked.setting, asked.partition.batch_ways):
    setting = asked.setting.replace(microbatches=parts)
    yield setting, asked.mesh, (f'train.microbatches={parts}',)


def _remat(asked: Trial):
  if asked.setting.model.config.remat != 'full':
    yield asked.setting.replace(remat='full'), asked.mesh, (_FULL_REMAT,)
    for parts in _divided(asked.setting, asked.partition.batch_ways):
      setting = asked.setting.replace(parts, remat='full')
      yield setting, asked.mesh, (_FULL_REMAT, f'train.microbatches={parts}')


def _mesh(asked: Trial):
  cut = math.prod(asked.mesh[1:])
  full = asked.setting.replace(remat='full')
  remat = () if asked.setting.model.config.remat == 'full' else (_FULL_REMAT,)
  more = [
    mesh
    for mesh in meshes_for(asked.setting, asked.topology)
    if math.prod(mesh[1:]) > cut or mesh[2] > asked.mesh[2]
  ]
  # tensor last: it sends activations.
  for mesh in sorted(more, key=lambda mesh: (mesh[2], mesh[1])):
    flag = f'Partitioner.mesh_shape={",".join(map(str, mesh))}'
    yield full, mesh, (flag, *remat)
    for parts in _divided(dataclasses.replace(full, microbatches=1), batch_ways(mesh)):
      yield full.replace(parts), mesh, (flag, *remat, f'train.microbatches={parts}')


def _adapters(asked: Trial):
  if asked.setting.model.config.lora is None:
    flag = 'DecoderConfig.lora="@LoraConfig()"'
    for remat in dict.fromkeys((asked.setting.model.config.remat, 'full')):
      flags = (flag,) if remat == asked.setting.model.config.remat else (flag, _FULL_REMAT)
      setting = asked.setting.replace(lora=LoraConfig(), remat=remat)
      yield setting, asked.mesh, flags
      for parts in _divided(setting, asked.partition.batch_ways):
        yield setting.replace(parts), asked.mesh, (*flags, f'train.microbatches={parts}')


def _larger(asked: Trial):
  if not asked.topology.compiles:
    return
  kind, per_slice = asked.topology.name.split(':')[0], asked.topology.chips // asked.topology.slices
  for chips, sides in sorted(plan_topology.GENERATIONS[kind].slices.items()):
    if chips > per_slice:
      topology = plan_topology.parse(f'{kind}:{sides}', asked.topology.slices)
      changes = (f'--topology {topology.name}', _FULL_REMAT)
      yield asked.setting.replace(remat='full'), topology, changes


def _mesh_on(setting: Setting, topology: Topology) -> tuple[int, ...] | None:
  """The mesh of a larger slice with most of fsdp."""
  fits = meshes_for(setting, topology)
  return max(fits, key=lambda mesh: (mesh[1], -mesh[2]), default=None)


def meshes_for(setting: Setting, topology: Topology) -> list[tuple[int, ...]]:
  """Sizes of data, fsdp and tensor that divide the devices, the batch and the model.

  With experts, also those with a fourth axis over which the experts are sharded.
  """
  config, devices, meshes = setting.model.config, len(topology.devices) // topology.slices, []
  for tensor in range(1, min(MOST_TENSOR, devices) + 1):
    if devices % tensor or config.num_heads % tensor or config.mlp_dim % tensor:
      continue
    for fsdp in range(1, devices // tensor + 1):
      rest = devices // tensor // fsdp
      if devices // tensor % fsdp or config.embed_dim % fsdp:
        continue
      for expert in range(1, rest + 1 if config.num_experts else 2):
        mesh = (len(topology.devices) // tensor // fsdp // expert, fsdp, tensor, expert)[
          : 3 + (expert > 1)
        ]
        divides = rest % expert == 0 and (expert == 1 or config.num_experts % expert == 0)
        if divides and setting.batch_size % batch_ways(mesh) == 0:
          meshes.append(mesh)
  return meshes


def ranked(planner: Planner, setting: Setting, topology: Topology) -> list[Trial]:
  """Settings that may fit by formula, fastest first: meshes, microbatches and remat."""
  trials = []
  for mesh in meshes_for(setting, topology):
    ways, parts = batch_ways(mesh), 1
    while setting.batch_size % (ways * parts) == 0:
      for remat in ('none', 'minimal', 'full'):
        flags = (
          f'Partitioner.mesh_shape={",".join(map(str, mesh))}',
          f'train.microbatches={parts}',
          f'DecoderConfig.remat={remat}',
        )
        trials.append(planner.trial(setting.replace(parts, remat=remat), topology, mesh, flags))
      parts *= 2
  return _in_order([trial for trial in trials if trial.estimate <= TRUST * topology.usable])


def _in_order(trials: list[Trial]) -> list[Trial]:
  return sorted(trials, key=lambda trial: trial.rank)


def best(
  planner: Planner, setting: Setting, topology: Topology, tries: int = TRIES, proofs: int = 1
) -> tuple[Trial | None, list[Trial]]:
  """The fastest setting that fits, compiled; and the others that may fit, in order.

  Args:
    planner, setting, topology: what for.
    tries: compilations of settings that turn out not to fit.
    proofs: settings that fit to compile, each on another mesh. The fastest is the one of which XLA
      expects the shortest step.
  """
  trials, proven = ranked(planner, setting, topology), []
  while trials and tries and len(proven) < proofs:
    known = {trial.mesh for trial in proven}
    first = next((trial for trial in trials if trial.mesh not in known), None)
    if first is None:
      break
    print(
      f'{topology}: of {len(trials)} settings that may fit, {" ".join(first.changes)}',
      file=sys.stderr,
    )
    rest = [trial for trial in trials if trial is not first]
    first = planner.prove(first)
    trials = [
      trial for trial in map(planner.updated, rest) if trial.estimate <= TRUST * topology.usable
    ]
    if first.fits:
      proven.append(first)
    else:
      tries -= 1
  if not proven:
    return None, trials
  winner, *others = sorted(proven, key=_proven_seconds)
  return winner, others + trials


def _proven_seconds(trial: Trial) -> float:
  """Seconds of a step by XLA, or the bound where XLA cannot compile."""
  return trial.expected.seconds if trial.expected else trial.bound.seconds


def search(
  planner: Planner, setting: Setting, topologies: Sequence[Topology], proofs: int = 1
) -> list[tuple[str, Trial | None, Topology]]:
  """The fastest setting, the best on the next smaller slice, and the second best.

  Args:
    planner, setting, topologies: what for.
    proofs: meshes to compile and rank by what XLA expects. With 1 the second best is by formula.

  Returns:
    (name of the rank, trial or None if nothing fits, topology) of each.
  """
  by_formula = []
  for topology in topologies:
    trials = ranked(planner, setting, topology)
    if trials:
      by_formula.append(trials[0])
    else:
      print(f'{topology}: nothing fits', file=sys.stderr)
  for candidate in _in_order(by_formula):
    winner, others = best(planner, setting, candidate.topology, proofs=proofs)
    if winner:
      break
  else:
    return [('best', None, topologies[0])]
  given = [t for t in topologies if t.chips < winner.topology.chips]
  less = max(given, key=lambda t: t.chips) if given else smaller(winner.topology)
  rows = [('best', winner, winner.topology)]
  if less is not None:
    rows.append(('next smaller', best(planner, setting, less, proofs=proofs)[0], less))
  if others:
    rows.append(('second best', others[0], winner.topology))
  return rows


def smallest(planner: Planner, setting: Setting, topologies: Sequence[Topology]) -> Trial | None:
  """The fastest setting on the first topology on which one fits, compiled; or None."""
  for topology in topologies:
    if winner := best(planner, setting, topology)[0]:
      return winner
  return None
