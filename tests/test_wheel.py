"""An installed wheel finds gin files, templates and tables from any folder."""

import os
import shutil
import subprocess
import sys

from conftest import REPOSITORY
import pytest

PROGRAM = """
import argparse, crossin_jax
from crossin_jax import config, language_id
from crossin_jax.pages import page
from crossin_jax.world.world import templates
import crossin_jax.models.decoder
files = ['gin_configs/models/llama_60m.gin']
config.parse(argparse.Namespace(gin_file=files, gin_bindings=[], gin_search_paths=''))
print(crossin_jax.__file__, config.bound('DecoderConfig.num_layers'), len(templates('sw')))
print((page.TEMPLATES / 'report.html.j2').is_file())
"""


@pytest.mark.slow
def test_an_installed_wheel(tmp_path):
  pip = [sys.executable, '-m', 'pip', '--quiet', '--disable-pip-version-check']
  environment = {**os.environ, 'PYTHONPATH': str(tmp_path / 'installed')}
  source = tmp_path / 'source'  # a build writes into the source folder
  for name in ('crossin_jax', 'seqio_tasks', 'gin_configs'):
    shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
  for name in ('pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(REPOSITORY / name, source)
  target = ['install', '--no-deps', '--target', str(tmp_path / 'installed'), str(source)]
  subprocess.run([*pip, *target], check=True, cwd=tmp_path)
  result = subprocess.run(
    [sys.executable, '-c', PROGRAM], cwd=tmp_path, env=environment, capture_output=True, text=True
  )
  assert result.returncode == 0, result.stderr
  first, second = result.stdout.splitlines()[-2:]
  assert first.startswith(str(tmp_path)) and int(first.split()[1]) > 0 and second == 'True'
