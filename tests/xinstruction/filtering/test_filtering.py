"""The filter step as a whole: counts that add up, output that depends on the documents alone,
kills.
"""

import dataclasses
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time

from conftest import REPOSITORY
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip(
  'py3langid', reason='language identification needs py3langid: pip install crossin-jax[lid]'
)

from crossin_jax.errors import Interrupted
from crossin_jax.xinstruction.filtering import parts
from crossin_jax.xinstruction.filtering import step as filtering
from crossin_jax.xinstruction.filtering.documents import Reading
from crossin_jax.xinstruction.filtering.filters import Filters

# Invented words are in no language.
ANY = Filters(least_confidence=0.0)


def invented(rng, number, characters=400):
  words = [
    ''.join(rng.choices('abcdefghijklmnopqrstuvwxyz', k=rng.randint(3, 8))) for _ in range(3000)
  ]
  return [' '.join(rng.choices(words, k=characters // 6)).capitalize() + '.' for _ in range(number)]


def rows_of(texts):
  return [{'id': f'r{i}', 'text': text} for i, text in enumerate(texts)]


def write(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(
    ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows), encoding='utf-8'
  )
  return str(path)


def run(paths, output, filters=ANY, language='sw', **settings):
  counts = filtering.run_filter(language, paths, output, filters, progress=False, **settings)
  return dataclasses.asdict(counts)


def files_of(folder):
  return {
    path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != 'counts.json'
  }


def kept_rows(folder):
  return [
    json.loads(line)
    for content in files_of(folder).values()
    for line in content.decode().split('\n')
    if line
  ]


def without_source(rows):
  return [{key: row[key] for key in ('id', 'text', 'language')} for row in rows]


def with_duplicates(rng, number):
  texts = invented(rng, number)
  texts += [text.upper() for text in texts[: number // 10]]
  texts += [text.replace('a', 'e', 3) for text in texts[: number // 5]]
  return texts + ['short', '<p>' + texts[0], 'x ' * 5000]


def test_counts_and_files(tmp_path):
  texts = with_duplicates(random.Random(0), 100)
  counts = run(write(tmp_path / 'a.jsonl', rows_of(texts)), tmp_path / 'out', chunk=32)
  # The upper-case twin and the edited one of a text make two duplicates of three: of which kinds
  # depends on which is kept.
  assert counts['read'] == len(texts) and counts['kept'] == 100
  assert counts['read'] == counts['kept'] + sum(counts['dropped'].values())
  assert {name: counts['dropped'][name] for name in ('too_short', 'html', 'too_long')} == {
    'too_short': 1,
    'html': 1,
    'too_long': 1,
  }
  assert counts['dropped']['exact_duplicate'] + counts['dropped']['near_duplicate'] == 30
  folder = tmp_path / 'out' / 'sw'
  assert json.loads((folder / 'counts.json').read_text()) == counts
  files = files_of(folder)
  assert [content.count(b'\n') for content in files.values()] == [32, 32, 32, 4]
  assert list(files) == [f'{i:05d}.jsonl' for i in range(4)]
  rows = kept_rows(folder)
  assert all(list(row) == ['id', 'text', 'language', 'source'] for row in rows)
  assert {(row['language'], row['source']) for row in rows} == {('sw', 'a.jsonl')}
  assert [path.name for path in (tmp_path / 'out').iterdir()] == ['sw']


def test_files_order_and_processes_change_nothing(tmp_path):
  rng = random.Random(1)
  rows = rows_of(with_duplicates(rng, 120))
  run(write(tmp_path / 'one' / 'all.jsonl', rows), tmp_path / 'out1')
  wanted = without_source(kept_rows(tmp_path / 'out1' / 'sw'))
  rng.shuffle(rows)
  for i in range(0, 90, 30):
    write(tmp_path / 'two' / f'{i}.jsonl', rows[i : i + 30])
  pq.write_table(
    pa.Table.from_pylist(rows[90:130]), tmp_path / 'two' / 'p.parquet', row_group_size=7
  )
  packed = ''.join(json.dumps(row) + '\n' for row in rows[130:]).encode()
  (tmp_path / 'two' / 'z.jsonl.gz').write_bytes(gzip.compress(packed))
  run(str(tmp_path / 'two'), tmp_path / 'out2', workers=2)
  assert without_source(kept_rows(tmp_path / 'out2' / 'sw')) == wanted
  run(str(tmp_path / 'two'), tmp_path / 'out3', workers=1)
  assert files_of(tmp_path / 'out2' / 'sw') == files_of(tmp_path / 'out3' / 'sw')


def test_lines_of_many_documents(tmp_path):
  texts = invented(random.Random(2), 60)
  banner = 'Subscribe to our words and be the first who reads them all, every day of the week, and more of that on Sunday.'
  rows = rows_of([f'{text[:240]}\n{banner}' if i % 2 else text for i, text in enumerate(texts)])
  path = write(tmp_path / 'a.jsonl', rows)
  assert run(path, tmp_path / 'out')['dropped'] == {'common_lines': 30}
  assert run(path, tmp_path / 'out', Filters(least_confidence=0.0, common_line=31))['dropped'] == {}
  assert (
    run(path, tmp_path / 'out', Filters(least_confidence=0.0, most_common_lines=0.9))['dropped']
    == {}
  )
  # On one line, after a sentence: in any language, without a list of words.
  notice = (
    'Tovuti hii hukusanya taarifa za wageni wake kila siku ya juma, na zaidi ya hapo Jumapili pia.'
  )
  rows = rows_of([f'{text[:240]}. {notice}' if i % 2 else text for i, text in enumerate(texts)])
  found = run(
    write(tmp_path / 'c.jsonl', rows),
    tmp_path / 'out',
    Filters(least_confidence=0.0, most_common_lines=0.2),
  )
  assert found['dropped'] == {'common_lines': 30}
  # Thirty copies of one document are no boilerplate: one of them stays.
  copies = write(tmp_path / 'b.jsonl', rows_of(['\n'.join(texts[:3])] * 30))
  assert run(copies, tmp_path / 'out')['kept'] == 1


def test_ids_are_made_unique(tmp_path):
  texts = invented(random.Random(3), 20)
  for name in ('a', 'b'):
    write(
      tmp_path / 'in' / f'{name}.jsonl',
      [
        {'id': 7 if i < 5 else f'{name}{i}', 'text': text}
        for i, text in enumerate(texts[:10] if name == 'a' else texts[10:])
      ],
    )
  run(str(tmp_path / 'in'), tmp_path / 'out')
  ids = [row['id'] for row in kept_rows(tmp_path / 'out' / 'sw')]
  assert len(set(ids)) == 20 and sum(id_.startswith('7#') for id_ in ids) == 10


def test_rubbish_is_never_fatal_and_never_kept(tmp_path):
  rng = random.Random(4)
  texts = invented(rng, 30)
  folder = tmp_path / 'in'
  rows = rows_of(texts)
  rows += [
    {'text': texts[0] + '\u202e\u200f\ufeff\x07 more of it'},
    {'text': f'<html><body>{texts[1]}'},
    {'text': texts[2] + '\ud800'},
    {'text': 'y' * 10_000_000},
    {'text': (texts[3] + '\r\n') * 1},
    {'text': None},
    {'id': {'a': 1}, 'text': ['list']},
  ]
  write(folder / 'a.jsonl', [])
  with open(folder / 'a.jsonl', 'wb') as file:
    for row in rows:
      file.write(json.dumps(row).encode() + rng.choice([b'\n', b'\r\n']))
    file.write(b'{"text": "' + b'z' * 20_000_000 + b'"}\n')
    file.write('{"text": "caf\xe9'.encode('latin-1') + b' "}\n\xff\xfe{\x00"\x00\n')
  (folder / 'noise.txt').write_bytes(rng.randbytes(300_000))
  (folder / 'noise.jsonl.gz').write_bytes(rng.randbytes(5000))
  (folder / 'empty.parquet').write_bytes(b'')
  (folder / 'image.png').write_bytes(b'\x89PNG')
  counts = run(str(folder), tmp_path / 'out', workers=1)
  assert counts['read'] == counts['kept'] + sum(counts['dropped'].values())
  assert set(counts['unreadable']) == {'empty.parquet', 'image.png'}
  for reason in ('too_large', 'too_long', 'no_text', 'invalid_utf8', 'html', 'encoding'):
    assert counts['dropped'][reason] >= 1, reason
  content = b''.join(files_of(tmp_path / 'out' / 'sw').values()).decode()
  kept = [json.loads(line)['text'] for line in content.split('\n') if line]
  # The one with marks of direction is a near-duplicate of the first, once they are gone.
  assert len(kept) == 30 and {text for text in kept if text not in texts} <= {
    texts[0] + ' more of it'
  }


def test_nothing_to_read(tmp_path):
  with pytest.raises(FileNotFoundError):
    run(str(tmp_path / 'none'), tmp_path / 'out')
  path = write(tmp_path / 'a.jsonl', [{'content': 'x'}])
  with pytest.raises(ValueError, match='Reading.field'):
    run(path, tmp_path / 'out')
  pq.write_table(pa.table({'content': ['x']}), tmp_path / 'b.parquet')
  with pytest.raises(ValueError, match=r'b.parquet: no column .text. \(columns: content\)'):
    run(str(tmp_path / 'b.parquet'), tmp_path / 'out')
  with pytest.raises(ValueError, match='least_confidence=0'):
    run(path, tmp_path / 'out', Filters(), language='xx')
  for wrong in ({'chunk': 0}, {'runner': 'spark'}, {'language': '../x'}):
    with pytest.raises(ValueError, match=next(iter(wrong))):
      run(path, tmp_path / 'out', **wrong)
  assert not list((tmp_path / 'out').iterdir())
  (tmp_path / 'c.jsonl').write_bytes(b'')
  assert run(str(tmp_path / 'c.jsonl'), tmp_path / 'out')['read'] == 0


def test_native_texts(shared_data, tmp_path):
  """Ten languages; a language keeps its own and refuses the others."""
  folder = shared_data / 'native_text'
  for code in ('sw', 'th', 'ur'):
    counts = run(str(folder / f'native.{code}.jsonl'), tmp_path, Filters(long='cut'), language=code)
    assert counts['kept'] >= 0.6 * counts['read'], counts
  counts = run(str(folder), tmp_path, Filters(long='cut'), language='sw')
  assert {row['source'] for row in kept_rows(tmp_path / 'sw')} == {'native.sw.jsonl'}
  assert counts['dropped']['other_language'] > 0.4 * counts['read']


PROGRAM = """
import sys
from crossin_jax.errors import Interrupted
from crossin_jax.xinstruction.filtering import filters
from crossin_jax.xinstruction.filtering import step as filtering
if __name__ == '__main__':
  try:
    filtering.run_filter('sw', sys.argv[1], sys.argv[2], filters.Filters(least_confidence=0.0), chunk=8, workers=int(sys.argv[3]))
  except Interrupted:
    sys.exit(75)
"""


def start(tmp_path, source, output, workers):
  program = tmp_path / 'program.py'
  program.write_text(PROGRAM)
  environment = {**os.environ, 'PYTHONPATH': str(REPOSITORY)}
  command = [sys.executable, str(program), source, str(output), str(workers)]
  return subprocess.Popen(
    command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
  )


def descendants(pid):
  psutil = pytest.importorskip('psutil', reason='watching processes needs the extra `test`')
  return psutil.Process(pid).children(recursive=True)


def test_killed_at_any_moment(tmp_path):
  """After -9 and a restart the output is that of an undisturbed run; until then, that of the run
  before, or none.
  """
  rng = random.Random(5)
  before, after = (
    write(tmp_path / f'{name}.jsonl', rows_of(invented(rng, 3000))) for name in ('before', 'after')
  )
  run(before, tmp_path / 'wanted1', chunk=8)
  run(after, tmp_path / 'wanted2', chunk=8)
  old, new = (files_of(tmp_path / name / 'sw') for name in ('wanted1', 'wanted2'))
  output = tmp_path / 'out'
  run(before, output, chunk=8)
  killed = 0
  for delay in (1.0, 1.6, 2.2):
    process = start(tmp_path, after, output, 1)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)
    killed += process.wait() == -signal.SIGKILL
    assert not (output / 'sw').exists() or files_of(output / 'sw') in (old, new)
  run(after, output, chunk=8)
  assert (
    killed and files_of(output / 'sw') == new and [path.name for path in output.iterdir()] == ['sw']
  )


@pytest.mark.parametrize('failing', ['rename', 'write'])
def test_killed_between_renames(tmp_path, failing, monkeypatch):
  """The moments that a random kill hardly meets."""
  rng = random.Random(6)
  before, after = (
    write(tmp_path / f'{name}.jsonl', rows_of(invented(rng, 40))) for name in ('before', 'after')
  )
  run(before, tmp_path / 'out', chunk=8)
  old = files_of(tmp_path / 'out' / 'sw')
  with monkeypatch.context() as patch:
    if failing == 'rename':
      real, calls = os.rename, []
      patch.setattr(
        os, 'rename', lambda *paths: real(*paths) if not calls and not calls.append(1) else 1 / 0
      )
    else:
      real, calls = filtering.write_bytes, []
      patch.setattr(
        filtering,
        'write_bytes',
        lambda *a: real(*a) if len(calls) < 2 and not calls.append(1) else 1 / 0,
      )
    with pytest.raises(ZeroDivisionError):
      run(after, tmp_path / 'out', chunk=8)
  assert (tmp_path / 'out' / 'sw').exists() == (failing == 'write')
  with pytest.raises(ValueError):  # a start that fails brings back what was there
    run(write(tmp_path / 'c.jsonl', [{'x': 1}]), tmp_path / 'out')
  assert files_of(tmp_path / 'out' / 'sw') == old
  run(after, tmp_path / 'out', chunk=8)
  run(after, tmp_path / 'fresh', chunk=8)
  assert files_of(tmp_path / 'out' / 'sw') == files_of(tmp_path / 'fresh' / 'sw')
  assert [path.name for path in (tmp_path / 'out').iterdir()] == ['sw']


@pytest.mark.slow
@pytest.mark.parametrize('whole_group', [False, True])
def test_interrupted(tmp_path, whole_group):
  """Status 75 and no change, whether the main process alone gets the signal or its workers too; no
  worker outlives a -9.
  """
  source = write(tmp_path / 'a.jsonl', rows_of(invented(random.Random(7), 9000, 900)))
  output = tmp_path / 'out'
  process = start(tmp_path, source, output, 2)
  workers = []
  while not [worker for worker in workers if worker.cpu_times().user > 0.6]:
    time.sleep(0.1)
    workers = descendants(process.pid)
    assert process.poll() is None
  (os.killpg if whole_group else os.kill)(process.pid, signal.SIGTERM)
  assert process.wait(30) == 75 and not (output / 'sw').exists()
  if not whole_group:
    process = start(tmp_path, source, output, 2)
    while len(workers := descendants(process.pid)) < 3:  # with multiprocessing's resource tracker
      time.sleep(0.1)
    time.sleep(1)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 15
    while any(worker.is_running() and worker.status() != 'zombie' for worker in workers):
      assert time.monotonic() < deadline, 'a worker outlived its parent'
      time.sleep(0.2)


def test_interrupted_in_this_process(tmp_path, monkeypatch):
  source = write(tmp_path / 'a.jsonl', rows_of(invented(random.Random(8), 50)))
  real = filtering._write
  monkeypatch.setattr(
    filtering,
    '_write',
    lambda *a: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(0.1), real(*a)),
  )
  with pytest.raises(Interrupted):
    run(source, tmp_path / 'out')
  assert not (tmp_path / 'out' / 'sw').exists()


def test_a_part_in_a_file_is_the_same_part(tmp_path):
  source = write(tmp_path / 'a.jsonl', rows_of(with_duplicates(random.Random(9), 20)))
  settings = ('sw', ANY, Reading())
  reader = filtering.Reader(filtering.documents.find_files(source), Reading())
  part = next(parts.local_parts(reader.blocks(), settings, 1, lambda: None))
  parts._save_part(tmp_path / 'part.npz', part)
  again = parts._load_part(tmp_path / 'part.npz')
  assert again.rows == part.rows and again.tally == part.tally
  for name in ('ends', 'ties', 'line_hashes', 'line_shares', 'line_owners'):
    assert getattr(again, name).tolist() == getattr(part, name).tolist()
  for name, value in vars(part.sketches).items():
    assert (getattr(again.sketches, name) == value).all()


def test_beam_gives_the_same(tmp_path):
  pytest.importorskip(
    'apache_beam',
    reason='Apache Beam is not here: pip install crossin-jax[beam], in its own environment',
  )
  rng = random.Random(10)
  rows = rows_of(with_duplicates(rng, 60))
  for i in range(3):
    write(tmp_path / 'in' / f'{i}.jsonl', rows[i::3])
  (tmp_path / 'in' / 'broken.parquet').write_bytes(b'no')
  results = [
    run(str(tmp_path / 'in'), tmp_path / runner, runner=runner) for runner in ('local', 'beam')
  ]
  assert files_of(tmp_path / 'local' / 'sw') == files_of(tmp_path / 'beam' / 'sw')
  timeless = [{key: value for key, value in one.items() if 'second' not in key} for one in results]
  assert timeless[0] == timeless[1] and [path.name for path in (tmp_path / 'beam').iterdir()] == [
    'sw'
  ]


def test_beam_that_is_not_there(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'apache_beam', None)
  with pytest.raises(ValueError, match=r'crossin-jax\[beam\]'):
    run(
      write(tmp_path / 'a.jsonl', rows_of(invented(random.Random(11), 3))),
      tmp_path / 'out',
      runner='beam',
    )
