"""Objectives of preference pairs: the formulas written out, and the same numbers whatever the
layout, the packing, the microbatches and the mesh.
"""

import functools

from conftest import init_params, tiny_config
from data.test_pair_layout import mixture_of, pair
import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training.test_state import assert_close, recorder

from crossin_jax.data import pair_layout, references
from crossin_jax.data.prepared import PreparedMixture
from crossin_jax.data.stream import FEATURES, BatchStream, empty_rows, put_batch, write_segment
from crossin_jax.decoding.nonfinite import NonFiniteLikelihood
from crossin_jax.decoding.reference import store_reference
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models import lora
from crossin_jax.models.decoder import Decoder, attention_kernel
from crossin_jax.models.lora import LoraConfig
from crossin_jax.training import losses
from crossin_jax.training import state as train_state
from crossin_jax.training.objectives import (
  DirectConsistency,
  Likelihood,
  ObjectiveError,
  Preference,
)
from crossin_jax.training.pair_sums import Answers

TASKS, ROWS, LENGTH = 3, 8, 96


def model_of(dtype, adapters=True, **changes):
  adapted = LoraConfig(rank=2, targets=('query', 'up')) if adapters else None
  sizes = {'vocab_size': 64, 'num_layers': 1, 'dtype': dtype, 'param_dtype': dtype}
  return Decoder(tiny_config(**{**sizes, 'lora': adapted, **changes}))


@functools.cache
def examples(dco):
  """For each row its examples: (task, (tokens, weights) or (tokens, weights, branches))."""
  rng = np.random.default_rng(dco)
  draw = lambda low, high: rng.integers(3, 60, int(rng.integers(low, high))).tolist()
  triple = lambda: (draw(2, 7), draw(1, 4), draw(1, 4))
  rows = []
  for row in range(ROWS):
    content = []
    for _ in range(0 if row == 3 else int(rng.integers(1, 4))):
      task = int(rng.integers(TASKS))
      if task == 2:
        tokens = np.array(draw(3, 9), np.int32)
        content.append((task, (tokens, (np.arange(len(tokens)) > 1).astype(np.float32))))
      else:
        content.append((task, pair(*triple(), triple() if dco and task < 2 else None)))
    rows.append(content)
  return rows


def batch_of(layout, dco=False, dtype='float32', reference=None):
  """Features of the examples; `reference`: example -> float [4]."""
  batch = empty_rows(ROWS, LENGTH, FEATURES | pair_layout.features(layout, reference is not None))
  for row, content in enumerate(examples(dco)):
    start, segment = 0, 1
    for task, example in content:
      if len(example) == 2:
        write_segment(batch, row, start, segment, *example, 1, task)
        start, segment = start + len(example[0]), segment + 1
      else:
        logps = None if reference is None else reference(example)
        start, segment = pair_layout.write(batch, row, start, segment, *example, 1, task, logps)
  batch['decoder_loss_weights'] = batch['decoder_loss_weights'].astype(dtype)
  return batch


def log_probabilities(model, params):
  """A function: (prompt tokens, answer tokens) -> log-probability in float64, one at a time."""

  @jax.jit
  def of(params, batch):
    return losses.batch_loss(model, params, batch, 1)[1].loss

  def one(prompt, answer):
    batch = empty_rows(1, LENGTH)
    weights = np.concatenate([np.zeros(len(prompt)), np.ones(len(answer))])
    write_segment(batch, 0, 0, 1, np.concatenate([prompt, answer]), weights, 1, 0)
    return -float(of(params, batch))

  return one


def written_out(dco, logp, reference, of_pair):
  """(loss, weight, loss by task) from answers scored one at a time, and a formula of a pair."""
  total, by_task, count = 0.0, np.zeros(TASKS), 0
  for task, example in (entry for row in examples(dco) for entry in row):
    if len(example) == 2:
      tokens, weights = example
      first = int(np.argmax(weights > 0))
      loss = -logp(tokens[:first], tokens[first:]) / float(weights.sum())
    else:
      tokens, _, branches = example
      scores = {
        number: [
          (score(tokens[half.prompt], tokens[answer]), answer.stop - answer.start)
          for score in (logp, reference)
        ]
        for half in pair_layout.halves(branches)
        for number, answer in half.answers.items()
      }
      loss = of_pair(scores)
    total, count = total + loss, count + 1
    by_task[task] += loss
  return total, count, by_task


def dpo_of(scores):
  (c, n), (c_ref, _) = scores[1]
  (r, _), (r_ref, _) = scores[2]
  return np.log1p(np.exp(-0.3 * ((c - c_ref) - (r - r_ref)))) - 0.5 * c / n


def dco_of(scores):
  """CONSISTENCY: |r_1 - o_2 / beta| + |r_2 - beta o_1|."""
  m, o = ([scores[a][i][0] - scores[a + 1][i][0] for a in (1, 3)] for i in (0, 1))
  return abs(m[0] - o[0] - o[1] / 0.7) + abs(m[1] - o[1] - 0.7 * o[0])


OBJECTIVES = {
  False: (Preference('dpo', beta=0.3, nll=0.5), dpo_of),
  True: (DirectConsistency(beta=0.7), dco_of),
}


@pytest.mark.parametrize('dco', [False, True], ids=['dpo and rows', 'dco and rows'])
@pytest.mark.parametrize('layout', pair_layout.LAYOUTS)
def test_the_formula_in_float64(dco, layout):
  """With adapters, so the reference is the model without them; rows count as one pair does."""
  with jax.enable_x64(True):
    model = model_of('float64')
    params = init_params(model)
    base = model.clone(config=model.config.__class__(**{**vars(model.config), 'lora': None}))
    logp = log_probabilities(model, params)
    reference = log_probabilities(base, lora.without_adapters(params))
    objective, formula = OBJECTIVES[dco]
    total, count, by_task = written_out(dco, logp, reference, formula)
    run = jax.jit(lambda params, batch: objective(model, params, batch, TASKS))
    value, sums = run(params, batch_of(layout, dco, 'float64'))
    np.testing.assert_allclose(value, total, rtol=1e-11)
    np.testing.assert_allclose(sums.loss_by_task, by_task, rtol=1e-11)
    assert float(sums.weight) == count and float(sums.weight_by_task.sum()) == count
    of_pairs = sum(len(e) == 3 for row in examples(dco) for _, e in row)
    assert float(sums.pairs['pairs'].sum()) == of_pairs > 0


def test_figures_and_stored_reference():
  """The stored log-probabilities of the base give what the second pass gives, and the figures are
  those of the answers scored alone.
  """
  model = model_of('float32')
  params = init_params(model)
  base = Decoder(tiny_config(vocab_size=64, num_layers=1))
  reference = log_probabilities(base, lora.without_adapters(params))
  logp = log_probabilities(model, params)
  score = lambda example, of: [
    of(example[0][half.prompt], example[0][answer])
    for half in pair_layout.halves(example[2])
    for answer in half.answers.values()
  ]
  objective = OBJECTIVES[False][0]
  run = jax.jit(lambda batch: objective(model, params, batch, TASKS))
  expected = run(batch_of('branches'))
  found = run(batch_of('branches', reference=lambda e: [*score(e, reference), 0, 0]))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)
  figures = {name: np.zeros(TASKS) for name in expected[1].pairs}
  for task, example in (entry for row in examples(False) for entry in row):
    if len(example) == 3:
      (c, r), (c_ref, r_ref) = score(example, logp), score(example, reference)
      margin = (c - c_ref) - (r - r_ref)
      values = {
        'pairs': 1, 'logp_chosen': c, 'logp_rejected': r, 'margin': margin,
        'accuracy': margin > 0, 'drift': (c - c_ref + r - r_ref) / 2,
      }  # fmt: skip
      for name, value in values.items():
        figures[name][task] += value
  assert set(figures) == set(values)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
               expected[1].pairs, figures)  # fmt: skip


@functools.cache
def step_of(dtype, dco, layout='branches', mesh=(1, 1, 1), microbatches=1, chunk=None):
  """(gradients, metrics) of a training step."""
  model, optimizer = model_of(dtype), recorder()
  partition = Partitioner(mesh_shape=mesh, devices=jax.devices()[: int(np.prod(mesh))])
  with gin.unlock_config():
    gin.bind_parameter('cross_entropy.chunk', chunk)
  with partition.activate():
    abstract = train_state.state_shardings(model, optimizer.transform, partition)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    trained, frozen = lora.split(init_params(model, seed=1), model.config.lora)
    state = train_state.TrainState(
      jnp.zeros((), jnp.int32), trained, optimizer.transform.init(trained), frozen
    )
    state = jax.device_put(state, shardings)
    step = train_state.make_train_step(
      model, optimizer, tasks=TASKS, microbatches=microbatches, objective=OBJECTIVES[dco][0]
    )
    batch = batch_of(layout, dco, dtype)
    make = lambda _, rows: {name: array[rows] for name, array in batch.items()}
    batch = put_batch(make, 0, (ROWS, LENGTH), partition.batch_sharding)
    new, metrics = jax.jit(step, out_shardings=(shardings, None))(state, batch)
    return jax.tree.map(np.asarray, (new.opt_state[0], metrics))


CHANGES = [
  {'layout': 'plain'}, {'microbatches': 4}, {'mesh': (1, 2, 2)}, {'mesh': (4, 1, 1)},
  {'layout': 'plain', 'mesh': (1, 2, 1), 'microbatches': 2, 'chunk': 16},
]  # fmt: skip


@pytest.mark.parametrize('dtype, dco, change', [
    *(('float64', False, change) for change in CHANGES),
    *((dtype, dco, CHANGES[i])
      for i in (0, -1) for dtype, dco in (('float32', False), ('float64', True))),
], ids=str)  # fmt: skip
def test_the_same_step_in_every_arrangement(dtype, dco, change):
  tolerance = 1e-10 if dtype == 'float64' else 1e-5
  with jax.enable_x64(dtype == 'float64'):
    (gradients, found), (expected_gradients, expected) = (
      step_of(dtype, dco, **change), step_of(dtype, dco)
    )  # fmt: skip
  assert not expected.skipped and expected.gradient_norm > 0
  assert_close(gradients, expected_gradients, tolerance)
  if 'layout' in change:  # the prompt of a pair is counted twice
    assert found.sums.tokens > expected.sums.tokens
    found = found.replace(sums=found.sums.replace(tokens=expected.sums.tokens))
  of = lambda metrics: (metrics.sums.replace(pairs=None), metrics.gradient_norm)
  assert_close(of(found), of(expected), tolerance)
  # Differences of log-probabilities are as exact as these are.
  size = np.linalg.norm(expected.sums.pairs['logp_chosen'])
  for name, values in expected.sums.pairs.items():
    assert np.abs(found.sums.pairs[name] - values).max() <= tolerance * size, name


def test_what_is_no_pair_changes_nothing():
  """Without any pair or weight the loss is 0, finite, and so are the gradients."""
  batch = {name: np.zeros_like(array) for name, array in batch_of('branches').items()}
  model = model_of('float32', adapters=False)
  for objective in (Preference('orpo'), Preference('ipo'), DirectConsistency()):
    if objective.has_reference:
      batch[pair_layout.REFERENCE] = np.zeros((ROWS, LENGTH), np.float32)
    value, gradients = jax.jit(
      jax.value_and_grad(lambda p, objective=objective: objective(model, p, batch, TASKS)[0])
    )(init_params(model))
    assert value == 0 and all((leaf == 0).all() for leaf in jax.tree.leaves(gradients))


def test_certain_answers_have_a_finite_gradient():
  """A probability of 1 in f32 has infinite odds."""

  def loss(logps_BPA):
    policy = Answers(logps_BPA, jnp.array([[[2.0, 3, 3, 0, 0]]]))
    return Preference('orpo').of_pairs(policy, None)[0].sum()

  for chosen, rejected in ((0.0, -6.0), (-6.0, 0.0), (0.0, 0.0)):
    value, gradient = jax.value_and_grad(loss)(jnp.array([[[-1.0, chosen, rejected, 0, 0]]]))
    assert np.isfinite(value) and np.isfinite(gradient).all(), (chosen, rejected)


def test_settings_that_are_refused():
  for settings, message in [
    ({'kind': 'ppo'}, "kind = 'ppo' is none of"),
    ({'beta': 0.0}, 'beta = 0.0 must be above 0'),
    ({'label_smoothing': 0.5}, r'label_smoothing = 0.5 is not in \[0, 0.5\)'),
    ({'kind': 'ipo', 'label_smoothing': 0.1}, "are of 'dpo', not of 'ipo'"),
    ({'kind': 'orpo', 'nll': 1.0}, "'orpo' has the loss of the chosen answer already"),
  ]:
    with pytest.raises(ValueError, match=message):
      Preference(**settings)
  with pytest.raises(ValueError, match='DirectConsistency.beta = -1 must be above 0'):
    DirectConsistency(beta=-1)


def test_data_that_is_refused(tmp_path):
  of = lambda folder, dco: PreparedMixture(str(folder), mixture_of(folder, dco=dco)[0])
  plain, twice = of(tmp_path / 'a', False), of(tmp_path / 'b', True)
  with pytest.raises(ObjectiveError, match='pairs.vi .*preference pairs.*set train.objective'):
    Likelihood().check(plain, 0.0)
  with pytest.raises(ObjectiveError, match='row pairs.vi/0 .* in one language, and .* needs two'):
    DirectConsistency().check(plain, 0.0)
  with pytest.raises(ObjectiveError, match='row pairs.vi/0 .* in two languages, and .* needs one'):
    Preference().check(twice, 0.0)
  with pytest.raises(ObjectiveError, match='train.z_loss = 0.1 has no meaning'):
    Preference().check(plain, 0.1)
  plain.tasks.pop(0)
  with pytest.raises(ObjectiveError, match='has no preference pairs.*crossin pairs'):
    Preference().check(plain, 0.0)
  with pytest.raises(ObjectiveError, match='set train.initial_checkpoint'):
    Preference().stored_reference(model_of('float32', adapters=False), None)


def test_which_back_ends_get_branches():
  assert attention_kernel(model_of('float32', attention='xla'), 64) is None
  assert attention_kernel(model_of('float32', attention='blockwise'), 4096) is None
  with pytest.warns(match='splash attention is a kernel for TPUs'):
    assert attention_kernel(model_of('float32', attention='splash'), 64) is None  # on a CPU


class Saved:
  """A `SavedModel` of parameters in memory."""

  path, digest = 'memory', 'ab' * 32

  def __init__(self, params):
    self._params = params

  def params(self, model, partition):
    return self._params


def test_a_stored_reference_is_computed_in_parts(tmp_path, monkeypatch):
  """What is there is kept; a pair that is not finite is named."""
  name, _ = mixture_of(tmp_path, count=10)
  mixture = PreparedMixture(str(tmp_path), name)
  model = model_of('float32', adapters=False, vocab_size=100_000 // 1000)
  mixture.description['vocabulary']['size'] = 100
  partition = Partitioner(mesh_shape=(1, 1, 1), devices=jax.devices()[:1])
  params, split = init_params(model), mixture.tasks[0].split
  store = lambda params: store_reference(
    mixture, Saved(params), model, partition, length=LENGTH, rows=2
  )
  assert store(params) == {'tasks': 1, 'pairs': 10, 'computed': 10, 'digest': Saved.digest}
  found = references.read(split, Saved.digest)
  logp = log_probabilities(model, params)
  for index in range(10):
    (tokens, _), branches = split.example(index), split.branches(index)
    (half,) = pair_layout.halves(branches)
    expected = [logp(tokens[half.prompt], tokens[half.answers[n]]) for n in (1, 2)]
    np.testing.assert_allclose(found[index], [*expected, 0, 0], rtol=1e-5)
  assert store(params)['computed'] == 0
  (tmp_path / references.path_of(split, Saved.digest, split.parts[1])).unlink()
  broken = jax.tree.map(lambda leaf: leaf * np.nan, params)
  with pytest.raises(NonFiniteLikelihood, match='task pairs.vi, row pairs.vi/5'):
    store(broken)
  assert store(params)['computed'] == 5
  np.testing.assert_array_equal(references.read(split, Saved.digest), found)
  stream = BatchStream(mixture, batch_size=2, length=LENGTH, reference=Saved.digest)
  # At the start of a run the model is the reference.
  sums = Preference()(model, params, stream.batch(0), 2)[1]
  np.testing.assert_allclose(sums.pairs['margin'], 0, atol=1e-4)
  assert float(sums.pairs['pairs'].sum()) > 0
