"""What the small files beside a tokenizer say: `tokenizer_config.json`, `special_tokens_map.json`.

They are read as transformers 5 reads them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossin_jax.storage.files import FileError, read_json

# Files that are read from the folder of a tokenizer.
FILES = ('chat_template.jinja', 'tokenizer_config.json', 'special_tokens_map.json')
# Names of special tokens, which chat templates may use.
NAMES = (
  'bos_token', 'eos_token', 'unk_token', 'sep_token', 'pad_token', 'cls_token', 'mask_token',
)  # fmt: skip
_REMEDY = 'copy it again from where the tokenizer comes from'


def read(tokenizer_path: str) -> dict[str, Any]:
  """`tokenizer_config.json` beside a tokenizer file; {} without one.

  `special_tokens_map.json` is read too, and wins, unless the configuration lists its added tokens.

  Raises:
    FileError: damaged, or not an object.
  """
  folder = Path(tokenizer_path).parent
  config = _object(folder / 'tokenizer_config.json')
  if 'added_tokens_decoder' in config:
    return config
  return {**config, **_object(folder / 'special_tokens_map.json')}


def names(config: Mapping[str, Any], path: str) -> dict[str, str]:
  """Name -> text of the special tokens that a configuration names.

  Args:
    config: of `read`.
    path: of the tokenizer, for messages.

  Raises:
    FileError: a name whose token is neither text nor {"content": text}.
  """
  found = {}
  for name in NAMES:
    token = config.get(name)
    token = token.get('content') if isinstance(token, dict) else token
    if isinstance(token, str):
      found[name] = token
    elif token is not None:
      raise FileError(
        f'{Path(path).parent / "tokenizer_config.json"}: {name} is {config[name]!r}; write the '
        'text of the token, or null'
      )
  return found


def chat_template(tokenizer_path: str) -> str | None:
  """The chat template beside a tokenizer file, or None.

  This is `chat_template.jinja`, or else `chat_template` in `tokenizer_config.json`; of a list the
  one named default.

  Raises:
    FileError: neither text nor a list of named texts.
  """
  folder = Path(tokenizer_path).parent
  jinja, path = folder / 'chat_template.jinja', folder / 'tokenizer_config.json'
  if jinja.is_file():
    try:
      return jinja.read_text(encoding='utf-8')
    except UnicodeDecodeError as error:
      raise FileError(f'{jinja} is not UTF-8 text ({error}); {_REMEDY}') from None
  template = _object(path).get('chat_template')
  if isinstance(template, list):
    try:
      template = {entry['name']: entry['template'] for entry in template}.get('default')
    except (TypeError, KeyError):
      template = {}  # refused below
  if template is not None and not isinstance(template, str):
    raise FileError(
      f'{path}: chat_template must be text, or a list of {{"name": "default", "template": text}}'
    )
  return template


def _object(path: Path) -> dict[str, Any]:
  if not path.is_file():
    return {}
  value = read_json(path, _REMEDY)
  if not isinstance(value, dict):
    raise FileError(f'{path} is a {type(value).__name__}, not an object; {_REMEDY}')
  return value
