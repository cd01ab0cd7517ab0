"""Differences between two systems on the same items, with their tests."""

from collections.abc import Sequence
from math import comb

import numpy as np

from crossin_jax.evaluation.comparison.pairs import Cell, Pair
from crossin_jax.evaluation.measures import bootstrap, consistency, tables
from crossin_jax.languages import ENGLISH_NAMES
from crossin_jax.pages import words

LEVEL = 0.95
FEW = 20  # items under which no difference is called real


# ---- figures ----


def sign_flip_p(difference_PN: np.ndarray, draws: int = 9999) -> float:
  """Two-sided p that items differ by accident: under no difference each item's difference might
  have had the other sign.

  Exact (McNemar's test) where differences are -1, 0 or 1, as with one prompt; else by `draws`
  random signs.

      [[1, 1, 1, 0, 0, 1]] -> 0.125: 4 items changed, all one way, 2 / 2^4
  """
  mean_N = np.asarray(difference_PN, float).mean(axis=0)
  changed = mean_N[mean_N != 0]
  if not changed.size:
    return 1.0
  if np.all(np.abs(changed) == 1.0):
    n, fewer = changed.size, int(min((changed > 0).sum(), (changed < 0).sum()))
    return min(1.0, 2 * sum(comb(n, k) for k in range(fewer + 1)) / 2**n)
  generator, beyond = np.random.default_rng(0), 0
  for _ in range(9):  # in parts, for memory
    signs = generator.choice((-1.0, 1.0), size=(draws // 9, changed.size))
    beyond += int((np.abs(signs @ changed) >= abs(changed.sum()) - 1e-9).sum())
  return (beyond + 1) / (draws // 9 * 9 + 1)


def holm(p: Sequence[float]) -> list[float]:
  """p adjusted for so many comparisons (Holm 1979, Scand. J. Statist. 6:65): [0.01, 0.04, 0.03] ->
  [0.03, 0.06, 0.06].
  """
  adjusted, highest = [0.0] * len(p), 0.0
  for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
    highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
    adjusted[i] = highest
  return adjusted


def _cell(interval: bootstrap.Interval) -> dict:
  return {'value': interval.estimate, 'low': interval.low, 'high': interval.high}


def compare_pair(pair: Pair, names: tuple[str, str], resamples: int = 2000) -> dict:
  """All figures of a pair: the object under "comparisons" of compare.json."""
  languages, shared = list(pair.ids), pair.shared
  s = min(3, len(languages))
  found = {
    'benchmark': pair.benchmark, 'method': pair.method, 'prompts': pair.prompts,
    'languages': languages,
    'items': max(map(len, pair.ids.values())), 's': s if pair.has_options and s > 1 else None,
    'notes': pair.notes,
    'measures': {}, 'by_language': {},
  }  # fmt: skip
  if shared:
    measures = [('accuracy', 'accuracy', None)]
    if found['s']:
      measures += [(f'C_{s}', 'consistency', 1), (f'AC3_{s}', 'ac3', 1)]
    answers = (
      np.array([[pair.a[0][l][id_].answers for l in languages] for id_ in shared])
      if pair.has_options
      else None
    )
    for title, statistic, of_choices in measures:
      one, two = [
        pair.choices(side) if of_choices else pair.right(side, languages, shared)
        for side in (pair.a, pair.b)
      ]
      found['measures'][title] = _measured(
        one, two, answers if of_choices else None, names, title, statistic, s, resamples
      )
  p = []
  for language in languages:
    one, two = (pair.right(side, [language], pair.ids[language]) for side in (pair.a, pair.b))
    own = _measured(
      one,
      two,
      None,
      names,
      f'accuracy in {ENGLISH_NAMES.get(language, language)}',
      'accuracy',
      s,
      resamples,
    )
    first, second = one[0][:, 0], two[0][:, 0]
    own |= {
      'items': len(first),
      'right_to_wrong': int((first & ~second).sum()),
      'wrong_to_right': int((~first & second).sum()),
      'p': sign_flip_p(np.stack(two)[:, :, 0].astype(float) - np.stack(one)[:, :, 0]),
    }
    p.append(own['p'])
    found['by_language'][language] = own
  for own, adjusted in zip(found['by_language'].values(), holm(p)):
    own['p_holm'] = adjusted
    own['verdict'] = own['verdict'] if adjusted <= 1 - LEVEL and own['items'] >= FEW else 'none'
    del own['sentence']  # said of one language alone it would be uncorrected
  found['language_sentence'] = _language_sentence(found, names)
  if pair.has_options and shared:
    found['warnings'] = [
      f'{name}: {text}' for name,
      side in zip(names, (pair.a, pair.b)) if (text := consistency.constant_answer_warning(pair.choices(side)[0], answers))
    ]  # fmt: skip
    found['pairwise_consistency'] = {
      side: {f'{languages[i]},{languages[j]}': float(matrix[i, j]) for i in range(len(languages)) for j in range(i + 1, len(languages))}
      for side,
      matrix in zip('ab', ([np.mean([consistency.pairwise_consistency(c) for c in pair.choices(x)], axis=0) for x in (pair.a, pair.b)]))
    }  # fmt: skip
  return found


def _measured(one, two, answers, names, title: str, statistic: str, s: int, resamples: int) -> dict:
  settings = {'statistic': statistic, 's': s, 'resamples': resamples, 'level': LEVEL}
  gain = bootstrap.difference(two, one, answers, **settings)
  verdict = tables.verdict(gain) if gain.items >= FEW else 'none'
  return {
    'a': _cell(bootstrap.interval(one, answers, **settings)),
    'b': _cell(bootstrap.interval(two, answers, **settings)),
    'difference': _cell(gain),
    'verdict': verdict,
    'sentence': _sentence(names, title, gain, verdict),
  }


def _sentence(names: tuple[str, str], title: str, gain: bootstrap.Interval, verdict: str) -> str:
  low, high, estimate = (words.points(value) for value in (gain.low, gain.high, gain.estimate))
  span = f'{estimate} points, 95 % interval {low} to {high}'
  if verdict != 'none':
    return f'{names[1]} is {"above" if verdict == "gain" else "below"} {names[0]} in {title} ({span}): a real {verdict}.'
  few = f'; {gain.items} items are too few to tell, {FEW} are needed' if gain.items < FEW else ''
  return f'{names[1]} cannot be told from {names[0]} in {title} ({span}){few}.'


def _language_sentence(found: dict, names: tuple[str, str]) -> str:
  """Which languages differ for real."""
  rows = found['by_language']
  real = [
    f'{ENGLISH_NAMES.get(language, language)} ({words.points(own["difference"]["value"])})'
    for language, own in rows.items()
    if own['verdict'] != 'none'
  ]
  rest = [
    ENGLISH_NAMES.get(language, language)
    for language, own in rows.items()
    if own['verdict'] == 'none'
  ]
  corrected = f"with Holm's correction for {len(rows)} comparison{'s' if len(rows) > 1 else ''}"
  if not real:
    return f'By language, {corrected}, no accuracy of {names[1]} differs from that of {names[0]} for real.'
  others = f'; not told apart: {", ".join(rest)}' if rest else ''
  return f'By language, {corrected}, the accuracy of {names[1]} differs for real in {", ".join(real)}{others}.'


def flipped(pair: Pair, most: int) -> list[dict]:
  """Items whose rightness changed under the first shared prompt, up to `most`, the languages taking
  turns.
  """
  queues = []
  for language, ids in pair.ids.items():
    own = []
    for id_ in ids:
      one, two = pair.a[0][language][id_], pair.b[0][language][id_]
      if one.right != two.right:
        own.append({
          'id': id_, 'language': language,
          'change': 'wrong to right' if two.right else 'right to wrong',
          'answer': one.options[one.answers] if one.options else ' / '.join(one.answers),
          'a': _answered(one), 'b': _answered(two),
        })  # fmt: skip
    queues.append(own)
  turns = [
    own[i] for i in range(max(map(len, queues), default=0)) for own in queues if i < len(own)
  ]
  order = {language: i for i, language in enumerate(pair.ids)}
  return sorted(turns[:most], key=lambda row: order[row['language']])


def _answered(cell: Cell) -> str:
  """What is shown as a model's answer: the option, or the beginning of its text."""
  if cell.choice is not None and cell.choice >= 0:
    return cell.options[cell.choice]
  text = ' '.join(cell.text.split())
  return (text if len(text) <= 160 else text[:159] + '…') or '(nothing)'


def sentences(found: dict) -> list[str]:
  """What may be said, benchmark by benchmark."""
  said = []
  for own in found['comparisons']:
    head = f'{own["benchmark"]} by {own["method"]} ({own["items"]} items, {", ".join(own["languages"])}): '
    said += [
      head
      + ' '.join([*(m['sentence'] for m in own['measures'].values()), own['language_sentence']])
    ]
    said += [
      f'note on {own["benchmark"]} by {own["method"]}: {text}'
      for text in own['notes'] + own.get('warnings', [])
    ]
  for side in 'ab':
    if own := found[f'only_in_{side}']:
      said.append(f'not compared, on the side of {found[side]} alone: {", ".join(own)}')
  return said
