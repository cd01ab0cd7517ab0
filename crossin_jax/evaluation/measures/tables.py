"""Figures of the report's tables: of every arm, every gain, and sentences about the gains.

A figure is a cell {"value", "low", "high"} in fractions. low and high are None without an interval;
value is None without a figure.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from crossin_jax.evaluation.measures import bootstrap, consistency
from crossin_jax.evaluation.measures.bootstrap import Interval
from crossin_jax.pages.words import language_name, points

FORMS = ('untagged', 'tagged')
BASELINES = ('floor', 'base', 'mono')  # the arms that gains are measured against


class Figures:
  """Figures of all arms of a report."""

  def __init__(self, report):
    self.report = report
    self.s = min(3, len(report.languages))
    self.others = list(range(1, len(report.languages)))
    acc, c = 1.0 / report.options, float(report.options) ** (1 - self.s)
    self.chance = {'accuracy': acc, 'consistency': c, 'ac3': consistency.ac3(acc, c)}

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

  def _cells(self, arrays: Sequence[np.ndarray]) -> dict:
    report = self.report

    def cell(statistic: str, columns=None) -> dict:
      return bootstrap.interval(
        arrays, report.answers, statistic, columns=columns, s=self.s, resamples=report.resamples
      ).cell()

    return {
      'languages': [cell('accuracy', [i]) for i in range(len(report.languages))],
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

    def mean(pick) -> float | None:
      return float(np.mean([pick(run) for run in runs])) if runs else None

    def cell(pick) -> dict:
      return {'value': mean(pick), 'low': None, 'high': None}

    accuracies = lambda run: [run['accuracy_by_language'][code] for code in codes]
    return {
      'languages': [cell(lambda run, i=i: accuracies(run)[i]) for i in range(len(codes))],
      'other': cell(lambda run: np.mean(accuracies(run)[1:])),
      'consistency': cell(lambda run: run['consistency'][s]),
      'ac3': cell(lambda run: run['ac3'][s]),
      'unparsed': mean(lambda run: run['unparsed_rate']),
    }

  def arm_row(self, arm, form: str, method: str) -> dict:
    arrays = list(self.by_seed(arm.name, form, method).values())
    cells = self._cells(arrays) if arrays else self._cells_of_runs(arm.name, form, method)
    return {'name': arm.name, 'title': title(arm), 'seeds': len(arrays), **cells}

  def guesser_row(self, name: str, array: np.ndarray) -> dict:
    arrays = [np.asarray(array)]
    # NB: 99.5 %: there are several guessers with two tests each, and at 95 % one page in six would
    # raise a false alarm.
    tests = [
      bootstrap.interval(arrays, self.report.answers, columns=columns, level=0.995)
      for columns in ([0], self.others)
    ]
    return {
      'name': name,
      'title': name[:1].upper() + name[1:] + ' guesser',
      'seeds': 1,
      **self._cells(arrays),
      'at_chance': all(test.low <= self.chance['accuracy'] <= test.high for test in tests),
    }

  def gains(self) -> list[dict]:
    """Every arm minus each baseline before it."""
    arms = self.report.arms
    return [
      self._gain_row(arm, base)
      for i, base in enumerate(arms)
      if is_baseline(base.name)
      for arm in arms[i + 1 :]
    ]

  def _gain_row(self, arm, base) -> dict:
    report = self.report
    one, two = self.by_seed(arm.name), self.by_seed(base.name)
    seeds = [seed for seed in one if seed in two]
    row = {
      'name': arm.name,
      'title': title(arm),
      'base_name': base.name,
      'base': title(base),
      'seeds': len(seeds),
    }
    for key, statistic, columns, measure in (
      ('other', 'accuracy', self.others, self.measure),
      ('ac3', 'ac3', None, f'AC3_{self.s}'),
    ):
      gain = estimate = None
      if seeds:
        gain = bootstrap.difference(
          [one[seed] for seed in seeds],
          [two[seed] for seed in seeds],
          report.answers,
          statistic,
          columns=columns,
          s=self.s,
          resamples=report.resamples,
        )
      else:
        values = [self.arm_row(x, report.form, report.method)[key]['value'] for x in (arm, base)]
        estimate = None if None in values else values[0] - values[1]
      row[key] = {
        'gain': gain,
        'estimate': gain.estimate if gain else estimate,
        'verdict': verdict(gain),
        'sentence': gain_sentence(row['title'], row['base'], measure, gain, estimate),
      }
    return row

  @property
  def measure(self) -> str:
    return f'accuracy outside {language_name(self.report.languages[0])}'

  def variants(self) -> list[dict]:
    """Per arm the figures under each prompt form and method of its runs."""
    keys = {(key[0], *key[2:]) for key in self.report.choices}
    keys |= {(run['variant'], form_of(run), run['method']) for run in self.report.runs}
    variants = []
    for arm in self.report.arms:
      rows = [
        {'form': form, 'method': method, **self.arm_row(arm, form, method)}
        for form in FORMS
        for method in ('likelihood', 'generate')
        if (arm.name, form, method) in keys
      ]
      rows = [row for row in rows if row['other']['value'] is not None]
      if rows:
        variants.append({'title': title(arm), 'name': arm.name, 'rows': rows})
    return variants

  def heat(self) -> list[dict]:
    """Per arm the pairwise consistency, mean over seeds, as rows of fractions."""
    return [
      {
        'title': title(arm),
        'name': arm.name,
        'matrix': np.mean(
          [consistency.pairwise_consistency(array) for array in by_seed.values()], axis=0
        ).tolist(),
      }
      for arm in self.report.arms
      if (by_seed := self.by_seed(arm.name))
    ]


def gain_sentence(
  name: str, other: str, measure: str, gain: Interval | None, estimate: float | None = None
) -> str:
  """A sentence about `name` minus `other`.

  It claims a gain or loss only if the interval, as printed, excludes zero.

  Args:
    name, other: titles of the arms.
    measure: e.g. 'accuracy outside English'.
    gain: paired interval of the difference, in fractions.
    estimate: the difference, if `gain` is None.
  """
  if gain is None:
    if estimate is None:
      return f'{name} and {other} were not both measured.'
    return (
      f'{name} minus {other} is {points(estimate)} points in {measure}, without an interval: no '
      'claim is possible.'
    )
  low, high, estimate = (
    points(value).lstrip('+') for value in (gain.low, gain.high, gain.estimate)
  )
  span = f'{100 * gain.level:.0f} % interval {low} to {high}'
  outcome = verdict(gain)
  if outcome == 'none':
    return (
      f'{name} does not differ significantly from {other} in {measure} (difference {estimate} '
      f'points, {span}).'
    )
  side = 'above' if outcome == 'gain' else 'below'
  once = ', as far as one seed can show' if gain.seeds == 1 else ''
  return (
    f'{name} is {abs(100 * gain.estimate):.1f} points {side} {other} in {measure} ({span}): a real '
    f'{outcome}{once}.'
  )


def verdict(gain: Interval | None) -> str:
  """'gain', 'loss' or 'none', by the printed figures: '0.0 to 3.1' is not a gain."""
  if gain is None or not gain.excludes_zero:
    return 'none'
  if round(100 * gain.low, 1) > 0:
    return 'gain'
  return 'loss' if round(100 * gain.high, 1) < 0 else 'none'


def title(arm) -> str:
  return arm.title or arm.name


def is_baseline(name: str) -> bool:
  return name.casefold() in BASELINES


def form_of(run: Mapping) -> str:
  return 'tagged' if run['benchmark'].rsplit('/', 1)[-1] == 'tagged' else 'untagged'
