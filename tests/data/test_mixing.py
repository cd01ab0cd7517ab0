"""The order of tasks keeps every prefix fair, whatever the rates, the block size and the order of
reading.
"""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from crossin_jax.data import mixing

ONE = 1 << 40

small = st.floats(1e-9, 1e-4)
ordinary = st.floats(0.001, 1000.0)
counts = st.integers(1, 60_000).map(float)
rate_lists = st.one_of(
  st.lists(st.one_of(ordinary, st.just(0.0)), min_size=1, max_size=30),
  st.lists(st.one_of(small, ordinary), min_size=1, max_size=12),
  st.lists(st.one_of(counts, st.just(0.0)), min_size=1, max_size=30),
  st.integers(1, 30).map(lambda n: [1.0] * n),
).filter(lambda rates: sum(rates) > 0)


def assert_prefixes_fair(order, first, blocks):
  """|count - n r| < 1 at every prefix, in exact integers; ordinals contiguous per task, across
  borders too.
  """
  read = [order.block(index) for index in range(first, first + blocks)]
  tasks, ordinals = (np.concatenate(arrays) for arrays in zip(*read))
  assert (
    len(tasks) == blocks * order.block_size and tasks.min() >= 0 and tasks.max() < len(order.rates)
  )
  places = np.arange(len(tasks)).astype(object) + first * order.block_size + 1
  for task, rate in enumerate(order.rates):
    mine = np.flatnonzero(tasks == task)
    if not len(mine):
      assert rate < ONE and (not rate or len(tasks) * rate < 2 * ONE), f'task {task} never came'
      continue
    start = int(ordinals[mine[0]])
    np.testing.assert_array_equal(ordinals[mine], start + np.arange(len(mine)))
    if first == 0:
      assert start == 0
    counts = start + np.cumsum(tasks == task).astype(object)
    errors = np.abs(counts * ONE - places * rate)
    assert (errors < ONE).all(), (
      task,
      rate / ONE,
      int(places[np.argmax(errors)]),
      max(errors) / ONE,
    )


@hypothesis.given(rate_lists, st.integers(1, 40))
def test_every_prefix_is_fair_from_the_start(rates, block_size):
  assert_prefixes_fair(mixing.TaskOrder(rates, block_size), 0, 8)


@hypothesis.given(rate_lists, st.integers(1, 64), st.integers(1, 10**4))
def test_every_prefix_is_fair_far_away(rates, block_size, first):
  assert_prefixes_fair(mixing.TaskOrder(rates, block_size), first, 4)


def test_every_prefix_is_fair_in_large_blocks():
  rng = np.random.default_rng(0)
  for tasks in (2, 7, 30):
    assert_prefixes_fair(mixing.TaskOrder(rng.integers(1, 50_000, tasks), 2048), 0, 3)
  assert_prefixes_fair(mixing.TaskOrder([1.0, 1e-7, 0, 3e-4], 2048), 0, 4)


@hypothesis.given(rate_lists, st.integers(1, 12))
def test_blocks_are_one_schedule_cut_anywhere(rates, block_size):
  """Blocks reached from their border alone, laid end to end, are the schedule that was never
  interrupted.
  """
  whole = mixing.TaskOrder(rates, 40 * block_size).block(0)
  cut = mixing.TaskOrder(rates, block_size)
  for i, array in enumerate(whole):
    np.testing.assert_array_equal(np.concatenate([cut.block(b)[i] for b in range(40)]), array)


@hypothesis.given(rate_lists, st.integers(1, 50), st.integers(0, 10_000))
def test_a_block_alone_equals_the_block_after_others(rates, block_size, index):
  alone = mixing.TaskOrder(rates, block_size).block(index)
  reader = mixing.TaskOrder(rates, block_size)
  for other in (*range(max(0, index - 3), index), index + 2):
    reader.block(other)
  for a, b in zip(alone, reader.block(index)):
    np.testing.assert_array_equal(a, b)


def test_block_against_a_brute_force_of_counts():
  """Integer counts over one whole period come out exactly, the published proportionate fairness."""
  counts = [3, 5, 1, 11, 0, 12]
  order = mixing.TaskOrder(counts, 8)
  tasks = np.concatenate([order.block(b)[0] for b in range(sum(counts))])
  for period in range(8):
    found = np.bincount(tasks[period * 32 : (period + 1) * 32], minlength=6)
    # 2**40 is a multiple of the period's 32 places, so rates are exact here.
    np.testing.assert_array_equal(found, counts)


@hypothesis.given(rate_lists)
def test_integer_rates_sum_and_round_by_less_than_one(rates):
  found = mixing.integer_rates(rates)
  assert sum(found) == ONE
  for whole, rate in zip(found, rates):
    # Floats carry 53 bits, so the exact share may be off by 2**40 * 2**-52 per term.
    assert abs(whole - rate / sum(rates) * ONE) < 1.01
    if rate == 0:
      assert whole == 0


@pytest.mark.parametrize(
  'rates', [[], [0.0, 0.0], [-1.0, 2.0], [float('nan')], [float('inf'), 1.0]]
)
def test_impossible_rates_are_refused(rates):
  with pytest.raises(ValueError, match='rates'):
    mixing.integer_rates(rates)


def test_permute_is_a_bijection_for_every_small_size():
  for size in [*range(1, 400), *range(400, 2001, 37), 1024, 1025, 2000]:
    found = mixing.permute(np.arange(size), size, size * 7919 + 3)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(np.sort(found), np.arange(size))


@hypothesis.given(st.integers(1, 100_000), st.integers(0, 2**64 - 1))
@hypothesis.settings(max_examples=25)
def test_permute_is_a_bijection_for_any_size_and_key(size, key):
  found = mixing.permute(np.arange(size), size, key)
  assert (
    np.bincount(found, minlength=size).max() == 1 and found.min() == 0 and found.max() == size - 1
  )


@hypothesis.given(st.integers(1, 10**12), st.integers(0, 2**64 - 1), st.data())
def test_permute_at_one_place_equals_permute_of_many(size, key, data):
  places = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)))
  whole = mixing.permute(places, size, key)
  assert (whole >= 0).all() and (whole < size).all()
  np.testing.assert_array_equal(
    whole, [mixing.permute(places[i : i + 1], size, key)[0] for i in range(len(places))]
  )


def test_permute_depends_on_its_key():
  size = 1000
  tables = [mixing.permute(np.arange(size), size, mixing.fold(seed)) for seed in range(20)]
  for i, a in enumerate(tables):
    for b in tables[:i]:
      # Two random permutations agree at Poisson(1) places.
      assert (a == b).sum() < 12


@pytest.mark.parametrize('size', [64, 1000, 4096])
def test_permute_looks_random(size):
  """Chi-square of where 16 blocks of places land, serial correlation, and fixed points, over many
  keys.
  """
  keys = [mixing.fold('random', seed) for seed in range(200)]
  tables = np.stack([mixing.permute(np.arange(size), size, key) for key in keys])
  # Over keys, each place lands in each of 8 ranges equally often: chi-square with 7 degrees of
  # freedom per place.
  ranges = tables * 8 // size
  expected = len(keys) * np.bincount(np.arange(size) * 8 // size, minlength=8) / size
  counted = np.stack([(ranges == r).sum(axis=0) for r in range(8)])
  chi = ((counted - expected[:, None]) ** 2 / expected[:, None]).sum(axis=0)
  assert abs(chi.mean() - 7) < 5 * np.sqrt(14 / size) + 0.2, chi.mean()
  # Neighbours go to unrelated places.
  centred = tables - (size - 1) / 2
  correlation = (centred[:, 1:] * centred[:, :-1]).mean() / (centred**2).mean()
  assert abs(correlation) < 5 / np.sqrt(size * len(keys)) + 1 / size
  # Fixed points of random permutations: one on average.
  assert 0.6 < (tables == np.arange(size)).sum(axis=1).mean() < 1.4


def test_fold_tells_its_parts_apart():
  parts = [(), (0,), ('0',), (0, 0), ('a', 'b'), ('ab',), (1, 'a'), ('a', 1)]
  keys = [mixing.fold(*p) for p in parts]
  assert len(set(keys)) == len(parts) and all(0 <= key < 2**64 for key in keys)
  # The same on every machine and in every version: prepared volumes and old runs depend on it.
  assert mixing.fold(1, 'a') == 8415240736594023236
