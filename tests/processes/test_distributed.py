"""One run over several processes: the same losses, and a run goes on with another number of them."""

import json
import shutil

from data.test_pair_layout import with_pairs
from many_processes import Processes
import numpy as np
import pytest

STEPS, SAVED = 12, 6  # of a whole run; at which of them it is saved


@pytest.fixture(scope='module')
def starter(tiny_prepared, tmp_path_factory):
  return Processes(*tiny_prepared, str(tmp_path_factory.mktemp('compiled')))


@pytest.fixture(scope='module')
def train(starter):
  """A function (model_dir, processes, **options) that runs `crossin train` in that many processes:
  losses by step.
  """

  def run(model_dir, count, *, microbatches=1, devices=1, mesh='(1, -1, 1)', steps=STEPS, more=()):
    values = {
      'TRAIN_STEPS': steps,
      'train.microbatches': microbatches,
      'CheckpointConfig.period': SAVED,
    }
    return starter.run(
      model_dir, count, values, devices=devices, more=[f'--gin.MESH_SHAPE={mesh}', *more]
    )

  return run


@pytest.fixture(scope='module')
def alone(train, tmp_path_factory):
  """Losses of the run in one process."""
  losses = train(tmp_path_factory.mktemp('alone') / 'run', 1)
  assert list(losses) == list(range(1, STEPS + 1)) and losses[STEPS] < losses[1]
  return losses


@pytest.fixture(scope='module')
def on_two(train, tmp_path_factory):
  """MODEL_DIR and losses of the run in two processes."""
  model_dir = tmp_path_factory.mktemp('two') / 'run'
  return model_dir, train(model_dir, 2, microbatches=2)


def equal(found, wanted):
  assert list(found) == list(wanted)
  np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=1e-5)


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(alone, on_two):
  equal(on_two[1], alone)


@pytest.mark.slow
@pytest.mark.parametrize('processes, options', [
    (4, {'mesh': '(2, 2, 1)'}),
    (1, {'microbatches': 4, 'devices': 2, 'mesh': '(1, 1, 2)'}),
])  # fmt: skip
def test_losses_do_not_depend_on_processes_and_mesh(train, alone, tmp_path, processes, options):
  equal(train(tmp_path / 'run', processes, **options), alone)


@pytest.mark.slow
def test_fifty_steps_on_one_two_and_four_processes(train, tmp_path):
  """A loss that differs by 1e-7 at the first step may differ by more at the fiftieth; it stays
  below 1e-5.
  """
  one = train(tmp_path / '1', 1, steps=50)
  equal(train(tmp_path / '2', 2, devices=2, mesh='(2, 1, 2)', steps=50), one)
  equal(train(tmp_path / '4', 4, mesh='(1, 2, 2)', steps=50), one)


@pytest.mark.slow
@pytest.mark.parametrize('processes, mesh', [(1, '(1, -1, 1)'), (4, '(2, 1, 2)')])
def test_a_run_saved_on_two_processes_goes_on(train, alone, on_two, tmp_path, processes, mesh):
  """As if the two had been killed after their save at half of the steps: the lines after it are
  done again.
  """
  shutil.copytree(on_two[0], tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / f'checkpoint_{STEPS}')
  (tmp_path / 'run' / 'digests' / f'checkpoint_{STEPS}.json').unlink()
  path = tmp_path / 'run' / 'metrics.jsonl'
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(''.join(lines[: SAVED + 2]))  # and half of the next line
  with path.open('a') as f:
    f.write(lines[SAVED + 2][:20])
  equal(train(tmp_path / 'run', processes, mesh=mesh), alone)


@pytest.mark.slow
def test_pairs_on_two_processes(tiny_prepared, tmp_path):
  """One numerator over one denominator: pairs and rows, whichever host has them; held-out ones
  too.
  """
  directory, mixture = with_pairs(tiny_prepared, tmp_path / 'data')
  starter = Processes(directory, mixture, str(tmp_path / 'compiled'))
  flags = [
    '--gin.train.objective=@Preference()', "--gin.Preference.kind='orpo'",
    '--gin.train.evaluators=(@HeldoutLoss(),)', '--gin.train.evaluation_period=6',
    '--gin.HeldoutLoss.rows=4',
  ]  # fmt: skip
  run = lambda name, count, parts: starter.run(
    tmp_path / name, count, {'TRAIN_STEPS': 6, 'train.microbatches': parts}, more=flags
  )
  equal(run('two', 2, 2), run('one', 1, 1))
  of = lambda name: json.loads((tmp_path / name / 'metrics.jsonl').read_text().splitlines()[-1])
  one, two = of('one'), of('two')
  assert one['eval/heldout/preference/pairs'] == two['eval/heldout/preference/pairs'] > 0
  for key in ('eval/heldout/preference/loss', 'eval/heldout/preference/margin'):
    assert two[key] == pytest.approx(one[key], rel=1e-5, abs=1e-5), key


def test_flags_go_together(capsys):
  from crossin_jax import cli

  assert cli.main(['train', '--process_count=2']) == 1
  assert 'go together' in capsys.readouterr().err
  assert (
    cli.main(
      ['train', '--coordinator_address=127.0.0.1:1', '--process_count=2', '--process_index=2']
    )
    == 1
  )
  assert 'not between 0 and 1' in capsys.readouterr().err


@pytest.mark.slow
def test_a_benchmark_in_training_asks_the_same_on_all_hosts(train, tmp_path):
  """A budget of nothing ends after the first slice on each host, or they would wait for each other
  for ever.
  """
  choices = [f'({letter}) {letter}' for letter in 'ABCD']
  item = lambda i, language: {
    'question': f'{language} {i}?',
    'choices': choices,
    'answer': choices[i % 4],
  }
  records = [{'id': i, 'English': item(i, 'en'), 'Chinese': item(i, 'zh')} for i in range(50)]
  (tmp_path / 'mmlu.json').write_text(json.dumps(records))
  more = [
    '--gin.train.evaluators=(@BenchmarkEvaluator(),)', f'--gin.train.evaluation_period={SAVED}',
    "--gin.BenchmarkEvaluator.benchmark='cross_mmlu'",
    f"--gin.BenchmarkEvaluator.path='{tmp_path}/mmlu.json'",
    '--gin.BenchmarkEvaluator.seconds=0.0',
  ]  # fmt: skip
  figures = {}
  for processes in (1, 2):
    train(tmp_path / str(processes), processes, more=more)
    with open(tmp_path / str(processes) / 'metrics.jsonl', encoding='utf-8') as f:
      figures[processes] = [row for row in map(json.loads, f) if 'eval/cross_mmlu/accuracy' in row]
  assert [row['step'] for row in figures[1]] == [SAVED, STEPS]
  assert all(row['eval/cross_mmlu/items'] == 32 for row in figures[1])
  assert figures[1] == figures[2]


@pytest.mark.slow
def test_evaluate_on_two_processes_writes_once_what_one_finds(
  starter, on_two, tiny_world, tmp_path
):
  from crossin_jax.world import sources as world_sources

  world_sources.write_questions(tiny_world, str(tmp_path / 'world'))
  questions = tmp_path / 'world' / 'questions.untagged.jsonl'
  model_dir, _ = on_two
  found = {}
  for count in (1, 2):
    command = [
      'evaluate',
      f'--checkpoint={model_dir}',
      f'--questions={questions}',
      f'--output_dir={tmp_path / str(count)}',
    ]
    running = starter.start_command([*command, '--limit=8'], tmp_path / f'run{count}', count)
    assert [process.wait(300) for process in running] == [0] * count
    found[count] = {
      str(path.relative_to(tmp_path / str(count))): path.read_text()
      for path in (tmp_path / str(count)).rglob('*.json*')
    }
  assert found[1] == found[2] and 'results.json' in found[1]
