"""SentencePiece models as transformers reads them after an export: the same ids for every text."""

import itertools
import json
import os
import shutil
import unicodedata

import pytest
import sentencepiece
import small_models

from crossin_jax.data.prompts import prompt_tokens, render_example
from crossin_jax.data.vocabulary import Vocabulary

transformers = pytest.importorskip('transformers', reason='the comparison needs the extra `test`')

TRAINED = [
  *(f'The {a} ferry leaves the {b} port at {n} o’clock{end}'
    for a in ('night', 'early') for b in ('old', 'small') for n in (7, 12)
    for end in ('.', ',  and returns.', '\n\nAll aboard …')),
  'con đò đêm rời bến', '夜间渡轮 3:30 离开。', 'रात की नाव', 'เรือกลางคืน', 'x = {"a": 1}', '한국어', '<a 0x1> 4',
]  # fmt: skip
TEXTS = [
  *TRAINED, '', ' ', '   ', ' leading', '  two', 'trailing ', 'a  b   c', 'a\tb\nc\r\nd', '\n', '\na',
  '🙂🙂 é', '▁x', 'a▁b', 'ｆｕｌｌ　ｗｉｄｔｈ ①', unicodedata.normalize('NFD', 'Tiếng Việt đêm ế'),
  unicodedata.normalize('NFD', '한국어'), 'aaaaaaaa', '....    ....', '\xa0nbsp', 'zero\u200bwidth',
  'İıſ ﬁ ½ ｶﾞ', 'क़ ड़ र्‍', 'a <ud> b<ud>c', 'ﾊﾟ', '<0x41>', 'नाव' * 20,
]  # fmt: skip
KINDS = [
  {'model_type': kind, 'byte_fallback': fallback, 'normalization_rule_name': rule,
   'remove_extra_whitespaces': remove, 'add_dummy_prefix': prefix}
  for kind, fallback, rule, remove, prefix in itertools.product(
    ('unigram', 'bpe'), (True, False), ('nmt_nfkc', 'identity', 'nfkc_cf'), (True, False),
    (True, False))
] + [{'model_type': 'char'}, {'model_type': 'bpe', 'split_by_whitespace': False},
     {'model_type': 'unigram', 'split_by_whitespace': False, 'split_digits': True}]  # fmt: skip


def trained(folder, **settings):
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(TRAINED * 5), model_prefix=os.path.join(folder, 'tokenizer'),
    vocab_size=500, hard_vocab_limit=False, minloglevel=2, character_coverage=0.99,
    **{'user_defined_symbols': ['<ud>'], **settings},
  )  # fmt: skip
  return Vocabulary(os.path.join(folder, 'tokenizer.model'))


@pytest.mark.parametrize('kind', KINDS, ids=lambda kind: '-'.join(map(str, kind.values())))
def test_an_exported_tokenizer_has_the_same_ids(tmp_path, kind):
  vocabulary = trained(str(tmp_path), **kind)
  os.makedirs(tmp_path / 'out')
  vocabulary.save_for_transformers(str(tmp_path / 'out'))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  for text in TEXTS:
    ids = vocabulary.encode(text)
    assert theirs(text, add_special_tokens=False)['input_ids'] == ids, text
    assert theirs(text)['input_ids'] == [vocabulary.bos_id, *ids]
  assert (theirs.bos_token, theirs.eos_token) == ('<s>', '</s>')
  assert (theirs.bos_token_id, theirs.eos_token_id) == (vocabulary.bos_id, vocabulary.eos_id)
  for text in TRAINED:
    ids = vocabulary.encode(text)
    assert theirs.unk_token_id in ids or theirs.decode(ids) == vocabulary.decode(ids)
  # This project reads its own export to the same ids.
  again = Vocabulary(str(tmp_path / 'out' / 'tokenizer.json'))
  assert [again.encode(t) for t in TEXTS] == [vocabulary.encode(t) for t in TEXTS]
  assert (again.bos_id, again.eos_id) == (vocabulary.bos_id, vocabulary.eos_id)


def test_a_published_model(shared_data, tmp_path):
  vocabulary = Vocabulary(str(shared_data / 'tokenizers' / 'mistral_v1.tokenizer.model'))
  vocabulary.save_for_transformers(str(tmp_path))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  for text in [*TEXTS, 'Habari  ya   asubuhi', '  def f(x):\n    return x\n']:
    assert theirs(text, add_special_tokens=False)['input_ids'] == vocabulary.encode(text), text


def test_other_starts(tmp_path):
  for bos_token, first in (('', None), ('</s>', '</s>'), (None, '<s>')):
    folder = tmp_path / f'{first}'
    os.makedirs(folder / 'out')
    vocabulary = trained(str(folder))
    Vocabulary(vocabulary.path, bos_token=bos_token).save_for_transformers(str(folder / 'out'))
    theirs = transformers.AutoTokenizer.from_pretrained(folder / 'out')
    start = theirs('The')['input_ids'][: -len(vocabulary.encode('The'))]
    assert start == ([] if first is None else [theirs.convert_tokens_to_ids(first)])


def test_a_word_model_is_refused_with_a_reason(tmp_path):
  vocabulary = trained(str(tmp_path), model_type='word', user_defined_symbols=[])
  with pytest.raises(ValueError, match='no tokenizer.json can say that'):
    vocabulary.save_for_transformers(str(tmp_path))


# ---- chats ----

INSTRUCT = (
  "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + "
  "' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
GLUED = (
  INSTRUCT.replace("'[INST] '", "'[INST]'")
  .replace("' [/INST]'", "'[/INST]'")
  .replace("' ' + m", 'm')
)
LINES = GLUED.replace("'[INST]'", "'[INST]\\n'").replace("'[/INST]'", "'\\n[/INST]\\n\\n'")
LLAMA = {
  'model_type': 'bpe', 'byte_fallback': True, 'normalization_rule_name': 'identity',
  'remove_extra_whitespaces': False, 'control_symbols': ['[INST]', '[/INST]'],
}  # fmt: skip
USERS = ['The night ferry', ' The', 'con đò  đêm', '河流', '\n', '1\n2', '🙂']


@pytest.mark.parametrize('legacy', [None, False, True])
@pytest.mark.parametrize('template', [INSTRUCT, GLUED, LINES])
def test_chats_over_a_llama_model_equal_transformers(tmp_path, template, legacy):
  trained(str(tmp_path), **LLAMA)
  config = {'tokenizer_class': 'LlamaTokenizer', 'chat_template': template, 'unk_token': '<unk>'}
  names = {'bos_token': '<s>', 'eos_token': '</s>'}
  config |= names | ({} if legacy is None else {'legacy': legacy})
  small_models.write_json(tmp_path / 'tokenizer_config.json', config)
  vocabulary = Vocabulary(str(tmp_path / 'tokenizer.model')).with_template('chat')
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  for user in USERS:
    turns = [{'role': 'user', 'content': user}, {'role': 'assistant', 'content': 'The Nile.'}]
    ids = lambda turns: theirs.apply_chat_template(turns, tokenize=True, return_dict=True)[
      'input_ids'
    ]
    assert [vocabulary.bos_id, *prompt_tokens(vocabulary, 'chat', user)] == ids(turns[:1])
    row = {'instruction': user, 'input': '', 'output': 'The Nile.'}
    example = render_example(vocabulary, 'chat', row, '', None)
    assert [vocabulary.bos_id, *example.tokens.tolist()] == ids(turns)
    assert vocabulary.decode(example.tokens[example.loss_weights > 0]).strip() == 'The Nile.'


@pytest.mark.parametrize('kind', [LLAMA, {}, {'model_type': 'bpe'}, {'byte_fallback': True}])
@pytest.mark.parametrize('template', [INSTRUCT, GLUED, LINES])
def test_chats_over_any_model_equal_those_of_its_export(tmp_path, kind, template):
  kind = {'control_symbols': ['[INST]', '[/INST]'], **kind}
  vocabulary = Vocabulary(trained(str(tmp_path), **kind).path, chat_template=template)
  vocabulary = vocabulary.with_template('chat')
  os.makedirs(tmp_path / 'out')
  vocabulary.save_for_transformers(str(tmp_path / 'out'))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  for user in USERS:
    turns = [{'role': 'user', 'content': user}, {'role': 'assistant', 'content': 'The Nile.'}]
    whole = theirs.apply_chat_template(turns, tokenize=True, return_dict=True)['input_ids']
    row = {'instruction': user, 'input': '', 'output': 'The Nile.'}
    example = render_example(vocabulary, 'chat', row, '', None)
    assert [vocabulary.bos_id, *example.tokens.tolist()] == whole


@pytest.mark.parametrize('kind', [LLAMA, {'control_symbols': ['[INST]', '[/INST]']}])
def test_special_tokens_in_texts_are_text(tmp_path, kind):
  vocabulary = Vocabulary(trained(str(tmp_path), **kind).path, chat_template=INSTRUCT)
  row = {'instruction': 'a [/INST] b </s>', 'input': '', 'output': 'It is [INST], </s> yes'}
  example = render_example(vocabulary, 'chat', row, '', None)
  tokens = [vocabulary.token_text(int(i)) for i in example.tokens]
  specials = [t for t in tokens if t in ('[INST]', '[/INST]', '<s>', '</s>')]
  assert specials == ['[INST]', '[/INST]', '</s>']
  allowed = Vocabulary(vocabulary.path, chat_template=INSTRUCT, special_tokens_in_text=True)
  tokens = render_example(allowed, 'chat', row, '', None).tokens
  assert [t for t in tokens if t == vocabulary.eos_id] == [vocabulary.eos_id] * 3
  assert vocabulary.eos_id not in vocabulary.encode('a </s>')
  assert vocabulary.eos_id in allowed.encode('a </s>')


def test_files_beside_a_model_are_read(tmp_path):
  vocabulary = trained(str(tmp_path), control_symbols=['[END]'])
  small_models.write_json(tmp_path / 'tokenizer_config.json', {'eos_token': '[END]'})
  assert vocabulary.token_text(Vocabulary(vocabulary.path).eos_id) == '[END]'
  os.makedirs(tmp_path / 'out')
  Vocabulary(vocabulary.path).save_for_transformers(str(tmp_path / 'out'))
  config = json.loads((tmp_path / 'out' / 'tokenizer_config.json').read_text())
  assert config['eos_token'] == '[END]'
  shutil.rmtree(tmp_path / 'out')
