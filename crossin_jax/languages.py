"""Languages of both methods: codes, English names and writing direction.

CrossIn trains and tests en, zh, vi, es (docs/design/methods.md#a-2-data-sources); X-Instruction the
ten others (docs/design/methods.md#b-2-languages-and-data); ar, el, ru, ko ... occur in benchmarks.
"""

import difflib

ENGLISH_NAMES = {
    'en': 'English', 'zh': 'Chinese', 'vi': 'Vietnamese', 'es': 'Spanish',
    'fi': 'Finnish', 'id': 'Indonesian', 'th': 'Thai', 'tr': 'Turkish',
    'bn': 'Bengali', 'hi': 'Hindi', 'sw': 'Swahili', 'ta': 'Tamil', 'ur': 'Urdu',
    'ar': 'Arabic', 'de': 'German', 'el': 'Greek', 'fil': 'Filipino', 'fr': 'French',
    'it': 'Italian', 'ja': 'Japanese', 'ko': 'Korean', 'ms': 'Malay', 'pt': 'Portuguese',
    'ro': 'Romanian', 'ru': 'Russian', 'te': 'Telugu',
}  # fmt: skip
RIGHT_TO_LEFT = frozenset({'ar', 'ur'})
_CODES = {name.lower(): code for code, name in ENGLISH_NAMES.items()}


def code_of(language: str) -> str:
  """The code of a language given as a code or an English name, in any case.

      code_of('Vietnamese') == code_of('vi') == 'vi'

  Raises:
    ValueError: an unknown language; the message suggests similar entries.
  """
  key = language.strip().lower()
  if key in ENGLISH_NAMES:
    return key
  if key in _CODES:
    return _CODES[key]
  near = difflib.get_close_matches(key, [*ENGLISH_NAMES, *_CODES], n=3)
  hint = f'; did you mean {" or ".join(near)}?' if near else '.'
  raise ValueError(
    f'unknown language {language!r}{hint} Known codes: {", ".join(ENGLISH_NAMES)} '
    '(see crossin_jax/languages.py)'
  )
