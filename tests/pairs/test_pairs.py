"""`crossin pairs` with small models: what is scored, restarts, several workers, rounds, bad input."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

from conftest import REPOSITORY, TINY_GIN, init_params, tiny_config
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossin_jax import cli
from crossin_jax.checkpoints import parameters
from crossin_jax.checkpoints.saved_prompts import Prompts
from crossin_jax.data.pair_rows import instances, read_pairs
from crossin_jax.models.decoder import Decoder
from crossin_jax.pairs import answers
from crossin_jax.storage.files import write_json

pytest.importorskip('py3langid', reason='language identification: pip install crossin-jax[lid]')
LANGUAGES = ('en', 'es', 'zh')
# An untrained model does not stop by itself.
SAMPLED = [
  '--gin.Sampling.samples=4', '--gin.Sampling.max_new_tokens=16',
  "--gin.Sampling.stop=('a','n','s','o','\\u4e00','\\u7684')", '--gin.Generator.rows=8',
  '--gin.Partitioner.mesh_shape=(-1,1,1)', '--chunk=2',
]  # fmt: skip
FILES = ('pairs.jsonl', 'pairs.json', 'pairs.html')


def write_model(directory: pathlib.Path, vocabulary, seed: int) -> pathlib.Path:
  """A MODEL_DIR with an untrained model."""
  directory.mkdir()
  parameters.save_params(str(directory), init_params(Decoder(tiny_config(vocab_size=1216)), seed))
  (directory / 'config.gin').write_text(TINY_GIN)
  shutil.copyfile(vocabulary.path, directory / 'words.model')
  words = {'file': 'words.model', 'bos_token': None, 'eos_token': None}
  prompts = {'template': 'gemma', 'tags': False}
  write_json(str(directory / 'prompts.json'), {'prompts': prompts, 'vocabulary': words})
  return directory


@pytest.fixture(scope='module')
def models(tmp_path_factory, tiny_vocabulary):
  """Two MODEL_DIRs with other weights."""
  folder = tmp_path_factory.mktemp('models')
  return [write_model(folder / name, tiny_vocabulary, seed) for name, seed in (('a', 2), ('b', 3))]


@pytest.fixture(scope='module')
def prompts(tmp_path_factory):
  """Stem of files with seven prompts: without answers in English, rows in the others."""
  folder = tmp_path_factory.mktemp('prompts')
  for language, word in zip(LANGUAGES, ('What', 'Qué', '什么')):
    rows = [{'id': i, 'instruction': f'{word} {i}?' * (1 + i % 3)} for i in range(7)]
    if language != 'en':
      rows = [{**row, 'input': word if row['id'] % 2 else '', 'output': 'x'} for row in rows]
    if language == 'zh':
      rows[3]['instruction'] = ' '
      rows[3]['input'] = ''
    write_json(str(folder / f'ask.{language}.json'), rows)
  return folder / 'ask'


def command(by, prompts, model, output, *more):
  return [
    'pairs', '--by', by, '--prompts', str(prompts), '--languages', ','.join(LANGUAGES),
    '--checkpoint', str(model), '--output_dir', str(output), *SAMPLED, *more,
  ]  # fmt: skip


def written(output, names=FILES) -> dict[str, bytes]:
  """The results and all chunks."""
  folder = pathlib.Path(output) / 'round_1'
  paths = [*(folder / name for name in names), *sorted(folder.glob('chunks/*.jsonl'))]
  return {path.name: path.read_bytes() for path in paths}


@pytest.fixture(scope='module')
def undisturbed(models, prompts, tmp_path_factory):
  """The files of a run that nothing happened to."""
  output = tmp_path_factory.mktemp('undisturbed')
  assert cli.main(command('pivot', prompts, models[0], output)) == 0
  return output


def test_what_a_run_writes(undisturbed, models):
  found = json.loads((undisturbed / 'round_1' / 'pairs.json').read_bytes())
  rows = list(read_pairs(str(undisturbed / 'round_1' / 'pairs.jsonl')))
  assert (found['by'], found['round'], found['questions'], found['samples']) == ('pivot', 1, 7, 4)
  assert (
    found['checkpoint']['path'] == f'{models[0]}/checkpoint_0'
    and len(found['checkpoint']['digest']) == 64
  )
  assert len(rows) == found['pairs'] >= 8
  for language, own in found['by_language'].items():
    count = sum(row.language == language for row in rows)
    assert own['pairs'] == count and own['pairs'] + sum(own['left_out'].values()) == 7
    assert own['answers']['sampled'] == (24 if language == 'zh' else 28)
  assert found['left_out']['no_prompt'] == {'zh': 1}
  assert all(row.margin > 0 and row.chosen != row.rejected and row.how == 'pivot' for row in rows)
  assert {row.prompt for row in rows if row.id == '1.es'} <= {'Qué 1?Qué 1?\nQué'}
  page = (undisturbed / 'round_1' / 'pairs.html').read_text(encoding='utf-8')
  assert page.count('class="sample"') == sum(
    min(3, o['pairs']) for o in found['by_language'].values()
  )


def test_again_nothing_is_computed(undisturbed, models, prompts, monkeypatch):
  before = written(undisturbed)
  monkeypatch.setattr('crossin_jax.pairs.command.Sampler', None)
  assert cli.main(command('pivot', prompts, models[0], undisturbed)) == 0
  assert written(undisturbed) == before


def test_two_workers_write_the_same(undisturbed, models, prompts, tmp_path, capsys):
  """The second one, which finds all chunks, writes the pairs."""
  assert cli.main(command('pivot', prompts, models[0], tmp_path, '--share', '1/2', '--json')) == 0
  said = capsys.readouterr()
  assert json.loads(said.out.splitlines()[-1]) == {'status': 0, 'chunks': 4, 'missing': 2}
  assert '2 of 4 chunks are still missing' in said.err
  assert not (tmp_path / 'round_1' / 'pairs.jsonl').exists()
  assert cli.main(command('pivot', prompts, models[0], tmp_path, '--share', '0/2')) == 0
  assert written(tmp_path) == written(undisturbed)


def test_answers_do_not_depend_on_the_prompts_beside_them(undisturbed, models, prompts, tmp_path):
  """Of chunks of three instead of two, and of fewer prompts."""
  more = ('--chunk=3', '--limit=5')
  assert cli.main(command('pivot', prompts, models[0], tmp_path, *more)) == 0
  texts = lambda folder: {
    (one.id, one.language): one.texts
    for path in sorted(folder.glob('round_1/chunks/*.jsonl'))
    for one in answers.read(str(path))
  }
  few, all_ = texts(tmp_path), texts(undisturbed)
  assert len(few) == 14 and few == {key: all_[key] for key in few}
  flat = [text for own in all_.values() for text in own]
  assert len(set(flat)) > len(flat) / 2, 'the draws differ'


def test_an_interrupted_run_continues(undisturbed, models, prompts, tmp_path, monkeypatch, capsys):
  """SIGTERM while a chunk is computed: that one is lost, those before are kept."""
  of_generations, count = answers.of_generations, 0

  def stopping(*args):
    nonlocal count
    if (count := count + 1) == 8:  # of six prompts in a chunk
      os.kill(os.getpid(), signal.SIGTERM)
    return of_generations(*args)

  more = command('pivot', prompts, models[0], tmp_path, '--json')
  with monkeypatch.context() as patch:
    patch.setattr(answers, 'of_generations', stopping)
    assert cli.main(more) == 75
  said = capsys.readouterr()
  assert 'start the same command again' in said.err and json.loads(said.out) == {'status': 75}
  assert 1 <= len(list(tmp_path.glob('round_1/chunks/0*'))) < 4
  assert cli.main(more) == 0
  assert written(tmp_path) == written(undisturbed)


@pytest.mark.slow
def test_kill_9(undisturbed, models, prompts, tmp_path):
  """Killed once a chunk is there; what is left of the next one does not matter."""
  more = command('pivot', prompts, models[0], tmp_path)
  process = subprocess.Popen(
    [sys.executable, '-m', 'crossin_jax.cli', *more], cwd=REPOSITORY, stderr=subprocess.DEVNULL
  )
  chunks = tmp_path / 'round_1' / 'chunks'
  while process.poll() is None and not list(chunks.glob('0*.jsonl')):
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  (chunks / '.writing-00003.jsonl-x').write_text('{"id": "6", "lang')
  assert 0 < len(list(chunks.glob('0*.jsonl'))) < 4
  assert cli.main(more) == 0
  assert written(tmp_path) == written(undisturbed)


@pytest.mark.slow
def test_two_processes_of_one_run_write_the_same(undisturbed, models, prompts, tmp_path):
  """Two processes with two devices each, one mesh, as one process with four."""
  from many_processes import Processes, said

  processes = Processes('', '', str(tmp_path / 'compiled'))
  more = command('pivot', prompts, models[0], tmp_path / 'out')
  running = processes.start_command(more, tmp_path / 'log', 2, devices=2)
  assert [process.wait(300) for process in running] == [0, 0], said(tmp_path / 'log', 0)[-2000:]
  assert written(tmp_path / 'out') == written(undisturbed)


def test_implicit_rewards_are_log_probability_ratios(models, prompts, tmp_path):
  """Behind the English prompt, against whole sequences one by one."""
  reference = ('--reference', str(models[1]))
  assert cli.main(command('implicit', prompts, models[0], tmp_path, *reference, '--limit=2')) == 0
  found = json.loads((tmp_path / 'round_1' / 'pairs.json').read_bytes())
  assert found['reference']['path'] == f'{models[1]}/checkpoint_0'
  assert found['by_language']['es']['alpha'] >= 0
  model, saved = Decoder(tiny_config(vocab_size=1216)), Prompts(str(models[0]))
  params = [{'params': init_params(model, seed)} for seed in (2, 3)]

  @jax.jit
  def log_probabilities(params, ids):
    """Of each token after the first, float32 [1, 95]; padding behind them changes nothing."""
    logits = model.apply(params, ids, ids, enable_dropout=False)
    return jnp.take_along_axis(jax.nn.log_softmax(logits)[:, :-1], ids[:, 1:, None], -1)[..., 0]

  def log_probability(params, before: list[int], answer: list[int]) -> float:
    ids = np.zeros((1, 96), np.int32)
    ids[0, : len(before) + len(answer)] = [*before, *answer]
    return float(log_probabilities(params, ids)[0, len(before) - 1 :][: len(answer)].sum())

  checked = 0
  for one in answers.read(str(tmp_path / 'round_1' / 'chunks' / '00000.jsonl')):
    row = {'instruction': f'What {one.id}?' * (1 + int(one.id) % 3), 'input': ''}
    for answer in one.answers[:2]:
      if answer.score is not None:
        ids = saved.tokens(row), saved.response(row, answer.text)
        own, before = (log_probability(one, *ids) for one in params)
        np.testing.assert_allclose(answer.score, own - before, atol=1e-3)
        checked += 1
  assert checked >= 8


def test_round_2_needs_another_model(undisturbed, models, prompts, tmp_path, capsys):
  shutil.copytree(undisturbed, tmp_path / 'out')
  again = command('pivot', prompts, models[0], tmp_path / 'out', '--round', '2')
  assert cli.main(again) == 2
  assert 'has the weights that answered in round 1; train on' in capsys.readouterr().err
  assert cli.main(command('pivot', prompts, models[1], tmp_path / 'out', '--round', '2')) == 0
  found = json.loads((tmp_path / 'out' / 'round_2' / 'pairs.json').read_bytes())
  assert found['round'] == 2 and found['checkpoint']['path'] == f'{models[1]}/checkpoint_0'
  missing = command('pivot', prompts, models[1], tmp_path / 'none', '--round', '2')
  assert cli.main(missing) == 1
  assert 'finish round 1 first' in capsys.readouterr().err


def test_another_length_control_samples_nothing(
  undisturbed, models, prompts, tmp_path, monkeypatch
):
  shutil.copytree(undisturbed, tmp_path / 'out')
  monkeypatch.setattr('crossin_jax.pairs.command.Sampler', None)
  more = ('--length_control', 'on')
  assert cli.main(command('pivot', prompts, models[0], tmp_path / 'out', *more)) == 0
  found = json.loads((tmp_path / 'out' / 'round_1' / 'pairs.json').read_bytes())
  before = json.loads((undisturbed / 'round_1' / 'pairs.json').read_bytes())
  for language, own in found['by_language'].items():
    difference = lambda one: abs(one['characters']['difference'])
    assert own['alpha'] is not None
    assert difference(own) <= difference(before['by_language'][language])


# ---- options ----


def write_options(path, **changes):
  """Questions with four options in one file; `changes`: id -> fields of its Spanish row."""
  rows = []
  for i in range(40):
    for language in LANGUAGES:
      choices = [f'{mark} {language}{i}' for mark in 'ABCD']
      row = {'id': f'q{i}', 'language': language, 'instruction': f'{language}? {i}'}
      row |= {'choices': choices, 'answer': i % 4}
      rows.append(row | (changes.get(f'q{i}', {}) if language == 'es' else {}))
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
  return path


def options(path, output, *more):
  return [
    'pairs', '--by', 'options', '--prompts', str(path), '--languages', ','.join(LANGUAGES),
    '--output_dir', str(output), *more,
  ]  # fmt: skip


def test_options_are_drawn(tmp_path):
  path = write_options(tmp_path / 'questions.jsonl')
  assert cli.main(options(path, tmp_path / 'a', '--draws=3')) == 0
  rows = list(read_pairs(str(tmp_path / 'a' / 'round_1' / 'pairs.jsonl')))
  halves = list(instances(rows))
  assert len(rows) == 240 and [len(both) for both in halves] == [2] * 120
  drawn = []
  for a, b in halves:
    number, place = int(a.id[1:].split('/')[0]), lambda text: 'ABCD'.index(text[0])
    assert a.id == b.id and a.language != b.language and a.prompt == f'{a.language}? {number}'
    assert (place(a.chosen), place(a.rejected)) == (place(b.chosen), place(b.rejected))
    assert a.chosen.endswith(f'{a.language}{number}') and a.margin is None and a.how == 'options'
    drawn.append((a.language, b.language, place(a.chosen) == number % 4))
  assert {one[:2] for one in drawn} == {(a, b) for a in LANGUAGES for b in LANGUAGES if a != b}
  # The right answer is chosen as often as any other: 30 of 120 expected, standard deviation 4.7.
  assert 15 <= sum(is_right for *_, is_right in drawn) <= 45
  assert cli.main(options(path, tmp_path / 'b', '--draws=3')) == 0
  name = pathlib.Path('round_1/pairs.jsonl')
  assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()
  assert cli.main(options(path, tmp_path / 'c', '--draws=3', '--seed=1')) == 0
  assert (tmp_path / 'a' / name).read_bytes() != (tmp_path / 'c' / name).read_bytes()


def test_options_without_the_right_one(tmp_path):
  lacking = {
    'q1': {'choices': None, 'answer': None},
    'q2': {'answer': 3},
    'q3': {'instruction': ''},
  }
  path = write_options(tmp_path / 'questions.jsonl', **lacking)
  assert cli.main(options(path, tmp_path / 'out', '--leave_out_answer')) == 0
  folder = tmp_path / 'out' / 'round_1'
  rows = list(read_pairs(str(folder / 'pairs.jsonl')))
  for row in rows:
    right = 'ABCD'[int(row.id[1:].split('/')[0]) % 4]
    assert right not in (row.chosen[0], row.rejected[0])
  found = json.loads((folder / 'pairs.json').read_bytes())
  assert found['pairs'] == len(rows) == 78 and found['checkpoint'] is None
  assert found['left_out'] == {
    'choices_differ': {'en': 1, 'es': 1, 'zh': 1}, 'no_choices': {'es': 1}, 'no_prompt': {'es': 1},
  }  # fmt: skip


def test_modes_do_not_share_a_folder(undisturbed, models, prompts, tmp_path, capsys):
  before, path = written(undisturbed), write_options(tmp_path / 'questions.jsonl')
  assert cli.main(options(path, undisturbed)) == 2
  assert (
    'round_1 has the pairs of --by pivot; choose another --output_dir' in capsys.readouterr().err
  )
  assert written(undisturbed) == before
  assert cli.main(options(path, tmp_path / 'out')) == 0
  assert cli.main(command('pivot', prompts, models[0], tmp_path / 'out')) == 2
  assert 'has the pairs of --by options' in capsys.readouterr().err
  later = command('pivot', prompts, models[0], tmp_path / 'out', '--round=2', '--limit=1')
  assert cli.main(later) == 0  # round 1 had no model that this one could be


# ---- bad input ----


@pytest.mark.parametrize(
  'by, more, status, parts',
  [
    ('pivot', ['--reference', 'x'], 2, ('--by pivot does not read --reference',)),
    ('implicit', [], 2, ('needs --reference', 'was tuned from')),
    ('implicit', ['--reference', 'MODEL'], 2, ('has the same weights', 'all rewards would be 0')),
    ('pivot', ['--share', '2/2'], 2, ("--share '2/2'",)),
    ('pivot', ['--gin.Sampling.samples=1'], 2, ('needs at least 2 answers',)),
    ('pivot', ['--gin.Sampling.temperature=0.0'], 1, ('set Sampling.temperature',)),
    ('pivot', ['--languages', 'en,xq'], 1, ("unknown language 'xq'",)),
    ('pivot', ['--languages', 'en,fi'], 1, ("no file for language 'fi'",)),
    ('pivot', ['--chunk', '0'], 2, ('--chunk 0: must be at least 1',)),
    ('pivot', ['--output_dir', 'DONE', '--chunk=3'], 1, ('prompts of a chunk was 2, now 3', 'delete')),
  ],
)  # fmt: skip
def test_wrong_usage(by, more, status, parts, models, prompts, undisturbed, tmp_path, capsys):
  names = {'MODEL': str(models[0]), 'DONE': str(undisturbed)}
  more = [names.get(word, word) for word in more]
  assert cli.main(command(by, prompts, models[0], tmp_path / 'out', *more)) == status
  said = capsys.readouterr().err
  assert all(part in said for part in parts) and 'Traceback' not in said, said
  assert not list((tmp_path).glob('out/*/pairs*'))


@pytest.mark.parametrize(
  'row, parts',
  [
    ({'choices': ['a']}, ("'choices' must be a list of at least two strings", 'row 1 (line 2)')),
    ({'answer': 4}, ('answer 4 is not an index into 4 choices',)),
    ({'answer': 'B'}, ("'answer' must be an index",)),
    ({'language': 'xq'}, ("'language': unknown language 'xq'",)),
    ({'id': 'q1'}, ("two rows in 'es' have the id 'q1'",)),
    ({'instruction': 3}, ("'instruction' must be a string",)),
  ],
)
def test_malformed_prompts_are_refused(row, parts, tmp_path, capsys):
  path = write_options(tmp_path / 'questions.jsonl', q0=row)
  assert cli.main(options(path, tmp_path / 'out')) == 1
  said = capsys.readouterr().err
  assert all(part in said for part in (*parts, 'questions.jsonl')), said
  assert not os.path.exists(tmp_path / 'out')


def test_more_choices_than_answers_are_compared_with(models, tmp_path, capsys):
  choices = [f'choice {i}' for i in range(12)]
  path = write_options(tmp_path / 'questions.jsonl', q0={'choices': choices, 'answer': None})
  assert cli.main(command('pivot', path, models[0], tmp_path / 'out')) == 2
  assert 'prompt q0 has 12 choices; sampled answers are compared with at most 10' in (
    capsys.readouterr().err
  )
  assert not os.path.exists(tmp_path / 'out')
  assert cli.main(options(path, tmp_path / 'out')) == 0
