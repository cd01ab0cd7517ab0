"""Questions from rows and from prompts alone, aligned by id or by position."""

from collections import Counter
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crossin_jax.data.source_errors import SourceError
from crossin_jax.pairs.questions import Asked, Question, read_questions

USER, ANSWER = (
  {'role': role, 'content': text} for role, text in (('user', 'Hi?'), ('assistant', 'Ho.'))
)
SYSTEM = {'role': 'system', 'content': 'Be brief.'}


def write(folder, language, rows):
  path = folder / f'ask.{language}.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
  return folder / 'ask'


@pytest.mark.parametrize(
  'row, prompt',
  [
    ({'instruction': 'Hi?'}, 'Hi?'),
    ({'instruction': 'Hi?', 'input': 'Now.', 'output': 'Ho.'}, 'Hi?\nNow.'),
    ({'instruction': 'Hi?', 'output': None}, 'Hi?'),
    ({'prompt': 'Hi?'}, 'Hi?'),
    ({'prompt': 'Hi?', 'completion': 'Ho.'}, 'Hi?'),
    ({'prompt': 'Hi?', 'chosen': 'Ho.', 'rejected': 'Hm.'}, 'Hi?'),
    ({'messages': [USER]}, 'Hi?'),
    ({'messages': [USER, ANSWER]}, 'Hi?'),
    ({'messages': [SYSTEM, USER]}, (SYSTEM, USER)),
    ({'prompt': [USER, ANSWER, USER]}, (USER, ANSWER, USER)),
    ({'conversations': [{'from': 'human', 'value': 'Hi?'}]}, 'Hi?'),
  ],
)
def test_rows_and_prompts(tmp_path, row, prompt):
  """In JSON lines and Parquet."""
  stem = write(tmp_path, 'en', [row])
  assert read_questions(str(stem), ['en']) == [Question('0', {'en': Asked(prompt)})]
  (tmp_path / 'ask.en.jsonl').unlink()
  pq.write_table(pa.Table.from_pylist([row]), tmp_path / 'ask.en.parquet')
  assert read_questions(str(stem), ['en']) == [Question('0', {'en': Asked(prompt)})]


def test_alignment(tmp_path):
  english = [{'id': i, 'instruction': f'en {i}'} for i in 'abcd']
  spanish = [{'id': i, 'instruction': f'es {i}'} for i in 'dbx']
  stem, left_out = write(tmp_path, 'en', english), Counter()
  write(
    tmp_path, 'es', [*spanish, {'id': 'a', 'instruction': ' '}, {'id': 'c', 'instruction': '\x00'}]
  )
  found = read_questions(str(stem), ['en', 'es'], left_out=left_out)
  assert [(one.id, [*one.asked]) for one in found] == [
    ('a', ['en']), ('b', ['en', 'es']), ('c', ['en']), ('d', ['en', 'es']), ('x', ['es']),
  ]  # fmt: skip
  assert found[3].asked['es'].prompt == 'es d'
  assert left_out == {
    ('es', 'no_prompt'): 1,
    ('es', 'control_characters'): 1,
    ('en', 'no_prompt'): 1,
  }
  assert read_questions(str(stem), ['en', 'es'], 2) == found[:2]
  write(tmp_path, 'es', [{'instruction': f'es {i}'} for i in range(4)])
  found = read_questions(str(stem), ['en', 'es'])
  assert [one.asked['es'].prompt for one in found] == ['es 0', 'es 1', 'es 2', 'es 3']
  write(tmp_path, 'es', [{'instruction': 'es'}])
  with pytest.raises(SourceError, match=r'unequal numbers \(en 4, es 1\); give every row an id'):
    read_questions(str(stem), ['en', 'es'])


def test_one_file_for_all_languages(tmp_path):
  rows = [
    {'id': 1, 'language': code, 'instruction': code, 'choices': ['a', code], 'answer': 1}
    for code in ('en', 'Spanish', 'vi')
  ]
  write(tmp_path, 'all', rows)
  path = str(tmp_path / 'ask.all.jsonl')
  asked = {code: Asked(name, ('a', name), 1) for code, name in (('en', 'en'), ('es', 'Spanish'))}
  assert read_questions(path, ['en', 'es']) == [Question('1', asked)]
  with pytest.raises(SourceError, match='no row has the language fi'):
    read_questions(path, ['en', 'fi'])
