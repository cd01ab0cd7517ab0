"""Trackers: the real libraries without a network, and one that fails."""

import glob
import json
import os
import pathlib
import sqlite3
import subprocess
import sys
import types

from conftest import REPOSITORY
import pytest

from crossin_jax.training.metrics import MetricsWriter
from crossin_jax.training.trackers import TensorBoard, Trackers, WandB

LINE = {'loss': 2.5, 'loss_by_language': {'en': 2.0, 'vi': 3.0}, 'mfu': None, 'bad': float('nan')}
SCALARS = {'loss': 2.5, 'loss_by_language/en': 2.0, 'loss_by_language/vi': 3.0}


class Failing:
  """Fails in one method."""

  def __init__(self, method):
    self.method, self.called = method, []

  def __getattr__(self, name):
    if name not in ('start', 'log', 'close'):
      raise AttributeError(name)

    def call(*arguments):
      self.called.append(name)
      if name == self.method:
        raise ConnectionError('no route\nto host')

    return call


class Recording(types.SimpleNamespace):
  """Keeps what it is given."""

  def __init__(self):
    super().__init__(lines=[], start=lambda *_: None, close=lambda: None)
    self.log = lambda scalars, step: self.lines.append((step, dict(scalars)))


@pytest.mark.parametrize('method', ['start', 'log', 'close'])
def test_one_that_fails_is_told_once_and_the_others_go_on(tmp_path, capsys, method):
  failing, recording = Failing(method), Recording()
  writer = MetricsWriter(str(tmp_path), 0, trackers=(failing, recording))
  writer.write(1, LINE)
  writer.write(2, LINE)
  writer.close()
  assert recording.lines == [(1, SCALARS), (2, SCALARS)]
  assert failing.called.count(method) == 1
  text = capsys.readouterr().err
  assert text.count('Failing is not used any more (ConnectionError: no route to host)') == 1
  assert len((tmp_path / 'metrics.jsonl').read_text().splitlines()) == 2


def test_tensorboard_is_what_is_used_by_default(tmp_path):
  writer = MetricsWriter(str(tmp_path), 0)
  writer.write(1, LINE)
  writer.close()
  assert glob.glob(str(tmp_path / 'tensorboard' / 'events*'))


def test_a_package_that_is_not_installed_stops_nothing(tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  Trackers([WandB()], str(tmp_path), 0).log(SCALARS, 1)
  assert 'WandB is not used any more (ModuleNotFoundError' in capsys.readouterr().err


TWICE = """
import sys
from crossin_jax.training import trackers
for resumed, step in ((0, 10), (10, 20)):
  one = trackers.Trackers([trackers.WandB(mode='offline'), trackers.Trackio()], sys.argv[1], resumed)
  one.log({'loss': 2.5, 'loss_by_language/vi': 3.0}, step)
  one.close()
"""


def test_a_resumed_run_continues_its_run_in_wandb_and_trackio(tmp_path):
  """In a process of its own: both have threads, and settle where they write when imported."""
  for package in ('wandb', 'trackio'):
    pytest.importorskip(package, reason=f'needs {package} of the extra `{package}`')
  run, shown = tmp_path / 'run', tmp_path / 'shown'
  run.mkdir()
  (run / 'config.gin').write_text('train.seed = 3\n')
  done = subprocess.run(
    [sys.executable, '-c', TWICE, str(run)], cwd=REPOSITORY, capture_output=True, text=True,
    env=os.environ | {'TRACKIO_DIR': str(shown), 'WANDB_MODE': 'offline'},
  )  # fmt: skip
  assert done.returncode == 0 and 'warning' not in done.stderr, done.stderr
  ids = json.loads((run / 'trackers.json').read_text())
  with sqlite3.connect(shown / 'crossin.db') as database:
    rows = list(database.execute('select run_name, step, metrics from metrics order by step'))
  name = f'run-{ids["trackio"]}'
  figures = {'loss': 2.5, 'loss_by_language/vi': 3.0}
  assert [(n, step, json.loads(text)) for n, step, text in rows] == [
    (name, 10, figures),
    (name, 20, figures),
  ]
  files = glob.glob(str(run / 'wandb' / f'offline-run-*-{ids["wandb"]}' / '*.wandb'))
  assert len(files) == 2
  for path in files:
    content = pathlib.Path(path).read_bytes()
    assert b'loss_by_language/vi' in content and b'train.seed = 3' in content


READ = """
import json, sys
import tensorflow as tf
events = []
for event in tf.compat.v1.train.summary_iterator(sys.argv[1]):
  values = {value.tag: value.simple_value for value in event.summary.value}
  events.append([event.step, event.file_version, event.session_log.status, values])
print(json.dumps(events))
"""


def test_tensorboard_hides_what_a_killed_run_wrote_later(tmp_path):
  board = TensorBoard()
  board.start(str(tmp_path), 7)
  board.log({'loss': 1.0, 'eval/Übung': 0.25}, 8)
  board.log({'loss': 2.5}, 300)
  board.close()
  (path,) = glob.glob(str(tmp_path / 'tensorboard' / '*tfevents*'))
  # TensorFlow's reader checks the checksums.
  done = subprocess.run(
    [sys.executable, '-c', READ, path], capture_output=True, text=True,
    env=os.environ | {'CUDA_VISIBLE_DEVICES': ''},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  events = json.loads(done.stdout)
  # START: what other files have of step 8 and later is dropped.
  assert [step for step, _, status, _ in events if status == 1] == [8]
  figures = {(step, name): value for step, _, _, values in events for name, value in values.items()}
  assert figures == {(8, 'train/loss'): 1.0, (8, 'eval/Übung'): 0.25, (300, 'train/loss'): 2.5}
