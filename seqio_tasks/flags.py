"""The flags of `crossin prepare` and `crossin xinstruction translated`."""

from crossin_jax.workflow import command_line
from crossin_jax.xinstruction import rows as rows_lib


def prepare_parser() -> command_line.Parser:
  """The flags of `crossin prepare`."""
  parser = command_line.Parser(
    'prepare',
    'Tokenise the tasks of a mixture into Arrow files that training reads.',
    'crossin prepare gin_configs/mixtures/alpaca.gin PARALLEL=data/alpaca '
    'ENGLISH=data/platypus.en.json VOCABULARY=tokenizer.model LANGUAGES=en,zh,vi --mixture '
    'alpaca.base_x2x.3000.en_zh_vi.default --output_dir prepared',
    gin=True,
  )
  parser.add_argument('--mixture', required=True, help='source.variant.volume.languages.preset')
  parser.add_argument('--output_dir', required=True, help='where tasks/ and mixtures/ are written')
  parser.add_argument(
    '--dry_run',
    action='store_true',
    help='count examples and estimate tokens from a sample, and write nothing',
  )
  parser.add_argument('--workers', type=int, help='processes (default: all cores)')
  parser.add_argument('--overwrite', action='store_true', help='rewrite stale tasks')
  parser.add_argument(
    '--reference',
    help='checkpoint whose log-probabilities of preference pairs are stored: that which training '
    'starts from, where it trains all parameters',
  )
  return parser


def translated_parser() -> command_line.Parser:
  """The flags of `crossin xinstruction translated`."""
  parser = command_line.Parser(
    'xinstruction translated',
    'The baseline of translated data: English instruction, response in the language, from aligned '
    'rows. Writes STEM_LANG.json for TRANSLATED of gin_configs/mixtures/xinstruction.gin.',
    'crossin translate --input rows.en.json --languages sw,ta --output_dir tr --endpoint URL '
    '--model NAME; crossin xinstruction translated --rows tr/rows --languages sw,ta --output '
    'baselines/translated',
  )
  parser.add_argument(
    '--rows', required=True, metavar='STEM', help='of aligned files, STEM_en.json, STEM_sw.json ...'
  )
  parser.add_argument('--languages', required=True, help='of the responses, separated by commas')
  parser.add_argument(
    '--output', required=True, metavar='STEM', help='of the files that are written'
  )
  parser.add_argument(
    '--style', choices=rows_lib.STYLES, default='assistant', help='of the prompt (assistant)'
  )
  return parser
