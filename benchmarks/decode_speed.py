"""Greedy generation on this CPU against transformers.generate: the same weights, prompts and
threads.

    python benchmarks/decode_speed.py [--threads 2] [--rounds 3] [--rows 64] [--kv_heads 8]

A Llama of 58 million parameters (512 wide, 8 layers, 8 heads, 32,000 ids, f32), random weights, 64
prompts whose lengths are those of English Alpaca prompts (41 to 146 tokens). Twice: every answer
128 tokens long; and answers as long as Alpaca's, 4 to 302 tokens, median 48. transformers gets the
prompts as one left-padded batch with its cache; in the second case it goes on until the longest
answer has ended, as a batch does, and only the tokens of each answer are counted, for both. Rounds
alternate. Each library has a process of its own, with the memory settings that its users have:
this project's commands keep freed memory. Prints one JSON object: tokens/s of each, their ratio
(above 1: this project is faster) in wall-clock and in CPU time, and in how many rows the tokens are
equal. On a shared machine --threads 1 is the fairer comparison: torch's two threads wait for each
other actively, and the CPU time of one thread does not depend on who else is there. Needs torch and
transformers.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import sys
import time
from typing import Any

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import numpy as np

from crossin_jax.decoding.generation import Generator
from crossin_jax.decoding.sampling import Sampling
from crossin_jax.decoding.schedule import Prompt
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import Decoder, DecoderConfig
from crossin_jax.processes import host_memory

PROMPTS, NEW = 64, 128
# Tokens of 2,000 English Alpaca rows (template 'alpaca', Mistral's tokenizer), at these quantiles.
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
PROMPT_LENGTHS = (38, 41, 44, 48, 66, 77, 89, 120, 237)
ANSWER_LENGTHS = (2, 6, 16, 48, 92, 129, 166, 269, 424)
WIDTH, LAYERS, HEADS, MLP, IDS, BOS = 512, 8, 8, 1376, 32_000, 1
NEVER = -1  # no token stops a row: lengths are given


def lengths_at(quantiles, rng) -> list[int]:
  """PROMPTS lengths that have these quantiles, in random order."""
  at = (np.arange(PROMPTS) + 0.5) / PROMPTS
  return rng.permutation(np.round(np.interp(at, QUANTILES, quantiles)).astype(int)).tolist()


def random_weights(rng, kv_heads: int) -> dict:
  """Parameters in this project's tree, NumPy."""
  narrow = WIDTH // HEADS * kv_heads
  normal = lambda *shape: rng.standard_normal(shape, dtype=np.float32) * shape[-2] ** -0.5
  layer = lambda: {
    'pre_attention_norm': {'scale': np.ones(WIDTH, np.float32)},
    'pre_mlp_norm': {'scale': np.ones(WIDTH, np.float32)},
    'self_attention': {name: {'kernel': normal(WIDTH, WIDTH)} for name in ('query', 'out')}
    | {name: {'kernel': normal(WIDTH, narrow)} for name in ('key', 'value')},
    'mlp': {name: {'kernel': normal(WIDTH, MLP)} for name in ('gate', 'up')}
    | {'down': {'kernel': normal(MLP, WIDTH)}},
  }
  return {
    'decoder': {
      'token_embedding': rng.standard_normal((IDS, WIDTH), dtype=np.float32),
      'lm_head': normal(WIDTH, IDS),
      'final_norm': {'scale': np.ones(WIDTH, np.float32)},
      **{f'layers_{i}': layer() for i in range(LAYERS)},
    }
  }


def theirs(weights: dict, prompts, kv_heads: int, threads: int):
  """A function (new tokens) -> int [PROMPTS, new tokens], by transformers."""
  import torch
  import transformers

  torch.set_num_threads(threads)
  config = transformers.LlamaConfig(
    vocab_size=IDS, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
    num_key_value_heads=kv_heads,
    intermediate_size=MLP, rms_norm_eps=1e-5, rope_theta=10_000.0, max_position_embeddings=2048,
    tie_word_embeddings=False, attn_implementation='sdpa', bos_token_id=BOS, eos_token_id=None,
  )  # fmt: skip
  model = transformers.LlamaForCausalLM(config).eval()
  decoder = weights['decoder']
  state = {
    'model.embed_tokens.weight': decoder['token_embedding'],
    'model.norm.weight': decoder['final_norm']['scale'],
    'lm_head.weight': decoder['lm_head'].T,
  }
  for i in range(LAYERS):
    layer, to = decoder[f'layers_{i}'], f'model.layers.{i}.'
    state[f'{to}input_layernorm.weight'] = layer['pre_attention_norm']['scale']
    state[f'{to}post_attention_layernorm.weight'] = layer['pre_mlp_norm']['scale']
    for ours, name in (('query', 'q'), ('key', 'k'), ('value', 'v'), ('out', 'o')):
      state[f'{to}self_attn.{name}_proj.weight'] = layer['self_attention'][ours]['kernel'].T
    for name in ('gate', 'up', 'down'):
      state[f'{to}mlp.{name}_proj.weight'] = layer['mlp'][name]['kernel'].T
  model.load_state_dict(
    {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in state.items()}
  )
  width = 1 + max(map(len, prompts))
  tokens, mask = np.zeros((PROMPTS, width), np.int64), np.zeros((PROMPTS, width), np.int64)
  for i, prompt in enumerate(prompts):
    tokens[i, width - 1 - len(prompt) :] = [BOS, *prompt]
    mask[i, width - 1 - len(prompt) :] = 1
  tokens, mask = torch.from_numpy(tokens), torch.from_numpy(mask)

  def generate(new):
    with torch.inference_mode():
      found = model.generate(
        tokens, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0
      )
    return found[:, width:].numpy()

  return generate


def workload(kv_heads: int) -> tuple[list[list[int]], dict[str, list[int]], dict]:
  """Prompts, the length of each answer in both cases, and the weights; always the same."""
  rng = np.random.default_rng(0)
  prompts = [rng.integers(3, IDS, n).tolist() for n in lengths_at(PROMPT_LENGTHS, rng)]
  lengths = {'equal': [NEW] * PROMPTS, 'alpaca': lengths_at(ANSWER_LENGTHS, rng)}
  return prompts, lengths, random_weights(rng, kv_heads)


def begin_theirs(kv_heads: int, threads: int) -> None:
  """Starts the process of transformers."""
  global _theirs  # set once in that process
  prompts, _, weights = workload(kv_heads)
  _theirs = theirs(weights, prompts, kv_heads, threads)


def timed_theirs(new: int) -> tuple[np.ndarray, np.ndarray]:
  """Tokens, and seconds as in `timed`; in the process of transformers."""
  return timed(lambda: _theirs(new))


def timed(call) -> tuple[Any, np.ndarray]:
  """The result of a call, and its seconds: wall clock, CPU."""
  clocks = lambda: np.array([time.perf_counter(), time.process_time()])
  started = clocks()
  return call(), clocks() - started


def our_generator(weights: dict, kv_heads: int, rows: int, partition: Partitioner) -> Generator:
  """This project's generator of the model."""
  config = DecoderConfig(
    vocab_size=IDS, embed_dim=WIDTH, num_layers=LAYERS, num_heads=HEADS, num_kv_heads=kv_heads,
    mlp_dim=MLP, norm_epsilon=1e-5, rope_theta=10_000.0, scan_layers=False,
  )  # fmt: skip
  return Generator(
    Decoder(config), jax.device_put(weights, partition.replicated), partition, bos_id=BOS,
    stop_ids=(NEVER,), sampling=Sampling(max_new_tokens=NEW), rows=rows,
  )  # fmt: skip


def compared(generate: Generator, pool, prompts, wanted: list[int], report: dict) -> None:
  """Lets both answer once and appends the seconds to `report`; the first time warms both up."""
  asked = [Prompt(prompt, max_new_tokens=n) for prompt, n in zip(prompts, wanted)]
  ours, our_seconds = timed(lambda: [answer.tokens for answer in generate(asked)])
  other, their_seconds = pool.submit(timed_theirs, max(wanted)).result()
  assert [len(row) for row in ours] == wanted
  if not report:
    report['first_call_seconds'] = {
      'ours': round(our_seconds[0], 2), 'theirs': round(their_seconds[0], 2),
    }  # fmt: skip
    report['equal_rows'] = sum(row == other[i, : len(row)].tolist() for i, row in enumerate(ours))
    report['seconds'] = []
    return
  report['seconds'].append([our_seconds, their_seconds])
  print(f'ours {our_seconds.round(2)} s, theirs {their_seconds.round(2)} s', file=sys.stderr)


def summary(report: dict, tokens: int) -> dict:
  """The figures of one case; medians over rounds."""
  seconds = np.array(report.pop('seconds'))  # [rounds, who, clock]
  per_second = (tokens / np.median(seconds, axis=0)).round(1)
  ratio = np.median(seconds[:, 1] / seconds[:, 0], axis=0).round(2)
  clocks = lambda values: dict(zip(('wall', 'cpu'), values.tolist()))
  return report | {
    'tokens': tokens,
    'tokens_per_second': {'ours': clocks(per_second[0]), 'theirs': clocks(per_second[1])},
    'speed_of_ours_over_transformers': clocks(ratio),
  }


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument(
    '--rows', type=int, default=64, help='rows that this project decodes at a time'
  )
  parser.add_argument(
    '--kv_heads', type=int, default=HEADS, help='key and value heads of the model, 1 to 8'
  )
  args = parser.parse_args()
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
  context = multiprocessing.get_context('spawn')
  begin = begin_theirs, (args.kv_heads, args.threads)
  with concurrent.futures.ProcessPoolExecutor(1, context, *begin) as pool:
    host_memory.keep_freed()  # as the commands do
    prompts, lengths, weights = workload(args.kv_heads)
    partition, reports = Partitioner(), {case: {} for case in lengths}
    with partition.activate():
      generate = our_generator(weights, args.kv_heads, args.rows, partition)
      for _ in range(args.rounds + 1):
        for case, wanted in lengths.items():
          compared(generate, pool, prompts, wanted, reports[case])
  results = {case: summary(report, sum(lengths[case])) for case, report in reports.items()}
  results |= {'rows': args.rows, 'programs': len(generate.programs.compiled)}
  print(json.dumps(results | {'threads': args.threads, 'load': os.getloadavg()}))
  return 0


if __name__ == '__main__':
  sys.exit(main())
