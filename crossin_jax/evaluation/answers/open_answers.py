"""Open answers: numbers (MGSM), and spans scored by F1 and exact match.

F1 and exact match are SQuAD v1.1's (Rajpurkar et al. 2016, arXiv 1606.05250) under the name
'squad', which XQuAD uses in all languages, and MLQA's (Lewis et al. 2020, arXiv 1910.07475) under
'mlqa': Unicode punctuation, the articles of each language, and Chinese by character.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
import functools
import os
import re
import string
import sys
import unicodedata

import numpy as np

from crossin_jax.data.thoughts import without_thoughts
from crossin_jax.evaluation import record_fields
from crossin_jax.evaluation.answers import extraction
from crossin_jax.evaluation.answers.numbers import extracted_number, same_number
from crossin_jax.evaluation.measures import consistency
from crossin_jax.evaluation.measures.consistency import Summary
from crossin_jax.languages import code_of, languages
from crossin_jax.storage.files import write_jsonl
from crossin_jax.storage.records import RecordError

# benchmark -> protocols that read or compare its answers, the usual one first
PROTOCOLS = {'mgsm': ('number',), 'xquad': ('squad', 'mlqa'), 'mlqa': ('mlqa', 'squad')}
_ENGLISH_ARTICLES = re.compile(r'\b(?:a|an|the)\b')
_MLQA_ARTICLES = {
  'en': _ENGLISH_ARTICLES,
  'es': re.compile(r'\b(?:un|una|unos|unas|el|la|los|las)\b'),
  'vi': re.compile(r'\b(?:của|là|cái|chiếc|những)\b'),
  'de': re.compile(r'\b(?:ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b'),
  'ar': re.compile(r'(?:^|\s)ال'),
}


def _mlqa_articles(language: str) -> re.Pattern | None:
  """The articles of MLQA's script, or those of `languages.added`."""
  if language in _MLQA_ARTICLES:
    return _MLQA_ARTICLES[language]
  entry = languages().get(language)
  words = '|'.join(map(re.escape, entry.articles)) if entry else ''
  return re.compile(rf'\b(?:{words})\b') if words else None


@functools.cache
def _deletion(protocol: str) -> dict[int, None]:
  """Translation table that deletes the punctuation of a protocol."""
  deleted = set(string.punctuation)
  if protocol == 'mlqa':
    deleted |= {c for c in map(chr, range(sys.maxunicode)) if unicodedata.category(c)[0] == 'P'}
  return dict.fromkeys(map(ord, deleted))


def normalised(text: str, protocol: str, language: str) -> list[str]:
  """Words of an answer in lower case, without punctuation and articles.

  Args:
    text: the answer.
    protocol: 'squad' or 'mlqa'.
    language: code; 'squad' ignores it.
  """
  text = text.lower().translate(_deletion(protocol))
  articles = _ENGLISH_ARTICLES if protocol == 'squad' else _mlqa_articles(language)
  text = articles.sub(' ', text) if articles else text
  if protocol == 'mlqa' and language == 'zh':
    text = re.sub('([\u4e00-\u9fa5])', r' \1 ', text)
  return text.split()


def exact_match(prediction: str, answers: Sequence[str], protocol: str, language: str) -> bool:
  """Whether the normalised prediction equals one of the normalised answers."""
  words = normalised(prediction, protocol, language)
  return any(words == normalised(answer, protocol, language) for answer in answers)


def f1(prediction: str, answers: Sequence[str], protocol: str, language: str) -> float:
  """Harmonic mean of the precision and recall of words, 0..1; the maximum over the answers."""
  words, best = normalised(prediction, protocol, language), 0.0
  for answer in answers:
    expected = normalised(answer, protocol, language)
    if shared := (Counter(words) & Counter(expected)).total():
      best = max(best, 2 * shared / (len(words) + len(expected)))
  return best


# ---- predictions and figures ----


@dataclass
class OpenPredictions:
  """Predicted texts and accepted texts. Languages may have different items.

  Attributes:
    texts: language -> ID -> predicted text.
    answers: language -> ID -> accepted texts.
    malformed: a message for each skipped line.
  """

  texts: dict[str, dict[str, str]]
  answers: dict[str, dict[str, list[str]]]
  malformed: list[str] = field(default_factory=list)

  def cells(self, language: str) -> list[tuple[str, list[str]]]:
    """(predicted text without thoughts, accepted texts) of each item of a language."""
    answers = self.answers[language]
    return [
      (without_thoughts(text), answers[item_id]) for item_id, text in self.texts[language].items()
    ]

  @property
  def missing(self) -> dict[str, list[str]]:
    """Language -> IDs that it lacks of those that any language has."""
    every = dict.fromkeys(item_id for texts in self.texts.values() for item_id in texts)
    lacking = {
      language: [item_id for item_id in every if item_id not in texts]
      for language, texts in self.texts.items()
    }
    return {language: ids for language, ids in lacking.items() if ids}


def read_predictions(path: str | os.PathLike, *, allow_partial: bool = False) -> OpenPredictions:
  """Reads a line per item and language.

  {"id", "language", "answers": [strings], "prediction"}; "answer" for a single answer.

  Raises:
    RecordError: malformed lines, each with its number, unless `allow_partial`.
  """
  malformed: list[str] = []
  cells = record_fields.collect(
    path, _cell, malformed, lambda key: f'item {key[1]!r} in {key[0]!r}'
  )
  if malformed and not allow_partial:
    head = f'{path}: {len(malformed)} malformed lines (--allow_partial scores the rest)'
    raise RecordError(record_fields.message(head, malformed))
  if not cells:
    raise RecordError(f'{path} holds no predictions that can be scored')
  predictions = OpenPredictions({}, {}, malformed)
  for (language, item_id), (text, answers) in cells.items():
    predictions.texts.setdefault(language, {})[item_id] = text
    predictions.answers.setdefault(language, {})[item_id] = answers
  return predictions


def _cell(record: dict, where: str) -> tuple[tuple[str, str], tuple[str, list[str]]]:
  language = record.get('language', '')
  if not isinstance(language, str):
    raise ValueError(f"'language' must be a string, found {language!r}")
  answers = record.get('answers', [str(record['answer'])] if 'answer' in record else None)
  if not record_fields.are_strings(answers):
    raise ValueError(f"'answers' must be a list of strings, found {answers!r}")
  text = record.get('prediction')
  if not isinstance(text, str):
    raise ValueError(f"'prediction' must be a string, found {text!r}")
  return (code_of(language), record_fields.item_id(record)), (text, answers)


def write_predictions(path: str | os.PathLike, predictions: OpenPredictions) -> None:
  """Writes the format of `read_predictions`, atomically."""
  rows = (
    {'id': id_, 'language': code, 'answers': predictions.answers[code][id_], 'prediction': text}
    for code, texts in predictions.texts.items()
    for id_, text in texts.items()
  )
  write_jsonl(path, rows)


def summarise(predictions: OpenPredictions, protocol: str) -> Summary:
  """Figures of open answers; accuracy is exact match.

  Numbers are comparable across languages: if all languages have the same items, consistency is that
  of the numbers. Spans have F1 and no consistency.

  Args:
    predictions: predicted and accepted texts.
    protocol: 'number', 'squad' or 'mlqa'.
  """
  items = {tuple(sorted(texts)) for texts in predictions.texts.values()}
  if protocol == 'number' and len(items) == 1:
    return _summarise_parallel_numbers(predictions)

  def mean(measure) -> tuple[float, dict[str, float]]:
    by_language = {
      language: float(np.mean([measure(*cell, language) for cell in predictions.cells(language)]))
      for language in predictions.texts
    }
    return float(np.mean(list(by_language.values()))), by_language

  scores, parsed = (None, None), lambda text, _: text.strip()
  if protocol == 'number':
    accuracy = mean(lambda text, answers, language: same_number(_value(text, language), answers[0]))
    parsed = _value
  else:
    accuracy = mean(lambda text, answers, language: exact_match(text, answers, protocol, language))
    scores = mean(lambda text, answers, language: f1(text, answers, protocol, language))
  unparsed = [
    not parsed(text, language)
    for language in predictions.texts
    for text, _ in predictions.cells(language)
  ]
  return Summary(
    *accuracy,
    consistency={},
    ac3={},
    pairwise_consistency={},
    unparsed_rate=float(np.mean(unparsed)),
    items=max(map(len, predictions.texts.values())),
    f1=scores[0],
    f1_by_language=scores[1],
  )


def _summarise_parallel_numbers(predictions: OpenPredictions) -> Summary:
  """Figures of numbers, where the distinct values of an item are its options."""
  languages = list(predictions.texts)
  ids = list(predictions.texts[languages[0]])
  chosen_NL, answers_NL = np.full((2, len(ids), len(languages)), consistency.UNPARSED)
  for i, item_id in enumerate(ids):
    options: dict[float, int] = {}  # value -> index
    for j, language in enumerate(languages):
      answer = float(predictions.answers[language][item_id][0])
      answers_NL[i, j] = options.setdefault(answer, len(options))
      if number := _value(predictions.texts[language][item_id], language):
        chosen_NL[i, j] = options.setdefault(float(number), len(options))
  return consistency.summarise(chosen_NL, answers_NL, languages)


def _value(text: str, language: str) -> str:
  """The extracted number, '' if it is not a valid one such as '1.2.3'."""
  number = extracted_number(text, language)
  return number if same_number(number, number) else ''


def of_questions(questions: Sequence, texts: Sequence[Sequence[Sequence[str]]]) -> OpenPredictions:
  """Predictions of open `Questions` from generated texts, [questions][item][language]."""
  predictions = OpenPredictions({}, {})
  for asked, generated in zip(questions, texts):
    for j, language in enumerate(asked.languages):
      predictions.texts[language] = {
        item_id: by_language[j] for item_id, by_language in zip(asked.ids, generated)
      }
      predictions.answers[language] = {
        item_id: row[j]['answers'] for item_id, row in zip(asked.ids, asked.rows)
      }
  return predictions


def benchmark_protocol(name: str) -> str | None:
  """The usual protocol of an open benchmark; None for a benchmark with options."""
  return PROTOCOLS.get(name.split('/')[0], (None,))[0]


def readers(benchmark: str) -> tuple[str, ...]:
  """Protocols that read the answers of a benchmark, the usual one first."""
  return PROTOCOLS.get(benchmark.split('/')[0], extraction.PROTOCOLS)


def chosen_protocol(benchmark: str, wanted: str | None) -> str:
  """The protocol for a benchmark; `wanted` None = the usual one.

  Raises:
    ValueError: the benchmark is not read by that protocol.
  """
  legal = readers(benchmark)
  if wanted and wanted not in legal:
    raise ValueError(
      f'--protocol {wanted} does not read the answers of {benchmark}; choose {" or ".join(legal)}'
    )
  return wanted or legal[0]
