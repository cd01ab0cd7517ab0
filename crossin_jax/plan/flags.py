"""The flags of `crossin plan`."""

from crossin_jax.workflow import command_line

# Names of slices, for messages.
EXAMPLES = (
  'v5e:4x4 or v5e-16 (16 chips), v5p:2x2x2 or v5p-16 (8 chips), v6e:8x8, tpu7x:2x2x1, v4:2x2x4, '
  'h100:8'
)


def parser() -> command_line.Parser:
  """The flags of `crossin plan`."""
  parser = command_line.Parser(
    'plan',
    'Compile the train step of gin files for a TPU slice without having it: memory of a chip, '
    'least time of a step, and what to change if it does not fit. It allocates nothing and needs '
    'no data.',
    'crossin plan --topology v5e:4x4 gin_configs/models/llama3_8b.gin '
    'gin_configs/runs/defaults.gin LENGTH=4096 --price_per_chip_hour 1.20',
    gin=True,
    statuses='0 it fits, 1 it does not, 2 usage, 75 interrupted',
  )
  parser.add_argument(
    '--topology',
    required=True,
    metavar='NAME[,NAME]',
    help=f'a slice, or several with --search: {EXAMPLES}',
  )
  parser.add_argument('--num_slices', type=int, default=1, help='number of these slices')
  parser.add_argument('--decode', action='store_true', help='also compile the decode step')
  parser.add_argument(
    '--decode_rows', type=int, default=64, help='answers at a time (Generator.rows)'
  )
  parser.add_argument('--decode_tokens', type=int, default=1024, help='tokens of prompt and answer')
  parser.add_argument(
    '--price_per_chip_hour', type=float, help='dollars; gives the least cost of a million tokens'
  )
  parser.add_argument(
    '--proofs',
    type=int,
    default=1,
    help='number of settings that fit to find if this one does not; with --search, number of '
    'meshes to compile and to rank by the time that XLA expects',
  )
  parser.add_argument(
    '--search',
    action='store_true',
    help='rank meshes, microbatches and remat; compile the best (of --proofs meshes) and the next '
    'smaller',
  )
  parser.add_argument(
    '--smallest',
    action='store_true',
    help='the smallest of the topologies on which some setting fits',
  )
  parser.add_argument(
    '--effort',
    type=float,
    default=0.0,
    help="XLA's effort for speed, -1 to 1; -1 compiles in half the time, memory may differ",
  )
  return parser
