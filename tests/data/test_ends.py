"""Where sources end: epochs, a source of one row, a source of none, a rate of zero."""

import json
import warnings

from conftest import write_prepared
import numpy as np
import pytest

from crossin_jax.data.prepared import PreparedDataError, PreparedMixture
from crossin_jax.data.stream import BatchStream, check_resume


def examples(count, length=5):
  return [(np.full(length, 10 + i, np.int32), np.ones(length, np.float32)) for i in range(count)]


def open_stream(directory, tasks, batch_size=2, **kwargs):
  name = write_prepared(directory, tasks)
  return BatchStream(
    PreparedMixture(str(directory), name), batch_size=batch_size, length=64, window=256, **kwargs
  )


def read(stream, steps):
  """How often each (task, id) was read in the first `steps` batches."""
  seen: dict = {}
  for step in range(steps):
    for row in stream.examples(step):
      for key in row:
        seen[key] = seen.get(key, 0) + 1
  return seen


def test_a_source_of_one_row_is_read_again_and_again(tmp_path):
  stream = open_stream(
    tmp_path, {'one.en': (0.25, None, examples(1)), 'many.en': (0.75, None, examples(90))}
  )
  seen = read(stream, 20)
  one = seen['one.en', 'one.en/0']
  assert one == pytest.approx(sum(seen.values()) / 4, abs=stream.window_size / 4)
  assert one > 20


@pytest.mark.parametrize(
  'empty', [(0.5, None, []), (0.0, None, examples(7)), (0.5, 0, examples(7))]
)
def test_a_source_of_none_or_a_rate_of_zero_is_left_out_and_said(tmp_path, empty):
  with pytest.warns(
    UserWarning, match='task none.en is skipped, .* the other rates keep their proportions'
  ):
    stream = open_stream(
      tmp_path,
      {'none.en': empty, 'a.en': (0.1, None, examples(50)), 'b.en': (0.3, None, examples(50))},
    )
  seen = read(stream, stream.rows_per_window // 2)
  tasks = [task for task, _ in seen for _ in range(seen[task, _])]
  assert set(tasks) == {'a.en', 'b.en'}
  assert tasks.count('b.en') == pytest.approx(3 * tasks.count('a.en'), rel=0.1)


def test_nothing_at_all_is_an_error(tmp_path):
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    with pytest.raises(PreparedDataError, match='has no example in split'):
      open_stream(tmp_path, {'none.en': (1.0, None, [])})


@pytest.mark.parametrize(
  'parts, advice',
  [
    ({'validation_rows': 0}, 'because MixtureSettings.validation_rows = 0. Prepare it with more'),
    ({'validation_rows': 200}, 'validation_rows = 200: at most a twentieth .* fewer than 20 rows'),
    ({}, 'of at least 20 rows'),
  ],
)
def test_no_validation_rows_say_what_gives_them(tmp_path, parts, advice):
  name = write_prepared(tmp_path, {'a.en': (1.0, None, examples(9))})
  manifest = tmp_path / 'tasks' / 'a.en' / 'manifest.json'
  saved = json.loads(manifest.read_text())
  manifest.write_text(json.dumps({**saved, 'fingerprint_parts': parts}))
  with pytest.raises(PreparedDataError, match=advice) as error:
    PreparedMixture(str(tmp_path), name, 'validation')
  assert 'train.evaluators="()"' in str(error.value)


@pytest.mark.parametrize('packing, slack', [('in_order', 2), ('first_fit', 128)])
@pytest.mark.parametrize(
  'until, epochs', [('all', 1.0), ('first', 1.0), ('all', 2.5), ('first', 0.5)]
)
def test_epochs_end_a_run_when_all_or_the_first_task_was_read_so_often(
  tmp_path, until, epochs, packing, slack
):
  counts = {'a.en': 600, 'b.en': 150}
  tasks = {name: (0.5, None, examples(n)) for name, n in counts.items()}
  stream = open_stream(tmp_path, tasks, packing=packing)
  steps = stream.steps_for_epochs(epochs, until)
  read_by = lambda at: [stream.epochs(at)[name] for name in counts]
  reach = min if until == 'all' else max
  assert reach(read_by(steps)) >= epochs - 1e-9
  assert steps == 1 or reach(read_by(steps - 1)) < epochs
  # What was really read agrees with what `epochs` says, up to the packing.
  seen = read(stream, steps)
  for name in counts:
    really = sum(n for (task, _), n in seen.items() if task == name)
    assert really == pytest.approx(stream.epochs(steps)[name] * counts[name], abs=slack)


@pytest.mark.parametrize('epochs, until', [(0, 'all'), (-1.0, 'first'), (1.0, 'last')])
def test_epochs_that_cannot_be(tmp_path, epochs, until):
  stream = open_stream(tmp_path, {'a.en': (1.0, None, examples(9))})
  with pytest.raises(
    ValueError, match="must be above 0 and train.epochs_until = .* 'all' or 'first'"
  ):
    stream.steps_for_epochs(epochs, until)


def test_what_changed_is_named_on_resume(tmp_path):
  before = open_stream(
    tmp_path / 'a', {'a.en': (0.5, None, examples(9)), 'b.en': (0.5, None, examples(9))}
  ).settings
  after = open_stream(
    tmp_path / 'b', {'a.en': (0.2, None, examples(8)), 'b.en': (0.8, None, examples(9))}, seed=4
  ).settings
  check_resume(before, before)
  check_resume(before, after, new_stream=True)
  with pytest.raises(ValueError) as error:
    check_resume(before, after)
  for part in (
    'rate of task a.en was',
    'examples of task a.en was 9, now 8',
    'seed was 0, now 4',
    'new_stream=True',
  ):
    assert part in str(error.value)
