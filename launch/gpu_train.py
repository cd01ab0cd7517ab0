"""Trains on GPUs of this host or of several hosts: `bash launch/gpu_train.sh --help`."""

import argparse
import sys

import common
from common import INTERRUPTED, log, say
import supervisor

_DESCRIPTION = """\
Trains on GPUs: on this host, with all its GPUs in one process, or on several hosts reached by ssh,
one process each. Restarts the run after an interruption; when one host fails, the others are stopped.

  bash launch/gpu_train.sh -- --gin_file=gin_configs/runs/crossin_60m.gin \\
    --gin.MODEL_DIR="'runs/first'" ...
  bash launch/gpu_train.sh --hosts gpu1,gpu2 -- --gin_file=... \\
    --gin.MODEL_DIR="'/shared/runs/first'" ...

What follows -- goes to `crossin train` unchanged. With --hosts the run outlives this script: the same
command follows it again, and Ctrl-C only stops following. All hosts must see DATA_DIR and MODEL_DIR
(gs://, NFS). Exit status: 0 finished, 1 failed, 2 wrong usage, 75 interrupted (the same command
resumes)."""


def read_options(words: list[str]) -> argparse.Namespace:
  """The options, checked."""
  parser = common.Parser(_DESCRIPTION)
  parser.add('hosts', 'A,B,...', 'by ssh without a password; the first is the coordinator')
  text = 'HOST:PORT of the first host (its name, port 8476; the next port is used too)'
  parser.add('coordinator_address', 'ADDRESS', text)
  text = 'more for ssh and scp, such as -oUser=me; may be repeated'
  parser.add('ssh_flag', 'FLAG', text, action='append')
  parser.add_shared('command', 'env', 'include', 'extra', 'repository', 'ref', 'max_restarts')
  parser.add_shared('stop_on_interrupt', 'dry_run', extra='cuda', max_restarts=20)
  parser.add_actions(status='report whether a run is running', stop='make the run save and stop')
  options = parser.parse(words)
  options.hosts = [host for host in options.hosts.split(',') if host]
  if options.action:
    if not options.hosts:
      parser.error(f'--{options.action} needs --hosts')
    return options
  parser.require(options, 'arguments')
  if len(options.hosts) > 1:
    parser.check_model_dir(options)
  if options.hosts and not options.coordinator_address:
    options.coordinator_address = f'{options.hosts[0].split("@")[-1]}:8476'
  return options


class Hosts(supervisor.Machines):
  """Hosts with GPUs; one that does not answer is an error that ssh explains."""

  install_in_turn = True

  def __init__(self, options: argparse.Namespace):
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
    if len(self.units) == 1 or not common.many_processes(self.options.command):
      return []
    return common.process_flags(self.options.coordinator_address, len(self.units), unit)

  def worker_name(self, key):
    unit = key.split('/')[0]
    return f'host {self.units[int(unit)]} (process {unit})'


def train_here(options: argparse.Namespace) -> int:
  """Runs it on this host until it ends with another status than 75."""
  words = ['.venv/bin/crossin', options.command, *options.arguments]
  if options.dry_run:
    common.note(f'install with the extra {options.extra} in .venv, then')
    common.show(['env', *options.env, *words])
    return 0
  common.make_environment(options.extra)
  for restart in range(1, options.max_restarts + 2):
    status, interrupted = common.run_forwarding(words, env=common.environment(options.env))
    if interrupted:
      return INTERRUPTED
    if status != INTERRUPTED:
      return status
    if restart <= options.max_restarts:
      most = options.max_restarts
      log(f'the run was interrupted and saved; restarting ({restart} of at most {most})')
  say(
    f'not restarting: --max_restarts {options.max_restarts} is reached. '
    'The same command resumes from the last checkpoint'
  )
  return INTERRUPTED


def main() -> int:
  options = read_options(sys.argv[1:])
  if not options.hosts:
    return train_here(options)
  runner = supervisor.Supervisor(options, Hosts(options))
  if options.dry_run and not options.action:
    runner.dry_run()
    return 0
  actions = {'': runner.supervise, 'status': runner.show_state, 'stop': runner.stop}
  return runner.attend(actions[options.action])


if __name__ == '__main__':
  sys.exit(main())
