"""Processes that do not start, die, are stopped or differ: the others end within a minute and say
why; a restart goes on.
"""

import json
import os
import random
import signal
import time

from many_processes import Processes, losses, said
import numpy as np
import pytest

STEPS = 12
MINUTE = 60


@pytest.fixture(scope='module')
def processes(tiny_prepared, tmp_path_factory):
  return Processes(*tiny_prepared, str(tmp_path_factory.mktemp('compiled')))


@pytest.fixture(scope='module')
def undisturbed(processes, tmp_path_factory):
  """Losses of a run that nothing happened to."""
  return processes.run(
    tmp_path_factory.mktemp('whole') / 'run',
    2,
    {'TRAIN_STEPS': STEPS, 'CheckpointConfig.period': 4},
  )


def end_of(running, seconds=MINUTE):
  """Exit statuses, all within the time."""
  until = time.monotonic() + seconds
  return [process.wait(max(0.1, until - time.monotonic())) for process in running]


def wait_for(true, running, seconds=200):
  """Until something is true while all processes run."""
  until = time.monotonic() + seconds
  while not true():
    assert time.monotonic() < until and all(process.poll() is None for process in running)
    time.sleep(0.02)


def steps_of(model_dir) -> int:
  return (
    max(losses(model_dir), default=0)
    if os.path.exists(os.path.join(model_dir, 'metrics.jsonl'))
    else 0
  )


@pytest.mark.slow
def test_a_process_that_is_not_started_is_named(processes, tmp_path):
  running = processes.start(
    tmp_path / 'run', 4, {'TRAIN_STEPS': 2}, without=[2], flags=['--start_timeout=45']
  )
  # 45 s from the moment at which process 0 is there, after its imports
  assert end_of(running, 45 + 300) == [1, 1, 1]
  for index in (0, 1, 3):
    assert 'did not start in time: 2.' in said(tmp_path / 'run', index)
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_a_process_with_other_data_is_named(processes, tmp_path):
  running = processes.start(
    tmp_path / 'run', 2, {'TRAIN_STEPS': 2}, own={1: ['--gin.RANDOM_SEED=7']}
  )
  assert end_of(running, 120) == [1, 1]
  for index in range(2):
    assert 'differ at the start: process 1 (' in said(tmp_path / 'run', index)


@pytest.mark.slow
def test_an_error_of_one_process_is_told_by_all(processes, tmp_path):
  running = processes.start(
    tmp_path / 'run', 2, {'TRAIN_STEPS': 2}, own={1: ["--gin.DATA_DIR='/nowhere'"]}
  )
  assert end_of(running, 120) == [1, 1]
  assert '/nowhere' in said(tmp_path / 'run', 1) and 'process 1 (' in said(tmp_path / 'run', 0)
  assert '/nowhere' in said(tmp_path / 'run', 0)


@pytest.mark.slow
@pytest.mark.parametrize(
  'victim, moment', [(1, 'step'), (0, 'step'), (1, 'save'), (1, 'evaluation'), (1, 'compile')]
)
def test_a_killed_process_ends_the_others_and_the_run_goes_on(
  processes, undisturbed, tmp_path, victim, moment
):
  values = {'TRAIN_STEPS': STEPS, 'CheckpointConfig.period': 4}
  model_dir, more = tmp_path / 'run', ()
  if moment == 'evaluation':
    more = ('--gin.train.evaluators=(@HeldoutLoss(),)', '--gin.train.evaluation_period=6')
  running = processes.start(model_dir, 2, values, more=more)
  if moment == 'step':
    wait_for(lambda: steps_of(model_dir) >= 6, running)
  elif moment == 'save':
    wait_for(
      lambda: (
        any('checkpoint_4' in name for name in os.listdir(model_dir))
        if model_dir.exists()
        else False
      ),
      running,
    )
  elif moment == 'evaluation':  # right after the line of its step
    wait_for(lambda: steps_of(model_dir) >= 6, running)
  else:
    wait_for(lambda: (model_dir / 'lock').exists(), running)
  running[victim].send_signal(signal.SIGKILL)
  statuses = end_of(running)
  assert statuses[victim] == -signal.SIGKILL and statuses[1 - victim] == 75
  assert f'process {victim} ' in said(model_dir, 1 - victim) and 'is lost' in said(
    model_dir, 1 - victim
  )
  found = processes.run(model_dir, 2, values, more=more)
  assert list(found) == list(undisturbed)
  np.testing.assert_allclose(list(found.values()), list(undisturbed.values()), rtol=1e-5)


@pytest.mark.slow
def test_a_stop_on_any_process_saves_once_together(processes, undisturbed, tmp_path):
  values = {'TRAIN_STEPS': STEPS, 'CheckpointConfig.period': 0}
  model_dir = tmp_path / 'run'
  running = processes.start(model_dir, 4, values)
  wait_for(lambda: steps_of(model_dir) >= 3, running)
  running[3].send_signal(signal.SIGTERM)
  statuses = end_of(running)
  if statuses != [0] * 4:  # it may have been at its last step
    assert statuses == [75] * 4
    (saved,) = [name for name in os.listdir(model_dir) if name.startswith('checkpoint_')]
    step = int(saved.split('_')[1])
    assert (
      all(f'interrupted: saved step {step}' in said(model_dir, index) for index in range(4))
      and step < STEPS
    )
    # Another number of processes goes on.
    found = processes.run(model_dir, 2, values)
    assert list(found) == list(undisturbed)
    np.testing.assert_allclose(list(found.values()), list(undisturbed.values()), rtol=1e-5)


@pytest.mark.slow
def test_ten_random_kills_change_nothing(processes, undisturbed, tmp_path):
  """Two processes, one of them killed at any moment, ten times; then the run is let finish."""
  rng, model_dir = random.Random(3), tmp_path / 'run'
  values = {'TRAIN_STEPS': STEPS, 'CheckpointConfig.period': 1}
  kills = 0
  while kills < 10:
    running = processes.start(model_dir, 2, values)
    victim, until = running[rng.randrange(2)], time.monotonic() + rng.uniform(2, 14)
    while time.monotonic() < until and victim.poll() is None:
      time.sleep(0.02)
    if victim.poll() is not None:
      assert end_of(running) == [0, 0]
      break
    victim.send_signal(signal.SIGKILL)
    kills += 1
    other = next(process for process in running if process is not victim)
    # Before the roll call is complete the other one waits for it to start again: its time to start
    # is not up.
    if (status := _status(other)) is None:
      other.kill()
      other.wait()
    else:
      assert status == 75, said(model_dir, running.index(other))
  found = processes.run(model_dir, 2, values)
  assert list(found) == list(undisturbed)
  np.testing.assert_allclose(list(found.values()), list(undisturbed.values()), rtol=1e-5)
  with open(model_dir / 'metrics.jsonl', encoding='utf-8') as f:
    assert [row['step'] for row in map(json.loads, f) if 'loss' in row] == list(range(1, STEPS + 1))


def _status(process) -> int | None:
  """Exit status within ten seconds; None if it still runs."""
  until = time.monotonic() + 10
  while process.poll() is None and time.monotonic() < until:
    time.sleep(0.05)
  return process.poll()
