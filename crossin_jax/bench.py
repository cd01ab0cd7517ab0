"""`crossin bench train|decode|data`: what this machine does with a model or with prepared data."""

import statistics
import sys
import time

import gin
import jax
import jax.numpy as jnp
import numpy as np

from crossin_jax import config
from crossin_jax.data.prepared import PreparedMixture
from crossin_jax.data.stream import BatchStream, Loader, empty_rows, put_batch
from crossin_jax.decoding.generation import Generator
from crossin_jax.decoding.sampling import Sampling
from crossin_jax.decoding.schedule import Prompt
from crossin_jax.devices import flops
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models import lora
from crossin_jax.processes import distributed
from crossin_jax.training import optimizers
from crossin_jax.training import state as train_state
from crossin_jax.workflow import command_line


@gin.configurable
def bench_train(
  model=gin.REQUIRED,
  optimizer=optimizers.adamw,
  batch_size: int = 16,
  length: int = 2048,
  microbatches: int = 1,
  steps: int = 10,
  partitioner=Partitioner,
) -> dict:
  """Times training steps of a fresh model on random tokens, two segments a row.

  Args:
    model, optimizer, batch_size, length, microbatches, partitioner: as in `train`.
    steps: timed, after two that warm up.

  Returns:
    {'tokens_per_second', 'seconds_per_step' (median), 'mfu' or None, 'flops_per_step',
    'compile_seconds', 'peak_bytes_per_device' or None, 'parameters', 'device', 'devices'}.
  """
  partition = partitioner()
  partition.suit(model, batch_size=batch_size // microbatches)
  optimizer = optimizer(total_steps=1000)
  rng = np.random.default_rng(0)
  batch = empty_rows(batch_size, length)
  tokens = rng.integers(0, model.config.vocab_size, (batch_size, length))
  batch['decoder_input_tokens'][:], batch['decoder_target_tokens'][:] = (
    tokens,
    np.roll(tokens, -1, axis=1),
  )
  batch['decoder_loss_weights'][:] = 1
  half = np.arange(length) // max(1, length // 2)
  batch['decoder_segment_ids'][:] = 1 + half
  batch['decoder_positions'][:] = np.arange(length) - half * (length // 2)
  with partition.activate():
    abstract = train_state.state_shardings(model, optimizer.transform, partition)
    state = train_state.init_state(model, optimizer.transform, abstract, 0)
    rows = lambda _, selected: {name: values[selected] for name, values in batch.items()}
    on_mesh = put_batch(rows, 0, (batch_size, length), partition.batch_sharding)
    threshold = jax.device_put(jnp.float32(np.inf), partition.replicated)
    adapters = lora.of_model(model)
    step = train_state.make_train_step(
      model,
      optimizer,
      tasks=1,
      microbatches=microbatches,
      dropout=bool(adapters and adapters.dropout),
    )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    started = time.perf_counter()
    step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
    state, metrics = step(state, on_mesh, threshold)
    jax.block_until_ready(metrics)
    compiled = time.perf_counter() - started
    seconds = []
    for i in range(steps + 1):
      started = time.perf_counter()
      state, metrics = step(state, on_mesh, threshold)
      jax.block_until_ready(metrics)
      if i:
        seconds.append(time.perf_counter() - started)
  middle = statistics.median(seconds)
  rate = batch_size * length / middle
  return {
    'tokens_per_second': round(rate, 1),
    'seconds_per_step': round(middle, 4),
    'mfu': flops.utilisation(model.config, length, rate),
    'flops_per_step': flops.training_flops(model.config, length) * batch_size * length,
    'compile_seconds': round(compiled, 1),
    **_machine(state.model_params),
  }


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
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(params)),
    'device': jax.devices()[0].device_kind,
    'devices': jax.device_count(),
  }


BENCHES = {'train': bench_train, 'decode': bench_decode, 'data': bench_data}
# Settings that the files under gin_configs bind for training, and serve here too.
SHARED = {
  'train': ('optimizer', 'batch_size', 'length', 'microbatches'),
  'decode': (),
  'data': ('data_dir', 'mixture', 'batch_size', 'length'),
}


def main(argv: list[str]) -> int:
  """The command line of `crossin bench`."""
  parser = command_line.Parser(
    'bench',
    'Measured throughput on this machine: training steps, generation, or the loader.',
    'crossin bench train --gin_file=gin_configs/models/llama_60m.gin '
    '--gin.bench_train.batch_size=4',
    gin=True,
    processes=True,
  )
  parser.add_argument('what', choices=BENCHES)
  args = parser.parse_args(argv)
  config.parse(args)
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
      raise config.ConfigError('no model: give a file of gin_configs/models with --gin_file')
    shared['model'] = config.macro('MODEL')
  if args.what == 'train' and config.bound('train.objective') is not None:
    print('bench train times the likelihood of random tokens, not train.objective', file=sys.stderr)
  result = BENCHES[args.what](**config.resolve(shared))
  print(', '.join(f'{key} {value}' for key, value in result.items()), file=sys.stderr)
  return command_line.finish(args, result)
