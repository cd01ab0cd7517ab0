"""Vectors of instructions: against scikit-learn's TF-IDF, against the model's own logits, in any
order.
"""

import shutil

from conftest import init_params, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip(
  'sklearn', reason='embeddings need scikit-learn: pip install crossin-jax[xinstruction]'
)
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

from crossin_jax.checkpoints import parameters
from crossin_jax.decoding import text_vectors
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import Decoder
from crossin_jax.storage.files import write_json
from crossin_jax.xinstruction.diversity import embeddings

TEXTS = [
  'Write a poem about the sea.',
  'Write a poem about the old sea and the sea wind.',
  'Write a short story about a dog',
  'What is the capital of France?',
  'What is the capital of Finland?',
  'Translate the sentence into Urdu',
  'translate this sentence into Tamil',
]


@pytest.mark.parametrize('method, analysis', [
  ('tfidf', {'ngram_range': (1, 2), 'token_pattern': r'(?u)\b\w+\b'}),
  ('characters', {'analyzer': 'char_wb', 'ngram_range': (3, 4)}),
])  # fmt: skip
def test_with_all_directions_cosines_are_those_of_sklearns_tfidf(method, analysis):
  counts = CountVectorizer(**analysis).fit_transform(TEXTS).astype(float)
  counts.data = np.log1p(counts.data)
  binary = counts.copy()
  binary.data[:] = 1
  idf = TfidfTransformer(norm=None).fit(binary).idf_
  weighted = counts.multiply(idf).toarray()
  weighted /= np.linalg.norm(weighted, axis=1, keepdims=True)
  found = embeddings.embed(TEXTS, method=method, dimensions=50, words=2)
  assert found.dtype == np.float32 and found.shape == (7, 50)
  np.testing.assert_allclose(found @ found.T, weighted @ weighted.T, atol=2e-5)


@settings(max_examples=15)
@given(
  st.lists(st.text('ab cé\u0e01\n.', max_size=12), max_size=12), st.randoms(use_true_random=False)
)
def test_order_does_not_matter_and_equal_texts_are_equal(texts, random):
  found = embeddings.embed(texts, dimensions=16)
  assert found.shape == (len(texts), 16) and np.isfinite(found).all()
  norms = np.linalg.norm(found, axis=1)
  assert ((np.abs(norms - 1) < 1e-5) | (norms == 0)).all()
  assert all(
    (norm == 0) == (not any(c.isalnum() for c in text)) for norm, text in zip(norms, texts)
  )
  order = list(range(len(texts)))
  random.shuffle(order)
  again = embeddings.embed([texts[i] for i in order] + texts[:1], dimensions=16)
  np.testing.assert_array_equal(again[: len(order)], found[order])
  np.testing.assert_array_equal(again[len(order) :], found[:1])


def test_few_directions_keep_topics_together():
  topics = ('football match', 'kitchen recipe', 'solar planet', 'tax law')
  texts = [
    f'{verb} {topic} {n}'
    for topic in topics
    for n, verb in enumerate(['write', 'explain', 'describe'] * 20)
  ]
  vectors = embeddings.embed(texts, dimensions=8)
  near = (vectors @ vectors.T).reshape(4, 60, 4, 60).mean((1, 3))
  assert (near.argmax(1) == np.arange(4)).all() and np.diag(near).min() > 0.5 > near[
    ~np.eye(4, dtype=bool)
  ].max()


def test_wrong_settings_are_named():
  with pytest.raises(ValueError, match='embed.method = .tfdif.*tfidf'):
    embeddings.embed(['a'], method='tfdif')
  with pytest.raises(ValueError, match='embed.dimensions = 0'):
    embeddings.embed(['a'], dimensions=0)
  with pytest.raises(ValueError, match='embed.checkpoint'):
    embeddings.embed(['a'], method='model')


def test_a_missing_library_is_named(monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'sentence_transformers', None)
  with pytest.raises(ValueError, match='pip install sentence-transformers'):
    embeddings.embed(['a'], method='sentence-transformers:some/model')
  monkeypatch.setitem(__import__('sys').modules, 'sklearn.feature_extraction.text', None)
  with pytest.raises(ValueError, match=r'crossin-jax\[xinstruction\]'):
    embeddings.embed(['a'])


# ---- the model's own ----


@pytest.mark.parametrize(
  'changes',
  [
    {'tie_embeddings': False},
    {'layer_pattern': ('local', 'global'), 'window': 5, 'scan_layers': False},
  ],
)
def test_states_are_what_the_logits_are_made_of_whatever_stands_beside(changes):
  model = Decoder(tiny_config(**changes))
  params = init_params(model, 3)
  partition = Partitioner((1, -1, 1), devices=jax.devices()[:4])
  rng = np.random.default_rng(0)
  tokens = [rng.integers(3, 61, n).tolist() for n in (1, 20, 7, 0, 1)]
  with partition.activate():
    found = text_vectors.mean_states(model, params, partition, tokens, bos_id=1, rows=2)
  head_EV = (
    params['decoder']['lm_head']
    if 'lm_head' in params['decoder']
    else params['decoder']['token_embedding'].T
  )
  assert (found[3] == 0).all()
  for ids, state in zip(tokens, found):
    if ids:
      row = jnp.asarray([[1, *ids]])
      logits = model.apply({'params': params}, row, row, enable_dropout=False)[0, 1:].mean(0)
      np.testing.assert_allclose(state @ head_EV, logits, rtol=1e-4, atol=1e-4)


def test_of_a_checkpoint(tmp_path, tiny_vocabulary):
  model = Decoder(tiny_config(vocab_size=1216))
  parameters.save_params(str(tmp_path), init_params(model, 2))
  shutil.copyfile(tiny_vocabulary.path, tmp_path / 'words.model')
  words = {'file': 'words.model', 'bos_token': None, 'eos_token': None}
  write_json(
    str(tmp_path / 'prompts.json'), {'prompts': {'template': 'gemma'}, 'vocabulary': words}
  )
  embed = lambda texts: embeddings.embed(
    texts, method='model', checkpoint=str(tmp_path), model=model
  )
  found = embed([*TEXTS, ''])
  assert found.shape == (8, 16) and (found[-1] == 0).all()
  np.testing.assert_allclose(np.linalg.norm(found[:-1], axis=1), 1, atol=1e-5)
  np.testing.assert_array_equal(embed(['', *TEXTS[::-1]]), found[::-1])
  assert found[3] @ found[4] > (found[:7] @ found[:7].T)[~np.eye(7, dtype=bool)].mean(), (
    'the two capitals are alike'
  )
