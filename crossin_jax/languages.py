"""The languages that rows, tags, benchmarks and pages know: codes, English names, scripts.

CrossIn trains and tests en, zh, vi, es (docs/design/methods.md#a-2-data-sources); X-Instruction the
ten others (docs/design/methods.md#b-2-languages-and-data). Names, scripts and decimal separators
are those of the Unicode CLDR 48; more languages are added by a gin setting, see `languages`.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import difflib

import gin


@dataclasses.dataclass(frozen=True)
class Language:
  """What is known of a language.

  Attributes:
    name: in English, as tags and prompts have it ("Answer in Swahili.").
    alpha3: ISO 639-3 codes in the names of files, as FLORES and Belebele have them.
    script: ISO 15924 code.
    decimal_comma: whether numbers are written 1.234,5; else 1,234.5.
    articles: words that exact match and F1 ignore under the rule 'mlqa'.
    letters: letters of which texts in no other language consist, for languages that `language_id`
      cannot tell otherwise.
    words: benchmark -> the words of its prompt, as in evaluation/benchmarks/words.toml.
  """

  name: str
  alpha3: tuple[str, ...] = ()
  script: str = 'Latn'
  decimal_comma: bool = False
  articles: tuple[str, ...] = ()
  letters: str = ''
  words: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


# code, name, ISO 639-3, script, c = decimal comma
_TABLE = """
en English eng Latn | zh Chinese zho,cmn Hans | vi Vietnamese vie Latn c | es Spanish spa Latn c |
fi Finnish fin Latn c | id Indonesian ind Latn c | th Thai tha Thai | tr Turkish tur Latn c |
bn Bengali ben Beng | hi Hindi hin Deva | sw Swahili swh,swa Latn | ta Tamil tam Taml |
ur Urdu urd Arab | ar Arabic arb,ara Arab | de German deu Latn c | el Greek ell Grek c |
fil Filipino tgl,fil Latn | fr French fra Latn c | it Italian ita Latn c | ja Japanese jpn Jpan |
ko Korean kor Hang | ms Malay zsm,msa Latn | pt Portuguese por Latn c | ro Romanian ron Latn c |
ru Russian rus Cyrl c | te Telugu tel Telu | af Afrikaans afr Latn c | am Amharic amh Ethi |
as Assamese asm Beng | az Azerbaijani azj,aze Latn c | be Belarusian bel Cyrl c |
bg Bulgarian bul Cyrl c | bo Tibetan bod Tibt | bs Bosnian bos Latn c | ca Catalan cat Latn c |
ceb Cebuano ceb Latn | cs Czech ces Latn c | cy Welsh cym Latn | da Danish dan Latn c |
et Estonian est Latn c | eu Basque eus Latn c | fa Persian pes,fas Arab | ga Irish gle Latn |
gl Galician glg Latn c | gn Guarani grn Latn | gu Gujarati guj Gujr | ha Hausa hau Latn |
he Hebrew heb Hebr | hr Croatian hrv Latn c | ht Haitian_Creole hat Latn c |
hu Hungarian hun Latn c | hy Armenian hye Armn c | ig Igbo ibo Latn | is Icelandic isl Latn c |
jv Javanese jav Latn c | ka Georgian kat Geor c | kk Kazakh kaz Cyrl c | km Khmer khm Khmr |
kn Kannada kan Knda | ku Kurdish kmr,kur Latn c | ky Kyrgyz kir Cyrl c |
lb Luxembourgish ltz Latn c | lg Ganda lug Latn | ln Lingala lin Latn c | lo Lao lao Laoo c |
lt Lithuanian lit Latn c | lv Latvian lvs,lav Latn c | mg Malagasy plt,mlg Latn |
mi Maori mri Latn | mk Macedonian mkd Cyrl c | ml Malayalam mal Mlym | mn Mongolian khk,mon Cyrl |
mr Marathi mar Deva | mt Maltese mlt Latn | my Burmese mya Mymr | ne Nepali npi,nep Deva |
nl Dutch nld Latn c | no Norwegian nob,nor Latn c | ny Nyanja nya Latn | om Oromo gaz,orm Latn |
or Odia ory,ori Orya | pa Punjabi pan Guru | pl Polish pol Latn c | ps Pashto pbt,pus Arab c |
qu Quechua quy,que Latn | rw Kinyarwanda kin Latn c | sa Sanskrit san Deva | sd Sindhi snd Arab |
si Sinhala sin Sinh | sk Slovak slk Latn c | sl Slovenian slv Latn c | sn Shona sna Latn |
so Somali som Latn | sq Albanian als,sqi Latn c | sr Serbian srp Cyrl c |
st Southern_Sotho sot Latn | su Sundanese sun Latn c | sv Swedish swe Latn c |
tg Tajik tgk Cyrl c | ti Tigrinya tir Ethi | tk Turkmen tuk Latn c | tn Tswana tsn Latn |
tt Tatar tat Cyrl c | ug Uyghur uig Arab | uk Ukrainian ukr Cyrl c | uz Uzbek uzn,uzb Latn c |
wo Wolof wol Latn c | xh Xhosa xho Latn | yi Yiddish ydd,yid Hebr | yo Yoruba yor Latn |
yue Cantonese yue Hant | zu Zulu zul Latn
"""
_RIGHT_TO_LEFT = frozenset({'Arab', 'Hebr', 'Syrc', 'Thaa', 'Nkoo', 'Adlm'})


def _built_in() -> dict[str, Language]:
  rows = [entry.split() for entry in _TABLE.split('|')]
  return {
    code: Language(name.replace('_', ' '), tuple(alpha3.split(',')), script, more == ['c'])
    for code, name, alpha3, script, *more in rows
  }


_BUILT_IN = _built_in()
_CODES = {entry.name.lower(): code for code, entry in _BUILT_IN.items()}


@gin.configurable
def languages(added: Mapping[str, Mapping] | None = None) -> dict[str, Language]:
  """All known languages by code.

      languages.added = {'nds': {'name': 'Low German', 'decimal_comma': True}}

  Args:
    added: code -> attributes of `Language`; an entry may also change a known language.

  Raises:
    ValueError: an entry without a name, or with an attribute that does not exist.
  """
  if not added:
    return _BUILT_IN
  known = dict(_BUILT_IN)
  legal = [field.name for field in dataclasses.fields(Language)]
  for code, attributes in added.items():
    if unknown := [name for name in attributes if name not in legal]:
      raise ValueError(
        f'languages.added[{code!r}] has {", ".join(map(repr, unknown))}; legal are '
        f'{", ".join(legal)}'
      )
    if code != code.lower() or not code.replace('-', '').isalnum():
      raise ValueError(f'languages.added: write the code {code!r} in small letters, like "nds"')
    if code not in known and not attributes.get('name'):
      raise ValueError(f"languages.added[{code!r}] needs a 'name' in English")
    base = dataclasses.asdict(known[code]) if code in known else {}
    known[code] = Language(**base | dict(attributes))
  return known


def code_of(language: str) -> str:
  """The code of a language given as a code or an English name, in any case.

      code_of('Vietnamese') == code_of('vi') == 'vi'

  Raises:
    ValueError: an unknown language; the message suggests similar entries.
  """
  key = language.strip().lower()
  if key in _BUILT_IN:
    return key
  if key in _CODES:
    return _CODES[key]
  known = languages()
  codes = {entry.name.lower(): code for code, entry in known.items()}
  if key in known or key in codes:
    return codes.get(key, key)
  near = difflib.get_close_matches(key, [*known, *codes], n=3)
  hint = f'; did you mean {" or ".join(near)}?' if near else '.'
  raise ValueError(
    f"unknown language {language!r}{hint} Add it with languages.added=\"{{'CODE': {{'name': "
    f"'English name'}}}}\"; known codes: {', '.join(sorted(known))}"
  )


def english_name(code: str) -> str:
  """'vi' -> 'Vietnamese'; an unknown code as it is."""
  entry = _BUILT_IN.get(code) or languages().get(code)
  return entry.name if entry else code


def with_letters() -> list[tuple[str, str]]:
  """Code and letters of the languages that `languages.added` gives letters of their own."""
  known = languages()
  own = [] if known is _BUILT_IN else known.items()
  return [(code, entry.letters) for code, entry in own if entry.letters]


def is_right_to_left(code: str) -> bool:
  """Whether the language is written from right to left."""
  entry = _BUILT_IN.get(code) or languages().get(code)
  return entry is not None and entry.script in _RIGHT_TO_LEFT


def in_order(codes: Iterable[str]) -> list[str]:
  """Known codes in the order of the table: English first, then those of the two methods."""
  codes = set(codes)
  return [code for code in languages() if code in codes]
