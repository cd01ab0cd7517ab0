"""Languages beyond the table: for rows, names, pages, numbers, benchmarks and identification."""

import json

import babel
import gin
import pytest

from crossin_jax import language_id, languages
from crossin_jax.data.mixture_name import MixtureName
from crossin_jax.evaluation.answers import open_answers
from crossin_jax.evaluation.answers.numbers import extracted_number
from crossin_jax.evaluation.benchmarks import files
from crossin_jax.evaluation.benchmarks.declarations import LoadedBenchmark

LOW_GERMAN = (
  "languages.added = {'nds': {'name': 'Low German', 'alpha3': ('nds',), 'decimal_comma': True, "
  "'articles': ('de', 'dat', 'een'), 'words': {'mgsm': ('Fraag: ', 'Antwoord:')}}, "
  "'chr': {'name': 'Cherokee', 'script': 'Cher', 'letters': 'ᎠᎡᎢᎣᎤᎥᏣᎳᎩᎦᏬᏂᎯᏍᏗ'}}"
)


@pytest.fixture
def added():
  gin.parse_config(LOW_GERMAN)


@pytest.mark.parametrize('name', ['nds', 'Low German', 'low german', 'NDS'])
def test_an_added_language_is_known_everywhere(added, name):
  assert languages.code_of(name) == 'nds' and languages.english_name('nds') == 'Low German'
  assert not languages.is_right_to_left('nds')
  assert extracted_number('Dat sünd 1.800,50 €.', 'nds') == '1800.50'
  assert open_answers.exact_match('dat Huus', ['Huus'], 'mlqa', 'nds')
  assert not open_answers.exact_match('dat Huus', ['Huus'], 'mlqa', 'xx')


def test_an_added_language_is_part_of_a_mixture_name(added):
  assert 'nds' in str(MixtureName.parse('alpaca.base_x2x.3000.en_nds.default'))


def test_an_added_language_has_its_benchmark(added, tmp_path):
  for code in ('en', 'nds'):
    (tmp_path / f'mgsm_{code}.tsv').write_text('How many?\t18\n', encoding='utf-8')
  loaded = LoadedBenchmark('mgsm', str(tmp_path))
  assert loaded.languages == ['en', 'nds']
  prompts = [row['prompt'] for asked in loaded.questions() for rows in asked.rows for row in rows]
  assert 'Fraag: How many?\nAntwoord:' in prompts


def test_an_added_script_is_identified(added):
  pytest.importorskip(
    'py3langid', reason='language identification needs py3langid: pip install crossin-jax[lid]'
  )
  assert language_id.identify('ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ') == ('chr', 1.0)
  assert language_id.identify('This is a sentence in English.')[0] == 'en'


@pytest.mark.parametrize(
  'code, name',
  [
    ('pl', 'Polish'),
    ('fa', 'Persian'),
    ('ht', 'Haitian Creole'),
    ('yo', 'Yoruba'),
    ('my', 'Burmese'),
  ],
)
def test_benchmark_languages_and_large_ones_are_built_in(code, name):
  assert languages.code_of(name) == code and languages.english_name(code) == name


@pytest.mark.parametrize('code', ['fa', 'he', 'ur', 'ar', 'ps', 'yi'])
def test_right_to_left(code):
  assert languages.is_right_to_left(code)


def test_the_table_is_that_of_the_cldr():
  """Names and decimal separators against Babel."""
  english, checked = babel.Locale('en').languages, 0
  renamed = {'bn': 'Bengali', 'mi': 'Maori'}
  for code, entry in languages.languages().items():
    assert entry.name == renamed.get(code, english[code]), code
    try:
      locale = babel.Locale.parse(code)
    except babel.UnknownLocaleError:
      continue
    symbols = locale.number_symbols.get('latn', {})
    if 'decimal' in symbols:
      assert (symbols['decimal'] == ',') == entry.decimal_comma, code
      checked += 1
    assert (locale.text_direction == 'rtl') == languages.is_right_to_left(code), code
  assert checked > 70


@pytest.mark.parametrize(
  'language, hint',
  [('vietnam', 'did you mean vi'), ('nds', 'languages.added'), ('', 'languages.added')],
)
def test_an_unknown_language_names_the_setting(language, hint):
  with pytest.raises(ValueError, match='unknown language') as error:
    languages.code_of(language)
  assert hint in str(error.value) or 'languages.added' in str(error.value)


@pytest.mark.parametrize(
  'added, message',
  [
    ({'nds': {}}, "needs a 'name'"), ({'nds': {'nom': 'x'}}, "has 'nom'; legal are name"),
    ({'NDS': {'name': 'x'}}, 'small letters'), ({'n_s': {'name': 'x'}}, 'small letters'),
  ],
)  # fmt: skip
def test_bad_entries_are_named(added, message):
  with pytest.raises(ValueError, match=message):
    languages.languages(added)


@pytest.mark.parametrize(
  'name, language',
  [
    ('test.pl.jsonl', 'pl'), ('pol_Latn.jsonl', 'pl'), ('bul_Cyrl.jsonl', 'bg'), ('quy_Latn.jsonl', 'qu'),
    ('arb_Latn.jsonl', None), ('test-context-de-question-vi.json', None), ('mgsm_no_cot.en.tsv', 'en'),
    ('val.et.jsonl', 'et'), ('mya_Mymr.jsonl', 'my'),
  ],
)  # fmt: skip
def test_languages_in_file_names(name, language):
  assert files._language_of_name(name, None)[0] == language


def test_files_that_are_not_read_are_mentioned(tmp_path):
  for name in ('mgsm_en.tsv', 'mgsm_de.tsv', 'mgsm_pl.tsv', 'mgsm_xx.tsv'):
    (tmp_path / name).write_text('How many?\t18\n', encoding='utf-8')
  (tmp_path / 'README.md').write_text(json.dumps({}))
  loaded = LoadedBenchmark('mgsm', str(tmp_path))
  notes = ' '.join(loaded.notes)
  assert loaded.languages == ['en', 'de']
  assert 'mgsm_xx.tsv' in notes and 'no prompt in pl' in notes and 'README' not in notes
