"""Compiles the real train step and decode step for described chips, without allocation."""

import dataclasses
import math
import re
import time
from typing import Any

import jax
import jax.numpy as jnp

from crossin_jax import progress
from crossin_jax.data.stream import FEATURES
from crossin_jax.decoding import slots as slots_lib
from crossin_jax.decoding.generation import CHUNK
from crossin_jax.decoding.sampling import Sampling
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models import lora
from crossin_jax.models.decoder import attention_kernel, unrolled
from crossin_jax.plan import expected as plan_expected
from crossin_jax.plan.topology import Topology
from crossin_jax.training import compiled as compilation
from crossin_jax.training import objectives, optimizers
from crossin_jax.training import state as train_state

_SIZE = re.compile(r'([\d.]+)([KMGT]?)')


@dataclasses.dataclass(frozen=True)
class Setting:
  """What a train step is compiled from, besides the chips.

  Attributes:
    model: with its DecoderConfig, if it has one.
    optimizer: transform and schedule.
    batch_size: rows of the global batch.
    length: tokens of a row.
    microbatches: parts of the batch.
    z_loss, objective: see `train`.
  """

  model: Any
  optimizer: optimizers.Optimizer
  batch_size: int
  length: int
  microbatches: int = 1
  z_loss: float = 0.0
  objective: Any = objectives.LIKELIHOOD

  def replace(self, microbatches: int | None = None, **config) -> 'Setting':
    """With other microbatches, and other fields of the model's DecoderConfig."""
    model = self.model
    if config:
      model = model.clone(config=dataclasses.replace(model.config, **config))
    return dataclasses.replace(self, model=model, microbatches=microbatches or self.microbatches)


@dataclasses.dataclass(frozen=True)
class State:
  """Bytes known from shapes and shardings alone.

  Attributes:
    parameters, optimizer, batch: of one chip.
    trained: of the trained parameters of one chip.
    all_parameters, all_optimizer: of the complete model.
  """

  parameters: float
  optimizer: float
  trained: float
  batch: float
  all_parameters: float
  all_optimizer: float


@dataclasses.dataclass(frozen=True)
class Compiled:
  """XLA's report of a step that it compiled, or refused for lack of memory. Bytes are of one chip.

  Attributes:
    fits: whether XLA compiled it and its peak is within the usable memory.
    peak: arguments, new results, temporaries and the program.
    arguments: padded to XLA's tiles.
    temporaries: gradients, activations and scratch.
    program: machine code.
    expected: what XLA expects it to take; None if XLA refused.
    seconds: tracing and compiling.
    refused: XLA's message, or ''.
  """

  fits: bool
  peak: float
  arguments: float
  temporaries: float
  program: float
  expected: plan_expected.Expected | None
  seconds: float
  refused: str = ''


def bytes_of(tree, full: bool = False) -> float:
  """Bytes of a tree of jax.ShapeDtypeStruct with shardings, on one chip or of the full arrays."""
  total = 0.0
  for leaf in jax.tree.leaves(tree):
    shape = leaf.shape if full else leaf.sharding.shard_shape(leaf.shape)
    bits = 4 if leaf.dtype.name in ('int4', 'uint4') else 8 * leaf.dtype.itemsize
    total += math.prod(shape) * bits / 8
  return total


def abstract_state(setting: Setting, partition: Partitioner) -> train_state.TrainState:
  """The TrainState of `train` as shapes with shardings, also with a quantised base."""
  state = train_state.state_shardings(setting.model, setting.optimizer.transform, partition)
  adapters = lora.of_model(setting.model)
  if adapters is None or adapters.base_dtype not in lora.QUANTISED:
    return state
  quantised = jax.eval_shape(lambda tree: lora.quantised(tree, adapters), state.frozen)

  def shard_like(kernel, parts):
    def shard(leaf):
      # Scales have the shape of the kernel with one shorter side, which may not be divisible.
      spec = []
      for size, axis in zip(leaf.shape, [*kernel.sharding.spec, *[None] * leaf.ndim]):
        names = axis if isinstance(axis, tuple) else (axis,)
        divisible = axis and size % math.prod(partition.mesh.shape[name] for name in names) == 0
        spec.append(axis if divisible else None)
      sharding = jax.sharding.NamedSharding(partition.mesh, jax.sharding.PartitionSpec(*spec))
      return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(shard, parts)

  return state.replace(frozen=jax.tree.map(shard_like, state.frozen, quantised))


def abstract_batch(setting: Setting, partition: Partitioner) -> dict[str, jax.ShapeDtypeStruct]:
  """A batch of the loader as shapes."""
  shape = (setting.batch_size, setting.length)
  features = FEATURES | setting.objective.features(setting.model, _layout(setting, partition))
  return {
    name: jax.ShapeDtypeStruct(shape, dtype, sharding=partition.batch_sharding)
    for name, dtype in features.items()
  }


def _layout(setting: Setting, partition: Partitioner) -> str:
  """How preference pairs stand in a row. The sizes are the same in both layouts."""
  if partition.mesh.devices.flat[0].platform != 'tpu':
    return 'branches'  # whether a GPU has a kernel is known only there
  with partition.activate():
    return 'plain' if attention_kernel(setting.model, setting.length) else 'branches'


def check_rows(setting: Setting, partition: Partitioner) -> None:
  """Raises ValueError if the batch cannot be divided over the mesh."""
  rows = partition.batch_ways * setting.microbatches
  if setting.batch_size % rows:
    raise ValueError(
      f'batch_size = {setting.batch_size} does not divide into {partition.batch_ways} parts of '
      f'the mesh {dict(partition.mesh.shape)} times {setting.microbatches} microbatches; use a '
      f'multiple of {rows} (train.batch_size)'
    )


def state_bytes(setting: Setting, partition: Partitioner) -> State:
  """Bytes of the state, from shardings alone."""
  state = abstract_state(setting, partition)
  return State(
    parameters=bytes_of(state.params) + bytes_of(state.frozen),
    optimizer=bytes_of(state.opt_state),
    trained=bytes_of(state.params),
    batch=bytes_of(abstract_batch(setting, partition)),
    all_parameters=bytes_of((state.params, state.frozen), full=True),
    all_optimizer=bytes_of(state.opt_state, full=True),
  )


def lowered_step(setting: Setting, partition: Partitioner) -> jax.stages.Lowered:
  """The step of `train` for the partitioner's mesh, ready to be compiled.

  Raises:
    ValueError: the batch cannot be divided over the mesh.
  """
  check_rows(setting, partition)
  state = abstract_state(setting, partition)
  step = train_state.jit_train_step(
    setting.model,
    setting.optimizer,
    state,
    tasks=1,
    microbatches=setting.microbatches,
    z_loss=setting.z_loss,
    objective=setting.objective,
  )
  threshold = jax.ShapeDtypeStruct((), jnp.float32, sharding=partition.replicated)
  with partition.activate():
    return step.lower(state, abstract_batch(setting, partition), threshold)


def train_step(
  setting: Setting, partition: Partitioner, topology: Topology, effort: float = 0.0
) -> Compiled:
  """Compiles the step of `train` for the partitioner's mesh.

  Args:
    setting, partition, topology: what for.
    effort: -1 to 1, how hard XLA tries for speed: -1 compiles in half the time, and the program may
      take other memory.

  Raises:
    ValueError: the batch cannot be divided over the mesh. Interrupted: the plan was interrupted.
  """
  started = time.monotonic()
  lowered = lowered_step(setting, partition)
  with partition.activate():
    given = bytes_of(abstract_state(setting, partition))
    given += bytes_of(abstract_batch(setting, partition))
    options = compilation.compiler_options(topology.devices[0])
    what = f'the train step for {topology}'
    return _compiled(lowered, partition, topology, effort, started, given, what, options)


class _Lowered(slots_lib.Programs):
  """Lowers programs instead of running them."""

  def _run(self, name, function, arguments, shardings, donate=()):
    return jax.jit(function, donate_argnums=donate, out_shardings=shardings).lower(*arguments)


@dataclasses.dataclass(frozen=True)
class Decoding:
  """A compiled decode step.

  Attributes:
    compiled: see `Compiled`.
    parameters, cache: bytes of a chip.
    rows: answers at a time.
    capacity: tokens of each, prompt and answer.
  """

  compiled: Compiled
  parameters: float
  cache: float
  rows: int
  capacity: int


def decode_step(
  setting: Setting,
  partition: Partitioner,
  topology: Topology,
  *,
  rows: int,
  capacity: int,
  sampling: Sampling | None = None,
  effort: float = 0.0,
) -> Decoding:
  """Compiles the program by which `crossin_jax.decoding.slots` adds tokens to `rows` answers.

  Args:
    setting, partition, topology, effort: as in `train_step`.
    rows: of the decode batch; a multiple of the mesh's batch parts.
    capacity: tokens of a row, prompt and answer.
    sampling: None = greedy.
  """
  started = time.monotonic()
  shapes = train_state.parameter_shapes(setting.model, partition)
  model = None

  def unstack(params):
    nonlocal model
    model, params = unrolled(setting.model, params)
    return params

  shapes = jax.eval_shape(unstack, shapes)
  with_sharding = lambda leaf, sharding: jax.ShapeDtypeStruct(
    leaf.shape, leaf.dtype, sharding=sharding
  )
  params = jax.tree.map(
    lambda leaf, like: with_sharding(leaf, like.sharding),
    shapes,
    train_state.parameter_shapes(model, partition),
  )
  programs = _Lowered(model, partition, sampling or Sampling(), (model.config.vocab_size,), CHUNK)
  structure, shardings = programs._structure(rows, capacity)
  slots = jax.tree.map(with_sharding, structure, shardings)
  number = jax.ShapeDtypeStruct((), jnp.int32, sharding=partition.replicated)
  alive = jax.ShapeDtypeStruct((rows,), jnp.bool, sharding=partition.sharding(('batch',)))
  with partition.activate():
    lowered = programs.advance(params, slots, alive, number, number)
    given = bytes_of(params) + bytes_of(slots)
    what = f'the decode step for {topology}'
    compiled = _compiled(lowered, partition, topology, effort, started, given, what, {})
  return Decoding(compiled, bytes_of(params), bytes_of(slots.cache), rows, capacity)


def _compiled(
  lowered,
  partition: Partitioner,
  topology: Topology,
  effort,
  started,
  given: float,
  what: str,
  options: dict,
) -> Compiled:
  if effort:
    options = options | {'exec_time_optimization_effort': float(effort)}  # jax 0.12 has none
  refused, program = '', None
  with progress.announced(f'compiling {what}'):
    try:
      program = compilation.compile_with(lowered, options)
    except jax.errors.JaxRuntimeError as error:
      refused = str(error)
      if 'RESOURCE_EXHAUSTED' not in refused:
        raise ValueError(f'XLA cannot compile {what}: {refused.splitlines()[0]}') from error
  seconds = time.monotonic() - started
  if program is None:
    temporaries = requested_bytes(refused)
    return Compiled(
      False, given + temporaries, given, temporaries, 0.0, None, seconds, refused.splitlines()[0]
    )
  memory = program.memory_analysis()
  fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
  peak = compilation.program_bytes(program)
  mesh = partition.mesh
  return Compiled(
    peak <= topology.usable,
    peak,
    memory.argument_size_in_bytes + fresh,
    memory.temp_size_in_bytes,
    memory.generated_code_size_in_bytes,
    plan_expected.read(program.as_text(), topology, mesh.devices, mesh.axis_names),
    seconds,
  )


def requested_bytes(message: str) -> float:
  """Bytes of temporaries in XLA's message about lack of memory; 0 if it has no number."""
  units = {'': 1, 'K': 1 << 10, 'M': 1 << 20, 'G': 1 << 30, 'T': 1 << 40}
  for pattern in (
    r'HLO temporaries \(([\d.]+)([KMGT]?)',
    r'program\s+([\d.]+)([KMGT]?)',
    r'Used ([\d.]+)([KMGT]?) of',
  ):
    if match := re.search(pattern, message):
      return float(match[1]) * units[match[2]]
  return 0.0
