"""The documentation: the site builds, what it names exists, the reference is current, the commands
of the first run work.
"""

import functools
import glob
import itertools
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from crossin_jax.sweep.points import gin_text

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
GENERATED = {'docs/reference/commands.md', 'docs/reference/settings.md'}
PAGES = ['README.md', 'CONTRIBUTING.md', 'WORKSPACE.md']
PAGES += sorted(str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / 'docs').rglob('*.md'))
PAGES = [page for page in PAGES if page not in GENERATED]
FOLDERS = 'crossin_jax|seqio_tasks|gin_configs|launch|benchmarks|tests|docs'
# Flags that pages name and that all commands have, or other programs: mkdocs, pip, T5X, the
# released code of CrossIn.
FOREIGN = {
  '--strict',
  '--model_args',  # of lm_eval
  '--use_cache',
  '--initialization_timeout',
  '--help',
  '--editable',
  '--gin_search_paths',
  '--gin_file',
  '--json',
  '--stage',
}
SUFFIXES = ('gin', 'json', 'md', 'png', 'py', 'html')

# What is known of the code, gathered in one process of its own: no other test has registered
# anything there.
GATHER = """
import contextlib, inspect, io, json, re, sys
sys.path[:0] = ['docs', '.']
import generate_reference
pages = {path.name: text for path, text in generate_reference.pages().items()}
from crossin_jax import cli
help_of = dict(zip(cli.COMMANDS, pages['commands.md'].split('\\n## crossin ')[1:], strict=True))
for name in re.search(r'\\{([a-z,-]+)\\}', help_of['xinstruction'])[1].split(','):
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
    cli.main(['xinstruction', name, '--help'])
  help_of[f'xinstruction {name}'] = printed.getvalue()
from crossin_jax.workflow import settings
names = {}
for name, found in settings.configurables().items():
  names[name] = sorted({*inspect.signature(found.wrapped).parameters, *dir(found.wrapped)})
print(json.dumps({'pages': pages, 'help': help_of, 'configurables': names}))
"""


@functools.cache
def known() -> dict:
  """{'pages': name -> generated text, 'help': command -> text, 'configurables': name -> parameters
  and attributes}.
  """
  done = subprocess.run(
    [sys.executable, '-c', GATHER],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    env=_environment(),
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


def _environment() -> dict[str, str]:
  return os.environ | {
    'PYTHONPATH': str(REPOSITORY),
    'JAX_PLATFORMS': 'cpu',
    'TF_CPP_MIN_LOG_LEVEL': '3',
  }


def read(page: str) -> str:
  """The text of a page."""
  return (REPOSITORY / page).read_text(encoding='utf-8')


def statements(page: str) -> list[str]:
  """Shell commands of the ```bash blocks and the indented blocks of a page, continued lines joined,
  heredocs left out.
  """
  blocks = re.findall(r'(?ms)^```bash\n(.*?)^```', read(page))
  blocks += [
    '\n'.join(
      re.findall(
        r'(?m)^    ((?:python|crossin|bash) (?:.*\\\n)*.*(?:\n +--.*)*)',
        re.sub(r'(?ms)^```.*?^```', '', read(page)),
      )
    )
  ]
  text = re.sub(r"(?ms)<<'(\w+)'\n.*?^\1$", '', '\n'.join(blocks)).replace('\\\n', ' ')
  return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith('#')]


def inline(page: str) -> list[str]:
  """The inline code of a page."""
  return re.findall(r'`([^`\n]+)`', re.sub(r'(?ms)^```.*?^```', '', read(page)))


def expanded(pattern: str) -> list[str]:
  """'a/{b,c}.py' as ['a/b.py', 'a/c.py']."""
  parts = [part.split(',') for part in re.split(r'[{}]', pattern)]
  return [''.join(choice) for choice in itertools.product(*parts)]


def flags_of(words: list[str]) -> list[str]:
  """The flags among words, without values and without gin's."""
  found = (word.split('=')[0] for word in words if re.match(r'--\w[\w.-]*(=|$)', word))
  return [
    flag for flag in found if not flag.startswith('--gin') and flag not in ('--help', '--version')
  ]


def missing_flags(statement: str) -> list[str]:
  """Flags of a shell command that its program does not have."""
  words = shlex.split(statement, comments=True)
  if 'crossin' in words[:1]:
    command = ' '.join(words[1:3]) if ' '.join(words[1:3]) in known()['help'] else words[1]
    text = known()['help'].get(command, '')
  elif script := next(
    (word for word in words if re.match(rf'(?:{FOLDERS})/\S+\.(?:sh|sbatch|py)$', word)), None
  ):
    after = words[words.index('--') :] if '--' in words else []
    words = words[words.index(script) : words.index('--') if '--' in words else None]
    text = read(script)
    if script.startswith('launch/'):
      text += ''.join(path.read_text() for path in sorted((REPOSITORY / 'launch').glob('*.py')))
    if script in ('launch/quickstart.sh', 'launch/test.sh'):
      return []
    return [f for f in flags_of(words) if f not in text] + [
      f for f in flags_of(after) if f not in known()['help']['train']
    ]
  elif (
    '-m' in words
    and words[words.index('-m') + 1].startswith('crossin_jax')
    and not words[words.index('-m') + 1].endswith('.run')
  ):
    text = read(words[words.index('-m') + 1].replace('.', '/') + '.py')
  else:
    return []
  return [flag for flag in flags_of(words) if not re.search(rf'{re.escape(flag)}\b', text)]


@functools.cache
def macros() -> set[str]:
  """Macros that the gin files set."""
  files = [*REPOSITORY.glob('gin_configs/**/*.gin'), *REPOSITORY.glob('benchmarks/**/*.gin')]
  return {
    name
    for file in files
    for name in re.findall(r'(?m)^([A-Z_]+) = ', file.read_text(encoding='utf-8'))
  }


def unknown_gin(name: str) -> bool:
  """Whether neither a macro nor a parameter of a configurable has this name: 'TRAIN_STEPS',
  'parallel/ParallelFiles.name'.
  """
  owner, _, parameter = name.split('/')[-1].rpartition('.')
  if not owner:
    return name not in macros()
  return parameter not in known()['configurables'].get(owner.split('.')[-1], ())


# What stands before = in code and is no setting: environment variables, folders.
NO_SETTINGS = re.compile(
  r'NAME|PYTHON|ALLOW_MULTIPLE_LIBTPU_LOAD|[A-Z0-9_]*_(?:HOME|OFFLINE|PLATFORMS|FLAGS|KEY|TRACEBACK)|points/.*'
)
SETTING = re.compile(r'((?:\w+/)*(?:[A-Z][A-Z_]+|\w+(?:\.\w+)+))=')


def settings_of(page: str) -> list[list[str]]:
  """The names in words NAME=VALUE: those of each command, and those of inline code."""
  found = []
  for statement in statements(page):
    words = shlex.split(statement, comments=True)
    start = words.index('crossin') if 'crossin' in words else len(words)
    if any(word.startswith('launch/') for word in words) and '--' in words:
      start = words.index('--')
    found.append([match[1] for word in words[start:] if (match := SETTING.match(word))])
  code = [re.split(r'\s+(?=[\w/.]+=)', text) for text in inline(page)]
  found += [
    [m[1] for word in words if (m := SETTING.match(word)) and not NO_SETTINGS.fullmatch(m[1])]
    for words in code
  ]
  return [names for names in found if names]


@pytest.mark.parametrize('page', PAGES)
def test_macros_are_of_the_gin_files_of_their_command(page):
  """The command would refuse them otherwise."""
  for statement in statements(page):
    words = shlex.split(statement, comments=True)
    files = [word for word in words if word.startswith('gin_configs/') and word.endswith('.gin')]
    if words[:1] != ['crossin'] or words[1] in ('sweep', 'xinstruction') or not files:
      continue
    text = '\n'.join(gin_text(file, (str(REPOSITORY),)) for file in files)
    known = {*re.findall(r'(?m)^(\w+) *=', text), *re.findall(r'%(\w+)', text)}
    given = {m[1] for word in words if (m := re.match(r'([A-Z_]+)=', word))}
    assert given <= known, f'{statement}: no gin file uses {sorted(given - known)}'


@pytest.mark.parametrize('page', PAGES)
def test_paths_exist(page):
  text = re.sub(r'https?://\S+', '', read(page))
  wanted = {
    path.rstrip('.')
    for path in re.findall(rf'(?<![\w./-])(?:{FOLDERS})/[\w./{{}},*-]*[\w/}}*]', text)
  }
  wanted = {
    path
    for path in wanted
    if not path.startswith('docs/') or page in PAGES[:3] or path.startswith('docs/generate')
  }
  missing = [
    path
    for pattern in wanted
    for path in expanded(pattern)
    if not glob.glob(str(REPOSITORY / path))
  ]
  assert not missing, f'{page} names paths that do not exist: {sorted(missing)}'


@pytest.mark.parametrize('page', PAGES[:3])
def test_links_of_pages_outside_the_site(page):
  links = [
    link.split('#')[0]
    for link in re.findall(r'\]\(([^)\s]+)\)', read(page))
    if not link.startswith('http')
  ]
  assert not [link for link in links if not (REPOSITORY / page).parent.joinpath(link).exists()]


@pytest.mark.slow
@pytest.mark.parametrize('page', PAGES)
def test_commands_and_flags_exist(page):
  commands = {name.split()[0] for name in known()['help']}
  code = statements(page) + inline(page)
  named = {
    found for text in code for found in re.findall(r'(?:^|[ (])crossin ([a-z][a-z-]+)', text)
  }
  assert named <= commands, f'{page} names commands that do not exist: {sorted(named - commands)}'
  wrong = {
    statement: missing for statement in statements(page) if (missing := missing_flags(statement))
  }
  assert not wrong, f'{page}: flags that do not exist: {wrong}'
  everything = ' '.join(known()['help'].values()) + ''.join(
    p.read_text(encoding='utf-8') for p in REPOSITORY.glob('launch/*')
  )
  everything += ''.join(
    p.read_text(encoding='utf-8') for p in REPOSITORY.glob('benchmarks/**/*.py')
  )
  flags = {
    flag
    for text in inline(page)
    for flag in re.findall(r'(?<![\w-])--[a-z][\w-]*', text)
    if not flag.startswith('--gin')
  }
  missing = [flag for flag in flags - FOREIGN if not re.search(rf'{re.escape(flag)}\b', everything)]
  assert not missing, f'{page}: flags that do not exist: {missing}'


@pytest.mark.slow
@pytest.mark.parametrize('page', PAGES)
def test_gin_names_exist(page):
  text = read(page)
  names = set(re.findall(r'--gin\.([\w/.]+?)(?==)', text)) - {'NAME', 'NAME.PARAMETER'}
  names |= {name for words in settings_of(page) for name in words}
  owners = known()['configurables']
  names |= {
    match[0]
    for code in inline(page)
    if (match := re.match(r'(\w+)\.(\w+)', code))
    and match[1] in owners
    and match[2] not in SUFFIXES
  }
  missing = [name for name in names if unknown_gin(name)]
  missing += [name for name in re.findall(r'@(\w+)\(\)', text) if name not in owners]
  assert not missing, f'{page} names gin settings that do not exist: {sorted(missing)}'


@pytest.mark.slow
def test_reference_is_current():
  for name, text in known()['pages'].items():
    # argparse breaks lines differently in each version of Python: only the words of the commands
    # are compared.
    words = (lambda page: page.split()) if name == 'commands.md' else (lambda page: page)
    assert words(read(f'docs/reference/{name}')) == words(text), (
      f'{name} is out of date: python docs/generate_reference.py'
    )


def test_citations_of_methods_have_an_anchor():
  anchors = set(re.findall(r'\{ #([\w-]+) \}', read('docs/design/methods.md')))
  files = [
    path
    for folder in FOLDERS.split('|')
    for path in (REPOSITORY / folder).rglob('*')
    if path.suffix in ('.py', '.gin', '.md')
  ]
  cited = {
    anchor
    for file in files
    for anchor in re.findall(r'methods\.md#([a-z][\w-]*)', file.read_text(encoding='utf-8'))
  }
  assert cited - {'anchor'} <= anchors


@pytest.mark.slow
def test_site_builds(tmp_path):
  pytest.importorskip('material', reason='building the site needs the extra `docs`')
  command = [
    sys.executable,
    '-m',
    'mkdocs',
    'build',
    '--strict',
    '--quiet',
    '--site-dir',
    str(tmp_path / 'site'),
  ]
  done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  assert (tmp_path / 'site' / 'index.html').exists()


@pytest.mark.slow
def test_first_run_works(tmp_path):
  blocks = re.findall(r'(?ms)^```bash\n(.*?)^```', read('docs/start/first_run.md'))
  assert len(blocks) >= 8
  python = shlex.quote(sys.executable)
  begin = [
    'set -e',
    f'python() {{ {python} "$@"; }}',
    f'crossin() {{ {python} -m crossin_jax.cli "$@"; }}',
  ]
  done = subprocess.run(
    ['bash', '-c', '\n'.join([*begin, *blocks])],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    env=_environment(),
  )
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
  folder = tmp_path / 'runs' / 'first_run'
  answers = [
    json.loads(line) for line in (folder / 'answers.jsonl').read_text(encoding='utf-8').splitlines()
  ]
  assert [answer['id'] for answer in answers] == ['vi', 'es', 'en to vi', 'es to en']
  assert all(answer['output'] for answer in answers)
  runs = json.loads((folder / 'evaluation' / 'results.json').read_text(encoding='utf-8'))['runs']
  assert {run['method'] for run in runs} == {'generate', 'likelihood'}
  assert all(
    run['accuracy_by_language']['en'] > 0.5 for run in runs
  )  # chance is 0.25, and these rows were trained on
