"""The state of launch/supervisor.py: reports of workers, and what follows from them."""

import sys

import pytest
from stand_ins import REPOSITORY

sys.path.insert(0, str(REPOSITORY / 'launch'))
import common  # noqa: E402
import supervisor  # noqa: E402


@pytest.fixture
def state():
  """Of two slices of two workers, all of which have reported."""
  one = supervisor.State('abc', 2, worker_name=lambda key: f'worker {key}')
  for key in ('0/0', '0/1', '1/0', '1/1'):
    one.receive(f'@crossin states {key} 2 running abc')
  return one


def end(state, *statuses):
  for key, status in zip(state.states, statuses):
    state.receive(f'@crossin ends {key} 2 {status}')


def test_lines_of_workers(state):
  assert state.workers == 4 and state.states['1/1'] == 'running abc'
  assert state.receive('@crossin log 0/1 2   two  words ') == 'worker 0/1 |   two  words '
  assert state.receive('@crossin log 0/1 2 ') == 'worker 0/1 | '
  assert state.receive('@crossin states 0/1 2 ') is None and state.states['0/1'] == ''
  assert state.receive('loss @crossin 1') == 'loss @crossin 1' and state.receive('') == ''


def test_where_it_is_running(state):
  assert state.running() == 'everywhere'
  state.states['0/1'] = 'ended 0 abc'
  assert state.running() == 'partly'
  state.states['1/0'] = 'running other'
  assert state.running() == 'other'
  state.states.clear()
  assert state.running() == 'nowhere'
  state.states['0/0'] = 'running abc'  # the others do not answer
  assert state.running() == 'partly'


def test_the_end_of_all_is_judged_at_once_and_of_some_after_a_time(state):
  end(state, '0', '0', '0')
  assert not state.time_to_judge(0) and state.deadline is None
  end(state, '0', '0', '0', '0')
  assert state.time_to_judge(0)
  for status, seconds in (('1', supervisor.SETTLE_SECONDS), ('75', 4 * supervisor.SETTLE_SECONDS)):
    state.ends, state.deadline = {'0/0': status}, None
    assert not state.time_to_judge(10) and not state.time_to_judge(10 + seconds - 1)
    assert state.time_to_judge(10 + seconds)


@pytest.mark.parametrize('statuses, lost, answering, outcome, reason', [
    (('0', '0', '0', '0'), '', True, 'finished', ''),
    (('1', '75', '1', '0'), '', True, 'failed', ''),
    (('75', '0', '0', '75'), '', True, 'restart', 'interrupted and saved'),
    (('1', '1', '1', '1'), 'node b was preempted', True, 'restart', 'node b was preempted'),
    (('1', 'gone', '1', '1'), '', True, 'restart', 'worker 0/1 lost its processes'),
    (('1', '1', '1'), '', False, 'restart', 'no longer answers'),
    (('1', '1', '1'), '', True, 'failed', ''),
    # nobody has to answer after all ends are known
    (('1', '1', '1', '1'), '', False, 'failed', ''),
])  # fmt: skip
def test_what_ends_mean(state, statuses, lost, answering, outcome, reason):
  end(state, *statuses)
  assert state.judge(lost, lambda: answering) == outcome and reason in state.reason


def test_the_first_failure_is_named(state):
  end(state, '0', '75', 'gone')
  assert state.failure is None
  state.receive('@crossin ends 1/1 2 2')
  state.receive('@crossin ends 0/0 2 1')
  assert state.failure == ('0/0', '1')  # a later report of the same worker takes its place
  state.ends['0/0'] = '0'
  assert state.failure == ('1/1', '2')


HELP = """Example: --other x
  --switch                  text
  --number N                text (3)
  --text VALUE              text
  --list NAME=VALUE ...     text, --within it too
"""


def test_the_help_text_declares_the_options(monkeypatch, capsys):
  def parse(*words):
    monkeypatch.setattr(sys, 'argv', ['x', *words])
    return common.parse(HELP, number=3)

  options = parse(
    '--list', '--a=b', '--switch', '--list', '-c', '--number', '5', '--', '--list', '--'
  )
  assert (options.switch, options.number, options.text, options.list) == (
    True,
    5,
    '',
    ['--a=b', '-c'],
  )
  assert options.arguments == ['--list', '--'] and parse().list == [] and parse().number == 3
  for words in (
    ['--within'],
    ['--other', 'x'],
    ['text'],
    ['--text'],
    ['--number', '-1'],
    ['--text=a'],
  ):
    with pytest.raises(SystemExit) as failure:
      parse(*words)
    assert failure.value.code == 2 and words[0].split('=')[0] in capsys.readouterr().err
