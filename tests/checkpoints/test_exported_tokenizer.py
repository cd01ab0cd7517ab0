"""Exports carry the trained stop token and template: read by transformers itself."""

import json
import os
import shutil

import pytest
import small_models

from crossin_jax import cli
from crossin_jax.checkpoints import exported_tokenizer
from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.checkpoints.saved_prompts import Prompts

transformers = pytest.importorskip('transformers', reason='the comparison needs the extra `test`')

SPECIALS = ['<s>', '</s>', '<|im_start|>', '<|im_end|>']
NAMES = {'bos_token': None, 'eos_token': '</s>'}
CHATML = (
  "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Writes `eos_token` elsewhere than at the end of an answer, begins with white space that Jinja
# removes, and reads an option.
ODD = (
  "  {% if quiet is defined and quiet is false %}\n{{ 'loud' }}\n  {% endif %}\n{{ eos_token }}"
  + CHATML
)
ROWS = [{'role': 'user', 'content': 'Name'}, {'role': 'assistant', 'content': 'The Nile.'}]


def write_run(folder, vocabulary, template='chat', **prompts):
  """prompts.json of a run on a tokenizer; returns its `Prompts`."""
  from crossin_jax.data.prompts import stop_id

  vocabulary = vocabulary.with_template(template)
  os.makedirs(folder, exist_ok=True)
  shutil.copy(vocabulary.path, folder)
  saved = {
    'template': template, 'tags': False, 'stop_id': stop_id(vocabulary, template),
    'chat_template': vocabulary.chat if template == 'chat' else None,
    'chat_options': dict(vocabulary.chat_options), 'special_tokens_in_text': False,
  }  # fmt: skip
  words = {
    'file': os.path.basename(vocabulary.path), 'eos_token': vocabulary.token_text(vocabulary.eos_id),
    'bos_token': '' if vocabulary.bos_id is None else vocabulary.token_text(vocabulary.bos_id),
  }  # fmt: skip
  small_models.write_json(
    os.path.join(folder, 'prompts.json'), {'prompts': saved | prompts, 'vocabulary': words}
  )
  return Prompts(str(folder))


def check_export(folder, prompts, ids):
  """The tokenizer of an export asks and ends as the run does."""
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  assert theirs.eos_token_id == prompts.stop_id
  asked = theirs.apply_chat_template(
    ROWS[:1], tokenize=True, return_dict=True, add_generation_prompt=True
  )['input_ids']
  assert asked == prompts.tokens({'instruction': 'Name'}) == ids
  whole = theirs.apply_chat_template(ROWS, tokenize=True, return_dict=True)['input_ids']
  response = prompts.response({'instruction': 'Name'}, 'The Nile.')
  assert whole[: len(ids) + len(response)] == [*ids, *response]
  assert response[-1] == prompts.stop_id


@pytest.mark.parametrize('options', [{}, {'quiet': False}, {'quiet': None, 'n': 3, 's': 'ế"'}])
@pytest.mark.parametrize('template', [CHATML, ODD, ODD.replace('<|im_end|>', "' + eos_token + '")])
@pytest.mark.parametrize('kind', ['same', 'own', 'in config', 'map', 'no config', 'none'])
def test_imported_tokenizers_name_what_was_trained(tmp_path, kind, template, options):
  """kind: what the imported directory holds."""
  from crossin_jax.data.vocabulary import Vocabulary

  source = tmp_path / 'source'
  own = {'same': template, 'own': CHATML + ' ', 'map': template}.get(kind)
  config = NAMES | (
    {'chat_template': [{'name': 'default', 'template': CHATML}]} if kind == 'in config' else {}
  )
  small_models.write_tokenizer(str(source), SPECIALS, config, own)
  if kind == 'map':
    small_models.write_json(source / 'special_tokens_map.json', {'eos_token': '</s>'})
  vocabulary = Vocabulary(
    str(source / 'tokenizer.json'), '', '</s>', chat_template=template, chat_options=options
  )
  prompts = write_run(tmp_path / 'run', vocabulary)
  if kind == 'no config':
    (source / 'tokenizer_config.json').unlink()
  ids = prompts.tokens({'instruction': 'Name'})
  exported_tokenizer.set_trained(str(source), prompts)
  check_export(source, prompts, ids)


def test_other_templates_keep_the_files(tmp_path):
  from crossin_jax.data.vocabulary import Vocabulary

  source = tmp_path / 'source'
  small_models.write_tokenizer(str(source), SPECIALS, NAMES, CHATML)
  before = {name: (source / name).read_bytes() for name in os.listdir(source)}
  vocabulary = Vocabulary(str(source / 'tokenizer.json'))
  exported_tokenizer.set_trained(str(source), write_run(tmp_path / 'run', vocabulary, 'alpaca'))
  assert before == {name: (source / name).read_bytes() for name in os.listdir(source)}
  # Another stop token by setting.
  vocabulary = Vocabulary(str(source / 'tokenizer.json'), eos_token='<|im_end|>')
  exported_tokenizer.set_trained(str(source), write_run(tmp_path / 'run2', vocabulary, 'alpaca'))
  assert transformers.AutoTokenizer.from_pretrained(source).eos_token == '<|im_end|>'


@pytest.mark.parametrize('own, generation, wanted', [
    ('</s>', '</s>', ['<|im_end|>', '</s>']), ('</s>', None, '<|im_end|>'),
    ('<|im_end|>', '<|im_end|>', '<|im_end|>'), (None, False, '<|im_end|>'),
    ('</s>', False, ['<|im_end|>', '</s>']),
    ('</s>', ['</s>', '<|im_end|>'], ['<|im_end|>', '</s>']),
])  # fmt: skip
def test_generation_ends_where_training_did(tmp_path, own, generation, wanted):
  """own: eos_token_id of config.json; generation: of generation_config.json, False = no file."""
  source = tmp_path / 'source'
  ids = small_models.write_tokenizer(str(source), SPECIALS, NAMES, CHATML)
  id_of = lambda names: (
    [ids[n] for n in names] if isinstance(names, list) else ids[names] if names else None
  )
  small_models.write_model(
    str(source), 'Qwen2Config', vocab_size=max(ids.values()) + 1, eos_token_id=id_of(own)
  )
  (source / 'generation_config.json').unlink(missing_ok=True)
  if generation is not False:
    settings = {'eos_token_id': id_of(generation), 'temperature': 0.7, 'do_sample': True}
    small_models.write_json(source / 'generation_config.json', settings)
  run = tmp_path / 'run'
  assert cli.main(['import-hf', str(source), '--output_dir', str(run)]) == 0
  from crossin_jax.data.vocabulary import Vocabulary

  write_run(run, Vocabulary(str(source / 'tokenizer.json')))
  out = tmp_path / 'out'
  assert cli.main(['export-hf', str(run), '--output_dir', str(out)]) == 0
  theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
  assert theirs.generation_config.eos_token_id == id_of(wanted) == theirs.config.eos_token_id
  if generation is not False:
    assert theirs.generation_config.temperature == 0.7
  assert set(SavedModel.open(str(out)).stop_ids) == set(
    id_of(wanted) if isinstance(wanted, list) else [id_of(wanted)]
  )
  check_export(out, Prompts(str(run)), Prompts(str(run)).tokens({'instruction': 'Name'}))


def test_an_imported_model_that_was_not_trained_is_exported_as_it_was(tmp_path):
  source, run, out = tmp_path / 'source', tmp_path / 'run', tmp_path / 'out'
  ids = small_models.write_tokenizer(str(source), SPECIALS, NAMES, CHATML)
  small_models.write_model(str(source), 'Qwen2Config', vocab_size=max(ids.values()) + 1)
  assert cli.main(['import-hf', str(source), '--output_dir', str(run)]) == 0
  assert cli.main(['export-hf', str(run), '--output_dir', str(out)]) == 0
  for name in ('tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja'):
    assert (out / name).read_bytes() == (source / name).read_bytes()
  assert json.loads((out / 'config.json').read_text())['eos_token_id'] is None


@pytest.mark.parametrize('template', ['chat', 'alpaca'])
@pytest.mark.parametrize('sentencepiece', [True, False])
def test_a_model_trained_from_nothing(tmp_path, tiny_vocabulary, template, sentencepiece):
  from crossin_jax.data.vocabulary import Vocabulary

  if sentencepiece:
    marks = CHATML.replace("'<|im_start|>'", 'bos_token').replace('<|im_end|>', '</s>')
    marks = marks.replace("'<|im_start|>assistant", "bos_token + 'assistant")
    vocabulary = Vocabulary(tiny_vocabulary.path, chat_template=marks)
  else:
    config = {'bos_token': '<s>', 'eos_token': '</s>'}
    small_models.write_tokenizer(str(tmp_path / 't'), SPECIALS, config, CHATML, bos='<s>')
    vocabulary = Vocabulary(str(tmp_path / 't' / 'tokenizer.json'))
  prompts, out = write_run(tmp_path / 'run', vocabulary, template), tmp_path / 'out'
  os.makedirs(out)
  prompts.vocabulary.save_for_transformers(str(out), prompts.stop_id)
  theirs = transformers.AutoTokenizer.from_pretrained(out)
  assert theirs.eos_token_id == prompts.stop_id
  if template == 'chat':
    check_export(out, prompts, prompts.tokens({'instruction': 'Name'}))
  else:
    assert theirs('Name the night')['input_ids'] == prompts.plain('Name the night')
