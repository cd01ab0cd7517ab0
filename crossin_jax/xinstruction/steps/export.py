"""The last steps of a run: diversified set, export, mixture, model and statistics page."""

from collections.abc import Mapping, Sequence
import os

from crossin_jax.storage.files import write_text
from crossin_jax.workflow.steps import StepError, file_stamp
from crossin_jax.xinstruction import rows as rows_lib
from crossin_jax.xinstruction.run import COMPONENT, PRESET, Run
from crossin_jax.xinstruction.settings import XInstruction

MIXTURE = """# The mixture of this instruction set and its seed, written by `crossin xinstruction`.
#
#   crossin prepare {path} --mixture {mixture} --output_dir prepared
#
# Component `rows` has the plain prompt, `seed` the assistant-style one. Beside them, for \
comparison, `translated` and `distilled`:
# TRANSLATED=stem of `crossin xinstruction translated`, \
DISTILLED=stem of `crossin xinstruction distill`.
# With SeqIO: parse this file, then seqio_tasks.register('{mixture}').
include 'gin_configs/mixtures/xinstruction.gin'

ROWS = {rows}
SEED_ROWS = {seed}
LANGUAGES = {languages}{left_out}
VOCABULARY = {vocabulary}
MixtureSettings.max_length = {max_length}
"""


def diversify(run: Run, folder: str) -> Mapping:
  """Chooses the wanted number of rows of each language from different clusters."""
  from crossin_jax.xinstruction.diversity import diversification

  counts = {}
  for language in run.settings.languages:
    rows = list(run.read(f'keep.{run.rounds - 1}', language))
    chosen, labels = diversification.diversify(rows, run.settings.wanted)
    own = (rows[k] | {'cluster': int(labels[k])} for k in chosen)
    clusters = len({int(label) for label in labels})
    counts[language] = {
      'of': len(rows),
      'chosen': rows_lib.write(os.path.join(folder, language, '00000.jsonl'), own),
      'clusters': clusters,
    }
  return {'chosen': sum(c['chosen'] for c in counts.values()), 'by_language': counts}


def export(run: Run, folder: str) -> Mapping:
  """Writes LANG.json, the files with prompts, and a mixture of them."""
  counts = {}
  for language in run.settings.languages:
    rows = [
      {key: row.get(key) for key in ('id', 'instruction', 'output', 'language', 'source', 'score')}
      for row in run.read('diversify', language)
    ]
    pairs = [row | {'source': 'seed', 'score': None} for row in run.read('seed', language)]
    counts[language] = rows_lib.write(os.path.join(folder, f'{language}.json'), rows)
    for name, own, style in (
      ('plain', rows, rows_lib.plain),
      ('assistant', pairs, rows_lib.assistant),
    ):
      asked = (row | {'instruction': style(row['instruction'], language)} for row in own)
      rows_lib.write(os.path.join(folder, f'{name}_{language}.json'), asked)
  filled = [language for language in run.settings.languages if counts[language]]
  write_text(os.path.join(folder, 'mixture.gin'), mixture(run.settings, folder, filled))
  return {'rows': sum(counts.values()), 'by_language': counts}


def mixture(settings: XInstruction, folder: str, filled: Sequence[str]) -> str:
  """The gin file of an export.

  Args:
    settings: of the run.
    folder: of the export.
    filled: languages that have rows; the others are left out, with their seed, unless none has.
  """
  folder, languages = os.path.abspath(folder), tuple(filled) or settings.languages
  components = f'{COMPONENT}_seed' if filled else 'seed'
  return MIXTURE.format(
    path=os.path.join(folder, 'mixture.gin'),
    mixture=f'xinstruction.{components}.all.{"_".join(("en", *languages))}.{PRESET}',
    rows=repr(os.path.join(folder, 'plain')) if filled else None,
    seed=repr(os.path.join(folder, 'assistant')),
    languages=languages,
    left_out=f'  # no rows in {", ".join(left_out)}'
    if (left_out := sorted({*settings.languages} - {*filled}))
    else '',
    vocabulary=repr(os.path.abspath(settings.vocabulary)),
    max_length=settings.max_length,
  )


def train(run: Run, folder: str) -> Mapping:
  """Tunes the response model on seed and export."""
  stems = run.folder('export')
  rows = lambda language: [
    row
    for name in ('assistant', 'plain')
    for row in rows_lib.read(os.path.join(stems, f'{name}_{language}.json'))
  ]
  return run.train(folder, 'response', 'xinstruction', rows)


def benchmark_stamps(settings: XInstruction) -> dict:
  """Stamps of the benchmark files; empty without benchmarks."""
  for path in settings.benchmarks:
    if not os.path.isfile(path):
      raise StepError(
        f'XInstruction.benchmarks: {path} is no file; correct the path, or take it out'
      )
  return (
    {'benchmarks': [file_stamp(path) for path in settings.benchmarks]}
    if settings.benchmarks
    else {}
  )


def write_statistics(run: Run, folder: str) -> Mapping:
  """Writes the statistics page."""
  from crossin_jax.xinstruction.statistics.page import write_page
  from crossin_jax.xinstruction.statistics.statistics import statistics

  rounds: dict[str, list] = {}
  for i in range(run.rounds):
    for language, own in run.steps.manifest(f'keep.{i}')['counts']['by_language'].items():
      rounds.setdefault(language, []).append({'round': i + 1} | own)
  files = {
    language: os.path.join(run.folder('export'), f'{language}.json')
    for language in run.settings.languages
  }
  filled = {language: file for language, file in files.items() if next(rows_lib.read(file), None)}
  if not filled:
    return {'rows': 0}
  page = os.path.join(folder, 'statistics.html')
  write_page(page, statistics(filled, rounds=rounds, benchmarks=run.settings.benchmarks))
  return {'page': page}
