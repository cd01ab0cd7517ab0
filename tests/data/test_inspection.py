"""`crossin inspect`: shares add up, trained tokens are marked from the ids."""

import json

from conftest import write_prepared
import gin
import numpy as np
import pytest

from crossin_jax.data import inspection
from crossin_jax.data.pair_layout import LAYOUTS
from crossin_jax.data.prepared import PreparedMixture
from crossin_jax.data.prompts import render_example, stop_id
from crossin_jax.data.vocabulary import Vocabulary


def test_shares_follow_the_rates_and_sum_to_one(tiny_prepared):
  directory, name = tiny_prepared
  found = inspection.inspect(PreparedMixture(directory, name), batch_size=4, length=64)
  for share in ('rate', 'share_examples', 'share_tokens', 'share_loss_tokens'):
    assert sum(row[share] for row in found['tasks']) == pytest.approx(1)
  for row in found['tasks']:
    assert row['share_examples'] == pytest.approx(row['rate'], abs=0.02)
  assert 0.8 < found['packing_utilisation'] <= 1


@pytest.mark.parametrize('layout', LAYOUTS)
def test_a_question_in_two_languages_is_one_example(tmp_path, layout):
  row = np.arange(4, dtype=np.int32), np.ones(4, np.float32)
  half = np.array([0, 1, 2], np.int8)
  both = np.concatenate([half, half + 2 * (half > 0)])
  question = np.zeros(6, np.int32), (both > 0).astype(np.float32), both
  tasks = {'pairs.en': (1.0, None, [question] * 8), 'rows.en': (1.0, None, [row] * 8)}
  mixture = PreparedMixture(str(tmp_path), write_prepared(tmp_path, tasks))
  with gin.unlock_config():
    gin.bind_parameter('BatchStream.pairs', layout)
  found = inspection.inspect(mixture, batch_size=4, length=16, steps=20)
  assert [row['share_examples'] for row in found['tasks']] == pytest.approx([0.5, 0.5], abs=0.02)


def test_trained_tokens_are_marked(tiny_vocabulary):
  prompt, answer = tiny_vocabulary.encode('en question\n'), tiny_vocabulary.encode('answer')
  tokens = np.array([*prompt, *answer, tiny_vocabulary.eos_id])
  weights = np.array([0] * len(prompt) + [1] * (len(answer) + 1))
  assert (
    inspection.marked(tiny_vocabulary, tokens, weights, colour=False)
    == 'en question\n⟦answer⏎stop⟧'
  )


def test_command_prints_json(tiny_prepared, capsys):
  directory, name = tiny_prepared
  assert (
    inspection.main(['--mixture', name, '--data_dir', directory, '--length', '64', '--json']) == 0
  )
  out, _ = capsys.readouterr()
  assert json.loads(out.splitlines()[-1])['mixture'] == name
  assert 'packing:' in out and '⏎stop' in out


def test_every_trained_turn_of_a_conversation_is_marked(tmp_path):
  import chat_templates
  import small_models

  template = chat_templates.TEMPLATES['Phi-4']
  names = {'eos_token': template.eos, 'unk_token': '<unk>'}
  small_models.write_tokenizer(tmp_path, chat_templates.SPECIALS, names, template.text)
  vocabulary = Vocabulary(str(tmp_path / 'tokenizer.json')).with_template('chat')
  turns = [
    {'role': role, 'content': content}
    for role, content in (
      ('system', 'Be brief.'), ('user', 'Hi'), ('assistant', 'Ho'), ('user', 'Why?'),
      ('assistant', 'So.'),
    )
  ]  # fmt: skip
  example = render_example(vocabulary, 'chat', {'messages': turns}, '', None)
  stop = stop_id(vocabulary, 'chat')
  text = inspection.marked(vocabulary, example.tokens, example.loss_weights, False, stop)
  assert text == (
    '<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>Hi<|im_end|>'
    '<|im_start|>assistant<|im_sep|>⟦Ho⏎stop⟧<|im_start|>user<|im_sep|>Why?<|im_end|>'
    '<|im_start|>assistant<|im_sep|>⟦So.⏎stop⟧'
  )
