"""`crossin prepare`: restartable, refuses what is stale, tokenises once, loses nothing unseen."""

import json
import os
import pathlib
import shutil

from conftest import TINY_MIXTURE
import numpy as np
import pytest

from crossin_jax.data.mixture_name import MixtureName
from crossin_jax.data.prepared import PreparedDataError, PreparedMixture, TaskSplit
from crossin_jax.data.stream import BatchStream
from seqio_tasks import prepare as prepare_lib
from seqio_tasks.mixtures import mixture_entries
from seqio_tasks.prepare import prepare

SMALL = 'world.base_x2x.all.en_zh.every'
SHARES = {'base': 0.4, 'x2x': 0.6}


@pytest.fixture
def small_settings(tiny_settings):
  return lambda **changes: tiny_settings(**{'shares': SHARES, **changes})


def run(directory, settings, mixture=SMALL, **flags):
  return prepare(mixture, str(directory), settings, workers=1, **flags)


def tasks_of(directory):
  return sorted(path.name for path in (pathlib.Path(directory) / 'tasks').iterdir())


def contents(directory):
  """Relative path -> bytes of every prepared file."""
  root = pathlib.Path(directory)
  return {
    str(path.relative_to(root)): path.read_bytes()
    for path in sorted(root.rglob('*'))
    if path.is_file()
  }


def times(directory):
  root = pathlib.Path(directory) / 'tasks'
  return {
    str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in root.rglob('*.arrow')
  }


def test_prepared_examples_are_those_of_the_tasks(tiny_prepared, tiny_settings):
  """Against rendering each row again, in order, ids and ranks too; counts add up."""
  directory, name = tiny_prepared
  for entry in mixture_entries(MixtureName.parse(name), tiny_settings()):
    for split in ('train', 'validation'):
      stored = TaskSplit(directory, entry.task.name, split)
      items = entry.task.items(split)
      said = stored.manifest['splits'][split]
      assert said['rows'] == len(items) == said['examples'] + sum(said['dropped'].values())
      assert said['examples'] == len(stored) and said['tokens'] == stored.lengths.sum()
      if stored.name.endswith('text.en.en.every'):
        items = items[:30]
      for i, (rank, row) in enumerate(items):
        example = entry.task.example(entry.task.fields(row), 64)
        tokens, weights = stored.example(i)
        np.testing.assert_array_equal(tokens, example.tokens)
        np.testing.assert_array_equal(weights, example.loss_weights)
        assert stored.id(i) == entry.task.source.ids()[row] and stored.ranks[i] == rank
      total = sum(float(stored.example(i)[1].sum()) for i in range(len(stored)))
      assert said['loss_tokens'] == pytest.approx(total) == stored.loss_tokens


def test_summary_and_mixture_file(tmp_path, small_settings, tiny_vocabulary):
  found = run(tmp_path, small_settings())
  assert found['tasks'] == found['tokenised'] == 3 and found['dropped'] == {}
  written = json.loads((tmp_path / 'mixtures' / f'{SMALL}.json').read_text())
  assert sum(task['rate'] for task in written['tasks']) == pytest.approx(1)
  said = {
    'template': 'plain',
    'tags': True,
    'chat_template': None,
    'chat_options': {},
    'special_tokens_in_text': False,
    'system_role': 'first_user',
    'stop_id': tiny_vocabulary.eos_id,
  }
  assert written['prompts'] == said and written['max_length'] == 64
  copy = tmp_path / written['vocabulary']['file']
  assert copy.read_bytes() == pathlib.Path(tiny_vocabulary.path).read_bytes()
  assert run(tmp_path, small_settings())['tokenised'] == 0
  mixture = PreparedMixture(str(tmp_path), SMALL)
  assert (
    mixture.bos_id == tiny_vocabulary.bos_id and mixture.vocabulary_size == tiny_vocabulary.size
  )


def test_every_rejected_row_is_counted(tmp_path, small_settings):
  directory = tmp_path / 'tight'
  found = run(directory, small_settings(max_length=20))
  assert found['dropped']['prompt_too_long'] > 0
  with pytest.raises(PreparedDataError, match=r'no example left: \d+ prompt_too_long dropped'):
    run(tmp_path / 'nothing', small_settings(max_length=12))
  for task in tasks_of(directory):
    for split in json.loads((directory / 'tasks' / task / 'manifest.json').read_text())[
      'splits'
    ].values():
      assert split['rows'] == split['examples'] + sum(split['dropped'].values())
      assert split['examples'] == sum(part['examples'] for part in split['parts'])
      assert sum(split['shortened'].values()) <= split['examples']
  # Ranks count the dropped ones, so that a volume means the same rows whatever was dropped.
  whole = tmp_path / 'whole'
  run(whole, small_settings())
  for task in tasks_of(directory):
    ranks = {}
    for where in (directory, whole):
      split = TaskSplit(str(where), task, 'train')
      ranks[where] = {(split.id(i), int(split.ranks[i])) for i in range(len(split))}
    assert ranks[directory] <= ranks[whole]


class Killed(BaseException):
  """Not an Exception: nothing may catch it."""


def test_a_restart_keeps_finished_parts(tmp_path, small_settings, monkeypatch):
  monkeypatch.setattr(prepare_lib, 'PART', 40)  # x2x has 108 rows in each direction: 3 parts
  run(tmp_path / 'whole', small_settings())
  real, jobs = prepare_lib._tokenise_part, []

  def part(spec, job, max_length, stop_after=None):
    if stop_after is not None and len(jobs) >= stop_after:
      raise Killed
    jobs.append(job[4])
    return real(spec, job, max_length)

  monkeypatch.setattr(prepare_lib, '_tokenise_part', lambda *a: part(*a, stop_after=4))
  with pytest.raises(Killed):
    run(tmp_path / 'b', small_settings())
  first = list(jobs)
  assert len(first) == 4 and not list((tmp_path / 'b').rglob('manifest.json')), (
    'unfinished Tasks do not look whole'
  )
  before = times(tmp_path / 'b')
  # What a kill may leave: half a part beside the others, and a part without its record.
  victim = pathlib.Path(first[1])
  victim.with_suffix('.json').unlink()
  (tmp_path / 'b' / 'tasks' / 'x.arrow.writing').write_bytes(b'half')
  jobs.clear()
  monkeypatch.setattr(prepare_lib, '_tokenise_part', part)
  run(tmp_path / 'b', small_settings())
  assert first[1] in jobs and not set(jobs) & (set(first) - {first[1]})
  after = times(tmp_path / 'b')
  kept = [path for path in before if not path.startswith(str(victim))]
  assert len(kept) == 3 and all(after[path] == before[path] for path in kept)
  (tmp_path / 'b' / 'tasks' / 'x.arrow.writing').unlink()
  assert contents(tmp_path / 'b') == contents(tmp_path / 'whole')


def test_parts_and_processes_change_nothing(tmp_path, small_settings, monkeypatch):
  run(tmp_path / 'one', small_settings())
  monkeypatch.setattr(prepare_lib, 'PART', 30)
  prepare(SMALL, str(tmp_path / 'many'), small_settings(), workers=2)
  for task in tasks_of(tmp_path / 'one'):
    for split in ('train', 'validation'):
      a, b = (TaskSplit(str(tmp_path / where), task, split) for where in ('one', 'many'))
      assert len(a) == len(b) and (a.ranks == b.ranks).all() and a.loss_tokens == b.loss_tokens
      for i in range(len(a)):
        assert a.id(i) == b.id(i) and a.example(i)[0].tolist() == b.example(i)[0].tolist()
  # Workers open the vocabulary and the world from their pickles.
  assert len(list((tmp_path / 'many').rglob('*.arrow'))) > 8


@pytest.mark.parametrize('change, message', [
    ({'template': 'gemma'}, 'template was plain.*now gemma'),
    ({'max_length': 48}, 'max_length was 64, now 48'),
    ({'seed': 1}, 'seed was 0, now 1'),
    ({'validation_rows': 2}, 'validation_rows was 6, now 2'),
    ({'world': 1}, 'source was world'),
])  # fmt: skip
def test_stale_tasks_are_refused_naming_what_changed(
  tmp_path, small_settings, tiny_world, change, message
):
  import dataclasses

  from crossin_jax.world.sources import WorldInstructions

  run(tmp_path, small_settings())
  before = contents(tmp_path)
  if 'world' in change:
    change = {'parallel': WorldInstructions(dataclasses.replace(tiny_world, seed=change['world']))}
  with pytest.raises(PreparedDataError, match=f'{message}.*--overwrite'):
    run(tmp_path, small_settings(**change))
  assert contents(tmp_path) == before
  assert run(tmp_path, small_settings(**change), overwrite=True)['tokenised'] == 3
  assert run(tmp_path, small_settings(**change))['tokenised'] == 0
  PreparedMixture(str(tmp_path), SMALL)
  with pytest.raises(PreparedDataError, match='is stale'):
    run(tmp_path, small_settings())


def test_changing_rates_or_volumes_tokenises_nothing(tmp_path, small_settings):
  assert run(tmp_path, small_settings())['tokenised'] == 3
  before = times(tmp_path)
  for mixture, changes in (
    (SMALL, {'shares': {'base': 0.1, 'x2x': 0.9}}),
    (SMALL, {'rates': 'temperature', 'temperature': 2.0}),
    ('world.base_x2x.50.en_zh.every', {}),
    ('world.x2x.17.en_zh.every', {'rates': 'counts'}),
  ):
    assert run(tmp_path, small_settings(**changes), mixture)['tokenised'] == 0
  assert times(tmp_path) == before
  # A volume is a prefix of one hash order: 17 examples over both directions, those of lowest rank.
  mixture = PreparedMixture(str(tmp_path), 'world.x2x.17.en_zh.every')
  assert sum(task.examples for task in mixture.tasks) == 17
  ranks = sorted(int(rank) for task in mixture.tasks for rank in task.split.ranks[: task.examples])
  assert ranks == list(range(17))
  assert (
    BatchStream(mixture, batch_size=2, length=64, window=64).batch(0)['decoder_loss_weights'].sum()
    > 0
  )


def test_a_mixture_of_another_version_of_a_task_is_refused(tmp_path, small_settings):
  run(tmp_path, small_settings())
  run(tmp_path, small_settings(), 'world.base.all.en_zh.every')
  run(tmp_path, small_settings(seed=1), 'world.base.all.en_zh.every', overwrite=True)
  with pytest.raises(
    PreparedDataError, match='written for another version of task world.base.en.en.every'
  ):
    PreparedMixture(str(tmp_path), SMALL)


def test_a_broken_manifest_names_the_file_and_the_remedy(tmp_path, small_settings):
  run(tmp_path, small_settings())
  path = tmp_path / 'tasks' / 'world.base.en.en.every' / 'manifest.json'
  path.write_text('{"format": 1')
  with pytest.raises(PreparedDataError, match=f'{path} is not valid JSON .* delete {path.parent}'):
    run(tmp_path, small_settings())
  shutil.rmtree(path.parent)
  assert run(tmp_path, small_settings())['tokenised'] == 1


def test_the_command_reads_gin_and_prints_json(tmp_path, tiny_vocabulary, capsys):
  from crossin_jax import config

  status = prepare_lib.main(config.rewrite([
      '--gin_file=gin_configs/mixtures/world.gin', f"--gin.VOCABULARY='{tiny_vocabulary.path}'",
      '--gin.World.tuning_entities=3', '--gin.World.test_entities=4', "--gin.SHARES={'base': 1.0}",
      '--mixture', 'world.base.all.en_zh_vi_es.every', '--output_dir', str(tmp_path), '--json',
  ]))  # fmt: skip
  out, err = capsys.readouterr()
  said = json.loads(out.splitlines()[-1])
  assert status == 0 and said['examples'] == 60 and 'tasks' in said and '60 examples' in err
  assert os.path.isdir(tmp_path / 'tasks' / 'world.base.en.en.every')


def test_names_that_could_leave_the_folder_are_refused(tmp_path, small_settings):
  for name in ('../x.base.all.en.every', 'world.base.all.en.every/../..', TINY_MIXTURE + '\n'):
    with pytest.raises(ValueError):
      run(tmp_path, small_settings(), name)
