"""Fidelity, repetition, and the two ways of asking."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

pytest.importorskip(
  'py3langid', reason='language identification needs py3langid: pip install crossin-jax[lid]'
)

from crossin_jax.decoding.generate import read_rows
from crossin_jax.evaluation.responses import files as response_files
from crossin_jax.evaluation.responses import measure as responses
from crossin_jax.evaluation.responses.files import Response
from crossin_jax.evaluation.responses.measure import duplicated_share, language_of, measure
from crossin_jax.storage.records import RecordError

SWAHILI = 'Mvua hunyesha wakati mvuke wa maji unapopoa angani na kuwa matone mazito.'
ENGLISH = 'Rain falls when water vapour cools in the sky and turns into heavy drops.'


def _write(path, rows):
  path.write_text(
    ''.join((row if isinstance(row, str) else json.dumps(row)) + '\n' for row in rows),
    encoding='utf-8',
  )
  return str(path)


# ---- one response ----


def test_duplicated_share():
  assert duplicated_share('') == duplicated_share('one two three') == 0.0
  assert duplicated_share('a b c d e f g h') == 0.0
  assert duplicated_share('a b c d a b c d a b c d') == pytest.approx(5 / 9)
  assert duplicated_share('again ' * 400) > 0.99
  assert duplicated_share('下雨了，大家都带着伞出门。' * 8) > 0.8
  assert duplicated_share('ฝนตกหนักมากในวันนี้ ' * 10) > 0.8


@settings(deadline=None)
@given(st.lists(st.sampled_from(['rain', 'sky', 'water', 'cloud', 'drop']), max_size=40))
def test_duplicated_share_counts_what_stood_before(words):
  seen, again = set(), 0
  grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
  for gram in grams:
    again += gram in seen
    seen.add(gram)
  assert duplicated_share(' '.join(words)) == pytest.approx(again / len(grams) if grams else 0.0)


def test_code_does_not_decide_the_language():
  code = (
    '```python\nfor line in open("the file of the names"):\n'
    '  print("this is the line that was read", line)\n```'
  )
  assert language_of(f'{SWAHILI}\n{code * 5}') == 'sw'
  assert language_of('```\nprint(1)\n```') == ''
  assert language_of('42') == ''


# ---- figures ----


def _responses(native: list[str], english: list[str]) -> list[Response]:
  made = lambda asked_in, texts: [
    Response(str(i), 0, 'sw', asked_in, text) for i, text in enumerate(texts)
  ]
  return made('sw', native) + made('en', english)


def test_a_real_difference():
  groups, (claim,) = measure(_responses([SWAHILI] * 40, [SWAHILI] * 20 + [ENGLISH] * 20))
  native, english = groups
  assert (native.language, native.asked_in, native.responses) == ('sw', 'sw', 40)
  assert native.fidelity.estimate == 1.0 and native.english == 0.0
  assert (
    english.fidelity.estimate == 0.5
    and english.english == 0.5
    and english.languages == {'sw': 20, 'en': 20}
  )
  assert english.fidelity.low < 0.5 < english.fidelity.high
  assert (
    claim.difference.estimate == pytest.approx(0.5)
    and claim.real
    and 'more often' in claim.sentence
  )


def test_the_same_is_no_difference_and_pairs_are_paired():
  _, (claim,) = measure(_responses([SWAHILI, ENGLISH] * 20, [SWAHILI, ENGLISH] * 20))
  assert (claim.difference.low, claim.difference.high) == (0.0, 0.0) and not claim.real
  _, (claim,) = measure(_responses([SWAHILI, ENGLISH] * 20, [ENGLISH, SWAHILI] * 20))
  assert (
    claim.difference.low < 0 < claim.difference.high
    and 'no significant difference' in claim.sentence
  )


def test_a_handful_of_questions_is_never_real():
  _, (claim,) = measure(_responses([SWAHILI] * 5, [ENGLISH] * 5))
  assert claim.difference.estimate == 1.0 and not claim.real and 'too few' in claim.sentence


def test_empty_and_repetitive_answers():
  (group,), claims = measure(
    [
      Response(str(i), 0, 'sw', 'sw', text)
      for i, text in enumerate(['', '  ', SWAHILI, SWAHILI * 9])
    ]
  )
  assert not claims
  assert group.empty == 0.5 and group.undetermined == 0.5 and group.fidelity.estimate == 0.5
  assert group.repetitive == 0.25
  assert group.characters['median'] == (2 + len(SWAHILI)) / 2


def test_samples_must_be_complete():
  rows = [
    Response('1', 0, 'sw', 'sw', SWAHILI),
    Response('1', 1, 'sw', 'sw', ENGLISH),
    Response('2', 0, 'sw', 'sw', SWAHILI),
  ]
  with pytest.raises(ValueError, match="question '2' has no sample 1"):
    measure(rows)
  groups, _ = measure([*rows, Response('2', 1, 'sw', 'sw', SWAHILI)])
  assert groups[0].fidelity.estimate == 0.75 and groups[0].fidelity.seeds == 2


# ---- the commands ----


def test_ask_then_generate_then_responses(tmp_path, capsys):
  english = _write(
    tmp_path / 'en.jsonl',
    [{'question_id': i, 'text': f'What is rain number {i}?', 'category': 'sky'} for i in range(30)],
  )
  native = _write(
    tmp_path / 'sw.jsonl',
    [{'id': str(i), 'turns': [f'Mvua {i} ni nini?', 'Kwa nini?']} for i in reversed(range(30))],
  )
  asked = str(tmp_path / 'asked.jsonl')
  flags = [
    '--questions',
    english,
    '--questions_native',
    native,
    '--language',
    'sw',
    '--output',
    asked,
  ]
  assert response_files.ask_main([*flags, '--json']) == 0
  assert json.loads(capsys.readouterr().out)['questions'] == 30
  rows = read_rows(asked)  # what `crossin generate --input` reads
  assert rows[:2] == [
    {'id': f'0/{asked_in}', 'question': '0', 'language': 'sw', 'asked_in': asked_in}
    | {'category': 'sky', 'instruction': instruction}
    for asked_in, instruction in (
      ('en', 'What is rain number 0? Answer in Swahili.'),
      ('sw', 'Mvua 0 ni nini?'),
    )
  ]
  assert len({row['id'] for row in rows}) == 60
  # `crossin generate` keeps the id alone.
  answers = _write(
    tmp_path / 'answers.jsonl',
    [
      {'id': row['id'], 'index': i, 'output': SWAHILI if row['asked_in'] == 'sw' else ENGLISH}
      for i, row in enumerate(rows)
    ],
  )
  assert (
    responses.main([answers, '--questions', asked, '--json', '--output_dir', str(tmp_path / 'out')])
    == 0
  )
  printed = capsys.readouterr()
  found = json.loads(printed.out.splitlines()[-1])
  assert found == json.loads((tmp_path / 'out' / 'responses.json').read_text(encoding='utf-8'))
  assert [(group['asked_in'], group['fidelity']['estimate']) for group in found['groups']] == [
    ('en', 0.0),
    ('sw', 1.0),
  ]
  assert found['claims'][0]['real'] and found['claims'][0]['sentence'] in printed.out
  with pytest.raises(RecordError, match='give the prompts of `crossin ask` with --questions'):
    responses.main([answers])


def test_unequal_rows_are_named(tmp_path, capsys):
  english = _write(tmp_path / 'en.jsonl', [{'id': i, 'prompt': f'Question {i}?'} for i in 'abc'])
  native = _write(
    tmp_path / 'sw.jsonl',
    [{'id': 'a', 'prompt': 'Swali a?'}, '{"id": "b", ', {'id': 'd', 'prompt': 'Swali d?'}],
  )
  flags = [
    '--questions',
    english,
    '--questions_native',
    native,
    '--language',
    'sw',
    '--output',
    str(tmp_path / 'asked.jsonl'),
  ]
  with pytest.raises(RecordError) as error:
    response_files.ask_main(flags)
  for part in (
    'sw.jsonl, line 2: not valid JSON',
    'lacks 2 questions of the other file: b, c',
    'of the other file: d',
    '--allow_partial',
  ):
    assert part in str(error.value)
  assert not (tmp_path / 'asked.jsonl').exists()
  assert response_files.ask_main([*flags, '--allow_partial']) == 0
  assert [row['id'] for row in read_rows(str(tmp_path / 'asked.jsonl'))] == ['a/en', 'a/sw']
  assert 'line 2' in capsys.readouterr().err


def test_real_question_files(shared_data, tmp_path):
  folder = shared_data / 'open_ended'
  flags = lambda name, code: [
    '--questions', str(folder / f'{name}.en.jsonl'), '--questions_native',
    str(folder / f'{name}.{code}.jsonl'),
    '--language', code, '--output', str(tmp_path / 'asked.jsonl'),
  ]  # fmt: skip
  for name, code, count in (
    ('vicuna80', 'id', 80),
    ('oasst50', 'fi', 50),
    ('mt_bench.question', 'th', 80),
  ):
    assert response_files.ask_main(flags(name, code)) == 0
    assert len(read_rows(str(tmp_path / 'asked.jsonl'))) == 2 * count
  with pytest.raises(RecordError, match=r'oasst50\.hi\.jsonl, line 50: not valid JSON'):
    response_files.ask_main(flags('oasst50', 'hi'))


@pytest.mark.parametrize(
  ('rows', 'message'),
  [
    (['{"id": 1'], 'line 1: not valid JSON'),
    ([{'id': '1', 'language': 'sw', 'output': 3}], 'holds a string'),
    ([{'id': '1', 'language': 'klingon', 'output': 'x'}], 'unknown language'),
    (
      [{'id': '1', 'language': 'sw', 'output': 'x'}] * 2,
      'line 2: the answer to question .* was already given in .*line 1',
    ),
    ([], 'holds no response'),
  ],
)
def test_malformed_answers(tmp_path, rows, message):
  with pytest.raises(RecordError, match=message):
    response_files.read_responses(_write(tmp_path / 'answers.jsonl', rows))
