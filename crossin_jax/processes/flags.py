"""The flags of runs with several processes; `distributed.initialize` reads them."""

import argparse


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds T5X's flags for several processes, and `--multihost` for clusters that JAX detects."""
  group = parser.add_argument_group('several processes')
  group.add_argument(
    '--coordinator_address',
    help='HOST:PORT of process 0 (PORT + 1 is used too); needs the next two flags',
  )
  group.add_argument(
    '--process_count', type=int, help='number of processes; with --multihost: the required number'
  )
  group.add_argument('--process_index', type=int, help='number of this process, from 0')
  group.add_argument(
    '--multihost',
    action='store_true',
    help='detect the processes: TPU pod, SLURM, Open MPI, Kubernetes',
  )
  group.add_argument(
    '--start_timeout',
    type=float,
    default=1800.0,
    help='seconds until all processes must be connected',
  )
