"""What an instruction set is like: lengths beside the published ones, what is asked for, topics,
rounds, fidelity, overlap.

Rows are read once and not kept: what a figure needs of them is. Samples are those with the least
hash, so they depend on the seed and the rows, not on their order.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
import hashlib
import heapq
import math
import os
import re

import numpy as np

from crossin_jax import language_id
from crossin_jax.evaluation.contamination import contamination, text_fields
from crossin_jax.evaluation.contamination.text_fields import Field
from crossin_jax.evaluation.responses import measure
from crossin_jax.languages import ENGLISH_NAMES, code_of
from crossin_jax.storage.records import RecordError, read_records
from crossin_jax.xinstruction.diversity import diversification, embeddings
from crossin_jax.xinstruction.statistics import verbs

# Characters of the 32,000 X-Instruction samples of each language, (mean, sd) of the instructions
# and of the responses, as the authors give them in their repository (ZNLP/X-Instruction; METHODS
# B.2).
PUBLISHED = {
    'fi': ((100.7, 81.1), (1026.9, 552.8)), 'id': ((101.0, 86.0), (1008.9, 542.1)),
    'th': ((102.4, 85.0), (987.5, 545.0)),
    'tr': ((103.7, 87.5), (1057.9, 534.1)), 'vi': ((101.0, 86.0), (1120.4, 561.1)),
    'bn': ((111.9, 87.2), (1243.4, 518.7)),
    'hi': ((96.6, 79.9), (1284.9, 506.2)), 'sw': ((100.0, 85.3), (1210.6, 524.0)),
    'ta': ((99.0, 84.8), (1259.0, 497.8)),
    'ur': ((107.6, 87.4), (1246.9, 508.8)),
}  # fmt: skip
PUBLISHED_SOURCE = 'ZNLP/X-Instruction (arXiv 2405.19744)'
TOPICS = 8  # groups of the cluster map: as many as there are colours
SCORE_BINS = 20  # of a histogram over the levels 1 to 3
_WORD = re.compile(r"[^\W\d_]{3,}(?:'[a-z]+)?")


@dataclass
class _Sample:
  """The rows with the least hashes of a stream."""

  size: int
  seed: int
  heap: list = field(default_factory=list)  # (-hash, number, row), the greatest hash first
  seen: int = 0

  def add(self, digest: bytes, row) -> None:
    self.seen += 1
    key = -int.from_bytes(digest, 'big')
    if len(self.heap) < self.size:
      heapq.heappush(self.heap, (key, self.seen, row))
    elif self.heap and key > self.heap[0][0]:
      heapq.heapreplace(self.heap, (key, self.seen, row))

  def rows(self) -> list:
    return [row for _, _, row in sorted(self.heap, key=lambda item: (-item[0], item[1]))]


class _Lengths:
  """Mean, standard deviation, median and ends of many lengths."""

  def __init__(self):
    self.counts: Counter[int] = Counter()

  def summary(self) -> dict | None:
    if not self.counts:
      return None
    values = np.array(sorted(self.counts))
    weights = np.array([self.counts[value] for value in values.tolist()])
    mean = float(np.average(values, weights=weights))
    variance = float(np.average((values - mean) ** 2, weights=weights))
    median = values[np.searchsorted(np.cumsum(weights), (weights.sum() + 1) // 2)]
    return {
      'mean': mean,
      'sd': math.sqrt(variance),
      'median': int(median),
      'min': int(values[0]),
      'max': int(values[-1]),
    }


class _Tally:
  """What is counted of one language."""

  def __init__(self, code: str, seed: int, fidelity_rows: int, map_rows: int, samples: int):
    self.code, self.seed, self.rows = code, seed, 0
    self.lengths = {'instruction': _Lengths(), 'output': _Lengths()}
    self.sources: Counter[str] = Counter()
    self.distinct: set[bytes] = set()
    self.kinds: Counter[str] = Counter()
    self.verbs: Counter[tuple[str, str]] = Counter()
    self.scores = np.zeros(SCORE_BINS, np.int64)
    self.scored, self.score_sum, self.clusters = 0, 0.0, set()
    self.responses = _Sample(fidelity_rows, seed)
    self.instructions = _Sample(map_rows, seed)
    self.shown = _Sample(samples, seed)

  def add(self, row: Mapping, where: str) -> None:
    instruction, output = (_text(row, name, where) for name in ('instruction', 'output'))
    self.rows += 1
    self.lengths['instruction'].counts[len(instruction)] += 1
    self.lengths['output'].counts[len(output)] += 1
    self.sources[str(row.get('source') or '')] += 1
    self.distinct.add(_digest('', diversification.normalised(instruction)))
    kind = verbs.kind(instruction)
    self.kinds[kind] += 1
    if kind == 'verb':
      self.verbs[verbs.verb_and_object(instruction)] += 1
    if (score := _score(row, where)) is not None:
      self.scored, self.score_sum = self.scored + 1, self.score_sum + score
      self.scores[min(SCORE_BINS - 1, max(0, int((score - 1) / 2 * SCORE_BINS)))] += 1
    if row.get('cluster') is not None:
      self.clusters.add(row['cluster'])
    digest = _digest(str(self.seed), instruction, output)
    self.responses.add(digest, output)
    self.instructions.add(digest, instruction)
    self.shown.add(digest, {'instruction': instruction, 'output': output, 'score': score})

  def summary(self) -> dict:
    published = PUBLISHED.get(self.code)
    return {
      'rows': self.rows,
      'distinct_instructions': len(self.distinct),
      'instruction': self.lengths['instruction'].summary(),
      'output': self.lengths['output'].summary(),
      'published': published
      and {
        name: dict(zip(('mean', 'sd'), pair))
        for name, pair in zip(('instruction', 'output'), published)
      },
      'sources': dict(self.sources.most_common()),
      'kinds': {name: self.kinds[name] for name in ('verb', 'question', 'other')},
      'clusters': len(self.clusters) or None,
      'score': {'mean': self.score_sum / self.scored, 'rows': self.scored} if self.scored else None,
      **_responses(self.code, self.responses.rows()),
    }


def statistics(
  rows_by_language: Mapping[str, str | os.PathLike | Iterable[Mapping]],
  *,
  rounds: Mapping[str, Sequence[Mapping]] | None = None,
  benchmarks: Sequence[str | os.PathLike] = (),
  coverage: Mapping[str, Mapping] | None = None,
  seed: int = 0,
  samples: int = 3,
  fidelity_rows: int = 2000,
  map_points: int = 3000,
) -> dict:
  """Everything that the page shows, ready for JSON.

  Args:
    rows_by_language: code or name of a language -> its rows {"instruction" (English), "output",
      "source", "score"}, or a file of them (JSON Lines or a JSON list, .gz too). "source", "score"
      and "cluster" may be absent.
    rounds: language -> [{"round": 1, "candidates": n, "kept": n, "score_histogram": counts over
      equal parts of 1..3, or {"edges": [...], "counts": [...]}}]; the histogram may be absent.
    benchmarks: files that are looked for in the rows, see `crossin contamination`.
    coverage: language -> what `diversification.coverage` returned.
    seed: of all samples and of the cluster map.
    samples: rows shown of each language.
    fidelity_rows: responses of each language whose language is told; a millisecond each.
    map_points: instructions in the cluster map, over all languages.

  Returns:
    See the keys below; shares are fractions 0..1, lengths are characters.

  Raises:
    ValueError: a malformed row (file, line and field), an unreadable benchmark, a round without its
      counts.
  """
  sets = {_code(language): rows for language, rows in rows_by_language.items()}
  if len(sets) < len(rows_by_language):
    raise ValueError(f'a language is given twice: {", ".join(rows_by_language)}')
  if not sets:
    raise ValueError('there is no language to measure; give rows for one at least')
  per_language = -(-map_points // len(sets))
  tallies = {code: _Tally(code, seed, fidelity_rows, per_language, samples) for code in sets}
  streams = [(code, _fields(tallies[code], rows)) for code, rows in sets.items()]
  overlap = _overlap(benchmarks, streams)
  by_language = {code: tally.summary() for code, tally in tallies.items()}
  instructions = [
    (code, text) for code, tally in tallies.items() for text in tally.instructions.rows()
  ][:map_points]
  return {
    'rows': sum(tally.rows for tally in tallies.values()),
    'seed': seed,
    'by_language': by_language,
    'published_source': PUBLISHED_SOURCE,
    'verbs': _verbs(tallies.values()),
    'map': _map(instructions, seed),
    'rounds': {
      _code(language): _rounds(_code(language), own) for language, own in (rounds or {}).items()
    },
    'scores': {
      code: _histogram(tally.scores.tolist(), code)
      for code, tally in tallies.items()
      if tally.scored
    },
    'coverage': {_code(language): dict(own) for language, own in (coverage or {}).items()},
    'overlap': overlap,
    'samples': {code: tally.shown.rows() for code, tally in tallies.items()},
  }


# ---- rows ----


def _fields(tally: _Tally, rows) -> Iterator[Field]:
  """Counts the rows and yields their texts, for the benchmarks to be looked for."""
  if isinstance(rows, (str, os.PathLike)):
    located = read_records(rows)
  else:
    located = ((f'rows of {tally.code}, row {number}', row) for number, row in enumerate(rows, 1))
  for number, (where, row) in enumerate(located, 1):
    if not isinstance(row, Mapping):
      raise RecordError(f'{where}: expected an object, found {type(row).__name__}')
    tally.add(row, where)
    yield Field(f'row {number}', tally.code, 'instruction', row['instruction'])
    yield Field(f'row {number}', tally.code, 'output', row['output'])


def _text(row: Mapping, name: str, where: str) -> str:
  value = row.get(name)
  if not isinstance(value, str):
    found = 'is missing' if name not in row else f'is a {type(value).__name__}, it must be a text'
    raise RecordError(
      f'{where}: field "{name}" {found}; X-Instruction rows have "instruction" and "output"'
    )
  return value


def _score(row: Mapping, where: str) -> float | None:
  value = row.get('score')
  if value is None:
    return None
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
    raise RecordError(
      f'{where}: field "score" is {value!r}, it must be a number from 1 to 3, or absent'
    )
  return float(value)


def _code(language: str) -> str:
  """The code of a known language; any other name as it is."""
  return (
    code_of(language)
    if language.lower() in {*ENGLISH_NAMES, *map(str.lower, ENGLISH_NAMES.values())}
    else language
  )


def _digest(*parts: str) -> bytes:
  return hashlib.blake2b(
    '\x1f'.join(parts).encode('utf-8', 'surrogatepass'), digest_size=8
  ).digest()


# ---- figures ----


def _responses(code: str, texts: Sequence[str]) -> dict:
  """Fidelity and repetition of the sampled responses."""
  if not texts:
    return {'fidelity': None, 'repetition': None}
  repeated = np.array([measure.duplicated_share(text) for text in texts])
  repetition = {
    'mean': float(repeated.mean()),
    'share': float((repeated > measure.REPETITIVE).mean()),
  }
  if code not in language_id.CANDIDATES:
    return {'fidelity': None, 'repetition': repetition}
  found = Counter(measure.language_of(text) for text in texts)
  test = embeddings.sklearn('scipy.stats').binomtest(found[code], len(texts))
  low, high = test.proportion_ci(method='wilson')
  others = {name or 'none': count for name, count in found.most_common() if name != code}
  fidelity = {
    'share': found[code] / len(texts), 'low': float(low), 'high': float(high), 'rows': len(texts),
    'others': others,
  }  # fmt: skip
  return {'fidelity': fidelity, 'repetition': repetition}


def _verbs(tallies: Iterable[_Tally], top: int = 20, objects: int = 5) -> dict:
  pairs, kinds = Counter(), Counter()
  for tally in tallies:
    pairs.update(tally.verbs)
    kinds.update(tally.kinds)
  counts: Counter[str] = Counter()
  of_verb: dict[str, Counter[str]] = {}
  for (verb, noun), count in pairs.items():
    counts[verb] += count
    if noun:
      of_verb.setdefault(verb, Counter())[noun] += count
  ranked = lambda counter, n: sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:n]
  return {
    'kinds': {name: kinds[name] for name in ('verb', 'question', 'other')},
    'top': [
      {
        'verb': verb,
        'count': count,
        'objects': [list(pair) for pair in ranked(of_verb.get(verb, {}), objects)],
      }
      for verb, count in ranked(counts, top)
    ],
  }


def _map(instructions: Sequence[tuple[str, str]], seed: int) -> dict | None:
  """Instructions in two dimensions, with the groups that they form and the words that tell a group
  from the rest.
  """
  texts = [diversification.normalised(text) for _, text in instructions]
  if len(set(texts)) < 3:
    return None
  vectors = embeddings.embed(texts, method='tfidf', seed=seed).astype(np.float64)
  settings = diversification.Diversification(clusters=TOPICS, seed=seed, starts=10)
  labels = diversification.cluster(vectors, min(TOPICS, len(set(texts))), settings)
  centred = vectors - vectors.mean(0)
  with embeddings.single_thread():
    values, directions = np.linalg.eigh(centred.T @ centred)
  axes = directions[:, ::-1][:, :2]
  # a sign that does not depend on the library
  axes *= np.where(axes[np.abs(axes).argmax(0), [0, 1]] < 0, -1, 1)
  plane = centred @ axes
  words = [set(_WORD.findall(text)) for text in texts]
  everywhere = Counter(word for own in words for word in own)
  groups = []
  for group in range(labels.max() + 1):
    own = np.flatnonzero(labels == group)
    here = Counter(word for i in own for word in words[i])
    groups.append({'size': len(own), 'words': _typical(here, len(own), everywhere, len(texts))})
  return {
    'method': 'TF-IDF of words, truncated SVD, two main directions',
    'explained': [float(value) for value in values[::-1][:2] / max(values.sum(), 1e-12)],
    'groups': groups,
    'points': [
      [round(float(x), 3), round(float(y), 3), int(label), code]
      for (x, y), label, (code, _) in zip(plane, labels, instructions)
    ],
  }


def _typical(
  here: Counter, size: int, everywhere: Counter, total: int, count: int = 5
) -> list[str]:
  """Words that stand in many texts of a group and in few of the others."""
  stop = embeddings.sklearn('sklearn.feature_extraction.text').ENGLISH_STOP_WORDS
  weight = {
    word: n / size * math.log((n / size) / (everywhere[word] / total))
    for word, n in here.items()
    if word not in stop
  }
  return [
    word
    for word, value in sorted(weight.items(), key=lambda item: (-item[1], item[0]))[:count]
    if value > 0
  ]


def _rounds(language: str, rounds: Sequence[Mapping]) -> list[dict]:
  found = []
  for number, one in enumerate(rounds, 1):
    where = f'round {one.get("round", number)} of {language}'
    candidates, kept = (one.get(name) for name in ('candidates', 'kept'))
    if not isinstance(candidates, int) or not isinstance(kept, int) or not 0 <= kept <= candidates:
      raise ValueError(
        f'{where}: "candidates" = {candidates!r} and "kept" = {kept!r} must be counts, the second '
        'no larger'
      )
    found.append({
      'round': one.get('round', number),
      'candidates': candidates,
      'kept': kept,
      'share': kept / candidates if candidates else None,
      'histogram': _histogram(one.get('score_histogram'), where),
    })  # fmt: skip
  return found


def _histogram(value, where: str) -> dict | None:
  """{'edges', 'counts'} of counts over equal parts of the levels 1 to 3, or of what has both
  already.
  """
  if value is None:
    return None
  if not isinstance(value, Mapping):
    value = {'edges': np.linspace(1, 3, len(value) + 1).round(6).tolist(), 'counts': value}
  edges, counts = list(value.get('edges', ())), list(value.get('counts', ()))
  if not counts or len(edges) != len(counts) + 1:
    raise ValueError(
      f'{where}: a score histogram has n counts and n + 1 edges, found {len(counts)} and '
      f'{len(edges)}'
    )
  return {'edges': edges, 'counts': counts}


def _overlap(benchmarks: Sequence, streams: Sequence[tuple[str, Iterator[Field]]]) -> dict | None:
  """Reads all rows; with benchmarks, looks for their texts on the way."""
  if not benchmarks:
    for _, fields in streams:
      for _ in fields:
        pass
    return None
  named = [
    (os.path.basename(path), text_fields.benchmark_fields(os.fspath(path))) for path in benchmarks
  ]
  looked_for = contamination.Benchmarks(named)
  contamination.search_all(looked_for, streams)
  rows, matches = looked_for.summary()
  return {
    'n': looked_for.n,
    'benchmarks': rows,
    'matches': matches[:20],
    'matches_found': len(matches),
  }
