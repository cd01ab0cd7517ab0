"""What all launch scripts share: quoting that survives real shells, help, shellcheck."""

import pathlib
import re
import shutil
import subprocess

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
  script = f'source {REPOSITORY}/launch/common.sh; quote "$@"'
  quoted = subprocess.run(
    ['bash', '-c', script, 'bash', *words], check=True, capture_output=True
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


@pytest.mark.parametrize('name', ['tpu_train.sh', 'gpu_train.sh', 'gke_xpk.sh'])
def test_help_shows_every_option_and_an_example(name):
  path = REPOSITORY / 'launch' / name
  text = subprocess.run(['bash', path, '--help'], check=True, capture_output=True, text=True).stdout
  assert f'bash launch/{name} ' in text and 'set -euo' not in text
  known = (
    pathlib.Path(path).read_text(encoding='utf-8').split('while [ $#')[1].split('\n  done\n')[0]
  )
  options = set(re.findall(r'(--[a-z]\w+)(?= \||\))', known)) - {'--help'}
  assert len(options) > 10 and all(option in text for option in options), options


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
  for name in ('common.sh', 'supervise.sh', 'tpu_train.sh', 'gpu_train.sh', 'gke_xpk.sh'):
    text = (
      (REPOSITORY / 'launch' / name)
      .read_text(encoding='utf-8')
      .replace('${!units[@]}', '')
      .replace('${!option}', '')
    )
    assert not [word for word in later if word in text]
