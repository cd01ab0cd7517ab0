"""Choice confusion on models that have memorised a known share of the answers."""

import json

import numpy as np
import pytest

from crossin_jax.evaluation import evaluate as evaluation
from crossin_jax.evaluation.asking import Answers
from crossin_jax.evaluation.benchmarks.declarations import LoadedBenchmark
from crossin_jax.evaluation.contamination import choice_confusion

ITEMS = 240
LANGUAGES = {'English': 'en', 'Vietnamese': 'vi'}


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  """Items of many topics; the options of an item are of its topic."""
  records = []
  for i in range(ITEMS):
    record = {'id': f'q{i}'}
    for name, code in LANGUAGES.items():
      choices = [f'({letter}) t{i} {kind} {code}' for letter, kind in zip('ABCD', 'wxyz')]
      record[name] = {
        'question': f'What of t{i}?', 'choices': choices, 'answer': choices[i % 4]
      }  # fmt: skip
    records.append(record)
  path = tmp_path_factory.mktemp('confused') / 'mmlu.json'
  path.write_text(json.dumps(records))
  return str(path)


def test_wrong_options_are_right_answers_of_other_items(path):
  loaded = LoadedBenchmark('cross_mmlu', path)
  changed = choice_confusion.confused(loaded)
  right = {
    code: {i['choices'][i['answer']][4:] for i in items.values()}
    for code, items in loaded.fields.items()
  }
  for id_, item in changed.fields['vi'].items():
    before, english = loaded.fields['vi'][id_], changed.fields['en'][id_]
    assert item['answer'] == before['answer'] and item['question'] == before['question']
    assert item['choices'][item['answer']] == before['choices'][item['answer']]
    assert [choice[:4] for choice in item['choices']] == ['(A) ', '(B) ', '(C) ', '(D) ']
    assert len({choice[4:] for choice in item['choices']}) == 4
    assert {choice[4:] for choice in item['choices']} <= right['vi']
    # the same donors in every language
    assert [c.replace(' vi', ' en') for c in item['choices']] == english['choices']
  again = choice_confusion.confused(LoadedBenchmark('cross_mmlu', path))
  assert again.fields == changed.fields
  assert choice_confusion.confused(loaded, seed=1).fields != changed.fields
  assert loaded.fields == LoadedBenchmark('cross_mmlu', path).fields


def test_benchmarks_without_options_are_refused(tmp_path):
  (tmp_path / 'mgsm_en.tsv').write_text('How many?\t3\n')
  with pytest.raises(ValueError, match='mgsm has no choices'):
    choice_confusion.confused(LoadedBenchmark('mgsm', str(tmp_path)))


def test_too_few_answers_are_refused(tmp_path):
  record = {'id': 'a', 'English': {'question': '?', 'choices': ['x', 'y', 'z'], 'answer': 'x'}}
  path = tmp_path / 'few.json'
  path.write_text(json.dumps([record, record | {'id': 'b'}]))
  with pytest.raises(ValueError, match='too few different answers'):
    choice_confusion.confused(LoadedBenchmark('cross_mmlu', str(path)))


def memoriser(loaded, share, rng):
  """Losses of a model that knows what a question is about, and in half of the cases the answer; of
  a share of the items it has seen the Vietnamese answers, and prefers every text that it has seen.
  """
  items = list(loaded.fields['vi'])
  seen = {items[i] for i in rng.choice(ITEMS, round(share * ITEMS), replace=False)}
  memory = {
    loaded.fields[code][id_]['choices'][loaded.fields[code][id_]['answer']][4:]
    for id_ in seen for code in ('en', 'vi')
  }  # fmt: skip
  knows = {id_: rng.random() < 0.5 for id_ in items}

  def losses(id_, row):
    topic = f't{id_[1:]} '
    likes = [
      8.0 * (choice[4:] in memory)
      + (
        0
        if id_ in seen
        else 4.0 * choice[4:].startswith(topic) + 2.0 * (i == row['answer'] and knows[id_])
      )
      for i, choice in enumerate(row['choices'])
    ]
    return -np.array(likes) + 0.01 * rng.random(len(likes))

  return losses


def change_at(path, share, tmp_path, monkeypatch):
  """The change that `evaluate` writes for such a model."""
  rng = np.random.default_rng(5)
  losses = memoriser(LoadedBenchmark('cross_mmlu', path), share, rng)

  def answer(model, params, partition, questions, prompts, methods):
    found = [[losses(id_, row) for row in item] for id_, item in zip(questions.ids, questions.rows)]
    texts = [[row['choices'][0] for row in item] for item in questions.rows]
    return {'likelihood': Answers(texts, found)}

  class Source:
    prompts = None
    params = staticmethod(lambda *_: None)

  monkeypatch.setattr(evaluation, 'answer_questions', answer)
  monkeypatch.setattr(evaluation.SavedModel, 'open', lambda path: Source())
  out = tmp_path / f'{share}'
  runs, _ = evaluation.evaluate(
    'x', [], str(out), 'memory', benchmarks=[('cross_mmlu', path)], prompt_forms=[1],
    methods=['likelihood'], confuse_choices=True, model=None,
  )  # fmt: skip
  assert [run['benchmark'] for run in runs] == ['cross_mmlu', 'cross_mmlu/confused']
  [found] = json.loads((out / 'choice_confusion.json').read_text())
  assert found['changes']['all']['original'] == pytest.approx(runs[0]['accuracy'])
  assert found['changes']['vi']['confused'] == pytest.approx(runs[1]['accuracy_by_language']['vi'])
  return found['changes']


def test_the_change_falls_with_the_share_that_is_memorised(path, tmp_path, monkeypatch, capsys):
  found = [change_at(path, share, tmp_path, monkeypatch) for share in (0, 0.25, 0.5, 1)]
  means = [changes['all']['change'] for changes in found]
  assert means[0] > 0.25 and sorted(means, reverse=True) == means
  # English was never seen; the answers are memorised all the same
  assert found[0]['en']['low'] > 0 and found[3]['en']['high'] < 0
  assert found[3]['all']['original'] == 1.0
  assert 'A model that has memorised the answers gains nothing' in capsys.readouterr().err
