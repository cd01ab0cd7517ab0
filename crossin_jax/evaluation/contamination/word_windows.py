"""Normalised words of a text in any script, and hashes of windows of words.

Normalisation is NFKC and lower case, without punctuation, apostrophes and direction marks. In
scripts without spaces every character is a word of less weight: two of Chinese or Japanese, four of
Thai, Lao, Burmese or Khmer count as one.
"""

from collections.abc import Sequence
import functools
import re
import sys
import unicodedata

import numpy as np

WORD, _HAN, _THAI = 4, 2, 1  # weights, in quarters of a word
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))
_HAN_RANGES = '\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff'
_THAI_RANGES = '\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff'


@functools.cache
def _patterns() -> tuple[re.Pattern, re.Pattern, dict[int, None]]:
  """Patterns of a token and of an unspaced character, and the characters to delete."""
  unspaced = re.compile(f'[{_HAN_RANGES}{_THAI_RANGES}]')
  ranges, deleted, start = [], {ord(c): None for c in "'’ʼ`ـ"}, None
  for code in range(sys.maxunicode + 2):
    category = unicodedata.category(chr(code)) if code <= sys.maxunicode else ''
    if category == 'Cf':
      deleted[code] = None
    # NB: marks belong to words: without them Hindi and Tamil words split at every vowel sign
    inside = category[:1] in ('L', 'M', 'N') and not unspaced.match(chr(code))
    if inside and start is None:
      start = code
    elif not inside and start is not None:
      ranges.append(f'{chr(start)}-{chr(code - 1)}')
      start = None
  return re.compile(f'{unspaced.pattern}|[{"".join(ranges)}]+'), unspaced, deleted


def words(text: str) -> list[str]:
  """Normalised words of a text.

  'The  PANTHERS’ défense, №1!' -> ['the', 'panthers', 'défense', 'no1']
  '黑豹隊' -> ['黑', '豹', '隊']
  """
  tokens, _, deleted = _patterns()
  return tokens.findall(unicodedata.normalize('NFKC', text).casefold().translate(deleted))


def weight_of(word: str) -> int:
  if len(word) > 1 or word < '\u0e00':
    return WORD
  return WORD if not _patterns()[1].match(word) else _HAN if '\u3040' <= word else _THAI


def joined(tokens: Sequence[str]) -> str:
  """Words as readable text, without spaces where the script has none."""
  pieces = list(tokens[:1])
  for before, word in zip(tokens, tokens[1:]):
    pieces.append(word if min(weight_of(before), weight_of(word)) < WORD else f' {word}')
  return ''.join(pieces)


class Windows:
  """Hashes of windows of words: from every word on, as many as reach a weight."""

  def __init__(self, tokens: Sequence[str], text_of: np.ndarray):
    self._text_of = text_of
    count = len(tokens)
    self._weights = np.zeros(count + 1, np.int64)
    np.cumsum(np.fromiter(map(weight_of, tokens), np.int64, count), out=self._weights[1:])
    hashes = np.fromiter(map(hash, tokens), np.int64, count).view(np.uint64)
    self._sums = np.zeros(count + 1, np.uint64)
    # A polynomial in the inverse of the base: one running sum gives the sums of all windows.
    np.cumsum(hashes * np.cumprod(np.full(count, _INVERSE)), out=self._sums[1:])
    self._powers = np.cumprod(np.full(count, _BASE))

  def of(self, weight: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts, ends and hashes of the windows of a weight; none crosses the end of a text."""
    starts = np.arange(len(self._text_of))
    ends = np.searchsorted(self._weights, self._weights[:-1] + weight)
    inside = ends < len(self._weights)
    starts, ends = starts[inside], ends[inside]
    inside = self._text_of[starts] == self._text_of[ends - 1]
    starts, ends = starts[inside], ends[inside]
    return starts, ends, (self._sums[ends] - self._sums[starts]) * self._powers[starts]
