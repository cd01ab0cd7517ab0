"""Which instructions to keep: like ones are clustered, and every cluster gives equally many, its
best first.

METHODS B.5 and C18: instructions of one language are embedded, clustered by mini-batch k-means, and
taken in equal quota. Plain k-means spends most clusters on what is frequent and lumps the rest
together, so that equal quota may reach fewer topics than chance does; `Diversification.balance` is
what this project does about it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import hashlib
import math
import unicodedata

import numpy as np

from crossin_jax import config
from crossin_jax.xinstruction.diversity import embeddings

MOST_CLUSTERS, ROWS_PER_CLUSTER = 1000, 32
_NEIGHBOURS = 2000  # points at random that a density is estimated from
_BATCH = 16_384


@config.configurable(commands=())
@dataclass(frozen=True)
class Diversification:
  """How instructions are clustered.

  Attributes:
    clusters: number of clusters; None = a cluster for every 32 distinct instructions, at least 1
      and at most 1,000.
    batch_size: instructions in a step of mini-batch k-means.
    starts: random beginnings of k-means that are tried on a part of the data; the best goes on.
    balance: how far k-means is kept from spending its clusters on what is frequent: an instruction
      counts as its density to the power -balance. 1 = topics count alike, 0 = plain k-means,
      instructions count alike.
    seed: of k-means and of the order among equal scores.
  """

  clusters: int | None = None
  batch_size: int = 4096
  starts: int = 3
  balance: float = 1.0
  seed: int = 0

  def __post_init__(self):
    for name in ('clusters', 'batch_size', 'starts'):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f'Diversification.{name} = {value}: must be at least 1')
    if not 0 <= self.balance <= 1:
      raise ValueError(f'Diversification.balance = {self.balance}: must be from 0 to 1')

  def clusters_of(self, distinct: int) -> int:
    """Number of clusters for so many distinct instructions; never more than there are."""
    if self.clusters is None:
      return max(1, min(MOST_CLUSTERS, distinct // ROWS_PER_CLUSTER))
    return max(1, min(self.clusters, distinct))


def normalised(instruction: str) -> str:
  """What makes two instructions the same: letters and words, not case, spaces or the marks around
  them.

  '  Write a Poem! ' and 'write a poem' -> 'write a poem'
  """
  text = ' '.join(unicodedata.normalize('NFKC', instruction).casefold().split())
  first, last = 0, len(text)
  while first < last and not text[first].isalnum():
    first += 1
  while last > first and not text[last - 1].isalnum():
    last -= 1
  return text[first:last] or text


def diversify(
  rows: Sequence[Mapping],
  wanted: int,
  settings: Diversification | None = None,
  vectors: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Chooses rows of one language.

  The clusters give equally many; what a small one lacks is passed on to the others. Within a
  cluster the higher score comes first, equal scores in the order of a hash. A second row with the
  same instruction (see `normalised`) is taken only when all distinct instructions are. Neither the
  choice nor the clusters depend on the order of the rows or the number of cores.

  Args:
    rows: {"instruction", "output", "score"}; a missing score counts as the lowest.
    wanted: how many.
    settings: None = `Diversification()`, from gin.
    vectors: float [rows, D] to cluster; None = `embeddings.embed` of the normalised instructions.

  Returns:
    (indices of the chosen rows, ascending, min(wanted, rows) of them; cluster of each row, 0 = the
    one with most instructions).

  Raises:
    ValueError: a row without an instruction, a score that is no number, vectors of another number
      of rows.
  """
  settings = settings or Diversification()
  if wanted < 0:
    raise ValueError(f'wanted = {wanted}: must be at least 0')
  if vectors is not None and len(vectors) != len(rows):
    raise ValueError(f'{len(vectors)} vectors for {len(rows)} rows; there must be one for each')
  texts = [_instruction(row, i) for i, row in enumerate(rows)]
  scores = np.array([_score(row, i) for i, row in enumerate(rows)], np.float64)
  if not texts:
    return np.zeros(0, np.int64), np.zeros(0, np.int64)
  identities = [_identity(row, settings.seed) for row in rows]
  rank = np.empty(len(rows), np.int64)  # place in the order of hashes
  rank[sorted(range(len(rows)), key=identities.__getitem__)] = np.arange(len(rows))
  distinct, first, inverse = np.unique(
    np.array(texts, object), return_index=True, return_inverse=True
  )
  if vectors is None:
    points = embeddings.embed(distinct.tolist())
  else:
    # Which of several rows with one instruction lends its vector must not depend on their order
    # either.
    for i in np.argsort(-rank):
      first[inverse[i]] = i
    points = np.asarray(vectors, np.float32)[first]
  labels = cluster(points, settings.clusters_of(len(distinct)), settings)[inverse]

  best = np.lexsort((rank, -scores))
  repeat = _occurrence(inverse[best])  # 0 = the best row with its instruction, 1 = the second ...
  levels = np.empty(len(rows), np.int64)
  levels[best] = repeat
  # All distinct instructions first; only the rest of the quota is repeats.
  originals = levels == 0
  queue = np.lexsort((rank, -scores, levels))
  sizes = np.bincount(labels)
  counts = np.bincount(labels[originals], minlength=len(sizes))
  next_best = _next_best(labels, queue)
  quotas = _quotas(np.zeros_like(counts), counts, min(wanted, int(counts.sum())), next_best)
  quotas = _quotas(quotas, sizes, min(wanted, len(rows)), next_best)
  within = np.empty(len(rows), np.int64)
  within[queue] = _occurrence(labels[queue])
  return np.flatnonzero(within < quotas[labels]), labels


def cluster(
  points: np.ndarray, clusters: int, settings: Diversification | None = None
) -> np.ndarray:
  """Mini-batch k-means of vectors [N, D]: label of each, int [N]; 0 is the largest cluster. Empty
  clusters have no number.
  """
  settings = settings or Diversification()
  clusters = min(clusters, len(points))
  if clusters <= 1:
    return np.zeros(len(points), np.int64)
  import warnings

  kmeans = embeddings.sklearn('sklearn.cluster').MiniBatchKMeans(
    clusters,
    batch_size=settings.batch_size,
    n_init=settings.starts,
    random_state=settings.seed,
    compute_labels=False,
  )
  with embeddings.single_thread(), warnings.catch_warnings():
    # that fewer points than clusters are distinct, which is no fault
    warnings.simplefilter('ignore')
    kmeans.fit(points, sample_weight=_density(points, settings.seed) ** -settings.balance)
    labels = np.concatenate(
      [kmeans.predict(points[i : i + _BATCH]) for i in range(0, len(points), _BATCH)]
    )
  found, first, inverse, sizes = np.unique(
    labels, return_index=True, return_inverse=True, return_counts=True
  )
  number = np.empty(len(found), np.int64)
  number[np.lexsort((first, -sizes))] = np.arange(len(found))
  return number[inverse]


def _density(points: np.ndarray, seed: int) -> np.ndarray:
  """How much stands near each point, float32 [N], 1 on average: mean fourth power of its cosine
  with some of the others.
  """
  others = points
  if len(points) > _NEIGHBOURS:
    others = points[np.random.default_rng(seed).choice(len(points), _NEIGHBOURS, replace=False)]
  near = lambda batch: (np.maximum(batch @ others.T, 0) ** 4).mean(1)
  found = np.concatenate(
    [near(points[i : i + _BATCH]) for i in range(0, len(points), _BATCH)]
  ) + 1 / len(others)
  return found / found.mean()


def coverage(
  instructions: Sequence[str],
  chosen: Sequence[int],
  *,
  method: str = 'characters',
  vectors: np.ndarray | None = None,
  clusters: int | None = None,
  seeds: Sequence[int] = tuple(range(10)),
) -> dict:
  """How widely a choice is spread, against random choices of the same size.

  Measured in an embedding that was not used for choosing. Clusters are made there twice: with
  `Diversification.balance` 1, where they stand for topics, and by plain k-means, where they stand
  for rows: those hit say how much of what is frequent was kept, and a choice that evens out topics
  hits fewer of them than chance does.

  Args:
    instructions: of all rows.
    chosen: indices of the rows that were chosen.
    method: of `embeddings.embed`.
    vectors: float [rows, D] of unit length to measure in; None = `embeddings.embed` of the
      normalised instructions by `method`.
    clusters: None = as many as were chosen, at most 1,000 and one for every 4 distinct
      instructions.
    seeds: of the random choices.

  Returns:
    {'rows', 'chosen', 'method', 'clusters', 'clusters_hit': F, 'plain_clusters',
    'plain_clusters_hit': F, 'mean_distance': F}; F is {'chosen': x, 'random': mean over seeds,
    'sd': over seeds, 'randoms': [x of each seed], 'above': share of the seeds that the choice
    beats}. Distances are cosine, 0..2, means over all pairs.
  """
  texts = [normalised(text) for text in instructions]
  chosen = np.asarray(chosen, np.int64)
  vectors = embeddings.embed(texts, method=method) if vectors is None else vectors
  distinct, first, inverse = np.unique(
    np.array(texts, object), return_index=True, return_inverse=True
  )
  clusters = clusters or max(1, min(MOST_CLUSTERS, len(chosen), len(distinct) // 4))
  partition = lambda balance: cluster(vectors[first], clusters, Diversification(balance=balance))[
    inverse
  ]
  labels, plain = (partition(balance) if texts else np.zeros(0, np.int64) for balance in (1.0, 0.0))
  # random choices do not depend on the order of the rows
  canonical = np.argsort(inverse, kind='stable')
  measures = {
    'clusters_hit': lambda places: len(np.unique(labels[places])),
    'plain_clusters_hit': lambda places: len(np.unique(plain[places])),
    'mean_distance': lambda places: _mean_distance(vectors[places]),
  }
  draws = [
    canonical[np.random.default_rng(s).choice(len(texts), len(chosen), replace=False)]
    for s in seeds
  ]
  found = {
    'rows': len(texts),
    'chosen': len(chosen),
    'method': method,
    'clusters': int(labels.max(initial=-1)) + 1,
    'plain_clusters': int(plain.max(initial=-1)) + 1,
  }
  for name, measure in measures.items():
    own, others = float(measure(chosen)), [float(measure(draw)) for draw in draws]
    found[name] = {
      'chosen': own,
      'random': float(np.mean(others)),
      'sd': float(np.std(others, ddof=1)) if len(others) > 1 else 0.0,
      'randoms': others,
      'above': float(np.mean([own > other for other in others])),
    }
  return found


# ---- details ----


def _instruction(row: Mapping, i: int) -> str:
  value = row.get('instruction')
  if not isinstance(value, str):
    raise ValueError(f'row {i}: field "instruction" is {type(value).__name__}, it must be a text')
  return normalised(value)


def _score(row: Mapping, i: int) -> float:
  value = row.get('score')
  if value is None:
    return -math.inf
  if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
    raise ValueError(f'row {i}: field "score" is {value!r}, it must be a number, or absent')
  return -math.inf if math.isnan(value) else float(value)


def _identity(row: Mapping, seed: int) -> bytes:
  """A hash of what a row is, wherever it stands."""
  parts = [
    str(seed),
    *(str(row.get(field, '')) for field in ('id', 'instruction', 'output', 'language', 'source')),
  ]
  return hashlib.blake2b(
    '\x1f'.join(parts).encode('utf-8', 'surrogatepass'), digest_size=16
  ).digest()


def _occurrence(values: np.ndarray) -> np.ndarray:
  """How often each value stood before: [4, 4, 7, 4] -> [0, 1, 0, 2]."""
  order = np.argsort(values, kind='stable')
  ordered = values[order]
  starts = (
    np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(values) else np.zeros(0, int)
  )
  found = np.empty(len(values), np.int64)
  found[order] = np.arange(len(values)) - np.repeat(starts, np.diff(np.r_[starts, len(values)]))
  return found


def _next_best(labels: np.ndarray, queue: np.ndarray):
  """A function (clusters, rows taken of each) -> place in the queue of the next row of each, the
  lower the better.
  """
  order = queue[np.argsort(labels[queue], kind='stable')]
  starts = np.r_[0, np.cumsum(np.bincount(labels))]
  place = np.empty(len(queue), np.int64)
  place[queue] = np.arange(len(queue))
  return lambda clusters, taken: place[order[starts[clusters] + taken]]


def _quotas(quotas: np.ndarray, sizes: np.ndarray, wanted: int, next_best) -> np.ndarray:
  """Quotas raised to `wanted` together, by equal shares as far as each cluster has rows, in rounds.

  quotas [0, 0, 0], sizes [10, 1, 4], 9 wanted: 3 each; the second has 1, its 2 go to the others:
  [4, 1, 4].
  """
  quotas = quotas.copy()
  while (left := wanted - int(quotas.sum())) > 0:
    open_ = np.flatnonzero(quotas < sizes)
    if share := left // len(open_):
      quotas[open_] += np.minimum(share, sizes[open_] - quotas[open_])
    else:  # fewer rows than clusters: to those whose next row is the best
      quotas[open_[np.argsort(next_best(open_, quotas[open_]))[:left]]] += 1
  return quotas


def _mean_distance(vectors: np.ndarray) -> float:
  """Mean cosine distance of all pairs, without making the pairs; 0 where there is none."""
  n = len(vectors)
  if n < 2:
    return 0.0
  wide = vectors.astype(np.float64)
  total = wide.sum(0)
  return float(1 - (total @ total - (wide * wide).sum()) / (n * (n - 1)))
