"""A job of launch/slurm_train.sbatch, and one task of it."""

import os
import subprocess
import sys

import common
from common import INTERRUPTED, say

_HELP = f"""\
Trains under SLURM, one process with all its GPUs on each node. From the folder of the project:

  sbatch --nodes=4 --gpus-per-node=8 --time=24:00:00 launch/slurm_train.sbatch -- FILE.gin \\
    DATA_DIR=/shared/prepared MODEL_DIR=/shared/runs/first ...

What follows -- goes to `crossin train`. Two minutes before the time limit, and on preemption, the
run saves and stops, and the job is requeued and resumes. scancel ends it for good.

  --command COMMAND         of `crossin` (train)
  --extra EXTRA             of pyproject.toml, to install in .venv (cuda)
  --max_restarts N          how often the job is requeued (50)
  --no_install              .venv exists already
{common.STATUSES}"""


def run_job() -> int:
  """Installs, runs all tasks, and requeues the job after an interruption."""
  options = common.parse(_HELP, extra='cuda', max_restarts=50)
  common.check_arguments(options, shared=False)
  job = os.environ.get('SLURM_JOB_ID')
  if not job:
    common.usage_error('this is for sbatch; on one machine: bash launch/gpu_train.sh')
  if not options.no_install:
    common.make_environment(options.extra)
  elif not os.path.exists('.venv/bin/crossin'):
    common.usage_error('.venv/bin/crossin does not exist: omit --no_install')
  # The first node, and two ports that jobs on the same node do not share.
  nodes = scontrol('show', 'hostnames', os.environ['SLURM_JOB_NODELIST']).split()
  coordinator = f'{nodes[0]}:{20000 + int(job) % 5000 * 2}'
  # --wait: if a task hangs after another has failed, which its heartbeat prevents.
  srun = ['srun', '--kill-on-bad-exit=0', '--wait=600', sys.executable, 'launch/slurm_train.py']
  crossin = [options.command, *options.arguments]
  status, interrupted = common.run_forwarding([*srun, 'task', coordinator, *crossin])
  if 100 < status < 128:
    status -= 100
  if status == INTERRUPTED or (interrupted and status):
    requeue(job, options.max_restarts)
    return INTERRUPTED
  if status:
    say(f'crossin {options.command} failed with exit status {status}; the lines above say why')
  return status


def run_task(coordinator: str, *words: str) -> int:
  """Runs one process of a job.

  srun returns the highest status of all tasks, so errors (1, 2) become 101 and 102: above 75.
  """
  count, index = int(os.environ['SLURM_NTASKS']), int(os.environ['SLURM_PROCID'])
  # `crossin --multihost` detects SLURM too, but does not check the number of processes.
  flags = common.process_flags(coordinator, count, index)
  status, interrupted = common.run_forwarding(['.venv/bin/crossin', *words, *flags])
  if interrupted and status == 143:
    status = INTERRUPTED  # it did not handle SIGTERM yet
  return status + 100 if 0 < status < 27 else status


def scontrol(*words: str) -> str:
  return subprocess.run(['scontrol', *words], stdout=subprocess.PIPE, text=True).stdout


def requeue(job: str, max_restarts: int) -> None:
  """Requeues an interrupted job, unless it was cancelled or SLURM has done so."""
  state = scontrol('show', 'job', job)
  if 'JobState=CANCELLED' in state:
    say('cancelled; the same sbatch command resumes from the last checkpoint')
  elif 'JobState=PENDING' in state:
    say('preempted; SLURM has requeued the job')
  elif int(os.environ.get('SLURM_RESTART_COUNT', 0)) >= max_restarts:
    say(f'not requeued: --max_restarts {max_restarts} is reached. The same sbatch command resumes')
  else:
    say('interrupted and saved; requeueing the job')
    scontrol('requeue', job)


if __name__ == '__main__':
  task = sys.argv[1:2] == ['task']
  common.exit_after((lambda: run_task(*sys.argv[2:])) if task else run_job)
