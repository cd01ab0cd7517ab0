"""`crossin compare`: two models on the same items, what differs and which differences are real.

Every difference is B minus A and paired: both answered the same items. Where a benchmark was asked
under several prompts, the figures are means over the prompts that both have, and intervals cover
items and prompts.
"""

from collections.abc import Sequence
import json
import os
from pathlib import Path
import re
import sys

from crossin_jax.evaluation import results
from crossin_jax.evaluation.answers import extraction
from crossin_jax.evaluation.comparison.differences import LEVEL, compare_pair, flipped, sentences
from crossin_jax.evaluation.comparison.pairs import Pair, pair_up, prediction_files
from crossin_jax.storage import mirror, remote
from crossin_jax.storage.files import write_text
from crossin_jax.storage.records import RecordError
from crossin_jax.workflow import command_line

# ---- the command ----


def _names(paths: tuple[str, str], given: str | None) -> tuple[str, str]:
  if given:
    names = [name.strip() for name in given.split(',')]
    if len(names) != 2 or not all(names) or names[0] == names[1]:
      raise ValueError(f'--names {given!r}: give two different names, as base,tuned')
    return names[0], names[1]
  variants = []
  for path in paths:
    file = os.path.join(path, 'results.json')
    variants.append(
      {run['variant'] for run in results.read_results(file)} if os.path.isfile(file) else set()
    )
  if all(len(own) == 1 for own in variants) and variants[0] != variants[1]:
    return variants[0].pop(), variants[1].pop()
  parts = [Path(os.path.abspath(path)).parts for path in paths]
  depth = next(
    (i for i, (x, y) in enumerate(zip(reversed(parts[0]), reversed(parts[1]))) if x != y), None
  )
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
  paths: tuple[str, str],
  names: tuple[str, str],
  *,
  allow_partial: bool = False,
  resamples: int = 2000,
  **settings,
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
  only = [
    [f'{name} by {method}' for name, method in one if (name, method) not in other]
    for one, other in ((first, second), (second, first))
  ]
  if not keys:
    raise RecordError(f'{paths[0]} and {paths[1]} have no benchmark in common '
                      f'({", ".join(only[0])} against {", ".join(only[1])})')  # fmt: skip
  pairs = [
    pair_up(*key, first[key], second[key], allow_partial=allow_partial, **settings) for key in keys
  ]
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
  parser = command_line.Parser(
    'compare',
    'Two models on the same items: paired intervals of B minus A, by language too, and which are '
    'real.',
    'crossin compare runs/base/eval runs/x2x/eval --names base,x2x --output_dir compared',
  )
  parser.add_argument('a', help='--output_dir of `crossin evaluate`, or a file of predictions')
  parser.add_argument('b', help='the other one; differences are B minus A')
  parser.add_argument(
    '--names', help='of both, as base,x2x (default: the variants of results.json)'
  )
  parser.add_argument('--output_dir', help='for compare.html and compare.json')
  parser.add_argument(
    '--protocol',
    choices=extraction.PROTOCOLS,
    default='strict',
    help='how options are read (default: strict)',
  )
  parser.add_argument(
    '--first_line',
    '--first-line',
    action='store_true',
    help='cut predictions at their first newline (few-shot runs)',
  )
  parser.add_argument(
    '--flips', type=int, default=60, help='changed items listed of each benchmark'
  )
  parser.add_argument('--examples', type=int, default=2, help='items shown in every language')
  parser.add_argument('--resamples', type=int, default=2000, help='of the bootstrap')
  parser.add_argument(
    '--allow-partial', '--allow_partial', action='store_true', help='compare what both sides have'
  )
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
    from crossin_jax.evaluation.comparison import page as compare_page

    command = 'crossin compare ' + ' '.join(sys.argv[2:] if argv is None else argv)
    with mirror.written(options.output_dir) as files:
      text = json.dumps(found, ensure_ascii=False, indent=1)
      write_text(os.path.join(files.path, 'compare.json'), f'{text}\n')
      compare_page.write(
        os.path.join(files.path, 'compare.html'), found, pairs, options.examples, command
      )
    print(f'{os.path.join(options.output_dir, "compare.html")}', file=sys.stderr)
  return command_line.finish(options, found)
