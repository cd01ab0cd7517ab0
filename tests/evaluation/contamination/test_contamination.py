"""Overlap of training data with benchmarks: what is planted is found, what is unrelated is not."""

import gzip
import json

from hypothesis import given, settings
from hypothesis import strategies as st
import pyarrow as pa
import pyarrow.parquet
import pytest

from crossin_jax.evaluation.contamination import contamination
from crossin_jax.evaluation.contamination.contamination import Benchmarks, words
from crossin_jax.evaluation.contamination.text_fields import (
  Field,
  benchmark_fields,
  training_fields,
)
from crossin_jax.storage.records import RecordError

LONG = (
  'The lighthouse keeper of the northern island wrote down every ship that passed, with the hour '
  'and the colour of its flag.'
)
SHORT = 'Which river flows through the old town of Porvoo?'  # 9 words
TINY = 'Who painted the ceiling?'  # 4 words
CHINESE = (
  '北方岛屿的灯塔看守人把每一艘经过的船都记了下来，还写上时间和旗帜的颜色，直到他退休的那一天。'
)
THAI = 'ผู้ดูแลประภาคารบนเกาะทางเหนือจดชื่อเรือทุกลำที่แล่นผ่านพร้อมทั้งเวลาและสีของธงจนถึงวันที่เขาเกษียณ'
HINDI = 'उत्तरी द्वीप के प्रकाशस्तंभ का रखवाला हर गुजरने वाले जहाज का नाम, समय और उसके झंडे का रंग लिख लेता था।'
FILLER = (
  'Cooks in the harbour start their work long before sunrise and rest after the last guest has '
  'paid.'
)


def _look(benchmark: list[str], training: list[str], n: int = 13) -> list[dict]:
  """Matches of texts, each an item of its own, with training rows."""
  found = Benchmarks(
    [('bench', [Field(str(i), 'en', 'question', text) for i, text in enumerate(benchmark)])], n
  )
  for _ in found.search(
    'rows', [Field(str(i), 'en', 'input', text) for i, text in enumerate(training)]
  ):
    pass
  return found.summary()[1]


# ---- planted texts ----


@pytest.mark.parametrize('text', [LONG, SHORT, TINY, CHINESE, THAI, HINDI])
def test_a_planted_row_is_found(text):
  (match,) = _look([FILLER, text], ['something else entirely', text])
  assert (match['item'], match['row'], match['kind'], match['covered']) == ('1', '1', 'same', 1.0)


@pytest.mark.parametrize('text', [LONG, SHORT, CHINESE, THAI, HINDI])
def test_a_text_inside_a_longer_one_is_found(text):
  (match,) = _look([text], [f'{FILLER} {text} {FILLER}'])
  assert match['kind'] == 'contained' and match['covered'] == 1.0
  assert words(match['text']) == words(text)


@pytest.mark.parametrize('text', [LONG, CHINESE, THAI, HINDI])
def test_a_part_of_it_is_found(text):
  (match,) = _look([text], [f'{FILLER} {text[: int(len(text) * 0.8)]}'])
  assert match['kind'] == 'n-gram' and 0.5 < match['covered'] < 1.0
  assert ''.join(words(match['text'])) in ''.join(words(text))


def test_a_line_of_a_prompt_is_a_text_of_its_own():
  (match,) = _look([TINY], [f'### Instruction:\n{TINY}\n\n### Response:\nMichelangelo did.'])
  assert match['kind'] == 'same'
  assert not _look([TINY], [f'He asked: {TINY} Nobody knew.'])


def _full_width(text: str) -> str:
  return ''.join(chr(ord(c) + 0xFEE0) if '!' <= c <= '~' else c for c in text)


@pytest.mark.parametrize('text', [LONG, SHORT, CHINESE, HINDI])
@pytest.mark.parametrize(
  'change',
  [
    str.upper,
    _full_width,
    lambda text: text.replace(' ', '  \n\t ').replace(',', ' -- '),
    lambda text: f'«{text.rstrip(".?。।")}»!!!',
    lambda text: '\u202b' + text.replace(' ', ' \u200f').replace('e', 'e\u00ad') + '\u202c',
    lambda text: __import__('unicodedata').normalize('NFD', text),
  ],
)
def test_case_width_punctuation_and_marks_do_not_hide_it(text, change):
  (match,) = _look([text], [change(text)])
  assert match['covered'] == 1.0


def test_words():
  assert words('The  PANTHERS’ défense, №1!') == ['the', 'panthers', 'défense', 'no1']
  assert words("don't") == words('don’t') == words('dont')
  assert words('黑豹隊 win') == ['黑', '豹', '隊', 'win']
  assert len(words('उत्तरी द्वीप தமிழ்மொழி')) == 3


# ---- properties ----

_VOCABULARY = [
  f'{a}{b}' for a in ('ka', 'lo', 'mi', 'nu', 'pe') for b in ('ra', 'so', 'ti', 'vu', 'ze')
]
_SENTENCES = st.lists(st.sampled_from(_VOCABULARY), min_size=1, max_size=60)


def _grams(text: list[str], n: int) -> set:
  return {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}


@settings(max_examples=120, deadline=None)
@given(
  st.lists(_SENTENCES, min_size=1, max_size=4),
  st.lists(_SENTENCES, min_size=1, max_size=4),
  st.integers(2, 6),
)
def test_it_finds_what_plain_python_finds(benchmark, training, n):
  benchmark = [*benchmark, ['zzzz'] * 6]  # one text at least is long enough to be looked for
  found = {
    (m['item'], m['row'], m['kind'], round(m['covered'], 6))
    for m in _look([' '.join(x) for x in benchmark], [' '.join(x) for x in training], n)
  }
  wanted = set()
  least = -(-n * 4 * 8 // 13)
  for i, text in enumerate(benchmark):
    rows = []
    for j, row in enumerate(training):
      if ''.join(text) == ''.join(row) and len(text) >= min(4, n):
        rows.append(('same', 1.0, j))
      elif len(text) >= n and (shared := _grams(text, n) & _grams(row, n)):
        places = {
          p + k
          for p in range(len(text) - n + 1)
          for k in range(n)
          if tuple(text[p : p + n]) in shared
        }
        rows.append(
          ('contained' if len(places) == len(text) else 'n-gram', len(places) / len(text), j)
        )
      elif (
        min(4, n) <= len(text) < n
        and 4 * len(text) >= least
        and tuple(text) in _grams(row, len(text))
      ):
        rows.append(('contained', 1.0, j))
    rows.sort(key=lambda own: (contamination.KINDS.index(own[0]), -own[1]))
    wanted |= {(str(i), str(j), kind, round(covered, 6)) for kind, covered, j in rows[:3]}
  # Three rows of each text are kept; which of equally telling ones is not promised.
  assert {x[:1] + x[2:] for x in found} == {x[:1] + x[2:] for x in wanted}
  assert len(found) == len(wanted)


@settings(max_examples=60, deadline=None)
@given(_SENTENCES, _SENTENCES, _SENTENCES)
def test_a_planted_paragraph_is_always_found(before, text, after):
  planted = ['planted', *text, *(['x'] * (13 - len(text)))][:60]
  (match,) = _look([' '.join(planted)], [' '.join([*before, *planted, *after])])
  assert match['covered'] == 1.0


@settings(max_examples=80, deadline=None)
@given(
  st.lists(st.text(alphabet='abcdefgh \n.', max_size=300), max_size=5),
  st.lists(st.text(alphabet='стуфхцчш \n.', max_size=300), max_size=5),
)
def test_unrelated_texts_are_never_flagged(benchmark, training):
  assert not _look([LONG, *benchmark], training)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.text(alphabet=st.characters(exclude_categories=())), max_size=5))
def test_any_text_may_be_scanned(training):
  assert _look([LONG], [*training, LONG])[0]['kind'] == 'same'


def test_matches_do_not_depend_on_batches(monkeypatch):
  rows = [FILLER, LONG, f'{FILLER} {SHORT}', LONG[:90]] * 3
  whole = _look([LONG, SHORT], rows)
  monkeypatch.setattr(contamination, '_BATCH', 1)
  assert _look([LONG, SHORT], rows) == whole and whole


# ---- files ----


def _texts(fields) -> list[tuple]:
  return [(one.item, one.language, one.name, one.text) for one in fields]


def test_layouts_of_benchmarks(tmp_path):
  write = lambda name, text: (
    (tmp_path / name).write_text(text, encoding='utf-8') and str(tmp_path / name)
  )
  seaeval = write(
    'a.json',
    json.dumps(
      [
        {
          'id': 'q1',
          'English': {'question': 'Why?', 'choices': ['(A) x', '(B) y']},
          'Chinese': {'question': '为何？'},
        }
      ]
    ),
  )
  assert _texts(benchmark_fields(seaeval)) == [
    ('q1', 'en', 'question', 'Why?'), ('q1', 'en', 'choices', '(A) x'),
    ('q1', 'en', 'choices', '(B) y'), ('q1', 'zh', 'question', '为何？'),
  ]  # fmt: skip
  lines = write(
    'val.sw.jsonl',
    '{"premise": "Mvua", "label": 1, "idx": 4}\n{"premise": "Jua", "language": "id"}\n',
  )
  assert _texts(benchmark_fields(lines)) == [
    ('4', 'sw', 'premise', 'Mvua'),
    ('line 2', 'id', 'premise', 'Jua'),
  ]
  tsv = write('mgsm_th.tsv', 'ข้อ 1\t18\n')
  assert _texts(benchmark_fields(tsv)) == [
    ('line 1', 'th', 'column 1', 'ข้อ 1'),
    ('line 1', 'th', 'column 2', '18'),
  ]
  table = write('dev.id.csv', 'Awal,Akhir\n"Satu, dua",tiga\n')
  assert _texts(benchmark_fields(table))[0][2:] == ('Awal', 'Satu, dua')
  squad = {
    'data': [
      {
        'title': 't',
        'paragraphs': [
          {'context': 'C', 'qas': [{'id': 'i', 'question': 'Q', 'answers': [{'text': 'A'}]}]}
        ],
      }
    ]
  }
  assert _texts(benchmark_fields(write('xquad.zh.json', json.dumps(squad)))) == [
    ('i', 'zh', 'context', 'C'), ('i', 'zh', 'question', 'Q'), ('i', 'zh', 'answers', 'A'),
  ]  # fmt: skip


def test_layouts_of_training_rows(tmp_path):
  # 2 MB
  rows = [{'instruction': f'Say {i}', 'input': '', 'output': 'x' * 3000} for i in range(700)]
  wanted = [(f'Say {i}', 'x' * 3000) for i in range(700)]
  listed, lines = tmp_path / 'rows.json', tmp_path / 'rows.jsonl'
  listed.write_text(json.dumps(rows, indent=1), encoding='utf-8')
  lines.write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
  packed = tmp_path / 'rows.jsonl.gz'
  packed.write_bytes(gzip.compress(lines.read_bytes()))
  pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / 'rows.parquet')
  for path in (listed, lines, packed, tmp_path / 'rows.parquet'):
    texts = [one.text for one in training_fields(str(path))]
    assert list(zip(texts[::2], texts[1::2])) == wanted
  assert next(iter(training_fields(str(listed)))).item == 'row 1'


@pytest.mark.parametrize(
  'text', ['[{"a": "b"}, {"a": ', '[{"a": "b"} 17', '{"a": "b"}\n{"a"\n', '[1, 2]']
)
def test_broken_training_rows_are_named(tmp_path, text):
  (tmp_path / 'rows.json').write_text(text, encoding='utf-8')
  with pytest.raises(RecordError, match=r'rows\.json, (row|line) \d'):
    list(training_fields(str(tmp_path / 'rows.json')))


# ---- the command ----


def _run(capsys, *argv) -> dict:
  assert contamination.main([*argv, '--json']) == 0
  return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_command(tmp_path, capsys):
  rows = [
    {'instruction': FILLER, 'output': 'no'},
    {'instruction': f'Read: {LONG.upper()}', 'input': '', 'output': 'yes'},
  ]
  (tmp_path / 'rows.json').write_text(json.dumps(rows), encoding='utf-8')
  items = [
    {
      'id': i,
      'English': {'question': q, 'choices': ['yes', 'no']},
      'Chinese': {'question': CHINESE},
    }
    for i, q in enumerate([LONG, SHORT])
  ]
  (tmp_path / 'bench.json').write_text(json.dumps(items), encoding='utf-8')
  found = _run(
    capsys, '--mixture_rows', str(tmp_path / 'rows.json'), '--benchmark',
    str(tmp_path / 'bench.json'), '--output_dir', str(tmp_path / 'out')
  )  # fmt: skip
  by_language = {row['language']: row for row in found['benchmarks']}
  assert by_language['en']['items'] == by_language['zh']['items'] == 2
  assert (by_language['en']['share'], by_language['zh']['share']) == (0.5, 0.0)
  assert by_language['en']['fields'] == {'question': 1} and found['training']['rows'] == 2
  assert json.loads((tmp_path / 'out' / 'contamination.json').read_text(encoding='utf-8')) == found
  (match,) = map(
    json.loads, (tmp_path / 'out' / 'matches.jsonl').read_text(encoding='utf-8').splitlines()
  )
  assert (match['item'], match['field'], match['row'], match['training_field']) == (
    '0',
    'question',
    'row 2',
    'instruction',
  )
  assert match['text'] == ' '.join(words(LONG))


def test_prepared_mixture(tiny_prepared, tmp_path, capsys):
  """A row of the mixture, as a question of a benchmark, is found in the tokens."""
  directory, name = tiny_prepared
  task, examples = next(contamination.mixture_fields(directory, name))
  example = max(examples, key=lambda one: len(words(one.text)))
  line = max(example.text.split('\n'), key=lambda text: len(words(text)))
  items = [{'id': 'planted', 'question': line}, {'id': 'other', 'question': LONG}]
  (tmp_path / 'bench.jsonl').write_text('\n'.join(map(json.dumps, items)), encoding='utf-8')
  argv = [
    '--data_dir',
    directory,
    '--mixture',
    name,
    '--benchmark',
    str(tmp_path / 'bench.jsonl'),
    '--output_dir',
    str(tmp_path),
  ]
  assert _run(capsys, *argv)['benchmarks'][0]['found'] == 1
  matches = [
    json.loads(text)
    for text in (tmp_path / 'matches.jsonl').read_text(encoding='utf-8').splitlines()
  ]
  assert {match['item'] for match in matches} == {'planted'}


@pytest.mark.parametrize(
  'argv', [[], ['--mixture', 'm'], ['--mixture_rows', 'x', '--mixture', 'm', '--data_dir', 'd']]
)
def test_usage(argv):
  with pytest.raises(SystemExit) as stop:
    contamination.main([*argv, '--benchmark', 'x'])
  assert stop.value.code == 2


def test_nothing_long_enough(tmp_path):
  (tmp_path / 'b.jsonl').write_text('{"question": "Why?"}\n', encoding='utf-8')
  with pytest.raises(RecordError, match='no text of 4 words or more'):
    contamination.main(
      ['--mixture_rows', str(tmp_path / 'b.jsonl'), '--benchmark', str(tmp_path / 'b.jsonl')]
    )


# ---- real data ----


@pytest.mark.parametrize('language', ['en', 'es', 'vi', 'zh'])
def test_xquad_as_instructions_is_xquad(shared_data, capsys, language):
  rows, raw = (
    shared_data / 'xquad_instr' / f'xquad_instr.{language}.json',
    shared_data / 'xquad_raw' / f'xquad.{language}.json',
  )
  (found,) = _run(capsys, '--mixture_rows', str(rows), '--benchmark', str(raw))['benchmarks']
  assert (
    found['language'] == language
    and found['share'] == 1.0
    and found['fields']['context'] == found['items']
  )


def test_languages_do_not_leak_into_one_another(shared_data, capsys):
  rows, raw = (
    shared_data / 'xquad_instr' / 'xquad_instr.en.json',
    shared_data / 'xquad_raw' / 'xquad.th.json',
  )
  (found,) = _run(capsys, '--mixture_rows', str(rows), '--benchmark', str(raw))['benchmarks']
  # one answer is 'P, NP, PP, PSPACE' in both
  assert set(found['fields']) <= {'answers'} and found['share'] < 0.01
