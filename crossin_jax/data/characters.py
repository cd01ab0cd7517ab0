"""Characters that no row may have."""

import re

# Unicode category Cc without \t \n \r, and half surrogate pairs ("\ud83d" alone in JSON), which
# UTF-8 cannot hold.
_UNUSABLE = re.compile('[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]')
FAULTS = ('control_characters', 'lone_surrogates')


def fault(text: str) -> str:
  """One of FAULTS, or ''."""
  if unusable := _UNUSABLE.search(text):
    return 'lone_surrogates' if unusable[0] >= '\ud800' else 'control_characters'
  return ''
