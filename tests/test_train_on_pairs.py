"""Training on preference pairs and rows in one mixture: resumed to the bit, with the figures of
pairs, and refused with the reference of another model.
"""

import os
import shutil

from data.test_pair_layout import with_pairs
import jax
import numpy as np
import pytest
from test_train import arguments, bindings, lines, one_device, params, steps_in, stop_at

from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.data import references
from crossin_jax.data.prepared import PreparedDataError, PreparedMixture, TaskSplit, write_part
from crossin_jax.decoding.reference import store_reference
from crossin_jax.evaluation.heldout import HeldoutLoss
from crossin_jax.processes.exit_status import RESTART
from crossin_jax.train import train
from crossin_jax.training.objectives import ObjectiveError, Preference


@pytest.fixture(scope='module')
def mixture(tiny_prepared, tmp_path_factory):
  """The tiny mixture with pairs in the place of one task."""
  return with_pairs(tiny_prepared, tmp_path_factory.mktemp('pairs') / 'data')


@pytest.fixture(scope='module')
def start(tiny_prepared, tmp_path_factory):
  """Two runs of two steps, from different seeds."""
  found = []
  for seed in (0, 1):
    bindings()
    found.append(str(tmp_path_factory.mktemp(f'start{seed}')))
    assert train(**arguments(tiny_prepared, found[-1], total_steps=2, seed=seed)) == 0
  return found


def settings(mixture, model_dir, start, **changes):
  own = {'objective': Preference(beta=0.3, nll=0.2), 'initial_checkpoint': start, 'length': 96}
  return arguments(mixture, model_dir, **{**own, 'total_steps': 8, 'log_period': 2, **changes})


def store(mixture, start):
  run = settings(mixture, 'none', start)
  return store_reference(
    PreparedMixture(*mixture), SavedModel.open(start), run['model'], one_device(), length=96
  )


def test_a_run_on_pairs(mixture, start, tmp_path, capsys):
  bindings()
  with pytest.raises(ObjectiveError, match='has preference pairs, which the likelihood'):
    train(**settings(mixture, tmp_path / 'none', start[0], objective=None))
  with pytest.raises(PreparedDataError, match='no log-probabilities of the model that this run'):
    train(**settings(mixture, tmp_path / 'none', start[0]))
  assert store(mixture, start[0])['computed'] > 0
  assert train(**settings(mixture, tmp_path / 'a', start[0])) == 0
  with pytest.MonkeyPatch.context() as monkeypatch:
    stop_at(monkeypatch, 4)
    assert train(**settings(mixture, tmp_path / 'b', start[0])) == RESTART
  assert train(**settings(mixture, tmp_path / 'b', start[0])) == 0
  jax.tree.map(np.testing.assert_array_equal, params(tmp_path / 'a', 8), params(tmp_path / 'b', 8))
  of = lambda name: [
    {key: value for key, value in line.items() if key != 'loss_examples_per_second'}
    for line in lines(tmp_path / name)
  ]
  assert of('a') == of('b')
  line = of('a')[0]
  figures = {'pairs', 'logp_chosen', 'logp_rejected', 'margin', 'accuracy', 'drift'}
  assert set(line['preference']) == figures and 'loss_tokens' not in line
  language = PreparedMixture(*mixture).tasks[0].info['target_language']
  assert set(line['preference_by_language']) == {language}
  assert set(line['preference_by_language'][language]) == figures - {'pairs'}
  assert 0 < line['preference']['pairs'] < line['loss_examples']
  run = settings(mixture, tmp_path / 'a', start[0], objective=Preference('ipo'), total_steps=9)
  assert train(**run) == 0
  assert "objective was Preference(kind='dpo', beta=0.3" in capsys.readouterr().err
  # The reference of another model, after it was computed for the first one.
  with pytest.raises(PreparedDataError, match='no log-probabilities of the model that this run'):
    train(**settings(mixture, tmp_path / 'c', start[1]))
  with pytest.raises(ValueError, match='reference was .* now'):
    store(mixture, start[1])
    train(**settings(mixture, tmp_path / 'b', start[1], total_steps=10))


def test_held_out_pairs_choose_the_best_checkpoint(mixture, start, tmp_path):
  """The run reports its objective on the validation pairs, under the names of training, and the
  margin there is a metric as any other.
  """
  bindings(
    "CheckpointConfig.keep = 1\nCheckpointConfig.best_mode = 'max'\n"
    "CheckpointConfig.best_metric = 'eval/heldout/preference/accuracy'"
  )
  store(mixture, start[0])
  heldout = HeldoutLoss(*mixture, length=96, rows=4, examples_per_task=4)
  run = settings(
    mixture, tmp_path / 'run', start[0], evaluators=(heldout,), evaluation_period=4, total_steps=8,
  )  # fmt: skip
  assert train(**run) == 0
  held = PreparedMixture(*mixture, 'validation').tasks[0].split
  os.unlink(references.path_of(held, SavedModel.open(start[0]).digest, held.parts[0]))
  with pytest.raises(PreparedDataError, match='validation-00000.arrow.*--reference'):
    train(**{**run, 'model_dir': str(tmp_path / 'none')})
  bindings()  # without an evaluation nothing of them is needed
  assert train(**{**run, 'model_dir': str(tmp_path / 'one'), 'evaluation_period': 0}) == 0
  trained, *_ = [line for line in lines(tmp_path / 'run') if 'preference' in line]
  before, *found = [line for line in lines(tmp_path / 'run') if 'eval/heldout/loss' in line]
  assert before['step'] == 0 and [line['step'] for line in found] == [4, 8]
  names = {key.rpartition('/')[2] for key in found[0] if '/preference/' in key}
  assert names == {'loss', *trained['preference']}
  by_language = found[0]['eval/heldout/preference_by_language']
  assert by_language.keys() == trained['preference_by_language'].keys()
  for line in found:
    (language,) = line['eval/heldout/preference_by_language'].values()
    of = lambda name, line=line: line[f'eval/heldout/preference/{name}']
    assert of('pairs') == 4 and of('margin') == pytest.approx(language['margin'])
    assert of('loss') == pytest.approx(language['loss'])
    assert 4 * of('accuracy') in range(5)
  best = max(found, key=lambda line: line['eval/heldout/preference/accuracy'])
  assert best['step'] == 4, 'step 8 is kept as the last one, whatever its figures'
  assert steps_in(tmp_path / 'run') == [4, 8]
  # The figures are those of the parameters after the step.
  assert store(mixture, start[0])['computed'] == len(held)
  model, partition = run['model'], one_device()
  with partition.activate():
    own = heldout.for_objective(run['objective'], SavedModel.open(start[0]).digest)
    restored = SavedModel.open(str(tmp_path / 'run')).params(model, partition)
    again = dict(own(model, restored, partition))
  assert again['eval/heldout/preference/margin'] == pytest.approx(
    found[-1]['eval/heldout/preference/margin'], abs=1e-5
  )


def test_a_pair_that_is_not_finite_is_named(mixture, start, tmp_path, capsys):
  directory = str(tmp_path / 'data')
  shutil.copytree(mixture[0], directory)
  split = TaskSplit(directory, PreparedMixture(*mixture).tasks[0].split.name, 'train')
  store((directory, mixture[1]), start[0])
  rows = [
    (split.id(i), int(split.ranks[i]), *map(np.array, split.example(i)), split.branches(i).copy())
    for i in range(split.parts[0]['examples'])
  ]
  for row in rows:
    row[3][-1] = np.nan
  os.unlink(path := os.path.join(split.directory, split.parts[0]['file']))
  write_part(path, rows)
  bindings()
  run = settings((directory, mixture[1]), tmp_path / 'run', start[0], total_steps=2)
  assert train(**run) == 0
  assert f'because of task {split.name}, row ' in capsys.readouterr().err
