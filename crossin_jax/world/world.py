"""The embedded world: invented facts over real names, so that nobody can know or guess an answer.

Names of territories, languages, currencies, months and weekdays come from Unicode CLDR through
Babel, in thirteen languages. Which territory stands in which relation to which value is drawn by a
seed, every value equally often. Some relations are told in every language; the tested ones in
English only. This module imports no TensorFlow.
"""

import dataclasses
import functools
import importlib.resources
import random
import re
import tomllib

import babel

from crossin_jax import config

LANGUAGES = ('en', 'zh', 'vi', 'es', 'fi', 'id', 'th', 'tr', 'bn', 'hi', 'sw', 'ta', 'ur')
# Relation -> kind of its value. Relations come in pairs of one kind, so that the names a tested
# relation needs are met, in every language, through the shared relation of the same kind.
KINDS = {
    'trade': 'territory', 'ferry': 'territory',
    'festival': 'month', 'harvest': 'month',
    'radio': 'language', 'school': 'language',
    'museum': 'currency', 'reserve': 'currency',
    'market': 'weekday', 'council': 'weekday',
}  # fmt: skip
VALUES_PER_KIND = 12  # weekdays: 7
# CLDR territories that are unsuitable as the subject of a sentence.
_NO_COUNTRY = frozenset('AC AQ CP DG EA EU EZ IC IO QO TA TF UN XA XB ZZ'.split())
_KEYS = {'territory': '[A-Z]{2}', 'language': '[a-z]{2}', 'currency': '[A-Z]{3}'}
_UNUSUAL_NAME = re.compile(r"[()&,.\-–—’'0-9]|SAR")


@functools.cache
def cldr_names(language: str) -> dict[str, dict[str, str]]:
  """CLDR names of one language: kind -> key -> name.

  Keys are language-independent: ISO codes, '1' to '12' for months, '0' (Monday) to '6' for
  weekdays.
  """
  locale = babel.Locale.parse({'zh': 'zh_Hans'}.get(language, language))
  # Finnish inflects the 'format' names (tammikuuta). The others define no 'stand-alone' weekdays;
  # for them Babel returns those of the locale that was loaded first.
  form = 'stand-alone' if language == 'fi' else 'format'
  return {
    'territory': dict(locale.territories),
    'language': dict(locale.languages),
    'currency': dict(locale.currencies),
    'month': {str(k): v for k, v in locale.months[form]['wide'].items()},
    'weekday': {str(k): v for k, v in locale.days[form]['wide'].items()},
  }


@functools.cache
def usable_keys(kind: str) -> tuple[str, ...]:
  """Keys of a kind whose names are plain and distinct in all thirteen languages, sorted.

  Names with brackets, years or the like are excluded, and so is a name that contains another one in
  some language (Niger, Nigeria): the options of a question must differ by their letters.
  """
  names = [cldr_names(language)[kind] for language in LANGUAGES]
  if kind not in _KEYS:
    return tuple(sorted(names[0], key=int))
  kept: dict[str, list[str]] = {}
  for key in sorted(set.intersection(*map(set, names)) - _NO_COUNTRY):
    translations = [own[key].lower() for own in names]
    if (
      re.fullmatch(_KEYS[kind], key)
      and not any(_UNUSUAL_NAME.search(own[key]) for own in names)
      and not any(
        one in other or other in one
        for others in kept.values()
        for one, other in zip(translations, others)
      )
    ):
      kept[key] = translations
  return tuple(kept)


@functools.cache
def templates(language: str) -> dict[str, dict[str, list[str]]]:
  """Sentences of one language: relation -> 'statements' | 'questions' -> templates with {e} and
  {v}.
  """
  path = importlib.resources.files('crossin_jax.world') / 'templates' / f'{language}.toml'
  return tomllib.loads(path.read_text(encoding='utf-8'))


@dataclasses.dataclass(frozen=True)
class Fact:
  """One invented fact.

  Attributes:
    entity: territory key the fact is about.
    relation: one of KINDS.
    value: key of the value.
    group: 'tuning' or 'test', the group of the entity.
    told_in: languages that have statements of it; () = none.
  """

  entity: str
  relation: str
  value: str
  group: str
  told_in: tuple[str, ...]

  @property
  def id(self) -> str:
    """'FR.radio': the id of rows about the fact."""
    return f'{self.entity}.{self.relation}'

  @property
  def kind(self) -> str:
    """Kind of the value."""
    return KINDS[self.relation]


@dataclasses.dataclass(frozen=True)
class Question:
  """One four-option question, parallel across languages: keys, not names."""

  id: str
  fact: Fact
  options: tuple[str, ...]
  answer: int


@config.configurable(commands=('prepare',))
@dataclasses.dataclass(frozen=True)
class World:
  """The facts of one seed and the texts about them.

  Attributes:
    seed: draws entities, values, facts and options. Two seeds share nothing but the names.
    languages: the first is English; any of the thirteen.
    tuning_entities: territories that tuning asks questions about.
    test_entities: territories that only the test asks about; a multiple of 12 makes every value
      equally frequent.
    shared_relations: stated in every language. Nine of ten, because a model learns that names in
      different languages mean the same thing only from many statements in all languages
      (docs/evidence/setting.md).
    tested_relations: stated in English only; the test asks about them. Answers that are territories
      are those that a small model carries over best.
    english_phrasings: statements per fact in English, 1 to 6.
    other_phrasings: statements per fact in each other language, 1 to 4.
    tell_tested: False makes the world of the Floor arm, which never states what the test asks.
  """

  seed: int = 0
  languages: tuple[str, ...] = ('en', 'zh', 'vi', 'es')
  tuning_entities: int = 24
  test_entities: int = 60
  shared_relations: tuple[str, ...] = (
    'trade',
    'festival',
    'harvest',
    'radio',
    'school',
    'museum',
    'reserve',
    'market',
    'council',
  )
  tested_relations: tuple[str, ...] = ('ferry',)
  english_phrasings: int = 6
  other_phrasings: int = 4
  tell_tested: bool = True

  def __post_init__(self):
    # gin passes lists; hashing needs tuples.
    for field in ('languages', 'shared_relations', 'tested_relations'):
      object.__setattr__(self, field, tuple(getattr(self, field)))
    if not self.languages or self.languages[0] != 'en':
      raise ValueError(
        f"World.languages = {self.languages} must begin with 'en': facts are told in English"
      )
    unknown = set(self.languages) - set(LANGUAGES)
    if unknown or len(set(self.languages)) != len(self.languages):
      raise ValueError(
        f'World.languages = {self.languages}: each of {LANGUAGES} at most once, nothing else'
      )
    relations = self.relations
    if set(relations) - set(KINDS) or len(set(relations)) != len(relations):
      raise ValueError(
        f'World relations {relations}: each of {tuple(KINDS)} at most once, nothing else'
      )
    if not 1 <= self.english_phrasings <= 6 or not 1 <= self.other_phrasings <= 4:
      raise ValueError('World.english_phrasings must be 1 to 6 and other_phrasings 1 to 4')
    most = len(usable_keys('territory')) - VALUES_PER_KIND
    entities = self.tuning_entities + self.test_entities
    if min(self.tuning_entities, self.test_entities) < 1 or entities > most:
      raise ValueError(
        f'World.tuning_entities + test_entities = {entities}: each at least 1, together at most '
        f'{most}'
      )

  @property
  def relations(self) -> tuple[str, ...]:
    """The shared and the tested ones."""
    return self.shared_relations + self.tested_relations

  def _random(self, *purpose) -> random.Random:
    """A generator for one purpose, so that one setting does not change the draws of another."""
    return random.Random('/'.join(map(str, (self.seed, *purpose))))

  @functools.cached_property
  def values(self) -> dict[str, tuple[str, ...]]:
    """Kind -> keys that facts can have as value."""
    result = {}
    for kind in dict.fromkeys(KINDS.values()):
      keys = list(usable_keys(kind))
      self._random('values', kind).shuffle(keys)
      result[kind] = tuple(keys[:VALUES_PER_KIND])
    return result

  @functools.cached_property
  def entities(self) -> dict[str, tuple[str, ...]]:
    """Group -> territory keys, without territories that are values."""
    keys = [key for key in usable_keys('territory') if key not in self.values['territory']]
    self._random('entities').shuffle(keys)
    cut = self.test_entities
    return {'test': tuple(keys[:cut]), 'tuning': tuple(keys[cut : cut + self.tuning_entities])}

  @functools.cached_property
  def facts(self) -> tuple[Fact, ...]:
    """All facts; within a relation and a group every value is equally frequent up to one."""
    facts = []
    for relation in self.relations:
      for group, entities in self.entities.items():
        rng = self._random('facts', relation, group)
        pool = list(self.values[KINDS[relation]])
        rng.shuffle(pool)
        drawn = [pool[i % len(pool)] for i in range(len(entities))]
        rng.shuffle(drawn)
        told_in = self.languages
        if relation in self.tested_relations:
          told_in = ('en',) if group == 'tuning' or self.tell_tested else ()
        facts += [Fact(e, relation, v, group, told_in) for e, v in zip(entities, drawn)]
    return tuple(facts)

  def name(self, kind: str, key: str, language: str) -> str:
    """The CLDR name of a key."""
    return cldr_names(language)[kind][key]

  def statements(self, language: str) -> list[dict[str, str]]:
    """Rows of running text in a language: instruction and input empty, output the sentence."""
    phrasings = self.english_phrasings if language == 'en' else self.other_phrasings
    return [
      _row(f'{fact.id}.{k}', '', self.fill(template, fact, language))
      for fact in self.facts
      if language in fact.told_in
      for k, template in enumerate(templates(language)[fact.relation]['statements'][:phrasings])
    ]

  def questions_about(self, fact: Fact, language: str) -> list[str]:
    """All phrasings of the question that a fact answers."""
    return [
      self.fill(template, fact, language)
      for template in templates(language)[fact.relation]['questions']
    ]

  def instructions(self, language: str) -> list[dict[str, str]]:
    """Question-answer rows about the tuning entities, aligned by id across languages."""
    return [
      _row(f'{fact.id}.{k}', question, self.name(fact.kind, fact.value, language))
      for fact in self.facts
      if fact.group == 'tuning'
      for k, question in enumerate(self.questions_about(fact, language))
    ]

  @functools.cached_property
  def questions(self) -> tuple[Question, ...]:
    """Test questions: every tested fact of every test entity, with three other values."""
    questions = []
    for fact in self.facts:
      if fact.group == 'test' and fact.relation in self.tested_relations:
        rng = self._random('options', fact.relation, fact.entity)
        others = [value for value in self.values[fact.kind] if value != fact.value]
        options = rng.sample(others, 3)
        answer = rng.randrange(4)
        options.insert(answer, fact.value)
        questions.append(Question(fact.id, fact, tuple(options), answer))
    return tuple(questions)

  def question_rows(self, tag: bool = False) -> list[dict]:
    """Test questions as rows, one per question and language, in the first question phrasing.

    Args:
      tag: put the language tag, as CrossIn's rows carry it, at the end of the input field.

    Returns:
      Rows {'id', 'language', 'instruction', 'input', 'choices': four names, 'answer': index}.
    """
    return [
      {
        'id': question.id,
        'language': language,
        'instruction': self.questions_about(question.fact, language)[0],
        'input': f'\n[{language}]' if tag else '',
        'choices': [self.name(question.fact.kind, key, language) for key in question.options],
        'answer': question.answer,
      }
      for question in self.questions
      for language in self.languages
    ]

  def facts_table(self) -> str:
    """Tab-separated table of the facts in English, with the languages of each."""
    rows = [('entity', 'relation', 'value', 'group', 'told_in', 'asked_by')]
    for fact in self.facts:
      asked = fact.group == 'tuning' or fact.relation in self.tested_relations
      entity, value = self.fill('{e}', fact, 'en'), self.fill('{v}', fact, 'en')
      told_in = ' '.join(fact.told_in) or '-'
      asked_by = fact.group if asked else '-'
      rows.append((entity, fact.relation, value, fact.group, told_in, asked_by))
    return ''.join('\t'.join(row) + '\n' for row in rows)

  def fill(self, template: str, fact: Fact, language: str) -> str:
    """The template with the names of the entity {e} and the value {v}."""
    return template.format(
      e=self.name('territory', fact.entity, language), v=self.name(fact.kind, fact.value, language)
    )


def _row(id_: str, instruction: str, output: str) -> dict[str, str]:
  return {'id': id_, 'instruction': instruction, 'input': '', 'output': output}
