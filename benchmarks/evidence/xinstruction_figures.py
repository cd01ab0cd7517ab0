"""Figures of xinstruction.py: shares of answers with intervals over facts and worlds, and tables of
them.
"""

from collections.abc import Mapping, Sequence
import dataclasses

from compare import told as interval_text
import numpy as np

from crossin_jax.evaluation.measures import bootstrap
from crossin_jax.world.documents import ANSWERS
from crossin_jax.xinstruction.quickstart.quickstart import FORMS

PAIRS = (
  ('kept', 'random'),
  ('kept', 'translated'),
  ('translated', 'random'),
  ('kept', 'English only'),
  ('diverse', 'chance'),
)
MEASURES = {
  'follows': ('right', 'wrong value'),
  'right': ('right',),
  'in the language': ('right', 'wrong value', 'about something else'),
}  # fmt: skip


def relation_of(row_id: str) -> str:
  """'FR.radio.3' -> 'radio'."""
  return row_id.split('.')[1]


def figures(told: Mapping[int, Mapping], frequent: Sequence[str]) -> dict:
  """Shares of answers with 95 % intervals over facts and worlds.

  Args:
    told: seed -> what `World._tell` wrote.
    frequent: relations that were frequent in the skewed pool.

  Returns:
    {'seeds', 'facts': of each, 'arms': {arm: {'rows', 'steps', form: {measure: interval, 'heard':
    {what: n}, 'by_seed': {seed: share that follows}}}}, 'differences': {'A - B': {form: {measure:
    interval}}}, 'diversification': {'frequent' | 'rare': {'chance', 'diverse', 'difference'}},
    'refinement', 'translations', 'spread'}; a difference is paired over facts and worlds.
  """
  first = next(iter(told.values()))
  table = {}
  for arm, forms in first['heard'].items():
    table[arm] = {
      key: [own['arms'][arm][key] for own in told.values()] for key in ('rows', 'steps')
    }
    for form in forms:
      table[arm][form] = {measure: _interval(told, arm, form, measure) for measure in MEASURES}
      table[arm][form]['heard'] = {
        what: int(sum((_words(own, arm, form) == what).sum() for own in told.values()))
        for what in ANSWERS
      }
      table[arm][form]['by_seed'] = {
        seed: float(_hits(own, arm, form, 'follows').mean()) for seed, own in told.items()
      }
  differences = {
    f'{one} - {other}': {
      form: {measure: _difference(told, one, other, form, measure) for measure in MEASURES}
      for form in first['heard'][one]
    }
    for one, other in PAIRS
  }
  split = {}
  for name, wanted in (('frequent', True), ('rare', False)):
    own = lambda id_, wanted=wanted: (relation_of(id_) in frequent) == wanted
    split[name] = {
      arm: _interval(told, arm, 'English', 'follows', own) for arm in ('chance', 'diverse')
    }
    split[name]['difference'] = _difference(told, 'diverse', 'chance', 'English', 'follows', own)
  rest = {
    key: {seed: own[key] for seed, own in told.items()}
    for key in ('refinement', 'translations', 'spread')
  }
  return {
    'seeds': list(told), 'facts': len(first['heard']['kept']['English']), 'arms': table,
    'differences': differences,
    'diversification': split, **rest,
  }  # fmt: skip


def _words(own: Mapping, arm: str, form: str, chosen=None) -> np.ndarray:
  """What was heard, [facts, languages]."""
  heard = own['heard'][arm][form]
  return np.array(
    [list(heard[id_].values()) for id_ in sorted(heard) if chosen is None or chosen(id_)]
  )


def _hits(own: Mapping, arm: str, form: str, measure: str, chosen=None) -> np.ndarray:
  return np.isin(_words(own, arm, form, chosen), MEASURES[measure])


def _interval(told: Mapping, arm: str, form: str, measure: str, chosen=None) -> dict:
  by_seed = [_hits(own, arm, form, measure, chosen) for own in told.values()]
  return dataclasses.asdict(bootstrap.interval(by_seed, [None] * len(by_seed)))


def _difference(told: Mapping, one: str, other: str, form: str, measure: str, chosen=None) -> dict:
  first, second = (
    [_hits(own, arm, form, measure, chosen) for own in told.values()] for arm in (one, other)
  )
  return dataclasses.asdict(bootstrap.difference(first, second, [None] * len(first)))


def markdown(found: Mapping) -> str:
  """The figures as tables."""
  lines = [
    '| arm | rows | steps | English: follows | right | in the language | native: follows | right '
    '| in the language |',
    '|---|---|---|---|---|---|---|---|---|',
  ]
  for arm, own in found['arms'].items():
    shown = [interval_text(own[form][measure]) for form in FORMS for measure in MEASURES]
    steps = '-' if own['steps'][0] is None else _range(own['steps'])
    lines.append(f'| {arm} | {_range(own["rows"])} | {steps} | ' + ' | '.join(shown) + ' |')
  lines += [
    '',
    '| difference, points | English: follows | right | native: follows | right |',
    '|---|---|---|---|---|',
  ]
  for name, own in found['differences'].items():
    shown = [
      interval_text(own[form][measure], True) for form in FORMS for measure in ('follows', 'right')
    ]
    lines.append(f'| {name} | ' + ' | '.join(shown) + ' |')
  lines += [
    '',
    '| asked about relations that were | chance | diverse | difference |',
    '|---|---|---|---|',
  ]
  for name, own in found['diversification'].items():
    lines.append(
      f'| {name} | {interval_text(own["chance"])} | {interval_text(own["diverse"])} | '
      f'{interval_text(own["difference"], True)} |'
    )
  lines += [
    '',
    '| seed | candidates good | kept good | translations exactly true | good of chance, diverse | '
    'rare of kept, chance, diverse |',
  ]
  lines += ['|---|---|---|---|---|---|']
  for seed in found['seeds']:
    last, heard, spread = (
      _of(found[key], seed) for key in ('refinement', 'translations', 'spread')
    )
    last, (chance, diverse) = (
      last[-1],
      (_sum(spread, name, 'good') for name in ('chance', 'diverse')),
    )
    rare = ', '.join(
      f'{_rare(spread, name, found["frequent"])} of {_sum(spread, name, "rows")}'
      for name in ('kept', 'chance', 'diverse')
    )
    kept = last['precision'] and last['precision']['estimate']
    told_kept = '-' if kept is None else f'{100 * kept:.0f} % of {last["kept"]}'
    lines.append(
      f'| {seed} | {last["good"]} of {last["candidates"]} | {told_kept} | '
      f'{heard.get("right", 0)} of {sum(heard.values())} | {chance}, {diverse} of '
      f'{_sum(spread, "diverse", "rows")} | {rare} |'
    )
  return '\n'.join(lines) + '\n'


def _of(by_seed: Mapping, seed: int):
  return by_seed[seed] if seed in by_seed else by_seed[str(seed)]  # JSON has texts as keys


def _sum(spread: Mapping, name: str, key: str) -> int:
  return sum(own[name][key] for own in spread.values())


def _rare(spread: Mapping, name: str, frequent: Sequence[str]) -> int:
  return sum(
    n
    for own in spread.values()
    for relation, n in own[name]['relations'].items()
    if relation not in frequent
  )


def _range(numbers: Sequence[int]) -> str:
  return str(numbers[0]) if len(set(numbers)) == 1 else f'{min(numbers)} to {max(numbers)}'
