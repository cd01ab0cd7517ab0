"""Questions to a model: likelihood against a plain loop, generation against the full forward pass,
bad files named.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossin_jax.checkpoints.saved_prompts import Prompts
from crossin_jax.data.prompts import render_prompt
from crossin_jax.decoding.generation import greedy
from crossin_jax.decoding.scoring import sequence_losses
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.evaluation import asking
from crossin_jax.evaluation.questions import read_questions
from crossin_jax.models.decoder import Decoder, DecoderConfig
from crossin_jax.training import losses
from crossin_jax.training import state as train_state

CONFIG = DecoderConfig(
  vocab_size=64, embed_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, mlp_dim=64
)


@pytest.fixture(scope='module', params=[1, 4], ids=['1 device', '4 devices'])
def setting(request):
  partition = Partitioner((1, -1, 1), devices=jax.devices()[: request.param])
  model = Decoder(CONFIG)
  with partition.activate():
    abstract = train_state.parameter_shapes(model, partition)
    init = lambda key: model.init(
      key, jnp.ones((1, 4), int), jnp.ones((1, 4), int), enable_dropout=False
    )['params']
    params = jax.jit(init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))(
      jax.random.key(0)
    )
    yield model, params, partition


@functools.lru_cache
def _forward(model):
  """Logits of the first of four equal rows: a batch of one would not divide over the mesh."""
  return jax.jit(
    lambda params, tokens: model.apply({'params': params}, tokens, tokens, enable_dropout=False)[0]
  )


def _logits(model, params, inputs, length=96):
  padded = np.zeros((4, length), np.int32)
  padded[:, : len(inputs)] = inputs
  return np.asarray(_forward(model)(params, padded))[: len(inputs)]


def _plain_loss(model, params, tokens, weights):
  loss, _ = losses.token_losses(_logits(model, params, [1, *tokens[:-1]]), np.asarray(tokens))
  return float((np.asarray(loss) * np.asarray(weights)).sum())


def test_sequence_losses_equal_a_plain_loop(setting):
  model, params, partition = setting
  rng = np.random.default_rng(0)
  sequences = []
  for _ in range(23):
    length = int(rng.integers(1, 20))
    sequences.append(
      (rng.integers(0, 64, length).astype(np.int32), rng.random(length).astype(np.float32))
    )
  found = sequence_losses(model, params, partition, sequences, bos_id=1, length=24, rows=3)
  wanted = [_plain_loss(model, jax.device_get(params), *s) for s in sequences]
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_sequence_longer_than_a_row_is_refused(setting):
  model, params, partition = setting
  with pytest.raises(ValueError, match='9 tokens does not fit in rows of 8'):
    sequence_losses(model, params, partition, [(np.ones(9, int), np.ones(9))], bos_id=1, length=8)


def test_greedy_equals_the_full_forward_pass_on_ragged_prompts(setting):
  model, params, partition = setting
  rng = np.random.default_rng(1)
  prompts = [rng.integers(3, 64, n).tolist() for n in (0, 1, 5, 15, 16, 17, 30)]
  found = greedy(model, params, partition, prompts, bos_id=1, eos_id=2, max_new_tokens=12, rows=4)
  local = jax.device_get(params)
  for prompt, new in zip(prompts, found):
    tokens, wanted = [1, *prompt], []
    for _ in range(12):
      token = int(np.argmax(_logits(model, local, tokens)[-1]))
      if token == 2:
        break
      wanted.append(token)
      tokens.append(token)
    assert new == wanted


def _write(path, rows):
  path.write_text(
    ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows), encoding='utf-8'
  )
  return str(path)


def _rows(items=3):
  return [
    {
      'id': f'q{i}',
      'language': language,
      'instruction': f'{language} question {i}?',
      'input': '',
      'choices': ['one', 'two', 'three', 'four'],
      'answer': i % 4,
    }
    for i in range(items)
    for language in ('en', 'zh')
  ]


def test_likelihood_chooses_the_most_probable_option_with_its_stop_token(
  setting, tmp_path, tiny_vocabulary
):
  model, params, partition = setting
  model = Decoder(dataclasses.replace(CONFIG, vocab_size=-(-tiny_vocabulary.size // 64) * 64))
  params = jax.jit(
    lambda key: model.init(key, jnp.ones((1, 4), int), jnp.ones((1, 4), int), enable_dropout=False)[
      'params'
    ]
  )(jax.random.key(3))
  questions = read_questions(_write(tmp_path / 'questions.tagged.jsonl', _rows()))
  assert questions.name == 'questions/tagged'
  prompts = Prompts.__new__(Prompts)
  prompts.template, prompts.vocabulary, prompts.stop_id = (
    'gemma',
    tiny_vocabulary,
    tiny_vocabulary.eos_id,
  )
  prompts.untaught = False
  found = asking.choose_by_likelihood(
    model, params, partition, questions, prompts, length=96, rows=4
  )
  means = asking.choose_by_likelihood(
    model, params, partition, dataclasses.replace(questions, per_token=True), prompts,
    length=96, rows=4,
  )  # fmt: skip
  for i, item in enumerate(questions.rows):
    for j, row in enumerate(item):
      prompt = tiny_vocabulary.encode(render_prompt('gemma', row['instruction']))
      scores = []
      for choice in row['choices']:
        answer = [*tiny_vocabulary.encode(choice), tiny_vocabulary.eos_id]
        scores.append(
          _plain_loss(model, params, prompt + answer, [0] * len(prompt) + [1] * len(answer))
        )
      np.testing.assert_allclose(found[i][j], scores, rtol=1e-4)
      lengths = [len(tiny_vocabulary.encode(choice)) + 1 for choice in row['choices']]
      np.testing.assert_allclose(means[i][j], np.divide(scores, lengths), rtol=1e-4)


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda rows: rows[1].pop('choices'), r"line 2: field 'choices' must be a list"),
    (lambda rows: rows[2].update(answer=4), r'line 3: answer 4 is not an index into 4 choices'),
    (lambda rows: rows[2].update(answer='B'), r"line 3: field 'answer' must be a int"),
    (lambda rows: rows.pop(3), r"item 'q1' has no question in zh"),
    (lambda rows: rows.clear(), r'holds no question'),
  ],
)
def test_a_malformed_question_file_is_named(tmp_path, change, message):
  rows = _rows()
  change(rows)
  with pytest.raises(ValueError, match=message):
    read_questions(_write(tmp_path / 'q.jsonl', rows))
