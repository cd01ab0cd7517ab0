"""`crossin harness` against `lm_eval --model hf` on the same directory: every figure and answer."""

import importlib.util
import json
import pathlib
import sys

import numpy as np
import pytest
import small_models

from crossin_jax import cli
from crossin_jax.evaluation import results
from crossin_jax.evaluation.harness.tasks import language_of
from crossin_jax.evaluation.measures.rankc import rankc_of_item

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
transformers = pytest.importorskip('transformers', reason='needs transformers of the extra `test`')
lm_eval = pytest.importorskip('lm_eval', reason='needs lm-eval of the extra `test`')

_spec = importlib.util.spec_from_file_location(
  'harness_tasks', REPOSITORY / 'benchmarks' / 'harness_tasks.py'
)
harness_tasks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(harness_tasks)

ITEMS, LONGEST = 6, 160
TEMPLATE = (
  "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
  "{{ raise_exception('no system role') }}{% endif %}"
  "<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
  '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)
SPECIALS = ['<s>', '</s>', '<unk>', '<|im_start|>', '<|im_end|>']


def make_model(folder, bos='<s>', **changes):
  """A random Llama with a byte-level tokenizer."""
  config = {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}
  ids = small_models.write_tokenizer(folder, SPECIALS, config, TEMPLATE, bos=bos)
  small_models.write_model(
    folder, vocab_size=1 + max(ids.values()), max_position_embeddings=LONGEST,
    bos_token_id=ids['<s>'], eos_token_id=ids['</s>'],
    **changes,
  )  # fmt: skip
  return str(folder)


@pytest.fixture(scope='module')
def hf(tmp_path_factory):
  return make_model(tmp_path_factory.mktemp('harness') / 'llama')


@pytest.fixture(scope='module')
def tasks(tmp_path_factory):
  """A folder of tasks and their names."""
  folder = str(tmp_path_factory.mktemp('tasks'))
  stops = {'mgsm_direct_en': ['e', 'ời'], 'mgsm_direct_de': ['河', 'er ']}
  return folder, harness_tasks.write_tasks(folder, ITEMS, passage=30, max_gen_toks=24, stops=stops)


@pytest.fixture(autouse=True, scope='module')
def _no_environment():
  """The harness describes the machine with pip and nvidia-smi, in seconds."""
  import lm_eval.evaluator

  patch = pytest.MonkeyPatch()
  patch.setattr(lm_eval.evaluator, 'add_env_info', lambda storage: None)
  yield
  patch.undo()


def theirs(hf, tasks, names=None, model_args=None, **options):
  """Results of `--model hf`."""
  from lm_eval.tasks import TaskManager

  return lm_eval.simple_evaluate(
    model='hf', model_args={'pretrained': hf, 'dtype': 'float32', **(model_args or {})},
    tasks=names or tasks[1], task_manager=TaskManager(include_path=tasks[0], include_defaults=False), device='cpu',
    batch_size=1, log_samples=True, bootstrap_iters=0, **options,
  )  # fmt: skip


def ours(hf, tasks, out, *flags, names=None, status=0):
  """Runs `crossin harness` with samples; returns its files: (results of the harness, samples)."""
  found = cli.main([
    'harness', f'--checkpoint={hf}', f'--include_path={tasks[0]}',
    f'--tasks={",".join(names or tasks[1])}', f'--output_dir={out}', '--log_samples',
    "--gin.DecoderConfig.dtype='float32'", '--gin.HarnessBatches.length=160',
    '--gin.HarnessBatches.rows=4', '--gin.Generator.rows=8', *flags,
  ])  # fmt: skip
  assert found == status
  if status:
    return None
  newest = sorted(pathlib.Path(out).glob('*/results_*.json'))[-1]
  date = newest.stem.removeprefix('results_')
  samples = {
    name: [json.loads(line) for line in open(newest.parent / f'samples_{name}_{date}.jsonl')]
    for name in json.loads(newest.read_text())['configs']
  }
  return json.loads(newest.read_text()), samples


def compare(own, samples, other):
  """Figures, log-probabilities and texts."""
  for name, figures in other['results'].items():
    for key, value in figures.items():
      if 'stderr' in key or not isinstance(value, (int, float)):
        continue
      approximate = 'perplexity' in key or 'bits' in key
      assert own['results'][name][key] == pytest.approx(value, rel=1e-4 if approximate else 0), (
        name,
        key,
      )
  number = 0
  for name, rows in other['samples'].items():
    assert len(rows) == len(samples[name])
    for row, mine in zip(rows, samples[name]):
      assert row['doc_id'] == mine['doc_id'] and row['prompt_hash'] == mine['prompt_hash']
      for theirs_, mine_ in zip(row['resps'], mine['resps']):
        number += 1
        if isinstance(theirs_[0], str):
          assert mine_[0] == theirs_[0], name
        elif isinstance(theirs_[0], float):
          assert float(mine_[0]) == pytest.approx(theirs_[0], abs=1e-3), name
        else:
          assert float(mine_[0][0]) == pytest.approx(theirs_[0][0], abs=1e-3), name
          assert str(mine_[0][1]) == str(theirs_[0][1]), name
  return number


@pytest.fixture(scope='module')
def run(hf, tasks, tmp_path_factory):
  """The output directory of a run on all tasks, with its files."""
  out = tmp_path_factory.mktemp('run') / 'out'
  # Rows of 64, 128 and 256 tokens.
  return out, *ours(hf, tasks, out, '--gin.HarnessBatches.length=64')


def test_every_figure_and_answer_is_that_of_hf(hf, tasks, run):
  _, own, samples = run
  other = theirs(hf, tasks)
  assert compare(own, samples, other) > 200
  english, german = (
    [row['resps'][0][0] for row in samples[f'local_mgsm_direct_{code}']] for code in ('en', 'de')
  )
  # Each has its own stop texts, and they are found.
  assert not any('e' in text for text in english) and any('河' in text for text in english)
  assert not any('河' in text for text in german) and any('e' in text for text in german)
  assert len({len(text) for text in german}) > 2


def test_languages_beside_each_other(run):
  """results.json has the accuracies of the harness, and consistency where items are the same."""
  out, own, samples = run
  runs = {
    (one['benchmark'], one['protocol']): one for one in results.read_results(out / 'results.json')
  }
  of = lambda name, protocol='strict': runs[f'lm_eval:local_{name}', protocol]
  for name, languages in {
    'xcopa': {'et': 'xcopa_et', 'id': 'xcopa_id', 'th': 'xcopa_th'},
    'belebele': {
      'en': 'belebele_eng_Latn',
      'et': 'belebele_est_Latn',
      'zh-Hant': 'belebele_zho_Hant',
    },
    'global_mmlu_stem': {'en': 'global_mmlu_en_stem', 'de': 'global_mmlu_de_stem'},
    'include_base_44_stem': {
      'sq': 'include_base_44_albanian_stem',
      'et': 'include_base_44_estonian_stem',
    },
  }.items():
    wanted = {
      language: own['results'][f'local_{task}']['acc,none'] for language, task in languages.items()
    }
    assert of(name)['accuracy_by_language'] == pytest.approx(wanted)
    assert set(of(name)['consistency']) == {str(s) for s in range(2, len(languages) + 1)} - (
      {'2'} if name.startswith('include') else set()
    )
    record = (
      json.loads((out / 'predictions' / f'local_{name}.likelihood.json').read_text())
      if (of(name)['consistency'])
      else None
    )
    if record:
      first, second = list(languages)[:2]
      at = [record['languages'].index(code) for code in (first, second)]
      pair = ','.join(record['languages'][i] for i in sorted(at))
      items = [[-np.array(item[i]) for i in at] for item in record['log_probabilities']]
      expected = np.mean([rankc_of_item(*item) for item in items])
      np.testing.assert_allclose(of(name)['rankc'][pair], expected)
  norm = of('belebele')['accuracy_norm_by_language']
  assert norm['en'] == own['results']['local_belebele_eng_Latn']['acc_norm,none']
  mgsm = of('mgsm_direct', 'flexible-extract')
  assert mgsm['method'] == 'generate' and set(mgsm['consistency']) == {'2'}
  figures = own['results']['local_mgsm_direct_de']
  assert mgsm['accuracy_by_language']['de'] == figures['exact_match,flexible-extract']

  record = json.loads((out / 'predictions' / 'local_xcopa.likelihood.json').read_text())
  assert record['aligned_by'] == 'idx' and record['languages'] == ['id', 'th', 'et']
  scores = np.array(record['log_probabilities'])
  assert scores.shape == (ITEMS, 3, 2)
  np.testing.assert_array_equal(scores.argmax(axis=2), record['choices'])
  saved = [row['filtered_resps'] for row in samples['local_xcopa_th']]
  np.testing.assert_allclose(
    [[float(ll) for ll, _ in row] for row in saved], scores[:, 1], rtol=1e-6
  )
  compared = out.parent / 'compared'
  assert cli.main(['compare', str(out), str(out), f'--output_dir={compared}']) == 0
  pairs = json.loads((compared / 'compare.json').read_text())['comparisons']
  found = {pair['benchmark']: pair['measures']['accuracy']['a']['value'] for pair in pairs}
  assert found['local_xcopa'] == pytest.approx(of('xcopa')['accuracy'])
  assert found['local_global_mmlu_stem'] == pytest.approx(of('global_mmlu_stem')['accuracy'])

  aligned = {
    path.name: json.loads(path.read_text())['aligned_by'] for path in out.glob('predictions/*.json')
  }
  assert aligned['local_belebele.likelihood.json'] == 'link and question_number'
  assert aligned['local_global_mmlu_stem.likelihood.json'] == 'sample_id'
  assert aligned['local_xnli.likelihood.json'] == 'position'
  assert 'local_include_base_44_stem.likelihood.json' not in aligned


def test_a_run_that_was_killed_asks_what_is_missing(hf, tasks, run, tmp_path, monkeypatch, capsys):
  from crossin_jax.decoding import schedule, scoring

  out, own, samples = run
  again = tmp_path / 'out'
  again.mkdir()
  lines = (out / 'answers.jsonl').read_text().splitlines(keepends=True)
  kept = lines[: len(lines) // 2]
  # In the middle of a line, as a kill leaves it.
  (again / 'answers.jsonl').write_text(''.join(kept) + lines[len(kept)][:20])
  manifest = json.loads((out / 'answers.jsonl.run.json').read_text())
  (again / 'answers.jsonl.run.json').write_text(json.dumps(manifest))
  asked = []
  leaves, init = scoring._leaves, schedule.Schedule.__init__
  monkeypatch.setattr(
    scoring, '_leaves', lambda prefixes, *a: asked.append(len(prefixes)) or leaves(prefixes, *a)
  )
  monkeypatch.setattr(
    schedule.Schedule,
    '__init__',
    lambda self, prompts, *a, **k: asked.append(len(prompts)) or init(self, prompts, *a, **k),
  )
  mine, answers = ours(hf, tasks, again)
  for name, figures in own['results'].items():
    assert mine['results'][name] == pytest.approx(figures) if 'wikitext' not in name else True
  for name, rows in samples.items():
    assert [row['prompt_hash'] for row in rows] == [row['prompt_hash'] for row in answers[name]]
  assert sorted(
    map(len, [json.loads(line)['index'] for line in open(again / 'answers.jsonl')])
  ) == [64] * len(lines)
  windows = sum(asked) - (len(lines) - len(kept))  # of texts longer than the model reads
  assert 0 <= windows < 30

  asked.clear()
  capsys.readouterr()
  ours(hf, tasks, again, '--json')
  assert asked == []
  said = capsys.readouterr()
  assert 'harness loglikelihood: request' in said.err
  printed = json.loads(said.out.splitlines()[-1])
  assert printed['runs'] == results.read_results(again / 'results.json')
  assert printed['results']['local_xcopa_et'] == mine['results']['local_xcopa_et']

  assert cli.main(['harness', f'--checkpoint={hf}', f'--include_path={tasks[0]}',
    '--tasks=local_xcopa_et', f'--output_dir={again}', '--max_length=64']) == 1  # fmt: skip
  said = capsys.readouterr().err
  assert 'max_length was 160, now 64' in said and 'Traceback' not in said


def test_a_stop_signal_keeps_what_is_answered(hf, tasks, run, tmp_path, monkeypatch, capsys):
  from crossin_jax.decoding import scoring
  from crossin_jax.errors import Interrupted

  calls = []

  def check():
    calls.append(None)
    if len(calls) > 2:
      raise Interrupted

  monkeypatch.setattr(scoring.interruption, 'check', check)
  names = [name for name in tasks[1] if 'belebele' in name]
  ours(hf, tasks, tmp_path, '--gin.HarnessBatches.length=64', names=names, status=75)
  assert 'start the same command again to continue' in capsys.readouterr().err
  assert 0 < len((tmp_path / 'answers.jsonl').read_text().splitlines()) < 3 * ITEMS * 4


def test_a_checkpoint_of_this_project(hf, tasks, run, tmp_path):
  """An imported MODEL_DIR, on a mesh with tensor parallelism."""
  assert cli.main(['import-hf', hf, f'--output_dir={tmp_path / "imported"}']) == 0
  names = ['local_xcopa_id', 'local_mgsm_direct_de', 'local_wikitext']
  mesh = '--gin.Partitioner.mesh_shape=(1,2,2)'
  own, samples = ours(str(tmp_path / 'imported'), tasks, tmp_path / 'out', mesh, names=names)
  other = {'results': {name: run[1]['results'][name] for name in names}, 'samples': {}}
  compare(own, samples, other)
  for name in names:
    for row, mine in zip(run[2][name], samples[name]):
      for resps, own_resps in zip(row['resps'], mine['resps']):
        if 'xcopa' in name:
          resps, own_resps = resps[0], own_resps[0]
        if 'mgsm' in name:
          assert resps == own_resps
        else:
          assert float(own_resps[0]) == pytest.approx(float(resps[0]), abs=1e-3)


def test_an_adapter(hf, tasks, tmp_path):
  """A PEFT directory on its base, against `--model hf` with `peft=`."""
  peft = pytest.importorskip('peft', reason='needs peft of the extra `test`')
  torch = pytest.importorskip('torch', reason='needs torch of the extra `test`')
  base = transformers.AutoModelForCausalLM.from_pretrained(hf)
  adapted = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=['q_proj', 'down_proj']))
  torch.manual_seed(1)
  with torch.no_grad():
    for name, p in adapted.named_parameters():
      if 'lora_' in name:
        p.copy_(torch.randn_like(p) * 0.3)
  adapted.save_pretrained(tmp_path / 'adapter')
  names = ['local_xcopa_id', 'local_mgsm_direct_de']
  own, samples = ours(str(tmp_path / 'adapter'), tasks, tmp_path / 'out', names=names)
  other = theirs(hf, tasks, names, {'peft': str(tmp_path / 'adapter')})
  assert compare(own, samples, other) > 10


@pytest.mark.slow
def test_two_processes(hf, tasks, run, tmp_path):
  """The chief writes; a run that is continued asks for the same in both."""
  from many_processes import Processes, said

  starter = Processes('', '', str(tmp_path / 'compiled'))
  names = ['local_xcopa_id', 'local_mgsm_direct_de']
  out = tmp_path / 'out'
  out.mkdir()
  lines = (run[0] / 'answers.jsonl').read_text().splitlines(keepends=True)
  (out / 'answers.jsonl').write_text(''.join(lines[::3]))
  manifest = (run[0] / 'answers.jsonl.run.json').read_text()
  (out / 'answers.jsonl.run.json').write_text(manifest)
  command = [
    'harness', f'--checkpoint={hf}', f'--include_path={tasks[0]}', f'--tasks={",".join(names)}',
    f'--output_dir={out}', '--log_samples', "--gin.DecoderConfig.dtype='float32'",
    '--gin.HarnessBatches.length=160', '--gin.Generator.rows=8',
  ]  # fmt: skip
  running = starter.start_command(command, tmp_path / 'log', 2, devices=2)
  statuses = [process.wait(300) for process in running]
  assert statuses == [0, 0], said(tmp_path / 'log', 0)[-2000:] + said(tmp_path / 'log', 1)[-2000:]
  (path,) = out.glob('*/results_*.json')
  own = json.loads(path.read_text())['results']
  for name in names:
    for key, value in run[1]['results'][name].items():
      if isinstance(value, float):
        assert own[name][key] == pytest.approx(value), (name, key)


CHAT = {'apply_chat_template': True, 'num_fewshot': 2, 'system_instruction': 'Be brief.'}


@pytest.mark.parametrize('multiturn', [True, False])
def test_chat_few_shots_and_truncation(hf, tasks, tmp_path, multiturn):
  """Contexts are longer than the model reads here; the template refuses the system role."""
  names = [
    'local_xcopa_et',
    'local_mgsm_direct_en',
    'local_xwinograd_fr',
    'local_belebele_eng_Latn',
  ]
  flag = '--fewshot_as_multiturn' if multiturn else '--no-fewshot_as_multiturn'
  flags = [
    '--apply_chat_template',
    flag,
    '--num_fewshot=2',
    '--system_instruction=Be brief.',
    '--limit=3',
  ]
  own, samples = ours(hf, tasks, tmp_path, *flags, names=names)
  other = theirs(hf, tasks, names, fewshot_as_multiturn=multiturn, limit=3, **CHAT)
  assert compare(own, samples, other) > 20
  prompt = samples['local_mgsm_direct_en'][0]['arguments']['gen_args_0']['arg_0']
  assert prompt.startswith('<s><|im_start|>user') and 'Be brief' not in prompt


@pytest.mark.parametrize('add_bos', [True, False])
def test_bos_is_added_or_not(tasks, tmp_path, add_bos):
  """Against the tokenizer's own habit: one without BOS gets it, one with BOS loses it."""
  model = make_model(tmp_path / 'model', bos=None if add_bos else '<s>')
  names = ['local_xnli_de', 'local_belebele_eng_Latn', 'local_wikitext']
  flags = [f'--add_bos_token={str(add_bos).lower()}', '--limit=2']
  own, samples = ours(model, tasks, tmp_path / 'out', *flags, names=names)
  other = theirs(model, tasks, names, {'add_bos_token': add_bos}, limit=2)
  assert compare(own, samples, other) > 10


def test_a_sentencepiece_directory(tasks, tmp_path, tiny_vocabulary):
  """transformers reads texts that begin with a space in another way than SentencePiece."""
  import shutil

  folder = tmp_path / 'model'
  small_models.write_model(
    folder, vocab_size=1200, bos_token_id=1, eos_token_id=2, max_position_embeddings=LONGEST
  )
  shutil.copyfile(tiny_vocabulary.path, folder / 'tokenizer.model')
  names = {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}
  small_models.write_json(
    folder / 'tokenizer_config.json',
    {'tokenizer_class': 'LlamaTokenizer', 'add_bos_token': True, **names},
  )
  names = ['local_xnli_de', 'local_xcopa_id', 'local_mgsm_direct_de']
  own, samples = ours(str(folder), tasks, tmp_path / 'out', '--limit=2', names=names)
  assert compare(own, samples, theirs(str(folder), tasks, names, limit=2)) > 10


def test_as_a_model_of_lm_eval(hf, tasks, tmp_path, monkeypatch, capsys):
  """`lm_eval --model crossin` has the answers of `crossin harness`; sampled texts too."""
  from crossin_jax.evaluation.harness import run as lm_eval_command

  names = ['local_xcopa_et', 'local_mgsm_direct_en']
  sampled = 'do_sample=True,temperature=0.8,top_p=0.9,max_gen_toks=12'
  own, samples = ours(
    hf, tasks, tmp_path / 'own', f'--gen_kwargs={sampled}', '--limit=4', names=names
  )
  monkeypatch.setattr(sys, 'argv', [
    'lm_eval', '--model', 'crossin', '--model_args', f'path={hf},dtype=float32,decode_rows=8',
    '--tasks', ','.join(names), '--include_path', tasks[0], '--limit', '4', '--gen_kwargs', sampled,
    '--output_path', str(tmp_path / 'theirs'), '--log_samples',
  ])  # fmt: skip
  monkeypatch.setattr('lm_eval.tasks.manager.Path', _only(tasks[0]))
  assert lm_eval_command.main() == 0
  assert 'local_xcopa_et' in capsys.readouterr().out
  for name in names:
    (path,) = (tmp_path / 'theirs').glob(f'*/samples_{name}_*.jsonl')
    rows = sorted(map(json.loads, open(path)), key=lambda row: (row['doc_id'], row['filter']))
    mine = sorted(samples[name], key=lambda row: (row['doc_id'], row['filter']))
    assert len(rows) == len(mine) >= 4
    for row, own_row in zip(rows, mine):
      for resps, own_resps in zip(row['resps'], own_row['resps']):
        if name == 'local_xcopa_et':
          assert float(resps[0][0]) == pytest.approx(float(own_resps[0][0]), abs=1e-3)
        else:
          assert resps == own_resps
  greedy = ours(hf, tasks, tmp_path / 'greedy', '--limit=4', names=names)[1]
  text = lambda found: [row['resps'][0][0] for row in found['local_mgsm_direct_en']]
  assert text(greedy) != text(samples)


def _only(folder):
  """The harness' own 14,000 tasks take ten seconds to read."""
  import types

  return lambda path: (
    types.SimpleNamespace(parent=pathlib.Path(folder))
    if 'lm_eval' in str(path)
    else pathlib.Path(path)
  )


@pytest.mark.parametrize('flags, said', [
    (['--tasks=local_xcopa_ett'], "no task, group or tag is called 'local_xcopa_ett'; did you mean local_xcopa_et"),
    (['--tasks=remote'], "task 'remote' cannot be loaded: .*on the Hugging Face hub"),
    (['--tasks=broken'], "task 'broken' cannot be loaded: .*nowhere.jsonl.*check the YAML file"),
    (['--include_path=/nowhere'], '--include_path /nowhere is not a folder'),
    (['--checkpoint=/nowhere'], '/nowhere'),
    (['--fewshot_as_multiturn'], 'needs --apply_chat_template'),
    (['--max_length=20', '--tasks=local_mgsm_direct_en'], 'asks for 24 new tokens, and the model reads 20'),
    (['--tasks=local_mgsm_direct_en', '--gen_kwargs=num_beams=4'], 'num_beams = 4, which this decoder does not know'),
    (['--tasks=local_mgsm_direct_en', '--gen_kwargs=do_sample=True,temperature=-1'], 'temperature'),
    (['--tasks=fields'], 'lm-evaluation-harness failed: UndefinedError: .*nothing.*Check the YAML file'),
    (['--limit=0'], '--limit 0.0: give more than 0'),
    (['--num_fewshot=-1'], '--num_fewshot -1: give at least 0'),
    (['--max_length=2'], 'has .* tokens, more than max_length = 2'),
])  # fmt: skip
def test_rubbish(hf, tasks, tmp_path, capsys, monkeypatch, flags, said):
  import re

  import datasets
  import huggingface_hub
  import lm_eval.tasks

  monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)  # no minutes of new attempts
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
  folder = tmp_path / 'more'
  folder.mkdir()
  for path in pathlib.Path(tasks[0]).glob('*.yaml'):
    (folder / path.name).write_text(path.read_text())
  plain = {
    'output_type': 'generate_until',
    'doc_to_text': 'a',
    'doc_to_target': 'b',
    'test_split': 'test',
  }
  (folder / 'remote.yaml').write_text(
    json.dumps(plain | {'task': 'remote', 'dataset_path': 'nobody/nothing'})
  )
  files = {'data_files': {'test': '/nowhere.jsonl'}}
  (folder / 'broken.yaml').write_text(
    json.dumps(plain | {'task': 'broken', 'dataset_path': 'json', 'dataset_kwargs': files})
  )
  fields = json.loads((folder / 'local_xcopa_et.yaml').read_text())
  (folder / 'fields.yaml').write_text(
    json.dumps(
      fields | {'task': 'fields', 'doc_to_text': '{{ premise if idx == 0 else nothing.at_all }}'}
    )
  )
  monkeypatch.setattr(
    lm_eval.tasks.TaskManager, '__init__',
    lambda self, init=lm_eval.tasks.TaskManager.__init__, **options: init(self, **options | {'include_defaults': False}),
  )  # fmt: skip
  status = cli.main([
    'harness', f'--checkpoint={hf}', f'--include_path={folder}', '--tasks=local_xcopa_et',
    f'--output_dir={tmp_path / "out"}', *flags,
  ])  # fmt: skip
  error = capsys.readouterr().err
  assert status in (1, 2) and 'Traceback' not in error
  assert re.search(f'^crossin harness: .*{said}', error, re.MULTILINE), error
  assert not (tmp_path / 'out' / 'results.json').exists()


@pytest.mark.parametrize('name, dataset, wanted', [
    ('xcopa_et', 'et', ('xcopa', 'et')),
    ('belebele_zho_Hant', 'zho_Hant', ('belebele', 'zh-Hant')),
    ('belebele_zho_Hans', 'zho_Hans', ('belebele', 'zh')),
    ('belebele_acm_Arab', 'acm_Arab', ('belebele', 'acm-Arab')),
    ('global_mmlu_full_am_virology', 'am', ('global_mmlu_full_virology', 'am')),
    ('include_base_44_north_macedonian_stem', 'North Macedonian', ('include_base_44_stem', 'mk')),
    ('include_base_44_greek_few_shot_en_stem', 'Greek', ('include_base_44_few_shot_en_stem', 'el')),
    ('xwinograd_jp', 'jp', ('xwinograd', 'ja')),
    ('mgsm_direct_de', None, ('mgsm_direct', 'de')),
    ('arc_easy', 'ARC-Easy', ('arc_easy', 'und')),
    ('bigbench_cs_algorithms', None, ('bigbench_cs_algorithms', 'und')),
])  # fmt: skip
def test_language_of_a_task(name, dataset, wanted):
  assert language_of(name, dataset) == wanted
