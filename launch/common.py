"""What the launchers share: options, messages, commands and the files that workers need.

Only the standard library of Python 3.10: the launchers run outside the project's .venv.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import hashlib
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import time
import types
from typing import NoReturn

INTERRUPTED = 75  # exit status of a run that saved a checkpoint and can be resumed
SCRIPT = pathlib.Path(sys.argv[0]).stem
RUN_OPTIONS = """\
  --command COMMAND         of `crossin` (train)
  --env NAME=VALUE ...      environment variable of the run; may be repeated
  --include PATH ...        copy this file or folder too (tracked files and gin files always are)
  --extra EXTRA             of pyproject.toml, to install (%s)
  --repository URL          install this git repository instead of the working tree
  --ref REF                 its branch, tag or commit
  --max_restarts N          after preemptions and exit status 75 (20)
  --stop_on_interrupt       Ctrl-C and SIGTERM make a run on workers save and stop
  --dry_run                 print every command, run none
"""
STATUSES = """\
Exit status: 0 finished, 1 failed, 2 wrong usage, 75 interrupted (the same command resumes)."""
Options = types.SimpleNamespace
_STARTED = time.monotonic()


class Interrupted(BaseException):
  """SIGINT, SIGTERM or SIGHUP arrived."""


def say(text: str) -> None:
  sys.stderr.write(f'{text}\n')  # one write: threads write too


def log(text: str) -> None:
  minutes, seconds = divmod(int(time.monotonic() - _STARTED), 60)
  say(f'[{minutes:3}m{seconds:02}s] {text}')


def show(words: Sequence[str]) -> None:
  """Prints a command of a dry run, quoted for any POSIX shell."""
  print(shlex.join(words), flush=True)


def fail(text: str, status: int = 1) -> NoReturn:
  say(f'{SCRIPT}: {text}')
  raise SystemExit(status)


def exit_after(main: Callable[[], int | None]) -> NoReturn:
  try:
    sys.exit(main())
  except KeyboardInterrupt:
    sys.exit(128 + signal.SIGINT)


def usage_error(text: str) -> NoReturn:
  fail(f'{text}\n--help shows every option and an example', 2)


def parse(text: str, **defaults) -> Options:
  """Parses the command line as its help text declares it.

  Lines '  --name' declare a switch, '  --name VALUE' an option, '  --name VALUE ...' a list. What
  follows -- is `arguments`.
  """
  declared = {
    name: ([] if many else '' if value else False)
    for name, value, many in re.findall(r'^  --(\w+)( [A-Z]\S*)?( \.\.\.)?', text, re.M)
  }
  options = Options(command='train', env=[], include=[], arguments=[])
  vars(options).update(declared, command='train', **defaults)
  words = iter(sys.argv[1:])
  for word in words:
    name = word.removeprefix('--')
    if word == '--':
      options.arguments = list(words)
    elif word in ('--help', '-h'):
      print(text)
      raise SystemExit(0)
    elif name == word or name not in declared:
      usage_error(f'unknown option {word}; flags of crossin {options.command} go after --')
    elif declared[name] is False:
      setattr(options, name, True)
    else:
      value = next(words, None)
      if value is None:
        usage_error(f'{word} needs a value')
      old = getattr(options, name)
      if isinstance(old, int) and not value.isdecimal():
        usage_error(f'{word} is a number, not {value}')
      setattr(options, name, [*old, value] if isinstance(old, list) else type(old)(value))
  for path in options.include:
    if path.startswith(('/', '../')):
      usage_error(f'--include {path} must be a path below {os.getcwd()}')
    if not os.path.exists(path):
      usage_error(f'--include {path} does not exist')
  return options


def require(options: Options, *names: str) -> None:
  for name in names:
    if not getattr(options, name):
      usage_error(f'--{name} is missing')


def check_arguments(options: Options, shared: bool = True) -> None:
  """Rejects a run without flags and, if workers must share it, a MODEL_DIR lost with a worker."""
  if not options.arguments:
    usage_error(f'give the flags of crossin {options.command} after --')
  pattern = re.compile(
    r'(?:MODEL_DIR=|--gin\.MODEL_DIR=|--gin_bindings=MODEL_DIR = )[\'"]?(.+?)[\'"]?', re.S
  )
  found = [match[1] for match in map(pattern.fullmatch, options.arguments) if match]
  if not found or not shared or '://' in found[-1]:
    return
  if not found[-1].startswith('/'):
    usage_error(
      f'MODEL_DIR {found[-1]} would be a folder on each worker, lost with it; give '
      'MODEL_DIR=gs://BUCKET/RUN or an absolute path that all workers share'
    )
  say(f'note: MODEL_DIR {found[-1]} must be one persistent folder that all workers share')


def many_processes(options: Options) -> bool:
  """Whether the command of `crossin` can be several processes."""
  return options.command in ('train', 'evaluate', 'generate', 'bench')


def process_flags(coordinator: str, count: int, index: int) -> list[str]:
  """Flags of `crossin` for one of several processes."""
  place = [f'--coordinator_address={coordinator}', f'--process_count={count}']
  return [*place, f'--process_index={index}'] if count > 1 else []


@contextlib.contextmanager
def started(words: Sequence[str], **options) -> Iterator[subprocess.Popen]:
  """A process that the terminal's signals do not reach; it and its children end with the block."""
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
  """Runs a command to its end, or to an interruption; its output goes to stderr by default."""
  options = {'stdout': sys.stderr, 'text': True, 'errors': 'replace', **options}
  with started(words, **options) as process:
    out, err = process.communicate()
  return subprocess.CompletedProcess(words, process.returncode, out, err)


def run_forwarding(words: Sequence[str], **options) -> tuple[int, bool]:
  """Runs a command and forwards SIGTERM and Ctrl-C to it as SIGTERM.

  Returns:
    Its exit status, and whether a signal was forwarded.
  """
  child, interrupted = None, False

  def forward(*_):
    nonlocal interrupted
    interrupted = True
    if child:
      child.send_signal(signal.SIGTERM)

  signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: a terminal sends it to the child too
  signal.signal(signal.SIGTERM, forward)
  child = subprocess.Popen(words, stdin=subprocess.DEVNULL, **options)
  signal.signal(signal.SIGINT, forward)
  if interrupted:
    child.send_signal(signal.SIGTERM)
  status = child.wait()
  return (status if status >= 0 else 128 - status), interrupted


def make_environment(extra: str) -> None:
  """Installs the project in .venv."""
  code = 'source launch/environment.sh && make_environment .venv "$1"'
  if subprocess.run(['bash', '-c', code, 'install', extra], stdin=subprocess.DEVNULL).returncode:
    fail('installing the project in .venv failed; the lines above say why')


def digest(options: Options) -> str:
  """Identifies this run among others on the same machines."""
  words = shlex.join([options.command, *options.env, *options.arguments])
  return hashlib.sha256(os.fsencode(words)).hexdigest()[:16]


def pack(options: Options, path: str) -> None:
  """Packs tracked files as they are now, --include and the gin files of the arguments."""
  git = subprocess.run(['git', 'ls-files', '-z'], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
  if git.returncode:
    usage_error(
      f'{os.getcwd()} is not a git checkout, so the files to copy are unknown; '
      'clone it with git, or give --repository URL (and --ref)'
    )
  files = os.fsdecode(git.stdout).split('\0')
  for included in options.include:
    files += [included, *map(str, pathlib.Path(included).rglob('*'))]
  for word, following in zip(options.arguments, [*options.arguments[1:], ''], strict=False):
    if word.startswith('--gin_file=') or word == '--gin_file':
      files.append(word.partition('=')[2] or following)
    elif word.endswith('.gin'):
      files.append(word)
  with tarfile.open(path, 'w:gz', compresslevel=6) as archive:
    for file in sorted(set(files)):
      if os.path.isfile(file) and not file.startswith(('/', '../')):
        archive.add(file)
