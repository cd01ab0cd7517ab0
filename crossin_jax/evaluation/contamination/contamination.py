"""`crossin contamination`: texts of a benchmark that stand in training data too, by language, with
the rows.

Texts are compared by their words: NFKC, lower case, without punctuation, apostrophes, direction
marks and spaces. Where words are not divided by spaces every character is a word of less weight:
two of Chinese or Japanese, four of Thai, Lao, Burmese or Khmer count as one. With n = 13 (GPT-3's
rule, arXiv 2005.14165, appendix C) a text of a benchmark is found

  * from 13 words on, by any 13 words in a row that it shares with a training text;
  * from 8 to 12 words, if all of it stands in a training text;
  * from 4 to 7 words, if a field or a line of a training row is that text and nothing else;
  * below, never: 'Paris' is in every corpus.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
import json
import os
import sys
import time

import numpy as np

from crossin_jax.evaluation.contamination import text_fields
from crossin_jax.evaluation.contamination.text_fields import Field
from crossin_jax.evaluation.contamination.word_windows import (
  WORD,
  Windows,
  joined,
  weight_of,
  words,
)
from crossin_jax.storage.files import write_json, write_text
from crossin_jax.storage.records import RecordError
from crossin_jax.workflow import command_line

KINDS = ('same', 'contained', 'n-gram')  # the most telling first
LEAST_WORDS = 4  # of a text that is looked for at all
WHOLE = (8, 13)  # of n words: the share from which all of a shorter text must be found
_BATCH = 1 << 16  # characters of training text that are looked up together


# ---- the benchmark ----


@dataclass
class Match:
  """A training row that holds a text of a benchmark.

  Attributes:
    kind: of `KINDS`. source, row, field: where in the training data.
    text: the shared words.
    covered: share of the benchmark's text that this row holds, 0..1.
  """

  kind: str
  source: str
  row: str
  field: str
  text: str
  covered: float


@dataclass
class _Text:
  """A distinct text of the benchmarks."""

  words: tuple[str, ...]
  owners: list[tuple[int, str]] = field(default_factory=list)  # (item, name of the field)
  windows: int = 0  # n-grams in it; 0 = all of it must be found
  rows: int = 0  # training rows that hold something of it
  matches: list[Match] = field(default_factory=list)  # the first few of them
  best: str = ''  # of KINDS


class Benchmarks:
  """Texts of benchmarks, ready to be looked for.

  Attributes:
    n: words of an n-gram.
    items: (benchmark, id, language) of each.
    texts: distinct texts with the items that they belong to.
  """

  def __init__(
    self, files: Iterable[tuple[str, Iterable[Field]]], n: int = 13, rows_shown: int = 3
  ):
    """Reads all.

    Args:
      files: (name of the benchmark, its fields).
      n: words of an n-gram; texts between n * 8 / 13 and n words must be found whole.
      rows_shown: training rows kept of each text.

    Raises:
      RecordError: there is no text that is long enough.
    """
    if n < 2:
      raise ValueError(f'n = {n}: an n-gram has at least two words')
    self.n, self.rows_shown = n, rows_shown
    self._full, self._part = n * WORD, -(-n * WORD * WHOLE[0] // WHOLE[1])
    self.items: list[tuple[str, str, str]] = []
    self.texts: list[_Text] = []
    numbers: dict[tuple, int] = {}
    known: dict[tuple[str, ...], _Text] = {}
    for benchmark, fields in files:
      for one in fields:
        key = (benchmark, one.item, one.language)
        item = numbers.setdefault(key, len(numbers))
        if item == len(self.items):
          self.items.append(key)
        found = tuple(words(one.text))
        if sum(map(weight_of, found)) < min(LEAST_WORDS, n) * WORD:
          continue
        if found not in known:
          known[found] = _Text(found)
          self.texts.append(known[found])
        if (item, one.name) not in known[found].owners:
          known[found].owners.append((item, one.name))
    if not self.texts:
      raise RecordError(
        f'the benchmarks hold no text of {LEAST_WORDS} words or more; nothing can be looked for'
      )
    self._index()

  def _index(self) -> None:
    self._same: dict[str, list[int]] = {}
    full, part = {}, {}
    for t, text in enumerate(self.texts):
      self._same.setdefault(''.join(text.words), []).append(t)
      windows = Windows(text.words, np.zeros(len(text.words), np.int64))
      starts, _, hashes = windows.of(self._full)
      text.windows = len(starts)
      for start, own in zip(starts.tolist(), hashes.tolist()):
        full.setdefault(own, []).append((t, start))
      if not text.windows:
        starts, _, hashes = windows.of(self._part)
        if len(starts):
          part.setdefault(int(hashes[0]), []).append((t, 0))
    self._tables = [
      (weight, places, np.array(sorted(places), np.uint64))
      for weight, places in ((self._full, full), (self._part, part))
    ]

  def look_for(self, source: str, fields: Iterable[Field]) -> Iterator[int]:
    """Looks through training fields; yields the number of words of each batch.

    Args:
      source: name of the training data, for the matches.
      fields: a stream; some 64 KiB of it are in memory at a time.
    """
    batch, size = [], 0
    for one in fields:
      batch.append(one)
      size += len(one.text)
      if size >= _BATCH:
        yield self._scan(source, batch)
        batch, size = [], 0
    if batch:
      yield self._scan(source, batch)

  def _scan(self, source: str, batch: list[Field]) -> int:
    """Looks through some fields; the number of their words."""
    tokens: list[str] = []
    text_of: list[int] = []
    same: dict[int, set[int]] = {}  # field -> texts
    for i, one in enumerate(batch):
      own = words(one.text)
      tokens += own
      text_of += [i] * len(own)
      lines = one.text.split('\n')
      for candidate in [own] if len(lines) == 1 else [own, *map(words, lines)]:
        if found := self._same.get(''.join(candidate)):
          same.setdefault(i, set()).update(found)
    for i, texts in same.items():
      for t in texts:
        self._add(t, 'same', source, batch[i], joined(self.texts[t].words), 1.0)
    if not tokens:
      return 0
    windows = Windows(tokens, np.array(text_of, np.int64))
    for weight, places, table in self._tables:
      if len(table):
        self._find(source, batch, tokens, text_of, windows.of(weight), places, table, same)
    return len(tokens)

  def _find(self, source, batch, tokens, text_of, found, places, table, same) -> None:
    starts, ends, hashes = found
    where = np.minimum(np.searchsorted(table, hashes), len(table) - 1)
    hit = table[where] == hashes
    shared: dict[
      tuple[int, int], dict[int, tuple[int, int]]
    ] = {}  # (field, text) -> place in the text -> run of tokens
    for start, end, own in zip(starts[hit].tolist(), ends[hit].tolist(), hashes[hit].tolist()):
      for t, place in places[own]:
        text = self.texts[t]
        length = len(text.words) if not text.windows else end - start
        if text_of[min(start + length, len(text_of)) - 1] != text_of[start]:
          continue
        if tuple(tokens[start : start + length]) == text.words[place : place + length]:
          shared.setdefault((text_of[start], t), {})[place] = (start, start + length)
    for (i, t), runs in shared.items():
      if t in same.get(i, ()):
        continue
      text = self.texts[t]
      covered = np.zeros(len(text.words), bool)
      for place, (start, end) in runs.items():
        covered[place : place + end - start] = True
      kind = 'contained' if covered.all() else 'n-gram'
      edges = np.flatnonzero(np.diff(np.concatenate([[0], covered.view(np.int8), [0]])))
      longest = max(zip(edges[::2], edges[1::2]), key=lambda run: run[1] - run[0])
      self._add(
        t,
        kind,
        source,
        batch[i],
        joined(text.words[longest[0] : longest[1]]),
        float(covered.mean()),
      )

  def _add(self, t: int, kind: str, source: str, row: Field, shared: str, covered: float) -> None:
    text = self.texts[t]
    text.rows += 1
    text.best = min(text.best or kind, kind, key=KINDS.index)
    text.matches.append(Match(kind, source, row.item, row.name, shared, covered))
    text.matches.sort(key=lambda match: (KINDS.index(match.kind), -match.covered))
    del text.matches[self.rows_shown :]

  def summary(self) -> tuple[list[dict], list[dict]]:
    """What was found.

    Returns:
      Rows {'benchmark', 'language', 'items', 'found', 'share', 'same', 'contained', 'n-gram',
      'fields': {name: items}}: an item counts under the most telling kind of its texts; and the
      matches {'benchmark', 'item', 'language', 'field', 'kind', 'covered', 'rows', 'source', 'row',
      'training_field', 'text'}.
    """
    best: dict[int, str] = {}
    fields: dict[tuple[int, str], None] = {}
    matches = []
    for text in self.texts:
      for item, name in text.owners if text.best else ():
        best[item] = min(best.get(item, text.best), text.best, key=KINDS.index)
        fields[item, name] = None
        benchmark, id_, language = self.items[item]
        matches += [
          {
            'benchmark': benchmark, 'item': id_, 'language': language, 'field': name,
            'kind': match.kind,
            'covered': match.covered, 'rows': text.rows, 'source': match.source, 'row': match.row,
            'training_field': match.field, 'text': match.text,
          }
          for match in text.matches
        ]  # fmt: skip
    rows: dict[tuple[str, str], dict] = {}
    for item, (benchmark, _, language) in enumerate(self.items):
      empty = {
        'benchmark': benchmark,
        'language': language,
        'items': 0,
        'found': 0,
        'share': 0.0,
        **dict.fromkeys(KINDS, 0),
        'fields': {},
      }
      row = rows.setdefault((benchmark, language), empty)
      row['items'] += 1
      if item in best:
        row['found'] += 1
        row[best[item]] += 1
      row['share'] = row['found'] / row['items']
    for item, name in fields:
      counts = rows[self.items[item][0], self.items[item][2]]['fields']
      counts[name] = counts.get(name, 0) + 1
    return list(rows.values()), matches


# ---- training data ----


def mixture_fields(data_dir: str, name: str) -> Iterator[tuple[str, Iterator[Field]]]:
  """(task, its examples as texts) of a mixture that `crossin prepare` wrote: what the tokens say,
  prompt and response.
  """
  from crossin_jax.data.prepared import PreparedMixture
  from crossin_jax.data.vocabulary import Vocabulary

  mixture = PreparedMixture(data_dir, name)
  described = mixture.description['vocabulary']
  vocabulary = Vocabulary(mixture.vocabulary_path, described['bos_token'], described['eos_token'])

  def examples(task) -> Iterator[Field]:
    language = task.info.get('target_language') or text_fields.UNKNOWN
    for index in range(task.examples):
      yield Field(
        task.split.id(index), language, 'example', vocabulary.decode(task.split.example(index)[0])
      )

  for task in mixture.tasks:
    yield task.split.name, examples(task)


def look_through(benchmarks: Benchmarks, sources: Iterable[tuple[str, Iterable[Field]]]) -> dict:
  """Streams all training data past the benchmarks. Returns {'sources', 'rows', 'words'}."""
  names, rows, read = [], 0, 0
  started = told = time.monotonic()

  def counted(fields: Iterable[Field]) -> Iterator[Field]:
    nonlocal rows
    last = None
    for one in fields:
      if one.item != last:
        rows, last = rows + 1, one.item
      yield one

  for name, fields in sources:
    names.append(name)
    for count in benchmarks.look_for(name, counted(fields)):
      read += count
      if (now := time.monotonic()) - told > 10:
        told = now
        print(
          f'{name}: {rows:,} rows, {read:,} words, {rows / (now - started):,.0f} rows/s',
          file=sys.stderr,
        )
  return {'sources': names, 'rows': rows, 'words': read}


# ---- the command ----


def main(argv: Sequence[str] | None = None) -> int:
  """`crossin contamination`. Exit status: 0 done (whatever was found), 1 failed, 2 usage."""
  parser = command_line.Parser(
    'contamination',
    'Texts of benchmarks that stand in training data too: n-grams and whole normalised texts, by '
    'language.',
    'crossin contamination --data_dir prepared --mixture alpaca.base_x2x.3000.en_zh_vi_es.default '
    '--benchmark cross_mmlu.json xquad.zh.json --output_dir overlap; or --mixture_rows rows.jsonl '
    'more.json instead of --data_dir and --mixture',
  )
  parser.add_argument(
    '--mixture_rows',
    nargs='+',
    default=[],
    metavar='FILE',
    help='training rows: JSON, JSONL, Parquet, CSV',
  )
  parser.add_argument('--data_dir', help='--output_dir of `crossin prepare`')
  parser.add_argument('--mixture', help='name of a mixture prepared there')
  parser.add_argument(
    '--benchmark',
    nargs='+',
    required=True,
    metavar='FILE',
    help='JSON, JSONL, SQuAD, CSV or TSV; .gz too',
  )
  parser.add_argument('--output_dir', help='for contamination.json and matches.jsonl')
  parser.add_argument('--n', type=int, default=13, help='words of an n-gram')
  parser.add_argument('--shown', type=int, default=10, help='matches shown here')
  parser.add_argument(
    '--rows_shown', type=int, default=3, help='training rows written of each text'
  )
  options = parser.parse_args(argv)
  if bool(options.mixture_rows) == bool(options.mixture) or bool(options.mixture) != bool(
    options.data_dir
  ):
    parser.error('give the training data as --mixture_rows FILE..., or as --data_dir D --mixture M')
  for path in [*options.mixture_rows, *options.benchmark]:
    if not os.path.isfile(path):
      raise RecordError(f'{path} is not a file')
  named = [
    (os.path.basename(path), text_fields.benchmark_fields(path)) for path in options.benchmark
  ]
  benchmarks = Benchmarks(named, options.n, options.rows_shown)
  if options.mixture:
    sources = mixture_fields(options.data_dir, options.mixture)
  else:
    sources = (
      (os.path.basename(path), text_fields.training_fields(path)) for path in options.mixture_rows
    )
  training = look_through(benchmarks, sources)
  rows, matches = benchmarks.summary()
  found = {'n': options.n, 'training': training, 'benchmarks': rows, 'matches': len(matches)}
  print('\n'.join(_lines(found, matches, options.shown)), file=sys.stderr)
  if options.output_dir:
    write_json(os.path.join(options.output_dir, 'contamination.json'), found)
    text = ''.join(json.dumps(match, ensure_ascii=False) + '\n' for match in matches)
    write_text(os.path.join(options.output_dir, 'matches.jsonl'), text)
  return command_line.finish(options, found)


def _lines(found: dict, matches: list[dict], shown: int) -> list[str]:
  training = found['training']
  lines = [
    f'{training["rows"]:,} training rows, {training["words"]:,} words, from '
    f'{", ".join(training["sources"])}'
  ]
  width = max(len(row['benchmark']) for row in found['benchmarks'])
  lines.append(
    f'{"benchmark":<{width}}  '
    f'{"language":<10}{"items":>7}{"found":>7}{"share":>9}{"same":>7}{"contained":>11}{"n-gram":>8}  in fields'
  )
  for row in found['benchmarks']:
    fields = ', '.join(f'{name} {count}' for name, count in row['fields'].items())
    lines.append(
      f'{row["benchmark"]:<{width}}  '
      f'{row["language"]:<10}{row["items"]:>7}{row["found"]:>7}{100 * row["share"]:>7.1f} %'
      f'{row["same"]:>7}{row["contained"]:>11}{row["n-gram"]:>8}  {fields}'
    )
  for match in sorted(matches, key=lambda match: (KINDS.index(match['kind']), -match['covered']))[
    :shown
  ]:
    text = match['text'] if len(match['text']) <= 110 else match['text'][:109] + '…'
    lines.append(f'{match["benchmark"]} {match["item"]} ({match["language"]}, {match["field"]}), '
                 f'{match["kind"]}, in {match["source"]} {match["row"]} '
                 f'({match["training_field"]}): {text}')  # fmt: skip
  if len(matches) > shown:
    lines.append(
      f'... and {len(matches) - shown:,} more matches; --output_dir writes them all to '
      'matches.jsonl'
    )
  return lines
