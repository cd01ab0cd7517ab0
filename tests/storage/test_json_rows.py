"""Rows of JSON files: what is read, and that every caller says the same about a malformed one."""

import gzip
import json
import os

import hypothesis
import hypothesis.strategies as st
import pytest

from crossin_jax.data.readers import read_rows
from crossin_jax.errors import RowError
from crossin_jax.evaluation.contamination.text_fields import benchmark_fields, training_fields
from crossin_jax.evaluation.questions import read_questions
from crossin_jax.storage import json_rows
from crossin_jax.storage.json_rows import JsonRows
from crossin_jax.storage.records import read_records
from crossin_jax.xinstruction import rows as pipeline_rows

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
  assert list(JsonRows(path).items()) == [(None, fields) for fields in rows]


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
    outcome = [item for _, item in JsonRows(path).items()]
  except RowError as error:
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
    read = json_rows._Scanned.read
    patch.setattr(json_rows._Scanned, 'read', lambda self, n: read(self, min(n, size)))
    rows = [item for _, item in JsonRows(path).items()]
  assert rows == json.loads(path.read_text())


def test_numbers_that_only_python_reads(tmp_path):
  path = tmp_path / 'a.json'
  path.write_text('[{"a": 1}, {"a": NaN}, {"a": Infinity}]')
  rows = [item['a'] for _, item in JsonRows(path).items()]
  assert rows[0] == 1 and rows[1] != rows[1] and rows[2] == float('inf')


GOOD = {
  'id': 'a', 'language': 'en', 'instruction': 'i', 'output': 'o', 'choices': ['x', 'y'], 'answer': 0
}  # fmt: skip
READERS = {
  'rows': read_rows,
  'records': read_records,
  'training fields': training_fields,
  'benchmark fields': benchmark_fields,
  'questions': read_questions,
  'pipeline rows': pipeline_rows.read,
}
LINE = json.dumps(GOOD).encode()


def said(reader, path) -> str:
  with pytest.raises(RowError) as error:
    list(READERS[reader](str(path)))
  return str(error.value)


@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize(
  'bad, wrong',
  [
    (b'{"a" 1}', "not valid JSON at column 6: Expecting ':' delimiter; fix the line, or copy"),
    (b'{"id": "a', 'not valid JSON at column 8: Unterminated string'),
    (b'{"a": \n', 'not valid JSON at column 8: Expecting value; fix the line, or copy the file'),
    (LINE + b' ' + LINE, f'not valid JSON at column {len(LINE) + 2}: Extra data; fix the line'),
    (b'"\xe9"', f'not valid UTF-8 at byte offset {len(LINE) + 7}; save the file as UTF-8'),
    (b'[' * 200_000, 'JSON nested too deeply; fix the row'),
    (b'{"id": ' + b'9' * 5000 + b'}', 'not usable JSON: Exceeds the limit'),
  ],
)
@pytest.mark.parametrize('ext', ['.jsonl', '.jsonl.gz'])
def test_every_caller_says_the_same_of_a_malformed_line(tmp_path, reader, bad, wrong, ext):
  content = b'\xef\xbb\xbf' + LINE + b'\r\n\n' + bad  # byte order mark, blank line
  path = tmp_path / f'a{ext}'
  path.write_bytes(gzip.compress(content) if ext.endswith('.gz') else content)
  where = f'{path}, row 1 (line 3)' if reader == 'rows' else f'{path}, line 3'
  assert said(reader, path).startswith(f'{where}: {wrong}')


@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize(
  'end, wrong',
  [
    (b'{"a" 1}]', "not valid JSON at column 6: Expecting ':' delimiter; fix it, or copy the file"),
    (b'{"a": "', 'not valid JSON at column 7: Unterminated string'),
    (b'"\xe9"]', 'not valid UTF-8 at byte offset'),
  ],
)
def test_every_caller_says_the_same_of_a_malformed_list(tmp_path, reader, end, wrong):
  path = tmp_path / 'a.json'
  path.write_bytes(b'[\n' + LINE + b',\n' + end)
  where = f'{path}, row 1 (line 3)' if reader == 'rows' else f'{path}, line 3'
  assert said(reader, path).startswith(f'{where}: {wrong}')


@pytest.mark.parametrize('reader', READERS)
def test_every_caller_says_the_same_of_damaged_gzip(tmp_path, reader):
  packed = gzip.compress(LINE + b'\n' + os.urandom(2000).hex().encode())
  path = tmp_path / 'a.jsonl.gz'
  for content, wrong in (
    (gzip.compress(LINE + b'\n' + LINE.replace(b'"a"', b'"b"'))[:-9], 'is cut off before its end'),
    (packed[:10] + b'\xff' * 50, 'is damaged'),
  ):
    path.write_bytes(content)
    assert said(reader, path).startswith(f'{path}: the gzip file {wrong}')


@pytest.mark.parametrize('reader', READERS)
def test_a_last_line_without_newline_is_a_row(tmp_path, reader):
  (tmp_path / 'a.jsonl').write_bytes(LINE)
  (tmp_path / 'b.jsonl').write_bytes(LINE + b'\n')
  one, other = (READERS[reader](str(tmp_path / name)) for name in ('a.jsonl', 'b.jsonl'))
  one, other = (one.rows, other.rows) if reader == 'questions' else (list(one), list(other))
  assert len(one) == len(other) > 0


def test_malformed_lines_are_counted_and_the_rest_is_read(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"a": 1}\n{"a"\n[3]\n\u00a0\n{"a": "\u2028"}\n{"a": ', encoding='utf-8')
  problems = []
  records = [record for _, record in read_records(path, problems)]
  assert records == [{'a': 1}, {'a': '\u2028'}]
  assert [problem.split(':')[0] for problem in problems] == [f'{path}, line {n}' for n in (2, 3, 6)]
  assert 'expected a JSON object, found list' in problems[1]


def test_rows_of_either_form(tmp_path):
  path = tmp_path / 'a'  # no name says which
  for text in ('[1, "b"]', ' \n\t[1,\n"b"]', '\ufeff[1, "b"]'):
    path.write_text(text, encoding='utf-8')
    assert list(JsonRows(path).rows()) == [(None, 1), (None, 'b')]
  path.write_bytes(gzip.compress(b'\n1\r\n"b"'))
  assert list(JsonRows(path).rows()) == [(2, 1), (3, 'b')]
  path.write_text(' \n')
  assert not list(JsonRows(path).rows())


def test_a_pipe_is_read_once(tmp_path):
  """`crossin score --predictions <(...)`."""
  for content in (b'{"a": 1}\n', b'[{"a": 1}]', gzip.compress(b'{"a": 1}')):
    ours, theirs = os.pipe()
    os.write(theirs, content)
    os.close(theirs)
    assert [record for _, record in read_records(f'/dev/fd/{ours}')] == [{'a': 1}]
    os.close(ours)
