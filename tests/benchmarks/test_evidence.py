"""The experiments of benchmarks/evidence: their files parse, and what stands in their tables is
what was answered.
"""

import importlib.util
import json
import os
import subprocess

from conftest import REPOSITORY
import gin
import numpy as np
import pytest
import scipy.stats

from crossin_jax import cli

FOLDER = REPOSITORY / 'benchmarks' / 'evidence'


def module(name):
  spec = importlib.util.spec_from_file_location(f'evidence_{name}', FOLDER / f'{name}.py')
  found = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(found)
  return found


@pytest.fixture(scope='module')
def worlds(tmp_path_factory):
  out = tmp_path_factory.mktemp('evidence')
  make = module('worlds')
  for name, seeds in (('world', '0,1'), ('dev', '1000')):
    assert (
      make.main([f'--gin_file={FOLDER / name}.gin', '--seeds', seeds, '--output_dir', str(out)])
      == 0
    )
  return out


def test_settings_are_chosen_on_other_facts_than_figures_come_from(worlds):
  read = lambda seed: json.loads(
    (worlds / f'world.{seed}' / 'world.json').read_text(encoding='utf-8')
  )
  first, second, dev = read(0), read(1), read(1000)
  assert (
    set(first['tested_relations']).isdisjoint(dev['tested_relations'])
    and len(first['shared_relations']) == 8
  )
  rows = lambda seed: (
    (worlds / f'world.{seed}' / 'questions.untagged.jsonl').read_text(encoding='utf-8').splitlines()
  )
  assert len(rows(0)) == 96 * 3 == len(rows(1000))
  assert rows(0) != rows(1) and second['seed'] == 1
  with pytest.raises(SystemExit):
    module('worlds').main(
      [f'--gin_file={FOLDER / "dev"}.gin', '--seeds', '0', '--output_dir', str(worlds)]
    )


@pytest.mark.parametrize(
  'name, distinct',
  [('reading', 4), ('comparison', 14), ('volume', 18), ('ratio', 28), ('proposal', 12)],
)
def test_sweeps_parse(worlds, tmp_path, capsys, name, distinct):
  flags = [
    "--gin.SEEDS=(0, 1)", f"--gin.VOCABULARY='{worlds}/world.{{seed}}/world.model'",
    f"--gin.QUESTIONS=('{worlds}/world.{{seed}}/questions.untagged.jsonl',)",
  ]  # fmt: skip
  command = [
    'sweep',
    f'--gin_file={FOLDER / name}.gin',
    f'--output_dir={tmp_path}',
    '--dry_run',
    '--json',
    *flags,
  ]
  assert cli.main(command) == 0
  plan = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert len(plan['to_run']) == distinct
  words = [word for step in plan['to_run'][-1]['commands'] for word in step]
  assert f'--questions={worlds}/world.1/questions.untagged.jsonl' in words


@pytest.mark.parametrize(
  'path', ['benchmarks/evidence/volume.gin', 'gin_configs/ablations/world_volume.gin']
)
def test_every_volume_can_be_had(worlds, monkeypatch, path):
  from crossin_jax.world.sources import WorldInstructions
  from crossin_jax.world.world import World
  from seqio_tasks.crossin import split_rows

  known = json.loads((worlds / 'world.0' / 'world.json').read_text(encoding='utf-8'))
  rows = WorldInstructions(World(**known))
  training, _ = split_rows(rows, 36, 0)
  monkeypatch.chdir(REPOSITORY)
  gin.parse_config_file(path)
  volumes = [volume for volume in gin.query_parameter('sweep.axes')['volume'] if volume != 'all']
  assert max(volumes) <= len(training) * 2  # Trans has two pairs of languages


def start(monkeypatch, out, statuses, *flags):
  """Runs run.py with commands that only leave their statuses; returns its status and the commands:
  the folder of a sweep, else the script.
  """
  ran = []

  def command(words, check):
    found = [word for word in words if word.startswith('--output_dir=')]
    script = os.path.basename(words[1])
    ran.append(os.path.basename(found[0]) if script == '-m' else script)
    return subprocess.CompletedProcess(words, statuses.get(ran[-1], 0))

  run = module('run')
  monkeypatch.setattr(run.subprocess, 'run', command)
  return run.main([f'--output_dir={out}', *flags]), ran


def finished(out):
  """What the commands that `start` replaces would have left."""
  (out / 'world.0').mkdir()
  (out / 'world.0' / 'world.json').write_text('{"tested_relations": ["trade"]}')
  (out / 'reading').mkdir()
  points = [
    {'values': {'TELL_TESTED': told}, 'seed': 0, 'directory': f'points/{told}'}
    for told in (True, False)
  ]
  (out / 'reading' / 'sweep.json').write_text(json.dumps({'points': points}))


def test_experiments_run_in_order_and_link_their_readings(tmp_path, monkeypatch):
  finished(tmp_path)
  status, ran = start(monkeypatch, tmp_path, {})
  sweeps = ['volume', 'ratio', 'longer', 'proposal']
  compared = ['compare.py'] * 4  # two forms, all questions and one relation
  assert status == 0
  assert ran == ['worlds.py', 'reading', 'comparison', 'floor', *compared, *sweeps]
  assert os.readlink(tmp_path / 'read.0') == 'reading/points/True/model'
  assert os.readlink(tmp_path / 'read_floor.0') == 'reading/points/False/model'
  status, ran = start(monkeypatch, tmp_path, {}, '--only', 'ratio,worlds', '--no_floor')
  assert (status, ran) == (0, ['worlds.py', 'ratio'])


def test_an_experiment_that_fails_stops_those_that_need_it(tmp_path, monkeypatch, capsys):
  finished(tmp_path)
  status, ran = start(monkeypatch, tmp_path, {'volume': 1}, '--only', 'volume,ratio')
  assert (status, ran) == (1, ['volume', 'ratio'])
  assert 'FAILED volume: -m crossin_jax.cli sweep ... failed with status 1' in (
    capsys.readouterr().err
  )
  status, ran = start(monkeypatch, tmp_path, {'reading': 3}, '--only', 'worlds,reading,ratio')
  assert (status, ran) == (1, ['worlds.py', 'reading'])
  assert 'FAILED ratio' in capsys.readouterr().err
  (tmp_path / 'reading' / 'sweep.json').unlink()
  status, ran = start(monkeypatch, tmp_path, {}, '--only', 'reading,ratio')
  assert (status, ran) == (1, ['reading'])
  assert 'sweep.json does not exist; run the experiment' in capsys.readouterr().err
  with pytest.raises(SystemExit) as interrupted:
    start(monkeypatch, tmp_path, {'volume': 75}, '--only', 'volume,ratio')
  assert interrupted.value.code == 75
  with pytest.raises(SystemExit):
    start(monkeypatch, tmp_path, {}, '--only', 'volumes')


RELATIONS = ('trade', 'radio')


def sweep(folder, arms, seeds, rng):
  """A finished sweep; arms: mixture variant -> seed -> chosen options [items, languages] of four, 0
  being right.
  """
  points = []
  for variant, by_seed in arms.items():
    for seed in seeds:
      directory = f'points/{variant}.{seed}'
      evaluation = f'{directory}/evaluation-x'
      path = folder / evaluation / 'predictions' / 'questions.untagged.likelihood.jsonl'
      path.parent.mkdir(parents=True)
      chosen = by_seed[seed]
      lines = [
        {'id': f'{seed}_{i}.{RELATIONS[i % 2]}', 'language': language, 'choices': list('NESW'), 'answer': 'N', 'prediction': 'NESW'[chosen[i, j]]}
        for i in range(len(chosen))
        for j, language in enumerate(('en', 'vi', 'es'))
      ]  # fmt: skip
      path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
      mixture = f'world.tested_shared_{variant}.all.en_vi_es.every'
      points.append(
        {
          'values': {'variant': variant},
          'seed': seed,
          'mixture': mixture,
          'directory': directory,
          'evaluation': evaluation,
        }
      )
  (folder / 'sweep.json').write_text(json.dumps({'points': points}))


def test_tables_are_what_was_answered(tmp_path, capsys, monkeypatch):
  rng = np.random.default_rng(0)
  draw = lambda right: np.where(rng.random((200, 3)) < right, 0, rng.integers(1, 4, (200, 3)))
  seeds = range(5)
  base = {seed: draw([0.9, 0.25, 0.25]) for seed in seeds}
  better = {seed: np.where(rng.random((200, 3)) < [0, 0.4, 0.4], 0, base[seed]) for seed in seeds}
  (tmp_path / 'arms').mkdir()
  (tmp_path / 'floor').mkdir()
  sweep(tmp_path / 'arms', {'base': base, 'base_x2x': better, 'base_x2x_trans': base}, seeds, rng)
  sweep(tmp_path / 'floor', {'base': {seed: draw(0.25) for seed in seeds}}, seeds, rng)
  output = tmp_path / 'comparison.json'
  monkeypatch.setattr('sys.argv', [
    'compare.py', f'--points=Floor={tmp_path}/floor', f'--points={tmp_path}/arms',
    '--against=Floor,Base', f'--output={output}',
  ])  # fmt: skip
  assert module('compare').main() == 0
  found = json.loads(output.read_text())
  assert list(found['arms']) == ['Floor', 'Base', 'x2x', 'x2x + Trans']
  assert found['arms']['Base']['English']['estimate'] == pytest.approx(
    np.mean([(c[:, 0] == 0).mean() for c in base.values()])
  )
  wanted = np.mean([(better[s][:, 1:] == 0).mean() - (base[s][:, 1:] == 0).mean() for s in seeds])
  gain = found['differences']['x2x - Base']['elsewhere']
  assert gain['estimate'] == pytest.approx(wanted) and 0 < gain['low'] < wanted < gain['high']
  over = found['differences']['x2x - Base']['elsewhere, t over seeds']
  gaps = [(better[s][:, 1:] == 0).mean() - (base[s][:, 1:] == 0).mean() for s in seeds]
  told = scipy.stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
  assert over['by_seed'] == pytest.approx(gaps) and (over['low'], over['high']) == pytest.approx(
    (told.low, told.high)
  )
  same = found['differences']['x2x + Trans - Base']['AC3_3']
  assert same['estimate'] == same['low'] == same['high'] == 0
  page = output.with_suffix('.md').read_text()
  assert f'**{100 * wanted:+.1f} [' in page and '| x2x + Trans - Base | +0.0 [+0.0, +0.0] |' in page
  assert output.with_suffix('.png').read_bytes().startswith(b'\x89PNG')


def test_one_relation_alone(tmp_path, monkeypatch):
  rng = np.random.default_rng(1)
  base = {seed: rng.integers(0, 4, (50, 3)) for seed in range(3)}
  one = {
    seed: np.where((np.arange(50) % 2 == 0)[:, None], 0, base[seed]) for seed in base
  }  # all of trade, nothing of radio
  sweep(tmp_path, {'base': base, 'base_x2x': one}, range(3), rng)
  gains = {}
  for relation in (None, *RELATIONS):
    output = tmp_path / f'{relation}.json'
    about = ['--relation', relation] if relation else []
    monkeypatch.setattr(
      'sys.argv', ['compare.py', f'--points={tmp_path}', *about, f'--output={output}']
    )
    assert module('compare').main() == 0
    gains[relation] = json.loads(output.read_text())['differences']['x2x - Base']['elsewhere'][
      'estimate'
    ]
  assert gains['radio'] == 0 < gains[None] == pytest.approx(gains['trade'] / 2)
  monkeypatch.setattr(
    'sys.argv', ['compare.py', f'--points={tmp_path}', '--relation=ferry', f'--output={output}']
  )
  with pytest.raises(ValueError, match='--relation ferry: no question'):
    module('compare').main()


def test_a_seed_of_another_directory_is_another_world(tmp_path, monkeypatch):
  rng = np.random.default_rng(2)
  both = []
  for name, right in (('one', 0.9), ('two', 0.3)):
    (tmp_path / name / 'comparison').mkdir(parents=True)
    both.append(
      {
        seed: np.where(rng.random((60, 3)) < right, 0, rng.integers(1, 4, (60, 3)))
        for seed in range(2)
      }
    )
    sweep(tmp_path / name / 'comparison', {'base': both[-1]}, range(2), rng)
  folders = [f'--points={tmp_path / name}/comparison' for name in ('one', 'two')]
  monkeypatch.setattr('sys.argv', ['compare.py', *folders, f'--output={tmp_path / "both.json"}'])
  assert module('compare').main() == 0
  base = json.loads((tmp_path / 'both.json').read_text())['arms']['Base']
  assert list(base['by_seed']) == ['one.0', 'one.1', 'two.0', 'two.1']
  right = [(chosen[:, 0] == 0).mean() for by_seed in both for chosen in by_seed.values()]
  assert base['English']['estimate'] == pytest.approx(np.mean(right))
