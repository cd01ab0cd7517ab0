"""First fit against a brute force, the spreading of empty rows, and rows packed tightly."""

import hypothesis
from hypothesis import strategies as st
import numpy as np

from crossin_jax.data import packing


def brute_force(lengths, capacity, room):
  room, bins = list(room), []
  for length in lengths:
    place = next((i for i, r in enumerate(room) if length <= capacity and r >= length), -1)
    if place >= 0:
      room[place] -= length
    bins.append(place)
  return bins, room


@hypothesis.given(
  st.lists(st.integers(1, 40), max_size=80),
  st.integers(1, 32),
  st.lists(st.integers(0, 32), min_size=1, max_size=33),
)
def test_first_fit_equals_brute_force(lengths, capacity, rooms):
  room = np.minimum(rooms, capacity)
  expected, left = brute_force(lengths, capacity, room)
  bins = packing.first_fit(lengths, capacity, room)
  assert bins.dtype == np.int32
  assert bins.tolist() == expected
  assert room.tolist() == left


def test_first_fit_example_of_its_docstring():
  assert packing.first_fit([5, 4, 3, 2], 8, np.full(2, 8)).tolist() == [0, 1, 0, 1]


@hypothesis.given(st.integers(1, 40), st.data())
def test_spread_empty_rows_is_a_permutation_that_keeps_order(rows, data):
  bins = np.array(data.draw(st.lists(st.integers(-1, rows - 1), max_size=60)), np.int64)
  place = packing.spread_empty_rows(bins, rows)
  assert sorted(place.tolist()) == list(range(rows))
  used = sorted(set(bins[bins >= 0].tolist()))
  empty = [row for row in range(rows) if row not in used]
  assert (np.diff(place[used]) > 0).all() and (np.diff(place[empty]) > 0).all()
  if empty and used:
    # Evenly: every run of k rows holds its share of empty ones, up to two.
    is_empty = np.zeros(rows, bool)
    is_empty[place[empty]] = True
    counted = np.cumsum(is_empty)
    assert np.abs(counted - len(empty) / rows * np.arange(1, rows + 1)).max() <= 2


@hypothesis.given(st.lists(st.integers(1, 64), min_size=1, max_size=300), st.integers(0, 5))
def test_rows_for_holds_its_own_window(lengths, seed):
  lengths = np.array(lengths)
  rows = packing.rows_for(lengths, 64)
  assert rows * 64 >= lengths.sum()
  assert (packing.first_fit(lengths, 64, np.full(rows, 64)) >= 0).all()
  # Not lavish: at most twice what is needed (first fit) and the margin.
  margin = 3 * lengths.std() * np.sqrt(2 * len(lengths)) / 64
  assert rows <= 2 * lengths.sum() / 64 + 2 + margin


def test_rows_for_holds_almost_all_of_another_window():
  rng = np.random.default_rng(0)
  draw = lambda: np.clip(rng.lognormal(4.5, 0.9, 4096), 5, 1024).astype(int)
  late = []
  for _ in range(20):
    rows = packing.rows_for(draw(), 1024)
    late.append((packing.first_fit(draw(), 1024, np.full(rows, 1024)) < 0).sum())
  assert np.mean(late) < 4 and np.median(late) == 0


def test_packed_rows_hold_every_item_once_and_fit():
  assert packing.packed_rows(np.array([2, 5, 4]), 6) == [[1], [2, 0]]
  lengths = np.random.default_rng(0).integers(1, 20, 100)
  rows = packing.packed_rows(lengths, 20)
  assert sorted(item for row in rows for item in row) == list(range(100))
  assert max(lengths[row].sum() for row in rows) <= 20
