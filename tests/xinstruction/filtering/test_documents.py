"""Documents out of files of every kind, whole or damaged."""

from collections import Counter
import gzip
import json

from hypothesis import given
from hypothesis import strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crossin_jax.xinstruction.filtering import documents
from crossin_jax.xinstruction.filtering.documents import Reading, find_files, read_documents


def read(paths, **settings):
  tally = Counter()
  return list(read_documents(paths, Reading(**settings), tally)), tally


def write_lines(path, records):
  path.write_text(''.join(json.dumps(record) + '\n' for record in records), encoding='utf-8')
  return path


TEXTS = ['Habari ya asubuhi.', 'Mbili\nna mistari.', 'ভাষা', 'emoji \U0001f600']


def test_the_same_texts_from_every_kind_of_file(tmp_path):
  rows = [{'id': f'r{i}', 'text': text} for i, text in enumerate(TEXTS)]
  write_lines(tmp_path / 'a.jsonl', rows)
  (tmp_path / 'b.jsonl.gz').write_bytes(gzip.compress((tmp_path / 'a.jsonl').read_bytes()))
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / 'c.parquet', row_group_size=2)
  (tmp_path / 'd.txt').write_bytes('\n\n\n'.join(TEXTS).encode())
  (tmp_path / 'e.txt.gz').write_bytes(gzip.compress('\r\n \r\n'.join(TEXTS).encode()))
  wanted = [(f'r{i}', text) for i, text in enumerate(TEXTS)]
  for name in ('a.jsonl', 'b.jsonl.gz', 'c.parquet'):
    found, tally = read(tmp_path / name)
    assert [(one.id, one.text) for one in found] == wanted and {one.source for one in found} == {
      name
    }
    assert tally == {'read': 4}
  for name in ('d.txt', 'e.txt.gz'):
    found, _ = read(str(tmp_path / name))
    assert [one.text.strip() for one in found] == TEXTS
    lines = (tmp_path / name).read_bytes()
    lines = (gzip.decompress(lines) if name.endswith('gz') else lines).decode().split('\n')
    for one, text in zip(found, TEXTS):  # the place is the line on which the document begins
      assert lines[int(one.id.removeprefix(f'{name}:')) - 1].strip() == text.split('\n')[0]


def test_folders_and_patterns(tmp_path):
  (tmp_path / 'deep').mkdir()
  for name in ('b.jsonl', 'a.jsonl', 'deep/a.jsonl', '.hidden.jsonl'):
    write_lines(tmp_path / name, [{'text': name}])
  assert [one.id for one in read(str(tmp_path))[0]] == ['a.jsonl:1', 'b.jsonl:1', 'deep/a.jsonl:1']
  assert list(find_files([str(tmp_path / '*.jsonl'), str(tmp_path / 'a.jsonl')])) == [
    'a.jsonl',
    'b.jsonl',
  ]
  with pytest.raises(FileNotFoundError, match='nothing.here'):
    find_files([str(tmp_path), str(tmp_path / 'nothing.here*')])


def test_field_ids_and_lines(tmp_path):
  write_lines(
    tmp_path / 'a.jsonl',
    [{'content': 'x', 'key': 7}, {'content': 'y', 'key': True}, {'content': 'z', 'key': 'k' * 201}],
  )
  found, _ = read(str(tmp_path), field='content', id_field='key')
  assert [one.id for one in found] == ['7', 'a.jsonl:2', 'a.jsonl:3']
  (tmp_path / 'a.jsonl').rename(tmp_path / 'b.txt')
  assert len(read(str(tmp_path), text_files='lines')[0]) == 3


@given(
  st.lists(
    st.text(st.characters(exclude_categories=['Cs']), min_size=1).filter(str.strip), max_size=12
  ),
  st.integers(1, 40),
  st.booleans(),
)
def test_block_size_changes_nothing(tmp_path_factory, texts, size, paragraphs):
  """What a reader sees depends on the bytes of the file alone."""
  path = tmp_path_factory.mktemp('blocks') / 'a.txt'
  path.write_bytes('\n\n'.join(texts).encode())
  settings = {'text_files': 'paragraphs' if paragraphs else 'lines'}
  wanted = read(str(path), **settings)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(documents, '_BLOCK', size)
    found = read(str(path), **settings)
  assert [(one.id, one.text.strip('\r\n \t')) for one in found[0]] == [
    (one.id, one.text.strip('\r\n \t')) for one in wanted[0]
  ]
  assert found[1] == wanted[1]


@pytest.mark.parametrize('kind', ['a.txt', 'a.jsonl'])
@pytest.mark.parametrize('size', [64, 1 << 20])
def test_records_that_are_too_large_are_skipped(tmp_path, kind, size, monkeypatch):
  monkeypatch.setattr(documents, '_BLOCK', size)
  divide = b'\n \n' if kind == 'a.txt' else b'\n'
  texts = [
    b'one',
    b'x' * 5000,
    b'two',
    b'y' * 300 + b'\n' * (kind == 'a.txt') + b'y' * 3000,
    b'three',
  ]
  content = (
    texts if kind == 'a.txt' else [json.dumps({'text': text.decode()}).encode() for text in texts]
  )
  (tmp_path / kind).write_bytes(divide.join(content))
  found, tally = read(str(tmp_path), most_bytes=1000)
  assert [one.text.strip() for one in found] == ['one', 'two', 'three']
  assert tally == {'read': 5, 'too_large': 2}
  lines = (tmp_path / kind).read_bytes().decode().split('\n')
  assert all(one.text.strip() in lines[int(one.id.split(':')[1]) - 1] for one in found)


def test_rubbish_is_counted_by_reason(tmp_path):
  good = b'{"text": "good"}'
  lines = [
    good, b'{"text": "cut', b'[1, 2]', b'17', b'"a text alone"', b'{"other": 1}', b'{"text": null}',
    b'{"text": "  "}',
    b'{"text": "caf\xe9 \xff"}', b'\x00\x01\x02\xff', b'[' * 100_000,
    b'{"text": ' + b'9' * 5000 + b'}', b'', good,
  ]  # fmt: skip
  (tmp_path / 'a.jsonl').write_bytes(b'\xef\xbb\xbf' + b'\r\n'.join(lines))
  found, tally = read(str(tmp_path))
  assert [one.text for one in found] == ['good', 'a text alone', 'good']
  assert tally['read'] == 13 == len(found) + sum(tally[reason] for reason in documents.REFUSALS)
  assert (tally['invalid_utf8'], tally['invalid_bytes']) == (2, 3)


def test_files_that_cannot_be_read_are_named(tmp_path):
  write_lines(tmp_path / 'good.jsonl', [{'text': 'good'}])
  (tmp_path / 'empty.jsonl').write_bytes(b'')
  (tmp_path / 'notes.pdf').write_bytes(b'%PDF')
  (tmp_path / 'broken.parquet').write_bytes(b'PAR1 no more')
  pq.write_table(pa.table({'body': ['x']}), tmp_path / 'other.parquet')
  pq.write_table(pa.table({'text': [1, 2]}), tmp_path / 'numbers.parquet')
  import random

  packed = gzip.compress(
    ''.join(json.dumps({'text': str(random.random())}) + '\n' for _ in range(5000)).encode()
  )
  (tmp_path / 'cut.jsonl.gz').write_bytes(packed[: len(packed) // 2])
  reader = documents.Reader(find_files(str(tmp_path)), Reading())
  tally = Counter()
  found = [one for block in reader.blocks() for one in documents.decode(block, Reading(), tally)]
  assert set(reader.problems) == {'notes.pdf', 'broken.parquet', 'other.parquet', 'cut.jsonl.gz'}
  assert 'body' in reader.problems['other.parquet'] and 'cut off' in reader.problems['cut.jsonl.gz']
  assert 'good' in [one.text for one in found] and tally['no_text'] == 2
  assert reader.bytes_read == reader.bytes_total


def test_parquet_texts_that_are_not_utf8(tmp_path):
  bad = pa.array([b'fine', b'\xff\xfe bad', None], pa.binary())
  pq.write_table(
    pa.table({'text': bad.cast(pa.large_binary()).view(pa.large_string())}), tmp_path / 'a.parquet'
  )
  found, tally = read(str(tmp_path))
  assert [one.text for one in found] == ['fine']
  assert tally == {'read': 3, 'invalid_utf8': 1, 'invalid_bytes': 2, 'no_text': 1}


def test_settings_are_checked():
  with pytest.raises(ValueError, match='paragraphs'):
    Reading(text_files='pages')


@pytest.mark.parametrize('packing', ['', '.gz', '.zst'])
@pytest.mark.parametrize('indent', [None, 1])
@pytest.mark.parametrize('mark', ['', '\ufeff'])
def test_a_json_list_is_read_as_lines_are(tmp_path, packing, indent, mark):
  rows = [{'id': f'r{i}', 'text': text, 'score': 0.5} for i, text in enumerate(TEXTS)] + [
    'plain',
    7,
  ]
  content = (mark + json.dumps(rows, indent=indent, ensure_ascii=False)).encode()
  path = tmp_path / f'a.json{packing}'
  path.write_bytes(PACK[packing](content))
  found, tally = read(path)
  assert [one.text for one in found] == [*TEXTS, 'plain']
  assert [one.id for one in found] == ['r0', 'r1', 'r2', 'r3', f'a.json{packing}:5']
  assert tally == {'read': 6, 'invalid_json': 1}


def zstd(content: bytes) -> bytes:
  return pa.compress(content, 'zstd', asbytes=True)


PACK = {'': bytes, '.gz': gzip.compress, '.zst': zstd}


@pytest.mark.parametrize('packing', PACK)
@pytest.mark.parametrize('name', ['a.jsonl', 'a.json', 'a.txt'])
@pytest.mark.parametrize('text_files', ['paragraphs', 'lines'])
def test_a_byte_order_mark_is_no_text(tmp_path, packing, name, text_files):
  texts = ['first', '\ufeffsecond', 'third']
  lines = texts if name == 'a.txt' else [json.dumps(text, ensure_ascii=False) for text in texts]
  path = tmp_path / f'{name}{packing}'
  path.write_bytes(PACK[packing]('\n\n'.join(lines).encode('utf-8-sig')))
  found, tally = read(path, text_files=text_files)
  assert [one.text.strip('\n') for one in found] == texts and tally == {'read': 3}
  assert [one.id for one in found] == [f'{path.name}:{line}' for line in (1, 3, 5)]


@pytest.mark.parametrize('packing', PACK)
def test_a_json_file_of_lines_that_are_lists_is_no_list(tmp_path, packing):
  path = tmp_path / f'a.json{packing}'
  path.write_bytes(PACK[packing](b'\xef\xbb\xbf[1, 2]\n{"text": "good"}\n'))
  found, tally = read(path)
  assert [one.text for one in found] == ['good'] and tally == {'read': 2, 'invalid_json': 1}


@pytest.mark.parametrize('name', ['a.jsonl.zst', 'a.ndjson.zst', 'a.txt.zst', 'a.jsonl'])
def test_zstd_is_read_whatever_the_name_says(tmp_path, name):
  lines = [json.dumps({'text': text}) for text in TEXTS]
  content = '\n\n'.join(TEXTS) if '.txt' in name else '\n'.join(lines)
  (tmp_path / name).write_bytes(zstd(content.encode()))
  assert [one.text.strip() for one in read(tmp_path / name)[0]] == TEXTS


def test_two_zstd_frames_are_one_file(tmp_path):
  frames = [zstd((json.dumps({'text': text}) + '\n').encode()) for text in TEXTS]
  (tmp_path / 'a.jsonl.zst').write_bytes(b''.join(frames))
  assert [one.text for one in read(tmp_path / 'a.jsonl.zst')[0]] == TEXTS


@pytest.mark.parametrize('cut', [0.3, 0.6, 0.95])
def test_damaged_lists_and_streams_are_named_and_what_precedes_is_read(tmp_path, cut):
  rows = [{'text': f'{i} {text}'} for i in range(30_000) for text in TEXTS]
  content = json.dumps(rows).encode()
  (tmp_path / 'a.json').write_bytes(content[: int(cut * len(content))])
  packed = zstd(content)
  (tmp_path / 'b.json.zst').write_bytes(packed[: int(cut * len(packed))])
  for name in ('a.json', 'b.json.zst'):
    reader = documents.Reader(find_files(tmp_path / name), Reading())
    tally = Counter()
    found = [one for block in reader.blocks() for one in documents.decode(block, Reading(), tally)]
    assert [name] == list(reader.problems)
    assert [one.text for one in found] == [row['text'] for row in rows[: len(found)]]
    assert len(found) > 0.5 * cut * len(rows)


def test_a_large_list_is_cut_into_blocks(tmp_path):
  rows = [{'text': f'{i} ' + 'x' * 1000} for i in range(5000)]
  (tmp_path / 'a.json').write_text(json.dumps(rows))
  blocks = list(documents.Reader(find_files(tmp_path / 'a.json'), Reading()).blocks())
  assert len(blocks) > 3 and blocks[1].first == blocks[0].content.count(b'\n') + 1
