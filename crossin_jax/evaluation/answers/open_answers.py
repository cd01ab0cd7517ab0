"""Answers that are no option: numbers read from a text (MGSM) and spans compared by F1 and exact
match (XQuAD, MLQA).

F1 and exact match are SQuAD v1.1's (Rajpurkar et al. 2016, arXiv 1606.05250) under the name
'squad', which XQuAD uses in all languages, and MLQA's (Lewis et al. 2020, arXiv 1910.07475) under
'mlqa': its punctuation is Unicode's, articles are those of the language, and Chinese is compared
character by character.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
import functools
import json
import os
import re
import string
import sys
import unicodedata

import numpy as np

from crossin_jax.evaluation.measures import consistency
from crossin_jax.languages import code_of
from crossin_jax.storage.files import write_text
from crossin_jax.storage.records import RecordError, read_records

# benchmark -> how its answers are read or compared
PROTOCOLS = {'mgsm': 'number', 'xquad': 'squad', 'mlqa': 'mlqa'}
_NUMBER = re.compile(r'-?[$0-9.,]{2,}|-?[0-9]+')
_ENGLISH_ARTICLES = re.compile(r'\b(?:a|an|the)\b')
_MLQA_ARTICLES = {
  'en': _ENGLISH_ARTICLES,
  'es': re.compile(r'\b(?:un|una|unos|unas|el|la|los|las)\b'),
  'vi': re.compile(r'\b(?:của|là|cái|chiếc|những)\b'),
  'de': re.compile(r'\b(?:ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b'),
  'ar': re.compile(r'(?:^|\s)ال'),
}


def extracted_number(text: str) -> str:
  """The last number of a text as plain digits, '' if there is none.

  'She makes $1,800.50 a day.' -> '1800.50'      '16 - 3 = 13' -> '13'
  """
  found = _NUMBER.findall(text)
  digits = found[-1] if found else ''
  digits = digits.replace('$', '').replace(',', '').rstrip('.')
  return digits if any(map(str.isdigit, digits)) else ''


def same_number(found: str, wanted: str) -> bool:
  """Whether two numbers are equal in value: '18.00' is '18'."""
  try:
    return float(found) == float(wanted)
  except ValueError:
    return False


@functools.cache
def _punctuation() -> str:
  every = (chr(i) for i in range(sys.maxunicode))
  return ''.join(
    c for c in every if unicodedata.category(c).startswith('P') or c in string.punctuation
  )


@functools.cache
def _without(characters: str) -> dict[int, None]:
  return str.maketrans('', '', characters)


def normalised(text: str, protocol: str, language: str) -> list[str]:
  """Words of an answer: lower case, without punctuation and articles.

  Args:
    text: any.
    protocol: 'squad' or 'mlqa'.
    language: code; read by 'mlqa' only.
  """
  if protocol == 'squad':
    return _ENGLISH_ARTICLES.sub(' ', text.lower().translate(_without(string.punctuation))).split()
  text = text.lower().translate(_without(_punctuation()))
  articles = _MLQA_ARTICLES.get(language)
  text = articles.sub(' ', text) if articles else text
  if language == 'zh':
    text = re.sub('([\u4e00-\u9fa5])', r' \1 ', text)
  return text.split()


def exact_match(prediction: str, answers: Sequence[str], protocol: str, language: str) -> bool:
  """Whether the prediction equals one of the answers after `normalised`."""
  found = normalised(prediction, protocol, language)
  return any(found == normalised(answer, protocol, language) for answer in answers)


def f1(prediction: str, answers: Sequence[str], protocol: str, language: str) -> float:
  """Harmonic mean of precision and recall of the words, the best over the answers; 0..1."""
  return max(
    _f1(normalised(prediction, protocol, language), normalised(a, protocol, language))
    for a in answers
  )


def _f1(found: list[str], wanted: list[str]) -> float:
  shared = sum((Counter(found) & Counter(wanted)).values())
  return 2 * shared / (len(found) + len(wanted)) if shared else 0.0


# ---- predictions and figures ----


@dataclass
class OpenPredictions:
  """Texts beside the accepted ones. Languages need not have the same items.

  Attributes:
    texts: language -> id -> what the model wrote.
    answers: language -> id -> accepted texts.
    malformed: what is wrong with each line that was left out on request.
  """

  texts: dict[str, dict[str, str]]
  answers: dict[str, dict[str, list[str]]]
  malformed: list[str] = field(default_factory=list)


def read_predictions(path: str | os.PathLike, *, allow_partial: bool = False) -> OpenPredictions:
  """A line per item and language: {"id", "language", "answers": [texts], "prediction"}; "answer"
  for a single one.

  Raises:
    RecordError: malformed lines, each with its number, unless `allow_partial`.
  """
  found, malformed = OpenPredictions({}, {}), []
  for where, record in read_records(path, malformed):
    try:
      language = code_of(record.get('language', ''))
      answers = record.get('answers', [str(record['answer'])] if 'answer' in record else None)
      if isinstance(record.get('id'), bool) or not isinstance(record.get('id'), (str, int)):
        raise ValueError(f"'id' must be a text or a number, found {record.get('id')!r}")
      if (
        not isinstance(answers, list) or not answers or not all(isinstance(a, str) for a in answers)
      ):
        raise ValueError(f"'answers' must be a list of texts, found {answers!r}")
      if not isinstance(record.get('prediction'), str):
        raise ValueError(f"'prediction' must be a text, found {record.get('prediction')!r}")
      if str(record['id']) in found.texts.get(language, {}):
        raise ValueError(f'item {record["id"]!r} in {language!r} was already given')
    except (ValueError, AttributeError) as error:
      malformed.append(f'{where}: {error}')
      continue
    found.texts.setdefault(language, {})[str(record['id'])] = record['prediction']
    found.answers.setdefault(language, {})[str(record['id'])] = answers
  if malformed and not allow_partial:
    raise RecordError(
      '\n  '.join(
        [f'{path}: {len(malformed)} malformed lines (--allow-partial scores the rest)', *malformed]
      )
    )
  if not found.texts:
    raise RecordError(f'{path} holds no predictions that could be scored')
  found.malformed = malformed
  return found


def write_predictions(path: str | os.PathLike, predictions: OpenPredictions) -> None:
  """Writes what `read_predictions` reads; the file appears by rename."""
  lines = [
    {
      'id': item_id,
      'language': language,
      'answers': predictions.answers[language][item_id],
      'prediction': text,
    }
    for language, texts in predictions.texts.items()
    for item_id, text in texts.items()
  ]
  write_text(path, ''.join(json.dumps(line, ensure_ascii=False) + '\n' for line in lines))


def summarise(predictions: OpenPredictions, protocol: str) -> dict:
  """Figures as `consistency.summarise` has them, accuracy being exact match, with 'f1' and
  'f1_by_language' for spans.

  Numbers are comparable across languages: where all languages have the same items, consistency is
  that of the numbers. Spans are not, and have none.

  Args:
    predictions: texts and accepted texts.
    protocol: 'number', 'squad' or 'mlqa'.
  """
  languages = list(predictions.texts)
  cells = lambda language: [
    (text, predictions.answers[language][item_id])
    for item_id, text in predictions.texts[language].items()
  ]
  items = max(len(texts) for texts in predictions.texts.values())
  empty = {'consistency': {}, 'ac3': {}, 'pairwise_consistency': {}}
  if protocol != 'number':
    mean = lambda measure: {
      l: float(np.mean([measure(text, answers, protocol, l) for text, answers in cells(l)]))
      for l in languages
    }
    matches, scores = mean(exact_match), mean(f1)
    silent = [not text.strip() for language in languages for text, _ in cells(language)]
    return {
      'accuracy': float(np.mean(list(matches.values()))), 'accuracy_by_language': matches, **empty,
      'unparsed_rate': float(np.mean(silent)), 'items': items,
      'f1': float(np.mean(list(scores.values()))), 'f1_by_language': scores,
    }  # fmt: skip
  same_items = len({tuple(sorted(texts)) for texts in predictions.texts.values()}) == 1
  if same_items:
    ids = list(predictions.texts[languages[0]])
    chosen_NL, answers_NL = np.full((2, len(ids), len(languages)), consistency.UNPARSED)
    for i, item_id in enumerate(ids):
      values: dict[float, int] = {}  # value -> index: equal numbers are one option
      for j, language in enumerate(languages):
        answers_NL[i, j] = values.setdefault(
          float(predictions.answers[language][item_id][0]), len(values)
        )
        if number := _value(predictions.texts[language][item_id]):
          chosen_NL[i, j] = values.setdefault(float(number), len(values))
    return consistency.summarise(chosen_NL, answers_NL, languages)
  right = {
    l: [same_number(_value(text), answers[0]) for text, answers in cells(l)] for l in languages
  }
  by_language = {language: float(np.mean(own)) for language, own in right.items()}
  unparsed = [not _value(text) for language in languages for text, _ in cells(language)]
  return {
    'accuracy': float(np.mean(list(by_language.values()))), 'accuracy_by_language': by_language,
    **empty,
    'unparsed_rate': float(np.mean(unparsed)), 'items': items,
  }  # fmt: skip


def _value(text: str) -> str:
  """The extracted number if it is one: '1.2.3' is none."""
  number = extracted_number(text)
  try:
    float(number)
  except ValueError:
    return ''
  return number


def of_questions(questions: Sequence, texts: Sequence[Sequence[Sequence[str]]]) -> OpenPredictions:
  """Predictions of `Questions` of an open kind, with what was written for each,
  [questions][item][language].
  """
  found = OpenPredictions({}, {})
  for asked, written in zip(questions, texts):
    for j, language in enumerate(asked.languages):
      found.texts[language] = {item_id: own[j] for item_id, own in zip(asked.ids, written)}
      found.answers[language] = {
        item_id: row[j]['answers'] for item_id, row in zip(asked.ids, asked.rows)
      }
  return found


def benchmark_protocol(name: str) -> str | None:
  """How answers of a benchmark are compared; None for one of options."""
  return PROTOCOLS.get(name.split('/')[0])


def table(run: Mapping) -> list[str]:
  """Lines for people."""
  shown = run.get('f1_by_language', {})
  lines = [
    f'  {language:<8}{100 * value:7.1f} %'
    + (f'    F1 {100 * shown[language]:6.1f}' if shown else '')
    for language, value in run['accuracy_by_language'].items()
  ]
  return [
    *lines,
    f'  {"mean":<8}{100 * run["accuracy"]:7.1f} %'
    + (f'    F1 {100 * run["f1"]:6.1f}' if shown else ''),
  ]
