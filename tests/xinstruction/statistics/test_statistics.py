"""Figures of an instruction set against NumPy and by hand; the page as a browser would read it."""

import collections
import html.parser
import json
import re

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

pytest.importorskip(
  'sklearn', reason='topics need scikit-learn: pip install crossin-jax[xinstruction]'
)
pytest.importorskip(
  'py3langid', reason='language identification needs py3langid: pip install crossin-jax[lid]'
)

from crossin_jax.storage.records import RecordError
from crossin_jax.xinstruction.diversity import diversification
from crossin_jax.xinstruction.statistics import statistics as lib
from crossin_jax.xinstruction.statistics.page import write_page
from crossin_jax.xinstruction.statistics.statistics import statistics
from crossin_jax.xinstruction.statistics.verbs import kind, verb_and_object

SWAHILI = 'Mvua hunyesha wakati mvuke wa maji unapopoa angani na kuwa matone mazito ya maji. '
URDU = 'بارش اس وقت ہوتی ہے جب پانی کے بخارات آسمان میں ٹھنڈے ہو کر بھاری قطروں میں بدل جاتے ہیں۔ '
FORMS = [
  'Write a story about {}.',
  'What is {}?',
  'List three facts about {}',
  'Please summarize the report on {}.',
]
THINGS = ['rain', 'the sea', 'an old temple', 'fishing', 'the elections']


def rows(text, n=40):
  return [
    {
      'instruction': FORMS[i % 4].format(THINGS[i % 5]),
      'output': text * (1 + i % 3) + str(i),
      'source': f'site {i % 2}',
      'score': 1 + i / 20,
    }
    for i in range(n)
  ]


class Page(html.parser.HTMLParser):
  """Tags with their attributes, and all text."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.texts = [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.texts.append((self.tags[-1] if self.tags else ('', {}), data))


# ---- figures ----


@settings(max_examples=30)
@given(st.lists(st.integers(0, 2500), min_size=1, max_size=60))
def test_lengths_are_numpys(values):
  found = lib._length_summary(collections.Counter(values))
  assert found['mean'] == pytest.approx(np.mean(values)) and found['sd'] == pytest.approx(
    np.std(values), abs=1e-9
  )
  assert found['median'] == sorted(values)[(len(values) - 1) // 2]
  assert (found['min'], found['max']) == (min(values), max(values))


def test_figures_of_each_language():
  mixed = rows(SWAHILI, 40)
  for row in mixed[:10]:
    row['output'] = (
      'Rain falls when water vapour cools in the sky and turns into heavy drops of water.'
    )
  found = statistics({'Swahili': mixed, 'ur': rows(URDU, 8), 'fi': []}, samples=4)
  sw, ur, fi = (found['by_language'][code] for code in ('sw', 'ur', 'fi'))
  assert found['rows'] == 48 and (sw['rows'], ur['rows'], fi['rows']) == (40, 8, 0)
  assert sw['distinct_instructions'] == 20 and sw['sources'] == {'site 0': 20, 'site 1': 20}
  assert sw['fidelity']['share'] == 0.75 and sw['fidelity']['others'] == {'en': 10}
  assert sw['fidelity']['low'] < 0.75 < sw['fidelity']['high'] and ur['fidelity']['share'] == 1.0
  assert sw['kinds'] == {'verb': 30, 'question': 10, 'other': 0}
  assert sw['published']['output'] == {'mean': 1210.6, 'sd': 524.0}
  assert fi['instruction'] is fi['fidelity'] is fi['score'] is None
  top = {row['verb']: (row['count'], row['objects']) for row in found['verbs']['top']}
  assert top == {
    'write': (12, [['story', 12]]),
    'list': (12, [['fact', 12]]),
    'summarize': (12, [['report', 12]]),
  }
  assert sum(found['scores']['sw']['counts']) == 40 and found['scores']['sw']['edges'][0] == 1.0
  assert sum(group['size'] for group in found['map']['groups']) == len(found['map']['points']) == 48
  assert [len(found['samples'][code]) for code in ('sw', 'ur', 'fi')] == [4, 4, 0]
  json.dumps(found, allow_nan=False)


def test_nothing_depends_on_the_order_of_rows_but_samples_on_the_seed():
  own = rows(SWAHILI)
  found = statistics({'sw': own}, samples=5, map_points=20, fidelity_rows=10)
  again = statistics({'sw': own[::-1]}, samples=5, map_points=20, fidelity_rows=10)
  assert (
    again == found
    and len(found['map']['points']) == 20
    and found['by_language']['sw']['fidelity']['rows'] == 10
  )
  assert statistics({'sw': own}, samples=5, seed=1)['samples'] != found['samples']


def test_files_and_what_is_wrong_with_them(tmp_path):
  own = rows(SWAHILI, 6)
  lines, listed = tmp_path / 'a.jsonl', tmp_path / 'a.json'
  lines.write_text(''.join(json.dumps(row) + '\n' for row in own), encoding='utf-8')
  listed.write_text(json.dumps(own), encoding='utf-8')
  assert (
    statistics({'sw': str(lines)}) == statistics({'sw': listed}) == statistics({'sw': iter(own)})
  )
  lines.write_text(json.dumps(own[0]) + '\n{"instruction": "a", "output": 3}\n', encoding='utf-8')
  with pytest.raises(RecordError, match=r'a.jsonl, line 2: field "output" is a int'):
    statistics({'sw': lines})
  with pytest.raises(RecordError, match='rows of sw, row 1: field "instruction" is missing'):
    statistics({'sw': [{'output': 'a'}]})
  with pytest.raises(RecordError, match='field "score" is nan'):
    statistics({'sw': [{'instruction': 'a', 'output': 'b', 'score': float('nan')}]})
  with pytest.raises(ValueError, match='a language is given twice'):
    statistics({'sw': [], 'Swahili': []})
  with pytest.raises(ValueError, match='no language'):
    statistics({})
  with pytest.raises(ValueError, match='round 1 of sw.*"kept" = 5'):
    statistics({'sw': []}, rounds={'sw': [{'round': 1, 'candidates': 4, 'kept': 5}]})


def test_overlap_with_a_benchmark(tmp_path):
  benchmark = tmp_path / 'quiz.sw.jsonl'
  question = 'Mji mkuu wa nchi ya Kenya ni upi na una watu wangapi kwa sasa hivi jamani'
  items = [{'id': 'a', 'question': question}, {'id': 'b', 'question': 'Je, ' + question[::-1]}]
  benchmark.write_text(''.join(json.dumps(item) + '\n' for item in items), encoding='utf-8')
  own = rows(SWAHILI, 5)
  own[3]['output'] += f'\n{question}?\nNairobi.'
  found = statistics({'sw': own, 'ur': rows(URDU, 3)}, benchmarks=[benchmark])
  (row,) = found['overlap']['benchmarks']
  assert (row['benchmark'], row['language'], row['items'], row['found'], row['same']) == (
    'quiz.sw.jsonl',
    'sw',
    2,
    1,
    1,
  )
  assert (
    found['overlap']['matches'][0]['source'] == 'sw'
    and found['overlap']['matches'][0]['row'] == 'row 4'
  )
  assert found['by_language']['ur']['rows'] == 3


@pytest.mark.parametrize('instruction, expected', [
  ('Write a short story about a dog.', ('write', 'story')),
  ('Could you please give me three healthy tips?', ('give', 'tip')),
  ('Come up with ten ideas for a party', ('come up with', 'idea')),
  ('Given a set of lyrics, explain the meanings implied by them.', ('explain', 'meaning')),
  ('Create a chart displaying the following data.', ('create', 'chart')),
  ('Re-write this sentence as a question', ('rewrite', 'sentence')),
  ('Summarize the latest news', ('summarize', 'news')),
  ('Your task is to classify these stories:', ('classify', 'story')),
  ('Explain how rain falls', ('explain', '')),
  ('What is the capital of France?', ('', '')),
  ('', ('', '')),
  ('!!! \u0000 ???', ('', '')),
])  # fmt: skip
def test_verbs_and_objects(instruction, expected):
  assert verb_and_object(instruction) == expected


def test_verbs_of_real_instructions(shared_data):
  """Nearly all instructions of Alpaca are understood, and its best known pairs come out on top."""
  texts = [
    row['instruction']
    for row in json.loads((shared_data / 'alpaca_parallel' / 'alpaca.en.json').read_text('utf-8'))
  ]
  kinds = [kind(text) for text in texts]
  assert kinds.count('verb') > 0.88 * len(texts) and kinds.count('other') < 0.02 * len(texts)
  found = statistics({'en': [{'instruction': text, 'output': ''} for text in texts]})['verbs'][
    'top'
  ]
  pairs = {(row['verb'], row['objects'][0][0]) for row in found[:10]}
  assert {('generate', 'list'), ('write', 'story'), ('rewrite', 'sentence')} <= pairs


# ---- the page ----


def test_the_page(tmp_path):
  own = rows(URDU, 12)
  own[0] |= {
    'instruction': '<script>alert(1)</script> & "x"',
    'output': 'ا\u202e\ud800\x00<b>' + URDU,
  }
  rounds = [
    {'round': n, 'candidates': 100, 'kept': 20 + n, 'score_histogram': [1, 2, 3, 4]} for n in (1, 2)
  ]
  found = statistics(
    {'ur': own, 'sw': rows(SWAHILI, 30), 'xx': rows('zz ', 2)}, rounds={'ur': rounds}, samples=12
  )
  write_page(tmp_path / 'statistics.html', found, 'A <set>')
  text = (tmp_path / 'statistics.html').read_text(encoding='utf-8')
  assert json.loads((tmp_path / 'statistics.json').read_text(encoding='utf-8'))['rows'] == 44
  page = Page(text)
  tags = [tag for tag, _ in page.tags]
  assert 'script' not in tags and 'b' not in tags and not re.search('[\x00\u202e\ud800]', text)
  assert not [
    attrs for _, attrs in page.tags if attrs.get('src') or str(attrs.get('href', '#'))[0] != '#'
  ], 'needs nothing else'
  shown = [(attrs, data) for (tag, attrs), data in page.texts if tag == 'p' and 'lang' in attrs]
  assert any('<script>alert(1)</script> & "x"' in data for attrs, data in shown)
  assert {attrs['dir'] for attrs, _ in shown if attrs['lang'] == 'ur'} == {'rtl'}
  assert {attrs['dir'] for attrs, _ in shown if attrs['lang'] != 'ur'} == {'ltr'}
  assert tags.count('circle') == 44 and '21.0' in text and '22 of 100' in text and 'round 2' in text
  assert 'this language cannot be identified' in text and 'A &lt;set&gt;' in text


def test_the_page_of_almost_nothing(tmp_path):
  found = statistics({'sw': [], 'fi': [{'instruction': '', 'output': ''}]})
  write_page(tmp_path / 'a' / 'page.html', found)
  text = (tmp_path / 'a' / 'page.html').read_text(encoding='utf-8')
  assert (
    'No rows at all in Swahili.' in text
    and 'circle' not in Page(text).tags
    and found['map'] is None
  )


def test_a_benchmark_overlap_and_coverage_are_shown(tmp_path):
  benchmark = tmp_path / 'quiz.sw.jsonl'
  benchmark.write_text(json.dumps({'id': 1, 'question': SWAHILI}) + '\n', encoding='utf-8')
  one = diversification.Spread(9.0, random=7.5, sd=0.5, randoms=[7, 8], above=1.0)
  coverage = diversification.Coverage(30, 10, 'characters', 12, 11, one, one, one)
  found = statistics({'sw': rows(SWAHILI, 30)}, benchmarks=[benchmark], coverage={'sw': coverage})
  write_page(tmp_path / 'page.html', found)
  text = (tmp_path / 'page.html').read_text(encoding='utf-8')
  assert 'quiz.sw.jsonl (Swahili) 1 of 1' in text and '9 of 12' in text and '9 of 11' in text
