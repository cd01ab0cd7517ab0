"""Conversations aligned across languages: which turn is in which language, what is counted, and
what `prepare` writes.
"""

import json

import pytest
import small_models

from crossin_jax.data.mixture_name import MixtureName
from crossin_jax.data.prepared import PreparedDataError, PreparedMixture
from crossin_jax.data.prompts import Rejected, render_example
from crossin_jax.data.vocabulary import Vocabulary
from seqio_tasks.mixtures import MixtureSettings, mixture_entries
from seqio_tasks.prepare import prepare
from seqio_tasks.sources import ParallelFiles, SourceError

THINKING = (
  "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}{%- if m.reasoning_content %}"
  "{{- '<think>' + m.reasoning_content + '</think>' }}{%- endif %}{{- m.content + '<|im_end|>\\n' }}"
  "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def turns(language, count=2, system=False, thought=''):
  found = [{'role': 'system', 'content': f'{language} rule'}] if system else []
  for i in range(count):
    last = {'reasoning_content': f'{language} {thought}'} if thought and i == count - 1 else {}
    found += [
      {'role': 'user', 'content': f'{language} ask {i}'},
      {'role': 'assistant', 'content': f'{language} say {i}', **last},
    ]
  return found


def write(stem, rows):
  for language in ('en', 'zh'):
    with open(f'{stem}_{language}.json', 'w', encoding='utf-8') as f:
      json.dump([{'id': id_, **make(language)} for id_, make in rows.items()], f)
  return ParallelFiles(str(stem), ('en', 'zh'), name='rows')


def row(language):
  return {'instruction': f'{language} ask', 'output': f'{language} say'}


ROWS = {
  'two': lambda x: {'messages': turns(x)},
  'system': lambda x: {'messages': turns(x, 1, system=True)},
  'single': row,
  'thought': lambda x: {'messages': turns(x, 1, thought='hm')},
  'half a thought': lambda x: {'messages': turns(x, 1, thought='hm' * (x == 'en'))},
}


@pytest.fixture
def source(tmp_path):
  return write(tmp_path / 'rows', ROWS)


@pytest.fixture(scope='module')
def vocabulary(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tokenizer')
  small_models.write_tokenizer(
    folder, ['<|im_start|>', '<|im_end|>'], {'eos_token': '<|im_end|>'}, THINKING
  )
  return Vocabulary(f'{folder}/tokenizer.json')


def tasks(source, vocabulary, variant, **changes):
  settings = MixtureSettings(
    parallel=source, vocabulary=vocabulary, template='chat', validation_rows=0, **changes
  )
  name = MixtureName.parse(f'rows.{variant}.all.en_zh.default')
  return {
    (entry.task.mode, entry.task.source_language): entry.task
    for entry in mixture_entries(name, settings)
  }


def messages_of(source, vocabulary, variant, id_):
  (task,) = tasks(source, vocabulary, variant).values()
  return task.fields(list(source.ids()).index(id_))['messages']


def test_rows_are_read_and_those_that_do_not_align_are_counted(tmp_path):
  rows = ROWS | {
    'other number': lambda x: {'messages': turns(x, 2 + (x == 'zh'))},
    'other system': lambda x: {'messages': turns(x, 1, system=x == 'en')},
    'one and two': lambda x: row(x) if x == 'en' else {'messages': turns(x)},
    'control': lambda x: {'messages': turns(f'\x01{x}')},
    'no answer': lambda x: {'messages': turns(x)[:-1]},
  }
  source = write(tmp_path / 'rows', rows)
  assert list(source.ids()) == list(ROWS)
  assert source.row(0, 'zh') == {
    'instruction': '', 'input': '', 'output': '', 'messages': turns('zh'),
  }  # fmt: skip
  assert source.row(2, 'zh') == {'instruction': 'zh ask', 'input': '', 'output': 'zh say'}
  assert source.set_aside() == {
    ('zh', 'turns_not_aligned'): 3, ('en', 'control_characters'): 1, ('en', 'no_answer'): 1,
  }  # fmt: skip
  long = ParallelFiles(str(tmp_path / 'rows'), ('en', 'zh'), max_characters=7)
  assert list(long.ids()) == ['single'] and long.set_aside()['en', 'too_long'] == 7


def test_saved_datasets_hold_the_same_rows(tmp_path, source):
  datasets = pytest.importorskip('datasets', reason='needs datasets, of the extra `test`')
  long = []
  for language in ('en', 'zh', 'pl'):
    rows = [{'id': id_, 'messages': None, **make(language)} for id_, make in ROWS.items()]
    rows = [{**dict.fromkeys(('instruction', 'output')), **row} for row in rows]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / f'saved.{language}')
    long += [{**row, 'language': language} for row in rows if language != 'pl']
  saved = ParallelFiles(str(tmp_path / 'saved'), ('en', 'zh'))
  assert saved.digest() == source.digest()
  assert saved.notes() == ['saved: saved.pl not read, Polish is not in its languages en, zh']
  datasets.Dataset.from_list(long).save_to_disk(tmp_path / 'long')
  assert ParallelFiles(str(tmp_path / 'long'), ('en', 'zh')).digest() == source.digest()


def test_the_digest_sees_turns_and_stays_without_them(tmp_path):
  digest = lambda rows: write(tmp_path / 'rows', rows).digest()
  # Prepared data of earlier versions stays valid.
  assert digest({'a': row}) == ('0fa68fa488689845e39853e3e6f258fa2d0e79806a67b70a1c9691333933a722')
  two = digest({'a': lambda x: {'messages': turns(x)}})
  assert two != digest({'a': lambda x: {'messages': turns(x, 3)}})
  assert two != digest({'a': lambda x: {'messages': turns(x, thought='hm')}})
  # The same conversation in another layout.
  assert two == digest({'a': lambda x: {
    'instruction': f'{x} ask 1', 'output': f'{x} say 1', 'history': [[f'{x} ask 0', f'{x} say 0']],
  }})  # fmt: skip


@pytest.mark.parametrize('variant, asked, said, tag', [
  ('base', 'en', 'en', ''), ('mono', 'zh', 'zh', ''), ('en2x', 'en', 'zh', '[zh]'),
  ('x2en', 'zh', 'en', '[en]'),
])  # fmt: skip
def test_the_mode_chooses_the_language_of_each_turn(source, vocabulary, variant, asked, said, tag):
  behind = f'\n\n{tag}' if tag else ''
  wanted = [
    {'role': 'user', 'content': f'{asked} ask 0{behind}'},
    {'role': 'assistant', 'content': f'{said} say 0'},
    {'role': 'user', 'content': f'{asked} ask 1{behind}'},
    {'role': 'assistant', 'content': f'{said} say 1'},
  ]
  assert messages_of(source, vocabulary, variant, 'two') == wanted
  system = messages_of(source, vocabulary, variant, 'system')
  assert system == [{'role': 'system', 'content': f'{asked} rule'}, *wanted[:2]]
  thought = messages_of(source, vocabulary, variant, 'thought')[-1]
  assert thought == {**wanted[1], 'reasoning_content': f'{said} hm'}


def test_x2x_takes_the_pair_of_the_row_for_all_turns(source, vocabulary):
  for (_, asked), task in tasks(source, vocabulary, 'x2x').items():
    said = {'en': 'zh', 'zh': 'en'}[asked]
    for id_, messages in ((f['id'], f.get('messages')) for f in map(task.fields, range(5))):
      assert (messages is None) == (id_ == 'single')
      for message in messages or ():
        language = said if message['role'] == 'assistant' else asked
        assert message['content'].startswith(language)
        assert message['content'].endswith(f'[{said}]') == (message['role'] == 'user')


def test_a_tag_stands_in_turns_as_in_single_rows(source, vocabulary):
  (task,) = tasks(source, vocabulary, 'en2x').values()
  single = task.fields(2)
  example = task.example(single, None)
  asked = {'role': 'user', 'content': 'en ask\n\n[zh]'}
  turn = [asked, {'role': 'assistant', 'content': 'zh say'}]
  same = render_example(vocabulary, 'chat', {'messages': turn}, '', None)
  assert example.tokens.tolist() == same.tokens.tolist()
  assert example.loss_weights.tolist() == same.loss_weights.tolist()


def test_x2en2x_thinks_in_english(source, vocabulary):
  (task,) = tasks(source, vocabulary, 'x2en2x').values()
  assert task.name == 'rows.x2en2x.zh.zh.among_en_zh.default'
  ids = list(source.ids())
  for id_ in ('thought', 'half a thought'):
    fields = task.fields(ids.index(id_))
    assert fields['messages'] == [
      {'role': 'user', 'content': 'zh ask 0'},
      {'role': 'assistant', 'content': 'zh say 0', 'reasoning_content': 'en hm'},
    ]
    example = task.example(fields, None)
    trained = vocabulary.decode(example.tokens[example.loss_weights > 0], shown=['<|im_end|>'])
    assert trained == '<think>en hm</think>zh say 0<|im_end|>'
  for id_ in ('two', 'system', 'single'):
    with pytest.raises(Rejected, match='no_reasoning'):
      task.example(task.fields(ids.index(id_)), None)
  text = THINKING.replace('m.reasoning_content', 'false')
  silent = Vocabulary(vocabulary.path, chat_template=text)
  (task,) = tasks(source, silent, 'x2en2x').values()
  with pytest.raises(Rejected, match='template_omits_reasoning'):
    task.example(task.fields(ids.index('thought')), None)


def test_x2en2x_needs_english(tmp_path, vocabulary):
  write(tmp_path / 'rows', ROWS)
  chinese = ParallelFiles(str(tmp_path / 'rows_zh.json'), ('zh',), name='rows')
  with pytest.raises(ValueError, match='source rows has no rows in en; it has zh'):
    tasks(chinese, vocabulary, 'x2en2x')


def test_trans_translates_the_first_question(source, vocabulary):
  (task,) = tasks(source, vocabulary, 'trans').values()
  for index in (0, 1, 3):
    fields = task.fields(index)
    assert 'messages' not in fields
    assert (fields['input'], fields['output']) == ('zh ask 0', 'en ask 0')


def run(tmp_path, source, vocabulary, variant='base_en2x_x2en2x', **changes):
  changes = {'template': 'chat', 'validation_rows': 0, **changes}
  settings = MixtureSettings(parallel=source, vocabulary=vocabulary, **changes)
  return prepare(f'rows.{variant}.all.en_zh.default', str(tmp_path / 'out'), settings, workers=1)


def test_what_is_prepared(tmp_path, source, vocabulary):
  found = run(tmp_path, source, vocabulary)
  assert found['examples'] == 12 and found['dropped'] == {'no_reasoning': 3}
  mixture = PreparedMixture(str(tmp_path / 'out'), 'rows.base_en2x_x2en2x.all.en_zh.default')
  stored = {t.info['mode']: t.split for t in mixture.tasks}['en2x']
  (index,) = (i for i in range(5) if stored.id(i) == 'two')
  tokens, weights = stored.example(index)
  assert vocabulary.decode(tokens[weights > 0]) == 'zh say 0zh say 1'
  prompt = vocabulary.decode(tokens[weights == 0])
  assert prompt.count('en ask') == prompt.count('[zh]') == 2 and 'say' not in prompt
  with pytest.raises(PreparedDataError, match='stale: trained_turns was None, now last'):
    run(tmp_path, source, vocabulary, trained_turns='last')


def test_the_last_turn_alone_can_be_trained(tmp_path, source, vocabulary):
  run(tmp_path, source, vocabulary, 'base', trained_turns='last')
  mixture = PreparedMixture(str(tmp_path / 'out'), 'rows.base.all.en_zh.default')
  texts = []
  for i in range(5):
    tokens, weights = mixture.tasks[0].split.example(i)
    texts.append(vocabulary.decode(tokens[weights > 0]).split('</think>')[-1])
  assert sorted(texts) == ['en say', 'en say 0', 'en say 0', 'en say 0', 'en say 1']
  with pytest.raises(PreparedDataError, match='stale: trained_turns was last, now None'):
    run(tmp_path, source, vocabulary, 'base')
  with pytest.raises(ValueError, match="trained_turns = 'first' is not 'all' or 'last'"):
    run(tmp_path, source, vocabulary, trained_turns='first')


def test_other_templates_count_conversations(tmp_path, source, vocabulary):
  found = run(tmp_path, source, vocabulary, 'base', template='alpaca')
  assert found['examples'] == 1
  assert found['dropped'] == {'conversation_needs_template_chat': 4}


def test_tfds_refuses_conversations(tmp_path, source):
  from seqio_tasks import tfds_builder as builder

  with pytest.raises(SourceError, match="id 'two': is a conversation"):
    builder.build(source, str(tmp_path / 'tfds'))


@pytest.mark.slow
def test_registered_tasks_give_what_prepare_wrote(tmp_path, source, vocabulary):
  import seqio

  from seqio_tasks.registration import register

  run(tmp_path, source, vocabulary, 'en2x')
  settings = MixtureSettings(
    parallel=source, vocabulary=vocabulary, template='chat', validation_rows=0
  )
  (task,) = register('rows.en2x.all.en_zh.default', settings).tasks
  mixture = PreparedMixture(str(tmp_path / 'out'), 'rows.en2x.all.en_zh.default')
  lengths = {'targets': 2048, 'loss_weights': 2048}
  data = seqio.get_mixture_or_task(task.name).get_dataset(lengths, 'train', shuffle=False)
  found = list(data.as_numpy_iterator())
  assert len(found) == 5
  for i, example in enumerate(found):
    tokens, weights = mixture.tasks[0].split.example(i)
    assert example['targets'].tolist() == tokens.tolist()
    assert example['loss_weights'].tolist() == weights.tolist()
