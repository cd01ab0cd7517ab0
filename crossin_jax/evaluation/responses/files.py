"""Question files and response files, and `crossin ask`."""

from collections.abc import Sequence
from dataclasses import dataclass
import sys

from crossin_jax.evaluation import record_fields
from crossin_jax.evaluation.responses import flags
from crossin_jax.languages import code_of, english_name
from crossin_jax.storage.files import write_jsonl
from crossin_jax.storage.records import RecordError
from crossin_jax.workflow import command_line

SHOWN = 50  # maximum number of malformed lines in a message
_QUESTION_FIELDS = ('text', 'prompt', 'turns', 'instruction')
_ID_FIELDS = ('question_id', 'id', 'idx')
_RESPONSE_FIELDS = ('output', 'response', 'prediction', 'answer', 'text')


@dataclass(frozen=True)
class Response:
  """One answer with its question; languages are codes."""

  question: str  # ID, the same in all languages
  sample: int  # number of the answer, if a prompt has several
  language: str  # requested for the answer
  asked_in: str  # of the question
  text: str
  category: str = ''  # of the question


# ---- files ----


def read_question_file(path: str, problems: list[str]) -> dict[str, dict]:
  """Questions by ID, as {'text', 'category'}.

  Args:
    path: records {question_id or id, text or prompt or turns or instruction, category}.
    problems: receives a message for each malformed line.
  """
  return record_fields.collect(path, _question, problems, lambda id_: f'question {id_}')


def _question(record: dict, where: str) -> tuple[str, dict]:
  ids = (record[field] for field in _ID_FIELDS if isinstance(record.get(field), (str, int)))
  id_ = next(ids, None)
  if id_ is None:
    raise ValueError("field 'question_id' (or 'id') is missing")
  text = record_fields.first_of(record, _QUESTION_FIELDS)
  text = text[0] if isinstance(text, list) and text else text
  if not isinstance(text, str) or not text.strip():
    raise ValueError(f'none of the fields {", ".join(_QUESTION_FIELDS)} holds a question')
  category = record.get('category')
  return str(id_), {'text': text, 'category': category if isinstance(category, str) else ''}


def asked_rows(english: dict[str, dict], native: dict[str, dict], language: str) -> list[dict]:
  """The prompts of both forms of the questions that both files have.

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
    in_english = f'{question["text"].rstrip()} Answer in {english_name(language)}.'
    for asked_in, text in (('en', in_english), (language, native[id_]['text'])):
      row = {'id': f'{id_}/{asked_in}', 'question': id_, 'language': language, 'asked_in': asked_in}
      category = question['category'] or native[id_]['category']
      rows.append(row | {'category': category, 'instruction': text})
  return rows


def read_responses(path: str, prompts: str | None = None) -> list[Response]:
  """The rows of `crossin generate`, joined by ID with its prompts.

  Args:
    path: JSONL, {"id", "output"} and perhaps "language", "asked_in", "category".
    prompts: the output of `crossin ask`; None = `path` is complete.

  Raises:
    RecordError: the first `SHOWN` malformed lines, with their numbers.
  """
  problems: list[str] = []
  id_of = lambda record: str(record.get('id'))
  asked = {}
  if prompts:
    by_id = lambda record, where: (id_of(record), record)
    asked = record_fields.collect(prompts, by_id, problems, lambda id_: f'id {id_!r}')

  def parse(record: dict, where: str) -> tuple[tuple, Response]:
    if prompts and id_of(record) not in asked:
      raise ValueError(f'id {record.get("id")!r} is not in {prompts}')
    response = _response({**asked.get(id_of(record), {}), **record})
    return ((response.question, response.sample, response.language, response.asked_in), response)

  name = lambda key: f'the answer to question {key[0]!r} in {key[2]!r} asked in {key[3]!r}'
  responses = record_fields.collect(path, parse, problems, name)
  if problems:
    head = f'{path}: {len(problems)} malformed lines'
    raise RecordError(record_fields.message(head, problems, SHOWN))
  if not responses:
    raise RecordError(f'{path} holds no response')
  return list(responses.values())


def _response(record: dict) -> Response:
  if not isinstance(record.get('language'), str):
    raise ValueError(
      "field 'language' (of the requested answer) is missing; give the prompts of `crossin ask` "
      'with --questions'
    )
  text = record_fields.first_of(record, _RESPONSE_FIELDS)
  if not isinstance(text, str):
    raise ValueError(f'none of the fields {", ".join(_RESPONSE_FIELDS)} holds a string')
  id_ = record_fields.item_id(record)
  if not isinstance(sample := record.get('sample', 0), int):
    raise ValueError(f"'sample' must be a number, found {sample!r}")
  language = code_of(record['language'])
  asked_in = code_of(record['asked_in']) if record.get('asked_in') else language
  question = str(record.get('question', id_.removesuffix(f'/{asked_in}')))
  return Response(question, sample, language, asked_in, text, str(record.get('category') or ''))


# ---- commands ----


def ask_main(argv: Sequence[str] | None = None) -> int:
  """`crossin ask`."""
  options = flags.ask_parser().parse_args(argv)
  language = code_of(options.language)
  if language == 'en':
    raise ValueError('--language en: English questions are always included; choose another')
  problems: list[str] = []
  english = read_question_file(options.questions, problems)
  native = read_question_file(options.questions_native, problems)
  for questions, others, path in (
    (english, native, options.questions_native),
    (native, english, options.questions),
  ):
    if lacking := [id_ for id_ in questions if id_ not in others]:
      problems.append(
        f'{path} lacks {len(lacking)} questions of the other file: {", ".join(lacking)}'
      )
  if problems and not options.allow_partial:
    raise RecordError(
      record_fields.message('fix these, or skip them with --allow_partial:', problems)
    )
  rows = asked_rows(english, native, language)
  if not rows:
    raise RecordError(
      f'{options.questions} and {options.questions_native} have no question ID in common'
    )
  for problem in problems:
    print(f'skipped: {problem}', file=sys.stderr)
  write_jsonl(options.output, rows)
  count, name = len(rows) // 2, english_name(language)
  print(f'{options.output}: {count} questions, each in English and {name}', file=sys.stderr)
  result = {'output': options.output, 'questions': count, 'rows': len(rows), 'problems': problems}
  return command_line.finish(options, result)
