"""The flags of `crossin quickstart`, and the arms that it can tune."""

import os

from crossin_jax.workflow import command_line

# Arm -> components of its tuning mixture and their shares. Half of each mixture is replayed
# reading, the same in every arm. The other half is English questions (Base), or a third of them
# and two thirds of the rows that the arm adds; a tenth beside native questions and x2x, as in the
# best mixture of docs/evidence/volume_and_ratio.md.
REPLAY = {'tested': 0.2, 'shared': 0.3}
ARMS = {
  'Floor': {'base': 1.0},
  'Base': {'base': 1.0},
  'Mono': {'base': 1 / 3, 'mono': 2 / 3},
  'x2x': {'base': 1 / 3, 'x2x': 2 / 3},
  'Mono + x2x': {'base': 0.1, 'mono': 0.45, 'x2x': 0.45},
  'x2x + Trans': {'base': 1 / 3, 'x2x': 1 / 3, 'trans': 1 / 3},
}
DEFAULT_ARMS = tuple(ARMS)[:-1]


def parser() -> command_line.Parser:
  """The flags of `crossin quickstart`."""
  parser = command_line.Parser(
    'quickstart',
    'Train on an invented world described in English, tune five arms, evaluate them in every '
    'language and write a report.',
    'crossin quickstart --languages en,vi,es --seeds 1 --output_dir runs/quickstart',
    gin='settings',
  )
  parser.add_argument('--output_dir', default='runs/quickstart', help='of all files')
  parser.add_argument('--languages', default='en,vi,es', help='English first, of thirteen')
  parser.add_argument(
    '--arms',
    default=','.join(DEFAULT_ARMS),
    help=f'of: {", ".join(ARMS)} (default: all but the last)',
  )
  parser.add_argument('--seeds', type=int, default=1, help='runs of every arm (default: 1)')
  parser.add_argument('--reading_steps', type=int, default=3000, help='')
  parser.add_argument('--tuning_steps', type=int, default=600, help='')
  parser.add_argument('--world_seed', type=int, default=0, help='of the world (default: 0)')
  parser.add_argument(
    '--vocabulary_size',
    type=int,
    help='pieces (default: 1500, plus 300 for each language after four)',
  )
  parser.add_argument(
    '--jobs',
    type=int,
    default=len(os.sched_getaffinity(0)),
    help='processes at a time (default: cores)',
  )
  return parser
