"""The flags of `crossin compare`."""

from crossin_jax.evaluation.answers import protocols
from crossin_jax.workflow import command_line


def parser() -> command_line.Parser:
  """The flags of `crossin compare`."""
  parser = command_line.Parser(
    'compare',
    'Compare two models on the same items: paired intervals of B minus A, also by language, and '
    'which differences are real.',
    'crossin compare runs/base/eval runs/x2x/eval --names base,x2x --output_dir compared',
  )
  add = parser.add_argument
  add('a', help='--output_dir of `crossin evaluate`, or a file of predictions')
  add('b', help='the other one; differences are B minus A')
  add('--names', help='of both, as base,x2x (default: the variants of results.json)')
  add('--output_dir', help='for compare.html and compare.json')
  add(
    '--protocol',
    choices=[*protocols.PROTOCOLS, 'squad', 'mlqa'],
    default='strict',
    help='how options are read (strict, seaeval), or spans compared (squad, mlqa; default: the '
    'usual rule of the benchmark)',
  )
  add('--first_line', action='store_true', help='cut predictions at the first newline (few-shot)')
  add('--flips', type=int, default=60, help='changed items listed per benchmark')
  add('--examples', type=int, default=2, help='items shown in every language')
  add('--resamples', type=int, default=2000, help='of the bootstrap')
  add('--allow_partial', action='store_true', help='compare only what both sides have')
  return parser
