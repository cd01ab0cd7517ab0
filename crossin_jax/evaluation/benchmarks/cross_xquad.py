"""`crossin build-cross-xquad`: rebuilds Cross-XQuAD from XQuAD (docs/design/methods.md#c-12).

A question has four options. The wrong ones are correct answers to other questions on the same
paragraph or, if these are too few, on the same article. The choice is by ID, once for all
languages, so options are parallel and in the same order.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import hashlib
import os
import sys
import unicodedata

from crossin_jax.evaluation.answers.choices import LETTERS
from crossin_jax.evaluation.benchmarks import files as benchmark_files
from crossin_jax.evaluation.benchmarks import flags
from crossin_jax.languages import code_of, english_name
from crossin_jax.storage.files import write_json
from crossin_jax.storage.records import RecordError
from crossin_jax.workflow import command_line

OPTIONS = 4


@dataclass
class Built:
  """The benchmark."""

  records: list[dict]  # SeaEval's record per item
  dropped: list[tuple[str, str]]  # (ID, reason) of unusable questions
  letters: dict[str, int]  # how often each letter is correct
  from_article: int  # number of wrong options from another paragraph of the article


def build(path: str, languages: Sequence[str], split: str | None = None) -> Built:
  """Builds the benchmark from a folder of XQuAD files.

  Two options are never used together if, without case, punctuation and spaces, one contains the
  other in any of the languages: "308" and "308 points" would both be correct. The choice of options
  therefore depends on the languages, and figures are comparable for one set of languages only.

  Args:
    path, split: folder with a SQuAD JSON file per language; see `language_files`.
    languages: codes of the benchmark's languages.

  Raises:
    RecordError: a language is missing, or languages have different questions (with the IDs).
  """
  items = benchmark_files.read_squad(path, languages, split)
  first = items.fields[items.languages[0]]
  for language, fields in items.fields.items():
    if unequal := sorted(first.keys() ^ fields.keys()):
      raise RecordError(
        f'{path}: {len(unequal)} questions are not in both {items.languages[0]} and {language} '
        f'({", ".join(unequal[:5])}{" ..." if len(unequal) > 5 else ""}); XQuAD is parallel: '
        'download both files again'
      )
  answers = {
    item_id: [items.fields[language][item_id]['answers'][0].strip() for language in languages]
    for item_id in first
  }
  distinct = lambda one, other: all(map(_are_distinct, answers[one], answers[other]))
  built = Built([], [], dict.fromkeys(LETTERS[:OPTIONS], 0), 0)
  for item_id in first:
    options, from_article = _options(item_id, first, distinct)
    built.from_article += from_article
    if not all(answers[item_id]):
      built.dropped.append((item_id, 'empty answer'))
      continue
    if len(options) < OPTIONS:
      reason = f'only {len(options) - 1} distinct answers of other questions in the article'
      built.dropped.append((item_id, reason))
      continue
    options.sort(key=lambda option: _hash('order', item_id, option))
    right = options.index(item_id)
    built.letters[LETTERS[right]] += 1
    record: dict = {'id': item_id}
    for i, language in enumerate(languages):
      choices = [f'({letter}) {answers[o][i]}' for letter, o in zip(LETTERS, options)]
      fields = items.fields[language][item_id]
      record[english_name(language)] = {
        'context': fields['context'],
        'question': fields['question'],
        'choices': choices,
        'answer': choices[right],
      }
    built.records.append(record)
  if not built.records:
    raise RecordError(f'{path}: no question has {OPTIONS - 1} wrong options')
  return built


def _options(
  item_id: str, items: Mapping[str, dict], distinct: Callable[[str, str], bool]
) -> tuple[list[str], int]:
  """IDs whose answers are the options, the item first; and how many are of other paragraphs."""
  item, options, from_article = items[item_id], [item_id], 0
  is_far = {
    other: fields['paragraph'] != item['paragraph']
    for other, fields in items.items()
    if fields['article'] == item['article'] and other != item_id
  }
  for other in sorted(is_far, key=lambda x: (is_far[x], _hash(item_id, x))):
    if len(options) < OPTIONS and all(distinct(other, option) for option in options):
      options.append(other)
      from_article += is_far[other]
  return options, from_article


def _are_distinct(one: str, other: str) -> bool:
  bare = lambda text: ''.join(filter(str.isalnum, unicodedata.normalize('NFKC', text).casefold()))
  one, other = bare(one) or one, bare(other) or other
  return one not in other and other not in one


def _hash(*parts: str) -> bytes:
  return hashlib.sha256('\x1f'.join(parts).encode()).digest()


def main(argv: list[str]) -> int:
  """The command line of `crossin build-cross-xquad`."""
  args = flags.parser().parse_args(argv)
  languages = [code_of(language) for language in args.languages.split(',')]
  built = build(args.xquad_dir, languages, args.split)
  write_json(args.output, built.records)
  items = len(built.records)
  lines = [
    f'{items} items in {args.languages} -> {os.path.abspath(args.output)}',
    'correct letters: ' + ', '.join(f'{letter} {n}' for letter, n in built.letters.items()),
    f'wrong options from another paragraph of the article: {built.from_article} of '
    f'{(OPTIONS - 1) * items}',
  ]
  for reason, count in Counter(reason for _, reason in built.dropped).most_common():
    ids = [item_id for item_id, other in built.dropped if other == reason]
    lines.append(f'dropped, {reason}: {count} ({", ".join(ids[:5])})')
  print('\n'.join(lines), file=sys.stderr)
  counts = {
    'items': items,
    'letters': built.letters,
    'from_article': built.from_article,
    'dropped': [{'id': item_id, 'reason': reason} for item_id, reason in built.dropped],
  }
  return command_line.finish(args, counts)
