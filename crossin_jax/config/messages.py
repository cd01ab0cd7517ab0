"""gin's errors in one sentence each: unknown names, unreadable values, missing settings."""

from collections.abc import Iterable, Mapping, Sequence
import glob
import os
import re

from crossin_jax.config import registry, words
from crossin_jax.config.errors import ConfigError, hint

_WHERE = re.compile(r'In file "([^"]*)", line (\d+)')


def explained(error: Exception, binding: str = '') -> ConfigError:
  """gin's error with the nearest known name.

  Args:
    error: of gin.
    binding: the entry of gin_bindings that it is about; '' = a gin file.
  """
  message = str(error)
  where = f'{match[1]}, line {match[2]}: ' if (match := _WHERE.search(message)) else ''
  if match := re.search(
    r"No configurable matching (?:reference )?'(@?)([\w./]+?)(?:\(\))?'", message
  ):
    name = match[2].split('/')[-1]
    known = {selector.split('.')[-1] for selector in registry.configurables()}
    return ConfigError(
      f'{where}{match[1]}{name} is no configurable'
      + hint(name.split('.')[-1], known, '; `crossin settings` lists all')
    )
  if match := re.search(r"Configurable '([\w.]+)' doesn't have a parameter named '(\w+)'", message):
    found = registry.entry(match[1].split('.')[-1])
    known = [p.name for p in registry.parameters(found)] if found else []
    return ConfigError(
      f'{where}{match[1]} has no parameter {match[2]}'
      + hint(match[2], known, f': it has {", ".join(known)}')
    )
  name = words.name_of(binding)
  if name and isinstance(error, (SyntaxError, ValueError)) and not isinstance(binding, words.Word):
    text = binding.partition('=')[2].strip()
    if words.literal(text) is registry.UNKNOWN and not re.search(r'[@%]', text):
      return ConfigError(
        f"--gin.{name}={text} is not in gin's syntax, where a text has quotes of its own; "
        f'write {name}={text} without --gin'
      )
  return ConfigError(re.sub(r'\n\s*', '; ', message.strip()))


def unknown_macro(binding: str, known: Iterable[str], files: bool = True) -> ConfigError:
  """A macro of the command line that nothing uses, with the nearest that something does."""
  name = words.name_of(binding)
  without = '' if files else ', where no gin file is given'
  return ConfigError(
    f'{name}={binding.partition("=")[2].strip()}: nothing uses {name} here{without}'
    + hint(name, set(known) - {name}, '; `crossin settings` lists what can be set')
  )


def missing(names: Sequence[str], texts: Mapping[str, str]) -> ConfigError:
  """One sentence for each macro that must be set.

  Args:
    names: the macros.
    texts: path -> text of the gin files that were read.
  """
  sentences = []
  for name in names:
    meaning = _comment(name, texts.values()) or next(
      filter(None, (registry.meaning(*user) for user in registry.users(name))), ''
    )
    if name == 'MODEL':
      sentences.append('MODEL is not set: give a file of gin_configs/models')
    elif name in registry.macros():
      sentences.append(_sentence(name, meaning, texts))
    else:  # `%NAME`, and no file sets it
      sentences.append(_sentence(name, meaning, texts) + hint(name, registry.macros()))
  # A message has at most three lines.
  return ConfigError(('\n' if len(names) <= 3 else '; ').join(sentences), missing=tuple(names))


def _sentence(name: str, meaning: str, texts: Mapping[str, str]) -> str:
  example = example_of(name, texts)
  meaning = meaning.split('; ')[0]
  return f'{name} is not set{f" ({meaning})" if meaning else ""}: ' + (
    f'give it, for example {name}={example}' if example else f'give {name}=VALUE'
  )


def _comment(name: str, texts: Iterable[str]) -> str:
  """The comment at `NAME = %gin.REQUIRED`."""
  for text in texts:
    if match := re.search(rf'(?m)^{re.escape(name)} = %gin\.REQUIRED[ ]*#[ ]*(.*)$', text):
      return match[1].strip()
  return ''


def example_of(name: str, texts: Mapping[str, str]) -> str:
  """The value that a setting has in the commands at the head of gin files; '' = in none."""
  for text in (*texts.values(), *shipped_texts().values()):
    comments = '\n'.join(re.findall(r'(?m)^#.*$', text))
    if match := re.search(rf'(?<![\w./]){re.escape(name)}=("[^"]*"|[^\s;]*[^\s,;.)])', comments):
      return match[1]
  return ''


def shipped_texts(*folders: str) -> dict[str, str]:
  """Path -> text of the gin files that ship with the project, of all folders or of some."""
  root = os.path.join(REPOSITORY, 'gin_configs')
  paths = [
    path
    for folder in folders or ('runs', '*')
    for path in sorted(glob.glob(os.path.join(glob.escape(root), folder, '*.gin')))
    if f'{os.sep}t5x{os.sep}' not in path  # T5X's own names
  ]
  texts = {}
  for path in dict.fromkeys(paths):
    with open(path, encoding='utf-8') as f:
      texts[path] = f.read()
  return texts


def shipped_macros(*folders: str) -> set[str]:
  """Macros that the gin files of the project set."""
  every = '\n'.join(shipped_texts(*folders).values())
  return set(re.findall(r'(?m)^([A-Za-z_]\w*)[ ]*=', every))


def of_call(error: Exception, files: bool = True) -> ConfigError | None:
  """What a call of a configurable lacked, from gin's or Python's error; None = another error.

  Args:
    error: of the call.
    files: whether gin files were read.

  gin: "Required bindings for `sweep` not provided in config: ['axes', 'mixture']". Python:
  "Vocabulary.__init__() missing 1 required positional argument: 'path'".
  """
  text = str(error)
  if match := re.match(r'Required bindings for `([\w.]+)` not provided in config: (.*)', text):
    owner, names = match[1], re.findall(r"'(\w+)'", match[2])
  elif isinstance(error, TypeError) and (
    match := re.match(
      r'([\w.<>]+)\(\) missing \d+ required (?:positional|keyword-only) arguments?: (.*)', text
    )
  ):
    owner = match[1].removesuffix('.__init__').split('.')[-1]
    names = re.findall(r"'(\w+)'", match[2])
    if f"\n  In call to configurable '{owner}'" not in text:
      return None
  else:
    return None
  found = registry.entry(owner)
  if found is None:
    return None
  sentences = [
    _sentence(f'{owner.split(".")[-1]}.{name}', registry.meaning(found, name), {}) for name in names
  ]
  if not files:
    sentences.append('A gin file sets most of what a command needs: see gin_configs')
  return ConfigError('\n'.join(sentences))


REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
