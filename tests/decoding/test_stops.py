"""What ends an answer: stop tokens of a directory as transformers takes them, and stop texts."""

import json

import pytest
import small_models

from crossin_jax.checkpoints.places import CheckpointError
from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.data.chat import ChatTemplateError
from crossin_jax.data.vocabulary import Vocabulary
from crossin_jax.decoding.sampling import Sampling
from crossin_jax.decoding.schedule import Prompt, Schedule
from crossin_jax.models.huggingface.families import ArchitectureError, from_huggingface
from crossin_jax.storage.files import FileError

transformers = pytest.importorskip('transformers', reason='the comparison needs the extra `test`')

SPECIALS = ['<|endoftext|>', '<|im_start|>', '<|im_end|>', '<|eot|>']
NAMES = {'bos_token': None, 'eos_token': '<|endoftext|>'}


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A folder with a random model, and the ids of its special tokens."""
  folder = tmp_path_factory.mktemp('model')
  ids = small_models.write_tokenizer(str(folder), SPECIALS, NAMES)
  small_models.write_model(str(folder), vocab_size=max(ids.values()) + 1)
  return folder, ids


@pytest.fixture
def copied(model, tmp_path):
  """A copy of that folder, to change."""
  import shutil

  return shutil.copytree(model[0], tmp_path / 'model'), model[1]


def ids_of(ids, names):
  return (
    None if names is None else [ids[n] for n in names] if isinstance(names, list) else ids[names]
  )


END, EOT, IM = '<|endoftext|>', '<|eot|>', '<|im_end|>'


@pytest.mark.parametrize('generation, config', [
    ([END, EOT, IM], None), (EOT, None), (EOT, [IM]), (None, EOT), ([], [IM]), (False, [IM, EOT]),
    (False, IM), (False, None),
])  # fmt: skip
def test_stop_tokens_are_those_of_transformers(copied, generation, config):
  """generation: of generation_config.json; False = there is none."""
  folder, ids = copied
  described = json.loads((folder / 'config.json').read_text())
  small_models.write_json(folder / 'config.json', described | {'eos_token_id': ids_of(ids, config)})
  (folder / 'generation_config.json').unlink(missing_ok=True)
  if generation is not False:
    settings = {'eos_token_id': ids_of(ids, generation)}
    small_models.write_json(folder / 'generation_config.json', settings)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id
  theirs = theirs if isinstance(theirs, list) else [] if theirs is None else [theirs]
  # The tokenizer's own stop token always ends an answer.
  assert set(SavedModel.open(str(folder)).stop_ids) == {*theirs, ids[END]}


def answer(vocabulary, stop, text):
  """What is left of an answer, or None if no stop text is found in it."""
  schedule = Schedule(
    [Prompt([1])], Sampling(stop=stop), bos_id=1, stop_ids=(), decode=vocabulary.decode, rows=1,
    prefill_rows=lambda _: 1, fewest_rows=1,
  )  # fmt: skip
  tokens = vocabulary.encode_with_specials(text)
  found = schedule._cut_at_stop_text(tokens, 0, Sampling(stop=stop).stop)
  return None if found is None else (found[1], vocabulary.decode(found[0], stop))


@pytest.mark.parametrize('stop, text, left', [
    ('<|im_end|>', 'The Nile.<|im_end|>\n<|im_start|>user', 'The Nile.'),
    ('<|im_end|>\n', 'The Nile.<|im_end|>\n<|im_start|>user', 'The Nile.'),
    ('\n<|im_start|>', 'The Nile.\n<|im_start|>user', 'The Nile.'),
    ('.<|eot|>', 'a<|im_end|>b.<|eot|>c', 'ab'),
    (('port', '<|eot|>'), 'a<|eot|> port', 'a'),
    (('port', '<|eot|>'), 'the port <|eot|>', 'the '),
    ('ab', 'a<|im_end|>b', ''),  # a special token that no stop text contains is not seen
    ('<|eot|>', 'a<|im_end|>b', None), ('river', 'a river', 'a '), ('<|im_end|>', '河流<|im_end|>', '河流'),
    ('<|endoftext|>', 'x<|endoftext|>y', 'x'),
])  # fmt: skip
def test_stop_texts_with_special_tokens(model, stop, text, left):
  found = answer(Vocabulary(str(model[0] / 'tokenizer.json')), stop, text)
  assert left == (None if found is None else found[0])


def test_stop_texts_with_special_tokens_of_sentencepiece(tiny_vocabulary):
  vocabulary = Vocabulary(tiny_vocabulary.path)
  for stop, text, left in (
    ('</s>', 'What is it?</s> No', 'What is it?'), ('is', 'What is it?</s>', 'What '),
    ('</s>No', 'What is</s>No', 'What is'), ('<s>', 'a</s>b', None),
  ):  # fmt: skip
    found = answer(vocabulary, stop, text)
    assert left == (None if found is None else found[0]), stop


# ---- damage in small files ----

BROKEN = [
  ('tokenizer_config.json', '{"eos_token": "</s>",}', 'not valid JSON'),
  ('tokenizer_config.json', '[]', 'is a list'),
  ('tokenizer_config.json', '"x"', 'is a str'),
  ('tokenizer_config.json', '{"eos_token": 7}', 'eos_token is 7'),
  ('tokenizer_config.json', '{"eos_token": ["</s>"]}', 'eos_token is'),
  ('tokenizer_config.json', '{"chat_template": {"default": "x"}}', 'chat_template must be text'),
  ('tokenizer_config.json', '{"chat_template": ["x"]}', 'chat_template must be text'),
  ('tokenizer_config.json', '{"chat_template": [{"name": "default"}]}', 'chat_template must be'),
  ('tokenizer_config.json', '{"chat_template": "{% for %}"}', 'not valid Jinja'),
  ('special_tokens_map.json', '{"eos_token": ', 'not valid JSON'),
  ('special_tokens_map.json', '7', 'is a int'),
  ('chat_template.jinja', '{{ messages', 'not valid Jinja'),
  ('chat_template.jinja', '{{ messages + 1 }}', 'cannot be rendered'),
  ('chat_template.jinja', b'\xff\xfe{', 'not UTF-8'),
  ('generation_config.json', '{"eos_token_id": 1,}', 'not valid JSON'),
  ('generation_config.json', '{"eos_token_id": "</s>"}', 'eos_token_id is'),
  ('generation_config.json', '{"eos_token_id": [1, null]}', 'eos_token_id is'),
  ('generation_config.json', '[1]', 'is a list'),
  ('generation_config.json', '', 'not valid JSON'),
  ('tokenizer.json', '{"version": "1.0"', 'not a tokenizers file'),
  ('config.json', '[]', 'is a list'),
  ('config.json', '{"model_type": }', 'not JSON'),
  ('config.json', b'\xff', 'not JSON'),
]


@pytest.mark.parametrize('file, text, message', BROKEN)
def test_damage_in_small_files_is_named(copied, file, text, message):
  folder, _ = copied
  text = text if isinstance(text, bytes) else text.encode()
  (folder / file).write_bytes(text)
  errors = (FileError, CheckpointError, ChatTemplateError, ArchitectureError, ValueError)
  with pytest.raises(errors, match=message) as caught:
    from_huggingface(str(folder))
    model = SavedModel.open(str(folder))
    print(model.prompts.stop_id, model.stop_ids)
  assert str(folder / file) in str(caught.value)
  assert type(caught.value) is not ValueError or file == 'tokenizer.json'


def test_damage_that_changes_nothing_is_no_damage(copied):
  folder, ids = copied
  (folder / 'generation_config.json').write_text('{"eos_token_id": null, "unknown": {"a": 1}}')
  (folder / 'special_tokens_map.json').write_text('{}')
  (folder / 'tokenizer_config.json').write_text('{"eos_token": "<|endoftext|>", "x": [1]}')
  assert SavedModel.open(str(folder)).stop_ids == (ids[END],)
