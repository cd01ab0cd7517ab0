"""Differences between two systems on the same items, with significance tests."""

from collections.abc import Sequence
from math import comb

import numpy as np

from crossin_jax.evaluation.comparison.pairs import Cell, Pair
from crossin_jax.evaluation.measures import bootstrap, consistency, tables
from crossin_jax.pages import words
from crossin_jax.pages.words import language_name

LEVEL = 0.95
FEW = 20  # a difference on fewer items is never called real


# ---- figures ----


def sign_flip_p(difference_PN: np.ndarray, draws: int = 9999) -> float:
  """Two-sided p of a sign-flip test: without a difference, the sign of each item is random.

  The test is exact (McNemar's test) where differences are -1, 0 or 1, as with one prompt; otherwise
  it uses `draws` random signs.

      [[1, 1, 1, 0, 0, 1]] -> 0.125: 4 items changed, all in one direction, 2 / 2^4
  """
  mean_N = np.asarray(difference_PN, float).mean(axis=0)
  changed = mean_N[mean_N != 0]
  if not changed.size:
    return 1.0
  if np.all(np.abs(changed) == 1.0):
    n, fewer = changed.size, int(min((changed > 0).sum(), (changed < 0).sum()))
    return min(1.0, 2 * sum(comb(n, k) for k in range(fewer + 1)) / 2**n)
  generator, beyond = np.random.default_rng(0), 0
  for _ in range(9):  # in parts, to save memory
    signs = generator.choice((-1.0, 1.0), size=(draws // 9, changed.size))
    beyond += int((np.abs(signs @ changed) >= abs(changed.sum()) - 1e-9).sum())
  return (beyond + 1) / (draws // 9 * 9 + 1)


def holm(p: Sequence[float]) -> list[float]:
  """p adjusted for multiple comparisons (Holm 1979, Scand. J. Statist. 6:65).

  [0.01, 0.04, 0.03] -> [0.03, 0.06, 0.06]
  """
  adjusted, highest = [0.0] * len(p), 0.0
  for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
    highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
    adjusted[i] = highest
  return adjusted


def compare_pair(pair: Pair, names: tuple[str, str], resamples: int = 2000) -> dict:
  """All figures of a pair: the object under "comparisons" of compare.json."""
  languages, shared = list(pair.ids), pair.shared
  s = min(3, len(languages))
  result = {
    'benchmark': pair.benchmark,
    'method': pair.method,
    'prompts': pair.prompts,
    'languages': languages,
    'items': max(map(len, pair.ids.values())),
    's': s if pair.has_options and s > 1 else None,
    'notes': pair.notes,
    'measures': {},
    'by_language': {},
  }

  def measured(one, two, answers, title: str, statistic: str = 'accuracy') -> dict:
    settings = {'statistic': statistic, 's': s, 'resamples': resamples, 'level': LEVEL}
    return _measured(one, two, answers, names, title, settings)

  sides = (pair.a, pair.b)
  if shared:
    right = [pair.right(side, languages, shared) for side in sides]
    result['measures']['accuracy'] = measured(*right, None, 'accuracy')
    choices = [pair.choices(side) for side in sides] if pair.has_options else []
    if result['s']:
      for title, statistic in ((f'C_{s}', 'consistency'), (f'AC3_{s}', 'ac3')):
        result['measures'][title] = measured(*choices, pair.answers(), title, statistic)
  for language in languages:
    one, two = (pair.right(side, [language], pair.ids[language]) for side in sides)
    figures = measured(one, two, None, f'accuracy in {language_name(language)}')
    first, second = one[0][:, 0], two[0][:, 0]
    result['by_language'][language] = figures | {
      'items': len(first),
      'right_to_wrong': int((first & ~second).sum()),
      'wrong_to_right': int((~first & second).sum()),
      'p': sign_flip_p(np.stack(two)[:, :, 0].astype(float) - np.stack(one)[:, :, 0]),
    }
  rows = result['by_language'].values()
  for row, adjusted in zip(rows, holm([row['p'] for row in rows])):
    row['p_holm'] = adjusted
    if adjusted > 1 - LEVEL or row['items'] < FEW:
      row['verdict'] = 'none'
    del row['sentence']  # it is not corrected for multiple comparisons
  result['language_sentence'] = _language_sentence(result, names)
  if pair.has_options and shared:
    warnings = [consistency.constant_answer_warning(side[0], pair.answers()) for side in choices]
    result['warnings'] = [f'{name}: {text}' for name, text in zip(names, warnings) if text]
    matrices = [
      np.mean([consistency.pairwise_consistency(array) for array in side], axis=0)
      for side in choices
    ]
    result['pairwise_consistency'] = {
      side: consistency.by_pair(matrix, languages) for side, matrix in zip('ab', matrices)
    }
  return result


def _measured(one, two, answers, names, title: str, settings: dict) -> dict:
  gain = bootstrap.difference(two, one, answers, **settings)
  verdict = tables.verdict(gain) if gain.items >= FEW else 'none'
  return {
    'a': bootstrap.interval(one, answers, **settings).cell(),
    'b': bootstrap.interval(two, answers, **settings).cell(),
    'difference': gain.cell(),
    'verdict': verdict,
    'sentence': _sentence(names, title, gain, verdict),
  }


def _sentence(names: tuple[str, str], title: str, gain: bootstrap.Interval, verdict: str) -> str:
  a, b = names
  low, high, estimate = (words.points(value) for value in (gain.low, gain.high, gain.estimate))
  span = f'{estimate} points, 95 % interval {low} to {high}'
  if verdict != 'none':
    side = 'above' if verdict == 'gain' else 'below'
    return f'{b} is {side} {a} in {title} ({span}): a real {verdict}.'
  few = f'; {gain.items} items are too few, {FEW} are needed' if gain.items < FEW else ''
  return f'{b} does not differ significantly from {a} in {title} ({span}){few}.'


def _language_sentence(result: dict, names: tuple[str, str]) -> str:
  """The languages with a real difference."""
  a, b = names
  rows = result['by_language']
  real = [
    f'{language_name(language)} ({words.points(row["difference"]["value"])})'
    for language, row in rows.items()
    if row['verdict'] != 'none'
  ]
  rest = [language_name(language) for language, row in rows.items() if row['verdict'] == 'none']
  count = f'{len(rows)} comparison{"s" if len(rows) > 1 else ""}'
  head = f"By language, with Holm's correction for {count}, "
  if not real:
    return f'{head}the accuracy of {b} does not differ significantly from that of {a}.'
  others = f'; no significant difference in {", ".join(rest)}' if rest else ''
  return f'{head}the accuracy of {b} really differs in {", ".join(real)}{others}.'


def flipped(pair: Pair, most: int) -> list[dict]:
  """Up to `most` items whose correctness changed under the first common prompt.

  The selection alternates between languages.
  """
  queues = []
  for language, ids in pair.ids.items():
    cells = ((id_, pair.a[0][language][id_], pair.b[0][language][id_]) for id_ in ids)
    queues.append(
      [
        {
          'id': id_,
          'language': language,
          'change': 'wrong to right' if two.right else 'right to wrong',
          'answer': one.options[one.answers] if one.options else ' / '.join(one.answers),
          'a': _answered(one),
          'b': _answered(two),
        }
        for id_, one, two in cells
        if one.right != two.right
      ]
    )
  longest = max(map(len, queues), default=0)
  turns = [queue[i] for i in range(longest) for queue in queues if i < len(queue)]
  order = {language: i for i, language in enumerate(pair.ids)}
  return sorted(turns[:most], key=lambda row: order[row['language']])


def _answered(cell: Cell) -> str:
  """The answer to show: the option, or the beginning of the text."""
  if cell.choice is not None and cell.choice >= 0:
    return cell.options[cell.choice]
  return words.shortened(' '.join(cell.text.split()), 160) or '(nothing)'


def sentences(result: dict) -> list[str]:
  """Conclusions, benchmark by benchmark."""
  lines = []
  for row in result['comparisons']:
    label = f'{row["benchmark"]} by {row["method"]}'
    conclusions = [*(m['sentence'] for m in row['measures'].values()), row['language_sentence']]
    head = f'{label} ({row["items"]} items, {", ".join(row["languages"])})'
    lines.append(f'{head}: {" ".join(conclusions)}')
    lines += [f'note on {label}: {text}' for text in row['notes'] + row.get('warnings', [])]
  for side in 'ab':
    if names := result[f'only_in_{side}']:
      lines.append(f'not compared, only in {result[side]}: {", ".join(names)}')
  return lines
