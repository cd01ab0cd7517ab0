"""Conversations through published kinds of chat templates: tokens and what is trained of them
against transformers.
"""

import os

import chat_templates
from chat_templates import SPECIALS, TEMPLATES
import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
import small_models

from crossin_jax.checkpoints.saved_prompts import Prompts
from crossin_jax.data.chat import ChatTemplateError
from crossin_jax.data.prompts import Rejected, render_example, stop_id
from crossin_jax.data.vocabulary import Vocabulary

transformers = pytest.importorskip('transformers', reason='the comparison needs the extra `test`')
pytestmark = pytest.mark.filterwarnings('ignore:the chat template')

user = lambda text: {'role': 'user', 'content': text}
answer = lambda text, **more: {'role': 'assistant', 'content': text, **more}
SYSTEM = {'role': 'system', 'content': 'Trả lời ngắn gọn.'}
TURNS = [
  user('Name three rivers. '), answer('The Nile, 河流 🙂.'), user('{{ More }}\nplease'),
  answer('con đò'), user('Why?'), answer('Noon.'),
]  # fmt: skip
CONVERSATIONS = {
  'three turns': TURNS,
  'system': [SYSTEM, *TURNS[:2]],
  'system, two turns': [SYSTEM, *TURNS[:4]],
  'alike': [user('11'), answer('11'), user('11'), answer('11')],
}


@pytest.fixture(scope='module')
def opened(tmp_path_factory):
  """A function: name of a template -> (Vocabulary, tokenizer of transformers)."""
  made = {}

  def make(name):
    if name not in made:
      folder, template = str(tmp_path_factory.mktemp('tokenizer')), TEMPLATES[name]
      names = {'bos_token': '<s>', 'eos_token': template.eos, 'unk_token': '<unk>'}
      small_models.write_tokenizer(folder, SPECIALS, names, template.text, chat_templates.PLAIN)
      theirs = transformers.AutoTokenizer.from_pretrained(folder)
      made[name] = Vocabulary(f'{folder}/tokenizer.json').with_template('chat'), theirs
    return made[name]

  return make


def ids_of(theirs, messages, **options):
  result = theirs.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
  return list(result['input_ids'])


def bos(vocabulary):
  return [] if vocabulary.bos_id is None else [vocabulary.bos_id]


def placed(template, messages):
  """The messages as a template without system role gets them."""
  if template.system or messages[0]['role'] != 'system':
    return messages
  return [user(f'{messages[0]["content"]}\n\n{messages[1]["content"]}'), *messages[2:]]


def rendered(vocabulary, messages, which='all', max_length=None):
  example = render_example(vocabulary, 'chat', {'messages': messages}, '', max_length, which)
  start = bos(vocabulary)
  return start + example.tokens.tolist(), [0.0] * len(start) + example.loss_weights.tolist(), (
    example.shortened
  )  # fmt: skip


def wanted(theirs, messages, which, stop):
  """(weights, untrained answers) from transformers' own renderings: an answer is trained where the
  prompt of it and it itself, as last turn, are how the conversation starts.
  """
  whole, answers = ids_of(theirs, messages), range(len(messages))
  answers = [i for i in answers if messages[i]['role'] == 'assistant']
  weights, untrained = np.zeros(len(whole)), 0
  for i in answers if which == 'all' else answers[-1:]:
    asked = ids_of(theirs, messages[:i], add_generation_prompt=True)
    then = ids_of(theirs, messages[: i + 1])
    end = len(then) - then[::-1].index(stop)
    for kept in (end, end - 1):
      if then[: len(asked)] == asked and whole[:kept] == then[:kept]:
        weights[len(asked) : kept] = 1
        break
    else:
      untrained += 1
  return weights.tolist(), untrained


@pytest.mark.parametrize('which', ['all', 'last'])
@pytest.mark.parametrize('messages', CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize('name', TEMPLATES)
def test_tokens_and_trained_tokens_equal_transformers(opened, name, messages, which):
  (vocabulary, theirs), template = opened(name), TEMPLATES[name]
  given = placed(template, messages)
  prompt = bos(vocabulary) + vocabulary.chat_prompt(messages[:-1])
  assert prompt == ids_of(theirs, given[:-1], add_generation_prompt=True)
  stop = theirs.convert_tokens_to_ids(template.stop)
  assert stop_id(vocabulary, 'chat') == stop
  if template.rejects and len(given) > 2:
    with pytest.raises(Rejected, match='prompt_differs'):
      rendered(vocabulary, messages, which)
    return
  tokens, weights, shortened = rendered(vocabulary, messages, which)
  whole = ids_of(theirs, given)
  assert tokens == whole[: len(tokens)]
  assert given[-1]['content'] not in theirs.decode(whole[len(tokens) :])
  if template.marked:
    mask = theirs.apply_chat_template(
      given, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )['assistant_masks'][: len(tokens)]
    if which == 'last':
      before = len(os.path.commonprefix([whole, ids_of(theirs, given[:-1])]))
      mask = [m if i >= before else 0 for i, m in enumerate(mask)]
    assert weights == mask
    return
  expected, untrained = wanted(theirs, given, which, stop)
  assert weights == expected[: len(tokens)] and not any(expected[len(tokens) :])
  assert ('untrained_turns' in shortened) == bool(untrained)
  earlier = (len(given) // 2 - 1) if which == 'all' else 0
  assert untrained == (earlier if template.earlier == 'none' else 0)
  trained = theirs.decode([t for t, w in zip(tokens, weights) if w])
  stops = trained.count(template.stop)
  assert stops == 1 + (earlier if template.earlier == 'all' else 0)


@pytest.mark.parametrize('name', TEMPLATES)
def test_what_templates_take(opened, name):
  vocabulary, _ = opened(name)
  assert vocabulary._takes_system == TEMPLATES[name].system
  assert vocabulary.reasoning_field == TEMPLATES[name].reasoning


WORDS = st.text(st.sampled_from('ab \n.<|1é河{}\t'), min_size=1, max_size=12).filter(str.strip)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(
  name=st.sampled_from(sorted(TEMPLATES)),
  texts=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4),
  system=st.none() | WORDS,
  which=st.sampled_from(['all', 'last']),
)
def test_any_conversation_is_as_transformers_renders_it(opened, name, texts, system, which):
  (vocabulary, theirs), template = opened(name), TEMPLATES[name]
  messages = [] if system is None else [{'role': 'system', 'content': system}]
  for i, (question, said) in enumerate(texts):
    messages += [user(f'Ü{i}{question}Ü'), answer(f'A{i}{said}A')]
  given = placed(template, messages)
  prompt = bos(vocabulary) + vocabulary.chat_prompt(messages[:-1])
  assert prompt == ids_of(theirs, given[:-1], add_generation_prompt=True)
  if template.rejects and len(given) > 2:
    return
  tokens, weights, _ = rendered(vocabulary, messages, which)
  assert tokens == ids_of(theirs, given)[: len(tokens)]
  trained = theirs.decode([t for t, w in zip(tokens, weights) if w])
  assert 'Ü' not in trained and f'A{len(texts) - 1}' in trained
  is_first = len(texts) == 1 or which == 'all' and template.earlier != 'none'
  assert ('A0' in trained) == is_first


def with_options(opened, name, **options):
  vocabulary, theirs = opened(name)
  return Vocabulary(vocabulary.path, chat_options=options).with_template('chat'), theirs


@pytest.mark.parametrize('name, options', [
  ('Qwen3', {'enable_thinking': False}), ('Qwen3', {'enable_thinking': True}),
  ('SmolLM3', {'enable_thinking': False}), ('SmolLM3', {'enable_thinking': True}),
  ('Llama 3.1', {'date_string': '1 May 2026'}), ('Llama 3.1', {'tools': None}),
  ('Llama 3.3', {'date_string': '1 May 2026'}), ('Apertus', {'enable_thinking': True}),
])  # fmt: skip
def test_arguments_reach_every_rendering(opened, name, options):
  vocabulary, theirs = with_options(opened, name, **options)
  plain, _ = opened(name)
  for messages in CONVERSATIONS.values():
    prompt = ids_of(theirs, messages[:-1], add_generation_prompt=True, **options)
    assert bos(vocabulary) + vocabulary.chat_prompt(messages[:-1]) == prompt
    tokens, weights, _ = rendered(vocabulary, messages)
    assert tokens == ids_of(theirs, messages, **options)[: len(tokens)]
    last = theirs.decode([t for t, w in zip(tokens, weights) if w])
    assert messages[-1]['content'] in last
    if TEMPLATES[name].marked:
      mask = theirs.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **options
      )
      assert weights == mask['assistant_masks'][: len(tokens)]
    elif name == 'Qwen3':
      assert ('<think>' in last) == options['enable_thinking']
  assert plain.digest == vocabulary.digest


THOUGHT = [*TURNS[:3], answer('con đò', reasoning_content='Which <one>?\nThat.')]


@pytest.mark.parametrize('name', [n for n, t in TEMPLATES.items() if t.reasoning])
@pytest.mark.parametrize('messages', [THOUGHT, THOUGHT[2:]], ids=['two turns', 'one turn'])
def test_reasoning_is_rendered_and_trained(opened, name, messages):
  vocabulary, theirs = opened(name)
  tokens, weights, _ = rendered(vocabulary, messages, 'last')
  field = TEMPLATES[name].reasoning
  named = [
    {field if key == 'reasoning_content' else key: text for key, text in message.items()}
    for message in messages
  ]
  assert tokens == ids_of(theirs, named)[: len(tokens)]
  trained = theirs.decode([t for t, w in zip(tokens, weights) if w])
  assert trained.startswith(('<think>', '<|channel|>')) and trained.endswith(
    f'con đò{TEMPLATES[name].stop}'
  )
  assert 'Which <one>?\nThat.' in trained and 'Nile' not in trained


def test_a_prompt_that_contradicts_the_reasoning_names_the_argument(opened):
  vocabulary, _ = with_options(opened, 'Qwen3', enable_thinking=False)
  with pytest.warns(UserWarning) as caught, pytest.raises(Rejected, match='prompt_differs'):
    rendered(vocabulary, THOUGHT)
  (message,) = {str(w.message) for w in caught}
  assert "Vocabulary.chat_options = {'enable_thinking': True} makes both equal" in message
  assert 'its row is dropped (prompt_differs)' in message


def test_rewritten_turns_are_said_once_with_the_argument_that_keeps_them(opened):
  path = opened('Qwen3')[0].path
  text = TEMPLATES['Qwen3'].text.replace(
    'loop.index0 > ns.last', 'loop.index0 > ns.last or preserve_thinking'
  )
  vocabulary = Vocabulary(path, chat_template=text).with_template('chat')
  with pytest.warns(UserWarning) as caught:
    for _ in range(3):
      assert rendered(vocabulary, TURNS)[2] == 'untrained_turns'
  (message,) = {str(w.message) for w in caught}
  assert 'writes an earlier answer in another way than the last one' in message
  assert "Vocabulary.chat_options = {'preserve_thinking': True} makes both equal" in message
  kept = Vocabulary(path, chat_template=text, chat_options={'preserve_thinking': True})
  tokens, weights, shortened = rendered(kept.with_template('chat'), TURNS)
  trained = opened('Qwen3')[1].decode([t for t, w in zip(tokens, weights) if w])
  assert not shortened and trained.count('<think>') == 3


@pytest.mark.filterwarnings('default:the chat template')
@pytest.mark.parametrize('name, message', [
  ('DeepSeek R1 distilled', "answers begin after the first, which training has not seen"),
  ('OLMo 3 Think', "answers begin after the first, which training has not seen"),
])  # fmt: skip
def test_templates_that_prompt_in_another_way_say_so(opened, name, message):
  vocabulary = Vocabulary(opened(name)[0].path)
  with pytest.warns(UserWarning, match=message):
    stop_id(vocabulary, 'chat')


def test_a_template_without_a_generation_prompt_says_what_is_trained(opened):
  text = TEMPLATES['ChatML'].text.replace('add_generation_prompt', 'false')
  vocabulary, (_, theirs) = (
    Vocabulary(opened('ChatML')[0].path, chat_template=text),
    opened('ChatML'),
  )
  message = "without add_generation_prompt: the model itself writes '<|im_start|>assistant' before"
  with pytest.warns(UserWarning, match=message.replace('|', r'\|')):
    tokens, weights, _ = rendered(vocabulary, TURNS)
  trained = theirs.decode([t for t, w in zip(tokens, weights) if w])
  assert trained.count('<|im_start|>assistant\n') == trained.count('<|im_end|>') == 3


def test_a_system_turn_without_a_role_for_it_is_an_error_by_choice(opened):
  path = opened('Gemma 2')[0].path
  strict = Vocabulary(path, system_role='error').with_template('chat')
  with pytest.raises(ChatTemplateError, match="no system role.*system_role = 'first_user'"):
    rendered(strict, CONVERSATIONS['system'])
  with pytest.raises(ValueError, match="system_role = 'x' is not 'first_user' or 'error'"):
    Vocabulary(path, system_role='x')


def test_a_conversation_needs_the_template_chat(opened):
  with pytest.raises(Rejected, match='conversation_needs_template_chat'):
    render_example(opened('ChatML')[0], 'alpaca', {'messages': TURNS}, '', None)


def test_long_conversations_lose_their_end(opened):
  vocabulary, _ = opened('ChatML')
  tokens, weights, _ = rendered(vocabulary, TURNS)
  short = rendered(vocabulary, TURNS, max_length=len(tokens) - 5)
  assert short == (tokens[:-5], weights[:-5], 'output')
  with pytest.raises(Rejected, match='prompt_too_long'):
    rendered(vocabulary, TURNS, max_length=5)
  with pytest.raises(Rejected, match='prompt_too_long'):
    rendered(vocabulary, TURNS, 'last', max_length=len(tokens) - 20)


def test_special_tokens_in_turns_are_text(opened):
  (vocabulary, theirs), quoted = opened('ChatML'), 'a<|im_end|>b </s>'
  messages = [user(quoted), answer(quoted), user(quoted), answer(quoted)]
  tokens, weights, _ = rendered(vocabulary, messages)
  plain, _, _ = rendered(vocabulary, [{**m, 'content': 'ab'} for m in messages])
  specials = set(theirs.convert_tokens_to_ids(SPECIALS))
  assert [t for t in tokens if t in specials] == [t for t in plain if t in specials]
  assert theirs.decode(tokens) + '\n' == theirs.decode(ids_of(theirs, messages))
  assert theirs.decode([t for t, w in zip(tokens, weights) if w]) == f'{quoted}<|im_end|>' * 2


def test_generation_prompts_with_what_training_renders(opened):
  vocabulary, theirs = opened('Qwen2.5')
  prompts = Prompts(os.path.dirname(vocabulary.path))
  asked = [SYSTEM, *TURNS[:3]]
  ids = prompts.tokens({'messages': asked})
  assert ids == ids_of(theirs, asked, add_generation_prompt=True)
  tokens, weights, _ = rendered(vocabulary, [*asked, TURNS[3]], 'last')
  assert tokens[: weights.index(1.0)] == ids
  shared = [{'from': 'human', 'value': 'Hi'}]
  tagged = prompts.tokens({'messages': shared}, '[zh]')
  assert tagged == prompts.tokens({'instruction': 'Hi'}, '[zh]')
  plain = Prompts(os.path.dirname(vocabulary.path))
  plain.template = 'plain'
  with pytest.raises(ValueError, match="has messages, and the model is prompted with .* 'plain'"):
    plain.tokens({'messages': asked})


def test_a_template_that_omits_reasoning_says_so(opened):
  vocabulary, theirs = opened('Phi-4')
  with pytest.warns(UserWarning, match='does not write reasoning_content: such rows are trained'):
    tokens, _, _ = rendered(vocabulary, THOUGHT)
  assert 'Which' not in theirs.decode(tokens)
