"""The protocol `seaeval`: always an option, by the rule of the benchmark's published scorer.

It is `heuristic_align` of TiGEr-Eval (docs/design/methods.md#a-6-answer-extraction), so its figures
are comparable with published ones. Where that rule draws at random, the draw here is a hash of
(item, language, prompt): a file always gets the same score, and the draws of two languages are
independent.
"""

from collections import Counter
from collections.abc import Sequence
import hashlib
import re

from crossin_jax.evaluation.answers.choices import LETTERS, check

_SEGMENT = re.compile(r'[^!?。.]+[!?。.]?')  # newlines do not end a segment
_NO_SEGMENT = 'nothing here actually'  # the published replacement of a text without segments
_CHINESE_PUNCTUATION = str.maketrans('，。“”‘’！？【】《》（）', ',.""\'\'!?[]<>()')
_SEGMENT_EDGES = '(。$,|！\\!.？?)，；：…—·《》“”‘’{}[]（）、/\n\t\r\v\f '
# Stands for an isolated upper-case A, so that the article "a" is not an answer. NB: its length (10)
# is the published one, and the longest keys come first.
_ISOLATED_A = ' ' + '\ue000' * 8 + ' '


def draw(n: int, *seeds) -> int:
  """A pseudo-random number below n: a hash of the seeds."""
  digest = hashlib.sha256('\x1f'.join(map(str, seeds)).encode()).digest()
  return int.from_bytes(digest[:8], 'big') % n


def seaeval(
  prediction: str, choices: Sequence[str], *, item_id: str = '', language: str = '', prompt: int = 1
) -> int:
  """The published rule, exactly; always an option 0..k-1.

  1. An empty text: a random option.
  2. Chinese punctuation becomes ASCII. '.', '!' and '?' cut the text into segments.
  3. Stage 1: search every segment for the complete choices (unchanged, lower, upper) and for '(A)'
     or '(a)'; the longest match is the vote of the segment. The majority wins; a tie is drawn.
  4. Stage 2, only if stage 1 finds nothing: search for the choices without their first four
     characters and for isolated letters (' b ', but for A only upper case), the longest first.
     Majority as before.
  5. No match: a random option.

  The draws are a hash of (item_id, language, prompt). The prefix of four characters is part of the
  rule, so choices should begin with '(A) '.
  """
  options = candidates(prediction, choices)
  if len(options) == 1:
    return options[0]
  return options[draw(len(options), item_id, language, prompt)]


def candidates(prediction: str, choices: Sequence[str]) -> list[int]:
  """The options among which the rule draws; one if it finds one."""
  check(choices)
  leaders = _vote(prediction, *_keys(choices)) if prediction.strip() else []
  return leaders or list(range(len(choices)))


def _segments(text: str) -> list[str]:
  return _SEGMENT.findall(text) or [_NO_SEGMENT]


def _letter_keys(i: int) -> tuple[tuple[str, str], str]:
  """Keys of the letter of option i: in stage 1, and in stage 2."""
  letter = LETTERS[i]
  isolated = _ISOLATED_A if i == 0 else f' {letter.lower()} '
  return (f'({letter})', f'({letter.lower()})'), isolated


def _keys(choices: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
  """Keys of both stages in the order of the search: longest first, then by position."""
  # NB: a key shared by two choices keeps the position of the first and the value of the last, as in
  # the published rule.
  stage1: dict[str, int] = {}
  stage2: dict[str, int] = {}
  for i, choice in enumerate(choices):
    bracketed, isolated = _letter_keys(i)
    stage1 |= dict.fromkeys((choice, choice.lower(), choice.upper(), *bracketed), i)
    stage2 |= dict.fromkeys((isolated, choice[4:].lower()), i)
  # NB: cut to the first segment after sorting: the order stays that of the uncut texts.
  cut = {_segments(key)[0]: i for key, i in _longest_first(stage2).items()}
  return _longest_first(stage1), _not_single(cut)


def _longest_first(keys: dict[str, int]) -> dict[str, int]:
  return dict(sorted(keys.items(), key=lambda item: len(item[0]), reverse=True))


def _not_single(keys: dict[str, int]) -> dict[str, int]:
  return {key: i for key, i in keys.items() if len(key) > 1}


def _vote(prediction: str, stage1: dict[str, int], stage2: dict[str, int]) -> list[int]:
  """The leader of the vote as [option]; [option, option] for a tie; [] without any match."""
  segments = _segments(prediction.translate(_CHINESE_PUNCTUATION))
  votes: list[int] = []
  for segment in segments:
    matches = [key for text in (segment, segment.lower()) for key in stage1 if key in text]
    votes += [stage1[key] for key in sorted(matches, key=len, reverse=True)[:1]]
  if not votes:
    for segment in segments:
      padded = f' {segment.strip(_SEGMENT_EDGES)} '.replace(' A ', _ISOLATED_A).lower()
      votes += [stage2[key] for key in stage2 if key in padded][:1]
  leaders = Counter(votes).most_common(2)
  if len(leaders) == 2 and leaders[0][1] > leaders[1][1]:
    leaders = leaders[:1]
  return [option for option, _ in leaders]
