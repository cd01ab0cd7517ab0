"""What `crossin train` says: at its start, when the step is compiled, and at its end."""

import os
import sys

import jax

from crossin_jax.devices import chips, flops
from crossin_jax.progress import duration
from crossin_jax.storage.records import read_records
from crossin_jax.training import compiled as compilation

GIB = 1 << 30
CPU_FLOPS = 3e10  # of one core in f32 products; a guess, for a warning
SLOW = 60.0  # seconds of a step


def started(model_dir: str, model, state, stream, step: int, total_steps: int, partition) -> None:
  """Prints what is trained, on what, and whether it continues."""
  size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  trained, frozen = size(state.params), size(state.frozen)
  parts = f'{_short(trained)} parameters'
  if frozen:
    parts = f'{_short(trained + frozen)} parameters, {_short(trained)} of them trained'
  devices = partition.mesh.devices
  _say(
    f'train {model_dir}: {parts}; {total_steps:,} steps of {stream.batch_size} x '
    f'{stream.length:,} tokens of {stream.mixture.name} on {devices.size} x '
    f'{devices.flat[0].device_kind}'
  )
  if step:
    _say(f'train {model_dir}: continues at step {step:,}')
  config = getattr(model, 'config', None)
  if devices.flat[0].platform == 'cpu' and config is not None and step < total_steps:
    work = flops.training_flops(config, stream.length) * stream.batch_size * stream.length
    seconds = work / (CPU_FLOPS * len(os.sched_getaffinity(0)))
    if seconds > SLOW:
      _say(
        f'warning: a step of this size takes about {duration(seconds)} on this CPU; lower '
        'BATCH_SIZE or LENGTH, or use an accelerator'
      )


def compiled(program) -> None:
  """Prints what the training step holds in memory, and warns if the device has less."""
  if not isinstance(program, jax.stages.Compiled):
    return
  held, room = compilation.program_bytes(program), chips.room_of(jax.local_devices()[0])
  of = f' of {room / GIB:.1f}' if room else ''
  _say(f'the training step holds {held / GIB:.2f}{of} GiB of each device')
  if room and held > room:
    _say(
      'warning: that is more than there is; lower BATCH_SIZE or LENGTH, or set train.microbatches '
      'above 1'
    )


def ended(model_dir: str, metrics: str, step: int) -> None:
  """Prints where the checkpoint is, the held-out loss before and after, and what to do next.

  Args:
    model_dir: of the run.
    metrics: local path of its metrics.jsonl.
    step: the last one.
  """
  losses = {}
  for _, row in read_records(metrics):
    if (loss := row.get('eval/heldout/loss')) is not None:
      losses[row['step']] = loss
  _say(f'checkpoint: {os.path.join(model_dir, f"checkpoint_{step}")}')
  if losses:
    before = f'{losses[0]:.4f} before training, ' if 0 in losses else ''
    _say(f'held-out loss: {before}{losses[max(losses)]:.4f} after step {max(losses):,}')
  _say(f'next: crossin evaluate --checkpoint {model_dir} --output_dir {model_dir}/evaluation')


def _short(number: int) -> str:
  """_short(4_170_000) == '4.17 M'."""
  for unit, size in (('G', 1e9), ('M', 1e6), ('k', 1e3)):
    if number >= size:
      return f'{number / size:.3g} {unit}'
  return str(number)


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)
