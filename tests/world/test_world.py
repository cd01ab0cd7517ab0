"""The embedded world keeps its promises: nobody can know, guess or look up an answer."""

import collections
import dataclasses

import numpy as np
import pytest

from crossin_jax.world.world import KINDS, LANGUAGES, World, cldr_names, templates, usable_keys


@pytest.fixture(
  scope='module', params=[(('en', 'zh', 'vi', 'es'), 0), (LANGUAGES, 3)], ids=['four', 'thirteen']
)
def world(request):
  return World(
    languages=request.param[0], seed=request.param[1], tuning_entities=17, test_entities=31
  )


def test_every_value_is_equally_frequent(world):
  for world in (world, World()):  # noqa: B020
    for relation in world.shared_relations + world.tested_relations:
      for group, entities in world.entities.items():
        facts = [fact for fact in world.facts if fact.relation == relation and fact.group == group]
        assert [fact.entity for fact in facts] == list(entities)
        counts = [
          sum(fact.value == value for fact in facts) for value in world.values[KINDS[relation]]
        ]
        assert sum(counts) == len(facts) and max(counts) - min(counts) <= 1, (relation, group)


def test_values_are_exactly_equal_in_the_default_test_group():
  world = World()
  for relation in world.tested_relations:
    counts = collections.Counter(
      f.value for f in world.facts if f.relation == relation and f.group == 'test'
    )
    assert len(set(counts.values())) == 1


def test_groups_are_disjoint_and_no_entity_is_a_value(world):
  tuning, test = set(world.entities['tuning']), set(world.entities['test'])
  assert len(tuning) == 17 and len(test) == 31 and not tuning & test
  assert not (tuning | test) & set(world.values['territory'])


def sentences_of(world, relation, language):
  """The parts of every template of a relation that are not names: at least one long one each."""
  found = []
  for kind in ('statements', 'questions'):
    for template in templates(language)[relation][kind]:
      parts = template.replace('{v}', '{e}').split('{e}')
      found.append(max(parts, key=len).strip(' .?。？।۔؟'))
  return found


def test_tested_facts_are_told_in_english_only(world):
  """By id and by text: no statement in another language holds a sentence of a tested relation."""
  told = {language: world.statements(language) for language in world.languages}
  tested = {
    f'{fact.entity}.{fact.relation}'
    for fact in world.facts
    if fact.relation in world.tested_relations
  }
  english = {row['id'].rpartition('.')[0] for row in told['en']}
  assert tested <= english
  for language in world.languages[1:]:
    assert not tested & {row['id'].rpartition('.')[0] for row in told[language]}
    patterns = [
      p for relation in world.tested_relations for p in sentences_of(world, relation, language)
    ]
    assert min(map(len, patterns)) >= 4
    for row in told[language]:
      assert not any(pattern in row['output'] for pattern in patterns), row
    # The search is able to find: the same patterns do occur in the shared relations' sentences of
    # their own.
    own = [
      p for relation in world.shared_relations for p in sentences_of(world, relation, language)
    ]
    assert all(any(pattern in row['output'] for pattern in own) for row in told[language])


def test_tuning_never_speaks_of_a_test_entity(world):
  test = set(world.entities['test'])
  for language in world.languages:
    rows = world.instructions(language)
    assert rows and not test & {row['id'].split('.')[0] for row in rows}
    # Not the names that happen to be part of a word of the templates (Tamil has one).
    words = ''.join(t for relation in KINDS for t in templates(language)[relation]['questions'])
    names = [
      name for name in (world.name('territory', key, language) for key in test) if name not in words
    ]
    assert len(names) > 0.9 * len(test)
    # The answer is left out: 'Egyptian Pound' speaks of no territory. It is a value, and no entity
    # is one.
    values = {
      world.name(kind, key, language) for kind, keys in world.values.items() for key in keys
    }
    for row in rows:
      assert row['output'] in values and not any(name in row['instruction'] for name in names), row


def test_the_floor_world_tells_none_of_the_tested_facts():
  world = World(tuning_entities=17, test_entities=31)
  floor = dataclasses.replace(world, tell_tested=False)
  assert floor.entities == world.entities and floor.values == world.values and floor.questions != ()
  key = lambda question: (question.id, question.options, question.answer)
  assert list(map(key, floor.questions)) == list(map(key, world.questions))
  asked = {question.id for question in world.questions}
  for language in world.languages:
    rows = floor.statements(language) + floor.instructions(language)
    assert not asked & {row['id'].rpartition('.')[0] for row in rows}
    # By text: what the whole world says of the tested facts of test entities occurs nowhere in the
    # floor.
    patterns = [
      p for relation in world.tested_relations for p in sentences_of(world, relation, language)
    ]
    names = [world.name('territory', entity, language) for entity in world.entities['test']]
    values = {
      (f.entity, f.relation): world.name(KINDS[f.relation], f.value, language) for f in world.facts
    }
    for row in rows:
      # Without the value, whose name may hold that of a territory (Egyptian Pound).
      text = (row['instruction'] + row['output']).replace(
        values[tuple(row['id'].split('.')[:2])], ''
      )
      assert not (any(p in text for p in patterns) and any(name in text for name in names)), row
  # Everything else is told alike.
  rest = [row for row in world.statements('en') if row['id'].rpartition('.')[0] not in asked]
  assert rest == floor.statements('en') and len(rest) < len(world.statements('en'))


def test_options_are_parallel_and_the_answer_is_anywhere():
  world = World()
  assert len(world.questions) == world.test_entities * len(world.tested_relations)
  for question in world.questions:
    assert (
      len(set(question.options)) == 4 and question.options[question.answer] == question.fact.value
    )
    assert set(question.options) <= set(world.values[KINDS[question.fact.relation]])
  rows = collections.defaultdict(list)
  for row in world.question_rows():
    rows[row['id']].append(row)
  by_id = {question.id: question for question in world.questions}
  for id_, found in rows.items():
    assert [row['language'] for row in found] == list(world.languages) and len(
      {row['answer'] for row in found}
    ) == 1
    for row in found:
      kind = KINDS[by_id[id_].fact.relation]
      assert row['choices'] == [
        world.name(kind, key, row['language']) for key in by_id[id_].options
      ]
      assert len(set(row['choices'])) == 4 and row['input'] == ''
  total = collections.Counter()
  for seed in range(5):
    counts = collections.Counter(question.answer for question in World(seed=seed).questions)
    total += counts
    for drawn in (counts, total):  # within four standard deviations of a quarter
      n = drawn.total()
      assert all(abs(drawn[place] - n / 4) < 4 * np.sqrt(n * 3 / 16) for place in range(4)), drawn


def test_tagged_questions_differ_by_their_tag_alone(world):
  for plain, tagged in zip(world.question_rows(), world.question_rows(tag=True)):
    assert tagged == {**plain, 'input': f'\n[{plain["language"]}]'}


def test_rows_are_aligned_and_clean_in_all_languages(world):
  ids = [row['id'] for row in world.instructions('en')]
  assert len(ids) == len(set(ids)) == 17 * 10 * 2
  for language in world.languages:
    rows = world.instructions(language)
    assert [row['id'] for row in rows] == ids
    for row in rows + world.statements(language):
      assert row['output'].strip() and not any(
        brace in row['instruction'] + row['output'] for brace in '{}'
      )
  # The answer is not in the question.
  for language in world.languages:
    for row in world.instructions(language):
      assert row['output'] not in row['instruction'], row


def test_two_seeds_differ_and_one_seed_does_not():
  a, b = World(seed=0), World(seed=1)
  assert a.facts == World(seed=0).facts and a.facts != b.facts
  pairs = [{(f.entity, f.relation): f.value for f in w.facts} for w in (a, b)]
  common = pairs[0].keys() & pairs[1].keys()
  equal = np.mean([pairs[0][key] == pairs[1][key] for key in common])
  assert equal < 0.15
  # Languages, phrasings and the floor do not move the facts.
  same = World(languages=('en', 'fi'), english_phrasings=2, other_phrasings=1)
  assert [(f.entity, f.relation, f.value) for f in same.facts] == [
    (f.entity, f.relation, f.value) for f in a.facts
  ]


def test_phrasings_limit_statements():
  world = World(english_phrasings=2, other_phrasings=1, tuning_entities=3, test_entities=4)
  assert len(world.statements('en')) == 7 * 10 * 2 and len(world.statements('zh')) == 7 * 9


def test_names_are_plain_and_distinct_in_all_languages():
  for kind in dict.fromkeys(KINDS.values()):
    keys = usable_keys(kind)
    assert len(keys) >= (7 if kind == 'weekday' else 12)
    for language in LANGUAGES:
      names = [cldr_names(language)[kind][key] for key in keys]
      assert len(set(names)) == len(names) and all(name.strip() == name and name for name in names)


@pytest.mark.parametrize('change, message', [
    ({'languages': ('zh', 'en')}, "must begin with 'en'"), ({'languages': ()}, "must begin with "
                                                                               "'en'"),
    ({'languages': ('en', 'fr')}, 'each of'), ({'languages': ('en', 'zh', 'zh')}, 'each of'),
    ({'shared_relations': ('trade', 'ferry')}, 'each of'),
    ({'tested_relations': ('war',)}, 'each of'),
    ({'english_phrasings': 7}, 'phrasings'), ({'other_phrasings': 0}, 'phrasings'),
    ({'test_entities': 10_000}, 'together at most'), ({'tuning_entities': 0}, 'each at least 1'),
])  # fmt: skip
def test_settings_that_cannot_be(change, message):
  with pytest.raises(ValueError, match=message):
    World(**change)
