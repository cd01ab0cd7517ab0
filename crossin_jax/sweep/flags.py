"""The flags of `crossin sweep`."""

from crossin_jax.workflow import command_line


def parser() -> command_line.Parser:
  """The flags of `crossin sweep`."""
  parser = command_line.Parser(
    'sweep',
    'Train and evaluate every combination of gin values; write one table with intervals and one '
    'plot. A second start runs what is missing.',
    'crossin sweep gin_configs/ablations/world_volume.gin --output_dir '
    'runs/world_volume. A setting that the file does not bind goes to training or to prepare: '
    'TRAIN_STEPS=20',
    gin=True,
  )
  parser.add_argument('--output_dir', default='runs/sweep', help='of all files')
  parser.add_argument(
    '--jobs',
    type=int,
    help='points at a time, each with a share of the cores, a queued resource, or a SLURM job '
    '(default: 1; slurm: 16)',
  )
  parser.add_argument(
    '--launcher',
    choices=('local', 'tpu', 'slurm'),
    default='local',
    help='where points run (default: here)',
  )
  parser.add_argument(
    '--launcher_args',
    default='',
    metavar='FLAGS',
    help='of launch/tpu_train.sh ("--name sweep --zone Z --accelerator_type T --spot '
    '--delete_when_done") or of sbatch '
    '("--gpus-per-node=8 --time=8:00:00")',
  )
  parser.add_argument(
    '--remote_dir', help='gs://BUCKET/FOLDER, which replaces --output_dir on TPUs'
  )
  parser.add_argument('--dry_run', action='store_true', help='print all commands and stop')
  parser.add_argument(
    '--fit', action='store_true', help='alias of `crossin fit OUTPUT_DIR`, whose flags it takes'
  )
  return parser
