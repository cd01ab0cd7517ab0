"""Numbers in answers: digits of all scripts, separators of the language, signs around them."""

from hypothesis import given
from hypothesis import strategies as st
import pytest

from crossin_jax.evaluation.answers.numbers import extracted_number, same_number


@pytest.mark.parametrize(
  'text, language, number',
  [
    ('Die Antwort ist 1.800.', 'de', '1800'),
    ('18,50 €', 'de', '18.50'),
    ('1.800,50 €', 'de', '1800.50'),
    ('1,800.50', 'en', '1800.50'),
    ('La réponse est 1 800.', 'fr', '1800'),
    ('1\u202f800 €', 'fr', '1800'),
    ('1,00,000 रुपये', 'hi', '100000'),
    ('1,800', 'de', '1.800'),
    ('1,800', 'en', '1800'),
    ('1.800', '', '1.800'),
    ('1.234.567', '', '1234567'),
    ('16-3=13', '', '13'),
    ('5-3', '', '3'),
    ('x = -3', '', '-3'),
    ('(-3)', '', '-3'),
    ('−3', '', '-3'),
    ('10²', '', '10'),
    ('2 x 3', '', '3'),
    ('It is 25 300 people?', 'en', '25300'),
    ('$18.', '', '18'),
    ('18%', '', '18'),
    ('١٬٨٠٠', 'ar', '1800'),
    ('١٨٫٥', 'ar', '18.5'),
    ('3.14', '', '3.14'),
    ('0,125', 'de', '0.125'),
    ('0.125', 'en', '0.125'),
    ('.5', '', '5'),
    ('1{,}800', '', '1800'),
    ('1\\,800', '', '1800'),
    ('Room 12B', '', '12'),
    ('A1', '', '1'),
    ('no', '', ''),
    ('...', '', ''),
    ('the years 2019, 2020', '', '2020'),
    ('In 1999 3 people', '', '3'),
    ("1'800 Fr.", 'de', '1800'),
    ('18.', '', '18'),
    ('18,', '', '18'),
    ('1.800.', 'es', '1800'),
    ('12:30', '', '30'),
    ('1,2', 'en', '1.2'),
    ('<think>5</think>7', '', '7'),
    ('**18**', '', '18'),
    ('\\boxed{18}', '', '18'),
    ('１，８００円', 'ja', '1800'),
    ('1.000.000 đồng', 'vi', '1000000'),
    ('2,5', 'vi', '2.5'),
    ('-18', '', '-18'),
    ('- 18', '', '18'),
    ('It is –5.', '', '-5'),
    ('1914–18', '', '18'),
    ('16 – 3', '', '3'),
    ('-$5', '', '-5'),
    ('$16-$5', '', '5'),
    ('1،800', 'ar', '1800'),
    ('١،٨٠٠', 'ar', '1800'),
    ('2، 3', 'ar', '3'),
    ('18 - 5 = 13 apples - done', '', '13'),
  ],
)  # fmt: skip
def test_the_last_number(text, language, number):
  assert extracted_number(text, language) == number


@pytest.mark.parametrize(
  'text',
  [
    'উত্তর হল ১৮।', 'คำตอบคือ ๑๘', '答えは１８です。', 'సమాధానం ౧౮.', 'उत्तर १८ है।', 'الجواب هو ١٨.',
    'جواب ۱۸ ہے۔', 'உத்தரம் ௧௮', 'အဖြေ ၁၈', 'ចម្លើយ ១៨', 'Die Antwort ist 18 $.', 'La réponse est 18 $.',
    'Она зарабатывает 18 $.', 'Cô ấy kiếm được 18 $.', 'The answer is 18 ...', 'Das macht 18 $, .',
    '18 ₹', '18 €.', '¥18', '18円', '18 đồng.', 'R$ 18,00.',
  ],
)  # fmt: skip
def test_eighteen(text):
  language = 'pt' if 'R$' in text else ''
  assert same_number(extracted_number(text, language), '18')


@given(st.integers(0, 10**9), st.sampled_from(['de', 'fr', 'en', 'hi', 'ru']))
def test_numbers_as_they_are_written(value, language):
  separator = {'de': '.', 'fr': '\u202f', 'en': ',', 'hi': ',', 'ru': '\u00a0'}[language]
  text = f'{value:,}'.replace(',', separator)
  assert same_number(extracted_number(f'= {text}.', language), str(value))
  decimal = '.' if language in ('en', 'hi') else ','
  assert same_number(extracted_number(f'= {text}{decimal}5', language), f'{value}.5')
