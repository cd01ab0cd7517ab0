"""What a reasoning model writes before its answer."""

import re

# Pairs of tags around thoughts, as published chat templates write them.
_TAGS = (
  (r'<think>', r'</think>'),
  (r'<thinking>', r'</thinking>'),
  (r'<thought>', r'</thought>'),
  (r'<reasoning>', r'</reasoning>'),
  (r'\[THINK\]', r'\[/THINK\]'),
  (r'<\|START_THINKING\|>', r'<\|END_THINKING\|>'),
  (r'<seed:think>', r'</seed:think>'),
  (r'<\|channel\|>analysis(?:<\|message\|>)?', r'<\|channel\|>final(?:<\|message\|>)?'),
)
_OPEN = re.compile('|'.join(begin for begin, _ in _TAGS), re.IGNORECASE)
_CLOSE = re.compile('|'.join(end for _, end in _TAGS), re.IGNORECASE)


def without_thoughts(text: str) -> str:
  """The text behind the last thought; what stands before a thought that never ends.

  '<think>Is it (A)?</think>(B)' -> '(B)'     '(A)? No.</think>(B)' -> '(B)'
  '<think>The capital may be' -> ''           '(B)' -> '(B)'
  """
  if '<' not in text and '[' not in text:
    return text
  ends = [match.end() for match in _CLOSE.finditer(text)]
  text = text[ends[-1] :] if ends else text
  unfinished = _OPEN.search(text)
  return text[: unfinished.start()] if unfinished else text
