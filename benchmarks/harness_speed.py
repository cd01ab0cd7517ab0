"""Speed and memory against lm-evaluation-harness with its Hugging Face back end: the same model,
tokenizer, prompts and threads.

    python benchmarks/harness_speed.py tasks --tokenizer FILE.model [--items 40] [--rounds 2]
    python benchmarks/harness_speed.py xquad --tokenizer FILE.model --xquad_dir DIR [--items N]

A random Llama of 58 million parameters (512 wide, 8 layers) is saved as a Hugging Face directory.

`tasks`: 17 tasks of eight kinds (`harness_tasks.py`: the harness' own definitions on invented
items; likelihoods, MGSM generated, wikitext rolling) by `crossin harness` and by `--model hf`
(--batch_size, 8 by default), each in a process of its own, from start to written results; rounds
alternate. Programs are compiled anew in every process. Answers that are not equal on both sides are
looked at where they part, see `harness_ties.py`; any that is no tie makes the exit status 1.

`xquad`: four-option questions of Cross-XQuAD, built from the files of XQuAD, prompt 1 as plain
text, as loglikelihood requests in one process each, BOS before each as this project has it. Rounds
alternate, after a call of this project that compiles.

Prints one JSON object: seconds of each, the ratio (above 1: this project is faster), and what is
equal. Needs torch, transformers and lm-eval.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import resource
import statistics
import subprocess
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


def make_model(directory: str, tokenizer: str) -> None:
  """The model of this benchmark, with a tokenizer that transformers reads as this project does."""
  export_loss.make_model(
      directory, tokenizer, vocab_size=32_000, hidden_size=512, intermediate_size=1376,
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


def xquad(args) -> dict:
  """Likelihood requests of Cross-XQuAD in this process."""
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
    make_model(directory, args.tokenizer)
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
  return found


def tasks(args) -> dict:
  """All tasks, each side in processes of its own."""
  import harness_tasks
  import harness_ties

  with tempfile.TemporaryDirectory() as work:
    model, folder = os.path.join(work, 'model'), os.path.join(work, 'tasks')
    make_model(model, args.tokenizer)
    names = harness_tasks.write_tasks(folder, args.items or 40)
    names = [name for name in names if not args.only or any(one in name for one in args.only)]
    measured: dict[str, list[dict]] = {'ours': [], 'hf': []}
    for round_ in range(args.rounds):
      for side, runs in measured.items():
        out = os.path.join(work, f'{side}{round_}')
        command = [sys.executable, os.path.abspath(__file__), 'side', side, model, folder, out]
        command += [','.join(names), str(args.threads), str(args.batch_size)]
        environment = os.environ | {'HF_HUB_OFFLINE': '1', 'TF_CPP_MIN_LOG_LEVEL': '2'}
        started = time.perf_counter()
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        seconds = time.perf_counter() - started
        runs.append({'seconds': seconds, **json.loads(done.stdout.splitlines()[-1])})
        print(f'round {round_}, {side}: {runs[-1]}', file=sys.stderr)
    equal = _compared(*(read_samples(os.path.join(work, f'{side}0')) for side in measured))
    recorded = [harness_ties.read(os.path.join(work, f'{side}0.ids')) for side in measured]
    equal['answers'] = len(recorded[0])
    equal['parted'] = harness_ties.table(model, *recorded)
  ratios = [b['seconds'] / a['seconds'] for a, b in zip(measured['ours'], measured['hf'])]
  median = lambda side, key: round(statistics.median(run[key] for run in measured[side]), 1)
  return {
    'tasks': len(names),
    'seconds': {side: median(side, 'seconds') for side in measured},
    'peak_memory_mb': {side: median(side, 'peak_memory_mb') for side in measured},
    'speed_of_ours_over_harness': round(statistics.median(ratios), 2),
    **equal,
    'threads': args.threads,
    'load': os.getloadavg(),
  }


def one_side(side: str, model: str, folder: str, out: str, names: str, threads: str, batch: str):
  """Runs one side in this process; prints its peak memory."""
  import harness_ties

  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
  if side == 'ours':
    with harness_ties.recording_crossin(f'{out}.ids'):
      assert not cli.main([
        'harness', f'--checkpoint={model}', f'--include_path={folder}', f'--tasks={names}',
        f'--output_dir={out}', '--log_samples', "--gin.DecoderConfig.dtype='float32'",
      ])  # fmt: skip
  else:
    import lm_eval
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager
    import torch

    torch.set_num_threads(int(threads))
    tracker = EvaluationTracker(output_path=out)
    with harness_ties.recording_harness(f'{out}.ids'):
      results = lm_eval.simple_evaluate(
        model='hf', model_args={'pretrained': model, 'dtype': 'float32'}, tasks=names.split(','),
        task_manager=TaskManager(include_path=folder, include_defaults=False), device='cpu',
        batch_size=int(batch), log_samples=True, evaluation_tracker=tracker,
      )  # fmt: skip
    samples = results.pop('samples')
    tracker.save_results_aggregated(results=results, samples=samples)
    for name, rows in samples.items():
      tracker.save_results_samples(name, rows)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  print(json.dumps({'peak_memory_mb': peak}))


def read_samples(out: str) -> dict:
  """(task, document, filter) -> (answers, figures) of a run."""
  found = {}
  for path in pathlib.Path(out).glob('*/samples_*.jsonl'):
    name = path.name.split('_2')[0]
    for line in path.open(encoding='utf-8'):
      row = json.loads(line)
      figures = {metric: row[metric] for metric in row['metrics']}
      found[name, row['doc_id'], row['filter']] = row['resps'], figures
  return found


def _compared(ours: dict, theirs: dict) -> dict:
  """How far the answers of both sides agree."""
  assert ours.keys() == theirs.keys()
  difference, texts, equal_texts, likelihoods = 0.0, 0, 0, 0
  for key, (answers, _) in ours.items():
    for own, other in zip(answers, theirs[key][0]):
      own, other = (one[0] for one in (own, other))
      own, other = ((one[0] if isinstance(one, list) else one) for one in (own, other))
      try:
        difference = max(difference, abs(float(own) - float(other)))
        likelihoods += 1
      except ValueError:
        texts, equal_texts = texts + 1, equal_texts + (own == other)
  same = sum(_near(figures, theirs[key][1]) for key, (_, figures) in ours.items())
  return {
    'log_probabilities': likelihoods,
    'largest_difference_in_nats': difference,
    'texts': texts,
    'equal_texts': equal_texts,
    'items': len(ours),
    'items_with_equal_figures': same,
  }


def _near(a, b) -> bool:
  """Whether figures are equal; sums of log-probabilities to 1e-5 of their value."""
  if isinstance(a, dict):
    return a.keys() == b.keys() and all(_near(a[key], b[key]) for key in a)
  if isinstance(a, list):
    return len(a) == len(b) and all(map(_near, a, b))
  return a == b or (isinstance(a, float) and abs(a - b) <= 1e-5 * abs(b))


def main() -> int:
  if sys.argv[1:2] == ['side']:
    one_side(*sys.argv[2:])
    return 0
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('what', choices=('tasks', 'xquad'))
  parser.add_argument('--xquad_dir', help='of xquad')
  parser.add_argument('--tokenizer', required=True, help='a SentencePiece model')
  parser.add_argument('--languages', default='en,zh,vi,es', help='of xquad')
  parser.add_argument('--only', nargs='*', help='of tasks: those with these words in their names')
  parser.add_argument('--rounds', type=int, default=2)
  parser.add_argument('--items', type=int, help='of each task, or first so many questions')
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--batch_size', type=int, default=8, help="the harness' own")
  args = parser.parse_args()
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
  found = tasks(args) if args.what == 'tasks' else xquad(args)
  print(json.dumps(found))
  return int(not all(row['tied'] for row in found.get('parted', ())))


if __name__ == '__main__':
  sys.exit(main())
