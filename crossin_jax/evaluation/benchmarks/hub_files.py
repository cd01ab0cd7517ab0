"""Readers of benchmarks that the Hub distributes as a folder of Parquet files per language.

JSON Lines and TSV with the same fields are read as well.
"""

from collections.abc import Mapping, Sequence
import re

from crossin_jax.evaluation import record_fields
from crossin_jax.evaluation.answers.choices import LETTERS
from crossin_jax.evaluation.benchmarks.files import (
  Items,
  label_index,
  one_file_per_language,
  text_field,
)
from crossin_jax.storage.records import RecordError, read_records

MASK = '<mask>'
_NUMBER = re.compile(r'-?\d+(\.\d+)?')


@one_file_per_language
def read_global_mmlu(file: str):
  """Global-MMLU and its Lite: sample_id, question, option_a to option_d, answer (a letter)."""
  for where, record in read_records(file):
    answer = label_index(record.get('answer'), LETTERS[:4], where, 'answer')
    yield text_field(record, 'sample_id', where), _exam(record, where) | {'answer': answer}


@one_file_per_language
def read_include(file: str):
  """INCLUDE: question, option_a to option_d or choices, answer (an index). Each language has
  questions of its own.
  """
  for number, (where, record) in enumerate(read_records(file)):
    answer = label_index(record.get('answer'), range(4), where, 'answer')
    yield str(number), _exam(record, where) | {'answer': answer}


def _exam(record: Mapping, where: str) -> dict:
  """Question and four choices."""
  choices = record.get('choices')
  if choices is None:
    choices = [text_field(record, f'option_{letter}', where) for letter in 'abcd']
  if not record_fields.are_strings(choices, least=4):
    raise RecordError(f'{where}: field choices must be a list of four texts, found {choices!r}')
  return {'question': text_field(record, 'question', where), 'choices': list(choices)}


@one_file_per_language
def read_xcsqa(file: str):
  """X-CSQA: id, question {stem, choices}, answerKey. Choices are [{label, text}, ...] in the
  authors' JSON Lines, and {label: [...], text: [...]} in the Hub's Parquet.
  """
  for where, record in read_records(file):
    question = record.get('question')
    if not isinstance(question, dict):
      raise RecordError(f"{where}: 'question' must have stem and choices, found {question!r}")
    choices = question.get('choices')
    if isinstance(choices, dict):
      labels, texts = choices.get('label'), choices.get('text')
    else:
      labels, texts = ([choice.get(key) for choice in choices or ()] for key in ('label', 'text'))
    if not record_fields.are_strings(texts, least=2):
      raise RecordError(f'{where}: the choices must have texts, found {choices!r}')
    if not record.get('answerKey'):
      raise RecordError(
        f'{where}: no answerKey; the test split is published without answers: --split validation'
      )
    item = {'question': text_field(question, 'stem', where), 'choices': list(texts)}
    answer = label_index(record['answerKey'], labels, where, 'answerKey')
    yield text_field(record, 'id', where), item | {'answer': answer}


@one_file_per_language
def read_bmlama(file: str):
  """BMLAMA-17 and 53: a TSV with the columns Prompt, Ans, Candidate Ans (separated by ', ').

  Rows and candidates are parallel across languages. Where several answers are accepted, the last
  candidate that is one of them counts.
  """
  for number, (where, record) in enumerate(read_records(file)):
    prompt = text_field(record, 'Prompt', where)
    if prompt.count(MASK) != 1:
      raise RecordError(f'{where}: the prompt {prompt!r} must have one {MASK}')
    choices = text_field(record, 'Candidate Ans', where).split(', ')
    answers = text_field(record, 'Ans', where).split(', ')
    right = [i for i, choice in enumerate(choices) if choice in answers]
    if not right:
      raise RecordError(f'{where}: the answer {", ".join(answers)} is no candidate')
    yield str(number), {'prompt': prompt, 'choices': choices, 'answer': right[-1]}


def read_polymath(
  path: str, languages: Sequence[str] | None = None, split: str | None = None
) -> Items:
  """PolyMath: id, question, answer. Items whose answer is no number are left out in all languages.

  `split` is the level: low, medium, high or top.
  """
  items = _read_polymath_files(path, languages, split)
  first = next(iter(items.fields.values()))
  left_out = {id_ for by_id in items.fields.values() for id_, item in by_id.items() if not item}
  for by_id in items.fields.values():
    for id_ in left_out:
      by_id.pop(id_, None)
  if not first:
    raise RecordError(f'{path}: no answer is a number')
  if left_out:
    items.notes.append(f'{len(left_out)} items were left out: their answers are no numbers')
  return items


@one_file_per_language
def _read_polymath_files(file: str):
  for where, record in read_records(file):
    answer = text_field(record, 'answer', where).strip().strip('$').replace(',', '')
    item = {'question': text_field(record, 'question', where), 'answers': [answer]}
    yield (
      text_field(record, 'id', where).rsplit('-', 1)[-1],
      item if _NUMBER.fullmatch(answer) else {},
    )
