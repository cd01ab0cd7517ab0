"""`crossin train` in several processes on this machine, as tests start it."""

import json
import os
import pathlib
import subprocess
import sys

from addresses import free_address

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


class Processes:
  """Starts runs on one prepared mixture, with one cache of compiled programs."""

  def __init__(self, directory: str, mixture: str, compiled: str):
    self._values = {
      'DATA_DIR': directory, 'MIXTURE_OR_TASK_NAME': mixture, 'schedule.warmup_steps': 2,
      'BATCH_SIZE': 8, 'train.log_period': 1,
      'CheckpointConfig.keep': 2, 'DecoderConfig.embed_dim': 32, 'DecoderConfig.mlp_dim': 64,
      'train.evaluation_period': 0,
    }  # fmt: skip
    self._compiled = compiled

  def start(
    self, model_dir, count, values, *, devices=1, more=(), without=(), own=None, flags=()
  ) -> list[subprocess.Popen]:
    """One process each, their stderr in MODEL_DIR.INDEX.log.

    Args:
      model_dir: of the run.
      count: of processes.
      values: gin values.
      devices: forced CPU devices a process.
      more: flags for all of them.
      without: processes that are not started.
      own: index -> flags of that process alone.
      flags: further arguments of all, before gin's.
    """
    command = ['train', '--gin_file=gin_configs/runs/world_tune.gin', *flags]
    command += [
      f'--gin.{name}={value!r}'
      for name, value in (self._values | {'MODEL_DIR': str(model_dir)} | values).items()
    ]
    return self.start_command(
      [*command, '--gin.train.evaluators=()', *more],
      model_dir,
      count,
      devices=devices,
      without=without,
      own=own,
    )

  def start_command(
    self, command, name, count, *, devices=1, without=(), own=None
  ) -> list[subprocess.Popen]:
    """Any command in several processes, their stderr in NAME.INDEX.log."""
    address = free_address()
    kept = [flag for flag in os.environ.get('XLA_FLAGS', '').split() if 'device_count' not in flag]
    environment = os.environ | {
      'XLA_FLAGS': ' '.join([*kept, f'--xla_force_host_platform_device_count={devices}']),
      'JAX_ENABLE_COMPILATION_CACHE': 'true',
      'JAX_COMPILATION_CACHE_DIR': self._compiled,
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    running = []
    for index in sorted(set(range(count)) - set(without)):
      words = [sys.executable, '-m', 'crossin_jax.cli', *command, *(own or {}).get(index, ())]
      if count > 1:
        words += [
          f'--coordinator_address={address}',
          f'--process_count={count}',
          f'--process_index={index}',
        ]
      with open(log(name, index), 'w', encoding='utf-8') as f:
        running.append(
          subprocess.Popen(
            words, env=environment, cwd=REPOSITORY, stderr=f, stdout=subprocess.DEVNULL
          )
        )
    return running

  def run(self, model_dir, count, values, **more) -> dict[int, float]:
    """A run that must succeed: losses by step."""
    running = self.start(model_dir, count, values, **more)
    statuses = [process.wait(500) for process in running]
    assert statuses == [0] * count, said(model_dir, 0)[-2000:]
    return losses(model_dir)


def log(model_dir, index: int) -> str:
  """Where a process writes its stderr."""
  return f'{model_dir}.{index}.log'


def said(model_dir, index: int) -> str:
  """What a process wrote to stderr."""
  with open(log(model_dir, index), encoding='utf-8') as f:
    return f.read()


def losses(model_dir) -> dict[int, float]:
  """Step -> loss, as metrics.jsonl has them."""
  with open(os.path.join(model_dir, 'metrics.jsonl'), encoding='utf-8') as f:
    return {row['step']: row['loss'] for row in map(json.loads, f) if 'loss' in row}
