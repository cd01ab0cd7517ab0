"""Aligns rows of several languages by id or by position and counts the unusable rows."""

import collections
from collections.abc import Iterator, Mapping, Sequence
import dataclasses

import numpy as np

from crossin_jax.data.conversations import FAULTS as ROW_FAULTS
from crossin_jax.data.source_errors import SourceError
from seqio_tasks.columns import FAULTS, Column


@dataclasses.dataclass(frozen=True)
class Table:
  """Aligned rows.

  Attributes:
    columns: language -> its rows as read.
    places: language -> int64 [rows]: row i is row places[language][i] of the column.
    by_id: whether rows were aligned by id; if not, a row's id is its number in the file.
    set_aside: (language, reason) -> rows left out.
  """

  columns: Mapping[str, Column]
  places: Mapping[str, np.ndarray]
  by_id: bool
  set_aside: dict[tuple[str, str], int]

  def __len__(self) -> int:
    return len(next(iter(self.places.values())))

  @property
  def ids(self) -> 'Ids':
    """The ids of the rows."""
    return Ids(self)

  def id(self, index: int) -> str:
    """The id of row `index`."""
    language = next(iter(self.columns))
    place = int(self.places[language][index])
    return self.columns[language].id(place) if self.by_id else str(place)

  def texts(self, index: int, language: str) -> tuple[str, str, str]:
    """Instruction, input and output of row `index`."""
    return self.columns[language].texts(self.places[language][index])

  def messages(self, index: int, language: str) -> list[dict[str, str]]:
    """The messages of row `index`; [] where it is one question and one answer."""
    return self.columns[language].messages(self.places[language][index])

  def fields(self, language: str) -> Iterator[tuple[bytes | None, ...]]:
    """Id as in the file, instruction, input and output of every row, in UTF-8, and messages as
    JSON of a row that has some.
    """
    return self.columns[language].fields(self.places[language])


class Ids(Sequence):
  """The ids of the rows of a table, read lazily; equal to a list of the same strings."""

  __hash__ = None

  def __init__(self, table: Table):
    self._table = table

  def __len__(self) -> int:
    return len(self._table)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return [self._table.id(i) for i in range(*index.indices(len(self)))]
    return self._table.id(index)

  def __iter__(self) -> Iterator[str]:
    language = next(iter(self._table.columns))
    if self._table.by_id:
      return (fields[0].decode() for fields in self._table.fields(language))
    return map(str, self._table.places[language])

  def __eq__(self, other) -> bool:
    if not isinstance(other, Sequence) or isinstance(other, str):
      return NotImplemented
    return len(self) == len(other) and all(a == b for a, b in zip(self, other))

  def __repr__(self) -> str:
    return (
      repr(self[:]) if len(self) <= 8 else f'<{len(self):,} ids from {self[0]!r} to {self[-1]!r}>'
    )


def aligned(columns: Mapping[str, Column], align: str) -> Table:
  """The rows that exist and are usable in all languages.

  Args:
    columns: language -> rows; the order of the first decides.
    align: 'id', 'position', or 'auto' = by id if every row of every language has one.

  Raises:
    SourceError: see `ParallelFiles.align`.
  """
  by_id = (
    align == 'id' or align == 'auto' and all(column.has_id.all() for column in columns.values())
  )
  if by_id:
    places, set_aside = _by_id(columns)
  else:
    _check_positions(columns, check_ids=align == 'auto')
    places, set_aside = dict.fromkeys(columns, np.arange(len(next(iter(columns.values()))))), {}
  usable = np.ones(len(next(iter(places.values()))), bool)
  counts = collections.Counter(set_aside)
  first = next(iter(columns))
  turns = columns[first].turns[places[first]]
  for language, column in columns.items():
    faults = column.text_faults[places[language]]
    unequal = (faults == 0) & (column.turns[places[language]] != turns)
    faults = np.where(unequal, FAULTS.index('turns_not_aligned'), faults)
    if by_id:
      # An unusable id stands between what is wrong with the whole row and what is wrong with a
      # character of it.
      id_faults = column.id_faults[places[language]]
      faults = np.where((id_faults > 0) & ~np.isin(faults, _OF_THE_ROW), id_faults, faults)
    for fault, count in enumerate(np.bincount(faults[usable], minlength=len(FAULTS)).tolist()):
      if fault and count:
        counts[language, FAULTS[fault]] += count
    usable &= faults == 0
  places = {language: place[usable] for language, place in places.items()}
  for column in columns.values():
    column.forget_bookkeeping()
  return Table(columns, places, by_id, dict(counts))


_OF_THE_ROW = [
  FAULTS.index(fault) for fault in ('empty_response', 'too_long', 'turns_not_aligned', *ROW_FAULTS)
]


def _by_id(
  columns: Mapping[str, Column],
) -> tuple[dict[str, np.ndarray], dict[tuple[str, str], int]]:
  """Rows that all languages have, in the order of the first; the other rows are counted."""
  orders = {}  # language -> places sorted by id digest
  for language, column in columns.items():
    orders[language] = np.argsort(column.id_digests, kind='stable')
    _check_ids(language, column, orders[language])
  first, *others = columns
  wanted = columns[first].id_digests
  places, found = {first: np.arange(len(wanted))}, np.ones(len(wanted), bool)
  for other in others:
    order, digests = orders[other], columns[other].id_digests
    at = np.minimum(np.searchsorted(digests, wanted, sorter=order), len(order) - 1)
    places[other] = order[at]
    found &= digests[places[other]] == wanted
  if not found.any():
    examples = ', '.join(
      f'{column.id(0)!r} in {column.file} ({language})' for language, column in columns.items()
    )
    raise SourceError(
      f'no id occurs in all of {", ".join(columns)}; the first ids are {examples}. Give rows that '
      'belong together '
      "the same id, or set align = 'position' if row n belongs to row n"
    )
  kept = int(found.sum())
  lone = {(language, 'no_counterpart'): len(column) - kept for language, column in columns.items()}
  return {language: place[found] for language, place in places.items()}, {
    k: n for k, n in lone.items() if n
  }


def _check_ids(language: str, column: Column, order: np.ndarray) -> None:
  """Raises an error for the first row without an id or with a duplicate id."""
  digests = column.id_digests[order]
  # the sort is stable: of equal ids all but the first
  again = order[1:][digests[1:] == digests[:-1]]
  without = np.flatnonzero(~column.has_id)
  if not len(again) and not len(without):
    return
  # Rows without an id have equal digests, so the first of them comes before its repetitions.
  place = int(np.concatenate([again, without]).min())
  where = f'{column.file}, row {column.number(place)} (counted from 0)'
  if not column.has_id[place]:
    raise SourceError(f"{where}: field 'id' is missing; add it, or set align = 'position'")
  first = int(np.flatnonzero(column.id_digests == column.id_digests[place])[0])
  raise SourceError(
    f'{where}: id {column.id(place)!r} of language {language!r} is already that of row '
    f'{column.number(first)}; '
    "make ids unique, or set align = 'position' if each language has its own file"
  )


def _check_positions(columns: Mapping[str, Column], check_ids: bool) -> None:
  """Raises an error for unequal numbers of rows, or for ids that contradict the order."""
  first, *others = columns.values()
  for other in others:
    both = min(len(first), len(other))
    unequal = (
      first.has_id[:both]
      & other.has_id[:both]
      & (first.id_digests[:both] != other.id_digests[:both])
    )
    differing = int(unequal.argmax()) if unequal.any() else None
    parting = 'without ids the first unequal row is unknown'
    if differing is not None:
      parting = (
        f'the first unequal row is {differing} (counted from 0), id {first.id(differing)!r} in '
        f'{first.file}, '
        f'{other.id(differing)!r} in {other.file}'
      )
    elif first.has_id.any() and other.has_id.any():
      parting = f'ids are equal up to the end of the shorter file, row {both - 1} (counted from 0)'
    if len(first) != len(other):
      lengths = ', '.join(f'{column.file} has {len(column)}' for column in columns.values())
      raise SourceError(
        f'files aligned by position have unequal numbers of rows: {lengths}; {parting}. '
        'Mend the files, or give every row an id'
      )
    if check_ids and differing is not None:
      raise SourceError(
        f'files with an id in some rows only are aligned by position, but {parting}. Give every '
        'row an id, '
        "or set align = 'position' if the ids do not matter"
      )
