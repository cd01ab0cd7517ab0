"""`crossin contamination`: benchmark texts that also occur in training data, by language.

The comparison is by the words of `word_windows`. With n = 13 (GPT-3's rule, arXiv
2005.14165, appendix C) a benchmark text matches

  * from 13 words on, if it shares any 13 consecutive words with a training text;
  * from 8 to 12 words, if a training text contains all of it;
  * from 4 to 7 words, if it equals a field or a line of a training row;
  * below 4 words, never: 'Paris' is in every corpus.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
import os
import sys
import time

import numpy as np

from crossin_jax.evaluation.contamination import flags, text_fields
from crossin_jax.evaluation.contamination.text_fields import Field
from crossin_jax.evaluation.contamination.word_windows import (
  WORD,
  Windows,
  joined,
  weight_of,
  words,
)
from crossin_jax.pages.words import shortened
from crossin_jax.storage.files import write_json, write_jsonl
from crossin_jax.storage.records import RecordError
from crossin_jax.workflow import command_line

KINDS = ('same', 'contained', 'n-gram')  # the strongest evidence first
LEAST_WORDS = 4  # of a text that is searched for
COMPLETE = (8, 13)  # share of n words from which a training text must contain a shorter text
_BATCH = 1 << 16  # characters of training text per search


def _rank(match: dict) -> tuple[int, float]:
  """Sort key: the strongest evidence first."""
  return KINDS.index(match['kind']), -match['covered']


@dataclass
class _Text:
  """A distinct text of the benchmarks."""

  words: tuple[str, ...]  # normalised
  owners: dict[tuple[int, str], None] = field(default_factory=dict)  # (item, name of the field)
  windows: int = 0  # number of n-grams; 0 = a training text must contain all of it
  rows: int = 0  # number of matching training rows
  matches: list[dict] = field(default_factory=list)  # the strongest, as in matches.jsonl
  best: str = ''  # the strongest kind


@dataclass(frozen=True)
class Training:
  """The training data that was searched: names, and numbers of rows and words."""

  sources: list[str]
  rows: int
  words: int


class Benchmarks:
  """An index of benchmark texts.

  Attributes:
    n: words of an n-gram.
    items: (benchmark, ID, language) of each item.
    texts: distinct texts with the items that have them.
  """

  def __init__(
    self, files: Iterable[tuple[str, Iterable[Field]]], n: int = 13, rows_shown: int = 3
  ):
    """Reads and indexes the texts; raises RecordError if none is long enough.

    Args:
      files: (name of the benchmark, its fields).
      n: words of an n-gram. Texts of n * 8 / 13 to n words must be contained completely.
      rows_shown: training rows kept per text.
    """
    if n < 2:
      raise ValueError(f'n = {n}: an n-gram has at least two words')
    self.n, self.rows_shown = n, rows_shown
    items: dict[tuple[str, str, str], int] = {}
    texts: dict[tuple[str, ...], _Text] = {}
    for benchmark, fields in files:
      for one in fields:
        item = items.setdefault((benchmark, one.item, one.language), len(items))
        tokens = tuple(words(one.text))
        if sum(map(weight_of, tokens)) < min(LEAST_WORDS, n) * WORD:
          continue
        texts.setdefault(tokens, _Text(tokens)).owners[item, one.name] = None
    self.items, self.texts = list(items), list(texts.values())
    if not self.texts:
      raise RecordError(
        f'the benchmarks hold no text of {LEAST_WORDS} words or more; there is nothing to search '
        'for'
      )
    self._index(n)

  def _index(self, n: int) -> None:
    self._same: dict[str, list[int]] = {}
    full, part = {}, {}  # hash -> (text, position of the window)
    full_weight, part_weight = n * WORD, -(-n * WORD * COMPLETE[0] // COMPLETE[1])
    for t, text in enumerate(self.texts):
      self._same.setdefault(''.join(text.words), []).append(t)
      windows = Windows(text.words, np.zeros(len(text.words), np.int64))
      starts, _, hashes = windows.of(full_weight)
      text.windows = len(starts)
      for start, key in zip(starts.tolist(), hashes.tolist()):
        full.setdefault(key, []).append((t, start))
      if not text.windows:
        starts, _, hashes = windows.of(part_weight)
        if len(starts):
          part.setdefault(int(hashes[0]), []).append((t, 0))
    self._tables = [
      (weight, positions, np.array(sorted(positions), np.uint64))
      for weight, positions in ((full_weight, full), (part_weight, part))
      if positions
    ]

  def search(self, source: str, fields: Iterable[Field]) -> Iterator[int]:
    """Searches a stream of training fields in batches of 64 KiB; yields their numbers of words."""
    batch, size = [], 0
    for one in fields:
      batch.append(one)
      size += len(one.text)
      if size >= _BATCH:
        yield self._search_batch(source, batch)
        batch, size = [], 0
    if batch:
      yield self._search_batch(source, batch)

  def _search_batch(self, source: str, batch: list[Field]) -> int:
    tokens, text_of = [], []
    same: dict[int, set[int]] = {}  # field -> texts
    for i, one in enumerate(batch):
      field_tokens = words(one.text)
      tokens += field_tokens
      text_of += [i] * len(field_tokens)
      lines = one.text.split('\n')
      for candidate in [field_tokens, *(map(words, lines) if len(lines) > 1 else ())]:
        if texts := self._same.get(''.join(candidate)):
          same.setdefault(i, set()).update(texts)
    for i, texts in same.items():
      for t in texts:
        self._add(t, 'same', source, batch[i], joined(self.texts[t].words), 1.0)
    if tokens:
      windows = Windows(tokens, np.array(text_of, np.int64))
      for weight, positions, table in self._tables:
        shared = self._shared(tokens, text_of, windows.of(weight), positions, table)
        for (i, t), runs in shared.items():
          if t not in same.get(i, ()):
            self._add_shared(t, source, batch[i], runs)
    return len(tokens)

  def _shared(self, tokens, text_of, windows, positions, table) -> dict:
    """(field, text) -> {position in the text: length of the shared run}."""
    starts, ends, hashes = windows
    nearest = np.minimum(np.searchsorted(table, hashes), len(table) - 1)
    hit = table[nearest] == hashes
    shared: dict[tuple[int, int], dict[int, int]] = {}
    for start, end, key in zip(starts[hit].tolist(), ends[hit].tolist(), hashes[hit].tolist()):
      for t, position in positions[key]:
        text = self.texts[t]
        length = end - start if text.windows else len(text.words)
        if text_of[min(start + length, len(text_of)) - 1] != text_of[start]:
          continue
        if tuple(tokens[start : start + length]) == text.words[position : position + length]:
          shared.setdefault((text_of[start], t), {})[position] = length
    return shared

  def _add_shared(self, t: int, source: str, row: Field, runs: dict[int, int]) -> None:
    text = self.texts[t]
    covered = np.zeros(len(text.words) + 2, np.int8)  # with a gap at both ends
    for position, length in runs.items():
      covered[position + 1 : position + 1 + length] = 1
    edges = np.flatnonzero(np.diff(covered))
    start, end = max(zip(edges[::2], edges[1::2]), key=lambda run: run[1] - run[0])
    share = float(covered[1:-1].mean())
    kind = 'contained' if share == 1.0 else 'n-gram'
    self._add(t, kind, source, row, joined(text.words[start:end]), share)

  def _add(self, t: int, kind: str, source: str, row: Field, shared: str, covered: float) -> None:
    text = self.texts[t]
    text.rows += 1
    text.best = min(text.best or kind, kind, key=KINDS.index)
    match = {'kind': kind, 'covered': covered, 'rows': 0, 'source': source, 'row': row.item}
    text.matches.append(match | {'training_field': row.name, 'text': shared})
    text.matches.sort(key=_rank)
    del text.matches[self.rows_shown :]

  def summary(self) -> tuple[list[dict], list[dict]]:
    """Counts by benchmark and language, and the matches.

    Returns:
      Rows {'benchmark', 'language', 'items', 'found', 'share', 'same', 'contained', 'n-gram',
      'fields': {name: items}}, where an item counts under the strongest kind of its texts; and
      matches {'benchmark', 'item', 'language', 'field', 'kind', 'covered', 'rows', 'source', 'row',
      'training_field', 'text'}.
    """
    best, matches, fields = {}, [], {}
    for text in self.texts:
      for item, name in text.owners if text.best else ():
        best[item] = min(best.get(item, text.best), text.best, key=KINDS.index)
        fields[item, name] = None
        benchmark, id_, language = self.items[item]
        owner = {'benchmark': benchmark, 'item': id_, 'language': language, 'field': name}
        matches += [owner | match | {'rows': text.rows} for match in text.matches]
    rows: dict[tuple[str, str], dict] = {}
    for item, (benchmark, _, language) in enumerate(self.items):
      empty = {'benchmark': benchmark, 'language': language, 'items': 0, 'found': 0, 'share': 0.0}
      empty |= dict.fromkeys(KINDS, 0) | {'fields': Counter()}
      row = rows.setdefault((benchmark, language), empty)
      row['items'] += 1
      if item in best:
        row['found'] += 1
        row[best[item]] += 1
      row['share'] = row['found'] / row['items']
    for item, name in fields:
      rows[self.items[item][::2]]['fields'][name] += 1
    return list(rows.values()), matches


# ---- training data ----


def mixture_fields(data_dir: str, name: str) -> Iterator[tuple[str, Iterator[Field]]]:
  """(task, its examples) of a mixture from `crossin prepare`, as decoded prompt and response."""
  from crossin_jax.data.prepared import PreparedMixture
  from crossin_jax.data.vocabulary import Vocabulary

  mixture = PreparedMixture(data_dir, name)
  described = mixture.description['vocabulary']
  vocabulary = Vocabulary(mixture.vocabulary_path, described['bos_token'], described['eos_token'])

  def examples(task) -> Iterator[Field]:
    language = task.info.get('target_language') or text_fields.UNKNOWN
    for index in range(task.examples):
      text = vocabulary.decode(task.split.example(index)[0])
      yield Field(task.split.id(index), language, 'example', text)

  for task in mixture.tasks:
    yield task.split.name, examples(task)


def search_all(benchmarks: Benchmarks, sources: Iterable[tuple[str, Iterable[Field]]]) -> Training:
  """Searches all training data as a stream."""
  names, rows, read = [], 0, 0
  started = reported = time.monotonic()

  def counted(fields: Iterable[Field]) -> Iterator[Field]:
    nonlocal rows
    last = None
    for one in fields:
      if one.item != last:
        rows, last = rows + 1, one.item
      yield one

  for name, fields in sources:
    names.append(name)
    for count in benchmarks.search(name, counted(fields)):
      read += count
      if (now := time.monotonic()) - reported > 10:
        reported = now
        rate = rows / (now - started)
        print(f'{name}: {rows:,} rows, {read:,} words, {rate:,.0f} rows/s', file=sys.stderr)
  return Training(names, rows, read)


# ---- the command ----


def main(argv: Sequence[str] | None = None) -> int:
  """`crossin contamination`."""
  parser = flags.parser()
  options = parser.parse_args(argv)
  prepared = bool(options.mixture)
  if bool(options.mixture_rows) == prepared or prepared != bool(options.data_dir):
    parser.error('give the training data as --mixture_rows FILE..., or as --data_dir D --mixture M')
  for path in [*options.mixture_rows, *options.benchmark]:
    if not os.path.isfile(path):
      raise RecordError(f'{path} is not a file')
  fields = [
    (os.path.basename(path), text_fields.benchmark_fields(path)) for path in options.benchmark
  ]
  benchmarks = Benchmarks(fields, options.n, options.rows_shown)
  if prepared:
    sources = mixture_fields(options.data_dir, options.mixture)
  else:
    sources = (
      (os.path.basename(path), text_fields.training_fields(path)) for path in options.mixture_rows
    )
  training = search_all(benchmarks, sources)
  rows, matches = benchmarks.summary()
  report = {
    'n': options.n,
    'training': asdict(training),
    'benchmarks': rows,
    'matches': len(matches),
  }
  print('\n'.join(_lines(report, matches, options.shown)))
  if options.output_dir:
    write_json(os.path.join(options.output_dir, 'contamination.json'), report)
    write_jsonl(os.path.join(options.output_dir, 'matches.jsonl'), matches)
  return command_line.finish(options, report)


def _lines(report: dict, matches: list[dict], shown: int) -> list[str]:
  """The table and the first matches for the terminal."""
  training = report['training']
  width = max(len(row['benchmark']) for row in report['benchmarks'])
  lines = [
    f'{training["rows"]:,} training rows, {training["words"]:,} words, from '
    f'{", ".join(training["sources"])}',
    f'{"benchmark":<{width}}  {"language":<10}{"items":>7}{"found":>7}{"share":>9}{"same":>7}'
    f'{"contained":>11}{"n-gram":>8}  in fields',
  ]
  for row in report['benchmarks']:
    fields = ', '.join(f'{name} {count}' for name, count in row['fields'].items())
    lines.append(
      f'{row["benchmark"]:<{width}}  {row["language"]:<10}{row["items"]:>7}{row["found"]:>7}'
      f'{100 * row["share"]:>7.1f} %{row["same"]:>7}{row["contained"]:>11}{row["n-gram"]:>8}  '
      f'{fields}'
    )
  for match in sorted(matches, key=_rank)[:shown]:
    lines.append(
      f'{match["benchmark"]} {match["item"]} ({match["language"]}, {match["field"]}), '
      f'{match["kind"]}, in {match["source"]} {match["row"]} ({match["training_field"]}): '
      f'{shortened(match["text"], 110)}'
    )
  if len(matches) > shown:
    lines.append(
      f'... and {len(matches) - shown:,} more matches; --output_dir writes them all to '
      'matches.jsonl'
    )
  return lines
