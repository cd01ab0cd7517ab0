"""The flags of `crossin xinstruction quickstart`."""

from crossin_jax.workflow import command_line
from crossin_jax.xinstruction.quickstart.settings import Settings


def parser() -> command_line.Parser:
  """The flags of `crossin xinstruction quickstart`."""
  defaults = Settings()
  parser = command_line.Parser(
    'xinstruction quickstart',
    'X-Instruction on the embedded world: reads, writes instructions for texts, refines them in '
    'rounds, tunes, asks, and shows precision and recall of what was kept.',
    'crossin xinstruction quickstart --languages sw,ta,fi --output_dir runs/xinstruction',
  )
  parser.add_argument('--output_dir', default='runs/xinstruction', help='for everything')
  parser.add_argument('--languages', default=','.join(defaults.languages), help='output languages')
  for name, what in (
    ('entities', 'territories of the world'), ('reading_steps', 'of the base model'),
    ('rounds', 'of refinement'),
    ('world_seed', 'another seed is another world'),
  ):  # fmt: skip
    parser.add_argument(f'--{name}', type=int, default=getattr(defaults, name), help=f'{what}')
  parser.add_argument(
    '--redo', action='store_true', help='run steps again whose settings have changed'
  )
  return parser
