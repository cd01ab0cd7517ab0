"""gin's private registry: what can be set, what is bound. gin has no public list of either."""

from collections.abc import Iterator
import inspect
import typing
from typing import NamedTuple

import gin

from crossin_jax.config import docstrings

# pylint: disable=protected-access


class Binding(NamedTuple):
  """One bound parameter.

  Attributes:
    name: as users write it: 'train.log_period', with its scope 'eval/Sampling.top_k'.
    value: with references unresolved.
    module: that defines the configurable.
    commands: see `configurable`.
  """

  name: str
  value: object
  module: str
  commands: tuple[str, ...]


def bindings() -> Iterator[Binding]:
  """All bound parameters except macros."""
  for (scope, selector), values in gin.config._CONFIG.items():
    if selector == 'gin.macro':
      continue
    wrapped = gin.config._REGISTRY[selector].wrapped
    short = gin.config._REGISTRY.minimal_selector(selector)
    for name, value in values.items():
      yield Binding(
        f'{scope}/{short}.{name}'.lstrip('/'),
        value,
        wrapped.__module__,
        getattr(wrapped, 'gin_commands', ('train',)),
      )


def macros() -> dict[str, object]:
  """Name -> value of all macros, references unresolved."""
  return {
    scope: values['value']
    for (scope, selector), values in gin.config._CONFIG.items()
    if selector == 'gin.macro'
  }


def references(value) -> Iterator:
  """The references in a value, those behind its macros included."""
  if isinstance(value, gin.config.ConfigurableReference):
    yield value
    known = macros()
    if is_macro(value) and value.scopes[-1] in known:
      yield from references(known[value.scopes[-1]])
  elif isinstance(value, dict):
    for part in (*value.keys(), *value.values()):
      yield from references(part)
  elif isinstance(value, (list, tuple)):
    for part in value:
      yield from references(part)


def is_macro(reference) -> bool:
  """Whether a reference is `%NAME`."""
  return reference.selector == 'gin.macro'


def is_required(value) -> bool:
  """Whether a value is `%gin.REQUIRED`."""
  return isinstance(value, gin.config.ConfigurableReference) and (value.selector, value.scopes) == (
    'gin.constant',
    ['gin.REQUIRED'],
  )


def used_macros() -> set[str]:
  """Macros that any value refers to."""
  every = [value for values in gin.config._CONFIG.values() for value in values.values()]
  return {r.scopes[-1] for value in every for r in references(value) if is_macro(r)}


def configurables() -> dict[str, typing.Any]:
  """Selector -> gin's entry of everything that was registered."""
  return dict(gin.config._REGISTRY.items())


def entry(selector: str):
  """gin's entry of a configurable, by any part of its name that is enough; None = there is none.

  Raises:
    ValueError: several match.
  """
  return gin.config._REGISTRY.get_match(selector.split('/')[-1])


def parameters(found) -> list[inspect.Parameter]:
  """The parameters that gin may set."""
  no = {'parent', 'name'} if hasattr(found.wrapped, 'scope') else set()  # of every Flax module
  no |= set(found.denylist or ())
  return [
    p
    for p in inspect.signature(found.wrapped).parameters.values()
    if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    and p.name not in no
    and p.name in (found.allowlist or [p.name])
    and not p.name.startswith('_')
  ]


def annotations(found) -> dict[str, typing.Any]:
  """Parameter -> its type, without those that cannot be resolved."""
  function = found.wrapped.__init__ if inspect.isclass(found.wrapped) else found.wrapped
  try:
    return typing.get_type_hints(function)
  except Exception:  # an annotation that cannot be resolved is no check
    return {}


def meaning(found, parameter: str) -> str:
  """The first sentence that the docstring says of a parameter; '' = nothing."""
  texts = docstrings.described(docstrings.of(found.wrapped))
  return docstrings.first_sentence(texts.get(parameter, ''))


def users(macro: str) -> list[tuple[typing.Any, str]]:
  """(gin's entry, parameter) of everything that is bound to `%macro` itself, through other macros
  too.
  """
  found, names = [], {macro}
  for _ in range(10):  # macros of macros
    more = {name for name, value in macros().items() if _macro_of(value) in names} - names
    names |= more
    if not more:
      break
  for (_, selector), values in gin.config._CONFIG.items():
    if selector != 'gin.macro':
      found += [
        (gin.config._REGISTRY[selector], name)
        for name, value in values.items()
        if _macro_of(value) in names
      ]
  return found


def _macro_of(value) -> str | None:
  is_reference = isinstance(value, gin.config.ConfigurableReference)
  return value.scopes[-1] if is_reference and is_macro(value) else None


UNKNOWN = object()  # what only a call of the configurable tells


def literal_behind(value):
  """The literal that a value is or, as a macro, has; UNKNOWN for references to configurables."""
  for _ in range(10):
    if not isinstance(value, gin.config.ConfigurableReference):
      return value
    if not is_macro(value):
      return UNKNOWN
    value = macros().get(value.scopes[-1], UNKNOWN)
  return UNKNOWN
