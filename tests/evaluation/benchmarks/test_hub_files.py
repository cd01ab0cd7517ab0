"""Benchmarks as the Hub distributes them: a folder per language, Parquet inside."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_benchmarks import harness  # noqa: F401  a fixture

from crossin_jax.evaluation.benchmarks.declarations import LoadedBenchmark
from crossin_jax.storage.records import RecordError

OPTIONS = {f'option_{letter}': f'{letter} text' for letter in 'abcd'}


def parquet(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(pa.Table.from_pylist(rows), path)


def mmlu(i, answer='B'):
  subject = {'subject': 'anatomy', 'cultural_sensitivity_label': '-', 'is_annotated': False}
  return (
    {'sample_id': f'anatomy/test/{i}', 'question': f' What {i}? ', 'answer': answer}
    | OPTIONS
    | subject
  )


def test_global_mmlu(tmp_path, harness):  # noqa: F811
  for code in ('en', 'sw'):
    parquet(tmp_path / code / 'test-00000-of-00001.parquet', [mmlu(i) for i in range(3)])
    parquet(tmp_path / code / 'dev-00000-of-00001.parquet', [mmlu(9)])
  loaded = LoadedBenchmark('global_mmlu', str(tmp_path), split='test')
  [questions] = loaded.questions()
  assert loaded.languages == ['en', 'sw'] and questions.ids[1] == 'anatomy/test/1'
  row = questions.rows[0][1]
  assert (row['prompt'], row['continuations']) == harness(
    'global_mmlu/default/sw/_sw_template_yaml', mmlu(0)
  )
  assert row['answer'] == 1
  with pytest.raises(RecordError, match=r'are both English; select the split \(--split test\)'):
    LoadedBenchmark('global_mmlu', str(tmp_path))
  parquet(tmp_path / 'sw' / 'test-00000-of-00001.parquet', [mmlu(i, 'C') for i in range(3)])
  with pytest.raises(RecordError, match='has the answer 2 in sw and 1 in en'):
    LoadedBenchmark('global_mmlu', str(tmp_path), split='test')


@pytest.mark.parametrize('listed', [False, True])
def test_include(tmp_path, harness, listed):  # noqa: F811
  doc = {'question': ' Where? ', 'answer': 3, 'domain': 'STEM'} | OPTIONS
  row = (
    {'question': doc['question'], 'answer': 3, 'choices': list(OPTIONS.values())} if listed else doc
  )
  parquet(tmp_path / 'Albanian' / 'test-00000-of-00001.parquet', [row] * 2)
  parquet(tmp_path / 'Hindi' / 'test-00000-of-00001.parquet', [row] * 5)
  found = {q.languages[0]: q for q in LoadedBenchmark('include', str(tmp_path)).questions()}
  assert {code: len(q.ids) for code, q in found.items()} == {'sq': 2, 'hi': 5}
  first = found['sq'].rows[0][0]
  template = 'include/default/Albanian/_albanian_template_yaml'
  assert (first['prompt'], first['continuations']) == harness(template, doc)
  assert first['answer'] == 3


def csqa(code, in_lists, key='D'):
  texts = ['headaches', 'bigger brain', 'education', 'growth', 'knowing more']
  choices = {'label': list('ABCDE'), 'text': texts}
  if not in_lists:
    choices = [{'label': label, 'text': text} for label, text in zip('ABCDE', texts)]
  return {
    'id': 'be19',
    'lang': code,
    'question': {'stem': ' What? ', 'choices': choices},
    'answerKey': key,
  }


def test_xcsqa(tmp_path, harness):  # noqa: F811
  parquet(tmp_path / 'X-CSQA-en' / 'validation-00000-of-00001.parquet', [csqa('en', True)])
  parquet(tmp_path / 'X-CSQA-jap' / 'validation-00000-of-00001.parquet', [csqa('jap', True)])
  loaded = LoadedBenchmark('xcsqa', str(tmp_path))
  assert loaded.languages == ['en', 'ja']
  row = loaded.questions()[0].rows[0][0]
  doc = {'question': ' What? ', 'choices': csqa('en', True)['question']['choices']}
  assert (row['prompt'], row['continuations']) == harness('commonsense_qa/default.yaml', doc)
  assert row['answer'] == 3
  # as the authors have them
  (tmp_path / 'own').mkdir()
  (tmp_path / 'own' / 'dev_en.jsonl').write_text(json.dumps(csqa('en', False)))
  assert LoadedBenchmark('xcsqa', str(tmp_path / 'own')).questions()[0].rows[0][0] == row
  (tmp_path / 'own' / 'dev_en.jsonl').write_text(json.dumps(csqa('en', False, '')))
  with pytest.raises(RecordError, match='no answerKey; the test split'):
    LoadedBenchmark('xcsqa', str(tmp_path / 'own'))


def test_bmlama(tmp_path):
  head = 'Prompt\tAns\tCandidate Ans\tSubject\n'
  row = '{0} was born in <mask>.\t{1}\tParis, {1}, Rome, {1}\t{0}\n'
  (tmp_path / 'en.tsv').write_text(head + row.format('Ada', 'London'))
  (tmp_path / 'es.tsv').write_text(head + row.format('Ada', 'Londres'))
  [questions] = LoadedBenchmark('bmlama', str(tmp_path)).questions()
  english, spanish = questions.rows[0]
  # of two equal candidates the last one counts: the published files have the answer at the end
  assert english['answer'] == spanish['answer'] == 3 and english['prompt'] == ''
  assert spanish['continuations'][0] == 'Ada was born in Paris.'
  (tmp_path / 'es.tsv').write_text(head + row.format('Ada', 'Londres').replace('<mask>', 'X'))
  with pytest.raises(RecordError, match='must have one <mask>'):
    LoadedBenchmark('bmlama', str(tmp_path))


def test_klar(tmp_path):
  def write(code, template, samples):
    folder = tmp_path / code
    folder.mkdir(exist_ok=True)
    samples = [dict(zip(('index', 'subject', 'object'), sample)) for sample in samples]
    content = {'relation_name': 'capital_of', 'prompt_templates': [template], 'samples': samples}
    (folder / 'capital_of.json').write_text(json.dumps(content))

  german = [(7, 'Tiflis', 'Georgien'), (8, 'Paris', 'Frankreich'), (9, 'Atlanta', 'Georgia')]
  english = [(7, 'Tbilisi', 'Georgia'), (8, 'Paris', 'France'), (9, 'Atlanta', 'Georgia')]
  write('de', '<subject> ist die Hauptstadt von <mask>.', german)
  write('en', 'Where is <subject> the capital? The answer is: <mask>', [*english, (10, 'X', 'Y')])
  loaded = LoadedBenchmark('klar', str(tmp_path))
  [questions] = loaded.questions()
  assert questions.ids == ['capital_of-7', 'capital_of-8', 'capital_of-9']
  assert loaded.notes == ['1 samples were left out: a language lacks them'] and questions.per_token
  english, german = questions.rows[2]
  # one candidate, since its English names are equal; the sample's own name is asked for
  assert (english['choices'], german['choices']) == (
    ['Georgia', 'France'],
    ['Georgia', 'Frankreich'],
  )
  assert german['continuations'][0] == 'Atlanta ist die Hauptstadt von Georgia.'
  assert questions.rows[0][1]['choices'] == ['Georgien', 'Frankreich']
  assert questions.answers.tolist() == [[0, 0], [1, 1], [0, 0]]
  assert LoadedBenchmark('klar', str(tmp_path), ['de']).languages == ['de']
  write('en', 'no place', [(7, 'Tbilisi', 'Georgia')])
  with pytest.raises(RecordError, match='must have <subject> and one <mask>'):
    LoadedBenchmark('klar', str(tmp_path))
  with pytest.raises(RecordError, match='no folder with a language code'):
    LoadedBenchmark('klar', str(tmp_path / 'en'))


def test_polymath(tmp_path):
  rows = lambda code: [
    {'id': f'low-{code}-{i}', 'question': f'How many, {i}?', 'answer': answer}
    for i, answer in enumerate(['18', '1,200', '$-3.5$', r'\frac{1}{2}'])
  ]
  for code in ('en', 'th'):
    parquet(tmp_path / code / 'low.parquet', rows(code))
    parquet(tmp_path / code / 'top.parquet', rows(code)[3:])
  loaded = LoadedBenchmark('polymath', str(tmp_path), split='low')
  [questions] = loaded.questions()
  assert questions.ids == ['0', '1', '2']
  assert [item[1]['answers'] for item in questions.rows] == [['18'], ['1200'], ['-3.5']]
  assert any('1 items were left out' in note for note in loaded.notes)
  assert questions.rows[0][0]['prompt'].endswith('Put the final answer in \\boxed{}.\n')
  with pytest.raises(RecordError, match='no answer is a number'):
    LoadedBenchmark('polymath', str(tmp_path), split='top')


def test_damaged_parquet_is_named(tmp_path):
  (tmp_path / 'en').mkdir()
  (tmp_path / 'en' / 'test.parquet').write_bytes(b'PAR1 but nothing else')
  with pytest.raises(
    RecordError, match=r'test\.parquet: not a complete Parquet file .*copy it again'
  ):
    LoadedBenchmark('global_mmlu', str(tmp_path))


def test_a_row_without_an_option_is_named(tmp_path):
  parquet(tmp_path / 'en' / 'test.parquet', [{k: v for k, v in mmlu(0).items() if k != 'option_c'}])
  with pytest.raises(RecordError, match="row 1: field 'option_c' must be a string"):
    LoadedBenchmark('global_mmlu', str(tmp_path))
