"""Translation: what must survive does, or the row is set aside everywhere; nothing is asked twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

from conftest import REPOSITORY, init_params, replies_in, tiny_config
from endpoint_server import KEY, running
from hypothesis import given
from hypothesis import strategies as st
import pytest

from crossin_jax import cli
from crossin_jax.checkpoints import parameters
from crossin_jax.data.readers import find_files, read_rows
from crossin_jax.models.decoder import Decoder
from crossin_jax.storage.files import write_json
from crossin_jax.translation import translate
from crossin_jax.translation.masks import CLOSE, OPEN, Masked, marker_problem, mask, unmask

PROTECTED = {
  '`ls -l {dir}`': 'code',
  '```python\ndef f(x):\n  return x  # in English\n```': 'code',
  '<pre>keep this</pre>': 'code',
  'def f(x):\n    total = 3\n\n    return total': 'code',
  'for (int i = 0; i < 3; i++) {\n  foo();\n}': 'code',
  'SELECT name FROM users WHERE id = 7;': 'code',
  'import numpy as np\nprint(np.zeros(3))': 'code',
  'https://example.org/a_(b)?x=1&y=%20z#top': 'url',
  'www.example.org/path': 'url',
  'first.last+tag@mail.example.org': 'e-mail',
  '{name}': 'placeholder',
  '{{ user.name }}': 'placeholder',
  '${HOME}': 'placeholder',
  '%s': 'placeholder',
  '%(count)d': 'placeholder',
  '%1$s': 'placeholder',
  '<|im_start|>': 'placeholder',
  '<a href="x.html" class=\'y\'>': 'markup',
  '</b>': 'markup',
  '<br/>': 'markup',
  '<!-- a note -->': 'markup',
  '&nbsp;': 'markup',
  '$x^2 + y_1$': 'formula',
  '$$\n\\int f\n$$': 'formula',
  '\\(a + b\\)': 'formula',
  '\\begin{align}a &= b\\end{align}': 'formula',
  '[zh]': 'tag',
  '[pt-BR]': 'tag',
}
PROSE = [
  'It costs $5, or $10 for two.',
  'About 50 % should do; 100% safe, 7%off.',
  'If a < b and c > d, stop.',
  'import taxes are high',
  'For example:',
  'with the following ingredients:',
  'while you wait, rest;',
  'Radius is five.',
  'Either/or, and/or [Sic] (see below).',
  'Select all from the list.',
  'return to the house',
]


@pytest.mark.parametrize('piece, kind', PROTECTED.items())
def test_what_is_protected(piece, kind):
  found = mask(f'Look here:\n{piece}\nDone now.')
  assert found.pieces == (piece,) and found.kinds == (kind,)
  assert found.text == f'Look here:\n{OPEN}1{CLOSE}\nDone now.'
  if kind in ('url', 'e-mail', 'placeholder', 'formula', 'tag') and '\n' not in piece:
    found = mask(f'See ({piece}), or {piece}.')
    assert (
      found.pieces == (piece, piece) and found.text == f'See ({OPEN}1{CLOSE}), or {OPEN}2{CLOSE}.'
    )


@pytest.mark.parametrize('text', PROSE)
def test_what_is_prose(text):
  assert mask(text) == Masked(text, (), ()) and mask(f'{text}\n{text}').pieces == ()


@given(
  st.lists(
    st.one_of(
      st.sampled_from(
        [*PROTECTED, *PROSE, '\n', ' ', f'{OPEN}3{CLOSE}', OPEN, '```', '`', '$', '{', '<']
      ),
      st.text(max_size=6),
    ),
    max_size=8,
  ),
  st.randoms(),
)
def test_masked_and_put_back_is_the_same_text_whatever_it_is(parts, draw):
  text = ''.join(parts)
  found = mask(text)
  assert unmask(found.text, found.pieces) == text
  assert marker_problem(found.text, len(found.pieces)) is None
  markers = [f'{OPEN} {n} {CLOSE}' for n in range(1, len(found.pieces) + 1)]
  draw.shuffle(markers)  # another grammar, another order
  moved = unmask('|'.join(markers), found.pieces)
  assert sorted(moved) == sorted('|'.join(found.pieces))


def test_markers_lost_doubled_invented():
  one, two, three = (f'{OPEN}{n}{CLOSE}' for n in (1, 2, 3))
  assert marker_problem(f'{two} x {one}', 2) is None
  assert marker_problem(f'{OPEN}٢{CLOSE} x {OPEN}۱{CLOSE}', 2) is None  # digits of other scripts
  assert marker_problem(f'{two} x', 2) == 'marker lost'
  assert marker_problem(f'{one}{two}{one}', 2) == 'marker doubled'
  assert (
    marker_problem(f'{one}{two}{three}', 2)
    == marker_problem(f'{one}{two}{OPEN}0{CLOSE}', 2)
    == 'marker invented'
  )
  assert (
    marker_problem(f'{one}{two} {OPEN}', 2)
    == marker_problem(f'{OPEN}x{CLOSE}', 0)
    == 'marker invented'
  )


def test_what_is_no_translation():
  text = 'This is a sentence of some length, with `code` inside it, and it goes on and on.'
  masked, marker = mask(text), f'{OPEN}1{CLOSE}'
  check = lambda reply: translate.problem(masked, reply, (0.1, 4))
  assert check(f'Eine Übersetzung des Satzes mit {marker} darin, die auch weitergeht.') is None
  assert check(f'<text>\nEine Übersetzung des Satzes mit {marker} darin.\n</text>') is None
  assert check(' <text> </text>') == check('') == 'empty'
  assert check('Eine Übersetzung des Satzes ohne ihn.') == 'marker lost'
  assert check(masked.text) == 'untranslated'
  assert check(f'{marker} ja') == 'length' and check(marker + ' und so weiter' * 40) == 'length'
  short = mask('Albert Einstein')
  assert translate.problem(short, 'Albert Einstein', (0.1, 4)) is None  # a name may stay


def rows(n=12):
  made = []
  for i in range(n):
    made.append({
      'id': f'r{i}',
      'instruction': f'Explain the following line number {chr(97 + i)} of the program to a child.',
      'input': ['', f'Run `ls -{i} {{dir}}` now, then open https://example.org/{i}.', str(i)][i % 3],
      'output': f'  It prints all of the files.\n```\nls -{i}\n```\nAsk {{name}} or '
                f'a{i}@example.org for %s more [zh].\n',
    })  # fmt: skip
  return made


@pytest.fixture(autouse=True)
def _setting(monkeypatch):
  monkeypatch.setenv('OPENAI_API_KEY', KEY)


@pytest.fixture
def source(tmp_path):
  path = tmp_path / 'set.en.json'
  path.write_text(json.dumps(rows()), encoding='utf-8')
  return path


def flags(source, url, out, *more):
  return ['translate', '--input', str(source), '--languages', 'ru,zh', '--output_dir', str(out), '--endpoint', url,
          '--model', 'm', '--gin.Endpoint.backoff_seconds=0.01', *more]  # fmt: skip


def read(path):
  return json.loads(path.read_text('utf-8'))


def protected(text):
  return sorted(mask(text).pieces)


def test_rows_come_out_aligned_with_what_must_survive(source, tmp_path, capsys):
  out = tmp_path / 'out'
  with running(tmp_path, mode='translate', fail=0.3, garbage=0.1, slow=0.01, seed=2) as server:
    assert cli.main(flags(source, server.url, out, '--json')) == 0
    said = server.by_key()
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  files = find_files(str(out / 'set'), ('en', 'ru', 'zh'))
  english, russian, chinese = (list(read_rows(path)) for path in files.values())
  assert (
    len(english)
    == len(russian)
    == len(chinese)
    == found['kept']
    == found['rows'] - found['set_aside']
    > 8
  )
  assert [row.id for row in english] == [row.id for row in russian] == [row.id for row in chinese]
  originals = {row['id']: row for row in rows()}
  for row, other in zip(english, russian):
    assert dict(zip(translate.FIELDS, row.texts)) == {
      name: originals[row.id][name] for name in translate.FIELDS
    }
    for text, translated in zip(row.texts, other.texts):
      assert protected(text) == protected(translated)
      assert (text == translated) == (not text or text.isdigit())
      assert len(text) - len(text.lstrip()) == len(translated) - len(translated.lstrip())
      assert text[len(text.rstrip()) :] == translated[len(translated.rstrip()) :]
  assert found == {**read(out / 'set_translate.json'), 'status': 0, 'endpoint': found['endpoint']}
  assert found['protected'] == {'code': 16, 'url': 4, 'e-mail': 12, 'placeholder': 24, 'tag': 12}
  # A good reply is never asked for again, also where it stood between bad ones.
  assert all('ok' not in lines[:-1] for lines in said.values())
  assert not any(KEY.encode() in path.read_bytes() for path in out.rglob('*') if path.is_file())


def test_a_row_at_fault_in_one_language_is_set_aside_in_all(source, tmp_path, capsys):
  out = tmp_path / 'out'
  with running(
    tmp_path, mode='translate', always_garbage='number d of the program to a child.\n</text>'
  ) as server:
    for _ in range(2):
      assert cli.main(flags(source, server.url, out, '--json')) == 0
      found = json.loads(capsys.readouterr().out.splitlines()[-1])
      assert found['rows'] == 12 and found['kept'] == 11 and found['set_aside'] == 1
      requests = len(server.log())
    assert found['endpoint']['sent'] == 0 and requests == found['endpoint']['cached'] + 2 * 2
  assert sum(found['fields_by_reason'].values()) == 2
  assert {language: sum(r.values()) for language, r in found['fields_by_language'].items()} == {
    'ru': 1,
    'zh': 1,
  }
  aside = [
    json.loads(line) for line in (out / 'set_set_aside.jsonl').read_text('utf-8').splitlines()
  ]
  assert {(line['id'], line['field']) for line in aside} == {('r3', 'instruction')}
  assert all(line['reason'].startswith('marker') or line['reason'] == 'empty' for line in aside)
  for language in ('en', 'ru', 'zh'):
    assert [row['id'] for row in read(out / f'set_{language}.json')] == [
      f'r{i}' for i in range(12) if i != 3
    ]


def test_equal_fields_are_translated_once_and_numbers_not_at_all(source, tmp_path):
  made = [{'instruction': 'Add up.', 'input': '1 + 1', 'output': f'{i}'} for i in range(5)]
  source.write_text(json.dumps(made), encoding='utf-8')
  with running(tmp_path, mode='translate') as server:
    assert cli.main(flags(source, server.url, tmp_path / 'out')) == 0
    assert len(server.log()) == 2
  found = read(tmp_path / 'out' / 'set_ru.json')
  assert [(row['id'], row['input'], row['output']) for row in found] == [
    (str(i), '1 + 1', str(i)) for i in range(5)
  ]


def test_kill_9_and_again(source, tmp_path):
  alone = tmp_path / 'alone'
  with running(tmp_path, mode='translate') as server:
    assert cli.main(flags(source, server.url, alone)) == 0
  (tmp_path / 'slow').mkdir()
  program = 'import sys; from crossin_jax import cli; sys.exit(cli.main(sys.argv[1:]))'
  out, environment = tmp_path / 'out', {**os.environ, 'PYTHONPATH': str(REPOSITORY)}
  cache = out / 'cache'
  with running(tmp_path / 'slow', mode='translate', slow=0.2, fail=0.2) as server:
    run = subprocess.Popen(
      [sys.executable, '-c', program, *flags(source, server.url, out)],
      env=environment,
      stderr=subprocess.DEVNULL,
    )
    while run.poll() is None and replies_in(cache) < 15:
      time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not (out / 'set_translate.json').exists()
    assert cli.main(flags(source, server.url, out)) == 0
    assert sum('ok' in said[:-1] for said in server.by_key().values()) <= 8
  names = sorted(path.name for path in alone.glob('set*'))
  assert names == [
    'set_en.json',
    'set_ru.json',
    'set_set_aside.jsonl',
    'set_translate.json',
    'set_zh.json',
  ]
  assert all((alone / name).read_bytes() == (out / name).read_bytes() for name in names)


@pytest.mark.parametrize(
  'more, message',
  [
    (['--languages', 'en,zh'], 'the language of the input'),
    (['--languages', 'xx'], "unknown language 'xx'"),
    (['--checkpoint', 'x'], 'either --endpoint'),
    (['--length_ratio', '4,1'], 'LEAST,MOST'),
    (['--budget', '3'], 'price_in'),
    (['--parameter', 'a=b'], 'NAME=JSON'),
  ],
)
def test_usage_that_cannot_be_right(source, tmp_path, more, message, capsys):
  assert cli.main(flags(source, 'http://127.0.0.1:1/v1', tmp_path / 'out', *more)) == 1
  said = capsys.readouterr().err
  assert message in said and 'Traceback' not in said


def test_the_input_is_never_overwritten_and_faults_in_it_are_named(source, tmp_path, capsys):
  own = tmp_path / 'set_en.json'
  shutil.copyfile(source, own)
  assert cli.main(flags(own, 'http://127.0.0.1:1/v1', tmp_path)) == 1
  assert 'would be overwritten' in capsys.readouterr().err
  source.write_text(json.dumps([*rows(2), {'id': 'x', 'instruction': 'a'}]), encoding='utf-8')
  assert cli.main(flags(source, 'http://127.0.0.1:1/v1', tmp_path / 'out')) == 1
  assert "set.en.json, row 2 (counted from 0): field 'output' is missing" in capsys.readouterr().err
  source.write_text(json.dumps([*rows(2), rows(1)[0]]), encoding='utf-8')
  assert cli.main(flags(source, 'http://127.0.0.1:1/v1', tmp_path / 'out')) == 1
  assert "rows 0 and 2 (from 0) both have the id 'r0'" in capsys.readouterr().err


def test_the_budget_and_the_dry_run(source, tmp_path, capsys):
  url, out = 'http://127.0.0.1:1/v1', tmp_path / 'out'
  assert (
    cli.main(flags(source, url, out, '--price_in', '1e4', '--price_out', '1e4', '--budget', '1'))
    == 2
  )
  assert cli.main(flags(source, url, out, '--dry_run', '--json')) == 0
  # fields that differ only in what is masked are one
  assert json.loads(capsys.readouterr().out)['requests'] == 34


def test_names_of_files():
  for path, name in {
    'd/rows.en.json': 'rows',
    'rows_en.jsonl.gz': 'rows',
    'a.b.parquet': 'a.b',
    'open.json': 'open',
  }.items():
    assert translate.stem_of(path, 'en') == name


GIN = """
import crossin_jax.models.decoder
import crossin_jax.train
MODEL = @Decoder()
Decoder.config = @DecoderConfig()
DecoderConfig.vocab_size = 1216
DecoderConfig.embed_dim = 16
DecoderConfig.num_layers = 1
DecoderConfig.num_heads = 4
DecoderConfig.num_kv_heads = 2
DecoderConfig.mlp_dim = 24
train.model = %MODEL
"""


def test_a_model_of_ones_own(tmp_path, tiny_vocabulary, capsys):
  """An untrained model writes noise, which is a translation only where nothing can be told against
  it.
  """
  directory = tmp_path / 'run'
  model = Decoder(tiny_config(vocab_size=1216, num_layers=1))
  parameters.save_params(str(directory), init_params(model, 2))
  (directory / 'config.gin').write_text(GIN)
  shutil.copyfile(tiny_vocabulary.path, directory / 'words.model')
  prompts = {
    'prompts': {'template': 'gemma', 'tags': False},
    'vocabulary': {'file': 'words.model', 'bos_token': None, 'eos_token': None},
  }
  write_json(str(directory / 'prompts.json'), prompts)
  source = tmp_path / 'set.json'
  made = [
    {'instruction': f'Say it {word}.', 'output': 'Yes.'} for word in ('now', 'again', 'twice')
  ]
  source.write_text(
    json.dumps([*made, {'instruction': 'Run `ls` now.', 'output': 'Yes.'}]), encoding='utf-8'
  )
  argv = ['translate', '--input', str(source), '--languages', 'zh', '--output_dir', str(tmp_path / 'out'), '--checkpoint',
          str(directory), '--gin.Sampling.max_new_tokens=6', '--json']  # fmt: skip
  status = cli.main(argv)
  rounds = sorted(path.name for path in (tmp_path / 'out' / 'local').glob('round_*.in.jsonl'))
  assert [name.split('_')[1] for name in rounds][0] == '0' and 1 <= len(rounds) <= 3
  aside = [
    json.loads(line)
    for line in (tmp_path / 'out' / 'set_set_aside.jsonl').read_text('utf-8').splitlines()
  ]
  assert {line['reason'] for line in aside} <= {
    'cut off',
    'marker lost',
    'empty',
    'marker invented',
  } and aside
  assert any(line['row'] == 3 and line['field'] == 'instruction' for line in aside)
  if status:
    assert 'rows are skipped' in capsys.readouterr().err
  else:
    kept = read(tmp_path / 'out' / 'set_zh.json')
    assert (
      len(kept)
      == len(read(tmp_path / 'out' / 'set_en.json'))
      == 4 - len({line['row'] for line in aside})
    )


def test_rounds_of_a_model_of_ones_own(tmp_path, monkeypatch):
  """What is not usable is generated again, sampled, and only that."""
  asked, temperatures = [], []

  def generate(checkpoint, input_path, output_path, model, sampling):
    temperatures.append(sampling.temperature)
    with open(input_path, encoding='utf-8') as f:
      prompts = [json.loads(line) for line in f]
    asked.append([row['id'] for row in prompts])
    with open(output_path, 'w', encoding='utf-8') as f:
      for index, row in enumerate(prompts):
        good = len(asked) > row['id']  # item n is usable in round n
        output = f'Да {OPEN}1{CLOSE}.' if good else 'Нет.'
        f.write(
          json.dumps({'id': row['id'], 'index': index, 'output': output, 'finish_reason': 'stop'})
          + '\n'
        )
    return {}

  from crossin_jax.decoding import generate as module

  monkeypatch.setattr(module, 'generate', generate)
  items = [translate.Item('ru', f'Run `ls {i}`.', '') for i in range(5)]
  found = translate.by_checkpoint(items, 'en', (0.1, 4), 'run', None, tmp_path)
  assert asked == [[0, 1, 2, 3, 4], [1, 2, 3, 4], [2, 3, 4]] and temperatures == [0.0, 0.5, 0.5]
  assert [one.text for one in found] == [f'Да `ls {i}`.' for i in range(3)] + [None, None]
  assert [one.reason for one in found[3:]] == ['marker lost'] * 2


def test_alpaca_survives_masking(shared_data):
  """Real rows: what is masked comes back, and little of them is taken for code."""
  made = json.loads((shared_data / 'alpaca_parallel' / 'alpaca.en.json').read_text('utf-8'))
  texts = [row[name] for row in made for name in translate.FIELDS if row[name]]
  found = [mask(text) for text in texts]
  assert [unmask(one.text, one.pieces) for one in found] == texts
  assert 0 < sum('code' in one.kinds for one in found) < 0.02 * len(texts)
  for language in ('zh', 'vi'):
    other = json.loads(
      (shared_data / 'alpaca_parallel' / f'alpaca.{language}.json').read_text('utf-8')
    )
    pairs = [
      (a[name], b[name])
      for a, b in zip(made, other)
      for name in translate.FIELDS
      if a[name] and b[name]
    ]
    refused = sum(
      translate.problem(Masked(a, (), ()), b, (0.1, 4)) in ('length', 'untranslated')
      for a, b in pairs
    )
    assert refused < 0.005 * len(pairs)
