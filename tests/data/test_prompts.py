"""Prompts to the letter, and what happens to rows that are too long."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from crossin_jax.data import prompts
from crossin_jax.data.prompts import Rejected, render_example, render_prompt, render_whole

# The prompts of docs/design/methods.md, written out: the slot {output_lang} behind each of them is empty.
WITH_INPUT = {
  'alpaca': 'Below is an instruction that describes a task, paired with an input that provides '
  'further context. Write a '
  'response that appropriately completes the request.\n\n### Instruction:\nI\n\n### '
  'Input:\nX\n\n### Response:\n ',
  'cl_boost': 'Below is an instruction that describes a task in one or more languages, paired '
  'with an input in one or more '
  'language that provides further context. Write a response that appropriately completes the '
  'request.\n\n'
  '### Instruction:\nI\n\n### Input:\nX\n\n### Response:\n ',
  'llama': '[INST] <<SYS>>\nYou are a helpful assistant.\n<</SYS>>\n\nI\nX[/INST]',
  'gemma': 'I\nX\n',
  'plain': 'I\nX\n',
  'xinstruction': 'Below is an instruction that describes a task. Write a response that '
  'appropriately completes the request.\n\n'
  '### Instruction:\nI\nX \n\n### Response:',
  'xins': 'Below is a text that describes a candidate output. Write an English instruction that '
  'can take the given text as an '
  'appropriate answer.\n\n### Text:\nI\nX\n\n### English Instruction:',
  'xrate': 'Below are an English instruction and a text that may answer it. Rate the text: 3 '
  'answers the instruction well, 2 has '
  'flaws, 1 does not answer it.\n\n### Instruction:\nI\n\n### Text:\nX\n\n### Level:',
}
WITHOUT_INPUT = {
  'alpaca': 'Below is an instruction that describes a task. Write a response that appropriately '
  'completes the request.\n\n'
  '### Instruction:\nI\n\n### Response:\n ',
  'cl_boost': 'Below is an instruction that describes a task in one or more languages. Write a '
  'response that appropriately '
  'completes the request.\n\n### Instruction:\nI\n\n### Response:\n ',
  'llama': '[INST] <<SYS>>\nYou are a helpful assistant.\n<</SYS>>\n\nI\n[/INST]',
  'gemma': 'I\n',
  'plain': 'I\n',
  'xinstruction': 'Below is an instruction that describes a task. Write a response that '
  'appropriately completes the request.\n\n'
  '### Instruction:\nI \n\n### Response:',
  'xins': 'Below is a text that describes a candidate output. Write an English instruction that '
  'can take the given text as an '
  'appropriate answer.\n\n### Text:\nI\n\n### English Instruction:',
  'xrate': 'Below is an English instruction without any text to answer it.\n\n### '
  'Instruction:\nI\n\n### Level:',
}
TEMPLATE = st.sampled_from(list(prompts.TEMPLATES))


def test_every_template_is_tested():
  assert set(prompts.TEMPLATES) == set(WITH_INPUT) == set(WITHOUT_INPUT)


@pytest.mark.parametrize('template', list(WITH_INPUT))
def test_templates_to_the_letter(template):
  assert render_prompt(template, 'I', 'X') == WITH_INPUT[template]
  assert render_prompt(template, 'I') == WITHOUT_INPUT[template]
  # A tagged row never has an empty input: the with-input template is used, the tag on its own line
  # at its end.
  assert render_prompt(template, 'I', '', '[zh]') == WITH_INPUT[template].replace('X', '\n[zh]')
  assert render_prompt(template, 'I', 'one\ntwo', '[zh]') == WITH_INPUT[template].replace(
    'X', 'one\ntwo\n[zh]'
  )


def test_worked_example_of_the_paper():
  assert render_prompt('gemma', 'Give three tips.', '', '[zh]') == 'Give three tips.\n\n[zh]\n'


@hypothesis.given(TEMPLATE, st.text(min_size=1), st.text(min_size=1))
def test_fields_are_text_whatever_they_hold(template, instruction, context):
  """Braces, '{input}' inside an instruction, the template's own headers: everything is copied as it
  is.
  """
  instruction, context = f'{instruction}{{input}}', f'{{instruction}}{context}{{0}}'
  before, _, rest = WITH_INPUT[template].rpartition('I\n')
  expected = f'{before}{instruction}\n{rest.replace("X", context)}'
  assert render_prompt(template, instruction, context) == expected


def test_running_text_has_no_prompt():
  assert all(render_prompt(template, '') == '' for template in prompts.TEMPLATES)


def test_unknown_template_names_the_legal_ones():
  with pytest.raises(ValueError, match="'alpacca' is not one of alpaca, cl_boost"):
    render_prompt('alpacca', 'I')


def row(instruction='Where?', input='', output='There.'):
  return {'instruction': instruction, 'input': input, 'output': output}


FIELD = st.sampled_from(('', ' ', 'Fry', 'the\nfry {input}'))
ROWS = st.lists(
  st.fixed_dictionaries(dict.fromkeys(('instruction', 'input', 'output', 'tag'), FIELD)), max_size=6
)


@hypothesis.given(TEMPLATE, ROWS)
def test_many_rows_equal_one_by_one(tiny_vocabulary, template, rows):
  for row, found in zip(rows, render_whole(tiny_vocabulary, template, rows), strict=True):
    if not row['output'].strip():
      assert found is None
      continue
    wanted = render_example(tiny_vocabulary, template, row, row['tag'], None)
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_array_equal(found.loss_weights, wanted.loss_weights)
    assert found.tokens.dtype == np.int32 and found.shortened == ''


def test_weights_are_zero_on_the_prompt_and_the_stop_token_is_trained(tiny_vocabulary):
  example = render_example(tiny_vocabulary, 'alpaca', row(input='Here.'), '[vi]', None)
  prompt = tiny_vocabulary.encode(
    WITH_INPUT['alpaca'].replace('I\n\n###', 'Where?\n\n###').replace('X', 'Here.\n[vi]')
  )
  response = [*tiny_vocabulary.encode('There.'), tiny_vocabulary.eos_id]
  assert example.tokens.tolist() == prompt + response
  assert example.tokens.dtype == np.int32 and example.loss_weights.dtype == np.float32
  assert example.loss_weights.tolist() == [0.0] * len(prompt) + [1.0] * len(response)
  assert example.shortened == ''
  assert tiny_vocabulary.bos_id not in example.tokens


def test_running_text_is_trained_whole(tiny_vocabulary):
  example = render_example(tiny_vocabulary, 'plain', row('', '', 'A port.'), '', 64)
  assert example.tokens.tolist() == [*tiny_vocabulary.encode('A port.'), tiny_vocabulary.eos_id]
  assert (example.loss_weights == 1).all()


def test_the_input_is_shortened_first_and_no_more_than_needed(tiny_vocabulary):
  long = row('Which one?', ' '.join(f'word{i}' for i in range(60)), 'The first one.')
  response = [*tiny_vocabulary.encode(long['output']), tiny_vocabulary.eos_id]
  whole = render_example(tiny_vocabulary, 'gemma', long, '[zh]', None)
  for limit in range(len(whole.tokens) - 1, len(whole.tokens) - 40, -7):
    example = render_example(tiny_vocabulary, 'gemma', long, '[zh]', limit)
    assert example.shortened == 'input' and len(example.tokens) <= limit
    assert example.tokens[
      -len(response) :
    ].tolist() == response and example.loss_weights.sum() == len(response)
    # Instruction and tag stay, and what is left of the input is its beginning: the longest one that
    # fits.
    fits = [k for k in range(len(long['input']))
            if len(tiny_vocabulary.encode(render_prompt('gemma', 'Which one?', long['input'][:k], '[zh]'))) + len(response)
            <= limit]  # fmt: skip
    expected = tiny_vocabulary.encode(
      render_prompt('gemma', 'Which one?', long['input'][: fits[-1]], '[zh]')
    )
    # token counts are not quite monotone
    assert abs(len(expected) - (len(example.tokens) - len(response))) <= 2
    text = tiny_vocabulary.decode(example.tokens[: -len(response)])
    assert text.startswith('Which one?\nword0') and text.endswith('\n[zh]\n')


def test_then_the_response_loses_its_end_together_with_the_stop_token(tiny_vocabulary):
  long = row('Which one?', 'of these', ' '.join(f'word{i}' for i in range(60)))
  example = render_example(tiny_vocabulary, 'gemma', long, '[zh]', 40)
  prompt = tiny_vocabulary.encode('Which one?\n\n[zh]\n')
  response = tiny_vocabulary.encode(long['output'])
  assert example.shortened == 'input+output' and len(example.tokens) == 40
  assert example.tokens.tolist() == prompt + response[: 40 - len(prompt)]
  assert tiny_vocabulary.eos_id not in example.tokens
  assert example.loss_weights.sum() == 40 - len(prompt)
  # Without an input there is nothing else to shorten.
  assert (
    render_example(tiny_vocabulary, 'gemma', {**long, 'input': ''}, '', 40).shortened == 'output'
  )


def test_rejected_when_no_token_of_the_response_would_be_left(tiny_vocabulary):
  prompt = tiny_vocabulary.encode('Which one?\n\n[zh]\n')
  question = row('Which one?', 'of these', 'This')
  kept = render_example(tiny_vocabulary, 'gemma', question, '[zh]', len(prompt) + 1)
  assert kept.loss_weights.sum() == 1
  with pytest.raises(Rejected) as error:
    render_example(tiny_vocabulary, 'gemma', question, '[zh]', len(prompt))
  assert error.value.reason == 'prompt_too_long'


@pytest.mark.parametrize('output', ['', ' \n\t', '\u3000'])
def test_rejected_without_a_response(tiny_vocabulary, output):
  with pytest.raises(Rejected) as error:
    render_example(tiny_vocabulary, 'gemma', row(output=output), '', None)
  assert error.value.reason == 'empty_response'


text = st.text(st.sampled_from('abc de\n{}[zh]中国ệ'), max_size=60)


@hypothesis.given(
  TEMPLATE, text, text, text, st.sampled_from(['', '[zh]', '[en]']), st.integers(2, 200)
)
@hypothesis.settings(max_examples=150)
def test_no_example_is_too_long_or_untrained(
  tiny_vocabulary, template, instruction, input, output, tag, limit
):
  try:
    example = render_example(tiny_vocabulary, template, row(instruction, input, output), tag, limit)
  except Rejected as error:
    bare = len(tiny_vocabulary.encode(render_prompt(template, instruction, '', tag) or ''))
    assert (error.reason == 'empty_response') == (not output.strip())
    assert error.reason == 'empty_response' or bare >= limit
    return
  assert 2 <= len(example.tokens) <= limit and len(example.tokens) == len(example.loss_weights)
  assert example.loss_weights.sum() >= 1
  assert (np.diff(example.loss_weights) >= 0).all() and set(example.loss_weights.tolist()) <= {
    0.0,
    1.0,
  }
  whole = [*tiny_vocabulary.encode(output), tiny_vocabulary.eos_id]
  trained = int(example.loss_weights.sum())
  assert example.tokens[-trained:].tolist() == whole[:trained]
  if 'output' not in example.shortened:
    assert trained == len(whole)
  if not example.shortened:
    prompt = render_prompt(template, instruction, input, tag)
    assert example.tokens[:-trained].tolist() == (tiny_vocabulary.encode(prompt) if prompt else [])
