"""`crossin quickstart`: the main experiment on the embedded world.

    vocabulary, world, prepare  ->  read (once with the tested facts, once without)  ->  tune the
    arms  ->  evaluate each  ->  results.json, report.html

Each step is a `crossin` command in a process, with its output in OUT/logs. A second start runs only
what is missing.
"""

import collections
import dataclasses
import functools
import importlib.metadata
import itertools
import json
import os
from pathlib import Path
import platform
import shlex
import sys
import time

from crossin_jax import config
from crossin_jax.evaluation import report as report_lib
from crossin_jax.evaluation.answers.predictions import read_predictions
from crossin_jax.evaluation.questions import read_questions
from crossin_jax.evaluation.results import read_results, write_results
from crossin_jax.languages import code_of
from crossin_jax.progress import duration
from crossin_jax.quickstart import flags
from crossin_jax.quickstart.flags import ARMS, REPLAY
from crossin_jax.quickstart.guessers import guessers
from crossin_jax.storage.files import read_json, write_json
from crossin_jax.storage.records import read_records
from crossin_jax.workflow import command_line
from crossin_jax.workflow.jobs import Jobs
from crossin_jax.workflow.steps import Task, run_missing
from crossin_jax.world.world import World

READING = {'tested': 0.2, 'shared': 0.5, 'base': 0.3}
FORMS = ('untagged', 'tagged')


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of a quickstart, saved with its results so that a change is noticed."""

  languages: tuple[str, ...]
  arms: tuple[str, ...]
  seeds: int
  reading_steps: int
  tuning_steps: int
  world_seed: int
  vocabulary_size: int
  bindings: tuple[str, ...]


class Quickstart:
  """One output directory and the steps that fill it.

  Attributes:
    out: the directory.
    settings: what it is made from.
    commands: runs the `crossin` commands.
  """

  def __init__(self, output_dir: str, settings: Settings, jobs: int):
    self.out, self.settings, self._jobs = output_dir, settings, jobs
    platform_ = os.environ.get('JAX_PLATFORMS', 'cpu')
    self.commands = Jobs(output_dir, jobs, {'JAX_PLATFORMS': platform_})
    self._started = time.monotonic()
    self.world = World(seed=settings.world_seed, languages=settings.languages)
    self.questions = {
      form: os.path.join(output_dir, 'world', f'questions.{form}.jsonl') for form in FORMS
    }

  def run(self) -> str:
    """Runs what is missing; returns the path of the report."""
    self._save_settings()
    run_missing(self._preparations(), self._jobs)
    run_missing(self._models(), self._jobs)
    return self._report()

  # ---- steps ----

  def _save_settings(self) -> None:
    path = os.path.join(self.out, 'quickstart.json')
    now = json.loads(json.dumps(dataclasses.asdict(self.settings)))
    if os.path.exists(path):
      before = read_json(path, 'delete it')
      changed = [f'{k} was {before.get(k)}, now {now[k]}' for k in now if before.get(k) != now[k]]
      if changed:
        raise ValueError(
          f'{self.out} holds another quickstart: {"; ".join(changed)}. Give another --output_dir'
        )
    os.makedirs(os.path.join(self.out, 'logs'), exist_ok=True)
    write_json(path, now)

  def _preparations(self) -> list[Task]:
    """The world, then a mixture for each reading and each arm."""
    tasks = [Task('world', self._make_world, _exists(self.out, 'world', 'world.json'))]
    mixtures = {self._reading_data(floor): (READING, floor) for floor in self._floors()}
    for arm in self.settings.arms:
      mixtures[self._arm_data(arm)] = _tuning_shares(arm), arm == 'Floor'
    for folder, (shares, floor) in mixtures.items():
      prepare = functools.partial(self._prepare, folder, shares, floor)
      done = _exists(folder, 'mixtures', f'{self._mixture(shares)}.json')
      tasks.append(Task(folder, prepare, done, ('world',)))
    return tasks

  def _models(self) -> list[Task]:
    """The readings of all seeds, then the arms, each of which needs its reading, then their
    evaluations.

    Evaluations are short and nothing needs them, so they fill the cores that the last arms leave.
    """
    tasks, arms, evaluations = [], [], []
    for seed in range(self.settings.seeds):
      for floor in self._floors():
        folder = self._reading_dir(floor, seed)
        read = functools.partial(self._read, floor, seed)
        tasks.append(Task(folder, read, _exists(folder, 'finished')))
      for arm in self.settings.arms:
        folder = self._arm_dir(arm, seed)
        reading, evaluation = self._reading_dir(arm == 'Floor', seed), f'{folder}/evaluation'
        tune = functools.partial(self._tune, arm, seed)
        arms.append(Task(folder, tune, _exists(folder, 'finished'), (reading,)))
        evaluate = functools.partial(self._evaluate, arm, seed)
        done = _exists(evaluation, 'results.json')
        evaluations.append(Task(evaluation, evaluate, done, (folder,)))
    return tasks + arms + evaluations

  def _make_world(self) -> None:
    from crossin_jax.world import sources  # imports SentencePiece

    folder = os.path.join(self.out, 'world')
    size = self.settings.vocabulary_size
    self._say(f'making the world and its vocabulary of {size} pieces')
    sources.train_vocabulary(self.world, size, os.path.join(folder, 'world.model'))
    sources.write_questions(self.world, folder)

  def _prepare(self, directory: str, shares: dict[str, float], floor: bool) -> None:
    self.commands.run(
      f'prepare.{os.path.basename(directory)}',
      [
        'prepare',
        '--gin_file=gin_configs/mixtures/world.gin',
        f'--mixture={self._mixture(shares)}',
        f'--output_dir={directory}',
      ],
      {
        'VOCABULARY': os.path.join(self.out, 'world', 'world.model'),
        'LANGUAGES': self.settings.languages,
        'WORLD_SEED': self.settings.world_seed,
        'TELL_TESTED': not floor,
        'SHARES': shares,
      },
    )

  def _read(self, floor: bool, seed: int) -> None:
    steps = self.settings.reading_steps
    facts = 'without the tested facts' if floor else 'with the tested facts in English'
    self._say(f'reading {facts} (seed {seed}): {steps} steps')
    data, directory = self._reading_data(floor), self._reading_dir(floor, seed)
    self._train(directory, 'world_read', data, READING, seed, {'TRAIN_STEPS': steps})

  def _tune(self, arm: str, seed: int) -> None:
    steps = self.settings.tuning_steps
    self._say(f'tuning {arm} (seed {seed}): {steps} steps')
    reading = self._reading_dir(arm == 'Floor', seed)
    values = {'TRAIN_STEPS': steps, 'INITIAL_CHECKPOINT_PATH': reading}
    directory, shares = self._arm_dir(arm, seed), _tuning_shares(arm)
    self._train(directory, 'world_tune', self._arm_data(arm), shares, seed, values)

  def _train(self, directory, run_file, data_dir, shares, seed, values) -> None:
    self.commands.run(
      f'train.{os.path.basename(directory)}',
      ['train', f'--gin_file=gin_configs/runs/{run_file}.gin'],
      {
        'MODEL_DIR': directory,
        'DATA_DIR': data_dir,
        'MIXTURE_OR_TASK_NAME': self._mixture(shares),
        'RANDOM_SEED': seed,
        **values,
      },
      self.settings.bindings,
    )
    write_json(os.path.join(directory, 'finished'), True)

  def _evaluate(self, arm: str, seed: int) -> None:
    directory = self._arm_dir(arm, seed)
    self._say(f'evaluating {arm} (seed {seed}) in {", ".join(self.settings.languages)}')
    self.commands.run(
      f'evaluate.{os.path.basename(directory)}',
      [
        'evaluate',
        f'--checkpoint={directory}',
        *[f'--questions={path}' for path in self.questions.values()],
        f'--output_dir={os.path.join(directory, "evaluation")}',
        f'--variant={arm}',
        f'--seed={seed}',
      ],
    )

  # ---- names ----

  def _floors(self) -> list[bool]:
    """Whether the reading is without the tested facts, of all readings that the arms need."""
    return sorted({arm == 'Floor' for arm in self.settings.arms})

  def _mixture(self, shares: dict[str, float]) -> str:
    return f'world.{"_".join(shares)}.all.{"_".join(self.settings.languages)}.every'

  def _reading_data(self, floor: bool) -> str:
    return os.path.join(self.out, 'data', 'reading_floor' if floor else 'reading')

  def _arm_data(self, arm: str) -> str:
    return os.path.join(self.out, 'data', f'tuning_{_slug(arm)}')

  def _reading_dir(self, floor: bool, seed: int) -> str:
    return os.path.join(self.out, 'models', f'{"read_floor" if floor else "read"}.{seed}')

  def _arm_dir(self, arm: str, seed: int) -> str:
    return os.path.join(self.out, 'models', f'{_slug(arm)}.{seed}')

  def _say(self, text: str) -> None:
    print(f'[{duration(time.monotonic() - self._started):>6}] {text}', file=sys.stderr, flush=True)

  # ---- the page ----

  def _report(self) -> str:
    settings = self.settings
    runs, choices, metrics = [], {}, {}
    seconds: dict[str, float] = collections.defaultdict(float)
    tokens: dict[str, int] = collections.defaultdict(int)
    for arm, seed in itertools.product(settings.arms, range(settings.seeds)):
      directory = self._arm_dir(arm, seed)
      evaluation = os.path.join(directory, 'evaluation')
      runs += read_results(os.path.join(evaluation, 'results.json'))
      for form, method in itertools.product(FORMS, ('likelihood', 'generate')):
        path = os.path.join(evaluation, 'predictions', f'questions.{form}.{method}.jsonl')
        choices[arm, seed, form, method] = read_predictions(path).extract('strict')
      rows = read_records(os.path.join(directory, 'metrics.jsonl'))
      metrics[arm, seed] = [row for _, row in rows]
      for row in metrics[arm, seed]:
        if 'tokens' in row:
          tokens[arm] += int(row['tokens'])
          seconds[arm] += row['tokens'] / row['tokens_per_second']
    questions = read_questions(self.questions['untagged'])
    write_results(os.path.join(self.out, 'results.json'), runs)
    last = Path(self._arm_dir(settings.arms[-1], 0))
    packages = ('crossin-jax', 'jax', 'flax', 'optax', 'orbax-checkpoint')
    versions = {name: importlib.metadata.version(name) for name in packages}
    path = os.path.join(self.out, 'report.html')
    report_lib.write_report(
      path,
      report_lib.Report(
        title='CrossIn on an invented world',
        languages=questions.languages,
        arms=[report_lib.Arm(arm) for arm in settings.arms],
        answers=questions.answers,
        choices=choices,
        runs=runs,
        guessers=guessers(questions, self.world),
        items=[
          report_lib.Item(
            id_,
            {row['language']: row['instruction'] for row in item},
            {row['language']: row['choices'] for row in item},
          )
          for id_, item in zip(questions.ids, questions.rows)
        ],
        metrics=metrics,
        world=self._world_facts(len(questions.ids)),
        seconds=seconds,
        tokens=tokens,
        config=(last / 'config.gin').read_text(encoding='utf-8'),
        command=shlex.join(['crossin', *sys.argv[1:]]),
        versions={'python': platform.python_version()} | versions,
      ),
    )
    return path

  def _world_facts(self, questions: int) -> dict[str, object]:
    """What the report says about the world."""
    world = self.world
    everywhere = sum(len(fact.told_in) > 1 for fact in world.facts)
    return {
      'territories': world.tuning_entities + world.test_entities,
      'relations told in every language': ', '.join(world.shared_relations),
      'relations told in English only': ', '.join(world.tested_relations),
      'facts told in every language': everywhere,
      'facts told in English only': len(world.facts) - everywhere,
      'phrasings of a fact in English': world.english_phrasings,
      'phrasings of a fact in each other language': world.other_phrasings,
      'territories whose facts tuning asks about': world.tuning_entities,
      'territories whose facts only the test asks about': world.test_entities,
      'test questions': questions,
      'reading steps': self.settings.reading_steps,
      'tuning steps': self.settings.tuning_steps,
    }


def _exists(*parts: str):
  """Whether the file exists, as a function."""
  return functools.partial(os.path.exists, os.path.join(*parts))


def _tuning_shares(arm: str) -> dict[str, float]:
  return REPLAY | {
    component: share * (1 - sum(REPLAY.values())) for component, share in ARMS[arm].items()
  }


def _slug(arm: str) -> str:
  return arm.lower().replace(' + ', '_')


def main(argv: list[str]) -> int:
  """The command line of `crossin quickstart`."""
  parser = flags.parser()
  args = parser.parse_args(argv)
  bindings = list(map(config.argument, args.gin_bindings))
  for binding in args.gin_bindings:
    name, known = config.name_of(binding), config.shipped_macros('models', 'runs')
    if '.' not in name and name not in known:
      raise config.unknown_macro(binding, known)
  languages = tuple(code_of(code) for code in args.languages.split(','))
  arms = tuple(arm.strip() for arm in args.arms.split(','))
  if unknown := [arm for arm in arms if arm not in ARMS]:
    parser.error(f'--arms: {", ".join(unknown)} is not one of {", ".join(ARMS)}')
  if args.seeds < 1 or args.jobs < 1 or args.reading_steps < 1 or args.tuning_steps < 1:
    parser.error('--seeds, --jobs and steps must be at least 1')
  size = args.vocabulary_size or 1500 + 300 * max(0, len(languages) - 4)
  if size > 1500:
    bindings = [*bindings, f'--gin_bindings=DecoderConfig.vocab_size = {-(-size // 128) * 128}']
  settings = Settings(
    languages=languages,
    arms=arms,
    seeds=args.seeds,
    reading_steps=args.reading_steps,
    tuning_steps=args.tuning_steps,
    world_seed=args.world_seed,
    vocabulary_size=size,
    bindings=tuple(bindings),
  )
  started = time.monotonic()
  quickstart = Quickstart(args.output_dir, settings, args.jobs)
  with quickstart.commands.stopping_on_signals():
    path = quickstart.run()
  runs = read_results(os.path.join(args.output_dir, 'results.json'))
  _print_table(runs, settings)
  seconds = time.monotonic() - started
  print(f'\n{duration(seconds)}. Open {os.path.abspath(path)}', file=sys.stderr)
  return command_line.finish(args, {'report': path, 'seconds': seconds, 'runs': runs})


def _print_table(runs: list[dict], settings: Settings) -> None:
  """Prints the likelihood choices on untagged questions, mean over seeds."""
  size = str(min(3, len(settings.languages)))
  print(
    f'\n{"arm":14}'
    + ''.join(f'{l:>8}' for l in settings.languages)
    + f'{"C_" + size:>8}{"AC3_" + size:>8}',
    file=sys.stderr,
  )
  for arm in settings.arms:
    chosen = [
      run
      for run in runs
      if (run['variant'], run['method']) == (arm, 'likelihood')
      and run['benchmark'].endswith('untagged')
    ]
    mean = lambda get, chosen=chosen: sum(map(get, chosen)) / len(chosen)
    cells = [mean(lambda r, l=l: r['accuracy_by_language'][l]) for l in settings.languages]
    cells += [mean(lambda r: r['consistency'][size]), mean(lambda r: r['ac3'][size])]
    print(f'{arm:14}' + ''.join(f'{cell:8.3f}' for cell in cells), file=sys.stderr)
