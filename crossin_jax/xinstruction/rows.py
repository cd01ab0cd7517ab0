"""Rows of the pipeline as files: chunks of a language in a folder, and lists for training."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import glob
import hashlib
import json
import os

from crossin_jax.languages import code_of, english_name
from crossin_jax.storage.files import write_text
from crossin_jax.storage.records import read_records


def chunks(folder: str, language: str) -> list[str]:
  """The chunk files of a language, in order."""
  return sorted(
    glob.glob(os.path.join(glob.escape(os.path.join(folder, language)), '[0-9]*.jsonl'))
  )


def read(paths: str | Sequence[str]) -> Iterator[dict]:
  """The rows of files, JSON Lines or a JSON list."""
  for path in [paths] if isinstance(paths, str) else paths:
    for _, row in read_records(path):
      yield row


def read_language(folder: str, language: str) -> Iterator[dict]:
  """The rows of all chunks of a language."""
  return read(chunks(folder, language))


def write(path: str, rows: Iterable[Mapping]) -> int:
  """Writes JSON Lines, or a list if the name ends in .json, atomically; returns the row count."""
  lines = [json.dumps(row, ensure_ascii=False) for row in rows]
  os.makedirs(os.path.dirname(path), exist_ok=True)
  text = (
    '[\n' + ',\n'.join(lines) + '\n]\n'
    if path.endswith('.json')
    else ''.join(line + '\n' for line in lines)
  )
  write_text(path, text)
  return len(lines)


def plain(instruction: str, language: str) -> str:
  """Prompt of rows from natural text (docs/design/methods.md#b-6-prompts)."""
  return f'{instruction} Answer in {english_name(language)}.'


def assistant(instruction: str, language: str) -> str:
  """Prompt of seed rows and of inference (docs/design/methods.md#b-6-prompts)."""
  return f'{instruction} Answer in {english_name(language)} and the style of an AI assistant.'


STYLES = {'assistant': assistant, 'plain': plain, 'none': lambda instruction, language: instruction}


def joined(instruction: str, input: str | None) -> str:
  """joined('Sum up. ', 'A text.') == 'Sum up.\\nA text.'"""
  return '\n'.join(filter(None, (instruction.strip(), str(input or '').strip())))


def fraction(*parts: str) -> float:
  """A number in [0, 1) from a hash of the texts, independent of order and host."""
  digest = hashlib.sha256('\x1f'.join(parts).encode('utf-8', 'surrogatepass')).digest()
  return int.from_bytes(digest[:8], 'big') / 2**64


def checked_languages(text: str) -> list[str]:
  """Codes of comma-separated languages; raises ValueError for English."""
  languages = list(dict.fromkeys(code_of(language) for language in text.split(',')))
  if 'en' in languages:
    raise ValueError(
      "--languages names 'en'; the instructions are English by themselves, name the languages of "
      'the responses'
    )
  return languages


def checked_output(stem: str, languages: Sequence[str], inputs: Sequence[str]) -> str:
  """The absolute stem; raises ValueError if one of its files would overwrite an input."""
  stem = os.path.abspath(stem)
  for path in (f'{stem}_{language}.json' for language in languages):
    if any(
      os.path.exists(one) and os.path.exists(path) and os.path.samefile(one, path) for one in inputs
    ):
      raise ValueError(f'{path} is an input and would be overwritten; choose another --output')
  return stem
