"""Embeds English instructions as unit vectors.

Letters: N texts, D dimensions, B rows of a batch, L tokens, E width of the model.
"""

from collections.abc import Sequence
import functools
import hashlib

import numpy as np

from crossin_jax import config

METHODS = ('tfidf', 'characters', 'sentence-transformers:NAME_OR_PATH', 'model')
# columns that n-grams are hashed to: instructions have some 100,000 words, and more pairs of them
_FEATURES = 1 << 20
_FIT = 50_000  # texts that weights and directions are learned from; more change neither
_BATCH = 16_384  # texts turned into vectors together


@config.configurable(commands=())
def embed(
  texts: Sequence[str],
  method: str = 'tfidf',
  dimensions: int = 128,
  seed: int = 0,
  words: int = 1,
  checkpoint: str = '',
  model=None,
  max_tokens: int = 512,
) -> np.ndarray:
  """Unit vectors of texts.

  Equal texts have equal vectors, and the order of the texts does not matter; with 'tfidf',
  'characters' and 'model' the others do, because what is common to all counts for little.

  Args:
    texts: any; of tens of words each.
    method: 'tfidf': words, weighted by their rarity, in `dimensions` directions (truncated SVD);
      'characters': the same of 3- and 4-grams of characters, to measure with what was not used for
      clustering; 'sentence-transformers:NAME_OR_PATH': a model of that library (it downloads a
      NAME); 'model': mean of the last hidden states of a checkpoint's own model, less the mean over
      all texts.
    dimensions: D of 'tfidf' and 'characters'; the other methods have their model's width.
    seed: of the SVD.
    words: of 'tfidf': longest run of words that counts as one; 1 = words alone, 2 = pairs too.
      Pairs multiply the directions of frequent topics, and the SVD then leaves rare ones out.
    checkpoint: of 'model': a MODEL_DIR, one of its checkpoints, or a Hugging Face directory.
    model: of 'model': the model of that checkpoint.
    max_tokens: of 'model': a text is read as far as this.

  Returns:
    float32 [N, D]. A text without anything to go by (no word, no token) is all zeros.

  Raises:
    ValueError: an unknown method, a missing package or checkpoint.
  """
  for name, value in (('dimensions', dimensions), ('words', words), ('max_tokens', max_tokens)):
    if value < 1:
      raise ValueError(f'embed.{name} = {value}: must be at least 1')
  distinct = sorted(set(texts))
  place = {text: i for i, text in enumerate(distinct)}
  kind, _, name = method.partition(':')
  if not distinct:
    return np.zeros((0, dimensions), np.float32)
  if method == 'tfidf':
    vectors = _ngrams(
      distinct,
      dimensions,
      seed,
      analyzer='word',
      ngram_range=(1, words),
      token_pattern=r'(?u)\b\w+\b',
    )
  elif method == 'characters':
    vectors = _ngrams(distinct, dimensions, seed, analyzer='char_wb', ngram_range=(3, 4))
  elif kind == 'sentence-transformers' and name:
    vectors = _sentence_transformer(distinct, name)
  elif method == 'model':
    vectors = _of_checkpoint(distinct, checkpoint, model, max_tokens)
  else:
    raise ValueError(f'embed.method = {method!r}: must be one of {", ".join(METHODS)}')
  norms = np.linalg.norm(vectors, axis=1, keepdims=True)
  vectors = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 1e-9)
  return vectors[[place[text] for text in texts]]


def single_thread():
  """A context with one thread, so that results do not depend on the number of cores."""
  return sklearn('threadpoolctl').threadpool_limits(limits=1)


def sklearn(module: str):
  """A module of scikit-learn or of its dependencies, imported when first needed.

  Raises:
    ValueError: it is not installed.
  """
  import importlib

  try:
    return importlib.import_module(module)
  except ImportError:
    raise ValueError(
      'this step needs scikit-learn: pip install crossin-jax[xinstruction]'
    ) from None


# ---- n-grams ----


def _ngrams(distinct: list[str], dimensions: int, seed: int, **analysis) -> np.ndarray:
  """TF-IDF of n-grams in its main directions, float32 [N, D], not normalised.

  n-grams are hashed instead of numbered, so memory does not grow with the vocabulary.
  """
  text = sklearn('sklearn.feature_extraction.text')
  vectorizer = text.HashingVectorizer(
    n_features=_FEATURES,
    alternate_sign=False,
    norm=None,
    dtype=np.float32,
    decode_error='replace',
    **analysis,
  )
  sample = sorted(distinct, key=_digest)[:_FIT] if len(distinct) > _FIT else distinct
  counts = vectorizer.transform(sample)
  frequency = np.bincount(counts.indices, minlength=_FEATURES)
  # an n-gram that occurs once makes no texts similar
  kept = np.flatnonzero(frequency > (1 if len(sample) > 1000 else 0))
  vectors = np.zeros((len(distinct), dimensions), np.float32)
  if not len(kept):
    return vectors
  inverse = (np.log((1 + len(sample)) / (1 + frequency[kept])) + 1).astype(np.float32)

  def weighted(counts):
    counts = counts[:, kept]
    counts.data = np.log1p(counts.data)  # sublinear term frequency
    return sklearn('sklearn.preprocessing').normalize(counts.multiply(inverse).tocsr(), copy=False)

  rank = min(dimensions, len(sample), len(kept))
  if len(kept) == 1:  # too few for an SVD
    vectors[:, :1] = weighted(vectorizer.transform(distinct)).toarray()
    return vectors
  svd = sklearn('sklearn.decomposition').TruncatedSVD(rank, n_iter=4, random_state=seed)
  # For a single text, scikit-learn divides by a variance of 0.
  with single_thread(), np.errstate(invalid='ignore'):
    svd.fit(weighted(counts))
    for first in range(0, len(distinct), _BATCH):
      batch = weighted(vectorizer.transform(distinct[first : first + _BATCH]))
      vectors[first : first + _BATCH, :rank] = svd.transform(batch)
  return vectors


def _digest(text: str) -> bytes:
  return hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=8).digest()


# ---- models ----


def _sentence_transformer(distinct: list[str], name: str) -> np.ndarray:
  try:
    from sentence_transformers import SentenceTransformer
  except ImportError:
    raise ValueError(
      f'embed.method = "sentence-transformers:{name}" needs that library: pip install '
      'sentence-transformers; '
      'or use embed.method = "tfidf"'
    ) from None
  # Sorted by length for little padding, and independent of the order of the texts.
  order = sorted(range(len(distinct)), key=lambda i: (-len(distinct[i]), distinct[i]))
  encoded = SentenceTransformer(name).encode([distinct[i] for i in order], convert_to_numpy=True)
  vectors = np.empty((len(distinct), encoded.shape[1]), np.float32)
  vectors[order] = encoded
  return vectors


def _of_checkpoint(distinct: list[str], checkpoint: str, model, max_tokens: int) -> np.ndarray:
  from crossin_jax.checkpoints.saved_model import SavedModel
  from crossin_jax.devices.partitioning import Partitioner

  if not checkpoint or model is None:
    raise ValueError(
      'embed.method = "model" needs embed.checkpoint (a MODEL_DIR) and embed.model (its model)'
    )
  source = SavedModel.open(checkpoint)
  vocabulary = source.prompts.vocabulary
  partition = Partitioner()
  with partition.activate():
    params = source.params(model, partition)
    tokens = [vocabulary.encode(text)[:max_tokens] for text in distinct]
    vectors = mean_states(model, params, partition, tokens, bos_id=vocabulary.bos_id)
  # The hidden states share a large common component, which is subtracted.
  read = np.array([bool(ids) for ids in tokens])
  if read.sum() > 1:
    vectors[read] -= vectors[read].mean(0)
  return vectors


def mean_states(
  model, params, partition, tokens: Sequence[Sequence[int]], *, bos_id: int | None, rows: int = 32
) -> np.ndarray:
  """Mean of the model's last hidden states over the tokens of each text.

  Args:
    model: a `Decoder`.
    params: its parameters, on the mesh of `partition`, which must be active.
    tokens: of each text, without BOS; BOS is read before them and not counted in the mean.
    bos_id: first input; None = the first token.
    rows: texts read together, rounded up to a multiple of the mesh's batch parts.

  Returns:
    float32 [N, E]; zeros for a text without tokens.
  """
  from crossin_jax.data.stream import put_batch
  from crossin_jax.decoding.cache import bucket
  from crossin_jax.processes import interruption

  rows = -(-rows // partition.batch_ways) * partition.batch_ways
  compute = _mean_states(model, partition.replicated)
  vectors = np.zeros((len(tokens), model.config.embed_dim), np.float32)
  shapes: dict[int, list[int]] = {}
  for i, ids in enumerate(tokens):
    if len(ids):
      shapes.setdefault(bucket(len(ids) + 1), []).append(i)
  for length, places in shapes.items():
    for first in range(0, len(places), rows):
      interruption.check()
      own = places[first : first + rows]
      inputs, segments = np.zeros((2, rows, length), np.int32)
      for row, i in enumerate(own):
        read = tokens[i] if bos_id is None else [bos_id, *tokens[i]]
        inputs[row, : len(read)] = read
        segments[row, : len(read)] = 1
      make = lambda _, selected: {'inputs': inputs[selected], 'segments': segments[selected]}
      batch = put_batch(make, 0, (rows, length), partition.batch_sharding)
      vectors[own] = np.asarray(compute(params, batch))[: len(own)]
  return vectors


@functools.lru_cache(maxsize=8)
def _mean_states(model, replicated):
  """A jitted (params, batch) -> float32 [B, E]."""
  import jax
  import jax.numpy as jnp

  def compute(params, batch):
    _, captured = model.apply(
      {'params': params},
      batch['inputs'],
      batch['inputs'],
      decoder_segment_ids=batch['segments'],
      enable_dropout=False,
      capture_intermediates=lambda module, method: (
        module.name == 'final_norm' and method == '__call__'
      ),
      mutable=['intermediates'],
    )
    state_BLE = captured['intermediates']['decoder']['final_norm']['__call__'][0].astype(
      jnp.float32
    )
    weight_BL = (batch['segments'] > 0).at[:, 0].set(False).astype(jnp.float32)
    return jnp.einsum('ble,bl->be', state_BLE, weight_BL) / jnp.maximum(
      weight_BL.sum(1, keepdims=True), 1
    )

  return jax.jit(compute, out_shardings=replicated)
