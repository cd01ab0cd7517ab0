"""launch/slurm_train.sbatch with stand-ins for srun and scontrol, and launch/gke_xpk.sh with
stand-ins for docker and xpk.
"""

import os
import signal
import subprocess
import time

import pytest
from stand_ins import Cloud, wait_for

FLAGS = ("--gin.MODEL_DIR='/shared/it''s mine'", '--gin.X="a  b"')

# srun: runs its command once a node, hands SIGTERM on, and returns the highest status, as the real
# one does.
SRUN = """#!/bin/bash
echo "srun $*" >>"$CLOUD/slurm.log"
while [ "${1#--}" != "$1" ]; do shift; done
tasks=()
trap 'kill -TERM "${tasks[@]}"' TERM
for ((i = 0; i < SLURM_NTASKS; i++)); do SLURM_PROCID=$i HOME=$CLOUD/task.$i "$@" & tasks+=($!); done
highest=0
for task in "${tasks[@]}"; do
  while kill -0 "$task" 2>/dev/null; do wait "$task"; done
  wait "$task"; status=$?
  if [ "$status" -gt "$highest" ]; then highest=$status; fi
done
exit "$highest"
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >>"$CLOUD/slurm.log"
case "$1 $2" in
  'show hostnames') printf 'node7\\nnode8\\n' ;;
  'show job') echo "JobId=$3 JobState=$(cat "$CLOUD/job_state" 2>/dev/null || echo RUNNING) Reason=None" ;;
esac
"""


@pytest.fixture
def cloud(tmp_path):
  one = Cloud(tmp_path)
  one.script('bin/srun', SRUN)
  one.script('bin/scontrol', SCONTROL)
  for i in (0, 1):
    (one.folder / f'task.{i}').mkdir()
    (one.folder / f'task.{i}' / 'name').write_text(str(i))
  bin_folder = one.project / '.venv' / 'bin'
  bin_folder.mkdir(parents=True)
  (bin_folder / 'crossin').symlink_to(one.folder / 'worker_crossin')
  yield one
  one.clean()


def job(cloud, *words, tasks=2, restarts=0):
  spool = cloud.folder / 'slurm_script'  # SLURM runs a copy
  spool.write_text((cloud.project / 'launch' / 'slurm_train.sbatch').read_text())
  environment = cloud.environment(
    SLURM_JOB_ID='4711', SLURM_NTASKS=str(tasks), SLURM_JOB_NODELIST='node[7-8]',
    SLURM_SUBMIT_DIR=str(cloud.project),
    SLURM_RESTART_COUNT=str(restarts),
  )  # fmt: skip
  return subprocess.Popen(
    ['bash', str(spool), *words], env=environment, cwd=cloud.folder, text=True,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
  )  # fmt: skip


def finished(process):
  out, err = process.communicate(timeout=30)
  return process.returncode, out, err


def log(cloud):
  return (cloud.folder / 'slurm.log').read_text().splitlines()


def test_each_task_knows_its_place(cloud):
  status, _, err = finished(job(cloud, '--no_install', '--', *FLAGS))
  assert status == 0, err
  for i in (0, 1):
    place = ['--coordinator_address=node7:29422', '--process_count=2', f'--process_index={i}']
    assert cloud.started(str(i)) == [['train', *FLAGS, *place]]
  status, _, err = finished(
    job(cloud, '--no_install', '--command', 'evaluate', '--', *FLAGS, tasks=1)
  )
  assert status == 0 and cloud.started('0')[1] == ['evaluate', *FLAGS], err


@pytest.mark.parametrize('behaviour, status, requeued', [
    (('* 0 exit 75',), 75, True),
    (('0 0 exit 1', '1 0 exit 75'), 1, False),  # an error is one, though 75 is the higher number
    (('0 0 exit 2', '1 0 exit 2'), 2, False),
    (('1 0 kill -KILL $$',), 137, False),
])  # fmt: skip
def test_the_ends_of_tasks(cloud, behaviour, status, requeued):
  cloud.behave(*behaviour)
  found, _, err = finished(job(cloud, '--no_install', '--', *FLAGS))
  assert found == status and ('scontrol requeue 4711' in log(cloud)) == requeued, err


@pytest.mark.parametrize(
  'state, requeued', [('RUNNING', True), ('CANCELLED', False), ('PENDING', False)]
)
def test_the_signal_reaches_the_run_and_the_job_goes_back(cloud, state, requeued):
  (cloud.folder / 'job_state').write_text(state)
  cloud.behave('* 0 nap 30')
  process = job(cloud, '--no_install', '--', *FLAGS)
  wait_for(lambda: cloud.started('0') and cloud.started('1'))
  time.sleep(0.3)
  process.send_signal(signal.SIGTERM)  # --signal=B:TERM@120: to the batch shell alone
  status, _, err = finished(process)
  assert (
    status == 75
    and cloud.told() == ['0', '1']
    and ('scontrol requeue 4711' in log(cloud)) == requeued
  ), err


def test_the_queue_is_not_entered_for_ever(cloud):
  cloud.behave('* * exit 75')
  status, _, err = finished(
    job(cloud, '--no_install', '--max_restarts', '3', '--', *FLAGS, restarts=3)
  )
  assert (
    status == 75
    and '--max_restarts 3 is reached' in err
    and 'scontrol requeue 4711' not in log(cloud)
  )


def test_slurm_is_told_what_the_script_relies_on(cloud):
  lines = (cloud.project / 'launch' / 'slurm_train.sbatch').read_text().splitlines()
  directives = [line.split()[1] for line in lines if line.startswith('#SBATCH')]
  assert lines.index('#SBATCH --requeue') < next(
    i for i, line in enumerate(lines) if line and line[0] != '#'
  )
  assert {'--signal=B:TERM@120', '--requeue', '--ntasks-per-node=1'} <= set(directives)


def test_usage_of_the_job(cloud):
  status, _, err = finished(job(cloud, '--no_install'))
  assert status == 2 and 'give the flags' in err
  status, _, err = cloud.launch('slurm_train.sbatch', '--no_install', '--', 'x')
  assert status == 2 and 'this is for sbatch' in err


# ---- GKE ----

CLUSTER = ('--cluster', 'pods', '--workload', 'first', '--zone', 'z', '--project', 'p')
IMAGE = ('--tpu_type', 'v5litepod-16', '--image', 'z-docker.pkg.dev/p/i/crossin')
REMOTE = ("--gin.MODEL_DIR='gs://b/it''s'", '--gin_file=my own.gin')


def test_a_workload_is_an_image_and_a_command(cloud):
  status, _, err = cloud.launch('gke_xpk.sh', *CLUSTER, *IMAGE, '--num_slices', '2', '--', *REMOTE)
  assert status == 0 and '--delete' in err, err
  [build, push] = cloud.calls('docker')
  assert build[1] == 'build' and push == ['docker', 'push', 'z-docker.pkg.dev/p/i/crossin:first']
  [create] = cloud.calls('xpk', 'workload', 'create')
  assert {
    '--restart-on-exit-codes=75',
    '--tpu-type=v5litepod-16',
    '--num-slices=2',
    '--max-restarts=50',
  } <= set(create)
  # The command is what a shell in the container turns back into the arguments.
  command = next(word for word in create if word.startswith('--command='))[len('--command=exec ') :]
  show = 'crossin() { printf \'%s\\0\' "$@"; }; '
  out = subprocess.run(
    ['bash', '-c', show + command], check=True, capture_output=True, text=True
  ).stdout
  assert out.split('\0')[:-1] == ['train', *REMOTE, '--multihost']


def test_a_workload_in_a_dry_run_and_its_end(cloud):
  status, out, _ = cloud.launch('gke_xpk.sh', *CLUSTER, *IMAGE, '--dry_run', '--', *REMOTE)
  assert status == 0 and not cloud.calls() and 'xpk workload create' in out and 'docker push' in out
  assert cloud.launch('gke_xpk.sh', *CLUSTER, '--delete')[0] == 0
  assert cloud.calls('xpk', 'workload', 'delete')
  assert cloud.launch('gke_xpk.sh', *CLUSTER, *IMAGE, '--', '--gin.X=a\nb')[0] == 2
  assert not [name for name in os.listdir(cloud.home) if name.startswith('crossin')]
