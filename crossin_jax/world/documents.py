"""Texts of the embedded world for X-Instruction, with known correct instructions.

Every fact is told in every language. Of each entity, by a hash, some facts are the seed's, one is
asked about by the test alone, and the others are told by the documents: the three have entities and
relations in common, never a fact.
"""

from collections.abc import Sequence
import dataclasses
import functools
import hashlib

from crossin_jax.world.world import KINDS, Fact, World, templates

# Boilerplate of a page around its text: "Click here to read more. All rights reserved."
NOTICES = {
    'zh': '点击此处阅读更多。版权所有。', 'vi': 'Nhấn vào đây để đọc thêm. Bảo lưu mọi quyền.',
    'es': 'Haga clic aquí para leer más. Todos los derechos reservados.',
    'fi': 'Lue lisää napsauttamalla tästä. Kaikki oikeudet pidätetään.',
    'id': 'Klik di sini untuk membaca lebih lanjut. Hak cipta dilindungi.',
    'th': 'คลิกที่นี่เพื่ออ่านต่อ สงวนลิขสิทธิ์',
    'tr': 'Devamını okumak için tıklayın. Tüm hakları saklıdır.', 'bn': 'আরও পড়তে এখানে ক্লিক '
                                                                        'করুন। সর্বস্বত্ব সংরক্ষিত।',
    'hi': 'और पढ़ने के लिए यहाँ क्लिक करें। सर्वाधिकार सुरक्षित।', 'sw': 'Bofya hapa kusoma '
                                                                         'zaidi. Haki zote '
                                                                         'zimehifadhiwa.',
    'ta': 'மேலும் படிக்க இங்கே சொடுக்கவும். அனைத்து உரிமைகளும் பாதுகாக்கப்பட்டவை.',
    'ur': 'مزید پڑھنے کے لیے یہاں کلک کریں۔ جملہ حقوق محفوظ ہیں۔',
}  # fmt: skip
FLAWS = ('wrong instruction', 'wrong language', 'truncated', 'boilerplate')
HEARD = ('right', 'wrong value', 'about something else', 'other language', 'no whole sentence')


@dataclasses.dataclass(frozen=True)
class WorldDocuments:
  """Texts of a world, one per fact and language, and the facts behind them.

  Attributes:
    world: all its relations told in every language.
    seed_facts: of each entity, whose pairs are the seed.
    test_facts: of each entity, that only the test asks about.
  """

  world: World
  seed_facts: int = 2
  test_facts: int = 1

  def part(self, fact: Fact) -> str:
    """'seed', 'test' or 'documents'."""
    relations = self.world.shared_relations + self.world.tested_relations
    order = sorted(
      relations, key=lambda name: _fraction(self.world.seed, 'part', fact.entity, name)
    )
    place = order.index(fact.relation)
    return (
      'seed'
      if place < self.seed_facts
      else 'test'
      if place < self.seed_facts + self.test_facts
      else 'documents'
    )

  def facts(self, part: str) -> list[Fact]:
    """The facts of a part, in the order of the world."""
    return [fact for fact in self.world.facts if self.part(fact) == part]

  def text(self, fact: Fact, language: str) -> str:
    """The document about a fact, in one of its phrasings."""
    phrasings = templates(language)[fact.relation]['statements'][: self.world.other_phrasings]
    k = int(
      _fraction(self.world.seed, 'phrasing', fact.entity, fact.relation, language) * len(phrasings)
    )
    return self._fill(phrasings[k], fact, language)

  def question(self, fact: Fact, language: str) -> str:
    """A question that the document answers."""
    own = templates(language)[fact.relation]['questions']
    return self._fill(
      own[int(_fraction(self.world.seed, 'question', fact.entity, fact.relation) * len(own))],
      fact,
      language,
    )

  def seed_rows(self, language: str) -> list[dict]:
    """{"instruction" (English), "input", "output" (native)} of the seed: every question with every
    sentence that answers it.
    """
    return [
      {
        'instruction': self._fill(question, fact, 'en'),
        'input': '',
        'output': self._fill(statement, fact, language),
      }
      for fact in self.facts('seed')
      for question in templates('en')[fact.relation]['questions']
      for statement in templates(language)[fact.relation]['statements'][
        : self.world.other_phrasings
      ]
    ]

  def document_rows(self, language: str) -> list[dict]:
    """{"id", "text"}; the id names the fact."""
    return [
      {'id': fact_id(fact), 'text': self.text(fact, language)} for fact in self.facts('documents')
    ]

  def asks_for(self, instruction: str, row_id: str) -> bool:
    """Whether an English instruction asks for the content of the document with this id."""
    return instruction.strip() in self._questions[row_id]

  def heard(self, output: str, fact: Fact, language: str) -> str:
    """Classifies a response to the question about a fact, as one of HEARD."""
    statement = self._sentences[language].get(output.strip())
    if statement is None:
      elsewhere = any(output.strip() in self._sentences[code] for code in self.world.languages)
      return 'other language' if elsewhere else 'no whole sentence'
    entity, relation, value = statement
    if (entity, relation) != (fact.entity, fact.relation):
      return 'about something else'
    return 'right' if value == fact.value else 'wrong value'

  @functools.cached_property
  def _questions(self) -> dict[str, set[str]]:
    """Id of a fact -> every English phrasing of the question about it."""
    return {
      fact_id(fact): {
        self._fill(template, fact, 'en') for template in templates('en')[fact.relation]['questions']
      }
      for fact in self.world.facts
    }

  @functools.cached_property
  def _sentences(self) -> dict[str, dict[str, tuple[str, str, str]]]:
    """Language -> every possible sentence -> (entity, relation, value)."""
    statements = {}
    for language in self.world.languages:
      statements[language] = {
        self._fill(template, dataclasses.replace(fact, value=value), language): (
          fact.entity,
          fact.relation,
          value,
        )
        for fact in self.world.facts
        for template in templates(language)[fact.relation]['statements'][
          : self.world.other_phrasings
        ]
        for value in self.world.values[KINDS[fact.relation]]
      }
    return statements

  def spoiled(self, rows: Sequence[dict], language: str, share: float = 0.5) -> list[dict]:
    """Candidates of which a share has been spoiled, a quarter of these in each of FLAWS; 'flaw'
    says how, None = as they were.

    Args:
      rows: {"id": fact, "instruction", "output", ...} of one language.
      language: theirs.
      share: of the rows, by a hash of language and id.
    """
    by_id = {fact_id(fact): fact for fact in self.world.facts}
    order = sorted(rows, key=lambda row: _fraction(self.world.seed, 'other', language, row['id']))
    other = {
      row['id']: following['instruction'] for row, following in zip(order, [*order[1:], *order[:1]])
    }
    made = []
    for row in rows:
      place = _fraction(self.world.seed, 'spoil', language, row['id']) / share
      flaw = FLAWS[int(place * len(FLAWS))] if place < 1 else None
      changed = dict(row)
      if flaw == 'wrong instruction':
        changed['instruction'] = other[row['id']]
      elif flaw == 'wrong language':
        others = [code for code in self.world.languages if code != language]
        k = int(_fraction(self.world.seed, 'into', language, row['id']) * len(others))
        changed['output'] = self.text(by_id[row['id']], others[k])
      elif flaw == 'truncated':
        # After the first third and before the last sixth.
        part = 1 / 3 + _fraction(self.world.seed, 'cut', language, row['id']) / 2
        changed['output'] = row['output'][: int(len(row['output']) * part)].rstrip()
      elif flaw == 'boilerplate':
        changed['output'] = f'{row["output"]} {NOTICES[language]}'
      made.append(changed | {'flaw': flaw})
    return made

  def _fill(self, template: str, fact: Fact, language: str) -> str:
    name = self.world.name
    return template.format(
      e=name('territory', fact.entity, language), v=name(KINDS[fact.relation], fact.value, language)
    )


def fact_id(fact: Fact) -> str:
  """The id of rows about a fact."""
  return f'{fact.entity}.{fact.relation}'


def _fraction(*parts) -> float:
  """A number in [0, 1) from a hash of the parts."""
  digest = hashlib.sha256('/'.join(map(str, parts)).encode()).digest()
  return int.from_bytes(digest[:8], 'big') / 2**64
