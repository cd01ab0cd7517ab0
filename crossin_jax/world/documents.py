"""Documents of the embedded world for X-Instruction, with known correct instructions.

Every fact is stated in every language. A hash assigns each fact of an entity to one part: the seed,
the test, which alone asks about it, or the documents. The parts share entities and relations but no
fact.
"""

from collections.abc import Sequence
import dataclasses
import functools
import hashlib

from crossin_jax.world.world import Fact, World, templates

# Boilerplate of a page around its text: "Click here to read more. All rights reserved."
NOTICES = {
    'zh': '点击此处阅读更多。版权所有。',
    'vi': 'Nhấn vào đây để đọc thêm. Bảo lưu mọi quyền.',
    'es': 'Haga clic aquí para leer más. Todos los derechos reservados.',
    'fi': 'Lue lisää napsauttamalla tästä. Kaikki oikeudet pidätetään.',
    'id': 'Klik di sini untuk membaca lebih lanjut. Hak cipta dilindungi.',
    'th': 'คลิกที่นี่เพื่ออ่านต่อ สงวนลิขสิทธิ์',
    'tr': 'Devamını okumak için tıklayın. Tüm hakları saklıdır.',
    'bn': 'আরও পড়তে এখানে ক্লিক করুন। সর্বস্বত্ব সংরক্ষিত।',
    'hi': 'और पढ़ने के लिए यहाँ क्लिक करें। सर्वाधिकार सुरक्षित।',
    'sw': 'Bofya hapa kusoma zaidi. Haki zote zimehifadhiwa.',
    'ta': 'மேலும் படிக்க இங்கே சொடுக்கவும். அனைத்து உரிமைகளும் பாதுகாக்கப்பட்டவை.',
    'ur': 'مزید پڑھنے کے لیے یہاں کلک کریں۔ جملہ حقوق محفوظ ہیں۔',
}  # fmt: skip
FLAWS = ('wrong instruction', 'wrong language', 'truncated', 'boilerplate')
ANSWERS = ('right', 'wrong value', 'about something else', 'other language', 'no whole sentence')


@dataclasses.dataclass(frozen=True)
class WorldDocuments:
  """Texts of a world, one per fact and language, and the facts behind them.

  Attributes:
    world: all its relations are stated in every language.
    seed_facts: of each entity, whose pairs are the seed.
    test_facts: of each entity, that only the test asks about.
  """

  world: World
  seed_facts: int = 2
  test_facts: int = 1

  def part(self, fact: Fact) -> str:
    """'seed', 'test' or 'documents'."""
    order = sorted(self.world.relations, key=lambda name: self._hash('part', fact.entity, name))
    position = order.index(fact.relation)
    if position < self.seed_facts:
      return 'seed'
    return 'test' if position < self.seed_facts + self.test_facts else 'documents'

  def facts(self, part: str) -> list[Fact]:
    """The facts of a part, in the order of the world."""
    return [fact for fact in self.world.facts if self.part(fact) == part]

  def text(self, fact: Fact, language: str) -> str:
    """The document about a fact, in one of its phrasings."""
    phrasings = self._statements(fact, language)
    k = int(self._hash('phrasing', fact.entity, fact.relation, language) * len(phrasings))
    return phrasings[k]

  def question(self, fact: Fact, language: str) -> str:
    """A question that the document answers."""
    phrasings = self.world.questions_about(fact, language)
    return phrasings[int(self._hash('question', fact.entity, fact.relation) * len(phrasings))]

  def seed_rows(self, language: str) -> list[dict]:
    """{"instruction" (English), "input", "output" (native)} of the seed: every question with every
    sentence that answers it.
    """
    return [
      {'instruction': question, 'input': '', 'output': statement}
      for fact in self.facts('seed')
      for question in self.world.questions_about(fact, 'en')
      for statement in self._statements(fact, language)
    ]

  def document_rows(self, language: str) -> list[dict]:
    """{"id", "text"}; the id is the fact's."""
    return [{'id': fact.id, 'text': self.text(fact, language)} for fact in self.facts('documents')]

  def asks_for(self, instruction: str, row_id: str) -> bool:
    """Whether an English instruction asks for the content of the document with this id."""
    return instruction.strip() in self._questions[row_id]

  def classify(self, output: str, fact: Fact, language: str) -> str:
    """Classifies a response to the question about a fact, as one of ANSWERS."""
    output = output.strip()
    stated = self._sentences[language].get(output)
    if stated is None:
      foreign = any(output in sentences for sentences in self._sentences.values())
      return 'other language' if foreign else 'no whole sentence'
    if stated.id != fact.id:
      return 'about something else'
    return 'right' if stated.value == fact.value else 'wrong value'

  @functools.cached_property
  def _questions(self) -> dict[str, set[str]]:
    """Id of a fact -> every English phrasing of the question about it."""
    return {fact.id: set(self.world.questions_about(fact, 'en')) for fact in self.world.facts}

  @functools.cached_property
  def _sentences(self) -> dict[str, dict[str, Fact]]:
    """Language -> every possible sentence -> what it states, true or not."""
    possible = [
      dataclasses.replace(fact, value=value)
      for fact in self.world.facts
      for value in self.world.values[fact.kind]
    ]
    return {
      language: {text: fact for fact in possible for text in self._statements(fact, language)}
      for language in self.world.languages
    }

  def spoiled(self, rows: Sequence[dict], language: str, share: float = 0.5) -> list[dict]:
    """The candidates, a share of them spoiled, a quarter of these in each way of FLAWS.

    Args:
      rows: {"id": of the fact, "instruction", "output", ...} of one language.
      language: of the outputs.
      share: of the rows, by a hash of language and id.

    Returns:
      The rows with 'flaw'; None = unchanged.
    """
    facts = {fact.id: fact for fact in self.world.facts}
    order = sorted(rows, key=lambda row: self._hash('other', language, row['id']))
    other = {
      row['id']: following['instruction'] for row, following in zip(order, [*order[1:], *order[:1]])
    }
    result = []
    for row in rows:
      position = self._hash('spoil', language, row['id']) / share
      flaw = FLAWS[int(position * len(FLAWS))] if position < 1 else None
      changed = row | {'flaw': flaw}
      if flaw == 'wrong instruction':
        changed['instruction'] = other[row['id']]
      elif flaw == 'wrong language':
        others = [code for code in self.world.languages if code != language]
        k = int(self._hash('into', language, row['id']) * len(others))
        changed['output'] = self.text(facts[row['id']], others[k])
      elif flaw == 'truncated':
        # After the first third and before the last sixth.
        part = 1 / 3 + self._hash('cut', language, row['id']) / 2
        changed['output'] = row['output'][: int(len(row['output']) * part)].rstrip()
      elif flaw == 'boilerplate':
        changed['output'] = f'{row["output"]} {NOTICES[language]}'
      result.append(changed)
    return result

  def _statements(self, fact: Fact, language: str) -> list[str]:
    """All phrasings of the sentence about a fact."""
    phrasings = templates(language)[fact.relation]['statements'][: self.world.other_phrasings]
    return [self.world.fill(template, fact, language) for template in phrasings]

  def _hash(self, *parts: str) -> float:
    """A number in [0, 1) from a hash of the seed and the parts."""
    content = '/'.join(map(str, (self.world.seed, *parts))).encode()
    return int.from_bytes(hashlib.sha256(content).digest()[:8], 'big') / 2**64
