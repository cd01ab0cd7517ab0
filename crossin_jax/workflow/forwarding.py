"""Forwards the gin settings of a pipeline to the commands of its steps."""

from collections.abc import Collection, Iterable, Sequence
import importlib
from typing import NamedTuple

from crossin_jax import config

MACROS = ('train', 'chunks')  # receive macros that no forwarded setting uses, such as BATCH_SIZE
# These settings do not change the output of a step, so they do not make it stale.
UNCOUNTED = frozenset({
  'MESH_SHAPE', 'Partitioner', 'standard_logical_axis_rules', 'compiled_programs',
  'CheckpointConfig', 'Generator',
  'ChunkWorker.rows', 'ChunkWorker.partitioner', 'train.log_period', 'train.microbatches',
  'train.partitioner',
  'train.checkpoint_config',
})  # fmt: skip
_KNOWN = ('crossin_jax.train', 'crossin_jax.evaluation.heldout',
          'crossin_jax.evaluation.evaluators',
          'crossin_jax.models.huggingface.families',
          'seqio_tasks.mixtures',
          'seqio_tasks.sources')  # fmt: skip


class _Binding(NamedTuple):
  """A setting: name as in gin files, value, modules to import, commands that receive it."""

  name: str
  value: object
  modules: tuple[str, ...]
  commands: tuple[str, ...]


def known_macros() -> set[str]:
  """Macros of training and models, which a pipeline forwards although none of its settings use
  them.
  """
  return config.shipped_macros('models', 'runs')


def make_known(*modules: str) -> None:
  """Imports all configurables, so that gin checks their names before the first step.

  Args:
    *modules: further ones, which only this pipeline runs.
  """
  for module in (*_KNOWN, *modules):
    importlib.import_module(module)


class ForwardedSettings:
  """Settings that a pipeline forwards to the commands of its steps."""

  def __init__(self, bindings: Sequence[_Binding] = ()):
    self._bindings = tuple(bindings)

  @classmethod
  def from_gin(
    cls, set_by_steps: Collection[str], placeholders: Collection[str] = ()
  ) -> 'ForwardedSettings':
    """The settings in gin files and flags, except those of the pipeline itself.

    Args:
      set_by_steps: macros that the steps set.
      placeholders: those of them that `config.parse_with` has set; they are left out.

    Raises:
      ConfigError: a setting that differs between the steps.
    """
    macros = {name: value for name, value in config.macros().items() if name not in placeholders}
    if wrong := [name for name in set_by_steps if name in macros]:
      raise config.ConfigError(
        f'{wrong[0]} is another in every step of the pipeline; take it out (the output '
        'directory says where)'
      )
    forwarded, used = [], {(): set()}  # commands -> macros that their settings use
    for name, value, module, commands in config.bindings():
      references = list(config.references(value))
      used.setdefault(commands, set()).update(
        r.scopes[-1] for r in references if config.is_macro(r)
      )
      if commands:
        forwarded.append(
          _Binding(name, value, tuple(sorted({module, *_modules(references)})), commands)
        )
    for name, value in macros.items():
      users = [commands for commands, names in used.items() if name in names]
      commands = {c for commands in users for c in commands}
      if not users and name in known_macros():
        commands = set(MACROS)
      if commands:
        order = tuple(c for c in (*MACROS, 'prepare', 'evaluate') if c in commands)
        forwarded.append(
          _Binding(name, value, tuple(sorted(_modules(config.references(value)))), order)
        )
    return cls(sorted(forwarded, key=lambda binding: binding.name))

  def flags(self, command: str) -> list[str]:
    """Flags of one of the commands."""
    bindings = [binding for binding in self._bindings if command in binding.commands]
    modules = sorted({module for binding in bindings for module in binding.modules})
    # The imports register configurables that the command itself does not import.
    return [f'--gin_bindings=import {m}' for m in modules] + [
      f'--gin_bindings={b.name} = {b.value!r}' for b in bindings
    ]

  def received(self, command: str) -> dict[str, str]:
    """All settings that a command receives and its output depends on: name -> value as text."""
    return _as_text(binding for binding in self._bindings if command in binding.commands)

  def counted(self, *commands: str) -> dict[str, str]:
    """Settings on which the output of commands depends: name -> value as text."""
    return _as_text(binding for binding in self._bindings if binding.commands[0] in commands)


def _as_text(bindings: Iterable[_Binding]) -> dict[str, str]:
  return {b.name: repr(b.value) for b in bindings if not _names(b.name) & UNCOUNTED}


def _names(binding: str) -> set[str]:
  """_names('a/b.train.log_period') == {'train', 'train.log_period'}; for a macro its name."""
  parts = binding.split('/')[-1].split('.')[-2:]
  return {parts[0], '.'.join(parts)}


def _modules(references) -> set[str]:
  """Modules of the configurables that the references name, except macros."""
  return {r.configurable.wrapped.__module__ for r in references if not config.is_macro(r)}
