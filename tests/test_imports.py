"""The library imports neither TensorFlow, SeqIO, torch nor transformers, and imports have no side
effects.
"""

import json
import os
import subprocess
import sys

from conftest import REPOSITORY

HEAVY = ('tensorflow', 'seqio', 'torch', 'transformers', 'tensorflow_datasets', 't5x')
PROGRAM = """
import importlib, json, os, pkgutil, sys
before = set(os.listdir('.'))
import crossin_jax
names = [m.name for m in pkgutil.walk_packages(crossin_jax.__path__, 'crossin_jax.')]
for name in names:
  importlib.import_module(name)
import jax
backends = list(jax._src.xla_bridge._backends)
print(json.dumps([names, sorted(set(sys.modules)), backends, sorted(set(os.listdir('.')) - before)]))
"""


def run(program, cwd):
  environment = {**os.environ, 'PYTHONPATH': str(REPOSITORY)}
  found = subprocess.run(
    [sys.executable, '-c', program], cwd=cwd, env=environment, capture_output=True, text=True
  )
  assert found.returncode == 0, found.stderr
  return json.loads(found.stdout.splitlines()[-1])


def test_importing_all_of_crossin_jax(tmp_path):
  names, modules, backends, files = run(PROGRAM, tmp_path)
  assert {
    'crossin_jax.train',
    'crossin_jax.data.stream',
    'crossin_jax.models.decoder',
    'crossin_jax.cli',
  } <= set(names)
  assert not [name for name in HEAVY if name in modules]
  # No device is initialised, and nothing is written.
  assert backends == [] and files == []


def test_importing_seqio_tasks_and_what_workers_of_prepare_import(tmp_path):
  program = 'import sys, json, seqio_tasks, seqio_tasks.prepare, crossin_jax.world.sources, seqio_tasks.sources\n'
  modules = run(program + 'print(json.dumps(sorted(sys.modules)))', tmp_path)
  assert not [name for name in HEAVY if name in modules]
