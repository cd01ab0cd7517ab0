"""Language identification: the NTREX table, confusable languages, and text without language."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

pytest.importorskip(
  'py3langid', reason='language identification needs py3langid: pip install crossin-jax[lid]'
)

from crossin_jax import language_id
from crossin_jax.language_id import identify, identify_many

SENTENCES = {
  'en': 'My grandmother keeps her recipes in a tin box above the stove.',
  'zh': '奶奶把菜谱放在炉子上方的铁盒子里。',
  'vi': 'Bà tôi cất công thức nấu ăn trong một chiếc hộp thiếc phía trên bếp.',
  'es': 'Mi abuela guarda sus recetas en una caja de hojalata encima de la cocina.',
  'fi': 'Isoäitini säilyttää reseptejään peltirasiassa lieden yläpuolella.',
  'id': 'Nenek saya menyimpan resepnya di dalam kotak karena dapur kami kecil.',
  'th': 'คุณยายเก็บสูตรอาหารไว้ในกล่องเหล็กเหนือเตา',
  'tr': 'Büyükannem tariflerini ocağın üstündeki teneke kutuda saklar.',
  'bn': 'আমার দাদি তাঁর রান্নার খাতা চুলার উপরে একটি টিনের বাক্সে রাখেন।',
  'hi': 'मेरी दादी अपनी पाक विधियाँ चूल्हे के ऊपर टिन के डिब्बे में रखती हैं।',
  'sw': 'Bibi yangu huweka mapishi yake ndani ya sanduku la bati juu ya jiko.',
  'ta': 'என் பாட்டி தன் சமையல் குறிப்புகளை அடுப்புக்கு மேலே ஒரு தகரப் பெட்டியில் வைத்திருக்கிறார்.',
  'ur': 'میری دادی اپنی ترکیبیں چولہے کے اوپر ٹین کے ڈبے میں رکھتی ہیں۔',
}
NEIGHBOURS = {
  'ms': 'Nenek saya menyimpan resipinya di dalam kotak kerana bilik dapur kami kecil sahaja.',
  'ne': 'मेरी हजुरआमाले आफ्ना परिकारका विधिहरू चुलोमाथिको टिनको बाकसमा राख्नुहुन्छ।',
  'mr': 'माझी आजी तिच्या पाककृती चुलीच्या वर असलेल्या पत्र्याच्या डब्यात ठेवते.',
  'as': 'মোৰ আইতাই তেওঁৰ ৰন্ধন প্ৰণালীবোৰ চৌকাৰ ওপৰত এটা টিনৰ বাকচত ৰাখে।',
  'pt': 'A minha avó guarda as suas receitas numa caixa de lata por cima do fogão.',
  'et': 'Minu vanaema hoiab oma retsepte pliidi kohal plekk-karbis.',
  'az': 'Nənəm reseptlərini sobanın üstündəki dəmir qutuda saxlayır.',
  'fa': 'مادربزرگ من دستورهای آشپزی خود را در جعبه‌ای فلزی بالای اجاق نگه می‌دارد.',
  'ar': 'تحتفظ جدتي بوصفاتها في علبة من الصفيح فوق الموقد.',
  'ja': '祖母はレシピをコンロの上のブリキの箱にしまっています。',
  'yue': '我阿嫲將佢啲食譜擺喺灶頭上面嘅鐵盒入面。',
}


@pytest.mark.parametrize('code', SENTENCES)
def test_sentence(code):
  found, confidence = identify(SENTENCES[code])
  assert found == code and language_id.LEAST <= confidence <= 1.0


@pytest.mark.parametrize('code', NEIGHBOURS)
def test_neighbour_is_not_taken_for_one_of_the_thirteen(code):
  assert code in language_id.CANDIDATES
  assert identify(NEIGHBOURS[code])[0] == code


def test_ntrex(shared_data):
  for code in SENTENCES:
    lines = (
      (shared_data / 'ntrex' / f'newstest2019.{code}.txt').read_text(encoding='utf-8').split('\n')
    )
    found = [found for found, _ in identify_many([line for line in lines if line.strip()])]
    assert found.count(code) / len(found) >= 0.95, (code, len(found))


def test_malay_is_not_swallowed_by_indonesian(shared_data):
  """The rule that helps Indonesian must not cost Malay what the library had."""
  items = json.loads(
    (shared_data / 'seaeval' / 'cross_logiqa.dev.json').read_text(encoding='utf-8')
  )
  for name, code in (('Malay', 'ms'), ('Indonesian', 'id')):
    found = [found for found, _ in identify_many(item[name]['context'] for item in items)]
    assert found.count(code) / len(found) >= 0.95


@pytest.mark.parametrize(
  'text',
  [
    '',
    ' \n\t',
    '2024-05-01 12:30',
    '!!! ??? ...',
    '\ud800',
    '\u202e\u202c',
    'x = 3 * y;',
    '<p></p>',
    '\x00\x01',
  ],
)
def test_no_language(text):
  assert identify(text) == ('', 0.0)


def test_what_is_no_letter_changes_nothing():
  for code, text in SENTENCES.items():
    dressed = '12,5 \x07\u202e' + text.replace(' ', '\r\n\x0b') + '\u202c\udc80\ufeff\x00'
    assert identify(dressed)[0] == code


def test_only_a_prefix_is_read():
  text = 'Mvua ilinyesha usiku kucha na mto ukajaa maji. ' * 220_000  # 10 MB
  assert identify(text) == identify(text[: 2 * language_id.LIMIT])
  assert identify('\n' * 10_000_000 + 'Mvua ilinyesha usiku kucha na mto ukajaa maji.')[0] == 'sw'


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_any_text_has_an_answer(text):
  code, confidence = identify(text)
  assert (
    code == '' and confidence == 0.0 or code in language_id.CANDIDATES and 0.0 < confidence <= 1.0
  )


def test_missing_library_names_the_remedy(monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'py3langid.langid', None)
  language_id._identifier.cache_clear()
  try:
    with pytest.raises(ValueError, match=r'pip install crossin-jax\[lid\]'):
      identify('a text')
  finally:
    language_id._identifier.cache_clear()
