"""Several processes as one run: flags and the handshake."""

import argparse

import jax


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds T5X's flags for several processes."""
  group = parser.add_argument_group('several processes')
  group.add_argument('--coordinator_address', help='HOST:PORT of process 0; with it the other two are needed')
  group.add_argument('--process_count', type=int, help='how many processes the run has')
  group.add_argument('--process_index', type=int, help='which of them this one is, from 0')


def initialize(args: argparse.Namespace) -> None:
  """Joins the run that the flags name; without them this process is the whole run.

  Raises:
    ValueError: some of the flags without the others, or an index that is none.
  """
  given = [args.coordinator_address, args.process_count, args.process_index]
  if all(value is None for value in given):
    return
  if any(value is None for value in given):
    raise ValueError('--coordinator_address, --process_count and --process_index go together')
  if not 0 <= args.process_index < args.process_count:
    raise ValueError(f'--process_index {args.process_index} is not between 0 and {args.process_count - 1}')
  jax.distributed.initialize(args.coordinator_address, args.process_count, args.process_index)
