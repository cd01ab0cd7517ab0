"""X-Instruction against its baselines on embedded worlds: refinement, diversification, translated
data, English answers alone.

    python benchmarks/evidence/xinstruction.py --output_dir runs/xinstruction --seeds 0,1,2

Every seed is a world with a base model, a pipeline and response models of its own in OUT/seed.N; a
second start does what is missing. What they answer to questions about facts that no arm was tuned
on is in OUT/xinstruction.{json,md}. `xinstruction.gin` has the settings.
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
import dataclasses
import functools
import os
import sys

import gin
import numpy as np
from xinstruction_figures import figures, markdown, relation_of

from crossin_jax import config
from crossin_jax.errors import Interrupted
from crossin_jax.processes.exit_status import RESTART
from crossin_jax.storage.files import read_json, write_json, write_text
from crossin_jax.workflow.jobs import StepFailed
from crossin_jax.workflow.steps import Step, Steps
from crossin_jax.world.documents import WorldDocuments
from crossin_jax.world.world import Fact, templates
from crossin_jax.xinstruction import levels
from crossin_jax.xinstruction import rows as rows_lib
from crossin_jax.xinstruction.diversity import diversification, embeddings
from crossin_jax.xinstruction.quickstart import quickstart, results
from crossin_jax.xinstruction.run import Run

GIN = 'benchmarks/evidence/xinstruction.gin'
# Arm -> what its rows are. Those of a group have equally many; all are trained for equally many
# steps.
ARMS = {
  'random': 'candidates, drawn by chance: without refinement',
  'kept': 'candidates that the refinement keeps',
  'translated': 'documents of `random` in English, translated by a model tuned on the seed',
  'English only': 'English answers about the seed',
  'chance': 'kept of a skewed pool, drawn by chance: without diversification',
  'diverse': 'kept of a skewed pool, diversified',
}
SEED_ARM = 'seed'  # beside them: the pipeline's own model on all of the seed


@gin.configurable('XInstructionEvidence')
@dataclasses.dataclass(frozen=True)
class Settings(quickstart.Settings):
  """What is tuned, on how much; `quickstart.Settings` has the rest, of which `set_epochs` is not
  used.

  Attributes:
    set_steps: of every arm's model; translator_steps: of the translation model.
    phrasings: documents a fact, 1 to 4.
    test_facts: of each entity, that only the test asks about.
    asked: facts of each relation that are asked about.
    frequent: relations whose documents all stay in the skewed pool; rare_share: of the documents of
      each other one.
    skewed_keep: share of that pool that is kept, best first.
    diverse_rows: of a language, in the arms `chance` and `diverse`.
    embedding: method of `embed` for the diversification; 'model' = the base model.
  """

  set_steps: int = 80
  translator_steps: int = 150
  phrasings: int = 4
  test_facts: int = 2
  asked: int = 9
  frequent: tuple[str, ...] = ('festival', 'radio')
  rare_share: float = 0.1
  skewed_keep: float = 0.5
  diverse_rows: int = 30
  embedding: str = 'model'


@dataclasses.dataclass(frozen=True)
class PhrasedDocuments(WorldDocuments):
  """Several documents a fact, each another sentence; ids 'FR.radio.0', 'FR.radio.1'.

  Attributes:
    phrasings: documents a fact.
  """

  phrasings: int = 4

  def document_rows(self, language: str) -> list[dict]:
    return [
      {'id': f'{fact.id}.{k}', 'text': self.statement(fact, language, k)}
      for fact in self.facts('documents')
      for k in range(self.phrasings)
    ]

  def statement(self, fact: Fact, language: str, k: int) -> str:
    """Phrasing k; the same k says the same in every language."""
    return self.world.fill(templates(language)[fact.relation]['statements'][k], fact, language)

  def asks_for(self, instruction: str, row_id: str) -> bool:
    return super().asks_for(instruction, fact_of(row_id))

  def spoiled(self, rows: Sequence[dict], language: str, share: float = 0.5) -> list[dict]:
    """As there, phrasing by phrasing: all documents of a fact are spoiled in one way, or none."""
    made = {}
    for k in sorted({row['id'].split('.')[2] for row in rows}):
      own = [row | {'id': fact_of(row['id'])} for row in rows if row['id'].split('.')[2] == k]
      made |= {f'{row["id"]}.{k}': row for row in super().spoiled(own, language, share)}
    return [made[row['id']] | {'id': row['id']} for row in rows]


def fact_of(row_id: str) -> str:
  """The fact of a document: 'FR.radio.3' -> 'FR.radio'."""
  return '.'.join(row_id.split('.')[:2])


def drawn(rows: Sequence[Mapping], count: int, *purpose: str) -> list[Mapping]:
  """So many rows by a hash of their ids."""
  return sorted(rows, key=lambda row: rows_lib.fraction(*purpose, row['id']))[:count]


def skewed(
  rows: Sequence[Mapping], frequent: Sequence[str], rare_share: float, language: str
) -> list[Mapping]:
  """Rows of which those of all relations but the frequent ones have been thinned out, each relation
  to the same share of itself.
  """
  by_relation: dict[str, list] = {}
  for row in rows:
    by_relation.setdefault(relation_of(row['id']), []).append(row)
  stay = set()
  for relation, own in by_relation.items():
    count = len(own) if relation in frequent else round(rare_share * len(own))
    stay |= {row['id'] for row in drawn(own, count, 'skew', language)}
  return [row for row in rows if row['id'] in stay]


class World(quickstart.Quickstart):
  """One seed: its directory and the steps that fill it."""

  def __init__(self, output_dir: str, settings: Settings):
    super().__init__(output_dir, settings)
    self.documents = PhrasedDocuments(
      self.world, test_facts=settings.test_facts, phrasings=settings.phrasings
    )
    s = dataclasses.asdict(settings)
    pick = lambda *names: {name: s[name] for name in names}
    tuned = pick('generator_epochs', 'response_epochs', 'rater_epochs', 'keep_fraction', 'rounds')
    texts = pick('languages', 'entities', 'world_seed', 'phrasings', 'test_facts')
    spread = pick('frequent', 'rare_share', 'skewed_keep', 'diverse_rows', 'embedding')
    spread['diversification'] = dataclasses.asdict(diversification.Diversification())
    made = {name: 'pipeline' for name in ('random', 'kept', 'English only')}
    made |= {'translated': 'translate', 'chance': 'spread', 'diverse': 'spread'}
    self.steps = Steps(output_dir, [
        Step('world', self._make_world, (), texts),
        Step('read', self._read, ('world',), pick('reading_steps')),
        Step('pipeline', self._refine, ('read',), tuned),
        Step('translator', self._train_translator, ('pipeline',), pick('translator_steps')),
        Step('translate', self._translate, ('translator',)),
        Step('spread', self._spread, ('pipeline',), spread),
        *[
          Step(
            step_of(arm), functools.partial(self._train_arm, arm), (made[arm],), pick('set_steps')
          )
          for arm in ARMS
        ],
        Step('ask', self._ask, tuple(map(step_of, ARMS)), pick('asked')),
        Step('told', self._tell, ('ask',)),
    ])  # fmt: skip

  @property
  def run(self) -> Run:
    """The pipeline's."""
    return self._pipeline().run

  @property
  def last(self) -> int:
    """Number of the last round of refinement."""
    return self.settings.rounds - 1

  def _refine(self, folder: str) -> Mapping:
    del folder
    pipeline = self._pipeline()
    names = list(pipeline.steps.steps)
    with pipeline.jobs.stopping_on_signals():
      done = pipeline.steps.run(names[: names.index(f'keep.{self.last}') + 1])
    return {name: manifest['seconds'] for name, manifest in done.items()}

  # ---- the baseline of translated data ----

  def _train_translator(self, folder: str) -> Mapping:
    """The base model, tuned to say in the language what the seed's facts say in English."""
    english, native = 'en', self.documents.statement
    rows = lambda language: [
      {'id': f'{fact.id}.{k}',
       'instruction': rows_lib.plain(native(fact, english, k), language),
       'output': native(fact, language, k)}
      for fact in self.documents.facts('seed')
      for k in range(self.world.other_phrasings)
    ]  # fmt: skip
    return self._train(folder, self.settings.translator_steps, rows)

  def _translate(self, folder: str) -> Mapping:
    """English statements of the documents of `random` in the languages, greedily; nothing is
    filtered.
    """
    facts, counts = self._facts('documents'), {}
    for language in self.settings.languages:
      asked = []
      for row in self.rows('random', language):
        english = self.documents.statement(
          facts[fact_of(row['id'])], 'en', int(row['id'].split('.')[2])
        )
        asked.append({'id': row['id'], 'instruction': rows_lib.plain(english, language)})
      rows_lib.write(os.path.join(folder, 'asked', language, '00000.jsonl'), asked)
    self._respond('translate', 'translator', os.path.join(folder, 'asked'), folder)
    for language in self.settings.languages:
      for row in rows_lib.read_language(folder, language):
        what = self.documents.classify(row['output'], facts[fact_of(row['id'])], language)
        counts[what] = counts.get(what, 0) + 1
    return {'heard': counts}

  # ---- diversification ----

  def _spread(self, folder: str) -> Mapping:
    """Of a skewed pool's kept rows, as many by diversification as by chance."""
    run, s, counts = self.run, self.settings, {}
    for language in s.languages:
      pool = skewed(list(run.read('pairs', language)), s.frequent, s.rare_share, language)
      level = {
        row['id']: row['score']
        for row in rows_lib.read_language(run.folder(f'rate.{self.last}'), language)
      }
      scores = np.array([level[row['id']] for row in pool])
      best = levels.kept(scores, [row['id'] for row in pool], s.skewed_keep, 1.0)
      kept = [pool[i] | {'score': float(scores[i])} for i in best]
      texts = [diversification.normalised(row['instruction']) for row in kept]
      places, labels = diversification.diversify(kept, s.diverse_rows, vectors=self._vectors(texts))
      sets = {
        'chance': drawn(kept, s.diverse_rows, 'chance', language),
        'diverse': [kept[i] | {'cluster': int(labels[i])} for i in places],
      }
      for name, rows in sets.items():
        rows_lib.write(os.path.join(folder, name, language, '00000.jsonl'), rows)
      told = lambda rows: {
        'rows': len(rows),
        'good': sum(results.kind_of(self.documents, row) == 'good' for row in rows),
        'relations': dict(Counter(relation_of(row['id']) for row in rows)),
      }  # fmt: skip
      counts[language] = {
        name: told(rows) for name, rows in {'pool': pool, 'kept': kept, **sets}.items()
      }
    return {'by_language': counts}

  def _vectors(self, texts: list[str]) -> np.ndarray:
    if self.settings.embedding != 'model':
      return embeddings.embed(texts, method=self.settings.embedding)
    from crossin_jax.models.decoder import Decoder

    gin.parse_config_file(self._model_gin)
    return embeddings.embed(texts, method='model', checkpoint=self._base, model=Decoder())

  # ---- the arms ----

  def rows(self, arm: str, language: str) -> list[Mapping]:
    """The rows of an arm, their instructions without the prompt's style."""
    if arm in ('chance', 'diverse'):
      return list(rows_lib.read_language(os.path.join(self.steps.folder('spread'), arm), language))
    run = self.run
    kept = list(run.read(f'keep.{self.last}', language))
    if arm == 'kept':
      return kept
    if arm == 'random':
      return drawn(list(run.read('pairs', language)), len(kept), 'random', language)
    if arm == 'translated':
      facts = self._facts('documents')
      return [
        {
          'id': row['id'],
          'instruction': self.documents.question(facts[fact_of(row['id'])], 'en'),
          'output': row['output'],
        }
        for row in rows_lib.read_language(self.steps.folder('translate'), language)
      ]
    pairs = [
      {
        'id': f'{fact.id}.{k}.{q}',
        'instruction': question,
        'output': self.documents.statement(fact, 'en', k),
      }
      for fact in self.documents.facts('seed')
      for k in range(self.world.other_phrasings)
      for q, question in enumerate(self.world.questions_about(fact, 'en'))
    ]
    return drawn(pairs, len(kept), arm, language)

  def _train_arm(self, arm: str, folder: str) -> Mapping:
    into = lambda language: 'en' if arm == 'English only' else language
    styled = lambda language: [
      row | {'instruction': rows_lib.plain(row['instruction'], into(language))}
      for row in self.rows(arm, language)
    ]
    return self._train(folder, self.settings.set_steps, styled)

  def _train(self, folder: str, steps: int, rows) -> Mapping:
    run = self.run
    run.settings = dataclasses.replace(
      run.settings, kind_values={'response': {'train.epochs': None, 'TRAIN_STEPS': steps}}
    )
    with run.jobs.stopping_on_signals():
      return run.train(folder, 'response', 'xinstruction', rows) | {'steps': steps}

  # ---- the test ----

  def asked(self) -> list[Fact]:
    """Facts that are asked about, equally many of each relation."""
    found = []
    for relation in self.world.shared_relations:
      own = [
        {'id': fact.id, 'fact': fact}
        for fact in self.documents.facts('test')
        if fact.relation == relation
      ]
      if len(own) < self.settings.asked:
        raise ValueError(
          f'XInstructionEvidence.asked = {self.settings.asked}: seed {self.world.seed} has '
          f'{len(own)} test facts of {relation!r}; '
          f'ask about {len(own)}, or make more of them (entities, test_facts)'
        )
      found += [row['fact'] for row in drawn(own, self.settings.asked, 'asked')]
    return found

  def _ask(self, folder: str) -> Mapping:
    facts = self.asked()
    for style in (rows_lib.plain, rows_lib.assistant):
      for language in self.settings.languages:
        rows = [
          {'id': f'{form}.{fact.id}', 'instruction': text}
          for fact in facts
          for form, text in (
            ('English', style(self.documents.question(fact, 'en'), language)),
            ('native', self.documents.question(fact, language)),
          )
        ]
        rows_lib.write(os.path.join(folder, 'asked', style.__name__, language, '00000.jsonl'), rows)
    for arm in (*ARMS, SEED_ARM):
      seed = arm == SEED_ARM
      asked = os.path.join(folder, 'asked', 'assistant' if seed else 'plain')
      model = 'pipeline/train-response.0' if seed else step_of(arm)
      self._respond(f'ask.{step_of(arm)}', model, asked, os.path.join(folder, step_of(arm)))
    return {
      'facts': len(facts),
      'questions': len(facts) * len(self.settings.languages) * len(quickstart.FORMS),
    }

  def _respond(self, log: str, step: str, asked: str, output_dir: str) -> None:
    self.jobs.run(
      log,
      ['xinstruction', 'chunks', '--kind', 'respond',
       '--checkpoint', os.path.join(self.out, step, 'model'),
       '--input', asked, '--output', output_dir],
      {'ChunkWorker.prompt_tokens': quickstart.LENGTH, 'Sampling.max_new_tokens': 48},
      all_cores=True,
    )  # fmt: skip

  def _tell(self, folder: str) -> Mapping:
    """What each answer was, as told.json, and what the arms were made of."""
    facts, heard, run = self._facts('test'), {}, self.run
    for arm in (*ARMS, SEED_ARM):
      for language in self.settings.languages:
        for row in rows_lib.read_language(
          os.path.join(self.steps.folder('ask'), step_of(arm)), language
        ):
          form, id_ = row['id'].split('.', 1)
          what = self.documents.classify(row['output'], facts[id_], language)
          heard.setdefault(arm, {}).setdefault(form, {}).setdefault(id_, {})[language] = what
    counts = {arm: self.steps.manifest(step_of(arm))['counts'] for arm in ARMS}
    first = run.steps.manifest('train-response.0')
    found = {
      'heard': heard,
      'arms': {arm: {'rows': own['rows'], 'steps': own['steps']} for arm, own in counts.items()} | {
        SEED_ARM: {'rows': first['counts']['rows'], 'steps': None}},
      'refinement': [
        dataclasses.asdict(results.refinement(self.documents, run, i))
        for i in range(self.settings.rounds)
      ],
      'translations': self.steps.manifest('translate')['counts']['heard'],
      'spread': self.steps.manifest('spread')['counts']['by_language'],
    }  # fmt: skip
    write_json(os.path.join(folder, 'told.json'), found)
    return {arm: own['rows'] for arm, own in counts.items()}

  def _facts(self, part: str) -> dict[str, Fact]:
    return {fact.id: fact for fact in self.documents.facts(part)}


def step_of(arm: str) -> str:
  """The folder of an arm."""
  return arm.replace(' ', '_')


def write_figures(out: str, settings: Settings) -> dict | None:
  """OUT/xinstruction.{json,md} of the seeds that are done; None if none is."""
  told = {}
  for name in sorted(os.listdir(out), key=lambda name: (len(name), name)):
    path = os.path.join(out, name, 'told', 'told.json')
    if name.startswith('seed.') and os.path.exists(
      os.path.join(out, name, 'told', 'manifest.json')
    ):
      told[int(name.split('.')[1])] = read_json(
        path, f'delete {os.path.dirname(path)} and start again'
      )
  if not told:
    return None
  shown = {
    key: value
    for key, value in dataclasses.asdict(settings).items()
    if key not in ('world_seed', 'set_epochs')
  }
  found = figures(told, settings.frequent) | {
    'frequent': list(settings.frequent),
    'settings': shown,
  }
  write_json(os.path.join(out, 'xinstruction.json'), found)
  write_text(os.path.join(out, 'xinstruction.md'), markdown(found))
  return found


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__.splitlines()[0],
    epilog='Exit status: 0 done, 75 told to stop (start again), 1 failed, 2 usage.',
  )
  parser.add_argument('--output_dir', default='runs/xinstruction')
  parser.add_argument(
    '--seeds',
    default='0,1,2',
    help='each a world (default: %(default)s); 1000 is the one to develop on',
  )
  parser.add_argument(
    '--redo', action='store_true', help='run steps again whose settings have changed'
  )
  config.add_flags(parser)
  args = parser.parse_args(argv)
  args.gin_file = args.gin_file or [GIN]
  try:
    seeds = [int(seed) for seed in args.seeds.split(',')]
  except ValueError:
    parser.error(f'--seeds {args.seeds!r}: whole numbers separated by commas')
  try:
    for seed in seeds:
      config.parse(args)  # again: the steps of the seed before have bound their own
      settings = Settings(world_seed=seed)
      world = World(os.path.join(args.output_dir, f'seed.{seed}'), settings)
      with gin.unlock_config(), world.jobs.stopping_on_signals():  # steps import what gin must know
        world.steps.run(redo=args.redo)
      write_figures(args.output_dir, settings)
  except Interrupted:
    print('told to stop; start the same command again to go on', file=sys.stderr)
    return RESTART
  except (StepFailed, ValueError, OSError) as error:
    print(f'xinstruction.py: {error}', file=sys.stderr)
    return 1
  with open(os.path.join(args.output_dir, 'xinstruction.md'), encoding='utf-8') as f:
    print(f.read(), file=sys.stderr)
  return 0


if __name__ == '__main__':
  sys.exit(main(config.rewrite(sys.argv[1:])))
