"""Greedy generation on this CPU against transformers.generate: the same weights, prompts and
threads.

    python benchmarks/decode_speed.py [--threads 2] [--rounds 3] [--rows 64] [--kv_heads 8]

A Llama of 58 million parameters (512 wide, 8 layers, 8 heads, 32,000 ids, f32), random weights, 64
prompts whose lengths are those of English Alpaca prompts (41 to 130 tokens). Twice: every answer
128 tokens long; and answers as long as Alpaca's, 6 to 300 tokens, median 48. transformers gets the
prompts as one left-padded batch with its cache; in the second case it goes on until the longest
answer has ended, as a batch does, and only the tokens of each answer are counted, for both. Rounds
alternate. Prints one JSON object: tokens/s of each, their ratio (above 1: this project is faster),
in how many rows the tokens are equal. On a shared machine --threads 1 is the fairer comparison:
torch's two threads wait for each other actively. Needs torch and transformers.
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
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import Decoder, DecoderConfig

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
  rng = np.random.default_rng(0)
  prompts = [rng.integers(3, IDS, n).tolist() for n in lengths_at(PROMPT_LENGTHS, rng)]
  lengths = {'equal': [NEW] * PROMPTS, 'alpaca': lengths_at(ANSWER_LENGTHS, rng)}
  weights = random_weights(rng, args.kv_heads)
  hugging_face = lambda n: np.zeros((PROMPTS, n))
  config = DecoderConfig(
    vocab_size=IDS, embed_dim=WIDTH, num_layers=LAYERS, num_heads=HEADS, num_kv_heads=args.kv_heads,
    mlp_dim=MLP,
    norm_epsilon=1e-5, rope_theta=10_000.0, scan_layers=False,
  )  # fmt: skip
  partition = Partitioner()
  results = {}
  with partition.activate():
    generate = Generator(
        Decoder(config), jax.device_put(weights, partition.replicated), partition,
        bos_id=BOS, stop_ids=(NEVER,), sampling=Sampling(max_new_tokens=NEW), rows=args.rows,
    )  # fmt: skip
    seconds: dict[str, dict[str, list[float]]] = {
      case: {'ours': [], 'theirs': []} for case in lengths
    }
    for round_ in range(args.rounds + 1):
      for case, wanted in lengths.items():
        asked = [Prompt(prompt, max_new_tokens=n) for prompt, n in zip(prompts, wanted)]
        started = time.process_time()
        ours = [answer.tokens for answer in generate(asked)]
        middle = time.process_time()
        other = hugging_face(max(wanted))
        times = {'ours': middle - started, 'theirs': time.process_time() - middle}
        assert [len(row) for row in ours] == wanted
        if not round_:  # the first warms both up
          results[case] = {
            'first_call_seconds': {name: round(value, 2) for name, value in times.items()}
          }
          results[case]['equal_rows'] = sum(
            row == list(other[i, : len(row)]) for i, row in enumerate(ours)
          )
          continue
        for name, value in times.items():
          seconds[case][name].append(value)
        print(
          f'round {round_} {case}: {times["ours"]:.2f} s, {times["theirs"]:.2f} s', file=sys.stderr
        )
  for case, wanted in lengths.items():
    ratios = [b / a for a, b in zip(seconds[case]['ours'], seconds[case]['theirs'])]
    per_second = {
      name: round(sum(wanted) / statistics.median(times), 1)
      for name, times in seconds[case].items()
    }
    results[case] |= {'tokens': sum(wanted), 'tokens_per_second': per_second}
    results[case]['speed_of_ours_over_transformers'] = round(statistics.median(ratios), 2)
  programs = len(generate.programs.compiled)
  print(
    json.dumps(
      {
        **results,
        'rows': args.rows,
        'programs': programs,
        'threads': args.threads,
        'load': os.getloadavg(),
      }
    )
  )
  return 0


if __name__ == '__main__':
  sys.exit(main())
