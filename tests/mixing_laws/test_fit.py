"""`crossin fit` on sweeps whose points are made up: real files, known laws."""

import ast
import html.parser
import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from crossin_jax import cli
from crossin_jax.evaluation.answers.predictions import Predictions, write_predictions
from crossin_jax.evaluation.measures import consistency
from crossin_jax.evaluation.results import build_run, write_results
from crossin_jax.mixing_laws import fit as sweep_fit
from crossin_jax.mixing_laws import page as fit_page
from crossin_jax.mixing_laws import points as fit_points
from crossin_jax.mixing_laws import words as fit_words
from crossin_jax.sweep import command as sweep_command
from crossin_jax.sweep import points as sweep_points
from crossin_jax.sweep import running
from crossin_jax.sweep import table as sweep_table
from crossin_jax.sweep.points import Settings, make_points
from crossin_jax.workflow import jobs, launchers

MIXTURE = 'world.tested_base_x2x_trans.all.en_zh_vi.every'
LANGUAGES = ('en', 'zh', 'vi')
REPLAY = {'tested': 0.5}
SLOPES = {
  'en': {'base': -6, 'x2x': 3, 'trans': 3},
  'zh': {'x2x': -7, 'base': 4},
  'vi': {'x2x': -3, 'trans': -6, 'base': 3},
}


def mixtures(count, seed=0):
  """Points of a triangle, corners first; half of every mixture is replay."""
  corners = [(0.5, 0, 0), (0.1, 0.4, 0), (0.1, 0, 0.4), (0.2, 0.2, 0.1), (0.3, 0.1, 0.1)]
  rng = np.random.default_rng(seed)
  rows = corners + [tuple(0.5 * rng.dirichlet((1.5, 1, 1))) for _ in range(count)]
  return [
    REPLAY | dict(zip(('base', 'x2x', 'trans'), (float(v) for v in row)))
    for row in np.round(rows[:count], 4)
  ]


def loss(shares, language):
  return 1.2 + 0.5 * np.exp(sum(t * shares.get(name, 0) for name, t in SLOPES[language].items()))


def accuracy(shares, language):
  return 0.25 + 0.75 / (
    1 + np.exp(1 + sum(t * shares.get(name, 0) for name, t in SLOPES[language].items()))
  )


class Laws(launchers.Launcher):
  """Writes the files that prepare, train and evaluate leave: figures follow known laws with noise."""

  def __init__(self, noise=0.01, by_language=True, items=100, fail=()):
    super().__init__(jobs.Jobs('none'))
    self.noise, self.by_language, self.items, self.fail = noise, by_language, items, fail

  def run_here(self, log, arguments, values, bindings):
    flags = dict(a.removeprefix('--').split('=', 1) for a in (*arguments, *bindings) if '=' in a)
    shares = ast.literal_eval(
      flags.get('gin.SHARES') or flags.get('gin.MixtureSettings.shares') or "{'base': 1}"
    )
    total = sum(shares.values())
    # Two tasks a component, as one language pair each; one that lost all its rows keeps its rate,
    # and is never read.
    tasks = [
      {
        'task': f'{name}.{k}',
        'component': name,
        'rate': share / total / 2,
        'volume': None,
        'fingerprint': '',
      }
      for name, share in shares.items()
      for k in range(2)
    ]
    path = pathlib.Path(flags['output_dir'], 'mixtures', f'{flags["mixture"]}.json')
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({'tasks': tasks}))

  def run(self, log, arguments, values, bindings):
    if any(word in log for word in self.fail):
      raise jobs.StepFailed(f'{log}: no')
    if arguments[0] != 'evaluate':
      return
    flags = dict(a.removeprefix('--').split('=', 1) for a in arguments if '=' in a)
    tasks = json.loads(pathlib.Path(values['DATA_DIR'], 'mixtures', f'{MIXTURE}.json').read_text())[
      'tasks'
    ]
    shares = {}
    for task in tasks:
      shares[task['component']] = shares.get(task['component'], 0) + task['rate']
    out, seed = pathlib.Path(flags['output_dir']), int(flags['seed'])
    out.mkdir(parents=True)
    rng = np.random.default_rng([seed, *(int(1e6 * v) for v in shares.values())])
    by = {language: loss(shares, language) + self.noise * rng.normal() for language in LANGUAGES}
    figures = {'eval/heldout/loss': float(np.mean(list(by.values())))}
    if self.by_language:
      figures['eval/heldout/loss_by_language'] = by
    (out / 'figures.json').write_text(json.dumps(figures))
    if path := flags.get('questions'):
      right = rng.random((self.items, 3)) < [accuracy(shares, language) for language in LANGUAGES]
      chosen = np.where(right, 0, rng.integers(1, 4, right.shape))
      answers = np.zeros(right.shape, np.int64)
      name = sweep_points.question_name(path)
      run = build_run(
        consistency.summarise(chosen, answers, LANGUAGES), variant='v', seed=seed,
        method='likelihood', protocol='strict',
        benchmark=name.replace('.', '/', 1),
      )  # fmt: skip
      write_results(out / 'results.json', [run])
      options = ['north', 'east', 'south', 'west']
      found = Predictions(
        [str(i) for i in range(self.items)], list(LANGUAGES), [[options] * 3] * self.items, answers,
        [[options[c] for c in row] for row in chosen],
      )  # fmt: skip
      (out / 'predictions').mkdir()
      write_predictions(out / 'predictions' / f'{name}.likelihood.jsonl', found)


def swept(out, rows, seeds=(0, 1, 2), runner=None, questions=False, axis='SHARES', **changes):
  """A finished sweep over shares."""
  if questions:
    file = out.parent / 'world.untagged.jsonl'
    file.write_text('x')
  settings = Settings(
    **{
      'axes': {axis: tuple(rows)},
      'mixture': MIXTURE,
      'mixture_gin': 'gin_configs/mixtures/world.gin',
      'run_gin': 'gin_configs/runs/world_tune.gin',
      'run_values': {'INITIAL_CHECKPOINT_PATH': 'read.{seed}'},
      'seeds': seeds,
      'questions': (str(file),) if questions else (),
    }
    | changes
  )
  one = running.Sweep(str(out), settings, make_points(settings), runner or Laws())
  one.run()
  return one


@pytest.fixture(scope='module')
def asked(tmp_path_factory):
  """One sweep with questions, and its fit."""
  out = tmp_path_factory.mktemp('asked') / 'out'
  out.parent.mkdir(exist_ok=True)
  one = swept(out, mixtures(9), questions=True)
  return one, sweep_fit.fit(str(out), 'loss', english_accuracy='default', resamples=150)


# ---- an axis of dicts, end to end ----


def test_an_axis_of_shares_tokenises_once_and_is_told_in_words(tmp_path):
  one = swept(tmp_path / 'out', mixtures(4), seeds=(0, 1))
  assert len({point.digest for point in one.points}) == 8 and not one.missing() and not one.failures
  # Tokens and held-out rows do not depend on shares, though the gin file binds the macro.
  assert len({point.data.tokens for point in one.points}) == 1
  assert (
    len({point.data.folder for point in one.points}) == 4
    and len({p.heldout.folder for p in one.points}) == 1
  )
  assert one.points[2].name == 'SHARES=base-0.1-x2x-0.4-trans-0.seed=0'
  assert (
    "--gin.SHARES={'tested': 0.5, 'base': 0.1, 'x2x': 0.4, 'trans': 0.0}"
    in one.points[2].data.flags
  )
  summary = sweep_table.write(one)
  assert (
    'base 0.1, x2x 0.4, trans 0' in summary['text']
    and 'tested' not in summary['text'].split('Held-out')[0]
  )
  assert pathlib.Path(summary['plot']).read_bytes().startswith(b'\x89PNG')
  saved = json.loads((tmp_path / 'out' / 'sweep.json').read_text())
  assert saved['points'][2]['values']['SHARES'] == mixtures(4)[1]


def test_a_macro_that_tokens_depend_on_still_makes_other_tokens(tmp_path):
  one = swept(tmp_path / 'out', (0, 1), axis='WORLD_SEED', seeds=(0,))
  assert len({point.data.tokens for point in one.points}) == 2
  assert sweep_points._rate_macros(
    "A.b = %X\nMixtureSettings.shares = {\n'base': %Y}\nMixtureSettings.epochs = %X"
  ) == {'Y'}
  assert (
    sweep_points.in_words({'a': 1, 'b': 0.25}, ({'a': 1, 'b': 0.5}, {'a': 1, 'b': 0.25}))
    == 'b 0.25'
  )
  assert (
    sweep_points.in_words({'a': 1}, ({'a': 1},)) == 'a 1' and sweep_points.in_words(3, ()) == '3'
  )


# ---- the fit of a sweep ----


def test_laws_of_every_figure_and_shares_as_realised(asked):
  one, found = asked
  assert json.loads((pathlib.Path(one.out) / 'fit.json').read_text()) == found
  assert found['counts'] == {
    'points': 27, 'unfinished': 0, 'without_mixture': 0, 'other_settings': 0, 'used': 27,
    'seeds': [3, 3]
  }  # fmt: skip
  names = [law['figure'] for law in found['laws']]
  assert set(names) == {
    'loss',
    *(f'{k}/{l}' for k in ('loss', 'accuracy') for l in LANGUAGES),
    'consistency_3',
    'ac3_3',
  }
  for one_mixture, wanted in zip(
    sorted(found['mixtures'], key=lambda m: -m['shares']['base'])[:1], mixtures(9)[:1]
  ):
    assert one_mixture['shares'] == pytest.approx(wanted)
  assert not found['components']['tested']['varied'] and found['components']['tested'][
    'low'
  ] == pytest.approx(0.5, abs=1e-3)
  by = {law['figure']: law for law in found['laws']}
  assert by['accuracy/zh']['chance'] == 0.25 and by['consistency_3']['chance'] == pytest.approx(
    1 / 16
  )
  assert by['loss/zh']['form'] == 'exponential' and by['accuracy/zh']['form'] == 'logistic'
  # t is known up to a constant: differences between components are those of the law.
  t, truth = by['loss/zh']['coefficients'], SLOPES['zh']
  assert t['x2x'] - t['trans'] == pytest.approx(truth['x2x'], abs=1.5)
  assert sum(t[name] for name in truth | {'trans': 0}) == pytest.approx(0, abs=0.01)
  assert 'tested' not in t
  # The law is used as known: it predicts mixtures that it has not seen, better than the baselines
  # do.
  forms = by['loss/zh']['held_out']['forms']
  assert (
    forms['exponential']['error']
    < 0.5 * forms['linear']['error']
    < 0.5 * forms['constant']['error']
  )
  assert forms['exponential']['rank'] > 0.9 and forms['constant']['rank'] is None


def test_the_proposal_is_the_best_of_the_true_laws(asked):
  found = asked[1]
  proposal = found['proposal']
  assert found['asked']['terms'] == {'loss/en': 1.0, 'loss/zh': 1.0, 'loss/vi': 1.0}
  assert proposal['shares']['tested'] == pytest.approx(0.5, abs=1e-3) and sum(
    proposal['shares'].values()
  ) == pytest.approx(1)
  truth = lambda shares: np.mean([loss(shares, language) for language in LANGUAGES])
  keeps = lambda shares: (
    accuracy(shares, 'en') >= accuracy(found['asked']['default_shares'], 'en') - 0.02
  )
  rng = np.random.default_rng(1)
  corners = np.array([[m[name] for name in ('base', 'x2x', 'trans')] for m in mixtures(9)])
  inside = [
    REPLAY | dict(zip(('base', 'x2x', 'trans'), row))
    for row in rng.dirichlet(np.ones(9) * 0.4, 4000) @ corners
  ]
  best = min(truth(shares) for shares in inside if keeps(shares))
  assert truth(proposal['shares']) < best + 0.01
  low, high = proposal['gain_interval']
  gained = truth(found['asked']['default_shares']) - truth(proposal['shares'])
  assert low - 0.005 < gained < high + 0.005 and low < proposal['gain'] < high
  assert proposal['limits'][0]['value'] >= proposal['limits'][0]['bound'] - 1e-6
  shares = ast.literal_eval(found['gin'].removeprefix('SHARES = '))
  assert shares == pytest.approx(proposal['shares'], abs=1e-4)


def test_objectives_weights_and_limits(asked):
  out = asked[0].out
  fit = lambda *a, **k: sweep_fit.fit(out, *a, **{'resamples': 20, **k})
  figures = {name: sweep_fit.Figure(np.ones(1), kind) for name, kind in (
    ('loss', 'loss'), ('loss/en', 'loss'), ('loss/zh', 'loss'), ('accuracy/en', 'fraction'),
    ('accuracy/vi', 'fraction'),
  )}  # fmt: skip
  terms = lambda name, weights: sweep_fit._objective(name, figures, weights)
  assert (
    terms('loss', {}).terms == {'loss/en': 1.0, 'loss/zh': 1.0} and not terms('loss', {}).maximise
  )
  assert terms('loss_elsewhere', {'zh': 2}).terms == {'loss/zh': 2.0}
  assert (
    terms('accuracy', {'en': 0, 'vi': 3}).terms == {'accuracy/vi': 3.0}
    and terms('accuracy', {}).maximise
  )
  # All weight on one language and on another are other shares.
  zh, vi = (fit(f'loss/{language}')['proposal']['shares'] for language in ('zh', 'vi'))
  assert zh['x2x'] > 0.35 and vi['trans'] > zh['trans'] + 0.1
  # A limit on English costs CrossIn its share.
  free = fit('accuracy_elsewhere')['proposal']
  tied = fit('accuracy_elsewhere', english_accuracy=0.8)['proposal']
  assert tied['shares']['base'] > free['shares']['base'] + 0.05
  assert tied['limits'][0]['value'] == pytest.approx(0.8, abs=1e-4) and tied['gain'] < free['gain']
  none = fit('accuracy_elsewhere', english_accuracy=0.999)
  assert (
    none['proposal']['shares'] is None
    and none['gin'] is None
    and 'No proposal' in none['warnings'][-1]
  )
  bound = fit('loss/zh', asked[0].points[3].name, share_bounds={'x2x': (0.0, 0.2)})
  assert bound['proposal']['shares']['x2x'] == pytest.approx(0.2, abs=1e-3)
  assert bound['asked']['default_shares'] == pytest.approx(mixtures(9)[1])
  # The bound cuts the default off, which is said.
  assert not bound['asked']['default_inside'] and any(
    'default shares are outside' in text for text in bound['warnings']
  )


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'objective': 'bleu'}, r"objective 'bleu' is none of loss, .*nor a figure: loss, loss/en"),
    ({'language_weights': {'fr': 1}, 'objective': 'loss'}, 'nothing was measured in fr'),
    ({'language_weights': {'zh': -1}, 'objective': 'loss'}, 'must be finite and not negative'),
    ({'default_shares': {'y2y': 1}}, 'no mixture has y2y'),
    ({'default_shares': 'SHARES='}, 'names several mixtures'),
    ({'default_shares': 'nonsense'}, 'is no point'),
    ({'share_bounds': {'x2x': (0.4, 0.1)}}, 'not two shares'),
    (
      {'fit_questions': 'belebele'},
      "no run has benchmark 'belebele' by likelihood; there are world/untagged",
    ),
  ],
)
def test_what_is_not_there_is_said(asked, arguments, message):
  with pytest.raises(ValueError, match=message):
    sweep_fit.fit(asked[0].out, **arguments, resamples=20)


def test_only_finished_points_that_were_made_alike(tmp_path):
  out = tmp_path / 'out'
  with pytest.raises(ValueError, match='has no points/'):
    sweep_fit.fit(str(out))
  one = swept(out, mixtures(6), seeds=(0, 1), runner=Laws(fail=('x2x-0.4',)))
  assert len(one.failures) == 2
  # Other training in the same folder: fewer points, not pooled with the first.
  swept(out, mixtures(3), seeds=(0,), run_values={'TRAIN_STEPS': 7}, runner=Laws(noise=3))
  found = sweep_fit.fit(str(out), resamples=20)
  assert {k: found['counts'][k] for k in ('points', 'unfinished', 'used', 'other_settings')} == {
    'points': 15, 'unfinished': 2, 'used': 10, 'other_settings': 3
  }  # fmt: skip
  assert '2 (not finished), 3 (trained or measured with other settings' in found['warnings'][0]
  # A mixture whose file is gone is counted, not guessed.
  shutil.rmtree(out / 'data' / one.points[0].data.folder)
  found = sweep_fit.fit(str(out), resamples=20)
  assert found['counts']['without_mixture'] == 3 and found['counts']['used'] == 8


def test_alike_but_for_seed_and_mixture():
  point = lambda seed, start, **more: {
    'seed': seed, 'questions': None, 'data': ['heldout', {}, 'tokens'],
    'settings': {'run': ['r.gin', 'd', {'RANDOM_SEED': seed, 'START': start, **more}, []]},
  }  # fmt: skip
  for a, b, same in (
    (point(0, 'q2/read.0'), point(1, 'q2/read.1'), True),
    (point(0, 'q2/read.0'), point(1, 'q3/read.1'), False),
    (point(0, 'read.0'), point(1, 'other.1'), False),
    (point(0, 'read.0'), point(0, 'read.0', peak=1e-3), False),
    (point(0, 'read.0', steps=10), point(1, 'read.1', steps=11), False),
    (point(3, 'read.3'), point(4, 'read.3'), True),
  ):
    assert fit_points._alike(a, b) == fit_points._alike(b, a) == same
  assert not fit_points._alike(point(0, 'a'), {**point(1, 'a'), 'questions': 'world'})
  # A world for each seed is one sweep; two worlds under the same seeds are two.
  worlds = lambda *pairs: [{**point(seed, 'a'), 'data': world} for seed, world in pairs]
  sizes = lambda points: sorted(map(len, fit_points._groups(points)))
  assert sizes(worlds((0, 'w0'), (0, 'w0'), (1, 'w1'), (1, 'w1'))) == [4]
  assert sizes(worlds((0, 'w0'), (1, 'w0'), (0, 'w1'), (1, 'w1'))) == [2, 2]
  assert sizes(worlds((0, 'w1'), (0, 'w0'), (1, 'w0'))) == [1, 2]


def test_each_seed_with_a_world_of_its_own(tmp_path):
  swept(
    tmp_path / 'out',
    mixtures(5),
    seeds=(0, 1),
    mixture_values={'VOCABULARY': 'world.{seed}/world.model'},
  )
  assert len(list((tmp_path / 'out' / 'tokens').iterdir())) >= 2
  before = sweep_fit.fit(str(tmp_path / 'out'), resamples=40)
  counts = before['counts']
  assert counts['used'] == 10 and counts['seeds'] == [2, 2] and not counts['other_settings']
  # A hard world: all its losses higher, by far more than noise, and nothing is less sure for it.
  paths = sorted((tmp_path / 'out').glob('points/*/evaluation-*/point.json'))
  for path in paths:
    result = json.loads(path.read_text())
    by = result['heldout']['eval/heldout/loss_by_language']
    by['vi'] += 0.4 * result['seed']
    path.write_text(json.dumps(result))
  found = sweep_fit.fit(str(tmp_path / 'out'), resamples=40)
  assert json.loads((tmp_path / 'out' / 'fit.json').read_text()) == found
  old, new = (
    next(law for law in fit['laws'] if law['figure'] == 'loss/vi') for fit in (before, found)
  )
  assert new['seed_offsets']['1'] - old['seed_offsets']['1'] == pytest.approx(0.2)
  assert new['held_out']['noise'] == pytest.approx(old['held_out']['noise'])
  width = lambda fit: np.subtract(*fit['proposal']['gain_interval'][::-1])
  assert width(found) == pytest.approx(width(before), rel=0.05)
  titles, *rows = fit_words.law_rows(found)
  row = dict(zip(titles, next(row for row in rows if row[0] == 'loss/vi')))
  assert float(row['seeds differ by']) == pytest.approx(0.4 / np.sqrt(2), abs=0.03)
  for text in (fit_words.terminal(found), page(tmp_path, found)):
    assert 'eeds differ by' in text and row['seeds differ by'] in text
  # A mixture that lacks the hard world is no better for it.
  next(path for path in paths if '.seed=1' in str(path)).unlink()
  lacking = sweep_fit.fit(str(tmp_path / 'out'), resamples=40)
  for one, other in zip(lacking['mixtures'], found['mixtures']):
    assert one['mean']['loss/vi'] == pytest.approx(other['mean']['loss/vi'], abs=0.03)


def test_a_task_that_lost_all_rows_has_no_share(tmp_path):
  out = tmp_path / 'out'
  one = swept(out, mixtures(3), seeds=(0,))
  for folder in (out / 'tokens').iterdir():
    for k in range(2):
      (folder / f'trans.{k}').mkdir()
      (folder / f'trans.{k}' / 'manifest.json').write_text(
        json.dumps({'splits': {'train': {'parts': [{'examples': k}]}}})
      )
  found = sweep_fit.fit(str(out), resamples=20)
  row = next(m['shares'] for m in found['mixtures'] if one.points[2].name in m['points'][0])
  assert row['trans'] == pytest.approx(0.2 / 0.8) and row['tested'] == pytest.approx(0.5 / 0.8)


def test_volumes_of_a_file_source_are_shares_too_and_said_to_be_volumes(tmp_path):
  """As in crossin_volume.gin: rates follow counts, held-out loss alone, one number for all
  languages.
  """
  out = tmp_path / 'out'
  for volume, extra in (('all', 1.0), ('3000', 0.4), ('6000', 0.7), ('9000', 0.85)):
    for seed in (0, 1):
      name = f'alpaca.base_x2x.{volume}.en_zh.default'
      data = out / 'data' / f'{name}-d' / 'mixtures'
      data.mkdir(parents=True, exist_ok=True)
      tasks = [
        {'task': n, 'component': n, 'rate': r / (1 + extra)}
        for n, r in (('base', 1), ('x2x', extra))
      ]
      (data / f'{name}.json').write_text(json.dumps({'tasks': tasks}))
      point = out / 'points' / f'{volume}.seed={seed}-{volume}{seed}' / 'evaluation-e'
      point.mkdir(parents=True)
      x2x = extra / (1 + extra)
      result = {
        'mixture': name, 'seed': seed, 'runs': [], 'seconds': 1,
        'heldout': {'eval/heldout/loss': 2 + np.exp(-4 * x2x) + 0.001 * seed},
        'settings': {'data': f'{name}-d', 'run': ['r.gin', 'd', {'RANDOM_SEED': seed}, []], 'files': {}, 'heldout': 'h', 'questions': {}},
      }  # fmt: skip
      (point / 'point.json').write_text(json.dumps(result))
  found = sweep_fit.fit(str(out), resamples=40, default_shares='3000.seed=0')
  assert found['asked']['objective'] == 'loss' and list(found['asked']['terms']) == ['loss']
  assert found['proposal']['shares']['x2x'] == pytest.approx(0.5, abs=1e-3)
  assert found['proposal']['gain'] == pytest.approx(np.exp(-4 * 0.4 / 1.4) - np.exp(-2), abs=0.005)
  assert any('more than shares (3000, 6000, 9000, all)' in text for text in found['warnings'])
  assert any('at the edge of what was run' in text for text in found['warnings'])


# ---- degenerate ----


def test_one_mixture_has_nothing_to_fit(tmp_path):
  swept(tmp_path / 'out', mixtures(1))
  found = sweep_fit.fit(str(tmp_path / 'out'), resamples=20)
  assert found['proposal'] is None and found['gin'] is None
  assert found['warnings'] == [
    'All points have the same shares: there is nothing to fit and nothing to propose.'
  ]
  assert {law['form'] for law in found['laws']} == {'constant'}
  assert 'All points have the same shares' in page(tmp_path, found)


def test_two_mixtures_have_a_line_between_them_and_no_check(tmp_path):
  swept(tmp_path / 'out', mixtures(2))
  found = sweep_fit.fit(str(tmp_path / 'out'), resamples=40)
  assert {law['form'] for law in found['laws']} == {'linear'}
  assert found['proposal']['gain_interval'] is not None  # from the seeds
  assert any(
    'linear law replaces the exponential one, since 2 mixtures are too few' in t
    for t in found['warnings']
  )
  swept(tmp_path / 'single', mixtures(2), seeds=(0,))
  alone = sweep_fit.fit(str(tmp_path / 'single'), resamples=40)
  assert alone['proposal']['gain_interval'] is None and alone['proposal']['intervals'] is None
  assert 'interval unknown' in page(tmp_path, alone)


def test_a_figure_that_never_changes_and_runs_that_ran_away(tmp_path):
  out = tmp_path / 'out'
  swept(out, mixtures(7))
  for i, path in enumerate(sorted(out.glob('points/*/evaluation-*/point.json'))):
    result = json.loads(path.read_text())
    result['heldout']['eval/heldout/loss_by_language']['en'] = 2.0
    if i == 4:
      result['heldout']['eval/heldout/loss_by_language']['vi'] = float('nan')
    if i == 5:
      result['heldout']['eval/heldout/loss_by_language']['zh'] = None
    path.write_text(json.dumps(result))
  found = sweep_fit.fit(str(out), resamples=40)
  by = {law['figure']: law for law in found['laws']}
  assert by['loss/en']['form'] == 'constant' and by['loss/vi']['points'] == 20
  text = ' '.join(found['warnings'])
  assert (
    'loss/en: a constant law replaces the exponential one, since it never' in text
    and 'loss/zh 1, loss/vi 1.' in text
  )
  json.dumps(found, allow_nan=False)
  assert 'loss/vi' in page(tmp_path, found)


def test_a_figure_that_no_run_has_is_no_figure():
  loss = {'eval/heldout/loss': 2.0, 'eval/heldout/loss_by_language': {'en': None, 'vi': 1.0}}
  figures = fit_points.read_figures([{'heldout': loss, 'run': None}], 'out')
  assert set(figures) == {'loss', 'loss/vi'}


def test_pure_noise_is_called_so(tmp_path):
  rng = np.random.default_rng(5)
  out = tmp_path / 'out'
  swept(out, mixtures(9))
  for path in out.glob('points/*/evaluation-*/point.json'):
    result = json.loads(path.read_text())
    result['heldout'] = {'eval/heldout/loss': 2 + 0.1 * rng.normal()}
    path.write_text(json.dumps(result))
  found = sweep_fit.fit(str(out), resamples=200)
  text = ' '.join(found['warnings'])
  assert 'loss: on mixtures left out, the mean of the others errs no more' in text
  assert 'interval of the gain covers zero' in text


# ---- words and page ----


class _Tags(html.parser.HTMLParser):
  """Checks that tags close in order and ids occur once."""

  VOID = {'meta', 'br', 'path', 'use', 'rect', 'line', 'circle', 'stop', 'image'}

  def __init__(self):
    super().__init__()
    self.open, self.ids, self.text = [], [], []

  def handle_starttag(self, tag, attributes):
    self.ids += [value for name, value in attributes if name == 'id']
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.ids += [value for name, value in attributes if name == 'id']

  def handle_endtag(self, tag):
    if tag not in self.VOID:
      assert self.open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)


def page(folder, found):
  path = folder / 'fit.html'
  fit_page.write(path, found)
  content = path.read_text(encoding='utf-8')
  tags = _Tags()
  tags.feed(content)
  assert not tags.open and len(set(tags.ids)) == len(tags.ids)
  assert 'http' not in content.replace('http://www.w3.org', '')  # needs nothing else
  return content


def test_the_page_holds_every_finding(asked, tmp_path):
  found = asked[1] | {'warnings': ['loss/vi: a linear law replaces the exponential one.']}
  content = page(tmp_path, found)
  tags = _Tags()
  tags.feed(content)
  squeeze = lambda text: ''.join(text.replace('_', '').split())
  text = squeeze(''.join(tags.text))
  assert all(squeeze(warning) in text for warning in found['warnings'])
  gain, limit = fit_words.sentences(found)
  kept = found['proposal']['limits'][0]['kept']
  assert limit.endswith(f', kept in {100 * kept:.0f} % of the resamples.')
  for sentence in (gain, limit):
    assert squeeze(sentence) in text and sentence in fit_words.terminal(found)
  for name, share in found['proposal']['shares'].items():
    assert name in text and f'{share:.3f}' in text
  for law in found['laws']:
    error = law['held_out']['forms'][law['form']]['error']
    assert fit_words.number(error, law['kind']) in text
  assert found['gin'].replace("'", '&#39;') in content
  assert content.count('<svg') == 1 and 'Limitaccuracy/enatleast' in text


def test_the_command(asked, tmp_path, capsys):
  out = str(tmp_path / 'out')
  shutil.copytree(asked[0].out, out, symlinks=True)
  flags = ['--json', '--objective=accuracy_elsewhere', '--resamples=20', '--english_accuracy=0.6']
  flags += [
    '--default_shares',
    str(mixtures(9)[3]),
    '--language_weights={"zh": 2}',
    '--share_bounds={"trans": (0, 0.3)}',
  ]
  assert sweep_fit.main([out, *flags]) == 0
  printed = capsys.readouterr()
  found = json.loads(printed.out.splitlines()[-1])
  assert found['asked']['terms'] == {'accuracy/vi': 1.0, 'accuracy/zh': 2.0}
  assert found['asked']['default_shares'] == pytest.approx(mixtures(9)[3])
  assert (
    found['gin'] in printed.out
    and 'accuracy/zh' in printed.out
    and os.path.exists(os.path.join(out, 'fit.html'))
  )
  for wrong, message in (('--margin=7', 'between 0 and 1'), ('--resamples=2', 'at least 20')):
    with pytest.raises(ValueError, match=message):
      sweep_fit.main([out, wrong])
  for wrong, message in (
    ('--default_shares={base}', 'is no dict'),
    ('--english_loss=much', "neither a number nor 'default'"),
  ):
    with pytest.raises(SystemExit):
      sweep_fit.main([out, wrong])
    assert message in capsys.readouterr().err


def test_sweep_fit_is_an_alias(asked, tmp_path, capsys):
  out = str(tmp_path / 'out')
  shutil.copytree(asked[0].out, out, symlinks=True)
  flags = [
    '--objective=loss/zh',
    '--resamples=20',
    '--default_shares',
    str(mixtures(9)[3]),
    '--json',
  ]
  gin = '--gin_file=gin_configs/ablations/world_volume.gin'
  assert sweep_command.main(['--fit', gin, '--output_dir', out, *flags]) == 0
  alias = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert cli.main(['fit', out, *flags]) == 0
  assert json.loads(capsys.readouterr().out.splitlines()[-1]) == alias
  with pytest.raises(SystemExit):
    sweep_command.main(['--output_dir', out, '--objective=loss'])
