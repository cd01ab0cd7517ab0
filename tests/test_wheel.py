"""An installed wheel, outside the checkout: commands run from any folder, with their gin files."""

import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import venv

from conftest import REPOSITORY
import pytest

pytestmark = pytest.mark.slow
PIP = [sys.executable, '-m', 'pip', '--disable-pip-version-check']


def _has(project: str) -> bool:
  return any(found.name == project for found in importlib.metadata.distributions())


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Runs `crossin` of an environment that has the wheel, and no way to the checkout."""
  root = tmp_path_factory.mktemp('wheel')
  source, environment = root / 'source', root / 'environment'  # a build writes into its source
  for name in ('crossin_jax', 'seqio_tasks', 'gin_configs'):
    shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
  for name in ('pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(REPOSITORY / name, source)
  flags = ['--no-build-isolation'] if _has('setuptools') else []  # faster
  built = [*PIP, 'wheel', '--quiet', '--no-deps', *flags, '--wheel-dir', str(root), str(source)]
  subprocess.run(built, check=True, cwd=root)
  [wheel] = root.glob('*.whl')
  venv.create(environment, symlinks=True)
  python = environment / 'bin' / 'python'
  install = [*PIP, '--python', str(python), 'install', '--quiet', '--no-deps', '--no-index']
  subprocess.run([*install, str(wheel)], check=True, cwd=root)
  # The dependencies are those of these tests. A line of a .pth file is a path as PYTHONPATH has
  # them: files that make editable installs importable are not read there.
  [packages] = environment.glob('lib/*/site-packages')
  paths = {sysconfig.get_path(kind) for kind in ('purelib', 'platlib')}
  (packages / 'dependencies.pth').write_text('\n'.join(sorted(paths)) + '\n')
  flags = [flag for flag in os.environ['XLA_FLAGS'].split() if 'device_count' not in flag]
  variables = {
    **os.environ, 'XLA_FLAGS': ' '.join(flags), 'JAX_ENABLE_COMPILATION_CACHE': 'true',
    'JAX_PLATFORMS': 'cpu', 'PATH': f'{environment / "bin"}:{os.environ["PATH"]}',
  }  # fmt: skip
  variables.pop('PYTHONPATH', None)

  def command(folder, *words, status=0):
    found = subprocess.run(
      words, cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    assert found.returncode == status, found.stderr
    assert 'Traceback' not in found.stderr
    return found

  where = command(root, str(python), '-c', 'import crossin_jax; print(crossin_jax.__file__)')
  assert where.stdout.strip() == str(packages / 'crossin_jax' / '__init__.py')
  return command


@pytest.fixture(scope='module')
def quickstart(run, tmp_path_factory) -> pathlib.Path:
  """An empty folder in which the quickstart ran."""
  folder = tmp_path_factory.mktemp('empty')
  flags = ('--output_dir=out', '--languages=en,ur', '--reading_steps=6', '--tuning_steps=4')
  run(folder, 'crossin', 'quickstart', *flags, '--arms=x2x')
  return folder


def test_the_quickstart(quickstart):
  assert 'x2x' in (quickstart / 'out' / 'report.html').read_text()


def test_a_sweep(run, quickstart):
  values = (
    '--gin.QUESTIONS="out/world/questions.untagged.jsonl"',
    '--gin.VOCABULARY="out/world/world.model"', '--gin.SEEDS=(0,)', '--gin.LANGUAGES=("en","ur")',
    '--gin.INITIAL_CHECKPOINT_PATH="out/models/read.{seed}"',
    '--gin.MIXTURE="world.tested_shared_base_x2x_trans.all.en_ur.every"',
  )  # fmt: skip
  sweep = ('crossin', 'sweep', '--gin_file=gin_configs/ablations/world_volume.gin', *values)
  found = run(quickstart, *sweep, '--output_dir=sweep', '--dry_run')
  assert '10 points (1 the same as another), 9 to run' in found.stdout + found.stderr
  slurm = run(quickstart, *sweep, '--output_dir=sweep', '--launcher=slurm', status=2)
  assert 'this launcher needs launch/slurm_train.sbatch' in slurm.stderr


def test_a_plan(run, tmp_path):
  if not _has('libtpu'):
    pytest.skip('needs libtpu: install the extra tpu')
  models = (
    '--gin_file=gin_configs/models/world_1m.gin',
    '--gin_file=gin_configs/runs/defaults.gin',
  )
  found = run(
    tmp_path, 'crossin', 'plan', '--topology=v5e:2x2', *models, '--gin.LENGTH=64',
    '--gin.BATCH_SIZE=4',
  )  # fmt: skip
  assert 'compiled' in found.stdout + found.stderr


def test_xinstruction(run, quickstart):
  folder = quickstart / 'xinstruction'
  folder.mkdir()
  (folder / 'seed.sw.json').write_text('[{"instruction": "Taja mto.", "output": "Rufiji"}]')
  (folder / 'text.sw.jsonl').write_text('{"text": "Mto Rufiji ni mrefu."}\n')
  found = run(
    folder, 'crossin', 'xinstruction', 'status', '--output_dir=out',
    '--gin_file=gin_configs/xinstruction/default.gin', '--gin.LANGUAGES=("sw",)',
    '--gin.DOCUMENTS="text.{language}.jsonl"', '--gin.SEED="seed"',
    '--gin.VOCABULARY="../out/world/world.model"',
  )  # fmt: skip
  assert 'filter' in found.stdout + found.stderr
