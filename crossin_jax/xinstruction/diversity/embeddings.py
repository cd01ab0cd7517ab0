"""Embeds English instructions as unit vectors.

Letters: N texts, D dimensions.
"""

from collections.abc import Sequence
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
    from crossin_jax.decoding.text_vectors import sentence_vectors

    vectors = sentence_vectors(distinct, name)
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


def _of_checkpoint(distinct: list[str], checkpoint: str, model, max_tokens: int) -> np.ndarray:
  from crossin_jax.checkpoints.saved_model import SavedModel
  from crossin_jax.decoding.text_vectors import mean_states
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
