"""Several processes as one run: which one this is, the handshake, and places where all wait for
all.
"""

import argparse
import atexit
import contextlib
import ctypes
import hashlib
import signal
import sys
import time

import jax

from crossin_jax.processes import roll_call
from crossin_jax.processes.hub import RollCallError
from crossin_jax.processes.roll_call import RollCall

# JAX's own heartbeat ends a process without a word about which other one is lost, so ours is to be
# the faster one.
JAX_HEARTBEAT = 100  # seconds
# How long an error waits for word of another process' end: the system cuts the lines of a dead
# process at once.
FOREIGN = 3.0  # seconds
_call: RollCall | None = None


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds T5X's flags for several processes, and those for clusters that say by themselves what runs
  where.
  """
  group = parser.add_argument_group('several processes')
  group.add_argument(
    '--coordinator_address',
    help='HOST:PORT of process 0 (PORT + 1 is used too); with it the next two',
  )
  group.add_argument(
    '--process_count',
    type=int,
    help='how many processes the run has; with --multihost: how many it must have',
  )
  group.add_argument('--process_index', type=int, help='which of them this one is, from 0')
  group.add_argument(
    '--multihost',
    action='store_true',
    help='ask the machine instead: TPU pod, SLURM, Open MPI, Kubernetes',
  )
  group.add_argument(
    '--start_timeout',
    type=float,
    default=1800.0,
    help='seconds until all processes must be there (default: 1800)',
  )


def initialize(args: argparse.Namespace) -> None:
  """Joins the run that the flags name; without them this process is the whole run.

  Raises:
    ValueError: some of the flags without the others, an index that is none, a machine that does not
      say what it is part of, or another number of processes than wanted.
    RollCallError: not all processes came; the missing are named.
  """
  global _call  # a process is in one run
  given = [args.coordinator_address, args.process_count, args.process_index]
  if args.multihost:
    if args.coordinator_address or args.process_index is not None:
      raise ValueError(
        '--multihost asks the machine; give it, or --coordinator_address and --process_index'
      )
    address, count, index = _detected(args.start_timeout)
    if args.process_count not in (None, count):
      raise ValueError(
        f'this machine belongs to {count} processes, --process_count wants {args.process_count}: '
        'a smaller or larger slice '
        'than meant? Nothing was begun'
      )
  elif all(value is None for value in given):
    hosts = 1
    with contextlib.suppress(RuntimeError):  # no such device: the mesh says so better
      hosts = jax.process_count()  # libtpu joins the hosts of a slice by itself
    if hosts > 1:
      raise ValueError(
        f'this machine is one of {hosts} hosts of a slice: start the command on each of them with '
        '--multihost'
      )
    return
  elif any(value is None for value in given):
    raise ValueError('--coordinator_address, --process_count and --process_index go together')
  else:
    address, count, index = given
  if not 0 <= index < count:
    raise ValueError(f'--process_index {index} is not between 0 and {count - 1}')
  host, _, port = address.rpartition(':')
  if not host or not port.isdigit():
    raise ValueError(f'--coordinator_address {address!r}: write HOST:PORT')
  if count > 1:
    _call = RollCall(f'{host}:{int(port) + 1}', count, index, timeout=args.start_timeout)
    # Registered before JAX's: ours is called after it, when JAX has taken leave of the others.
    atexit.register(_call.close)
  jax.distributed.initialize(
    address,
    count,
    index,
    initialization_timeout=int(args.start_timeout),
    heartbeat_timeout_seconds=JAX_HEARTBEAT,
  )
  if _call is not None:
    ctypes.CDLL(None).signal(signal.SIGABRT, _outlive_abort)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _outlive_abort(number: int) -> None:
  """JAX aborts a process the moment its coordinator dies, and its own hook for that cannot be
  called from Python.

  The aborting thread waits here while the roll call ends the process with the reason and a status
  that a launcher understands; an abort for another reason goes on.
  """
  time.sleep(FOREIGN)
  _call.tell_failed('aborted in native code, see its log')
  ctypes.CDLL(None).signal(number, 0)  # as it was; abort() raises it again


def call() -> RollCall | None:
  """The roll call of this run; None if this process is all of it."""
  return _call


def barrier(place: str, says: object = '') -> None:
  """Waits until all processes are at this place; with one process it does nothing.

  Args:
    place: a name for people: while some are waited for, process 0 says which, and where.
    says: what must be equal in all processes; anything with a repr.

  Raises:
    RollCallError: it is not; the processes are named.
  """
  if _call is not None:
    told = repr(says)
    if len(told) > 200:
      told = f'{told[:60]}... ({hashlib.sha256(told.encode()).hexdigest()[:12]})'
    _call.barrier(place, told)


def tell_failed(reason: str) -> str:
  """Tells the other processes that this one ends with an error; the message, with this process'
  number if there are others.

  Many an error is what another process' end looks like from here (a collective that broke off):
  word of that is waited for, and if it comes, this process ends as all do.
  """
  if _call is None:
    return reason
  time.sleep(FOREIGN)
  _call.tell_failed(reason)
  return f'process {_call.index}: {reason}'


def _detected(timeout: float) -> tuple[str, int, int]:
  """(address, count, index) as JAX finds them on TPU pods, under SLURM, Open MPI and Kubernetes."""
  try:
    from jax._src.clusters import ClusterEnv  # has no public name

    address, count, index, _ = ClusterEnv.auto_detect_unset_distributed_params(
      None, None, None, None, None, int(timeout)
    )
  except (ImportError, AttributeError, TypeError):
    raise ValueError(
      f'JAX {jax.__version__} does not tell what this machine is part of; give '
      '--coordinator_address, --process_count and '
      '--process_index'
    ) from None
  if address is None or count is None or index is None:
    raise ValueError(
      'nothing says that this machine is one of several (no TPU pod, SLURM, Open MPI or '
      'Kubernetes was found); give '
      '--coordinator_address, --process_count and --process_index, or leave --multihost out'
    )
  return address, count, index


def leave(status: int) -> None:
  """Ends this process at once after an error that the others know of: JAX's own way out would wait
  for them.
  """
  if _call is not None:
    sys.stdout.flush()
    sys.stderr.flush()
    roll_call.os._exit(status)


__all__ = ['RollCallError', 'add_flags', 'barrier', 'call', 'initialize', 'leave', 'tell_failed']
