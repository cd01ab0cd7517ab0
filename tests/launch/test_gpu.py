"""launch/gpu_train.sh on this host and on hosts that are local folders behind a stand-in for ssh."""

import os
import signal
import time

import pytest
from stand_ins import Cloud, wait_for

FLAGS = ("--gin.MODEL_DIR='/shared/it''s mine'", '--gin.TRAIN_STEPS=5')


@pytest.fixture
def cloud(tmp_path):
  one = Cloud(tmp_path)
  yield one
  one.clean()


def on_hosts(cloud, *options, flags=FLAGS, **more):
  return cloud.launch('gpu_train.sh', '--hosts', 'a,me@b,c', *options, '--', *flags, **more)


@pytest.fixture
def hosts(cloud):
  cloud.add_hosts('a', 'me@b', 'c')
  return cloud


@pytest.fixture
def here(cloud):
  """This host has its .venv, with the stand-in for crossin."""
  bin_folder = cloud.project / '.venv' / 'bin'
  bin_folder.mkdir(parents=True)
  (bin_folder / 'crossin').symlink_to(cloud.folder / 'worker_crossin')
  (bin_folder / 'python').symlink_to(cloud.folder / 'worker_python3')
  return cloud


# ---- this host
# -------------------------------------------------------------------------------------------------------


def test_here_it_starts_again_after_75(here):
  here.behave('here 0 exit 75')
  status, out, err = here.launch('gpu_train.sh', '--env', 'A=b c', '--', *FLAGS)
  assert status == 0 and here.started('here') == [['train', *FLAGS]] * 2, err
  assert 'restarting (1 of at most 20)' in err and 'start 1' in out
  assert 'A=b c' in (here.folder / 'environment.here').read_text().splitlines()


@pytest.mark.parametrize('ending', [1, 2, 137])
def test_here_an_error_is_handed_on(here, ending):
  here.behave(f'here 0 exit {ending}')
  assert here.launch('gpu_train.sh', '--', *FLAGS)[0] == ending and len(here.started('here')) == 1


def test_here_the_bound_is_reached(here):
  here.behave('here * exit 75')
  status, _, err = here.launch('gpu_train.sh', '--max_restarts', '2', '--', *FLAGS)
  assert status == 75 and len(here.started('here')) == 3 and '--max_restarts 2 is reached' in err


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_here_a_signal_reaches_the_run_and_ends_it(here, number):
  here.behave('here 0 nap 30')
  process = here.start('gpu_train.sh', '--', *FLAGS)
  wait_for(lambda: here.started('here'))
  time.sleep(0.3)
  process.send_signal(number)
  process.communicate(timeout=20)
  assert process.returncode == 75 and here.told() == ['here'] and len(here.started('here')) == 1


# ---- several hosts
# ---------------------------------------------------------------------------------------------------


def test_each_host_knows_its_place(hosts):
  hosts.behave('2.0 0 exit 75', '0.0 0 exit 75', '1.0 0 exit 75')
  status, _, err = on_hosts(hosts)
  assert status == 0, err
  for i in range(3):
    place = ['--coordinator_address=a:8476', '--process_count=3', f'--process_index={i}']
    assert hosts.started(f'{i}.0') == [['train', *FLAGS, *place]] * 2
  assert (hosts.folder / 'workers' / 'c' / '0' / 'pip.log').read_text().strip().endswith('.[cuda]')


def test_one_host_failing_ends_the_others(hosts):
  hosts.behave('1.0 0 echo out of memory; exit 1', '* 0 nap 60')
  status, _, err = on_hosts(hosts)
  assert status == 1 and 'host me@b (process 1) ended with exit status 1' in err, err
  assert 'host me@b (process 1) | out of memory' in err and hosts.told() == ['0.0', '2.0']


def test_the_run_outlives_its_launcher(hosts):
  hosts.behave('* 0 nap 5; echo the end')
  process = hosts.start('gpu_train.sh', '--hosts', 'a,me@b,c', '--', *FLAGS)
  wait_for(lambda: len(hosts.started('2.0')) == 1)
  time.sleep(0.5)
  os.killpg(process.pid, signal.SIGKILL)
  process.wait()
  status, _, err = on_hosts(hosts)
  assert (
    status == 0 and 'already running' in err and 'the end' in err and len(hosts.started('0.0')) == 1
  )


def test_a_host_that_does_not_answer_is_said(cloud):
  cloud.add_hosts('a')
  cloud.script(
    'bin/ssh', '#!/bin/sh\necho "ssh: connect to host: No route to host" >&2\nexit 255\n'
  )
  status, _, err = on_hosts(cloud, '--max_restarts', '0')
  assert status == 75 and 'No route to host' in err and 'not every worker answers' in err


def test_a_dry_run_runs_nothing(hosts):
  status, out, _ = on_hosts(hosts, '--dry_run', '--coordinator_address', 'x:1')
  assert status == 0 and not hosts.calls() and '--coordinator_address=x:1' in out
  assert sum(line.startswith('scp ') for line in out.splitlines()) == 3
  status, out, _ = hosts.launch('gpu_train.sh', '--dry_run', '--', *FLAGS)
  assert status == 0 and '.venv/bin/crossin train' in out


@pytest.mark.parametrize('words, message', [
    ((), 'give the flags'),
    (('--stop',), 'need --hosts'),
    (('--hosts', 'a,b', '--', "--gin.MODEL_DIR='runs/a'"), 'would be a folder on each worker'),
    (('--nonsense',), 'unknown option --nonsense'),
])  # fmt: skip
def test_wrong_usage_is_said(cloud, words, message):
  status, _, err = cloud.launch('gpu_train.sh', *words)
  assert status == 2 and message in err and not cloud.calls()
