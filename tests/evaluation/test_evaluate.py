"""Benchmarks on a model, as a user asks for them: figures against transformers and the saved
predictions, and in training.
"""

import importlib.util
import json
import os
import pathlib
import re
import shutil
import types

import numpy as np
import pytest
import safetensors.numpy

from crossin_jax import cli
from crossin_jax.evaluation import evaluators, results
from crossin_jax.evaluation.asking import pair_tokens
from crossin_jax.evaluation.benchmarks.declarations import LoadedBenchmark
from crossin_jax.languages import english_name

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
transformers = pytest.importorskip('transformers', reason='needs transformers of the extra `test`')
torch = pytest.importorskip('torch', reason='needs torch of the extra `test`')

_spec = importlib.util.spec_from_file_location(
  'export_loss', REPOSITORY / 'benchmarks' / 'export_loss.py'
)
export_loss = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(export_loss)

ITEMS, LANGUAGES = 12, ('en', 'zh', 'vi')


@pytest.fixture(scope='module')
def hf(tmp_path_factory, tiny_vocabulary):
  directory = str(tmp_path_factory.mktemp('evaluate') / 'hf')
  export_loss.make_model(
      directory, tiny_vocabulary.path, vocab_size=1200, hidden_size=32, intermediate_size=64,
      num_hidden_layers=2,
      num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, bos_token_id=1,
      eos_token_id=2,
      initializer_range=0.3,
  )  # fmt: skip
  return directory


@pytest.fixture(scope='module')
def files(tmp_path_factory, tiny_world):
  """Benchmarks of a dozen items: SeaEval's format over the tiny world, MGSM, XNLI."""
  folder = tmp_path_factory.mktemp('benchmarks')
  records = []
  for question in tiny_world.questions[:ITEMS]:
    record = {'id': question.id}
    for language in LANGUAGES:
      choices = [
        f'({letter}) {option[:3]} {language}' for letter, option in zip('ABCD', question.options)
      ]
      record[english_name(language)] = {
        'question': f'{question.id} {language}?', 'choices': choices,
        'answer': choices[len(records) % 4],
      }  # fmt: skip
    records.append(record)
  (folder / 'mmlu.json').write_text(json.dumps(records))
  for name in ('mgsm', 'xnli'):
    (folder / name).mkdir()
    for language in ('en', 'zh'):
      rows = [
        f'How many is {i}?\t{i}' if name == 'mgsm' else f'A {i}\tB\tneutral' for i in range(5)
      ]
      (folder / name / f'{name}_{language}.tsv').write_text('\n'.join(rows) + '\n')
  return folder


def _evaluate(hf, out, *flags):
  return cli.main(
    [
      'evaluate',
      '--checkpoint',
      hf,
      '--output_dir',
      str(out),
      "--gin.DecoderConfig.dtype='float32'",
      *flags,
    ]
  )


@pytest.mark.parametrize('method', ['likelihood', 'generate'])
def test_a_damaged_model_answers_nothing(hf, files, tmp_path, capsys, method):
  damaged = tmp_path / 'damaged'
  shutil.copytree(hf, damaged)
  (weights,) = damaged.glob('*.safetensors')
  tensors = safetensors.numpy.load_file(weights)
  name = next(name for name in tensors if name.endswith('mlp.down_proj.weight'))
  tensors[name][0, 0] = np.nan
  safetensors.numpy.save_file(tensors, weights, metadata={'format': 'pt'})
  benchmark = f'cross_mmlu={files / "mmlu.json"}'
  flags = ('--benchmark', benchmark, f'--methods={method}')
  assert _evaluate(str(damaged), tmp_path / 'out', *flags) == 1
  said = capsys.readouterr().err
  assert re.search(r"cross_mmlu, item '[^']+' in \w+: the log\S+ .*not finite.*dtype", said)
  assert 'Traceback' not in said and not (tmp_path / 'out' / 'results.json').exists()


def test_nothing_to_measure_is_said(hf, tmp_path, capsys):
  assert cli.main(['evaluate', '--checkpoint', hf, '--output_dir', str(tmp_path / 'out')]) == 0
  assert 'nothing was measured: give --benchmark' in capsys.readouterr().err


def test_benchmarks_on_a_directory(hf, files, tmp_path, capsys, tiny_vocabulary):
  mmlu = str(files / 'mmlu.json')
  assert (
    _evaluate(hf, tmp_path, '--benchmark', f'cross_mmlu={mmlu}', '--prompts=1,2,5', '--json') == 0
  )
  runs = json.loads(capsys.readouterr().out.splitlines()[-1])['runs']
  assert runs == results.read_results(tmp_path / 'results.json')
  assert [(run['benchmark'], run['method'], run['items']) for run in runs] == [
    ('cross_mmlu', 'likelihood', ITEMS), ('cross_mmlu', 'generate', ITEMS),
  ]  # fmt: skip
  assert 'cross_mmlu' in (tmp_path / 'report.html').read_text()
  for run in runs:
    by_prompt = []
    for prompt in (1, 2, 5):
      file = tmp_path / 'predictions' / f'cross_mmlu.p{prompt}.{run["method"]}.jsonl'
      argv = [
        'score',
        '--task',
        'cross_mmlu',
        '--predictions',
        str(file),
        '--json',
        '--prompt',
        str(prompt),
      ]
      assert cli.main(argv) == 0
      by_prompt.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    for key in ('accuracy', 'unparsed_rate'):
      assert run[key] == np.median([one[key] for one in by_prompt])
    for key in ('consistency', 'ac3', 'pairwise_consistency', 'accuracy_by_language'):
      for name, value in run[key].items():
        assert value == pytest.approx(np.median([one[key][name] for one in by_prompt]), abs=1e-12)
    accuracies = [one['accuracy'] for one in by_prompt]
    assert run['prompts'] == {
      'median': np.median(accuracies),
      'min': min(accuracies),
      'max': max(accuracies),
    }
    assert run['prompt_figures']['ac3_3']['max'] == pytest.approx(
      max(one['ac3']['3'] for one in by_prompt)
    )
  # The choices are transformers': no template is known, so the prompt is plain text.
  model = transformers.AutoModelForCausalLM.from_pretrained(hf).eval()
  questions = LoadedBenchmark('cross_mmlu', mmlu).questions(5)[0]
  wanted = []
  for item in questions.rows:
    for row in item:
      losses = []
      for choice in row['choices']:
        before, after = pair_tokens(tiny_vocabulary, row['raw'], choice)
        tokens = torch.tensor([[1, *before, *after]])
        with torch.inference_mode():
          logits = model(tokens).logits[0, :-1].log_softmax(-1)
        losses.append(
          -float(logits[torch.arange(logits.shape[0]), tokens[0, 1:]][len(before) :].sum())
        )
      wanted.append(row['choices'][int(np.argmin(losses))])
  lines = (tmp_path / 'predictions' / 'cross_mmlu.p5.likelihood.jsonl').read_text().splitlines()
  assert [json.loads(line)['prediction'] for line in lines] == wanted
  assert len(set(text[:3] for text in wanted)) > 1


def test_open_answers_and_several_benchmarks(hf, files, tmp_path, capsys):
  argv = [
    '--benchmark',
    f'mgsm={files / "mgsm"}',
    '--benchmark',
    f'xnli={files / "xnli"}',
    '--limit=4',
    '--json',
  ]
  assert _evaluate(hf, tmp_path, *argv) == 0
  runs = {
    run['benchmark']: run for run in json.loads(capsys.readouterr().out.splitlines()[-1])['runs']
  }
  assert (
    runs['mgsm']['protocol'] == 'number'
    and runs['mgsm']['items'] == 4
    and runs['xnli']['method'] == 'likelihood'
  )
  saved = str(tmp_path / 'predictions' / 'mgsm.generate.jsonl')
  assert cli.main(['score', '--task', 'mgsm', '--predictions', saved, '--json']) == 0
  assert (
    json.loads(capsys.readouterr().out.splitlines()[-1])['accuracy'] == runs['mgsm']['accuracy']
  )
  assert (tmp_path / 'report.xnli.html').exists() and 'accuracy_norm' in runs['xnli']
  assert (
    _evaluate(hf, tmp_path / 'b', '--benchmark', f'xnli={files / "xnli"}', '--methods=generate')
    == 0
  )
  assert 'not asked' in capsys.readouterr().err
  assert (
    cli.main(['evaluate', '--checkpoint', hf, '--output_dir', 'x', '--benchmark', 'xnil=y']) == 2
  )
  assert 'NAME=PATH' in capsys.readouterr().err


def test_pairs_are_divided_as_the_harness_does(tiny_vocabulary):
  pytest.importorskip('lm_eval', reason='lm_eval is not installed (pip install lm-eval)')
  from lm_eval.api.model import TemplateLM

  class Harness(TemplateLM):
    backend, tokenizer_name, eot_token_id = 'causal', '', 2
    tok_encode = staticmethod(lambda text, **_: tiny_vocabulary.encode(text))
    _loglikelihood_tokens = loglikelihood_rolling = generate_until = None

  Harness.__abstractmethods__ = frozenset()
  harness = Harness()
  for context in ('What is it?\nAnswer:', 'Answer:\n', 'The man ', 'x  \n', '问题: '):
    for continuation in (' seven', 'seven', '(A) one', '七'):
      assert pair_tokens(tiny_vocabulary, context, continuation) == harness._encode_pair(
        context, continuation
      )


def test_a_benchmark_in_training_chooses_the_checkpoint(hf, files, tiny_prepared, tmp_path):
  directory, mixture = tiny_prepared
  run = tmp_path / 'run'
  values = {
      'HF_DIR': hf, 'DATA_DIR': directory, 'MODEL_DIR': str(run), 'MIXTURE_OR_TASK_NAME': mixture,
      'BATCH_SIZE': 4,
      'LENGTH': 64, 'DecoderConfig.dtype': 'float32', 'DecoderConfig.remat': 'none',
      'TRAIN_STEPS': 4, 'schedule.peak': 3e-2,
      'train.evaluation_period': 1, 'LoraConfig.base_dtype': 'float32', 'LoraConfig.rank': 4,
      'CheckpointConfig.period': 1,
      'BenchmarkEvaluator.benchmark': 'cross_mmlu',
      'BenchmarkEvaluator.path': str(files / 'mmlu.json'),
      'CheckpointConfig.best_metric': 'eval/cross_mmlu/ac3_3', 'CheckpointConfig.best_mode': 'max',
      'CheckpointConfig.keep': 1,
  }  # fmt: skip
  arguments = ['train', '--gin_file=gin_configs/runs/crossin_lora.gin', '--gin.train.epochs=None']
  arguments += [f'--gin.{name}={value!r}' for name, value in values.items()]
  assert cli.main([*arguments, '--gin.train.evaluators=(@BenchmarkEvaluator(),)']) == 0
  rows = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
  figures = {row['step']: row for row in rows if 'eval/cross_mmlu/ac3_3' in row}
  assert sorted(figures) == [1, 2, 3, 4]
  assert all(
    row['eval/cross_mmlu/items'] == ITEMS and len(row['eval/cross_mmlu/accuracy_by_language']) == 3
    for row in figures.values()
  )
  highest = max(row['eval/cross_mmlu/ac3_3'] for row in figures.values())
  best = {step for step, row in figures.items() if row['eval/cross_mmlu/ac3_3'] == highest}
  kept = sorted(
    int(name.split('_')[1]) for name in os.listdir(run) if name.startswith('checkpoint_')
  )
  assert best & set(kept) and 4 in kept and len(kept) <= 2


def test_languages_with_items_of_their_own(hf, tmp_path):
  """INCLUDE: a run has the figures of each language by itself, and no consistency."""
  for name, items in (('Hindi', 3), ('Thai', 5)):
    (tmp_path / 'include' / name).mkdir(parents=True)
    rows = [
      {'question': f'{name} {i}?', 'answer': i % 4}
      | {f'option_{letter}': f'{letter}{i} {name}' for letter in 'abcd'}
      for i in range(items)
    ]
    (tmp_path / 'include' / name / 'test.jsonl').write_text('\n'.join(map(json.dumps, rows)))

  def run(out, *more):
    command = ['evaluate', '--checkpoint', hf, '--output_dir', str(tmp_path / out), *more]
    assert cli.main([*command, '--benchmark', f'include={tmp_path / "include"}']) == 0
    [run] = results.read_results(tmp_path / out / 'results.json')
    return run

  both = run('both')
  assert both['consistency'] == {} and both['items'] == 5
  for code in ('hi', 'th'):
    alone = run(code, '--languages', code)
    assert both['accuracy_by_language'][code] == alone['accuracy']
    assert both['accuracy_norm_by_language'][code] == alone['accuracy_norm']
  assert both['accuracy'] == pytest.approx(np.mean(list(both['accuracy_by_language'].values())))
  names = sorted(os.listdir(tmp_path / 'both' / 'predictions'))
  assert names == ['include.hi.likelihood.jsonl', 'include.th.likelihood.jsonl']
  evaluator = evaluators.BenchmarkEvaluator('include', str(tmp_path / 'include'), hf)
  assert evaluator.figures() == [
    'eval/include/accuracy', 'eval/include/unparsed_rate', 'eval/include/items',
  ]  # fmt: skip


def test_the_budget_settles_the_items_once(hf, files, monkeypatch):
  from crossin_jax.evaluation.questions import Questions

  asked = []
  rows = [
    [{'prompt': '', 'choices': ['a', 'b'], 'answer': 0, 'language': 'en'}] for _ in range(100)
  ]
  questions = Questions('x', [str(i) for i in range(100)], ['en'], rows)

  def answer(model, params, partition, part, prompts, methods):
    asked.append(part.ids)
    losses = [[np.array([0.0, 1.0])] for _ in part.ids]
    return {'likelihood': evaluators.Answers([['a'] for _ in part.ids], losses)}

  monkeypatch.setattr(evaluators, 'answer_questions', answer)
  clock = iter([0.0, 1.0, 2.0, 30.0, *[1e9] * 50])
  # not the module's own function, which threads of other tests call too
  monkeypatch.setattr(evaluators, 'time', types.SimpleNamespace(monotonic=lambda: next(clock)))
  evaluator = evaluators.BenchmarkEvaluator('xnli', 'x', 'y', seconds=10)
  evaluator._forms, evaluator._prompts = lambda: [questions], lambda: None
  first = dict(evaluator(None, None, None))
  # the third slice ran over the budget
  assert first['eval/xnli/items'] == 96 and first['eval/xnli/accuracy'] == 1.0
  before = [i for part in asked for i in part]
  asked.clear()
  # no time at all is left now: the same items nevertheless
  again = dict(evaluator(None, None, None))
  assert (
    again['eval/xnli/items'] == 96
    and [i for part in asked for i in part] == before
    and before != sorted(before)
  )


@pytest.mark.parametrize('name', ['cross_mmlu', 'mgsm', 'xnli'])
def test_an_evaluator_names_the_numbers_that_it_yields(hf, files, name, monkeypatch):
  path = files / {'cross_mmlu': 'mmlu.json'}.get(name, name)
  evaluator = evaluators.BenchmarkEvaluator(name, str(path), hf)
  named = evaluator.figures()
  loaded = evaluators.LoadedBenchmark(name, str(path)).questions()
  size = min(3, len(loaded[0].languages))
  assert {f'eval/{name}/{figure}' for figure in ('accuracy', 'items', f'ac3_{size}')} <= set(named)

  def answer(model, params, partition, part, prompts, methods):
    if methods == ('generate',):
      return {'generate': evaluators.Answers([['12'] * len(part.languages) for _ in part.ids])}
    losses = [[np.arange(len(row['choices']), dtype=float) for row in item] for item in part.rows]
    texts = [[row['choices'][0] for row in item] for item in part.rows]
    return {'likelihood': evaluators.Answers(texts, losses)}

  monkeypatch.setattr(evaluators, 'answer_questions', answer)
  evaluator._prompts = lambda: None
  found = dict(evaluator(None, None, None))
  assert sorted(named) == sorted(key for key in found if not isinstance(found[key], dict))


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'path': 'nowhere'}, 'nowhere'),
    ({'benchmark': 'xnli', 'path': 'nowhere'}, 'nowhere does not exist'),
    ({'benchmark': 'cross_mmlus'}, "no benchmark 'cross_mmlus'; choose one of"),
    ({'languages': ('en', 'fi')}, 'fi'),
    ({'prompt': 99}, 'has prompts 1 to'),
    ({'method': 'guess'}, "method = 'guess' is not one of"),
    ({'benchmark': 'mgsm', 'path': 'mgsm', 'method': 'likelihood'}, 'supports generation only'),
    ({'benchmark': 'xnli', 'path': 'xnli', 'split': 'dev'}, 'dev'),
  ],
  ids=str,
)
def test_a_benchmark_that_cannot_be_evaluated_says_so_at_once(files, settings, message):
  given = {'benchmark': 'cross_mmlu', 'path': 'mmlu.json', **settings}
  given['path'] = str(files / given['path'])
  with pytest.raises((OSError, ValueError), match=message):
    evaluators.BenchmarkEvaluator(model_dir='x', **given).figures()


def test_a_question_file_that_cannot_be_evaluated_says_so_at_once(tmp_path):
  missing = evaluators.QuestionsEvaluator(str(tmp_path / 'q.jsonl'), 'x')
  with pytest.raises((OSError, ValueError), match='q.jsonl'):
    missing.figures()
  row = {'instruction': '?', 'choices': ['a', 'b'], 'answer': 0}
  lines = [json.dumps({'id': '1', 'language': code} | row) for code in ('en', 'zh')]
  (tmp_path / 'q.jsonl').write_text('\n'.join(lines))
  assert missing.figures() == [
    f'eval/questions/{figure}' for figure in ('accuracy', 'unparsed_rate', 'consistency_2', 'ac3_2')
  ]
  (tmp_path / 'r.jsonl').write_text(lines[0] + '\n{"id": "2"}\n')
  with pytest.raises(ValueError, match='r.jsonl, line 2'):
    evaluators.QuestionsEvaluator(str(tmp_path / 'r.jsonl'), 'x').figures()
