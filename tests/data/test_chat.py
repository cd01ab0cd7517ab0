"""Chat templates against transformers' own rendering and tokenising."""

import json
import os

import numpy as np
import pytest

from crossin_jax.checkpoints.saved_prompts import Prompts
from crossin_jax.data import chat
from crossin_jax.data.prompts import Rejected, prompt_tokens, render_example, stop_id
from crossin_jax.data.vocabulary import Vocabulary

CHATML = (
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
  "+ '<|im_end|>' + '\\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
  '{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}{{ '
  "'<|start_header_id|>' + message['role'] + "
  "'<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% "
  'endif %}'
)
INSTRUCT = (
  "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + "
  "message['content'] + "
  "' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}{% "
  'else %}'
  "{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
TEMPLATES = {'chatml': CHATML, 'llama3': LLAMA3, 'instruct': INSTRUCT}
SPECIALS = [
  '<s>',
  '</s>',
  '<|im_start|>',
  '<|im_end|>',
  '<|start_header_id|>',
  '<|end_header_id|>',
  '<|eot_id|>',
]
ROW = {
  'instruction': 'Give three tips.\n Thử "xem" {{ x }}',
  'input': 'về sức khoẻ 🙂',
  'output': 'Ăn, ngủ, tập.',
}


@pytest.fixture(scope='module')
def byte_level(tmp_path_factory):
  """A function: chat template -> Vocabulary of a byte-level BPE tokenizer.json with that template
  beside it.
  """
  import tokenizers

  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=400,
    special_tokens=SPECIALS,
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
  )
  tokenizer.train_from_iterator(
    ['Give three tips, user assistant. Ăn ngủ tập thể dục ' * 20], trainer
  )

  def make(template, in_config=True):
    folder = tmp_path_factory.mktemp('tokenizer')
    tokenizer.save(str(folder / 'tokenizer.json'))
    config = {'bos_token': '<s>', 'eos_token': '</s>', 'tokenizer_class': 'PreTrainedTokenizerFast'}
    if in_config:
      config['chat_template'] = template
    elif template is not None:
      (folder / 'chat_template.jinja').write_text(template)
    (folder / 'tokenizer_config.json').write_text(json.dumps(config))
    return Vocabulary(str(folder / 'tokenizer.json'))

  return make


@pytest.mark.parametrize('name', TEMPLATES)
@pytest.mark.parametrize('in_config', [True, False])
def test_tokens_equal_transformers(byte_level, name, in_config):
  transformers = pytest.importorskip('transformers', reason='the comparison needs the extra `test`')
  vocabulary = byte_level(TEMPLATES[name], in_config)
  theirs = transformers.AutoTokenizer.from_pretrained(os.path.dirname(vocabulary.path))
  user = f'{ROW["instruction"]}\n{ROW["input"]}\n[vi]'
  turns = [{'role': 'user', 'content': user}, {'role': 'assistant', 'content': ROW['output']}]
  ids = lambda messages, **kwargs: list(
    theirs.apply_chat_template(messages, tokenize=True, return_dict=True, **kwargs)['input_ids']
  )
  without_bos = lambda tokens: tokens[1:] if tokens[0] == vocabulary.bos_id else tokens
  prompt = prompt_tokens(vocabulary, 'chat', ROW['instruction'], ROW['input'], '[vi]')
  assert prompt == without_bos(ids(turns[:1], add_generation_prompt=True))
  example = render_example(vocabulary, 'chat', ROW, '[vi]', None)
  whole = without_bos(ids(turns))
  assert example.tokens.tolist() == whole[: len(example.tokens)]
  # Trained: the response and its stop token; nothing of the template's follows that matters.
  trained = example.tokens[example.loss_weights > 0]
  stop = {'chatml': '<|im_end|>', 'llama3': '<|eot_id|>', 'instruct': '</s>'}[name]
  assert trained[-1] == stop_id(vocabulary, 'chat') == SPECIALS.index(stop)
  assert vocabulary.decode(trained[:-1]) == ROW['output']
  assert theirs.decode(whole[len(example.tokens) :]).strip() == ''


@pytest.mark.parametrize('template, message', [
    ("{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor "
     "%}</s>", 'no token would be trained'),
    ('{% for %}', 'not valid Jinja'),
    ("{{ raise_exception('no thanks') }}", 'refuses the conversation: no thanks'),
    ("{{ ''.__class__.__mro__ }}", 'cannot be rendered'),
    (None, 'no chat template beside'),
])  # fmt: skip
def test_templates_that_cannot_serve_are_refused(byte_level, template, message):
  vocabulary = byte_level(template, in_config=template is not None)
  with pytest.raises(ValueError, match=message):
    stop_id(vocabulary, 'chat')


def test_sentencepiece_models_know_their_specials_in_chat_templates(tiny_vocabulary):
  vocabulary = Vocabulary(tiny_vocabulary.path, chat_template=INSTRUCT)
  prompt = prompt_tokens(vocabulary, 'chat', 'What is it?')
  assert (
    vocabulary.bos_id not in prompt and vocabulary.decode(prompt) == '[INST] What is it? [/INST]'
  )
  assert stop_id(vocabulary, 'chat') == vocabulary.eos_id


def test_chat_rows_are_shortened_and_refused_like_others(byte_level):
  vocabulary = byte_level(CHATML)
  whole = render_example(vocabulary, 'chat', ROW | {'input': 'long ' * 50}, '[vi]', None)
  short = render_example(
    vocabulary, 'chat', ROW | {'input': 'long ' * 50}, '[vi]', len(whole.tokens) - 40
  )
  assert short.shortened == 'input' and len(short.tokens) <= len(whole.tokens) - 40
  assert short.tokens[-1] == stop_id(vocabulary, 'chat') and '[vi]' in vocabulary.decode(
    short.tokens
  )
  with pytest.raises(Rejected, match='prompt_too_long'):
    render_example(vocabulary, 'chat', ROW, '[vi]', 5)


def test_what_training_used_is_used_again(byte_level, tiny_settings, tmp_path):
  """prompts.json of a chat mixture prompts like training did, without any file of the tokenizer's
  folder.
  """
  from crossin_jax.checkpoints import run_directory
  from crossin_jax.data.prepared import PreparedMixture
  from seqio_tasks.prepare import prepare

  vocabulary = byte_level(CHATML)
  mixture = 'world.base_x2x.all.en_zh_vi_es.every'
  prepare(
    mixture,
    str(tmp_path / 'data'),
    tiny_settings(vocabulary=vocabulary, template='chat', max_length=256),
    workers=1,
  )
  prepared = PreparedMixture(str(tmp_path / 'data'), mixture)
  os.makedirs(tmp_path / 'run')
  run_directory.describe(str(tmp_path / 'run'), prepared, '')
  os.unlink(vocabulary.path)
  prompts = Prompts(str(tmp_path / 'run'))
  assert prompts.template == 'chat' and prompts.stop_id == SPECIALS.index('<|im_end|>')
  assert prompts.vocabulary.eos_id == 1 and prompts.vocabulary.bos_id is None
  task = next(t for t in prepared.tasks if t.info['mode'] == 'base')
  tokens, weights = task.split.example(0)
  text = prompts.vocabulary.decode(tokens[weights == 0])
  question = text.removeprefix('user\n').removesuffix('\nassistant\n')
  assert prompts.tokens({'instruction': question}) == tokens[np.asarray(weights) == 0].tolist()


def test_a_hugging_face_directory_is_prompted_by_its_chat_template(byte_level):
  vocabulary = byte_level(LLAMA3)
  prompts = Prompts(os.path.dirname(vocabulary.path))
  assert prompts.template == 'chat' and prompts.stop_id == SPECIALS.index('<|eot_id|>')
  plain = Prompts(os.path.dirname(byte_level(None, in_config=False).path))
  assert plain.template == 'plain' and plain.stop_id == 1


def test_render_shows_braces_of_the_user_as_they_are():
  assert '{{ x }}' in chat.prompt(CHATML, 'keep {{ x }}', bos_token='<s>', eos_token='</s>')
