"""Which options are found in a text, and where."""

import pytest

from crossin_jax.evaluation.answers import mentions
from crossin_jax.evaluation.answers.options import options_of

CITIES = ('(A) Paris', '(B) Lima', '(C) J. R. Rome', '(D) Oslo')


@pytest.mark.parametrize(
  'text, found',
  [
    ('It is Lima.', [('Lima', 1)]),
    ('(B) Lima, not Paris', [('(B) Lima', 1), ('Paris', 0)]),
    ('A, B and (d)', [('A', 0), ('B', 1), ('(d)', 3)]),
    ('B, B', [('B', 1), ('B', 1)]),
    ('J.R. Rome', [('J.R. Rome', 2)]),
    ('A city in Limassol, vitamin-B', []),
    ('답은 나입니다', [('나', 1)]),
    ('答案是B。', [('B', 1)]),
    ('', []),
  ],
)
def test_mentions(text, found):
  named = mentions.find(text, text.lower(), options_of(CITIES), roles={})
  assert [(text[one.start : one.end], one.option) for one in named] == found


def test_a_text_that_two_options_share_names_neither():
  options = options_of(('(A) Lima', '(B) lima.', '(C) Rome'))
  assert options.keys == [('lima', None), ('rome', 2)]
  assert mentions.find('Lima', 'lima', options, roles={}) == []


@pytest.mark.parametrize(
  'text, option',
  [
    ('(A) Lima', 0),
    ('Lima', 0),
    ('lima.', 1),
    ('LIMA', 0),
    ('"Lima"', -1),
    ('Rome', 2),
    ('It', None),
  ],
)
def test_a_text_is_compared_with_options_ever_more_loosely(text, option):
  assert options_of(('(A) Lima', '(B) lima.', '(C) Rome')).equal(text) == option
