"""A run that is killed at random moments ends as if nothing had happened."""

import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / 'benchmarks' / 'kill_resume.py'


@pytest.mark.slow
def test_killed_runs_give_the_same_parameters_and_metrics():
  found = subprocess.run(
    [sys.executable, str(SCRIPT), '--kills', '13', '--signal', 'both', '--seed', '1'],
    capture_output=True,
    text=True,
  )
  assert found.returncode == 0, found.stderr[-3000:]
  said = json.loads(found.stdout.splitlines()[-1])
  assert said['kills'] == 13 and said['parameters_and_metrics_equal']
  statuses = said['exit_statuses']
  assert statuses.pop('-9') == 10
  # Told to stop, a run ends with 75; with 0 if its last step was done; with -15 if it had not begun
  # to listen.
  assert set(statuses) <= {'75', '-15', '0'} and sum(statuses.values()) == 3
  assert said['seconds_to_stop_at_most'] < 60
