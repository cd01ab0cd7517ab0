"""`crossin compare`: two models on the same items, and which differences are real.

Every difference is B minus A and paired: both models answered the same items. For a benchmark with
several prompts, figures are means over the common prompts, and intervals cover items and prompts.
"""

from collections.abc import Sequence
import os
from pathlib import Path
import re
import sys

from crossin_jax.evaluation import results
from crossin_jax.evaluation.answers import open_answers
from crossin_jax.evaluation.comparison import flags
from crossin_jax.evaluation.comparison.differences import (
  LEVEL,
  Comparisons,
  compare_pair,
  sentences,
)
from crossin_jax.evaluation.comparison.pairs import Pair, pair_up, prediction_files
from crossin_jax.storage import mirror, remote
from crossin_jax.storage.files import write_json
from crossin_jax.storage.records import RecordError
from crossin_jax.workflow import command_line


def _names(paths: tuple[str, str], given: str | None) -> tuple[str, str]:
  """Names of A and B: given, or the variants of results.json, or parts of the paths."""
  if given:
    names = [name.strip() for name in given.split(',')]
    if len(names) != 2 or not all(names) or names[0] == names[1]:
      raise ValueError(f'--names {given!r}: give two different names, as base,tuned')
    return names[0], names[1]
  files = [os.path.join(path, 'results.json') for path in paths]
  variants = [
    {run['variant'] for run in results.read_results(file)} if os.path.isfile(file) else set()
    for file in files
  ]
  if all(len(names) == 1 for names in variants) and variants[0] != variants[1]:
    return variants[0].pop(), variants[1].pop()
  parts = [reversed(Path(os.path.abspath(path)).parts) for path in paths]
  for pair in zip(*parts):
    if pair[0] != pair[1]:
      first, second = (re.sub(r'\.jsonl?(\.gz)?$', '', part) for part in pair)
      return (first, second) if first != second else ('A', 'B')
  return 'A', 'B'


def _download(path: str) -> str:
  """Local path of the results; of a remote directory, downloads only what is compared."""
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
  flips: int = 0,
  **settings,
) -> tuple[Comparisons, list[Pair]]:
  """Compares two results directories or two files; also returns the pairs of its `comparisons`.

  Args:
    paths, names: of A and B.
    allow_partial: compare only what both have.
    resamples: of the bootstrap.
    flips: changed items to list per benchmark.
    **settings: `protocol` and `first_line` of the extraction.
  """
  first, second = (prediction_files(path) for path in paths)
  if not any(os.path.isdir(path) for path in paths) and first.keys() != second.keys():
    # two files are to be compared, whatever their names are
    second = {next(iter(first)): next(iter(second.values()))}
  keys = [key for key in first if key in second]
  only_a, only_b = (
    [f'{name} by {method}' for name, method in one if (name, method) not in other]
    for one, other in ((first, second), (second, first))
  )
  if not keys:
    raise RecordError(
      f'{paths[0]} and {paths[1]} have no benchmark in common ({", ".join(only_a)} against '
      f'{", ".join(only_b)})'
    )
  protocol = settings.get('protocol', 'strict')
  readers = {reader for name, _ in keys for reader in open_answers.readers(name)}
  if protocol not in readers and protocol != 'strict':
    raise ValueError(
      f'--protocol {protocol} reads the answers of none of {", ".join(dict(keys))}; choose one of '
      f'{", ".join(sorted(readers))}'
    )
  pairs = [
    pair_up(*key, first[key], second[key], allow_partial=allow_partial, **settings) for key in keys
  ]
  result = Comparisons(
    *names,
    protocol,
    LEVEL,
    resamples,
    only_a,
    only_b,
    [compare_pair(pair, names, resamples, flips) for pair in pairs],
  )
  return result, pairs


def main(argv: Sequence[str] | None = None) -> int:
  """`crossin compare`."""
  options = flags.parser().parse_args(argv)
  paths = _download(options.a), _download(options.b)
  result, pairs = compare(
    paths,
    _names(paths, options.names),
    allow_partial=options.allow_partial,
    resamples=options.resamples,
    flips=options.flips,
    protocol=options.protocol,
    first_line=options.first_line,
  )
  print('\n'.join(sentences(result)))
  if options.output_dir:
    from crossin_jax.evaluation.comparison import page as compare_page

    command = 'crossin compare ' + ' '.join(sys.argv[2:] if argv is None else argv)
    with mirror.written(options.output_dir) as files:
      write_json(os.path.join(files.path, 'compare.json'), result.as_json())
      path = os.path.join(files.path, 'compare.html')
      compare_page.write(path, result, pairs, options.examples, command)
    print(os.path.join(options.output_dir, 'compare.html'))
  return command_line.finish(options, result.as_json())
