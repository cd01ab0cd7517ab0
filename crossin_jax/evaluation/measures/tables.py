"""Figures of the report's tables: of every arm, every gain, and sentences about the gains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import functools

import numpy as np

from crossin_jax.evaluation.measures import bootstrap, consistency
from crossin_jax.evaluation.measures.bootstrap import Figure, Interval
from crossin_jax.pages.words import language_name, points

FORMS = ('untagged', 'tagged')
BASELINES = ('floor', 'base', 'mono')  # the arms that gains are measured against


@dataclass(frozen=True)
class Row:
  """An arm or guesser in a table.

  Attributes:
    seeds: number; 0 = the figures are those of results.json, without intervals.
    languages, other: accuracy by language, and the mean over all but the first.
    unparsed: share of unparsed answers.
    at_chance: of a guesser: whether both of its accuracies are at chance.
  """

  name: str
  title: str
  form: str
  method: str
  seeds: int
  languages: Sequence[Figure]
  other: Figure
  consistency: Figure
  ac3: Figure
  unparsed: float | None
  at_chance: bool | None = None


@dataclass(frozen=True)
class Gain:
  """A difference of two arms; `interval` is None if it is only an estimate, or None at all.

  Attributes:
    verdict: 'gain', 'loss' or 'none'.
  """

  interval: Interval | None
  estimate: float | None
  sentence: str
  verdict: str


@dataclass(frozen=True)
class GainRow:
  """An arm minus a baseline, on `seeds` common seeds: accuracy in the other languages, and AC3."""

  name: str
  title: str
  base_name: str
  base: str
  seeds: int
  other: Gain
  ac3: Gain


@dataclass(frozen=True)
class Heat:
  """Pairwise consistency of an arm, mean over seeds, as rows of fractions."""

  name: str
  title: str
  matrix: list[list[float]]


class Figures:
  """Figures of all arms of a report."""

  def __init__(self, report):
    self.report = report
    self.s = min(3, len(report.languages))
    self.others = list(range(1, len(report.languages)))
    acc, c = 1.0 / report.options, float(report.options) ** (1 - self.s)
    self.chance = {'accuracy': acc, 'consistency': c, 'ac3': consistency.ac3(acc, c)}
    self.above_guessing = functools.cache(self.above_guessing)

  def by_seed(
    self, arm: str, form: str | None = None, method: str | None = None
  ) -> dict[int, np.ndarray]:
    """seed -> choices of an arm, sorted by seed; form and method default to the report's."""
    wanted = (arm, form or self.report.form, method or self.report.method)
    return {
      key[1]: np.asarray(array)
      for key, array in sorted(self.report.choices.items())
      if (key[0], *key[2:]) == wanted
    }

  def _interval(self, arrays: Sequence[np.ndarray], statistic: str, columns=None, **settings):
    report = self.report
    settings = {'columns': columns, 's': self.s, 'resamples': report.resamples} | settings
    return bootstrap.interval(arrays, report.answers, statistic, **settings)

  def _cells(self, arrays: Sequence[np.ndarray]) -> dict:
    cell = lambda *what: self._interval(arrays, *what).figure
    return {
      'languages': [cell('accuracy', [i]) for i in range(len(self.report.languages))],
      'other': cell('accuracy', self.others),
      'consistency': cell('consistency'),
      'ac3': cell('ac3'),
      'unparsed': float(np.mean([(array == consistency.UNPARSED).mean() for array in arrays])),
    }

  def _cells_of_runs(self, arm: str, form: str, method: str) -> dict:
    codes, s = list(self.report.languages), str(self.s)
    runs = [
      run
      for run in self.report.runs
      if (run['variant'], form_of(run), run['method']) == (arm, form, method)
      and all(code in run['accuracy_by_language'] for code in codes)
    ]
    accuracies = [[run['accuracy_by_language'][code] for code in codes] for run in runs]
    mean = lambda values: Figure(float(np.mean(values)) if values else None)
    return {
      'languages': [mean([row[i] for row in accuracies]) for i in range(len(codes))],
      'other': mean([np.mean(row[1:]) for row in accuracies]),
      'consistency': mean([run['consistency'][s] for run in runs]),
      'ac3': mean([run['ac3'][s] for run in runs]),
      'unparsed': mean([run['unparsed_rate'] for run in runs]).value,
    }

  def arm_row(self, arm, form: str | None = None, method: str | None = None) -> Row:
    """Figures of an arm; form and method default to the report's."""
    form, method = form or self.report.form, method or self.report.method
    arrays = list(self.by_seed(arm.name, form, method).values())
    cells = self._cells(arrays) if arrays else self._cells_of_runs(arm.name, form, method)
    return Row(arm.name, title(arm), form, method, len(arrays), **cells)

  def guesser_row(self, name: str, array: np.ndarray) -> Row:
    arrays, report = [np.asarray(array)], self.report
    # NB: 99.5 %: there are several guessers with two tests each, and at 95 % one page in six would
    # raise a false alarm.
    tests = [
      self._interval(arrays, 'accuracy', columns, level=0.995, resamples=2000)
      for columns in ([0], self.others)
    ]
    at_chance = all(test.low <= self.chance['accuracy'] <= test.high for test in tests)
    shown, cells = name[:1].upper() + name[1:] + ' guesser', self._cells(arrays)
    return Row(name, shown, report.form, report.method, 1, **cells, at_chance=at_chance)

  def gains(self) -> list[GainRow]:
    """Every arm minus each baseline before it; all intervals hold together."""
    return [self._gain_row(arm, base) for arm, base in self._pairs]

  @property
  def _pairs(self) -> list[tuple]:
    arms = self.report.arms
    return [
      (arm, base) for i, base in enumerate(arms) if is_baseline(base.name) for arm in arms[i + 1 :]
    ]

  @property
  def _together(self) -> dict:
    """Settings of intervals that hold together, over all comparisons of the page."""
    comparisons = max(1, 2 * len(self._pairs))
    return {
      'comparisons': comparisons,
      'resamples': max(self.report.resamples, min(400 * comparisons, 20_000)),
    }

  def above_guessing(self, arm: str, statistic: str) -> bool:
    """Whether an arm is above chance, and above Floor if there is one.

    Args:
      arm: its name.
      statistic: 'accuracy' (in the other languages) or 'ac3'.
    """
    columns = self.others if statistic == 'accuracy' else None
    arrays = self.by_seed(arm)
    if not arrays:
      return False
    own = self._interval(list(arrays.values()), statistic, columns, **self._together)
    if own.low <= self.chance[statistic]:
      return False
    floor = next((one.name for one in self.report.arms if one.name.casefold() == 'floor'), arm)
    seeds = [seed for seed in arrays if seed in self.by_seed(floor)]
    if floor == arm or not seeds:
      return True
    one, two = ([self.by_seed(name)[seed] for seed in seeds] for name in (arm, floor))
    return self._interval(one, statistic, columns, minus=two, **self._together).low > 0

  def _gain_row(self, arm, base) -> GainRow:
    one, two = self.by_seed(arm.name), self.by_seed(base.name)
    seeds = [seed for seed in one if seed in two]

    def gain(key: str, statistic: str, columns, measure: str) -> Gain:
      names = title(arm), title(base)
      if not seeds:
        values = [getattr(self.arm_row(x), key).value for x in (arm, base)]
        estimate = None if None in values else values[0] - values[1]
        sentence = gain_sentence(*names, measure, None, estimate)
        return Gain(None, estimate, sentence, 'none')
      arrays = [one[seed] for seed in seeds]
      minus = [two[seed] for seed in seeds]
      interval = self._interval(arrays, statistic, columns, minus=minus, **self._together)
      outcome = verdict(interval)
      higher = arm if outcome == 'gain' else base
      # A difference of two guessers is none.
      known = outcome == 'none' or self.above_guessing(higher.name, statistic)
      sentence = gain_sentence(*names, measure, interval, is_guess=not known)
      return Gain(interval, interval.estimate, sentence, outcome if known else 'none')

    return GainRow(
      name=arm.name,
      title=title(arm),
      base_name=base.name,
      base=title(base),
      seeds=len(seeds),
      other=gain('other', 'accuracy', self.others, self.measure),
      ac3=gain('ac3', 'ac3', None, f'AC3_{self.s}'),
    )

  @property
  def measure(self) -> str:
    return f'accuracy outside {language_name(self.report.languages[0])}'

  def variants(self) -> list[list[Row]]:
    """Per arm the figures under each prompt form and method of its runs."""
    keys = {(key[0], *key[2:]) for key in self.report.choices}
    keys |= {(run['variant'], form_of(run), run['method']) for run in self.report.runs}
    by_arm = [
      [
        self.arm_row(arm, form, method)
        for form in FORMS
        for method in ('likelihood', 'generate')
        if (arm.name, form, method) in keys
      ]
      for arm in self.report.arms
    ]
    by_arm = [[row for row in rows if row.other.value is not None] for rows in by_arm]
    return [rows for rows in by_arm if rows]

  def heat(self) -> list[Heat]:
    """Pairwise consistency of each arm with choices."""
    by_arm = [(arm, self.by_seed(arm.name).values()) for arm in self.report.arms]
    return [
      Heat(
        arm.name,
        title(arm),
        np.mean(list(map(consistency.pairwise_consistency, arrays)), axis=0).tolist(),
      )
      for arm, arrays in by_arm
      if arrays
    ]


def gain_sentence(
  name: str,
  other: str,
  measure: str,
  gain: Interval | None,
  estimate: float | None = None,
  is_guess: bool = False,
) -> str:
  """A sentence about `name` minus `other`.

  It claims a gain or loss only if the interval, as printed, excludes zero, and the higher of the
  two is above guessing.

  Args:
    name, other: titles of the arms.
    measure: e.g. 'accuracy outside English'.
    gain: paired interval of the difference, in fractions.
    estimate: the difference, if `gain` is None.
    is_guess: the higher of the two cannot be distinguished from guessing.
  """
  if gain is None:
    if estimate is None:
      return f'{name} and {other} were not both measured.'
    return (
      f'{name} minus {other} is {points(estimate)} points in {measure}, without an interval: no '
      'claim is possible.'
    )
  ends = (gain.low, gain.high, gain.estimate)
  low, high, estimate = (points(value).lstrip('+') for value in ends)
  several = f' of {gain.comparisons} comparisons together' if gain.comparisons > 1 else ''
  span = f'{100 * gain.level:.0f} % interval{several} {low} to {high}'
  outcome = verdict(gain)
  if outcome == 'none':
    return (
      f'{name} does not differ significantly from {other} in {measure} (difference {estimate} '
      f'points, {span}).'
    )
  side = 'above' if outcome == 'gain' else 'below'
  if is_guess:
    higher = name if outcome == 'gain' else other
    return (
      f'{name} is {abs(100 * gain.estimate):.1f} points {side} {other} in {measure} ({span}), but '
      f'{higher} itself cannot be distinguished from guessing: no {outcome}.'
    )
  once = ', as far as one seed can show' if gain.seeds == 1 else ''
  return (
    f'{name} is {abs(100 * gain.estimate):.1f} points {side} {other} in {measure} ({span}): a real '
    f'{outcome}{once}.'
  )


def verdict(gain: Interval | None) -> str:
  """'gain', 'loss' or 'none', by the printed figures: '0.0 to 3.1' is not a gain."""
  if gain and round(100 * gain.low, 1) > 0:
    return 'gain'
  return 'loss' if gain and round(100 * gain.high, 1) < 0 else 'none'


def title(arm) -> str:
  return arm.title or arm.name


def is_baseline(name: str) -> bool:
  return name.casefold() in BASELINES


def form_of(run: Mapping) -> str:
  return 'tagged' if run['benchmark'].rsplit('/', 1)[-1] == 'tagged' else 'untagged'
