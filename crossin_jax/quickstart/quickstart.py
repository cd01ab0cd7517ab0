"""`crossin quickstart`: the main job on the embedded world, by the project's own commands.

    vocabulary, world, prepare  ->  read (once with the tested facts, once without)  ->  tune the
    arms  -> evaluate each  ->  results.json, report.html

Every step is a `crossin` command in a process of its own; its output lies in OUT/logs. A second
start does only what is missing.
"""

import collections
import concurrent.futures
import dataclasses
import importlib.metadata
import json
import os
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
from crossin_jax.quickstart.guessers import guessers
from crossin_jax.storage.files import read_json, write_json
from crossin_jax.workflow import command_line
from crossin_jax.workflow.jobs import Jobs

# Arm -> components of its tuning mixture and their shares. Half of each is replayed reading, the
# same in every arm; the other half is English questions (Base), or a third of them and two thirds
# of what the arm adds.
REPLAY = {'tested': 0.2, 'shared': 0.3}
ARMS = {
  'Floor': {'base': 1.0},
  'Base': {'base': 1.0},
  'Mono': {'base': 1 / 3, 'mono': 2 / 3},
  'x2x': {'base': 1 / 3, 'x2x': 2 / 3},
  'x2x + Trans': {'base': 1 / 3, 'x2x': 1 / 3, 'trans': 1 / 3},
}
READING = {'tested': 0.2, 'shared': 0.5, 'base': 0.3}
FORMS = ('untagged', 'tagged')


@dataclasses.dataclass(frozen=True)
class Settings:
  """What a quickstart is made of; saved beside its results, so that a changed one is noticed."""

  languages: tuple[str, ...]
  arms: tuple[str, ...]
  seeds: int
  reading_steps: int
  tuning_steps: int
  world_seed: int
  vocabulary_size: int
  bindings: tuple[str, ...]


class Quickstart:
  """One output directory and the steps that fill it."""

  def __init__(self, output_dir: str, settings: Settings, jobs: int):
    self.out, self.settings = output_dir, settings
    self.commands = Jobs(
      output_dir, jobs, {'JAX_PLATFORMS': os.environ.get('JAX_PLATFORMS', 'cpu')}
    )
    self._jobs = jobs
    self._started = time.monotonic()

  def run(self) -> str:
    """Does what is missing; returns the path of the report."""
    self._remember_settings()
    self._make_world()
    with concurrent.futures.ThreadPoolExecutor(self._jobs) as pool:
      readings: dict = {}
      futures = []
      for seed in range(self.settings.seeds):
        for floor in sorted({arm == 'Floor' for arm in self.settings.arms}):
          readings[floor, seed] = pool.submit(self._read, floor, seed)
      waiting = [(arm, seed) for seed in range(self.settings.seeds) for arm in self.settings.arms]
      # An arm is handed to the pool only when its reading is done, so that no core waits.
      while waiting:
        ready = [(a, s) for a, s in waiting if readings[a == 'Floor', s].done()]
        for arm, seed in ready:
          readings[arm == 'Floor', seed].result()
          futures.append(pool.submit(self._arm, arm, seed))
        waiting = [job for job in waiting if job not in ready]
        concurrent.futures.wait(
          [readings[a == 'Floor', s] for a, s in waiting],
          return_when=concurrent.futures.FIRST_COMPLETED,
        )
      for future in concurrent.futures.as_completed(futures):
        future.result()
    return self._report()

  # ---- steps ----

  def _remember_settings(self) -> None:
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

  def _make_world(self) -> None:
    # Imported here: `crossin_jax` itself needs no source of data.
    from crossin_jax.world import sources as world_sources
    from crossin_jax.world.world import World

    self.world = World(seed=self.settings.world_seed, languages=self.settings.languages)
    folder = os.path.join(self.out, 'world')
    if not os.path.exists(os.path.join(folder, 'world.json')):
      self._say(f'making the world and its vocabulary of {self.settings.vocabulary_size} pieces')
      world_sources.train_vocabulary(
        self.world, self.settings.vocabulary_size, os.path.join(folder, 'world.model')
      )
      world_sources.write_questions(self.world, folder)
    self.questions = {form: os.path.join(folder, f'questions.{form}.jsonl') for form in FORMS}
    jobs = []
    for floor in sorted({arm == 'Floor' for arm in self.settings.arms}):
      jobs.append((self._reading_data(floor), READING, floor))
    for arm in self.settings.arms:
      jobs.append((self._arm_data(arm), _tuning_shares(arm), arm == 'Floor'))
    for directory, shares, floor in jobs:
      mixture = self._mixture(shares)
      if os.path.exists(os.path.join(directory, 'mixtures', f'{mixture}.json')):
        continue
      self.commands.run(
        f'prepare.{os.path.basename(directory)}',
        [
          'prepare',
          '--gin_file=gin_configs/mixtures/world.gin',
          f'--mixture={mixture}',
          f'--output_dir={directory}',
        ],
        {
          'VOCABULARY': os.path.join(folder, 'world.model'),
          'LANGUAGES': self.settings.languages,
          'WORLD_SEED': self.settings.world_seed,
          'TELL_TESTED': not floor,
          'SHARES': shares,
        },
      )

  def _read(self, floor: bool, seed: int) -> None:
    what = 'without the tested facts' if floor else 'with the tested facts told in English'
    self._train(
      f'reading {what} (seed {seed}): {self.settings.reading_steps} steps',
      self._reading_dir(floor, seed),
      'world_read',
      self._reading_data(floor),
      READING,
      seed,
      {'TRAIN_STEPS': self.settings.reading_steps},
    )

  def _arm(self, arm: str, seed: int) -> None:
    directory = self._arm_dir(arm, seed)
    self._train(
      f'tuning {arm} (seed {seed}): {self.settings.tuning_steps} steps',
      directory,
      'world_tune',
      self._arm_data(arm),
      _tuning_shares(arm),
      seed,
      {
        'TRAIN_STEPS': self.settings.tuning_steps,
        'INITIAL_CHECKPOINT_PATH': self._reading_dir(arm == 'Floor', seed),
      },
    )
    output = os.path.join(directory, 'evaluation')
    if not os.path.exists(os.path.join(output, 'results.json')):
      self._say(f'asking {arm} (seed {seed}) in {", ".join(self.settings.languages)}')
      files = [f'--questions={path}' for path in self.questions.values()]
      self.commands.run(
        f'evaluate.{os.path.basename(directory)}',
        [
          'evaluate',
          f'--checkpoint={directory}',
          *files,
          f'--output_dir={output}',
          f'--variant={arm}',
          f'--seed={seed}',
        ],
        {},
      )

  def _train(self, what, directory, run_file, data_dir, shares, seed, values) -> None:
    if os.path.exists(os.path.join(directory, 'finished')):
      return
    self._say(what)
    self.commands.run(
      f'train.{os.path.basename(directory)}',
      ['train', f'--gin_file=gin_configs/runs/{run_file}.gin'],
      {
        'MODEL_DIR': directory,
        'DATA_DIR': data_dir,
        'MIXTURE_OR_TASK_NAME': self._mixture(shares),
        'RANDOM_SEED': seed,
      }
      | values,
      self.settings.bindings,
    )
    write_json(os.path.join(directory, 'finished'), True)

  # ---- names ----

  def _mixture(self, shares) -> str:
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
    for arm in settings.arms:
      for seed in range(settings.seeds):
        directory = self._arm_dir(arm, seed)
        runs += read_results(os.path.join(directory, 'evaluation', 'results.json'))
        for form in FORMS:
          for method in ('likelihood', 'generate'):
            path = os.path.join(
              directory, 'evaluation', 'predictions', f'questions.{form}.{method}.jsonl'
            )
            choices[arm, seed, form, method] = read_predictions(path).extract('strict')
        with open(os.path.join(directory, 'metrics.jsonl'), encoding='utf-8') as f:
          metrics[arm, seed] = [json.loads(line) for line in f]
        for row in metrics[arm, seed]:
          if 'tokens' in row:
            tokens[arm] += int(row['tokens'])
            seconds[arm] += row['tokens'] / row['tokens_per_second']
    questions = read_questions(self.questions['untagged'])
    write_results(os.path.join(self.out, 'results.json'), runs)
    with open(
      os.path.join(self._arm_dir(settings.arms[-1], 0), 'config.gin'), encoding='utf-8'
    ) as f:
      operative = f.read()
    told = collections.Counter(len(fact.told_in) > 1 for fact in self.world.facts)
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
        world={
          'territories': self.world.tuning_entities + self.world.test_entities,
          'relations told in every language': ', '.join(self.world.shared_relations),
          'relations told in English only': ', '.join(self.world.tested_relations),
          'facts told in every language': told[True],
          'facts told in English only': told[False],
          'phrasings of a fact in English': self.world.english_phrasings,
          'phrasings of a fact in each other language': self.world.other_phrasings,
          'territories whose facts tuning asks about': self.world.tuning_entities,
          'territories whose facts only the test asks about': self.world.test_entities,
          'test questions': len(questions.ids),
          'reading steps': settings.reading_steps,
          'tuning steps': settings.tuning_steps,
        },
        seconds=seconds,
        tokens=tokens,
        config=operative,
        command=shlex.join(['crossin', *sys.argv[1:]]),
        versions={'python': platform.python_version()}
        | {
          name: importlib.metadata.version(name)
          for name in ('crossin-jax', 'jax', 'flax', 'optax', 'orbax-checkpoint')
        },
      ),
    )
    return path


def _tuning_shares(arm: str) -> dict[str, float]:
  return REPLAY | {
    component: share * (1 - sum(REPLAY.values())) for component, share in ARMS[arm].items()
  }


def _slug(arm: str) -> str:
  return arm.lower().replace(' + ', '_')


def main(argv: list[str]) -> int:
  """The command line of `crossin quickstart`."""
  parser = command_line.Parser(
    'quickstart',
    'Read an invented world in English, tune it in five ways, ask in every language, write a '
    'report.',
    'crossin quickstart --languages en,vi,es --seeds 1 --output_dir runs/quickstart',
  )
  parser.add_argument('--output_dir', default='runs/quickstart', help='for everything')
  parser.add_argument('--languages', default='en,vi,es', help='English first, any of thirteen')
  parser.add_argument('--arms', default=','.join(ARMS), help='of: %(default)s')
  parser.add_argument('--seeds', type=int, default=1, help='runs of every arm (default: 1)')
  parser.add_argument('--reading_steps', type=int, default=3000, help='')
  parser.add_argument('--tuning_steps', type=int, default=300, help='')
  parser.add_argument(
    '--world_seed', type=int, default=0, help='another seed is another world (default: 0)'
  )
  parser.add_argument(
    '--vocabulary_size',
    type=int,
    help='pieces (default: 1500, and 300 more a language beyond four)',
  )
  parser.add_argument(
    '--jobs',
    type=int,
    default=len(os.sched_getaffinity(0)),
    help='processes at a time (default: cores)',
  )
  args, bindings = parser.parse_known_args(argv)
  if stray := [b for b in bindings if not b.startswith('--gin_bindings=')]:
    parser.error(f'unknown arguments: {" ".join(stray)}')
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
    languages,
    arms,
    args.seeds,
    args.reading_steps,
    args.tuning_steps,
    args.world_seed,
    size,
    tuple(bindings),
  )
  started = time.monotonic()
  quickstart = Quickstart(args.output_dir, settings, args.jobs)
  with quickstart.commands.stopping_on_signals():
    path = quickstart.run()
  runs = read_results(os.path.join(args.output_dir, 'results.json'))
  _print_table(runs, settings)
  print(f'\n{duration(time.monotonic() - started)}. Open {os.path.abspath(path)}', file=sys.stderr)
  return command_line.finish(
    args, {'report': path, 'seconds': time.monotonic() - started, 'runs': runs}
  )


def _print_table(runs: list[dict], settings: Settings) -> None:
  """Likelihood choices on untagged questions, mean over seeds, on the terminal."""
  size = str(min(3, len(settings.languages)))
  print(
    f'\n{"arm":14}'
    + ''.join(f'{l:>8}' for l in settings.languages)
    + f'{"C_" + size:>8}{"AC3_" + size:>8}',
    file=sys.stderr,
  )
  for arm in settings.arms:
    mine = [
      r
      for r in runs
      if r['variant'] == arm and r['method'] == 'likelihood' and r['benchmark'].endswith('untagged')
    ]
    mean = lambda get: sum(map(get, mine)) / len(mine)
    cells = [mean(lambda r, l=l: r['accuracy_by_language'][l]) for l in settings.languages]
    cells += [mean(lambda r: r['consistency'][size]), mean(lambda r: r['ac3'][size])]
    print(f'{arm:14}' + ''.join(f'{cell:8.3f}' for cell in cells), file=sys.stderr)


if __name__ == '__main__':
  sys.exit(main(config.rewrite(sys.argv[1:])))
