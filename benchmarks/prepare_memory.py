"""Peak memory of `crossin prepare` on many rows: this process and its workers.

    python benchmarks/prepare_memory.py [--rows 1000000]

Writes synthetic rows in two languages as JSONL, prepares x2x over them with all cores, and samples
the proportional set size (shared pages counted once) of the process tree. Prints one JSON object.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import psutil


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rows', type=int, default=1_000_000)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    from crossin_jax.world.sources import train_vocabulary
    from crossin_jax.world.world import World

    train_vocabulary(World(), 2000, str(folder / 'words.model'))
    size = 0
    for language in ('en', 'fi'):
      with open(folder / f'rows.{language}.jsonl', 'w', encoding='utf-8') as f:
        for i in range(args.rows):
          line = json.dumps(
            {
              'id': str(i),
              'instruction': f'{language} question {i} about the harvest and the ferry?',
              'input': '',
              'output': f'The answer of row {i} in {language} is the night ferry to Finland, ' * 3,
            }
          )
          size += f.write(line + '\n')
    values = {
      'PARALLEL': str(folder / 'rows'),
      'ENGLISH': str(folder / 'rows'),
      'VOCABULARY': str(folder / 'words.model'),
      'LANGUAGES': ('en', 'fi'),
      'parallel/ParallelFiles.name': 'rows',
    }
    command = [
      sys.executable,
      '-m',
      'crossin_jax.cli',
      'prepare',
      '--gin_file=gin_configs/mixtures/alpaca.gin',
    ]
    command += [f'--gin.{name}={value!r}' for name, value in values.items()]
    command += ['--mixture=rows.x2x.all.en_fi.default', f'--output_dir={folder / "data"}', '--json']
    started = time.monotonic()
    process = subprocess.Popen(
      command, stdout=subprocess.PIPE, cwd=pathlib.Path(__file__).resolve().parents[1]
    )
    peak = 0
    tree = psutil.Process(process.pid)
    while process.poll() is None:
      total = 0
      for member in [tree, *tree.children(recursive=True)]:
        try:
          total += member.memory_full_info().pss
        except psutil.Error:
          pass  # it ended meanwhile
      peak = max(peak, total)
      time.sleep(0.5)
    if process.returncode:
      return 1
    summary = json.loads(process.stdout.read().splitlines()[-1])
  print(
    json.dumps(
      {
        'rows': args.rows,
        'languages': 2,
        'file_gigabytes': round(size / 1e9, 2),
        'examples': summary['examples'],
        'seconds': round(time.monotonic() - started, 1),
        'peak_gigabytes': round(peak / 1e9, 2),
        'peak_bytes_per_row_and_language': round(peak / args.rows / 2),
      }
    )
  )
  return 0


if __name__ == '__main__':
  sys.exit(main())
