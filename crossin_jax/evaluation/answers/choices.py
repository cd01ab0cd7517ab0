"""Labels of answer options: '(A) ', 'B.', and the letters of other scripts."""

from collections.abc import Sequence
import functools
import re
import unicodedata

LETTERS = 'ABCDEFGHIJ'  # the published rule knows ten letters
# Letters in the order in which readers of a script number options.
_ALPHABETS = """
АБВГДЕЖЗИК ΑΒΓΔΕΖΗΘΙΚ أبجدهوزحطي ابجدهوزحطي אבגדהוזחטי कखगघङचछजझञ अबसद অআইঈউঊঋএঐও
কখগঘঙচছজঝঞ அஆஇஈஉஊஎஏஐஒ అఆఇఈఉఊఎఏఐఒ కఖగఘఙచఛజఝఞ ಅಆಇಈಉಊಎಏಐಒ കഖഗഘങചഛജഝഞ કખગઘઙચછજઝઞ ਕਖਗਘਙਚਛਜਝਞ
กขคงจฉชซฌญ ກຂຄງຈສຊຍດຕ កខគឃងចឆជឈញ ကခဂဃငစဆဇဈည ሀለሐመሠረሰሸቀበ აბგდევზთიკ ԱԲԳԴԵԶԷԸԹԺ 甲乙丙丁戊己庚辛壬癸
アイウエオカキクケコ 가나다라마바사아자차 ㄱㄴㄷㄹㅁㅂㅅㅇㅈㅊ
""".split()
# Names of the first Latin letters in other scripts.
_NAMES = """
ए बी सी डी ई | এ বি সি ডি ই | എ ബി സി ഡി ഇ | ఎ బి సి డి ఇ | ஏ பி சி டி ஈ | એ બી સી ડી ઈ |
ಎ ಬಿ ಸಿ ಡಿ ಇ | اے بی سی ڈی ای | الف ب ج د ه | เอ บี ซี ดี อี
"""
CIRCLED = {0x2460 + i: 0xE000 + i for i in range(10)}  # NFKC would make digits of circled numbers
_LATIN_PREFIX = re.compile(r'^\s*\(?([A-J])[).:]\s*')
_PREFIX = re.compile(r'\s*[(\[]?\s*(\w{1,2})\s*[)\].:、]\s*')


def _native() -> dict[str, int]:
  """Label in lower case -> option, of all scripts but Latin."""
  labels = {chr(0xE000 + i): i for i in range(10)}
  for group in _NAMES.split('|'):
    labels |= {unicodedata.normalize('NFKC', name): i for i, name in enumerate(group.split())}
  for alphabet in _ALPHABETS:
    labels |= {unicodedata.normalize('NFKC', c).lower(): i for i, c in enumerate(alphabet)}
  return labels


_NATIVE = _native()


def check(choices: Sequence[str]) -> None:
  """Raises ValueError unless there are 2 to 10 choices."""
  if not 2 <= len(choices) <= len(LETTERS):
    raise ValueError(f'{len(choices)} choices; between 2 and {len(LETTERS)} are supported')


def choice_text(choice: str) -> str:
  """The choice without its letter: '(A) Paris' -> 'Paris'."""
  return _LATIN_PREFIX.sub('', choice, count=1).strip()


@functools.cache
def labels_of(count: int, are_numbers: bool) -> dict[str, int]:
  """The numbers of `count` options, or their letters in any script in lower case -> option."""
  if are_numbers:
    return {str(i + 1): i for i in range(count)}
  letters = _NATIVE | {letter.lower(): i for i, letter in enumerate(LETTERS)}
  return {label: i for label, i in letters.items() if i < count}


def split_labels(choices: Sequence[str]) -> tuple[dict[str, int], list[str]]:
  """Letters that may name the choices, and the choices without theirs; none if they have none.

  Choices that begin with '(A)', 'A.' ... may be named by the letters of other scripts too; those
  that begin with '1.' ... by their numbers.
  """
  matches = [_PREFIX.match(unicodedata.normalize('NFKC', choice)) for choice in choices]
  if all(matches):
    own = [match[1].lower() for match in matches]
    for are_numbers in (True, False):
      labels = labels_of(len(own), are_numbers)
      if all(labels.get(label) == i for i, label in enumerate(own)):
        return labels, [choice[match.end() :].strip() for choice, match in zip(choices, matches)]
  return {}, list(choices)
