"""`crossin xinstruction quickstart`: X-Instruction on the embedded world with known instructions.

    world, vocabulary -> read -> pipeline (half of the candidates spoiled) -> kept, random -> ask
        -> page

`read` trains a base model that reads every language and answers in English. `kept` and `random`
are response models tuned on the kept set and on a random set of the same size. A second start runs
only the missing steps.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import os
import re
import shlex
import sys
import time

from crossin_jax.data.prompts import TEMPLATES
from crossin_jax.languages import code_of
from crossin_jax.progress import duration
from crossin_jax.storage.files import read_json, write_json, write_text
from crossin_jax.workflow import command_line
from crossin_jax.workflow.jobs import Jobs
from crossin_jax.workflow.steps import Step, Steps
from crossin_jax.xinstruction import rows as rows_lib
from crossin_jax.xinstruction.filtering.filters import Filters
from crossin_jax.xinstruction.pipeline import Pipeline
from crossin_jax.xinstruction.quickstart import flags
from crossin_jax.xinstruction.quickstart.settings import Settings
from crossin_jax.xinstruction.settings import XInstruction
from crossin_jax.xinstruction.steps import candidates

# Texts of the world are short and follow patterns; filters for web texts would drop them.
FILTERS = {'least_characters': 20, 'near_duplicate': 1.0, 'common_line': 0, 'least_confidence': 0.0}
# No relation has a territory as value, so the subject of a text is unambiguous.
RELATIONS = ('festival', 'harvest', 'radio', 'museum', 'market', 'council')
LENGTH = 96  # tokens of the longest row, with its prompt
# Response models -> their step, and the prompt style of their training rows.
MODELS = {
  'seed': ('pipeline/train-response.0', rows_lib.assistant),
  'random': ('random', rows_lib.plain),
  'kept': ('kept', rows_lib.plain),
  'seed and kept': ('pipeline/train', rows_lib.assistant),
}
FORMS = ('English', 'native')


class WorldPipeline(Pipeline):
  """The pipeline on texts of the world, with half of its candidates spoiled."""

  def __init__(self, output_dir: str, settings: XInstruction, documents, filters: Filters):
    """Args: see `Pipeline`; documents: `WorldDocuments`."""
    super().__init__(output_dir, settings, filters=filters)
    self._documents = documents
    steps = self.steps.steps
    steps['pairs'] = dataclasses.replace(steps['pairs'], run=self._spoiled_pairs)

  def _spoiled_pairs(self, folder: str) -> Mapping:
    counts, spoiled = dict(candidates.pair(self.run, folder)), 0
    for language in self.settings.languages:
      paths = rows_lib.chunks(folder, language)
      rows = self._documents.spoiled(list(rows_lib.read(paths)), language)
      by_id = {row['id']: row for row in rows}
      for path in paths:
        rows_lib.write(path, [by_id[row['id']] for row in rows_lib.read(path)])
      spoiled += sum(row['flaw'] is not None for row in rows)
    return counts | {'spoiled': spoiled}


class Quickstart:
  """One output directory and the steps that fill it."""

  def __init__(self, output_dir: str, settings: Settings):
    # Imported here: `crossin_jax` itself needs no source of data.
    from crossin_jax.world.documents import WorldDocuments
    from crossin_jax.world.world import World

    self.out, self.settings = output_dir, settings
    self.jobs = Jobs(output_dir, 1, {'JAX_PLATFORMS': os.environ.get('JAX_PLATFORMS', 'cpu')})
    # territories in the English questions that the base model is trained on
    tuning = settings.entities * 3 // 8
    self._world_values = {
      'World.shared_relations': RELATIONS, 'World.tested_relations': (),
      'World.tuning_entities': tuning,
      'World.test_entities': settings.entities - tuning,
    }  # fmt: skip
    self.world = World(
      seed=settings.world_seed, languages=('en', *settings.languages), shared_relations=RELATIONS,
      tested_relations=(),
      tuning_entities=tuning, test_entities=settings.entities - tuning,
    )  # fmt: skip
    self.documents = WorldDocuments(self.world)
    s = dataclasses.asdict(settings)
    pick = lambda *names: {name: s[name] for name in names}
    tuned = pick('generator_epochs', 'response_epochs', 'rater_epochs', 'keep_fraction', 'rounds')
    epochs = pick('set_epochs')
    self.steps = Steps(output_dir, [
        Step('world', self._make_world, (), pick('languages', 'entities', 'world_seed')),
        Step('read', self._read, ('world',), pick('reading_steps')),
        Step('pipeline', self._refine, ('read',), tuned),
        Step('random', functools.partial(self._train_set, False), ('pipeline',), epochs),
        Step('kept', functools.partial(self._train_set, True), ('pipeline',), epochs),
        Step('ask', self._ask, ('random', 'kept')),
        Step('page', self._write_page, ('ask',)),
    ])  # fmt: skip

  # ---- steps ----

  def _make_world(self, folder: str) -> Mapping:
    from crossin_jax.world import sources as world_sources

    languages = self.settings.languages
    # Each line of the prompts is one token, which keeps rows short.
    lines = [line.strip() for kind in ('xinstruction', 'xins', 'xrate') for text in TEMPLATES[kind]
             for line in re.split(r'\{\w+\}|\n', text) if line.strip()]  # fmt: skip
    lines += [
      style('', language).strip()
      for style in (rows_lib.plain, rows_lib.assistant)
      for language in languages
    ]
    size = 1100 + 320 * len(languages)
    world_sources.train_vocabulary(
      self.world, size, os.path.join(folder, 'world.model'), sorted(set(lines))
    )
    for language in languages:
      rows_lib.write(
        os.path.join(folder, f'text.{language}.jsonl'), self.documents.document_rows(language)
      )
      rows_lib.write(
        os.path.join(folder, f'seed.{language}.json'), self.documents.seed_rows(language)
      )
    write_text(
      os.path.join(folder, 'model.gin'),
      "include 'gin_configs/models/world_1m.gin'\n\n"
      f'DecoderConfig.vocab_size = {-(-size // 128) * 128}\nDecoderConfig.num_layers = 4\n'
      'DecoderConfig.num_heads = 4\nDecoderConfig.num_kv_heads = 4\n',
    )
    parts = {part: len(self.documents.facts(part)) for part in ('seed', 'documents', 'test')}
    return {'facts': sum(parts.values()), 'parts': parts, 'vocabulary': size}

  def _read(self, folder: str) -> Mapping:
    mixture = f'world.shared_bilingual_base.all.{"_".join(self.world.languages)}.every'
    data = os.path.join(folder, 'data')
    self.jobs.run(
      'prepare.read',
      ['prepare', '--gin_file=gin_configs/mixtures/world.gin', f'--mixture={mixture}',
       f'--output_dir={data}'],
      {'VOCABULARY': self._vocabulary, 'LANGUAGES': self.world.languages,
       'WORLD_SEED': self.settings.world_seed,
       'SHARES': {'shared': 0.4, 'bilingual': 0.45, 'base': 0.15}} | self._world_values,
      all_cores=True,
    )  # fmt: skip
    self.jobs.run(
      'train.read',
      ['train', '--gin_file=gin_configs/runs/world_read.gin', f'--gin_file={self._model_gin}'],
      {'DATA_DIR': data, 'MODEL_DIR': self._base, 'MIXTURE_OR_TASK_NAME': mixture,
       'TRAIN_STEPS': self.settings.reading_steps},
      all_cores=True,
    )  # fmt: skip
    return {'steps': self.settings.reading_steps}

  def _refine(self, folder: str) -> Mapping:
    del folder
    pipeline = self._pipeline()
    with pipeline.jobs.stopping_on_signals():
      done = pipeline.steps.run()
    return {name: manifest['seconds'] for name, manifest in done.items()}

  def _train_set(self, kept: bool, folder: str) -> Mapping:
    """Tunes a response model on the kept pairs or on as many random candidates."""
    run = self._pipeline(response_epochs=self.settings.set_epochs).run

    def rows(language):
      chosen = list(run.read(f'keep.{run.rounds - 1}', language))
      if not kept:
        by_hash = lambda row: rows_lib.fraction('random', language, row['id'])
        chosen = sorted(run.read('pairs', language), key=by_hash)[: len(chosen)]
      return [row | {'instruction': rows_lib.plain(row['instruction'], language)} for row in chosen]

    with run.jobs.stopping_on_signals():
      return run.train(folder, 'response', 'xinstruction', rows)

  def _ask(self, folder: str) -> Mapping:
    """Asks every response model the test questions in English and in the output language."""
    facts = self.documents.facts('test')
    for model, (step, style) in MODELS.items():
      asked = os.path.join(folder, 'asked', style.__name__)
      for language in self.settings.languages:
        rows = []
        for fact in facts:
          english = style(self.documents.question(fact, 'en'), language)
          for form, text in zip(FORMS, (english, self.documents.question(fact, language))):
            rows.append({'id': f'{form}.{fact.entity}.{fact.relation}', 'instruction': text})
        rows_lib.write(os.path.join(asked, language, '00000.jsonl'), rows)
      self.jobs.run(
        f'ask.{model.replace(" ", "_")}',
        ['xinstruction', 'chunks', '--kind', 'respond',
         '--checkpoint', os.path.join(self.out, step, 'model'),
         '--input', asked, '--output', os.path.join(folder, model)],
        {'ChunkWorker.prompt_tokens': LENGTH, 'Sampling.max_new_tokens': 48},
        all_cores=True,
      )  # fmt: skip
    return {'questions': len(facts) * len(FORMS) * len(self.settings.languages)}

  def _write_page(self, folder: str) -> Mapping:
    from crossin_jax.xinstruction.quickstart import page as quickstart_page
    from crossin_jax.xinstruction.quickstart import results

    run = self._pipeline().run
    answers = os.path.join(self.out, 'ask')
    report = dataclasses.asdict(results.results(self.documents, run, answers, tuple(MODELS)))
    report['settings'] = dataclasses.asdict(self.settings)
    report['seconds'] = {
      name: manifest['seconds']
      for name in self.steps.steps
      if (manifest := self.steps.manifest(name))
    }
    report['steps'] = self.steps.manifest('pipeline')['counts']
    report['world'] = self.steps.manifest('world')['counts']
    report['command'] = shlex.join(['crossin', 'xinstruction', 'quickstart', *sys.argv[3:]])
    write_json(os.path.join(self.out, 'results.json'), report)
    quickstart_page.write_page(os.path.join(self.out, 'report.html'), report)
    return {'page': os.path.join(self.out, 'report.html')}

  # ---- shared by the steps ----

  def _pipeline(self, **changes) -> WorldPipeline:
    s, world = dataclasses.replace(self.settings, **changes), self.steps.folder('world')
    values = {
      'INITIAL_CHECKPOINT_PATH': self._base, 'BATCH_SIZE': 16, 'schedule.peak': 1e-3,
      'adamw.b2': 0.98,
      'train.evaluators': (), 'train.log_period': 20,
    }  # fmt: skip
    settings = XInstruction(
      languages=s.languages, documents=os.path.join(world, 'text.{language}.jsonl'),
      seed=os.path.join(world, 'seed'),
      vocabulary=self._vocabulary, model_gin=(self._model_gin,), values=values,
      kind_values={
        kind: {'train.epochs': getattr(s, f'{kind}_epochs')}
        for kind in ('generator', 'response', 'rater')
      },
      rounds=s.rounds, rater_from='before', keep_fraction=s.keep_fraction, least_level=1.0,
      settled=0.0, chunk=256, instruction_tokens=32,
      response_tokens=48, max_length=LENGTH,
    )  # fmt: skip
    pipeline = WorldPipeline(
      os.path.join(self.out, 'pipeline'), settings, self.documents, Filters(**FILTERS)
    )
    # All steps share compiled programs.
    pipeline.jobs.environment['JAX_COMPILATION_CACHE_DIR'] = self.jobs.environment[
      'JAX_COMPILATION_CACHE_DIR'
    ]
    return pipeline

  @property
  def _vocabulary(self) -> str:
    return os.path.join(self.steps.folder('world'), 'world.model')

  @property
  def _model_gin(self) -> str:
    return os.path.join(self.steps.folder('world'), 'model.gin')

  @property
  def _base(self) -> str:
    return os.path.join(self.steps.folder('read'), 'model')


def main(argv: Sequence[str]) -> int:
  """The command line of `crossin xinstruction quickstart`."""
  defaults = Settings()
  parser = flags.parser()
  args = parser.parse_args(argv)
  try:
    languages = tuple(code_of(name.strip()) for name in args.languages.split(','))
  except ValueError as error:
    parser.error(str(error))
  settings = dataclasses.replace(
    defaults, languages=languages, entities=args.entities, reading_steps=args.reading_steps,
    rounds=args.rounds,
    world_seed=args.world_seed,
  )  # fmt: skip
  started = time.monotonic()
  quickstart = Quickstart(args.output_dir, settings)
  with quickstart.jobs.stopping_on_signals():
    quickstart.steps.run(redo=args.redo)
  report = read_json(os.path.join(args.output_dir, 'results.json'), 'start the command again')
  for text in report['findings']:
    print(text, file=sys.stderr)
  page = os.path.abspath(os.path.join(args.output_dir, 'report.html'))
  print(f'\n{duration(time.monotonic() - started)}. Open {page}', file=sys.stderr)
  return command_line.finish(args, {'report': page, 'seconds': time.monotonic() - started} | report)
