"""How often the language of a single sentence is told, for the 13 languages of both methods.

  python benchmarks/language_id.py --ntrex DIR

DIR holds NTREX-128: newstest2019.<code>.txt or newstest2019-ref.<code>.txt, a sentence a line. No
candidate is left out.
"""

import argparse
import collections
import json
import pathlib
import re
import sys
import time

from crossin_jax import language_id
from crossin_jax.languages import english_name

LANGUAGES = ('en', 'zh', 'vi', 'es', 'fi', 'id', 'th', 'tr', 'bn', 'hi', 'sw', 'ta', 'ur')


def measure(lines: list[str], code: str) -> dict:
  """{'language', 'lines', 'accuracy', 'confusions': [[code, lines], ...], 'microseconds'} of the
  lines of one language.
  """
  started = time.perf_counter()
  found = collections.Counter(code for code, _ in language_id.identify_many(lines))
  seconds = time.perf_counter() - started
  return {
    'language': code,
    'lines': len(lines),
    'accuracy': found[code] / len(lines),
    'confusions': [[other or 'none', n] for other, n in found.most_common() if other != code][:3],
    'microseconds': 1e6 * seconds / len(lines),
  }


def main(argv: list[str] | None = None) -> int:
  """Prints the table. Exit status: 0 done, 1 a language is missing."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--ntrex', required=True, help='folder of the files')
  parser.add_argument('--json', action='store_true', help='one JSON object as last line on stdout')
  options = parser.parse_args(argv)
  files = {}
  for path in sorted(pathlib.Path(options.ntrex).glob('newstest2019*.txt')):
    if match := re.fullmatch(r'newstest2019(?:-ref)?\.([a-z]+)\.txt', path.name):
      files[match[1]] = path
  if missing := [code for code in LANGUAGES if code not in files]:
    print(
      f'{options.ntrex} holds no newstest2019.<code>.txt for {", ".join(missing)}', file=sys.stderr
    )
    return 1
  language_id.identify('The model is read before the clock starts.')
  rows = []
  print(f'{len(language_id.CANDIDATES)} candidates\n')
  print('| language | lines | accuracy | taken for | microseconds a line |\n|---|---|---|---|---|')
  for code in LANGUAGES:
    lines = [line for line in files[code].read_text(encoding='utf-8').split('\n') if line.strip()]
    rows.append(row := measure(lines, code))
    confusions = ', '.join(f'{other} {n}' for other, n in row['confusions']) or '-'
    print(
      f'| {english_name(code)} ({code}) | {row["lines"]} | {100 * row["accuracy"]:.1f} % | '
      f'{confusions} '
      f'| {row["microseconds"]:.0f} |'
    )
  if options.json:
    print(json.dumps({'candidates': len(language_id.CANDIDATES), 'languages': rows}))
  return 0


if __name__ == '__main__':
  sys.exit(main())
