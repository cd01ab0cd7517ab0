"""A mixture of another tokenizer is refused before the first step."""

from types import SimpleNamespace

import pytest
import small_models

from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.checkpoints.tokenizer_check import TokenizerDiffers, check_tokenizer
from crossin_jax.data.vocabulary import Vocabulary

SPECIALS = ['<s>', '</s>']
CONFIG = {'bos_token': '<s>', 'eos_token': '</s>'}


def model(folder, **tokenizer):
  small_models.write_tokenizer(folder, SPECIALS, CONFIG, **tokenizer)
  small_models.write_json(folder / 'config.json', {'model_type': 'llama'})
  return SavedModel.open(str(folder))


def mixture(path):
  return SimpleNamespace(name='m', vocabulary_path=str(path))


def test_the_same_tokenizer_passes(tmp_path):
  check_tokenizer(model(tmp_path / 'a'), mixture(tmp_path / 'a' / 'tokenizer.json'))
  # Another file with a few tokens more.
  small_models.write_tokenizer(tmp_path / 'b', [*SPECIALS, '<new>'], CONFIG)
  check_tokenizer(model(tmp_path / 'a'), mixture(tmp_path / 'b' / 'tokenizer.json'))


def test_another_tokenizer_is_refused(tmp_path, tiny_vocabulary):
  own = model(tmp_path / 'a')
  with pytest.raises(TokenizerDiffers, match='VOCABULARY=.*tokenizer.json') as refused:
    check_tokenizer(own, mixture(tiny_vocabulary.path))
  assert f'{Vocabulary(tiny_vocabulary.path).size:,} ids' in str(refused.value)
  assert len(str(refused.value).splitlines()) <= 3


def test_a_much_smaller_tokenizer_is_refused(tmp_path):
  big = [f'w{k} w{k + 1}' for k in range(300)]
  own = model(tmp_path / 'a', size=800, texts=big)
  small_models.write_tokenizer(tmp_path / 'b', SPECIALS, CONFIG, size=260)
  with pytest.raises(TokenizerDiffers):
    check_tokenizer(own, mixture(tmp_path / 'b' / 'tokenizer.json'))


def test_a_model_without_a_tokenizer_is_not_checked(tmp_path, tiny_vocabulary):
  small_models.write_json(tmp_path / 'config.json', {'model_type': 'llama'})
  check_tokenizer(SavedModel.open(str(tmp_path)), mixture(tiny_vocabulary.path))
