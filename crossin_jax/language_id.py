"""Which language a text is written in, among 137 languages, without a network.

The model is the one that py3langid ships in its wheel. Two of its confusions are decided here by
what separates the standard languages in writing: Indonesian from Malay by words that are spelt
differently, written Chinese from Wu and Cantonese by characters that only those use.
"""

from collections.abc import Iterable
import functools
import math
import re

LIMIT = 600  # bytes of UTF-8 that are looked at: 600 letters of Swahili, 200 of Bengali
LEAST = 0.1  # below this confidence the library's first choice of 137 languages is a guess
# Marks of direction, joiners of nothing, halves of surrogate pairs: no trace of a language, and
# they cut words apart. U+200C and U+200D stay: Bengali, Hindi and Urdu spell with them.
_UNWRITTEN = re.compile('[\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]')
_SPACE = re.compile('[\\s\x00-\x1f\x7f-\x9f\ufffd]+')
_LETTER = re.compile(r'[^\W\d_]')
_WORD = re.compile(r'[a-z]+')
# How far a word speaks for Indonesian against Malay, as a logarithm of odds. The strong ones are
# spelt, or said, otherwise in the other language; the weak ones occur in both.
_STRONG, _WEAK, _INDONESIAN_RATHER = 3.0, 0.7, 0.5
_INDONESIAN = (
  'agustus aktivitas akun apalagi asam asosiasi badai bagian bahwa bandara bapak beda berbagai '
  'berbagi berbeda berhasil '
  'berpikir bilang bisa bisnis bupati butuh coba cocok desain desember direktur dirilis dokter '
  'efek ekspor energi eropa '
  'fasilitas februari fisik fisika fitur gedung gratis gubernur hewan ilmiah ilmuwan impor '
  'informasi inggris insinyur '
  'inspektur internasional investasi istri jadwal jaksa januari jenderal jepang juli jumat juni '
  'kabupaten kamar kamis '
  'kampanye kapan karena kartu karyawan kasus kebijakan kecamatan kecelakaan keluhan kemarin '
  'kesehatan keuangan khawatir '
  'kiper klub kode kompetisi komunitas kondisi konser koran korban kualitas lainnya layanan '
  'listrik majelis manajemen '
  'maret maupun medali membutuhkan mencoba menikah menit merek merilis metode miliar militer '
  'mobil nomor nyaman obat '
  'olahraga pabrik pacar pajak partai pelatih pemilu penelitian pengacara pengemudi penggemar '
  'perangkat perawatan '
  'percobaan persen perusahaan politisi ponsel populer prancis presentasi pria pribadi produksi '
  'provinsi proyek publik '
  'rekening resmi rusak sebagian sehat sekretaris senin sepatu sepeda serikat silakan situs '
  'solusi sopir staf standar '
  'sulit tanggal telepon televisi tentara terkait tersangka tim toko triliun turnamen uang '
  'universitas yaitu yakni'
)
_INDONESIAN_WEAK = (
  'bahkan berarti berbicara bicara cukup daftar dapatkan dikenal dimulai disebut ditemukan hal '
  'harus hingga ingin '
  'kegiatan kelompok khusus kota lalu masyarakat melakukan memiliki mendapatkan menemukan '
  'mengatakan menggunakan menonton '
  'meski mulai musik namun organisasi pasti pemain pemerintah pernyataan pertandingan punya saat '
  'sampai sebelumnya sebuah '
  'sedang seharusnya sekitar serta setelah situasi suatu sudah terjadi terlihat warga'
)
_MALAY = (
  'aduan akhbar aktiviti antarabangsa apabila asid askar awak bahagian baharu bahawa berbeza '
  'bercakap berjaya berkahwin '
  'bermula beza bilik bilion cakap cuba cukai dakwaan daripada didakwa disember doktor eksport '
  'eropah esok faham fikir '
  'filem fizik fizikal haiwan hantar hendaklah hospital iaitu ialah inggeris isnin isteri jadual '
  'jawapan jawatan jenama '
  'jenayah jeneral jepun julai jumaat jurulatih jurutera kad kaedah kakitangan kampung kanak '
  'kawasan kebangsaan kedai '
  'kedudukan kekal kelab kemalangan kempen kerana kes kesan kesihatan kesilapan ketenteraan '
  'kewangan khamis khuatir kod '
  'komuniti konsert kualiti laluan lelaki mahu majlis maklumat manakala mangsa memulakan mencuba '
  'mengikut mengundi '
  'mesyuarat minit muzik nombor ogos pakar parlimen parti peguam pelaburan pelajar pelbagai '
  'pembentangan peminat pengarah '
  'pengerusi pengundi pengurusan peratus peribadi perkahwinan perkhidmatan perlawanan perniagaan '
  'petikan pingat polis '
  'projek rakan ramai rasmi rawatan rekod ribut ringgit rosak sahaja saintifik saintis satukah '
  'sebahagian sebarang '
  'selepas semasa semula sentiasa setiausaha sihat soalan stesen sukan suspek syarikat tahniah '
  'telefon televisyen tempoh '
  'tentera teruk tiada timbalan trilion ubat undi universiti wang'
)
_MALAY_WEAK = (
  'bagi bapa beliau berlaku betul boleh bukan dijangka duit hadapan ia jun kenyataan kepada '
  'kerajaan kereta kuasa '
  'kumpulan mahkamah mempunyai mesti mula nampak pasukan patut pejabat peluang penyelidikan '
  'perkara perkataan persatuan '
  'sila sukar supaya tahu tenaga tetapi turut'
)
_ODDS = {
  **dict.fromkeys(_INDONESIAN.split(), _STRONG),
  **dict.fromkeys(_INDONESIAN_WEAK.split(), _WEAK),
  **dict.fromkeys(_MALAY.split(), -_STRONG),
  **dict.fromkeys(_MALAY_WEAK.split(), -_WEAK),
}
_NOT_MANDARIN = {
  'wuu': re.compile('[侬伲覅搿嘸]|阿拉|辰光|迭个|勒拉|弗是'),
  'yue': re.compile('[嘅咗喺啲唔冇哋嗰佢嚟咁嘢]'),
}
# The library's names for what this project calls otherwise; spoken Arabic of two countries is
# written Arabic's neighbour.
_RENAMED = {'tl': 'fil', 'ary': 'ar', 'arz': 'ar', 'zxx': '', 'und': ''}


def __getattr__(name: str):
  """CANDIDATES, the codes that `identify` may answer with, read from the library when first asked
  for.
  """
  if name == 'CANDIDATES':
    codes = (_RENAMED.get(code, code) for code in _identifier().labels)
    return tuple(sorted({code for code in codes if code}))
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


@functools.cache
def _identifier():
  try:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier
  except ImportError:
    raise ValueError(
      'language identification needs py3langid: pip install crossin-jax[lid]'
    ) from None
  return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def identify(text: str, limit: int = LIMIT) -> tuple[str, float]:
  """The language of a text.

  Args:
    text: any text; control characters, direction marks and lone surrogates are passed over.
    limit: bytes of UTF-8 that are looked at, from the first letter on; 0.4 microseconds each.

  Returns:
    (code, confidence 0..1); ('', 0.0) where no language can be told: no letters, identifiers and
    markup only, a lone word.

      identify('Habari ya asubuhi, rafiki yangu. Umelala vizuri?') -> ('sw', 0.99)
      identify('2024-05-01 12:30')                                 -> ('', 0.0)
  """
  first = _LETTER.search(text)
  if first is None:
    return '', 0.0
  text = _SPACE.sub(
    ' ', _UNWRITTEN.sub('', text[first.start() : first.start() + 4 * limit])
  ).strip()
  text = text.encode()[:limit].decode(errors='ignore')
  identifier = _identifier()
  code, confidence = identifier.classify(text)
  if code in ('id', 'ms'):
    scores = dict(identifier.rank(text))
    code, confidence = _indonesian_or_malay(text, scores), scores['id'] + scores['ms']
  elif code in _NOT_MANDARIN and not _NOT_MANDARIN[code].search(text):
    scores = dict(identifier.rank(text))
    code, confidence = 'zh', scores['zh'] + scores['wuu'] + scores['yue']
  code = _RENAMED.get(code, code)
  return (code, min(1.0, confidence)) if code and confidence >= LEAST else ('', 0.0)


def identify_many(texts: Iterable[str], limit: int = LIMIT) -> list[tuple[str, float]]:
  """`identify` of each text, in their order."""
  return [identify(text, limit) for text in texts]


def _indonesian_or_malay(text: str, scores: dict[str, float]) -> str:
  """The likelier of the two, by the library's scores and the words that they spell differently."""
  odds = math.log((scores['id'] + 1e-9) / (scores['ms'] + 1e-9)) + _INDONESIAN_RATHER
  odds += sum(_ODDS.get(word, 0.0) for word in set(_WORD.findall(text.lower())))
  return 'id' if odds > 0 else 'ms'
