"""What an instruction set is compared with: translated and distilled rows, and the mixtures of all
of them.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from conftest import replies_in
from endpoint_server import KEY
import pytest
from teaching_server import number, running

from crossin_jax import cli, config
from crossin_jax.data.prepared import PreparedMixture, TaskSplit
from crossin_jax.xinstruction import rows as rows_lib
from crossin_jax.xinstruction.pipeline import Pipeline
from crossin_jax.xinstruction.settings import XInstruction
from crossin_jax.xinstruction.steps import export

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
NAMES = {'sw': 'Swahili', 'ta': 'Tamil'}
ENGLISH = [
  {'id': f'r{i}', 'instruction': f'Say line {i}. ', 'input': ['', 'Loudly.'][i % 2], 'output': f'line {i}'} for i in range(24)
]  # fmt: skip


def read(path):
  return json.loads(pathlib.Path(path).read_text('utf-8'))


@pytest.fixture(autouse=True)
def _key(monkeypatch):
  monkeypatch.setenv('OPENAI_API_KEY', KEY)


# ---- translated rows ----


def aligned(folder):
  """English rows and translations, these in another order, and one row less in Swahili."""
  rows_lib.write(str(folder / 'rows_en.json'), ENGLISH)
  for language in NAMES:
    rows = [
      {
        'id': row['id'],
        'instruction': f'{language} instruction',
        'input': f'{language} input',
        'output': f'{language} {row["output"]}',
      }
      for row in reversed(ENGLISH)
    ]
    rows_lib.write(str(folder / f'rows_{language}.json'), rows[language == 'sw' :])
  return folder / 'rows'


def translated(stem, out, *more):
  return cli.main(
    [
      'xinstruction',
      'translated',
      '--rows',
      str(stem),
      '--languages',
      'sw,ta',
      '--output',
      str(out),
      *more,
    ]
  )


def test_translated_rows_have_english_instructions_and_native_responses(tmp_path, capsys):
  assert translated(aligned(tmp_path), tmp_path / 'out' / 'translated', '--json') == 0
  said = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert said == {
    'rows': {'sw': 23, 'ta': 24},
    'set_aside': {'sw': {'no_counterpart': 1}, 'ta': {}},
  }
  for language, name in NAMES.items():
    found = read(tmp_path / 'out' / f'translated_{language}.json')
    for row in found:
      i = int(row['id'][1:])
      asked = f'Say line {i}.' + ('\nLoudly.' if i % 2 else '')
      assert row['instruction'] == f'{asked} Answer in {name} and the style of an AI assistant.'
      assert (
        row['output'] == f'{language} line {i}'
        and row['source'] == 'translated'
        and row['language'] == language
      )
  assert 'r23' not in {row['id'] for row in read(tmp_path / 'out' / 'translated_sw.json')}
  assert translated(tmp_path / 'rows', tmp_path / 'plain', '--style', 'plain') == 0
  assert read(tmp_path / 'plain_ta.json')[0]['instruction'] == 'Say line 0. Answer in Tamil.'


def test_translated_rows_that_cannot_be_made(tmp_path, capsys):
  stem = aligned(tmp_path)
  assert translated(stem, stem) == 1
  assert 'would be overwritten' in capsys.readouterr().err
  assert translated(stem, tmp_path / 'o', '--languages', 'en,sw') == 1
  assert "names 'en'" in capsys.readouterr().err
  assert translated(stem, tmp_path / 'o', '--languages', 'sw,vi') == 1
  assert "no file for language 'vi'" in capsys.readouterr().err


# ---- distilled rows ----


def distill(url, source, out, *more):
  return ['xinstruction', 'distill', '--input', str(source), '--languages', 'sw,ta', '--output', str(out), '--endpoint', url,
          '--model', 'strong', '--gin.Endpoint.backoff_seconds=0.01', *more]  # fmt: skip


@pytest.fixture
def source(tmp_path):
  path = tmp_path / 'rows.en.json'
  rows_lib.write(str(path), ENGLISH)
  return path


def test_distilled_rows(source, tmp_path, monkeypatch, capsys):
  stem = tmp_path / 'out' / 'distilled'
  with running(monkeypatch, tmp_path, fail=0.3, slow=0.01, seed=1) as server:
    assert cli.main(distill(server.url, source, stem, '--json')) == 0
    said = server.by_key()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert cli.main(distill(server.url, source, stem)) == 0
    assert server.by_key() == said  # nothing is asked twice
  assert len(said) == 48 and all('ok' not in lines[:-1] for lines in said.values())
  assert (
    found['rows'] == {'sw': 24, 'ta': 24}
    and found['set_aside'] == {'sw': {}, 'ta': {}}
    and found['asked'] == 24
  )
  for language, name in NAMES.items():
    for i, row in enumerate(read(f'{stem}_{language}.json')):
      asked = f'Say line {i}.' + ('\nLoudly.' if i % 2 else '')
      # what the teacher saw has no prompt form
      assert row['output'] == f'In {name}: {number(asked)}'
      assert (
        row['instruction'] == f'{asked} Answer in {name} and the style of an AI assistant.'
        and row['id'] == f'r{i}'
      )
  assert not any(
    KEY.encode() in path.read_bytes() for path in (tmp_path / 'out').rglob('*') if path.is_file()
  )


def test_rows_that_the_teacher_leaves_open_are_set_aside(source, tmp_path, monkeypatch, capsys):
  stem = tmp_path / 'out' / 'distilled'
  with running(monkeypatch, tmp_path, mode='translate', always_garbage='Say line 1') as server:
    assert (
      cli.main(distill(server.url, source, stem, '--gin.Endpoint.garbage_retries=0', '--json')) == 0
    )
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  records = [
    json.loads(line)
    for line in pathlib.Path(f'{stem}_set_aside.jsonl').read_text('utf-8').splitlines()
  ]
  assert 0 < len(records) < 22 and {record['reason'] for record in records} == {'empty'}
  for language in NAMES:
    aside = {record['id'] for record in records if record['language'] == language}
    assert aside <= {f'r{i}' for i in (1, *range(10, 20))}
    assert [row['id'] for row in read(f'{stem}_{language}.json')] == [
      f'r{i}' for i in range(24) if f'r{i}' not in aside
    ]
    assert (
      found['rows'][language]
      == 24 - len(aside)
      == 24 - found['set_aside'][language].get('empty', 0)
    )


def test_distilling_killed_and_again(source, tmp_path, monkeypatch):
  (tmp_path / 'alone').mkdir()
  with running(monkeypatch, tmp_path / 'alone') as server:
    assert cli.main(distill(server.url, source, tmp_path / 'alone' / 'distilled')) == 0
  out = tmp_path / 'out'
  replies = out / 'cache'
  with running(monkeypatch, tmp_path, slow=0.2, fail=0.1) as server:
    argv = [
      sys.executable,
      '-m',
      'crossin_jax.cli',
      *distill(server.url, source, out / 'distilled'),
    ]
    environment = {**os.environ, 'PYTHONPATH': str(REPOSITORY)}
    process = subprocess.Popen(argv, env=environment, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    while process.poll() is None and replies_in(replies) < 15:
      time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / 'distilled_distill.json').exists()
    assert cli.main(distill(server.url, source, out / 'distilled')) == 0
    assert sum('ok' in said[:-1] for said in server.by_key().values()) <= 8
  for name in ('sw.json', 'ta.json', 'set_aside.jsonl', 'distill.json'):
    assert (out / f'distilled_{name}').read_bytes() == (
      tmp_path / 'alone' / f'distilled_{name}'
    ).read_bytes()


def test_distilling_within_a_budget(source, tmp_path, capsys):
  url, stem = 'http://127.0.0.1:1/v1', tmp_path / 'out' / 'd'
  assert (
    cli.main(distill(url, source, stem, '--price_in', '1e4', '--price_out', '1e4', '--budget', '1'))
    == 2
  )
  assert 'over the budget' in capsys.readouterr().err
  assert cli.main(distill(url, source, stem, '--dry_run', '--json')) == 0
  assert json.loads(capsys.readouterr().out)['requests'] == 48
  assert cli.main(distill(url, source, tmp_path / 'rows.en', '--languages', 'en')) == 1


# ---- mixtures ----


@pytest.fixture(scope='module')
def exported(tmp_path_factory, tiny_vocabulary):
  """(folder of an export, prompts of its components by language): of a set that was written by
  hand.
  """
  folder = tmp_path_factory.mktemp('exported')
  for language in NAMES:
    rows_lib.write(str(folder / f'text.{language}.jsonl'), [{'id': 1, 'text': 'x'}])
    rows_lib.write(str(folder / f'seed.{language}.json'), [{'instruction': 'a', 'output': 'b'}])
    for step, count in (('diversify', 9), ('seed', 5)):
      rows = [
        {
          'id': f'{step}.{i}',
          'instruction': f'Tell {step} {i}.',
          'output': f'{language} {i}',
          'language': language,
          'source': 's',
          'score': 3.0,
        }
        for i in range(count)
      ]
      rows_lib.write(str(folder / 'run' / step / language / '00000.jsonl'), rows)
  settings = XInstruction(
    languages=tuple(NAMES), documents=str(folder / 'text.{language}.jsonl'),
    seed=str(folder / 'seed'),
    vocabulary=tiny_vocabulary.path, max_length=512,
  )  # fmt: skip
  pipeline = Pipeline(str(folder / 'run'), settings)
  assert export.export(pipeline.run, pipeline.steps.folder('export'))['rows'] == 18
  assert translated(aligned(folder), folder / 'translated') == 0
  for language in NAMES:
    os.rename(folder / f'translated_{language}.json', folder / f'other_{language}.json')
  prompts = {
    (component, language): sorted(
      row['instruction'] for row in read(f'{folder}/{stem}_{language}.json')
    )
    for component, stem in (
      ('rows', 'run/export/plain'),
      ('seed', 'run/export/assistant'),
      ('distilled', 'other'),
    )
    for language in NAMES
  }
  return folder, prompts


MIXTURES = (
  'seed',
  'rows',
  'rows_seed',
  'seed_translated',
  'seed_distilled',
  'rows_seed_translated_distilled',
)


@pytest.mark.parametrize('components', MIXTURES)
def test_mixtures_of_an_export(exported, tiny_vocabulary, tmp_path, components):
  folder, prompts = exported
  name = f'xinstruction.{components}.all.en_sw_ta.default'
  more = [
    f"--gin.{macro}='{folder}/other'"
    for macro in ('TRANSLATED', 'DISTILLED')
    if macro.lower() in components
  ]
  flags = [
    f'--gin_file={folder}/run/export/mixture.gin',
    '--mixture',
    name,
    '--output_dir',
    str(tmp_path / 'prepared'),
  ]
  assert cli.main(['prepare', *flags, *more]) == 0
  mixture = PreparedMixture(str(tmp_path / 'prepared'), name)
  assert mixture.description['max_length'] == 512
  found = {}
  for task in read(tmp_path / 'prepared' / 'mixtures' / f'{name}.json')['tasks']:
    language = task['task'].split('.')[-2]
    for split in ('train', 'validation'):
      stored = TaskSplit(str(tmp_path / 'prepared'), task['task'], split)
      for i in range(len(stored)):
        tokens, weights = stored.example(i)
        prompt = tiny_vocabulary.decode([int(t) for t in tokens[: int((weights == 0).sum())]])
        asked = prompt.split('### Instruction:\n')[1].removesuffix(' \n\n### Response:')
        found.setdefault((task['component'], language), []).append(asked)
  wanted = {
    (c, k): prompts['distilled' if c == 'translated' else c, k]
    for c in components.split('_')
    for k in NAMES
  }
  assert {key: sorted(own) for key, own in found.items()} == wanted
  assert all(
    text.endswith(f'. Answer in {NAMES[k]}.')
    for (c, k), own in found.items()
    if c == 'rows'
    for text in own
  )
  style = 'and the style of an AI assistant.'
  assert all(
    text.endswith(f'Answer in {NAMES[k]} {style}')
    for (c, k), own in found.items()
    if c != 'rows'
    for text in own
  )


def test_a_language_without_rows_is_left_out_of_the_mixture(exported):
  folder, _ = exported
  settings = XInstruction(languages=('sw', 'ta'), documents='', seed='', vocabulary='v.model')
  text = export.mixture(settings, str(folder), ['ta'])
  assert "LANGUAGES = ('ta',)  # no rows in sw\n" in text and 'rows_seed.all.en_ta.default' in text
  text = export.mixture(settings, str(folder), [])
  assert (
    "LANGUAGES = ('sw', 'ta')  # no rows in sw, ta\n" in text
    and 'ROWS = None\n' in text
    and 'xinstruction.seed.all.en_sw_ta' in text
  )


@pytest.mark.slow
def test_mixtures_in_plain_seqio(exported, tmp_path):
  """Every Task of the mixture gives through SeqIO, token by token, what `prepare` wrote."""
  import numpy as np
  import seqio

  import seqio_tasks

  folder, _ = exported
  name = 'xinstruction.rows_seed_distilled.all.en_sw_ta.default'
  file, macro = f'{folder}/run/export/mixture.gin', f"DISTILLED = '{folder}/other'"
  assert (
    cli.main(
      [
        'prepare',
        f'--gin_file={file}',
        f'--gin_bindings={macro}',
        '--mixture',
        name,
        '--output_dir',
        str(tmp_path),
      ]
    )
    == 0
  )
  config.parse(argparse.Namespace(gin_file=[file], gin_bindings=[macro], gin_search_paths=''))
  registered = seqio_tasks.register(name)
  assert seqio.get_mixture_or_task(name) is registered and len(registered.tasks) == 6
  lengths, count = {'targets': 512, 'loss_weights': 512}, 0
  for task in registered.tasks:
    for split in ('train', 'validation'):
      stored = TaskSplit(str(tmp_path), task.name, split)
      found = list(
        task.get_dataset(sequence_length=lengths, split=split, shuffle=False).as_numpy_iterator()
      )
      assert len(found) == len(stored)
      for i, example in enumerate(found):
        tokens, weights = stored.example(i)
        np.testing.assert_array_equal(example['targets'], tokens)
        np.testing.assert_array_equal(example['loss_weights'], weights)
      count += len(found)
  assert count == 2 * (9 + 5) + 23 + 24
  dataset = seqio.get_mixture_or_task(name).get_dataset(
    sequence_length=lengths, split='train', shuffle=False, num_epochs=1
  )
  assert sum(1 for _ in dataset) > 0
