"""Readers of benchmarks that the Hub distributes as a folder of Parquet files per language.

JSON Lines and TSV with the same fields are read as well.
"""

from collections.abc import Mapping, Sequence
import os
import re

from crossin_jax.evaluation import record_fields
from crossin_jax.evaluation.answers.choices import LETTERS
from crossin_jax.evaluation.benchmarks.files import (
  Items,
  label_index,
  one_file_per_language,
  text_field,
)
from crossin_jax.languages import in_order
from crossin_jax.languages import languages as known_languages
from crossin_jax.storage.files import read_json
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


def read_klar(path: str, languages: Sequence[str] | None = None, split: str | None = None) -> Items:
  """KLAR: a folder per language with a JSON file per relation: prompt_templates (of which the first
  is used, with <subject> and <mask>) and samples (subject, object, index).

  The candidates of a sample are the objects of its relation, the same ones in all languages;
  objects that share a name in any language of the folder are one candidate (New York, state and
  city). Samples that a language lacks are left out.
  """
  del split
  names = sorted(os.listdir(path)) if os.path.isdir(path) else []
  folders = {code: os.path.join(path, code) for code in names if code in known_languages()}
  if not folders:
    raise RecordError(f'{path}: no folder with a language code as its name (en/, zh/, ...)')
  relations = {code: _klar_relations(folder) for code, folder in folders.items()}
  common = set.intersection(*(set(samples) for samples in relations.values()))
  chosen = [code for code in in_order(relations) if code in (languages or relations)]
  if missing := [code for code in languages or () if code not in relations]:
    raise RecordError(f'{path} has no {", ".join(missing)}; it has {", ".join(relations)}')
  fields: dict[str, dict[str, dict]] = {code: {} for code in chosen}
  for relation in dict.fromkeys(relation for relation, _ in relations[chosen[0]]):
    keys = [key for key in relations[chosen[0]] if key[0] == relation and key in common]
    objects = {code: [samples[key][1] for key in keys] for code, samples in relations.items()}
    candidate = _candidates(list(objects.values()))
    first = list(dict.fromkeys(candidate))  # the sample that gives a candidate its name
    for number, key in enumerate(keys):
      for code in chosen:
        choices = [objects[code][i] for i in first]
        answer = first.index(candidate[number])
        choices[answer] = objects[code][number]
        prompt = relations[code][key][0]
        fields[code]['-'.join(key)] = {'prompt': prompt, 'choices': choices, 'answer': answer}
  left_out = max(map(len, relations.values())) - len(common)
  return Items(
    fields, [f'{left_out} samples were left out: a language lacks them'] * bool(left_out)
  )


def _klar_relations(folder: str) -> dict[tuple[str, str], tuple[str, str]]:
  """(relation, index) -> (prompt with a mask, object) of one language."""
  found = {}
  for name in sorted(os.listdir(folder)):
    if not name.endswith('.json'):
      continue
    where = os.path.join(folder, name)
    content = read_json(where, 'copy the file again', RecordError)
    templates, samples = (content.get(key) for key in ('prompt_templates', 'samples'))
    if not record_fields.are_strings(templates, least=1) or not isinstance(samples, list):
      raise RecordError(f'{where}: prompt_templates must be texts and samples a list')
    if templates[0].count(MASK) != 1 or '<subject>' not in templates[0]:
      raise RecordError(
        f'{where}: the template {templates[0]!r} must have <subject> and one {MASK}'
      )
    for number, sample in enumerate(samples):
      at = f'{where}, sample {number + 1}'
      subject, object_ = (text_field(sample, key, at) for key in ('subject', 'object'))
      prompt = templates[0].replace('<subject>', subject)
      found[name.removesuffix('.json'), str(sample.get('index', number))] = prompt, object_
  if not found:
    raise RecordError(f'{folder}: no .json file with samples')
  return found


def _candidates(objects: Sequence[Sequence[str]]) -> list[int]:
  """The candidate of each sample: samples are one candidate if a language calls both objects the
  same, [language][sample] -> the first sample of the candidate.

  _candidates([['Georgia', 'Ohio', 'Georgia'], ['Georgien', 'Ohio', 'Georgia']]) == [0, 1, 0]
  """
  parent = list(range(len(objects[0])))

  def root(i: int) -> int:
    while parent[i] != i:
      i = parent[i]
    return i

  for names in objects:
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
      a, b = root(seen.setdefault(name, i)), root(i)
      parent[max(a, b)] = min(a, b)
  return list(map(root, parent))


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
