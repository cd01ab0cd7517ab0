"""Reading and checking of records, for several file formats."""

from collections.abc import Callable, Mapping, Sequence
import os

from crossin_jax.storage.records import read_records


def collect(path: str | os.PathLike, parse: Callable, problems: list[str], name: Callable) -> dict:
  """The records of a file by key.

  Args:
    path: see `read_records`.
    parse: (record, where) -> (key, value); raises ValueError for a malformed record.
    problems: receives a message for each malformed or repeated record.
    name: key -> its name in messages.
  """
  values, positions = {}, {}
  for where, record in read_records(path, problems):
    try:
      key, value = parse(record, where)
      if key in values:
        raise ValueError(f'{name(key)} was already given in {positions[key]}; keep one of them')
    except ValueError as error:
      problems.append(f'{where}: {error}')
      continue
    values[key], positions[key] = value, where
  return values


def item_id(record: Mapping) -> str:
  """The field 'id' as a string.

  Raises:
    ValueError: it is missing, empty, or neither a string nor an integer.
  """
  value = record.get('id')
  if isinstance(value, bool) or not isinstance(value, (str, int)) or value == '':
    raise ValueError(f"'id' must be a string or an integer, found {value!r}")
  return str(value)


def are_strings(value, least: int = 1) -> bool:
  """Whether a value is a list of at least `least` strings."""
  is_list = isinstance(value, list) and len(value) >= least
  return is_list and all(isinstance(element, str) for element in value)


def first_of(record: Mapping, names: Sequence[str]):
  """Value of the first of several fields that the record has; None without any."""
  return next((record[name] for name in names if name in record), None)


def message(head: str, problems: Sequence[str], most: int | None = None) -> str:
  """An error message that lists problems, one per line, at most `most` of them."""
  more = [f'and {len(problems) - most} more'] if most and len(problems) > most else []
  return '\n  '.join([head, *problems[:most], *more])
