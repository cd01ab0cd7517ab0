"""What the launchers share: options, messages, commands and the copy of the project for workers.

The launchers use only the standard library, Python 3.10 or later, because they run outside the
project's virtual environment.
"""

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import hashlib
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from typing import NoReturn

INTERRUPTED = 75  # exit status of a run that saved a checkpoint and can be resumed
SCRIPT = pathlib.Path(sys.argv[0]).stem  # tpu_train, ...
_PASSED_ON = ('--create_flag', '--gcloud_ssh_flag', '--ssh_flag', '--xpk_flag')  # flags of others
_OPTIONS = {
  'command': {'default': 'train', 'help': 'of `crossin` (train)'},
  'env': {
    'action': 'append',
    'default': [],
    'metavar': 'NAME=VALUE',
    'help': 'environment variable of the run; may be repeated',
  },
  'include': {
    'action': 'append',
    'default': [],
    'metavar': 'PATH',
    'help': 'copy this file or folder too; tracked files and gin files are always copied',
  },
  'extra': {'help': 'of pyproject.toml, to install (%(default)s)'},
  'repository': {'default': '', 'metavar': 'URL', 'help': 'install this git repository instead'},
  'ref': {'default': 'HEAD', 'help': 'its branch, tag or commit'},
  'max_restarts': {'type': int, 'metavar': 'N', 'help': 'after interruptions (%(default)s)'},
  'stop_on_interrupt': {
    'action': 'store_true',
    'help': 'Ctrl-C and SIGTERM make a run on workers save and stop',
  },
  'dry_run': {'action': 'store_true', 'help': 'print every command, run none'},
}


class Interrupted(BaseException):
  """SIGINT, SIGTERM or SIGHUP arrived."""


# ---- messages ------------------------------------------------------------------------------------


def say(text: str) -> None:
  sys.stderr.write(f'{text}\n')  # in one piece: threads write too


def log(text: str, started: float = time.monotonic()) -> None:  # noqa: B008  # the start of the script
  seconds = int(time.monotonic() - started)
  say(f'[{seconds // 60:3}m{seconds % 60:02}s] {text}')


def note(text: str) -> None:
  """Prints a line of a dry run that is not a command."""
  print(f'# {text}', flush=True)


def show(words: Sequence[str]) -> None:
  """Prints a command of a dry run, as any POSIX shell reads it."""
  print(shlex.join(words), flush=True)


def fail(text: str, status: int = 1) -> NoReturn:
  say(f'{SCRIPT}: {text}')
  raise SystemExit(status)


# ---- options -------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
  """Options of a launcher; what follows -- is for `crossin`."""

  def __init__(self, description: str | None):
    usage = f'bash launch/{SCRIPT}.sh [OPTIONS] -- FLAGS_OF_CROSSIN'
    form = argparse.RawDescriptionHelpFormatter
    super().__init__('', usage, description, formatter_class=form, allow_abbrev=False)

  def add(self, name: str, metavar: str = '', help: str = '', **more) -> None:
    """Adds an option; without a metavar, a switch."""
    if metavar:
      more = {'default': [] if more.get('action') == 'append' else '', 'metavar': metavar, **more}
    else:
      more = {'action': 'store_true', **more}
    self.add_argument(f'--{name}', help=help, **more)

  def add_shared(self, *names: str, **defaults) -> None:
    for name in names:
      self.add_argument(f'--{name}', **_OPTIONS[name])
    self.set_defaults(**defaults)

  def add_actions(self, **actions: str) -> None:
    """Adds switches that name the `action` of the script; '' is to run."""
    for name, text in actions.items():
      words = {'action': 'store_const', 'const': name, 'dest': 'action', 'default': ''}
      self.add_argument(f'--{name}', help=f'instead of a run: {text}', **words)

  def parse(self, words: Sequence[str]) -> argparse.Namespace:
    """Parses `words`; `arguments` of the result is what follows --."""
    mark = words.index('--') if '--' in words else len(words)
    own, joined = iter(words[:mark]), []
    for word in own:
      value = next(own, None) if word in _PASSED_ON else None
      joined.append(word if value is None else f'{word}={value}')  # the value begins with a dash
    options, unknown = self.parse_known_args(joined)
    options.arguments = list(words[mark + 1 :])
    if unknown:
      self.error(f'unknown option {unknown[0]}; flags of crossin {options.command} go after --')
    for path in getattr(options, 'include', ()):
      if path.startswith(('/', '../')):
        self.error(f'--include {path} must be a path below {os.getcwd()}')
      if not os.path.exists(path):
        self.error(f'--include {path} does not exist')
    for variable in getattr(options, 'env', ()):
      if '=' not in variable:
        self.error(f'--env {variable} is not of the form NAME=VALUE')
    return options

  def require(self, options: argparse.Namespace, *names: str) -> None:
    for name in names:
      if name != 'arguments' and not getattr(options, name):
        self.error(f'--{name} is missing')
    if 'arguments' in names and not options.arguments:
      self.error(f'give the flags of crossin {options.command} after --')

  def check_model_dir(self, options: argparse.Namespace) -> None:
    """Rejects a MODEL_DIR that is lost with the worker."""
    pattern = re.compile(
      r'(?:--gin\.MODEL_DIR=|--gin_bindings=MODEL_DIR = )[\'"]?(.+?)[\'"]?', re.S
    )
    found = [m[1] for m in map(pattern.fullmatch, options.arguments) if m]
    if found and found[-1].startswith('/'):
      say(f'note: MODEL_DIR {found[-1]} must be one persistent folder that all workers share')
    elif found and '://' not in found[-1]:
      self.error(
        f'MODEL_DIR {found[-1]} would be a folder on each worker, lost with it; give '
        '--gin.MODEL_DIR="\'gs://BUCKET/RUN\'" or an absolute path that all workers share'
      )

  def error(self, message: str) -> NoReturn:
    fail(f'{message}\nbash launch/{SCRIPT}.sh --help shows every option and an example', 2)


def need(program: str, remedy: str) -> None:
  if not shutil.which(program):
    fail(f'{program} is not on PATH; {remedy}')


def process_flags(coordinator: str, count: int, index: int) -> list[str]:
  """Flags of `crossin` that say which of several processes it is."""
  place = [f'--coordinator_address={coordinator}', f'--process_count={count}']
  return [*place, f'--process_index={index}']


def many_processes(command: str) -> bool:
  """Whether this command of `crossin` can be several processes."""
  return command in ('train', 'evaluate', 'generate', 'bench')


# ---- commands ------------------------------------------------------------------------------------


def raise_interrupted() -> None:
  """From now on signals raise `Interrupted`, except those that were ignored (nohup)."""

  def handler(*_):
    raise Interrupted

  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) is not signal.SIG_IGN:
      signal.signal(number, handler)


@contextlib.contextmanager
def started(words: Sequence[str], **options) -> Iterator[subprocess.Popen]:
  """A process in a session of its own, out of the terminal's reach; all of it ends with the block."""
  process = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True, **options)
  try:
    yield process
  finally:
    for number in (signal.SIGTERM, signal.SIGKILL):
      if process.poll() is None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
          os.killpg(process.pid, number)
          process.wait(10)


def run(words: Sequence[str], **options) -> subprocess.CompletedProcess:
  """Runs a command to its end; without `stdout`, what it prints is for people."""
  with started(words, text=True, **{'stdout': sys.stderr, **options}) as process:
    out, err = process.communicate()
  return subprocess.CompletedProcess(words, process.returncode, out, err)


def run_forwarding(words: Sequence[str], **options) -> tuple[int, bool]:
  """Runs a command and forwards SIGTERM and Ctrl-C to it as SIGTERM.

  Returns:
    Its exit status, 128 + N after signal N, and whether a signal was forwarded.
  """
  child, interrupted = None, False

  def forward(*_):
    nonlocal interrupted
    interrupted = True
    if child:
      child.send_signal(signal.SIGTERM)

  signal.signal(signal.SIGINT, signal.SIG_IGN)  # for the child: a terminal sends it to both
  signal.signal(signal.SIGTERM, forward)
  child = subprocess.Popen(words, stdin=subprocess.DEVNULL, **options)
  signal.signal(signal.SIGINT, forward)
  if interrupted:
    child.send_signal(signal.SIGTERM)
  status = child.wait()
  return (status if status >= 0 else 128 - status), interrupted


def make_environment(extra: str) -> None:
  """Installs the project in .venv, or ends this script."""
  code = 'source launch/environment.sh && make_environment .venv "$1"'
  if subprocess.run(['bash', '-c', code, 'install', extra], stdin=subprocess.DEVNULL).returncode:
    fail('installing the project in .venv failed; the lines above say why')


def environment(variables: Sequence[str]) -> dict[str, str]:
  """This process's environment with NAME=VALUE of --env."""
  return {**os.environ, **dict(variable.split('=', 1) for variable in variables)}


# ---- the project ---------------------------------------------------------------------------------


def digest(options: argparse.Namespace) -> str:
  """Identifies this run among others on the same machines."""
  words = shlex.join([options.command, *options.env, *options.arguments])
  return hashlib.sha256(os.fsencode(words)).hexdigest()[:16]


def pack(options: argparse.Namespace, path: str) -> None:
  """Writes tracked files as they are now, --include and the gin files of the arguments as .tar.gz."""
  git = subprocess.run(['git', 'ls-files', '-z'], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
  if git.returncode:
    remedy = 'give --repository URL (and --ref)' if 'repository' in options else 'clone it with git'
    fail(f'{os.getcwd()} is not a git checkout, so its files are unknown; {remedy}', 2)
  files = set(os.fsdecode(git.stdout).split('\0'))
  for path_included in getattr(options, 'include', ()):
    files.update([path_included, *map(str, pathlib.Path(path_included).rglob('*'))])
  for word, following in zip(options.arguments, [*options.arguments[1:], ''], strict=True):
    flag, _, value = word.partition('=')
    if flag == '--gin_file':
      files.add(value or following)
  with tarfile.open(path, 'w:gz', compresslevel=6) as archive:
    for file in sorted(files):
      if os.path.isfile(file) and not file.startswith(('/', '../')):
        archive.add(file)
