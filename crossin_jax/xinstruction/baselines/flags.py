"""The flags of `crossin xinstruction distill`."""

from crossin_jax.endpoint import flags as endpoint_flags
from crossin_jax.workflow import command_line
from crossin_jax.xinstruction import rows as rows_lib


def parser() -> command_line.Parser:
  """The flags of `crossin xinstruction distill`."""
  parser = command_line.Parser(
    'xinstruction distill',
    'The baseline of a teacher: it answers English instructions in the language. Writes '
    'STEM_LANG.json for DISTILLED of gin_configs/mixtures/xinstruction.gin. Replies are '
    'kept: a run that was stopped or killed goes on where it was.',
    'crossin xinstruction distill --input rows.en.json --languages sw,ta --output '
    'baselines/distilled --endpoint https://api.openai.com/v1 --model gpt-4o-mini --price_in 0.15 '
    '--price_out 0.6 --budget 10',
    gin=True,
  )
  parser.add_argument(
    '--input',
    required=True,
    help='rows {"instruction", "input", "output"}, the last unused: .json, .jsonl, .parquet',
  )
  parser.add_argument('--languages', required=True, help='to answer in, separated by commas')
  parser.add_argument(
    '--output', required=True, metavar='STEM', help='of the files that are written'
  )
  parser.add_argument('--model', required=True, help='name of the teacher at the endpoint')
  parser.add_argument(
    '--style',
    choices=rows_lib.STYLES,
    default='assistant',
    help='of the prompt in the rows (assistant); the teacher is not shown it',
  )
  endpoint_flags.add_flags(parser)
  return parser
