"""Benchmark files, their prompts against lm-evaluation-harness' own task files, and what is wrong
with the files.
"""

import ast
import importlib.util
import json
import pathlib

import numpy as np
import pytest

from crossin_jax.evaluation.benchmarks import files as benchmark_files
from crossin_jax.evaluation.benchmarks.declarations import BENCHMARKS, LoadedBenchmark
from crossin_jax.storage.records import RecordError

SEAEVAL_PROMPTS = BENCHMARKS['cross_mmlu'].prompts


def _write(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(
    ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows), encoding='utf-8'
  )
  return path


def _function(folder, name):
  """'utils.doc_to_text' of a task's folder."""
  module, name = name.rsplit('.', 1)
  made = importlib.util.spec_from_file_location(
    f'harness_{folder.name}_{module}', folder / f'{module}.py'
  )
  loaded = importlib.util.module_from_spec(made)
  made.loader.exec_module(loaded)
  return getattr(loaded, name)


# ---- prompts against lm-evaluation-harness ----


@pytest.fixture(scope='module')
def harness():
  """task name -> (contexts, continuations) of a document, by the harness' YAML files and their
  functions.
  """
  spec = importlib.util.find_spec('lm_eval')
  if spec is None:
    pytest.skip('lm_eval is not installed (pip install lm-eval)')
  folder = pathlib.Path(spec.origin).parent / 'tasks'
  # What the harness does with these files, its data sets aside: Jinja over the document, YAML
  # includes, !function.
  from lm_eval.utils import apply_template
  import yaml

  def load(path):
    class Loader(yaml.SafeLoader):
      pass

    def function(loader, node):
      return lambda *arguments: _function(path.parent, node.value)(*arguments)

    Loader.add_constructor('!function', function)
    own = yaml.load(path.read_text(encoding='utf-8'), Loader)
    return (load(path.parent / own['include']) if own.get('include') else {}) | own

  def render(file, doc):
    task = load(folder / file)
    text = lambda template: template(doc) if callable(template) else apply_template(template, doc)
    context = text(task['doc_to_text'])
    if task['output_type'] != 'multiple_choice':
      return context, None
    choices = task['doc_to_choice']
    choices = choices if isinstance(choices, list) else text(choices)
    choices = choices if isinstance(choices, list) else ast.literal_eval(choices)
    return context, [task.get('target_delimiter', ' ') + choice for choice in choices]

  return render


def _row(name, fields, language):
  return BENCHMARKS[name].prompts[0](fields, language)


@pytest.mark.parametrize('language', sorted(BENCHMARKS['xcopa'].prompt_languages - {'en'}))
@pytest.mark.parametrize('question', ['cause', 'effect'])
def test_xcopa_as_the_harness(harness, language, question):
  doc = {
    'premise': ' The man slept. ',
    'choice1': 'He dreamt.',
    'choice2': 'She left.',
    'question': question,
  }
  row = _row('xcopa', doc | {'answer': 1}, language)
  assert (row['prompt'], row['continuations']) == harness(f'xcopa/default_{language}.yaml', doc)


@pytest.mark.parametrize('language', sorted(BENCHMARKS['xnli'].prompt_languages))
def test_xnli_as_the_harness(harness, language):
  doc = {'premise': 'It "rains" today', 'hypothesis': "it's wet."}
  row = _row('xnli', doc | {'answer': 0}, language)
  assert (row['prompt'], row['continuations']) == harness(f'xnli/xnli_{language}.yaml', doc)


@pytest.mark.parametrize('language', sorted(BENCHMARKS['pawsx'].prompt_languages))
def test_pawsx_as_the_harness(harness, language):
  raw = {'sentence1': 'He did n\'t ( ever ) say , " no " .', 'sentence2': 'She said so .'}
  doc = dict(raw)
  if language in ('en', 'es', 'fr', 'de'):  # the harness prepares the documents of these
    import datasets

    folder = pathlib.Path(importlib.util.find_spec('lm_eval').origin).parent / 'tasks' / 'paws-x'
    doc = _function(folder, 'utils.process_docs_paraphrases')(datasets.Dataset.from_list([raw]))[0]
  row = _row('pawsx', raw | {'answer': 0}, language)
  assert (row['prompt'], row['continuations']) == harness(f'paws-x/paws_{language}.yaml', doc)


def test_story_cloze_and_belebele_as_the_harness(harness):
  doc = {f'input_sentence_{i}': f'Sentence {i}.' for i in range(1, 5)}
  doc |= {'sentence_quiz1': 'Good end.', 'sentence_quiz2': 'Bad end.', 'answer_right_ending': 1}
  row = _row(
    'xstorycloze',
    {
      'story': [f'Sentence {i}.' for i in range(1, 5)],
      'choices': ['Good end.', 'Bad end.'],
      'answer': 0,
    },
    'ar',
  )
  assert (row['prompt'], row['continuations']) == harness('xstorycloze/default_ar.yaml', doc)
  doc = {'flores_passage': 'A text.', 'question': ' What? '} | {
    f'mc_answer{i}': f'answer {i}' for i in range(1, 5)
  }
  row = _row(
    'belebele',
    {
      'passage': 'A text.',
      'question': ' What? ',
      'choices': [f'answer {i}' for i in range(1, 5)],
      'answer': 3,
    },
    'ur',
  )
  assert (row['prompt'], row['continuations']) == harness(
    'belebele/belebele_urd_Arab.yaml', doc | {'correct_answer_num': '4'}
  )


@pytest.mark.parametrize('language', sorted(BENCHMARKS['mgsm'].prompt_languages))
def test_mgsm_as_the_harness(harness, language):
  row = _row('mgsm', {'question': 'How many?', 'answers': ['3']}, language)
  doc = {'question': 'How many?', 'answer': None, 'answer_number': 3}
  assert (row['prompt'], None) == harness(f'mgsm/direct/mgsm_direct_{language}.yaml', doc)


@pytest.mark.parametrize('language', sorted(BENCHMARKS['xquad'].prompt_languages))
def test_xquad_and_mlqa_as_the_harness(harness, language):
  doc = {'context': 'A {{text}}.', 'question': 'What?', 'answers': ['A']}
  assert (_row('xquad', doc, language)['prompt'], None) == harness(
    f'xquad/xquad_{language}.yaml', doc
  )
  if language in ('es', 'zh'):
    assert (_row('mlqa', doc, language)['prompt'], None) == harness(
      f'mlqa/mlqa_{language}_{language}.yaml', doc
    )


def test_the_five_seaeval_prompts():
  fields = {'context': 'C', 'question': 'Q', 'choices': ['(A) a', '(B) b'], 'answer': 1}
  texts = [prompt(fields, 'en')['instruction'] for prompt in SEAEVAL_PROMPTS]
  assert len(set(texts)) == 5
  assert texts[0] == (
    'Respond to the question by selecting the most appropriate '
    'answer.\n\nContext:\nC\n\nQuestion:\nQ\n\nChoices:\n(A) a\n(B) b'
    '\n\nAnswer:\n'
  )
  assert texts[1].startswith('Kindly choose') and '\n\n' not in texts[1]
  assert (
    'Context'
    not in SEAEVAL_PROMPTS[0]({k: v for k, v in fields.items() if k != 'context'}, 'en')[
      'instruction'
    ]
  )


# ---- files ----


def test_languages_are_found_by_name(tmp_path):
  names = [
    'val.th.jsonl',
    'dev-sw.tsv',
    'mgsm_bn.tsv',
    'eng_Latn.jsonl',
    'urd_Arab.jsonl',
    'urd_Latn.jsonl',
    'readme.md',
  ]
  names += [
    'dev-context-es-question-es.json',
    'dev-context-en-question-es.json',
    'val.qu.jsonl',
    'dev.id-translated.csv',
  ]
  for name in names:
    (tmp_path / name).write_text('')
  found = {
    language: pathlib.Path(path).name
    for language, path in benchmark_files.language_files(str(tmp_path)).items()
  }
  assert found == {
    'th': 'val.th.jsonl', 'sw': 'dev-sw.tsv', 'bn': 'mgsm_bn.tsv', 'en': 'eng_Latn.jsonl',
    'ur': 'urd_Arab.jsonl',
    'es': 'dev-context-es-question-es.json', 'id': 'dev.id-translated.csv', 'qu': 'val.qu.jsonl',
  }  # fmt: skip
  (tmp_path / 'test.th.jsonl').write_text('')
  with pytest.raises(
    RecordError, match=r'test\.th\.jsonl and val\.th\.jsonl are both Thai.*--split'
  ):
    benchmark_files.language_files(str(tmp_path))
  assert list(benchmark_files.language_files(str(tmp_path), 'test')) == ['th']
  with pytest.raises(RecordError, match='no .* file with a language code'):
    benchmark_files.language_files(str(tmp_path), 'train')


def _xcopa(question, n=30):
  row = lambda i: {'premise': f'p{i}.', 'choice1': 'A.', 'choice2': 'B.', 'label': i % 2, 'idx': i}
  return [row(i) | {'question': question(i)} for i in range(n)]


def test_the_wrong_xcopa_column_is_detected_and_mended(tmp_path):
  right = lambda i: ('cause', 'effect')[i % 3 == 0]
  for language in ('vi', 'zh', 'ta'):
    _write(tmp_path / f'val.{language}.jsonl', _xcopa(right))
  _write(tmp_path / 'val.th.jsonl', _xcopa(lambda i: 'effect'))
  _write(tmp_path / 'val.sw.jsonl', _xcopa(lambda i: 'cause' if i == 3 else right(i)))
  loaded = LoadedBenchmark('xcopa', str(tmp_path), ['th', 'sw'])
  assert [note.split(':')[0] for note in loaded.notes] == ['XCOPA th', 'XCOPA sw']
  assert '20 of 30' in loaded.notes[0] and '1 of 30' in loaded.notes[1]
  for item in loaded.questions()[0].rows:
    assert ('เพราะ' in item[0]['prompt']) == ('kwa sababu' in item[1]['prompt'])
  for path in tmp_path.glob('val.[vzs]*'):
    path.unlink()
  (tmp_path / 'val.ta.jsonl').unlink()
  assert 'cannot be right' in LoadedBenchmark('xcopa', str(tmp_path), ['th']).notes[0]


def test_the_real_xcopa_is_mended(shared_data):
  loaded = LoadedBenchmark('xcopa', str(shared_data / 'xcopa'))
  assert {note.split(':')[0] for note in loaded.notes} == {
    f'XCOPA {language}' for language in ('id', 'th', 'tr', 'sw')
  }
  right = {
    record['idx']: record['question']
    for _, record in benchmark_files.read_records(shared_data / 'xcopa' / 'val.vi.jsonl')
  }
  words = {'th': ('เพราะ', 'ดังนั้น'), 'tr': ('çünkü', 'bu yüzden')}
  questions = loaded.questions()[0]
  for item_id, item in zip(questions.ids, questions.rows):
    for language, (cause, effect) in words.items():
      prompt = item[questions.languages.index(language)]['prompt']
      assert prompt.endswith(cause if right[int(item_id)] == 'cause' else effect)


@pytest.mark.parametrize(
  'name, path, languages, items',
  [
    ('cross_mmlu', 'seaeval/cross_mmlu.dev.json', 7, 75),
    ('cross_logiqa', 'seaeval/cross_logiqa.dev.json', 7, 60),
    ('xnli', 'xnli', 9, 180), ('indocloze', 'indocloze', 2, 60), ('belebele', 'belebele', 2, 70),
    ('mgsm', 'mgsm', 6, 40),
    ('xquad', 'xquad_raw', 5, 177),
  ],
)  # fmt: skip
def test_real_files_are_read(shared_data, name, path, languages, items):
  loaded = LoadedBenchmark(name, str(shared_data / path))
  (questions,) = loaded.questions()
  assert (len(questions.languages), len(questions.ids)) == (languages, items)
  if questions.kind == 'choice':
    assert np.array_equal(
      questions.answers, np.broadcast_to(questions.answers[:, :1], questions.answers.shape)
    )
    # No place of the right answer is so frequent that always naming it would pay.
    assert np.bincount(questions.answers[:, 0]).max() <= 0.65 * items


def test_mlqa_languages_have_items_of_their_own(shared_data):
  several = LoadedBenchmark('mlqa', str(shared_data / 'mlqa_dev')).questions()
  assert [questions.languages for questions in several] == [['en'], ['zh'], ['vi'], ['es']]


def _seaeval_item(item_id, languages=('English', 'Chinese'), **change):
  fields = {'question': 'q', 'choices': ['(A) x', '(B) y'], 'answer': '(B) y'} | change
  return {'id': item_id} | {language: fields for language in languages}


@pytest.mark.parametrize(
  'records, message',
  [
    ([_seaeval_item('1'), _seaeval_item('2', ('English',))], r"1 items have no zh \('2'\)"),
    ([_seaeval_item('1', answer='(C) z')], "line 1, English: the answer '\\(C\\) z' is not "
                                           "exactly one of"),
    ([_seaeval_item('1', question=3)], "line 1, English: field 'question' must be a string"),
    ([_seaeval_item('1'), _seaeval_item('1')], "line 2, English: item '1' is given twice"),
    ([_seaeval_item('1', ('Klingon',))], "unknown language 'Klingon'"),
    ([_seaeval_item(None)], "'id' must be a string or a number"),
    ([{'id': '1', 'English': _seaeval_item('1')['English'],
       'Chinese': _seaeval_item('1', answer='(A) x')['English']}], 'options must be parallel'),
    ([], 'holds no item'),
  ],
)  # fmt: skip
def test_malformed_items_are_named(tmp_path, records, message):
  path = _write(tmp_path / 'x.jsonl', records)
  with pytest.raises(ValueError, match=message):
    LoadedBenchmark('cross_mmlu', str(path))


def test_unknown_names_and_languages_are_named(tmp_path):
  path = str(_write(tmp_path / 'x.jsonl', [_seaeval_item('1')]))
  with pytest.raises(ValueError, match='no benchmark .cross_mmul.'):
    LoadedBenchmark('cross_mmul', path)
  with pytest.raises(ValueError, match='has no vi; it has en, zh'):
    LoadedBenchmark('cross_mmlu', path, ['en', 'vi'])
  with pytest.raises(ValueError, match='xnli has no prompt in fi'):
    LoadedBenchmark('xnli', path, ['fi'])
  with pytest.raises(ValueError, match='prompts 1 to 5, not 6'):
    LoadedBenchmark('cross_mmlu', path).questions(6)
  assert LoadedBenchmark('cross_mmlu', path, ['zh', 'en']).languages == ['zh', 'en']


def test_tables_with_a_wrong_number_of_columns_are_named(tmp_path):
  (tmp_path / 'dev-en.tsv').write_text('a\tb\tneutral\na\tb\n')
  with pytest.raises(RecordError, match=r'dev-en\.tsv, line 2: 2 columns, expected 3'):
    LoadedBenchmark('xnli', str(tmp_path))
  (tmp_path / 'dev-en.tsv').write_text('a\tb\tmaybe\n')
  with pytest.raises(RecordError, match="line 1: label 'maybe' is none of entailment"):
    LoadedBenchmark('xnli', str(tmp_path))
