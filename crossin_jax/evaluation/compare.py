"""`crossin compare`: two models on the same items, what differs and which differences are real.

Every difference is B minus A and paired: both answered the same items. Where a benchmark was asked under several prompts, the
figures are means over the prompts that both have, and intervals cover items and prompts.
"""

import argparse
from collections.abc import Sequence
import json
from math import comb
import os
from pathlib import Path
import re
import sys

import numpy as np

from crossin_jax import mirror, remote
from crossin_jax.evaluation import bootstrap, consistency, extraction, results, tables
from crossin_jax.evaluation.pairs import Cell, Pair, pair_up, prediction_files
from crossin_jax.evaluation.records import RecordError
from crossin_jax.languages import ENGLISH_NAMES

LEVEL = 0.95
FEW = 20  # items under which no difference is called real

# ---- figures ---------------------------------------------------------------------------------------------------------


def sign_flip_p(difference_PN: np.ndarray, draws: int = 9999) -> float:
  """Two-sided p that items differ by accident: under no difference each item's difference might have had the other sign.

  Exact (McNemar's test) where differences are -1, 0 or 1, as with one prompt; else by `draws` random signs.

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
  """p adjusted for so many comparisons (Holm 1979, Scand. J. Statist. 6:65): [0.01, 0.04, 0.03] -> [0.03, 0.06, 0.06]."""
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
    'benchmark': pair.benchmark, 'method': pair.method, 'prompts': pair.prompts, 'languages': languages,
    'items': max(map(len, pair.ids.values())), 's': s if pair.has_options and s > 1 else None, 'notes': pair.notes,
    'measures': {}, 'by_language': {},
  }  # fmt: skip
  if shared:
    measures = [('accuracy', 'accuracy', None)]
    if found['s']:
      measures += [(f'C_{s}', 'consistency', 1), (f'AC3_{s}', 'ac3', 1)]
    answers = np.array([[pair.a[0][l][id_].answers for l in languages] for id_ in shared]) if pair.has_options else None
    for title, statistic, of_choices in measures:
      one, two = ([pair.choices(side) if of_choices else pair.right(side, languages, shared) for side in (pair.a, pair.b)])  # fmt: skip
      found['measures'][title] = _measured(
        one, two, answers if of_choices else None, names, title, statistic, s, resamples
      )
  p = []
  for language in languages:
    one, two = (pair.right(side, [language], pair.ids[language]) for side in (pair.a, pair.b))
    own = _measured(
      one, two, None, names, f'accuracy in {ENGLISH_NAMES.get(language, language)}', 'accuracy', s, resamples
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
      f'{name}: {text}' for name, side in zip(names, (pair.a, pair.b)) if (text := consistency.constant_answer_warning(pair.choices(side)[0], answers))
    ]  # fmt: skip
    found['pairwise_consistency'] = {
      side: {f'{languages[i]},{languages[j]}': float(matrix[i, j]) for i in range(len(languages)) for j in range(i + 1, len(languages))}
      for side, matrix in zip('ab', ([np.mean([consistency.pairwise_consistency(c) for c in pair.choices(x)], axis=0) for x in (pair.a, pair.b)]))
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
  low, high, estimate = (tables.points(value) for value in (gain.low, gain.high, gain.estimate))
  span = f'{estimate} points, 95 % interval {low} to {high}'
  if verdict != 'none':
    return (
      f'{names[1]} is {"above" if verdict == "gain" else "below"} {names[0]} in {title} ({span}): a real {verdict}.'
    )
  few = f'; {gain.items} items are too few to tell, {FEW} are needed' if gain.items < FEW else ''
  return f'{names[1]} cannot be told from {names[0]} in {title} ({span}){few}.'


def _language_sentence(found: dict, names: tuple[str, str]) -> str:
  """Which languages differ for real."""
  rows = found['by_language']
  real = [
    f'{ENGLISH_NAMES.get(language, language)} ({tables.points(own["difference"]["value"])})'
    for language, own in rows.items()
    if own['verdict'] != 'none'
  ]
  rest = [ENGLISH_NAMES.get(language, language) for language, own in rows.items() if own['verdict'] == 'none']
  corrected = f"with Holm's correction for {len(rows)} comparison{'s' if len(rows) > 1 else ''}"
  if not real:
    return f'By language, {corrected}, no accuracy of {names[1]} differs from that of {names[0]} for real.'
  others = f'; not told apart: {", ".join(rest)}' if rest else ''
  return f'By language, {corrected}, the accuracy of {names[1]} differs for real in {", ".join(real)}{others}.'


def flipped(pair: Pair, most: int) -> list[dict]:
  """Items whose rightness changed under the first shared prompt, up to `most`, the languages taking turns."""
  queues = []
  for language, ids in pair.ids.items():
    own = []
    for id_ in ids:
      one, two = pair.a[0][language][id_], pair.b[0][language][id_]
      if one.right != two.right:
        own.append({
          'id': id_, 'language': language, 'change': 'wrong to right' if two.right else 'right to wrong',
          'answer': one.options[one.answers] if one.options else ' / '.join(one.answers),
          'a': _answered(one), 'b': _answered(two),
        })  # fmt: skip
    queues.append(own)
  turns = [own[i] for i in range(max(map(len, queues), default=0)) for own in queues if i < len(own)]
  order = {language: i for i, language in enumerate(pair.ids)}
  return sorted(turns[:most], key=lambda row: order[row['language']])


def _answered(cell: Cell) -> str:
  """What is shown as a model's answer: the option, or the beginning of its text."""
  if cell.choice is not None and cell.choice >= 0:
    return cell.options[cell.choice]
  text = ' '.join(cell.text.split())
  return (text if len(text) <= 160 else text[:159] + '…') or '(nothing)'


# ---- the command -----------------------------------------------------------------------------------------------------


def _names(paths: tuple[str, str], given: str | None) -> tuple[str, str]:
  if given:
    names = [name.strip() for name in given.split(',')]
    if len(names) != 2 or not all(names) or names[0] == names[1]:
      raise ValueError(f'--names {given!r}: give two different names, as base,tuned')
    return names[0], names[1]
  variants = []
  for path in paths:
    file = os.path.join(path, 'results.json')
    variants.append({run['variant'] for run in results.read_results(file)} if os.path.isfile(file) else set())
  if all(len(own) == 1 for own in variants) and variants[0] != variants[1]:
    return variants[0].pop(), variants[1].pop()
  parts = [Path(os.path.abspath(path)).parts for path in paths]
  depth = next((i for i, (x, y) in enumerate(zip(reversed(parts[0]), reversed(parts[1]))) if x != y), None)
  if depth is None:
    return 'A', 'B'
  first, second = (re.sub(r'\.jsonl?(\.gz)?$', '', own[-1 - depth]) for own in parts)
  return (first, second) if first != second else ('A', 'B')


def _here(path: str) -> str:
  """The results on this machine: of a remote directory only what is compared is copied."""
  if not remote.is_remote(path) or remote.exists(path):
    return remote.fetched(path)
  remote.fetched(f'{path.rstrip("/")}/predictions')
  return remote.fetched(path, ['results.json'], optional=True)


def compare(
  paths: tuple[str, str], names: tuple[str, str], *, allow_partial: bool = False, resamples: int = 2000, **settings
) -> tuple[dict, list[Pair]]:
  """Compares two results directories or two files.

  Returns:
    The object of compare.json, but for "flipped", and the pairs behind its "comparisons".
  """
  first, second = (prediction_files(path) for path in paths)
  if not any(os.path.isdir(path) for path in paths) and first.keys() != second.keys():
    second = {
      next(iter(first)): next(iter(second.values()))
    }  # two files are meant to be compared, whatever their names
  keys = [key for key in first if key in second]
  only = [[f'{name} by {method}' for name, method in one if (name, method) not in other] for one, other in ((first, second), (second, first))]  # fmt: skip
  if not keys:
    raise RecordError(f'{paths[0]} and {paths[1]} have no benchmark in common ({", ".join(only[0])} against {", ".join(only[1])})')  # fmt: skip
  pairs = [pair_up(*key, first[key], second[key], allow_partial=allow_partial, **settings) for key in keys]
  return {
    'a': names[0],
    'b': names[1],
    'protocol': settings.get('protocol', 'strict'),
    'level': LEVEL,
    'resamples': resamples,
    'only_in_a': only[0],
    'only_in_b': only[1],
    'comparisons': [compare_pair(pair, names, resamples) for pair in pairs],
  }, pairs


def main(argv: Sequence[str] | None = None) -> int:
  """`crossin compare`. Exit status: 0 done, 1 failed, 2 usage."""
  parser = argparse.ArgumentParser(
    prog='crossin compare',
    description='Two models on the same items: paired intervals of B minus A, by language too, and which are real.',
    epilog='example: crossin compare runs/base/eval runs/x2x/eval --names base,x2x --output_dir compared',
  )
  parser.add_argument('a', help='--output_dir of `crossin evaluate`, or a file of predictions')
  parser.add_argument('b', help='the other one; differences are B minus A')
  parser.add_argument('--names', help='of both, as base,x2x (default: the variants of results.json)')
  parser.add_argument('--output_dir', help='for compare.html and compare.json')
  parser.add_argument('--protocol', choices=extraction.PROTOCOLS, default='strict', help='how options are read (default: strict)')  # fmt: skip
  parser.add_argument('--first_line', '--first-line', action='store_true', help='cut predictions at their first newline (few-shot runs)')  # fmt: skip
  parser.add_argument('--flips', type=int, default=60, help='changed items listed of each benchmark (default: %(default)s)')  # fmt: skip
  parser.add_argument('--examples', type=int, default=2, help='items shown in every language (default: %(default)s)')
  parser.add_argument('--resamples', type=int, default=2000, help='of the bootstrap (default: %(default)s)')
  parser.add_argument('--allow-partial', '--allow_partial', action='store_true', help='compare what both sides have')
  parser.add_argument('--json', action='store_true', help='one JSON object as last line on stdout')
  options = parser.parse_args(argv)
  paths = _here(options.a), _here(options.b)
  names = _names(paths, options.names)
  found, pairs = compare(
    paths, names, allow_partial=options.allow_partial, resamples=options.resamples,
    protocol=options.protocol, first_line=options.first_line,
  )  # fmt: skip
  for own, pair in zip(found['comparisons'], pairs):
    own['flipped'] = flipped(pair, options.flips)
  for text in sentences(found):
    print(text, file=sys.stderr)
  if options.output_dir:
    from crossin_jax.evaluation import compare_page

    command = 'crossin compare ' + ' '.join(sys.argv[2:] if argv is None else argv)
    with mirror.written(options.output_dir) as files:
      text = json.dumps(found, ensure_ascii=False, indent=1)
      results.write_text(os.path.join(files.path, 'compare.json'), f'{text}\n')
      compare_page.write(os.path.join(files.path, 'compare.html'), found, pairs, options.examples, command)
    print(f'{os.path.join(options.output_dir, "compare.html")}', file=sys.stderr)
  if options.json:
    print(json.dumps(found, ensure_ascii=False))
  return 0


def sentences(found: dict) -> list[str]:
  """What may be said, benchmark by benchmark."""
  said = []
  for own in found['comparisons']:
    head = f'{own["benchmark"]} by {own["method"]} ({own["items"]} items, {", ".join(own["languages"])}): '
    said += [head + ' '.join([*(m['sentence'] for m in own['measures'].values()), own['language_sentence']])]
    said += [
      f'note on {own["benchmark"]} by {own["method"]}: {text}' for text in own['notes'] + own.get('warnings', [])
    ]
  for side in 'ab':
    if own := found[f'only_in_{side}']:
      said.append(f'not compared, on the side of {found[side]} alone: {", ".join(own)}')
  return said
