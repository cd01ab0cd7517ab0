"""A cloud, hosts and a cluster that are not there: stand-ins for gcloud, ssh, SLURM's commands,
docker and xpk, on PATH.

Workers are folders, each the HOME of its processes. What ssh is given is really run, by /bin/sh, so
that quoting, exit statuses and signals are real; `pip` and `crossin` on the workers are stand-ins
too, whose behaviour a test writes down.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time

# of the launcher: the bash 3.2 of macOS, for instance
BASH = os.environ.get('CROSSIN_TEST_BASH', 'bash')
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

# What every stand-in written in Python begins with: notes its arguments, finds the files of the
# cloud.
_HEAD = f'''#!{sys.executable} -SE
import glob, json, os, pathlib, shutil, signal, subprocess, sys, time
cloud = pathlib.Path(os.environ['CLOUD'])
words = sys.argv[1:]
with open(cloud / 'calls.jsonl', 'a') as f:
  f.write(json.dumps([os.path.basename(sys.argv[0]), *words]) + '\\n')
flags = dict(w[2:].split('=', 1) for w in words if w.startswith('--') and '=' in w)

def run_on(workers, command):
  """Runs a command on workers at once; the exit status of the first that fails. 255 = its machine went away."""
  running = [
    subprocess.Popen(
      ['/bin/sh', '-c', command], cwd=w, stdin=subprocess.DEVNULL,
      env={{'HOME': str(w), 'PATH': f'{{w}}/bin:/usr/bin:/bin', 'CLOUD': str(cloud), 'WORKER': str(w)}},
    )
    for w in workers
  ]
  status = [p.wait() for p in running]
  return next((255 if s < 0 else s for s in status if s), 0)

def kill_processes(worker):
  """As when a machine is switched off."""
  for path in glob.glob('/proc/[0-9]*/environ'):
    number = int(path.split('/')[2])
    try:
      mine = f'WORKER={{worker}}'.encode() in pathlib.Path(path).read_bytes().split(b'\\0')
      if mine and number != os.getpid():
        os.kill(number, signal.SIGKILL)
    except OSError:
      pass
'''

_GCLOUD = (
  _HEAD
  + """
def fail(text):
  print(f'ERROR: (gcloud) {text}', file=sys.stderr)
  sys.exit(1)

def resource(name):
  folder = cloud / 'resources' / name
  if not folder.exists():
    fail(f"NOT_FOUND: Resource 'queuedResources/{name}' was not found")
  return folder

def nodes(folder):
  return [cloud / 'workers' / node for node in (folder / 'nodes').read_text().split()]

def remove(folder):
  for node in nodes(folder):
    for worker in node.glob('*'):
      kill_processes(worker)
    shutil.rmtree(node, ignore_errors=True)

if words[:2] == ['storage', 'rsync'] or words[:2] == ['storage', 'cp']:
  source, target = (w.replace('gs:/', str(cloud / 'gs')) for w in words[-2:])
  if words[1] == 'cp':
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.copy(source, target)
  else:
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=lambda d, names: [n for n in names if os.path.islink(os.path.join(d, n))])
  sys.exit(0)
if words[0] == 'preempt':  # what the service does; no command of gcloud
  folder = resource(words[1])
  (folder / 'states').write_text('SUSPENDING SUSPENDED')
  remove(folder)
  sys.exit(0)
words = [w for w in words if w != 'alpha']
kind, action, name = words[2:5]
if kind == 'queued-resources' and action == 'create':
  made = json.loads((cloud / 'plan.json').read_text())
  number = len(glob.glob(str(cloud / 'made.*')))
  (cloud / f'made.{number}').touch()
  folder = cloud / 'resources' / name
  folder.mkdir(parents=True)
  (folder / 'states').write_text(made['states'][min(number, len(made['states']) - 1)])
  (folder / 'type').write_text(flags['accelerator-type'])
  count = int(flags.get('node-count', 1))
  names = [flags['node-id']] if count == 1 else [f'{name}-{i}' for i in range(count)]
  (folder / 'nodes').write_text(' '.join(names))
  for slice_number, node in enumerate(names):
    for i in range(made['workers']):
      subprocess.run([cloud / 'make_worker', cloud / 'workers' / node / str(i), str(slice_number), str(i), str(made['workers'])], check=True)
elif kind == 'queued-resources' and action == 'describe':
  if (cloud / 'unreachable').exists():
    fail('could not reach tpu.googleapis.com')
  folder = resource(name)
  states = (folder / 'states').read_text().split()
  if len(states) > 1:
    (folder / 'states').write_text(' '.join(states[1:]))
  message = 'no more quota | of that' if states[0] == 'FAILED' else ''
  initiator = 'SERVICE' if states[0].startswith('SUSPEND') else ''
  print('|'.join([states[0], initiator, message.replace('|', '/'), (folder / 'type').read_text()]))
elif kind == 'queued-resources' and action == 'delete':
  folder = resource(name)
  remove(folder)
  shutil.rmtree(folder)
elif kind == 'tpu-vm' and action == 'describe':
  print('READY' if (cloud / 'workers' / name).exists() else 'NOT_FOUND')
elif kind == 'tpu-vm' and action == 'ssh':
  workers = sorted((cloud / 'workers' / name).glob('*'))
  if not workers:
    fail(f'NOT_FOUND: node {name}')
  assert flags['worker'] == 'all'
  sys.exit(run_on(workers, flags['command']))
elif kind == 'tpu-vm' and action == 'scp':
  node, _, path = words[5].partition(':')
  for worker in (cloud / 'workers' / node).glob('*'):
    shutil.copy(name, worker / path)
else:
  fail(f'the stand-in does not know {words}')
"""
)

# The other hosts: the last word is the command, the one before it the host.
_SSH = _HEAD + "\nsys.exit(run_on([cloud / 'workers' / words[-2] / '0'], words[-1]))\n"
_SCP = (
  _HEAD
  + "\nhost, _, path = words[-1].partition(':')\nshutil.copy(words[-2], cloud / 'workers' / host "
  "/ '0' / path)\n"
)
_RECORD = (
  _HEAD + "\nprint((cloud / 'answers' / os.path.basename(sys.argv[0])).read_text() if (cloud / "
  "'answers' / os.path.basename(sys.argv[0])).exists() else '', end='')\n"
)

# ---- on a worker ----

_MAKE_WORKER = """#!/bin/bash
# make_worker FOLDER SLICE NUMBER COUNT
set -e
mkdir -p "$1/bin"
cp "$CLOUD/worker_python3" "$1/bin/python3"
cp "$CLOUD/worker_crossin" "$1/bin/crossin.stand_in"
printf '#!/bin/sh\\nfor url; do :; done\\ncase $url in *agent-worker-number) echo %s ;; *worker-network-endpoints) echo %s ;; esac\\n' \\
  "$3" "$(seq -s, 1 "$4")" >"$1/bin/curl"
echo "$2.$3" >"$1/name"
chmod +x "$1/bin/"*
"""
_PYTHON = f"""#!/bin/bash
# python3 of a worker: can make a virtual environment, pretend to install, and run scripts.
case "$1 $2" in
  '-c '*) ;;
  '--version '*) echo Python 3.12.0 ;;
  '-m venv') mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$HOME/bin/crossin.stand_in" "$3/bin/crossin" ;;
  '-m pip')
    if [ -e "$CLOUD/pip_fails" ]; then echo 'ERROR: No matching distribution found for jax'; exit 1; fi
    echo "$*" >>"$HOME/pip.log"
    ;;
  *) exec {sys.executable} "$@" ;;
esac
"""
_CROSSIN = """#!/bin/bash
# crossin of a worker: notes its arguments and environment, then does what the test has written down for its nth start:
# lines of CLOUD/behaviour, of the form 'slice.number nth command'.
n=$(ls "$CLOUD"/started/$(cat "$HOME/name" 2>/dev/null || echo here).* 2>/dev/null | wc -l)
me=$(cat "$HOME/name" 2>/dev/null || echo here)
mkdir -p "$CLOUD/started"
printf '%s\\0' "$@" >"$CLOUD/started/$me.$n"
env >"$CLOUD/environment.$me"
trap 'echo "$me" >>"$CLOUD/told"; echo saved; kill $!; exit 75' TERM
echo "crossin on $me, start $n"
behaviour=$(awk -v me="$me" -v n="$n" '($1 == me || $1 == "*") && ($2 == n || $2 == "*") { $1 = $2 = ""; print; exit }' "$CLOUD/behaviour")
nap() { sleep "$1" & wait $!; }
eval "${behaviour:-exit 0}"
"""


class Cloud:
  """The stand-ins of one test, and a project to launch.

  Attributes:
    folder: all of it.
    project: a git repository with the launch scripts.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    workers: int = 2,
    states=('WAITING_FOR_RESOURCES PROVISIONING ACTIVE',),
  ):
    self.folder = folder / 'cloud'
    self.project = folder / 'project'
    self.home = folder / 'home'
    (self.folder / 'bin').mkdir(parents=True)
    (self.folder / 'answers').mkdir()
    self.home.mkdir()
    self.plan(workers, states)
    self.behave()
    for name, text in (('gcloud', _GCLOUD), ('ssh', _SSH), ('scp', _SCP)):
      self.script(f'bin/{name}', text)
    for name in ('docker', 'xpk', 'ssh-add', 'ssh-agent'):
      self.script(f'bin/{name}', _RECORD)
    self.script('make_worker', _MAKE_WORKER)
    self.script('worker_python3', _PYTHON)
    self.script('worker_crossin', _CROSSIN)
    self._make_project()

  def _make_project(self):
    ignored = shutil.ignore_patterns('__pycache__')
    shutil.copytree(REPOSITORY / 'launch', self.project / 'launch', ignore=ignored)
    (self.project / 'pyproject.toml').write_text('[project]\nname = "stand-in"\n')
    (self.project / 'my own.gin').write_text('X = 1\n')
    (self.project / 'ignored').write_text('of no use to workers\n')
    git = ['git', '-C', str(self.project)]
    subprocess.run([*git, 'init', '--quiet'], check=True)
    subprocess.run([*git, 'add', 'launch', 'pyproject.toml'], check=True)

  def script(self, name: str, text: str) -> None:
    """Writes an executable file of the cloud."""
    path = self.folder / name
    path.write_text(text)
    path.chmod(0o755)

  def plan(self, workers: int, states) -> None:
    """What a request for a resource gives: workers a slice, and the states it passes through, for
    each request.
    """
    (self.folder / 'plan.json').write_text(json.dumps({'workers': workers, 'states': list(states)}))

  def behave(self, *lines: str) -> None:
    """What `crossin` does: 'slice.number nth command' each, '*' for any; without a line it
    succeeds.
    """
    (self.folder / 'behaviour').write_text(''.join(f'{line}\n' for line in lines))

  def environment(self, **more: str) -> dict[str, str]:
    path = f'{self.folder}/bin:{os.path.dirname(sys.executable)}:/usr/bin:/bin'
    return {
      'CLOUD': str(self.folder), 'PATH': path, 'HOME': str(self.home), 'TMPDIR': str(self.home),
      'LC_ALL': 'C.UTF-8',
      'CROSSIN_POLL_SECONDS': '0', 'CROSSIN_SETTLE_SECONDS': '3', **more,
    }  # fmt: skip

  def start(self, script: str, *words: str, **more: str) -> subprocess.Popen:
    """Starts a launch script in a session of its own, as a terminal would."""
    return subprocess.Popen(
      [BASH, str(self.project / 'launch' / script), *words], env=self.environment(**more),
      text=True, cwd=self.project,
      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      start_new_session=True,
      # Bash cannot trap what was ignored when it began, as in a job that was started in the
      # background.
      preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip

  def launch(self, script: str, *words: str, **more: str) -> tuple[int, str, str]:
    """Runs a launch script to its end: exit status, stdout, stderr."""
    with self.start(script, *words, **more) as process:
      try:
        out, err = process.communicate(timeout=60)
      except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f'{script} did not end:\n{out}\n{err}') from None
    return process.returncode, out, err

  def calls(self, *beginning: str) -> list[list[str]]:
    """Calls of stand-ins whose words begin so."""
    path = self.folder / 'calls.jsonl'
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if tuple(line[: len(beginning)]) == beginning]

  def actions(self) -> list[str]:
    """What was asked of queued resources, without questions."""
    calls = self.calls('gcloud', 'compute', 'tpus', 'queued-resources')
    return [call[4] for call in calls if call[4] != 'describe']

  def started(self, worker: str) -> list[list[str]]:
    """Arguments of each start of `crossin` on 'slice.number', or 'here'."""
    paths = sorted(
      (self.folder / 'started').glob(f'{worker}.*'), key=lambda path: int(path.suffix[1:])
    )
    return [path.read_text(encoding='utf-8').split('\0')[:-1] for path in paths]

  def told(self) -> list[str]:
    """The workers whose run heard SIGTERM."""
    path = self.folder / 'told'
    return sorted(path.read_text().split()) if path.exists() else []

  def add_hosts(self, *names: str) -> None:
    for i, name in enumerate(names):
      worker = self.folder / 'workers' / name / '0'
      environment = os.environ | {'CLOUD': str(self.folder)}
      subprocess.run(
        [self.folder / 'make_worker', worker, str(i), '0', '1'], check=True, env=environment
      )

  def clean(self) -> None:
    """Ends what the workers still run."""
    for number in processes_of(self.folder, 'CLOUD'):
      with contextlib.suppress(OSError):
        os.kill(number, signal.SIGKILL)


def processes_of(folder: pathlib.Path, variable: str = 'WORKER') -> list[int]:
  """Processes whose environment says that they belong to a worker."""
  found, marker = [], f'{variable}={folder}'.encode()
  for path in pathlib.Path('/proc').glob('[0-9]*/environ'):
    with contextlib.suppress(OSError):
      if marker in path.read_bytes().split(b'\0'):
        found.append(int(path.parent.name))
  return found


def wait_for(condition, seconds: float = 30.0) -> None:
  """Waits until a function returns something true."""
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline, textwrap.dedent(condition.__doc__ or 'waited in vain')
    time.sleep(0.05)
