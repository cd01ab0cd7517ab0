"""Prepare against the tokenizer alone, and the loader's rate, on this machine.

    python benchmarks/data_speed.py [--rows 20000] [--rounds 3]

Rows are paragraphs of the embedded world's sentences, about as long as instruction rows. Prints one
JSON object: prepare and the bare tokenizer in examples per second of CPU time and their ratio (one
run, alternating, the median of rounds; the first prepare, which also hashes the rows, by itself),
how much faster two worker processes are by the clock (None on one core), the loader in rows of 2048
tokens per second, the time to reach batch 100,000, and how many GPUs of a kind the loader could
feed.
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import sys
import tempfile
import time

from crossin_jax.data.prepared import PreparedMixture
from crossin_jax.data.vocabulary import Vocabulary
from crossin_jax.world.sources import train_vocabulary
from crossin_jax.world.world import World
from seqio_tasks.mixtures import MixtureSettings
from seqio_tasks.prepare import prepare
from seqio_tasks.sources import ParallelFiles

MIXTURE = 'rows.x2x.all.en_zh_vi_es.default'

# A GPU at 40 % of 790 TFLOP/s (bf16, measured peak of an H200) training 1e9 parameters at 6 FLOP a
# parameter and token.
TOKENS_PER_GPU_SECOND = 0.4 * 790e12 / (6 * 1e9)


def settings_of(folder: pathlib.Path, rows: int) -> MixtureSettings:
  """Writes a tokenizer and the rows of all languages; they are read before any clock starts."""
  world, rng = World(), random.Random(0)
  train_vocabulary(world, 4000, str(folder / 'words.model'))
  vocabulary = Vocabulary(str(folder / 'words.model'))
  for language in world.languages:
    told = [row['output'] for row in world.statements(language)]
    paragraph = lambda: ' '.join(rng.choices(told, k=rng.randint(1, 12)))
    written = [
      {'instruction': rng.choice(told), 'input': '', 'output': paragraph()} for _ in range(rows)
    ]
    path = folder / f'rows.{language}.json'
    path.write_text(json.dumps(written, ensure_ascii=False), encoding='utf-8')
  source = ParallelFiles(str(folder / 'rows'), world.languages, name='rows')
  len(source), vocabulary.eos_id
  return MixtureSettings(
    parallel=source, vocabulary=vocabulary, template='alpaca', validation_rows=0
  )


def prepare_speed(folder: pathlib.Path, settings: MixtureSettings, rounds: int) -> dict:
  """Prepare by one process, then the tokenizer alone on the same texts, in each round."""
  ours, theirs, encode = [], [], settings.vocabulary.encode
  for round_ in range(rounds + 1):
    data = str(folder / f'data{round_}')
    started = time.process_time()
    summary = prepare(MIXTURE, data, settings, workers=1)
    ours.append(summary['examples'] / (time.process_time() - started))
    splits = [task.split for task in PreparedMixture(data, MIXTURE).tasks]
    tokens = [split.example(i)[0] for split in splits for i in range(len(split))]
    texts = list(map(settings.vocabulary.decode, tokens))
    started = time.process_time()
    for text in texts:
      encode(text)
    theirs.append(len(texts) / (time.process_time() - started))
  ratios = [round(a / b, 3) for a, b in zip(ours, theirs)]
  return {
    'tokens_per_example': round(summary['tokens'] / summary['examples'], 1),
    'prepare_examples_per_cpu_second': round(statistics.median(ours[1:])),
    'tokenizer_alone_examples_per_cpu_second': round(statistics.median(theirs[1:])),
    'prepare_over_tokenizer': statistics.median(ratios[1:]),
    'rounds': ratios[1:],
    'first_prepare_over_tokenizer': ratios[0],
  }


def workers_speed(folder: pathlib.Path, settings: MixtureSettings, rounds: int) -> float | None:
  """Seconds of one process over those of two; None on one core."""
  if len(os.sched_getaffinity(0)) < 2:
    return None
  ratios = []
  for round_ in range(rounds):
    seconds = []
    for workers in (1, 2):
      started = time.perf_counter()
      prepare(MIXTURE, str(folder / f'workers{workers}.{round_}'), settings, workers=workers)
      seconds.append(time.perf_counter() - started)
    ratios.append(seconds[0] / seconds[1])
  return round(statistics.median(ratios), 2)


def loader_speed(directory: str) -> dict:
  """Batches of 8 rows for ten seconds."""
  from crossin_jax.data.stream import BatchStream  # imports JAX: its processes do not fork

  started = time.perf_counter()
  stream = BatchStream(PreparedMixture(directory, MIXTURE), batch_size=8, length=2048)
  opened = time.perf_counter() - started
  started = time.perf_counter()
  stream.batch(100_000)
  reached = time.perf_counter() - started
  started, batches, tokens = time.process_time(), 0, 0
  while time.process_time() - started < 10:
    tokens += int((stream.batch(batches)['decoder_segment_ids'] > 0).sum())
    batches += 1
  seconds = time.process_time() - started
  return {
    'loader_rows_of_2048_per_cpu_second': round(batches * 8 / seconds),
    'loader_tokens_per_cpu_second': round(tokens / seconds),
    'packing_utilisation': round(tokens / (batches * 8 * 2048), 4),
    'gpus_fed_at_1b_parameters': round(tokens / seconds / TOKENS_PER_GPU_SECOND, 1),
    'seconds_to_open': round(opened, 3),
    'seconds_to_batch_100000': round(reached, 3),
  }


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rows', type=int, default=20_000)
  parser.add_argument('--rounds', type=int, default=3)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    settings = settings_of(folder, args.rows)
    report = {'rows': args.rows, **prepare_speed(folder, settings, args.rounds)}
    report['two_workers_over_one'] = workers_speed(folder, settings, args.rounds)
    report |= loader_speed(str(folder / 'data0'))
  print(json.dumps(report))
  return 0


if __name__ == '__main__':
  sys.exit(main())
