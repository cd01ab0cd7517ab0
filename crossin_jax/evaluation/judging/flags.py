"""The flags of `crossin judge`."""

from crossin_jax.endpoint import flags as endpoint_flags
from crossin_jax.workflow import command_line

MAX_TOKENS = 256  # of a reply, as published


def parser() -> command_line.Parser:
  """The flags of `crossin judge`."""
  parser = command_line.Parser(
    'judge',
    'Compare the answers of two systems pairwise, in both orders, by the scores of a judge model. '
    'Writes judgements.jsonl, judge.json and judge.html. Replies are cached, so an interrupted run '
    'continues where it stopped.',
    'crossin judge ours.jsonl theirs.jsonl --endpoint https://api.openai.com/v1 --judge_model '
    'gpt-4 --output_dir judged --price_in 30 --price_out 60 --budget 20',
    gin=True,
  )
  add = parser.add_argument
  add(
    'answers_a',
    metavar='A.jsonl',
    help='answers of the system of interest: rows {"id", "language", "instruction", "output"}; '
    'optional: "outputs", "category", "asked_in"',
  )
  add('answers_b', metavar='B.jsonl', help='answers of the system to compare with')
  add('--judge_model', action='append', required=True, help='repeat it to measure their agreement')
  add('--output_dir', required=True)
  add('--name_a', help='name of A in tables (default: its file name)')
  add('--name_b', help='name of B in tables (default: its file name)')
  add('--languages', help='only these, separated by commas')
  add('--longest', action='store_true', help='judge the longest of "outputs", not the shortest')
  add('--allow_partial', action='store_true', help='skip malformed rows and rows without a partner')
  add('--max_tokens', type=int, default=MAX_TOKENS, help='of a reply; reasoning judges need more')
  add('--resamples', type=int, default=2000, help='of the bootstrap')
  add('--seed', type=int, default=0, help='of the bootstrap (default: 0)')
  add('--examples', type=int, default=3, help='pairs on the page for each language')
  endpoint_flags.add_flags(parser)
  return parser
