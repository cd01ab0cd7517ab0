"""Steps on the CPU find the memory of the step before."""

import platform
import subprocess
import sys

import pytest

# Prints the page faults of one call, in pages of 4 KiB, of a program with temporaries of 256 MiB.
PROGRAM = """
import resource, sys
from crossin_jax.processes import host_memory
if sys.argv[1] == 'keep':
  assert host_memory.keep_freed()
import jax, jax.numpy as jnp
x = jnp.ones((8192, 8))
step = jax.jit(lambda x: (jnp.exp(x @ x.T) @ x).sum())
faults = []
for _ in range(4):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  step(x).block_until_ready()
  faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""


def faults(word: str) -> int:
  run = subprocess.run(
    [sys.executable, '-c', PROGRAM, word], capture_output=True, text=True, timeout=300
  )
  assert run.returncode == 0, run.stderr
  return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only glibc has mallopt')
def test_a_step_finds_the_memory_of_the_step_before():
  assert faults('keep') < 1000 < 10_000 < faults('leave')


def test_memory_is_left_alone_beside_an_accelerator(monkeypatch):
  from crossin_jax.processes import host_memory

  monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
  assert not host_memory.keep_freed()
