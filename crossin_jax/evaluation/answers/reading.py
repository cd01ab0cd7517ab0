"""What a text says of the options that it mentions."""

from collections.abc import Iterator
import re

from crossin_jax.evaluation.answers import doubts, mentions, words
from crossin_jax.evaluation.answers.cleaning import WORD, is_in_word, joined, kind
from crossin_jax.evaluation.answers.mentions import BECAUSE, COMMAS, STOPS, Mention, ends_clause
from crossin_jax.evaluation.answers.options import Options

_STOP = re.compile('[.!?。।؟\n]')
_OPENERS = ' \n"\'([{「『《〈【】]|:=-–—―>→،,、，'
_CLOSERS = ' "\')]}」』》〉】|:-–—―'
_ALSO = ('도', 'も', 'でも')
_MARK = re.compile('[✓✗]')
_COPULAS = re.compile('(?:です|である|だ|입니다|이다)?')
_DIGITS = re.compile(r'\d+$')
_MOST_WORDS = 4  # of a phrase


class Reading:
  """A text and the options that it mentions.

  Attributes:
    text: without marks of formatting.
    mentions: the options in it, with what is said of them.
  """

  def __init__(self, text: str, folded: str, options: Options, language: str):
    self.text, self._folded = text, folded
    vocabulary = words.spoken(folded, language)
    self._roles, self._now = vocabulary.roles, vocabulary.now
    self.mentions = mentions.find(text, folded, options, self._roles)
    if not self.mentions:
      return
    self._starts = {mention.start for mention in self.mentions}
    self._ends = {mention.end for mention in self.mentions}
    mark = not text.isascii() and _MARK.search(text)
    self._marks_follow = bool(mark) and mark.start() > self.mentions[0].start
    self._is_contracted = "n't" in folded
    self._negated: set[int] = set()  # ends of mentions
    self._previous = 0  # end of the mention before the one that is read
    for mention in self.mentions:
      self._read(mention)
    self._join()
    if len({mention.option for mention in self.mentions if not mention.negated}) > 1:
      self._doubt(vocabulary.languages)

  def line_starts(self) -> Iterator[tuple[Mention, str]]:
    """The first mention of each line, if the line begins with it, and what follows it there."""
    end = -1
    for mention in self.mentions:
      if mention.start > end:
        start = self.text.rfind('\n', 0, mention.start) + 1
        end = self.text.find('\n', mention.start)
        end = len(self.text) if end < 0 else end
        if not self.text[start : mention.start].strip(' -•·"\'(['):
          yield mention, self.text[mention.end : end].lstrip(' "\')]')

  def _read(self, mention: Mention) -> None:
    left, starts = self._left(mention.start)
    right = self._right(mention.end) or self._verdict(mention)
    stop = _STOP.search(self.text, mention.end)
    is_asked = stop is not None and stop[0] in '?؟'
    mention.negated = 'not' in left or 'not' in right or is_asked
    ends = ('now' in left or 'between' in left) and self._ends_sentence(mention)
    said = left | right
    mention.stated = (
      'answer' in said or 'right' in said or 'but' in said or ('now' in left and ends)
    )
    mention.firm = mention.firm or starts or ends or 'option' in left
    self._previous = mention.end
    if mention.negated:
      self._negated.add(mention.end)

  def _ends_sentence(self, mention: Mention) -> bool:
    at = _COPULAS.match(self.text, mention.end).end()
    rest = self.text[at : at + 4].lstrip(' "\')]')
    if mention.label and rest[:2] == '. ' and rest[2:3].isupper():
      return False  # 'It was D. Lawrence'
    return ends_clause(self.text, at) and rest[:1] not in tuple(COMMAS)

  def _verdict(self, mention: Mention) -> set[str]:
    """'A. Wrong', 'B, correct' and 'C (right)', where nothing follows."""
    text = self.text
    at = mention.end + text.startswith(' ', mention.end)
    if at >= len(text) or text[at] not in ('(.,' if mention.label else '('):
      return set()
    at += 1 + text.startswith(' ', at + 1)
    size, role = self._word_behind(at)
    is_verdict = role == 'right' or role == 'not' and words.follows(self._folded[at : at + size])
    return {role} if is_verdict and ends_clause(text, at + size) else set()

  def _left(self, at: int) -> tuple[set[str], bool]:
    """Roles of the known words directly before, and whether they begin the sentence."""
    text = self.text
    found, above = set(), None  # above: what was found below a line break
    comma, start, listed = False, at, False
    while True:
      line, colon = False, False
      while at and text[at - 1] in _OPENERS:
        at -= 1
        comma |= text[at] in COMMAS
        line |= text[at] == '\n'
        colon |= text[at] == ':'
      if not at or text[at - 1] in STOPS:
        is_verdict = above is not None and at - 1 in self._ends  # 'A. Correct\nB. ...'
        return (above if is_verdict else found), True
      listed |= line and not colon
      if at in self._ends:
        if line:
          return found, True
        if above is not None:  # of the line above: said of its own option
          return above, True
        if at in self._negated and found:
          return found | {'but'}, False  # 'it is not A, it is B'
        if not comma:
          return found - {'answer', 'right', 'now'}, False  # 'B is the answer, A ...'
      size, role = self._word_before(at)
      word = self._folded[at - size : at]
      if role == 'not' and words.follows(word.strip()) and (behind := self._follows(at - size)):
        # 'A wrong B': said of the other; 'not A but B' in languages with the verb at the end.
        is_contrast = behind in self._negated and not line and word in words.behind()
        return (found if above is None else above) | ({'but'} if is_contrast else set()), True
      if comma and not found and not size:
        return found, False
      if word in self._now and self._starts_clause(at - size):
        return found | {'now'}, False
      if comma and not found:
        return found, False
      if not size:
        digits = _DIGITS.search(text, max(0, at - 6), at)
        if not digits:
          return found, False
        at -= len(digits[0])
        continue
      if role == 'but':
        # 'not A but B'; 'A is close, but B ...': B is named as A is.
        added = {'but'} if self._previous in self._negated else {'option'} if self._previous else ()
        return found.union(added), False
      if role == 'right' and self._folded[at:start].strip() in ('que', 'than', 'als', 'che'):
        return set(), False  # 'B est plus exacte que A'
      if role == 'or' or (role == 'not' and (comma or listed)):
        is_pair = role == 'or' and ' ' in word  # 'not only A': A is named as B is
        return found.union(('option',) if is_pair else ()), False
      if line and above is None:
        above = set(found)
      found.add(role)
      if role == 'not':
        return found, False
      at -= size

  def _starts_clause(self, at: int) -> bool:
    while at and self.text[at - 1] in ' "\'(':
      at -= 1
    return not at or kind(self.text[at - 1]) in ('', 'free')

  def _follows(self, at: int) -> int:
    """End of the mention that what begins at `at` speaks of ('A is wrong'); 0 = none."""
    for _ in range(3):
      while at and self.text[at - 1] in ' .:-–—=>→|")]':
        at -= 1
        if at + 1 in self._ends:
          return at + 1
      if at in self._ends:
        return at
      size, role = self._word_before(at) if at else (0, '')
      if not size or role not in ('between', 'option'):
        return 0
      at -= size
    return 0

  def _right(self, at: int) -> set[str]:
    """Roles of the known words directly behind."""
    found, text, marked = set(), self.text, False
    while True:
      while at < len(text) and text[at] in _CLOSERS:
        at += 1
      if at in self._starts:
        break
      size, role = self._word_behind(at)
      if role == 'not':
        behind, word = at + size, self._folded[at : at + size]
        while behind < len(text) and text[behind] in _OPENERS:
          behind += 1
        gap = text[at + size : behind]
        # 'B, not A', 'B rather than A': said of the other; 'A wrong, B right': of this one.
        is_of_other = behind in self._starts and not set(gap) & set('\n,،、，|')
        return found if is_of_other and not words.follows(word) and word != '✗' else found | {'not'}
      if not size or role in ('or', 'but', 'now'):
        break
      marked |= text[at] == '✓'
      found.add(role)
      at += size
    if 'right' in found and 'answer' not in found and not marked:
      word = WORD.match(self._folded, at)
      if word and word[0] not in BECAUSE:
        found.discard('right')
    return found

  def _doubt(self, languages: frozenset[str]) -> None:
    """Marks what is said of a case that is not given, or was held true at first."""
    doubted = bytearray(len(self._folded))
    for start, end in doubts.spans(self._folded, languages):
      doubted[start:end] = b'\1' * (end - start)
    if any(not mention.negated and not doubted[mention.start] for mention in self.mentions):
      for mention in self.mentions:
        # Texts that are not said to be the answer are told of: 'at first he lived in Paris'.
        mention.negated |= bool(doubted[mention.start]) and (mention.label or mention.stated)

  def _word_before(self, at: int) -> tuple[int, str]:
    """Size and role of the longest known phrase that ends at `at`; (0, '') = none does."""
    text, folded, roles = self.text, self._folded, self._roles
    last = text[at - 1]
    if last in '✓✗':
      if self._marks_follow:
        return 0, ''
      return 1, 'right' if last == '✓' else 'not'
    if words.is_unspaced(last):
      for size in words.sizes(-1).get(folded[at - 1], ()):
        role = size <= at and roles.get(folded[at - size : at])
        if role and (
          at == size
          or not joined(text[at - size - 1], text[at - size])
          or kind(text[at - size]) in ('free', 'hangul')
        ):
          return size, role
      return 0, ''
    start, best = at, (0, '')
    for _ in range(_MOST_WORDS):
      while start and is_in_word(text[start - 1]):
        start -= 1
      phrase = folded[start:at]
      role = roles.get(phrase) or self._role_of_variant(phrase)
      if role:
        best = at - start, role
      is_end = "'" in phrase or phrase in words.endings()  # or might be
      if not (is_end and start and text[start - 1] == ' '):
        break
      start -= 1
    return best

  def _role_of_variant(self, phrase: str) -> str | None:
    """The role of 'l'answer' in French, 'والجواب' in Arabic and 'isn't'."""
    if "'" in phrase:
      phrase = phrase.strip("'")
      if phrase.endswith("n't"):
        return 'not'
      if role := self._roles.get(phrase) or self._roles.get(phrase.partition("'")[2]):
        return role
    return self._roles.get(phrase.removeprefix('و').removeprefix('ف'))

  def _word_behind(self, at: int) -> tuple[int, str]:
    """Size and role of the longest known phrase that begins at `at`; (0, '') = none does."""
    text, folded, roles = self.text, self._folded, self._roles
    if at >= len(text):
      return 0, ''
    first = text[at]
    if first in '✓✗':
      if not self._marks_follow:
        return 0, ''
      return 1, 'right' if first == '✓' else 'not'
    if words.is_unspaced(first):
      best = 0, ''
      for size in words.sizes(0).get(folded[at], ()):
        role = roles.get(folded[at : at + size]) if at + size <= len(text) else None
        if role == 'not':  # before longer words
          return size, role
        if role and not best[0]:
          best = size, role
      return best
    end, best = at, (0, '')
    for _ in range(_MOST_WORDS):
      while end < len(text) and is_in_word(text[end]):
        end += 1
      phrase = folded[at:end]
      role = 'not' if phrase.endswith("n't") else roles.get(phrase)
      if role:
        best = end - at, role
      is_beginning = self._is_contracted or phrase in words.beginnings()  # or might be
      if not (is_beginning and text.startswith(' ', end)):
        break
      end += 1
    return best

  def _join(self) -> None:
    """'A or B', 'A/B': neither. 'B) Paris', where Paris is A: the letter counts."""
    for one, other in zip(list(self.mentions), self.mentions[1:]):
      if one.label and not other.label and not self.text[one.end : other.start].strip(' .:)-'):
        self.mentions.remove(other)
    for one, other in zip(self.mentions, self.mentions[1:]):
      between = self._folded[one.end : other.start].strip(' /,&+-()[]"\'،、')
      is_listed = self._roles.get(between) == 'or' or between in _ALSO
      if is_listed and one.negated != other.negated and not (one.stated or other.stated):
        one.negated = other.negated = True  # 'not A or B', 'A and B are wrong'
      is_joined = between == '' or is_listed
      if is_joined and one.option != other.option and not one.negated and not other.negated:
        if '\n' not in self.text[one.end : other.start]:
          one.option = other.option = None
          other.stated |= one.stated
