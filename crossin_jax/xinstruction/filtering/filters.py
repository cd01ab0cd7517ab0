"""Filters that decide which documents can become responses, and the cleaning of their text.

See docs/design/methods.md#c-14. A kept text is in Unicode NFC. HTML entities are resolved. Lines
end in one newline character, with at most one empty line between them, and words are separated by
single spaces. These characters are removed: control characters, marks of direction (which can
change the display of Urdu beside Latin words), soft hyphens, zero-width spaces, byte order marks,
private-use and interlinear characters, and joiners (U+200C, U+200D) except in scripts that spell
with them. A text with traces of a wrong decoding (U+FFFD, half a surrogate pair, sequences that
ftfy takes for mojibake) is dropped.
"""

import dataclasses
import functools
import html
from pathlib import Path
import re
import tomllib
import unicodedata

from ftfy import badness
import numpy as np

from crossin_jax import config, language_id
from crossin_jax.xinstruction.filtering import characters
from crossin_jax.xinstruction.filtering.duplicates import THRESHOLD

# reason -> what it says, in the order in which documents are tested: cheap tests first
REASONS = {
  'empty': 'no text, or spaces only',
  'too_long': 'more than most_characters',
  'encoding': 'damaged by a wrong decoding: U+FFFD, half a surrogate pair, or or Ã¼ for ü',
  'binary': 'more than 1 % control or private-use characters',
  'html': 'markup that was not removed',
  'too_short': 'less than least_characters',
  'letters': 'too few letters',
  'repeated_lines': 'too much of it stands in lines that stood before',
  'short_lines': 'too many short lines without an end of sentence: a list, a menu',
  'ellipses': 'too many lines that break off',
  'menu': 'too many separators',
  'links': 'too much of it is addresses',
  'code': 'too many braces',
  'notices': 'phrases of web pages: cookies, privacy, log in',
  'repeated_text': 'too much of it stood before, within lines',
  'other_language': 'another language is likelier',
  'uncertain_language': 'the language, but with too little confidence',
}
_ENDS = '.!?…。！？｡।॥۔؟։።។၊။:;"\'”’»)]）】」』'
_UNSPACED = frozenset({'th', 'lo', 'my', 'km'})  # languages whose sentences end in a space
_SENTENCE = re.compile(r'[.!?…।॥۔؟։።។။]+["\'”’»)\]]*(?=\s|$)|[。！？｡]+[”’」』）]*|(?=\n)')
_DAMAGED = re.compile('[\ufffd\ud800-\udfff]')
# What UTF-8 looks like when it is decoded as Latin-1, Windows-125x or a DOS code page.
_SUSPECT = re.compile(
  '[\x80-\xff\u0102-\u0178\u0192\u02c6\u0391-\u03c9\u0400-\u045f\u2010-\u2044\u2500-\u25a0]'
)
_NONCHARACTERS = '\ufdd0-\ufdef' + ''.join(
  f'{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}' for plane in range(0, 0x110000, 0x10000)
)
_BINARY = re.compile(
  f'[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ue000-\uf8ff\U000f0000-\U0010ffff{_NONCHARACTERS}]'
)
_LINE_ENDS = re.compile('\r\n?|[\x0b\x0c\x85\u2028\u2029]')
_GONE = re.compile(
  '[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ue000-\uf8ff\ufeff\ufff9-\uffff'
  f'\ud800-\udfff\U000e0000-\U000e007f\U000f0000-\U0010ffff{_NONCHARACTERS}]'
)
# Arabic to Myanmar, Khmer and Mongolian, presentation forms; symbols and emoji, which are joined
# too.
_JOINER = re.compile(
  '(?<![\u0600-\u109f\u1780-\u18af\u2190-\u2bff\ufb50-\ufdff\ufe0f\ufe70-\ufefe\U00010a00-\U00011fff\U0001f000-\U0001faff])'
  '[\u200c\u200d]'
)
_SPACES = re.compile(r'[^\S\n]{2,}|[^\S\n ]')
_AROUND_LINES = re.compile(r' ?\n[ \n]*')
_ENTITY = re.compile(r'&(?:#\d+|#[xX][0-9a-fA-F]+|[a-zA-Z]\w*);')
_TAG = re.compile(
  r'<(?:!doctype\b|!--|/[a-z][\w:-]*\s*>|(?:a|article|b|blockquote|body|br|button|center|code|div|em|font|footer|form|h[1-6]|head|'
  r'header|hr|html|i|iframe|img|input|label|li|link|main|meta|nav|object|ol|option|p|pre|script|section|select|small|span|strong|'
  r'style|sub|sup|svg|table|tbody|td|textarea|th|title|tr|u|ul|video)(?:\s[^<>]*|\s*/?)>)',
  re.IGNORECASE,
)
_LINK = re.compile(r'(?:https?://|www\.)\S+')
_SEPARATORS = re.compile('[|•»›¦▪►→←]')
_SHORT_LINE = 40  # characters
_RUN = 12  # letters


@config.configurable(commands=())
@dataclasses.dataclass(frozen=True)
class Filters:
  """What a document must be.

  Attributes:
    least_characters, most_characters: length of the text as it is kept, 1 or more; CJK texts carry
      more in as many.
    long: 'drop' what is longer, or 'cut' it at the last end of a sentence within most_characters
      (Thai, Lao, Burmese, Khmer: at the last space); what has none is dropped.
    least_confidence: of the language, 0..1; 0 = the language is not identified.
    language_bytes: UTF-8 bytes at the beginning from which the language is identified; 1 or more.
    least_letters: share of letters and their marks among all that is not a space, 0..1; 0 = any.
    most_repeated_lines: share of the characters that stand in lines that stood before, 0..1; 1 =
      any.
    most_repeated_text: share of the runs of 12 letters and digits that stood before, 0..1; 1 = any.
    most_short_lines: share of lines under 40 characters without an end of sentence, among five
      lines or more, 0..1; 1 = any.
    most_ellipses: share of lines that end in an ellipsis, 0..1; 1 = any.
    most_separators: share of characters that divide menus (| • » and such), 0..1; 1 = any.
    most_links: share of the characters that belong to http addresses, 0..1; 1 = any.
    most_braces: share of the characters that are { or }, 0..1; 1 = any.
    most_notices: different phrases of web pages ('privacy policy', 'log in') in the language and in
      English, see notices.toml; 0 or more.
    near_duplicate: estimated Jaccard index of their 5-letter shingles from which two texts are
      nearly the same, 0..1; see `duplicates.THRESHOLD`. Texts made by pattern (weather, prices)
      need more.
    common_line: a line or sentence of ten characters or more that stands in so many kept documents
      is boilerplate, in any language; 2 or more, 0 = never.
    most_common_lines: share of the characters that stand in such lines, 0..1; 1 = any.
  """

  least_characters: int = 200
  most_characters: int = 2000
  long: str = 'drop'
  least_confidence: float = 0.7
  language_bytes: int = language_id.LIMIT
  least_letters: float = 0.7
  most_repeated_lines: float = 0.2
  most_repeated_text: float = 0.3
  most_short_lines: float = 0.5
  most_ellipses: float = 0.3
  most_separators: float = 0.01
  most_links: float = 0.1
  most_braces: float = 0.005
  most_notices: int = 1
  near_duplicate: float = THRESHOLD
  common_line: int = 20
  most_common_lines: float = 0.3

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.name == 'long':
        legal, wanted = value in ('drop', 'cut'), "'drop' or 'cut'"
      elif isinstance(field.default, float):
        legal, wanted = (
          isinstance(value, (int, float)) and 0 <= value <= 1,
          'a share between 0 and 1',
        )
      else:
        least = 0 if field.name in ('most_notices', 'common_line') else 1
        legal, wanted = (
          isinstance(value, int) and value >= least and value is not True,
          f'an integer from {least} on',
        )
      if not legal or (field.name == 'common_line' and value == 1):
        raise ValueError(f'Filters.{field.name} = {value!r}: it must be {wanted}')
    if self.least_characters > self.most_characters:
      raise ValueError(
        f'Filters.least_characters = {self.least_characters} is more than most_characters = '
        f'{self.most_characters}: '
        'nothing can be kept'
      )


def check_language(language: str, filters: Filters) -> None:
  """Raises ValueError if this language cannot be identified."""
  if filters.least_confidence > 0 and language not in language_id.CANDIDATES:
    raise ValueError(
      f'language identification does not know {language!r} (it knows '
      f'{", ".join(language_id.CANDIDATES)}); '
      'set Filters.least_confidence=0 to take all documents for that language'
    )


def clean(text: str, language: str, filters: Filters) -> tuple[str, str | None]:
  """(cleaned text, None), or ('', reason from `REASONS`) if the document is dropped.

      clean('<p>Habari</p>', 'sw', Filters()) -> ('', 'html')

  Cleaning is idempotent.
  """
  if len(text) > 16 * filters.most_characters:
    if filters.long == 'drop':
      return '', 'too_long'
    text = text[: 16 * filters.most_characters]  # a longer text is not normalised completely
  unusual = _unusual(text)
  if unusual and _DAMAGED.search(text) or _SUSPECT.search(text) and badness.is_bad(text):
    return '', 'encoding'
  if unusual and len(_BINARY.findall(text)) > 0.01 * len(text):
    return '', 'binary'
  text = normalise(text)
  if not text:
    return '', 'empty'
  if _TAG.search(text):
    return '', 'html'
  if len(text) > filters.most_characters:
    text = cut(text, language, filters.most_characters) if filters.long == 'cut' else ''
    if len(text) < filters.least_characters:
      return '', 'too_long'
  if len(text) < filters.least_characters:
    return '', 'too_short'
  reason = (
    _form(text, filters) or _boilerplate(text, language, filters) or _repetition(text, filters)
  )
  if reason is None and filters.least_confidence > 0:
    identified, confidence = language_id.identify(text, filters.language_bytes)
    if identified != language:
      reason = 'other_language'
    elif confidence < filters.least_confidence:
      reason = 'uncertain_language'
  return ('', reason) if reason else (text, None)


def why_dropped(text: str, language: str, filters: Filters) -> str | None:
  """The one reason from `REASONS`, or None if the document is kept."""
  return clean(text, language, filters)[1]


def normalise(text: str) -> str:
  """The text in the form that the docstring of this module describes; idempotent."""
  for _ in range(8):  # NB: a removal may create a new entity, or letters that now compose
    before, text = text, _normalised(text)
    if text == before:
      break
  return text


def _normalised(text: str) -> str:
  if '&' in text:
    text = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
  unusual = _unusual(text)
  if unusual:
    text = _JOINER.sub('', _GONE.sub('', _LINE_ENDS.sub('\n', text)))
  text = unicodedata.normalize('NFC', text)
  if unusual or '  ' in text:
    text = _SPACES.sub(' ', text)
  if '\n' in text:
    text = _AROUND_LINES.sub(lambda match: '\n\n' if match[0].count('\n') > 1 else '\n', text)
  return text.strip()


def _unusual(text: str) -> bool:
  """Whether the slow patterns must be tried, which most texts do not need."""
  return bool(_unusual_codes()[np.minimum(characters.codes(text), 0x10000)].any())


@functools.cache
def _unusual_codes() -> np.ndarray:
  table = np.ones(0x10001, bool)
  patterns = (_GONE, _LINE_ENDS, _DAMAGED)
  for code in range(0x10000):
    character = chr(code)
    table[code] = character not in ' \n' and (
      character in '\u200c\u200d'
      or character.isspace()
      or any(pattern.match(character) for pattern in patterns)
    )
  return table


def cut(text: str, language: str, most: int) -> str:
  """The beginning of a normalised text up to the last end of a sentence within `most` characters;
  '' if there is none.

  cut('One is here. Two is here. Three is here.', 'en', 30) == 'One is here. Two is here.'
  """
  if len(text) <= most:
    return text
  end = 0
  for match in _SENTENCE.finditer(text, 0, most + 1):
    if match.end() <= most:
      end = match.end()
  if language in _UNSPACED and end < most // 2:
    end = max(end, text.rfind(' ', 0, most + 1))
  return text[:end].strip()


def _form(text: str, filters: Filters) -> str | None:
  kinds = characters.kinds(characters.codes(text))
  counts = np.bincount(kinds, minlength=4)
  letters = counts[characters.LETTER]
  if letters < filters.least_letters * (len(text) - counts[characters.SPACE]):
    return 'letters'
  lines = _lines(text)
  if len(lines) == 1:
    return None
  repeated, seen = 0, set()
  for line in lines:
    if line in seen:
      repeated += len(line)
    seen.add(line)
  return 'repeated_lines' if repeated > filters.most_repeated_lines * len(text) else None


@functools.cache
def _notices(language: str) -> tuple[str, ...]:
  """Phrases of web pages in a language and in English."""
  phrases = tomllib.loads(Path(__file__).with_name('notices.toml').read_text(encoding='utf-8'))
  own = phrases.get(language, []) + phrases['en']
  return tuple(dict.fromkeys(unicodedata.normalize('NFC', phrase) for phrase in own))


def _boilerplate(text: str, language: str, filters: Filters) -> str | None:
  lines = _lines(text)
  short = sum(len(line) < _SHORT_LINE and line[-1] not in _ENDS for line in lines)
  if len(lines) >= 5 and short > filters.most_short_lines * len(lines):
    return 'short_lines'
  if sum(
    line.endswith(('...', '…', '[…]', '[...]')) for line in lines
  ) > filters.most_ellipses * len(lines):
    return 'ellipses'
  if len(_SEPARATORS.findall(text)) > filters.most_separators * len(text):
    return 'menu'
  if sum(map(len, _LINK.findall(text))) > filters.most_links * len(text):
    return 'links'
  if text.count('{') + text.count('}') > filters.most_braces * len(text):
    return 'code'
  lower = text.lower()
  notices = sum(phrase in lower for phrase in _notices(language))
  return 'notices' if notices > filters.most_notices else None


def _repetition(text: str, filters: Filters) -> str | None:
  runs = np.sort(characters.shingles(characters.folded(characters.codes(text)), _RUN))
  again = np.count_nonzero(runs[1:] == runs[:-1])
  return 'repeated_text' if again > filters.most_repeated_text * len(runs) else None


def sentences(text: str) -> list[str]:
  """The different lines of a text, and the sentences of lines with several; at least one a line."""
  found: dict[str, None] = {}
  for line in _lines(text):
    start = 0
    for match in _SENTENCE.finditer(line):
      found[line[start : match.end()].strip()] = None
      start = match.end()
    found[line[start:].strip()] = None
  found.pop('', None)
  return list(found)


def _lines(text: str) -> list[str]:
  return [line for line in text.split('\n') if line]
