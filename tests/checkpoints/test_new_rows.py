"""Tokenizers with more tokens than the model has rows, and vocabularies with holes."""

import dataclasses
import json
import os
import shutil

import gin
import jax
import numpy as np
import pytest
import small_models

from crossin_jax import cli
from crossin_jax.checkpoints import exported_tokenizer
from crossin_jax.data.vocabulary import Vocabulary
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models import lora
from crossin_jax.models.decoder import Decoder
from crossin_jax.models.huggingface import families, tensor_files, weights
from crossin_jax.models.lora import LoraConfig
from crossin_jax.training import state as train_state

REASON = 'needs the real models of the extra `test`'
transformers = pytest.importorskip('transformers', reason=REASON)
torch = pytest.importorskip('torch', reason=REASON)

from checkpoints.test_exported_tokenizer import write_run  # noqa: E402
from models.huggingface.test_families import our_logits, their_logits, their_model  # noqa: E402

NEW = 5
NAMES = {'bos_token': '<s>', 'eos_token': '</s>'}


def loaded(directory, mesh=(1, 1, 1), **changes):
  """The grown model of a directory and its parameters."""
  config = families.from_huggingface(directory)
  model = Decoder(dataclasses.replace(config, dtype='float32', **changes))
  partition = Partitioner(mesh_shape=mesh, devices=jax.devices()[: int(np.prod(mesh))])
  with partition.activate():
    abstract = lora.without_adapters(train_state.parameter_shapes(model, partition))
    return model, weights.load_params(directory, model.config, abstract)


def grown(theirs):
  """The model of transformers with new rows: the mean of the others."""
  rows = theirs.get_input_embeddings().weight.shape[0]
  means = [m.weight.detach().double().mean(0) for m in
           (theirs.get_input_embeddings(), theirs.get_output_embeddings())]  # fmt: skip
  theirs.resize_token_embeddings(rows + NEW, mean_resizing=False)
  with torch.no_grad():
    theirs.get_input_embeddings().weight[rows:] = means[0].float()
    theirs.get_output_embeddings().weight[rows:] = means[1].float()
  return theirs, rows


@pytest.mark.parametrize('mesh, multiple', [((1, 1, 1), 1), ((1, 1, 1), 128), ((1, 2, 2), 128)])
@pytest.mark.parametrize('name', ['llama3', 'gemma2', 'qwen2', 'phi3', 'qwen3'])
def test_new_rows_are_the_mean_of_the_old(tmp_path, name, mesh, multiple):
  their_model(name).save_pretrained(tmp_path)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, attn_implementation='eager', dtype=torch.float32
  ).eval()
  theirs, rows = grown(theirs)
  gin.bind_parameter('DecoderConfig.vocab_size', rows + NEW)
  model, params = loaded(str(tmp_path), mesh, vocab_multiple=multiple)
  tokens = np.array([[3, 17, rows, 5, rows + NEW - 1, 9, 8]])
  ours = our_logits(model, params, tokens)
  np.testing.assert_allclose(ours[..., : rows + NEW], their_logits(theirs, tokens), atol=2e-4)
  if multiple > 1:
    assert np.asarray(params['decoder']['token_embedding'])[rows + NEW :].max() == 0


def test_a_smaller_or_equal_size_changes_nothing(tmp_path):
  their_model('llama3').save_pretrained(tmp_path)
  size = json.loads((tmp_path / 'config.json').read_text())['vocab_size']
  for wanted in (10, size):
    gin.clear_config()
    gin.bind_parameter('DecoderConfig.vocab_size', wanted)
    assert families.from_huggingface(str(tmp_path)).vocab_size == size


def test_weights_that_do_not_fit_config_json_are_still_refused(tmp_path):
  their_model('llama3').save_pretrained(tmp_path)
  config = json.loads((tmp_path / 'config.json').read_text())
  small_models.write_json(tmp_path / 'config.json', config | {'vocab_size': 150})
  gin.bind_parameter('DecoderConfig.vocab_size', config['vocab_size'] + NEW)
  with pytest.raises(tensor_files.WeightsError, match='embed_tokens.weight has shape'):
    loaded(str(tmp_path))


def test_adapters_train_new_rows(tmp_path):
  their_model('llama3').save_pretrained(tmp_path)
  size = json.loads((tmp_path / 'config.json').read_text())['vocab_size']
  gin.bind_parameter('DecoderConfig.lora', LoraConfig(rank=2))
  assert not families.from_huggingface(str(tmp_path)).lora.train_embeddings
  gin.bind_parameter('DecoderConfig.vocab_size', size + NEW)
  with pytest.warns(UserWarning, match='5 rows of the vocabulary are new'):
    config = families.from_huggingface(str(tmp_path))
  assert config.lora.train_embeddings and config.vocab_size == size + NEW


# ---- from preparing to the export ----

MIXTURE = 'alpaca.base_x2x.all.en_zh.default'
TAGS = ['<vi>', '<zh>', '<|new|>']


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  """(a model's folder, the folder of its tokenizer with more tokens, rows of the model)."""
  import tokenizers

  folder, extended = tmp_path_factory.mktemp('model'), tmp_path_factory.mktemp('tokenizer')
  ids = small_models.write_tokenizer(str(folder), ['<s>', '</s>'], NAMES, bos='<s>')
  rows = max(ids.values()) + 1
  small_models.write_model(str(folder), vocab_size=rows)
  shutil.copytree(folder, extended, dirs_exist_ok=True, ignore=lambda *_: ['model.safetensors'])
  tokenizer = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  tokenizer.add_tokens(TAGS)
  tokenizer.save(str(extended / 'tokenizer.json'))
  return folder, extended, rows


def crossin(*argv):
  gin.clear_config()
  return cli.main([str(a) for a in argv])


@pytest.fixture(scope='module')
def prepared(directory, tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  for stem, languages in (('rows', ('en', 'zh')), ('base', ('en',))):
    for language in languages:
      rows = [{'instruction': f'<vi> Name {i}', 'input': '', 'output': f'<zh> {i}.'}
              for i in range(40)]  # fmt: skip
      small_models.write_json(folder / f'{stem}.{language}.json', rows)
  status = crossin(
    'prepare', '--gin_file=gin_configs/mixtures/alpaca.gin', "--gin.LANGUAGES=('en','zh')",
    f"--gin.PARALLEL='{folder}/rows'", f"--gin.ENGLISH='{folder}/base.en.json'",
    f"--gin.VOCABULARY='{directory[1]}/tokenizer.json'",
    "--gin.MixtureSettings.template='plain'", '--gin.MixtureSettings.max_length=64',
    '--mixture', MIXTURE, '--output_dir', folder / 'prepared',
  )  # fmt: skip
  assert status == 0
  return folder / 'prepared'


def trained(directory, prepared, model_dir, *more):
  return crossin(
    'train', '--gin_file=gin_configs/runs/crossin_lora.gin', f"--gin.HF_DIR='{directory[0]}'",
    f"--gin.DATA_DIR='{prepared}'", f"--gin.MIXTURE_OR_TASK_NAME='{MIXTURE}'",
    f"--gin.MODEL_DIR='{model_dir}'", '--gin.TRAIN_STEPS=2', '--gin.train.epochs=None',
    '--gin.BATCH_SIZE=4', '--gin.LENGTH=64', "--gin.DecoderConfig.dtype='float32'",
    "--gin.LoraConfig.base_dtype='float32'", '--gin.schedule.warmup_ratio=0.0',
    '--gin.schedule.peak=0.01', *more,
  )  # fmt: skip


def test_the_message_says_which_setting_helps(directory, prepared, tmp_path, capsys):
  assert trained(directory, prepared, tmp_path / 'run') == 1
  size = directory[2] + len(TAGS)
  assert f'DecoderConfig.vocab_size={size} adds rows' in capsys.readouterr().err
  # Asking such a directory says the same.
  mixed = shutil.copytree(directory[0], tmp_path / 'mixed')
  shutil.copy(directory[1] / 'tokenizer.json', mixed)
  (tmp_path / 'q.jsonl').write_text('{"prompt": "<vi>"}\n')
  ask = ('generate', '--checkpoint', mixed, '--input', tmp_path / 'q.jsonl', '--output',
         tmp_path / 'a.jsonl', '--gin.Sampling.max_new_tokens=2')  # fmt: skip
  assert crossin(*ask) == 1
  assert f'DecoderConfig.vocab_size={size} adds' in capsys.readouterr().err
  assert crossin(*ask, f'--gin.DecoderConfig.vocab_size={size}') == 0


@pytest.mark.parametrize('adapters', [True, False])
def test_new_rows_are_trained_and_exported(directory, prepared, tmp_path, adapters):
  """adapters: a LoRA run, exported merged and for PEFT; else all parameters."""
  rows, size = directory[2], directory[2] + len(TAGS)
  more = [f'--gin.DecoderConfig.vocab_size={size}']
  more += [] if adapters else ['--gin.DecoderConfig.lora=None']
  assert trained(directory, prepared, tmp_path / 'run', *more) == 0
  assert trained(directory, prepared, tmp_path / 'run', *more, '--gin.TRAIN_STEPS=3') == 0
  out = tmp_path / 'out'
  assert crossin('export-hf', tmp_path / 'run', '--output_dir', out, '--dtype', 'float32') == 0
  theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
  base = transformers.AutoModelForCausalLM.from_pretrained(directory[0])
  table, old = (m.get_input_embeddings().weight.detach() for m in (theirs, base))
  assert theirs.config.vocab_size == table.shape[0] == size
  new, mean = table[rows:], old.mean(0)
  # The rows of '<vi>' and '<zh>' were read and learned; no row reads '<|new|>'.
  moved = (new - mean).abs().max(1).values
  assert moved[0] > 1e-3 and moved[1] > 1e-3 and moved[2] < 1e-3
  tokenizer = transformers.AutoTokenizer.from_pretrained(out)
  vocabulary = Vocabulary(str(directory[1] / 'tokenizer.json'))
  text = '<vi> Name<zh> 7<|new|>'
  assert tokenizer(text, add_special_tokens=False)['input_ids'] == vocabulary.encode(text)
  assert tokenizer.eos_token == '</s>' and len(tokenizer) == size
  if adapters:
    peft = pytest.importorskip('peft', reason=REASON)
    export = ('export-hf', tmp_path / 'run', '--output_dir', tmp_path / 'peft', '--format', 'peft')
    assert crossin(*export) == 0
    base.resize_token_embeddings(size)
    adapted = peft.PeftModel.from_pretrained(base, str(tmp_path / 'peft')).eval()
    tokens = np.array([[1, rows, 5, rows + 1, 9]])
    np.testing.assert_allclose(
      their_logits(adapted, tokens), their_logits(theirs.eval(), tokens), atol=2e-4
    )


def test_an_imported_checkpoint_keeps_its_new_rows(directory, tmp_path):
  size = directory[2] + len(TAGS)
  assert crossin('import-hf', directory[0], '--output_dir', tmp_path / 'imported',
                 f'--gin.DecoderConfig.vocab_size={size}') == 0  # fmt: skip
  out = tmp_path / 'out'
  assert crossin('export-hf', tmp_path / 'imported', '--output_dir', out) == 0
  theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
  table = theirs.get_input_embeddings().weight.detach()
  assert table.shape[0] == size == theirs.config.vocab_size
  np.testing.assert_allclose(table[-1], table[: directory[2]].mean(0), atol=1e-6)


def test_the_tokenizer_of_the_run_takes_the_place_of_another(tmp_path, directory, tiny_vocabulary):
  names = {'pad_token': '<|new|>', 'unk_token': '<nothing>', 'chat_template': 'x'}
  for path in (str(directory[1] / 'tokenizer.json'), tiny_vocabulary.path):
    target = tmp_path / os.path.basename(path)
    small_models.write_tokenizer(str(target), ['<s>', '</s>', '<x>'], NAMES | names)
    small_models.write_json(target / 'added_tokens.json', {'<x>': 7})
    small_models.write_json(target / 'special_tokens_map.json', {'eos_token': '<x>'})
    vocabulary = Vocabulary(path)
    prompts = write_run(target / 'run', vocabulary, 'plain')
    exported_tokenizer.set_trained(str(target), prompts)
    theirs = transformers.AutoTokenizer.from_pretrained(target)
    text = 'Name <vi> the night'
    assert theirs(text)['input_ids'] == [vocabulary.bos_id, *vocabulary.encode(text)]
    assert theirs.eos_token == '</s>' and len(theirs) == vocabulary.size
    assert theirs.chat_template == 'x' and '<x>' not in theirs.get_vocab()
    assert theirs.pad_token == ('<|new|>' if path.endswith('.json') else None)


# ---- holes ----


@pytest.mark.parametrize('vocab, added, size', [
    ({'a': 0, 'b': 5}, [], 6), ({'a': 3, 'b': 1}, [], 4), ({'a': 0, 'b': 1}, ['<s>'], 3),
    ({'a': 0, 'b': 9, '<s>': 7}, ['<s>'], 10), ({'a': 0, 'b': 1, '<s>': 6}, ['<s>'], 7),
])  # fmt: skip
def test_the_size_of_a_vocabulary_with_holes(tmp_path, vocab, added, size):
  import tokenizers

  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
  tokenizer.add_special_tokens(added)
  tokenizer.save(str(tmp_path / 'tokenizer.json'))
  vocabulary = Vocabulary(str(tmp_path / 'tokenizer.json'), bos_token='', eos_token='a')
  assert vocabulary.size == size
  ids = vocabulary.encode('ab')
  assert ids == [vocab['a'], vocab['b']] and max(ids) < size
  every = list(range(size))
  assert vocabulary.decode(every) == 'b' and [vocabulary.piece(i) for i in every]
