"""The figures behind the report's tables: every arm's, every gain, and what may be said about a
gain.

A figure is a cell {"value", "low", "high"} in fractions; low and high are None where there is no
interval, value too where there is no figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from crossin_jax.evaluation.measures import bootstrap, consistency
from crossin_jax.evaluation.measures.bootstrap import Interval
from crossin_jax.pages.words import language_name, points

FORMS = ('untagged', 'tagged')
BASELINES = ('floor', 'base', 'mono')  # arms that gains are measured against, where present


class Figures:
  """The figures of all arms, each as {"value", "low", "high"} in fractions, low and high None
  without an interval.
  """

  def __init__(self, report):
    self.report = report
    self.s = min(3, len(report.languages))
    self.others = list(range(1, len(report.languages)))
    c = float(report.options) ** (1 - self.s)
    acc = 1.0 / report.options
    self.chance = {'accuracy': acc, 'consistency': c, 'ac3': consistency.ac3(acc, c)}

  def by_seed(self, arm: str, form: str, method: str) -> dict[int, np.ndarray]:
    """seed -> choices of an arm, in the order of the seeds."""
    return {
      key[1]: np.asarray(array)
      for key, array in sorted(self.report.choices.items())
      if (key[0], key[2], key[3]) == (arm, form, method)
    }

  def _cells(self, arrays: Sequence[np.ndarray]) -> dict:
    def cell(statistic: str, columns=None) -> dict:
      found = bootstrap.interval(
        arrays,
        self.report.answers,
        statistic,
        columns=columns,
        s=self.s,
        resamples=self.report.resamples,
      )
      return {'value': found.estimate, 'low': found.low, 'high': found.high}

    return {
      'languages': [cell('accuracy', [i]) for i in range(len(self.report.languages))],
      'other': cell('accuracy', self.others),
      'consistency': cell('consistency'),
      'ac3': cell('ac3'),
      'unparsed': float(np.mean([(array == consistency.UNPARSED).mean() for array in arrays])),
    }

  def _cells_of_runs(self, arm: str, form: str, method: str) -> dict | None:
    runs = [
            run
            for run in self.report.runs
            if run["variant"] == arm and run["method"] == method and form_of(run) == form
            and all(code in run["accuracy_by_language"] for code in self.report.languages)
        ]  # fmt: skip

    def cell(pick) -> dict:
      return {
        'value': float(np.mean([pick(run) for run in runs])) if runs else None,
        'low': None,
        'high': None,
      }

    codes = list(self.report.languages)
    return {
      'languages': [
        cell(lambda run, code=code: run['accuracy_by_language'][code]) for code in codes
      ],
      'other': cell(lambda run: np.mean([run['accuracy_by_language'][code] for code in codes[1:]])),
      'consistency': cell(lambda run: run['consistency'][str(self.s)]),
      'ac3': cell(lambda run: run['ac3'][str(self.s)]),
      'unparsed': float(np.mean([run['unparsed_rate'] for run in runs])) if runs else None,
    }

  def arm_row(self, arm, form: str, method: str) -> dict:
    arrays = list(self.by_seed(arm.name, form, method).values())
    cells = self._cells(arrays) if arrays else self._cells_of_runs(arm.name, form, method)
    return {'name': arm.name, 'title': title(arm), 'seeds': len(arrays), **cells}

  def guesser_row(self, name: str, array: np.ndarray) -> dict:
    row = {
      'name': name,
      'title': name[:1].upper() + name[1:] + ' guesser',
      'seeds': 1,
      **self._cells([np.asarray(array)]),
    }
    # NB: 99.5 %: several guessers are tried in two places each, and at 95 % one page in six would
    # raise a false alarm.
    tried = [
      bootstrap.interval([np.asarray(array)], self.report.answers, columns=columns, level=0.995)
      for columns in ([0], self.others)
    ]
    row['at_chance'] = all(one.low <= self.chance['accuracy'] <= one.high for one in tried)
    return row

  def gains(self) -> list[dict]:
    """Every arm minus each baseline that stands before it."""
    report, found = self.report, []
    for i, base in enumerate(report.arms):
      if not is_baseline(base.name):
        continue
      for arm in report.arms[i + 1 :]:
        one = self.by_seed(arm.name, report.form, report.method)
        two = self.by_seed(base.name, report.form, report.method)
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
                            [one[seed] for seed in seeds], [two[seed] for seed in seeds],
                            report.answers, statistic,
                            columns=columns, s=self.s, resamples=report.resamples,
                        )  # fmt: skip
          else:
            values = [
              self.arm_row(x, report.form, report.method)[key]['value'] for x in (arm, base)
            ]
            estimate = None if None in values else values[0] - values[1]
          row[key] = {
            'gain': gain,
            'estimate': gain.estimate if gain else estimate,
            'verdict': verdict(gain),
            'sentence': gain_sentence(row['title'], row['base'], measure, gain, estimate),
          }
        found.append(row)
    return found

  @property
  def measure(self) -> str:
    return f'accuracy outside {language_name(self.report.languages[0])}'

  def variants(self) -> list[dict]:
    """Per arm the figures under each prompt form and method that was run."""
    keys = {(key[0], key[2], key[3]) for key in self.report.choices}
    keys |= {(run['variant'], form_of(run), run['method']) for run in self.report.runs}
    found = []
    for arm in self.report.arms:
      rows = [
        {'form': form, 'method': method, **self.arm_row(arm, form, method)}
        for form in FORMS
        for method in ('likelihood', 'generate')
        if (arm.name, form, method) in keys
      ]
      rows = [row for row in rows if row['other']['value'] is not None]
      if rows:
        found.append({'title': title(arm), 'name': arm.name, 'rows': rows})
    return found

  def heat(self) -> list[dict]:
    """Per arm the pairwise consistency, mean over seeds, as rows of fractions."""
    found = []
    for arm in self.report.arms:
      arrays = list(self.by_seed(arm.name, self.report.form, self.report.method).values())
      if arrays:
        matrix = np.mean([consistency.pairwise_consistency(array) for array in arrays], axis=0)
        found.append({'title': title(arm), 'name': arm.name, 'matrix': matrix.tolist()})
    return found


def gain_sentence(
  name: str, other: str, measure: str, gain: Interval | None, estimate: float | None = None
) -> str:
  """One plain sentence about `name` minus `other`; a gain or loss is claimed only if the printed
  interval excludes zero.

  Args:
    name, other: titles of the arms.
    measure: what was measured, e.g. 'accuracy outside English'.
    gain: paired interval of the difference, in fractions; None if there is none.
    estimate: the bare difference, used when `gain` is None.
  """
  if gain is None:
    if estimate is None:
      return f'{name} and {other} were not both measured.'
    return f'{name} minus {other} is {points(estimate)} points in {measure}, without an interval: nothing can be claimed.'
  low, high, estimate = (
    points(value).lstrip('+') for value in (gain.low, gain.high, gain.estimate)
  )
  span = f'{100 * gain.level:.0f} % interval {low} to {high}'
  outcome = verdict(gain)
  if outcome == 'none':
    return (
      f'{name} cannot be told from {other} in {measure} (difference {estimate} points, {span}).'
    )
  side, kind = ('above', 'gain') if outcome == 'gain' else ('below', 'loss')
  once = ', as far as one seed can show' if gain.seeds == 1 else ''
  return f'{name} is {abs(100 * gain.estimate):.1f} points {side} {other} in {measure} ({span}): a real {kind}{once}.'


def verdict(gain: Interval | None) -> str:
  """'gain', 'loss' or 'none'; by the figures as printed, so that '0.0 to 3.1' is never called a
  gain.
  """
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
