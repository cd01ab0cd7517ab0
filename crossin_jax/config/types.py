"""Whether a literal has the type that its parameter is annotated with; gin accepts anything."""

import collections.abc
import types
import typing

from crossin_jax.config import registry

_SEQUENCES = (
  tuple,
  list,
  collections.abc.Sequence,
  collections.abc.Iterable,
  collections.abc.Collection,
)


def fits(value, annotation) -> bool:
  """Whether a literal has the annotated type; only plain types are checked."""
  if value is registry.UNKNOWN or annotation is typing.Any:
    return True
  origin = typing.get_origin(annotation)
  if origin in (typing.Union, types.UnionType):
    return any(fits(value, argument) for argument in typing.get_args(annotation))
  if annotation is type(None) or annotation is None:
    return value is None
  if annotation is float:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
  if annotation is int:
    return isinstance(value, int) and not isinstance(value, bool)
  if annotation in (str, bool):
    return isinstance(value, annotation)
  if origin in (tuple, list) or annotation in (tuple, list):
    return isinstance(value, (tuple, list)) or not isinstance(value, (str, int, float, bool, dict))
  if origin is dict or annotation is dict:
    return isinstance(value, dict) or not isinstance(value, (str, int, float, bool, list, tuple))
  return True


def in_words(annotation) -> str:
  """'int', 'tuple[str, ...] | None'."""
  return str(getattr(annotation, '__name__', annotation)).replace('typing.', '')


def arms(annotation) -> tuple:
  """The types of which a value may have any: (str, NoneType) of `str | None`."""
  if typing.get_origin(annotation) in (typing.Union, types.UnionType):
    return typing.get_args(annotation)
  return (annotation,)


def is_text(annotation) -> bool:
  """Whether a value may be a text."""
  literal = lambda arm: (
    typing.get_origin(arm) is typing.Literal
    and all(isinstance(choice, str) for choice in typing.get_args(arm))
  )
  return any(arm is str or literal(arm) for arm in arms(annotation))


def is_sequence(annotation) -> bool:
  """Whether a value may be a tuple."""
  return any((typing.get_origin(arm) or arm) in _SEQUENCES for arm in arms(annotation))


def has_texts(annotation) -> bool:
  """Whether a value may be a tuple of texts."""
  return is_sequence(annotation) and any(
    typing.get_args(arm)[:1] == (str,)
    for arm in arms(annotation)
    if typing.get_origin(arm) in _SEQUENCES
  )


def of_value(value) -> typing.Any:
  """The annotation that a value suggests: `str | None` for a text, Any where it suggests none."""
  if isinstance(value, str):
    return str | None
  if isinstance(value, (tuple, list)):
    texts = value and all(isinstance(part, str) for part in value)
    return tuple[str, ...] | None if texts else tuple | None
  return typing.Any
