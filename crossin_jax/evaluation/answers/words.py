"""The words by which answers are recognised (words.toml), for the languages of a text."""

import collections
import functools
import importlib.resources
import tomllib
from typing import NamedTuple
import unicodedata

from crossin_jax.evaluation.answers.cleaning import clean, find_words, fold, kind

# Roles of words beside options; a word has the last of its roles.
_ROLES = ('now', 'between', 'but', 'option', 'or', 'right', 'answer', 'not')


@functools.cache
def _languages() -> dict[str, dict[str, frozenset[str]]]:
  """language -> role ('answer', 'option', 'right', 'between', 'not', 'or') -> words."""
  path = importlib.resources.files('crossin_jax.evaluation.answers').joinpath('words.toml')
  folded = lambda words: frozenset(fold(clean(word)) for word in words)
  return {
    language: {role: folded(words) for role, words in roles.items()}
    for language, roles in tomllib.loads(path.read_text(encoding='utf-8')).items()
  }


@functools.cache
def _scripts() -> dict[str, bool]:
  """language -> whether its words are in Latin script."""
  return {
    language: all(c.isascii() or 'LATIN' in unicodedata.name(c, '') for c in max(roles['answer']))
    for language, roles in _languages().items()
  }


@functools.cache
def _latin_words() -> dict[str, list[str]]:
  """word -> languages in Latin script that have it in any role."""
  words = collections.defaultdict(list)
  for language, roles in _languages().items():
    if _scripts()[language]:
      for word in frozenset().union(*(roles.get(role, ()) for role in _ROLES)):
        words[word].append(language)
  return words


def of_language(language: str) -> dict[str, frozenset[str]]:
  """role -> words; {} for a language that is not in words.toml."""
  return _languages().get(language, {})


def is_unspaced(word: str) -> bool:
  return kind(word[0]) in ('free', 'kana', 'hangul')


# Languages whose negation stands behind the option that it negates.
_VERB_FINAL = tuple('ja ko tr hi mr ne bn ta te kn ml gu pa si ur fa am'.split())
# Negations that may stand behind the option in any language: 'A wrong'.
_PREDICATES = frozenset(fold(clean(word)) for word in """
  wrong incorrect false incorrecta incorrecto falsa falso errónea incorrecte fausse faux inexacte
  falsch inkorrekt sbagliata sbagliato errata errato incorreta incorreto errada errado onjuist fout
  salah sai mali kosa неверно неверен неправильно
  ผิด 错误 錯誤 错 錯 不正确 不正確 不对 不對 خاطئ خاطئة خطأ
""".split())  # fmt: skip


@functools.cache
def behind() -> frozenset[str]:
  """Negations in languages where they stand behind the option."""
  negations = frozenset().union(*(_languages()[language]['not'] for language in _VERB_FINAL))
  return negations - {'न', 'ना', 'न ही', 'نہ', 'نه'}  # 'neither', before the option


def follows(word: str) -> bool:
  """Whether a negation may say something of the option before it: 'A wrong'."""
  return word in _PREDICATES or word in behind()


@functools.cache
def articled() -> frozenset[str]:
  """Words for answers in languages where A or E is a word that stands before them."""
  return frozenset(
    word
    for language in ('en', 'pt', 'hu', 'ht')
    for role in ('answer', 'right')
    for word in _languages()[language][role]
  ) | {'guess', 'question', 'final', 'sure', 'pretty', 'quite', 'here', 'more', 'less'}


class Vocabulary(NamedTuple):
  """The words that are looked for in a text.

  Attributes:
    roles: word -> its role in any of the languages, negations before all others.
    now: words for 'now'.
    languages: theirs.
  """

  roles: dict[str, str]
  now: frozenset[str]
  languages: frozenset[str]


def spoken(text: str, language: str) -> Vocabulary:
  """Words of languages in other scripts, of the likeliest in Latin, and of `language`."""
  known = _latin_words().keys() & set(find_words(text))
  return _vocabulary(_likely(frozenset(known)), language)


@functools.lru_cache(4096)
def _likely(words: frozenset[str]) -> frozenset[str]:
  """Languages in Latin script that have most of the words."""
  hits: dict[str, int] = collections.defaultdict(int)
  for word in words:
    for other in _latin_words()[word]:
      hits[other] += 1
  most = 0.7 * max(hits.values(), default=0)
  return frozenset(other for other in hits if hits[other] >= most)


@functools.cache
def _vocabulary(likely: frozenset[str], language: str) -> Vocabulary:
  """The roles in `language`, if the text may be in it, come before others: 'ni' is Swahili 'is'."""
  languages = _others() | likely | {language}
  main = {language} & (_others() | likely)
  roles = {}
  for group in (languages & _languages().keys(), main & _languages().keys()):
    for role in _ROLES:
      for other in group:
        roles |= dict.fromkeys(_languages()[other].get(role, ()), role)
  now = frozenset().union(*(of_language(other).get('now', ()) for other in languages))
  return Vocabulary(roles, now, languages)


@functools.cache
def _others() -> frozenset[str]:
  """English and the languages in other scripts than Latin."""
  return frozenset({'en'} | {other for other, is_latin in _scripts().items() if not is_latin})


@functools.cache
def _all() -> frozenset[str]:
  """Words with a role in any language."""
  return frozenset().union(
    *(words for roles in _languages().values() for role, words in roles.items() if role in _ROLES)
  )


@functools.cache
def beginnings() -> frozenset[str]:
  """The first words of phrases: 'final' and 'the final' of 'the final answer'."""
  return frozenset(p[:i] for p in _all() for i, c in enumerate(p) if c == ' ')


@functools.cache
def endings() -> frozenset[str]:
  """The last words of phrases: 'answer' and 'final answer' of 'the final answer'."""
  return frozenset(p[i + 1 :] for p in _all() for i, c in enumerate(p) if c == ' ')


@functools.cache
def sizes(edge: int) -> dict[str, list[int]]:
  """First (`edge` = 0) or last (-1) character -> sizes of the words with it, longest first."""
  found = collections.defaultdict(set)
  for word in _all():
    found[word[edge]].add(len(word))
  return {c: sorted((size for size in found[c] if size <= 14), reverse=True) for c in found}
