"""`crossin settings`."""

import json
import subprocess
import sys

from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st
import pytest

from crossin_jax import cli
from crossin_jax.workflow import settings


def run(capsys, *words):
  status = cli.main(['settings', *words])
  return status, *capsys.readouterr()


def test_a_word_lists_what_has_it_in_name_or_text(capsys):
  status, out, err = run(capsys, 'early_stopping')
  assert (status, err) == (0, '')
  assert out == (
    'train.early_stopping_patience = None  (int | None)\n'
    '    evaluations without a better `CheckpointConfig.best_metric` after which the run ends; None ='
    '\n    never\n'
  )
  status, out, _ = run(capsys, 'GLOBAL BATCH')
  assert status == 0 and out.startswith(
    'BATCH_SIZE = 16  [gin_configs/runs/defaults.gin]\n    rows of the global batch\n'
  )


def test_no_match_names_the_nearest(capsys):
  assert run(capsys, 'LENGHT') == (
    1,
    '',
    "crossin settings: no setting has 'LENGHT' in its name or text; the nearest are LENGTH, "
    'train.length\n',
  )
  status, out, err = run(capsys, 'qqqqq')
  assert (status, out) == (1, '') and err.endswith("no setting has 'qqqqq' in its name or text\n")


def test_everything_is_listed(capsys):
  """As JSON too: macros with their files, parameters with defaults and types."""
  status, out, _ = run(capsys, '--json')
  found = {s['name']: s for s in json.loads(out)['settings'] if s['file'] in ('', DEFAULTS)}
  assert status == 0 and len(found) > 300
  assert found['MODEL_DIR'] == {
    'name': 'MODEL_DIR', 'default': 'required', 'kind': '', 'text': 'checkpoints and metrics',
    'file': DEFAULTS,
  }  # fmt: skip
  assert found['schedule.peak']['default'] == '0.0001' and found['schedule.peak']['kind'] == 'float'
  assert found['sweep.axes']['default'] == 'required'
  assert found['MixtureSettings.template']['text']
  assert found['World.seed']['name'].startswith('World')  # of the other package, too
  _, text, _ = run(capsys)
  heads = [line.split()[0] for line in text.splitlines() if not line.startswith(' ')]
  assert set(found) <= set(heads)


DEFAULTS = 'gin_configs/runs/defaults.gin'


def test_modules_of_every_configurable_are_found():
  """Those that a walk through all modules registers are the same."""
  program = (
    'import contextlib, importlib, pkgutil\n'
    'from crossin_jax.workflow import settings\n'
    'few = list(settings.configurables())\n'
    'for package in settings.PACKAGES:\n'
    '  path = importlib.import_module(package).__path__\n'
    '  for m in pkgutil.walk_packages(path, package + ".", onerror=lambda name: None):\n'
    '    with contextlib.suppress(Exception, SystemExit): importlib.import_module(m.name)\n'
    'assert few == list(settings.configurables()), set(few) ^ set(settings.configurables())\n'
    'assert len(few) > 60'
  )
  done = subprocess.run(
    [sys.executable, '-c', program], cwd=REPOSITORY, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('text, shown', [
  ('One. Two.', 'One'),
  ("What it is. 'a', 'b' or 'c'. More of it.", "What it is. 'a', 'b' or 'c'"),
  ('e.g. 3 of them', 'e.g. 3 of them'),
  ('', ''),
])  # fmt: skip
def test_a_summary_is_a_sentence_and_the_choices(text, shown):
  assert settings.summary(text) == shown


@given(st.text(min_size=1))
def test_any_word_is_found_or_refused(word):
  known = [settings.Setting('A_B', '1', '', 'of it'), settings.Setting('c.d', '2', 'int', 'of c')]
  try:
    found = settings.matching(known, word)
    assert found and all(word.lower() in f'{s.name} {s.text}'.lower() for s in found)
  except settings.UnknownSetting as error:
    assert repr(word) in str(error)
