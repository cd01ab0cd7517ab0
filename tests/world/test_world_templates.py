"""The sentence templates of the embedded world: complete, parallel, clean text, and distinct within
each language.
"""

import pathlib
import re
import tomllib
import unicodedata

import pytest

TEMPLATE_DIR = pathlib.Path(__file__).parents[2] / 'crossin_jax' / 'world' / 'templates'
RELATIONS = (
  'trade',
  'ferry',
  'festival',
  'harvest',
  'radio',
  'school',
  'museum',
  'reserve',
  'market',
  'council',
)

# The first word of unicodedata.name() of the letters that each language is written in.
SCRIPTS = {
  'en': 'LATIN',
  'zh': 'CJK',
  'es': 'LATIN',
  'vi': 'LATIN',
  'fi': 'LATIN',
  'id': 'LATIN',
  'th': 'THAI',
  'tr': 'LATIN',
  'bn': 'BENGALI',
  'hi': 'DEVANAGARI',
  'sw': 'LATIN',
  'ta': 'TAMIL',
  'ur': 'ARABIC',
}
STATEMENT_END = {'zh': '。', 'th': '', 'bn': '।', 'hi': '।', 'ur': '۔'}  # otherwise "."
QUESTION_END = {'zh': '？', 'th': '', 'ur': '؟'}  # otherwise "?"
# Written without spaces: only there may a letter touch a placeholder, elsewhere it would be an
# ending on the name.
SPACELESS = ('zh', 'th')
PLACEHOLDER = re.compile(r'\{[^{}]*\}')

# (language, relation) pairs that cannot put the value before the territory in two statements: none
# so far.
FEW_VALUE_FIRST: frozenset[tuple[str, str]] = frozenset()


def load(language):
  with open(TEMPLATE_DIR / f'{language}.toml', 'rb') as file:
    return tomllib.load(file)


def templates(language):
  """Yields (relation, kind, template), kind being 'statements' or 'questions'."""
  for relation, table in load(language).items():
    for kind in ('statements', 'questions'):
      for template in table[kind]:
        yield relation, kind, template


def test_every_language_has_a_file_and_no_other_does():
  assert {path.stem for path in TEMPLATE_DIR.glob('*.toml')} == set(SCRIPTS)


@pytest.mark.parametrize('language', SCRIPTS)
def test_relations_and_counts(language):
  world = load(language)
  assert tuple(world) == RELATIONS
  for relation, table in world.items():
    assert tuple(table) == ('statements', 'questions'), relation
    assert len(table['statements']) == (6 if language == 'en' else 4), relation
    assert len(table['questions']) == 2, relation


@pytest.mark.parametrize('language', SCRIPTS)
def test_placeholders(language):
  for _, kind, template in templates(language):
    expected = ['{e}', '{v}'] if kind == 'statements' else ['{e}']
    assert sorted(PLACEHOLDER.findall(template)) == expected, template
    assert not set('{}') & set(PLACEHOLDER.sub('', template)), template
    assert template.format(e='E', v='V')


@pytest.mark.parametrize('language', SCRIPTS)
def test_no_word_is_joined_to_a_name(language):
  for _, _, template in templates(language):
    assert '}{' not in template, template
    for found in PLACEHOLDER.finditer(template):
      around = template[: found.start()][-1:] + template[found.end() :][:1]
      joined = [c for c in around if unicodedata.category(c)[0] in 'LM' or c in "'’-"]
      assert language in SPACELESS or not joined, template


@pytest.mark.parametrize('language', SCRIPTS)
def test_spaces_and_normal_form(language):
  text = (TEMPLATE_DIR / f'{language}.toml').read_text(encoding='utf-8')
  assert unicodedata.is_normalized('NFC', text)
  for _, _, template in templates(language):
    assert template == template.strip() and '  ' not in template, repr(template)
    # a plain space is the only white space
    assert not re.search(r'[^\S ]', template), repr(template)
    assert not any(unicodedata.category(c) in ('Cc', 'Cf') for c in template), repr(template)
    assert language not in SPACELESS or ' ' not in template, repr(template)


@pytest.mark.parametrize('language', SCRIPTS)
def test_final_marks(language):
  for _, kind, template in templates(language):
    end = (
      STATEMENT_END.get(language, '.') if kind == 'statements' else QUESTION_END.get(language, '?')
    )
    bare = template.removesuffix(end)
    assert template.endswith(end), template
    assert not re.search(r'[.?!。？！।۔؟]', bare), template
    assert language != 'es' or template.startswith('¿') == (kind == 'questions'), template


@pytest.mark.parametrize('language', SCRIPTS)
def test_templates_are_distinct(language):
  rows = list(templates(language))
  assert len({template for _, _, template in rows}) == len(rows)
  relation_of = {}
  for relation, _, template in rows:
    skeleton = ' '.join(PLACEHOLDER.sub(' ', template).split())
    assert relation_of.setdefault(skeleton, relation) == relation, template


@pytest.mark.parametrize('language', SCRIPTS)
def test_two_statements_put_the_value_first(language):
  for relation, table in load(language).items():
    value_first = sum(s.index('{v}') < s.index('{e}') for s in table['statements'])
    assert value_first >= 2 or (language, relation) in FEW_VALUE_FIRST, relation
    assert value_first < len(table['statements']), relation


@pytest.mark.parametrize('language', SCRIPTS)
def test_script(language):
  for _, _, template in templates(language):
    letters = [c for c in PLACEHOLDER.sub('', template) if unicodedata.category(c)[0] in 'LM']
    inside = sum(unicodedata.name(c).startswith(SCRIPTS[language]) for c in letters)
    assert inside > 0.9 * len(letters), template


def test_english_is_short():
  for _, _, template in templates('en'):
    assert len(template.split()) <= 12, template
