"""How the examples of one window of a mixture are put into rows: the two packings of a stream.

Both give each window the same number of examples and of rows, so that the window of a row follows
from its number.
"""

import dataclasses
import math

import numpy as np

from crossin_jax.data import mixing, packing

PACKINGS = ('in_order', 'first_fit')


@dataclasses.dataclass(frozen=True)
class Examples:
  """The examples of one window, in mixture order; int64 [examples] each.

  Attributes:
    tasks: index of the task.
    epochs: epoch of the task.
    indices: index in the task.
    lengths: tokens.
  """

  tasks: np.ndarray
  epochs: np.ndarray
  indices: np.ndarray
  lengths: np.ndarray


@dataclasses.dataclass(frozen=True)
class Packed:
  """A window without the examples that the window before leaves to it.

  Attributes:
    examples: of the window.
    bins: int32 [examples], bin of each; -1 = left to the next window.
    room: int64 [bins], tokens left in each bin.
    rows: int64 [bins], row of each bin.
    read: float [bins + 1], how many examples of the window have been read before each row.
  """

  examples: Examples
  bins: np.ndarray
  room: np.ndarray
  rows: np.ndarray
  read: np.ndarray


class InOrder:
  """Each batch is a run of consecutive examples, so that the rates hold in every batch.

  Attributes:
    examples, rows: of each window.
    order: tasks of the positions, in blocks of one window.
  """

  def __init__(self, tasks, lengths, draw, window: int, capacity: int, batch_size: int):
    """Chooses a number of batches, and as many examples as surely fit into them.

    Args:
      tasks: of the prepared mixture.
      lengths: for each task the columns that its examples take, int [examples].
      draw: (TaskOrder, window number) -> `Examples`.
      window: examples; at least those of eight batches are taken.
      capacity: tokens in a row.
      batch_size: rows in a batch.
    """
    self._capacity, self._batch_size = capacity, batch_size
    rates = [task.rate for task in tasks]
    shares = [rate / (1 << 40) for rate in mixing.integer_rates(rates)]
    lengths = [of_task.astype(np.int64) for of_task in lengths]
    mean = sum(share * float(x.mean()) for share, x in zip(shares, lengths))
    window = max(window, math.ceil(8 * batch_size * capacity / mean))
    first = draw(mixing.TaskOrder(rates, window), 0)
    _, room, read = self._pack(first, None)
    batches = len(read) - 2  # the last may not be full
    self.rows = batches * batch_size
    tokens = self.rows * capacity - int(room[: self.rows].sum())
    # A complete epoch has a known number of tokens: only those of two partial ones vary.
    drawn = [min(window * share, len(x) / 2) for share, x in zip(shares, lengths)]
    deviation = math.sqrt(sum(n * float(x.var()) for n, x in zip(drawn, lengths)))
    self.examples = math.floor(max(tokens - 3 * deviation, tokens / 2) / mean)
    self.order = mixing.TaskOrder(rates, self.examples)

  def pack(self, examples: Examples) -> Packed:
    """Packs a window."""
    bins, room, read = self._pack(examples, self.rows // self._batch_size)
    read = np.append(np.repeat(read[:-1], self._batch_size), read[-1])
    return Packed(examples, bins, room, np.arange(self.rows), read)

  def _pack(self, examples: Examples, batches: int | None):
    return packing.in_order(
      examples.lengths, examples.tasks, examples.epochs, self._capacity, self._batch_size, batches
    )


class FirstFit:
  """A whole window as tight as possible: its first rows hold more of its short examples.

  Attributes:
    examples, rows: of each window.
    order: tasks of the positions, in blocks of one window.
  """

  def __init__(self, tasks, lengths, draw, window: int, capacity: int, batch_size: int):
    """As `InOrder`; the first window sets the rows of each window."""
    del lengths, batch_size
    self._capacity, self.examples = capacity, window
    self.order = mixing.TaskOrder([task.rate for task in tasks], window)
    self.rows = packing.rows_for(draw(self.order, 0).lengths, capacity)

  def pack(self, examples: Examples) -> Packed:
    """Packs a window."""
    room = np.full(self.rows, self._capacity)
    bins = packing.first_fit(examples.lengths, self._capacity, room)
    read = np.linspace(0, self.examples, self.rows + 1)  # on average
    return Packed(examples, bins, room, packing.spread_empty_rows(bins, self.rows), read)
