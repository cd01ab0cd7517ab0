"""What a sequence starts with: as transformers starts it, in every part of the project."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import small_models

from crossin_jax.checkpoints.saved_prompts import Prompts
from crossin_jax.data.stream import empty_rows, write_segment
from crossin_jax.data.vocabulary import Vocabulary

transformers = pytest.importorskip('transformers', reason='the comparison needs the extra `test`')

SPECIALS = ['<s>', '</s>', '<|im_start|>', '<|im_end|>']
CHATML = (
  "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NAMES = {'bos_token': '<s>', 'eos_token': '</s>'}
# Name -> (configuration, BOS of the post-processor, special_tokens_map.json).
TOKENIZERS = {
  'no BOS (Qwen)': ({'eos_token': '</s>', 'bos_token': None, 'add_bos_token': False}, None, None),
  'named, not put there (SmolLM)': (NAMES, None, None),
  'named, add_bos_token false': (NAMES | {'add_bos_token': False}, '<s>', None),
  'named, add_bos_token true': (NAMES | {'add_bos_token': True}, None, None),
  'post-processor (Llama 3)': (NAMES, '<s>', None),
  'post-processor, other name': (NAMES | {'bos_token': '<|im_start|>'}, '<s>', None),
  'add_bos_token true without a name': ({'eos_token': '</s>', 'add_bos_token': True}, None, None),
  'names in the map only': ({}, '<s>', NAMES),
  'the map wins': (NAMES | {'add_bos_token': True}, None, {'bos_token': '<|im_start|>'}),
  'the map holds objects': (
    {'add_bos_token': True}, None,
    {k: {'content': v, 'lstrip': False, 'normalized': False, 'rstrip': False, 'single_word': False}
     for k, v in NAMES.items()}),
  'the map is old, tokens are listed': (
    NAMES | {'add_bos_token': True, 'added_tokens_decoder': {}}, None,
    {'bos_token': '<|im_start|>'}),
}  # fmt: skip


def written(folder, name, template=None):
  config, bos, special_map = TOKENIZERS[name]
  small_models.write_tokenizer(str(folder), SPECIALS, config, template, bos=bos)
  if special_map is not None:
    small_models.write_json(folder / 'special_tokens_map.json', special_map)
  return Vocabulary(str(folder / 'tokenizer.json')), transformers.AutoTokenizer.from_pretrained(
    folder
  )


@pytest.mark.parametrize('name', TOKENIZERS)
@pytest.mark.parametrize('text', ['Name three rivers', ' ', '河流', '<s>Name'])
def test_plain_texts_start_as_in_transformers(tmp_path, name, text):
  vocabulary, theirs = written(tmp_path, name)
  ids = list(theirs(text)['input_ids'])
  if text.startswith('<s>') and ids[:2] == [ids[0]] * 2:
    ids = ids[1:]  # they write BOS twice, this project once
  assert Prompts(str(tmp_path)).plain(text) == ids
  assert vocabulary.token_text(vocabulary.eos_id) == theirs.eos_token


@pytest.mark.parametrize('name', TOKENIZERS)
@pytest.mark.parametrize('template', [CHATML, '{{ bos_token }}' + CHATML, '<s>' + CHATML])
def test_chats_start_as_their_template_says(tmp_path, name, template):
  _, theirs = written(tmp_path, name, template)
  messages = [{'role': 'user', 'content': 'Name three rivers'}]
  wanted = theirs.apply_chat_template(
    messages, tokenize=True, return_dict=True, add_generation_prompt=True
  )['input_ids']
  assert Prompts(str(tmp_path)).tokens({'instruction': 'Name three rivers'}) == list(wanted)


@pytest.mark.parametrize('config, first', [
    (None, True), ({}, True), ({'add_bos_token': True}, True), ({'add_bos_token': False}, False),
    ({'bos_token': None}, False), ({'bos_token': '</s>'}, '</s>'),
])  # fmt: skip
def test_sentencepiece_starts_with_its_own_bos_unless_told_otherwise(
  tiny_vocabulary, tmp_path, config, first
):
  shutil.copy(tiny_vocabulary.path, tmp_path / 'tokenizer.model')
  if config is not None:
    small_models.write_json(tmp_path / 'tokenizer_config.json', config)
  vocabulary = Vocabulary(str(tmp_path / 'tokenizer.model'))
  found = None if vocabulary.bos_id is None else vocabulary.token_text(vocabulary.bos_id)
  assert found == ({True: '<s>', False: None}.get(first, first))


def test_rows_without_bos():
  batch = empty_rows(1, 8)
  write_segment(batch, 0, 0, 1, np.array([7, 8, 2]), np.array([0, 1, 1.0]), None, 3)
  write_segment(batch, 0, 3, 2, [9, 2], [0, 1.0], None, 4)
  assert batch['decoder_input_tokens'][0].tolist() == [7, 8, 2, 9, 2, 0, 0, 0]
  assert batch['decoder_target_tokens'][0].tolist() == [8, 2, 0, 2, 0, 0, 0, 0]
  assert batch['decoder_loss_weights'][0].tolist() == [1, 1, 0, 1, 0, 0, 0, 0]
  assert batch['decoder_segment_ids'][0].tolist() == [1, 1, 1, 2, 2, 0, 0, 0]
  assert batch['decoder_positions'][0].tolist() == [0, 1, 2, 0, 1, 0, 0, 0]


@pytest.fixture(scope='module')
def qwen(tmp_path_factory):
  """A folder with a random model without BOS, and the model."""
  folder = tmp_path_factory.mktemp('qwen')
  ids = small_models.write_tokenizer(str(folder), SPECIALS, TOKENIZERS['no BOS (Qwen)'][0], CHATML)
  model = small_models.write_model(str(folder), 'Qwen2Config', vocab_size=max(ids.values()) + 1)
  return folder, model


def test_losses_and_answers_equal_transformers(qwen):
  import torch

  from crossin_jax.decoding.generation import Generator
  from crossin_jax.decoding.sampling import Sampling
  from crossin_jax.decoding.schedule import Prompt
  from crossin_jax.decoding.scoring import continuation_losses, sequence_losses
  from crossin_jax.devices.partitioning import Partitioner
  from crossin_jax.models.decoder import Decoder
  from crossin_jax.models.huggingface.families import from_huggingface
  from crossin_jax.models.huggingface.weights import load_params
  from crossin_jax.training.state import parameter_shapes

  folder, theirs = qwen
  model = Decoder(dataclasses.replace(from_huggingface(str(folder)), dtype='float32'))
  prompts = Prompts(str(folder))
  rows = [{'instruction': text} for text in ('Name three rivers', '河流', 'Count to 7')]
  answers = ['The Nile.', 'a', '1, 2, 3']
  prefixes = [prompts.tokens(row) for row in rows]
  options = [
    [prompts.response(row, a), prompts.response(row, 'no')] for row, a in zip(rows, answers)
  ]
  partition = Partitioner()

  def their_loss(prefix, continuation):
    ids = torch.tensor([[*prefix, *continuation]])
    with torch.no_grad():
      logits = theirs(ids).logits[0].log_softmax(-1)
    at = torch.arange(len(prefix) - 1, ids.shape[1] - 1)
    return -logits[at, ids[0, 1:][at]].sum().item()

  with partition.activate():
    params = load_params(str(folder), model.config, parameter_shapes(model, partition))
    scored = continuation_losses(model, params, partition, prefixes, options, bos_id=None)
    sequences = [
      (np.array([*p, *o[0]]), np.array([0.0] * len(p) + [1.0] * len(o[0])))
      for p, o in zip(prefixes, options)
    ]
    packed = sequence_losses(model, params, partition, sequences, bos_id=None)
    generator = Generator(
      model, params, partition, bos_id=None, stop_ids=(prompts.stop_id,), rows=2,
      sampling=Sampling(max_new_tokens=9),
    )  # fmt: skip
    generated = [answer.tokens for answer in generator([Prompt(p) for p in prefixes])]
  wanted = [[their_loss(p, o) for o in options[i]] for i, p in enumerate(prefixes)]
  np.testing.assert_allclose(np.array(scored), wanted, rtol=1e-4)
  np.testing.assert_allclose(packed, [w[0] for w in wanted], rtol=1e-4)
  for prefix, tokens in zip(prefixes, generated):
    ids = torch.tensor([prefix])
    [their] = theirs.generate(
      ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, do_sample=False, pad_token_id=0,
      eos_token_id=prompts.stop_id,
    )  # fmt: skip
    assert tokens == [i for i in their[len(prefix) :].tolist() if i != prompts.stop_id]


def test_empty_prompts(qwen):
  folder, _ = qwen
  prompts = Prompts(str(folder))
  assert prompts.plain('') == [prompts.vocabulary.eos_id] == prompts.tokens({'instruction': ''})


def test_a_run_saves_what_its_sequences_start_with(qwen, tiny_settings, tmp_path):
  from crossin_jax.checkpoints import run_directory
  from crossin_jax.data.prepared import PreparedMixture
  from seqio_tasks.prepare import prepare

  vocabulary = Vocabulary(str(qwen[0] / 'tokenizer.json'))
  mixture = 'world.base_x2x.all.en_zh_vi_es.every'
  for template in ('chat', 'alpaca'):
    data, run = tmp_path / template, tmp_path / f'{template}_run'
    settings = tiny_settings(vocabulary=vocabulary, template=template, max_length=512)
    prepare(mixture, str(data), settings, workers=1)
    prepared = PreparedMixture(str(data), mixture)
    os.makedirs(run)
    run_directory.describe(str(run), prepared, '')
    assert prepared.bos_id is None and Prompts(str(run)).vocabulary.bos_id is None
    tokens, weights = prepared.tasks[0].split.example(0)
    assert weights[0] == 0 and tokens[0] != vocabulary.eos_id
    # A run from before has the stop token as BOS, and keeps it.
    saved = json.loads((run / 'prompts.json').read_text())
    saved['vocabulary'] |= {'bos_token': '</s>', 'bos_id': vocabulary.eos_id}
    (run / 'prompts.json').write_text(json.dumps(saved))
    assert Prompts(str(run)).tokens({'instruction': 'x'})[0] == vocabulary.eos_id


def test_seqio_features_without_bos():
  import tensorflow as tf

  from seqio_tasks.feature_converter import AnyTaskFeatureConverter

  def rows(converter, lengths, *examples):
    signature = {name: tf.TensorSpec((None,), tf.as_dtype(value.dtype))
                 for name, value in examples[0].items()}  # fmt: skip
    dataset = tf.data.Dataset.from_generator(lambda: examples, output_signature=signature)
    return list(converter(dataset, lengths).as_numpy_iterator())

  int32 = lambda *values: np.array(values, np.int32)
  [row] = rows(
    AnyTaskFeatureConverter(pack=False, bos_id=None), {'inputs': 3, 'targets': 3},
    {'inputs': int32(7, 8), 'targets': int32(5, 2)},
  )  # fmt: skip
  assert row['decoder_input_tokens'].tolist() == [7, 8, 5, 2, 0, 0]
  assert row['decoder_target_tokens'].tolist() == [8, 5, 2, 0, 0, 0]
  assert row['decoder_loss_weights'].tolist() == [0, 1, 1, 0, 0, 0]
  assert row['decoder_causal_attention'].tolist() == [1, 1, 0, 0, 0, 0]
  weighted = lambda *tokens: {
    'targets': int32(*tokens), 'loss_weights': np.array([0, *[1] * (len(tokens) - 1)], np.float32)
  }  # fmt: skip
  [row] = rows(
    AnyTaskFeatureConverter(pack=True, bos_id=None), {'targets': 6, 'loss_weights': 6},
    weighted(7, 8, 2), weighted(9, 2),
  )  # fmt: skip
  assert row['decoder_input_tokens'].tolist() == [7, 8, 2, 9, 2, 0]
  assert row['decoder_loss_weights'].tolist() == [1, 1, 0, 1, 0, 0]
