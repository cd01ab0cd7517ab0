"""Finds exact and near duplicates among millions of texts without comparing all pairs.

Two sketches of each text's letters and digits, both by one-permutation hashing (Li, Owen, Zhang
2012, arXiv 1208.1259): the hashes of all shingles fall into bins, and each bin keeps its smallest.

  * Anchors, 64 bins of shingles of 14 letters. Unrelated texts share hardly any; a text in which
    every tenth letter was changed still shares six or seven with the original on average. Texts
    with an anchor in common are candidates.
  * The profile, 128 bins of shingles of 5 letters. The share of equal bins estimates the Jaccard
    index of the shingles: 0.42 where every tenth letter was changed, below 0.15 between different
      texts of a language. It decides.

Both are functions of the text alone, and texts are ranked by a hash of what they say, so the result
does not depend on the order in which texts come, or from which file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import hashlib

import numpy as np

from crossin_jax.xinstruction.filtering import characters

ANCHORS, ANCHOR_LETTERS = 64, 14
PROFILE, PROFILE_LETTERS = 128, 5
# Of the estimated Jaccard index. Of 1,633 real paragraphs in 13 languages 1,630 reach it after an
# edit of every tenth character, and of 113,418 pairs of them one, the same news told twice.
THRESHOLD = 0.27
NEIGHBOURS = 4  # each text of a bucket of equal anchors is compared with this many next texts
ROUNDS = 5
_EMPTY_ANCHOR, _EMPTY_BIN = np.uint32(0xFFFFFFFF), np.uint8(255)
_PAIRS = 1 << 16  # compared at a time
_MOST_EDGES = 1 << 24  # pairs of duplicates that are buffered


@dataclass
class Sketches:
  """Of n texts.

  Attributes:
    ranks: (n, 2) uint64, a hash of each text as it is; the smallest of a group of duplicates is
      kept.
    exact: (n,) uint64, equal for texts that differ in case and spaces only.
    anchors: (n, ANCHORS) uint32. profiles: (n, PROFILE) uint8.
  """

  ranks: np.ndarray
  exact: np.ndarray
  anchors: np.ndarray
  profiles: np.ndarray

  @classmethod
  def of(cls, texts: Sequence[str]) -> 'Sketches':
    ranks = [_hash(text.encode('utf-8', 'surrogatepass'), 16) for text in texts]
    exact = [
      _hash(' '.join(text.casefold().split()).encode('utf-8', 'surrogatepass'), 8) for text in texts
    ]
    letters = [characters.folded(characters.codes(text)) for text in texts]
    return cls(
      np.frombuffer(b''.join(ranks), '>u8').astype(np.uint64).reshape(-1, 2),
      np.frombuffer(b''.join(exact), '>u8').astype(np.uint64),
      *_bins(letters),
    )

  @classmethod
  def joined(cls, parts: Sequence['Sketches']) -> 'Sketches':
    """All as one. NB: empties the parts as it goes, or a million texts would take 0.4 GiB twice."""
    arrays = []
    for name in cls.__annotations__:
      arrays.append(
        np.concatenate([getattr(cls.of([]), name), *(getattr(part, name) for part in parts)])
      )
      for part in parts:
        setattr(part, name, None)
    return cls(*arrays)


def _hash(content: bytes, size: int) -> bytes:
  return hashlib.blake2b(content, digest_size=size).digest()


def _bins(letters: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """Anchors and profiles of texts, which are arrays of letters."""
  lengths = np.array([max(len(one), ANCHOR_LETTERS) for one in letters], np.int64)
  codes = np.zeros(lengths.sum(), np.uint64)
  starts = np.cumsum(lengths) - lengths
  for start, one in zip(starts.tolist(), letters):
    codes[start : start + len(one)] = one
  text_of = np.repeat(np.arange(len(letters)), lengths)
  ends = np.repeat(starts + lengths, lengths)
  anchors = _smallest(
    characters.shingles(codes, ANCHOR_LETTERS), ANCHOR_LETTERS, text_of, ends, len(letters), 6
  )
  profiles = _smallest(
    characters.shingles(codes, PROFILE_LETTERS), PROFILE_LETTERS, text_of, ends, len(letters), 7
  )
  return anchors, np.where(profiles == _EMPTY_ANCHOR, _EMPTY_BIN, profiles % 255).astype(np.uint8)


def _smallest(windows, letters: int, text_of, ends, texts: int, bits: int) -> np.ndarray:
  """(texts, 2 ** bits) uint32: the first bits of a mixed hash choose the bin, others are what is
  compared.
  """
  whole = np.flatnonzero(np.arange(len(windows)) + letters <= ends[: len(windows)])
  mixed = windows[whole]
  # the finaliser of splitmix64
  for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
    mixed ^= mixed >> np.uint64(shift)
    mixed *= np.uint64(factor)
  mixed ^= mixed >> np.uint64(31)
  smallest = np.full(texts << bits, _EMPTY_ANCHOR)
  index = (text_of[whole] << bits) + (mixed >> np.uint64(64 - bits)).astype(np.int64)
  np.minimum.at(smallest, index, mixed.astype(np.uint32))
  return smallest.reshape(texts, 1 << bits)


def similarity(profiles_NP: np.ndarray, others_NP: np.ndarray) -> np.ndarray:
  """Estimated Jaccard index of the 5-letter shingles, row by row; standard error below 0.045."""
  equal = profiles_NP == others_NP
  empty = equal & (profiles_NP == _EMPTY_BIN)
  both = empty.sum(1, dtype=np.int64)
  return (equal.sum(1, dtype=np.int64) - both) / np.maximum(1, PROFILE - both)


KEPT, EXACT, NEAR = range(3)


def find(
  sketches: Sketches,
  ties: np.ndarray | None = None,
  check: Callable[[], None] = lambda: None,
  threshold: float = THRESHOLD,
) -> np.ndarray:
  """Finds the texts that are duplicates of kept texts.

  Texts stand in the order of their hashes. The first of each group of equal ones stays; then a text
  goes if one before it that stays is nearly the same.

  Args:
    sketches: of n texts.
    ties: (n,) uint64, decides between identical texts; None = the first in this order, as good as
      any.
    check: called about once a second; may raise.
    threshold: of `similarity`, from which two texts are nearly the same.

  Returns:
    (n,) uint8 of KEPT, EXACT, NEAR.
  """
  verdicts = np.zeros(len(sketches.exact), np.uint8)
  order = in_order(sketches, ties)
  _, first = np.unique(sketches.exact[order], return_index=True)
  stays = np.zeros(len(order), bool)
  stays[first] = True
  verdicts[order[~stays]] = EXACT
  rows = order[stays]  # NB: from here on a text is known by its place in this array
  alive = np.ones(len(rows), bool)
  for number in range(ROUNDS):
    if not _compare_candidates(sketches, rows, alive, number, check, threshold):
      break
  verdicts[rows[~alive]] = NEAR
  return verdicts


def in_order(sketches: Sketches, ties: np.ndarray | None = None) -> np.ndarray:
  """Indices of the texts, by the hash of what they say."""
  ties = np.zeros(len(sketches.exact), np.uint64) if ties is None else ties
  return np.lexsort((ties, sketches.ranks[:, 1], sketches.ranks[:, 0]))


def _compare_candidates(
  sketches: Sketches, rows, alive, number: int, check, threshold: float
) -> bool:
  """Drops from `alive`; True if some were dropped and another round may find more.

  In a bucket of more than NEIGHBOURS + 1 texts not all are compared with all: they are sorted by a
  bin of their profiles, so that near-duplicates are probably neighbours, by another bin in each
  round.
  """
  edges, size, dropped, crowded = [], 0, 0, False
  for anchor in range(ANCHORS):
    check()
    places = np.flatnonzero(alive)
    column = sketches.anchors[rows[places], anchor]
    written = column != _EMPTY_ANCHOR
    places, column = places[written], column[written]
    beside = sketches.profiles[rows[places], (2 * anchor + 37 * number) % PROFILE]
    by = np.argsort(column.astype(np.uint64) << np.uint64(8) | beside, kind='stable')
    places, column = places[by], column[by]
    for step in range(1, NEIGHBOURS + 1):
      same = np.flatnonzero(column[step:] == column[:-step])
      for i in range(0, len(same), _PAIRS):
        one, other = places[same[i : i + _PAIRS]], places[same[i : i + _PAIRS] + step]
        near = similarity(sketches.profiles[rows[one]], sketches.profiles[rows[other]]) >= threshold
        low, high = np.minimum(one, other)[near], np.maximum(one, other)[near]
        edges.append(high.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64))
        size += len(low)
    step = NEIGHBOURS + 1
    crowded = crowded or bool((column[step:] == column[:-step]).any())
    if size > _MOST_EDGES:
      edges = [np.unique(np.concatenate(edges))]
      size = len(edges[0])
      if size > _MOST_EDGES // 2:
        dropped += _drop(edges, alive)
        edges, size = [], 0
  dropped += _drop(edges, alive)
  return crowded and dropped > 0


def _drop(edges: list[np.ndarray], alive: np.ndarray) -> int:
  """Removes from `alive` each text that is near an earlier kept text; returns the number."""
  before = int(alive.sum())
  pairs = np.unique(np.concatenate(edges)) if edges else np.zeros(0, np.uint64)
  # NB: sorted by the later text of each pair, so that the earlier one is already decided.
  for high, low in zip((pairs >> np.uint64(32)).tolist(), (pairs & np.uint64(0xFFFFFFFF)).tolist()):
    if alive[low]:
      alive[high] = False
  return before - int(alive.sum())
