"""Steps from documents to candidates, pairs of a generated instruction and a document."""

from collections.abc import Mapping
import os

from crossin_jax.workflow.steps import file_stamp
from crossin_jax.xinstruction import rows as rows_lib
from crossin_jax.xinstruction.run import Run

TEACHER_EXTRA = 32  # tokens for the tags around an instruction


def document_stamps(run: Run) -> dict[str, list]:
  """Stamps of the document files: path, size and time."""
  from crossin_jax.xinstruction.filtering.documents import find_files

  files = lambda language: find_files(
    run.settings.documents.replace('{language}', language)
  ).values()
  return {
    language: [file_stamp(path) for path in files(language)] for language in run.settings.languages
  }


def filter_documents(run: Run, folder: str) -> Mapping:
  """Writes the documents that pass the filters, in chunks."""
  from crossin_jax.xinstruction.filtering.step import run_filter

  counts = {}
  for language in run.settings.languages:
    paths = run.settings.documents.replace('{language}', language)
    summary = run_filter(language, paths, folder, run.filters, chunk=run.settings.chunk)
    counts[language] = {key: getattr(summary, key) for key in ('read', 'kept', 'dropped')}
  total = {key: sum(own[key] for own in counts.values()) for key in ('read', 'kept')}
  return total | {'by_language': counts}


def train_generator(run: Run, folder: str) -> Mapping:
  """Tunes a model from response to instruction on the seed."""
  rows = lambda language: [
    {'id': row['id'], 'instruction': row['output'], 'output': row['instruction']}
    for row in run.read('seed', language)
  ]
  return run.train(folder, 'generator', 'xins', rows)


def generate(run: Run, folder: str) -> Mapping:
  """Writes an instruction for each document with the generator or the teacher."""
  tokens, asked = run.settings.instruction_tokens, {}
  if run.settings.generator == 'endpoint':
    asked = run.teach('write', run.folder('filter'), folder, tokens + TEACHER_EXTRA)
  else:
    run.answer('write', 'train-generator', run.folder('filter'), folder, tokens)
  return run.counted(folder, 'instruction', 'instructions') | asked


def pair(run: Run, folder: str) -> Mapping:
  """Joins documents with their instructions, chunk by chunk."""
  kept = dropped = 0
  for language in run.settings.languages:
    for path in rows_lib.chunks(run.folder('filter'), language):
      name = os.path.basename(path)
      written = {
        row['id']: row['instruction']
        for row in rows_lib.read(os.path.join(run.folder('generate'), language, name))
      }
      rows = [
        {
          'id': row['id'],
          'instruction': written[row['id']],
          'output': row['text'],
          'language': language,
          'source': row['source'],
        }
        for row in rows_lib.read(path)
      ]
      usable = [row for row in rows if row['instruction'].strip()]
      kept, dropped = kept + len(usable), dropped + len(rows) - len(usable)
      rows_lib.write(os.path.join(folder, language, name), usable)
  return {'candidates': kept, 'empty_instruction': dropped}
