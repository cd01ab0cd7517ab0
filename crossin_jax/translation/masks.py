"""Masks what a translator must not change (code, URLs, placeholders, tags, formulas) by numbered
markers, and restores it.

mask('Run `ls {dir}` in [zh].') == Masked('Run \u27e61\u27e7 in \u27e62\u27e7.', ('`ls {dir}`',
'[zh]'), ('code', 'tag'))
"""

from collections.abc import Sequence
import re
from typing import NamedTuple

OPEN, CLOSE = '\u27e6', '\u27e7'  # mathematical white square brackets: rare, and in no markup
# Code with a closing delimiter.
_FENCED = re.compile(
  r"""
  ^[ \t]*(?P<fence>```+|~~~+)[^\n]*\n(?:.*?\n)??[ \t]*(?P=fence)[ \t]*$ | ```.*?``` | ^[ \t]*```.*\Z
  | <(?P<element>pre|code|script|style)\b[^>]*>.*?</(?P=element)>""",
  re.VERBOSE | re.DOTALL | re.MULTILINE,
)
# A line that is certainly code, outside fences. Prose must not match: it would stay untranslated.
_CODE_LINE = re.compile(
  r"""[ \t]*(?:
    def[ ]\w+\(.* | class[ ]\w+(?:\(.*\))?:$ | class[ ]\w+.*\{$
    | import[ ][\w.]+(?:[ ]as[ ]\w+)?;?$ | from[ ][\w.]+[ ]import[ ].+
    | \#include[ ]*[<"].* | \#!/.* | <\?php.*
    | (?:public|private|protected|static)[ ][\w<>\[\], ]+[({=;].* | @\w+(?:\(.*\))?$
    | (?:var|let|const)[ ]\w+[ ]*=.* | function[ ]*\w*\(.* | for[ ]\w+(?:,[ ]*\w+)*[ ]in[ ][^ ]+:$
    | (?:if|elif|while)[ ].*[=<>()!\[\]].*:$ | while[ ]True:$ | (?:else|try|finally|do):?$
    | except\b.*:$ | with[ ]\w+\(.*:$
    | (?:if|for|while|switch)[ ]?\(.*\)[ ]*\{?$
    | (?:print|printf|println|System\.out\.print\w*|console\.log|cout)[ ]?[(<].*
    | return\b[ ]?[^ ]*;?$ | [\w.]+(?:\[.*\])?[ ]?(?:[-+*/]|//)?=[ ]?(?:[^=\s]+|[^=\s].*[])};"'])$
    | \}[ \t]*(?:else.*\{)?[;,)]*$ | .*[(){}=<>\]"'][ \t]*;$ | .*\)[ ]*\{$
    | (?:SELECT|INSERT[ ]INTO|UPDATE|DELETE[ ]FROM|CREATE[ ]TABLE|ALTER[ ]TABLE|DROP[ ]TABLE)\b.*
  )[ \t]*""",
  re.VERBOSE,
)
# Kind -> pattern; the first match at a position wins. With re.VERBOSE [ ] is a space.
_KINDS = {
  'code': r'(?<!`)(?P<ticks>`{1,2})(?!`)[^\n]+?(?<!`)(?P=ticks)(?!`)',
  'formula': r"""
    \$\$.+?\$\$ | \\\[.+?\\\] | \\\(.+?\\\)
    | \\begin\{(?P<environment>[\w*]+)\}.*?\\end\{(?P=environment)\}
    | (?<![\w$\\])\$(?=[^\s$])[^$\n]*?(?<=[^\s$\\])\$(?![\d$])""",
  'url': r'(?:https?|ftp)://[^\s<>"\u27e6\u27e7]+ | (?<![\w@])www\.[\w-]+\.[^\s<>"\u27e6\u27e7]+',
  'e-mail': r'(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+',
  'placeholder': r"""
    \{\{[^{}\n]{1,60}\}\} | \$\{[^{}\n]{1,60}\} | \{[A-Za-z_][\w.\-\[\]]*(?:[!:][^{}\s]*)?\}
    | \{\d*\}
    | %\([\w.]+\)[-+\#0]*\d*(?:\.\d+)?[a-zA-Z]
    | (?<![\w%])%(?:\d+\$)?[-+\#0]*\d*(?:\.\d+)?[sdifgeExXoucr](?!\w)
    | \[(?:INST|/INST|MASK|SEP|CLS|PAD|UNK)\] | <\|[^|\n]{1,40}\|>""",
  'markup': r'<!--.*?--> | '
  r'</?[A-Za-z][\w:.-]*(?:\s+[\w:.@-]+(?:\s*=\s*(?:"[^"]*"|\x27[^\x27]*\x27|[^\s"\x27=<>`]+))?)*\s*/?>'
  r' | &(?:\w{2,8}|\#\d{2,6});',
  'tag': r'\[[a-z]{2,3}(?:-[A-Za-z]{2,4})?\]',
  'marker': rf'[{OPEN}{CLOSE}]',  # of the text itself
}
_PROTECTED = re.compile(
  '|'.join(f'(?P<kind{i}>{pattern})' for i, pattern in enumerate(_KINDS.values())),
  re.VERBOSE | re.DOTALL | re.MULTILINE,
)
_NAMES = list(_KINDS)
_MARKER = re.compile(rf'{OPEN}\s*(\d+)\s*{CLOSE}')
_LETTER = re.compile(r'[^\W\d_]')
_SENTENCE = ".,;:!?'*_"
_BRACKETS = {')': '(', ']': '[', '}': '{'}


class Masked(NamedTuple):
  """A text with markers in place of protected pieces.

  Attributes:
    text: with markers, numbered from 1 in order.
    pieces: the masked pieces.
    kinds: of the pieces.
  """

  text: str
  pieces: tuple[str, ...]
  kinds: tuple[str, ...]

  @property
  def bare(self) -> str:
    """The text without markers."""
    return _MARKER.sub(' ', self.text)

  @property
  def translatable(self) -> bool:
    """Whether there is a word outside the markers."""
    return bool(_LETTER.search(self.bare))


Span = tuple[int, int, str]  # start, end, kind


def mask(text: str) -> Masked:
  """Masks what must survive translation."""
  spans = [(match.start(), match.end(), 'code') for match in _FENCED.finditer(text)]
  for start, end in _gaps(spans, text):
    spans += _code_blocks(text, start, end)
  spans.sort()
  for start, end in _gaps(spans, text):
    spans += [_inline(match) for match in _PROTECTED.finditer(text, start, end)]
  parts, last = [], 0
  spans.sort()
  for number, (start, end, _) in enumerate(spans, 1):
    parts.append(f'{text[last:start]}{OPEN}{number}{CLOSE}')
    last = end
  pieces = tuple(text[start:end] for start, end, _ in spans)
  return Masked(''.join(parts) + text[last:], pieces, tuple(kind for *_, kind in spans))


def _gaps(spans: Sequence[Span], text: str) -> list[tuple[int, int]]:
  """The gaps between ordered spans."""
  edges = [0, *(edge for start, end, _ in spans for edge in (start, end)), len(text)]
  return [gap for gap in zip(edges[::2], edges[1::2]) if gap[0] < gap[1]]


def _code_blocks(text: str, start: int, end: int) -> list[Span]:
  """Unfenced lines of code, with the indented lines after them and blank lines in between."""
  blocks, block, after = [], None, start
  for line in text[start:end].splitlines(keepends=True):
    begin, after = after, after + len(line)
    content = line.rstrip('\r\n')
    if _CODE_LINE.fullmatch(content) or block and content[:1] in (' ', '\t') and content.strip():
      block = (block[0] if block else begin, begin + len(content), 'code')
    elif block and content.strip():
      blocks.append(block)
      block = None
  return blocks + ([block] if block else [])


def _inline(match: re.Match) -> Span:
  kind = next(_NAMES[i] for i in range(len(_NAMES)) if match[f'kind{i}'] is not None)
  piece = match[0]
  if kind == 'url':
    # A full stop after it or a bracket around it is not part of the URL.
    piece = piece.rstrip(_SENTENCE)
    while piece[-1:] in _BRACKETS and piece.count(piece[-1]) > piece.count(_BRACKETS[piece[-1]]):
      piece = piece[:-1].rstrip(_SENTENCE)
  return match.start(), match.start() + len(piece), kind


def marker_problem(translation: str, count: int) -> str | None:
  """'marker lost', 'marker doubled' or 'marker invented'; None if it has markers 1 to `count` once.

  Digits of any script count: a translator may write the numbers of its language.
  """
  numbers = [int(number) for number in _MARKER.findall(translation)]
  left = _MARKER.sub('', translation)
  if OPEN in left or CLOSE in left or any(not 1 <= number <= count for number in numbers):
    return 'marker invented'
  if len(set(numbers)) < len(numbers):
    return 'marker doubled'
  return 'marker lost' if len(numbers) < count else None


def unmask(translation: str, pieces: Sequence[str]) -> str:
  """Restores the pieces; `marker_problem` must be None."""
  return _MARKER.sub(lambda match: pieces[int(match[1]) - 1], translation)
