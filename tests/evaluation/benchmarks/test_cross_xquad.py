"""Cross-XQuAD from XQuAD: options that are parallel, apart, and the same at every start."""

import json
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from crossin_jax import cli
from crossin_jax.evaluation.benchmarks import cross_xquad
from crossin_jax.evaluation.benchmarks.declarations import LoadedBenchmark
from crossin_jax.languages import english_name
from crossin_jax.storage.records import RecordError


def _squad(paragraphs_of_articles, language):
  """[[['answer', ...] of a paragraph, ...] of an article, ...] -> SQuAD JSON; ids count on."""
  ids = iter(range(10_000))
  question = lambda answer: {
    'id': f'q{next(ids)}',
    'question': f'{language}?',
    'answers': [{'text': answer, 'answer_start': 0}],
  }
  return {
    'data': [
      {
        'paragraphs': [
          {'context': 'c', 'qas': [question(f'{answer}{language}') for answer in paragraph]}
          for paragraph in article
        ]
      }
      for article in paragraphs_of_articles
    ]
  }


def _folder(path, articles, languages=('en', 'zh')):
  path.mkdir(exist_ok=True)
  for language in languages:
    (path / f'xquad.{language}.json').write_text(json.dumps(_squad(articles, language)))
  return str(path)


def _bare(text):
  return ''.join(filter(str.isalnum, unicodedata.normalize('NFKC', text).casefold()))


def test_the_real_files(shared_data, tmp_path, capsys):
  for name in ('a', 'b'):
    argv = [
      'build-cross-xquad',
      '--xquad_dir',
      str(shared_data / 'xquad_raw'),
      '--output',
      str(tmp_path / name),
      '--json',
    ]
    assert cli.main(argv) == 0
  assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()
  counts = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert (
    counts['items'] == 177 and counts['dropped'] == [] and sum(counts['letters'].values()) == 177
  )
  # A fair die gives 44 of each, give or take six.
  assert all(25 <= count <= 63 for count in counts['letters'].values())
  loaded = LoadedBenchmark('cross_xquad', str(tmp_path / 'a'))
  assert sorted(loaded.languages) == ['en', 'es', 'vi', 'zh']
  for record in json.loads((tmp_path / 'a').read_text()):
    letters = {record[english_name(language)]['answer'][:3] for language in loaded.languages}
    assert len(letters) == 1
    for language in loaded.languages:
      options = [_bare(choice[4:]) for choice in record[english_name(language)]['choices']]
      assert len(options) == 4
      assert not any(
        one in other for i, one in enumerate(options) for j, other in enumerate(options) if i != j
      )


def test_distractors_come_from_the_paragraph_first(tmp_path):
  path = _folder(tmp_path / 'x', [[['ja', 'kb', 'lc', 'md'], ['ne', 'of', 'pg']], [['qh']]])
  built = cross_xquad.build(path, ['en', 'zh'])
  by_id = {
    record['id']: {choice[4:6] for choice in record['English']['choices']}
    for record in built.records
  }
  assert all(by_id[f'q{i}'] == {'ja', 'kb', 'lc', 'md'} for i in range(4))
  assert all({'ne', 'of', 'pg'} <= by_id[f'q{i}'] for i in (4, 5, 6)) and built.from_article == 3
  assert built.dropped == [('q7', 'only 0 distinct answers of other questions in the article')]


ANSWERS = ['308', '308 points', 'Points', '24', '１３６', '136', 'x', 'yy', 'zz']


@settings(max_examples=30, deadline=None)
@given(
  articles=st.lists(
    st.lists(st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=6), min_size=1, max_size=3),
    min_size=1,
    max_size=3,
  ),
  languages=st.permutations(['en', 'zh', 'vi']),
)  # fmt: skip
def test_no_option_is_part_of_another_and_languages_may_come_in_any_order(
  tmp_path_factory, articles, languages
):
  path = _folder(tmp_path_factory.mktemp('xquad'), articles, ('en', 'zh', 'vi'))
  try:
    built = cross_xquad.build(path, languages)
  except RecordError:
    return
  again = cross_xquad.build(path, sorted(languages))
  assert built.dropped == again.dropped and built.records == again.records
  for record in built.records:
    options = [_bare(choice[4:]) for choice in record['English']['choices']]
    assert not any(
      one in other for i, one in enumerate(options) for j, other in enumerate(options) if i != j
    )


def test_unequal_languages_are_named(tmp_path):
  path = _folder(tmp_path / 'x', [[['ja', 'kb', 'lc', 'md']]])
  (tmp_path / 'x' / 'xquad.zh.json').write_text(json.dumps(_squad([[['ja', 'kb', 'lc']]], 'zh')))
  with pytest.raises(RecordError, match=r'1 questions are not in both en and zh \(q3\)'):
    cross_xquad.build(path, ['en', 'zh'])
  with pytest.raises(RecordError, match='has no vi'):
    cross_xquad.build(path, ['en', 'vi'])
