"""Signals while the main thread is in native code: the process ends within seconds, or says when."""

import os
import signal
import subprocess
import sys
import time

from conftest import REPOSITORY
import pytest

from crossin_jax.processes.exit_status import FAILED, RESTART

# A command whose main thread computes for minutes, as a compilation or a step does.
SCRIPT = """
import contextlib, signal, sys
import jax, jax.numpy as jnp
from crossin_jax.processes import interruption, signals

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
stage = {
  'nothing to lose': interruption.StopSignal(at_once=True),
  'a step that is saved': interruption.StopSignal(False, 'the step is finished first'),
  'no stage': contextlib.nullcontext(),
}[sys.argv[1]]
compute = jax.jit(lambda x: jax.lax.fori_loop(0, 2 * 10**9, lambda i, x: jnp.sin(x) + 1e-3, x))
say = lambda status: print('ends with', status, file=sys.stderr, flush=True)
try:
  with signals.Watch(say), stage:
    print('ready', flush=True)
    jax.block_until_ready(compute(jnp.ones(int(sys.argv[2]))))
except KeyboardInterrupt:  # as `cli.main`: the interpreter's own exit would wait for XLA
  say(1)
  signals.end(1)
"""


def started(stage, size):
  process = subprocess.Popen(
    [sys.executable, '-c', SCRIPT, stage, str(size)],
    env=os.environ | {'PYTHONPATH': str(REPOSITORY), 'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'ready\n'
  time.sleep(1)  # now it computes
  return process


def ended(process):
  try:
    return process.communicate(timeout=20)[1]  # seconds; the computation takes minutes
  finally:
    process.kill()


# 8 numbers are computed while they are dispatched, 4,096 while the main thread waits for them.
sizes = pytest.mark.parametrize('size', [8, 4096])


@sizes
@pytest.mark.parametrize(
  'stage, number, status',
  [
    ('nothing to lose', signal.SIGINT, RESTART),
    ('nothing to lose', signal.SIGTERM, RESTART),
    ('no stage', signal.SIGINT, FAILED),
  ],
)
def test_it_ends_where_nothing_is_lost(stage, number, status, size):
  process = started(stage, size)
  process.send_signal(number)
  assert f'ends with {status}' in ended(process) and process.returncode == status


@sizes
def test_a_step_is_awaited_and_the_second_ctrl_c_ends_at_once(size):
  process = started('a step that is saved', size)
  process.send_signal(signal.SIGINT)
  time.sleep(4)
  assert process.poll() is None
  process.send_signal(signal.SIGINT)
  said = ended(process)
  assert 'the step is finished first; Ctrl-C again ends at once' in said
  assert process.returncode == FAILED
