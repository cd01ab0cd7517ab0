r"""`crossin run`: one job from one file.

    prepare -> train -> after -> compare -> page
    before ---------------------/
                \-> export

Each step is a `crossin` command in a process of its own, with its folder and a manifest in
`run.output_dir`. The same commands with the same settings give the same files.
"""

from collections.abc import Callable, Collection, Mapping
import glob
import os
import shlex
import shutil

from crossin_jax import config
from crossin_jax.run import estimate, flags, page
from crossin_jax.run.settings import RunSettings
from crossin_jax.storage import hub_names, remote
from crossin_jax.workflow import command_line, forwarding
from crossin_jax.workflow.forwarding import ForwardedSettings
from crossin_jax.workflow.jobs import Jobs
from crossin_jax.workflow.steps import Step, Steps, file_stamp

# What `crossin run` sets itself.
PLACEHOLDERS = {'MODEL_DIR': "'train'", 'DATA_DIR': "'prepare'"}

# Step -> what its manifest keeps of the command's result.
COUNTS = {
  'prepare': ('tasks', 'examples', 'tokens'),
  'train': ('step', 'loss'),
  'export': ('format', 'bytes'),
}


class Job:
  """The steps of one file.

  Attributes:
    settings: of `run`.
    words: the gin files and bindings of the command line, for commands that users may copy.
    mixture: its name.
    base: the model that training starts from; None = random numbers.
    jobs: runs the commands.
    steps: what there is to do, in order.
  """

  def __init__(self, settings: RunSettings, forwarded: ForwardedSettings, words: list[str]):
    self.settings, self.words, self._forwarded = settings, words, forwarded
    self.mixture = _setting('train.mixture')
    self.base = _setting('train.initial_checkpoint')
    self._template = _setting('MixtureSettings.template') or 'alpaca'
    # Without JAX_COMPILATION_CACHE_DIR each MODEL_DIR keeps its programs, as in a run by hand.
    self.jobs = Jobs(settings.output_dir)
    self.steps = Steps(settings.output_dir, self._steps(), 'set another run.output_dir')

  def folder(self, step: str) -> str:
    """The folder of a step."""
    return os.path.join(self.settings.output_dir, step)

  @property
  def export_format(self) -> str | None:
    """Format of `crossin export-hf`; None = nothing is exported."""
    export = self.settings.export
    if export == 'auto':
      return 'merged' if config.bound('DecoderConfig.lora') is not None else 'full'
    return None if export == 'none' else export

  @property
  def exported(self) -> str | None:
    """The directory that is exported."""
    return os.path.join(self.folder('export'), self.export_format) if self.export_format else None

  def arguments(self, step: str) -> list[str]:
    """The command of a step, with its flags but without gin settings."""
    folder, settings = self.folder(step), self.settings
    if step == 'prepare':
      return ['prepare', f'--mixture={self.mixture}', f'--output_dir={folder}']
    if step == 'train':
      return ['train']
    if step == 'compare':
      sides = [self.folder('before'), self.folder('after')]
      return ['compare', *sides, '--names=before,after', f'--output_dir={folder}']
    if step == 'export':
      into = [f'--output_dir={self.exported}', f'--format={self.export_format}']
      return ['export-hf', self.folder('train'), *into]
    model = [f'--checkpoint={self.folder("train")}']
    if step == 'before':  # the prompts of the training, so that both are asked alike
      model = [f'--checkpoint={self.base}', f'--template={self._template}']
    measured = settings.evaluate_flags()
    return ['evaluate', *model, *measured, f'--variant={step}', f'--output_dir={folder}']

  def values(self, step: str) -> dict[str, str]:
    """The macros that a step sets."""
    if step != 'train':
      return {}
    return {'MODEL_DIR': self.folder('train'), 'DATA_DIR': self.folder('prepare')}

  def gin_flags(self, step: str) -> list[str]:
    """The gin settings of the command of a step."""
    command = self.arguments(step)[0]
    own = [f'--gin.{name}={value!r}' for name, value in self.values(step).items()]
    return [*self._forwarded.flags(command), *own]

  def shown(self, step: str) -> str:
    """The command of a step as one would write it by hand, with the same result."""
    arguments, settings = self.arguments(step), []
    if arguments[0] in ('prepare', 'train'):
      settings = [*self.words, *(f'{name}={value}' for name, value in self.values(step).items())]
    elif arguments[0] == 'evaluate':
      settings = [
        f'{name}={config.resolve(value)!r}'.replace(' ', '')
        for name, value, _, commands in config.bindings()
        if 'evaluate' in commands
      ]
    return shlex.join(['crossin', *arguments, *settings])

  def _steps(self) -> list[Step]:
    """The steps of this job, in order."""
    measures, received = self.settings.measures, self._forwarded.received
    base = {'base': _stamps(hub_names.pinned(self.base))} if self.base else {}
    measured = {
      'flags': self.settings.evaluate_flags(),
      'files': [_stamps(path) for path in self.settings.measured_files()],
      **received('evaluate'),
    }
    prepared = {'mixture': self.mixture, 'files': self._sources(), **received('prepare')}
    steps = [self._step('prepare', (), prepared)]
    if measures and self.base:
      steps.append(self._step('before', (), {'template': self._template, **base, **measured}))
    steps.append(self._step('train', ('prepare',), {**base, **received('train')}))
    if measures:
      steps.append(self._step('after', ('train',), measured))
    if measures and self.base:
      steps.append(self._step('compare', ('before', 'after'), {}))
    if self.export_format:
      steps.append(self._step('export', ('train',), {'format': self.export_format}))
    return steps

  def _step(self, name: str, needs: tuple[str, ...], settings: Mapping) -> Step:
    return Step(name, self._runner(name), needs, settings)

  def _runner(self, step: str) -> Callable[[str], Mapping]:
    def run(folder: str) -> Mapping:
      if step == 'export' and os.path.isdir(self.exported):
        shutil.rmtree(self.exported)  # its manifest was not written
      arguments = self.arguments(step)
      gin_flags = self.gin_flags(step) if arguments[0] in ('prepare', 'train', 'evaluate') else []
      result = self.jobs.show(step, [*arguments, *gin_flags])
      return {name: result[name] for name in COUNTS.get(step, ()) if result.get(name) is not None}

    return run

  def _sources(self) -> list:
    """Stamps of the files that the settings of `crossin prepare` name."""
    texts, macros = set(), config.macros()
    for _, value, _, commands in config.bindings():
      if 'prepare' in commands:
        behind = filter(config.is_macro, config.references(value))
        texts |= _texts([value, *(macros.get(reference.scopes[-1]) for reference in behind)])
    return [stamps for text in sorted(texts) if (stamps := _stamps(text))]


def _setting(parameter: str):
  """The value of a parameter behind its macros; None if nothing binds it."""
  return config.resolve(config.bound(parameter))


def _texts(value) -> set[str]:
  """The texts in a gin value."""
  if isinstance(value, str):
    return {value}
  if isinstance(value, dict):
    return set().union(*map(_texts, value.values()))
  return set().union(*map(_texts, value)) if isinstance(value, (list, tuple)) else set()


def _stamps(path: str) -> list:
  """Stamps of a file, of the files in a folder, or of those that a stem names (`STEM.en.json`)."""
  if remote.is_remote(path) or hub_names.is_name(path):
    return [path]
  if os.path.isdir(path):
    found = [os.path.join(path, name) for name in os.listdir(path)]
  else:
    found = [path, *glob.glob(f'{glob.escape(path)}[._]*')]
  return [file_stamp(name) for name in sorted(found) if os.path.isfile(name)]


def main(argv: list[str]) -> int:
  """The command line of `crossin run`."""
  args = flags.run_parser().parse_args(argv)
  if not args.gin_file:
    raise config.ConfigError(
      'give the file of the job: crossin run mine.gin; `crossin new` writes one'
    )
  words = [*args.gin_file, *map(config.argument, args.gin_bindings)]
  forwarding.make_known('crossin_jax.run.settings')
  args.known_macros = forwarding.known_macros()
  used = config.parse_with(args, PLACEHOLDERS)
  job = make_job(words, used)
  if args.dry_run:
    return command_line.finish(args, estimate.dry_run(job, args.topology))
  with job.jobs.stopping_on_signals():
    job.steps.run(redo=args.redo)
  result = page.write(job)
  print(result['page'], *page.next_words(job), sep='\n')
  return command_line.finish(args, result)


def make_job(words: list[str], placeholders: Collection[str]) -> Job:
  """The job of the settings that are parsed.

  Args:
    words: the gin files and bindings of the command line.
    placeholders: macros of `PLACEHOLDERS` that they leave to the steps.

  Raises:
    ConfigError: run.output_dir, a run or a mixture is missing, or a step sets what the file sets.
  """
  if config.bound('run.output_dir') is None:
    raise config.ConfigError("run.output_dir is not set; for instance run.output_dir = 'runs/mine'")
  if config.bound('train.model_dir') is None or config.bound('MixtureSettings.vocabulary') is None:
    raise config.ConfigError(
      'the file of a job includes one of gin_configs/runs and one of gin_configs/mixtures; '
      '`crossin new` writes one'
    )
  forwarded = ForwardedSettings.from_gin(PLACEHOLDERS, placeholders)
  return Job(RunSettings(), forwarded, words)
