"""From the text a model wrote to the option it chose: the `strict` and the `seaeval` protocol.

Both answer with the index of an option; `strict` may say -1 (`UNPARSED`), `seaeval` always picks
one.

`seaeval` is the rule of the benchmark's published scorer (`heuristic_align` of TiGEr-Eval;
METHODS.md A.6), so that figures can be set beside published ones. Where that rule draws at random,
the draw here is a hash of (item, language, prompt): the same file always scores the same, and draws
in two languages are independent. `strict` never guesses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
import hashlib
import re
import unicodedata

from crossin_jax.evaluation.measures.consistency import UNPARSED

PROTOCOLS = ('strict', 'seaeval')
LETTERS = 'ABCDEFGHIJ'  # the published rule knows ten letters
_SEGMENT = re.compile(r'[^!?。.]+[!?。.]?')  # newlines do not end a segment
# what the published rule puts in place of a text without any segment
_NO_SEGMENT = 'nothing here actually'
_CHINESE_PUNCTUATION = str.maketrans('，。“”‘’！？【】《》（）', ',.""\'\'!?[]<>()')
_SEGMENT_EDGES = '(。$,|！\\!.？?)，；：…—·《》“”‘’{}[]（）、/\n\t\r\v\f '
# Stands for a lone upper-case A, so that the English article "a" is no answer. NB: its length (10)
# is the published one, and keys are tried from the longest.
_LONE_A = ' ' + '\ue000' * 8 + ' '
_PREFIX = re.compile(r'^\s*\(?([A-J])[).:]\s*')


def first_line(prediction: str) -> str:
  """The text up to the first newline: what a few-shot prompt asked for, without the examples the
  model went on to invent.
  """
  return prediction.split('\n', 1)[0]


def carries_letters(choices: Sequence[str]) -> bool:
  """Do the choices begin with '(A) ', '(B) ', ... (or 'A) ', 'A. ', 'A: ') in this order?"""
  matches = [_PREFIX.match(choice) for choice in choices]
  return all(match and match.group(1) == LETTERS[i] for i, match in enumerate(matches))


def choice_text(choice: str) -> str:
  """The choice without its letter: '(A) Paris' -> 'Paris'. A text without a letter is returned as
  it is.
  """
  match = _PREFIX.match(choice)
  return choice[match.end() :].strip() if match else choice.strip()


def extract(
  prediction: str,
  choices: Sequence[str],
  protocol: str = 'strict',
  *,
  item_id: str = '',
  language: str = '',
  prompt: int = 1,
) -> int:
  """Index of the option that `prediction` chooses, -1 where `strict` finds none.

  Args:
    prediction: what the model wrote. For few-shot runs pass `first_line(prediction)`.
    choices: the option texts as shown to the model, 2 to 10 of them, with or without '(A) '.
    protocol: 'strict' or 'seaeval'.
    item_id, language, prompt: seed the draws of `seaeval`; unused by `strict`.
  """
  if protocol == 'strict':
    return strict(prediction, choices)
  if protocol == 'seaeval':
    return seaeval(prediction, choices, item_id=item_id, language=language, prompt=prompt)
  raise ValueError(f'unknown protocol {protocol!r}; choose one of {", ".join(PROTOCOLS)}')


def strict(prediction: str, choices: Sequence[str]) -> int:
  """The option that the text names beyond doubt, else -1.

  1. The whole text (NFKC, case-folded, spaces and punctuation at its ends removed) equals exactly
    one choice, with or
     without its letter.
  2. The whole text is a letter: '(B)', 'B)', 'B.', 'B', if the choices carry letters.
  3. Otherwise the keys and the majority vote of `seaeval`; letters are keys only if the choices
    carry them, and wherever
     that rule would draw at random or go by key order (a tie, nothing found, an empty text) the
     answer is -1.

  Example:
    choices = ["(A) Paris", "(B) Lima"]
    "paris." -> 0    "b" -> 1    "(B) Lima" -> 1    "It is Lima, surely." -> 1    "Paris. Lima." -> -1    "" -> -1
  """
  _check(choices)
  lettered = carries_letters(choices)
  texts = [choice_text(choice) for choice in choices] if lettered else list(choices)
  for normalise in (str.strip, _fold, _fold_and_strip):
    wanted = normalise(prediction)
    equal = {
      i
      for i in range(len(choices))
      if wanted and wanted in (normalise(choices[i]), normalise(texts[i]))
    }
    if len(equal) == 1:
      return equal.pop()
    if len(equal) > 1:
      return UNPARSED
  letter = _fold_and_strip(prediction).upper()
  if lettered and len(letter) == 1 and letter in LETTERS[: len(choices)]:
    return LETTERS.index(letter)
  if not prediction.strip():
    return UNPARSED
  named = _vote(prediction, *_strict_keys(choices, texts, lettered), ties_are_open=True)
  return named[0] if len(named) == 1 else UNPARSED


def seaeval(
  prediction: str, choices: Sequence[str], *, item_id: str = '', language: str = '', prompt: int = 1
) -> int:
  """The published rule to the letter; always an option 0..k-1.

  1. An empty text: a random option.
  2. Chinese punctuation becomes ASCII; the text is cut into segments at '.', '!', '?'.
  3. Stage 1: in every segment look for the full choices (as they are, lower, upper) and '(A)' or
    '(a)'; the longest found is
     the segment's vote. The majority wins; between two leaders the draw is random.
  4. Stage 2, only if stage 1 found nothing: look for the choices without their first four
    characters, and for letters
     standing alone (' b ', but for A only upper case), the longest first. Majority as before.
  5. Nothing found: a random option.

  Random draws are a hash of (item_id, language, prompt). The prefix of four characters is part of
  the rule, so choices should begin with '(A) '.
  """
  _check(choices)
  named = (
    _vote(prediction, *_seaeval_keys(choices), ties_are_open=False) if prediction.strip() else []
  )
  candidates = named or list(range(len(choices)))
  if len(candidates) == 1:
    return candidates[0]
  return candidates[_draw(len(candidates), item_id, language, prompt)]


def _check(choices: Sequence[str]) -> None:
  if not 2 <= len(choices) <= len(LETTERS):
    raise ValueError(f'{len(choices)} choices; between 2 and {len(LETTERS)} are supported')


def _draw(n: int, item_id: str, language: str, prompt: int) -> int:
  digest = hashlib.sha256('\x1f'.join((str(item_id), language, str(prompt))).encode()).digest()
  return int.from_bytes(digest[:8], 'big') % n


def _fold(text: str) -> str:
  """NFKC, case-folded, runs of white space as one space."""
  return ' '.join(unicodedata.normalize('NFKC', text).casefold().split())


def _fold_and_strip(text: str) -> str:
  """`_fold`, then punctuation at both ends removed; a sign before a digit and a per cent sign
  belong to the value.
  """
  text = _fold(text)
  start, end = 0, len(text)
  while (
    start < end
    and _is_edge(text[start])
    and not (text[start] == '-' and text[start + 1 : start + 2].isdigit())
  ):
    start += 1
  while end > start and _is_edge(text[end - 1]):
    end -= 1
  return text[start:end]


def _is_edge(character: str) -> bool:
  return character.isspace() or (
    unicodedata.category(character).startswith('P') and character not in '%‰'
  )


def _segments(text: str) -> list[str]:
  return _SEGMENT.findall(text) or [_NO_SEGMENT]


def _seaeval_keys(choices: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
  """Keys of both stages in the order they are tried: longest first, then by position."""
  # NB: a key shared by two choices keeps the place of the first and the value of the last, as in
  # the published rule.
  stage1: dict[str, int] = {}
  stage2: dict[str, int] = {}
  for i, choice in enumerate(choices):
    for key in (
      choice,
      choice.lower(),
      choice.upper(),
      f'({LETTERS[i]})',
      f'({LETTERS[i].lower()})',
    ):
      stage1[key] = i
    stage2[_LONE_A if i == 0 else f' {LETTERS[i].lower()} '] = i
    stage2[choice[4:].lower()] = i
  return _longest_first(stage1), _first_segments(_longest_first(stage2))


def _strict_keys(
  choices: Sequence[str], texts: Sequence[str], lettered: bool
) -> tuple[dict[str, int], dict[str, int]]:
  """As `_seaeval_keys`, but letters only where choices carry them, and no key that two choices
  share.
  """
  stage1: dict[str, set[int]] = {}
  stage2: dict[str, set[int]] = {}
  for i, choice in enumerate(choices):
    for key in (choice, choice.lower(), choice.upper()):
      stage1.setdefault(key, set()).add(i)
    if lettered:
      for key in (f'({LETTERS[i]})', f'({LETTERS[i].lower()})'):
        stage1.setdefault(key, set()).add(i)
      stage2.setdefault(_LONE_A if i == 0 else f' {LETTERS[i].lower()} ', set()).add(i)
    key = _segments(texts[i].lower())[0]
    stage2.setdefault(key, set()).add(i)
  single = [
    {key: min(owners) for key, owners in stage.items() if key and len(owners) == 1}
    for stage in (stage1, stage2)
  ]
  return _longest_first(single[0]), _longest_first(
    {key: i for key, i in single[1].items() if len(key) > 1}
  )


def _longest_first(keys: dict[str, int]) -> dict[str, int]:
  return dict(sorted(keys.items(), key=lambda item: len(item[0]), reverse=True))


def _first_segments(keys: dict[str, int]) -> dict[str, int]:
  cut: dict[str, int] = {}
  for key, i in keys.items():  # NB: cut after sorting: the order stays that of the uncut texts
    cut[_segments(key)[0]] = i
  return {key: i for key, i in cut.items() if len(key) > 1}


def _vote(
  prediction: str, stage1: dict[str, int], stage2: dict[str, int], ties_are_open: bool
) -> list[int]:
  """The leader of the vote as [option]; two leaders as [option, option]; [] where no key was found.

  With `ties_are_open`, a segment that names several options by equally long keys votes for each of
  them; otherwise the first key in order gets the vote.
  """
  segments = _segments(prediction.translate(_CHINESE_PUNCTUATION))
  votes: list[int] = []
  for segment in segments:
    found = [key for key in stage1 if key in segment] + [
      key for key in stage1 if key in segment.lower()
    ]
    votes += _ballot(sorted(found, key=len, reverse=True), stage1, ties_are_open)
  if not votes:
    for segment in segments:
      padded = f' {segment.strip(_SEGMENT_EDGES)} '.replace(' A ', _LONE_A).lower()
      votes += _ballot([key for key in stage2 if key in padded], stage2, ties_are_open)
  leaders = Counter(votes).most_common(2)
  if len(leaders) == 2 and leaders[0][1] > leaders[1][1]:
    leaders = leaders[:1]
  return [option for option, _ in leaders]


def _ballot(found: list[str], keys: dict[str, int], ties_are_open: bool) -> list[int]:
  if not found:
    return []
  if not ties_are_open:
    return [keys[found[0]]]
  longest = max(map(_length, found))
  return sorted({keys[key] for key in found if _length(key) == longest})


def _length(key: str) -> int:
  return 3 if key == _LONE_A else len(key)  # ' a ', as long as ' b '
