"""Trains on Cloud TPUs from this machine: `bash launch/tpu_train.sh --help`."""

import atexit
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import common
from common import Options, fail, log, say
import supervisor

_HELP = f"""\
Trains on Cloud TPUs from this machine: creates (or finds) a queued resource, waits for it, installs
this working tree on every worker, starts `crossin train` on all of them, shows the log of worker 0,
and restarts the run after an interruption or a preemption.

  bash launch/tpu_train.sh --name pod --zone us-west4-a --accelerator_type v5litepod-16 --spot \\
    --delete_when_done -- gin_configs/runs/crossin_60m.gin TRAIN_STEPS=1000 \\
    DATA_DIR=gs://bucket/prepared MODEL_DIR=gs://bucket/first \\
    MIXTURE_OR_TASK_NAME=alpaca.base_x2x.all.en_zh_vi_es.default

What follows -- goes to `crossin train`. The same command follows a run that is running and resumes
one that is not. Ctrl-C only stops following. The end reports what still exists and costs money.

  --name NAME               of the queued resource and of its nodes
  --zone ZONE
  --project PROJECT         (gcloud's own)
  --accelerator_type TYPE   v5litepod-16, v5p-32, v6e-64, ...
  --runtime_version V       software of the machines (follows the type)
  --num_slices N            slices of that type, as one run (1)
  --spot                    cheaper and preemptible
  --reserved                of your reservation
  --create_flag FLAG ...    more for `gcloud compute tpus queued-resources create`, such as
                            --network=NET; may be repeated
  --gcloud_ssh_flag FLAG ... more for gcloud's ssh and scp, such as --internal-ip or
                            --tunnel-through-iap; may be repeated
  --delete_when_done        delete the queued resource when the run ends in any way, and after an
                            interruption with --stop_on_interrupt
{common.RUN_OPTIONS % 'tpu'}Instead of a run, with --name and --zone:
  --status                  what exists, and whether a run is running
  --stop                    make the run save and stop
  --delete                  delete the queued resource and its nodes
{common.STATUSES}"""
# The software that Google recommends for each generation; pip installs JAX itself.
_RUNTIME_VERSIONS = {
  'v5litepod': 'v2-alpha-tpuv5-lite',
  'v5p': 'v2-alpha-tpuv5',
  'v6e': 'v2-alpha-tpuv6e',
  **dict.fromkeys(('v2', 'v3', 'v4'), 'tpu-ubuntu2204-base'),
}
_NOTES = {
  'NOT_FOUND': 'does not exist; creating it',
  **dict.fromkeys(['CREATING', 'ACCEPTED'], 'in the queue; Ctrl-C leaves it there'),
  'WAITING_FOR_RESOURCES': 'in the queue; Ctrl-C leaves it there',
  'PROVISIONING': 'its machines are starting',
}
_FORMAT = (
  "value[separator='|'](state.state,state.stateInitiator,state.failedData.error.message,"
  'tpu.nodeSpec[0].node.acceleratorType)'
)
_LOST_NODE = re.compile('PREEMPTED|TERMINATED|STOPPED|STOPPING|DELETING|NOT_FOUND')
_PIPES = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT}


class QueuedResource:
  """A queued resource and its slices, as `supervisor.Supervisor` needs them.

  Attributes:
    state: as the TPU service names it; NOT_FOUND if it does not exist, UNKNOWN without an answer.
    detail: why it failed or does not answer, or who suspended it.
    kind: its accelerator type.
  """

  in_turn = False

  def __init__(self, options: Options):
    self.options, self.name = options, options.name
    count = options.num_slices
    self.units = [self.name] if count == 1 else [f'{self.name}-{i}' for i in range(count)]
    self.state = self.detail = self.kind = ''
    self.place = [f'--zone={options.zone}']
    if options.project:
      self.place.append(f'--project={options.project}')

  def command(self, action: str, *flags: str) -> list[str]:
    tpus = ['gcloud', 'compute', 'tpus', 'queued-resources']
    return [*tpus, action, self.name, *self.place, *flags]

  @property
  def delete_command(self) -> list[str]:
    return self.command('delete', '--force', '--quiet')  # --force: the nodes too

  def create(self) -> None:
    options = self.options
    # The service names several nodes NAME-0, NAME-1, ...
    nodes = f'--node-id={self.name}' if len(self.units) == 1 else f'--node-count={len(self.units)}'
    flags = ['--quiet', nodes, f'--accelerator-type={options.accelerator_type}']
    flags += [f'--runtime-version={options.runtime_version}']
    flags += [f'--{tier}' for tier in ('spot', 'reserved') if getattr(options, tier)]
    if self._run(self.command('create', *flags, *options.create_flag)):
      fail(f'{self.name} could not be created; see above')

  def delete(self) -> bool:
    """Deletes it and its nodes; whether it is gone."""
    if not self.options.dry_run:
      log(f'deleting {self.name} and its nodes')
    if self._run(self.delete_command):
      self.refresh()
      if self.state != 'NOT_FOUND':
        say(f'{self.name} could not be deleted; see above')
        return False
    return True

  def _run(self, words: list[str]) -> int:
    return common.show(words) or 0 if self.options.dry_run else common.run(words).returncode

  def refresh(self) -> None:
    """Asks for the state."""
    words = self.command('describe', f'--format={_FORMAT}')
    if self.options.dry_run:
      return common.show(words)
    answer = common.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if not answer.returncode:
      fields = [*answer.stdout.strip().split('|'), '', '', '']
      self.state, initiator, error, self.kind = fields[:4]
      self.detail = error or f'by {initiator or "the service"}'
    else:
      self.state = 'NOT_FOUND' if 'NOT_FOUND' in answer.stderr else 'UNKNOWN'
      self.detail, self.kind = ' '.join(answer.stderr.splitlines()[-3:]), ''

  def wait_until_ready(self) -> None:
    """Creates it, or creates it again after a preemption, and waits until it is ACTIVE."""
    shown, shown_at, unanswered, created = '', 0.0, 0, False
    while True:
      self.refresh()
      if self.state != shown or time.monotonic() - shown_at >= 900:
        shown, shown_at = self.state, time.monotonic()
        note = _NOTES.get(shown, self.detail)
        if shown in ('SUSPENDING', 'SUSPENDED'):
          note = f'preempted or suspended {note}; it will be created again'
        log(f'{self.name}: {shown}' + (f' ({note})' if note and shown != 'ACTIVE' else ''))
      if self.state == 'ACTIVE':
        wanted = self.options.accelerator_type
        if self.kind and self.kind.split('/')[-1] != wanted:
          remedy = 'give another --name, or delete it with --delete'
          fail(f'{self.name} is a {self.kind}, not a {wanted}: {remedy}', 2)
        return share_ssh_key()
      if self.state == 'NOT_FOUND':
        created = True
        self.create()
      elif self.state == 'FAILED' and created:
        fail(f'{self.name} could not be created: {self.detail}')
      elif self.state in ('FAILED', 'SUSPENDED'):
        self.delete() or sys.exit(1)
      elif self.state == 'UNKNOWN':
        unanswered += 1
        if unanswered == 10:
          fail(f'no answer about {self.name}: {self.detail}')
      time.sleep(supervisor.POLL_SECONDS)

  def lost(self, thoroughly=False):
    self.refresh()
    if self.state not in ('ACTIVE', 'UNKNOWN'):
      return f'{self.name} was preempted or suspended: it is {self.state}'
    for node in self.units if thoroughly else ():
      describe = ['gcloud', 'compute', 'tpus', 'tpu-vm', 'describe', node, *self.place]
      if _LOST_NODE.search(common.run([*describe, '--format=value(state)'], **_PIPES).stdout):
        self._wait_for_service()
        return f'node {node} was preempted or stopped'
    return ''

  def _wait_for_service(self) -> None:
    """The queued resource is ACTIVE for a while after the loss of a node."""
    for _ in range(30):
      if self.state != 'ACTIVE':
        return
      time.sleep(supervisor.POLL_SECONDS)
      self.refresh()
    log(f'{self.name} is still {self.state} without its nodes; deleting it')
    self.delete() or sys.exit(1)

  def report(self) -> None:
    """Says what exists and how to delete it."""
    self.refresh()
    name, delete = self.name, shlex.join(self.delete_command)
    if self.state == 'NOT_FOUND':
      log(f'nothing is left: {name} does not exist')
    elif self.state == 'UNKNOWN':
      say(
        f'UNKNOWN whether {name} still exists ({self.detail}). To list and to delete:\n'
        f'  gcloud compute tpus queued-resources list {shlex.join(self.place)}\n  {delete}'
      )
    elif self.state in ('FAILED', 'SUSPENDED'):
      say(f'{name} is {self.state}: it costs nothing, but its name stays taken until: {delete}')
    else:
      say(
        f'{name} ({len(self.units)} x {self.kind or "TPU"}) is {self.state} and COSTS MONEY, or '
        f'will when it is granted, until it is deleted:\n  {delete}'
      )

  def _tpu_vm(self, action: str, *words: str) -> list[str]:
    own = self.options.gcloud_ssh_flag
    alpha = ['alpha'] if any('--tunnel-through-iap' in flag for flag in own) else []  # only there
    flags = ['--worker=all', '--quiet', '--strict-host-key-checking=no']
    flags += [f'--{action}-flag=-oConnectTimeout=30', *own]
    return ['gcloud', *alpha, 'compute', 'tpus', 'tpu-vm', action, *words, *self.place, *flags]

  def ssh(self, unit, command):
    alive = '--ssh-flag=-oServerAliveInterval=20'
    return [*self._tpu_vm('ssh', self.units[unit]), alive, f'--command={command}']

  def scp(self, unit, file):
    return self._tpu_vm('scp', file, f'{self.units[unit]}:crossin_jax.tar.gz')

  def worker_flags(self, unit):
    return ['--slice', str(unit)]

  def process_flags(self, unit, workers):
    """Each process finds its index itself, and starts only with the expected number of others."""
    if workers == 1 or not common.many_processes(self.options):
      return []
    return ['--multihost', *([f'--process_count={workers}'] if workers else [])]

  def worker_name(self, key):
    unit, number = key.split('/')
    return f'worker {number}' if len(self.units) == 1 else f'slice {unit} worker {number}'

  def before_copy(self):
    share_ssh_key()  # gcloud may have created it at its first connection


def share_ssh_key() -> None:
  """Adds gcloud's key to the ssh agent: gcloud reaches several workers at once only through it."""
  key = os.path.expanduser('~/.ssh/google_compute_engine')
  if not os.path.exists(key):
    return
  known = subprocess.run(['ssh-add', '-l'], text=True, **_PIPES)
  if known.returncode == 2:  # no agent runs
    agent = subprocess.run(['ssh-agent', '-s'], text=True, **_PIPES).stdout
    variables = dict(re.findall(r'(\w+)=([^;]+);', agent))
    os.environ.update(variables)
    if 'SSH_AGENT_PID' in variables:
      atexit.register(os.kill, int(variables['SSH_AGENT_PID']), signal.SIGTERM)
  fingerprint = subprocess.run(['ssh-keygen', '-lf', key], text=True, **_PIPES).stdout.split()[1:2]
  if fingerprint and fingerprint[0] in known.stdout:
    return
  if subprocess.run(['ssh-add', '-q', key]).returncode:
    fail(f'ssh-add {key} failed; without it gcloud cannot reach several workers at once')


def read_options() -> Options:
  options = common.parse(_HELP, extra='tpu', num_slices=1, max_restarts=20)
  common.require(options, 'name', 'zone')
  if options.spot and options.reserved:
    common.usage_error('--spot and --reserved exclude each other')
  if options.num_slices < 1:
    common.usage_error('--num_slices must be at least 1')
  if not (options.status or options.stop or options.delete):
    common.require(options, 'accelerator_type')
    common.check_arguments(options)
    kind = options.accelerator_type
    options.runtime_version = options.runtime_version or _RUNTIME_VERSIONS.get(kind.split('-')[0])
    if not options.runtime_version:
      common.usage_error(f'the software version for {kind} is unknown; give --runtime_version')
  if not options.dry_run and not shutil.which('gcloud'):
    install = 'https://cloud.google.com/sdk/docs/install, then: gcloud auth login'
    fail(f'gcloud is not on PATH; {install}')
  return options


def main() -> int:
  options = read_options()
  resource = QueuedResource(options)
  runner = supervisor.Supervisor(options, resource)

  def train() -> int:
    if options.dry_run:
      print('# create the queued resource, unless it exists')
      resource.create()
      print('# until its state is ACTIVE')
      resource.refresh()
    else:
      share_ssh_key()  # here, where it may ask for a passphrase
    try:
      status = runner.supervise()
    except SystemExit as end:
      status = int(end.code or 0)
    # 2: the resource, or the run on it, is another one.
    if options.delete_when_done and status != 2 and not resource.delete():
      status = 1
    return status

  def status() -> int:
    resource.refresh()
    return runner.show_state() if options.dry_run or resource.state == 'ACTIVE' else 0

  actions = {'status': status, 'stop': runner.stop, 'delete': lambda: int(not resource.delete())}
  chosen = [action for name, action in actions.items() if getattr(options, name)]
  result = runner.attend(chosen[-1] if chosen else train)
  if runner.saved and options.delete_when_done:
    resource.delete()
  if not options.dry_run:
    resource.report()
  return result


if __name__ == '__main__':
  common.exit_after(main)
