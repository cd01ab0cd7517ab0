"""Trains on GPUs of this host or of several hosts: `bash launch/gpu_train.sh --help`."""

import common
from common import INTERRUPTED, Options, log, say
import supervisor

_HELP = f"""\
Trains on GPUs: on this host, with all its GPUs in one process, or on several hosts reached by ssh,
one process each. Restarts the run after exit status 75; if one host fails, stops the others.

  bash launch/gpu_train.sh -- FILE.gin MODEL_DIR=runs/first ...
  bash launch/gpu_train.sh --hosts a,b -- FILE.gin MODEL_DIR=/shared/runs/first ...

What follows -- goes to `crossin train`. With --hosts the run outlives this script: the same command
follows it again, and Ctrl-C only stops following. All hosts must see DATA_DIR and MODEL_DIR.

  --hosts A,B,...           by ssh without a password; the first is the coordinator
  --coordinator_address A   HOST:PORT of the first (its name, port 8476; the next port is used too)
  --ssh_flag FLAG ...       more for ssh and scp, such as -oUser=me; may be repeated
{common.RUN_OPTIONS % 'cuda'}Instead of a run, with --hosts:
  --status                  whether a run is running
  --stop                    make the run save and stop
{common.STATUSES}"""


class Hosts:
  """Hosts with GPUs, as `supervisor.Supervisor` needs them."""

  in_turn = True

  def __init__(self, options: Options):
    self.options, self.units = options, options.hosts

  def ssh(self, unit, command):
    flags = '-oBatchMode=yes -oConnectTimeout=30 -oServerAliveInterval=20'.split()
    return ['ssh', *flags, *self.options.ssh_flag, self.units[unit], command]

  def scp(self, unit, file):
    flags = ['-q', '-oBatchMode=yes', '-oConnectTimeout=30', *self.options.ssh_flag]
    return ['scp', *flags, file, f'{self.units[unit]}:crossin_jax.tar.gz']

  def worker_flags(self, unit):
    return ['--host', str(unit)]

  def process_flags(self, unit, workers):
    count = len(self.units) if common.many_processes(self.options) else 1
    return common.process_flags(self.options.coordinator_address, count, unit)

  def worker_name(self, key):
    unit = key.split('/')[0]
    return f'host {self.units[int(unit)]} (process {unit})'

  def wait_until_ready(self):
    pass

  before_copy = wait_until_ready

  def lost(self, thoroughly=False):
    return ''  # a host that does not answer is an error that ssh explains


def train_here(options: Options) -> int:
  """Runs it on this host until it ends with another status than 75."""
  words, most = ['.venv/bin/crossin', options.command, *options.arguments], options.max_restarts
  if options.dry_run:
    print(f'# install with the extra {options.extra} in .venv, then')
    common.show(['env', *options.env, *words])
    return 0
  common.make_environment(options.extra)
  for restart in range(1, most + 2):
    status, interrupted = common.run_forwarding(['env', *options.env, *words])
    if interrupted or status != INTERRUPTED:
      return INTERRUPTED if interrupted else status
    if restart <= most:
      log(f'the run was interrupted and saved; restarting ({restart} of at most {most})')
  say(
    f'not restarting: --max_restarts {most} is reached. '
    'The same command resumes from the last checkpoint'
  )
  return INTERRUPTED


def main() -> int:
  options = common.parse(_HELP, extra='cuda', max_restarts=20)
  options.hosts = options.hosts.split(',') if options.hosts else []
  if options.status or options.stop:
    if not options.hosts:
      common.usage_error('--status and --stop need --hosts')
  else:
    common.check_arguments(options, shared=len(options.hosts) > 1)
  if not options.hosts:
    return train_here(options)
  options.coordinator_address = options.coordinator_address or (
    options.hosts[0].split('@')[-1] + ':8476'
  )
  runner = supervisor.Supervisor(options, Hosts(options))
  return runner.attend(
    runner.show_state if options.status else runner.stop if options.stop else runner.supervise
  )


if __name__ == '__main__':
  common.exit_after(main)
