"""Rows in the shapes that users have: Alpaca, LLaMA-Factory, OpenAI, ShareGPT, TRL; in JSON, JSON
lines and Parquet.
"""

import json

import hypothesis
from hypothesis import strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crossin_jax.data.conversations import FAULTS, UNREAD_FIELDS
from crossin_jax.data.readers import check_row, find_files, other_files, read_rows
from crossin_jax.data.source_errors import SourceError

RIVER = ('Name a river.', '', 'The Nile.')
USER, ASSISTANT = {'role': 'user', 'content': RIVER[0]}, {'role': 'assistant', 'content': RIVER[2]}
HUMAN, GPT = {'from': 'human', 'value': RIVER[0]}, {'from': 'gpt', 'value': RIVER[2]}
SYSTEM = {'role': 'system', 'content': 'Be brief.'}
HELLO = [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
PARTS = [{'type': 'text', 'text': 'Name '}, {'type': 'text', 'text': 'a river.'}]

SHAPES = [
  ({'instruction': RIVER[0], 'output': RIVER[2]}, ''),
  ({'instruction': RIVER[0], 'input': None, 'output': RIVER[2], 'system': '', 'history': []}, ''),
  ({'messages': [USER, ASSISTANT]}, ''),
  ({'messages': [{'role': 'system', 'content': '  '}, USER, ASSISTANT]}, ''),
  ({'messages': [{'role': 'user', 'content': PARTS}, ASSISTANT]}, ''),
  ({'conversations': [HUMAN, GPT]}, ''),
  ({'conversations': [HUMAN, GPT], 'system': ''}, ''),
  ({'conversations': [USER, ASSISTANT]}, ''),
  ({'prompt': RIVER[0], 'completion': RIVER[2]}, ''),
  ({'prompt': [USER], 'completion': [ASSISTANT]}, ''),
  ({'instruction': RIVER[0], 'output': None}, 'null_field'),
  ({'instruction': None, 'output': RIVER[2]}, 'null_field'),
  ({'messages': [USER, {'role': 'assistant', 'content': None}]}, 'null_field'),
  ({'prompt': RIVER[0], 'completion': None}, 'null_field'),
  ({'messages': [ASSISTANT, USER]}, 'roles_out_of_order'),
  ({'messages': [USER, USER, ASSISTANT]}, 'roles_out_of_order'),
  ({'messages': [USER, SYSTEM, ASSISTANT]}, 'roles_out_of_order'),
  ({'messages': [SYSTEM, SYSTEM, USER, ASSISTANT]}, 'roles_out_of_order'),
  ({'conversations': [HUMAN, GPT, HUMAN]}, 'no_answer'),
  ({'messages': [USER]}, 'no_answer'),
  ({'messages': [SYSTEM]}, 'no_answer'),
  ({'messages': []}, 'no_answer'),
  ({'messages': None}, 'null_field'),
  ({'messages': [USER, ASSISTANT, USER | {'content': ' '}, ASSISTANT]}, 'empty_turn'),
  ({'messages': [SYSTEM, USER, ASSISTANT | {'content': ''}]}, 'empty_turn'),
  ({'instruction': None, 'output': None, 'messages': [USER, ASSISTANT]}, ''),
  ({'instruction': None, 'output': None, 'prompt': None, 'completion': None}, 'null_field'),
  ({'conversations': [HUMAN | {'role': None, 'content': None}, GPT | {'role': None}]}, ''),
  ({'conversations': [HUMAN, GPT | {'from': 'chatgpt'}]}, ''),
  ({'messages': [{'role': 'prompter', 'text': RIVER[0]}, ASSISTANT]}, ''),
  ({'messages': [USER, ASSISTANT | {'tool_calls': None}]}, ''),
  ({'messages': [USER, ASSISTANT | {'tool_calls': [{'type': 'function'}]}]}, 'tool_calls'),
  ({'messages': [USER, {'role': 'tool', 'content': 'x'}, ASSISTANT]}, 'unknown_role'),
  ({'messages': [USER, {'content': 'x'}, ASSISTANT]}, 'unknown_role'),
  ({'messages': [{'role': 'user', 'content': [{'type': 'image'}]}, ASSISTANT]}, 'other_parts'),
  ({'messages': [USER, ASSISTANT | {'reasoning_content': ' '}]}, ''),
  ({'conversations': {'from': ['human', 'gpt'], 'value': [RIVER[0], RIVER[2]]}}, ''),
  ({'conversations': [HUMAN, GPT], 'tools': '[{"name": "f"}]'}, 'unread_field'),
  ({'conversations': [HUMAN, GPT, HUMAN, GPT], 'tools': '[{"name": "f"}]'}, 'unread_field'),
  ({'messages': [USER, ASSISTANT], 'tools': [{'type': 'function'}]}, 'unread_field'),
  ({'messages': [USER, ASSISTANT], 'image': 'a.png'}, 'unread_field'),
  ({'prompt': RIVER[0], 'completion': RIVER[2], 'rejected': 'No.'}, 'unread_field'),
]
ALPACA = {'instruction': RIVER[0], 'input': '', 'output': RIVER[2]}
SHAPES += [(ALPACA | {field: ['x']}, 'unread_field') for field in UNREAD_FIELDS]
SHAPES += [
  (ALPACA | dict.fromkeys(UNREAD_FIELDS, empty), '') for empty in (None, '', ' ', [], {}, '[]')
]


@pytest.mark.parametrize('fields, fault', SHAPES)
def test_a_shape_is_read_or_has_a_fault(tmp_path, fields, fault):
  path = tmp_path / 'rows.jsonl'
  path.write_text('\ufeff' + json.dumps({'id': 'a', 'language': 'en'} | fields) + '\n', 'utf-8')
  (row,) = read_rows(str(path), with_language=True)
  assert row.fault == fault and (row.id, row.language) == ('a', 'en')
  assert fault in ('', *FAULTS) and (fault or row.texts == RIVER)


def save(folder, rows):
  """Writes rows as `datasets.Dataset.save_to_disk` does, in two files."""
  folder.mkdir()
  table, names = pa.Table.from_pylist(rows), ['data-0.arrow', 'data-1.arrow']
  for name, part in zip(names, (table[:1], table[1:])):
    with pa.OSFile(str(folder / name), 'wb') as file, pa.ipc.new_stream(file, table.schema) as out:
      out.write_table(part)
  state = {'_data_files': [{'filename': name} for name in names]}
  (folder / 'state.json').write_text(json.dumps(state))


CONVERSATIONS = [
  ({'messages': [SYSTEM, USER, ASSISTANT]}, [SYSTEM, USER, ASSISTANT]),
  ({'messages': [SYSTEM | {'role': 'developer'}, USER, ASSISTANT]}, [SYSTEM, USER, ASSISTANT]),
  ({'messages': [*HELLO, USER, ASSISTANT]}, [*HELLO, USER, ASSISTANT]),
  ({'messages': [*HELLO, {'role': 'user', 'content': PARTS}, ASSISTANT]}, [*HELLO, USER, ASSISTANT]),
  ({'conversations': [HUMAN, GPT, HUMAN, GPT]}, [USER, ASSISTANT] * 2),
  ({'conversations': [HUMAN, GPT], 'system': 'Be brief.'}, [SYSTEM, USER, ASSISTANT]),
  ({'messages': [SYSTEM, USER, ASSISTANT], 'system': 'Other.'}, [SYSTEM, USER, ASSISTANT]),
  ({'messages': [SYSTEM, USER, ASSISTANT], 'history': [['Hi', 'Hello']]},
   [SYSTEM, *HELLO, USER, ASSISTANT]),
  ({'instruction': RIVER[0], 'output': RIVER[2], 'history': [['Hi', 'Hello']]},
   [*HELLO, USER, ASSISTANT]),
  ({'instruction': 'Name', 'input': 'a river.', 'output': RIVER[2], 'system': 'Be brief.'},
   [SYSTEM, {'role': 'user', 'content': 'Name\na river.'}, ASSISTANT]),
  ({'prompt': RIVER[0], 'completion': RIVER[2], 'history': [['Hi', 'Hello']]},
   [*HELLO, USER, ASSISTANT]),
  ({'prompt': [SYSTEM, USER], 'completion': [ASSISTANT]}, [SYSTEM, USER, ASSISTANT]),
  ({'messages': [USER, ASSISTANT | {'reasoning_content': 'Long?', 'other': 1}]},
   [USER, ASSISTANT | {'reasoning_content': 'Long?'}]),
  ({'messages': [USER, ASSISTANT | {'thinking': 'Long?', 'reasoning_content': None}]},
   [USER, ASSISTANT | {'reasoning_content': 'Long?'}]),
]  # fmt: skip


TEXTS = st.sampled_from(['', ' ', 'Hi', None, 7, [{'type': 'text', 'text': 'Hi'}], [{}], ['x'], {}])
TURN = st.fixed_dictionaries(
  {'role': st.sampled_from(['user', 'assistant', 'system', 'gpt', 'tool', '', None, 3])},
  optional={'content': TEXTS, 'value': TEXTS, 'reasoning_content': TEXTS, 'tool_calls': TEXTS},
)
FIELD = st.none() | st.lists(TURN | st.sampled_from([None, 'x', []]), max_size=5) | TEXTS


@hypothesis.given(
  st.dictionaries(
    st.sampled_from(['messages', 'conversations', 'prompt', 'completion', 'system', 'history',
                     'instruction', 'input', 'output']), FIELD)
)  # fmt: skip
def test_any_row_is_read_or_has_a_fault_or_is_named(fields):
  try:
    row = check_row(fields, 'a.json', 0)
  except SourceError as error:
    assert 'a.json, row 0' in str(error)
    return
  assert row.fault in ('', *FAULTS)
  roles = [message['role'] for message in row.messages]
  if row.messages:
    assert row.texts == ('', '', '') and not row.fault
    turns = roles[roles[0] == 'system' :]
    assert turns == ['user', 'assistant'] * (len(turns) // 2) and turns
    assert all(message['content'].strip() for message in row.messages)


@pytest.mark.parametrize('fields, messages', CONVERSATIONS)
def test_a_conversation_is_read(tmp_path, fields, messages):
  path = tmp_path / 'rows.jsonl'
  path.write_text(json.dumps(fields) + '\n', 'utf-8')
  (row,) = read_rows(str(path))
  assert list(row.messages) == messages and not row.fault and row.texts == ('', '', '')


@pytest.mark.parametrize(
  'rows',
  [
    [{'messages': [USER, ASSISTANT]}, {'messages': [USER, ASSISTANT, USER, ASSISTANT]}],
    [{'conversations': [HUMAN, GPT]}, {'conversations': [HUMAN, GPT, HUMAN, GPT]}],
    [{'prompt': RIVER[0], 'completion': RIVER[2]}, {'prompt': RIVER[0], 'completion': None}],
    [{'instruction': RIVER[0], 'output': RIVER[2]}, {'instruction': None, 'output': RIVER[2]}],
    [{'instruction': RIVER[0], 'output': RIVER[2], 'system': None},
     {'instruction': RIVER[0], 'output': RIVER[2], 'system': 'Be brief.'}],
    [{'instruction': RIVER[0], 'output': RIVER[2], 'images': None, 'tools': '[]'},
     {'instruction': RIVER[0], 'output': RIVER[2], 'images': ['a.png'], 'tools': '[]'}],
  ],
)  # fmt: skip
def test_tables_and_lists_are_read_as_lines_are(tmp_path, rows):
  save(tmp_path / 'rows.en', rows)
  assert find_files(str(tmp_path / 'rows'), ('en',)) == {'en': str(tmp_path / 'rows.en')}
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / 'rows.parquet')
  (tmp_path / 'rows.json').write_text(json.dumps(rows))
  (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  lists = [list(read_rows(str(tmp_path / f'rows.{ext}'))) for ext in ('json', 'jsonl', 'parquet')]
  assert lists[0] == lists[1] == lists[2] == list(read_rows(str(tmp_path / 'rows.en')))
  assert lists[0][0].texts == RIVER and not lists[0][0].fault
  assert lists[0][1].fault or lists[0][1].messages


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'messages': 'x'}, "field 'instruction' is missing, found 'messages'"),
    ({'messages': [7]}, "field 'messages': a turn must be an object, found int 7"),
    ({'messages': [{'role': 'user', 'content': 7}]}, 'must be a string, found int 7'),
    (
      {'messages': [USER, ASSISTANT | {'reasoning_content': 7}]},
      'the reasoning_content of a turn must be a string, found int 7',
    ),
    ({'messages': [USER, ASSISTANT], 'system': 7}, "field 'system' must be a string, found int 7"),
    (
      {'instruction': 'x', 'output': 'y', 'history': ['Hi']},
      "field 'history' must be a list of pairs of strings",
    ),
    ({'question': 'x'}, "field 'instruction' is missing, found 'question'"),
    ({'instruction': 7, 'output': 'x'}, "field 'instruction' must be a string, found int 7"),
  ],
)
def test_what_is_no_row_is_named(tmp_path, fields, message):
  path = tmp_path / 'rows.jsonl'
  path.write_text(json.dumps(fields) + '\n')
  with pytest.raises(SourceError, match=message):
    list(read_rows(str(path)))


def test_files_of_other_languages_are_found(tmp_path):
  for name in ('rows.en.json', 'rows.zh.jsonl', 'rows_pl.json', 'rows.md.json', 'rows.fr.txt'):
    (tmp_path / name).write_text('[]')
  stem = str(tmp_path / 'rows')
  assert set(find_files(stem, ('en', 'zh'))) == {'en', 'zh'}
  assert other_files(stem, ('en', 'zh')) == {'pl': 'rows_pl.json'}


def test_saved_datasets_are_read_and_what_is_none_is_named(tmp_path):
  datasets = pytest.importorskip('datasets', reason='needs datasets, of the extra `test`')
  rows = datasets.Dataset.from_list([{'instruction': RIVER[0], 'output': RIVER[2]}])
  datasets.DatasetDict({'train': rows, 'test': rows}).save_to_disk(tmp_path / 'both')
  with pytest.raises(SourceError, match='holds the splits test, train; give one of them as path'):
    list(read_rows(str(tmp_path / 'both')))
  (row,) = read_rows(str(tmp_path / 'both' / 'train'))
  assert row.texts == RIVER
  (file,) = (tmp_path / 'both' / 'train').glob('*.arrow')
  file.write_bytes(file.read_bytes()[:40])
  with pytest.raises(SourceError, match='not a complete Arrow file .*save the dataset again'):
    list(read_rows(str(tmp_path / 'both' / 'train')))
  (tmp_path / 'both' / 'train' / 'state.json').write_text('{}')
  with pytest.raises(SourceError, match='its state.json names no files'):
    list(read_rows(str(tmp_path / 'both' / 'train')))
  rows.rename_column('output', 'answer').save_to_disk(tmp_path / 'other')
  with pytest.raises(SourceError, match="column 'output' is missing, found the columns"):
    list(read_rows(str(tmp_path / 'other')))
