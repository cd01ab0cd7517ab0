"""Open-ended responses without a judge: are they in the language that was asked for, do they repeat themselves, how long are they.

`crossin ask` makes the prompts of X-Instruction's central claim: the same questions once in English, with the sentence
"Answer in Urdu.", and once in the language of the answer. `crossin responses` reads what `crossin generate` made of them.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
import json
import os
import re
import sys

import numpy as np

from crossin_jax.evaluation import bootstrap, language_id, results, tables
from crossin_jax.evaluation.records import RecordError, read_records
from crossin_jax.languages import ENGLISH_NAMES, code_of

# A response is called repetitive above this share of duplicated 4-grams; of 1,000 Alpaca answers in en, vi and zh under 1 % are.
REPETITIVE = 0.2
SHOWN = 50  # malformed lines that a message names
FEW = 20  # pairs of responses under which no difference is called real

_FENCED = re.compile(r'(```|~~~).*?(\1|$)|`[^`\n]*`|https?://\S+', re.DOTALL)
_HAN = re.compile('[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]')
_UNSPACED = re.compile('[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]')  # Thai, Lao, Burmese, Khmer
_SPACES = re.compile(r'\s+')
_QUESTION_FIELDS, _ID_FIELDS = ('text', 'prompt', 'turns', 'instruction'), ('question_id', 'id', 'idx')
_RESPONSE_FIELDS = ('output', 'response', 'prediction', 'answer', 'text')


# ---- figures of one response -----------------------------------------------------------------------------------------


def duplicated_share(text: str) -> float:
  """Share of the 4-grams of words that stood earlier in the text, 0..1.

  Where words are not divided by spaces, four of them are taken to be 8 characters of Chinese or Japanese, or 16 of Thai, Lao,
  Burmese or Khmer.

      'a b c d e f g h'          -> 0.0
      'a b c d a b c d a b c d'  -> 0.56: 5 of 9 4-grams
  """
  letters = sum(map(str.isalpha, text))
  if 2 * len(_HAN.findall(text)) > letters:
    units, n = _SPACES.sub('', text), 8
  elif 2 * len(_UNSPACED.findall(text)) > letters:
    units, n = _SPACES.sub('', text), 16
  else:
    units, n = text.split(), 4
  count = len(units) - n + 1
  if count < 1:
    return 0.0
  return 1.0 - len({tuple(units[i : i + n]) for i in range(count)}) / count


def language_of(text: str) -> str:
  """Code of the language of a response, '' if it cannot be told; code and addresses are passed over."""
  return language_id.identify(_FENCED.sub(' ', text), limit=8192)[0]


@dataclass(frozen=True)
class Response:
  """One answer with what was asked.

  Attributes:
    question: id of the question, the same whichever language it was asked in.
    sample: number of the answer where there are several to a prompt.
    language: code of the language that was asked for.
    asked_in: code of the language of the question.
    text: the answer.
    category: of the question, '' if there is none.
  """

  question: str
  sample: int
  language: str
  asked_in: str
  text: str
  category: str = ''


# ---- tables ----------------------------------------------------------------------------------------------------------


@dataclass
class Group:
  """Figures of the responses in one language to questions in one language; shares are fractions 0..1.

  Attributes:
    fidelity: share in the language that was asked for, with its interval over questions (and samples).
    english, undetermined, empty: shares in English, in no language that could be told (the empty ones too), without text.
    languages: code -> responses in it, the most frequent first.
    repetition: mean share of duplicated 4-grams. repetitive: share of responses above `REPETITIVE`.
    characters: mean and median of the lengths.
  """

  language: str
  asked_in: str
  responses: int
  fidelity: bootstrap.Interval
  english: float
  undetermined: float
  empty: float
  languages: dict[str, int]
  repetition: float
  repetitive: float
  characters: dict[str, float]


@dataclass
class Claim:
  """Native-asked minus English-asked fidelity of one language, on the questions that both have.

  Attributes:
    difference: paired interval, fractions.
    questions: how many.
    real: whether the printed interval excludes zero, with at least `FEW` questions.
    sentence: the same in words.
  """

  language: str
  difference: bootstrap.Interval
  questions: int
  real: bool
  sentence: str


def measure(responses: Sequence[Response], resamples: int = 2000) -> tuple[list[Group], list[Claim]]:
  """Figures by language and asked_in, and the central claim for each language that was asked for in both ways.

  Raises:
    ValueError: there is no response, or questions of a group have unequal numbers of samples.
  """
  if not responses:
    raise ValueError('there is no response to measure')
  found = {response: language_of(response.text) for response in responses}
  groups: dict[tuple[str, str], list[Response]] = {}
  for response in responses:
    groups.setdefault((response.language, response.asked_in), []).append(response)
  tabled = [_group(own, found, resamples) for own in groups.values()]
  claims = []
  for language in dict.fromkeys(response.language for response in responses):
    if language != 'en' and (language, language) in groups and (language, 'en') in groups:
      claims.append(_claim(language, groups[language, language], groups[language, 'en'], found, resamples))
  return tabled, [claim for claim in claims if claim]


def _group(own: list[Response], found: dict[Response, str], resamples: int) -> Group:
  first = own[0]
  languages: dict[str, int] = {}
  for response in own:
    languages[found[response] or 'none'] = languages.get(found[response] or 'none', 0) + 1
  repetition = np.array([duplicated_share(response.text) for response in own])
  lengths = np.array([len(response.text) for response in own])
  faithful = _by_sample(own, found, list(dict.fromkeys(response.question for response in own)))
  share = lambda code: languages.get(code, 0) / len(own)
  return Group(
    first.language,
    first.asked_in,
    len(own),
    bootstrap.interval(faithful, None, resamples=resamples),
    share('en'),
    share('none'),
    float(np.mean([not response.text.strip() for response in own])),
    dict(sorted(languages.items(), key=lambda pair: -pair[1])),
    float(repetition.mean()),
    float((repetition > REPETITIVE).mean()),
    {'mean': float(lengths.mean()), 'median': float(np.median(lengths))},
  )


def _by_sample(own: Sequence[Response], found: dict[Response, str], questions: Sequence[str]) -> list[np.ndarray]:
  """Per sample, bool [questions, 1]: in the language that was asked for? Several samples serve as the bootstrap's seeds."""
  cells = {(response.question, response.sample): found[response] == response.language for response in own}
  samples = sorted({response.sample for response in own})
  if lacking := [(q, s) for q in questions for s in samples if (q, s) not in cells]:
    raise ValueError(
      f'question {lacking[0][0]!r} has no sample {lacking[0][1]} in {own[0].language!r} asked in {own[0].asked_in!r}, others '
      'have: every question needs the same number of samples. Let `crossin generate` finish'
    )
  return [np.array([[cells[question, sample]] for question in questions]) for sample in samples]


def _claim(language: str, native: list[Response], english: list[Response], found, resamples: int) -> Claim | None:
  asked = {response.question for response in english}
  shared = list(dict.fromkeys(response.question for response in native if response.question in asked))
  if not shared:
    return None
  first, second = (_by_sample(own, found, shared) for own in (native, english))
  samples = min(len(first), len(second))
  gain = bootstrap.difference(first[:samples], second[:samples], None, resamples=resamples)
  name, verdict = ENGLISH_NAMES.get(language, language), tables.verdict(gain)
  real = verdict != 'none' and len(shared) >= FEW
  low, high = (tables.points(value) for value in (gain.low, gain.high))
  span = f'{tables.points(gain.estimate)} points, 95 % interval {low} to {high}, {len(shared)} questions'
  if real:
    kind = 'more' if verdict == 'gain' else 'less'
    sentence = f'Questions asked in {name} are answered in {name} {kind} often than in English with "Answer in {name}." ({span}): a real difference.'
  elif verdict != 'none':
    sentence = f'Questions asked in {name} and in English differ in how often they are answered in {name} ({span}), but {len(shared)} questions are too few to call it real; {FEW} are needed.'
  else:
    sentence = f'Whether a question is asked in {name} or in English makes no difference that can be told for being answered in {name} ({span}).'
  return Claim(language, gain, len(shared), real, sentence)


# ---- files -----------------------------------------------------------------------------------------------------------


def read_question_file(path: str, problems: list[str]) -> dict[str, dict]:
  """id -> {'text', 'category'}: records {question_id or id, text or prompt or turns or instruction, category}.

  What is wrong with a line goes to `problems`, with its number.
  """
  questions: dict[str, dict] = {}
  for where, record in read_records(path, problems):
    id_ = next((record[field] for field in _ID_FIELDS if isinstance(record.get(field), (str, int))), None)
    text = next((record[field] for field in _QUESTION_FIELDS if field in record), None)
    text = text[0] if isinstance(text, list) and text else text
    if id_ is None:
      problems.append(f'{where}: field "question_id" (or "id") is missing')
    elif not isinstance(text, str) or not text.strip():
      problems.append(f'{where}: none of the fields "text", "prompt", "turns", "instruction" holds a question')
    elif str(id_) in questions:
      problems.append(f'{where}: question {id_} was already given')
    else:
      category = record.get('category')
      questions[str(id_)] = {'text': text, 'category': category if isinstance(category, str) else ''}
  return questions


def asked_rows(english: dict[str, dict], native: dict[str, dict], language: str) -> list[dict]:
  """The prompts of both forms, of the questions that both have.

  {'7': {'text': 'What is rain?', ...}}, {'7': {'text': 'Mvua ni nini?', ...}}, 'sw' ->
    [{'id': '7/en', 'question': '7', 'language': 'sw', 'asked_in': 'en', 'category': '', 'instruction': 'What is rain? Answer in Swahili.'},
     {'id': '7/sw', 'question': '7', 'language': 'sw', 'asked_in': 'sw', 'category': '', 'instruction': 'Mvua ni nini?'}]
  """
  rows = []
  for id_, question in english.items():
    if id_ not in native:
      continue
    category = question['category'] or native[id_]['category']
    in_english = f'{question["text"].rstrip()} Answer in {ENGLISH_NAMES[language]}.'
    for asked_in, text in (('en', in_english), (language, native[id_]['text'])):
      rows.append(
        {'id': f'{id_}/{asked_in}', 'question': id_, 'language': language, 'asked_in': asked_in, 'category': category, 'instruction': text}
      )  # fmt: skip
  return rows


def read_responses(path: str, prompts: str | None = None) -> list[Response]:
  """The rows of `crossin generate`, joined by id with the prompts it was given.

  Args:
    path: JSONL, {"id", "output"}; "language", "asked_in", "category" if the file has them.
    prompts: what `crossin ask` wrote; None = all is in `path`.

  Raises:
    RecordError: the first `SHOWN` malformed lines, with their numbers.
  """
  problems: list[str] = []
  asked: dict[str, dict] = {}
  for where, record in read_records(prompts, problems) if prompts else ():
    if str(record.get('id')) in asked:
      problems.append(f'{where}: id {record["id"]!r} was already given')
    asked[str(record.get('id'))] = record
  found, seen = [], set()
  for where, record in read_records(path, problems):
    try:
      if prompts and str(record.get('id')) not in asked:
        raise ValueError(f'id {record.get("id")!r} is not in {prompts}')
      response = _response({**asked.get(str(record.get('id')), {}), **record})
      if (key := (response.question, response.sample, response.language, response.asked_in)) in seen:
        raise ValueError(
          f'question {key[0]!r} in {key[2]!r} asked in {key[3]!r} was already answered; keep one of them'
        )
    except ValueError as error:
      problems.append(f'{where}: {error}')
      continue
    seen.add(key)
    found.append(response)
  if problems:
    more = [f'and {len(problems) - SHOWN} more'] if len(problems) > SHOWN else []
    raise RecordError('\n  '.join([f'{path}: {len(problems)} malformed lines', *problems[:SHOWN], *more]))
  if not found:
    raise RecordError(f'{path} holds no response')
  return found


def _response(record: dict) -> Response:
  if not isinstance(record.get('language'), str):
    raise ValueError(
      'field "language" is missing: which language was the answer asked for in? Give the prompts with --questions, '
      'as `crossin ask` wrote them'
    )
  text = next((record[field] for field in _RESPONSE_FIELDS if field in record), None)
  if not isinstance(text, str):
    raise ValueError(f'none of the fields {", ".join(_RESPONSE_FIELDS)} holds a text')
  if isinstance(record.get('id'), bool) or not isinstance(record.get('id'), (str, int)):
    raise ValueError(f'"id" must be a text or a number, found {record.get("id")!r}')
  if not isinstance(sample := record.get('sample', 0), int):
    raise ValueError(f'"sample" must be a number, found {sample!r}')
  language = code_of(record['language'])
  asked_in = code_of(record['asked_in']) if record.get('asked_in') else language
  question = str(record.get('question', str(record['id']).removesuffix(f'/{asked_in}')))
  return Response(question, sample, language, asked_in, text, str(record.get('category') or ''))


# ---- commands --------------------------------------------------------------------------------------------------------


def ask_main(argv: Sequence[str] | None = None) -> int:
  """`crossin ask`. Exit status: 0 done, 1 failed, 2 usage."""
  parser = argparse.ArgumentParser(
    prog='crossin ask',
    description='Prompts for the same questions asked in English ("Answer in Urdu.") and in the language of the answer.',
    epilog='example: crossin ask --questions vicuna80.en.jsonl --questions_native vicuna80.ur.jsonl --language ur '
    '--output asked.jsonl; then crossin generate --input asked.jsonl --output answers.jsonl; then crossin responses '
    'answers.jsonl --questions asked.jsonl',
  )
  parser.add_argument('--questions', required=True, help='English questions, JSONL: {question_id, text, category}')
  parser.add_argument('--questions_native', required=True, help='the same questions, by id, in the language')
  parser.add_argument('--language', required=True, help='code of the language of the answers, e.g. ur')
  parser.add_argument('--output', required=True, help='JSONL for `crossin generate --input`')
  parser.add_argument(
    '--allow-partial', '--allow_partial', action='store_true',
    help='leave out malformed lines and questions that one of the files lacks, instead of refusing',
  )  # fmt: skip
  parser.add_argument('--json', action='store_true', help='one JSON object as last line on stdout')
  options = parser.parse_args(argv)
  language = code_of(options.language)
  if language == 'en':
    raise ValueError('--language is that of the answers; English questions are asked for anyway, choose another')
  problems: list[str] = []
  english = read_question_file(options.questions, problems)
  native = read_question_file(options.questions_native, problems)
  for questions, others, path in ((english, native, options.questions_native), (native, english, options.questions)):
    if lacking := [id_ for id_ in questions if id_ not in others]:
      problems.append(f'{path} lacks {len(lacking)} questions that the other file has: {", ".join(lacking)}')
  if problems and not options.allow_partial:
    raise RecordError('\n  '.join(['mend these, or leave them out with --allow-partial:', *problems]))
  rows = asked_rows(english, native, language)
  if not rows:
    raise RecordError(f'{options.questions} and {options.questions_native} have no question id in common')
  for problem in problems:
    print(f'left out: {problem}', file=sys.stderr)
  results.write_text(options.output, ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows))
  found = {'output': options.output, 'questions': len(rows) // 2, 'rows': len(rows), 'problems': problems}
  print(
    f'{options.output}: {found["questions"]} questions, each in English and {ENGLISH_NAMES[language]}', file=sys.stderr
  )
  if options.json:
    print(json.dumps(found, ensure_ascii=False))
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """`crossin responses`. Exit status: 0 done, 1 failed, 2 usage."""
  parser = argparse.ArgumentParser(
    prog='crossin responses',
    description='Fidelity (share in the language that was asked for), repetition and length of open-ended responses.',
    epilog='example: crossin responses answers.jsonl --questions asked.jsonl --output_dir figures',
  )
  parser.add_argument('answers', help='JSONL of `crossin generate`')
  parser.add_argument('--questions', help='what `crossin ask` wrote, for answers that do not name their language')
  parser.add_argument('--output_dir', help='for responses.json')
  parser.add_argument('--resamples', type=int, default=2000, help='of the bootstrap (default: %(default)s)')
  parser.add_argument('--json', action='store_true', help='one JSON object as last line on stdout')
  options = parser.parse_args(argv)
  groups, claims = measure(read_responses(options.answers, options.questions), options.resamples)
  print('\n'.join(_lines(groups, claims)), file=sys.stderr)
  found = {'groups': [asdict(group) for group in groups], 'claims': [asdict(claim) for claim in claims]}
  found['repetitive_above'] = REPETITIVE
  if options.output_dir:
    text = json.dumps(found, ensure_ascii=False, indent=1) + '\n'
    results.write_text(os.path.join(options.output_dir, 'responses.json'), text)
  if options.json:
    print(json.dumps(found, ensure_ascii=False))
  return 0


def _lines(groups: Sequence[Group], claims: Sequence[Claim]) -> list[str]:
  """The table and the sentences."""
  head = ('fidelity', '95 % interval', 'English', 'none', 'empty', 'repetitive', '4-grams twice', 'mean', 'median')
  widths = (10, 16, 9, 7, 7, 12, 15, 8, 8)
  lines = [f'{"language":<12}{"asked in":<12}{"n":>6}' + ''.join(f'{h:>{w}}' for h, w in zip(head, widths))]
  for group in groups:
    cells = [tables.percent(group.fidelity.estimate)]
    cells.append(f'{tables.percent(group.fidelity.low)} to {tables.percent(group.fidelity.high)}')
    cells += [
      tables.percent(x) for x in (group.english, group.undetermined, group.empty, group.repetitive, group.repetition)
    ]
    cells += [f'{group.characters[key]:.0f}' for key in ('mean', 'median')]
    names = f'{ENGLISH_NAMES[group.language]:<12}{ENGLISH_NAMES[group.asked_in]:<12}'
    lines.append(f'{names}{group.responses:>6}' + ''.join(f'{cell:>{w}}' for cell, w in zip(cells, widths)))
    others = {code: n for code, n in group.languages.items() if code not in (group.language, 'en', 'none')}
    if others:
      lines.append(f'{"":<30}other languages: ' + ', '.join(f'{code} {n}' for code, n in list(others.items())[:6]))
  lines.append(
    f'shares in per cent, lengths in characters; repetitive: over {100 * REPETITIVE:.0f} % of the 4-grams stood before'
  )
  return lines + [claim.sentence for claim in claims]
