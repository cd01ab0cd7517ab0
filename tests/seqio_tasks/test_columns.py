"""Rows that are read in pieces and kept on disk are the same rows, wherever a piece ends."""

import json
import os
import pickle
import subprocess
import sys

from conftest import REPOSITORY
import pytest

from crossin_jax.data.readers import read_rows
from seqio_tasks import columns
from seqio_tasks.sources import ParallelFiles, SourceError


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


@pytest.mark.skipif(
  not os.path.exists('/dev/full'), reason='the full disk is /dev/full: run on Linux'
)
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
