"""The memory that `prepare` takes for its sources does not grow with the text, and little with the
rows.
"""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# In a process of its own: reads the given files one after another, as `prepare` does, and prints
# after each the highest memory so far. (Not ru_maxrss, which counts the process that started this
# one too.)
READ = """
import json, sys
import pyarrow  # what all need is not counted
from seqio_tasks.crossin import Preset
from seqio_tasks.mixtures import MixtureName, MixtureSettings, mixture_entries
from seqio_tasks.sources import ParallelFiles

def peak():
  with open('/proc/self/status') as f:
    return next(int(line.split()[1]) * 1024 for line in f if line.startswith('VmHWM'))

vocabulary = type('Vocabulary', (), {'digest': 'x', 'eos_id': 2})()
for path in sys.argv[1:]:
  settings = MixtureSettings(ParallelFiles(path, ('en', 'zh'), name='rows'), vocabulary=vocabulary)
  characters = 0
  for entry in mixture_entries(MixtureName.parse('rows.base_x2x.all.en_zh.default'), settings):
    entry.task.fingerprint_parts(64)
    for split in ('train', 'validation'):
      for _, row in entry.task.items(split):
        characters += len(entry.task.fields(row)['output'])
  print(json.dumps({'peak': peak(), 'characters': characters}))
"""


def write(stem, ext, rows, characters):
  """The rows as two files STEM.en and STEM.zh; written a piece at a time, so that this process
  stays small.
  """
  for language in ('en', 'zh'):
    text = (f'{language} text ' * characters)[:characters]
    made = ({'id': str(i), 'instruction': f'ask {i}', 'output': f'{i} {text}'} for i in range(rows))
    if ext == '.parquet':
      import pyarrow as pa
      import pyarrow.parquet as pq

      pq.write_table(pa.Table.from_pylist(list(made)), f'{stem}.{language}{ext}')
      continue
    with open(f'{stem}.{language}{ext}', 'w', encoding='utf-8') as f:
      for i, row in enumerate(made):
        f.write(
          ('[' if i == 0 else ',\n') * (ext == '.json') + json.dumps(row) + '\n' * (ext == '.jsonl')
        )
      f.write(']' * (ext == '.json'))


def peaks(*stems):
  done = subprocess.run(
    [sys.executable, '-c', READ, *map(str, stems)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(
  not pathlib.Path('/proc/self/status').exists(), reason='memory is read from /proc: run on Linux'
)
@pytest.mark.parametrize(
  'ext, rows, most', [('.json', 2500, 12e6), ('.jsonl', 2500, 12e6), ('.parquet', 5000, 160e6)]
)
def test_memory_does_not_grow_with_the_text(tmp_path, ext, rows, most):
  """A page of Parquet is a thousand rows, and Arrow's allocator keeps what some of them took: 100
  MB here, and no more for files that are four times as long. With all rows in memory it was 90, 60
  and 260 MB.
  """
  write(tmp_path / 'short', ext, rows, 500)
  write(tmp_path / 'long', ext, rows, 12_000)
  short, long = peaks(tmp_path / 'short', tmp_path / 'long')
  assert long['characters'] - short['characters'] > rows * 11_000
  assert long['peak'] - short['peak'] < most, (short, long)


@pytest.mark.skipif(
  not pathlib.Path('/proc/self/status').exists(), reason='memory is read from /proc: run on Linux'
)
def test_memory_for_a_row_is_tens_of_bytes(tmp_path):
  write(tmp_path / 'few', '.jsonl', 10_000, 40)
  write(tmp_path / 'many', '.jsonl', 50_000, 40)
  few, many = peaks(tmp_path / 'few', tmp_path / 'many')
  per_row = (many['peak'] - few['peak']) / 40_000
  assert per_row < 250, per_row  # of two languages, with an x2x and a Base example
