"""Models by their name on the hub: trained from, resumed, evaluated, imported, exported."""

import json
import shutil

import pytest
import safetensors.numpy
from small_models import write_model, write_tokenizer

from crossin_jax import cli

pytest.importorskip('transformers', reason='needs transformers of the extra `test`')

CHAT = (
  "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
  '{% if add_generation_prompt %}<|assistant|>{% endif %}'
)


@pytest.fixture(scope='module')
def llama(tmp_path_factory, tiny_vocabulary):
  """A random Llama with the tiny world's tokenizer."""
  folder = tmp_path_factory.mktemp('models') / 'llama'
  write_model(folder, vocab_size=1200)
  shutil.copy(tiny_vocabulary.path, folder / 'tokenizer.model')
  (folder / 'pytorch_model.bin').write_bytes(b'not read')
  return folder


def train(prepared, model_dir, *flags, name='org/tiny', recipe='crossin_lora'):
  directory, mixture = prepared
  values = {
    'HF_DIR': name, 'DATA_DIR': directory, 'MODEL_DIR': str(model_dir),
    'MIXTURE_OR_TASK_NAME': mixture, 'BATCH_SIZE': 4, 'LENGTH': 64,
    'DecoderConfig.dtype': 'float32', 'DecoderConfig.remat': 'none', 'TRAIN_STEPS': 2,
    'LoraConfig.base_dtype': 'float32', 'LoraConfig.rank': 4, 'train.evaluation_period': 0,
    'train.evaluators': (), 'train.epochs': None,
  }  # fmt: skip
  arguments = ['train', f'--gin_file=gin_configs/runs/{recipe}.gin']
  arguments += [f'--gin.{name}={value!r}' for name, value in values.items()]
  return cli.main([*arguments, *flags])


def test_a_run(hub, llama, tiny_prepared, tmp_path, capsys):
  """Only the files that are needed are in the cache; another commit does not change the run."""
  needed = ('config.json', 'generation_config.json', 'model.safetensors', 'tokenizer.model')
  first, run = f'hf:org/tiny@{hub.add("org/tiny", llama, names=needed)}', tmp_path / 'run'
  assert train(tiny_prepared, run) == 0, capsys.readouterr().err
  text = (run / 'config.gin').read_text()
  assert f"'{first}'" in text and "'org/tiny'" not in text
  assert (run / 'huggingface' / 'config.json').is_file()

  hub.forget()
  other = tmp_path / 'other'
  shutil.copytree(llama, other)
  weights = safetensors.numpy.load_file(other / 'model.safetensors')
  doubled = {name: 2 * tensor for name, tensor in weights.items()}
  safetensors.numpy.save_file(doubled, other / 'model.safetensors', {'format': 'pt'})
  hub.add('org/tiny', other)
  assert train(tiny_prepared, run, '--gin.TRAIN_STEPS=3') == 0, capsys.readouterr().err
  assert (run / 'checkpoint_3').is_dir()
  assert f"'{first}'" in (run / 'config.gin').read_text()
  hub.forget()
  assert train(tiny_prepared, run, '--gin.TRAIN_STEPS=4', name='org/tiny@main') == 1
  assert 'the adapters were trained on hf:org/tiny@' in capsys.readouterr().err

  # What the run saved is enough to use it, without the flags of its start.
  hub.forget()
  out = tmp_path / 'adapter'
  assert cli.main(['export-hf', str(run), '--output_dir', str(out), '--format', 'peft']) == 0
  adapter = json.loads((out / 'adapter_config.json').read_text())
  assert adapter['base_model_name_or_path'] == 'org/tiny'
  assert f'hf:org/tiny@{adapter["revision"]}' == first
  hub.forget()
  hub.add('org/adapter', out)
  merged = tmp_path / 'merged'
  flags = ['export-hf', 'org/adapter', '--output_dir', str(merged), '--format', 'merged']
  assert cli.main(flags) == 0, capsys.readouterr().err
  assert (merged / 'model.safetensors').is_file()


def test_import_and_evaluate(hub, llama, tmp_path, capsys):
  hub.add('org/tiny', llama)
  assert cli.main(['import-hf', 'org/tiny', '--output_dir', str(tmp_path / 'imported')]) == 0
  assert (tmp_path / 'imported' / 'huggingface' / 'tokenizer.model').is_file()
  question = {'id': '0', 'language': 'en', 'instruction': '?', 'choices': ['a', 'b'], 'answer': 0}
  (tmp_path / 'questions.jsonl').write_text(json.dumps(question) + '\n')
  flags = ['--questions', str(tmp_path / 'questions.jsonl'), '--methods', 'likelihood']
  flags += ['--output_dir', str(tmp_path / 'evaluation'), '--gin.DecoderConfig.dtype="float32"']
  assert cli.main(['evaluate', '--checkpoint', 'hf:org/tiny', *flags]) == 0, capsys.readouterr().err
  results = json.loads((tmp_path / 'evaluation' / 'results.json').read_text())
  assert [run['variant'] for run in results['runs']] == ['tiny']


def test_answers_with_the_chat_template_of_the_name(hub, tmp_path, capsys):
  model = tmp_path / 'chat'
  specials = ['<|user|>', '<|assistant|>', '<|system|>', '<|end|>']
  write_tokenizer(model, specials, {'eos_token': '<|end|>'}, CHAT)
  write_model(model)
  hub.add('org/chat', model)
  rows = tmp_path / 'rows'
  rows.mkdir()
  (rows / 'asked.jsonl').write_text('{"instruction": "Name three rivers."}\n')
  hub.add('org/asked', rows, kind='dataset')
  flags = ['--checkpoint', 'org/chat', '--input', 'hf:datasets/org/asked/asked.jsonl']
  flags += ['--output', str(tmp_path / 'answers.jsonl'), '--gin.DecoderConfig.dtype="float32"']
  assert cli.main(['generate', *flags, '--gin.Sampling.max_new_tokens=4']) == 0, (
    capsys.readouterr().err
  )
  assert len((tmp_path / 'answers.jsonl').read_text().splitlines()) == 1


@pytest.mark.parametrize(
  'command',
  (
    ('import-hf', 'org/none', '--output_dir', 'out'),
    ('evaluate', '--checkpoint', 'org/none', '--output_dir', 'out'),
    ('export-hf', 'org/none', '--output_dir', 'out'),
    (
      'plan',
      '--gin_file=gin_configs/runs/crossin_lora.gin',
      '--gin.HF_DIR="org/none"',
      '--topology',
      'v5e-4',
    ),
  ),
  ids=lambda command: command[0],
)
def test_a_name_that_is_not_there(hub, command, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert cli.main(list(command)) == 1
  message = capsys.readouterr().err.strip()
  assert 'org/none: no such folder here; on the hub: model org/none is not in the cache' in message
  assert '`hf download org/none`' in message and 'Traceback' not in message
  assert len(message.splitlines()) <= 3


def test_a_name_without_a_model(hub, tmp_path, capsys):
  (tmp_path / 'README.md').write_text('nothing')
  hub.add('org/empty', tmp_path)
  assert cli.main(['export-hf', 'org/empty', '--output_dir', 'out']) == 1
  assert 'has neither config.json nor adapter_config.json' in capsys.readouterr().err
