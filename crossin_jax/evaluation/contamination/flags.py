"""The flags of `crossin contamination`."""

from crossin_jax.workflow import command_line


def parser() -> command_line.Parser:
  """The flags of `crossin contamination`."""
  parser = command_line.Parser(
    'contamination',
    'Find benchmark texts that also occur in training data, by n-grams and complete normalised '
    'texts, by language.',
    'crossin contamination --data_dir prepared --mixture alpaca.base_x2x.3000.en_zh_vi_es.default '
    '--benchmark cross_mmlu.json xquad.zh.json --output_dir overlap; or --mixture_rows rows.jsonl '
    'more.json instead of --data_dir and --mixture',
  )
  add = parser.add_argument
  files = {'nargs': '+', 'metavar': 'FILE'}
  add('--mixture_rows', default=[], help='training rows: JSON, JSONL, Parquet, CSV', **files)
  add('--data_dir', help='--output_dir of `crossin prepare`')
  add('--mixture', help='name of a prepared mixture')
  add('--benchmark', required=True, help='JSON, JSONL, SQuAD, CSV or TSV; also .gz', **files)
  add('--output_dir', help='for contamination.json and matches.jsonl')
  add('--n', type=int, default=13, help='words of an n-gram')
  add('--shown', type=int, default=10, help='matches to print')
  add('--rows_shown', type=int, default=3, help='training rows to write per text')
  return parser
