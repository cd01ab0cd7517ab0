"""Rows that are read in pieces and kept on disk are the same rows, wherever a piece ends."""

import json
import os
import pickle
import subprocess
import sys

from conftest import REPOSITORY
import hypothesis
import hypothesis.strategies as st
import pytest

from crossin_jax.data import json_lists
from crossin_jax.data.readers import read_rows
from seqio_tasks import columns
from seqio_tasks.sources import ParallelFiles, SourceError

TEXT = st.text(st.characters(exclude_categories=('Cs',)), max_size=30)
VALUE = st.recursive(
  TEXT | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none(),
  lambda v: st.lists(v, max_size=3),
)
ROWS = st.lists(
  st.fixed_dictionaries({'instruction': TEXT, 'output': TEXT}, optional={'other': VALUE}),
  min_size=1,
  max_size=6,
)


@hypothesis.given(ROWS, st.booleans(), st.sampled_from([None, 0, 3]), st.booleans())
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_a_streamed_json_list_is_what_json_reads(tmp_path, rows, ascii_, indent, mark):
  path = tmp_path / 'a.json'
  text = json.dumps(rows, ensure_ascii=ascii_, indent=indent)
  path.write_text(text, encoding='utf-8-sig' if mark else 'utf-8')
  assert list(json_lists.read_json(str(path))) == [(None, fields) for fields in rows]


@hypothesis.given(ROWS, st.data())
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_a_fault_is_where_json_finds_it(tmp_path, rows, data):
  content = json.dumps(rows, ensure_ascii=False, indent=1).encode()
  cut = data.draw(st.integers(1, len(content) - 1))
  content = data.draw(
    st.sampled_from(
      [content[:cut], content[:cut] + b'\xff' + content[cut:], content[:cut] + content[cut + 1 :]]
    )
  )
  path = tmp_path / 'a.json'
  path.write_bytes(content)
  try:
    outcome = [item for _, item in json_lists.read_json(str(path))]
  except SourceError as error:
    outcome = str(error)
  try:
    wanted = json.loads(content.decode())
    assert outcome == wanted
  except UnicodeDecodeError as error:
    assert f'byte offset {error.start}' in outcome
  except json.JSONDecodeError as error:
    assert f'column {error.colno}: {error.msg}' in outcome


@hypothesis.given(
  st.lists(st.text(st.sampled_from('a\\"\ud83d\ude00é'), max_size=8), max_size=9),
  st.integers(13, 40),
)
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_surrogates_are_read_as_json_reads_them(tmp_path, texts, size):
  path = tmp_path / 'a.json'
  path.write_text(json.dumps([{'a': text} for text in texts]))
  with pytest.MonkeyPatch.context() as patch:
    read = json_lists._Scanned.read
    patch.setattr(json_lists._Scanned, 'read', lambda self, n: read(self, min(n, size)))
    rows = [item for _, item in json_lists.read_json(str(path))]
  assert rows == json.loads(path.read_text())


def test_numbers_that_only_python_reads(tmp_path):
  path = tmp_path / 'a.json'
  path.write_text('[{"a": 1}, {"a": NaN}, {"a": Infinity}]')
  rows = [item['a'] for _, item in json_lists.read_json(str(path))]
  assert rows[0] == 1 and rows[1] != rows[1] and rows[2] == float('inf')


def test_a_row_longer_than_a_window(tmp_path):
  rows = [{'instruction': 'i', 'output': mark * 3_000_000} for mark in 'äb']
  (tmp_path / 'a.json').write_text(json.dumps(rows, ensure_ascii=False), encoding='utf-8')
  (tmp_path / 'b.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  for name in ('a.json', 'b.jsonl'):
    source = ParallelFiles(str(tmp_path / name), max_characters=10_000_000)
    assert [source.row(i, 'en')['output'] for i in range(2)] == [row['output'] for row in rows]
    assert (
      source.digest() == ParallelFiles(str(tmp_path / 'a.json'), max_characters=10_000_000).digest()
    )


def test_many_rows_at_once_are_the_single_rows(tmp_path, monkeypatch):
  with open(tmp_path / 'a.jsonl', 'w', encoding='utf-8') as f:
    for i in range(50):
      f.write(json.dumps({'id': f'é{i}', 'instruction': 'i' * i, 'output': f'ä{i}'}) + '\n')
  column = columns.Column('a', 100)
  for row in read_rows(str(tmp_path / 'a.jsonl')):
    column.add(row)
  column.seal()
  places = columns.np.random.default_rng(0).permutation(50)
  wanted = [(f'é{i}'.encode(), b'i' * i, b'', f'ä{i}'.encode()) for i in places]
  for rows, size in ((7, 1 << 20), (7, 200), (1, 0)):
    monkeypatch.setattr(columns, '_PIECE_ROWS', rows)
    monkeypatch.setattr(columns, '_PIECE_BYTES', size)
    assert list(column.fields(places)) == wanted
  assert [column.id(i) for i in (0, 49)] == ['é0', 'é49'] and column.number(7) == 7
  assert column.texts(3) == ('iii', '', 'ä3')


def test_ids_are_a_sequence(tmp_path):
  (tmp_path / 'a.jsonl').write_text(
    ''.join(f'{{"id": "r{i}", "instruction": "", "output": "o"}}\n' for i in range(12))
  )
  ids = ParallelFiles(str(tmp_path / 'a.jsonl'), align='id').ids()
  strings = [f'r{i}' for i in range(12)]
  assert ids == strings and strings == ids and list(ids) == strings and len(ids) == 12
  assert (ids[3], ids[-1], ids[2:4]) == ('r3', 'r11', ['r2', 'r3'])
  assert ids != strings[:-1] and ids != 'r' and 'r5' in ids
  assert '12 ids' in repr(ids)
  with pytest.raises(IndexError):
    ids[12]


def test_nothing_is_left_behind_and_a_missing_folder_is_named(tmp_path, monkeypatch):
  (tmp_path / 'a.jsonl').write_text('{"instruction": "", "output": "o"}\n')
  folder = tmp_path / 'kept'
  monkeypatch.setenv('TMPDIR', str(folder))
  with pytest.raises(
    SourceError, match=f'a.jsonl: its rows cannot be kept in {folder} .*set TMPDIR'
  ):
    len(ParallelFiles(str(tmp_path / 'a.jsonl')))
  folder.mkdir()
  code = (
    'import os, signal; from seqio_tasks.sources import ParallelFiles; '
    f's = ParallelFiles({str(tmp_path / "a.jsonl")!r}); assert len(s) == 1; os.kill(os.getpid(), '
    'signal.SIGKILL)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=REPOSITORY, env=os.environ | {'TMPDIR': str(folder)}
  )
  assert done.returncode == -9 and not list(folder.iterdir())


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs a full device')
def test_a_full_disk_is_named(tmp_path, monkeypatch):
  (tmp_path / 'a.jsonl').write_text(json.dumps({'instruction': '', 'output': 'o' * 1000}) + '\n')
  monkeypatch.setattr(
    columns.tempfile, 'TemporaryFile', lambda **_: open('/dev/full', 'wb', buffering=1 << 18)
  )
  with pytest.raises(
    SourceError, match='a.jsonl: its rows cannot be kept in .*No space left on device'
  ):
    len(ParallelFiles(str(tmp_path / 'a.jsonl')))


def test_a_forked_process_reads_the_same_rows(tmp_path):
  (tmp_path / 'a.jsonl').write_text(
    ''.join(f'{{"instruction": "{i}", "output": "{"o" * (i % 50 + 1)}"}}\n' for i in range(2000))
  )
  code = f"""
import multiprocessing
from seqio_tasks.sources import ParallelFiles
source = ParallelFiles({str(tmp_path / 'a.jsonl')!r})
wanted = [source.row(i, 'en') for i in range(len(source))]
def read(_):
  return [source.row(i, 'en') for i in range(len(source))] == wanted
with multiprocessing.get_context('fork').Pool(4) as pool:
  assert all(pool.map(read, range(16)))
"""
  subprocess.run([sys.executable, '-c', code], cwd=REPOSITORY, check=True)
  source = ParallelFiles(str(tmp_path / 'a.jsonl'))
  assert len(source) == 2000 and len(pickle.dumps(source)) < 300
