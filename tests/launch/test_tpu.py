"""launch/tpu_train.sh against a stand-in for gcloud whose workers are local folders."""

import contextlib
import os
import pathlib
import signal
import subprocess
import time

import pytest
from stand_ins import Cloud, processes_of, wait_for

PLACE = ('--name', 'pod', '--zone', 'us-west4-a', '--project', 'p')
MACHINES = (*PLACE, '--accelerator_type', 'v5litepod-16')
FLAGS = ("--gin.MODEL_DIR='gs://b/run'", '--gin_file=my own.gin')


@pytest.fixture
def cloud(tmp_path):
  one = Cloud(tmp_path)
  yield one
  one.clean()


def kill_followers(worker):
  """Ends what the launcher has connected to, and nothing else."""
  for number in processes_of(worker):
    with contextlib.suppress(OSError):
      if b'\0follow\0' in pathlib.Path(f'/proc/{number}/cmdline').read_bytes():
        os.kill(number, signal.SIGKILL)


def train(cloud, *options, flags=FLAGS, **more):
  return cloud.launch('tpu_train.sh', *MACHINES, *options, '--', *flags, **more)


def test_from_nothing_to_the_end(cloud):
  awkward = [
    "--gin.X='it''s \"$HOME\" `id` \\ * ~ é'",
    '--gin.Y=(1,\n 2)',
    '--empty=',
    '',
    '--gin.Z=a  b;c&d|e',
  ]
  status, _, err = train(
    cloud, '--spot', '--delete_when_done', '--env', 'NAME=a b', flags=[*FLAGS, *awkward]
  )
  assert status == 0, err
  for number in (0, 1):
    assert cloud.started(f'0.{number}') == [
      ['train', *FLAGS, *awkward, '--multihost', '--process_count=2']
    ]
    assert 'NAME=a b' in (cloud.folder / f'environment.0.{number}').read_text().splitlines()
  [create] = cloud.calls('gcloud', 'compute', 'tpus', 'queued-resources', 'create')
  assert create[5:] == [
    'pod', '--zone=us-west4-a', '--project=p', '--quiet', '--node-id=pod',
    '--accelerator-type=v5litepod-16',
    '--runtime-version=v2-alpha-tpuv5-lite', '--spot',
  ]  # fmt: skip
  assert cloud.actions() == ['create', 'delete']
  for state in ('WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE'):
    assert f'pod: {state}' in err
  # Only the log of worker 0 is shown; at the end nothing is left, and that is said.
  assert 'crossin on 0.0' in err and 'crossin on 0.1' not in err
  assert 'has finished on every worker' in err and err.rstrip().endswith(
    'nothing is left: pod does not exist'
  )


def test_workers_get_what_git_tracks_and_the_gin_files_and_the_extra(cloud):
  assert train(cloud)[0] == 0
  worker = cloud.folder / 'workers' / 'pod' / '1'
  assert (worker / 'crossin_jax' / 'my own.gin').exists() and not (
    worker / 'crossin_jax' / 'ignored'
  ).exists()
  assert (worker / 'pip.log').read_text().splitlines()[-1].endswith('--editable .[tpu]')
  # A second run on the same machines installs nothing anew, and one included file is there.
  before = (worker / 'pip.log').read_text()
  status, _, err = train(cloud, '--include', 'ignored')
  assert status == 0 and (worker / 'crossin_jax' / 'ignored').exists(), err
  assert (worker / 'pip.log').read_text() == before
  assert cloud.actions() == ['create'] and len(cloud.started('0.0')) == 2
  assert 'COSTS MONEY' in err
  assert (
    'gcloud compute tpus queued-resources delete pod --zone=us-west4-a --project=p --force --quiet'
    in err
  )


def test_told_to_stop_it_starts_again_as_often_as_allowed(cloud):
  cloud.behave('* 0 exit 75', '* 1 exit 75')
  status, _, err = train(cloud)
  assert status == 0 and len(cloud.started('0.1')) == 3 and cloud.actions() == ['create'], err
  assert 'restarting (2 of at most 20)' in err
  cloud.behave('* * exit 75')
  status, _, err = train(cloud, '--max_restarts', '1')
  assert status == 75 and len(cloud.started('0.1')) == 3 + 2
  assert '--max_restarts 1 is reached' in err and 'COSTS MONEY' in err


def test_a_preempted_resource_is_made_anew_and_the_run_resumes(cloud):
  cloud.plan(2, ['ACTIVE', 'WAITING_FOR_RESOURCES ACTIVE'])
  cloud.behave('0.0 0 echo step 7; nap 0.5; gcloud_preempt', '* 0 nap 60')
  # crossin of worker 0 has the service take the machines away, itself among them.
  cloud.script('worker_crossin', (cloud.folder / 'worker_crossin').read_text().replace(
    'eval ', f'gcloud_preempt() {{ {cloud.folder}/bin/gcloud preempt pod; }}\neval '))  # fmt: skip
  status, _, err = train(cloud, '--spot')
  assert status == 0, err
  assert cloud.actions() == ['create', 'delete', 'create']
  assert len(cloud.started('0.0')) == len(cloud.started('0.1')) == 2
  assert 'step 7' in err and 'by SERVICE' in err and 'restarting (1 of at most 20)' in err


def test_a_failing_worker_ends_the_run_and_is_named(cloud):
  cloud.behave('0.1 0 echo working; echo "ValueError: row 5 is bad"; exit 1', '* 0 nap 60')
  status, _, err = train(cloud)
  assert status == 1, err
  assert 'worker 1 ended with exit status 1' in err and 'worker 1 | ValueError: row 5 is bad' in err
  assert cloud.told() == ['0.0'] and len(cloud.started('0.0')) == 1
  assert 'COSTS MONEY' in err
  cloud.behave('* * exit 137')
  assert 'memory is used up' in train(cloud)[2]


def test_a_failure_deletes_what_was_made_if_asked(cloud):
  cloud.behave('0.0 0 exit 2', '* 0 exit 2')
  status, _, err = train(cloud, '--delete_when_done')
  assert status == 1 and cloud.actions() == ['create', 'delete'] and 'a gin file is wrong' in err


def test_a_machine_that_was_started_anew_is_no_failure_of_the_run(cloud):
  """Its processes are gone without a word, and the others end with an error because they lost it."""
  cloud.behave(
    '0.1 0 kill -KILL -- -$(cat ~/.crossin_run/*/leader)', '0.0 0 nap 1; echo lost worker 1; exit 1'
  )
  status, _, err = train(cloud)
  assert status == 0, err
  assert 'worker 1 lost its processes' in err and len(cloud.started('0.1')) == 2


def test_a_worker_that_hangs_while_the_others_stopped_is_not_waited_for(cloud):
  cloud.behave('0.0 0 exit 75', '0.1 0 nap 60')
  status, _, err = train(cloud, CROSSIN_SETTLE_SECONDS='1')
  assert status == 0 and len(cloud.started('0.0')) == 2 and cloud.told() == ['0.1'], err
  assert 'on some workers only' in err


def test_one_worker_is_no_crowd(cloud):
  cloud.plan(1, ['ACTIVE'])
  assert train(cloud)[0] == 0 and cloud.started('0.0') == [['train', *FLAGS]]
  assert train(cloud, '--command', 'evaluate')[0] == 0 and cloud.started('0.0')[1] == [
    'evaluate',
    *FLAGS,
  ]


def test_a_request_that_fails_says_why(cloud):
  cloud.plan(2, ['WAITING_FOR_RESOURCES FAILED'])
  status, _, err = train(cloud)
  assert (
    status == 1
    and 'no more quota' in err
    and 'costs nothing' in err
    and cloud.actions() == ['create']
  )
  # The next start makes it anew.
  cloud.plan(2, ['FAILED', 'ACTIVE'])
  status, _, err = train(cloud)
  assert status == 0 and cloud.actions() == ['create', 'delete', 'create'], err


def test_another_machine_of_that_name_is_refused(cloud):
  assert train(cloud)[0] == 0
  status, _, err = cloud.launch('tpu_train.sh', *PLACE, '--accelerator_type', 'v6e-8', '--', *FLAGS)
  assert status == 2 and 'pod is a v5litepod-16, not a v6e-8' in err and 'COSTS MONEY' in err
  status, _, _ = cloud.launch(
    'tpu_train.sh', *PLACE, '--accelerator_type', 'v6e-8', '--delete_when_done', '--', *FLAGS
  )
  assert status == 2 and cloud.actions() == ['create']


def test_ctrl_c_leaves_the_run_and_the_same_command_follows_it(cloud):
  cloud.behave('* 0 echo step 1; nap 4; echo step 2')
  process = cloud.start('tpu_train.sh', *MACHINES, '--', *FLAGS)
  wait_for(lambda: len(cloud.started('0.0')) == 1)
  time.sleep(0.5)
  os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of the group
  _, err = process.communicate(timeout=30)
  assert process.returncode == 75, err
  assert 'THE RUN CONTINUES' in err and 'COSTS MONEY' in err and not cloud.told()
  status, _, err = train(cloud, '--delete_when_done')
  assert status == 0 and 'already running' in err and 'step 2' in err, err
  assert len(cloud.started('0.0')) == 1 and cloud.actions() == ['create', 'delete']


def test_another_run_is_not_disturbed(cloud):
  cloud.behave('* 0 nap 60')
  process = cloud.start('tpu_train.sh', *MACHINES, '--', *FLAGS)
  wait_for(lambda: len(cloud.started('0.0')) == len(cloud.started('0.1')) == 1)
  os.killpg(process.pid, signal.SIGTERM)
  process.communicate(timeout=30)
  status, _, err = train(cloud, '--delete_when_done', flags=["--gin.MODEL_DIR='gs://b/other'"])
  assert (
    status == 2
    and 'another run is running there' in err
    and not cloud.told()
    and cloud.actions() == ['create']
  )
  status, _, err = cloud.launch('tpu_train.sh', *PLACE, '--status')
  assert status == 0 and 'worker 1: running' in err, err
  status, _, err = cloud.launch('tpu_train.sh', *PLACE, '--stop')
  assert status == 0 and 'ended 75' in err and cloud.told() == ['0.0', '0.1'], err
  status, _, err = cloud.launch('tpu_train.sh', *PLACE, '--delete')
  assert status == 0 and 'nothing is left' in err


def test_an_interrupt_stops_the_run_if_asked(cloud):
  cloud.behave('* 0 nap 60')
  process = cloud.start(
    'tpu_train.sh', *MACHINES, '--stop_on_interrupt', '--delete_when_done', '--', *FLAGS
  )
  wait_for(lambda: len(cloud.started('0.0')) + len(cloud.started('0.1')) == 2)
  time.sleep(1)
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=30)
  assert process.returncode == 75 and cloud.told() == ['0.0', '0.1'], err
  assert (
    'the run was stopped' in err
    and cloud.actions() == ['create', 'delete']
    and 'nothing is left' in err
  )


def test_a_second_interrupt_leaves_the_run_saving_and_its_machines(cloud):
  cloud.behave('* 0 trap "echo $me >>$CLOUD/told; sleep 30; exit 75" TERM; nap 60')
  process = cloud.start(
    'tpu_train.sh', *MACHINES, '--stop_on_interrupt', '--delete_when_done', '--', *FLAGS
  )
  wait_for(lambda: len(cloud.started('0.0')) + len(cloud.started('0.1')) == 2)
  time.sleep(1)
  for _ in range(2):
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: len(cloud.told()) == 2)
  _, err = process.communicate(timeout=30)
  assert process.returncode == 75 and cloud.actions() == ['create'] and 'COSTS MONEY' in err, err


def test_an_interrupt_in_the_queue_says_that_the_request_stays(cloud):
  cloud.plan(2, ['WAITING_FOR_RESOURCES'])
  process = cloud.start('tpu_train.sh', *MACHINES, '--', *FLAGS, CROSSIN_POLL_SECONDS='1')
  wait_for(
    lambda: len(cloud.calls('gcloud', 'compute', 'tpus', 'queued-resources', 'describe')) >= 2
  )
  os.killpg(process.pid, signal.SIGINT)
  _, err = process.communicate(timeout=30)
  assert (
    process.returncode == 75
    and 'WAITING_FOR_RESOURCES and COSTS MONEY, or will when it is granted' in err
  )


def test_a_connection_that_breaks_off_is_made_again(cloud):
  cloud.behave('* 0 nap 5')
  process = cloud.start('tpu_train.sh', *MACHINES, '--', *FLAGS, CROSSIN_POLL_SECONDS='1')
  following = lambda: [call for call in cloud.calls('gcloud') if 'follow' in call[-1]]
  wait_for(following)
  time.sleep(0.5)
  for path in (cloud.folder / 'workers' / 'pod').glob('*'):
    kill_followers(path)
  _, err = process.communicate(timeout=40)
  assert (
    process.returncode == 0 and 'was lost; the run continues' in err and len(following()) == 2
  ), err
  assert len(cloud.started('0.0')) == 1


def test_slices_are_one_run(cloud):
  cloud.behave('1.1 0 echo no such file; exit 1', '* 0 nap 60')
  status, _, err = train(cloud, '--num_slices', '2')
  [create] = cloud.calls('gcloud', 'compute', 'tpus', 'queued-resources', 'create')
  assert '--node-count=2' in create and not any(word.startswith('--node-id') for word in create)
  assert status == 1 and 'slice 1 worker 1 ended with exit status 1' in err, err
  started = [cloud.started(worker) for worker in ('0.0', '0.1', '1.0', '1.1')]
  assert started == [[['train', *FLAGS, '--multihost', '--process_count=4']]] * 4
  assert cloud.told() == ['0.0', '0.1', '1.0'] and 'on 4 worker(s)' in err


def test_an_installation_that_fails_shows_its_lines(cloud):
  (cloud.folder / 'pip_fails').touch()
  status, _, err = train(cloud)
  assert (
    status == 1
    and 'worker 1 | ERROR: No matching distribution found' in err
    and not cloud.started('0.0')
  )


def test_no_answer_of_gcloud_is_not_taken_for_anything(cloud):
  (cloud.folder / 'unreachable').touch()
  status, _, err = train(cloud)
  assert (
    status == 1
    and 'could not reach' in err
    and 'UNKNOWN whether pod still exists' in err
    and not cloud.actions()
  )


def test_a_dry_run_prints_every_command_and_runs_none(cloud):
  status, out, err = train(
    cloud, '--dry_run', '--reserved', '--delete_when_done', '--num_slices', '2'
  )
  assert status == 0 and not cloud.calls() and err == '', err
  lines = [line for line in out.splitlines() if not line.startswith('#')]
  assert all(line.startswith('gcloud compute tpus ') for line in lines)
  kinds = [' '.join(line.split()[3:5]) for line in lines]
  assert kinds == [
    'queued-resources create', 'queued-resources describe', *['tpu-vm ssh'] * 2,
    *['tpu-vm scp'] * 2, *['tpu-vm ssh'] * 6,
    'queued-resources delete',
  ]  # fmt: skip
  assert '--reserved' in lines[0] and 'gs://b/run' in out


@pytest.mark.parametrize('machine, version', [
    ('v5p-32', 'v2-alpha-tpuv5'), ('v6e-64', 'v2-alpha-tpuv6e'), ('v4-8', 'tpu-ubuntu2204-base'),
    ('v9-8', None),
])  # fmt: skip
def test_the_software_follows_the_machine(cloud, machine, version):
  status, out, err = cloud.launch(
    'tpu_train.sh', *PLACE, '--accelerator_type', machine, '--dry_run', '--', *FLAGS
  )
  assert (status, f'--runtime-version={version} ' in f'{out} '.replace('\n', ' ')) == (
    (0, True) if version else (2, False)
  )
  assert version or '--runtime_version' in err


@pytest.mark.parametrize('words, message', [
    (('--zone', 'z'), '--name is missing'),
    (PLACE, '--accelerator_type is missing'),
    (MACHINES, 'give the flags of crossin train after --'),
    ((*MACHINES, '--spot', '--reserved'), 'exclude each other'),
    ((*MACHINES, '--gin.X=1'), 'flags of crossin train go after --'),
    ((*MACHINES, '--num_slices', 'two', '--', 'x'), 'is a number'),
    ((*MACHINES, '--name'), '--name needs a value'),
    ((*MACHINES, '--include', 'none', '--', 'x'), 'does not exist'),
    ((*MACHINES, '--', "--gin.MODEL_DIR='runs/a'"), 'would be a folder on each worker'),
])  # fmt: skip
def test_wrong_usage_is_said_and_touches_nothing(cloud, words, message):
  status, _, err = cloud.launch('tpu_train.sh', *words)
  assert status == 2 and message in err and not cloud.calls(), err


def test_the_key_is_shared_by_an_agent(cloud):
  key = cloud.home / '.ssh' / 'google_compute_engine'
  key.parent.mkdir()
  key.touch()
  cloud.script('bin/ssh-keygen', '#!/bin/sh\necho 256 SHA256:abc me\n')
  assert train(cloud)[0] == 0
  assert ['ssh-add', '-q', str(key)] in cloud.calls('ssh-add')


def test_a_tunnel_needs_the_alpha_commands(cloud):
  _, out, _ = train(cloud, '--dry_run', '--gcloud_ssh_flag', '--tunnel-through-iap')
  assert out.count('gcloud alpha compute tpus tpu-vm') == out.count('--tunnel-through-iap') == 5


def test_a_repository_is_cloned_instead(cloud):
  commit = ['-c', 'user.name=a', '-c', 'user.email=a@b', 'commit', '--quiet', '-m', 'x']
  subprocess.run(['git', '-C', str(cloud.project), *commit], check=True)
  status, _, err = train(cloud, '--repository', str(cloud.project), '--ref', 'HEAD')
  assert status == 0 and not cloud.calls('gcloud', 'compute', 'tpus', 'tpu-vm', 'scp'), err
