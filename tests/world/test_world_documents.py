"""The world as natural text: whose right instructions are known, and whose pairs can be spoiled."""

from collections import Counter
import dataclasses

import pytest

from crossin_jax.world.documents import ANSWERS, FLAWS, NOTICES, WorldDocuments
from crossin_jax.world.world import KINDS, World

LANGUAGES = ('en', 'sw', 'ta', 'fi')


@pytest.fixture(scope='module')
def documents():
  world = World(
    languages=LANGUAGES,
    shared_relations=tuple(KINDS),
    tested_relations=(),
    tuning_entities=20,
    test_entities=20,
  )
  return WorldDocuments(world)


def test_every_fact_is_of_one_part(documents):
  parts = {
    part: {fact.id for fact in documents.facts(part)} for part in ('seed', 'documents', 'test')
  }
  assert set.union(*parts.values()) == {fact.id for fact in documents.world.facts}
  assert sum(map(len, parts.values())) == len(documents.world.facts) == 400
  assert len(parts['seed']) == 2 * 40 and len(parts['test']) == 40  # of each territory
  assert len({name.split('.')[0] for name in parts['seed']}) == 40
  assert len(documents.seed_rows('sw')) == 2 * 4 * len(parts['seed'])
  assert {row['id'] for row in documents.document_rows('ta')} == parts['documents']


@pytest.mark.parametrize('language', LANGUAGES[1:])
def test_half_are_spoiled_in_equal_parts(documents, language):
  facts = {fact.id: fact for fact in documents.facts('documents')}
  rows = [
    {
      'id': row['id'],
      'instruction': documents.question(facts[row['id']], 'en'),
      'output': row['text'],
    }
    for row in documents.document_rows(language)
  ]
  spoiled = documents.spoiled(rows, language)
  assert documents.spoiled(rows, language) == spoiled and [row['id'] for row in spoiled] == [
    row['id'] for row in rows
  ]
  counts = Counter(row['flaw'] for row in spoiled)
  assert set(counts) == {None, *FLAWS}
  assert 0.4 < counts[None] / len(rows) < 0.6 and max(counts[f] for f in FLAWS) < 2.2 * min(
    counts[f] for f in FLAWS
  )
  for before, row in zip(rows, spoiled):
    fact, same = facts[row['id']], row['output'] == before['output']
    right = documents.asks_for(row['instruction'], row['id'])
    heard = documents.classify(row['output'], fact, language)
    match row['flaw']:
      case None:
        assert same and right and heard == 'right'
      case 'wrong instruction':
        assert same and not right
      case 'wrong language':
        assert right and heard == 'other language'
      case 'truncated':
        assert (
          before['output'].startswith(row['output'])
          and heard == 'no whole sentence'
          and row['output']
        )
      case 'boilerplate':
        assert (
          row['output'] == f'{before["output"]} {NOTICES[language]}'
          and heard == 'no whole sentence'
        )


def test_what_an_answer_is(documents):
  fact = documents.facts('test')[0]
  other = next(f for f in documents.facts('test') if f.relation != fact.relation)
  wrong = next(
    value for value in documents.world.values[KINDS[fact.relation]] if value != fact.value
  )
  found = [
    documents.classify(text, fact, 'sw')
    for text in (
      f' {documents.text(fact, "sw")} ',
      documents.text(dataclasses.replace(fact, value=wrong), 'sw'),
      documents.text(other, 'sw'), documents.text(fact, 'fi'), '',
    )
  ]  # fmt: skip
  assert tuple(found) == ANSWERS


def test_another_seed_is_another_world(documents):
  other = WorldDocuments(dataclasses.replace(documents.world, seed=1))
  assert {f.id for f in other.facts('seed')} != {f.id for f in documents.facts('seed')}


def test_every_language_of_the_world_has_notices():
  from crossin_jax.world import world as world_lib

  assert set(NOTICES) == set(world_lib.LANGUAGES) - {'en'}
