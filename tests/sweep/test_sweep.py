"""Sweeps: points from axes, what is run and what is not run again, the table and the plot, and one
sweep end to end.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from crossin_jax import config
from crossin_jax.errors import Interrupted
from crossin_jax.evaluation.answers.predictions import Predictions
from crossin_jax.sweep import plot as sweep_plot
from crossin_jax.sweep import points as sweep_points
from crossin_jax.sweep import running
from crossin_jax.sweep import table as sweep_table
from crossin_jax.sweep import words as sweep_words
from crossin_jax.sweep.points import Settings, make_points, mixture_at
from crossin_jax.workflow import jobs, launchers

X2X, TRANS = 'tested_shared_base_x2x', 'tested_shared_base_x2x_trans'
SHARES = {
  X2X: {'tested': 9, 'shared': 6, 'base': 5, 'x2x': 10},
  TRANS: {'tested': 9, 'shared': 6, 'base': 5, 'x2x': 5, 'trans': 5},
}


def settings(**changes):
  values = {
    'axes': {'variant': (X2X, TRANS), 'volume': (0, 100, 'all')},
    'mixture': f'world.{TRANS}.all.en_zh_vi_es.every',
    'mixture_gin': 'gin_configs/mixtures/world.gin',
    'run_gin': 'gin_configs/runs/world_tune.gin',
    'shares_by_variant': SHARES,
  }
  return Settings(**{**values, **changes})


class Recorder(launchers.Launcher):
  """Notes commands, writes the files they would leave, fails or stops where told to."""

  def __init__(self, fail=(), stop_at=None):
    super().__init__(jobs.Jobs('none'))
    self.commands, self.fail, self.stop_at = [], fail, stop_at

  def run_here(self, log, arguments, values, bindings):
    self.run(log, arguments, values, bindings)

  def run(self, log, arguments, values, bindings):
    if self.stop_at and len(self.commands) >= self.stop_at:
      raise Interrupted(log)
    self.commands.append((arguments[0], log, arguments, values, bindings))
    if self.stop_at == len(self.commands):
      raise Interrupted(log)
    if any(word in log for word in self.fail):
      raise jobs.StepFailed(f'step {log} failed with status 1; its log ends:\nno such thing')
    flags = dict(a.split('=', 1) for a in arguments if a.startswith('--') and '=' in a)
    out = pathlib.Path(flags.get('--output_dir', 'none'))
    if arguments[0] == 'prepare':
      (out / 'mixtures').mkdir(parents=True)
      (out / 'mixtures' / f'{flags["--mixture"]}.json').write_text('{}')
    if arguments[0] == 'evaluate':
      out.mkdir(parents=True)
      (out / 'figures.json').write_text(json.dumps({'eval/heldout/loss': 2.5}))

  def kinds(self):
    return [kind for kind, *_ in self.commands]


def run(path, runner, flags=(), **changes):
  made = settings(**changes)
  one = running.Sweep(str(path), made, make_points(made, flags), runner)
  one.run()
  return one


# ---- points ----


def steps(point):
  return next(f for f in point.flags if f.startswith('--gin.TRAIN_STEPS='))


def test_equal_examples_are_more_steps_where_the_share_is_smaller():
  points = make_points(
    settings(equal_examples=('base', 'x2x'), run_values={'TRAIN_STEPS': 300, 'other.value': 1})
  )
  # x2x: 15 of 30. x2x + Trans: 10 of 30, but 15 where volume 0 gives the shares to base.
  wanted = {X2X: [300, 300, 300], TRANS: [300, 450, 450]}
  for variant, expected in wanted.items():
    found = [steps(p) for p in points if p.values['variant'] == variant]
    assert found == [f'--gin.TRAIN_STEPS={n}' for n in expected]
  same = make_points(settings(run_values={'TRAIN_STEPS': 300}))
  assert {steps(p) for p in same} == {'--gin.TRAIN_STEPS=300'}
  # The examples of these components that a point reads, of batches of 16 rows: equal.
  share = lambda p: sum(SHARES[p.values['variant']].get(c, 0) for c in ('base', 'x2x')) / 30
  read = {share(p) * int(steps(p).split('=')[1]) for p in points if p.values['volume'] != 0}
  assert read == {150}


@pytest.mark.parametrize(
  'changes, flags, part',
  [
    ({}, (), 'give it as a number in sweep.run_values'),
    ({'run_values': {'TRAIN_STEPS': '%STEPS'}}, (), 'give it as a number'),
    ({'run_values': {'TRAIN_STEPS': 3}}, ('TRAIN_STEPS = 20',), 'give it as a number'),
    ({'run_values': {'TRAIN_STEPS': 3}, 'equal_examples': ('mono',)}, (), 'has none of mono'),
    (
      {'run_values': {'TRAIN_STEPS': 3}},
      ("MixtureSettings.shares = {'base': 1.0, 'x2x': 2.0}",),
      'MixtureSettings.shares replaces them: change sweep.shares_by_variant',
    ),
  ],
)
def test_equal_examples_that_cannot_be_reached_are_refused(changes, flags, part):
  with pytest.raises(config.ConfigError, match=part):
    make_points(settings(**{'equal_examples': ('base',), **changes}), flags)


def test_axes_make_points_in_order_and_volume_0_is_base_alone():
  points = make_points(settings(seeds=(0, 1)))
  assert len(points) == 2 * 3 * 2
  assert [p.seed for p in points[:4]] == [0, 1, 0, 1]
  assert [p.values['volume'] for p in points[:6:2]] == [0, 100, 'all']
  assert points[0].data.mixture == 'world.tested_shared_base.all.en_zh_vi_es.every'
  assert points[2].data.mixture == f'world.{X2X}.100.en_zh_vi_es.every'
  assert points[2].name == f'{X2X}.100.seed=0'
  # Volume 0 is one point for both variants: the shares of what is dropped go to base.
  distinct = {p.digest for p in points}
  assert len(distinct) == 10
  assert points[0].digest == points[6].digest and points[0].name == points[6].name
  wanted = "--gin.MixtureSettings.shares={'tested': 0.3, 'shared': 0.2, 'base': 0.5}"
  assert wanted in points[0].data.flags and wanted in points[6].data.flags
  # All are measured on the same rows; tokens are shared by all mixtures.
  assert {p.heldout.mixture for p in points} == {f'world.{TRANS}.all.en_zh_vi_es.every'}
  assert len({d.tokens for p in points for d in (p.data, p.heldout)}) == 1


@pytest.mark.parametrize(
  'mixture, values, expected',
  [
    ('a.base_x2x.3000.en_zh.default', {'volume': 0}, 'a.base.all.en_zh.default'),
    ('a.base_x2x.3000.en_zh.default', {'volume': 'all'}, 'a.base_x2x.all.en_zh.default'),
    ('a.base_x2x.3000.en_zh.default', {'variant': 'base'}, 'a.base.all.en_zh.default'),
    ('a.base_x2x.3000.en_zh.default', {'languages': ('en', 'vi')}, 'a.base_x2x.3000.en_vi.default'),
    (
      'a.base_x2x.3000.en_zh.default',
      {'preset': 'released', 'volume': 6000},
      'a.base_x2x.6000.en_zh.released',
    ),
    ('a.text_mono_en2x_x2en_x2x_trans.9.en_zh.default', {'volume': 0}, 'a.text.all.en_zh.default'),
  ],
)
def test_axes_replace_parts_of_the_mixture(mixture, values, expected):
  assert mixture_at(mixture, values)[0] == expected


@pytest.mark.parametrize(
  'mixture, values, message',
  [
    ('a.x2x.3000.en_zh.default', {'volume': 0}, 'volume 0 of variant x2x has no component'),
    ('a.base_x2x.3000.en_zh.default', {'volume': 'some'}, "volume 'some' is neither"),
    ('a.base_x2x.en_zh.default', {}, 'is not source.variant'),
  ],
)
def test_mixtures_that_cannot_be(mixture, values, message):
  with pytest.raises(config.ConfigError, match=message):
    mixture_at(mixture, values)


def test_an_axis_goes_to_prepare_or_to_training_by_what_the_mixture_file_binds():
  axes = {
    'MixtureSettings.temperature': (1.0, 2.0),
    'WORLD_SEED': (0, 1),
    'schedule.peak': (1e-3,),
    'OPTIMIZER': ('@adamw',),
  }
  points = make_points(
    settings(axes=axes, shares_by_variant=None),
    flags=('BATCH_SIZE = 4', 'World.tuning_entities = 6'),
  )
  first = points[0]
  assert (
    '--gin.MixtureSettings.temperature=1.0' in first.data.flags
    and '--gin.WORLD_SEED=0' in first.data.flags
  )
  assert '--gin_bindings=World.tuning_entities = 6' in first.data.flags
  assert first.flags == (
    '--gin.RANDOM_SEED=0', '--gin.schedule.peak=0.001', '--gin.OPTIMIZER=@adamw',
    '--gin_bindings=BATCH_SIZE = 4'
  )  # fmt: skip
  assert first.name == 'temperature=1.0.WORLD_SEED=0.peak=0.001.OPTIMIZER=-adamw.seed=0'
  # Another rate is another mixture of the same tokens, and is measured on the same rows; another
  # world is not.
  cold, other_world, warm = points[0].data, points[1].data, points[2].data
  assert (
    cold.tokens == warm.tokens and cold.folder != warm.folder and cold.tokens != other_world.tokens
  )
  assert points[0].heldout == points[2].heldout != points[1].heldout


def test_the_digest_follows_what_a_point_is_made_of(tmp_path):
  gin_file = tmp_path / 'run.gin'
  gin_file.write_text("include 'gin_configs/runs/world_tune.gin'\nBATCH_SIZE = 8\n")
  made = lambda **changes: make_points(settings(run_gin=str(gin_file), **changes))[1]
  before = made()
  gin_file.write_text(
    "# a remark\ninclude 'gin_configs/runs/world_tune.gin'\n\nBATCH_SIZE = 8  # rows\n"
  )
  assert made().digest == before.digest
  gin_file.write_text("include 'gin_configs/runs/world_tune.gin'\nBATCH_SIZE = 4\n")
  assert made().digest != before.digest
  model = tmp_path / 'model'
  (model / 'digests').mkdir(parents=True)
  (model / 'digests' / 'checkpoint_5.json').write_text('a')
  start = lambda: made(
    run_values={'INITIAL_CHECKPOINT_PATH': str(tmp_path / 'mod{seed}').replace('{seed}', 'el')}
  )
  before = start()
  (model / 'digests' / 'checkpoint_5.json').write_text('b')
  assert start().digest != before.digest
  # Other questions ask again, and do not train again.
  file = tmp_path / 'q.jsonl'
  file.write_text('x')
  asked = made(questions=(str(file),))
  assert asked.digest == made().digest and asked.asked != made().asked


def test_seeds_fill_texts_and_may_be_an_axis():
  points = make_points(
    settings(seeds=(3, 4), run_values={'INITIAL_CHECKPOINT_PATH': 'read.{seed}'})
  )
  assert (
    "--gin.INITIAL_CHECKPOINT_PATH='read.4'" in points[1].flags
    and '--gin.RANDOM_SEED=4' in points[1].flags
  )
  points = make_points(settings(axes={'RANDOM_SEED': (7, 8)}, shares_by_variant=None))
  assert [p.seed for p in points] == [7, 8] and points[1].flags == ('--gin.RANDOM_SEED=8',)
  with pytest.raises(config.ConfigError, match='only one if RANDOM_SEED is an axis'):
    settings(axes={'RANDOM_SEED': (7, 8)}, seeds=(0, 1))


def test_a_seed_may_have_a_world_of_its_own(tmp_path):
  files = [tmp_path / str(seed) / 'q.jsonl' for seed in (3, 4)]
  for path in files:
    path.parent.mkdir()
    path.write_text(path.parent.name)
  values = {'WORLD_SEED': '{seed}', 'VOCABULARY': str(tmp_path / '{seed}' / 'v.model')}
  change = dict(
    seeds=(3, 4), mixture_values=values, questions=(str(tmp_path / '{seed}' / 'q.jsonl'),)
  )
  made = settings(**change)
  first, second = make_points(made)[:2]
  assert made.questions_of(4) == [str(files[1])]
  assert (
    '--gin.WORLD_SEED=4' in second.data.flags
    and f"--gin.VOCABULARY='{tmp_path}/4/v.model'" in second.data.flags
  )
  assert first.data.tokens != second.data.tokens and first.heldout.folder != second.heldout.folder
  assert first.asked != second.asked
  asking = running.Sweep(str(tmp_path), made, [second], Recorder(), 1, '').measuring(second)[1]
  assert f'--questions={files[1]}' in asking and f'--questions={files[0]}' not in asking
  files[1].unlink()
  with pytest.raises(config.ConfigError, match='4/q.jsonl does not exist'):
    settings(**change)


@pytest.mark.parametrize(
  'changes, flags, message',
  [
    ({'axes': {'volume': 3}}, (), "'volume' must be a list"),
    ({'questions': ('none.jsonl',)}, (), 'none.jsonl does not exist'),
    ({'figure': 'loss'}, (), 'none of accuracy_en'),
    ({'run_gin': 'none.gin'}, (), "gin file 'none.gin' does not exist"),
    ({'shares_by_variant': {X2X: {'base': 1}}}, (), r'has no share for tested, shared'),
    ({}, ('volume = 3',), 'is an axis of this sweep'),
  ],
)
def test_wrong_settings_are_said(changes, flags, message):
  with pytest.raises(config.ConfigError, match=message):
    make_points(settings(**changes), flags)


# ---- running ----


def test_everything_once_and_nothing_twice(tmp_path):
  first = Recorder()
  one = run(tmp_path, first)
  # 5 mixtures, the largest of which is also measured on (prepared apart, since its rates are its
  # own), and 5 points.
  assert first.kinds() == ['prepare'] * 6 + ['train', 'evaluate'] * 5
  assert not one.missing() and not one.failures
  links = {os.path.realpath(path) for path in tmp_path.glob('data/*/tasks')}
  assert len(links) == 1
  evaluated = [bindings for kind, _, _, _, bindings in first.commands if kind == 'evaluate']
  assert all(
    f"--gin.HeldoutLoss.mixture='world.{TRANS}.all.en_zh_vi_es.every'" in bindings
    for bindings in evaluated
  )
  second = Recorder()
  run(tmp_path, second)
  assert second.commands == []
  # A new volume runs one point a variant; its tasks are those that are there.
  third = Recorder()
  run(tmp_path, third, axes={'volume': (300, 0, 100), 'variant': (X2X,)})
  assert third.kinds() == ['prepare', 'train', 'evaluate']


@pytest.mark.parametrize('stop_at', range(1, 17))
def test_a_stopped_sweep_goes_on_where_it_was(tmp_path, stop_at):
  runner = Recorder(stop_at=stop_at)
  with pytest.raises(Interrupted):
    run(tmp_path, runner)
  again = Recorder()
  one = run(tmp_path, again)
  assert not one.missing()
  # What was done is not done again; only the command that was stopped is.
  assert len(runner.commands) + len(again.commands) == 16 + 1
  assert runner.commands[-1] == again.commands[0]


def test_what_fails_is_reported_and_the_others_go_on(tmp_path):
  one = run(tmp_path, Recorder(fail=[f'train.{X2X}.100']))
  assert (
    list(one.failures) == [f'{X2X}.100.seed=0']
    and 'no such thing' in one.failures[f'{X2X}.100.seed=0']
  )
  summary = sweep_table.write(one)
  assert len(summary['points']) == 5 and len(summary['table']) == 5
  assert len(one.missing()) == 1
  again = Recorder()
  run(tmp_path, again)
  assert again.kinds() == ['train', 'evaluate']


def test_a_mixture_that_fails_takes_its_points_with_it(tmp_path):
  one = run(tmp_path, Recorder(fail=[f'prepare.world.{X2X}.100']), seeds=(0, 1))
  assert sorted(one.failures) == [f'{X2X}.100.seed=0', f'{X2X}.100.seed=1']
  assert len(one.missing()) == 2


def test_a_second_sweep_is_refused_and_an_orphan_waited_for(tmp_path, capfd):
  with running.exclusive(str(tmp_path)):
    with pytest.raises(ValueError, match=f'in use by process {os.getpid()} on'):
      with running.exclusive(str(tmp_path)):
        pass
  code = (
    'import os, subprocess, sys; from crossin_jax.sweep import running as sweep\n'
    'with sweep.exclusive(sys.argv[1]) as lock:\n'
    '  subprocess.Popen(["sleep", "1"], pass_fds=(lock,), stdout=subprocess.DEVNULL)\n'
    '  os._exit(0)'
  )
  subprocess.run([sys.executable, '-c', code, str(tmp_path)], check=True)
  with running.exclusive(str(tmp_path)):
    pass
  assert 'still running' in capfd.readouterr().err


def test_jobs_say_the_end_of_the_log_and_stop(tmp_path, monkeypatch):
  runner = jobs.Jobs(str(tmp_path), 1)
  with pytest.raises(
    jobs.StepFailed, match='(?s)step odd failed with status 2; its log .*no command .nonsense'
  ):
    runner.run('odd', ['nonsense'])
  popen = subprocess.Popen
  monkeypatch.setattr(
    jobs.subprocess, 'Popen', lambda command, **flags: popen(['sleep', '60'], **flags)
  )
  threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
  begun = time.monotonic()
  with runner.stopping_on_signals(), pytest.raises(Interrupted):
    runner.run('long', ['train'])
  assert time.monotonic() - begun < 20
  with pytest.raises(Interrupted):
    runner.run('next', ['train'])


# ---- table and plot ----


def answered(rng, accuracy, items=80, languages=('en', 'zh', 'vi')):
  answers = np.zeros((items, len(languages)), np.int64)
  chosen = np.where(rng.random(answers.shape) < accuracy, 0, rng.integers(4, size=answers.shape))
  options = ['north', 'east', 'south', 'west']
  texts = [[options[c] for c in row] for row in chosen]
  ids = [str(i) for i in range(items)]
  return Predictions(ids, list(languages), [[options] * len(languages)] * items, answers, texts)


def test_figures_have_intervals_over_items_and_seeds():
  rng = np.random.default_rng(0)
  figures = sweep_table.question_figures([answered(rng, 0.6), answered(rng, 0.6)])
  assert list(figures) == ['accuracy_en', 'accuracy_elsewhere', 'consistency_3', 'ac3_3']
  assert all(
    f['low'] < f['estimate'] < f['high'] and f['seeds'] == 2 and f['items'] == 80
    for f in figures.values()
  )
  assert list(sweep_table.question_figures([answered(rng, 0.6, languages=('en', 'zh'))]))[2:] == [
    'consistency_2',
    'ac3_2',
  ]
  # Seeds with questions of their own: items are drawn for each, and six times as many tell more.
  runs = [answered(np.random.default_rng(1), 0.6) for _ in range(6)]
  width = lambda: (lambda f: f['high'] - f['low'])(
    sweep_table.question_figures(runs)['accuracy_en']
  )
  together = width()
  runs[0].ids[:] = [f'other {id_}' for id_ in runs[0].ids]
  assert width() < 0.7 * together
  loss = sweep_table.loss_figures([2.0, 3.0])['heldout_loss']
  assert (loss['estimate'], loss['low'], loss['high']) == (2.5, 2.0, 3.0)
  assert sweep_table.loss_figures([2.0])['heldout_loss']['low'] is None
  chance = sweep_table.chance_figures(answered(rng, 0.5))
  assert (
    chance['accuracy_en'] == 0.25
    and chance['consistency_3'] == 1 / 16
    and abs(chance['ac3_3'] - 0.1) < 1e-6
  )


def rows(axis, values, figure='ac3_3'):
  made = lambda y: {
    figure: {'estimate': y, 'low': y - 0.02, 'high': y + 0.03, 'note': 'items', 'resamples': 9}
  }
  return [
    {
      'values': {'variant': v, axis: x},
      'benchmark': 'q',
      'seeds': [0],
      'figures': made(0.2 + 0.01 * i * (x != 0)),
    }
    for v in (X2X, TRANS)
    for i, x in enumerate(values)
  ]


@pytest.mark.parametrize(
  'axis, values, scale',
  [
    ('volume', (0, 3000, 'all'), 'linear'),
    ('schedule.peak', (1e-4, 1e-3, 1e-2), 'log'),
    ('BATCH_SIZE', (8, 16, 32), 'linear'),
    ('preset', ('default', 'released'), 'linear'),
    ('TRAIN_STEPS', (5,), 'linear'),
  ],
)
def test_plots_of_every_kind_of_axis(axis, values, scale):
  axes = {'variant': (X2X, TRANS), axis: values}
  assert sweep_plot.x_axis(axes) == axis
  assert sweep_plot._scale(values)[0] == scale
  picture = sweep_plot.plot(rows(axis, values), axes, None, {'ac3_3': 0.1})
  assert picture.startswith(b'\x89PNG')
  assert sweep_plot.plot(rows(axis, values, 'heldout_loss'), axes, None, {}).startswith(b'\x89PNG')
  with pytest.raises(config.ConfigError, match='only ac3_3'):
    sweep_plot.plot(rows(axis, values), axes, 'heldout_loss', {})


def test_tables_in_words():
  table = rows('volume', (0, 3000, 'all'))
  assert '| x2x + trans | 3,000 | 1 | 0.210 [0.190, 0.240] |' in sweep_table.markdown(table)
  lines = sweep_table.terminal(table).splitlines()
  assert lines[0].split() == ['variant', 'volume', 'seeds', 'AC3_3'] and len(lines) == 7
  assert sweep_words.variant_labels(('base', 'base_x2x')) == {'base': 'base', 'base_x2x': 'x2x'}
  assert sweep_words.variant_labels(('text_x2x', 'base_x2x')) == {
    'text_x2x': 'text + x2x',
    'base_x2x': 'base + x2x',
  }


# ---- the command ----


def crossin(*arguments, **options):
  return [sys.executable, '-m', 'crossin_jax.cli', 'sweep', *arguments], {'text': True, **options}


def test_ablation_files_parse_and_dry_run_writes_nothing(tmp_path):
  out = str(tmp_path / 'out')
  for name, flags, points, distinct in (
    (
      'crossin_volume',
      ["--gin.PARALLEL='p'", "--gin.ENGLISH='e'", "--gin.VOCABULARY='v'", '--gin.TRAIN_STEPS=9'],
      30,
      25,
    ),
    (
      'world_volume',
      ['--gin.QUESTIONS=None', '--gin.sweep.questions=()', '--gin.BATCH_SIZE=8'],
      30,
      27,
    ),
  ):
    flags = [
      f'--gin_file=gin_configs/ablations/{name}.gin',
      '--output_dir',
      out,
      '--dry_run',
      '--json',
      *flags,
    ]
    command, options = crossin(*flags, capture_output=True, check=True)
    found = json.loads(subprocess.run(command, **options).stdout.splitlines()[-1])
    assert found['points'] == points and len(found['to_run']) == distinct
  assert not os.path.exists(out)
  command, options = crossin(
    '--gin_file=gin_configs/ablations/crossin_volume.gin', capture_output=True
  )
  result = subprocess.run(command, check=False, **options)
  assert result.returncode == 2 and 'PARALLEL' in result.stderr


@pytest.mark.slow
def test_two_volumes_end_to_end_killed_and_started_again(tmp_path, tiny_world, tiny_vocabulary):
  from crossin_jax.world.sources import write_questions

  out = tmp_path / 'out'
  write_questions(tiny_world, str(tmp_path / 'world'))
  few = tmp_path / 'questions.few.jsonl'
  lines = (
    (tmp_path / 'world' / 'questions.untagged.jsonl')
    .read_text(encoding='utf-8')
    .splitlines(keepends=True)
  )
  few.write_text(''.join(lines[:48]), encoding='utf-8')
  small = {'embed_dim': 16, 'num_layers': 1, 'mlp_dim': 16}
  command, options = crossin(
    '--gin_file=gin_configs/ablations/world_volume.gin', f'--output_dir={out}', '--jobs=2',
    '--json',
    f"--gin.sweep.axes={{'variant': ['{X2X}'], 'volume': [0, 40]}}", '--gin.SEEDS=(0,)',
    f"--gin.QUESTIONS='{few}'",
    f"--gin.VOCABULARY='{tiny_vocabulary.path}'", '--gin.INITIAL_CHECKPOINT_PATH=None',
    '--gin.TRAIN_STEPS=4',
    '--gin.World.tuning_entities=6', '--gin.World.test_entities=12',
    '--gin.HeldoutLoss.examples_per_task=2',
    "--gin.answer_questions.methods=('likelihood',)",
    *[f'--gin.DecoderConfig.{k}={v}' for k, v in small.items()],
  )  # fmt: skip
  # One device, and one compilation for both points.
  options['env'] = os.environ | {'XLA_FLAGS': '', 'JAX_ENABLE_COMPILATION_CACHE': 'true'}
  # Killed, commands and all, when a first point is trained.
  quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
  with subprocess.Popen(command, start_new_session=True, **quiet, **options) as first:
    deadline = time.monotonic() + 120
    while (
      not (trained := list(out.glob('points/*/trained')))
      and first.poll() is None
      and time.monotonic() < deadline
    ):
      time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
  assert trained
  before = [path.stat().st_mtime_ns for path in (trained[0].parent / 'model').glob('metrics.jsonl')]
  second = subprocess.run(command, check=False, capture_output=True, **options)
  assert second.returncode == 0, second.stderr
  assert before == [
    path.stat().st_mtime_ns for path in (trained[0].parent / 'model').glob('metrics.jsonl')
  ]
  assert 'preparing' not in second.stderr and 'AC3_3' in second.stderr
  found = json.loads(second.stdout.splitlines()[-1])
  saved = json.loads((out / 'sweep.json').read_text(encoding='utf-8'))
  assert saved['points'] == found['points'] and [
    p['values']['volume'] for p in saved['points']
  ] == [0, 40]
  for point in saved['points']:
    assert {'accuracy_en', 'accuracy_elsewhere', 'consistency_3', 'ac3_3', 'heldout_loss'} == set(
      point['figures']
    )
    assert point['runs'][0]['items'] == 12 and point['seconds'] > 0
  assert (
    0
    <= saved['table'][1]['figures']['ac3_3']['low']
    <= saved['table'][1]['figures']['ac3_3']['high']
    <= 1
  )
  assert (out / 'sweep.png').read_bytes().startswith(b'\x89PNG') and (out / 'sweep.md').exists()
  # A third start has nothing to do.
  third = subprocess.run([*command, '--dry_run'], check=True, capture_output=True, **options)
  assert (
    '2 points, 0 to run' in third.stderr and sweep_points.question_name(str(few)) == 'questions.few'
  )
