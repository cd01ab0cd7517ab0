"""X-Instruction's evidence: what the arms are made of, with stand-ins for training and answering,
and what the table says.
"""

from collections import Counter
import json
import os
import sys

from conftest import REPOSITORY
import numpy as np
import pytest

from crossin_jax.workflow import jobs
from crossin_jax.xinstruction import rows as rows_lib

FOLDER = REPOSITORY / 'benchmarks' / 'evidence'
SMALL = [
  "--gin.XInstructionEvidence.languages=('vi', 'es')", '--gin.XInstructionEvidence.entities=24',
  '--gin.XInstructionEvidence.asked=2', '--gin.XInstructionEvidence.diverse_rows=12',
  '--gin.XInstructionEvidence.rare_share=0.2', "--gin.XInstructionEvidence.embedding='tfidf'",
]  # fmt: skip


@pytest.fixture(scope='module')
def evidence():
  # As a script it finds what lies beside it.
  sys.path.insert(0, str(FOLDER))
  try:
    import xinstruction
  finally:
    sys.path.remove(str(FOLDER))
  return xinstruction


@pytest.fixture(scope='module')
def figures(evidence):
  del evidence
  return sys.modules['xinstruction_figures']


class StandIn:
  """Answers in place of models: a model of one arm is a folder, and what it says depends on its
  name alone.
  """

  def __init__(self, evidence):
    self.evidence, self.ran, self.world = evidence, [], None

  def __call__(self, own, log, arguments, values=None, bindings=(), all_cores=False):
    del own, bindings, all_cores
    self.ran.append(log)
    if arguments[0] in ('prepare', 'train'):
      return
    told = dict(zip(arguments[2::2], arguments[3::2]))
    facts = {fact.id: fact for fact in self.world.world.facts}
    for language in self.world.settings.languages:
      for path in rows_lib.chunks(told['--input'], language):
        rows = [self._said(told, row, language, facts) for row in rows_lib.read(path)]
        rows_lib.write(os.path.join(told['--output'], language, os.path.basename(path)), rows)

  def _said(self, told, row, language, facts):
    documents, model = self.world.documents, os.path.basename(os.path.dirname(told['--checkpoint']))
    chance = rows_lib.fraction(model, language, row['id'])
    if told['--kind'] == 'write':
      return {
        'id': row['id'],
        'instruction': documents.question(facts[self.evidence.fact_of(row['id'])], 'en'),
      }
    if told['--kind'] == 'rate':
      return {'id': row['id'], 'score': 1 + 2 * chance}
    if row['id'].startswith('seed'):
      return {'id': row['id'], 'output': 'something'}
    if model == 'translator':
      entity, relation, k = row['id'].split('.')
      right = documents.statement(facts[f'{entity}.{relation}'], language, int(k))
      return {'id': row['id'], 'output': right if chance < 0.5 else f'{right} ...'}
    fact = facts['.'.join(row['id'].split('.')[1:])]
    spoken = 'en' if model == 'English_only' else language
    return {'id': row['id'], 'output': documents.text(fact, spoken) if chance < 0.7 else 'hm'}


@pytest.fixture(scope='module')
def ran(evidence, tmp_path_factory):
  """Two seeds from start to table, and what each step left."""
  out, stand_in, patch = (
    tmp_path_factory.mktemp('xinstruction'),
    StandIn(evidence),
    pytest.MonkeyPatch(),
  )
  begin = evidence.World.__init__

  def remembered(self, *args):
    begin(self, *args)
    stand_in.world = self

  patch.setattr(evidence.World, '__init__', remembered)
  patch.setattr(jobs.Jobs, 'run', lambda *args, **named: stand_in(*args, **named))
  worlds = []
  patch.setattr(
    evidence, 'write_figures', _also(evidence.write_figures, lambda: worlds.append(stand_in.world))
  )
  patch.chdir(REPOSITORY)
  command = evidence.config.rewrite(['--output_dir', str(out), '--seeds', '0,1', *SMALL])
  try:
    assert evidence.main(command) == 0
    first = list(stand_in.ran)
    assert evidence.main(command) == 0
  finally:
    patch.undo()
  assert stand_in.ran == first, 'a second start does only what is missing'
  return out, worlds[:2]


def _also(function, after):
  def both(*args):
    found = function(*args)
    after()
    return found

  return both


def trained_on(world, arm, language):
  return list(rows_lib.read(os.path.join(world.steps.folder(arm), f'rows_{language}.json')))


def test_a_pool_is_skewed_by_dropping(evidence):
  rows = [
    {'id': f'E{e}.{relation}.{k}'}
    for relation in ('radio', 'market', 'museum')
    for e in range(10)
    for k in range(4)
  ]
  pool = evidence.skewed(rows, ('radio',), 0.1, 'vi')
  assert Counter(evidence.relation_of(row['id']) for row in pool) == {
    'radio': 40,
    'market': 4,
    'museum': 4,
  }
  assert [row for row in rows if row in pool] == pool and len({row['id'] for row in pool}) == len(
    pool
  )
  assert evidence.skewed(rows[::-1], ('radio',), 0.1, 'vi') == pool[::-1]
  assert evidence.skewed(rows, ('radio',), 1.0, 'vi') == rows


def test_arms_of_a_group_have_equal_rows_and_steps(ran, evidence):
  _, worlds = ran
  assert [world.settings.world_seed for world in worlds] == [0, 1]
  for world in worlds:
    sizes = {
      arm: [len(trained_on(world, evidence.step_of(arm), language)) for language in ('vi', 'es')]
      for arm in evidence.ARMS
    }
    assert sizes['random'] == sizes['kept'] == sizes['translated'] == sizes['English only']
    assert sizes['chance'] == sizes['diverse'] == [12, 12] and min(sizes['kept']) > 20
    steps = {
      world.steps.manifest(evidence.step_of(arm))['counts']['steps'] for arm in evidence.ARMS
    }
    assert steps == {80}


def test_nothing_is_asked_that_was_told(ran, evidence):
  for world in ran[1]:
    asked = {fact.id for fact in world.asked()}
    assert Counter(map(evidence.relation_of, asked)) == dict.fromkeys(
      world.world.shared_relations, 2
    )
    for arm in map(evidence.step_of, evidence.ARMS):
      for language in ('vi', 'es'):
        assert not asked & {evidence.fact_of(row['id']) for row in trained_on(world, arm, language)}


def test_what_the_arms_say(ran, evidence):
  world = ran[1][0]
  facts = {fact.id: fact for fact in world.world.facts}
  written = {
    row['id']: row['output']
    for row in rows_lib.read_language(world.steps.folder('translate'), 'vi')
  }
  rows = trained_on(world, 'translated', 'vi')
  assert {row['id']: row['output'] for row in rows} == written, (
    'unfiltered, as the translator wrote them'
  )
  assert {row['id'] for row in rows} == {row['id'] for row in trained_on(world, 'random', 'vi')}
  assert all(row['instruction'].endswith(' Answer in Vietnamese.') for row in rows)
  asked = list(rows_lib.read_language(os.path.join(world.steps.folder('translate'), 'asked'), 'vi'))
  english = world.documents._sentences['en']
  for row in asked:
    said = english[row['instruction'].removesuffix(' Answer in Vietnamese.')]
    assert said == facts[evidence.fact_of(row['id'])]
  lessons = trained_on(world, 'translator', 'es')
  assert {evidence.fact_of(row['id']) for row in lessons} == {
    fact.id for fact in world.documents.facts('seed')
  }
  for row in trained_on(world, 'English_only', 'vi'):
    assert row['output'] in english and row['instruction'].endswith(' Answer in English.')
    assert world.documents.part(facts[evidence.fact_of(row['id'])]) == 'seed'


def test_the_rare_are_spread_from_the_kept(ran, evidence):
  world = ran[1][0]
  counts = world.steps.manifest('spread')['counts']['by_language']
  for language in ('vi', 'es'):
    own, pairs = counts[language], list(world.run.read('pairs', language))
    of = Counter(evidence.relation_of(row['id']) for row in pairs)
    for relation, number in own['pool']['relations'].items():
      assert number == (
        of[relation] if relation in ('festival', 'radio') else round(0.2 * of[relation])
      )
    assert own['kept']['rows'] == int(own['pool']['rows'] * 0.5 + 0.5)
    rare = lambda name: sum(
      n for r, n in own[name]['relations'].items() if r not in ('festival', 'radio')
    )
    assert rare('diverse') >= rare('chance')
    sets = {
      name: {row['id'] for row in world.rows(name, language)} for name in ('chance', 'diverse')
    }
    spoiled = {row['id']: row['flaw'] for row in pairs}
    for name, ids in sets.items():
      assert len(ids) == 12 and own[name]['good'] == sum(spoiled[id_] is None for id_ in ids)


def test_the_table_says_what_was_answered(ran, evidence, figures):
  out, worlds = ran
  found = json.loads((out / 'xinstruction.json').read_text(encoding='utf-8'))
  text = (out / 'xinstruction.md').read_text(encoding='utf-8')
  assert text == figures.markdown(found) and found['seeds'] == [0, 1]
  for arm in (*evidence.ARMS, 'seed'):
    own = found['arms'][arm]
    shares = []
    for world in worlds:
      hits = 0
      for language in ('vi', 'es'):
        for row in rows_lib.read_language(
          os.path.join(world.steps.folder('ask'), evidence.step_of(arm)), language
        ):
          form, id_ = row['id'].split('.', 1)
          hits += form == 'English' and row['output'] in world.documents._sentences[language]
      shares.append(hits / (2 * found['facts']))
    assert own['English']['follows']['estimate'] == pytest.approx(np.mean(shares))
    assert own['English']['follows']['low'] <= np.mean(shares) <= own['English']['follows']['high']
    (line,) = [line for line in text.split('\n\n')[0].splitlines() if line.startswith(f'| {arm} |')]
    assert f'{100 * np.mean(shares):.1f} [' in line
  assert found['arms']['English only']['English']['heard']['other language'] > 0
  assert found['arms']['English only']['English']['follows']['estimate'] == 0
  gap = found['differences']['kept - translated']['English']['follows']['estimate']
  of = lambda arm: found['arms'][arm]['English']['follows']['estimate']
  assert gap == pytest.approx(of('kept') - of('translated'))
  both = found['diversification']
  assert np.average(
    [both[kind]['diverse']['estimate'] for kind in ('frequent', 'rare')], weights=[2, 4]
  ) == pytest.approx(of('diverse'))
  right = [own['right'] for own in found['translations'].values()]
  assert all(
    f'| {n} of {sum(own.values())} |' in text
    for n, own in zip(right, found['translations'].values())
  )


def test_what_cannot_be_asked(evidence, tmp_path):
  settings = evidence.Settings(languages=('vi', 'es'), entities=24, asked=20)
  with pytest.raises(ValueError, match='asked = 20: seed 0 has .* make more'):
    evidence.World(str(tmp_path), settings).asked()
  with pytest.raises(SystemExit):
    evidence.main(['--seeds', 'one'])
