"""The flags of `crossin translate`."""

from crossin_jax.endpoint import flags as endpoint_flags
from crossin_jax.workflow import command_line


def parser() -> command_line.Parser:
  """The flags of `crossin translate`."""
  parser = command_line.Parser(
    'translate',
    'Translate instruction rows into other languages: NAME_LANG.json for each, aligned with '
    'NAME_en.json, which has the rows that could be translated into all languages. Code, URLs, '
    'placeholders, tags and formulas stay unchanged, or the row is skipped. The same command '
    'continues an interrupted run.',
    'crossin translate --input rows.en.json --languages zh,vi --output_dir rows --endpoint '
    'http://localhost:8000/v1 --model qwen3-8b; or --checkpoint DIR '
    'Sampling.max_new_tokens=1024',
    gin=True,
  )
  parser.add_argument(
    '--input',
    required=True,
    help='rows {"instruction", "input", "output"}: .json, .jsonl, .parquet',
  )
  parser.add_argument('--languages', required=True, help='target languages, separated by commas')
  parser.add_argument('--output_dir', required=True)
  parser.add_argument('--name', help='NAME of the files (default: name of the input)')
  parser.add_argument('--source_language', default='en', help='language of the input (en)')
  parser.add_argument('--model', help='name of the model at the endpoint')
  parser.add_argument(
    '--checkpoint',
    help='translate with a MODEL_DIR or a Hugging Face directory instead of an endpoint',
  )
  parser.add_argument(
    '--length_ratio',
    default='0.1,4',
    metavar='LEAST,MOST',
    help='characters of a translation per character of the text (0.1,4); Chinese has 0.3',
  )
  endpoint_flags.add_flags(parser, required=False)
  return parser
