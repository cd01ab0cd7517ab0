"""Seed pairs of English instruction and native response, from the user's files."""

from collections.abc import Iterator, Mapping
import os

from crossin_jax.workflow.steps import StepError, file_stamp
from crossin_jax.xinstruction import rows as rows_lib
from crossin_jax.xinstruction.run import Run
from crossin_jax.xinstruction.settings import XInstruction


def files(settings: XInstruction, language: str) -> list[str]:
  """[file of the instructions, file of the responses], which can be the same file."""
  wanted, stem = ['en', language] if settings.seed_is_parallel else [language], settings.seed
  paths = []
  for code in wanted:
    names = [
      f'{stem}{mark}{code}{ext}'
      for mark in '._'
      for ext in ('.json', '.jsonl', '.json.gz', '.jsonl.gz')
    ]
    there = [name for name in names if os.path.isfile(name)]
    if not there:
      raise StepError(
        f'no seed file {names[0]} (or {", ".join(os.path.basename(name) for name in names[1:4])} '
        '...)'
      )
    paths.append(there[0])
  return paths


def rows(settings: XInstruction, language: str) -> Iterator[dict]:
  """{"id", "instruction" (English), "output", "language"} of every usable pair.

  Raises:
    StepError: parallel files of unequal length, a row without a text (file, row and field).
  """
  paths = files(settings, language)
  native = list(rows_lib.read(paths[-1]))
  english = list(rows_lib.read(paths[0])) if settings.seed_is_parallel else native
  if len(native) != len(english):
    raise StepError(
      f'{paths[0]} has {len(english)} rows and {paths[-1]} {len(native)}; parallel files have the '
      'same rows in the same order'
    )
  for number, (asked, answered) in enumerate(zip(english, native)):
    missing = [
      f
      for f, row in (('instruction', asked), ('output', answered))
      if not isinstance(row.get(f), str)
    ]
    if missing:
      raise StepError(
        f'{paths[0 if missing[0] == "instruction" else -1]}, row {number}: field {missing[0]!r} '
        'must be a text'
      )
    instruction = rows_lib.joined(asked['instruction'], asked.get('input'))
    if instruction and answered['output'].strip():
      yield {
        'id': f'seed.{number}',
        'instruction': instruction,
        'output': answered['output'].strip(),
        'language': language,
      }


def stamps(settings: XInstruction) -> dict[str, list]:
  """Stamps of the seed files: path, size and time."""
  return {
    language: [file_stamp(path) for path in files(settings, language)]
    for language in settings.languages
  }


def draw(run: Run, folder: str) -> Mapping:
  """Draws the wanted number of pairs of each language by a hash of their row numbers."""
  counts = {}
  for language in run.settings.languages:
    usable = list(rows(run.settings, language))
    order = sorted(usable, key=lambda row: rows_lib.fraction('seed', row['id']))[
      : run.settings.seed_pairs
    ]
    if not order:
      raise StepError(
        f'no seed pair in {language}: {run.settings.seed} must give rows with instruction and '
        'output'
      )
    counts[language] = rows_lib.write(os.path.join(folder, language, '00000.jsonl'), order)
  return {'pairs': sum(counts.values()), 'by_language': counts}
