"""`crossin xinstruction`: from raw text in a language to an instruction set and a model tuned on it.

    filter ── generate ── pairs ─┬─ rate.0 ── keep.0 ── train-response.1 ── ... ── keep.N ── diversify ── export ── train
    seed ── train-generator      │                                                                     └── statistics
         └─ train-response.0 ── respond.0 ── train-rater.0

METHODS.md B says what is known of the published steps, C13 to C20 what is decided here.
"""

import argparse
from collections.abc import Mapping
import dataclasses
import json
import os
import sys

import numpy as np

from crossin_jax import config
from crossin_jax.jobs import Jobs, StepFailed, Stopped
from crossin_jax.xinstruction import levels, seed
from crossin_jax.xinstruction import rows as rows_lib
from crossin_jax.xinstruction.settings import XInstruction
from crossin_jax.xinstruction.steps import Step, StepError, Steps, file_stamp

RESTART = 75
COMPONENT, PRESET = 'rows', 'default'


class Pipeline:
  """The steps of one run directory."""

  def __init__(self, output_dir: str, settings: XInstruction):
    """Args:
    output_dir: the run directory.
    settings: what to do.
    """
    self.settings = settings
    self.jobs = Jobs(
      output_dir, 1, {'JAX_PLATFORMS': os.environ['JAX_PLATFORMS']} if 'JAX_PLATFORMS' in os.environ else {}
    )
    self.steps = Steps(output_dir, self._all())

  def _all(self) -> list[Step]:
    s = self.settings
    train = {
      'model_gin': [_lines(path) for path in s.model_gin],
      'values': s.values,
      'max_length': s.max_length,
      'vocabulary': s.vocabulary,
    }
    keep = {'keep_fraction': s.keep_fraction, 'least_level': s.least_level, 'settled': s.settled}
    steps = [
      Step(
        'filter', self._filter, (), {'files': self._document_stamps(), 'chunk': s.chunk, 'filters': _filter_settings()}
      ),
      Step('seed', self._seed, (), {'seed': self._seed_stamps(), 'seed_pairs': s.seed_pairs}),
      Step('train-generator', self._train_generator, ('seed',), train | _gin_file('generator')),
      Step('generate', self._generate, ('filter', 'train-generator'), {'instruction_tokens': s.instruction_tokens}),
      Step('pairs', self._pairs, ('generate',)),
      Step('train-response.0', self._train_response(0), ('seed',), train | _gin_file('response')),
    ]
    for i in range(s.rounds):
      if i:
        needs = ('seed', f'keep.{i - 1}')
        steps.append(
          Step(
            f'train-response.{i}',
            self._unless_settled(i, self._train_response(i)),
            needs,
            train | _gin_file('response'),
          )
        )
      response = {'response_tokens': s.response_tokens}
      steps += [
        Step(f'respond.{i}', self._unless_settled(i, self._respond(i)), ('seed', f'train-response.{i}'), response),
        Step(
          f'train-rater.{i}',
          self._unless_settled(i, self._train_rater(i)),
          ('seed', f'respond.{i}'),
          train | _gin_file('rater') | {'flaws': s.flaws},
        ),
        Step(f'rate.{i}', self._unless_settled(i, self._rate(i)), ('pairs', f'train-rater.{i}')),
        Step(f'keep.{i}', self._keep(i), ('pairs', f'rate.{i}'), keep),
      ]
    last = f'keep.{s.rounds - 1}'
    return steps + [
      Step('diversify', self._diversify, (last,), {'wanted': s.wanted, 'diversification': _diversification_settings()}),
      Step('export', self._export, ('seed', 'diversify')),
      Step('train', self._train_final, ('seed', 'export'), train | _gin_file('response')),
      Step('statistics', self._statistics, ('export',)),
    ]

  # ---- steps: each gets its folder and gives its counts ----------------------------------------------------------------

  def _filter(self, folder: str) -> Mapping:
    from crossin_jax.xinstruction.filtering import run_filter
    from crossin_jax.xinstruction.filters import Filters

    counts = {}
    for language in self.settings.languages:
      paths = self.settings.documents.replace('{language}', language)
      found = run_filter(language, paths, folder, Filters(), chunk=self.settings.chunk)
      counts[language] = {key: found[key] for key in ('read', 'kept', 'dropped')}
    return {'read': sum(c['read'] for c in counts.values()), 'kept': sum(c['kept'] for c in counts.values())} | {
      'by_language': counts
    }

  def _seed(self, folder: str) -> Mapping:
    counts = {}
    for language in self.settings.languages:
      found = list(seed.rows(self.settings, language))
      order = sorted(found, key=lambda row: rows_lib.fraction('seed', row['id']))[: self.settings.seed_pairs]
      if not order:
        raise StepError(f'no seed pair in {language}: {self.settings.seed} must give rows with instruction and output')
      counts[language] = rows_lib.write(os.path.join(folder, language, '00000.jsonl'), order)
    return {'pairs': sum(counts.values()), 'by_language': counts}

  def _train_generator(self, folder: str) -> Mapping:
    rows = lambda language: [
      {'id': row['id'], 'instruction': row['output'], 'output': row['instruction']}
      for row in self._read('seed', language)
    ]
    return self._train(folder, 'generator', 'xins', rows)

  def _generate(self, folder: str) -> Mapping:
    self._chunks('write', 'train-generator', self.steps.folder('filter'), folder, self.settings.instruction_tokens)
    return self._counted(folder, lambda row: bool(row['instruction']), 'instructions', 'empty')

  def _pairs(self, folder: str) -> Mapping:
    """Candidates: a document as the response to its instruction, chunk by chunk."""
    kept = dropped = 0
    for language in self.settings.languages:
      for path in rows_lib.chunks(self.steps.folder('filter'), language):
        name = os.path.basename(path)
        written = {
          row['id']: row['instruction']
          for row in rows_lib.read(os.path.join(self.steps.folder('generate'), language, name))
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

  def _train_response(self, i: int):
    def run(folder: str) -> Mapping:
      def rows(language):
        own = [
          row | {'instruction': rows_lib.assistant(row['instruction'], language)}
          for row in self._read('seed', language)
        ]
        if i:
          own += [
            row | {'instruction': rows_lib.plain(row['instruction'], language)}
            for row in self._read(f'keep.{i - 1}', language)
          ]
        return own

      return self._train(folder, 'response', 'xinstruction', rows)

    return run

  def _respond(self, i: int):
    def run(folder: str) -> Mapping:
      asked = os.path.join(folder, 'asked')
      for language in self.settings.languages:
        rows = [
          {'id': row['id'], 'instruction': rows_lib.assistant(row['instruction'], language)}
          for row in self._read('seed', language)
        ]
        for n in range(0, len(rows), self.settings.chunk):
          path = os.path.join(asked, language, f'{n // self.settings.chunk:05d}.jsonl')
          if not os.path.exists(path):
            rows_lib.write(path, rows[n : n + self.settings.chunk])
      answers = os.path.join(folder, 'answers')
      self._chunks('respond', f'train-response.{i}', asked, answers, self.settings.response_tokens)
      return self._counted(answers, lambda row: bool(row['output']), 'responses', 'empty')

    return run

  def _train_rater(self, i: int):
    def run(folder: str) -> Mapping:
      def rows(language):
        answers = os.path.join(self.steps.folder(f'respond.{i}'), 'answers')
        written = {row['id']: row['output'] for row in rows_lib.read_language(answers, language)}
        seed_rows = {code: list(self._read('seed', code)) for code in self.settings.languages}
        return levels.rating_rows(seed_rows, language, written, self.settings.flaws)

      return self._train(folder, 'rater', 'xrate', rows)

    return run

  def _rate(self, i: int):
    def run(folder: str) -> Mapping:
      self._chunks('rate', f'train-rater.{i}', self.steps.folder('pairs'), folder)
      scores = [
        row['score'] for language in self.settings.languages for row in rows_lib.read_language(folder, language)
      ]
      return {'rated': len(scores), 'mean_level': round(float(np.mean(scores)), 4) if scores else None}

    return run

  def _keep(self, i: int):
    def run(folder: str) -> Mapping:
      if self._settled(i):
        return self._kept_before(i, folder)
      counts, same, total = {}, 0, 0
      for language in self.settings.languages:
        score = {row['id']: row['score'] for row in rows_lib.read_language(self.steps.folder(f'rate.{i}'), language)}
        # NB: texts stay on disk until it is known which are kept.
        ids = list(score)
        best = levels.kept(
          np.array([score[id_] for id_ in ids]), ids, self.settings.keep_fraction, self.settings.least_level
        )
        chosen = {ids[k] for k in best}
        rows = (
          row | {'score': score[row['id']]} for row in rows_lib.read_language(self.steps.folder('pairs'), language)
          if row['id'] in chosen
        )  # fmt: skip
        rows_lib.write(os.path.join(folder, language, '00000.jsonl'), rows)
        histogram = np.histogram(list(score.values()), bins=20, range=(1, 3))[0].tolist()
        counts[language] = {'candidates': len(ids), 'kept': len(chosen), 'score_histogram': histogram}
        if i:
          before = {row['id'] for row in self._read(f'keep.{i - 1}', language)}
          same, total = same + len(before & chosen), total + len(before | chosen)
      changed = {'changed': round(1 - same / total, 4)} if total else {}
      summed = {key: sum(c[key] for c in counts.values()) for key in ('candidates', 'kept')}
      return summed | changed | {'by_language': counts}

    return run

  def _diversify(self, folder: str) -> Mapping:
    from crossin_jax.xinstruction.diversification import diversify

    counts = {}
    for language in self.settings.languages:
      rows = list(self._read(f'keep.{self.settings.rounds - 1}', language))
      chosen, labels = diversify(rows, self.settings.wanted)
      own = (rows[k] | {'cluster': int(labels[k])} for k in chosen)
      clusters = len({int(label) for label in labels})
      counts[language] = {
        'of': len(rows),
        'chosen': rows_lib.write(os.path.join(folder, language, '00000.jsonl'), own),
        'clusters': clusters,
      }
    return {'chosen': sum(c['chosen'] for c in counts.values()), 'by_language': counts}

  def _export(self, folder: str) -> Mapping:
    """LANG.json as published; plain_LANG.json and assistant_LANG.json with the prompts, for SeqIO tasks."""
    counts = {}
    for language in self.settings.languages:
      rows = [
        {key: row.get(key) for key in ('id', 'instruction', 'output', 'language', 'source', 'score')}
        for row in self._read('diversify', language)
      ]
      pairs = [row | {'source': 'seed', 'score': None} for row in self._read('seed', language)]
      counts[language] = rows_lib.write(os.path.join(folder, f'{language}.json'), rows)
      for name, own, style in (('plain', rows, rows_lib.plain), ('assistant', pairs, rows_lib.assistant)):
        asked = (row | {'instruction': style(row['instruction'], language)} for row in own)
        rows_lib.write(os.path.join(folder, f'{name}_{language}.json'), asked)
    return {'rows': sum(counts.values()), 'by_language': counts}

  def _train_final(self, folder: str) -> Mapping:
    stems = self.steps.folder('export')
    rows = lambda language: [
      row for name in ('assistant', 'plain') for row in rows_lib.read(os.path.join(stems, f'{name}_{language}.json'))
    ]
    return self._train(folder, 'response', 'xinstruction', rows)

  def _statistics(self, folder: str) -> Mapping:
    from crossin_jax.xinstruction.statistics import statistics
    from crossin_jax.xinstruction.statistics_page import write_page

    rounds: dict[str, list] = {}
    for i in range(self.settings.rounds):
      for language, own in self.steps.manifest(f'keep.{i}')['counts']['by_language'].items():
        rounds.setdefault(language, []).append({'round': i + 1} | own)
    files = {
      language: os.path.join(self.steps.folder('export'), f'{language}.json') for language in self.settings.languages
    }
    filled = {language: file for language, file in files.items() if next(rows_lib.read(file), None)}
    if not filled:
      return {'rows': 0}
    found = statistics(filled, rounds=rounds)
    write_page(os.path.join(folder, 'statistics.html'), found)
    return {'page': os.path.join(folder, 'statistics.html')}

  def _settled(self, i: int) -> bool:
    """Whether the round before round i changed so little that there is no other (METHODS C17)."""
    before = self.steps.manifest(f'keep.{i - 1}') if i else None
    return before is not None and before['counts'].get('changed', 1.0) < self.settings.settled

  def _unless_settled(self, i: int, run):
    return lambda folder: (
      {'settled': f'round {i - 1} changed the kept set too little'} if self._settled(i) else run(folder)
    )

  def _kept_before(self, i: int, folder: str) -> Mapping:
    counts = self.steps.manifest(f'keep.{i - 1}')['counts']
    for language in self.settings.languages:
      rows_lib.write(os.path.join(folder, language, '00000.jsonl'), self._read(f'keep.{i - 1}', language))
    return counts | {'settled': 'as in the round before'}

  # ---- what the steps share ----------------------------------------------------------------------------------------------

  def _read(self, step: str, language: str):
    return rows_lib.read_language(self.steps.folder(step), language)

  def _counted(self, folder: str, good, name: str, other: str) -> Mapping:
    found = [good(row) for language in self.settings.languages for row in rows_lib.read_language(folder, language)]
    return {name: sum(found), other: len(found) - sum(found)}

  def _train(self, folder: str, kind: str, template: str, rows) -> Mapping:
    """Rows as files, prepared and trained on by ordinary commands."""
    s, counts = self.settings, {}
    for language in s.languages:
      counts[language] = rows_lib.write(os.path.join(folder, f'rows_{language}.json'), rows(language))
    languages = tuple(language for language in s.languages if counts[language])
    mixture = f'xinstruction.{COMPONENT}.all.{"_".join(("en", *languages))}.{PRESET}'
    name = os.path.basename(folder)
    self._command(
      f'{name}.prepare',
      ['prepare', '--gin_file=gin_configs/mixtures/xinstruction.gin', f'--mixture={mixture}', f'--output_dir={folder}/data'],
      {'ROWS': os.path.join(folder, 'rows'), 'LANGUAGES': languages, 'VOCABULARY': s.vocabulary, 'TEMPLATE': template,
       'MixtureSettings.max_length': s.max_length},
    )  # fmt: skip
    files = [f'--gin_file={path}' for path in (*s.model_gin, f'gin_configs/xinstruction/{kind}.gin')]
    values = {
      'DATA_DIR': f'{folder}/data',
      'MIXTURE_OR_TASK_NAME': mixture,
      'MODEL_DIR': f'{folder}/model',
      'LENGTH': s.max_length,
    }
    self._command(f'{name}.train', ['train', *files], values | dict(s.values))
    return {'rows': sum(counts.values()), 'by_language': counts}

  def _chunks(self, kind: str, model_step: str, input_dir: str, output_dir: str, new_tokens: int | None = None) -> None:
    checkpoint = os.path.join(self.steps.folder(model_step), 'model')
    values = {'ChunkWorker.prompt_tokens': self.settings.max_length - 64}
    if new_tokens:
      values['Sampling.max_new_tokens'] = new_tokens
    flags = ['xinstruction', 'chunks', '--kind', kind, '--checkpoint', checkpoint]
    flags += ['--input', input_dir, '--output', output_dir]
    self._command(f'{model_step}.{kind}', flags, values)

  def _command(self, log: str, arguments: list[str], values: Mapping) -> None:
    self.jobs.run(log, arguments, values, all_cores=True)

  def _seed_stamps(self) -> dict:
    return {
      language: [file_stamp(path) for path in seed.files(self.settings, language)]
      for language in self.settings.languages
    }

  def _document_stamps(self) -> dict:
    from crossin_jax.xinstruction.documents import find_files

    s = self.settings
    files = lambda language: find_files(s.documents.replace('{language}', language)).values()
    return {language: [file_stamp(path) for path in files(language)] for language in s.languages}


def _gin_file(kind: str) -> dict:
  """The run file of a kind of model: another recipe is another model."""
  return {'recipe': _lines(f'gin_configs/xinstruction/{kind}.gin')}


def _lines(path: str) -> list[str]:
  """What a gin file says, without comments; of this project if there is none of that name."""
  root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
  with open(path if os.path.isfile(path) else os.path.join(root, path), encoding='utf-8') as f:
    return [line.split('#')[0].strip() for line in f if line.split('#')[0].strip()]


def _filter_settings() -> dict:
  from crossin_jax.xinstruction.documents import Reading
  from crossin_jax.xinstruction.filters import Filters

  return dataclasses.asdict(Filters()) | dataclasses.asdict(Reading())


def _diversification_settings() -> dict:
  from crossin_jax.xinstruction.diversification import Diversification

  embed = {name: config.bound(f'embed.{name}') for name in ('method', 'dimensions', 'words', 'seed', 'checkpoint')}
  return dataclasses.asdict(Diversification()) | {
    'embed': {name: value for name, value in embed.items() if value is not None}
  }


def _names(pipeline: Pipeline, command: str) -> list[str] | None:
  """Steps of a command: all, one, or all rounds of one."""
  every = list(pipeline.steps.steps)
  if command == 'run':
    return None
  rounds = {'rate': ('rate', 'keep'), 'train-rater': ('train-response', 'respond', 'train-rater')}
  if command == 'refine':
    return [name for name in every if '.' in name]
  if command == 'generate':
    return ['generate', 'pairs']
  return [
    name
    for name in every
    if name.split('.')[0] in rounds.get(command, (command,)) and ('.' not in name or name.endswith('.0'))
  ]


COMMANDS = (
  'run', 'filter', 'seed', 'train-generator', 'generate', 'train-rater', 'rate', 'refine', 'diversify', 'export', 'train',
  'statistics', 'status',
)  # fmt: skip


def main(argv: list[str]) -> int:
  """The command line of `crossin xinstruction`."""
  if argv and argv[0] == 'chunks':
    from crossin_jax.xinstruction import chunk_worker

    return chunk_worker.main(argv[1:])
  parser = argparse.ArgumentParser(
    prog='crossin xinstruction',
    description='Instruction data from natural text: run = all steps; a step alone; status = what is done, missing or stale; '
    'chunks = a share of the generation or rating, on any number of hosts. Exit status: 0 done, 75 told to stop, 1 failed, 2 usage.',
    epilog="example: crossin xinstruction run --gin_file=gin_configs/xinstruction/default.gin --gin.LANGUAGES=\"('sw','ta')\" "
    '--gin.DOCUMENTS="\'text/{language}.jsonl\'" --gin.SEED="\'data/seed\'" --gin.VOCABULARY="\'tokenizer.model\'" --output_dir out',
  )
  parser.add_argument('command', choices=(*COMMANDS, 'chunks'))
  parser.add_argument('--output_dir', required=True)
  parser.add_argument(
    '--redo', action='store_true', help='run stale steps again; what was there is renamed, not deleted'
  )
  parser.add_argument('--json', action='store_true', help='one JSON object as last line on stdout')
  config.add_flags(parser)
  args = parser.parse_args(argv)
  config.parse(args)
  settings = XInstruction()
  pipeline = Pipeline(args.output_dir, settings)
  if args.command == 'status':
    states = {name: pipeline.steps.state(name) for name in pipeline.steps.steps}
    for name, (state, told) in states.items():
      print(f'{name:<18} {state}{f" ({told})" if told else ""}', file=sys.stderr)
    if args.json:
      print(json.dumps({name: state for name, (state, _) in states.items()}))
    return 0
  try:
    with pipeline.jobs.stopping_on_signals():
      done = pipeline.steps.run(_names(pipeline, args.command), args.redo)
  except Stopped as stopped:
    print(f'crossin xinstruction: {stopped}; start the same command again to go on', file=sys.stderr)
    return RESTART
  except StepFailed as failed:
    raise StepError(str(failed)) from None
  if args.json:
    print(json.dumps({name: manifest['counts'] for name, manifest in done.items()}, ensure_ascii=False))
  return 0
