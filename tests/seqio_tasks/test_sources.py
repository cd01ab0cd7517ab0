"""Readers of aligned rows: the same rows from every kind of file, and a clear error or a count for
everything else.
"""

import gzip
import json
import os
import pathlib
import pickle
import random
import subprocess
import sys
import tempfile

import gin
import hypothesis
import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crossin_jax.data.readers import EXTENSIONS
from seqio_tasks.sources import ParallelFiles, Source, SourceError, TfdsRows

ROOT = pathlib.Path(__file__).parents[2]
REAL = ROOT.parent / 'shared' / 'data'
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason='put the real data into ../shared/data')

# Text that a careless reader breaks: line separators, CRLF, quotes, an empty input, letters outside
# the BMP.
ROWS = {
  'en': [
    {'id': 'a', 'instruction': 'Name a colour.', 'input': '', 'output': 'Red'},
    {
      'id': 'b',
      'instruction': 'Split\u2028this\u2029line',
      'input': 'x\r\ny\tz',
      'output': '"1"\\n\n😀',
    },
    {'id': 'c', 'instruction': '', 'input': '', 'output': ' running text '},
  ],
  'zh': [
    {'id': 'a', 'instruction': '说出一种颜色。', 'input': '', 'output': '红色'},
    {'id': 'b', 'instruction': '分开\u2028这一行', 'input': 'x\r\ny', 'output': '“一”\n😀'},
    {'id': 'c', 'instruction': '', 'input': '', 'output': '文本'},
  ],
}
TEXTS = {
  language: [{k: v for k, v in row.items() if k != 'id'} for row in rows]
  for language, rows in ROWS.items()
}
LONG = [{**ROWS[language][i], 'language': language} for i in range(3) for language in ('zh', 'en')]


def write(path, rows):
  """Writes rows as the kind of file that the name says."""
  name, path = path.name, str(path)
  opened = gzip.open if name.endswith('.gz') else open
  if name.endswith('.parquet'):
    pq.write_table(pa.Table.from_pylist(rows), path)
  elif '.jsonl' in name:
    with opened(path, 'wb') as file:
      file.write(b''.join(json.dumps(row, ensure_ascii=False).encode() + b'\n' for row in rows))
  else:
    with opened(path, 'wb') as file:
      file.write(json.dumps(rows, ensure_ascii=False).encode())


def rows_of(source):
  return {
    language: [source.row(i, language) for i in range(len(source))] for language in source.languages
  }


def one(path, text, **settings):
  """A one-language source over a file with these bytes."""
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  return ParallelFiles(str(path), **settings)


def error(source):
  with pytest.raises(SourceError) as caught:
    len(source)
  return str(caught.value)


# --- The same rows from every kind of file ---


@pytest.mark.parametrize('mark', ['_', '.'])
@pytest.mark.parametrize('ext', EXTENSIONS)
def test_a_file_per_language(tmp_path, mark, ext):
  for language, rows in ROWS.items():
    write(tmp_path / f'alpaca{mark}{language}{ext}', rows)
  source = ParallelFiles(str(tmp_path / 'alpaca'), ('en', 'zh'))
  assert isinstance(source, Source)
  assert (source.name, len(source), source.ids()) == ('alpaca', 3, ['a', 'b', 'c'])
  assert rows_of(source) == TEXTS
  assert source.set_aside() == {}


@pytest.mark.parametrize('ext', ['.json', '.jsonl', '.jsonl.gz', '.parquet'])
def test_long_form(tmp_path, ext):
  write(tmp_path / f'rows{ext}', LONG)
  source = ParallelFiles(str(tmp_path / f'rows{ext}'), ('en', 'zh'))
  assert (source.name, source.ids(), rows_of(source)) == ('rows', ['a', 'b', 'c'], TEXTS)
  only_chinese = ParallelFiles(str(tmp_path / f'rows{ext}'), ('zh',))
  assert rows_of(only_chinese) == {'zh': TEXTS['zh']}


def test_one_digest_for_the_same_rows(tmp_path):
  for language, rows in ROWS.items():
    write(tmp_path / f'a_{language}.json', rows)
    write(tmp_path / f'b.{language}.parquet', rows)
  write(tmp_path / 'mixed_en.jsonl.gz', ROWS['en'])
  write(tmp_path / 'mixed.zh.json', [dict(reversed(row.items()), extra=1) for row in ROWS['zh']])
  write(tmp_path / 'long.jsonl', LONG)
  languages = ('en', 'zh')
  digest = ParallelFiles(str(tmp_path / 'a'), languages).digest()
  assert len(digest) == 64
  for name in ('b', 'mixed', 'long.jsonl'):
    assert ParallelFiles(str(tmp_path / name), languages).digest() == digest

  changed = [dict(row, input=row['input'].replace('\r\n', '\n')) for row in ROWS['zh']]
  write(tmp_path / 'a_zh.json', changed)
  assert ParallelFiles(str(tmp_path / 'a'), languages).digest() != digest, 'line ends are content'
  write(tmp_path / 'a_zh.json', ROWS['zh'])
  moved = [{**ROWS['en'][0], 'instruction': 'Name a colour.R', 'output': 'ed'}, *ROWS['en'][1:]]
  write(tmp_path / 'a_en.json', moved)
  assert ParallelFiles(str(tmp_path / 'a'), languages).digest() != digest, (
    'field borders are content'
  )


def test_digest_does_not_depend_on_the_order_of_languages(tmp_path):
  for language in ('en', 'zh', 'vi'):
    write(tmp_path / f'a_{language}.json', ROWS['zh' if language == 'vi' else language])
  sources = [
    ParallelFiles(str(tmp_path / 'a'), ('en', *others)) for others in (('zh', 'vi'), ('vi', 'zh'))
  ]
  assert sources[0].digest() == sources[1].digest()


def test_one_language(tmp_path):
  write(tmp_path / 'platypus_en.json', [{**row, 'data_source': 'x'} for row in TEXTS['en']])
  stem = ParallelFiles(str(tmp_path / 'platypus'))
  single = ParallelFiles(str(tmp_path / 'platypus_en.json'))
  assert stem.languages == single.languages == ('en',)
  assert (stem.name, single.name) == ('platypus', 'platypus_en')
  assert rows_of(stem) == rows_of(single) == {'en': TEXTS['en']}
  assert single.ids() == ['0', '1', '2']


@pytest.mark.parametrize('without', [{}, {'input': None}])
@pytest.mark.parametrize('ext', ['.json', '.jsonl', '.parquet'])
def test_input_may_be_missing_or_null(tmp_path, without, ext):
  write(tmp_path / f'a{ext}', [{'instruction': 'a', 'output': 'b', **without}])
  assert ParallelFiles(str(tmp_path / f'a{ext}')).row(0, 'en') == {
    'instruction': 'a',
    'input': '',
    'output': 'b',
  }


def test_byte_order_mark_crlf_and_blank_lines(tmp_path):
  rows = [json.dumps(row, ensure_ascii=False) for row in TEXTS['en']]
  text = '\ufeff\r\n' + '\r\n \r\n'.join(rows) + '\r\n\r\n'
  assert rows_of(one(tmp_path / 'a.jsonl', text))['en'] == TEXTS['en']
  assert (
    rows_of(one(tmp_path / 'a.json', '\ufeff[\r\n' + ',\r\n'.join(rows) + ']\r\n'))['en']
    == TEXTS['en']
  )
  assert rows_of(one(tmp_path / 'b.jsonl', '\n'.join(rows)))['en'] == TEXTS['en'], (
    'no newline at the end'
  )


def test_whole_numbers_are_ids(tmp_path):
  write(tmp_path / 'a_en.json', [{'id': 7, 'instruction': 'a', 'output': 'b'}])
  write(tmp_path / 'a_zh.parquet', [{'id': '7', 'instruction': 'c', 'output': 'd'}])
  assert ParallelFiles(str(tmp_path / 'a'), ('en', 'zh')).ids() == ['7']


def test_pickled_as_settings(tmp_path):
  write(tmp_path / 'a_en.json', ROWS['en'] * 1)
  source = ParallelFiles(str(tmp_path / 'a'), ['English'])
  empty = len(pickle.dumps(source))
  assert len(source) == 3 and source.digest()
  assert len(pickle.dumps(source)) == empty
  again = pickle.loads(pickle.dumps(source))
  assert again == source and again.languages == ('en',) and rows_of(again) == rows_of(source)


def test_gin(tmp_path):
  write(tmp_path / 'a_en.json', ROWS['en'])
  write(tmp_path / 'a_vi.json', ROWS['zh'])
  try:
    gin.parse_config(
      f"ParallelFiles.path = '{tmp_path / 'a'}'\nParallelFiles.languages = ['en', 'vi']"
    )
    source = ParallelFiles()
    assert (source.languages, len(pickle.loads(pickle.dumps(source)))) == (('en', 'vi'), 3)
  finally:
    gin.clear_config()


def test_imports_no_tensorflow():
  code = 'import sys, seqio_tasks.sources; print({"tensorflow", "seqio", "tensorflow_datasets"} & {*sys.modules})'
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == 'set()'


# --- Alignment ---


def row(id_=None, output='o', **fields):
  return {'instruction': 'i', 'output': output, **fields, **({} if id_ is None else {'id': id_})}


def pair(tmp_path, english, chinese, **settings):
  write(tmp_path / 'a_en.json', english)
  write(tmp_path / 'a_zh.json', chinese)
  return ParallelFiles(str(tmp_path / 'a'), ('en', 'zh'), **settings)


def test_by_id_whatever_the_order(tmp_path):
  source = pair(
    tmp_path,
    [row('a', 'A'), row('b', 'B'), row('c', 'C')],
    [row('d', 'd'), row('b', 'b'), row('a', 'a')],
  )
  assert source.ids() == ['a', 'b']
  assert [source.row(i, 'zh')['output'] for i in range(2)] == ['a', 'b']
  assert source.set_aside() == {('en', 'no_counterpart'): 1, ('zh', 'no_counterpart'): 1}


def test_by_position_when_an_id_is_missing_or_ids_are_not_wanted(tmp_path):
  assert pair(tmp_path, [row('a'), row()], [row('a'), row('b')]).ids() == ['0', '1']
  assert pair(tmp_path, [row('a'), row('b')], [row('b'), row('a')], align='position').ids() == [
    '0',
    '1',
  ]


def test_set_aside_in_one_language_is_dropped_in_all(tmp_path):
  english = [row(output=text) for text in ('0', ' \n', '2', '3', '4', '5')]
  chinese = [row(output=text) for text in ('0', '', '2\x00', '3', '4' * 11, '5')]
  chinese[3]['instruction'] = 'a\x1bb'
  source = pair(tmp_path, english, chinese, max_characters=10)
  assert source.ids() == ['0', '5'], 'numbers of the rows in the file'
  assert [source.row(1, language)['output'] for language in ('en', 'zh')] == ['5', '5']
  assert source.set_aside() == {
    ('en', 'empty_response'): 1,  # empty in both: counted once
    ('zh', 'control_characters'): 2,
    ('zh', 'too_long'): 1,
  }


def test_half_a_surrogate_pair_is_set_aside(tmp_path):
  text = (
    r'[{"instruction": "\ud83d", "output": "x"}, {"instruction": "\ud83d\ude00", "output": "x"}]'
  )
  source = one(tmp_path / 'a.json', text)
  assert source.set_aside() == {('en', 'lone_surrogates'): 1}
  assert source.row(0, 'en')['instruction'] == '😀'
  assert source.digest()


def test_all_rows_set_aside_is_no_error(tmp_path):
  source = pair(tmp_path, [row(output='')], [row()])
  assert (len(source), source.set_aside()) == (0, {('en', 'empty_response'): 1})


def test_unequal_lengths(tmp_path):
  message = error(pair(tmp_path, [row()] * 3, [row()] * 2))
  assert (
    'a_en.json has 3' in message
    and 'a_zh.json has 2' in message
    and 'give every row an id' in message
  )
  english, chinese = [row('a'), row('b'), row('c'), row()], [row('a'), row('c'), row()]
  message = error(pair(tmp_path, english, chinese))
  assert "first unequal row is 1 (counted from 0), id 'b'" in message and "'c' in" in message
  assert 'equal up to' in error(pair(tmp_path, [row('a'), row()], [row('a')]))


def test_ids_that_disagree_are_not_ignored(tmp_path):
  message = error(pair(tmp_path, [row('a'), row('b'), row()], [row('a'), row('x'), row()]))
  assert "id 'b'" in message and "'x'" in message and "align = 'position'" in message


def test_duplicate_ids(tmp_path):
  message = error(pair(tmp_path, [row('a'), row('b'), row('a')], [row('a'), row('b')]))
  assert 'a_en.json, row 2' in message and "id 'a'" in message and 'row 0' in message
  write(tmp_path / 'long.jsonl', [*LONG, LONG[0]])
  message = error(ParallelFiles(str(tmp_path / 'long.jsonl'), ('en', 'zh')))
  assert (
    'long.jsonl, row 6' in message and "id 'a' of language 'zh'" in message and 'row 0' in message
  )


def test_no_common_ids(tmp_path):
  message = error(pair(tmp_path, [row('en-0')], [row('zh-0')]))
  assert "'en-0'" in message and "'zh-0'" in message and "align = 'position'" in message


def test_ids_asked_for_but_missing(tmp_path):
  assert "a_zh.json, row 1 (counted from 0): field 'id' is missing" in error(
    pair(tmp_path, [row('a'), row('b')], [row('a'), row()], align='id')
  )


# --- Bad settings ---


@pytest.mark.parametrize(
  'settings, expected',
  [
    ({'languages': ('en', 'vietnamse')}, 'vietnamese'),
    ({'languages': ('zh', 'en')}, "'en' must come first"),
    ({'languages': ('en', 'English')}, 'none twice'),
    ({'languages': ()}, 'at least one'),
    ({'languages': (3,)}, 'languages'),
    ({'align': 'row'}, "'auto', 'id' or 'position'"),
    ({'name': 'open-platypus'}, 'open_platypus'),
    ({'max_characters': 0}, 'max_characters'),
  ],
)
def test_settings(settings, expected):
  with pytest.raises(SourceError, match=expected):
    ParallelFiles('a', **settings)


def test_name_from_the_path():
  assert ParallelFiles('/x/open-platypus').name == 'open_platypus'
  assert ParallelFiles('/x/rows.jsonl.gz').name == 'rows'
  assert TfdsRows('/x/aligned_instructions/alpaca/1.0.0/').name == 'alpaca'
  assert TfdsRows('aligned_instructions/alpaca:1.*.*').name == 'alpaca'


def test_a_language_the_source_has_not(tmp_path):
  with pytest.raises(SourceError, match="en, zh, not 'vi'"):
    pair(tmp_path, [row()], [row()]).row(0, 'vi')


# --- Bad files ---


def test_missing_files(tmp_path):
  write(tmp_path / 'alpaca_en.json', [row()])
  (tmp_path / 'notes.txt').write_text('')
  message = error(ParallelFiles(str(tmp_path / 'alpaca'), ('en', 'zh')))
  assert (
    "'zh'" in message
    and 'alpaca_zh' in message
    and 'found beside it: alpaca_en.json, notes.txt' in message
  )
  assert 'no such file, found beside it: alpaca_en.json' in error(
    ParallelFiles(str(tmp_path / 'alpaca_zh.json'))
  )
  assert 'cannot list' in error(ParallelFiles(str(tmp_path / 'nowhere' / 'alpaca')))
  write(tmp_path / 'alpaca.en.jsonl', [row()])
  assert 'alpaca_en.json, alpaca.en.jsonl' in error(ParallelFiles(str(tmp_path / 'alpaca')))


def test_directory_for_a_file(tmp_path):
  write(tmp_path / 'alpaca_en.json', [row()])
  for path in (str(tmp_path), f'{tmp_path}/'):
    message = error(ParallelFiles(path, name='a'))
    assert 'is a directory that has alpaca_en.json' in message and 'NAME_en.json' in message
  (tmp_path / 'part_en.parquet').mkdir()
  assert 'part_en.parquet: is a directory' in error(ParallelFiles(str(tmp_path / 'part')))


def test_unknown_kind_of_file(tmp_path):
  assert '.parquet' in error(one(tmp_path / 'rows.csv', 'instruction,output\n'))


@pytest.mark.skipif(
  os.name != 'posix' or os.geteuid() == 0, reason='root may read everything: run as another user'
)
def test_no_permission(tmp_path):
  source = one(tmp_path / 'a.json', '[]')
  (tmp_path / 'a.json').chmod(0)
  assert 'Permission denied' in error(source)


@pytest.mark.parametrize('ext', ['.json', '.jsonl', '.parquet', '.json.gz'])
def test_empty_file(tmp_path, ext):
  assert f'a{ext}: the file is empty' in error(one(tmp_path / f'a{ext}', b''))


def test_no_rows(tmp_path):
  assert 'has no rows' in error(one(tmp_path / 'a.json', '[]'))
  assert 'white space' in error(one(tmp_path / 'a.json', '\n \n'))
  assert 'has no rows' in error(one(tmp_path / 'a.jsonl', '\n\n'))
  assert 'has no rows' in error(one(tmp_path / 'a.jsonl.gz', gzip.compress(b'')))
  pq.write_table(
    pa.table([pa.array([], pa.string())] * 2, ['instruction', 'output']), tmp_path / 'a.parquet'
  )
  assert 'has no rows' in error(ParallelFiles(str(tmp_path / 'a.parquet')))


def test_broken_json(tmp_path):
  whole = json.dumps([row(), row(), row()], indent=0)
  message = error(one(tmp_path / 'a.json', whole[: whole.rindex('output') + 10]))
  assert 'a.json, row 2 (line 12): not valid JSON at column' in message and 'cut off' in message
  message = error(one(tmp_path / 'a.jsonl', json.dumps(row()) + '\n\n' + json.dumps(row())[:20]))
  assert 'a.jsonl, row 1 (line 3): not valid JSON at column' in message and 'cut off' in message
  assert 'digits' in error(one(tmp_path / 'a.json', '[{"id": ' + '9' * 5000 + '}]'))
  assert 'nested too deeply' in error(one(tmp_path / 'a.jsonl', '[' * 200_000))


def test_json_and_jsonl_mixed_up(tmp_path):
  lines = '\n'.join(json.dumps(row()) for _ in range(3))
  assert 'name it .jsonl' in error(one(tmp_path / 'a.json', lines))
  assert 'name it .json' in error(one(tmp_path / 'a.jsonl', json.dumps([row()], indent=1)))
  assert 'name the file .json' in error(one(tmp_path / 'a.jsonl', json.dumps([row()])))


@pytest.mark.parametrize('text', ['{"data": []}', '"text"', '3', 'null'])
def test_not_a_list(tmp_path, text):
  assert 'a.json: must hold a list of rows, found' in error(one(tmp_path / 'a.json', text))


@pytest.mark.parametrize('bad', [3, None, 'text', ['a'], True])
def test_row_is_no_object(tmp_path, bad):
  text = json.dumps([row(), bad])
  assert 'a.json, row 1 (counted from 0): a row must be an object' in error(
    one(tmp_path / 'a.json', text)
  )
  text = json.dumps(row()) + '\n\n' + json.dumps(bad)
  assert 'a.jsonl, row 1 (line 3): a row must be an object' in error(
    one(tmp_path / 'a.jsonl', text)
  )


@pytest.mark.parametrize('field', ['instruction', 'output'])
def test_missing_field(tmp_path, field):
  bad = {key: value for key, value in row().items() if key != field}
  message = error(one(tmp_path / 'a.json', json.dumps([row(), bad])))
  assert f"a.json, row 1 (counted from 0): field '{field}' is missing, found" in message


@pytest.mark.parametrize('field', ['instruction', 'input', 'output'])
@pytest.mark.parametrize('value', [3, 1.5, True, ['a'], {'a': 'b'}])
def test_wrong_type(tmp_path, field, value):
  message = error(one(tmp_path / 'a.jsonl', json.dumps({**row(), field: value})))
  assert (
    f"row 0 (line 1): field '{field}' must be a string, found {type(value).__name__} {value!r}"
    in message
  )
  assert 'remove the row' in message
  if isinstance(value, int | list):
    write(tmp_path / 'b.parquet', [{**row(), field: value}])
    message = error(ParallelFiles(str(tmp_path / 'b.parquet')))
    assert f"b.parquet, row 0 (counted from 0): field '{field}' must be a string" in message


@pytest.mark.parametrize('value', [True, 1.0, [], ''])
def test_wrong_id(tmp_path, value):
  assert "row 0 (line 1): field 'id' must be an integer or a non-empty string" in error(
    one(tmp_path / 'a.jsonl', json.dumps({**row(), 'id': value}))
  )


@pytest.mark.parametrize('ext', ['.json', '.jsonl', '.parquet'])
def test_null_output_is_counted(tmp_path, ext):
  write(tmp_path / f'a{ext}', [row(), row(output=None)])
  source = ParallelFiles(str(tmp_path / f'a{ext}'))
  assert len(source) == 1 and source.set_aside() == {('en', 'null_field'): 1}


def test_faults_of_rows_are_counted_and_other_languages_noted(tmp_path):
  rows = [
    row('1'), row('2', system='Be brief.'), row('3', history=[['a', 'b']]),
    row('5', output=None), {'id': '6', 'messages': [{'role': 'tool', 'content': 'x'}]},
    {'id': '4', 'messages': [{'role': 'user', 'content': 'i'}, {'role': 'assistant', 'content': 'o'}]},
    row('7', tools='[{"name": "f"}]'), row('8', tools='[]', images=None),
  ]  # fmt: skip
  for language in ('en', 'zh', 'pl'):
    write(tmp_path / f'a.{language}.json', rows)
  source = ParallelFiles(str(tmp_path / 'a'), ('en', 'zh'))
  assert list(source.ids()) == ['1', '2', '3', '4', '8']
  assert source.set_aside() == {
    ('en', fault): 1 for fault in ('null_field', 'unknown_role', 'unread_field')
  }
  assert source.notes() == ['a: a.pl.json not read, Polish is not in its languages en, zh']
  long = [fields | {'language': code} for fields in rows for code in ('en', 'pl')]
  write(tmp_path / 'long.jsonl', long)
  source = ParallelFiles(str(tmp_path / 'long.jsonl'), ('en',))
  assert source.notes() == ['long: 8 rows not read, Polish is not in its languages en']


def test_invalid_utf8(tmp_path):
  good, bad = (
    json.dumps(row()).encode(),
    json.dumps(row(output='X')).encode().replace(b'X', b'\xe9'),
  )
  text = b'[' + good + b',\n' + bad + b']'
  message = error(one(tmp_path / 'a.json', text))
  assert (
    f'a.json, row 1 (line 2): not valid UTF-8 at byte offset {text.index(0xE9)}; save the file as'
    in message
  )
  text = b'\xef\xbb\xbf\n' + good + b'\n' + bad
  message = error(one(tmp_path / 'a.jsonl', text))
  assert f'a.jsonl, row 1 (line 3): not valid UTF-8 at byte offset {text.index(0xE9)}' in message
  assert 'UTF-16' in error(one(tmp_path / 'a.json', json.dumps([row()]).encode('utf-16')))
  text = pa.array([b'ok', b'\xe9'], pa.binary()).view(pa.string())
  pq.write_table(pa.table({'instruction': text, 'output': text}), tmp_path / 'a.parquet')
  message = error(ParallelFiles(str(tmp_path / 'a.parquet')))
  assert "a.parquet, row 1 (counted from 0): field 'instruction': not valid UTF-8" in message


@pytest.mark.parametrize('ext', ['.json.gz', '.jsonl.gz'])
def test_broken_gzip(tmp_path, ext):
  noise = random.Random(0).randbytes(2000).hex()
  text = json.dumps(row(output=noise) if 'l' in ext else [row(output=noise)]).encode()
  packed = gzip.compress(text)
  assert 'not a complete gzip file' in error(one(tmp_path / f'a{ext}', text))
  assert 'cut off' in error(one(tmp_path / f'a{ext}', packed[: len(packed) // 2]))
  damaged = packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:]
  assert f'a{ext}: not a complete gzip file' in error(one(tmp_path / f'a{ext}', damaged))
  assert f'a{ext}: the gzip file is damaged' in error(
    one(tmp_path / f'a{ext}', packed[:10] + b'\xff' * 50)
  )
  assert 'add .gz to its name' in error(one(tmp_path / f'a{ext.removesuffix(".gz")}', packed))


def test_broken_parquet(tmp_path):
  write(tmp_path / 'a.parquet', ROWS['en'])
  whole = (tmp_path / 'a.parquet').read_bytes()
  assert 'a.parquet: not a complete Parquet file' in error(one(tmp_path / 'a.parquet', whole[:-20]))
  assert 'b.parquet: not a complete Parquet file' in error(
    one(tmp_path / 'b.parquet', json.dumps([row()]))
  )
  write(tmp_path / 'c.parquet', [{'instruction': 'a', 'response': 'b'}])
  message = error(ParallelFiles(str(tmp_path / 'c.parquet')))
  assert "column 'output' is missing, found the columns instruction, response" in message
  pq.write_table(
    pa.table([pa.array(['a'])] * 3, ['instruction', 'output', 'output']), tmp_path / 'd.parquet'
  )
  assert "column 'output' occurs twice" in error(ParallelFiles(str(tmp_path / 'd.parquet')))


def test_long_form_faults(tmp_path):
  path, languages = tmp_path / 'a.jsonl', ('en', 'zh')

  def fault(rows):
    return error(one(path, '\n'.join(map(json.dumps, rows)), languages=languages))

  assert "row 1 (line 2): field 'language': unknown language 'zhh'" in fault(
    [LONG[1], {**LONG[0], 'language': 'zhh'}]
  )
  assert 'mean' in fault([{**LONG[1], 'language': 'Englsh'}]), 'the nearest is named'
  assert "field 'language' must be a string" in fault([{**LONG[1], 'language': 3}])
  assert "row 0 (counted from 0): field 'id' is missing" in fault([row(language='en')])
  message = fault([row('a')])
  assert "field 'language' is missing" in message and 'stem' in message
  assert "no rows in language 'zh', found en, vi" in fault(
    [row('a', language='en'), row('a', language='vi')]
  )


# --- Any input at all ---

TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
VALUES = st.one_of(
  TEXT, st.none(), st.integers(), st.booleans(), st.floats(), st.lists(TEXT, max_size=2)
)
ANY_ROW = st.one_of(
  st.fixed_dictionaries(
    {'instruction': TEXT, 'output': TEXT}, optional={'input': TEXT | st.none(), 'id': TEXT}
  ),
  st.dictionaries(
    st.sampled_from(['id', 'language', 'instruction', 'input', 'output', 'x']), VALUES
  ),
  VALUES,
)
GOOD_ROW = st.fixed_dictionaries({'instruction': TEXT, 'output': TEXT, 'id': st.integers(0, 9)})
quick = hypothesis.settings(max_examples=200, deadline=None, database=None)


@quick
@hypothesis.given(st.lists(ANY_ROW, min_size=1, max_size=5), st.sampled_from(['.json', '.jsonl']))
def test_every_row_is_kept_or_counted_or_the_file_refused(rows, ext):
  with tempfile.TemporaryDirectory() as directory:
    path = pathlib.Path(directory, f'a{ext}')
    text = json.dumps(rows) if ext == '.json' else '\n'.join(map(json.dumps, rows))
    source = one(path, text, max_characters=10)
    try:
      kept = rows_of(source)['en']
    except SourceError as fault:
      assert str(path) in str(fault)
      return
    assert len(kept) + sum(source.set_aside().values()) == len(rows)
    assert len(source.ids()) == len(set(source.ids())) == len(kept)
    for fields in kept:
      assert list(fields) == ['instruction', 'input', 'output']
      assert all(
        isinstance(text, str) and len(text) <= 10 and text.encode() is not None
        for text in fields.values()
      )
      assert fields['output'].strip()
    assert source.digest()


@quick
@hypothesis.given(
  *[st.lists(GOOD_ROW, min_size=1, max_size=6, unique_by=lambda row: row['id'])] * 2
)
def test_counts_add_up_for_every_language(english, chinese):
  with tempfile.TemporaryDirectory() as directory:
    source = ParallelFiles(os.path.join(directory, 'a'), ('en', 'zh'), align='id')
    for language, rows in (('en', english), ('zh', chinese)):
      pathlib.Path(directory, f'a_{language}.json').write_text(json.dumps(rows))
    if not {row['id'] for row in english} & {row['id'] for row in chinese}:
      assert 'no id occurs in all' in error(source)
      return
    counts = source.set_aside()
    unusable = sum(count for (_, reason), count in counts.items() if reason != 'no_counterpart')
    for language, rows in (('en', english), ('zh', chinese)):
      assert len(source) + counts.get((language, 'no_counterpart'), 0) + unusable == len(rows)
      by_id = {str(row['id']): row for row in rows}
      for i, id_ in enumerate(source.ids()):
        assert source.row(i, language)['output'] == json.loads(json.dumps(by_id[id_]['output']))


@quick
@hypothesis.given(st.binary(max_size=60), st.sampled_from(EXTENSIONS), st.booleans())
def test_any_bytes(data, ext, packed):
  with tempfile.TemporaryDirectory() as directory:
    path = pathlib.Path(directory, f'a{ext}')
    with pytest.raises(SourceError) as caught:
      len(one(path, gzip.compress(data) if packed else data))
    assert str(path) in str(caught.value)


# --- Real data ---


@needs_real
def test_real_parallel_files():
  source = ParallelFiles(str(REAL / 'alpaca_parallel' / 'alpaca'), ('en', 'zh', 'vi'))
  assert (source.name, len(source), source.set_aside()) == ('alpaca', 2000, {})
  assert source.ids() == [str(i) for i in range(2000)]
  with open(REAL / 'alpaca_parallel' / 'alpaca.vi.json', encoding='utf-8') as file:
    assert rows_of(source)['vi'] == json.load(file)


@needs_real
def test_real_files_with_ids():
  source = ParallelFiles(str(REAL / 'xquad_instr' / 'xquad_instr'), ('en', 'zh', 'vi', 'es'))
  assert len(source) + sum(source.set_aside().values()) == 320
  assert not source.ids()[0].isdigit()


@needs_real
def test_real_english_only_file():
  source = ParallelFiles(str(REAL / 'platypus_standin'))
  assert (source.languages, len(source)) == (('en',), 800)
  assert ParallelFiles(str(REAL / 'platypus_standin.en.json')).digest() == source.digest()
