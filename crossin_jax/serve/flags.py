"""The flags of `crossin serve`."""

from crossin_jax.workflow import command_line

KEY = 'CROSSIN_API_KEY'
LANGUAGES = 'en,zh,vi,es'


def parser() -> command_line.Parser:
  """The flags of `crossin serve`."""
  parser = command_line.Parser(
    'serve',
    'Serve a checkpoint to every client of the OpenAI protocol, with a page to ask it in several '
    f'languages. The environment variable {KEY} sets a key that clients must send.',
    'crossin serve runs/a --compare runs/b --port 8000',
    gin=True,
    statuses='0 stopped by SIGTERM or SIGINT, 1 failed, 2 usage',
  )
  add = parser.add_argument
  add(
    'checkpoint',
    help='a MODEL_DIR, one of its checkpoints, a Hugging Face directory, or an adapter',
  )
  add('--compare', metavar='CHECKPOINT', help='a second model, beside the first one on the page')
  add('--name', help='of the model in the API (default: the last part of its folder)')
  add('--compare_name', help='of the second model')
  add('--host', default='127.0.0.1', help='address to listen at; 0.0.0.0 = every one')
  add('--port', type=int, default=8000, help='0 = a free one')
  add('--queue', type=int, default=256, help='answers that may wait for a row; more get status 429')
  add(
    '--max_length',
    type=int,
    help="tokens of prompt and answer (default: the model's, at most 4096)",
  )
  add('--drain_seconds', type=int, default=30, help='time that running answers have after SIGTERM')
  add('--languages', default=LANGUAGES, help='codes or names of the languages on the page at first')
  return parser
