"""Prompts and responses of conversations, against transformers' apply_chat_template."""

import pytest
import small_models

from crossin_jax.checkpoints.saved_prompts import Prompts

TEMPLATE = (
  "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONVERSATION = [
  {'role': 'system', 'content': 'Be brief.'},
  {'role': 'user', 'content': 'Name a river.'},
  {'role': 'assistant', 'content': 'The Nile.'},
  {'role': 'user', 'content': 'Another one.'},
]


@pytest.mark.parametrize('start', [0, 1, 3])
def test_prompt_and_response_of_a_conversation(tmp_path, start):
  """Together they are the conversation through the stop token of the answer."""
  transformers = pytest.importorskip('transformers', reason='the comparison needs transformers')
  config = {'eos_token': '<|im_end|>'}
  small_models.write_tokenizer(tmp_path, ['<|im_start|>', '<|im_end|>'], config, TEMPLATE)
  theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
  turns, prompts = CONVERSATION[start:], Prompts(str(tmp_path))
  prompt = prompts.tokens({'messages': turns})
  options = {'return_dict': False}
  assert prompt == theirs.apply_chat_template(turns, add_generation_prompt=True, **options)
  whole = [*turns, {'role': 'assistant', 'content': 'The Amazon.'}]
  newline = theirs.encode('\n', add_special_tokens=False)
  response = prompts.response({'messages': turns}, 'The Amazon.')
  assert prompt + response + newline == theirs.apply_chat_template(whole, **options)
