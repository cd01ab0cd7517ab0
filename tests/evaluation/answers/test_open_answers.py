"""F1 and exact match against the official scorers, numbers, and files of open predictions."""

import importlib.util
import json
import pathlib

from hypothesis import given
from hypothesis import strategies as st
import pytest

from crossin_jax.evaluation import results
from crossin_jax.evaluation.answers import open_answers
from crossin_jax.evaluation.answers.numbers import extracted_number
from crossin_jax.storage.records import RecordError

WORDS = st.lists(
  st.sampled_from(
    "the The a An dog Dog, «el» la un của là 狗 狗狗,x 。 ال الكتاب it's 1,000 - ½".split()
  ),
  max_size=8,
).map(' '.join)  # fmt: skip


def _scorer(name):
  """A scorer that lm-evaluation-harness brings along."""
  spec = importlib.util.find_spec('lm_eval')
  if spec is None:
    pytest.skip('lm_eval is not installed (pip install lm-eval)')
  made = importlib.util.spec_from_file_location(
    name.replace('/', '_'), pathlib.Path(spec.origin).parent / 'tasks' / name
  )
  module = importlib.util.module_from_spec(made)
  made.loader.exec_module(module)
  return module


@pytest.fixture(scope='module')
def mlqa():
  """MLQA's official one."""
  return _scorer('mlqa/utils.py')


@pytest.fixture(scope='module')
def squad():
  """SQuAD's normalisation and F1."""
  return _scorer('qasper/metrics.py')


@given(
  prediction=WORDS,
  answers=st.lists(WORDS, min_size=1, max_size=3),
  language=st.sampled_from(['en', 'es', 'hi', 'vi', 'de', 'ar', 'zh']),
)
def test_mlqa_as_the_official_scorer(mlqa, prediction, answers, language):
  official = mlqa.process_results_lang({'answers': answers}, [prediction], language)
  assert (
    open_answers.exact_match(prediction.strip(), answers, 'mlqa', language)
    == official['exact_match']
  )
  assert open_answers.f1(prediction.strip(), answers, 'mlqa', language) == pytest.approx(
    official['f1'], abs=1e-12
  )


@given(prediction=WORDS, answer=WORDS)
def test_squad_as_the_official_scorer(squad, prediction, answer):
  equal = squad.normalize_answer(prediction) == squad.normalize_answer(answer)
  assert open_answers.exact_match(prediction, [answer], 'squad', 'zh') == equal
  assert open_answers.f1(prediction, [answer], 'squad', 'zh') == pytest.approx(
    squad.f1_abstractive([prediction], [answer]), abs=1e-12
  )


@pytest.mark.parametrize('benchmark', ['xquad', 'mlqa'])
def test_the_mock_predictions_of_xtreme(shared_data, benchmark, mlqa, squad):
  from crossin_jax.evaluation.benchmarks.files import read_squad

  folder = shared_data / 'xtreme_mock'
  items = read_squad(str(folder / 'labels' / benchmark))
  for language, fields in items.fields.items():
    written = json.loads((folder / 'predictions' / benchmark / f'test-{language}.json').read_text())
    for item_id, text in written.items():
      answers, protocol = fields[item_id]['answers'], open_answers.readers(benchmark)[0]
      if benchmark == 'mlqa':
        wanted = mlqa.process_results_lang({'answers': answers}, [text], language)['f1']
      else:
        wanted = max(squad.f1_abstractive([text], [answer]) for answer in answers)
      assert open_answers.f1(text, answers, protocol, language) == pytest.approx(wanted)


@pytest.mark.parametrize(
  'text, number',
  [
    ('She makes $1,800.50 a day.', '1800.50'), ('16 - 3 = 13', '13'), ('-4', '-4'),
    ('The answer is 18.', '18'),
    ('no number', ''), ('', ''), ('...', ''), ('10 apples, 3 pears', '3'),
    ('Jibu ni 1,000', '1000'),
  ],
)  # fmt: skip
def test_the_last_number_counts(text, number):
  assert extracted_number(text) == number


def _predictions(texts, answers):
  return open_answers.OpenPredictions(
    {language: {str(i): text for i, text in enumerate(own)} for language, own in texts.items()},
    {language: {str(i): [answer] for i, answer in enumerate(answers)} for language in texts},
  )


def test_numbers_have_consistency_by_value():
  texts = {
    'en': ['18.00', 'about 7', 'none', '1.2.3'],
    'sw': ['18', '7', '5', '5'],
    'zh': ['$18', '8', '5', '6'],
  }
  summary = open_answers.summarise(_predictions(texts, ['18', '8', '5', '5']), 'number')
  assert summary.accuracy_by_language == {'en': 0.25, 'sw': 0.75, 'zh': 0.75}
  assert summary.pairwise_consistency == {'en,sw': 0.5, 'en,zh': 0.25, 'sw,zh': 0.5}
  assert summary.unparsed_rate == pytest.approx(2 / 12)


@pytest.mark.parametrize('benchmark', ['mgsm', 'xquad', 'mlqa'])
def test_files_round_trip_and_runs_are_valid(tmp_path, benchmark):
  texts = {'en': ['18', 'x'], 'vi': ['17', '', '3']}
  predictions = _predictions(texts, ['18', '3', '3'])
  predictions.answers['en'].pop('2')
  open_answers.write_predictions(tmp_path / 'p.jsonl', predictions)
  again = open_answers.read_predictions(tmp_path / 'p.jsonl')
  assert (again.texts, again.answers) == (predictions.texts, predictions.answers)
  summary = open_answers.summarise(again, open_answers.readers(benchmark)[0])
  run = results.build_run(
    summary,
    variant='a',
    seed=None,
    benchmark=benchmark,
    protocol=open_answers.readers(benchmark)[0],
    method='generate',
  )
  results.write_results(tmp_path / 'results.json', [run])
  assert results.read_results(tmp_path / 'results.json')[0]['consistency'] == {}
  assert run['accuracy_by_language'] == {'en': 0.5, 'vi': pytest.approx(1 / 3)} and (
    'f1' in run
  ) == (benchmark != 'mgsm')


def test_malformed_lines_are_named(tmp_path):
  good = {'id': 1, 'language': 'en', 'answers': ['a'], 'prediction': 'b'}
  rows = [
    good,
    good | {'answers': []},
    good | {'id': 2, 'prediction': None},
    good | {'id': 3, 'language': 'xx'},
    good,
  ]
  (tmp_path / 'p.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows) + '{')
  with pytest.raises(RecordError) as refused:
    open_answers.read_predictions(tmp_path / 'p.jsonl')
  assert all(f'line {n}:' in str(refused.value) for n in (2, 3, 4, 5, 6)) and 'line 1:' not in str(
    refused.value
  )
  assert list(
    open_answers.read_predictions(tmp_path / 'p.jsonl', allow_partial=True).texts['en']
  ) == ['1']
