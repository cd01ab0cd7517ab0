"""Prediction files in both layouts, their errors, `crossin score`, and results.json."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from crossin_jax import cli
from crossin_jax.evaluation import results as R
from crossin_jax.evaluation.answers import predictions
from crossin_jax.evaluation.measures.consistency import Summary
from crossin_jax.languages import code_of

CHOICES = {'en': ['(A) one', '(B) two'], 'zh': ['(A) 一', '(B) 二']}


def line(item='1', language='en', prediction='(A)', **other):
  code = code_of(language) if isinstance(language, str) and language != 'Klingonish' else 'en'
  choices = CHOICES.get(code, CHOICES['en'])
  return {
    'id': item,
    'language': language,
    'choices': choices,
    'answer': choices[0],
    'prediction': prediction,
  } | other


def write(path, rows):
  path.write_text(
    ''.join(
      (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + '\n' for row in rows
    ),
    encoding='utf-8',
  )
  return path


def test_both_layouts_codes_names_and_gzip_round_trip(tmp_path):
  read = predictions.read_predictions(
    write(
      tmp_path / 'a.jsonl',
      [line('1'), line('1', 'Chinese', '二'), line('2', 'EN', 'two'), line('2', 'zh', '')],
    )
  )
  assert (
    read.languages == ['en', 'zh']
    and read.ids == ['1', '2']
    and read.answers.tolist() == [[0, 0], [0, 0]]
  )
  for name, layout in [
    ('b.jsonl', 'lines'),
    ('c.jsonl.gz', 'lines'),
    ('d.jsonl', 'seaeval'),
    ('e.jsonl.gz', 'seaeval'),
  ]:
    predictions.write_predictions(tmp_path / name, read, layout)
    again = predictions.read_predictions(tmp_path / name)
    assert (again.ids, again.languages, again.choices, again.texts) == (
      read.ids,
      read.languages,
      read.choices,
      read.texts,
    )
    assert np.array_equal(again.answers, read.answers)
  record = json.loads((tmp_path / 'd.jsonl').read_text().splitlines()[0])
  assert (
    list(record) == ['id', 'English', 'Chinese'] and record['Chinese']['model_prediction'] == '二'
  )
  (tmp_path / 'f.json').write_text(
    json.dumps([json.loads(x) for x in (tmp_path / 'd.jsonl').read_text().splitlines()])
  )
  assert predictions.read_predictions(tmp_path / 'f.json').texts == read.texts
  assert read.extract('strict').tolist() == [[0, 1], [1, -1]]
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    'a.jsonl',
    'b.jsonl',
    'c.jsonl.gz',
    'd.jsonl',
    'e.jsonl.gz',
    'f.json',
  ]


@pytest.mark.parametrize(
  'bad, text',
  [
    ('{not json', 'line 2.*not valid JSON'),
    ('[1]', 'line 2.*expected a JSON object'),
    (line('2', prediction=None), "line 2.*'prediction'"),
    (line('2', answer='three'), 'line 2.*answer'),
    (line('2', answer=True), 'line 2.*answer'),
    (line('2', choices='AB'), "line 2.*'choices'"),
    (line('2', choices=['x']), "line 2.*'choices'"),
    (line('2', 'Klingonish'), 'line 2.*Klingonish'),
    (line('2', 7), 'line 2.*7'),
    (line(''), "line 2.*'id'"),
    ({'id': '2'}, 'line 2.*neither'),
    (line('1'), 'line 2.*already given in line 1'),
    (
      {'id': '2', 'English': {'choices': ['(A) x', '(B) y'], 'answer': '(A) x'}},
      'line 2, English.*model_prediction',
    ),
  ],
)
def test_malformed_lines_are_named(tmp_path, bad, text):
  with pytest.raises(predictions.PredictionError, match=text):
    predictions.read_predictions(write(tmp_path / 'p.jsonl', [line('1'), bad]))


def test_unequal_languages_are_named_and_can_be_left_out(tmp_path):
  path = write(
    tmp_path / 'p.jsonl', [line('1'), line('1', 'zh'), line('2'), line('3'), line('3', 'zh')]
  )
  with pytest.raises(
    predictions.PredictionError, match="item '2' has no prediction in zh.*--allow_partial"
  ):
    predictions.read_predictions(path)
  partial = predictions.read_predictions(path, allow_partial=True)
  assert partial.ids == ['1', '3'] and partial.left_out == ['2']
  with pytest.raises(predictions.PredictionError, match='nothing can be scored'):
    predictions.read_predictions(
      write(tmp_path / 'q.jsonl', [line('1'), line('2', 'zh')]), allow_partial=True
    )


def test_every_malformed_line_is_named_and_the_rest_scored_on_request(tmp_path, capsys):
  path = write(
    tmp_path / 'p.jsonl', [line('1'), '{no', line('2', answer='three'), line('3'), line('3'), '[]']
  )
  with pytest.raises(predictions.PredictionError) as refused:
    predictions.read_predictions(path)
  assert all(
    f'line {n}:' in str(refused.value) or f'line {n},' in str(refused.value) for n in (2, 3, 5, 6)
  )
  assert 'line 1:' not in str(refused.value) and '4 malformed lines' in str(refused.value)
  partial = predictions.read_predictions(path, allow_partial=True)
  assert partial.ids == ['1', '3'] and len(partial.malformed) == 4
  assert cli.main(['score', '--task', 't', '--predictions', str(path)]) == 1
  assert cli.main(['score', '--task', 't', '--predictions', str(path), '--allow_partial']) == 0
  assert capsys.readouterr().out.count('skipped:') == 4


def test_damaged_files(tmp_path):
  (tmp_path / 'cut.jsonl.gz').write_bytes(gzip.compress(b'x' * 9999)[:-9])
  with pytest.raises(predictions.RecordError, match='cut off'):
    predictions.read_predictions(tmp_path / 'cut.jsonl.gz')
  (tmp_path / 'latin.jsonl').write_bytes(json.dumps(line()).encode() + b'\n\xe9\n')
  with pytest.raises(predictions.RecordError, match='line 2: not valid UTF-8 at byte'):
    predictions.read_predictions(tmp_path / 'latin.jsonl')
  (tmp_path / 'empty.jsonl').write_text('\n')
  with pytest.raises(predictions.PredictionError, match='no predictions'):
    predictions.read_predictions(tmp_path / 'empty.jsonl')


@pytest.mark.parametrize('answer', ['(A) one', 'one', 'A', '(A)', 0])
def test_answers_in_any_form(tmp_path, answer):
  assert predictions.read_predictions(
    write(tmp_path / 'p.jsonl', [line(answer=answer)])
  ).answers.tolist() == [[0]]


def test_score_command(tmp_path, capsys):
  path = write(
    tmp_path / 'toy.jsonl',
    [line('1'), line('1', 'zh', '一\n二'), line('2', prediction='two'), line('2', 'zh', '?')],
  )
  assert (
    cli.main(
      [
        'score',
        '--task',
        'toy',
        '--predictions',
        str(path),
        '--protocol',
        'strict',
        '--first_line',
        '--json',
      ]
    )
    == 0
  )
  out, err = capsys.readouterr()
  run = json.loads(out.splitlines()[-1])
  R.validate_run(run)
  assert (
    run['variant'] == 'toy'
    and run['benchmark'] == 'toy'
    and run['method'] == 'generate'
    and run['seed'] is None
  )
  assert (
    run['accuracy_by_language'] == {'en': 0.5, 'zh': 0.5}
    and run['consistency'] == {'2': 0.5}
    and run['unparsed_rate'] == 0.25
  )
  assert run['prompts'] == {'median': 0.5, 'min': 0.5, 'max': 0.5}
  assert 'C_2' in out and 'Chinese' in out and not err
  assert cli.main(['score', '--task', 'toy', '--predictions', str(path)]) == 0
  assert 'C_2' in capsys.readouterr().out


def test_score_exit_codes(tmp_path, capsys):
  assert cli.main(['score', '--task', 'toy', '--predictions', str(tmp_path / 'absent.jsonl')]) == 1
  assert 'absent.jsonl' in capsys.readouterr().err
  with pytest.raises(SystemExit, match='2'):
    cli.main(['score', '--task', 'toy'])
  with pytest.raises(SystemExit, match='2'):
    cli.main(['score', '--task', 'toy', '--predictions', 'x', '--protocol', 'lenient'])
  with pytest.raises(SystemExit, match='0'):
    cli.main(['score', '--help'])
  assert 'example:' in capsys.readouterr().out


GOLDEN = Path(__file__).resolve().parents[3] / '..' / 'shared' / 'data' / 'seaeval' / 'golden'


@pytest.mark.skipif(
  not GOLDEN.exists(),
  reason='put the predictions published with SeaEval into ../shared/data/seaeval/golden',
)
def test_score_command_on_published_predictions(capsys):
  for case in json.loads((GOLDEN / 'INDEX.json').read_text()):
    flags = ['--first_line'] if case['first_line_only'] else []
    file = str(GOLDEN / f'{case["case"]}.pred.jsonl.gz')
    assert (
      cli.main(
        [
          'score',
          '--task',
          'cross_mmlu',
          '--predictions',
          file,
          '--protocol',
          'seaeval',
          '--json',
          *flags,
        ]
      )
      == 0
    )
    run = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert run['accuracy'] == pytest.approx(case['overall_acc'], abs=1e-9)
    assert run['ac3']['3'] == pytest.approx(case['AC3_3'], abs=1e-9)


def a_run(**changes):
  half = {'en': 0.5, 'zh': 0.5}
  summaries = [
    Summary(accuracy, half, {'2': 0.5}, {'2': 0.5}, {'en,zh': 0.5}, unparsed_rate=0.0, items=4)
    for accuracy in (0.5, 0.4, 0.7)
  ]
  settings = {
    'variant': 'x2x',
    'seed': 0,
    'benchmark': 'world/untagged',
    'protocol': 'strict',
    'method': 'likelihood',
  }
  return R.build_run(R.median_summary(summaries), **settings) | changes


def test_results_round_trip_and_prompts(tmp_path):
  run = a_run()
  assert run['prompts'] == {'median': 0.5, 'min': 0.4, 'max': 0.7}
  assert tuple(run) == (*R.KEYS, 'prompt_figures', 'by_prompt')
  R.write_results(tmp_path / 'results.json', [run, a_run(seed=None)])
  assert R.read_results(tmp_path / 'results.json') == [run, a_run(seed=None)]
  assert (tmp_path / 'results.json').stat().st_mode & 0o777 != 0o600
  with pytest.raises(ValueError, match=r'runs\[0\].*accuracy'):
    R.write_results(tmp_path / 'results.json', [a_run(accuracy=50.0)])
  assert R.read_results(tmp_path / 'results.json')[0] == run  # what was there stays whole
  assert [path.name for path in tmp_path.iterdir()] == ['results.json']


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"method": "guess"}, "method"), ({"items": 0}, "items"), ({"seed": "0"}, "seed"),
        ({"consistency": {"3": 0.1}}, "consistency"),
        ({"pairwise_consistency": {}}, "pairwise"), ({"prompts": {"median": 0.5}}, "prompts"),
        ({"accuracy": float("nan")}, "accuracy"),
        ({"variant": ""}, "variant"), ({"accuracy_by_language": {}}, "accuracy_by_language"),
    ],
)  # fmt: skip
def test_broken_runs_are_named(changes, text):
  with pytest.raises(ValueError, match=text):
    R.validate_run(a_run() | changes)


def test_broken_results_files(tmp_path):
  for content, text in [
    ('{', 'not valid JSON'),
    ('[]', 'is this a results.json'),
    ('{"runs": [{}]}', r'runs\[0\].*lacks'),
  ]:
    (tmp_path / 'results.json').write_text(content)
    with pytest.raises(ValueError, match=text):
      R.read_results(tmp_path / 'results.json')
