"""Where a text names the options of a question, by their texts or their letters."""

import dataclasses
import re

from crossin_jax.evaluation.answers import words
from crossin_jax.evaluation.answers.cleaning import WORD, joined, kind
from crossin_jax.evaluation.answers.options import KOREAN_IS, Options

STOPS = '.!?。।॥؟۔;…\ue0ff'
COMMAS = ',،、，'
_CLAUSE_ENDS = STOPS + '\n' + COMMAS
_CLOSERS = ' "\')]}」』》〉】|'
_WORDS_TOO = 'AEIАВИКΑΗΙ'  # capitals that may be words
_PARTICLES = tuple(
  '이 가 은 는 을 를 의 에 로 으로 와 과 도 만 입니다 라 예요 처럼 부터 까지'.split()
)
_MINUS = tuple(
  'minus,negative,menos,moins,negativo,минус,负,負,マイナス,마이너스,ลบ,سالب,âm'.split(',')
)
# Options that are words for yes and no, which also negate other words or are part of them.
_PARTICLES_OF_NO = frozenset(
  'no not non não nein không tidak bukan hindi hapana нет не 是 否 不 不是 नहीं ना لا نہیں না '
  'ไม่ ไม่ใช่ ใช่'.split()
)
BECAUSE = frozenset(
  'because since as porque pues car weil denn karena sebab vì çünkü потому поскольку क्योंकि কারণ '
  'ஏனெனில் لأن کیونکہ perché omdat kwa sababu and but while whereas y pero et mais und aber'.split()
)
_ELISION = re.compile("[CDJ]'[aeiouyhéèêâîô]|I'(?:m|d|ve|ll)\\b")  # 'C'est', 'I'm'
_POLITE = re.compile('(?:的|ครับ|ค่ะ|คะ)?')


@dataclasses.dataclass(slots=True)
class Mention:
  """An option that the text names, from `start` to `end`.

  Attributes:
    option: its index; None = two options at once ('A or B').
    firm: its text, or its letter in brackets: a mention wherever it stands.
    negated: 'not B', 'B is wrong', in a question, or in a case that is not given.
    stated: it is said to be the answer.
    label: it is a letter without the option's text.
    lettered: it begins with a letter.
  """

  start: int
  end: int
  option: int | None
  firm: bool
  negated: bool = False
  stated: bool = False
  label: bool = True
  lettered: bool = True


def find(text: str, folded: str, options: Options, roles: dict[str, str]) -> list[Mention]:
  """The mentions in a text, in its order; `folded` is the text in lower case."""
  found = _texts(text, folded, options)
  taken = bytearray(len(text))
  for mention in found:
    taken[mention.start : mention.end] = b'\1' * (mention.end - mention.start)
  if options.labels:
    for match in options.label_pattern(text.isascii()).finditer(text):
      start, end = match.span()
      if not taken[start]:
        mention = _label(text, start, end, options.labels[folded[start:end]], roles)
        found += [mention] if mention else []
  return (
    _merged(text, sorted(found, key=lambda mention: mention.start)) if len(found) > 1 else found
  )


def char(text: str, at: int) -> str:
  return text[at] if 0 <= at < len(text) else ''


def ends_clause(text: str, at: int) -> bool:
  """Whether nothing but quotes and brackets stands between `at` and the end of a clause."""
  while at < len(text) and text[at] in _CLOSERS:
    at += 1
  return at >= len(text) or text[at] in _CLAUSE_ENDS


def _texts(text: str, folded: str, options: Options) -> list[Mention]:
  """Where the options' texts stand, longer ones first, as words of their own."""
  found, taken = [], bytearray(len(folded))
  for key, option in options.keys:
    at = folded.find(key)
    while at >= 0:
      end = at + len(key)
      if (
        not any(taken[at:end])
        and _is_word(text, folded, at, end)
        and (key not in _PARTICLES_OF_NO or _is_said(text, folded, at, end, options.labels))
      ):
        taken[at:end] = b'\1' * len(key)
        if option is not None:
          found.append(Mention(at, end, option, firm=True, label=False, lettered=False))
      at = folded.find(key, at + 1)
  return found


def _is_said(text: str, folded: str, at: int, end: int, labels: dict[str, int]) -> bool:
  """Whether a word like 'no' is an answer: 'no, ...', '(B) No one', 'no because', 'no - ...'."""
  end = _POLITE.match(text, end).end()
  if ends_clause(text, end) or folded[max(0, at - 4) : at].strip(' .:)(]\n') in labels:
    return True
  behind = folded[end : end + 12].lstrip(' "\')')
  if behind.partition(' ')[0] in BECAUSE:
    return True
  is_first = not at or text[:at].rstrip(' "\'(')[-1:] in ('', ':', '\n')
  return is_first and behind[:1] in ('-', '–', '—', ':')


def _is_word(text: str, folded: str, start: int, end: int) -> bool:
  before, first, last, after = (
    char(text, start - 1),
    text[start],
    text[end - 1],
    text[end : end + 1],
  )
  if before and joined(before, first):
    return False
  if after and joined(last, after) and not text.startswith(_PARTICLES, end):
    return False
  if first.isdigit() and (
    folded.endswith(_MINUS, 0, max(0, start - (before == ' ')))
    or (before in '.,' and before and char(text, start - 2).isdigit())
    or (before in '-−' and before and not kind(char(text, start - 2)))
  ):
    return False
  return not (last.isdigit() and after in '.,' and after and char(text, end + 1).isdigit())


def _label(text: str, start: int, end: int, option: int, roles: dict[str, str]) -> Mention | None:
  """A letter that stands by itself, in brackets or not."""
  letter, before, after = text[start:end], char(text, start - 1), text[end : end + 1]
  is_hangul = kind(letter[0]) == 'hangul'
  if is_hangul and text.startswith(KOREAN_IS, end):
    after = ' '
  if before and joined(before, letter[0]) or after and joined(letter[-1], after):
    return None
  if before and before in '([' and after and after in ')]':
    return Mention(start - 1, end + 1, option, firm=True)
  if after and kind(after) == kind(letter[-1]):  # of a script without spaces
    return None
  if is_hangul and before and kind(before):  # 'B가': a particle
    return None
  if after == "'" and _ELISION.match(text, start):
    return None
  if _is_part(text, start, end, before, after):
    return None
  if after == ')' and before != '(':
    return Mention(start, end + 1, option, firm=True)
  if letter.islower():
    rest = text[end:].lstrip(' "\')')
    if rest and rest[0] not in STOPS + '\n,:،、':
      return None
  elif letter.isupper() and after == ' ' and letter in _WORDS_TOO:
    if _is_word_here(text, end + 1, roles):
      return None
  return Mention(start, end, option, firm=False)


def _is_part(text: str, start: int, end: int, before: str, after: str) -> bool:
  """Whether the letter is tied to others: 'vitamin-B', 'A+'; but not in 'B'dir' and 'B's right'."""
  tied = "'-+&@#_"
  if before and before in tied and kind(char(text, start - 2)):
    return True
  if after and after in tied[1:] and (after == '+' or kind(char(text, end + 1))):
    return True
  return (before == '.' and kind(char(text, start - 2)) == 'word') or (
    after == '.' and kind(char(text, end + 1)) == 'word'
  )  # 'U.S.A'


def _is_word_here(text: str, at: int, roles: dict[str, str]) -> bool:
  """Whether the capital letter before `at` is a word: 'A city', 'A resposta', 'В России'."""
  match = WORD.match(text, at)
  letter = text[at - 2]
  if not match or (ord(match[0][0]) < 0x250) != letter.isascii():
    return False  # of another script
  word = match[0]
  if word != word.lower():
    return not word[0].isascii() and letter in 'ВКИ'
  role = roles.get(word)
  if letter == 'I' and word not in ('is', 'was', 'seems', 'or'):
    return word not in BECAUSE
  if word in BECAUSE or role in ('between', 'not', 'or') and word not in words.articled():
    return False
  return role in (None, 'option') or word in words.articled()


def _merged(text: str, found: list[Mention]) -> list[Mention]:
  """Neighbours that name the same option become one: 'B) Lima'."""
  merged = found[:1]
  for mention in found[1:]:
    last = merged[-1]
    if mention.start < last.end:
      continue
    between = text[last.end : mention.start]
    is_repeated = last.label and mention.label and ',' in between
    is_same = last.option == mention.option and not between.strip(' .:-–—,()[]"\'')
    if is_repeated or not is_same:
      merged.append(mention)
      continue
    last.end, last.firm, last.label = mention.end, last.firm or mention.firm, False
    while last.end < len(text) and text[last.end] in ')]':
      last.end += 1
  return merged
