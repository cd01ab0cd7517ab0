"""How fast the filter step of X-Instruction is, and how much memory it takes.

    python benchmarks/filter_speed.py [--documents 50000] [--workers 2]

Makes documents of about 1,000 characters out of invented words of a few scripts, a twentieth of
them near-duplicates of others, filters them in a process of its own with all tests, and samples the
proportional set size (shared pages counted once) of the process tree. Language identification runs
on every document, but its verdict about invented words is not used. Prints one JSON object; the
projection to a million documents is linear. On a machine with other work, cpu_seconds / workers is
nearer to the truth.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import psutil

CONSONANTS_AND_VOWELS = (  # enough of them that unrelated texts share few runs of five letters
  ('k m n t w y sh ch ng mb nd z l p r s v h j b d f g'.split(), 'a e i o u aa'.split()),
  ('ক খ গ ঘ চ ছ জ ট ড ত থ দ ধ ন প ফ ব ভ ম য র ল শ স হ'.split(), ['', 'া', 'ি', 'ী', 'ু', 'ে', 'ো']),
  (
    'க ங ச ஞ ட ண த ந ப ம ய ர ல வ ழ ள ற ன'.split(),
    ['', 'ா', 'ி', 'ீ', 'ு', 'ூ', 'ெ', 'ே', 'ை', 'ொ', 'ோ', '்'],
  ),
  ('k m n t v h j l p r s d'.split(), 'a e i o u y ä ö aa ee ii uu ää ie uo yö'.split()),
)
PROGRAM = """
import dataclasses, json, sys
from crossin_jax import language_id
from crossin_jax.xinstruction.filtering import filters
from crossin_jax.xinstruction.filtering import step as filtering
# Invented words are in no language: identify as usual, then agree. Workers import this file too.
identify = language_id.identify
language_id.identify = lambda *arguments: (identify(*arguments), ('sw', 1.0))[1]
if __name__ == '__main__':
  source, output, workers = sys.argv[1:]
  counts = filtering.run_filter('sw', source, output, filters.Filters(), workers=int(workers))
  print(json.dumps(dataclasses.asdict(counts)))
"""


def write_documents(path: pathlib.Path, number: int) -> int:
  """Writes JSON lines and returns how many of them are near-duplicates."""
  random.seed(0)
  syllables = [
    [consonant + vowel for consonant in pair[0] for vowel in pair[1]]
    for pair in CONSONANTS_AND_VOWELS
  ]
  words = [
    [''.join(random.choices(own, k=random.randint(1, 4))) for _ in range(20_000)]
    for own in syllables
  ]
  planted, recent = 0, []
  with open(path, 'w', encoding='utf-8') as file:
    for i in range(number):
      own = words[0] if i % 2 else words[i // 2 % len(words)]
      if recent and random.random() < 0.05:
        tokens = list(random.choice(recent))
        for place in random.sample(
          range(len(tokens)), max(1, int(len(tokens) * random.uniform(0.01, 0.1)))
        ):
          tokens[place] = random.choice(own)
        planted += 1
      else:
        tokens, size = [], 0
        while size < 950:
          tokens.append(random.choice(own))
          size += len(tokens[-1]) + 1
        recent = [*recent[-500:], tokens]
      sentences = [
        ' '.join(tokens[at : at + 12]).capitalize() + '.' for at in range(0, len(tokens), 12)
      ]
      lines = [' '.join(sentences[at : at + 4]) for at in range(0, len(sentences), 4)]
      file.write(json.dumps({'id': str(i), 'text': '\n'.join(lines)}, ensure_ascii=False) + '\n')
  return planted


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--documents', type=int, default=50_000)
  parser.add_argument('--workers', type=int, default=2)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    planted = write_documents(folder / 'documents.jsonl', args.documents)
    (folder / 'program.py').write_text(PROGRAM)
    command = [
      sys.executable,
      str(folder / 'program.py'),
      str(folder / 'documents.jsonl'),
      str(folder / 'out'),
      str(args.workers),
    ]
    started = time.monotonic()
    root = str(pathlib.Path(__file__).resolve().parents[1])
    process = subprocess.Popen(
      command, stdout=subprocess.PIPE, cwd=root, env={**os.environ, 'PYTHONPATH': root}
    )
    tree, peak, cpu = psutil.Process(process.pid), 0, {}
    while process.poll() is None:
      total = 0
      for member in [tree, *tree.children(recursive=True)]:
        try:
          total += member.memory_full_info().pss
          cpu[member.pid] = sum(member.cpu_times()[:2])
        except psutil.Error:
          pass  # it ended meanwhile
      peak = max(peak, total)
      time.sleep(0.5)
    seconds = time.monotonic() - started
    if process.returncode:
      return 1
    counts = json.loads(process.stdout.read().splitlines()[-1])
    size = (folder / 'documents.jsonl').stat().st_size
  print(
    json.dumps(
      {
        'documents': args.documents,
        'workers': args.workers,
        'file_gigabytes': round(size / 1e9, 3),
        'seconds': round(seconds, 1),
        'cpu_seconds': round(sum(cpu.values()), 1),
        'documents_per_second': round(args.documents / seconds),
        'minutes_for_a_million': round(1e6 / args.documents * seconds / 60, 1),
        'peak_gigabytes': round(peak / 1e9, 2),
        'kept': counts['kept'],
        'dropped': counts['dropped'],
        'planted_near_duplicates': planted,
      }
    )
  )
  return 0


if __name__ == '__main__':
  sys.exit(main())
