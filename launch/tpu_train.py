"""Trains on Cloud TPUs from this machine: `bash launch/tpu_train.sh --help`."""

import argparse
import atexit
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import common
from common import fail, log, say
import supervisor

_DESCRIPTION = """\
Trains on Cloud TPUs from this machine: creates (or finds) a queued resource, waits for it, installs
this working tree on every worker, starts `crossin train` on all of them, shows the log of worker 0,
and restarts the run after an interruption or a preemption.

  bash launch/tpu_train.sh --name pod --zone us-west4-a --accelerator_type v5litepod-16 --spot \\
    --delete_when_done -- --gin_file=gin_configs/runs/crossin_60m.gin \\
    --gin.DATA_DIR="'gs://bucket/prepared'" --gin.MODEL_DIR="'gs://bucket/first'" \\
    --gin.MIXTURE_OR_TASK_NAME="'alpaca.base_x2x.all.en_zh_vi_es.default'"

What follows -- goes to `crossin train` unchanged. The same command follows a run that is running and
resumes one that is not. Ctrl-C only stops following. At the end the script reports what still exists
and costs money. Exit status: 0 finished, 1 failed, 2 wrong usage, 75 interrupted (the same command
resumes)."""
# The software that Google recommends for each generation; pip installs JAX itself.
_RUNTIME_VERSIONS = {
  'v5litepod': 'v2-alpha-tpuv5-lite',
  'v5p': 'v2-alpha-tpuv5',
  'v6e': 'v2-alpha-tpuv6e',
  **dict.fromkeys(('v2', 'v3', 'v4'), 'tpu-ubuntu2204-base'),
}
_NOTES = {
  'NOT_FOUND': 'does not exist; creating it',
  **dict.fromkeys(
    ('CREATING', 'ACCEPTED', 'WAITING_FOR_RESOURCES'), 'in the queue; Ctrl-C leaves it there'
  ),
  'PROVISIONING': 'its machines are starting',
}
_FORMAT = (
  "value[separator='|'](state.state,state.stateInitiator,state.failedData.error.message,"
  'tpu.nodeSpec[0].node.acceleratorType)'
)
_LOST_NODE = re.compile('PREEMPTED|TERMINATED|STOPPED|STOPPING|DELETING|NOT_FOUND')


def read_options(words: list[str]) -> argparse.Namespace:
  """The options, checked."""
  parser = common.Parser(_DESCRIPTION)
  parser.add('name', 'NAME', 'of the queued resource and of its nodes')
  parser.add('zone', 'ZONE')
  parser.add('project', 'PROJECT', "(gcloud's own)")
  parser.add('accelerator_type', 'TYPE', 'v5litepod-16, v5p-32, v6e-64, ...')
  parser.add('runtime_version', 'VERSION', 'software of the machines (follows the type)')
  parser.add('num_slices', 'N', 'slices of that type, as one run (1)', type=int, default=1)
  tier = parser.add_mutually_exclusive_group()
  tier.add_argument('--spot', action='store_true', help='cheaper and preemptible')
  tier.add_argument('--reserved', action='store_true', help='of your reservation')
  text = 'more for `queued-resources create`, such as --network=NET; may be repeated'
  parser.add('create_flag', 'FLAG', text, action='append')
  text = "more for gcloud's ssh and scp, such as --tunnel-through-iap; may be repeated"
  parser.add('gcloud_ssh_flag', 'FLAG', text, action='append')
  parser.add_shared('command', 'env', 'include', 'extra', 'repository', 'ref', 'max_restarts')
  text = 'delete the resource when the run ends in any way, --stop_on_interrupt included'
  parser.add('delete_when_done', help=text)
  parser.add_shared('stop_on_interrupt', 'dry_run', extra='tpu', max_restarts=20)
  parser.add_actions(
    status='report what exists and whether a run is running',
    stop='make the run save and stop',
    delete='delete the queued resource and its nodes',
  )
  options = parser.parse(words)
  parser.require(options, 'name', 'zone')
  if options.num_slices < 1:
    parser.error('--num_slices must be at least 1')
  if not options.action:
    parser.require(options, 'accelerator_type', 'arguments')
    if not options.runtime_version:
      kind = options.accelerator_type
      options.runtime_version = _RUNTIME_VERSIONS.get(kind.split('-')[0], '')
      if not options.runtime_version:
        parser.error(f'the software version for {kind} is unknown; give --runtime_version')
    parser.check_model_dir(options)
  if not options.dry_run:
    common.need('gcloud', 'https://cloud.google.com/sdk/docs/install, then: gcloud auth login')
  return options


class QueuedResource(supervisor.Machines):
  """A queued resource and its slices.

  Attributes:
    state: as the TPU service names it; NOT_FOUND if it does not exist, UNKNOWN without an answer.
    initiator: of a suspension.
    error: why it failed, or why there is no answer.
    kind: its accelerator type.
  """

  def __init__(self, options: argparse.Namespace):
    self.options, self.name = options, options.name
    count = options.num_slices
    self.units = [self.name] if count == 1 else [f'{self.name}-{i}' for i in range(count)]
    self.state = self.initiator = self.error = self.kind = ''
    project = [f'--project={options.project}'] if options.project else []
    self.place = [f'--zone={options.zone}', *project]
    tunnel = any('--tunnel-through-iap' in flag for flag in options.gcloud_ssh_flag)
    self._track = ['alpha'] if tunnel else []  # only there

  # ---- the resource ------------------------------------------------------------------------------

  def command(self, action: str, *flags: str) -> list[str]:
    """A command of gcloud on this resource."""
    return f'gcloud compute tpus queued-resources {action} {self.name}'.split() + [
      *self.place,
      *flags,
    ]

  def delete_command(self) -> list[str]:
    return self.command('delete', '--force', '--quiet')  # --force: the nodes too

  def describe_command(self) -> list[str]:
    return self.command('describe', f'--format={_FORMAT}')

  def create_command(self) -> list[str]:
    options = self.options
    nodes = f'--node-id={self.name}'
    if options.num_slices > 1:
      nodes = f'--node-count={options.num_slices}'  # the service names them NAME-0, NAME-1, ...
    return self.command(
      'create',
      '--quiet',
      nodes,
      f'--accelerator-type={options.accelerator_type}',
      f'--runtime-version={options.runtime_version}',
      *(f'--{tier}' for tier in ('spot', 'reserved') if getattr(options, tier)),
      *options.create_flag,
    )

  def refresh(self) -> None:
    """Asks for the state."""
    pipe = subprocess.PIPE
    answer = common.run(self.describe_command(), stdout=pipe, stderr=pipe)
    self.state, self.initiator, self.error, self.kind = 'UNKNOWN', '', '', ''
    if not answer.returncode:
      fields = [*answer.stdout.strip().split('|'), '', '', '']
      self.state, self.initiator, self.error, self.kind = fields[:4]
    elif 'NOT_FOUND' in answer.stderr:
      self.state = 'NOT_FOUND'
    else:
      self.error = ' '.join(answer.stderr.splitlines()[-3:])

  def delete(self) -> bool:
    """Deletes it and its nodes; whether it is gone."""
    log(f'deleting {self.name} and its nodes')
    if common.run(self.delete_command()).returncode:
      self.refresh()
      if self.state != 'NOT_FOUND':
        say(f'{self.name} could not be deleted; see above')
        return False
    return True

  def _delete_or_exit(self) -> None:
    if not self.delete():
      raise SystemExit(1)

  def wait_until_ready(self) -> None:
    """Creates it, or creates it again after a preemption, and waits until it is ACTIVE."""
    shown, shown_at, unanswered, created = '', 0.0, 0, False
    while True:
      self.refresh()
      if self.state != shown or time.monotonic() - shown_at >= 900:
        shown, shown_at = self.state, time.monotonic()
        log(f'{self.name}: {self.state}{self._explanation()}')
      if self.state == 'ACTIVE':
        wanted = self.options.accelerator_type
        if self.kind and self.kind.split('/')[-1] != wanted:
          fail(
            f'{self.name} is a {self.kind}, not a {wanted}: '
            'give another --name, or delete it with --delete',
            2,
          )
        share_ssh_key()
        return
      if self.state == 'NOT_FOUND':
        created = True
        if common.run(self.create_command()).returncode:
          fail(f'{self.name} could not be created; see above')
      elif self.state == 'FAILED' and created:
        fail(f'{self.name} could not be created: {self.error}')
      elif self.state in ('FAILED', 'SUSPENDED'):
        self._delete_or_exit()
      elif self.state == 'UNKNOWN':
        unanswered += 1
        if unanswered == 10:
          fail(f'no answer about {self.name}: {self.error}')
      time.sleep(supervisor.POLL_SECONDS)

  def _explanation(self) -> str:
    text = _NOTES.get(self.state, '')
    if self.state in ('SUSPENDING', 'SUSPENDED'):
      by = f' by {self.initiator}' if self.initiator else ''
      text = f'preempted or suspended{by}; it will be created again'
    elif self.state in ('FAILED', 'UNKNOWN'):
      text = self.error
    return text and f' ({text})'

  def lost(self, thoroughly=False):
    self.refresh()
    if self.state not in ('ACTIVE', 'UNKNOWN'):
      return f'{self.name} was preempted or suspended: it is {self.state}'
    for node in self.units if thoroughly else ():
      describe = ['gcloud', 'compute', 'tpus', 'tpu-vm', 'describe', node, *self.place]
      describe += ['--format=value(state)']
      answer = common.run(describe, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
      if _LOST_NODE.search(answer):
        self._wait_for_state_change()
        return f'node {node} was preempted or stopped'
    return ''

  def _wait_for_state_change(self) -> None:
    """The queued resource notices the loss of a node a little later."""
    for _ in range(30):
      if self.state != 'ACTIVE':
        return
      time.sleep(supervisor.POLL_SECONDS)
      self.refresh()
    if self.state == 'ACTIVE':
      log(f'{self.name} is still ACTIVE without its nodes; deleting it')
      self._delete_or_exit()

  def report(self) -> None:
    """Says what exists and what it costs to forget it."""
    self.refresh()
    delete = shlex.join(self.delete_command())
    if self.state == 'NOT_FOUND':
      log(f'nothing is left: {self.name} does not exist')
    elif self.state == 'UNKNOWN':
      say(
        f'UNKNOWN whether {self.name} still exists ({self.error}). To list and to delete:\n'
        f'  gcloud compute tpus queued-resources list {shlex.join(self.place)}\n  {delete}'
      )
    elif self.state in ('FAILED', 'SUSPENDED'):
      say(f'{self.name} is {self.state}: it is free, but its name stays taken until: {delete}')
    else:
      machines = f'{self.options.num_slices} x {self.kind or "TPU"}'
      say(
        f'{self.name} ({machines}) is {self.state} and COSTS MONEY, or will when it is granted, '
        f'until it is deleted:\n  {delete}'
      )

  # ---- its workers -------------------------------------------------------------------------------

  def _tpu_vm(self, action: str, *words: str) -> list[str]:
    return ['gcloud', *self._track, 'compute', 'tpus', 'tpu-vm', action, *words, *self.place] + [
      '--worker=all',
      '--quiet',
      '--strict-host-key-checking=no',
      f'--{action}-flag=-oConnectTimeout=30',
      *(['--ssh-flag=-oServerAliveInterval=20'] if action == 'ssh' else []),
      *self.options.gcloud_ssh_flag,
    ]

  def ssh(self, unit, command):
    return [*self._tpu_vm('ssh', self.units[unit]), f'--command={command}']

  def scp(self, unit, file):
    return self._tpu_vm('scp', file, f'{self.units[unit]}:crossin_jax.tar.gz')

  def worker_flags(self, unit):
    return ['--slice', str(unit)]

  def process_flags(self, unit, workers):
    """Each process finds its index itself; it does not start without the expected number."""
    if workers == 1 or not common.many_processes(self.options.command):
      return []
    return ['--multihost', *([f'--process_count={workers}'] if workers else [])]

  def worker_name(self, key):
    unit, number = key.split('/')
    return f'worker {number}' if len(self.units) == 1 else f'slice {unit} worker {number}'

  def before_copy(self):
    share_ssh_key()


def share_ssh_key() -> None:
  """Adds gcloud's key to the ssh agent, without which gcloud cannot reach several workers at once."""
  key = os.path.expanduser('~/.ssh/google_compute_engine')
  if not os.path.exists(key):  # gcloud creates it when it first connects
    return
  output = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
  known = subprocess.run(['ssh-add', '-l'], **output)
  if known.returncode == 2:  # no agent runs
    variables = re.findall(r'(\w+)=([^;]+);', subprocess.run(['ssh-agent', '-s'], **output).stdout)
    os.environ.update(variables)
    agent = int(dict(variables).get('SSH_AGENT_PID', 0))
    if agent:
      atexit.register(os.kill, agent, signal.SIGTERM)
  fingerprint = subprocess.run(['ssh-keygen', '-lf', key], **output).stdout.split()[1:2]
  if not fingerprint or fingerprint[0] not in known.stdout:
    if subprocess.run(['ssh-add', '-q', key]).returncode:
      fail(f'ssh-add {key} failed; without it gcloud cannot reach several workers at once')


def main() -> int:
  options = read_options(sys.argv[1:])
  resource = QueuedResource(options)
  runner = supervisor.Supervisor(options, resource)

  def train() -> int:
    share_ssh_key()  # here, where it may ask for a passphrase
    try:
      status = runner.supervise()
    except SystemExit as end:
      status = int(end.code or 0)
    # 2: the resource or the run on it belongs to somebody else.
    if options.delete_when_done and status != 2 and not resource.delete():
      status = 1
    return status

  def status() -> int:
    resource.refresh()
    return runner.show_state() if resource.state == 'ACTIVE' else 0

  delete = lambda: int(not resource.delete())
  if options.dry_run:
    return dry_run(options, resource, runner)
  actions = {'': train, 'status': status, 'stop': runner.stop, 'delete': delete}
  result = runner.attend(actions[options.action])
  if runner.saved and options.delete_when_done:
    resource.delete()
  resource.report()
  return result


def dry_run(options, resource: QueuedResource, runner: supervisor.Supervisor) -> int:
  """Prints every command of an action."""
  if not options.action:
    common.note('create the queued resource, unless it exists')
    common.show(resource.create_command())
    common.note('until its state is ACTIVE')
  if options.action in ('', 'status'):
    common.show(resource.describe_command())
  if options.action:
    {'status': runner.show_state, 'stop': runner.stop}.get(options.action, int)()
  else:
    runner.dry_run()
  if options.action == 'delete' or (not options.action and options.delete_when_done):
    common.show(resource.delete_command())
  return 0


if __name__ == '__main__':
  sys.exit(main())
