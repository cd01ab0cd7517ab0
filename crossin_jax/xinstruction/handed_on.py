"""gin settings given to `crossin xinstruction` that mean something to the commands it starts: prepare, train and chunks."""

from collections.abc import Iterator, Sequence
import importlib
from typing import NamedTuple

import gin

from crossin_jax import config

# Module of what is configured, the longest that fits -> commands that get its settings; the first of them counts for staleness.
COMMANDS = {
  '': ('train',),
  'crossin_jax.xinstruction': (),
  'crossin_jax.endpoint': (),
  'crossin_jax.xinstruction.chunk_worker': ('chunks',),
  'crossin_jax.decoding': ('chunks',),
  'crossin_jax.models': ('train', 'chunks'),
  'crossin_jax.partitioning': ('train', 'chunks'),
  'crossin_jax.data.vocabulary': ('prepare',),
  'seqio_tasks': ('prepare',),
}
MACROS = ('train', 'chunks')  # those that nothing here uses: BATCH_SIZE
# Where, how fast and how often, not what: another value makes nothing stale.
UNCOUNTED = frozenset({
  'MESH_SHAPE', 'Partitioner', 'standard_logical_axis_rules', 'compiled_programs', 'CheckpointConfig', 'Generator',
  'ChunkWorker.rows', 'ChunkWorker.partitioner', 'train.log_period', 'train.microbatches', 'train.partitioner',
  'train.checkpoint_config',
})  # fmt: skip
SET_BY_STEPS = ('MODEL_DIR', 'DATA_DIR', 'MIXTURE_OR_TASK_NAME')
_KNOWN = ('crossin_jax.train', 'crossin_jax.evaluation.heldout', 'crossin_jax.evaluation.evaluators',
          'crossin_jax.models.architectures', 'crossin_jax.xinstruction.chunk_worker', 'seqio_tasks.mixtures',
          'seqio_tasks.sources')  # fmt: skip


class _Binding(NamedTuple):
  """A setting: name as people write it, value, modules that its text needs, commands that get it."""

  name: str
  value: object
  modules: tuple[str, ...]
  commands: tuple[str, ...]


def make_known() -> None:
  """Imports what may be configured, so that gin takes (and checks) its names before any step begins."""
  for module in _KNOWN:
    importlib.import_module(module)


class HandedOn:
  """Settings for the commands that a pipeline starts."""

  def __init__(self, bindings: Sequence[_Binding] = ()):
    self._bindings = tuple(bindings)

  @classmethod
  def from_gin(cls) -> 'HandedOn':
    """What gin was given, in files and flags, beside the pipeline's own.

    Raises:
      ConfigError: a setting that every step makes for itself.
    """
    bound = gin.config._CONFIG  # pylint: disable=protected-access  # gin has no public list
    macros = {scope: values['value'] for (scope, selector), values in bound.items() if selector == 'gin.macro'}
    if wrong := [name for name in SET_BY_STEPS if name in macros]:
      raise config.ConfigError(
        f'{wrong[0]} is another in every step of the pipeline; take it out (--output_dir says where)'
      )
    found, used = [], {(): set()}  # commands -> macros that their settings are made of
    for (scope, selector), values in bound.items():
      if selector == 'gin.macro':
        continue
      module = gin.config._REGISTRY[selector].wrapped.__module__  # pylint: disable=protected-access
      commands = _commands(module)
      for name, value in values.items():
        references = list(_references(value, macros))
        used.setdefault(commands, set()).update(r.scopes[-1] for r in references if r.selector == 'gin.macro')
        modules = {module, *(r.configurable.wrapped.__module__ for r in references if r.selector != 'gin.macro')}
        if commands:
          short = gin.config._REGISTRY.minimal_selector(selector)  # pylint: disable=protected-access
          found.append(_Binding(f'{scope}/{short}.{name}'.lstrip('/'), value, tuple(sorted(modules)), commands))
    for name, value in macros.items():
      users = [commands for commands, names in used.items() if name in names]
      commands = {c for commands in users for c in commands} if users else set(MACROS)
      if commands:
        modules = {r.configurable.wrapped.__module__ for r in _references(value, macros) if r.selector != 'gin.macro'}
        order = tuple(c for c in (*MACROS, 'prepare') if c in commands)
        found.append(_Binding(name, value, tuple(sorted(modules)), order))
    return cls(sorted(found, key=lambda binding: binding.name))

  def flags(self, command: str) -> list[str]:
    """Flags of one of the commands."""
    mine = [binding for binding in self._bindings if command in binding.commands]
    modules = sorted({module for binding in mine for module in binding.modules})
    # The imports make the names known where a command itself would not load them.
    return [f'--gin_bindings=import {m}' for m in modules] + [f'--gin_bindings={b.name} = {b.value!r}' for b in mine]

  def counted(self, *commands: str) -> dict[str, str]:
    """Settings on which the output of commands depends: name -> value as text."""
    mine = [binding for binding in self._bindings if binding.commands[0] in commands]
    return {b.name: repr(b.value) for b in mine if not _names(b.name) & UNCOUNTED}


def _names(binding: str) -> set[str]:
  """_names('a/b.train.log_period') == {'train', 'train.log_period'}; of a macro its own."""
  parts = binding.split('/')[-1].split('.')[-2:]
  return {parts[0], '.'.join(parts)}


def _commands(module: str) -> tuple[str, ...]:
  fits = [prefix for prefix in COMMANDS if not prefix or module == prefix or module.startswith(f'{prefix}.')]
  return COMMANDS[max(fits, key=len)]


def _references(value, macros) -> Iterator:
  """The references in a value, those behind its macros too."""
  if isinstance(value, gin.config.ConfigurableReference):
    yield value
    if value.selector == 'gin.macro' and value.scopes[-1] in macros:
      yield from _references(macros[value.scopes[-1]], macros)
  elif isinstance(value, dict):
    for part in (*value.keys(), *value.values()):
      yield from _references(part, macros)
  elif isinstance(value, (list, tuple)):
    for part in value:
      yield from _references(part, macros)
