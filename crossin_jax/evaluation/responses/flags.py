"""The flags of `crossin ask` and `crossin responses`."""

from crossin_jax.workflow import command_line


def ask_parser() -> command_line.Parser:
  """The flags of `crossin ask`."""
  parser = command_line.Parser(
    'ask',
    'Write prompts for the same questions in English ("Answer in Urdu.") and in the language of '
    'the answer.',
    'crossin ask --questions vicuna80.en.jsonl --questions_native vicuna80.ur.jsonl --language ur '
    '--output asked.jsonl; then crossin generate --input asked.jsonl --output answers.jsonl; then '
    'crossin responses answers.jsonl --questions asked.jsonl',
  )
  add = parser.add_argument
  add('--questions', required=True, help='English questions, JSONL: {question_id, text, category}')
  add('--questions_native', required=True, help='the same questions, by ID, in --language')
  add('--language', required=True, help='code of the language of the answers, e.g. ur')
  add('--output', required=True, help='JSONL for `crossin generate --input`')
  add(
    '--allow_partial',
    action='store_true',
    help='skip malformed lines and questions that one of the files lacks',
  )
  return parser


def responses_parser() -> command_line.Parser:
  """The flags of `crossin responses`."""
  parser = command_line.Parser(
    'responses',
    'Measure fidelity (share in the requested language), repetition and length of open-ended '
    'responses.',
    'crossin responses answers.jsonl --questions asked.jsonl --output_dir figures',
  )
  add = parser.add_argument
  add('answers', help='JSONL of `crossin generate`')
  add('--questions', help='output of `crossin ask`, for answers without a field "language"')
  add('--output_dir', help='for responses.json')
  add('--resamples', type=int, default=2000, help='of the bootstrap')
  return parser
