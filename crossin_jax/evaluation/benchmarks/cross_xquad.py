"""`crossin build-cross-xquad`: Cross-XQuAD rebuilt from XQuAD (METHODS.md C12), four options a
question.

The wrong options of a question are right answers of other questions on the same paragraph, where
these are too few on the same article. They are chosen once, by id, so the options say the same in
every language and stand in the same order.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
import hashlib
import json
import os
import sys
import unicodedata

from crossin_jax.evaluation.answers.extraction import LETTERS
from crossin_jax.evaluation.benchmarks import files as benchmark_files
from crossin_jax.languages import ENGLISH_NAMES, code_of
from crossin_jax.storage.files import write_json
from crossin_jax.storage.records import RecordError
from crossin_jax.workflow import command_line

OPTIONS = 4


@dataclass
class Built:
  """The benchmark.

  Attributes:
    records: SeaEval's record per item.
    dropped: (id, reason) of questions that could not be used.
    letters: how often each letter is right.
    from_article: wrong options that had to be taken from another paragraph of the article.
  """

  records: list[dict]
  dropped: list[tuple[str, str]]
  letters: dict[str, int]
  from_article: int


def build(path: str, languages: Sequence[str], split: str | None = None) -> Built:
  """The benchmark from a folder of XQuAD files.

  An option is refused if it, compared without case, punctuation and spaces, is part of another
  option or the other way round in any of the languages: "308" beside "308 points" would make two
  right answers. Options chosen with other languages may therefore differ: figures are comparable
  for one set of languages.

  Args:
    path: folder with a SQuAD JSON file a language (`xquad.en.json`).
    languages: codes, those of the benchmark.
    split: see `benchmark_files.language_files`.

  Raises:
    RecordError: a language is missing, or a question is not there in every language (with the ids).
  """
  items = benchmark_files.read_squad(path, languages, split)
  first = items.fields[items.languages[0]]
  for language, fields in items.fields.items():
    if unequal := sorted(first.keys() ^ fields.keys()):
      raise RecordError(
        f'{path}: {len(unequal)} questions are not in both {items.languages[0]} and {language} '
        f'({", ".join(unequal[:5])}{" ..." if len(unequal) > 5 else ""}); XQuAD is parallel: '
        'download both files anew'
      )
  answer = lambda item_id, language: items.fields[language][item_id]['answers'][0].strip()
  built = Built([], [], dict.fromkeys(LETTERS[:OPTIONS], 0), 0)
  for item_id, own in first.items():
    near = [
      other for other in first if other != item_id and first[other]['paragraph'] == own['paragraph']
    ]
    far = [
      other for other in first
      if first[other]['article'] == own['article'] and first[other]['paragraph'] != own['paragraph']
    ]  # fmt: skip
    chosen = [item_id]
    for other in sorted(near, key=lambda x: _hash(item_id, x)) + sorted(
      far, key=lambda x: _hash(item_id, x)
    ):
      if len(chosen) < OPTIONS and all(
        _apart(answer(other, language), answer(taken, language))
        for language in languages
        for taken in chosen
      ):
        chosen.append(other)
        built.from_article += other in far
    if not all(answer(item_id, language) for language in languages):
      built.dropped.append((item_id, 'empty answer'))
      continue
    if len(chosen) < OPTIONS:
      built.dropped.append(
        (item_id, f'only {len(chosen) - 1} distinct answers of other questions in the article')
      )
      continue
    order = sorted(chosen, key=lambda x: _hash('order', item_id, x))
    right = order.index(item_id)
    built.letters[LETTERS[right]] += 1
    record: dict = {'id': item_id}
    for language in languages:
      choices = [f'({letter}) {answer(other, language)}' for letter, other in zip(LETTERS, order)]
      fields = items.fields[language][item_id]
      record[ENGLISH_NAMES[language]] = {
        'context': fields['context'], 'question': fields['question'], 'choices': choices,
        'answer': choices[right]
      }  # fmt: skip
    built.records.append(record)
  if not built.records:
    raise RecordError(f'{path}: no question has {OPTIONS - 1} wrong options')
  return built


def _apart(one: str, other: str) -> bool:
  bare = lambda text: ''.join(filter(str.isalnum, unicodedata.normalize('NFKC', text).casefold()))
  one, other = bare(one) or one, bare(other) or other
  return one not in other and other not in one


def _hash(*parts: str) -> bytes:
  return hashlib.sha256('\x1f'.join(parts).encode()).digest()


def main(argv: list[str]) -> int:
  """The command line of `crossin build-cross-xquad`."""
  parser = command_line.Parser(
    'build-cross-xquad',
    'Cross-XQuAD rebuilt from XQuAD: four options a question, parallel in all languages.',
    'crossin build-cross-xquad --xquad_dir data/xquad --languages en,zh,vi,es --output '
    'cross_xquad.json',
  )
  parser.add_argument('--xquad_dir', required=True, help='folder of xquad.<language>.json')
  parser.add_argument(
    '--languages',
    default='en,zh,vi,es',
    help="codes, any of XQuAD's (default: CrossIn's, en,zh,vi,es)",
  )
  parser.add_argument(
    '--output', default='cross_xquad.json', help="file to write, in SeaEval's format"
  )
  parser.add_argument(
    '--split', help="part of the files' names that chooses, where a language has several"
  )
  args = parser.parse_args(argv)
  built = build(
    args.xquad_dir, [code_of(language) for language in args.languages.split(',')], args.split
  )
  write_json(args.output, built.records)
  reasons = Counter(reason for _, reason in built.dropped)
  say = lambda text: print(text, file=sys.stderr)
  say(f'{len(built.records)} items in {args.languages} -> {os.path.abspath(args.output)}')
  say('right answers: ' + ', '.join(f'{letter} {count}' for letter, count in built.letters.items()))
  say(
    f'wrong options from another paragraph of the article: {built.from_article} of '
    f'{(OPTIONS - 1) * len(built.records)}'
  )
  for reason, count in reasons.most_common():
    say(
      f'dropped, {reason}: {count} ({", ".join([i for i, r in built.dropped if r == reason][:5])})'
    )
  if args.json:
    counts = {
      'items': len(built.records), 'letters': built.letters, 'from_article': built.from_article,
      'dropped': [{'id': item_id, 'reason': reason} for item_id, reason in built.dropped],
    }  # fmt: skip
    print(json.dumps(counts, ensure_ascii=False))
  return 0
