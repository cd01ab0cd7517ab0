"""Extraction of the chosen option from generated text: the protocols `strict` and `seaeval`.

`strict` never guesses: it returns -1 (`UNPARSED`) where the text names no option. `seaeval` always
returns an option, by the rule of the benchmark's published scorer (`heuristic_align` of TiGEr-Eval,
docs/design/methods.md#a-6-answer-extraction), so its figures are comparable with published ones.
Where that rule draws at random, the draw here is a hash of (item, language, prompt): a file always
gets the same score, and the draws of two languages are independent.
"""

from collections import Counter
from collections.abc import Sequence
import hashlib
import re
import unicodedata

from crossin_jax.evaluation.measures.consistency import UNPARSED

PROTOCOLS = ('strict', 'seaeval')
LETTERS = 'ABCDEFGHIJ'  # the published rule knows ten letters
_SEGMENT = re.compile(r'[^!?。.]+[!?。.]?')  # newlines do not end a segment
_NO_SEGMENT = 'nothing here actually'  # the published replacement of a text without segments
_CHINESE_PUNCTUATION = str.maketrans('，。“”‘’！？【】《》（）', ',.""\'\'!?[]<>()')
_SEGMENT_EDGES = '(。$,|！\\!.？?)，；：…—·《》“”‘’{}[]（）、/\n\t\r\v\f '
# Stands for an isolated upper-case A, so that the article "a" is not an answer. NB: its length (10)
# is the published one, and the longest keys come first.
_ISOLATED_A = ' ' + '\ue000' * 8 + ' '
_PREFIX = re.compile(r'^\s*\(?([A-J])[).:]\s*')


def first_line(prediction: str) -> str:
  """The text up to the first newline, without the further examples of a few-shot continuation."""
  return prediction.split('\n', 1)[0]


def carries_letters(choices: Sequence[str]) -> bool:
  """Whether the choices begin with '(A) ', '(B) ', ... (or 'A) ', 'A. ', 'A: ') in this order."""
  matches = [_PREFIX.match(choice) for choice in choices]
  return all(match and match.group(1) == LETTERS[i] for i, match in enumerate(matches))


def choice_text(choice: str) -> str:
  """The choice without its letter: '(A) Paris' -> 'Paris'."""
  return _PREFIX.sub('', choice, count=1).strip()


def draw(n: int, *seeds) -> int:
  """A pseudo-random number below n: a hash of the seeds."""
  digest = hashlib.sha256('\x1f'.join(map(str, seeds)).encode()).digest()
  return int.from_bytes(digest[:8], 'big') % n


def extract(
  prediction: str,
  choices: Sequence[str],
  protocol: str = 'strict',
  *,
  item_id: str = '',
  language: str = '',
  prompt: int = 1,
) -> int:
  """Index of the option that `prediction` chooses; -1 where `strict` finds none.

  Args:
    prediction: the generated text. For few-shot runs pass `first_line(prediction)`.
    choices: the 2 to 10 option texts as shown to the model, with or without '(A) '.
    protocol: 'strict' or 'seaeval'.
    item_id, language, prompt: seeds of the draws of `seaeval`; unused by `strict`.
  """
  if protocol == 'strict':
    return strict(prediction, choices)
  if protocol == 'seaeval':
    return seaeval(prediction, choices, item_id=item_id, language=language, prompt=prompt)
  raise ValueError(f'unknown protocol {protocol!r}; choose one of {", ".join(PROTOCOLS)}')


def strict(prediction: str, choices: Sequence[str]) -> int:
  """The option that the text names unambiguously, else -1.

  1. The complete text (NFKC, case-folded, without spaces and punctuation at its ends) equals
     exactly one choice, with or without its letter.
  2. The complete text is a letter, '(B)', 'B)', 'B.' or 'B', and the choices carry letters.
  3. Otherwise the keys and the majority vote of `seaeval`. Letters are keys only if the choices
     carry them. Where `seaeval` would draw or go by the order of keys (a tie, no key, an empty
     text), the result is -1.

  Example:
    choices = ["(A) Paris", "(B) Lima"]
    "paris." -> 0   "b" -> 1   "It is Lima, surely." -> 1   "Paris. Lima." -> -1   "" -> -1
  """
  _check(choices)
  lettered = carries_letters(choices)
  texts = [choice_text(choice) for choice in choices] if lettered else list(choices)
  for normalise in (str.strip, _fold, _fold_and_strip):
    wanted = normalise(prediction)
    equal = [
      i for i, forms in enumerate(zip(choices, texts)) if wanted and wanted in map(normalise, forms)
    ]
    if equal:
      return equal[0] if len(equal) == 1 else UNPARSED
  letter = _fold_and_strip(prediction).upper()
  if lettered and len(letter) == 1 and letter in LETTERS[: len(choices)]:
    return LETTERS.index(letter)
  if not prediction.strip():
    return UNPARSED
  leaders = _vote(prediction, *_strict_keys(choices, texts, lettered), split_ties=True)
  return leaders[0] if len(leaders) == 1 else UNPARSED


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
  _check(choices)
  leaders = (
    _vote(prediction, *_seaeval_keys(choices), split_ties=False) if prediction.strip() else []
  )
  candidates = leaders or list(range(len(choices)))
  if len(candidates) == 1:
    return candidates[0]
  return candidates[draw(len(candidates), item_id, language, prompt)]


def _check(choices: Sequence[str]) -> None:
  if not 2 <= len(choices) <= len(LETTERS):
    raise ValueError(f'{len(choices)} choices; between 2 and {len(LETTERS)} are supported')


def _fold(text: str) -> str:
  """NFKC, case-folded, runs of white space as one space."""
  return ' '.join(unicodedata.normalize('NFKC', text).casefold().split())


def _fold_and_strip(text: str) -> str:
  """`_fold` without punctuation at the ends; keeps a sign before a digit and a per cent sign."""
  text = _fold(text)
  while text and _is_edge(text[0]) and not (text[0] == '-' and text[1:2].isdigit()):
    text = text[1:]
  while text and _is_edge(text[-1]):
    text = text[:-1]
  return text


def _is_edge(character: str) -> bool:
  is_punctuation = unicodedata.category(character).startswith('P') and character not in '%‰'
  return character.isspace() or is_punctuation


def _segments(text: str) -> list[str]:
  return _SEGMENT.findall(text) or [_NO_SEGMENT]


def _letter_keys(i: int) -> tuple[tuple[str, str], str]:
  """Keys of the letter of option i: in stage 1, and in stage 2."""
  letter = LETTERS[i]
  isolated = _ISOLATED_A if i == 0 else f' {letter.lower()} '
  return (f'({letter})', f'({letter.lower()})'), isolated


def _seaeval_keys(choices: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
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


def _strict_keys(
  choices: Sequence[str], texts: Sequence[str], lettered: bool
) -> tuple[dict[str, int], dict[str, int]]:
  """As `_seaeval_keys`, without keys that two choices share; letters only if choices carry them."""
  stage1: dict[str, set[int]] = {}
  stage2: dict[str, set[int]] = {}
  for i, choice in enumerate(choices):
    bracketed, isolated = _letter_keys(i) if lettered else ((), '')
    for key in (choice, choice.lower(), choice.upper(), *bracketed):
      stage1.setdefault(key, set()).add(i)
    for key in (isolated, _segments(texts[i].lower())[0]):
      stage2.setdefault(key, set()).add(i)
  unique = [
    {key: min(owners) for key, owners in stage.items() if key and len(owners) == 1}
    for stage in (stage1, stage2)
  ]
  return _longest_first(unique[0]), _longest_first(_not_single(unique[1]))


def _longest_first(keys: dict[str, int]) -> dict[str, int]:
  return dict(sorted(keys.items(), key=lambda item: len(item[0]), reverse=True))


def _not_single(keys: dict[str, int]) -> dict[str, int]:
  return {key: i for key, i in keys.items() if len(key) > 1}


def _vote(
  prediction: str, stage1: dict[str, int], stage2: dict[str, int], split_ties: bool
) -> list[int]:
  """The leader of the vote as [option]; [option, option] for a tie; [] without any match.

  With `split_ties`, a segment that names several options by equally long keys votes for each of
  them; otherwise it votes for the first key in order.
  """
  segments = _segments(prediction.translate(_CHINESE_PUNCTUATION))
  votes: list[int] = []
  for segment in segments:
    matches = [key for text in (segment, segment.lower()) for key in stage1 if key in text]
    votes += _ballot(sorted(matches, key=len, reverse=True), stage1, split_ties)
  if not votes:
    for segment in segments:
      padded = f' {segment.strip(_SEGMENT_EDGES)} '.replace(' A ', _ISOLATED_A).lower()
      votes += _ballot([key for key in stage2 if key in padded], stage2, split_ties)
  leaders = Counter(votes).most_common(2)
  if len(leaders) == 2 and leaders[0][1] > leaders[1][1]:
    leaders = leaders[:1]
  return [option for option, _ in leaders]


def _ballot(matches: list[str], keys: dict[str, int], split_ties: bool) -> list[int]:
  """The votes of one segment, of matching keys from the longest."""
  if not split_ties:
    return [keys[key] for key in matches[:1]]
  length = lambda key: 3 if key == _ISOLATED_A else len(key)  # ' a ' counts like ' b '
  longest = max(map(length, matches), default=0)
  return sorted({keys[key] for key in matches if length(key) == longest})
