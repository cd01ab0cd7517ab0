"""Quotas, ties and duplicates; wider than random choice, measured in an embedding that was not used
to choose.
"""

import collections
import json

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

pytest.importorskip(
  'sklearn', reason='clusters need scikit-learn: pip install crossin-jax[xinstruction]'
)

from crossin_jax.xinstruction.diversity import diversification
from crossin_jax.xinstruction.diversity.diversification import (
  Diversification,
  coverage,
  diversify,
  normalised,
)

WORDS = 'write a poem about the sea and moon story of dogs capital France translate urdu sort list numbers'.split()

rows_of = st.lists(
  st.builds(
    lambda words, output, score: {'instruction': ' '.join(words), 'output': output, 'score': score},
    st.lists(st.sampled_from(WORDS), max_size=4),
    st.sampled_from('xyz'),
    st.one_of(st.none(), st.sampled_from([1.0, 2.0, 2.5, 3.0])),
  ),
  max_size=40,
)


def topics(frequent=4, of_each=400, rare=120, seed=0):
  """A few topics with hundreds of instructions, and many with three; (rows, topic of each)."""
  rng = np.random.default_rng(seed)
  syllables = [a + b for a in 'bdfgklmnprst' for b in 'aeiou']
  word = lambda: ''.join(rng.choice(syllables, 3))
  forms = [
    'Write about {} and {} {}',
    'Explain {} {} {}',
    'What is the {} of {} {}?',
    'List the {} in {} {}',
  ]
  rows, topic = [], []
  for t in range(frequent + rare):
    names = [word() for _ in range(6)]
    for _ in range(of_each if t < frequent else 3):
      used = rng.choice(names, 3, replace=False)
      rows.append(
        {'instruction': f'{forms[t % 4].format(*used)} {word()}', 'score': float(rng.uniform(1, 3))}
      )
      topic.append(t)
  return rows, np.array(topic)


@settings(max_examples=40)
@given(rows_of, st.integers(0, 45), st.integers(1, 6), st.randoms(use_true_random=False))
def test_the_choice_is_exact_and_does_not_depend_on_order(rows, wanted, clusters, random):
  options = Diversification(clusters=clusters, seed=3)
  chosen, labels = diversify(rows, wanted, options)
  assert len(chosen) == min(wanted, len(rows)) == len(set(chosen.tolist())) and list(
    chosen
  ) == sorted(chosen)
  assert (
    len(labels) == len(rows)
    and set(labels) == set(range(len(set(labels))))
    and len(set(labels)) <= clusters
  )
  order = list(range(len(rows)))
  random.shuffle(order)
  again, relabelled = diversify([rows[i] for i in order], wanted, options)
  content = lambda places, of: sorted(json.dumps(of[i]) for i in places)
  assert content(again, [rows[i] for i in order]) == content(chosen, rows)
  np.testing.assert_array_equal(relabelled, labels[order])


@settings(max_examples=40)
@given(rows_of, st.integers(1, 30), st.integers(1, 5))
def test_clusters_share_equally_and_give_their_best(rows, wanted, clusters):
  chosen, labels = diversify(rows, wanted, Diversification(clusters=clusters))
  taken = set(chosen.tolist())
  score = lambda i: -1.0 if rows[i]['score'] is None else rows[i]['score']
  texts = [normalised(row['instruction']) for row in rows]
  # something is repeated: then no instruction is missing
  if len({texts[i] for i in taken}) < len(taken):
    assert {texts[i] for i in taken} == set(texts)
  else:
    left = lambda k: (
      {texts[i] for i in range(len(rows)) if labels[i] == k} - {texts[i] for i in taken}
    )
    got = [sum(labels[i] == k for i in taken) for k in range(labels.max(initial=-1) + 1)]
    for k, own in enumerate(got):
      assert not left(k) or own >= max(got) - 1, 'a cluster that has more gave less than another'
  for i in range(len(rows)):
    if i not in taken and texts[i] not in {texts[j] for j in taken}:
      assert all(score(j) >= score(i) for j in taken if labels[j] == labels[i])
    if i not in taken:
      assert all(score(j) >= score(i) for j in taken if texts[j] == texts[i])


def test_quota_that_a_small_cluster_cannot_fill_is_passed_on():
  vectors = np.repeat(np.eye(3, dtype=np.float32), [10, 1, 4], axis=0)
  rows = [{'instruction': f'number {i}', 'score': i} for i in range(15)]
  chosen, labels = diversify(rows, 9, Diversification(clusters=3), vectors)
  assert collections.Counter(labels.tolist()) == {0: 10, 1: 4, 2: 1}
  assert chosen.tolist() == [6, 7, 8, 9, 10, 11, 12, 13, 14]
  chosen, _ = diversify(rows, 7, Diversification(clusters=3), vectors)
  assert chosen.tolist() == [7, 8, 9, 10, 12, 13, 14], (
    'the odd one is the best of those that are left'
  )


def test_duplicates_come_last():
  rows = [
    {'instruction': text, 'output': str(i), 'score': 3 - i / 100}
    for i, text in enumerate(['Write a poem!'] * 20)
  ]
  rows += [
    {'instruction': f'a question about {word}', 'score': 1.0} for word in ('moon', 'sea', 'dogs')
  ]
  rows[4]['instruction'] = ' write  a POEM'
  for clusters in (1, 2, 4):
    chosen, _ = diversify(rows, 4, Diversification(clusters=clusters))
    assert chosen.tolist() == [0, 20, 21, 22]
    chosen, _ = diversify(rows, 6, Diversification(clusters=clusters))
    assert chosen.tolist() == [0, 1, 2, 20, 21, 22]


def test_sizes_and_settings():
  assert [Diversification().clusters_of(n) for n in (0, 1, 31, 64, 3200, 10**6)] == [
    1,
    1,
    1,
    2,
    100,
    1000,
  ]
  assert Diversification(clusters=50).clusters_of(7) == 7
  chosen, labels = diversify([], 3)
  assert chosen.shape == labels.shape == (0,)
  assert diversify([{'instruction': ''}], 3)[0].tolist() == [0]
  assert diversify([{'instruction': 'a'}, {'instruction': 'b'}], 0)[0].tolist() == []
  with pytest.raises(ValueError, match='row 1: field "instruction"'):
    diversify([{'instruction': 'a'}, {'output': 'b'}], 1)
  with pytest.raises(ValueError, match='row 0: field "score" is .high.'):
    diversify([{'instruction': 'a', 'score': 'high'}], 1)
  with pytest.raises(ValueError, match='Diversification.clusters = 0'):
    Diversification(clusters=0)
  with pytest.raises(ValueError, match='2 vectors for 1 rows'):
    diversify([{'instruction': 'a'}], 1, vectors=np.zeros((2, 3)))


def test_mean_distance_is_that_of_all_pairs():
  rows, _ = topics(of_each=20, rare=5)
  texts = [row['instruction'] for row in rows]
  vectors = diversification.embeddings.embed(
    [normalised(text) for text in texts], method='characters'
  ).astype(float)
  chosen = np.arange(0, len(texts), 3)
  pairs = [1 - vectors[i] @ vectors[j] for i in chosen for j in chosen if i < j]
  found = coverage(texts, chosen, seeds=(0, 1))
  assert found.mean_distance.chosen == pytest.approx(np.mean(pairs), abs=1e-6)
  assert found.chosen == len(chosen) and len(found.clusters_hit.randoms) == 2
  assert coverage(texts[:1], [0]).mean_distance.chosen == 0.0
  assert coverage([], []).rows == 0


# ---- wider than random choice ----


def _gains(texts, wanted, options, seeds=5):
  """Differences to a random choice of the same size, scores and all drawn anew with each seed:
  (clusters hit, mean distance).
  """
  gains, keys = [], [normalised(text) for text in texts]
  own, other = (
    diversification.embeddings.embed(keys, method=method) for method in ('tfidf', 'characters')
  )
  for seed in range(seeds):
    scores = np.random.default_rng(seed).uniform(1, 3, len(texts))
    rows = [{'instruction': text, 'score': float(score)} for text, score in zip(texts, scores)]
    chosen, _ = diversify(rows, wanted, Diversification(seed=seed, **options), own)
    found = coverage(texts, chosen, vectors=other, seeds=(seed,))
    measures = (found.clusters_hit, found.mean_distance)
    gains.append([measure.chosen - measure.random for measure in measures])
  return np.array(gains)


def test_skewed_topics_are_covered_better_than_by_chance():
  rows, topic = topics()
  gains = _gains([row['instruction'] for row in rows], 150, {})
  assert (gains > 0).all(), gains
  # And by the topics that they were made of, not by any embedding: most of 124, where chance finds
  # every third.
  chosen, _ = diversify(rows, 150)
  random = [
    len(set(topic[np.random.default_rng(s).choice(len(rows), 150, replace=False)]))
    for s in range(5)
  ]
  assert len(set(topic[chosen])) > max(random) + 20
  # The reason for `balance`: plain k-means lumps the rare ones together.
  plain, _ = diversify(rows, 150, Diversification(balance=0.0))
  assert len(set(topic[plain])) < len(set(topic[chosen])) - 20


def _real_instructions(shared_data) -> tuple[list[str], list[str]]:
  """English instructions of Alpaca and questions of OpenAssistant and Vicuna; and capitalised words
  of Alpaca's answers.
  """
  rows = json.loads(
    (shared_data / 'alpaca_parallel' / 'alpaca.en.json').read_text(encoding='utf-8')
  )
  texts = [row['instruction'] for row in rows]
  for name, field in (('oasst50', 'prompt'), ('vicuna80', 'text')):
    lines = (
      (shared_data / 'open_ended' / f'{name}.en.jsonl').read_text(encoding='utf-8').splitlines()
    )
    texts += [json.loads(line)[field] for line in lines]
  return texts, sorted(
    {w.strip('.,') for row in rows for w in row['output'].split() if w.istitle() and len(w) > 4}
  )


def test_real_instructions_among_many_of_a_formula_are_covered_better_than_by_chance(shared_data):
  """The pool that web text gives: real instructions, and as many again that ask for the same with
  other names.
  """
  texts, names = _real_instructions(shared_data)
  texts = texts[::2]
  forms = [
    'Write a news article about {} and {}.',
    'Summarize the report on {} in {}.',
    'Create a headline for the story of {} and {}.',
  ]
  rng = np.random.default_rng(1)
  texts += [forms[i % 3].format(*rng.choice(names, 2)) for i in range(len(texts))]
  gains = _gains(texts, 150, {})
  assert (gains > 0).all(), gains


@pytest.mark.slow
def test_real_instructions_as_they_are(shared_data):
  """Alpaca was made diverse already: with a cluster for each instruction wanted more clusters are
  hit, no distance is gained.
  """
  texts, _ = _real_instructions(shared_data)
  gains = _gains(texts, 200, {'clusters': 200})
  assert (gains[:, 0] > 0).all() and abs(gains[:, 1].mean()) < 0.005, gains
