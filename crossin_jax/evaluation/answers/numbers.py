"""The number that a text gives as its answer (MGSM)."""

import re
import unicodedata

from crossin_jax.data.thoughts import without_thoughts
from crossin_jax.languages import languages

_SPACES = '\u00a0\u202f\u2009'  # between groups of three digits
_SIGNS = str.maketrans(
  {'٫': '.', '٬': ',', '，': ',', '．': '.', '−': '-', '－': '-', '’': "'"}
  | dict.fromkeys(_SPACES, '\u00a0')
)
_DASH = re.compile(r'(?<![\w)\]])(?<!\d )–(?=\d)')  # for a minus, as in 'it is –5'
_BEFORE_CURRENCY = re.compile(r'(?<![\w)\]])-([$€£¥₹₩])(?=\d)')
_ARABIC_COMMA = re.compile(r'(?<=\d)،(?=\d{3}(?!\d))')
_LATEX = re.compile(r'\\[,;!:]|\{,\}')
_NUMBER = re.compile(
  r'(?<![\w.,])-?\d{1,3}(?:[ \u00a0\']\d{3})+(?:[.,]\d+)?(?!\d)'  # 1 234,5  1'234.5
  r'|(?:(?<![\w)\]]))?-?\d+(?:[.,]\d+)*'
)


def extracted_number(text: str, language: str = '') -> str:
  """The last number of a text as plain digits with a decimal point; '' without one.

  Digits of any script are read. Separators are those of the language; where a text has both, the
  last one is the decimal separator. Thoughts of a reasoning model are left out.

      'She makes $1,800.50 a day.' -> '1800.50'      '16 - 3 = 13' -> '13'
      in 'de': '1.800,50 €' -> '1800.50'             in 'bn': '১৮।' -> '18'

  Args:
    text: the answer.
    language: code; '' reads separators as in English.
  """
  text = _digits(_LATEX.sub(lambda match: ',' if ',' in match[0] else '', without_thoughts(text)))
  text = _BEFORE_CURRENCY.sub(r'\1-', _DASH.sub('-', text))
  matches = list(_NUMBER.finditer(text))
  if not matches:
    return ''
  found = matches[-1]
  number = found[0]
  if number[0] == '-' and found.start() and text[found.start() - 1].isalnum():
    number = number[1:]  # '16-3': a minus between two numbers
  return _plain(number, language)


def same_number(one: str, other: str) -> bool:
  """Whether two numbers have the same value: '18.00' equals '18'."""
  try:
    return float(one) == float(other)
  except ValueError:
    return False


def _digits(text: str) -> str:
  """ASCII digits and signs in place of those of other scripts."""
  if text.isascii():
    return text
  text = text.translate(_SIGNS)
  text = ''.join(
    str(unicodedata.decimal(c)) if not c.isascii() and unicodedata.category(c) == 'Nd' else c
    for c in text
  )
  return _ARABIC_COMMA.sub(',', text)


def _plain(number: str, language: str) -> str:
  number = re.sub("[ \u00a0']", '', number)
  kinds = [c for c in number if c in '.,']
  if not kinds:
    return number
  last = kinds[-1]
  head, _, tail = number.rpartition(last)
  if len(set(kinds)) == 2:
    is_decimal = kinds.count(last) == 1
  elif len(kinds) > 1:
    if not re.fullmatch(r'-?\d{1,3}(?:[.,]\d{2,3})*[.,]\d{3}', number):
      return number  # '1.2.3' is none
    is_decimal = False  # 1.234.567; in India 12,34,567
  else:
    entry = languages().get(language)
    decimal = ',' if entry and entry.decimal_comma else '.'
    # Three digits behind it: as the language has it. '0,125' has no group before it.
    is_decimal = last == decimal or len(tail) != 3 or head.lstrip('-') in ('', '0')
  head = head.replace('.', '').replace(',', '')
  return f'{head}.{tail}' if is_decimal else head + tail
