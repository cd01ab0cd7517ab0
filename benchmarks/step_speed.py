"""One training step on this CPU against transformers + torch, and compile time over depth.

    python benchmarks/step_speed.py [--threads 2] [--rounds 5] [--experts 16]

The same Llama (512 wide, 8 layers, 32,000 ids), batch (4 x 512 tokens) and dtype (f32), AdamW in
both, alternating, each in a process of its own as its users have it. With --experts the same as a
Mixtral with experts 344 wide, of which a token uses four. Prints one JSON object: seconds of each,
their ratio (above 1: this project is faster), FLOP/s of both, the compile time at 8 and 32 scanned
layers. Needs torch and transformers.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import jax.numpy as jnp
import numpy as np

from crossin_jax.data.stream import empty_rows
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import Decoder, DecoderConfig
from crossin_jax.processes import host_memory
from crossin_jax.training import optimizers
from crossin_jax.training import state as train_state

ROWS, LENGTH, WIDTH, LAYERS, HEADS, MLP, IDS = 4, 512, 512, 8, 8, 1376, 32_000
CHOSEN = 4  # experts of a token


def ours(layers: int, experts: int):
  """(state, jitted step, batch) of this project."""
  config = DecoderConfig(
    vocab_size=IDS,
    embed_dim=WIDTH,
    num_layers=layers,
    num_heads=HEADS,
    num_kv_heads=HEADS,
    mlp_dim=MLP // CHOSEN if experts else MLP,
    num_experts=experts,
    experts_per_token=CHOSEN,
  )
  model, optimizer, partition = Decoder(config), optimizers.adamw(total_steps=1000), Partitioner()
  batch = empty_rows(ROWS, LENGTH)
  tokens = np.random.default_rng(0).integers(3, IDS, (ROWS, LENGTH))
  batch['decoder_input_tokens'][:] = tokens
  batch['decoder_target_tokens'][:] = np.roll(tokens, -1, axis=1)
  batch['decoder_loss_weights'][:] = 1
  batch['decoder_segment_ids'][:] = 1
  batch['decoder_positions'][:] = np.arange(LENGTH)
  with partition.activate():
    abstract = train_state.state_shardings(model, optimizer.transform, partition)
    state = train_state.init_state(model, optimizer.transform, abstract, 0)
  step = jax.jit(train_state.make_train_step(model, optimizer, tasks=1), donate_argnums=0)
  return state, step, jax.tree.map(jnp.asarray, batch)


def theirs(experts: int):
  """A function that takes one step with transformers and torch, and its active parameters."""
  import torch
  import transformers

  sizes = {
    'vocab_size': IDS, 'hidden_size': WIDTH, 'num_hidden_layers': LAYERS,
    'num_attention_heads': HEADS, 'num_key_value_heads': HEADS, 'intermediate_size': MLP,
    'max_position_embeddings': LENGTH, 'tie_word_embeddings': False, 'attn_implementation': 'sdpa',
  }  # fmt: skip
  if experts:
    sizes |= {'intermediate_size': MLP // CHOSEN, 'num_local_experts': experts}
    config = transformers.MixtralConfig(
      **sizes, num_experts_per_tok=CHOSEN, head_dim=WIDTH // HEADS
    )
    model = transformers.MixtralForCausalLM(config).train()
  else:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).train()
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
  tokens = torch.randint(3, IDS, (ROWS, LENGTH))

  def step():
    optimizer.zero_grad(set_to_none=True)
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss)

  unused = (experts - CHOSEN) * LAYERS * 3 * WIDTH * (MLP // CHOSEN) if experts else 0
  return step, sum(p.numel() for p in model.parameters()) - unused


class Peer:
  """A process that takes one step for each line it reads, and says the seconds."""

  def __init__(self, name: str, threads: int, experts: int):
    command = [sys.executable, __file__, f'--worker={name}', f'--threads={threads}']
    self._process = subprocess.Popen(
      [*command, f'--experts={experts}'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    self.facts = json.loads(self._process.stdout.readline())

  def step(self) -> float:
    """Seconds of one step."""
    print('step', file=self._process.stdin, flush=True)
    return float(self._process.stdout.readline())

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()


def serve(facts: dict, step) -> None:
  """The worker's side of `Peer`."""
  print(json.dumps(facts), flush=True)
  for _ in sys.stdin:
    started = time.perf_counter()
    step()
    print(time.perf_counter() - started, flush=True)


def worker_ours(experts: int) -> None:
  host_memory.keep_freed()  # as `crossin train` does
  compile_seconds = {}
  for layers in (32, LAYERS):
    state, step, batch = ours(layers, experts)
    started = time.perf_counter()
    compiled = step.lower(state, batch, jnp.float32(np.inf)).compile()
    compile_seconds[layers] = round(time.perf_counter() - started, 2)

  def one():
    nonlocal state
    state, metrics = compiled(state, batch, jnp.float32(np.inf))
    jax.block_until_ready(metrics)

  serve({'compile_seconds_by_layers': compile_seconds}, one)


def worker_theirs(threads: int, experts: int) -> None:
  import torch

  torch.set_num_threads(threads)
  step, parameters = theirs(experts)
  serve({'parameters': parameters}, step)


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--experts', type=int, default=0, help='0 = a dense model')
  parser.add_argument('--worker', choices=('ours', 'theirs'), help=argparse.SUPPRESS)
  args = parser.parse_args()
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
  if args.worker == 'ours':
    worker_ours(args.experts)
  elif args.worker == 'theirs':
    worker_theirs(args.threads, args.experts)
  if args.worker:
    return 0
  peers = {name: Peer(name, args.threads, args.experts) for name in ('ours', 'theirs')}
  times: dict[str, list[float]] = {name: [] for name in peers}
  for round_ in range(args.rounds + 1):
    for name, peer in peers.items():
      seconds = peer.step()
      if round_:  # the first warms both up
        times[name].append(seconds)
  for peer in peers.values():
    peer.close()
  parameters = peers['theirs'].facts['parameters']
  flops = 6 * (parameters - IDS * WIDTH) * ROWS * LENGTH  # the embedding is a look-up
  medians = {name: statistics.median(values) for name, values in times.items()}
  print(
    json.dumps(
      {
        'experts': args.experts,
        'active_parameters' if args.experts else 'parameters': parameters,
        'tokens_per_step': ROWS * LENGTH,
        'seconds_per_step': {name: round(value, 3) for name, value in medians.items()},
        'speed_of_ours_over_transformers': round(
          statistics.median(b / a for a, b in zip(times['ours'], times['theirs'])), 3
        ),
        'gflops_per_second': {
          name: round(flops / value / 1e9, 1) for name, value in medians.items()
        },
        **peers['ours'].facts,
        'threads': args.threads,
      }
    )
  )
  return 0


if __name__ == '__main__':
  sys.exit(main())
