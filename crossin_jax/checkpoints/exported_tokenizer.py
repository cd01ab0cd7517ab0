"""The tokenizer files of an export: those that were imported, with what was trained."""

import contextlib
import filecmp
import os

from crossin_jax.data import tokenizer_config
from crossin_jax.data.prompts import CHAT
from crossin_jax.storage.files import read_json, write_json, write_text

_REMEDY = 'copy it again'
# The files of a tokenizer.
FILES = (
  'tokenizer.json', 'tokenizer.model', 'tokenizer_config.json', 'special_tokens_map.json',
  'added_tokens.json', 'vocab.json', 'merges.txt', 'chat_template.jinja',
)  # fmt: skip


def set_trained(directory: str, prompts) -> None:
  """Names the trained stop token and chat template in the tokenizer files of a directory.

  Tools that ask the tokenizer where an answer ends (vLLM, pipelines) read `eos_token`. Where the
  run had another tokenizer than the imported model, with new tokens for instance, it takes the
  place of these files.

  Args:
    directory: with the files as they were imported.
    prompts: the `Prompts` of the run.
  """
  vocabulary = prompts.vocabulary
  if not _same_tokenizer(directory, vocabulary.path):
    _replace(directory, prompts)
  names = {'eos_token': vocabulary.token_text(prompts.stop_id)}
  path = os.path.join(directory, 'tokenizer_config.json')
  config = read_json(path, _REMEDY) if os.path.isfile(path) else {}
  tokenizer = os.path.join(directory, 'tokenizer.json')
  if not config and os.path.isfile(tokenizer):
    names['tokenizer_class'] = 'PreTrainedTokenizerFast'
  if prompts.template == CHAT:
    trained = vocabulary.exported_chat(prompts.stop_id)
    if tokenizer_config.chat_template(path) != trained:
      write_text(os.path.join(directory, 'chat_template.jinja'), trained)
      config.pop('chat_template', None)
  named = tokenizer_config.names(tokenizer_config.read(path), path)
  if named.get('eos_token') != names['eos_token'] or prompts.template == CHAT:
    write_json(path, config | names)
  special_map = os.path.join(directory, 'special_tokens_map.json')
  if os.path.isfile(special_map):
    write_json(special_map, read_json(special_map, _REMEDY) | {'eos_token': names['eos_token']})


def _same_tokenizer(directory: str, path: str) -> bool:
  copy = os.path.join(directory, 'tokenizer' + os.path.splitext(path)[1])
  return os.path.isfile(copy) and filecmp.cmp(copy, path, shallow=False)


def _replace(directory: str, prompts) -> None:
  """Writes the tokenizer of the run in place of that of the directory."""
  vocabulary, path = prompts.vocabulary, os.path.join(directory, 'tokenizer_config.json')
  names = tokenizer_config.names(tokenizer_config.read(path), path)
  template = tokenizer_config.chat_template(path)
  for name in FILES:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(os.path.join(directory, name))
  vocabulary.save_for_transformers(directory, prompts.stop_id)
  config = read_json(path, _REMEDY)
  for name in ('unk_token', 'pad_token'):
    if name in names and vocabulary.has_token(names[name]):
      config.setdefault(name, names[name])
  if template:
    config.setdefault('chat_template', template)
  write_json(path, config)
