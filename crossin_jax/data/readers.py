"""Reads rows from JSON, JSON lines, Parquet and saved datasets, and checks every row."""

from collections.abc import Iterator, Sequence
import os
import re
import reprlib
from typing import Any, NamedTuple

from crossin_jax.data import conversations, tables
from crossin_jax.data.conversations import Message
from crossin_jax.data.source_errors import SourceError, at, naming
from crossin_jax.languages import code_of
from crossin_jax.storage import hub_names, remote
from crossin_jax.storage.json_rows import JsonRows, describe, is_gzip

EXTENSIONS = ('.json', '.json.gz', '.jsonl', '.jsonl.gz', '.parquet')
TEXT_FIELDS = ('instruction', 'input', 'output')


class Row(NamedTuple):
  """One checked row of a file.

  Attributes:
    number: of the row in its file, from 0, blank lines not counted.
    id: None if absent.
    language: code; None if absent.
    texts: (instruction, input, output); all '' of a conversation.
    fault: why the row cannot be used, one of `conversations.FAULTS`; '' = it can.
    messages: of a conversation: a system turn, several questions and answers, or reasoning; ()
      where a row is one question and one answer.
  """

  number: int
  id: str | None
  language: str | None
  texts: tuple[str, str, str]
  fault: str = ''
  messages: tuple[Message, ...] = ()


def extension(path: str) -> str | None:
  """The path's ending if it is one of EXTENSIONS: extension('a.jsonl.gz') == '.jsonl.gz'."""
  return next((ext for ext in EXTENSIONS if path.lower().endswith(ext)), None)


def read_rows(path: str, with_language: bool = False) -> Iterator[Row]:
  """The rows of one file, in order.

  `.json` has one list of objects, `.jsonl` one object per line (split at newline characters only;
  blank lines are skipped); both may be gzipped and start with a byte order mark. A directory with
  state.json is a dataset that `datasets.save_to_disk` wrote. Fields: instruction and output
  (strings), input (a string; missing or null = ''), id (a string or an integer; missing or null =
  None), language (code or English name). In place of instruction and output: messages (role,
  content, reasoning_content), conversations (from, value), or prompt and completion. system (a
  string) and history (pairs of question and answer) come before the rest. A row that is more than
  one question and one answer has `messages`; a row that cannot be used, for instance with a value
  in one of `conversations.UNREAD_FIELDS`, has a `fault`. Other fields are ignored.

      # zh.jsonl: {"instruction": "凯撒是怎么死的？", "output": "他被刺杀了。"}
      list(read_rows('zh.jsonl')) == [Row(0, None, None, ('凯撒是怎么死的？', '', '他被刺杀了。'))]

  Args:
    path: a file with one of EXTENSIONS, or a saved dataset.
    with_language: read the field `language` too.

  Raises:
    SourceError: missing, empty or unreadable file; invalid JSON, UTF-8, gzip or Parquet; a row that
      is not an object; a field that is missing or of the wrong type; an unknown language.
  """
  for number, line, fields in read_fields(path):
    yield check_row(fields, path, number, line, with_language)


def read_fields(
  path: str, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, int | None, Any]]:
  """The rows of one file unchecked, as (number from 0, line from 1 or None, JSON value).

  Args:
    path: see `read_rows`; or hf:datasets/ORG/NAME/FILE on the hub.
    columns: of a table, to read where they exist; None = those of an instruction row.

  Raises:
    SourceError: missing, empty or unreadable file; invalid JSON, UTF-8, gzip or Parquet.
  """
  path = remote.fetched(path) if hub_names.is_name(path) else path
  saved, ext = tables.is_saved(path), extension(path)
  if not saved:
    _check_file(path, ext)
  rows = JsonRows(path, SourceError, at)
  readers = {
    '.json': rows.items, '.jsonl': rows.lines,
    '.parquet': lambda: tables.read_parquet(path, columns),
  }  # fmt: skip
  read = (lambda: tables.read_saved(path, columns)) if saved else readers[ext.removesuffix('.gz')]
  number = -1
  with naming(path):
    if not saved and is_gzip(path) != ext.endswith('.gz'):
      raise _wrong_packing(path, ext)
    for number, (line, fields) in enumerate(read()):
      yield number, line, fields
  if number < 0:
    raise SourceError(
      f'{path}: has no rows; write or copy the file again, or remove it from the sources'
    )


def is_rows(path: str) -> bool:
  """Whether a path is a file with one of EXTENSIONS, or a saved dataset."""
  is_file = remote.exists(path) if hub_names.is_name(path) else os.path.isfile(path)
  return is_file and extension(path) is not None or tables.is_saved(path)


def _check_file(path: str, ext: str | None) -> None:
  if os.path.isdir(path):
    splits = os.path.isfile(os.path.join(path, 'dataset_dict.json'))
    inside = ', '.join(sorted(n for n in os.listdir(path) if tables.is_saved(f'{path}/{n}')))
    raise SourceError(
      f'{path}: holds the splits {inside or "none"}; give one of them as path, {path}/SPLIT'
      if splits
      else f'{path}: is a directory; give a file in it, or the stem of files NAME_en.json ...'
    )
  if not os.path.exists(path):
    raise SourceError(f'{path}: no such file; correct the path')
  if ext is None:
    raise _unknown_kind(path)
  if os.path.getsize(path) == 0:
    raise SourceError(f'{path}: the file is empty (0 bytes); write or copy it again')


def find_files(stem: str, languages: Sequence[str]) -> dict[str, str]:
  """The file of each language.

      find_files('/data/alpaca', ('en', 'zh')) ==
          {'en': '/data/alpaca_en.json', 'zh': '/data/alpaca.zh.jsonl.gz'}

  Files of a stem hf:datasets/ORG/NAME/STEM are downloaded.

  Raises:
    SourceError: a language has no file, or several; or the path is not a stem.
  """
  directory, base = os.path.split(stem)
  try:
    present = _beside(stem)
  except OSError as error:
    raise SourceError(
      f'{stem}: cannot list {directory or "."} ({error.strerror}); correct the path'
    ) from None
  files = {}
  for language in languages:
    names = [f'{base}{mark}{language}{ext}' for mark in '_.' for ext in EXTENSIONS]
    folders = [f'{base}{mark}{language}' for mark in '_.']
    matches = [name for name in names if name in present]
    matches += [name for name in folders if tables.is_saved(os.path.join(directory, name))]
    if len(matches) > 1:
      raise SourceError(
        f'{stem}: several files for {language!r}: {", ".join(matches)}; keep one, or give its path'
      )
    if not matches:
      raise _no_file(stem, language, present)
    file = os.path.join(directory, matches[0])
    files[language] = remote.fetched(file) if hub_names.is_name(stem) else file
  return files


def other_files(stem: str, languages: Sequence[str]) -> dict[str, str]:
  """Language -> name of the file that a stem has in a language that is not in `languages`."""
  directory, base = os.path.split(stem)
  pattern = re.compile(re.escape(base) + r'[_.]([A-Za-z]{2,3})(\.[\w.]+)?')
  found = {}
  for name in _beside(stem):
    match = pattern.fullmatch(name)
    if not match or match[1] in languages:
      continue
    ending, path = (match[2] or '').lower(), os.path.join(directory, name)
    if extension(name) == ending or not ending and tables.is_saved(path):
      try:
        found[code_of(match[1])] = name
      except ValueError:
        pass  # no language
  return found


def _beside(stem: str) -> list[str]:
  """The names in the folder of a stem."""
  directory = os.path.dirname(stem)
  return (
    hub_names.listing(directory)
    if hub_names.is_name(stem)
    else sorted(os.listdir(directory or '.'))
  )


def _unknown_kind(path: str) -> SourceError:
  return SourceError(
    f'{path}: unknown kind of file; rename it so that it ends in one of {", ".join(EXTENSIONS)}'
  )


def _wrong_packing(path: str, ext: str) -> SourceError:
  """The error for a name that says .gz where the file is not gzipped, or the reverse."""
  if ext.endswith('.gz'):
    return SourceError(
      f'{path}: not a complete gzip file; copy it again, or remove .gz from its name if it is not '
      'compressed'
    )
  return SourceError(f'{path}: is a gzip file; add .gz to its name')


def _no_file(stem: str, language: str, present: list[str]) -> SourceError:
  """The error for a language without a file among those `present` in the stem's directory."""
  if os.path.isdir(stem):
    return SourceError(
      f'{stem}: is a directory that has {_some(sorted(os.listdir(stem)))}; give one file in it, '
      f'or the stem NAME of files NAME_{language}.json'
    )
  if os.path.isfile(stem):
    return _unknown_kind(stem)
  base = os.path.basename(stem)
  beside = _some(sorted(present, key=lambda name: (not name.startswith(base), name)))
  if extension(base):
    return SourceError(f'{stem}: no such file, found beside it: {beside}; correct the path')
  return SourceError(
    f'{stem}: no file for language {language!r}, looked for {base}_{language} and '
    f'{base}.{language} with {", ".join(EXTENSIONS)}, found beside it: {beside}; add the file, or '
    f'remove {language!r} from languages'
  )


def check_row(
  fields: Any, path: str, number: int, line: int | None = None, with_language: bool = False
) -> Row:
  """Checks one object.

      check_row({'id': 7, 'instruction': 'Name a colour.', 'output': 'Red'}, 'a.json', 0)
      == Row(0, '7', None, ('Name a colour.', '', 'Red'))

  Args:
    fields: the JSON value of the row.
    path: for messages.
    number: of the row, from 0.
    line: for messages, from 1; None if the file has no lines.
    with_language: read the field `language` too.

  Raises:
    SourceError: the object is not a row.
  """
  refuse = lambda text: SourceError(f'{at(path, number, line)}: {text}')
  if not isinstance(fields, dict):
    hint = (
      ' (a JSON list: name the file .json)' if line is not None and isinstance(fields, list) else ''
    )
    raise refuse(
      'a row must be an object with instruction, input and output, found '
      f'{describe(fields)}{hint}; fix or remove the row'
    )
  texts, messages, fault = _contents(fields, refuse)
  if any(holds_content(fields.get(field)) for field in conversations.UNREAD_FIELDS):
    fault = fault or 'unread_field'
  id_, language = fields.get('id'), None
  if isinstance(id_, int) and not isinstance(id_, bool):
    id_ = str(id_)
  if id_ is not None and not (isinstance(id_, str) and id_):
    raise refuse(
      f"field 'id' must be an integer or a non-empty string, found {describe(id_)}; fix it, or "
      'remove the field from every row'
    )
  if with_language and fields.get('language') is not None:
    language = fields['language']
    if not isinstance(language, str):
      raise refuse(
        f"field 'language' must be a string, found {describe(language)}; write a code like 'zh'"
      )
    try:
      language = code_of(language)
    except ValueError as error:
      raise refuse(f"field 'language': {error}; fix the field, or remove the row") from None
  return Row(number, id_, language, texts, fault, messages)


def _contents(fields: dict, refuse) -> tuple[tuple[str, str, str], tuple[Message, ...], str]:
  """The texts of a row, or its messages, and its fault."""
  raw = conversations.raw_turns(fields)
  if raw is None and not {'instruction', 'output'} & fields.keys():
    if any(field in fields and fields[field] is None for field in ('messages', 'conversations')):
      return ('', '', ''), (), 'null_field'
  if raw is None:
    texts, fault = _texts(fields, refuse)
    if fault or not (_is_filled(fields.get('system')) or _is_filled(fields.get('history'))):
      return texts, (), fault
    question = conversations.user_text(*texts[:2])
    turns = [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': texts[2]}]
    raw = 'output', turns
  messages, fault = conversations.messages(*raw, fields, refuse)
  if not fault and conversations.is_single(messages):
    return (messages[0]['content'], '', messages[1]['content']), (), ''
  return ('', '', ''), () if fault else messages, fault


def _is_filled(value) -> bool:
  return bool(value.strip() if isinstance(value, str) else value)


def _texts(fields: dict, refuse) -> tuple[tuple[str, str, str], str]:
  """The texts of a row in Alpaca's fields, and its fault."""
  texts, fault = [], ''
  for field in TEXT_FIELDS:
    value = fields.get(field)
    if field not in fields and field != 'input':
      present = ', '.join(reprlib.repr(key) for key in [*fields][:8]) or 'none'
      raise refuse(f'field {field!r} is missing, found {present}; add it, or rename another field')
    if value is None:
      fault = fault or ('' if field == 'input' else 'null_field')
      value = ''
    if not isinstance(value, str):
      raise refuse(
        f'field {field!r} must be a string, found {describe(value)}; write it as one string, or '
        'remove the row from the files of all languages'
      )
    texts.append(value)
  return tuple(texts), fault


def holds_content(value) -> bool:
  """Whether a field says something; LLaMA-Factory writes '[]' for no tools."""
  return _is_filled(value) and not (
    isinstance(value, str) and value.strip() in ('[]', '{}', 'null')
  )


def _some(names: list[str]) -> str:
  return (
    ', '.join(names[:10]) + (f' and {len(names) - 10} more' if len(names) > 10 else '') or 'nothing'
  )
