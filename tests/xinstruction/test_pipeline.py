"""The whole way from text to an instruction set, at toy size: counts that add up, kills, stale
steps, shares of chunks.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from crossin_jax import cli
from crossin_jax.decoding.nonfinite import NonFiniteLikelihood
from crossin_jax.workflow.steps import Step, StepError, Steps
from crossin_jax.xinstruction import chunk_worker, levels
from crossin_jax.xinstruction import rows as rows_lib

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
LANGUAGES = ('sw', 'fi')


@pytest.fixture(scope='module', autouse=True)
def _programs_are_kept():
  """As people run it: what one step has compiled is found by the next."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('JAX_ENABLE_COMPILATION_CACHE', 'true')
    yield


@pytest.fixture(scope='module')
def material(tmp_path_factory, tiny_vocabulary):
  """Text and seed of two languages; the text is invented by pattern, long enough for the filter."""
  folder = tmp_path_factory.mktemp('material')
  rng = np.random.default_rng(0)
  words = {
    'sw': 'mtu watu nyumba shule mji serikali habari siku kazi watoto maji chakula barabara '
          'wakati nchi kubwa ndogo nzuri sana'.split(),
    'fi': 'talo koulu kaupunki hallitus uutinen päivä työ lapset vesi ruoka katu aika maa suuri '
          'pieni hyvä hyvin ihminen kirja'.split(),
  }  # fmt: skip
  benchmark = []
  for language, own in words.items():
    sentence = lambda: ' '.join(rng.choice(own, 9)).capitalize() + '.'
    texts = [' '.join(sentence() for _ in range(6)) for _ in range(30)]
    rows_lib.write(
      str(folder / f'text.{language}.jsonl'),
      ({'id': i, 'text': text} for i, text in enumerate(texts)),
    )
    seed = [
      {'instruction': f'Write about {own[i % 19]}.', 'input': '', 'output': sentence()}
      for i in range(12)
    ]
    rows_lib.write(str(folder / f'seed.{language}.json'), seed)
    known = [
      {'id': f'{language}.{i}', 'question': text, 'language': language}
      for i, text in enumerate(texts)
    ]
    benchmark += known[:20]
  rows_lib.write(str(folder / 'benchmark.jsonl'), benchmark)
  (folder / 'model.gin').write_text(
    "include 'gin_configs/models/world_1m.gin'\nDecoderConfig.embed_dim = "
    '32\nDecoderConfig.num_layers = 1\n'
    'DecoderConfig.mlp_dim = 32\n'
  )
  return folder


def flags(material, vocabulary, out, *more):
  return [
    f'--output_dir={out}', '--gin_file=gin_configs/xinstruction/default.gin',
    f'--gin.LANGUAGES={LANGUAGES!r}',
    f"--gin.DOCUMENTS='{material}/text.{{language}}.jsonl'", f"--gin.SEED='{material}/seed'",
    f"--gin.VOCABULARY='{vocabulary.path}'",
    f"--gin.XInstruction.model_gin=('{material}/model.gin',)",
    "--gin.XInstruction.values={'TRAIN_STEPS': 3, 'train.epochs': None, 'BATCH_SIZE': 4, "
    "'train.evaluators': ()}",
    '--gin.XInstruction.chunk=8', '--gin.XInstruction.max_length=768',
    '--gin.XInstruction.instruction_tokens=6',
    '--gin.XInstruction.response_tokens=6', '--gin.XInstruction.least_level=1.0',
    '--gin.XInstruction.keep_fraction=0.5',
    '--gin.XInstruction.settled=0.0', '--gin.Filters.least_confidence=0.0',
    '--gin.adamw.weight_decay=0.25',
    '--gin.ChunkWorker.rows=16', '--gin.Sampling.top_k=3',
    '--gin.MixtureSettings.validation_rows=3', '--gin.RANDOM_SEED=5',
    f"--gin.XInstruction.benchmarks=('{material}/benchmark.jsonl',)", *more,
  ]  # fmt: skip


@pytest.fixture(scope='module')
def undisturbed(material, tiny_vocabulary, tmp_path_factory):
  out = tmp_path_factory.mktemp('undisturbed') / 'run'
  assert cli.main(['xinstruction', 'run', *flags(material, tiny_vocabulary, out)]) == 0
  return out


def _exported(out):
  return {
    path.name: path.read_bytes()
    for path in sorted((out / 'export').glob('*.json'))
    if path.name[0] in 'apsf'
  }


def test_counts_add_up_from_step_to_step(undisturbed):
  counts = lambda step: json.loads((undisturbed / step / 'manifest.json').read_text())['counts']
  for language in LANGUAGES:
    own = counts('filter')['by_language'][language]
    assert own['read'] == own['kept'] + sum(own['dropped'].values()) == 30
    kept = counts('keep.0')['by_language'][language]
    assert (
      kept['kept'] == int(0.5 * kept['candidates'] + 0.5)
      and sum(kept['score_histogram']) == kept['candidates']
    )
    rows = json.loads((undisturbed / 'export' / f'{language}.json').read_text())
    assert (
      len(rows)
      == counts('export')['by_language'][language]
      == counts('diversify')['by_language'][language]['chosen']
    )
    texts = {row['text'] for row in rows_lib.read_language(str(undisturbed / 'filter'), language)}
    for row in rows:
      assert (
        set(row) == {'id', 'instruction', 'output', 'language', 'source', 'score'}
        and row['output'] in texts
      )
      assert row['instruction'].strip() and 1 <= row['score'] <= 3
    plain = json.loads((undisturbed / 'export' / f'plain_{language}.json').read_text())
    assert all(
      row['instruction'].endswith((' Answer in Swahili.', ' Answer in Finnish.')) for row in plain
    )
  pairs = counts('pairs')
  assert pairs['candidates'] + pairs['empty_instruction'] == counts('filter')['kept']
  assert counts('rate.0')['rated'] == counts('rate.1')['rated'] == pairs['candidates']
  assert (undisturbed / 'statistics' / 'statistics.html').stat().st_size > 10_000
  assert (undisturbed / 'train' / 'model' / 'metrics.jsonl').exists()


def test_a_second_start_does_nothing_and_changes_are_named(
  undisturbed, material, tiny_vocabulary, capsys
):
  before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob('*.jsonl')}
  assert cli.main(['xinstruction', 'run', *flags(material, tiny_vocabulary, undisturbed)]) == 0
  assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob('*.jsonl')} == before
  capsys.readouterr()
  changed = flags(material, tiny_vocabulary, undisturbed, '--gin.XInstruction.wanted=3')
  assert cli.main(['xinstruction', 'run', *changed]) == 1
  said = capsys.readouterr().err
  assert 'wanted was 32000, is 3' in said and '--redo' in said and 'keep.1' not in said
  assert cli.main(['xinstruction', 'status', *changed, '--json']) == 0
  states = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert (
    states['keep.1'] == 'done'
    and states['diversify'] == states['export'] == states['statistics'] == 'stale'
  )


def test_settings_reach_the_commands_that_know_them(undisturbed, material, tiny_vocabulary, capsys):
  for step in ('train-generator', 'train-response.0', 'train-rater.1', 'train'):
    config = (undisturbed / step / 'model' / 'config.gin').read_text()
    assert 'adamw.weight_decay = 0.25' in config and 'RANDOM_SEED = 5' in config
    (manifest,) = (undisturbed / step / 'data' / 'tasks').glob('*.sw.sw.*/manifest.json')
    assert json.loads(manifest.read_text())['fingerprint_parts']['validation_rows'] == 3
  logs = undisturbed / 'logs'
  for log in ('train-generator.write', 'train-response.1.respond', 'train-rater.0.rate'):
    said = (logs / f'{log}.log').read_text().splitlines()[0]
    assert 'ChunkWorker.rows = 16' in said and 'Sampling.top_k = 3' in said and 'adamw' not in said
  assert 'ChunkWorker' not in (logs / 'train.train.log').read_text().splitlines()[0]

  def states(*more):
    assert (
      cli.main(
        ['xinstruction', 'status', *flags(material, tiny_vocabulary, undisturbed, *more), '--json']
      )
      == 0
    )
    said = capsys.readouterr()
    return json.loads(said.out.splitlines()[-1]), said.out

  # What only makes it faster changes nothing.
  fast = (
    '--gin.ChunkWorker.rows=4',
    '--gin.Partitioner.mesh_shape=(1, 2, 2)',
    '--gin.train.log_period=1',
  )
  assert set(states(*fast)[0].values()) == {'done'}
  found, said = states('--gin.adamw.weight_decay=0.5')
  assert (
    found['train-generator'] == found['train'] == 'stale'
    and found['filter'] == found['seed'] == 'done'
  )
  assert "adamw.weight_decay was '0.25', is '0.5'" in said
  found, said = states('--gin.Sampling.top_k=4')
  assert found['train-generator'] == found['train-response.0'] == 'done'
  assert (
    found['generate'] == found['respond.0'] == 'stale' and "Sampling.top_k was '3', is '4'" in said
  )


def test_the_page_shows_the_overlap_with_the_benchmarks(
  undisturbed, material, tiny_vocabulary, capsys
):
  assert 'benchmark.jsonl' in (undisturbed / 'statistics' / 'statistics.html').read_text('utf-8')
  command = ['xinstruction', 'status', *flags(material, tiny_vocabulary, undisturbed)]
  assert cli.main([*command, '--gin.XInstruction.benchmarks=()', '--json']) == 0
  states = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert [name for name, state in states.items() if state != 'done'] == ['statistics']
  assert cli.main([*command, "--gin.XInstruction.benchmarks=('nowhere.json',)"]) == 1
  assert 'nowhere.json is no file' in capsys.readouterr().err


def test_the_export_is_a_mixture(undisturbed, tmp_path, capsys):
  gin_file = undisturbed / 'export' / 'mixture.gin'
  name = 'xinstruction.rows_seed.all.en_sw_fi.default'
  assert name in gin_file.read_text()
  flags_ = [
    'prepare',
    f'--gin_file={gin_file}',
    '--mixture',
    name,
    '--output_dir',
    str(tmp_path / 'prepared'),
    '--json',
  ]
  assert cli.main(flags_) == 0
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  rows = sum(
    len(json.loads((undisturbed / 'export' / f'{language}.json').read_text()))
    for language in LANGUAGES
  )
  assert found['examples'] == rows + 24 and found['tasks'] == 4 and not found['dropped']


@pytest.mark.slow
def test_killed_anywhere_the_export_is_the_same(undisturbed, material, tiny_vocabulary, tmp_path):
  out = tmp_path / 'run'
  command = [
    sys.executable,
    '-m',
    'crossin_jax.cli',
    'xinstruction',
    'run',
    *flags(material, tiny_vocabulary, out),
  ]
  rng, kills = np.random.default_rng(1), 0
  while True:
    process = subprocess.Popen(
      command, stderr=subprocess.DEVNULL, start_new_session=True, cwd=REPOSITORY
    )
    try:
      status = process.wait(timeout=float(rng.uniform(4, 25)) if kills < 6 else 500)
      break
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, 9)
      process.wait()
      kills += 1
      time.sleep(0.2)
  assert status == 0 and kills >= 3
  assert _exported(out) == _exported(undisturbed)


def test_shares_of_chunks_are_the_whole(undisturbed, tmp_path):
  base = [
    'xinstruction',
    'chunks',
    '--kind',
    'rate',
    '--checkpoint',
    str(undisturbed / 'train-rater.0' / 'model'),
  ]
  base += [
    '--input',
    str(undisturbed / 'pairs'),
    '--output',
    str(tmp_path / 'rated'),
    '--gin.ChunkWorker.prompt_tokens=760',
  ]
  for share in ('1/3', '0/3', '2/3'):
    assert cli.main([*base, '--share', share]) == 0
  for language in LANGUAGES:
    theirs = {
      path.name: path.read_bytes() for path in (undisturbed / 'rate.0' / language).glob('*.jsonl')
    }
    assert {
      path.name: path.read_bytes() for path in (tmp_path / 'rated' / language).glob('*.jsonl')
    } == theirs
  assert cli.main([*base, '--share', '3/3']) == 2


def test_a_rater_whose_likelihoods_are_not_finite_names_the_row(
  undisturbed, tmp_path, monkeypatch, capsys
):
  def broken(*args, **kwargs):
    raise NonFiniteLikelihood('prefix 2 of 9', 1)

  monkeypatch.setattr(chunk_worker, 'continuation_losses', broken)
  pairs = undisturbed / 'pairs'
  chunk = sorted(path for path in pairs.glob('*/*.jsonl') if path.stat().st_size)[0]
  second = json.loads(chunk.read_text().splitlines()[1])['id']
  model = str(undisturbed / 'train-rater.0' / 'model')
  argv = ['xinstruction', 'chunks', '--kind', 'rate', '--checkpoint', model, '--input', str(pairs)]
  assert cli.main([*argv, '--output', str(tmp_path / 'rated')]) == 1
  said = capsys.readouterr().err
  assert f'row 2 of the chunk (id {second!r}): the log-probability' in said
  assert not list(tmp_path.glob('rated/*/*'))


def test_levels():
  seed = {
    'sw': [
      {'id': str(i), 'instruction': f'q{i}', 'output': f'jibu la swali la {i}'} for i in range(5)
    ],
    'fi': [
      {'id': str(i), 'instruction': f'q{i}', 'output': f'vastaus kysymykseen {i}'} for i in range(5)
    ],
  }
  rows = levels.rating_rows(seed, 'sw', {'0': 'b0', '1': 'jibu la swali la 1', '2': ' '})
  assert all(row['instruction'] == f'q{row["id"][0]} Answer in Swahili.' for row in rows)
  kinds = {
    kind: [row for row in rows if row['id'].split('.')[1] == kind]
    for kind in ('3', '2', '1', *levels.FLAWS)
  }
  assert sum(map(len, kinds.values())) == len(rows) and len({row['id'] for row in rows}) == len(
    rows
  )
  own = {row['id']: row['output'] for row in seed['sw']}
  told = {
    kind: [(own[row['id'][0]], row['input'], row['output']) for row in found]
    for kind, found in kinds.items()
  }
  assert told['3'] == [(text, text, '3') for text in own.values()]
  assert [row['id'] for row in kinds['2']] == ['0.2'] and told['2'][0][1:] == ('b0', '2')
  assert len(told['1']) == 5 and all(
    text != found and found in own.values() and level == '1' for text, found, level in told['1']
  )
  assert len(told['language']) == 5 and len(told['cut']) + len(told['joined']) == 5
  assert all(found == f'vastaus kysymykseen {text[-1]}' for text, found, _ in told['language'])
  assert all(text.startswith(found) and found != text for text, found, _ in told['cut'])
  assert all(found.startswith(text + ' ') for text, found, _ in told['joined'])
  assert all(level == '1' for kind in levels.FLAWS for _, _, level in told[kind])
  plain = levels.rating_rows({'sw': seed['sw']}, 'sw', {}, flaws=('language',))
  assert {row['id'].split('.')[1] for row in plain} == {'3', '1'}  # no other language to take from
  np.testing.assert_allclose(
    levels.expected_level(np.log([[0.1, 0.1, 0.2], [1e-9, 1e-9, 0.5]])), [2.25, 3.0], atol=1e-6
  )
  scores = np.array([2.9, 2.6, 2.4, 1.0])
  assert levels.kept(scores, list('abcd'), 0.75, 2.5).tolist() == [0, 1]
  assert levels.kept(scores, list('abcd'), 0.25, 1.0).tolist() == [0]


def test_a_step_begun_under_other_settings_is_put_aside(tmp_path):
  made = []

  def run(folder):
    made.append(sorted(os.listdir(folder)))
    pathlib.Path(folder, 'half').touch()
    if len(made) == 1:
      raise OSError('full')
    return {'n': 1}

  with pytest.raises(OSError):
    Steps(str(tmp_path), [Step('a', run, (), {'x': 1})]).run()
  Steps(str(tmp_path), [Step('a', run, (), {'x': 2})]).run()
  assert made == [['begun.json'], ['begun.json']] and (tmp_path / 'a.stale' / 'half').exists()
  with pytest.raises(StepError, match='waits for a'):
    Steps(str(tmp_path / 'other'), [Step('a', run), Step('b', run, ('a',))]).run(['b'])


@pytest.mark.slow
def test_ten_languages_of_real_text(shared_data, tmp_path):
  """Native text of ten languages; the seed is Vietnamese Alpaca rows for all of them: what is
  tested is the way, not the model.
  """
  languages = ('fi', 'id', 'th', 'tr', 'vi', 'bn', 'hi', 'sw', 'ta', 'ur')
  english = json.loads(
    (shared_data / 'alpaca_parallel' / 'alpaca.en.json').read_text(encoding='utf-8')
  )
  native = json.loads(
    (shared_data / 'alpaca_parallel' / 'alpaca.vi.json').read_text(encoding='utf-8')
  )
  seed = [a | {'output': b['output']} for a, b in zip(english, native) if len(b['output']) < 300][
    :12
  ]
  for language in languages:
    rows_lib.write(str(tmp_path / f'seed.{language}.json'), seed)
  (tmp_path / 'model.gin').write_text(
    "include 'gin_configs/models/world_1m.gin'\nDecoderConfig.vocab_size = "
    '32000\nDecoderConfig.embed_dim = 16\n'
    'DecoderConfig.num_layers = 1\nDecoderConfig.mlp_dim = 16\n'
  )
  text, vocabulary = (
    shared_data / 'native_text',
    shared_data / 'tokenizers' / 'mistral_v1.tokenizer.model',
  )
  out = tmp_path / 'run'
  arguments = [
    f'--output_dir={out}', '--gin_file=gin_configs/xinstruction/default.gin',
    f'--gin.LANGUAGES={languages!r}',
    f"--gin.DOCUMENTS='{text}/native.{{language}}.jsonl'", f"--gin.SEED='{tmp_path}/seed'",
    f"--gin.VOCABULARY='{vocabulary}'",
    f"--gin.XInstruction.model_gin=('{tmp_path}/model.gin',)", '--gin.XInstruction.rounds=1',
    '--gin.XInstruction.chunk=512',
    "--gin.XInstruction.values={'TRAIN_STEPS': 2, 'train.epochs': None, 'BATCH_SIZE': 4, "
    "'train.evaluators': ()}",
    '--gin.XInstruction.max_length=1024', '--gin.XInstruction.instruction_tokens=8',
    '--gin.XInstruction.response_tokens=8',
    '--gin.XInstruction.least_level=1.0',
  ]  # fmt: skip
  assert cli.main(['xinstruction', 'run', *arguments]) == 0
  counts = lambda step: json.loads((out / step / 'manifest.json').read_text())['counts']
  for language in languages:
    own = counts('filter')['by_language'][language]
    assert own['read'] == own['kept'] + sum(own['dropped'].values())
    by_length = own['dropped'].get('too_short', 0) + own['dropped'].get('too_long', 0)
    assert own['kept'] + by_length > 0.9 * own['read']
    rows = json.loads((out / 'export' / f'{language}.json').read_text(encoding='utf-8'))
    assert len(rows) == counts('keep.0')['by_language'][language]['kept'] > 3
    assert all(
      row['language'] == language and row['instruction'] and 200 <= len(row['output']) <= 2000
      for row in rows
    )
  assert (
    counts('pairs')['candidates'] + counts('pairs')['empty_instruction'] == counts('filter')['kept']
  )


def test_a_round_that_would_change_nothing_is_not_trained(
  material, tiny_vocabulary, tmp_path, monkeypatch
):
  from crossin_jax.xinstruction.pipeline import Pipeline
  from crossin_jax.xinstruction.settings import XInstruction
  from crossin_jax.xinstruction.steps import rounds

  settings = XInstruction(
    languages=LANGUAGES, documents=f'{material}/text.{{language}}.jsonl', seed=f'{material}/seed',
    vocabulary=str(tiny_vocabulary.path), model_gin=(f'{material}/model.gin',),
  )  # fmt: skip
  steps = Pipeline(str(tmp_path / 'run'), settings).steps.steps
  monkeypatch.setattr(rounds, 'settled', lambda run, i: i == 1)
  for name in ('train-response.1', 'respond.1', 'train-rater.1', 'rate.1'):
    assert 'changed the kept set too little' in steps[name].run(str(tmp_path))['settled']
  assert not (tmp_path / 'run' / 'logs').exists()
