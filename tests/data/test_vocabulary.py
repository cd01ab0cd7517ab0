"""Both kinds of tokenizer file, built on the spot."""

import json
import pickle

import hypothesis
from hypothesis import strategies as st
import pytest
import sentencepiece

from crossin_jax.data.vocabulary import Vocabulary


@pytest.fixture(scope='module')
def bpe(tmp_path_factory):
  """A byte-level BPE with real tokens from id 0 on and its special tokens at the end, as Llama 3
  has them.
  """
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers, processors, trainers

  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=320,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
    special_tokens=[],
  )
  tokenizer.train_from_iterator(
    ['the night ferry from the port', 'the port of the ferry'] * 5, trainer
  )
  tokenizer.add_special_tokens(['<|begin|>', '<|end|>', '<|other|>'])
  begin = tokenizer.token_to_id('<|begin|>')
  tokenizer.post_processor = processors.TemplateProcessing(
    single='<|begin|> $A', special_tokens=[('<|begin|>', begin)]
  )
  # What a downloaded tokenizer may carry, and must not reach training.
  tokenizer.enable_truncation(5)
  tokenizer.enable_padding(length=12)
  directory = tmp_path_factory.mktemp('bpe')
  path = directory / 'tokenizer.json'
  tokenizer.save(str(path))
  (directory / 'tokenizer_config.json').write_text(
    json.dumps({'bos_token': {'content': '<|begin|>'}, 'eos_token': '<|end|>'})
  )
  return path


@hypothesis.given(
  st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\0'), max_size=60)
)
def test_round_trip_of_sentencepiece(tiny_vocabulary, text):
  # SentencePiece takes runs of spaces apart by its own rules (they are its word border); other text
  # comes back.
  text = ' '.join(text.replace('\u2581', '').split(' ')).strip(' ')
  while '  ' in text:
    text = text.replace('  ', ' ')
  text = '\n'.join(line.strip(' ') for line in text.split('\n'))
  ids = tiny_vocabulary.encode(text)
  assert all(0 <= i < tiny_vocabulary.size for i in ids)
  assert tiny_vocabulary.decode(ids) == text


@hypothesis.given(st.text(st.characters(exclude_categories=['Cs']), max_size=60))
def test_round_trip_of_bytes(bpe, text):
  vocabulary = Vocabulary(str(bpe))
  ids = vocabulary.encode(text)
  assert (
    vocabulary.decode([vocabulary.bos_id, *ids, vocabulary.eos_id])
    == vocabulary.decode(ids)
    == text
  )
  assert len(ids) >= len(text.split()) and vocabulary.bos_id not in ids


def test_id_0_is_a_token(bpe):
  vocabulary = Vocabulary(str(bpe))
  assert (
    vocabulary.encode('!') == [0] and vocabulary.decode([0]) == '!' and vocabulary.piece(0) == '!'
  )


@hypothesis.given(st.lists(st.text(st.sampled_from('the fry\n中é'), max_size=12), max_size=8))
def test_a_batch_equals_one_by_one(bpe, tiny_vocabulary, texts):
  for vocabulary in (Vocabulary(str(bpe)), tiny_vocabulary):
    assert vocabulary.encode_batch(texts) == [vocabulary.encode(text) for text in texts]


@hypothesis.given(
  st.lists(
    st.tuples(
      st.sampled_from(('', 'Fry the\n', 'the fry: ', 'é\n\n', '\n')),
      st.text(st.sampled_from('the fry\n\r\u0301 中é\u3000'), max_size=12),
    ),
    max_size=8,
  )
)
def test_a_batch_with_beginnings_equals_one_by_one(bpe, tiny_vocabulary, unlike, texts):
  texts, beginnings = [head + text for head, text in texts], [head for head, _ in texts]
  for vocabulary in (Vocabulary(str(bpe)), tiny_vocabulary, *unlike):
    found = vocabulary.encode_batch(texts, beginnings)
    assert found == [vocabulary.encode(text) for text in texts]


@pytest.fixture(scope='session')
def unlike(tmp_path_factory):
  """SentencePiece models that treat line ends in other ways: as text, as bytes, as a space, as
  part of a piece.
  """
  folder, found = tmp_path_factory.mktemp('unlike'), []
  text = ['the fry the', 'fry the fry', '中 é the'] * 30
  bytes_ = {'byte_fallback': True, 'vocab_size': 290}
  for number, options in enumerate((
    {'normalization_rule_name': 'identity'},
    {**bytes_, 'normalization_rule_name': 'identity'},
    {**bytes_, 'model_type': 'unigram', 'normalization_rule_name': 'nmt_nfkc'},
    {'user_defined_symbols': ['\n', '\n\n'], 'remove_extra_whitespaces': False},
    {'user_defined_symbols': ['\n'], 'add_dummy_prefix': False},
    {'user_defined_symbols': ['\n'], 'treat_whitespace_as_suffix': True},
  )):  # fmt: skip
    stem = str(folder / str(number))
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(text), model_prefix=stem, minloglevel=2, hard_vocab_limit=False,
      **{'model_type': 'bpe', 'vocab_size': 24, 'character_coverage': 1.0, **options},
    )  # fmt: skip
    found.append(Vocabulary(f'{stem}.model'))
  assert sum(vocabulary._backend._border is not None for vocabulary in found) >= 2
  return found


def test_special_tokens(bpe, tiny_vocabulary, tmp_path):
  assert (tiny_vocabulary.bos_id, tiny_vocabulary.eos_id) == (1, 2)
  vocabulary = Vocabulary(str(bpe))
  size = vocabulary.size
  assert (vocabulary.bos_id, vocabulary.eos_id) == (size - 3, size - 2)
  other = Vocabulary(str(bpe), bos_token='<|other|>', eos_token='<|begin|>')
  assert (other.bos_id, other.eos_id) == (size - 1, size - 3)
  # Without tokenizer_config.json: nothing is guessed.
  lone = tmp_path / 'tokenizer.json'
  lone.write_bytes(bpe.read_bytes())
  with pytest.raises(ValueError, match='set Vocabulary.eos_token'):
    print(Vocabulary(str(lone)).eos_id)
  assert Vocabulary(str(bpe), bos_token='').bos_id is None
  for kind in ('bos_token', 'eos_token'):
    with pytest.raises(ValueError, match=f"Vocabulary.{kind} = '<nothing>' is not a token of"):
      print(Vocabulary(str(bpe), **{kind: '<nothing>'}).digest)


def test_digest_changes_with_file_and_special_tokens(bpe, tiny_vocabulary, tmp_path):
  copy = tmp_path / 'tokenizer.json'
  copy.write_bytes(bpe.read_bytes())
  given = {'bos_token': '<|begin|>', 'eos_token': '<|end|>'}
  base = Vocabulary(str(bpe)).digest
  assert Vocabulary(str(copy), **given).digest == base == Vocabulary(str(bpe)).digest
  copy.write_bytes(bpe.read_bytes() + b'\n')
  digests = {base, Vocabulary(str(copy), **given).digest, tiny_vocabulary.digest}
  digests |= {Vocabulary(str(bpe), **{**given, kind: '<|other|>'}).digest for kind in given}
  assert len(digests) == 5


def test_clear_errors(tmp_path):
  with pytest.raises(FileNotFoundError, match='set Vocabulary.path'):
    Vocabulary(str(tmp_path / 'none.model'))
  for name, message in (
    ('a.model', 'is not a SentencePiece model'),
    ('a.json', 'is not a tokenizers file'),
  ):
    (tmp_path / name).write_text('{"nothing": 1}')
    with pytest.raises(ValueError, match=message):
      Vocabulary(str(tmp_path / name)).encode('x')


def test_pickles_as_its_path(bpe, tiny_vocabulary):
  for vocabulary in (Vocabulary(str(bpe), eos_token='<|end|>'), tiny_vocabulary):
    ids = vocabulary.encode('the ferry')
    data = pickle.dumps(vocabulary)
    assert len(data) < 500
    copy = pickle.loads(data)
    assert (
      copy == vocabulary and copy.encode('the ferry') == ids and copy.digest == vocabulary.digest
    )


def test_decode_leaves_out_what_is_no_text(bpe):
  vocabulary = Vocabulary(str(bpe))
  ids = vocabulary.encode('port')
  assert (
    vocabulary.decode([-1, *ids, vocabulary.size, vocabulary.size + 7, vocabulary.eos_id]) == 'port'
  )


def test_a_real_tokenizer(shared_data):
  vocabulary = Vocabulary(str(shared_data / 'tokenizers' / 'mistral_v1.tokenizer.model'))
  assert (vocabulary.size, vocabulary.bos_id, vocabulary.eos_id) == (32_000, 1, 2)
  for text in ('The night ferry.', '夜间渡轮', 'Phà đêm', '{"a": 1}\nb', 'তার\tনৌকা'):
    assert vocabulary.decode(vocabulary.encode(text)) == text
