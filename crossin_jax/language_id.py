"""Identification of the language of a text, among 137 languages, offline.

The model is that of the py3langid wheel. Two of its confusions are resolved here by differences
between the written standards: Indonesian and Malay by words with different spellings, Chinese and
Wu or Cantonese by characters that only the latter use.
"""

from collections.abc import Iterable
import functools
import math
from pathlib import Path
import re
import tomllib

from crossin_jax.languages import with_letters

LIMIT = 600  # bytes of UTF-8 to classify: 600 letters of Swahili, 200 of Bengali
LEAST = 0.1  # minimum confidence; below it the most probable of 137 languages is a guess
# Direction marks, joiners and lone surrogates carry no information about the language and split
# words. U+200C and U+200D stay: Bengali, Hindi and Urdu spelling needs them.
_UNWRITTEN = re.compile('[\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]')
_SPACE = re.compile('[\\s\x00-\x1f\x7f-\x9f\ufffd]+')
_LETTER = re.compile(r'[^\W\d_]')
_WORD = re.compile(r'[a-z]+')
_INDONESIAN_PRIOR = 0.5  # log odds of Indonesian against Malay
_NOT_MANDARIN = {
  'wuu': re.compile('[侬伲覅搿嘸]|阿拉|辰光|迭个|勒拉|弗是'),
  'yue': re.compile('[嘅咗喺啲唔冇哋嗰佢嚟咁嘢]'),
}
# The library's codes that differ from this project's; two spoken forms of Arabic are close to
# written Arabic.
_RENAMED = {'tl': 'fil', 'ary': 'ar', 'arz': 'ar', 'zxx': '', 'und': ''}


def __getattr__(name: str):
  """CANDIDATES: the possible codes of `identify`, read from the library on first use."""
  if name == 'CANDIDATES':
    codes = (_RENAMED.get(code, code) for code in _identifier().labels)
    return tuple(sorted({code for code in codes if code}))
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


@functools.cache
def _identifier():
  try:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier
  except ImportError:
    raise ValueError(
      'language identification needs py3langid: pip install crossin-jax[lid]'
    ) from None
  return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@functools.cache
def _log_odds() -> dict[str, float]:
  """Word -> evidence for Indonesian (positive) or Malay (negative), as log odds."""
  words = tomllib.loads(Path(__file__).with_suffix('.toml').read_text(encoding='utf-8'))
  return {
    word: sign * odds
    for language, sign in (('indonesian', 1), ('malay', -1))
    for strength, odds in (('strong', 3.0), ('weak', 0.7))
    for word in words[language][strength].split()
  }


def identify(text: str, limit: int = LIMIT) -> tuple[str, float]:
  """The language of a text.

  Args:
    text: any text; control characters, direction marks and lone surrogates are ignored.
    limit: bytes of UTF-8 to classify, from the first letter on; 0.4 microseconds each.

  Returns:
    (code, confidence 0..1); ('', 0.0) for an undetermined language: no letters, only identifiers
    and markup, a single word.

      identify('Habari ya asubuhi, rafiki yangu. Umelala vizuri?') -> ('sw', 0.99)
      identify('2024-05-01 12:30')                                 -> ('', 0.0)
  """
  first = _LETTER.search(text)
  if first is None:
    return '', 0.0
  start = first.start()
  text = _SPACE.sub(' ', _UNWRITTEN.sub('', text[start : start + 4 * limit])).strip()
  text = text.encode()[:limit].decode(errors='ignore')
  for code, own in with_letters():
    letters = _LETTER.findall(text)
    if sum(letter in own for letter in letters) > len(letters) / 2:
      return code, 1.0
  identifier = _identifier()
  code, confidence = identifier.classify(text)
  if code in ('id', 'ms'):
    scores = dict(identifier.rank(text))
    code, confidence = _indonesian_or_malay(text, scores), scores['id'] + scores['ms']
  elif code in _NOT_MANDARIN and not _NOT_MANDARIN[code].search(text):
    scores = dict(identifier.rank(text))
    code, confidence = 'zh', scores['zh'] + scores['wuu'] + scores['yue']
  code = _RENAMED.get(code, code)
  return (code, min(1.0, confidence)) if code and confidence >= LEAST else ('', 0.0)


def identify_many(texts: Iterable[str], limit: int = LIMIT) -> list[tuple[str, float]]:
  """`identify` of each text, in order."""
  return [identify(text, limit) for text in texts]


def _indonesian_or_malay(text: str, scores: dict[str, float]) -> str:
  """The more probable of the two, by the library's scores and by spelling."""
  evidence = _log_odds()
  odds = math.log((scores['id'] + 1e-9) / (scores['ms'] + 1e-9)) + _INDONESIAN_PRIOR
  odds += sum(evidence.get(word, 0.0) for word in set(_WORD.findall(text.lower())))
  return 'id' if odds > 0 else 'ms'
