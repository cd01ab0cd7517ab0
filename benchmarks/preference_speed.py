"""A DPO step on this CPU: the prompt read once, the prompt read twice, and TRL's DPOTrainer.

    python benchmarks/preference_speed.py [--threads 2] [--rounds 5] [--pairs 4] [--without_trl]

The same Llama (512 wide, 8 layers, 32,000 ids), pairs (prompts of 200 tokens, answers of 100) and
dtype (f32), all parameters trained with AdamW, stored log-probabilities of the reference in all
three (`precompute_ref_log_probs` in TRL), alternating. Prints one JSON object: pairs a second of
each, and the medians of the ratios of neighbouring rounds, of their time and of their CPU time,
which other work on the machine disturbs less. Needs torch, transformers and trl for the comparison.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import jax.numpy as jnp
import numpy as np

from crossin_jax.data import pair_layout
from crossin_jax.data.stream import FEATURES, empty_rows
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import Decoder, DecoderConfig
from crossin_jax.training import optimizers
from crossin_jax.training import state as train_state
from crossin_jax.training.objectives import Preference

WIDTH, LAYERS, HEADS, MLP, IDS = 512, 8, 8, 1376, 32_000
PROMPT, ANSWER, BETA = 200, 100, 0.1


def examples(count: int) -> np.ndarray:
  """Ids of pairs, [pairs, prompt and both answers]."""
  return np.random.default_rng(0).integers(3, IDS, (count, PROMPT + 2 * ANSWER)).astype(np.int32)


def ours(layout: str, tokens: np.ndarray):
  """A function that takes one step; a row has one pair."""
  config = DecoderConfig(
    vocab_size=IDS, embed_dim=WIDTH, num_layers=LAYERS, num_heads=HEADS, num_kv_heads=HEADS,
    mlp_dim=MLP,
  )  # fmt: skip
  model, optimizer, partition = Decoder(config), optimizers.adamw(total_steps=1000), Partitioner()
  branches = np.repeat([0, 1, 2], [PROMPT, ANSWER, ANSWER])
  length = int(pair_layout.lengths(layout, np.array(len(branches)), np.array(PROMPT)))
  batch = empty_rows(len(tokens), length, FEATURES | pair_layout.features(layout, True))
  weights = (branches > 0).astype(np.float32)
  logps = np.full(4, -ANSWER * np.log(IDS))
  for row, example in enumerate(tokens):
    pair_layout.write(batch, row, 0, 1, example, weights, branches, 1, 0, logps)
  with partition.activate():
    abstract = train_state.state_shardings(model, optimizer.transform, partition)
    state = train_state.init_state(model, optimizer.transform, abstract, 0)
  step = train_state.make_train_step(model, optimizer, tasks=1, objective=Preference(beta=BETA))
  batch, threshold = jax.tree.map(jnp.asarray, batch), jnp.float32(np.inf)
  compiled = jax.jit(step, donate_argnums=0).lower(state, batch, threshold).compile()

  def run():
    nonlocal state
    state, metrics = compiled(state, batch, threshold)
    jax.block_until_ready(metrics)

  return run


def theirs(tokens: np.ndarray, directory: str):
  """A function that takes one step with TRL's DPOTrainer."""
  import datasets
  import tokenizers
  import torch
  import transformers
  import trl

  config = transformers.LlamaConfig(
    vocab_size=IDS, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
    num_key_value_heads=HEADS, intermediate_size=MLP, max_position_embeddings=1024,
    tie_word_embeddings=False, attn_implementation='sdpa',
  )  # fmt: skip
  words = {f'w{i:05}': i for i in range(IDS) if i != 2} | {'</s>': 2}
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token='w00000'))
  made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=made, eos_token='</s>', pad_token='w00001'
  )
  text = lambda ids: ''.join(f' w{i:05}' for i in ids)
  middle = PROMPT + ANSWER
  rows = [
    # The trainer adds the stop token; the prompt has one token more, in place of our BOS.
    {'prompt': text([1, *row[:PROMPT]]), 'chosen': text(row[PROMPT : middle - 1]),
     'rejected': text(row[middle:-1])}
    for row in tokens.tolist()
  ]  # fmt: skip
  args = trl.DPOConfig(
    output_dir=directory, use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, beta=BETA,
    gradient_checkpointing=False, precompute_ref_log_probs=True,
    per_device_train_batch_size=len(tokens),
  )  # fmt: skip
  trainer = trl.DPOTrainer(
    model=transformers.LlamaForCausalLM(config), args=args, processing_class=tokenizer,
    train_dataset=datasets.Dataset.from_list(rows),
  )  # fmt: skip
  trainer.current_gradient_accumulation_steps = 1  # what its own loop sets
  model, inputs = trainer.model, next(iter(trainer.get_train_dataloader()))
  assert inputs['input_ids'].shape == (2 * len(tokens), 1 + middle), inputs['input_ids'].shape
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)

  def run():
    optimizer.zero_grad(set_to_none=True)
    trainer.training_step(model, dict(inputs))
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()

  return run


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--pairs', type=int, default=4, help='in a batch')
  parser.add_argument('--without_trl', action='store_true')
  args = parser.parse_args()
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
  tokens, steps = examples(args.pairs), {}
  with tempfile.TemporaryDirectory() as directory:
    if not args.without_trl:
      import torch

      torch.set_num_threads(args.threads)
      steps['trl'] = theirs(tokens, directory)
    steps |= {layout: ours(layout, tokens) for layout in pair_layout.LAYOUTS}
    times: dict[str, list[float]] = {name: [] for name in steps}
    cpu_times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(args.rounds + 1):
      for name, step in steps.items():
        started, cpu_started = time.perf_counter(), time.process_time()
        step()
        if round_:  # the first warms all up
          times[name].append(time.perf_counter() - started)
          cpu_times[name].append(time.process_time() - cpu_started)
  over = lambda times: {
    name: round(statistics.median(b / a for a, b in zip(times['branches'], times[name])), 3)
    for name in times
    if name != 'branches'
  }
  print(
    json.dumps(
      {
        'pairs': args.pairs,
        'pairs_per_second': {
          name: round(args.pairs / statistics.median(values), 3) for name, values in times.items()
        },
        'speed_over': over(times),
        'cpu_time_over': over(cpu_times),
        'threads': args.threads,
      }
    )
  )
  return 0


if __name__ == '__main__':
  sys.exit(main())
