"""Statistics of an instruction set: lengths, requests, topics, rounds, fidelity and overlap.

The rows are read once and not kept in memory. Samples are the rows with the smallest hashes, so
they depend on the seed and the rows but not on the order of the rows.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
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
from crossin_jax.languages import code_of
from crossin_jax.storage.records import RecordError, read_records
from crossin_jax.xinstruction.diversity import diversification, embeddings
from crossin_jax.xinstruction.statistics import verbs

# Characters of the 32,000 published X-Instruction samples of each language: (mean, sd) of the
# instructions and of the responses (docs/design/methods.md#b-2-languages-and-data).
PUBLISHED = {
    'fi': ((100.7, 81.1), (1026.9, 552.8)), 'id': ((101.0, 86.0), (1008.9, 542.1)),
    'th': ((102.4, 85.0), (987.5, 545.0)), 'tr': ((103.7, 87.5), (1057.9, 534.1)),
    'vi': ((101.0, 86.0), (1120.4, 561.1)), 'bn': ((111.9, 87.2), (1243.4, 518.7)),
    'hi': ((96.6, 79.9), (1284.9, 506.2)), 'sw': ((100.0, 85.3), (1210.6, 524.0)),
    'ta': ((99.0, 84.8), (1259.0, 497.8)), 'ur': ((107.6, 87.4), (1246.9, 508.8)),
}  # fmt: skip
PUBLISHED_SOURCE = 'ZNLP/X-Instruction (arXiv 2405.19744)'
TOPICS = 8  # groups of the cluster map, one for each colour
SCORE_BINS = 20  # of a histogram over the levels 1 to 3
_KINDS = ('verb', 'question', 'other')
_SIDES = ('instruction', 'output')
_WORD = re.compile(r"[^\W\d_]{3,}(?:'[a-z]+)?")


class _Sample:
  """The rows of a stream with the smallest hashes."""

  def __init__(self, size: int):
    self._size, self._count, self._heap = size, 0, []  # (-hash, number, row), largest hash first

  def add(self, digest: bytes, row) -> None:
    self._count += 1
    entry = (-int.from_bytes(digest, 'big'), self._count, row)
    if len(self._heap) < self._size:
      heapq.heappush(self._heap, entry)
    elif self._heap and entry[0] > self._heap[0][0]:
      heapq.heapreplace(self._heap, entry)

  def rows(self) -> list:
    return [row for _, _, row in sorted(self._heap, key=lambda entry: (-entry[0], entry[1]))]


def _length_summary(counts: Counter[int]) -> dict | None:
  """Mean, standard deviation, median, minimum and maximum of lengths."""
  if not counts:
    return None
  values = np.array(sorted(counts))
  weights = np.array([counts[value] for value in values.tolist()])
  mean = float(np.average(values, weights=weights))
  variance = float(np.average((values - mean) ** 2, weights=weights))
  median = values[np.searchsorted(np.cumsum(weights), (weights.sum() + 1) // 2)]
  return {
    'mean': mean, 'sd': math.sqrt(variance), 'median': int(median), 'min': int(values[0]),
    'max': int(values[-1]),
  }  # fmt: skip


class _Tally:
  """Counts and samples of one language."""

  def __init__(self, code: str, seed: int, fidelity_rows: int, map_rows: int, samples: int):
    self.code, self.seed, self.rows = code, seed, 0
    self.lengths = {side: Counter() for side in _SIDES}
    self.sources: Counter[str] = Counter()
    self.distinct: set[bytes] = set()
    self.kinds: Counter[str] = Counter()
    self.verbs: Counter[tuple[str, str]] = Counter()
    self.scores = np.zeros(SCORE_BINS, np.int64)
    self.scored, self.score_sum, self.clusters = 0, 0.0, set()
    self.responses, self.instructions = _Sample(fidelity_rows), _Sample(map_rows)
    self.shown = _Sample(samples)

  def add(self, row: Mapping, where: str) -> None:
    instruction, output = (_text(row, name, where) for name in _SIDES)
    self.rows += 1
    self.lengths['instruction'][len(instruction)] += 1
    self.lengths['output'][len(output)] += 1
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
      **{side: _length_summary(counts) for side, counts in self.lengths.items()},
      'published': published
      and {side: dict(zip(('mean', 'sd'), pair)) for side, pair in zip(_SIDES, published)},
      'sources': dict(self.sources.most_common()),
      'kinds': {name: self.kinds[name] for name in _KINDS},
      'clusters': len(self.clusters) or None,
      'score': {'mean': self.score_sum / self.scored, 'rows': self.scored} if self.scored else None,
      **_responses(self.code, self.responses.rows()),
    }


def statistics(
  rows_by_language: Mapping[str, str | os.PathLike | Iterable[Mapping]],
  *,
  rounds: Mapping[str, Sequence[Mapping]] | None = None,
  benchmarks: Sequence[str | os.PathLike] = (),
  coverage: Mapping[str, diversification.Coverage] | None = None,
  seed: int = 0,
  samples: int = 3,
  fidelity_rows: int = 2000,
  map_points: int = 3000,
) -> dict:
  """Computes the figures of the statistics page, ready for JSON.

  Args:
    rows_by_language: code or name of a language -> its rows {"instruction" (English), "output",
      "source", "score", "cluster"}, or a JSON Lines or JSON list file of them (.gz too). The last
      three fields are optional.
    rounds: language -> [{"round": 1, "candidates": n, "kept": n, "score_histogram": counts over
      equal parts of 1..3, or {"edges": [...], "counts": [...]}}]; the histogram is optional.
    benchmarks: files whose texts are searched in the rows, see `crossin contamination`.
    coverage: language -> a result of `diversification.coverage`.
    seed: of all samples and of the cluster map.
    samples: rows shown for each language.
    fidelity_rows: responses of each language whose language is identified, about 1 ms each.
    map_points: instructions in the cluster map, over all languages.

  Returns:
    The keys below. Shares are fractions 0..1, lengths are characters.

  Raises:
    ValueError: a malformed row (file, line and field), an unreadable benchmark, or a round without
      counts.
  """
  sets = {_code(language): rows for language, rows in rows_by_language.items()}
  if len(sets) < len(rows_by_language):
    raise ValueError(f'a language is given twice: {", ".join(rows_by_language)}')
  if not sets:
    raise ValueError('there is no language to measure; give the rows of at least one')
  per_language = -(-map_points // len(sets))
  tallies = {code: _Tally(code, seed, fidelity_rows, per_language, samples) for code in sets}
  overlap = _overlap(benchmarks, [(code, _fields(tallies[code], sets[code])) for code in sets])
  instructions = [(c, text) for c, tally in tallies.items() for text in tally.instructions.rows()]
  by_code = lambda mapping: (
    (_code(language), value) for language, value in (mapping or {}).items()
  )
  return {
    'rows': sum(tally.rows for tally in tallies.values()),
    'seed': seed,
    'by_language': {code: tally.summary() for code, tally in tallies.items()},
    'published_source': PUBLISHED_SOURCE,
    'verbs': _verbs(tallies.values()),
    'map': _map(instructions[:map_points], seed),
    'rounds': {code: _rounds(code, value) for code, value in by_code(rounds)},
    'scores': {c: _histogram(t.scores.tolist(), c) for c, t in tallies.items() if t.scored},
    'coverage': {code: dataclasses.asdict(value) for code, value in by_code(coverage)},
    'overlap': overlap,
    'samples': {code: tally.shown.rows() for code, tally in tallies.items()},
  }


# ---- rows ----


def _fields(tally: _Tally, rows) -> Iterator[Field]:
  """Counts the rows and yields their texts, in which the benchmarks are searched."""
  if isinstance(rows, (str, os.PathLike)):
    located = read_records(rows)
  else:
    located = ((f'rows of {tally.code}, row {number}', row) for number, row in enumerate(rows, 1))
  for number, (where, row) in enumerate(located, 1):
    if not isinstance(row, Mapping):
      raise RecordError(f'{where}: expected an object, found {type(row).__name__}')
    tally.add(row, where)
    for side in _SIDES:
      yield Field(f'row {number}', tally.code, side, row[side])


def _text(row: Mapping, name: str, where: str) -> str:
  value = row.get(name)
  if not isinstance(value, str):
    problem = 'is missing' if name not in row else f'is a {type(value).__name__}, it must be a text'
    raise RecordError(
      f'{where}: field "{name}" {problem}; X-Instruction rows have "instruction" and "output"'
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
  """The code of a known language; any other name unchanged."""
  try:
    return code_of(language)
  except ValueError:
    return language


def _digest(*parts: str) -> bytes:
  content = '\x1f'.join(parts).encode('utf-8', 'surrogatepass')
  return hashlib.blake2b(content, digest_size=8).digest()


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
  counts = Counter(measure.language_of(text) for text in texts)
  test = embeddings.sklearn('scipy.stats').binomtest(counts[code], len(texts))
  low, high = test.proportion_ci(method='wilson')
  fidelity = {
    'share': counts[code] / len(texts), 'low': float(low), 'high': float(high), 'rows': len(texts),
    'others': {name or 'none': count for name, count in counts.most_common() if name != code},
  }  # fmt: skip
  return {'fidelity': fidelity, 'repetition': repetition}


def _ranked(counts: Mapping, n: int) -> list[tuple]:
  return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:n]


def _verbs(tallies: Iterable[_Tally], top: int = 20, objects: int = 5) -> dict:
  pairs, kinds, counts = Counter(), Counter(), Counter()
  for tally in tallies:
    pairs.update(tally.verbs)
    kinds.update(tally.kinds)
  objects_of: dict[str, Counter[str]] = {}
  for (verb, noun), count in pairs.items():
    counts[verb] += count
    if noun:
      objects_of.setdefault(verb, Counter())[noun] += count
  nouns = lambda verb: [list(pair) for pair in _ranked(objects_of.get(verb, {}), objects)]
  return {
    'kinds': {name: kinds[name] for name in _KINDS},
    'top': [
      {'verb': verb, 'count': count, 'objects': nouns(verb)} for verb, count in _ranked(counts, top)
    ],
  }


def _map(instructions: Sequence[tuple[str, str]], seed: int) -> dict | None:
  """Instructions in two dimensions, their clusters, and the typical words of each cluster."""
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
  # This fixes the sign, which differs between libraries.
  axes *= np.where(axes[np.abs(axes).argmax(0), [0, 1]] < 0, -1, 1)
  words = [set(_WORD.findall(text)) for text in texts]
  totals, groups = Counter(word for group in words for word in group), []
  for group in range(labels.max() + 1):
    members = np.flatnonzero(labels == group)
    counts = Counter(word for i in members for word in words[i])
    typical = _typical(counts, len(members), totals, len(texts))
    groups.append({'size': len(members), 'words': typical})
  return {
    'method': 'TF-IDF of words, truncated SVD, two main directions',
    'explained': [float(value) for value in values[::-1][:2] / max(values.sum(), 1e-12)],
    'groups': groups,
    'points': [
      [round(float(x), 3), round(float(y), 3), int(label), code]
      for (x, y), label, (code, _) in zip(centred @ axes, labels, instructions)
    ],
  }


def _typical(counts: Counter, size: int, totals: Counter, total: int, n: int = 5) -> list[str]:
  """Words that are frequent in the texts of a cluster and rare in the other texts."""
  stop = embeddings.sklearn('sklearn.feature_extraction.text').ENGLISH_STOP_WORDS
  weight = {
    word: count / size * math.log((count / size) / (totals[word] / total))
    for word, count in counts.items()
    if word not in stop
  }
  return [word for word, value in _ranked(weight, n) if value > 0]


def _rounds(language: str, rounds: Sequence[Mapping]) -> list[dict]:
  checked = []
  for number, one in enumerate(rounds, 1):
    where = f'round {one.get("round", number)} of {language}'
    candidates, kept = (one.get(name) for name in ('candidates', 'kept'))
    if not isinstance(candidates, int) or not isinstance(kept, int) or not 0 <= kept <= candidates:
      raise ValueError(
        f'{where}: "candidates" = {candidates!r} and "kept" = {kept!r} must be counts, the second '
        'no larger'
      )
    checked.append({
      'round': one.get('round', number), 'candidates': candidates, 'kept': kept,
      'share': kept / candidates if candidates else None,
      'histogram': _histogram(one.get('score_histogram'), where),
    })  # fmt: skip
  return checked


def _histogram(value, where: str) -> dict | None:
  """{'edges', 'counts'}; counts alone are over equal parts of the levels 1 to 3."""
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
  """Reads all rows and searches them for the texts of the benchmarks, if there are any."""
  if not benchmarks:
    for _, fields in streams:
      for _ in fields:
        pass
    return None
  searched = contamination.Benchmarks(
    [(os.path.basename(path), text_fields.benchmark_fields(os.fspath(path))) for path in benchmarks]
  )
  contamination.search_all(searched, streams)
  rows, matches = searched.summary()
  return {
    'n': searched.n, 'benchmarks': rows, 'matches': matches[:20], 'matches_found': len(matches),
  }  # fmt: skip
