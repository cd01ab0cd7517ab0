"""Planted duplicates are found, others are not, in any order."""

import json
import random

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from crossin_jax.xinstruction.filtering import characters, duplicates
from crossin_jax.xinstruction.filtering.duplicates import EXACT, KEPT, NEAR, Sketches, find

CODES = ('fi', 'id', 'th', 'tr', 'vi', 'bn', 'hi', 'sw', 'ta', 'ur')


def texts_of(shared_data, code, rng):
  """Paragraphs of 200 to 2,000 characters: native passages, and lines of news joined."""
  rows = (
    (shared_data / 'native_text' / f'native.{code}.jsonl').read_text(encoding='utf-8').splitlines()
  )
  found = [json.loads(row)['text'][:2000] for row in rows]
  paragraph, least = '', 200
  for line in (
    (shared_data / 'ntrex' / f'newstest2019.{code}.txt').read_text(encoding='utf-8').splitlines()
  ):
    paragraph = f'{paragraph} {line}'.strip()
    if len(paragraph) >= least:
      found.append(paragraph)
      paragraph, least = '', rng.choice([200, 400, 800])
  return [text for text in dict.fromkeys(found) if len(text) >= 200]


def edited(text, share, rng, by_words):
  """The text with a share of its characters, or words, replaced, left out or doubled."""
  pieces = text.split(' ') if by_words else list(text)
  others = list(pieces)
  for place in rng.sample(range(len(pieces)), max(1, round(share * len(pieces)))):
    pieces[place] = rng.choice([rng.choice(others), '', pieces[place] * 2])
  return (' ' if by_words else '').join(pieces)


@pytest.mark.parametrize('share', [None, 0.1])
def test_planted_near_duplicates(shared_data, share):
  """5 % of the rows are edits, by 1 to 10 % (or all by 10 %, the hardest), of others."""
  rng = random.Random(0)
  texts = [text for code in CODES for text in texts_of(shared_data, code, rng)]
  own = find(Sketches.of(texts))
  assert (own != KEPT).sum() <= 0.01 * len(texts)  # real news repeat themselves a little
  texts = [text for text, verdict in zip(texts, own) if verdict == KEPT]
  recalls = []
  for _ in range(5):
    sources = rng.sample(range(len(texts)), len(texts) // 19)
    rows = texts + [
      edited(
        texts[i],
        share or rng.uniform(0.01, 0.1),
        rng,
        rng.random() < 0.5 if share is None else False,
      )
      for i in sources
    ]
    verdicts = find(Sketches.of(rows))
    pairs = {(i, len(texts) + k) for k, i in enumerate(sources)}
    dropped = set(np.flatnonzero(verdicts).tolist())
    found = sum(bool(dropped & set(pair)) for pair in pairs)
    assert not any(dropped >= set(pair) for pair in pairs)
    assert found >= 0.99 * len(dropped)
    recalls.append(found / len(pairs))
  assert np.mean(recalls) > 0.97


def random_texts(rng, number, length=400):
  words = [
    ''.join(rng.choices('abcdefghijklmnopqrstuvwxyz', k=rng.randint(3, 8))) for _ in range(2000)
  ]
  return [' '.join(rng.choices(words, k=length // 6)) for _ in range(number)]


@pytest.mark.parametrize('seed', range(5))
def test_order_changes_nothing(seed):
  rng = random.Random(seed)
  texts = random_texts(rng, 60)
  texts += [edited(rng.choice(texts), rng.uniform(0, 0.1), rng, False) for _ in range(60)]
  texts += [text.upper().replace(' ', '  ') for text in rng.sample(texts, 20)]
  kept = {text for text, verdict in zip(texts, find(Sketches.of(texts))) if verdict == KEPT}
  assert 60 <= len(kept) <= 64
  for _ in range(3):
    rng.shuffle(texts)
    parts = [Sketches.of(texts[i : i + 37]) for i in range(0, len(texts), 37)]
    assert {
      text for text, verdict in zip(texts, find(Sketches.joined(parts))) if verdict == KEPT
    } == kept


def test_kinds_of_duplicates():
  rng = random.Random(1)
  one, other = random_texts(rng, 2)
  verdicts = find(
    Sketches.of(
      [one, one.title(), one.replace(' ', '\n'), edited(one, 0.03, rng, False), other, one]
    )
  )
  assert sorted(verdicts.tolist()) == [KEPT, KEPT, EXACT, EXACT, EXACT, NEAR]
  assert verdicts[4] == KEPT


def test_ties_between_identical_texts():
  text = random_texts(random.Random(2), 1)[0]
  for ties in ([5, 3, 9], [1, 2, 3], [3, 2, 1]):
    verdicts = find(Sketches.of([text] * 3), np.array(ties, np.uint64))
    assert verdicts.tolist().index(KEPT) == ties.index(min(ties)) and (verdicts == EXACT).sum() == 2


def test_a_crowd_of_near_duplicates_leaves_one():
  """More than a bucket's neighbours, so that several rounds are needed."""
  rng = random.Random(3)
  crowd, rest = random_texts(rng, 1)[0], random_texts(rng, 30)
  texts = [edited(crowd, 0.04, rng, False) for _ in range(300)] + rest
  verdicts = find(Sketches.of(texts))
  assert (verdicts[:300] == KEPT).sum() <= 2 and (verdicts[300:] == KEPT).all()


def test_few_edges_at_a_time(monkeypatch):
  monkeypatch.setattr(duplicates, '_MOST_EDGES', 50)
  test_a_crowd_of_near_duplicates_leaves_one()


def test_nothing_and_little():
  assert find(Sketches.of([])).tolist() == []
  assert find(Sketches.joined([])).tolist() == []
  # Texts without letters are nearly the same.
  assert sorted(find(Sketches.of(['', '', '!', 'ab', 'ab', 'abc'])).tolist()) == [KEPT] * 3 + [
    EXACT
  ] * 2 + [NEAR]


@given(st.text(st.characters(), max_size=40), st.text(st.characters(), max_size=40))
def test_sketches_do_not_depend_on_neighbours(one, other):
  both, alone = Sketches.of([one, other]), Sketches.of([other])
  for name in ('ranks', 'exact', 'anchors', 'profiles'):
    assert (getattr(both, name)[1] == getattr(alone, name)[0]).all()


@given(st.lists(st.integers(1, 0x10FFFF), max_size=60), st.integers(1, 20))
def test_shingles_against_their_definition(codes, letters):
  found = characters.shingles(np.array(codes, np.uint32), letters)
  wanted = [
    sum(
      code * 0x9E3779B97F4A7C15 ** (letters - 1 - k)
      for k, code in enumerate(codes[i : i + letters])
    )
    % 2**64
    for i in range(len(codes) - letters + 1)
  ]
  wanted = wanted if len(codes) >= letters else []
  assert found.tolist() == wanted


def test_similarity_estimates_the_jaccard_index():
  rng = random.Random(4)
  for share in (0.0, 0.05, 0.2, 1.0):
    one = random_texts(rng, 1, 1000)[0]
    other = edited(one, share, rng, False) if share < 1 else random_texts(rng, 1, 1000)[0]
    shingles = [
      {text[i : i + 5] for i in range(len(text) - 4)}
      for text in (one.replace(' ', ''), other.replace(' ', ''))
    ]
    exact = len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])
    sketches = Sketches.of([one, other])
    assert (
      abs(duplicates.similarity(sketches.profiles[:1], sketches.profiles[1:])[0] - exact) < 0.14
    )
