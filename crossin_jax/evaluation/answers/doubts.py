"""Where a text supposes something, or says what it held true at first."""

import functools
import re

from crossin_jax.evaluation.answers import words

_SENTENCE = re.compile('[^.!?。।؟\n]+')
_CLAUSE_END = re.compile('[.!?。।؟\n;,،、，]')


def spans(folded: str, languages: frozenset[str]) -> list[tuple[int, int]]:
  """Start and end of the parts whose options are not meant as the answer.

  'paris would be right if it were in peru' is all of it
  'at first i thought of paris, but it is lima' is the part before the comma
  """
  found = []
  supposed, first = _cues(languages, folded.isascii())
  if any(word in folded for word, *_ in supposed):
    for sentence in _SENTENCE.finditer(folded):
      for word, pattern, unreal in supposed:
        at = word in sentence[0] and pattern.search(sentence[0])
        beside = at and unreal and unreal.search(sentence[0])
        if at and (beside or not unreal):
          start = 0 if beside and beside.start() < at.start() else at.start()
          found.append((sentence.start() + start, sentence.end()))
  for word, pattern in first:
    if word in folded:
      for match in pattern.finditer(folded):
        # 'At first, ...' has a comma of its own.
        end = _CLAUSE_END.search(folded, match.end() + 1)
        found.append((match.start(), end.start() if end else len(folded)))
  return found


@functools.cache
def _cues(languages: frozenset[str], is_ascii: bool):
  """(word, its pattern, pattern of verb forms or None), and (phrase, its pattern); ASCII ones."""
  supposed, first = [], []
  for entry in map(words.of_language, sorted(languages)):
    unreal = entry.get('unreal')
    unreal = _pattern(unreal) if unreal else None
    supposed += [(word, _pattern([word]), unreal) for word in entry.get('supposed', ())]
    first += [(word, _pattern([word])) for word in entry.get('first', ())]
  return tuple(
    [cue for cue in cues if not is_ascii or cue[0].isascii()] for cues in (supposed, first)
  )


def _pattern(phrases) -> re.Pattern:
  """The phrases as words of their own, but for scripts without spaces."""
  spaced = [p for p in phrases if not words.is_unspaced(p)]
  parts = [rf'(?<!\w){re.escape(p)}(?!\w)' for p in spaced]
  return re.compile('|'.join(parts + [re.escape(p) for p in phrases if p not in spaced]))
