"""The points of a sweep: every combination of the values of its axes, with settings and hashes."""

import dataclasses
import glob
import hashlib
import itertools
import json
import os
import re

import gin

from crossin_jax import config
from crossin_jax.data.mixture_name import CROSSIN_MODES, MixtureName

MIXTURE_PARTS = ('variant', 'volume', 'languages', 'preset')
FIGURES = ('accuracy_en', 'accuracy_elsewhere', 'consistency_3', 'ac3_3', 'heldout_loss')
# Settings that change the rates of tasks, but not their tokens.
_RATES = tuple(f'MixtureSettings.{name}' for name in ('rates', 'shares', 'temperature', 'epochs'))


@gin.configurable('sweep')
@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of a sweep: `sweep.axes = {...}` and so on in its gin file.

  Attributes:
    axes: axis -> its values. 'variant', 'volume' (a number, 'all', or 0 = no CrossIn component),
      'languages' and 'preset' replace that part of `mixture`. Any other axis is a gin macro or
      parameter: of `prepare` if the mixture's gin file binds the macro or a parameter of the
      configurable, else of training and evaluation. Text that starts with @ or % is a gin
      reference.
    mixture: the mixture whose parts the axes replace.
    mixture_gin, run_gin: gin files of `prepare` and of `train`.
    mixture_values, run_values: further gin values of each; '{seed}' in text is replaced by the
      seed, and '{seed}' alone by its number.
    shares_by_variant: variant -> {component: share}, for sources mixed by shares. With volume 0,
      the shares of the dropped components go to 'base'.
    equal_examples: components of which every variant reads equally many examples: ('base', 'mono',
      'x2x'). The variant with the largest share of them trains for TRAIN_STEPS, the others for
      more steps; exact where rows of all components are equally long, because a batch holds equal
      tokens. () = all variants have equal steps, so equal tokens. Needs `shares_by_variant`.
    questions: question files; the first one is plotted. '{seed}' in the path of a folder is
      replaced by the seed, so that each seed has other questions.
    seeds: of training; every point runs with each.
    heldout: the mixture whose validation rows measure every point; None = `mixture`, '' = none.
    method: 'likelihood' or 'generate', for the table and the plot.
    figure: plotted figure: 'accuracy_en', 'accuracy_elsewhere', 'consistency_3', 'ac3_3' or
      'heldout_loss'; None = 'ac3_3' if there are questions, else 'heldout_loss'. With two
      languages the names are 'consistency_2' and 'ac3_2'.
  """

  axes: dict = gin.REQUIRED
  mixture: str = gin.REQUIRED
  mixture_gin: str = gin.REQUIRED
  run_gin: str = gin.REQUIRED
  mixture_values: dict | None = None
  run_values: dict | None = None
  shares_by_variant: dict | None = None
  equal_examples: tuple[str, ...] = ()
  questions: tuple[str, ...] = ()
  seeds: tuple[int, ...] = (0,)
  heldout: str | None = None
  method: str = 'likelihood'
  figure: str | None = None

  def __post_init__(self):
    for axis, values in self.axes.items():
      if not isinstance(values, (list, tuple)) or not values:
        raise config.ConfigError(f'sweep.axes: {axis!r} must be a list of values, found {values!r}')
    if self.figure and not re.fullmatch(
      r'accuracy_(en|elsewhere)|(consistency|ac3)_\d|heldout_loss', self.figure
    ):
      raise config.ConfigError(f'sweep.figure = {self.figure!r} is none of {", ".join(FIGURES)}')
    if self.equal_examples and self.shares_by_variant is None:
      raise config.ConfigError('sweep.equal_examples needs sweep.shares_by_variant')
    if not self.seeds or ('RANDOM_SEED' in self.axes and len(self.seeds) > 1):
      raise config.ConfigError(
        'sweep.seeds must have at least one seed, and only one if RANDOM_SEED is an axis'
      )
    stems = [question_name(path) for path in self.questions]
    if len(set(stems)) < len(stems):
      raise config.ConfigError(
        f'sweep.questions: two files have the same name: {", ".join(self.questions)}'
      )
    for path in (path for seed in self.seeds for path in self.questions_of(seed)):
      if not os.path.isfile(path):
        raise config.ConfigError(f'sweep.questions: {path} does not exist')

  def questions_of(self, seed: int) -> list[str]:
    """The question files of a seed."""
    return [_fill(path, seed) for path in self.questions]


def question_name(path: str) -> str:
  """Name of a question file in predictions/: 'questions.tagged' of 'q/questions.tagged.jsonl'."""
  return os.path.basename(path).removesuffix('.jsonl')


@dataclasses.dataclass(frozen=True)
class Data:
  """A mixture to prepare: name, gin flags, folder in OUT/data, and folder in OUT/tokens."""

  mixture: str
  flags: tuple[str, ...]
  folder: str
  tokens: str


@dataclasses.dataclass(frozen=True)
class Point:
  """One run of a sweep. Points with equal settings (two variants at volume 0) run once.

  Attributes:
    values: axis -> value.
    seed: of training.
    data: mixture for training.
    heldout: mixture for held-out loss; None = not measured.
    flags: gin flags of train and evaluate.
    name: readable, from the settings.
    digest: of everything that its model is made from.
    asked: digest of the questions and held-out rows, which can change without new training.
    settings: the values behind the digests.
  """

  values: dict
  seed: int
  data: Data
  heldout: Data | None
  flags: tuple[str, ...]
  name: str
  digest: str
  asked: str
  settings: dict


def make_points(
  settings: Settings, flags: tuple[str, ...] = (), search: tuple[str, ...] = ()
) -> list[Point]:
  """The points of a sweep, seeds varying fastest, then the last axis.

  Args:
    settings: of the sweep.
    flags: 'NAME = VALUE' from the command line, for every point.
    search: folders of gin files, in addition to the current one and the repository.

  Raises:
    ConfigError: an invalid mixture name, gin file or table of shares.
  """
  bound = bound_names(settings.mixture_gin, search)
  of_mixture = lambda name: name in bound or name.rpartition('.')[0].split('/')[-1] in bound
  for flag in flags:
    if config.name_of(flag) in settings.axes:
      raise config.ConfigError(f'{flag}: that is an axis of this sweep; change sweep.axes')
  extra = {True: [], False: []}
  for flag in flags:
    extra[of_mixture(config.name_of(flag))].append(config.argument(flag))
  texts = {path: gin_text(path, search) for path in (settings.mixture_gin, settings.run_gin)}
  rates = (*_RATES, *_rate_macros(texts[settings.mixture_gin]))
  digests = {path: _digest(text) for path, text in texts.items()}
  points = []
  combinations = [
    dict(zip(settings.axes, values)) for values in itertools.product(*settings.axes.values())
  ]
  counted = _counted_shares(settings, combinations, flags)
  for values, share in zip(combinations, counted):
    others = {name: value for name, value in values.items() if name not in MIXTURE_PARTS}
    mixture_values, run_values = (
      dict(settings.mixture_values or {}),
      dict(settings.run_values or {}),
    )
    for key, value in others.items():
      (mixture_values if of_mixture(key) else run_values)[key] = value
    name, variant = mixture_at(settings.mixture, values)
    if share:
      run_values['TRAIN_STEPS'] = round(run_values['TRAIN_STEPS'] * max(counted) / share)
    heldout = settings.mixture if settings.heldout is None else settings.heldout
    for seed in settings.seeds:
      seed = run_values.get('RANDOM_SEED', seed)
      filled = {k: _fill(v, seed) for k, v in mixture_values.items()}
      data = lambda name, shares, filled=filled: _data(
        settings, name, filled, shares, extra[True], digests, rates
      )
      train_data = data(name, _shares(settings, variant, name))
      heldout_data = data(mixture_at(heldout, {})[0], None) if heldout else None
      run = {'RANDOM_SEED': seed, **{k: _fill(v, seed) for k, v in run_values.items()}}
      made_from = {
        'data': train_data.folder,
        'run': [settings.run_gin, digests[settings.run_gin], run, extra[False]],
        'files': _files_of(run),
      }
      files = {path: _file_digest(path) for path in settings.questions_of(seed)}
      asked = {'heldout': heldout_data and heldout_data.folder, 'questions': files}
      title = [str(part) for part in _title(settings.axes, values, name)] + [f'seed={seed}']
      points.append(
        Point(
          values,
          seed,
          train_data,
          heldout_data,
          (*[flag_of(k, v) for k, v in run.items()], *extra[False]),
          _slug('.'.join(title), 100),
          _digest(made_from),
          _digest(asked),
          made_from | asked,
        )
      )
  return points


def mixture_at(mixture: str, values: dict) -> tuple[str, str]:
  """A mixture's name with some parts replaced, and the variant before volume 0 drops components.

      mixture_at('world.tested_base_x2x.all.en_zh.every', {'volume': 0}) ==
      ('world.tested_base.all.en_zh.every', 'tested_base_x2x')

  Without CrossIn components the volume becomes 'all', so that equal mixtures have equal names.

  Raises:
    ConfigError: the name is malformed, or volume 0 drops all components.
  """
  text = lambda value: '_'.join(value) if isinstance(value, (list, tuple)) else str(value)
  try:
    source, *parts = str(MixtureName.parse(mixture)).split('.')
    parts = [text(values.get(axis, part)) for axis, part in zip(MIXTURE_PARTS, parts)]
    name = MixtureName.parse('.'.join([source, *parts]))
  except ValueError as error:
    raise config.ConfigError(str(error)) from None
  kept = tuple(c for c in name.components if c not in CROSSIN_MODES)
  if name.volume == 0 and not kept:
    raise config.ConfigError(f'volume 0 of variant {parts[0]} has no component; add base to it')
  if name.volume == 0 or kept == name.components:
    name = dataclasses.replace(name, components=kept, volume=None)
  return str(name), parts[0]


def _shares(settings: Settings, variant: str, mixture: str) -> dict:
  """gin values for mixing by the shares of the variant, for the components of the mixture."""
  if settings.shares_by_variant is None:
    return {}
  components = mixture.split('.')[1].split('_')
  table = settings.shares_by_variant.get(variant, {})
  if missing := [c for c in components if c not in table]:
    raise config.ConfigError(
      f'sweep.shares_by_variant[{variant!r}] has no share for {", ".join(missing)}'
    )
  shares = {c: table[c] for c in components}
  if 'base' in shares:
    shares['base'] += sum(share for c, share in table.items() if c not in components)
  total = sum(shares.values())
  # Rounded, so that the order of the summands does not make another point.
  shares = {c: round(share / total, 9) for c, share in shares.items()}
  return {'MixtureSettings.rates': 'shares', 'MixtureSettings.shares': shares}


def _counted_shares(
  settings: Settings, combinations: list[dict], flags: tuple[str, ...]
) -> list[float]:
  """The share of `equal_examples` in the mixture of every combination; 0 = steps stay equal."""
  if not settings.equal_examples:
    return [0.0] * len(combinations)
  given = [{**(settings.run_values or {}), **values}.get('TRAIN_STEPS') for values in combinations]
  named = {config.name_of(flag) for flag in flags}
  if other := sorted(named & {'MixtureSettings.rates', 'MixtureSettings.shares'}):
    raise config.ConfigError(
      f'sweep.equal_examples reads the shares of sweep.shares_by_variant, and {other[0]} '
      'replaces them: change sweep.shares_by_variant instead'
    )
  if not all(isinstance(steps, int) for steps in given) or 'TRAIN_STEPS' in named:
    raise config.ConfigError(
      'sweep.equal_examples multiplies TRAIN_STEPS: give it as a number in sweep.run_values or as '
      'an axis'
    )
  counted = []
  for values in combinations:
    name, variant = mixture_at(settings.mixture, values)
    shares = _shares(settings, variant, name)['MixtureSettings.shares']
    counted.append(sum(shares.get(component, 0.0) for component in settings.equal_examples))
    if not counted[-1]:
      components = ', '.join(settings.equal_examples)
      raise config.ConfigError(f'sweep.equal_examples: {name} has none of {components}')
  return counted


def _data(
  settings: Settings,
  name: str,
  values: dict,
  shares: dict | None,
  flags: list[str],
  digests: dict,
  rates: tuple[str, ...],
) -> Data:
  """The data of a mixture; `shares` None = only for held-out loss, where rates do not matter."""
  if shares is None:
    values = {k: v for k, v in values.items() if k not in rates}
    shares = {'MixtureSettings.rates': 'counts'}
  values = {**values, **shares}
  base = [settings.mixture_gin, digests[settings.mixture_gin], flags, _files_of(values)]
  tokens = _digest([base, {k: v for k, v in values.items() if k not in rates}])
  folder = f'{_slug(name, 80)}-{_digest([base, name, values])}'
  return Data(name, (*[flag_of(k, v) for k, v in values.items()], *flags), folder, tokens)


def _title(axes, values: dict, mixture: str):
  """Readable parts of a point's name; those of the mixture after volume 0 was applied."""
  parts = dict(zip(MIXTURE_PARTS, mixture.split('.')[1:]))
  for axis in axes:
    yield (
      parts[axis]
      if axis in parts
      else f'{axis.split(".")[-1]}={in_words(values[axis], axes[axis])}'
    )


def in_words(value, values) -> str:
  """A value of an axis in words; of a dict only what its axis varies.

  in_words({'tested': 9, 'base': 5}, ({'tested': 9, 'base': 15}, ...)) == 'base 5'
  """
  if not isinstance(value, dict):
    return str(value)
  others = [other for other in values if isinstance(other, dict)]
  same = lambda key: all(other.get(key) == value[key] for other in others)
  kept = [key for key in value if not same(key)] or list(value)
  number = lambda x: f'{x:g}' if isinstance(x, (int, float)) else str(x)
  return ', '.join(f'{key} {number(value[key])}' for key in kept)


def _rate_macros(text: str) -> set[str]:
  """Macros of a mixture's gin file that only rates depend on, such as SHARES."""
  users: dict[str, set[str]] = {}
  owner = ''
  for line in text.splitlines():
    if match := re.match(r'([\w./]+)\s*=', line):
      owner = match[1]
    for macro in re.findall(r'%([\w./]+)', line):
      users.setdefault(macro, set()).add(owner)
  return {macro for macro, names in users.items() if names <= set(_RATES)}


def flag_of(name: str, value) -> str:
  """--gin.NAME=VALUE; text that starts with @ or % is a reference."""
  reference = isinstance(value, str) and value[:1] in ('@', '%')
  return f'--gin.{name}={value if reference else repr(value)}'


def _fill(value, seed: int):
  if value == '{seed}':
    return seed
  return value.replace('{seed}', str(seed)) if isinstance(value, str) else value


def gin_text(path: str, search: tuple[str, ...] = ()) -> str:
  """The statements of a gin file and of those it includes, without comments and empty lines.

  Raises:
    ConfigError: a file is in none of the folders.
  """
  folders = [*search, config.REPOSITORY]
  paths = [os.path.join(folder, path) for folder in ('', *folders)]
  paths = [candidate for candidate in paths if os.path.isfile(candidate)]
  if not paths:
    raise config.ConfigError(
      f'gin file {path!r} does not exist (searched: current folder, {", ".join(folders)})'
    )
  lines = []
  with open(paths[0], encoding='utf-8') as f:
    for line in f:
      line = re.sub(r'(^|\s)#.*', '', line).strip()
      if match := re.match(r"include\s+['\"](.+)['\"]", line):
        lines.append(gin_text(match[1], search))
      elif line:
        lines.append(line)
  return '\n'.join(lines)


def bound_names(path: str, search: tuple[str, ...] = ()) -> set[str]:
  """Macros and configurables that a gin file, or one it includes, binds."""
  names = re.findall(r'^([\w./]+)\s*=', gin_text(path, search), re.MULTILINE)
  return {name.rpartition('.')[0].split('/')[-1] or name for name in names}


def check_macros(settings: Settings, flags: list[str], search: tuple[str, ...] = ()) -> None:
  """Raises ConfigError for a macro of the command line that no gin file of the points uses."""
  texts = [gin_text(path, search) for path in (settings.mixture_gin, settings.run_gin)]
  every = '\n'.join(texts)
  known = {*re.findall(r'(?m)^(\w+)\s*=', every), *re.findall(r'%(\w+)', every)}
  for flag in flags:
    name = config.name_of(flag)
    if name and '.' not in name and name.split('/')[-1] not in known:
      raise config.unknown_macro(flag, known)


def _digest(value) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:10]


def _file_digest(path: str) -> str:
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def _files_of(values: dict) -> dict[str, str]:
  """Digests of the files that values name.

  A value is a file, the stem of row files ('data/alpaca'), or a MODEL_DIR.
  """
  digests = {}
  for value in values.values():
    if isinstance(value, str) and (os.path.isfile(value) or os.sep in value):
      stem = glob.escape(value)
      for path in sorted({value, *glob.glob(f'{stem}[._]*'), *glob.glob(f'{stem}/digests/*.json')}):
        if os.path.isfile(path):
          digests[path] = _file_digest(path)
  return digests


def _slug(text: str, length: int) -> str:
  return re.sub(r'[^\w.=+-]+', '-', text).strip('-')[:length]
