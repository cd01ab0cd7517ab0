"""`crossin bench train|decode|data`: what this machine does with a model or with prepared data."""

import dataclasses
import statistics
import time
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np

from crossin_jax import config
from crossin_jax.data import pair_layout, random_batches
from crossin_jax.data.prepared import PreparedMixture
from crossin_jax.data.stream import BatchStream, Loader, put_batch
from crossin_jax.decoding.generation import Generator
from crossin_jax.decoding.sampling import Sampling
from crossin_jax.decoding.schedule import Prompt
from crossin_jax.devices import chips, flops
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models import lora
from crossin_jax.models.decoder import attention_kernel
from crossin_jax.processes import distributed
from crossin_jax.training import compiled, objectives, optimizers
from crossin_jax.training import state as train_state
from crossin_jax.training.losses import LossSums
from crossin_jax.workflow import command_line, run_flags


@gin.configurable
def bench_train(
  model=gin.REQUIRED,
  optimizer=optimizers.adamw,
  objective: Any = None,
  batch_size: int = 16,
  length: int = 2048,
  microbatches: int = 1,
  steps: int = 10,
  prompt_tokens: int | None = None,
  answer_tokens: int | None = None,
  partitioner=Partitioner,
) -> dict:
  """Times training steps of a fresh model on random tokens: two segments a row, or as many
  preference pairs as fit, where the objective is one of pairs.

  Args:
    model, optimizer, objective, batch_size, length, microbatches, partitioner: as in `train`.
    steps: timed, after two that warm up.
    prompt_tokens: of the prompts of pairs; None = a tenth of the length.
    answer_tokens: of each answer of pairs; None = a twentieth of the length.

  Returns:
    {'tokens_per_second' (those that are not padding), 'seconds_per_step' (median), 'mfu' or None
    (without a second pass for the reference, as in metrics.jsonl), 'flops_per_step' (with it),
    'compile_seconds', 'program_bytes_per_device' (of the step, by XLA), 'peak_bytes_per_device' or
    None, 'device_bytes' (of one device; of CPUs the memory of the machine) or None, 'parameters',
    'device', 'devices'}; of pairs
    also 'pairs_per_second', 'positions_used' and 'layout'.

  Raises:
    ValueError: a pair does not fit into a row, or has no tokens.
  """
  partition, objective = partitioner(), objective or objectives.LIKELIHOOD
  partition.suit(model, batch_size=batch_size // microbatches)
  size = (model.config.vocab_size, batch_size, length)
  layout = None
  if isinstance(objective, objectives.PairObjective):
    layout = _layout_of_pairs(model, length)
    batch = random_batches.of_pairs(
      *size,
      features=objective.features(model, layout),
      halves=objective.halves,
      prompt_tokens=length // 10 if prompt_tokens is None else prompt_tokens,
      answer_tokens=max(1, length // 20) if answer_tokens is None else answer_tokens,
    )
  else:
    batch = random_batches.of_rows(*size)
  took, size_of_program, seconds, sums, parameters = _timed_steps(
    model, optimizer(total_steps=1000), objective, partition, batch, microbatches, steps
  )
  middle, tokens = statistics.median(seconds), int(sums.tokens)
  flops_per_token = flops.training_flops(model.config, length)
  if objective.has_second_pass(model):
    base = dataclasses.replace(model.config, lora=None)
    flops_per_token += flops.forward_flops(base, length)
  of_pairs = {}
  if layout:
    of_pairs = {
      'pairs_per_second': round(float(sums.pairs['pairs'].sum()) / middle, 2),
      'positions_used': round(tokens / (batch_size * length), 4),
      'layout': layout,
    }
  return {
    'tokens_per_second': round(tokens / middle, 1),
    **of_pairs,
    'seconds_per_step': round(middle, 6),
    'mfu': flops.utilisation(model.config, length, tokens / middle),
    'flops_per_step': flops_per_token * tokens,
    'compile_seconds': round(took, 1),
    'program_bytes_per_device': size_of_program,
    **_machine(parameters),
  }


def _layout_of_pairs(model, length: int) -> str:
  """The layout that a run of this model would have."""
  asked = config.bound('BatchStream.pairs')
  if asked in pair_layout.LAYOUTS:
    return asked
  return 'plain' if attention_kernel(model, length) else 'branches'


def _timed_steps(
  model, optimizer, objective, partition: Partitioner, batch: dict, microbatches: int, steps: int
) -> tuple[float, int | None, list[float], LossSums, dict]:
  """Runs the step of the training loop on one batch.

  Returns:
    Seconds of compilation and first step, bytes of the program, seconds of each timed step, the
    sums of the last one, and the parameters.
  """
  shape = next(iter(batch.values())).shape
  with partition.activate():
    abstract = train_state.state_shardings(model, optimizer.transform, partition)
    state = train_state.init_state(model, optimizer.transform, abstract, 0)
    rows = lambda _, selected: {name: values[selected] for name, values in batch.items()}
    on_mesh = put_batch(rows, 0, shape, partition.batch_sharding)
    threshold = jax.device_put(jnp.float32(np.inf), partition.replicated)
    step = train_state.jit_train_step(
      model, optimizer, state, tasks=1, microbatches=microbatches, objective=objective
    )
    seconds, started, of_program = [], time.perf_counter(), None
    if not compiled.refuses_ahead(model):
      step = step.lower(state, on_mesh, threshold).compile()
      of_program = compiled.program_bytes(step)
    for _ in range(steps + 2):
      state, metrics = step(state, on_mesh, threshold)
      jax.block_until_ready(metrics)
      seconds.append(time.perf_counter() - started)
      started = time.perf_counter()
    return seconds[0], of_program, seconds[2:], jax.device_get(metrics.sums), state.model_params


@gin.configurable
def bench_decode(
  model=gin.REQUIRED,
  prompts: int = 64,
  prompt_tokens: int = 256,
  new_tokens: int = 128,
  rows: int = 64,
  partitioner=Partitioner,
) -> dict:
  """Times greedy generation by a fresh model on random prompts of ragged lengths (half of
  `prompt_tokens` to all).

  Args:
    model, partitioner: as in `train`.
    prompts: how many.
    prompt_tokens: of the longest.
    new_tokens: generated for each; nothing stops before.
    rows: most prompts decoded at a time.

  Returns:
    {'tokens_per_second' (generated), 'seconds', ...} after one round that compiles.
  """
  partition = partitioner()
  partition.suit(model, training=False)
  rng = np.random.default_rng(0)
  lengths = rng.integers(prompt_tokens // 2, prompt_tokens + 1, prompts)
  asked = [Prompt(rng.integers(3, model.config.vocab_size, n).tolist()) for n in lengths]
  with partition.activate():
    abstract = train_state.parameter_shapes(model, partition)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    draw = lambda key: jax.tree.map(
      lambda leaf: (jax.random.normal(key, leaf.shape) * 0.02).astype(leaf.dtype), abstract
    )
    params = lora.quantised(
      jax.jit(draw, out_shardings=shardings)(jax.random.key(0)), lora.of_model(model)
    )
    # A stop token that no vocabulary has: every answer is of full length.
    generate = Generator(
        model, params, partition, bos_id=1, stop_ids=(model.config.padded_vocab_size,),
        sampling=Sampling(max_new_tokens=new_tokens), rows=rows,
    )  # fmt: skip
    generate(asked)
    started = time.perf_counter()
    made = sum(len(answer.tokens) for answer in generate(asked))
    seconds = time.perf_counter() - started
  return {
    'tokens_per_second': round(made / seconds, 1),
    'seconds': round(seconds, 3),
    'tokens': made,
    **_machine(params),
  }


@gin.configurable
def bench_data(
  data_dir: str = gin.REQUIRED,
  mixture: str = gin.REQUIRED,
  batch_size: int = 16,
  length: int = 2048,
  seconds: float = 10.0,
  partitioner=Partitioner,
) -> dict:
  """Times the loader on a prepared mixture, arrays on the devices included.

  Args:
    data_dir, mixture, batch_size, length, partitioner: as in `train`.
    seconds: how long.

  Returns:
    {'rows_per_second', 'tokens_per_second', 'positions_used'}.
  """
  partition = partitioner()
  stream = BatchStream(
    PreparedMixture(data_dir, mixture), batch_size=batch_size, length=length, seed=0
  )
  loader = Loader(stream, partition.batch_sharding, 0)
  batches, tokens, started = 0, 0, time.perf_counter()
  while time.perf_counter() - started < seconds:
    batch = jax.block_until_ready(next(loader))
    tokens += int((batch['decoder_segment_ids'] > 0).sum())
    batches += 1
  took = time.perf_counter() - started
  loader.close()
  return {
    'rows_per_second': round(batches * batch_size / took, 1),
    'tokens_per_second': round(tokens / took, 1),
    'positions_used': round(tokens / (batches * batch_size * length), 4),
    'device': jax.devices()[0].device_kind,
    'devices': jax.device_count(),
  }


def _machine(params) -> dict:
  """What it ran on, and the most memory that one device held."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return {
    'peak_bytes_per_device': stats.get('peak_bytes_in_use'),
    'device_bytes': chips.room_of(jax.local_devices()[0]),
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(params)),
    'device': jax.devices()[0].device_kind,
    'devices': jax.device_count(),
  }


BENCHES = {'train': bench_train, 'decode': bench_decode, 'data': bench_data}
# Settings that the files under gin_configs bind for training, and serve here too.
SHARED = {
  'train': ('optimizer', 'objective', 'batch_size', 'length', 'microbatches'),
  'decode': (),
  'data': ('data_dir', 'mixture', 'batch_size', 'length'),
}


# Values that a run needs and a measurement does not.
OF_RUNS = {'MODEL_DIR': "'bench'", 'TRAIN_STEPS': '1000'}
OF_DATA = {'DATA_DIR': "'bench'", 'MIXTURE_OR_TASK_NAME': "'bench'"}


def main(argv: list[str]) -> int:
  """The command line of `crossin bench`."""
  args = run_flags.bench_parser().parse_args(argv)
  config.parse_with(args, OF_RUNS if args.what == 'data' else OF_RUNS | OF_DATA)
  distributed.initialize(args)
  name = f'bench_{args.what}'
  shared = {
    setting: value
    for setting in SHARED[args.what]
    if (value := config.bound(f'train.{setting}')) is not None
    and config.bound(f'{name}.{setting}') is None
  }
  if args.what != 'data' and config.bound(f'{name}.model') is None:
    if config.macro('MODEL') is None:
      raise config.ConfigError('no model: give a file of gin_configs/models')
    shared['model'] = config.macro('MODEL')
  result = BENCHES[args.what](**config.resolve(shared))
  print(', '.join(f'{key} {value}' for key, value in result.items()))
  return command_line.finish(args, result)
