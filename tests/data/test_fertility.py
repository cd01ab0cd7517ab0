"""Tokens per word and per character, counted by hand with a tokenizer made on the spot."""

from conftest import write_prepared
import numpy as np
import pytest

from crossin_jax.data import fertility
from crossin_jax.data.prepared import PreparedMixture
from crossin_jax.data.vocabulary import Vocabulary

TEXTS = {'en': 'the cat and the dog', 'vi': 'con mèo', 'zh': '猫和狗和猫'}


@pytest.fixture(scope='module')
def vocabulary(tmp_path_factory):
  """Words of English are one token, all other letters are bytes."""
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers

  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  words = ['Ġthe', 'the', 'Ġcat', 'Ġand', 'Ġdog']
  pieces = ['<s>', '</s>', *alphabet, *words]
  merges, made = [], set(alphabet)
  for word in words:
    for end in range(2, len(word) + 1):
      if word[:end] not in made:
        made.add(word[:end])
        merges.append((word[: end - 1], word[end - 1]))
  pieces += sorted(made - set(pieces))
  tokenizer = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  path = tmp_path_factory.mktemp('vocabulary') / 'tokenizer.json'
  tokenizer.save(str(path))
  return Vocabulary(str(path), bos_token='<s>', eos_token='</s>')


def test_counts_are_those_of_the_texts(tmp_path, vocabulary):
  prompt = vocabulary.encode('the the the')
  stop = vocabulary.eos_id
  tasks = {}
  for language, text in TEXTS.items():
    response = [*vocabulary.encode(text), stop]
    weights = [0.0] * len(prompt) + [1.0] * len(response)
    example = np.array([*prompt, *response], np.int32), np.array(weights, np.float32)
    tasks[f'x.{language}'] = (1.0, None, [example] * 3)
  name = write_prepared(tmp_path, tasks, vocabulary_size=vocabulary.size)
  mixture = PreparedMixture(str(tmp_path), name)
  found = fertility.fertility(mixture, vocabulary, stop_ids={stop})
  by_language = {row['language']: row for row in found}
  assert list(by_language) == ['en', 'zh', 'vi']
  english, vietnamese, chinese = (by_language[code] for code in TEXTS)
  assert (english['tokens'], english['tokens_per_word']) == (15, 1.0)
  assert english['tokens_per_character'] == pytest.approx(5 / 19)
  assert english['vocabulary_share'] == pytest.approx(5 / vocabulary.size)
  # "con mèo" has 8 bytes and two words, "猫和狗和猫" 15 bytes of 5 characters.
  assert (vietnamese['tokens'], vietnamese['tokens_per_word']) == (24, 4.0)
  assert (chinese['tokens'], chinese['tokens_per_word']) == (45, None)
  assert chinese['tokens_per_character'] == 3.0
  assert chinese['vocabulary_share'] == pytest.approx(len(set('猫和狗'.encode())) / vocabulary.size)
  lines = fertility.table(found).splitlines()
  assert lines[2].split()[:4] == ['zh', '45', '-', '3.000']
  assert len({len(line) for line in lines}) == 1


def test_the_command_prints_them(tiny_prepared, capsys):
  import json

  from crossin_jax.data import inspection

  directory, name = tiny_prepared
  assert (
    inspection.main(['--mixture', name, '--data_dir', directory, '--length', '64', '--json']) == 0
  )
  out, _ = capsys.readouterr()
  rows = json.loads(out.splitlines()[-1])['languages']
  assert {row['language'] for row in rows} == {'en', 'zh', 'vi', 'es'} and 'per word' in out
  assert all(
    0 < row['vocabulary_share'] < 1 and 0 < row['tokens_per_character'] < 1.5 for row in rows
  )
