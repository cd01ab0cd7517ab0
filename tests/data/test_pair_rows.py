"""Pair rows: written and read back, in TRL's layouts as TRL itself reads them, and bad input."""

from collections import Counter
import json

import hypothesis
from hypothesis import strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crossin_jax.data.pair_rows import PairRow, instances, read_pairs, write_pairs
from crossin_jax.data.source_errors import SourceError

USER = {'role': 'user', 'content': 'Name a colour.'}
RED = {'role': 'assistant', 'content': 'Red.'}
SEVEN = {'role': 'assistant', 'content': 'Seven.'}
SYSTEM = {'role': 'system', 'content': 'Be brief.'}
PLAIN = {'prompt': 'Name a colour.', 'chosen': 'Red.', 'rejected': 'Seven.'}
CONVERSATION = {'prompt': [SYSTEM, USER], 'chosen': [RED], 'rejected': [SEVEN]}
HALF = PairRow('q1', 'Which?', 'Lima', 'Oslo', 'en', 'en', None, 'options')
OTHER_HALF = PairRow('q1', 'Cuál?', 'Lima', 'Oslo', 'es', 'es', None, 'options')


def read(tmp_path, *rows, language='en'):
  """The pairs of rows, and what was left out."""
  path, left_out = tmp_path / 'pairs.jsonl', Counter()
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
  return list(read_pairs(str(path), language=language, left_out=left_out)), dict(left_out)


def test_rows_are_read_back_as_written(tmp_path):
  rows = [
    PairRow('1.zh', '树木最常见的运动是什么？', '树木不做运动。', '足球', 'zh', 'en', 0.25, 'pivot'),
    PairRow('2', (SYSTEM, USER), 'Red.\u2028', 'Seven.', 'en', 'en'),
    HALF, OTHER_HALF,
  ]  # fmt: skip
  assert write_pairs(tmp_path / 'p.jsonl', rows) == 4
  assert list(read_pairs(str(tmp_path / 'p.jsonl'))) == rows
  assert list(instances(rows)) == [(rows[0],), (rows[1],), (HALF, OTHER_HALF)]


@pytest.mark.parametrize(
  'row, prompt',
  [
    (PLAIN, 'Name a colour.'),
    ({'chosen': 'Name a colour. Red.', 'rejected': 'Name a colour. Seven.'}, 'Name a colour.'),
    ({**CONVERSATION, 'prompt': [USER]}, 'Name a colour.'),
    (CONVERSATION, (SYSTEM, USER)),
    ({'chosen': [USER, RED], 'rejected': [USER, SEVEN]}, 'Name a colour.'),
    ({'prompt': 'x', 'chosen': [SYSTEM, USER, RED], 'rejected': [SYSTEM, USER, SEVEN]}, (SYSTEM, USER)),
    ({'prompt': [USER], **{k: f'Say. {v}' for k, v in PLAIN.items() if k != 'prompt'}}, 'Say.'),
  ],
)  # fmt: skip
def test_layouts_of_trl(tmp_path, row, prompt):
  """Explicit and implicit prompts, as text and as messages, in JSON lines and Parquet."""
  (found,), left_out = read(tmp_path, row)
  assert found.prompt == prompt and not left_out and found.how == 'given' and found.margin is None
  assert (found.chosen.strip(), found.rejected.strip()) == ('Red.', 'Seven.')
  pq.write_table(pa.Table.from_pylist([row]), tmp_path / 'pairs.parquet')
  assert list(read_pairs(str(tmp_path / 'pairs.parquet'), language='en')) == [found]
  example = found.example(found.chosen)
  if isinstance(prompt, str):
    assert example == {'instruction': prompt, 'input': '', 'output': found.chosen}
  else:
    assert example['messages'] == [SYSTEM, USER, RED]


@hypothesis.given(
  st.text('ab .', max_size=6), st.text('ab .', max_size=4), st.text('ab .', max_size=4)
)
def test_implicit_prompts_are_split_as_by_trl(tmp_path_factory, prompt, chosen, rejected):
  """Where neither text is the beginning of the other, and they begin alike: there TRL 1.16 cuts off
  the last character that they share.
  """
  data_utils = pytest.importorskip('trl.data_utils', reason='needs trl, which is no dependency')
  row = {'chosen': prompt + chosen, 'rejected': prompt + rejected}
  starts = row['chosen'].startswith(row['rejected']) or row['rejected'].startswith(row['chosen'])
  hypothesis.assume(not starts and row['chosen'][:1] == row['rejected'][:1])
  theirs = data_utils.maybe_extract_prompt(dict(row))
  found, left_out = read(tmp_path_factory.mktemp('trl'), row)
  if found:
    assert theirs == {k: getattr(found[0], k) for k in ('prompt', 'chosen', 'rejected')}
  else:  # left out because a part of it is blank, or both answers say the same
    parts = {name: text.strip() for name, text in theirs.items()}
    assert not all(parts.values()) or parts['chosen'] == parts['rejected'], left_out


@pytest.mark.parametrize(
  'row', [{**CONVERSATION}, {'chosen': [USER, RED], 'rejected': [USER, SEVEN]},
          {'prompt': 'x', 'chosen': [SYSTEM, USER, RED], 'rejected': [SYSTEM, USER, SEVEN]}],
)  # fmt: skip
def test_conversations_are_split_as_by_trl(tmp_path, row):
  data_utils = pytest.importorskip('trl.data_utils', reason='needs trl, which is no dependency')
  theirs = data_utils.maybe_extract_prompt(row)
  (found,), _ = read(tmp_path, row)
  assert found.example(found.chosen)['messages' if len(theirs['prompt']) > 1 else 'output']
  prompt = [USER | {'content': found.prompt}] if isinstance(found.prompt, str) else [*found.prompt]
  assert prompt == theirs['prompt'] and theirs['chosen'] == [RED] and theirs['rejected'] == [SEVEN]
  assert (found.chosen, found.rejected) == ('Red.', 'Seven.')


@pytest.mark.parametrize(
  'row, reason',
  [
    ({**PLAIN, 'rejected': 'Red. '}, 'equal_answers'),
    ({'chosen': 'Same.', 'rejected': 'Same.'}, 'equal_answers'),
    ({**PLAIN, 'chosen': ' '}, 'empty_answer'),
    ({**CONVERSATION, 'rejected': [SEVEN | {'content': ''}]}, 'empty_answer'),
    ({**CONVERSATION, 'prompt': [USER], 'chosen': [RED | {'content': ''}]}, 'empty_answer'),
    ({'chosen': 'It is', 'rejected': 'It is blue.'}, 'empty_answer'),
    ({**PLAIN, 'chosen': None}, 'null_field'),
    ({**PLAIN, 'prompt': ''}, 'no_prompt'),
    ({'chosen': 'Red', 'rejected': 'Seven'}, 'no_prompt'),
    ({'chosen': [USER, RED], 'rejected': [USER | {'content': '?'}, SEVEN]}, 'prompts_differ'),
    ({'chosen': [USER, RED, USER, RED], 'rejected': [USER, SEVEN, USER, RED]}, 'prompts_differ'),
    ({'chosen': [USER], 'rejected': [USER, SEVEN]}, 'no_answer'),
    ({**CONVERSATION, 'chosen': [RED | {'reasoning_content': 'Hm.'}]}, 'has_reasoning'),
    ({**PLAIN, 'images': ['x.png']}, 'unread_field'),
  ],
)  # fmt: skip
def test_rows_that_cannot_be_used_are_counted(tmp_path, row, reason):
  rows, left_out = read(tmp_path, PLAIN, {**row, 'language': 'vi'})
  assert len(rows) == 1 and left_out == {('vi', reason): 1}


@pytest.mark.parametrize(
  'row, parts',
  [
    ({**PLAIN, 'language': 'xq'}, ("field 'language': unknown language 'xq'", 'row 1 (line 2)')),
    ({**PLAIN, 'prompt_language': 7}, ("field 'prompt_language' must be a string", 'int 7')),
    ({'prompt': 'a', 'chosen': 'b'}, ("field 'rejected' is missing", 'add it')),
    ({**PLAIN, 'chosen': [RED]}, ('must both be strings, or both lists of messages',)),
    ({**PLAIN, 'prompt': 3}, ("field 'prompt' must be a string or a list of messages",)),
    ({**PLAIN, 'margin': 'much'}, ("field 'margin' must be a finite number",)),
    ({**PLAIN, 'margin': float('nan')}, ("field 'margin' must be a finite number", 'float nan')),
    ({**PLAIN, 'margin': float('inf')}, ("field 'margin' must be a finite number", 'float inf')),
    ({**PLAIN, 'how': 'dco'}, ('must be one of pivot, implicit, options, given',)),
    ({**PLAIN, 'id': ''}, ("field 'id' must be an integer or a non-empty string",)),
    (['chosen'], ('a pair must be an object',)),
  ],
)  # fmt: skip
def test_malformed_rows_are_refused(tmp_path, row, parts):
  with pytest.raises(SourceError) as error:
    read(tmp_path, PLAIN, row)
  assert all(part in str(error.value) for part in (*parts, 'pairs.jsonl')), error.value


def test_rows_need_a_language(tmp_path):
  with pytest.raises(SourceError, match="'language' is missing; add it, or set PairFiles.language"):
    read(tmp_path, PLAIN, language=None)


def test_halves_without_another_one_are_counted():
  third = PairRow('q2', 'Which?', 'Rome', 'Bern', 'es', 'es', None, 'options')
  left_out = Counter()
  assert list(instances([third, HALF, HALF, OTHER_HALF], left_out)) == [(HALF, OTHER_HALF)]
  assert left_out == {('es', 'half_missing'): 1, ('en', 'half_missing'): 1}
