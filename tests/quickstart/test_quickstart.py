"""The main job end to end, small: every arm, resumption, the page."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from crossin_jax.evaluation.questions import read_questions
from crossin_jax.quickstart import guessers, quickstart
from crossin_jax.world.sources import write_questions
from crossin_jax.world.world import World


def run(*arguments, check=True):
  command = [sys.executable, '-m', 'crossin_jax.cli', 'quickstart', *arguments]
  # As people run it: one device, and programs that one job has compiled are found by the next.
  flags = [flag for flag in os.environ['XLA_FLAGS'].split() if 'device_count' not in flag]
  environment = os.environ | {'XLA_FLAGS': ' '.join(flags), 'JAX_ENABLE_COMPILATION_CACHE': 'true'}
  return subprocess.run(command, check=check, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_two_arms_end_to_end_and_again(tmp_path):
  out = str(tmp_path / 'out')
  flags = [
    '--output_dir',
    out,
    '--languages',
    'en,ur',
    '--arms',
    'Base,x2x',
    '--reading_steps',
    '6',
    '--tuning_steps',
    '4',
  ]
  first = run(*flags, '--json')
  found = json.loads(first.stdout.splitlines()[-1])
  variants = {(r['variant'], r['benchmark'], r['method']) for r in found['runs']}
  assert variants == {
    (arm, f'questions/{form}', method)
    for arm in ('Base', 'x2x')
    for form in ('untagged', 'tagged')
    for method in ('likelihood', 'generate')
  }
  assert all(
    r['items'] == 60 and list(r['accuracy_by_language']) == ['en', 'ur'] for r in found['runs']
  )
  page = (tmp_path / 'out' / 'report.html').read_text(encoding='utf-8')
  assert 'dir="rtl"' in page and 'x2x' in page
  assert (tmp_path / 'out' / 'world' / 'facts.tsv').exists()
  # A second start finds everything done.
  second = run(*flags, '--json')
  assert (
    'tuning' not in second.stderr
    and json.loads(second.stdout.splitlines()[-1])['runs'] == found['runs']
  )
  # Other settings in the same directory are refused, naming the difference.
  other = run(*flags[:-1], '5', check=False)
  assert other.returncode == 1 and 'tuning_steps was 4, now 5' in other.stderr


@pytest.mark.parametrize(
  'flags, status, message',
  [
    (['--arms', 'Base,y2y'], 2, 'y2y is not one of Floor, Base'),
    (['--languages', 'en,xx'], 1, "unknown language 'xx'"),
    (['--languages', 'en,ar'], 1, "'ar'"),
    (['--seeds', '0'], 2, 'must be at least 1'),
    (['--nonsense'], 2, 'unrecognized arguments: --nonsense'),
  ],
)
def test_wrong_usage_is_said(flags, status, message, tmp_path):
  found = run('--output_dir', str(tmp_path), *flags, check=False)
  assert found.returncode == status and message in found.stderr


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_guessers_are_at_chance(tmp_path, seed):
  """A guesser is right in 1 of 4 within four standard deviations, in every language."""
  world = World(seed=seed)
  write_questions(world, str(tmp_path))
  questions = read_questions(str(tmp_path / 'questions.untagged.jsonl'))
  assert len(questions.ids) == 60
  for name, chosen in guessers.guessers(questions, world).items():
    accuracy = (chosen == questions.answers).mean(axis=0)
    bound = 4 * np.sqrt(0.25 * 0.75 / len(questions.ids))
    assert (np.abs(accuracy - 0.25) < bound).all(), (name, accuracy)


def test_every_arm_has_the_same_replay_and_shares_that_sum_to_one():
  for arm in quickstart.ARMS:
    shares = quickstart._tuning_shares(arm)
    assert abs(sum(shares.values()) - 1) < 1e-9
    assert all(shares[name] == share for name, share in quickstart.REPLAY.items())


def test_evaluations_come_after_every_arm(tmp_path):
  """They are short, so no core is left with an arm of its own at the end."""
  languages, arms = ('en', 'vi'), ('Floor', 'Base', 'x2x')
  settings = quickstart.Settings(languages, arms, 2, 6, 4, 0, 1500, ())
  tasks = quickstart.Quickstart(str(tmp_path), settings, 2)._models()
  names = [os.path.relpath(task.name, tmp_path / 'models') for task in tasks]
  assert [name.endswith('evaluation') for name in names] == [False] * 10 + [True] * 6
  assert names[:4] == ['read.0', 'read_floor.0', 'read.1', 'read_floor.1']
