"""`crossin generate`: rows in, rows out; kills, interruptions and restarts; errors for bad input."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

from addresses import free_address
from conftest import REPOSITORY, TINY_GIN, init_params, tiny_config
import jax
import jax.numpy as jnp
import pytest

from crossin_jax import cli
from crossin_jax.checkpoints import parameters
from crossin_jax.decoding import generate as lib
from crossin_jax.decoding.journal import Journal, JournalError
from crossin_jax.models.decoder import Decoder
from crossin_jax.storage.files import write_json

SAMPLED = [
  '--gin.Sampling.temperature=1.0',
  '--gin.Sampling.max_new_tokens=20',
  '--gin.Sampling.seed=3',
]


@pytest.fixture(scope='module')
def model_dir(tmp_path_factory, tiny_vocabulary):
  """A MODEL_DIR with an untrained model."""
  directory = tmp_path_factory.mktemp('run')
  model = Decoder(tiny_config(vocab_size=1216))
  parameters.save_params(str(directory), init_params(model, 2))
  (directory / 'config.gin').write_text(TINY_GIN)
  shutil.copyfile(tiny_vocabulary.path, directory / 'words.model')
  write_json(
    str(directory / 'prompts.json'),
    {
      'prompts': {'template': 'gemma', 'tags': True},
      'vocabulary': {'file': 'words.model', 'bos_token': None, 'eos_token': None},
    },
  )
  return directory


def rows(n=12):
  """Plain prompts and instructions, with and without an id, of ragged lengths."""
  made = []
  for i in range(n):
    row = {
      'instruction': f'What is number {i}? ' * (1 + i % 4),
      'input': 'none' if i % 3 else '',
      'language': 'es',
    }
    made.append({'prompt': 'Radio ' * (i % 5)} if i % 4 == 3 else row)
    if i % 2:
      made[-1]['id'] = f'row {i}'
  return made


def write(path, made) -> str:
  path.write_text(''.join(json.dumps(row) + '\n' for row in made), encoding='utf-8')
  return str(path)


def read(path):
  with open(path, encoding='utf-8') as f:
    return [json.loads(line) for line in f]


def flags(model_dir, tmp_path, *more):
  """Arguments of `crossin generate` on an input that is written here if it is not there."""
  if not (tmp_path / 'in.jsonl').exists():
    write(tmp_path / 'in.jsonl', rows())
  paths = ['--input', str(tmp_path / 'in.jsonl'), '--output', str(tmp_path / 'out.jsonl')]
  return [
    'generate',
    '--checkpoint',
    str(model_dir),
    *paths,
    '--gin.Partitioner.mesh_shape=(-1,1,1)',
    *more,
  ]


@pytest.fixture(scope='module')
def undisturbed(model_dir, tmp_path_factory):
  """The output of a run that nothing happened to."""
  tmp_path = tmp_path_factory.mktemp('undisturbed')
  assert cli.main(flags(model_dir, tmp_path, *SAMPLED)) == 0
  return (tmp_path / 'out.jsonl').read_text(encoding='utf-8')


def test_every_row_is_answered_in_order(model_dir, tmp_path, capsys):
  assert cli.main(flags(model_dir, tmp_path, '--gin.Sampling.max_new_tokens=9', '--json')) == 0
  found = read(tmp_path / 'out.jsonl')
  said = capsys.readouterr()
  assert [row['index'] for row in found] == list(range(12))
  assert [row['id'] for row in found] == [row.get('id', i) for i, row in enumerate(rows())]
  for given, row in zip(rows(), found):  # what the input row says is kept
    assert set(row) == {'id', 'index', 'output', 'tokens', 'finish_reason'} | set(given)
  assert {row['finish_reason'] for row in found} <= {'stop', 'length'}
  assert all(
    row['tokens'] <= 9 and (row['tokens'] == 9 or row['finish_reason'] == 'stop') for row in found
  )
  summary = json.loads(said.out.splitlines()[-1])
  assert (
    summary['answers'] == 12
    and summary['status'] == 0
    and summary['tokens'] == sum(r['tokens'] for r in found)
  )
  assert '12/12' in said.err
  # Again: nothing is left to do, and nothing changes.
  before = (tmp_path / 'out.jsonl').stat().st_mtime_ns
  assert cli.main(flags(model_dir, tmp_path, '--gin.Sampling.max_new_tokens=9')) == 0
  assert (tmp_path / 'out.jsonl').stat().st_mtime_ns == before


def test_prompts_are_those_of_training(model_dir, tiny_vocabulary):
  prompts = lib.Prompts(str(model_dir))
  row = {'instruction': 'Ask.', 'input': '', 'language': 'es'}
  encode = lambda text: [tiny_vocabulary.bos_id, *tiny_vocabulary.encode(text)]
  assert lib.prompt_tokens(row, prompts) == encode('Ask.\n')
  assert lib.prompt_tokens(row, prompts, tags=True) == encode('Ask.\n\n[es]\n')
  assert lib.prompt_tokens({'prompt': 'Ask.'}, prompts) == encode('Ask.')
  assert lib.prompt_tokens({'prompt': ''}, prompts) == encode('')


def test_a_killed_run_continues(model_dir, tmp_path, undisturbed, monkeypatch):
  """A kill leaves some rows in the order of their completion, and an incomplete line."""
  whole = undisturbed.splitlines(keepends=True)
  (tmp_path / 'out.jsonl').write_text(
    ''.join([whole[7], whole[2], whole[9]]) + whole[4][:21], encoding='utf-8'
  )
  first = tmp_path / 'first'
  first.mkdir()
  assert cli.main(flags(model_dir, first, *SAMPLED)) == 0
  shutil.copyfile(first / 'out.jsonl.run.json', tmp_path / 'out.jsonl.run.json')
  answered = []
  append = Journal.append
  monkeypatch.setattr(
    Journal, 'append', lambda self, row: answered.append(row['index']) or append(self, row)
  )
  assert cli.main(flags(model_dir, tmp_path, *SAMPLED)) == 0
  assert sorted(answered) == [0, 1, 3, 4, 5, 6, 8, 10, 11], 'only what is missing is generated'
  assert (tmp_path / 'out.jsonl').read_text(encoding='utf-8') == undisturbed


def test_an_interrupted_run_keeps_finished_answers(
  model_dir, tmp_path, undisturbed, monkeypatch, capsys
):
  append = Journal.append

  def stopping(self, row):
    append(self, row)
    if len(self.done) == 3:
      os.kill(os.getpid(), signal.SIGTERM)

  few = [*SAMPLED, '--gin.Generator.rows=4']
  with monkeypatch.context() as patch:
    patch.setattr(Journal, 'append', stopping)
    assert cli.main(flags(model_dir, tmp_path, *few, '--json')) == 75
  said = capsys.readouterr()
  assert 'start the same command again' in said.err and json.loads(said.out.splitlines()[-1]) == {
    'status': 75
  }
  assert 3 <= len(read(tmp_path / 'out.jsonl')) < 12
  assert cli.main(flags(model_dir, tmp_path, *few)) == 0
  assert (tmp_path / 'out.jsonl').read_text(encoding='utf-8') == undisturbed


@pytest.mark.slow
def test_kill_9_in_a_process(model_dir, tmp_path):
  """Three kills and restarts give the output of an undisturbed run, byte for byte."""
  write(tmp_path / 'in.jsonl', rows(60))
  command = [sys.executable, '-m', 'crossin_jax.cli']
  more = [
    '--gin.Sampling.temperature=1.0',
    '--gin.Sampling.max_new_tokens=60',
    '--gin.Generator.rows=4',
  ]
  out = tmp_path / 'out.jsonl'
  for wanted in (1, 15, 30):
    process = subprocess.Popen(
      [*command, *flags(model_dir, tmp_path, *more)], cwd=REPOSITORY, stderr=subprocess.DEVNULL
    )  # fmt: skip
    while process.poll() is None and not (out.exists() and out.read_bytes().count(b'\n') >= wanted):
      time.sleep(0.01)
    process.kill()
    process.wait()
  assert cli.main(flags(model_dir, tmp_path, *more)) == 0
  alone = tmp_path / 'alone'
  alone.mkdir()
  write(alone / 'in.jsonl', rows(60))
  assert cli.main(flags(model_dir, alone, *more)) == 0
  assert out.read_bytes() == (alone / 'out.jsonl').read_bytes()


def test_several_samples(model_dir, tmp_path):
  more = [
    '--gin.Sampling.temperature=1.0',
    '--gin.Sampling.samples=3',
    '--gin.Sampling.max_new_tokens=6',
  ]
  assert cli.main(flags(model_dir, tmp_path, *more)) == 0
  found = read(tmp_path / 'out.jsonl')
  assert [(row['index'], row['sample']) for row in found] == [
    (i, s) for i in range(12) for s in range(3)
  ]
  assert len({row['output'] for row in found}) > 20


@pytest.mark.parametrize(
  'more, message',
  [
    (['--gin.Sampling.temperature=0.5'], 'Sampling.temperature was 1.0, now 0.5'),
    (['--gin.generate.tags=True'], 'generate.tags was False, now True'),
  ],
)
def test_another_setting_is_named(model_dir, tmp_path, undisturbed, more, message, capsys):
  (tmp_path / 'out.jsonl').write_text(undisturbed, encoding='utf-8')
  first = tmp_path / 'first'
  first.mkdir()
  assert cli.main(flags(model_dir, first, *SAMPLED)) == 0
  shutil.copyfile(first / 'out.jsonl.run.json', tmp_path / 'out.jsonl.run.json')
  write(
    tmp_path / 'in.jsonl',
    [row | {'language': 'es'} for row in rows()] if 'tags' in more[0] else rows(),
  )
  assert cli.main(flags(model_dir, tmp_path, *SAMPLED, *more)) == 1
  said = capsys.readouterr().err
  assert message in said and 'to restart' in said
  assert (tmp_path / 'out.jsonl').read_text(encoding='utf-8') == undisturbed


def test_another_input_or_model_is_named(model_dir, tmp_path, capsys):
  assert cli.main(flags(model_dir, tmp_path, '--gin.Sampling.max_new_tokens=2')) == 0
  write(tmp_path / 'in.jsonl', rows(13))
  assert cli.main(flags(model_dir, tmp_path, '--gin.Sampling.max_new_tokens=2')) == 1
  assert 'sha256 of the input was' in capsys.readouterr().err
  write(tmp_path / 'in.jsonl', rows())
  other = tmp_path / 'other'
  shutil.copytree(model_dir, other)
  shutil.rmtree(other / 'checkpoint_0')
  shutil.rmtree(other / 'digests', ignore_errors=True)
  parameters.save_params(str(other), init_params(Decoder(tiny_config(vocab_size=1216)), 9))
  assert cli.main(flags(other, tmp_path, '--gin.Sampling.max_new_tokens=2')) == 1
  assert 'digest of the weights was' in capsys.readouterr().err


@pytest.mark.parametrize(
  'line, message',
  [
    ('{"prompt": 3}', 'line 2: field "prompt" is a int, it must be a string'),
    ('{"instruction": "a", "prompt": "b"}', 'line 2: give either field "prompt"'),
    ('{"text": "a"}', 'line 2: give either field "prompt"'),
    ('{"messages": [], "prompt": "b"}', 'line 2: give either field "prompt"'),
    ('{"messages": "Hi"}', 'line 2: field "messages" is a str, it must be a list of turns'),
    (
      '{"messages": [{"role": "assistant", "content": "Hi"}]}',
      "line 2: field 'messages' has the roles assistant; give",
    ),
    (
      '{"messages": [{"role": "tool", "content": "Hi"}]}',
      "line 2: field 'messages': unknown_role in",
    ),
    ('{"instruction": " "}', 'line 2: field "instruction" is empty'),
    ('{"instruction": "a", "input": null}', 'line 2: field "input" is a NoneType'),
    ('{"prompt": "a", "id": [1]}', 'line 2: field "id" is a list'),
    ('["a"]', 'line 2: expected a JSON object, found list'),
    ('{"prompt": "a"', 'line 2: not valid JSON'),
  ],
)
def test_a_malformed_row_is_named_before_anything_starts(
  model_dir, tmp_path, line, message, capsys
):
  (tmp_path / 'in.jsonl').write_text(
    '{"prompt": "fine"}\n' + line + '\n{"prompt": 4}\n', encoding='utf-8'
  )
  assert cli.main(flags(model_dir, tmp_path)) == 1
  said = capsys.readouterr().err
  assert (
    f'in.jsonl, {message}' in said
    and '1 more rows are malformed' in said
    and 'Traceback' not in said
  )
  assert not (tmp_path / 'out.jsonl').exists()


def test_other_bad_arguments(model_dir, tmp_path, capsys):
  run = lambda *more: (cli.main(flags(model_dir, tmp_path, *more)), capsys.readouterr().err)
  status, said = run('--gin.Sampling.temprature=1.0')
  assert status == 2 and 'the nearest is temperature' in said
  status, said = run('--gin.Sampling.top_p=2.0')
  assert status == 1 and 'Sampling.top_p = 2.0 must be at least 0 and at most 1' in said
  status, said = run('--gin.DecoderConfig.vocab_size=1000')
  assert status == 1 and 'has 1200 ids, the model 1000' in said
  (tmp_path / 'out.jsonl').write_text('mine\n')
  status, said = run()
  assert (
    status == 1
    and 'out.jsonl exists but belongs to no run' in said
    and (tmp_path / 'out.jsonl').read_text() == 'mine\n'
  )
  (tmp_path / 'in.jsonl').write_text('\n')
  status, said = run()
  assert status == 1 and 'has no rows' in said
  (tmp_path / 'in.jsonl').unlink()
  arguments = flags(model_dir, tmp_path)
  (tmp_path / 'in.jsonl').unlink()
  assert cli.main(arguments) == 1 and 'in.jsonl is not a file' in capsys.readouterr().err


@pytest.mark.parametrize('flag', ['temperature=0.0', 'temperature=0.7', 'top_p=0.9'])
def test_logits_that_are_not_finite_are_an_error_of_row_and_step(model_dir, tmp_path, capsys, flag):
  model = Decoder(tiny_config(vocab_size=1216))
  params = init_params(model, 2)
  params['decoder']['token_embedding'] = params['decoder']['token_embedding'].at[:, 0].set(jnp.nan)
  damaged = tmp_path / 'damaged'
  shutil.copytree(model_dir, damaged, ignore=shutil.ignore_patterns('checkpoint_*', 'digests'))
  parameters.save_params(str(damaged), params)
  flags_ = ['--gin.Sampling.temperature=1.0', f'--gin.Sampling.{flag}']
  assert cli.main(flags(damaged, tmp_path, *flags_)) == 1
  said = capsys.readouterr().err
  assert re.search(
    r"row \d+ of the input \(id '?(row )?\d+'?\): the logits are not finite at step 1 of the answer",
    said,
  )
  assert 'Traceback' not in said and 'DecoderConfig.dtype' in said


def test_tags_need_languages():
  with pytest.raises(ValueError, match='line 1: field "language" is missing'):
    path = pathlib.Path(os.environ.get('TMPDIR', '/tmp')) / f'tags-{os.getpid()}.jsonl'
    try:
      lib.read_rows(write(path, [{'instruction': 'Ask.'}]), tags=True)
    finally:
      path.unlink()


def test_two_runs_do_not_share_an_output(tmp_path):
  first = Journal(str(tmp_path / 'a.jsonl'), {'seed': 1})
  with pytest.raises(JournalError, match='in use by another process'):
    Journal(str(tmp_path / 'a.jsonl'), {'seed': 1})
  first.close()
  Journal(str(tmp_path / 'a.jsonl'), {'seed': 1}).close()


def test_a_journal_with_a_broken_line_in_the_middle_is_refused(tmp_path):
  path = str(tmp_path / 'a.jsonl')
  journal = Journal(path, {})
  journal.append({'index': 0})
  journal.close()
  with open(path, 'a', encoding='utf-8') as f:
    f.write('no row\n{"index": 1}\n')
  with pytest.raises(JournalError, match='line 2 is not a row of this run'):
    Journal(path, {})


@pytest.mark.slow
def test_two_processes_write_what_one_writes(model_dir, tmp_path):
  more = [*SAMPLED, '--gin.Generator.rows=4']
  alone = tmp_path / 'alone'
  alone.mkdir()
  assert cli.main(flags(model_dir, alone, *more)) == 0
  address = free_address()
  environment = os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}
  running = [
    subprocess.Popen(
      [
        sys.executable, '-m', 'crossin_jax.cli', *flags(model_dir, tmp_path, *more),
        f'--coordinator_address={address}', '--process_count=2', f'--process_index={index}',
      ],
      cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True,
    )
    for index in range(2)
  ]  # fmt: skip
  errors = [process.communicate(timeout=300)[1] for process in running]
  assert [process.returncode for process in running] == [0, 0], errors
  assert read(tmp_path / 'out.jsonl') == read(alone / 'out.jsonl')
  assert '12/12' in errors[0] and '12/12' not in errors[1]


def test_devices_are_four():
  assert len(jax.devices()) == 4, 'conftest asks for them; the runs above are sharded'
