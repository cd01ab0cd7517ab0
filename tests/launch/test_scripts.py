"""What all launch scripts share: quoting that survives real shells, help, shellcheck."""

import ast
import re
import shutil
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
from stand_ins import REPOSITORY

SCRIPTS = sorted(
  path for path in (REPOSITORY / 'launch').iterdir() if path.suffix in ('.sh', '.sbatch')
)
SHELLS = [shell for shell in ('sh', 'bash', 'dash', 'zsh', 'ksh') if shutil.which(shell)]


@settings(max_examples=25)
@given(st.lists(st.text(st.characters(codec='utf-8', exclude_characters='\0')), max_size=6))
def test_quoted_words_come_back_from_every_shell(words):
  script = f'import sys; sys.path.insert(0, "{REPOSITORY}/launch"); import common; common.show(sys.argv[1:])'
  quoted = subprocess.run(
    [sys.executable, '-c', script, *words], check=True, capture_output=True
  ).stdout
  for shell in SHELLS:
    command = b'show() { printf \'%s\\0\' "$@"; }; show -- ' + quoted
    out = subprocess.run([shell, '-c', command], check=True, capture_output=True).stdout
    assert out.decode().split('\0')[:-1] == ['--', *words], shell


def test_shellcheck_finds_nothing():
  shellcheck = shutil.which('shellcheck')
  if shellcheck is None:
    import sysconfig

    shellcheck = shutil.which('shellcheck', path=sysconfig.get_path('scripts'))
  if shellcheck is None:
    pytest.skip("shellcheck is not installed: pip install 'crossin-jax[test]'")
  names = [str(path.relative_to(REPOSITORY)) for path in SCRIPTS]
  found = subprocess.run(
    [shellcheck, '-x', *names], cwd=REPOSITORY, check=False, capture_output=True, text=True
  )
  assert found.returncode == 0, found.stdout


SHARED = 'command max_restarts dry_run status'
RUN = f'{SHARED} env include extra repository ref stop_on_interrupt stop'
OPTIONS = {
  'tpu_train.sh': f'{RUN} name zone project accelerator_type runtime_version num_slices spot '
  'reserved create_flag '
  'gcloud_ssh_flag delete_when_done delete',
  'gpu_train.sh': f'{RUN} hosts coordinator_address ssh_flag',
  'gke_xpk.sh': f'{SHARED} cluster workload zone project tpu_type num_slices image grace_seconds '
  'xpk_flag delete',
  'slurm_train.sbatch': 'command extra max_restarts no_install',
}


@pytest.mark.parametrize('name', OPTIONS)
def test_help_shows_every_option_and_an_example(name):
  path = REPOSITORY / 'launch' / name
  text = subprocess.run(['bash', path, '--help'], check=True, capture_output=True, text=True).stdout
  assert f'launch/{name} ' in text and 'set -euo' not in text
  assert set(re.findall(r'^  --(\w+)', text, re.M)) == set(OPTIONS[name].split())


def test_what_is_not_bash_of_a_mac():
  """macOS has bash 3.2: none of what came later, in the scripts that people run from there."""
  later = (
    'declare -A',
    'local -A',
    'mapfile',
    'readarray',
    'wait -n',
    '${!',
    '@Q}',
    '&>>',
    '|&',
    'coproc',
  )
  for name in ('environment.sh', 'tpu_train.sh', 'gpu_train.sh', 'gke_xpk.sh'):
    text = (REPOSITORY / 'launch' / name).read_text(encoding='utf-8')
    assert not [word for word in later if word in text]


def test_python_modules_import_only_the_standard_library_of_3_10():
  paths = sorted((REPOSITORY / 'launch').glob('*.py'))
  own = {path.stem for path in paths}
  for path in paths:
    tree = ast.parse(path.read_text(encoding='utf-8'), feature_version=(3, 10))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, 'module', None) or node.names[0].name for node in imports}
    assert {name.partition('.')[0] for name in names} <= own | sys.stdlib_module_names - {'tomllib'}
