"""Text in the form in which answers are read: without marks of formatting, in lower case."""

import functools
import re
import unicodedata

from crossin_jax.evaluation.answers.choices import CIRCLED

_COMMANDS = re.compile(r'\\(?:text|math)?(?:bf|rm|it|sf|tt)?\b')
_FRACTION = re.compile(r'\\[dt]?frac\{([\w.]+)\}\{([\w.]+)\}')
_TAGS = re.compile(r'</?\w[^<>]*>')
_MARKS = str.maketrans(
  dict.fromkeys('*`#$\\{}~\u0640\u200b\u200c\u200d\u200e\u200f\ufeff', '')
  | dict(zip('‘’“”‚„−‐', '\'\'""""--'))
  | dict.fromkeys('✅☑✔', '✓')
  | dict.fromkeys('❌✖✘✕', '✗')
  | dict.fromkeys('\r\v\f\x85\u2028\u2029', '\n')
)
_MARKED = re.compile(f'[{re.escape("".join(map(chr, _MARKS)))}]')
_CIRCLED = re.compile(f'[{"".join(map(chr, CIRCLED))}]')
_PLAIN = re.compile(r'\w+(?:[ ,:()-]{1,2}\w+)*')  # nothing to clean
_CROSSES = re.compile('(?<=[:|])( ?)×(?= ?(?:[\\n|]|$))')  # a verdict, not 'times'
_CIRCLES = re.compile('(?<=[:|])( ?)[○◯](?= ?(?:[\\n|]|$))')
# Letters with their marks, which \\w leaves out in the scripts of India.
_MARK = r'[\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0963\u0966-\u0dff]'
LETTER = rf'(?:[^\W\d_]|{_MARK})'
_LETTERS = rf'(?:[^\W\d_]++|{_MARK}++)++'
WORD = re.compile(f"{_LETTERS}(?:'{_LETTERS})*+")
_ASCII_WORD = re.compile("[a-z]+(?:'[a-z]+)*")


def clean(text: str) -> str:
  """NFKC without Markdown, LaTeX and tags; \\boxed{} and <answer> become 'answer:'."""
  if '_' not in text and _PLAIN.fullmatch(text) and unicodedata.is_normalized('NFKC', text):
    return text
  if '\\' in text:
    text = _FRACTION.sub(r'\1/\2', text)
    text = _COMMANDS.sub('', text.replace('\\boxed', ' answer: '))
  if '<' in text:
    text = _TAGS.sub(' ', text.replace('<answer>', ' answer: '))
  if not text.isascii():
    text = text.translate(CIRCLED) if _CIRCLED.search(text) else text
    text = unicodedata.normalize('NFKC', text)
  if _MARKED.search(text):
    text = text.translate(_MARKS)
  text = text.replace('__', '').replace('...', '\ue0ff')
  lines = [' '.join(line.split()) for line in text.split('\n')]
  text = lines[0] if len(lines) == 1 else '\n'.join(filter(None, lines))
  if '×' in text or '○' in text or '◯' in text:
    text = _CIRCLES.sub(r'\1✓', _CROSSES.sub(r'\1✗', text))
  return text


def fold(text: str) -> str:
  """Lower case, of the same length."""
  folded = text.lower()
  if len(folded) == len(text):
    return folded
  return ''.join(c.lower() if len(c.lower()) == 1 else c for c in text)


def squeezed(text: str) -> str:
  """NFKC, case-folded, runs of white space as one space."""
  if text.isascii():
    return ' '.join(text.lower().split())
  return ' '.join(unicodedata.normalize('NFKC', text).casefold().split())


def bare(text: str) -> str:
  """Without punctuation at the ends; keeps a sign before a digit and a per cent sign."""
  while text and _is_edge(text[0]) and not (text[0] == '-' and text[1:2].isdigit()):
    text = text[1:]
  while text and _is_edge(text[-1]):
    text = text[:-1]
  return text


@functools.lru_cache(4096)
def _is_edge(character: str) -> bool:
  is_punctuation = unicodedata.category(character).startswith('P') and character not in '%‰'
  return character.isspace() or is_punctuation


@functools.lru_cache(4096)
def kind(c: str) -> str:
  """'' = no part of a word; 'free' = of a script without spaces; 'kana'; 'hangul'; 'word'."""
  if c == '' or unicodedata.category(c)[0] not in 'LMN':
    return ''
  code = ord(c)
  if 0x30A0 <= code <= 0x30FF:
    return 'kana'
  if 0xAC00 <= code <= 0xD7A3 or 0x3130 <= code <= 0x318F:
    return 'hangul'
  if 0x0E00 <= code <= 0x0EFF or 0x1000 <= code <= 0x109F or 0x1780 <= code <= 0x17FF:
    return 'free'
  if 0x3040 <= code <= 0x309F or 0x3400 <= code <= 0x9FFF or 0x20000 <= code <= 0x3FFFF:
    return 'free'
  return 'word'


@functools.lru_cache(4096)
def is_in_word(c: str) -> bool:
  """Whether a word of a script with spaces may have the character."""
  return c == "'" or kind(c) == 'word'


@functools.lru_cache(1 << 14)
def joined(left: str, right: str) -> bool:
  """Whether no word ends between two characters."""
  if right and unicodedata.category(right)[0] == 'M':
    return True
  return kind(left) == kind(right) and kind(left) in ('word', 'kana', 'hangul')


def find_words(text: str) -> list[str]:
  """All words of a text in lower case."""
  return (_ASCII_WORD if text.isascii() else WORD).findall(text)
