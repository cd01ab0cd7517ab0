"""Four-option questions by log-likelihood against lm-evaluation-harness: the same model, tokenizer,
prompts and threads.

    python benchmarks/harness_speed.py --xquad_dir DIR --tokenizer FILE.model [--languages
    en,zh,vi,es] [--rounds 2] [--items N]

A random Llama of 58 million parameters (512 wide, 8 layers) is saved as a Hugging Face directory.
Cross-XQuAD is built from the files of XQuAD, prompt 1 as plain text. lm-evaluation-harness gets
each question as a task document would give it: four pairs of (context, option) through its HFLM
(--batch_size, 8 by default), BOS before each as this project has it. Rounds alternate, after a call
of this project that compiles. Prints one JSON object: seconds of each, their ratio (above 1: this
project is faster), and in how many questions the choices are equal. Needs torch, transformers and
lm-eval.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import export_loss
import numpy as np

from crossin_jax import cli
from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.checkpoints.saved_prompts import Prompts
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.evaluation import asking
from crossin_jax.evaluation.benchmarks.declarations import LoadedBenchmark
from crossin_jax.models.decoder import Decoder
from crossin_jax.models.huggingface import families
from crossin_jax.training import state as train_state


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--xquad_dir', required=True)
  parser.add_argument('--tokenizer', required=True, help='a SentencePiece model')
  parser.add_argument('--languages', default='en,zh,vi,es')
  parser.add_argument('--rounds', type=int, default=2)
  parser.add_argument('--items', type=int, help='first so many questions')
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--batch_size', type=int, default=8, help="the harness' own")
  args = parser.parse_args()
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
  from lm_eval.api.instance import Instance
  import lm_eval.models.huggingface
  import torch
  import transformers

  torch.set_num_threads(args.threads)
  with tempfile.TemporaryDirectory() as work:
    benchmark, directory = os.path.join(work, 'cross_xquad.json'), os.path.join(work, 'model')
    assert not cli.main(
      [
        'build-cross-xquad',
        '--xquad_dir',
        args.xquad_dir,
        '--languages',
        args.languages,
        '--output',
        benchmark,
      ]
    )
    export_loss.make_model(
        directory, args.tokenizer, vocab_size=32_000, hidden_size=512, intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=4096, bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.1,
    )  # fmt: skip
    # Without a class named, transformers reads a bare SentencePiece model without its leading
    # space.
    with open(os.path.join(directory, 'tokenizer_config.json'), 'w', encoding='utf-8') as f:
      json.dump(
        {
          'tokenizer_class': 'LlamaTokenizer',
          'bos_token': '<s>',
          'eos_token': '</s>',
          'unk_token': '<unk>',
          'add_bos_token': True,
        },
        f,
      )
    questions = LoadedBenchmark('cross_xquad', benchmark, limit=args.items).questions(1)[0]
    rows = [row for item in questions.rows for row in item]

    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    harness = lm_eval.models.huggingface.HFLM(
      pretrained=transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32
      ).eval(),
      tokenizer=tokenizer, batch_size=args.batch_size, add_bos_token=True, device='cpu',
    )  # fmt: skip

    def theirs() -> list[int]:
      instances = [
        Instance('loglikelihood', {}, (row['raw'], choice), i * 4 + j)
        for i, row in enumerate(rows)
        for j, choice in enumerate(row['choices'])
      ]
      scores = np.array(
        [score for score, _ in harness.loglikelihood(instances, disable_tqdm=True)]
      ).reshape(-1, 4)
      return scores.argmax(axis=1).tolist()

    prompts, partition = Prompts(directory), Partitioner()
    config = families.from_huggingface(directory)
    model = Decoder(dataclasses.replace(config, dtype='float32', param_dtype='float32'))
    with partition.activate():
      params = SavedModel.open(directory).restore(
        train_state.parameter_shapes(model, partition), model
      )

      def ours() -> list[int]:
        losses = asking.choose_by_likelihood(
          model, params, partition, questions, prompts, length=512, rows=8
        )
        return [int(np.argmin(own)) for item in losses for own in item]

      seconds, chosen, first = {'ours': [], 'theirs': []}, {}, {}
      for round_ in range(args.rounds + 1):
        for name, run in (('ours', ours), ('theirs', theirs)):
          if not round_ and name == 'theirs':
            continue  # nothing to compile
          started = time.perf_counter()
          chosen[name] = run()
          spent = time.perf_counter() - started
          if round_:
            seconds[name].append(spent)
          else:
            first[name] = round(spent, 1)
          print(f'round {round_}, {name}: {spent:.1f} s', file=sys.stderr)
  ratios = [other / own for own, other in zip(seconds['ours'], seconds['theirs'])]
  found = {
    'questions': len(rows),
    'first_call_seconds': first['ours'],
    'seconds': {name: round(statistics.median(values), 1) for name, values in seconds.items()},
    'speed_of_ours_over_harness': round(statistics.median(ratios), 2),
    'equal_choices': sum(a == b for a, b in zip(chosen['ours'], chosen['theirs'])),
    'threads': args.threads,
    'load': os.getloadavg(),
  }
  print(json.dumps(found))
  return 0


if __name__ == '__main__':
  sys.exit(main())
