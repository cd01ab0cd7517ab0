"""Memory of the host that XLA's CPU backend computes in."""

import ctypes
import glob
import os
import sys

# malloc.h of glibc
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_ACCELERATORS = ('/dev/accel*', '/dev/vfio/[0-9]*', '/dev/nvidia[0-9]*', '/dev/kfd')


def keep_freed() -> bool:
  """Lets the process keep freed memory for its next step; call it before JAX makes its devices.

  XLA's CPU backend frees its temporaries after every call. glibc gives such large blocks back to
  the system, and each step then meets every page for the first time: a quarter of a step's time
  (`benchmarks/RESULTS.md`, "Freed memory"). The process stays as large as its largest moment.

  Returns:
    Whether it was done: on Linux with glibc, where no accelerator computes.
  """
  platforms = os.environ.get('JAX_PLATFORMS', '')
  if sys.platform != 'linux' or (platforms or _local_platform()) != 'cpu':
    return False
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is None:
    return False
  # Only the first arena can hold a block of over 64 MiB, and XLA's threads would have others.
  return all(
    mallopt(name, value)
    for name, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))
  )


def _local_platform() -> str:
  return 'accelerator' if any(map(glob.glob, _ACCELERATORS)) else 'cpu'
