"""Which module may import which: heavy libraries, the order of the folders, circles, sizes."""

import ast
import collections
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

from conftest import REPOSITORY

# From the ground up: a folder or file imports only from those before it.
ORDER = (
  'errors languages language_id moved progress storage processes config workflow data world models '
  'devices training checkpoints decoding endpoint pages serve evaluation translation pairs plan '
  'mixing_laws sweep xinstruction quickstart train bench seqio_tasks t5x_bridge run cli'
).split()
HEAVY = ('tensorflow', 'seqio', 'tensorflow_datasets', 't5x', 'torch', 'transformers')


def modules() -> dict[str, pathlib.Path]:
  paths = [*REPOSITORY.glob('crossin_jax/**/*.py'), *REPOSITORY.glob('seqio_tasks/**/*.py')]
  name = lambda path: '.'.join(path.relative_to(REPOSITORY).with_suffix('').parts)
  return {name(path).removesuffix('.__init__'): path for path in paths}


def imports() -> dict[str, set[str]]:
  """Module -> modules of this project that it imports, inside functions too."""
  known, found = modules(), collections.defaultdict(set)
  for module, path in known.items():
    for node in ast.walk(ast.parse(path.read_text('utf-8'))):
      if isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:
          full = f'{node.module}.{alias.name}'
          found[module].add(full if full in known else node.module)
      elif isinstance(node, ast.Import):
        found[module].update(alias.name for alias in node.names)
    found[module] = {name for name in found[module] if name in known and name != module}
  return found


def room(module: str) -> str:
  parts = module.split('.')
  return parts[1] if parts[0] == 'crossin_jax' and len(parts) > 1 else parts[0]


def test_imports_point_one_way():
  rank = {name: place for place, name in enumerate(ORDER)}
  upward = [
    f'{module} imports {name}'
    for module, names in imports().items()
    for name in names
    if room(module) != room(name) != 'crossin_jax' and rank[room(name)] >= rank[room(module)]
  ]
  assert not upward, '\n'.join(upward)


def test_no_circles():
  graph, done, path = imports(), set(), []

  def visit(module):
    if module in path:
      raise AssertionError(' -> '.join([*path[path.index(module) :], module]))
    if module in done:
      return
    path.append(module)
    for name in sorted(graph[module]):
      visit(name)
    done.add(path.pop())

  for module in sorted(graph):
    visit(module)


def test_the_root_is_small():
  assert len(list((REPOSITORY / 'crossin_jax').glob('*.py'))) <= 10


def test_tests_mirror_the_rooms():
  """Every folder of tests is named as a folder of the project."""
  known = {path.name for path in REPOSITORY.glob('crossin_jax/*') if path.is_dir()}
  known |= {'seqio_tasks', 'launch', 'benchmarks', 'docs', 'fixtures'}
  folders = {path.name for path in REPOSITORY.glob('tests/*') if path.is_dir()}
  assert folders - known - {'__pycache__'} == set()


def test_functions_are_short():
  """At most five functions have more than 60 lines behind their docstring."""
  long = []
  for module, path in modules().items():
    for node in ast.walk(ast.parse(path.read_text('utf-8'))):
      if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
        if body[-1].end_lineno - body[0].lineno + 1 > 60:
          long.append(f'{module}.{node.name}')
  assert len(long) <= 5, long


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
  result = subprocess.run(
    [sys.executable, '-c', program], cwd=cwd, env=environment, capture_output=True, text=True
  )
  assert result.returncode == 0, result.stderr
  return json.loads(result.stdout.splitlines()[-1])


def test_importing_all_of_crossin_jax(tmp_path):
  names, loaded, backends, files = run(PROGRAM, tmp_path)
  assert {
    'crossin_jax.train',
    'crossin_jax.data.stream',
    'crossin_jax.models.decoder',
    'crossin_jax.cli',
  } <= set(names)
  assert not [name for name in HEAVY if name in loaded]
  # No device is initialised, and nothing is written.
  assert backends == [] and files == []


def test_importing_seqio_tasks_and_what_workers_of_prepare_import(tmp_path):
  names = 'seqio_tasks, seqio_tasks.prepare, crossin_jax.world.sources, seqio_tasks.sources'
  loaded = run(f'import sys, json, {names}\nprint(json.dumps(sorted(sys.modules)))', tmp_path)
  assert not [name for name in HEAVY if name in loaded]


def test_triton_is_imported_before_tensorflow():
  """The other order ends the process; see conftest.py."""
  if importlib.util.find_spec('triton'):
    import tensorflow  # noqa: F401

    order = list(sys.modules)
    assert order.index('triton') < order.index('tensorflow')
