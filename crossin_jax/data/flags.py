"""The flags of `crossin inspect`."""

from crossin_jax.workflow import command_line


def parser() -> command_line.Parser:
  """The flags of `crossin inspect`."""
  parser = command_line.Parser(
    'inspect',
    'Rates, expected and realised shares, epochs, lengths, dropped rows, tokens per word and per '
    'character of each language, and examples with trained tokens marked.',
    'crossin inspect --data_dir prepared --mixture alpaca.base_x2x.3000.en_zh_vi_es.default '
    '--examples 2',
    gin=True,
  )
  parser.add_argument('--mixture', required=True, help='name of a prepared mixture')
  parser.add_argument('--data_dir', required=True, help='--output_dir of `crossin prepare`')
  parser.add_argument('--length', type=int, default=2048, help='tokens in a packed row')
  parser.add_argument('--batch_size', type=int, default=16, help='rows of a batch')
  parser.add_argument('--seed', type=int, default=0, help='of the row order (default: 0)')
  parser.add_argument('--steps', type=int, help='batches to read (default: one window of examples)')
  parser.add_argument(
    '--examples', type=int, default=1, help='examples shown of each task (default: 1)'
  )
  return parser
