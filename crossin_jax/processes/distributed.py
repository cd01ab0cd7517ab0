"""Several processes as one run: flags, handshake and barriers."""

import argparse
import atexit
import contextlib
import ctypes
import hashlib
import signal
import sys
import time

import jax

from crossin_jax.processes import host_memory, roll_call
from crossin_jax.processes.hub import RollCallError
from crossin_jax.processes.roll_call import RollCall

# JAX's own heartbeat does not say which process is lost, so ours must be faster.
JAX_HEARTBEAT = 100  # seconds
# How long an error waits for the notice that another process ended: the operating system closes the
# connections of a dead process at once.
FOREIGN = 3.0  # seconds
_call: RollCall | None = None


def initialize(args: argparse.Namespace) -> None:
  """Joins the run that the flags describe; without them the run has this process only.

  Raises:
    ValueError: incomplete flags, an invalid index, no cluster detected, or another number of
      processes than required.
    RollCallError: not all processes connected; the missing ones are named.
  """
  global _call  # a process is in one run
  host_memory.keep_freed()  # before the devices are asked for
  given = [args.coordinator_address, args.process_count, args.process_index]
  if args.multihost:
    if args.coordinator_address or args.process_index is not None:
      raise ValueError(
        '--multihost detects the processes; give it, or --coordinator_address and --process_index'
      )
    address, count, index = _detected(args.start_timeout)
    if args.process_count not in (None, count):
      raise ValueError(
        f'this machine belongs to {count} processes, --process_count wants {args.process_count}: '
        'a smaller or larger slice than intended? Nothing was started'
      )
  elif all(value is None for value in given):
    hosts = 1
    with contextlib.suppress(RuntimeError):  # no such device: the mesh reports it better
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
    # Registered before JAX's handler, so it runs after JAX has left the others.
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
  """Delays JAX's abort, which follows at once when the coordinator dies.

  The aborting thread waits here while the roll call ends the process with the reason and a status
  that launchers understand. An abort for another reason continues.
  """
  time.sleep(FOREIGN)
  _call.notify_failed('aborted in native code, see its log')
  ctypes.CDLL(None).signal(number, 0)  # the default action; abort() raises the signal again


def call() -> RollCall | None:
  """The roll call of this run; None if it has one process."""
  return _call


def barrier(place: str, says: object = '') -> None:
  """Waits until all processes arrive; with one process it does nothing.

  Args:
    place: a readable name, used when process 0 reports which processes are missing.
    says: must have an equal repr in all processes.

  Raises:
    RollCallError: it differs; the processes are named.
  """
  if _call is not None:
    text = repr(says)
    if len(text) > 200:
      text = f'{text[:60]}... ({hashlib.sha256(text.encode()).hexdigest()[:12]})'
    _call.barrier(place, text)


def notify_failed(reason: str) -> str:
  """Notifies the other processes that this one failed.

  An error may be the consequence of another process's end, such as an aborted collective. So this
  first waits for a notice of that, which ends this process like all others.

  Returns:
    The reason, with the number of this process if there are others.
  """
  if _call is None:
    return reason
  time.sleep(FOREIGN)
  _call.notify_failed(reason)
  return f'process {_call.index}: {reason}'


def _detected(timeout: float) -> tuple[str, int, int]:
  """(address, count, index) as JAX detects them on TPU pods, SLURM, Open MPI and Kubernetes."""
  try:
    from jax._src.clusters import ClusterEnv  # has no public name

    address, count, index, _ = ClusterEnv.auto_detect_unset_distributed_params(
      None, None, None, None, None, int(timeout)
    )
  except (ImportError, AttributeError, TypeError):
    raise ValueError(
      f'JAX {jax.__version__} cannot detect the cluster of this machine; give '
      '--coordinator_address, --process_count and '
      '--process_index'
    ) from None
  if address is None or count is None or index is None:
    raise ValueError(
      'no cluster was detected (TPU pod, SLURM, Open MPI or Kubernetes); give '
      '--coordinator_address, --process_count and --process_index, or leave --multihost out'
    )
  return address, count, index


def leave(status: int) -> None:
  """Ends this process at once after an error; JAX's own exit would wait for the others."""
  if _call is not None:
    sys.stdout.flush()
    sys.stderr.flush()
    roll_call.os._exit(status)


__all__ = ['RollCallError', 'barrier', 'call', 'initialize', 'leave', 'notify_failed']
