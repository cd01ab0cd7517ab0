"""The options of a question in the forms in which texts name them."""

import functools
import re

from crossin_jax.evaluation.answers.choices import check, labels_of, split_labels
from crossin_jax.evaluation.answers.cleaning import LETTER, bare, clean, fold, kind, squeezed
from crossin_jax.evaluation.measures.consistency import UNPARSED

KOREAN_IS = ('입니다', '이다', '번')  # behind a letter of Hangul
_SPACED = re.compile(r'\b([^\W\d])\. (?=[^\W\d]\.)')
_UNSPACED = re.compile(r'\b([^\W\d])\.(?=[^\W\d]\.)')
# Ever looser forms in which texts are compared, each of the one before.
_FORMS = (str.strip, squeezed, bare)


class Options:
  """What does not depend on the text in which options are looked for.

  Attributes:
    labels: letter or number in lower case -> option; {} for choices without.
    keys: (text as it is looked for, its option or None = two have it), longer ones first.
  """

  def __init__(self, choices: tuple[str, ...]):
    check(choices)
    self.labels, self._texts = split_labels(choices)
    self._choices = choices
    # Forms of other texts than ASCII may be longer than these.
    longest = max(map(len, choices))
    self._longest = longest if all(map(str.isascii, choices)) else 2 * longest + 8
    self._of_forms: list[dict[str, int] | None] = [None] * len(_FORMS)

  def equal(self, text: str) -> int | None:
    """The option that the text is, with or without its letter; UNPARSED = two; None = none."""
    for n, normalise in enumerate(_FORMS):
      text = normalise(text)
      if text and len(text) <= self._longest:
        option = self._with_form(n).get(text)
        if option is not None:
          return option
    return None

  def _with_form(self, n: int) -> dict[str, int]:
    """Form n of the choices, with and without their letters -> option."""
    if self._of_forms[n] is None:
      if n:
        items = self._with_form(n - 1).items()
      else:
        items = [(text, i) for both in (self._choices, self._texts) for i, text in enumerate(both)]
      forms = {}
      for text, option in items:
        form = _FORMS[n](text)
        forms[form] = option if forms.get(form, option) == option else UNPARSED
      self._of_forms[n] = forms
    return self._of_forms[n]

  @functools.cached_property
  def keys(self) -> list[tuple[str, int | None]]:
    keys = {}
    for option, text in enumerate(self._texts):
      key = fold(clean(text)).strip(' .,;:!?。،؛।\n')
      same = [key]
      if '.' in key and len(key) > 4:  # 'J. R. R. Tolkien', 'J.R.R. Tolkien'
        same += [_SPACED.sub(r'\1.', key), _UNSPACED.sub(r'\1. ', key)]
      for key in same:
        keys[key] = option if keys.get(key, option) == option else None
    return [(key, keys[key]) for key in sorted(keys, key=len, reverse=True) if key]

  def label_pattern(self, is_ascii: bool) -> re.Pattern:
    """Where a label may stand in a text."""
    return _label_pattern(len(self._choices), '1' in self.labels, is_ascii)


@functools.lru_cache(4096)
def options_of(choices: tuple[str, ...]) -> Options:
  """The options of a question; kept, since it is asked in several prompts.

  Raises:
    ValueError: there are fewer than 2 choices or more than 10.
  """
  return Options(choices)


@functools.cache
def _label_pattern(count: int, are_numbers: bool, is_ascii: bool) -> re.Pattern:
  """A letter between characters that are not of its script; in ASCII, none of other scripts."""
  labels = [c for c in labels_of(count, are_numbers) if c.isascii() or not is_ascii]
  cased = ''.join(c + c.upper() for c in labels if c != c.upper())
  free = ''.join(c for c in labels if len(c) == 1 and c == c.upper() and kind(c) != 'word')
  single = ''.join(c for c in labels if len(c) == 1 and c == c.upper() and c not in free)
  kana = ''.join(c for c in free if kind(c) == 'kana')
  hangul = ''.join(c for c in free if kind(c) == 'hangul')
  names = '|'.join(sorted((c for c in labels if len(c) > 1), key=len, reverse=True))
  cased_letters = 'A-Za-z\u00c0-\u024f\u0370-\u03ff\u0400-\u04ff0-9'
  parts = [
    # The letter first, then what is before it: sets are quick to look for.
    f'[{cased}](?<![{cased_letters}].)(?![{cased_letters}])' if cased else '',
    f'(?<!\\w)(?:{names})(?!\\w|{LETTER})' if names else '',
    f'(?<!\\w)[{single}](?!\\w|{LETTER})' if single else '',
    f'[{free}](?!{LETTER})' if free else '',
    f'[{kana}]' if kana else '',
    f'[{hangul}](?={"|".join(KOREAN_IS)})' if hangul else '',
  ]
  return re.compile('|'.join(filter(None, parts)))
