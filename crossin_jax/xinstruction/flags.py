"""The flags of `crossin xinstruction` and of `crossin xinstruction chunks`."""

from crossin_jax.workflow import command_line

COMMANDS = (
  'run', 'filter', 'seed', 'train-generator', 'generate', 'train-rater', 'rate', 'refine',
  'diversify', 'export', 'train',
  'statistics', 'status',
)  # fmt: skip
# Each has its own flags and module, see `cli.COMMANDS`.
OTHERS = ('chunks', 'translated', 'distill', 'quickstart')
KINDS = {
  'write': 'documents {"id", "text"} -> {"id", "instruction"}: the generator',
  'respond': 'rows {"id", "instruction"} -> {"id", "output"}: a response model',
  'rate': 'rows {"id", "instruction", "output", "language"} -> {"id", "score"}: the rater',
}


def parser() -> command_line.Parser:
  """The flags of `crossin xinstruction`."""
  parser = command_line.Parser(
    'xinstruction',
    'Instruction data from natural text: run = all steps; a step alone; status = what is done, '
    'missing or stale; chunks = a share of the generation or rating, on any number of hosts; '
    'translated, distill = rows to compare the set with; quickstart = all of it on the embedded '
    'world.',
    'crossin xinstruction run gin_configs/xinstruction/default.gin LANGUAGES=sw,ta '
    'DOCUMENTS=text/{language}.jsonl SEED=data/seed VOCABULARY=tokenizer.model --output_dir out',
    gin=True,
  )
  parser.add_argument('command', choices=(*COMMANDS, *OTHERS))
  parser.add_argument('--output_dir', required=True)
  parser.add_argument(
    '--redo',
    action='store_true',
    help='run stale steps again; their old folders are renamed, not deleted',
  )
  return parser


def chunks_parser() -> command_line.Parser:
  """The flags of `crossin xinstruction chunks`."""
  parser = command_line.Parser(
    'xinstruction chunks',
    'A model over chunk files. ' + '; '.join(f'{kind}: {what}' for kind, what in KINDS.items()),
    'example, on two hosts: crossin xinstruction chunks --kind rate --checkpoint '
    'out/train-rater.0/model --input out/pairs --output out/rate.0 --share 0/2',
    gin=True,
  )
  parser.add_argument('--kind', required=True, choices=KINDS)
  parser.add_argument('--checkpoint', required=True, help='a MODEL_DIR or a Hugging Face directory')
  parser.add_argument('--input', required=True, help='folder of <language>/00000.jsonl ...')
  parser.add_argument('--output', required=True, help='folder that gets the same names')
  command_line.add_share(parser)
  return parser
