"""Settings that might do, in order: found by formula, then proven by compiling them."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import sys

from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.lora import LoraConfig
from crossin_jax.plan import collectives, costs
from crossin_jax.plan import step as plan_step
from crossin_jax.plan import topology as plan_topology
from crossin_jax.plan.costs import Bound, Figures
from crossin_jax.plan.step import Compiled, Setting, State
from crossin_jax.plan.topology import Topology, smaller

# Of what a program may use, up to where a formula is trusted enough to compile.
TRUST = 0.93
MOST_TENSOR = 8  # beyond that matrices get too thin to be worth it
TRIES = 3  # compiles of one kind of change before the next kind


@dataclasses.dataclass(frozen=True)
class Trial:
  """One setting on one topology, by formula and, if `compiled`, as XLA has it.

  Attributes:
    setting, topology: what on what. partition: the mesh.
    why: of the mesh, if it was chosen.
    state, figures: by formula.
    estimate: bytes of a chip, before anything is compiled.
    changes: gin flags that lead here from the setting asked for.
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
    """As compiled; by formula where it is not."""
    return self.compiled.fits if self.compiled else self.estimate <= self.topology.usable

  @property
  def peak(self) -> float:
    """Bytes of a chip."""
    return self.compiled.peak if self.compiled else self.estimate

  @functools.cached_property
  def sent(self) -> dict[str, float]:
    """Mesh axis -> bytes that a chip sends in a step, as compiled or by formula."""
    if self.compiled and self.compiled.collectives:
      return collectives.bytes_by_axis(self.compiled.collectives)
    return self.figures.sent

  @functools.cached_property
  def bound(self) -> Bound:
    """The least time of a step."""
    return costs.bound(self.figures, self.topology, self.partition, self.sent)

  @property
  def rank(self) -> tuple[float, float, int]:
    """What trials are ordered by. A layer waits for what it sends over `tensor`, so that does not
    overlap with its arithmetic; of equals the one with less traffic, then with fewer microbatches.
    """
    waiting = sum(seconds for axis, seconds in self.bound.links.items() if 'tensor' in axis)
    overlapping = dataclasses.replace(
      self.bound, links={'rest': sum(self.bound.links.values()) - waiting}
    )
    return (
      round(overlapping.seconds + waiting, 4),
      sum(self.bound.parts.values()),
      self.setting.microbatches,
    )

  @property
  def utilisation(self) -> float:
    """MFU at the bound."""
    return self.figures.model_flops / (
      self.topology.chips * self.topology.kind.flops * self.bound.seconds
    )

  @property
  def tokens(self) -> int:
    """Of a step."""
    return self.setting.batch_size * self.setting.length


class Planner:
  """Makes trials and compiles them; what a compile says of memory corrects the formula for the
  next.

  Attributes:
    compiled_seconds: of all compiles.
  """

  def __init__(self, partitioner: Callable[..., Partitioner], effort: float = 0.0):
    """Args:
    partitioner: called with devices and mesh_shape.
    effort: see `plan_step.train_step`.
    """
    self._partitioner, self._effort = partitioner, effort
    self._states, self._partitions = {}, {}
    self._correction = 1.0
    self.compiled_seconds = 0.0

  def asked(self, setting: Setting, topology: Topology) -> Trial:
    """The setting as it is, on the mesh that gin gives."""
    try:
      partition = self._partitioner(devices=topology.devices)
    except ValueError as error:
      raise ValueError(
        f'{str(error).splitlines()[0]}; or leave the mesh to the plan: '
        '--gin.Partitioner.mesh_shape="\'auto\'", or --search'
      ) from None
    why = partition.suit(setting.model, batch_size=setting.batch_size // setting.microbatches)
    plan_step.check_rows(setting, partition)
    return self._trial(setting, topology, partition, why or '')

  def trial(
    self, setting: Setting, topology: Topology, mesh: tuple[int, int, int], changes=()
  ) -> Trial:
    """A setting on a mesh of these sizes."""
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
    return Trial(
      setting,
      topology,
      partition,
      why,
      state,
      figures,
      self._estimate(state, figures),
      changes=changes,
    )

  def _estimate(self, state: State, figures: Figures) -> float:
    given = state.parameters + state.optimizer + state.batch
    return given + figures.gradients + figures.gathered + self._correction * figures.activations

  def again(self, trial: Trial) -> Trial:
    """A trial with what has been learnt since."""
    return dataclasses.replace(trial, estimate=self._estimate(trial.state, trial.figures))

  def prove(self, trial: Trial) -> Trial:
    """Compiles a trial; where XLA cannot be had, it stays as it is."""
    if not trial.topology.compiles:
      return trial
    compiled = plan_step.train_step(trial.setting, trial.partition, trial.topology, self._effort)
    self.compiled_seconds += compiled.seconds
    if compiled.temporaries and trial.figures.activations:
      fixed = trial.figures.gradients + trial.figures.gathered
      self._correction = min(
        5.0, max(0.05, (compiled.temporaries - fixed) / trial.figures.activations)
      )
    return dataclasses.replace(trial, compiled=compiled)


def nearest(planner: Planner, asked: Trial, proofs: int = 1) -> list[Trial]:
  """Settings that fit where `asked` does not: as few changes as will do, in the order of what they
  cost.

  Args:
    planner: has compiled `asked`.
    asked: what does not fit.
    proofs: stop when so many fit.

  Returns:
    Trials that fit, each compiled where that can be; [] where nothing was found.
  """
  found = []
  for family in (_microbatches, _remat, _mesh, _adapters, _larger):
    if len(found) >= proofs:
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
        found.append(trial)
        break
      tries += 1
      if tries == TRIES:
        break
  return found


def _divided(setting: Setting, ways: int) -> Iterator[int]:
  """Numbers of microbatches above the present one that the batch can be cut into."""
  parts = setting.microbatches * 2
  while setting.batch_size % (ways * parts) == 0:
    yield parts
    parts *= 2


def _microbatches(asked: Trial):
  for parts in _divided(asked.setting, asked.partition.batch_ways):
    yield (
      asked.setting.replace(microbatches=parts),
      asked.mesh,
      (f'--gin.train.microbatches={parts}',),
    )


def _remat(asked: Trial):
  if asked.setting.model.config.remat != 'full':
    flag = '--gin.DecoderConfig.remat="\'full\'"'
    yield asked.setting.replace(remat='full'), asked.mesh, (flag,)
    for parts in _divided(asked.setting, asked.partition.batch_ways):
      yield (
        asked.setting.replace(parts, remat='full'),
        asked.mesh,
        (flag, f'--gin.train.microbatches={parts}'),
      )


def _mesh(asked: Trial):
  cut = asked.mesh[1] * asked.mesh[2]
  full = asked.setting.replace(remat='full')
  told = (
    () if asked.setting.model.config.remat == 'full' else ('--gin.DecoderConfig.remat="\'full\'"',)
  )
  more = [
    mesh
    for mesh in meshes_for(asked.setting, asked.topology)
    if mesh[1] * mesh[2] > cut or mesh[2] > asked.mesh[2]
  ]
  # Cut along tensor last: it sends activations.
  for mesh in sorted(more, key=lambda mesh: (mesh[2], mesh[1])):
    flag = f'--gin.Partitioner.mesh_shape="{mesh}"'.replace(' ', '')
    yield full, mesh, (flag, *told)
    for parts in _divided(dataclasses.replace(full, microbatches=1), mesh[0] * mesh[1]):
      yield full.replace(parts), mesh, (flag, *told, f'--gin.train.microbatches={parts}')


def _adapters(asked: Trial):
  if asked.setting.model.config.lora is None:
    flag = '--gin.DecoderConfig.lora=@LoraConfig()'
    for remat in dict.fromkeys((asked.setting.model.config.remat, 'full')):
      told = (
        (flag,)
        if remat == asked.setting.model.config.remat
        else (flag, '--gin.DecoderConfig.remat="\'full\'"')
      )
      setting = asked.setting.replace(lora=LoraConfig(), remat=remat)
      yield setting, asked.mesh, told
      for parts in _divided(setting, asked.partition.batch_ways):
        yield setting.replace(parts), asked.mesh, (*told, f'--gin.train.microbatches={parts}')


def _larger(asked: Trial):
  if not asked.topology.compiles:
    return
  kind, per_slice = asked.topology.name.split(':')[0], asked.topology.chips // asked.topology.slices
  for chips, sides in sorted(plan_topology.GENERATIONS[kind].slices.items()):
    if chips > per_slice:
      topology = plan_topology.parse(f'{kind}:{sides}', asked.topology.slices)
      yield (
        asked.setting.replace(remat='full'),
        topology,
        (f'--topology {topology.name}', '--gin.DecoderConfig.remat="\'full\'"'),
      )


def _mesh_on(setting: Setting, topology: Topology) -> tuple[int, int, int] | None:
  """On a larger slice: parameters cut over all of it, the rest as it comes."""
  fits = meshes_for(setting, topology)
  return max(fits, key=lambda mesh: (mesh[1], -mesh[2]), default=None)


def meshes_for(setting: Setting, topology: Topology) -> list[tuple[int, int, int]]:
  """Sizes of data, fsdp and tensor that go round the chips, the batch and the model."""
  config, chips, found = setting.model.config, topology.chips // topology.slices, []
  for tensor in range(1, min(MOST_TENSOR, chips) + 1):
    if chips % tensor or config.num_heads % tensor or config.mlp_dim % tensor:
      continue
    for fsdp in range(1, chips // tensor + 1):
      mesh = (topology.chips // tensor // fsdp, fsdp, tensor)
      if (
        chips // tensor % fsdp == 0
        and setting.batch_size % (mesh[0] * fsdp) == 0
        and config.embed_dim % fsdp == 0
      ):
        found.append(mesh)
  return found


def ranked(planner: Planner, setting: Setting, topology: Topology) -> list[Trial]:
  """All that seems to fit on a topology, fastest first: meshes, microbatches and recomputation, by
  formula.
  """
  found = []
  for mesh in meshes_for(setting, topology):
    ways, parts = mesh[0] * mesh[1], 1
    while setting.batch_size % (ways * parts) == 0:
      for remat in ('none', 'minimal', 'full'):
        flags = (
          f'--gin.Partitioner.mesh_shape="{mesh}"'.replace(' ', ''),
          f'--gin.train.microbatches={parts}',
          f'--gin.DecoderConfig.remat="\'{remat}\'"',
        )
        found.append(planner.trial(setting.replace(parts, remat=remat), topology, mesh, flags))
      parts *= 2
  return _in_order([trial for trial in found if trial.estimate <= TRUST * topology.usable])


def _in_order(trials: list[Trial]) -> list[Trial]:
  return sorted(trials, key=lambda trial: trial.rank)


def best(
  planner: Planner, setting: Setting, topology: Topology, tries: int = TRIES
) -> tuple[Trial | None, list[Trial]]:
  """The fastest setting that fits, compiled; and the others that seem to fit, in order."""
  trials = ranked(planner, setting, topology)
  for _ in range(tries):
    if not trials:
      break
    first, *rest = trials
    print(
      f'{topology}: of {len(trials)} settings that may fit, {" ".join(first.changes)}',
      file=sys.stderr,
    )
    proven = planner.prove(first)
    rest = [
      trial for trial in map(planner.again, rest) if trial.estimate <= TRUST * topology.usable
    ]
    if proven.fits:
      return proven, rest
    trials = rest
  return None, trials


def search(
  planner: Planner, setting: Setting, topologies: Sequence[Topology]
) -> list[tuple[str, Trial | None, Topology]]:
  """Three rows: the fastest of all, compiled; the best on the next smaller slice, compiled; the
  second best, by formula.

  Returns:
    (what it is, trial or None where nothing fits, topology).
  """
  by_formula = []
  for topology in topologies:
    trials = ranked(planner, setting, topology)
    if trials:
      by_formula.append(trials[0])
    else:
      print(f'{topology}: nothing fits', file=sys.stderr)
  for candidate in _in_order(by_formula):
    winner, others = best(planner, setting, candidate.topology)
    if winner:
      break
  else:
    return [('best', None, topologies[0])]
  given = [t for t in topologies if t.chips < winner.topology.chips]
  less = max(given, key=lambda t: t.chips) if given else smaller(winner.topology)
  rows = [('best', winner, winner.topology)]
  if less is not None:
    rows.append(('next smaller', best(planner, setting, less)[0], less))
  if others:
    rows.append(('second best', others[0], winner.topology))
  return rows


def smallest(planner: Planner, setting: Setting, topologies: Sequence[Topology]) -> Trial | None:
  """The fastest setting on the first topology (smallest first) on which one fits, compiled; None
  where none does.
  """
  for topology in topologies:
    if winner := best(planner, setting, topology)[0]:
      return winner
  return None
