"""The flags of `crossin run` and `crossin new`."""

from crossin_jax.workflow import command_line

STEPS = ('prepare', 'before', 'train', 'after', 'compare', 'export')


def run_parser() -> command_line.Parser:
  """The flags of `crossin run`."""
  parser = command_line.Parser(
    'run',
    'One job from one file: prepare the rows, evaluate the model, train it, evaluate it again, '
    'compare, export, and write a page. A step that is done is skipped; one that was interrupted '
    'continues.',
    'crossin run mine.gin (`crossin new` writes the file)',
    gin=True,
  )
  parser.add_argument(
    '--dry_run',
    action='store_true',
    help='print the steps and what they take: rows and tokens from a sample, memory and time from '
    'measured training steps',
  )
  parser.add_argument(
    '--topology',
    metavar='NAME',
    help='with --dry_run: memory and time of a TPU slice by `crossin plan`, such as v5e:4x4, in '
    'place of those of this machine',
  )
  parser.add_argument(
    '--redo',
    action='store_true',
    help='run stale steps again; their old folders are renamed, not deleted',
  )
  return parser


def new_parser() -> command_line.Parser:
  """The flags of `crossin new`."""
  parser = command_line.Parser(
    'new',
    'Write the file of a job for `crossin run`, with values that fit the model and this machine.',
    'crossin new --model models/mine --rows data/alpaca --languages en,zh,vi --output mine.gin',
  )
  add = parser.add_argument
  add('--model', required=True, help='a Hugging Face directory')
  add(
    '--rows',
    required=True,
    metavar='STEM',
    help='data/alpaca finds data/alpaca_zh.json, data/alpaca.zh.jsonl, ...',
  )
  add('--languages', required=True, help='codes, English first, e.g. en,zh,vi')
  add(
    '--benchmark',
    action='append',
    default=[],
    metavar='NAME=PATH',
    help='measured before and after, e.g. cross_xquad=data/cross_xquad.json; can be repeated',
  )
  add(
    '--tune',
    choices=('auto', 'lora', 'full'),
    default='auto',
    help='auto: all parameters where the memory of the devices is enough, else LoRA',
  )
  add('--output', default='run.gin', help='the file to write')
  return parser
