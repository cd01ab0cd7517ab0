"""What commit 143e6ed wrote is read, continued and evaluated by the code of today.

tests/fixtures/run_143e6ed.tar.xz was made with that commit: a prepared mixture of a tiny world, a
run of 8 steps with its checkpoint of step 4 and config.gin, the checkpoint of step 8, and digests
of batches.
"""

import argparse
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tarfile

from conftest import REPOSITORY
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from crossin_jax import config, moved
from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.data.prepared import PreparedMixture
from crossin_jax.data.stream import BatchStream
from crossin_jax.devices.partitioning import Partitioner

MIXTURE = 'world.tested_shared_base_x2x.all.en_vi.every'


@pytest.fixture(scope='module')
def fixture(tmp_path_factory):
  folder = tmp_path_factory.mktemp('fixture')
  with tarfile.open(REPOSITORY / 'tests' / 'fixtures' / 'run_143e6ed.tar.xz') as archive:
    archive.extractall(folder, filter='data')
  return folder


def flags(*bindings):
  return argparse.Namespace(gin_file=[], gin_bindings=list(bindings), gin_search_paths='')


def test_batches_are_bit_equal(fixture):
  wanted = json.loads((fixture / 'batches.json').read_text())
  for window, digest in wanted.items():
    stream = BatchStream(
      PreparedMixture(str(fixture / 'prepared'), MIXTURE),
      batch_size=4, length=64, seed=0, window=int(window), packing='first_fit',
    )  # fmt: skip
    sha256 = hashlib.sha256()
    for n in [*range(8), 500, 100_000]:
      batch = stream.batch(n)
      for name in sorted(batch):
        sha256.update(name.encode() + np.ascontiguousarray(batch[name]).tobytes())
    assert sha256.hexdigest() == digest


def test_a_run_is_continued_to_the_same_parameters(fixture, tmp_path):
  """Its own config.gin is enough, with the module names of then."""
  shutil.copytree(fixture / 'run', tmp_path / 'run')
  shutil.copytree(fixture / 'prepared', tmp_path / 'prepared')
  (tmp_path / 'then.gin').write_text((fixture / 'run' / 'config.gin').read_text())
  command = [sys.executable, '-m', 'crossin_jax.cli', 'train', '--gin_file=then.gin', '--json']
  result = subprocess.run(
    [*command, '--gin.MESH_SHAPE=(1, -1, 1)'],
    cwd=tmp_path, capture_output=True, text=True, env=environment(),
  )  # fmt: skip
  assert result.returncode == 0, result.stderr[-3000:]
  tree = lambda path: ocp.PyTreeCheckpointer().restore(path / 'state')
  ours, theirs = tree(tmp_path / 'run' / 'checkpoint_8'), tree(fixture / 'final' / 'checkpoint_8')
  flat = lambda tree, prefix='': (
    {k: v for key, value in tree.items() for k, v in flat(value, f'{prefix}/{key}').items()}
    if isinstance(tree, dict)
    else {prefix: np.asarray(tree)}
  )
  ours, theirs = flat(ours), flat(theirs)
  assert ours.keys() == theirs.keys()
  for name in theirs:
    np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-7, err_msg=name)
  lines = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').open()]
  then = [json.loads(line) for line in (fixture / 'run' / 'metrics.jsonl').open()]
  assert [line['step'] for line in lines] == [line['step'] for line in then] == [2, 4, 6, 8]
  np.testing.assert_allclose(
    [line['loss'] for line in lines], [line['loss'] for line in then], 1e-5
  )


def environment():
  # One device and XLA as users run it: so was the fixture made.
  return {**os.environ, 'PYTHONPATH': str(REPOSITORY), 'XLA_FLAGS': ''}


def test_a_saved_model_of_then_is_opened(fixture):
  saved = SavedModel.open(str(fixture / 'run'))
  model = saved.module(flags())
  assert model.config.embed_dim == 16 and saved.prompts.template == 'plain'
  partition = Partitioner(mesh_shape=(1, -1, 1))
  with partition.activate():
    params = saved.params(model, partition)
  assert (600, 16) in {leaf.shape for leaf in jax.tree.leaves(params)}


@pytest.mark.parametrize('module', sorted(moved.modules()))
def test_moved_names_exist(module):
  importlib.import_module(moved.modules()[module])


def test_old_names_in_gin(tmp_path):
  text = moved.renamed(
    'import crossin_jax.optimizers\n  import crossin_jax.evaluation.heldout as x\n'
    'import crossin_jax.checkpoints as y\nimport numpy\n'
  )
  assert text == (
    'import crossin_jax.training.optimizers\n  import crossin_jax.evaluation.heldout as x\n'
    'import crossin_jax.checkpoints.manager as y\nimport numpy\n'
  )
  config.parse(flags('import crossin_jax.optimizers', 'adamw.b2 = 0.9'))
  assert config.bound('adamw.b2') == 0.9
