"""Classes of characters as tables over code points, for NumPy."""

import functools
import unicodedata

import numpy as np

OTHER, LETTER, DIGIT, SPACE = range(4)
_BASE = 0x9E3779B97F4A7C15
_PLANES = 0x32400  # above it stand ideographs not yet assigned, tags and private use: no letters


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
  """kinds uint8 and folded uint32, both by code point; a look-up beyond the end must be clipped to
  the last entry.
  """
  kinds = np.zeros(_PLANES + 1, np.uint8)
  folded = np.zeros(_PLANES + 1, np.uint32)
  for code in range(0x20000):
    category = unicodedata.category(chr(code))
    # NB: marks count as letters: the vowels of Hindi and Tamil are marks
    kind = {'L': LETTER, 'M': LETTER, 'N': DIGIT, 'Z': SPACE}.get(category[0], OTHER)
    kinds[code] = SPACE if chr(code).isspace() else kind
    if kind in (LETTER, DIGIT):
      folded[code] = ord(chr(code).lower()[0])
  kinds[0x20000:_PLANES] = LETTER
  folded[0x20000:_PLANES] = np.arange(0x20000, _PLANES)
  return kinds, folded


def codes(text: str) -> np.ndarray:
  """Code points of a text, uint32; halves of surrogate pairs stand for themselves."""
  return np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), np.uint32)


def kinds(codes_N: np.ndarray) -> np.ndarray:
  """LETTER (marks included), DIGIT, SPACE or OTHER of each code point, uint8."""
  return _tables()[0][np.minimum(codes_N, _PLANES)]


def folded(codes_N: np.ndarray) -> np.ndarray:
  """Lower-case code points of the letters and digits alone, shorter than what was given.

  folded(codes('Ab, 3!')) == codes('ab3')
  """
  result = _tables()[1][np.minimum(codes_N, _PLANES)]
  return result[result > 0]


def shingles(codes_N: np.ndarray, letters: int) -> np.ndarray:
  """A hash of each run of so many code points: uint64 of length N - letters + 1, or empty.

  Polynomials modulo 2**64: equal runs have equal hashes; nearly equal runs have related ones, so
  mix before comparing bits.
  """
  codes_N = codes_N.astype(np.uint64)
  combined, have, double, power = None, 0, codes_N, 1
  while have < letters:
    if letters & power:
      combined = double if combined is None else _joined(combined, double, have, power)
      have += power
    if have < letters:
      double, power = _joined(double, double, power, power), 2 * power
  return combined


def _joined(first: np.ndarray, second: np.ndarray, shift: int, rest: int) -> np.ndarray:
  """Hashes of runs, from those of their first `shift` code points and of the `rest` behind them."""
  second = second[shift:]  # NB: the shorter of the two decides
  size = min(len(first), len(second))
  return first[:size] * np.uint64(pow(_BASE, rest, 1 << 64)) + second[:size]
