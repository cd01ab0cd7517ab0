"""Mixtures as data: names, contents, and rates from counts, shares, temperature or epochs."""

import dataclasses

import gin
import numpy as np

from crossin_jax import config
from crossin_jax.data.mixture_name import CROSSIN_MODES, MixtureName
from crossin_jax.data.vocabulary import Vocabulary
from crossin_jax.languages import in_order
from seqio_tasks.crossin import Preset, TaskSpec, language_pairs
from seqio_tasks.pair_task import pair_tasks
from seqio_tasks.sources import ParallelFiles

RATES = ('counts', 'shares', 'temperature', 'epochs')


@config.configurable(commands=('prepare',))
@dataclasses.dataclass(frozen=True)
class MixtureSettings:
  """Settings that are not part of a mixture name.

  Attributes:
    parallel: aligned rows for the CrossIn modes (`ParallelFiles`, `TfdsRows`, `WorldInstructions`).
    english: rows of Base; None = the aligned rows in English.
    texts: name -> list of one-language sources of running text, usable as components.
    pairs: name -> list of sources of preference pairs (`PairFiles`), usable as components.
    vocabulary: the tokenizer.
    template: 'alpaca', 'cl_boost', 'llama', 'gemma', 'plain', or 'chat' (the template beside
      the tokenizer).
    presets: those that names may use besides 'default' and 'released'.
    seed: decides which rows and languages fall into a volume.
    validation_rows: rows held out of every source, at most a twentieth of it.
    max_length: most tokens of an example.
    trained_turns: answers of a conversation that are trained: 'all', or the 'last' alone.
    rates: 'counts' (proportional to examples), 'shares', 'temperature' or 'epochs'.
    shares: component -> share, for rates = 'shares'; within a component by counts.
    temperature: for rates = 'temperature': tasks weigh count ** (1 / temperature).
    epochs: component -> how often it is read while a component of weight 1 is read once, for
      'epochs'.
  """

  parallel: object = None
  english: object = None
  texts: dict | None = None
  pairs: dict | None = None
  vocabulary: Vocabulary = gin.REQUIRED
  template: str = 'alpaca'
  presets: tuple[Preset, ...] = ()
  seed: int = 0
  validation_rows: int = 200
  max_length: int = 2048
  trained_turns: str = 'all'
  rates: str = 'counts'
  shares: dict[str, float] | None = None
  temperature: float = 1.0
  epochs: dict[str, float] | None = None

  def __post_init__(self):
    if isinstance(self.english, ParallelFiles) and self.english.path is None:
      object.__setattr__(self, 'english', None)
    if self.rates not in RATES:
      raise ValueError(f'MixtureSettings.rates = {self.rates!r} is not one of {RATES}')
    if self.trained_turns not in ('all', 'last'):
      raise ValueError(
        f"MixtureSettings.trained_turns = {self.trained_turns!r} is not 'all' or 'last'"
      )
    if self.temperature <= 0:
      raise ValueError(f'MixtureSettings.temperature = {self.temperature} must be above 0')
    if self.max_length < 2:
      raise ValueError(f'MixtureSettings.max_length = {self.max_length} must be at least 2')

  def preset(self, name: str) -> Preset:
    """The preset of that name."""
    known = {'default': Preset(), 'released': RELEASED} | {
      preset.name: preset for preset in self.presets
    }
    if name not in known:
      raise ValueError(
        f'preset {name!r} is not one of {", ".join(known)}; MixtureSettings.presets adds others'
      )
    return known[name]


RELEASED = Preset('released', assignment='draws', same_language=True, overlong='right_cut')


@dataclasses.dataclass(frozen=True)
class MixtureEntry:
  """A Task in a mixture: `volume` None = all of it; `examples` before any is dropped for its
  length.
  """

  task: TaskSpec
  volume: int | None
  examples: int
  rate: float


def mixture_entries(name: MixtureName, settings: MixtureSettings) -> list[MixtureEntry]:
  """Tasks of a mixture with their rates, which sum to 1.

  Raises:
    ValueError: an unknown component, a volume larger than the source, a language the source lacks,
      or shares / epochs that do not name every component.
  """
  preset = settings.preset(name.preset)
  if settings.parallel is not None and settings.parallel.name != name.source:
    raise ValueError(
      f'mixture {name} is over source {name.source!r}, MixtureSettings.parallel is '
      f'{settings.parallel.name!r}'
    )
  entries = []
  for component in name.components:
    for task in _tasks(component, name, settings, preset):
      volume = name.volume if task.mode in CROSSIN_MODES else None
      if volume is not None:
        train = len(task.drawn('train').rows)
        if volume > train:
          raise ValueError(
            f'mixture {name}: volume {volume} is more than the {train} examples that '
            f'{task.source.name} gives for {task.mode}; '
            f"use 'all' or a smaller volume"
          )
      ranks = task.items('train')[:, 0]
      count = len(ranks) if volume is None else int(np.searchsorted(ranks, volume))
      entries.append(MixtureEntry(task, volume, count, 0.0))
  weights = _weights(entries, name, settings)
  total = sum(weights)
  if total <= 0:
    aside = {
      entry.task.source.name: {
        f'{language}: {why}': count
        for (language, why), count in entry.task.source.set_aside().items()
      }
      for entry in entries
    }
    raise ValueError(
      f'mixture {name} has no example with a rate above 0; source rows set aside: {aside}'
    )
  return [
    dataclasses.replace(entry, rate=weight / total) for entry, weight in zip(entries, weights)
  ]


def _tasks(component, name, settings, preset) -> list[TaskSpec]:
  """The Tasks of a component."""
  shared = {
    'component': component,
    'preset': preset,
    'seed': settings.seed,
    'validation_rows': settings.validation_rows,
    'template': settings.template,
    'vocabulary': settings.vocabulary,
  }
  if component in (settings.pairs or {}):
    sources = settings.pairs[component]
    names = [source.name for source in sources]
    for own in names:
      if names.count(own) > 1:
        raise ValueError(
          f'mixture {name}: two sources of {component!r} have the name {own!r}; give each its own '
          '(PairFiles.name), or one source with both files'
        )
    tasks = [task for source in sources for task in pair_tasks(source, name.languages, **shared)]
    if not tasks:
      held = ', '.join(in_order({code for source in sources for code in source.languages}))
      raise ValueError(
        f'mixture {name}: component {component!r} has no pair whose languages are all among those '
        f'of the name; it has {held or "no usable pair"}'
      )
    return tasks
  tasks = []
  for mode, source, pair in _component(component, name, settings, preset):
    needed = {*pair, 'en'} if mode == 'x2en2x' else {*pair}
    missing = needed - set(source.languages)
    if missing:
      raise ValueError(
        f'source {source.name} has no rows in {", ".join(sorted(missing))}; it has '
        f'{", ".join(source.languages)}. Add the language to those of the source (LANGUAGES), or '
        'take it out of the name of the mixture'
      )
    tasks.append(
      TaskSpec(
        source=source,
        mode=mode,
        source_language=pair[0],
        target_language=pair[1],
        languages=name.languages,
        trained_turns=settings.trained_turns,
        **shared,
      )
    )
  return tasks


def _component(component, name, settings, preset):
  """(mode, source, language pair) of each Task of a component of rows."""
  texts = settings.texts or {}
  if component in texts:
    return [
      ('text', source, (source.languages[0],) * 2)
      for source in texts[component]
      if source.languages[0] in name.languages
    ]
  if component == 'base':
    source = settings.parallel if settings.english is None else settings.english
  elif component in CROSSIN_MODES:
    source = settings.parallel
  else:
    raise ValueError(
      f'mixture {name}: component {component!r} is none of base, '
      f'{", ".join((*CROSSIN_MODES, *texts, *(settings.pairs or {})))}; sources of text and of '
      'preference pairs are components too (MixtureSettings.texts and pairs; of X-Instruction: set '
      'ROWS, SEED_ROWS, TRANSLATED or DISTILLED)'
    )
  if source is None:
    raise ValueError(f'mixture {name}: component {component!r} needs MixtureSettings.parallel')
  return [(component, source, pair) for pair in language_pairs(component, name.languages, preset)]


def _weights(entries, name, settings) -> list[float]:
  """Unnormalised rates: by counts, or with a temperature T as in mT5, count ** (1 / T).

  See docs/design/methods.md#a-3-data-composition.
  """
  counts = [float(entry.examples) for entry in entries]
  if settings.rates == 'counts':
    return counts
  if settings.rates == 'temperature':
    return [count ** (1.0 / settings.temperature) if count else 0.0 for count in counts]
  table = settings.shares if settings.rates == 'shares' else settings.epochs
  missing = set(name.components) - set(table or {})
  if missing:
    raise ValueError(
      f'mixture {name}: MixtureSettings.{settings.rates} gives nothing for '
      f'{", ".join(sorted(missing))}'
    )
  if any(value < 0 for value in table.values()):
    raise ValueError(f'MixtureSettings.{settings.rates} = {table} must not be negative')
  if settings.rates == 'epochs':
    return [count * table[entry.task.component] for count, entry in zip(counts, entries)]
  totals = {
    c: sum(k for k, e in zip(counts, entries) if e.task.component == c) for c in name.components
  }
  return [
    table[entry.task.component] * count / totals[entry.task.component] if count else 0.0
    for count, entry in zip(counts, entries)
  ]
