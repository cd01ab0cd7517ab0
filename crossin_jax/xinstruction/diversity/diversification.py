"""Selects instructions: clusters them, then takes equally many from each cluster, the best first.

The instructions of one language are embedded, clustered by mini-batch k-means and taken in equal
quotas (docs/design/methods.md#b-5-diversification, docs/design/methods.md#c-18). Plain k-means
spends most clusters on frequent topics, so equal quotas can reach fewer topics than a random
choice; `Diversification.balance` corrects this.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import hashlib
import math
import unicodedata
import warnings

import numpy as np

from crossin_jax import config
from crossin_jax.xinstruction.diversity import embeddings

MOST_CLUSTERS, ROWS_PER_CLUSTER = 1000, 32
_NEIGHBOURS = 2000  # random points from which a density is estimated
_BATCH = 16_384


@config.configurable(commands=())
@dataclass(frozen=True)
class Diversification:
  """Settings of the clustering of instructions.

  Attributes:
    clusters: number of clusters; None = one for every 32 distinct instructions, from 1 to 1,000.
    batch_size: instructions in a step of mini-batch k-means.
    starts: random initialisations of k-means that are tried on a part of the data; the best one is
      used.
    balance: weight of an instruction = its density to the power -balance. 1 = topics count alike;
      0 = plain k-means, instructions count alike.
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
    """Number of clusters for this many distinct instructions, at most one for each."""
    if self.clusters is None:
      return max(1, min(MOST_CLUSTERS, distinct // ROWS_PER_CLUSTER))
    return max(1, min(self.clusters, distinct))


def normalised(instruction: str) -> str:
  """Removes differences of case, spaces and surrounding punctuation.

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

  The clusters have equal quotas; what a small cluster lacks is distributed over the others. Within
  a cluster the higher score comes first, and equal scores are ordered by a hash. A second row with
  the same instruction (see `normalised`) is taken only after all distinct instructions. The result
  does not depend on the order of the rows or the number of cores.

  Args:
    rows: {"instruction", "output", "score"}; a missing score counts as the lowest.
    wanted: number of rows to choose.
    settings: None = `Diversification()`, from gin.
    vectors: float [rows, D] to cluster; None = `embeddings.embed` of the normalised instructions.

  Returns:
    (indices of the min(wanted, rows) chosen rows, ascending; cluster of each row, 0 = the one with
    most instructions).

  Raises:
    ValueError: a row without an instruction, a score that is not a number, or a wrong number of
      vectors.
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
  rank = np.empty(len(rows), np.int64)  # position in the order of the hashes
  rank[sorted(range(len(rows)), key=identities.__getitem__)] = np.arange(len(rows))
  distinct, first, inverse = np.unique(
    np.array(texts, object), return_index=True, return_inverse=True
  )
  if vectors is None:
    points = embeddings.embed(distinct.tolist())
  else:
    # Of several rows with one instruction, the one with the smallest hash provides the vector.
    for i in np.argsort(-rank):
      first[inverse[i]] = i
    points = np.asarray(vectors, np.float32)[first]
  labels = cluster(points, settings.clusters_of(len(distinct)), settings)[inverse]
  return np.flatnonzero(_selected(labels, inverse, scores, rank, min(wanted, len(rows)))), labels


def _selected(labels, inverse, scores, rank, wanted: int) -> np.ndarray:
  """bool [rows]: the rows within the quotas of their clusters."""
  best = np.lexsort((rank, -scores))
  repeats = np.empty(len(rank), np.int64)  # 0 = the best row with its instruction, 1 = the second
  repeats[best] = _occurrence(inverse[best])
  queue = np.lexsort((rank, -scores, repeats))
  sizes = np.bincount(labels)
  counts = np.bincount(labels[repeats == 0], minlength=len(sizes))
  next_best = _next_best(labels, queue)
  # First all distinct instructions, then repeated ones.
  quotas = _quotas(np.zeros_like(counts), counts, min(wanted, int(counts.sum())), next_best)
  quotas = _quotas(quotas, sizes, wanted, next_best)
  within = np.empty(len(rank), np.int64)
  within[queue] = _occurrence(labels[queue])
  return within < quotas[labels]


def cluster(
  points: np.ndarray, clusters: int, settings: Diversification | None = None
) -> np.ndarray:
  """Mini-batch k-means of vectors [N, D].

  Returns:
    The label of each vector, int [N]; 0 is the largest cluster, and empty clusters get no label.
  """
  settings = settings or Diversification()
  clusters = min(clusters, len(points))
  if clusters <= 1:
    return np.zeros(len(points), np.int64)
  kmeans = embeddings.sklearn('sklearn.cluster').MiniBatchKMeans(
    clusters, batch_size=settings.batch_size, n_init=settings.starts, random_state=settings.seed,
    compute_labels=False,
  )  # fmt: skip
  with embeddings.single_thread(), warnings.catch_warnings():
    # scikit-learn warns when there are fewer distinct points than clusters, which is legal here.
    warnings.simplefilter('ignore')
    kmeans.fit(points, sample_weight=_density(points, settings.seed) ** -settings.balance)
    labels = _in_batches(kmeans.predict, points)
  labels, first, inverse, sizes = np.unique(
    labels, return_index=True, return_inverse=True, return_counts=True
  )
  number = np.empty(len(labels), np.int64)
  number[np.lexsort((first, -sizes))] = np.arange(len(labels))
  return number[inverse]


def _in_batches(function, points: np.ndarray) -> np.ndarray:
  return np.concatenate([function(points[i : i + _BATCH]) for i in range(0, len(points), _BATCH)])


def _density(points: np.ndarray, seed: int) -> np.ndarray:
  """Density around each point: mean fourth power of its cosine with a sample of the points.

  Returns:
    float32 [N] with mean 1.
  """
  others = points
  if len(points) > _NEIGHBOURS:
    others = points[np.random.default_rng(seed).choice(len(points), _NEIGHBOURS, replace=False)]
  near = lambda batch: (np.maximum(batch @ others.T, 0) ** 4).mean(1)
  density = _in_batches(near, points) + 1 / len(others)
  return density / density.mean()


@dataclass(frozen=True)
class Spread:
  """A measure of a choice, against random choices of the same size.

  Attributes:
    chosen: of the choice.
    random, sd: mean and standard deviation over the seeds.
    randoms: of each seed.
    above: share of the seeds that the choice beats.
  """

  chosen: float
  random: float
  sd: float
  randoms: list[float]
  above: float


@dataclass(frozen=True)
class Coverage:
  """How widely a choice of rows is spread; see `coverage`.

  Attributes:
    rows, chosen: numbers.
    method: of the embedding.
    clusters, plain_clusters: numbers of clusters, balanced and by plain k-means.
    mean_distance: cosine, 0..2, over all pairs.
  """

  rows: int
  chosen: int
  method: str
  clusters: int
  plain_clusters: int
  clusters_hit: Spread
  plain_clusters_hit: Spread
  mean_distance: Spread


def coverage(
  instructions: Sequence[str],
  chosen: Sequence[int],
  *,
  method: str = 'characters',
  vectors: np.ndarray | None = None,
  clusters: int | None = None,
  seeds: Sequence[int] = tuple(range(10)),
) -> Coverage:
  """Compares the spread of a choice with random choices of the same size.

  The embedding is not the one that was used for choosing. It is clustered twice: with
  `Diversification.balance` 1, where clusters represent topics, and by plain k-means, where they
  represent rows. A choice that balances topics hits fewer plain clusters than a random choice.

  Args:
    instructions: of all rows.
    chosen: indices of the chosen rows.
    method: of `embeddings.embed`.
    vectors: float [rows, D] of unit length to measure in; None = `embeddings.embed` of the
      normalised instructions by `method`.
    clusters: None = as many as were chosen, at most 1,000 and one for every 4 distinct
      instructions.
    seeds: of the random choices.
  """
  texts = [normalised(text) for text in instructions]
  chosen = np.asarray(chosen, np.int64)
  vectors = embeddings.embed(texts, method=method) if vectors is None else vectors
  distinct, first, inverse = np.unique(
    np.array(texts, object), return_index=True, return_inverse=True
  )
  clusters = clusters or max(1, min(MOST_CLUSTERS, len(chosen), len(distinct) // 4))

  def partition(balance):
    if not texts:
      return np.zeros(0, np.int64)
    return cluster(vectors[first], clusters, Diversification(balance=balance))[inverse]

  labels, plain = partition(1.0), partition(0.0)
  # In this order, random choices do not depend on the order of the rows.
  canonical = np.argsort(inverse, kind='stable')
  draw = lambda seed: np.random.default_rng(seed).choice(len(texts), len(chosen), replace=False)
  draws = [canonical[draw(seed)] for seed in seeds]

  def spread(measure):
    value, others = float(measure(chosen)), [float(measure(rows)) for rows in draws]
    return Spread(
      value,
      random=float(np.mean(others)),
      sd=float(np.std(others, ddof=1)) if len(others) > 1 else 0.0,
      randoms=others,
      above=float(np.mean([value > other for other in others])),
    )

  return Coverage(
    rows=len(texts),
    chosen=len(chosen),
    method=method,
    clusters=int(labels.max(initial=-1)) + 1,
    plain_clusters=int(plain.max(initial=-1)) + 1,
    clusters_hit=spread(lambda rows: len(np.unique(labels[rows]))),
    plain_clusters_hit=spread(lambda rows: len(np.unique(plain[rows]))),
    mean_distance=spread(lambda rows: _mean_distance(vectors[rows])),
  )


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
  """A hash of the content of a row."""
  fields = ('id', 'instruction', 'output', 'language', 'source')
  text = '\x1f'.join([str(seed), *(str(row.get(field, '')) for field in fields)])
  return hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=16).digest()


def _occurrence(values: np.ndarray) -> np.ndarray:
  """Number of earlier occurrences of each value: [4, 4, 7, 4] -> [0, 1, 0, 2]."""
  order = np.argsort(values, kind='stable')
  ordered = values[order]
  starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]][: len(values)])
  counts = np.empty(len(values), np.int64)
  counts[order] = np.arange(len(values)) - np.repeat(starts, np.diff(np.r_[starts, len(values)]))
  return counts


def _next_best(labels: np.ndarray, queue: np.ndarray):
  """A function (clusters, rows taken of each) -> queue position of the next row of each cluster."""
  order = queue[np.argsort(labels[queue], kind='stable')]
  starts = np.r_[0, np.cumsum(np.bincount(labels))]
  position = np.empty(len(queue), np.int64)
  position[queue] = np.arange(len(queue))
  return lambda clusters, taken: position[order[starts[clusters] + taken]]


def _quotas(quotas: np.ndarray, sizes: np.ndarray, wanted: int, next_best) -> np.ndarray:
  """Raises the quotas in equal shares until their sum is `wanted`, limited by the cluster sizes.

  quotas [0, 0, 0], sizes [10, 1, 4], 9 wanted -> [4, 1, 4]: the second cluster has only 1 row, so
  its other 2 go to the first and the third.
  """
  quotas = quotas.copy()
  while (left := wanted - int(quotas.sum())) > 0:
    open_ = np.flatnonzero(quotas < sizes)
    if share := left // len(open_):
      quotas[open_] += np.minimum(share, sizes[open_] - quotas[open_])
    else:  # fewer rows than clusters: the clusters with the best next rows get them
      quotas[open_[np.argsort(next_best(open_, quotas[open_]))[:left]]] += 1
  return quotas


def _mean_distance(vectors: np.ndarray) -> float:
  """Mean cosine distance over all pairs; 0 for fewer than two vectors."""
  n = len(vectors)
  if n < 2:
    return 0.0
  wide = vectors.astype(np.float64)
  total = wide.sum(0)
  return float(1 - (total @ total - (wide * wide).sum()) / (n * (n - 1)))
