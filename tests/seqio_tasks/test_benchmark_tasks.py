"""Benchmarks under SeqIO's own Evaluator: the figures are those of `crossin evaluate`."""

import json

import numpy as np
import pytest
import seqio

from crossin_jax.evaluation.asking import pair_tokens
from crossin_jax.evaluation.benchmarks import declarations
from crossin_jax.languages import english_name
from seqio_tasks import benchmark_tasks


@pytest.fixture(scope='module')
def mmlu(tmp_path_factory):
  path = tmp_path_factory.mktemp('seqio') / 'mmlu.json'
  choices = lambda language: [f'({letter}) {letter * 2} {language}' for letter in 'ABCD']
  fields = lambda i, language: {
    'question': f'{i}?',
    'choices': choices(language),
    'answer': choices(language)[i % 4],
  }
  path.write_text(
    json.dumps(
      [{'id': i} | {english_name(l): fields(i, l) for l in ('en', 'zh')} for i in range(6)]
    )
  )
  return str(path)


def _evaluate(name, tmp_path, predict=None, score=None):
  """SeqIO's Evaluator with a stand-in for the model."""
  evaluator = seqio.Evaluator(
    mixture_or_task_name=name, feature_converter=seqio.EncDecFeatureConverter(pack=False),
    eval_split='test', seed=0,
  )  # fmt: skip
  metrics, _ = evaluator.evaluate(
    compute_metrics=True, predict_fn=predict, score_fn=score, predict_with_aux_fn=None
  )  # fmt: skip
  return {
    key: float(getattr(value, 'value', value)) for key, value in metrics.result()[name].items()
  }


def test_options_are_compared_by_their_scores(mmlu, tmp_path, tiny_vocabulary):
  names = benchmark_tasks.register('cross_mmlu', mmlu, tiny_vocabulary, prompts=[1, 3])
  assert (
    names[:2] == ['cross_mmlu.en.p1.likelihood', 'cross_mmlu.en.p1.generate'] and len(names) == 8
  )
  dataset = seqio.get_mixture_or_task(names[0]).get_dataset(None, 'test', shuffle=False)
  examples = list(dataset.as_numpy_iterator())
  questions = declarations.LoadedBenchmark('cross_mmlu', mmlu).questions(1)[0]
  rows = [item[0] for item in questions.rows]
  wanted = [
    pair_tokens(tiny_vocabulary, row['raw'], choice) for row in rows for choice in row['choices']
  ]
  assert [(e['inputs'].tolist(), e['targets'].tolist()) for e in examples] == wanted
  # A model that likes option 1: right on items 1 and 5.
  score = lambda dataset, *_: [(i, float(i % 4 == 1)) for i, _ in dataset]
  figures = _evaluate(names[0], tmp_path, score=score)
  assert figures['accuracy'] == pytest.approx(2 / 6)


def test_generated_texts_are_read(mmlu, tmp_path, tiny_vocabulary):
  (name,) = [
    n
    for n in benchmark_tasks.register(
      'cross_mmlu', mmlu, tiny_vocabulary, languages=['zh'], prompts=[2]
    )
    if 'generate' in n
  ]
  # as a batch comes out
  padded = lambda text: (tiny_vocabulary.encode(text) + [tiny_vocabulary.eos_id] * 8)[:8]
  predict = lambda dataset, *_: [(i, padded('(B)' if i else 'hm')) for i, _ in dataset]
  figures = _evaluate(name, tmp_path, predict=predict)
  assert figures['accuracy'] == pytest.approx(2 / 6) and figures['unparsed_rate'] == pytest.approx(
    1 / 6
  )


def test_numbers_and_spans(tmp_path, tiny_vocabulary):
  (tmp_path / 'mgsm_en.tsv').write_text('How many?\t7\nAnd now?\t12\n')
  (name,) = benchmark_tasks.register('mgsm', str(tmp_path), tiny_vocabulary)
  predict = lambda dataset, *_: [(i, tiny_vocabulary.encode('it is 12')) for i, _ in dataset]
  assert _evaluate(name, tmp_path, predict=predict) == {'accuracy': 0.5, 'unparsed_rate': 0.0}
  data = {
    'data': [
      {
        'paragraphs': [
          {
            'context': 'c',
            'qas': [{'id': 'q', 'question': '?', 'answers': [{'text': 'the world'}]}],
          }
        ]
      }
    ]
  }
  (tmp_path / 'xquad').mkdir()
  (tmp_path / 'xquad' / 'xquad.en.json').write_text(json.dumps(data))
  (name,) = benchmark_tasks.register('xquad', str(tmp_path / 'xquad'), tiny_vocabulary)
  predict = lambda dataset, *_: [(i, tiny_vocabulary.encode('world')) for i, _ in dataset]
  figures = _evaluate(name, tmp_path, predict=predict)
  assert figures['accuracy'] == 1.0 and np.isclose(figures['f1'], 1.0)


def test_every_benchmark_registers_on_real_files(shared_data, tiny_vocabulary):
  for name, path in (
    ('xcopa', 'xcopa'),
    ('xnli', 'xnli'),
    ('indocloze', 'indocloze'),
    ('belebele', 'belebele'),
  ):
    names = benchmark_tasks.register(name, str(shared_data / path), tiny_vocabulary)
    example = next(
      iter(
        seqio.get_mixture_or_task(names[-1])
        .get_dataset(None, 'test', shuffle=False)
        .as_numpy_iterator()
      )
    )
    assert len(example['targets']) and example['item'] == 0
