"""`crossin run --dry_run`: the steps of a job, and what they take."""

import sys

from crossin_jax import config
from crossin_jax.progress import duration

GIB = 1 << 30


def dry_run(job, topology: str | None = None) -> dict:
  """Prints the steps of a job, their commands, and tokens, steps, memory and time.

  Tokens come from a sample of the rows, memory and time from measured training steps of a fresh
  model, or of `crossin plan`.

  Args:
    job: see `command.Job`.
    topology: a TPU slice to plan for; None = this machine.

  Returns:
    {'steps': {name: state}, 'prepared': of `crossin prepare --dry_run`, 'training': see
    `of_training`}.
  """
  states = {name: job.steps.state(name) for name in job.steps.steps}
  for name, (state, why) in states.items():
    print(f'{name:<8} {state}{f" ({why})" if why else ""}\n    {job.shown(name)}')
  result = {'steps': {name: state for name, (state, _) in states.items()}}
  if states['train'][0] == 'done':
    return result
  print('counting tokens in a sample of the rows', file=sys.stderr)
  arguments = [*job.arguments('prepare'), *job.gin_flags('prepare'), '--dry_run']
  result['prepared'] = prepared = job.jobs.show('prepare', arguments)
  steps, epochs = training_steps(prepared['tokens'])
  of_tokens = f'about {prepared["examples"]:,} examples, {prepared["tokens"]:,} tokens'
  print(f'{of_tokens}: {steps:,} training steps{f" ({epochs:g} epochs)" if epochs else ""}')
  result['training'] = training = of_training(job, topology)
  seconds = training['seconds_per_step']
  if seconds:
    about = f'{seconds:.3g} s a step, about {duration(seconds * steps)} of training'
    training |= {'steps': steps, 'seconds': round(seconds * steps, 1)}
    print(f'{training["device"]}: {about}, without evaluations and checkpoints')
  if memory := training['bytes_per_device']:
    room = training['room_per_device']
    of = f' of {room / GIB:.2f}' if room else ''
    print(f'memory: {memory / GIB:.2f}{of} GiB of each device')
    if room and memory > room:
      print('this does not fit: lower BATCH_SIZE or LENGTH, or set train.microbatches above 1')
  return result


def training_steps(tokens: int) -> tuple[int, float | None]:
  """(steps of the run, its epochs or None): steps are exact if TRAIN_STEPS is set.

  Args:
    tokens: of all examples. A packed row is taken to be full.
  """
  value = lambda name, default: config.resolve(config.bound(f'train.{name}')) or default
  if total := value('total_steps', None):
    return total, None
  epochs = value('epochs', 1.0)
  row = value('batch_size', 16) * value('length', 2048)
  return max(1, round(epochs * tokens / row)), epochs


def of_training(job, topology: str | None) -> dict:
  """{'device', 'seconds_per_step', 'bytes_per_device', 'room_per_device'}, None where unknown."""
  settings = job.gin_flags('train')
  if topology:
    plan = job.jobs.show('plan', ['plan', f'--topology={topology}', *settings], answers=(1,))
    return {
      'device': topology,
      'seconds_per_step': plan['step_seconds_expected'] or plan['step_seconds_bound'],
      'bytes_per_device': plan['peak_bytes_per_chip'],
      'room_per_device': plan['hbm_bytes_per_chip'],
    }
  print('measuring training steps', file=sys.stderr)
  measured = job.jobs.show('bench', ['bench', 'train', *settings, '--gin.bench_train.steps=3'])
  return {
    'device': f'{measured["devices"]} x {measured["device"]}',
    'seconds_per_step': measured['seconds_per_step'],
    'bytes_per_device': measured['peak_bytes_per_device'] or measured['program_bytes_per_device'],
    'room_per_device': measured['device_bytes'],
  }
