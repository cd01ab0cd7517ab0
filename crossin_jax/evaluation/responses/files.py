"""Question files and response files."""

from collections.abc import Sequence
from dataclasses import dataclass
import json
import sys

from crossin_jax.languages import ENGLISH_NAMES, code_of
from crossin_jax.storage.files import write_text
from crossin_jax.storage.records import RecordError, read_records
from crossin_jax.workflow import command_line

SHOWN = 50  # malformed lines that a message names
_QUESTION_FIELDS, _ID_FIELDS = (
  ('text', 'prompt', 'turns', 'instruction'),
  ('question_id', 'id', 'idx'),
)
_RESPONSE_FIELDS = ('output', 'response', 'prediction', 'answer', 'text')


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


# ---- files ----


def read_question_file(path: str, problems: list[str]) -> dict[str, dict]:
  """id -> {'text', 'category'}: records {question_id or id, text or prompt or turns or instruction,
  category}.

  What is wrong with a line goes to `problems`, with its number.
  """
  questions: dict[str, dict] = {}
  for where, record in read_records(path, problems):
    id_ = next(
      (record[field] for field in _ID_FIELDS if isinstance(record.get(field), (str, int))), None
    )
    text = next((record[field] for field in _QUESTION_FIELDS if field in record), None)
    text = text[0] if isinstance(text, list) and text else text
    if id_ is None:
      problems.append(f'{where}: field "question_id" (or "id") is missing')
    elif not isinstance(text, str) or not text.strip():
      problems.append(
        f'{where}: none of the fields "text", "prompt", "turns", "instruction" holds a question'
      )
    elif str(id_) in questions:
      problems.append(f'{where}: question {id_} was already given')
    else:
      category = record.get('category')
      questions[str(id_)] = {
        'text': text,
        'category': category if isinstance(category, str) else '',
      }
  return questions


def asked_rows(english: dict[str, dict], native: dict[str, dict], language: str) -> list[dict]:
  """The prompts of both forms, of the questions that both have.

  {'7': {'text': 'What is rain?', ...}}, {'7': {'text': 'Mvua ni nini?', ...}}, 'sw' ->
    [{'id': '7/en', 'question': '7', 'language': 'sw', 'asked_in': 'en', 'category': '',
    'instruction': 'What is rain? Answer in Swahili.'},
     {'id': '7/sw', 'question': '7', 'language': 'sw', 'asked_in': 'sw', 'category': '',
     'instruction': 'Mvua ni nini?'}]
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
      if (
        key := (response.question, response.sample, response.language, response.asked_in)
      ) in seen:
        raise ValueError(
          f'question {key[0]!r} in {key[2]!r} asked in {key[3]!r} was already answered; keep one '
          'of them'
        )
    except ValueError as error:
      problems.append(f'{where}: {error}')
      continue
    seen.add(key)
    found.append(response)
  if problems:
    more = [f'and {len(problems) - SHOWN} more'] if len(problems) > SHOWN else []
    raise RecordError(
      '\n  '.join([f'{path}: {len(problems)} malformed lines', *problems[:SHOWN], *more])
    )
  if not found:
    raise RecordError(f'{path} holds no response')
  return found


def _response(record: dict) -> Response:
  if not isinstance(record.get('language'), str):
    raise ValueError(
      'field "language" is missing: which language was the answer asked for in? Give the prompts '
      'with --questions, '
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


# ---- commands ----


def ask_main(argv: Sequence[str] | None = None) -> int:
  """`crossin ask`. Exit status: 0 done, 1 failed, 2 usage."""
  parser = command_line.Parser(
    'ask',
    'Prompts for the same questions asked in English ("Answer in Urdu.") and in the language of '
    'the answer.',
    'crossin ask --questions vicuna80.en.jsonl --questions_native vicuna80.ur.jsonl --language ur '
    '--output asked.jsonl; then crossin generate --input asked.jsonl --output answers.jsonl; then '
    'crossin responses answers.jsonl --questions asked.jsonl',
  )
  parser.add_argument(
    '--questions', required=True, help='English questions, JSONL: {question_id, text, category}'
  )
  parser.add_argument(
    '--questions_native', required=True, help='the same questions, by id, in the language'
  )
  parser.add_argument(
    '--language', required=True, help='code of the language of the answers, e.g. ur'
  )
  parser.add_argument('--output', required=True, help='JSONL for `crossin generate --input`')
  parser.add_argument(
    '--allow-partial', '--allow_partial', action='store_true',
    help='leave out malformed lines and questions that one of the files lacks, instead of refusing',
  )  # fmt: skip
  options = parser.parse_args(argv)
  language = code_of(options.language)
  if language == 'en':
    raise ValueError(
      '--language is that of the answers; English questions are asked for anyway, choose another'
    )
  problems: list[str] = []
  english = read_question_file(options.questions, problems)
  native = read_question_file(options.questions_native, problems)
  for questions, others, path in (
    (english, native, options.questions_native),
    (native, english, options.questions),
  ):
    if lacking := [id_ for id_ in questions if id_ not in others]:
      problems.append(
        f'{path} lacks {len(lacking)} questions that the other file has: {", ".join(lacking)}'
      )
  if problems and not options.allow_partial:
    raise RecordError(
      '\n  '.join(['mend these, or leave them out with --allow-partial:', *problems])
    )
  rows = asked_rows(english, native, language)
  if not rows:
    raise RecordError(
      f'{options.questions} and {options.questions_native} have no question id in common'
    )
  for problem in problems:
    print(f'left out: {problem}', file=sys.stderr)
  write_text(options.output, ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows))
  found = {
    'output': options.output,
    'questions': len(rows) // 2,
    'rows': len(rows),
    'problems': problems,
  }
  print(
    f'{options.output}: {found["questions"]} questions, each in English and '
    f'{ENGLISH_NAMES[language]}',
    file=sys.stderr,
  )
  return command_line.finish(options, found)
