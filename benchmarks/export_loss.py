"""Trains, exports, and asks transformers (and PEFT) for the held-out loss of what was exported.

    python benchmarks/export_loss.py --parallel ../data/alpaca --english ../data/platypus.en.json \
      --tokenizer tokenizer.model --steps 200 [--lora]

A Llama of 20 M parameters is made with transformers, written as a Hugging Face directory, prepared
for, tuned by `crossin train`, exported by `crossin export-hf` and read by transformers again.
Prints one JSON object: the held-out loss that the run reported, the one that transformers finds,
and their relative difference; exit status 1 if it is above 1e-3. Needs torch, transformers and
(with --lora) peft.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]


def crossin(*arguments, **values) -> None:
  """Runs a command of the project; values are gin values."""
  command = [sys.executable, '-m', 'crossin_jax.cli', *map(str, arguments)]
  command += [f'--gin.{name}={value!r}' for name, value in values.items()]
  environment = os.environ | {'JAX_PLATFORMS': os.environ.get('JAX_PLATFORMS', 'cpu')}
  subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def make_model(directory: str, tokenizer: str, **sizes) -> None:
  """A random Llama as a Hugging Face directory with this tokenizer."""
  import torch
  import transformers

  torch.manual_seed(0)
  config = transformers.LlamaConfig(**sizes)
  transformers.LlamaForCausalLM(config).save_pretrained(directory)
  name = 'tokenizer.json' if tokenizer.endswith('.json') else 'tokenizer.model'
  shutil.copyfile(tokenizer, os.path.join(directory, name))


def heldout_loss(model, data_dir: str, mixture: str, examples_per_task: int = 200) -> float:
  """Nats per trained token of a torch model on the held-out examples of a prepared mixture, each
  alone.
  """
  import torch

  from crossin_jax.data.prepared import PreparedMixture

  prepared = PreparedMixture(data_dir, mixture, 'validation')
  total = weight = 0.0
  with torch.no_grad():
    for task in prepared.tasks:
      for index in range(min(task.examples, examples_per_task)):
        tokens, weights = task.split.example(index)
        read = [] if prepared.bos_id is None else [prepared.bos_id]
        weights = weights[1 - len(read) :]
        read = torch.tensor([*read, *tokens.tolist()])
        inputs, targets = read[None, :-1], read[1:]
        losses = torch.nn.functional.cross_entropy(
          model(inputs).logits[0].float(), targets, reduction='none'
        )
        weights = torch.tensor(weights)
        total += float((losses * weights).sum())
        weight += float(weights.sum())
  return total / weight


def reported(model_dir: str) -> float:
  """The last held-out loss in metrics.jsonl."""
  from crossin_jax.storage.records import read_records

  rows = (row for _, row in read_records(os.path.join(model_dir, 'metrics.jsonl')))
  return [row['eval/heldout/loss'] for row in rows if 'eval/heldout/loss' in row][-1]


def exported_model(directory: str, base: str, lora: bool):
  """What was exported, as a user would load it."""
  import transformers

  if not lora:
    return transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
  import peft

  return peft.PeftModel.from_pretrained(
    transformers.AutoModelForCausalLM.from_pretrained(base), directory
  ).eval()


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--parallel', required=True, help='stem of the aligned rows')
  parser.add_argument('--english', required=True, help='English-only rows')
  parser.add_argument('--tokenizer', required=True)
  parser.add_argument('--languages', default='en,zh,vi')
  parser.add_argument('--steps', type=int, default=200)
  parser.add_argument('--lora', action='store_true')
  args = parser.parse_args()
  languages = tuple(args.languages.split(','))
  mixture = f'alpaca.base_x2x.all.{"_".join(languages)}.default'
  absolute = {
    name: os.path.abspath(getattr(args, name)) for name in ('parallel', 'english', 'tokenizer')
  }
  with tempfile.TemporaryDirectory() as folder:
    hf, data, run, out = (os.path.join(folder, name) for name in ('hf', 'data', 'run', 'out'))
    make_model(
        hf, absolute['tokenizer'], vocab_size=32_000, hidden_size=256, intermediate_size=688,
        num_hidden_layers=5,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024,
    )  # fmt: skip
    crossin(
        'prepare', '--gin_file=gin_configs/mixtures/alpaca.gin', f'--mixture={mixture}',
        f'--output_dir={data}',
        PARALLEL=absolute['parallel'], ENGLISH=absolute['english'],
        VOCABULARY=absolute['tokenizer'], LANGUAGES=languages,
        **{'MixtureSettings.max_length': 512},
    )  # fmt: skip
    recipe = ['--gin_file=gin_configs/runs/crossin_lora.gin']
    bindings = (
      ['--gin.DecoderConfig.lora=None', '--gin.schedule.peak=1e-3'] if not args.lora else []
    )
    crossin(
        'train', *recipe, *bindings, '--gin.train.evaluators=(@HeldoutLoss(),)',
        '--gin.train.epochs=None',
        HF_DIR=hf, DATA_DIR=data, MODEL_DIR=run, MIXTURE_OR_TASK_NAME=mixture,
        TRAIN_STEPS=args.steps, BATCH_SIZE=4,
        LENGTH=512, **{
            'DecoderConfig.dtype': 'float32', 'DecoderConfig.remat': 'none',
            'train.evaluation_period': args.steps,
            'HeldoutLoss.examples_per_task': 20,
            **({'LoraConfig.base_dtype': 'float32'} if args.lora else {}),
        },
    )  # fmt: skip
    crossin('export-hf', run, f'--output_dir={out}', f'--format={"peft" if args.lora else "full"}')
    ours, theirs = (
      reported(run),
      heldout_loss(exported_model(out, hf, args.lora), data, mixture, 20),
    )
  difference = abs(ours - theirs) / ours
  print(
    json.dumps(
      {
        'lora': args.lora,
        'steps': args.steps,
        'reported': ours,
        'transformers': theirs,
        'relative_difference': difference,
      }
    )
  )
  return int(difference > 1e-3)


if __name__ == '__main__':
  sys.exit(main())
