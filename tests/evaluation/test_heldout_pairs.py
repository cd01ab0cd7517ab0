"""Figures of an objective on held-out pairs: those of answers scored alone, on every mesh."""

import json

from conftest import init_params, write_prepared
from data.test_pair_layout import pair
import jax
import numpy as np
import pytest
from training.test_objectives import Saved, log_probabilities, model_of

from crossin_jax.data import pair_layout
from crossin_jax.data.prepared import PreparedDataError, PreparedMixture
from crossin_jax.decoding.reference import store_reference
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.evaluation import heldout_pairs
from crossin_jax.evaluation.heldout import HeldoutLoss
from crossin_jax.models import lora
from crossin_jax.storage.files import write_json
from crossin_jax.training.objectives import (
  DirectConsistency,
  Likelihood,
  ObjectiveError,
  Preference,
)

SHAPE = {'length': 40, 'rows': 3, 'examples_per_task': 7}
DPO, DCO = Preference('dpo', beta=0.3, nll=0.5), DirectConsistency(beta=0.7)


def of_pair(scores, references, sizes):
  """Figures of a pair with one half, and its DPO loss; log-probabilities by answer."""
  (c, r), (c_ref, r_ref) = scores, references
  margin = (c - c_ref) - (r - r_ref)
  return {
    'loss': np.log1p(np.exp(-0.3 * margin)) - 0.5 * c / sizes[0],
    'logp_chosen': c, 'logp_rejected': r, 'margin': margin, 'accuracy': float(margin > 0),
    'drift': (c - c_ref + r - r_ref) / 2,
  }  # fmt: skip


def of_halves(scores, references, sizes):
  """The same of direct consistency."""
  del sizes
  m, o = ([x[0] - x[1], x[2] - x[3]] for x in (scores, references))
  return {
    'loss': abs(m[0] - o[0] - o[1] / 0.7) + abs(m[1] - o[1] - 0.7 * o[0]),
    'logp_chosen': (scores[0] + scores[2]) / 2, 'logp_rejected': (scores[1] + scores[3]) / 2,
    'drift': (sum(scores) - sum(references)) / 4, 'gap': abs(m[0] - m[1]),
    'agreement': float(m[0] * m[1] > 0),
  }  # fmt: skip


def held_out(directory, dco=False):
  """A mixture whose pairs, in two languages, and rows are all in both splits; its name."""
  rng = np.random.default_rng(3)
  draw = lambda low, high: rng.integers(3, 60, int(rng.integers(low, high))).tolist()
  triple = lambda: (draw(3, 9), draw(1, 6), draw(1, 6))
  pairs = lambda count: [pair(*triple(), triple() if dco else None) for _ in range(count)]
  rows = [(np.arange(3, 9, dtype=np.int32), np.ones(6, np.float32))] * 3
  tasks = {'pairs.vi': (1.0, None, pairs(9)), 'rows.en': (2.0, None, rows)}
  name = write_prepared(directory, tasks | {'pairs.es': (1.0, None, pairs(4))}, max_length=40)
  for path in directory.glob('tasks/*/manifest.json'):
    manifest = json.loads(path.read_bytes())
    manifest['splits']['validation'] = manifest['splits']['train']
    write_json(str(path), manifest)
  path = directory / 'mixtures' / f'{name}.json'
  description = json.loads(path.read_bytes())
  description['vocabulary']['size'] = 64
  write_json(str(path), description)
  return name


def on(mesh):
  return Partitioner(mesh_shape=mesh, devices=jax.devices()[: int(np.prod(mesh))])


def by_hand(mixture, model, params, base_params, formula):
  """(means over all pairs, means by language) of answers scored one at a time."""
  base = model.clone(config=model.config.__class__(**{**vars(model.config), 'lora': None}))
  logp, reference = log_probabilities(model, params), log_probabilities(base, base_params)
  rows = []
  for task in mixture.tasks:
    for index in range(min(task.examples, 7) if task.split.has_pairs else 0):
      tokens, branches = task.split.example(index)[0], task.split.branches(index)
      answers = [
        (tokens[half.prompt], tokens[answer])
        for half in pair_layout.halves(branches)
        for answer in half.answers.values()
      ]
      scores, references = ([of(*one) for one in answers] for of in (logp, reference))
      sizes = [len(answer) for _, answer in answers]
      rows.append((task.info['target_language'], formula(scores, references, sizes)))
  means = lambda some: {name: np.mean([one[name] for one in some]) for name in some[0]}
  overall = means([figures for _, figures in rows]) | {'pairs': 11}
  return overall, {
    language: means([figures for of, figures in rows if of == language])
    for language in ('es', 'vi')
  }


def figures_of(directory, name, objective, model, params, mesh=(1, 1, 1), reference=None):
  """(overall, by language) as the evaluator of a run yields them."""
  evaluator = HeldoutLoss(str(directory), name, **SHAPE).for_objective(objective, reference)
  partition = on(mesh)
  with partition.activate():
    placed = jax.device_put(params, partition.replicated)
    found = dict(evaluator(model, placed, partition))
  names = evaluator.figures()
  assert set(names) < set(found) and names[0] == 'eval/heldout/loss'
  prefix = 'eval/heldout/preference/'
  overall = {key.removeprefix(prefix): found[key] for key in names[1:]}
  assert all(key.startswith(prefix) for key in names[1:])
  return overall, found['eval/heldout/preference_by_language']


def assert_near(found, wanted, tolerance):
  assert found[0] == pytest.approx(wanted[0], rel=tolerance, abs=tolerance)
  assert found[1].keys() == wanted[1].keys()
  for language, values in wanted[1].items():
    assert found[1][language] == pytest.approx(values, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize(
  'objective, formula', [(DPO, of_pair), (DCO, of_halves)], ids=['dpo', 'dco']
)
def test_the_figures_written_out(tmp_path, objective, formula):
  """In float64, with adapters: the reference is the model without them."""
  name = held_out(tmp_path, dco=objective is DCO)
  mixture = PreparedMixture(str(tmp_path), name, 'validation')
  with jax.enable_x64(True):
    model = model_of('float64')
    params = init_params(model, seed=1)
    wanted = by_hand(mixture, model, params, lora.without_adapters(params), formula)
    assert_near(figures_of(tmp_path, name, objective, model, params), wanted, 1e-10)


def test_a_stored_reference(tmp_path):
  """Of the held-out pairs too; without it the run is refused before its first step."""
  name = held_out(tmp_path)
  model = model_of('float32', adapters=False)
  start, params = (init_params(model, seed=seed) for seed in (1, 2))
  of_run = HeldoutLoss(str(tmp_path), name, **SHAPE).for_objective(DPO, Saved.digest)
  with pytest.raises(PreparedDataError, match='no log-probabilities of the model.*--reference'):
    of_run.figures()
  mixture, held = (PreparedMixture(str(tmp_path), name, split) for split in ('train', 'validation'))
  stored = store_reference(mixture, Saved(start), model, on((1, 1, 1)), length=32, rows=2)
  assert stored['pairs'] == 26 and stored['tasks'] == 2
  found = figures_of(tmp_path, name, DPO, model, params, reference=Saved.digest)
  wanted = by_hand(held, model, params, start, of_pair)
  assert wanted[0]['margin'] != pytest.approx(0, abs=0.01)
  assert_near(found, wanted, 1e-4)


@pytest.mark.parametrize('mesh', [(1, 1, 1), (4, 1, 1), (1, 2, 2)], ids=str)
def test_the_same_on_every_mesh_and_in_both_layouts(tmp_path, monkeypatch, mesh):
  name = held_out(tmp_path)
  with jax.enable_x64(True):
    model = model_of('float64')
    params = init_params(model, seed=1)
    wanted = figures_of(tmp_path, name, DPO, model, params)
    assert_near(figures_of(tmp_path, name, DPO, model, params, mesh), wanted, 1e-10)
    monkeypatch.setattr(heldout_pairs, 'attention_kernel', lambda *_: 'splash')
    assert_near(figures_of(tmp_path, name, DPO, model, params, mesh), wanted, 1e-10)


def test_without_pairs_or_objective_there_are_none(tmp_path):
  name = held_out(tmp_path)
  evaluator = HeldoutLoss(str(tmp_path), name, **SHAPE)
  assert evaluator.figures() == ['eval/heldout/loss']
  assert evaluator.for_objective(Likelihood(), None).figures() == ['eval/heldout/loss']
  of_orpo = evaluator.for_objective(Preference('orpo'), None).figures()
  wanted = {'pairs', 'loss', 'logp_chosen', 'logp_rejected', 'margin', 'accuracy'}
  assert set(of_orpo[1:]) == {f'eval/heldout/preference/{name}' for name in wanted}
  with pytest.raises(ObjectiveError, match='one language, and @DirectConsistency'):
    evaluator.for_objective(DCO, None).figures()
