"""Prepare against the tokenizer alone, and the loader's rate, on this machine.

    python benchmarks/data_speed.py [--rows 20000]

Rows are paragraphs of the embedded world's sentences, about as long as instruction rows. Prints one
JSON object: prepare and the bare tokenizer in examples per second and core and their ratio (one
run, alternating), the loader in rows of 2048 tokens per second, the time to reach batch 100,000,
and how many GPUs of a kind the loader could feed.
"""

import argparse
import json
import pathlib
import random
import statistics
import sys
import tempfile
import time

from crossin_jax.data.prepared import PreparedMixture
from crossin_jax.data.stream import BatchStream
from crossin_jax.data.vocabulary import Vocabulary
from crossin_jax.world.sources import train_vocabulary
from crossin_jax.world.world import World
from seqio_tasks.mixtures import MixtureSettings
from seqio_tasks.prepare import prepare
from seqio_tasks.sources import ParallelFiles

# A GPU at 40 % of 790 TFLOP/s (bf16, measured peak of an H200) training 1e9 parameters at 6 FLOP a
# parameter and token.
TOKENS_PER_GPU_SECOND = 0.4 * 790e12 / (6 * 1e9)


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rows', type=int, default=20_000)
  parser.add_argument('--rounds', type=int, default=3)
  args = parser.parse_args()
  world = World()
  rng = random.Random(0)
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    train_vocabulary(world, 4000, str(folder / 'words.model'))
    vocabulary = Vocabulary(str(folder / 'words.model'))
    sentences = {
      language: [row['output'] for row in world.statements(language)]
      for language in world.languages
    }
    for language, told in sentences.items():
      rows = [
        {
          'instruction': rng.choice(told),
          'input': '',
          'output': ' '.join(rng.choices(told, k=rng.randint(1, 12))),
        }
        for _ in range(args.rows)
      ]
      (folder / f'rows.{language}.json').write_text(
        json.dumps(rows, ensure_ascii=False), encoding='utf-8'
      )
    source = ParallelFiles(str(folder / 'rows'), world.languages, name='rows')
    settings = MixtureSettings(
      parallel=source, vocabulary=vocabulary, template='alpaca', validation_rows=0
    )
    mixture = 'rows.x2x.all.en_zh_vi_es.default'
    len(source), vocabulary.eos_id  # loaded before the clock starts
    ours, theirs = [], []
    for round_ in range(args.rounds):
      started = time.perf_counter()
      summary = prepare(mixture, str(folder / f'data{round_}'), settings, workers=1)
      ours.append(summary['examples'] / (time.perf_counter() - started))
      texts = []
      prepared = PreparedMixture(str(folder / f'data{round_}'), mixture)
      for task in prepared.tasks:
        texts += [vocabulary.decode(task.split.example(i)[0]) for i in range(task.examples)]
      started = time.perf_counter()
      for text in texts:
        vocabulary.encode(text)
      theirs.append(len(texts) / (time.perf_counter() - started))
    started = time.perf_counter()
    stream = BatchStream(prepared, batch_size=8, length=2048)
    opened = time.perf_counter() - started
    started = time.perf_counter()
    stream.batch(100_000)
    reached = time.perf_counter() - started
    started, batches = time.perf_counter(), 0
    tokens = 0
    while time.perf_counter() - started < 10:
      tokens += int((stream.batch(batches)['decoder_segment_ids'] > 0).sum())
      batches += 1
    seconds = time.perf_counter() - started
  print(
    json.dumps(
      {
        'rows': args.rows,
        'tokens_per_example': round(summary['tokens'] / summary['examples'], 1),
        'prepare_examples_per_second_and_core': round(statistics.median(ours)),
        'tokenizer_alone_examples_per_second_and_core': round(statistics.median(theirs)),
        'prepare_over_tokenizer': round(statistics.median(a / b for a, b in zip(ours, theirs)), 3),
        'loader_rows_of_2048_per_second': round(batches * 8 / seconds),
        'loader_tokens_per_second': round(tokens / seconds),
        'packing_utilisation': round(tokens / (batches * 8 * 2048), 4),
        'gpus_fed_at_1b_parameters': round(tokens / seconds / TOKENS_PER_GPU_SECOND, 1),
        'seconds_to_open': round(opened, 3),
        'seconds_to_batch_100000': round(reached, 3),
      }
    )
  )
  return 0


if __name__ == '__main__':
  sys.exit(main())
