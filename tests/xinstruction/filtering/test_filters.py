"""Which texts are kept, and what they look like then."""

import dataclasses
import json
import unicodedata

from hypothesis import given
from hypothesis import strategies as st
import pytest

pytest.importorskip(
  'py3langid', reason='language identification needs py3langid: pip install crossin-jax[lid]'
)

from crossin_jax.xinstruction.filtering import filters
from crossin_jax.xinstruction.filtering.filters import (
  REASONS,
  Filters,
  clean,
  cut,
  normalise,
  why_dropped,
)

SENTENCES = [
  'Bibi yangu huweka mapishi yake ndani ya sanduku la bati juu ya jiko.',
  'Kila asubuhi wakulima wa kijiji chetu huenda shambani kabla ya jua kuchomoza.',
  'Mwalimu alituambia kwamba mto ule ulikuwa na samaki wengi zamani.',
  'Tulipofika sokoni tuliona matunda mengi yaliyoletwa kutoka milimani.',
  'Watoto walicheza mpira mpaka giza lilipoingia wakarudi nyumbani.',
]
GOOD = ' '.join(SENTENCES)
ANY = Filters(least_characters=1, least_confidence=0.0)


def test_a_good_text_is_kept():
  assert clean(GOOD, 'sw', Filters()) == (GOOD, None)


@pytest.mark.parametrize(
  'text, reason',
  [
    (' \n\u200b', 'empty'),
    (GOOD * 8, 'too_long'),
    (GOOD * 200, 'too_long'),
    (GOOD.replace('jiko', 'ji\ufffdko'), 'encoding'),
    (GOOD + '\ud83d', 'encoding'),
    (GOOD + '\x00\x01' * 20, 'binary'),
    (f'<div class="x">{GOOD}</div>', 'html'),
    (f'&lt;p&gt;{GOOD}', 'html'),
    (f'{GOOD}<br/>', 'html'),
    (SENTENCES[0], 'too_short'),
    (GOOD + ' 2024-05-01 12:30' * 20, 'letters'),
    (f'{SENTENCES[0]}\n' * 6, 'repeated_lines'),
    (GOOD + '\nNyumbani\nHabari\nMichezo\nWasiliana nasi\nKuhusu', 'short_lines'),
    ('\n'.join(f'{sentence[:-1]}…' for sentence in SENTENCES), 'ellipses'),
    (GOOD + ' Nyumbani | Habari | Michezo | Siasa | Uchumi | Afya', 'menu'),
    (GOOD + ' https://example.org/' + 'habari/' * 8, 'links'),
    (GOOD + ' {a} {b} {c}', 'code'),
    (GOOD + ' Privacy Policy. Log in', 'notices'),
    (f'{SENTENCES[0]} ' * 6, 'repeated_text'),
    ('My grandmother keeps her recipes in a tin box above the stove. ' + 'The farmers of our '
                                                                         'village rise before the '
                                                                         'sun does, and so do '
                                                                         'their children. Nobody '
                                                                         'knows why the river '
                                                                         'went dry last summer, '
                                                                         'or whether it will '
                                                                         'return.',
                                                                         'other_language'),
  ],
)  # fmt: skip
def test_reason(text, reason):
  assert why_dropped(text, 'sw', Filters()) == reason


def test_every_reason_is_tested(monkeypatch):
  tested = {parameters[1] for mark in test_reason.pytestmark for parameters in mark.args[1]}
  monkeypatch.setattr(filters.language_id, 'identify', lambda *_: ('sw', 0.69))
  assert tested | {why_dropped(GOOD, 'sw', Filters())} == set(REASONS)


@given(st.text(st.characters(), max_size=80))
def test_normal_texts_are_normal(text):
  once = normalise(text)
  assert normalise(once) == once
  assert unicodedata.is_normalized('NFC', once)
  assert once == once.strip() and '  ' not in once and '\n\n\n' not in once
  for character in once:
    assert character in '\n\u200c\u200d' or unicodedata.category(character) not in (
      'Cc',
      'Cs',
      'Co',
      'Zl',
      'Zp',
    )
    assert (
      character
      not in '\xad\ufeff\u200b\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\r\t'
    )


@given(
  st.text(
    st.sampled_from('ab \n\r\t&;#<>1.\u200c\u200d\u202e\xa0\u0301\x00क\ud800\ufffdltg'), max_size=60
  )
)
def test_cleaning_what_was_kept_changes_nothing(text):
  for one in (ANY, dataclasses.replace(ANY, long='cut', most_characters=20)):
    kept, reason = clean(text, 'hi', one)
    assert (reason is None) == bool(kept)
    assert reason is None or reason in REASONS
    if kept:
      assert clean(kept, 'hi', one) == (kept, None)


def test_what_normalising_keeps_and_removes():
  assert normalise('a\u200cb \u202eاردو\u200c\u200cہے\u200f x\xady') == 'ab اردو\u200cہے xy'
  assert normalise('क्\u200dष') == 'क्\u200dष'  # Hindi spells with a joiner
  assert normalise('Tom &amp; Jerry&nbsp;&#33;\r\n\r\n\r\n\u2028 x\t\ty') == 'Tom & Jerry !\n\nx y'
  assert normalise('e\u0301') == 'é'


def test_cut():
  assert cut('One is here. Two is here. Three is here.', 'en', 30) == 'One is here. Two is here.'
  assert cut('It costs 3.5 and more than that', 'en', 20) == ''
  assert cut('क ख ग। घ ङ च छ', 'hi', 10) == 'क ख ग।'
  assert cut('他来了。她走了，', 'zh', 6) == '他来了。'
  assert cut('เขามาแล้ว เธอไปแล้ว', 'th', 12) == 'เขามาแล้ว'
  assert len(clean(GOOD * 40, 'sw', Filters(long='cut', most_repeated_text=1.0))[0]) in range(
    1900, 2001
  )


def test_settings_are_checked():
  for name, value in (
    ('long', 'keep'),
    ('least_letters', 1.5),
    ('least_characters', 0),
    ('common_line', 1),
    ('most_notices', -1),
  ):
    with pytest.raises(ValueError, match=name):
      Filters(**{name: value})
  with pytest.raises(ValueError, match='nothing can be kept'):
    Filters(least_characters=10, most_characters=5)
  with pytest.raises(ValueError, match='least_confidence=0'):
    filters.check_language('xx', Filters())


def test_native_texts_are_kept(shared_data):
  """Encyclopedias and news, written in ten languages by people: what is long enough is nearly
  always good enough.
  """
  kept = seen = 0
  for path in sorted((shared_data / 'native_text').glob('native.*.jsonl')):
    code = path.name.split('.')[1]
    texts = [json.loads(line)['text'] for line in path.read_text(encoding='utf-8').splitlines()]
    reasons = [why_dropped(text, code, Filters()) for text in texts]
    reasons = [reason for reason in reasons if reason not in ('too_long', 'too_short')]
    kept, seen = kept + reasons.count(None), seen + len(reasons)
    assert reasons.count(None) >= 0.9 * len(reasons), (code, reasons)
    other = {'bn': 'hi', 'hi': 'ur'}.get(code, 'bn')
    assert not any(why_dropped(text, other, Filters()) is None for text in texts[:20])
  assert kept >= 0.97 * seen > 300


def test_web_pages_are_refused(shared_data):
  pages = sorted((shared_data / 'udhr').glob('*.html'))
  assert pages
  for page in pages:
    code = page.name.split('.')[-2]
    assert (
      why_dropped(page.read_text(encoding='utf-8'), code, Filters(most_characters=10**6)) == 'html'
    )


def wrongly_decoded(text: str, encoding: str, times: int) -> str:
  for _ in range(times):
    text = text.encode().decode(encoding, 'replace').replace('\ufffd', '')
  return text


NATIVE = {
  'vi': 'Mỗi buổi sáng, nông dân trong làng tôi ra đồng trước khi mặt trời mọc. Bà tôi giữ công thức '
  'nấu ăn trong chiếc hộp thiếc trên bếp. Con sông ấy ngày xưa có rất nhiều cá, thầy giáo kể vậy. '
  'Trẻ con đá bóng cho đến khi trời tối mới về nhà.',
  'tr': 'Büyükannem tariflerini ocağın üstündeki teneke kutuda saklar. Köyümüzün çiftçileri her sabah '
  'güneş doğmadan tarlaya gider. Öğretmen o ırmakta eskiden çok balık olduğunu söyledi. Çocuklar '
  'karanlık çökene kadar top oynadılar.',
  'fi': 'Isoäitini säilyttää reseptejään peltirasiassa lieden yläpuolella. Kylämme maanviljelijät '
  'lähtevät pellolle ennen auringonnousua. Opettaja kertoi, että joessa oli ennen paljon kaloja. '
  'Lapset pelasivat palloa pimeän tuloon asti.',
  'th': 'ยายของฉันเก็บสูตรอาหารไว้ในกล่องดีบุกเหนือเตา ชาวนาในหมู่บ้านของเราออกไปทุ่งนาก่อนพระอาทิตย์ขึ้น '
  'ครูบอกเราว่าแม่น้ำสายนั้นเคยมีปลามากมาย เด็ก ๆ เล่นฟุตบอลจนมืดแล้วจึงกลับบ้าน ตลาดเต็มไปด้วยผลไม้จากภูเขา',
  'hi': 'मेरी दादी अपने व्यंजन चूल्हे के ऊपर टिन के डिब्बे में रखती हैं। हमारे गाँव के किसान सूरज निकलने से पहले खेत '
  'जाते हैं। शिक्षक ने बताया कि उस नदी में पहले बहुत मछलियाँ थीं। बच्चे अँधेरा होने तक गेंद खेलते रहे।',
  'ur': 'میری دادی اپنی ترکیبیں چولہے کے اوپر ٹین کے ڈبے میں رکھتی ہیں۔ ہمارے گاؤں کے کسان سورج نکلنے سے '
  'پہلے کھیت جاتے ہیں۔ استاد نے بتایا کہ اس دریا میں پہلے بہت مچھلیاں تھیں۔ بچے اندھیرا ہونے تک گیند کھیلتے رہے۔',
}


@pytest.mark.parametrize('language', NATIVE)
def test_text_of_a_wrong_decoding_is_dropped(language):
  text = NATIVE[language]
  assert why_dropped(text, language, Filters()) is None
  for encoding in ('latin-1', 'cp1252', 'cp437'):
    for times in (1, 2):
      damaged = wrongly_decoded(text, encoding, times)
      reason = why_dropped(damaged, language, Filters(most_characters=20_000))
      assert reason in ('encoding', 'binary'), (encoding, times, damaged[:40])


def test_native_texts_are_not_damaged(shared_data):
  for path in sorted((shared_data / 'native_text').glob('*.jsonl')):
    for line in path.read_text(encoding='utf-8').splitlines():
      text = json.loads(line)['text']
      assert why_dropped(text, path.name.split('.')[1], Filters()) != 'encoding', text[:80]


@pytest.mark.parametrize(
  'text', ['Ã¼ber', 'naïve café', '10 €', '“quoted” – it’s', 'Ångström Ø', '½ × 3°']
)
def test_signs_and_accents_are_no_damage(text):
  wanted = 'encoding' if text == 'Ã¼ber' else None
  found = why_dropped(f'{GOOD} {text}.', 'sw', dataclasses.replace(ANY, most_notices=9))
  assert found == wanted


@pytest.mark.parametrize(
  'language, text',
  [
    ('sw', 'Tovuti hii inatumia vidakuzi ili kuboresha huduma. Soma sera ya faragha. Jisajili ili upate '
     'jarida letu kila wiki. Haki zote zimehifadhiwa.'),
    ('bn', 'এই সাইট কুকি ব্যবহার করে। আমাদের গোপনীয়তা নীতি পড়ুন। মন্তব্য করতে লগ ইন করুন। সর্বস্বত্ব সংরক্ষিত।'),
    ('hi', 'यह वेबसाइट कुकीज़ का उपयोग करती है। हमारी गोपनीयता नीति पढ़ें। टिप्पणी करने के लिए लॉग इन करें। सर्वाधिकार सुरक्षित।'),
    ('ta', 'இந்தத் தளம் குக்கீகளைப் பயன்படுத்துகிறது. எங்கள் தனியுரிமைக் கொள்கை. செய்திமடல் பெற பதிவு செய்யவும்.'),
    ('ur', 'یہ ویب سائٹ کوکیز کا استعمال کرتی ہے۔ ہماری رازداری کی پالیسی پڑھیں۔ تبصرے کے لیے لاگ ان کریں۔ جملہ حقوق محفوظ ہیں۔'),
    ('es', 'Este sitio utiliza cookies. Consulta la política de privacidad. Inicia sesión para comentar. Suscríbete al boletín.'),
    ('de', 'Diese Seite verwendet Cookies. Lesen Sie die Datenschutzerklärung. Alle Rechte vorbehalten.'),
    ('ar', 'يستخدم هذا الموقع ملفات تعريف الارتباط. اقرأ سياسة الخصوصية. جميع الحقوق محفوظة.'),
  ],
)  # fmt: skip
def test_notices_in_other_languages(language, text):
  assert why_dropped(text, language, ANY) == 'notices'


@pytest.mark.parametrize('language', NATIVE)
def test_natural_texts_are_no_notices(language):
  assert why_dropped(NATIVE[language], language, ANY) is None
