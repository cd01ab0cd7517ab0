"""Batch n is a pure function of (settings, n); packing isolates; nothing is lost unseen."""

import collections
import json
import tempfile
import time

from conftest import write_prepared
import hypothesis
from hypothesis import strategies as st
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np
import pytest

from crossin_jax.data.prepared import PreparedDataError, PreparedMixture, TaskSplit
from crossin_jax.data.stream import (
  FEATURES,
  BatchStream,
  Loader,
  check_resume,
  fingerprint,
  put_batch,
)

BOS = 1


def examples(rng, count, length, *, first=0, mean=12):
  """Examples whose first token says which they are; id 0 occurs everywhere as a real token."""
  result = []
  for i in range(count):
    size = int(np.clip(rng.poisson(mean), 2, length))
    tokens = rng.integers(0, 7, size).astype(np.int32)
    tokens[0] = 1000 + first + i
    weights = rng.choice([0, 0.25, 1], size).astype(np.float32)
    result.append((tokens, weights))
  return result


@pytest.fixture(scope='module')
def synthetic(tmp_path_factory):
  """(directory, name, examples by task): three tasks at uneven rates, one with a volume."""
  directory = tmp_path_factory.mktemp('synthetic')
  rng = np.random.default_rng(0)
  tasks = {
    'a.en': (0.6, None, examples(rng, 150, 32)),
    'b.zh': (0.3, 40, examples(rng, 60, 32, first=10_000, mean=20)),
    'c.vi': (0.1, None, examples(rng, 17, 32, first=20_000, mean=5)),
  }
  name = write_prepared(directory, tasks, max_length=32)
  return str(directory), name, tasks


def stream_of(synthetic, **changes):
  mixture = PreparedMixture(synthetic[0], synthetic[1])
  return BatchStream(mixture, **{'batch_size': 4, 'length': 32, 'seed': 3, 'window': 64, **changes})


def drawn_in(stream, window, fields=None):
  """The indices of a window's examples, or several fields of `windows.Examples`."""
  examples = stream._packed(window).examples
  columns = [getattr(examples, field).tolist() for field in fields or ('indices',)]
  return columns if fields else columns[0]


def segments_of(batch):
  """(row, start, tokens, weights, inputs, positions, task) of every segment, by its id."""
  for row in range(len(batch['decoder_segment_ids'])):
    ids = batch['decoder_segment_ids'][row]
    for segment in range(1, ids.max() + 1):
      place = np.flatnonzero(ids == segment)
      assert (np.diff(place) == 1).all(), 'a segment is one run'
      features = [
        batch[f'decoder_{name}'][row, place]
        for name in ('target_tokens', 'loss_weights', 'input_tokens')
      ]
      yield (
        row,
        place[0],
        *features,
        batch['decoder_positions'][row, place],
        batch['decoder_task_ids'][row, place],
      )


def equal(a, b):
  assert list(a) == list(b) == list(FEATURES)
  for name, dtype in FEATURES.items():
    assert a[name].dtype == dtype
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@hypothesis.given(st.lists(st.integers(0, 300), min_size=1, max_size=6), st.integers(0, 300))
@hypothesis.settings(
  max_examples=20, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_a_batch_is_the_same_whatever_was_read_before(synthetic, before, step):
  reader = stream_of(synthetic)
  for other in before:
    reader.batch(other)
  equal(reader.batch(step), stream_of(synthetic).batch(step))


@hypothesis.given(st.integers(0, 200), st.integers(0, 8), st.integers(0, 8))
@hypothesis.settings(max_examples=20)
def test_some_rows_equal_the_rows_of_the_whole(synthetic, step, a, b):
  stream = stream_of(synthetic, batch_size=8)
  rows = slice(min(a, b), max(a, b))
  whole = stream.batch(step)
  equal(stream.batch(step, rows), {name: array[rows] for name, array in whole.items()})


@pytest.mark.parametrize('hosts', [1, 2, 4])
def test_the_batch_of_several_hosts_is_the_batch_of_one(synthetic, hosts):
  """Each host has a stream of its own and makes its rows only; set together they are the same
  packed rows.
  """
  alone = stream_of(synthetic, batch_size=8)
  streams = [stream_of(synthetic, batch_size=8) for _ in range(hosts)]
  for step in (*range(12), 500, 3):
    parts = [
      stream.batch(step, slice(i * 8 // hosts, (i + 1) * 8 // hosts))
      for i, stream in enumerate(streams)
    ]
    equal(
      {name: np.concatenate([part[name] for part in parts]) for name in FEATURES}, alone.batch(step)
    )


def test_every_segment_is_one_stored_example(synthetic):
  stored = {
    int(tokens[0]): (tokens, weights)
    for _, _, items in synthetic[2].values()
    for tokens, weights in items
  }
  stream = stream_of(synthetic)
  zeros = 0
  for step in range(60):
    batch = stream.batch(step)
    named = stream.examples(step)
    padding = batch['decoder_segment_ids'] == 0
    for name in FEATURES:
      assert not batch[name][padding].any(), f'{name} is not zero in padding'
    # No gap before the last segment: examples stand next to each other.
    assert (np.diff((~padding).astype(int), axis=1) <= 0).all()
    in_row = collections.Counter()
    for row, _, tokens, weights, inputs, positions, task in segments_of(batch):
      expected, expected_weights = stored[int(tokens[0])]
      np.testing.assert_array_equal(tokens, expected)
      np.testing.assert_array_equal(weights, expected_weights)
      np.testing.assert_array_equal(inputs, [BOS, *expected[:-1]])
      np.testing.assert_array_equal(positions, np.arange(len(expected)))
      name, id_ = named[row][in_row[row]]
      assert (task == list(synthetic[2]).index(name)).all() and id_.startswith(f'{name}/')
      assert synthetic[2][name][2][int(id_.split('/')[1])][0][0] == tokens[0]
      in_row[row] += 1
      zeros += (tokens == 0).sum()
  assert zeros > 100  # id 0 is a real token and survives


def test_volume_is_a_prefix_and_rates_are_kept(synthetic):
  stream = stream_of(synthetic, window=512)
  counted = collections.Counter()
  for step in range(stream.rows_per_window * 4 // 4):  # four windows
    for row in stream.examples(step):
      counted.update(row)
  by_task = {task: sum(n for (t, _), n in counted.items() if t == task) for task in synthetic[2]}
  total = sum(by_task.values())
  assert abs(total - 4 * stream.examples_per_window) <= 16
  for task, (rate, _, _) in synthetic[2].items():
    assert abs(by_task[task] - total * rate) < 16
  assert {int(id_.split('/')[1]) for (task, id_), _ in counted.items() if task == 'b.zh'} == set(
    range(40)
  )


@hypothesis.given(
  st.lists(
    st.tuples(st.floats(0.05, 1), st.integers(1, 60), st.integers(2, 60)), min_size=1, max_size=4
  ),
  st.integers(1, 12),
  st.integers(0, 3),
)
@hypothesis.settings(max_examples=25, deadline=None)
def test_rates_and_epochs_hold_after_any_number_of_steps(tasks, batch_size, seed):
  """What any number of batches has read is a prefix of the stream, up to two waiting examples;
  short and long ones, tasks larger and smaller than the window.
  """
  rng = np.random.default_rng(seed)
  with tempfile.TemporaryDirectory() as folder:
    name = write_prepared(folder, {
      f't{t}': (rate, None, examples(rng, count, 64, first=1000 * t, mean=mean))
      for t, (rate, count, mean) in enumerate(tasks)
    }, max_length=64)  # fmt: skip
    stream = BatchStream(
      PreparedMixture(folder, name), batch_size=batch_size, length=64, seed=seed, window=200
    )
    total = sum(rate for rate, _, _ in tasks)
    counted = collections.Counter()
    for step in range(stream.rows_per_window // batch_size):
      for row in stream.examples(step):
        counted.update(row)
      read = sum(counted.values())
      for t, (rate, count, _) in enumerate(tasks):
        of_task = [counted[f't{t}', f't{t}/{i}'] for i in range(count)]
        assert abs(sum(of_task) - read * rate / total) < 1 + 2
        # An example is read again once the others were read, but for those that wait.
        assert max(of_task) - min(of_task) <= 1
      epochs = stream.epochs(step + 1)
      for t, (_, count, _) in enumerate(tasks):
        of_task = sum(n for (task, _), n in counted.items() if task == f't{t}')
        assert abs(epochs[f't{t}'] * count - of_task) <= 3 + sum(map(len, stream.examples(step)))


@pytest.mark.parametrize('batch_size', [2, 8, 64])
def test_alpaca_is_read_at_its_rates_in_full_rows(batch_size, tmp_path, shared_data):
  """Real lengths, equal rates of languages whose texts cost unlike numbers of tokens."""
  tasks = {}
  for language in ('en', 'zh', 'vi'):
    path = shared_data / 'alpaca_parallel' / f'alpaca.{language}.json'
    rows = json.loads(path.read_text(encoding='utf-8'))
    sizes = [len(''.join(map(str, row.values())).encode()) // 4 + 2 for row in rows]
    items = [(np.zeros(n, np.int32), np.ones(n, np.float32)) for n in np.clip(sizes, 2, 2048)]
    tasks[language] = (1.0, None, items)
  name = write_prepared(tmp_path, tasks, max_length=2048)
  stream = BatchStream(PreparedMixture(str(tmp_path), name), batch_size=batch_size, length=2048)
  used, counted = 0, collections.Counter()
  steps = stream.steps_for_epochs(2)
  for step in range(steps):
    counted.update(task for row in stream.examples(step) for task, _ in row)
    used += int((stream.batch(step)['decoder_segment_ids'] > 0).sum())
    if sum(counted.values()) > 300:
      for task in tasks:
        assert abs(counted[task] / sum(counted.values()) - 1 / 3) < 0.01
  assert used / (steps * batch_size * 2048) >= 0.96


def test_a_run_keeps_the_packing_that_it_began_with(synthetic):
  new, old = stream_of(synthetic), stream_of(synthetic, packing='first_fit')
  assert 'packing' not in old.settings and new.settings['packing'] == 'in_order'
  assert new.as_begun(None) is new and new.as_begun(new.settings) is new
  assert new.as_begun(old.settings).settings == old.settings
  equal(new.as_begun(old.settings).batch(5), old.batch(5))
  assert any((new.batch(5)[name] != old.batch(5)[name]).any() for name in FEATURES)
  with pytest.raises(ValueError, match='packing was in_order, now first_fit'):
    check_resume(new.settings, old.as_begun(new.settings).settings)
  with pytest.raises(ValueError, match="packing = 'best' is none of"):
    stream_of(synthetic, packing='best')


def test_every_example_comes_once_an_epoch_and_moved_ones_are_accounted_for(tmp_path):
  """Exactly: in windows 0..W every example drawn is in its window, in the next one, or counted as
  dropped.
  """
  rng = np.random.default_rng(1)
  # Lengths that vary much in small windows, so that examples really move and some are dropped.
  items = [(np.r_[5000 + i, np.zeros(int(n) - 1)].astype(np.int32), np.ones(int(n), np.float32))
           for i, n in enumerate(np.clip(rng.lognormal(2, 1.2, 500), 2, 64))]  # fmt: skip
  directory, name = (
    str(tmp_path),
    write_prepared(tmp_path, {'a': (1.0, None, items)}, max_length=64),
  )
  stream = BatchStream(
    PreparedMixture(directory, name), batch_size=1, length=64, window=32, packing='first_fit'
  )
  # No margin, so that much is moved and some dropped: the rule must hold all the same.
  stream._windows.rows = int(np.ceil(32 * np.mean([len(tokens) for tokens, _ in items]) / 64))
  windows = 60
  rows = stream.rows_per_window
  read = [
    [int(t[0]) - 5000 for _, _, t, *_ in segments_of(stream.batch(step))]
    for step in range(windows * rows)
  ]
  moved = dropped = 0
  seen = collections.Counter()
  for window in range(windows):
    mine = collections.Counter(i for row in read[window * rows : (window + 1) * rows] for i in row)
    seen.update(mine)
    drawn = drawn_in(stream, window)
    previous = drawn_in(stream, window - 1) if window else []
    packed = stream._packed(window).bins
    late = collections.Counter(i for i, bin_ in zip(drawn, packed) if bin_ < 0)
    before = collections.Counter()
    if window:
      before = collections.Counter(
        i for i, bin_ in zip(previous, stream._packed(window - 1).bins) if bin_ < 0
      )
    from_before = mine - (collections.Counter(drawn) - late)
    assert not (from_before - before) and not (collections.Counter(drawn) - late) - mine
    lost = before - from_before
    assert sum(lost.values()) == stream._window(window).dropped
    moved, dropped = moved + sum(from_before.values()), dropped + sum(lost.values())
  assert moved > 20 and dropped > 0, 'the test is to see both'
  pending = sum(stream._packed(windows - 1).bins < 0)
  assert sum(seen.values()) + dropped + pending == windows * 32
  # An epoch is 500 examples: over 1,920 places each is drawn three or four times.
  drawn = collections.Counter(i for w in range(windows) for i in drawn_in(stream, w))
  assert set(drawn.values()) == {3, 4} and len(drawn) == 500


def test_dropped_counts_each_window_once(tmp_path):
  rng = np.random.default_rng(1)
  items = [
    (np.zeros(int(n), np.int32), np.ones(int(n), np.float32))
    for n in np.clip(rng.lognormal(2, 1.2, 500), 2, 64)
  ]
  name = write_prepared(tmp_path, {'a': (1.0, None, items)}, max_length=64)
  stream = BatchStream(
    PreparedMixture(str(tmp_path), name), batch_size=1, length=64, window=32, packing='first_fit'
  )
  stream._windows.rows = int(np.ceil(32 * np.mean([len(tokens) for tokens, _ in items]) / 64)) - 1
  expected = 0
  for _ in range(3):
    for window in range(12):
      stream.batch(window * stream.rows_per_window)
    expected = expected or stream.dropped
  assert expected > 0 and stream.dropped == expected


def test_each_epoch_is_another_permutation_of_all_examples(synthetic):
  stream = stream_of(synthetic, window=64)
  drawn = [
    index
    for window in range(40)
    for task, index in zip(*drawn_in(stream, window, ('tasks', 'indices')))
    if task == 0
  ]
  epochs = [drawn[i : i + 150] for i in range(0, len(drawn) - 150, 150)]
  assert len(epochs) >= 9
  for epoch in epochs:
    assert sorted(epoch) == list(range(150))
  assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def realistic(directory):
  rng = np.random.default_rng(2)
  sizes = np.clip(rng.lognormal(np.log(150) - 0.5 * 0.8**2, 0.8, 20_000), 4, 2048).astype(int)
  assert 140 < sizes.mean() < 160
  items = [(np.zeros(n, np.int32), np.ones(n, np.float32)) for n in sizes]
  half = len(items) // 2
  return write_prepared(
    directory,
    {'a': (0.7, None, items[:half]), 'b': (0.3, None, items[half:])},
    max_length=2048,
    parts=1,
  )


def test_rows_are_full_and_any_batch_is_reached_at_once(tmp_path):
  name = realistic(tmp_path)
  mixture = PreparedMixture(str(tmp_path), name)
  stream = BatchStream(mixture, batch_size=16, length=2048)
  used = total = 0
  for window in range(6):
    packed = stream._window(window)
    used += sum(int(mixture.tasks[t].split.lengths[i]) for row in packed.rows for t, i in row)
    total += len(packed.rows) * 2048
  assert used / total >= 0.96, used / total
  assert stream.dropped == 0
  seconds = []
  for attempt in range(3):
    fresh = BatchStream(mixture, batch_size=16, length=2048)
    start = time.monotonic()
    fresh.batch(100_000 + attempt)
    seconds.append(time.monotonic() - start)
  assert min(seconds) < 1, seconds


def test_settings_tell_every_change(synthetic, tmp_path):
  base = stream_of(synthetic)
  assert fingerprint(base.settings) == fingerprint(stream_of(synthetic).settings)
  rates = {task: (rate, volume, items) for task, (rate, volume, items) in synthetic[2].items()}
  changed = []
  for number, change in enumerate((
      {'a.en': (0.5, None, rates['a.en'][2])},
      {'b.zh': (0.3, 39, rates['b.zh'][2])},
  )):  # fmt: skip
    directory = tmp_path / str(number)
    name = write_prepared(directory, rates | change, max_length=32)
    changed.append(stream_of((str(directory), name)).settings)
  for change in ({'seed': 4}, {'length': 33}, {'batch_size': 5}, {'window': 65}):
    changed.append(stream_of(synthetic, **change).settings)
  prints = [fingerprint(settings) for settings in (base.settings, *changed)]
  assert len(set(prints)) == len(prints)


def test_seed_changes_the_order_and_not_the_contents(synthetic):
  a, b = stream_of(synthetic, seed=1), stream_of(synthetic, seed=2)
  assert a.examples(0) != b.examples(0)


@pytest.mark.parametrize('shape, batch', [((4, 1, 1), 8), ((1, 2, 2), 4), ((2, 2, 1), 12)])
def test_put_batch_and_loader_on_four_devices(synthetic, shape, batch):
  mesh = Mesh(
    np.array(jax.devices()[:4]).reshape(shape),
    ('data', 'fsdp', 'tensor'),
    axis_types=(AxisType.Auto,) * 3,
  )
  sharding = NamedSharding(mesh, PartitionSpec(('data', 'fsdp'), None))
  stream = stream_of(synthetic, batch_size=batch)
  placed = put_batch(stream.batch, 7, (batch, 32), sharding)
  equal({name: np.asarray(array) for name, array in placed.items()}, stream.batch(7))
  ways = shape[0] * shape[1]
  for array in placed.values():
    assert array.sharding.is_equivalent_to(sharding, 2)
    assert {shard.data.shape for shard in array.addressable_shards} == {(batch // ways, 32)}
  loader = Loader(stream_of(synthetic, batch_size=batch), sharding, first_step=5)
  try:
    for step in range(5, 12):
      equal({name: np.asarray(array) for name, array in next(loader).items()}, stream.batch(step))
  finally:
    loader.close()


def test_a_loader_error_reaches_the_reader(synthetic):
  class Broken:
    batch_size, length = 4, 32

    def batch(self, step, rows):
      raise OSError(f'step {step}')

  loader = Loader(Broken(), jax.sharding.SingleDeviceSharding(jax.devices()[0]), 0)
  with pytest.raises(OSError, match='step 0'):
    next(loader)
  loader.close()


def test_rows_shorter_than_an_example_are_refused(synthetic):
  with pytest.raises(ValueError, match='increase the row length'):
    stream_of(synthetic, length=16)


def test_prepared_files_that_do_not_belong_are_refused(tmp_path):
  rng = np.random.default_rng(0)
  name = write_prepared(tmp_path, {'a': (1.0, None, examples(rng, 20, 32))})
  directory = str(tmp_path)
  with pytest.raises(PreparedDataError, match='crossin prepare'):
    PreparedMixture(directory, 'other')
  manifest = tmp_path / 'tasks' / 'a' / 'manifest.json'
  text = manifest.read_text()
  manifest.write_text(text.replace('of a', 'of something else'))
  with pytest.raises(PreparedDataError, match='another version of task a'):
    PreparedMixture(directory, name)
  manifest.write_text(text[: len(text) // 2])
  with pytest.raises(PreparedDataError, match='manifest.json is not valid JSON'):
    PreparedMixture(directory, name)
  manifest.write_text(text)
  arrow = tmp_path / 'tasks' / 'a' / 'train-00000.arrow'
  whole = arrow.read_bytes()
  arrow.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(PreparedDataError, match='train-00000.arrow cannot be read'):
    PreparedMixture(directory, name)
  arrow.unlink()
  with pytest.raises(PreparedDataError, match='train-00000.arrow cannot be read'):
    PreparedMixture(directory, name)


def test_examples_come_back_as_written(tmp_path):
  items = examples(np.random.default_rng(0), 23, 32)
  write_prepared(tmp_path, {'a': (1.0, None, items)}, parts=4)
  split = TaskSplit(str(tmp_path), 'a', 'train')
  assert len(split) == 23 and len(TaskSplit(str(tmp_path), 'a', 'validation')) == 0
  for i, (tokens, weights) in enumerate(items):
    found = split.example(i)
    np.testing.assert_array_equal(found[0], tokens)
    np.testing.assert_array_equal(found[1], weights)
    assert split.id(i) == f'a/{i}' and split.lengths[i] == len(tokens)
  assert [split.first(v) for v in (None, 0, 5, 23, 99)] == [23, 0, 5, 23, 23]
