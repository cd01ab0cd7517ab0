"""Greedy generation on this CPU against transformers.generate: the same weights, prompts and threads.

    python benchmarks/decode_speed.py [--threads 2] [--rounds 3] [--rows 64]

A Llama of 58 million parameters (512 wide, 8 layers, 8 heads, 32,000 ids, f32), 64 prompts of 8 to 128 tokens. Twice:
every answer 128 tokens long, and every answer with a length of its own between 1 and 128, which is how answers are.
transformers gets the prompts as one left-padded batch with its cache, and in the second case only the tokens up to each
length are counted, as a batch goes on until its longest row has ended. Rounds alternate. Prints one JSON object: tokens/s of
each, their ratio (above 1: this project is faster), whether the tokens are equal. Needs torch and transformers.
"""

import argparse
import json
import os
import statistics
import sys
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import numpy as np

from crossin_jax.decoding.generation import Generator
from crossin_jax.decoding.sampling import Sampling
from crossin_jax.decoding.schedule import Prompt
from crossin_jax.models.decoder import Decoder, DecoderConfig
from crossin_jax.partitioning import Partitioner

PROMPTS, SHORTEST, LONGEST, NEW = 64, 8, 128, 128
WIDTH, LAYERS, HEADS, MLP, IDS, BOS = 512, 8, 8, 1376, 32_000, 1
NEVER = -1  # no token stops a row: lengths are given


def random_weights(rng) -> dict:
  """Parameters in this project's tree, NumPy."""
  normal = lambda *shape: rng.standard_normal(shape, dtype=np.float32) * shape[-2] ** -0.5
  layer = lambda: {
    'pre_attention_norm': {'scale': np.ones(WIDTH, np.float32)},
    'pre_mlp_norm': {'scale': np.ones(WIDTH, np.float32)},
    'self_attention': {name: {'kernel': normal(WIDTH, WIDTH)} for name in ('query', 'key', 'value', 'out')},
    'mlp': {name: {'kernel': normal(WIDTH, MLP)} for name in ('gate', 'up')} | {'down': {'kernel': normal(MLP, WIDTH)}},
  }
  return {
    'decoder': {
      'token_embedding': rng.standard_normal((IDS, WIDTH), dtype=np.float32),
      'lm_head': normal(WIDTH, IDS),
      'final_norm': {'scale': np.ones(WIDTH, np.float32)},
      **{f'layers_{i}': layer() for i in range(LAYERS)},
    }
  }


def theirs(weights: dict, prompts, threads: int):
  """A function that generates with transformers; returns int [PROMPTS, NEW]."""
  import torch
  import transformers

  torch.set_num_threads(threads)
  config = transformers.LlamaConfig(
    vocab_size=IDS, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=HEADS,
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
  model.load_state_dict({key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in state.items()})
  width = 1 + max(map(len, prompts))
  tokens, mask = np.zeros((PROMPTS, width), np.int64), np.zeros((PROMPTS, width), np.int64)
  for i, prompt in enumerate(prompts):
    tokens[i, width - 1 - len(prompt) :] = [BOS, *prompt]
    mask[i, width - 1 - len(prompt) :] = 1
  tokens, mask = torch.from_numpy(tokens), torch.from_numpy(mask)

  def generate():
    with torch.inference_mode():
      found = model.generate(tokens, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    return found[:, width:].numpy()

  return generate


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--rows', type=int, default=64, help='rows that this project decodes at a time')
  args = parser.parse_args()
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
  rng = np.random.default_rng(0)
  prompts = [rng.integers(3, IDS, n).tolist() for n in rng.integers(SHORTEST, LONGEST, PROMPTS)]
  lengths = {'equal': [NEW] * PROMPTS, 'ragged': rng.integers(1, NEW + 1, PROMPTS).tolist()}
  weights = random_weights(rng)
  hugging_face = theirs(weights, prompts, args.threads)
  config = DecoderConfig(
    vocab_size=IDS, embed_dim=WIDTH, num_layers=LAYERS, num_heads=HEADS, num_kv_heads=HEADS, mlp_dim=MLP,
    norm_epsilon=1e-5, rope_theta=10_000.0, scan_layers=False,
  )  # fmt: skip
  partition = Partitioner()
  results = {}
  with partition.activate():
    generate = Generator(
        Decoder(config), jax.device_put(weights, partition.replicated), partition,
        bos_id=BOS, stop_ids=(NEVER,), sampling=Sampling(max_new_tokens=NEW), rows=args.rows,
    )  # fmt: skip
    seconds: dict[str, dict[str, list[float]]] = {case: {'ours': [], 'theirs': []} for case in lengths}
    for round_ in range(args.rounds + 1):
      for case, wanted in lengths.items():
        started = time.perf_counter()
        ours = [a.tokens for a in generate([Prompt(p, max_new_tokens=n) for p, n in zip(prompts, wanted)])]
        middle = time.perf_counter()
        if not round_:  # the first warms both up
          results[case] = {'first_call_seconds': round(middle - started, 2)}
        if round_ or case == 'equal':
          other = hugging_face()
        if round_:
          seconds[case]['ours'].append(middle - started)
          seconds[case]['theirs'].append(time.perf_counter() - middle)
        print(f'round {round_} {case}: {middle - started:.2f} s, {time.perf_counter() - middle:.2f} s', file=sys.stderr)
        assert [len(row) for row in ours] == wanted
        results[case]['equal_rows'] = sum(row == list(other[i, : len(row)]) for i, row in enumerate(ours))
  for case, wanted in lengths.items():
    ratios = [b / a for a, b in zip(seconds[case]['ours'], seconds[case]['theirs'])]
    per_second = {name: round(sum(wanted) / statistics.median(times), 1) for name, times in seconds[case].items()}
    results[case] |= {'tokens': sum(wanted), 'tokens_per_second': per_second}
    results[case]['speed_of_ours_over_transformers'] = round(statistics.median(ratios), 2)
  programs = len(generate.programs.compiled)
  print(
    json.dumps({**results, 'rows': args.rows, 'programs': programs, 'threads': args.threads, 'load': os.getloadavg()})
  )
  return 0


if __name__ == '__main__':
  sys.exit(main())
