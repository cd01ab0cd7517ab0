"""Readers of published benchmark files in their distributed form.

A reader takes a file or a folder and returns `Items` with the benchmark's field names. A folder has
one file per language with the language code in its name: `val.th.jsonl`, `dev-sw.tsv`,
`mgsm_bn.tsv`, `eng_Latn.jsonl`; or a folder per language, as the Hub has them:
`th/test-00000-of-00001.parquet`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
import functools
import json
import os
from pathlib import Path
import re
import tomllib

from crossin_jax.evaluation import record_fields
from crossin_jax.evaluation.answers.seaeval import draw
from crossin_jax.languages import code_of, english_name, in_order, languages
from crossin_jax.storage.records import RecordError, read_records, read_text

WORDS = tomllib.loads(Path(__file__).with_name('words.toml').read_text(encoding='utf-8'))
NLI_LABELS = ('entailment', 'neutral', 'contradiction')
_ENGLISH_WORDS = frozenset('am as be is my no or so he it to in'.split())
_SCRIPTS = frozenset(
  'latn arab beng cyrl deva hans hant thai taml grek jpan hang telu ethi hebr armn geor gujr guru '
  'khmr knda laoo mlym mymr orya sinh tibt'.split()
)
_SUFFIXES = ('.json', '.jsonl', '.tsv', '.csv', '.parquet')
_OTHER_CODES = {'jap': 'ja'}  # X-CSQA
# XCOPA languages whose column `question` agrees with the English original. The column of the others
# is wrong in the published files.
_XCOPA_TRUSTED = ('en', 'zh', 'vi', 'ta')


@dataclass
class Items:
  """Items of a benchmark, and human-readable notes on what the reader found and fixed."""

  fields: dict[str, dict[str, dict]]  # language -> ID -> fields of the item, in file order
  notes: list[str] = field(default_factory=list)

  @property
  def languages(self) -> list[str]:
    """Language codes; English comes first if it is present."""
    return list(self.fields)


# ---- finding files ----
ABSENT = '{} does not exist; give the downloaded folder or file of the benchmark'


def words_of(name: str) -> dict[str, Sequence[str]]:
  """Language code -> the words of a benchmark's prompt, those of `languages.added` included."""
  own = {code: entry.words[name] for code, entry in languages().items() if name in entry.words}
  return WORDS[name] | own


def language_files(
  path: str, split: str | None = None, notes: list[str] | None = None
) -> dict[str, str]:
  """Language code -> file, by the code in the file name.

  Args:
    path: a folder, or a file, whose name (or that of its folder) contains a language code or an
      English name.
    split: part of the name, 'val', 'dev', 'test' ..., where a language has several files.
    notes: receives a note on files whose language is not known.

  Raises:
    RecordError: no file, or two files of one language (the message names both).
  """
  if not os.path.exists(path):
    raise RecordError(ABSENT.format(path))
  folder, single = (path, None) if os.path.isdir(path) else os.path.split(path)
  files: dict[str, str] = {}
  unknown = []
  for name in [single] if single else _names(folder):
    language, is_unknown = _language_of_name(name, split)
    unknown += [name] * is_unknown
    if language in files:
      raise RecordError(
        f'{folder}: {os.path.relpath(files[language], folder)} and {name} are both '
        f'{english_name(language)}; select the split (--split test), or give a folder with one '
        'file per language'
      )
    if language:
      files[language] = os.path.join(folder, name)
  if not files:
    suffix = f' with {split!r} in its name' if split else ''
    raise RecordError(
      f'{path}: no {", ".join(_SUFFIXES)} file with a language code in its name{suffix}'
    )
  if unknown and notes is not None:
    notes.append(
      f'{folder}: not read, since no known language is in the name: {", ".join(unknown[:8])}'
      f'{", ..." if len(unknown) > 8 else ""}. A language is added with languages.added'
    )
  return {language: files[language] for language in in_order(files)}


def _names(folder: str) -> list[str]:
  """The files of a folder and of its folders."""
  names = []
  for name in sorted(os.listdir(folder)):
    inside = os.path.join(folder, name)
    below = sorted(os.listdir(inside)) if os.path.isdir(inside) else None
    names += [name] if below is None else [os.path.join(name, one) for one in below]
  return names


def _language_of_name(name: str, split: str | None) -> tuple[str | None, bool]:
  """The language of a file, None if it is not to be read; and whether it names none that is known.

  Files of two languages, of another split or script are not to be read.
  """
  stem = name.removesuffix('.gz')
  if not stem.endswith(_SUFFIXES):
    return None, False
  parts = re.split(r'[/._\- ]', os.path.splitext(stem)[0].lower())
  if split and split.lower() not in parts:
    return None, False
  known = languages()
  codes = {entry.name.lower(): code for code, entry in known.items()} | _OTHER_CODES
  codes |= {long: code for code, entry in known.items() for long in entry.alpha3}
  found = in_order(codes.get(part, part) for part in parts)
  # Codes that are English words count where there is no other.
  found = [code for code in found if code not in _ENGLISH_WORDS] or found
  # MLQA has files with the context in one language and the question in another.
  if len(found) != 1:
    return None, not found
  scripts = [part for part in parts if part in _SCRIPTS]
  usual = known[found[0]].script.lower()
  return (None if scripts and len(parts) <= 3 and scripts[0] != usual else found[0]), False


def _select(available: Mapping, languages: Sequence[str] | None, path: str) -> dict:
  """The entries of the requested languages; None selects all."""
  if missing := [language for language in languages or () if language not in available]:
    raise RecordError(f'{path} has no {", ".join(missing)}; it has {", ".join(available)}')
  return {language: available[language] for language in languages or available}


def one_file_per_language(read: Callable[[str], Iterator[tuple[str, dict]]]):
  """Makes a reader from a generator of (ID, fields) of one file."""

  @functools.wraps(read)
  def reader(path: str, languages: Sequence[str] | None = None, split: str | None = None) -> Items:
    notes: list[str] = []
    files = _select(language_files(path, split, notes), languages, path)
    return Items({language: dict(read(file)) for language, file in files.items()}, notes)

  return reader


def text_field(record: Mapping, name: str, where: str, *others: str) -> str:
  for key in (name, *others):
    if isinstance(record.get(key), str):
      return record[key]
  raise RecordError(f'{where}: field {name!r} must be a string, found {record.get(name)!r}')


def text_fields(record: Mapping, names: Sequence[str], where: str) -> dict[str, str]:
  return {name: text_field(record, name, where) for name in names}


def label_index(value, labels: Sequence, where: str, name: str) -> int:
  """Index of a label given as a string or a number."""
  for i, label in enumerate(labels):
    if str(value).strip() == str(label):
      return i
  raise RecordError(f'{where}: {name} {value!r} is none of {", ".join(map(str, labels))}')


# ---- the formats ----


def read_seaeval(
  path: str, languages: Sequence[str] | None = None, split: str | None = None
) -> Items:
  """SeaEval: a record per item with a key per language.

  {"id", "English": {"context"?, "question", "choices", "answer"}, "Chinese": {...}}
  """
  items: dict[str, dict[str, dict]] = {}
  for where, record in read_records(path):
    if not isinstance(record.get('id'), (str, int)):
      raise RecordError(f"{where}: 'id' must be a string or a number, found {record.get('id')!r}")
    item_id = str(record['id'])
    for name, fields in record.items():
      if not isinstance(fields, dict):
        continue
      at, by_id = f'{where}, {name}', items.setdefault(code_of(name), {})
      choices = fields.get('choices')
      if not record_fields.are_strings(choices, least=2):
        raise RecordError(f"{at}: 'choices' must be a list of strings, found {choices!r}")
      if choices.count(fields.get('answer')) != 1:
        raise RecordError(
          f'{at}: the answer {fields.get("answer")!r} is not exactly one of the choices {choices}'
        )
      if item_id in by_id:
        raise RecordError(f'{at}: item {item_id!r} is given twice')
      names = ['question'] + ['context'] * ('context' in fields)
      answer = choices.index(fields['answer'])
      by_id[item_id] = text_fields(fields, names, at) | {'choices': choices, 'answer': answer}
  if not items:
    raise RecordError(f'{path} holds no item')
  return Items(_select(items, languages, path))


@one_file_per_language
def _read_xcopa_files(file: str):
  for where, record in read_records(file):
    if record.get('question') not in ('cause', 'effect'):
      raise RecordError(
        f"{where}: 'question' must be 'cause' or 'effect', found {record.get('question')!r}"
      )
    fields = text_fields(record, ('premise', 'choice1', 'choice2', 'question'), where)
    answer = label_index(record.get('label'), (0, 1), where, 'label')
    yield str(record.get('idx')), fields | {'answer': answer}


def read_xcopa(
  path: str, languages: Sequence[str] | None = None, split: str | None = None
) -> Items:
  """XCOPA and COPA: JSONL of premise, choice1, choice2, question, label, idx.

  The published column `question` ('cause' or 'effect') is wrong in several languages: in Thai every
  row says 'effect'. The reader fixes it, by idx, from the languages of the folder that have it
  right. `notes` reports the number of fixed rows.
  """
  items = _read_xcopa_files(path, None, split).fields  # of all languages: they vote
  trusted = [language for language in _XCOPA_TRUSTED if language in items]
  notes = {}
  for language, rows in items.items():
    kinds = Counter(fields['question'] for fields in rows.values())
    counts = ', '.join(f'{kind} {count} times' for kind, count in kinds.most_common())
    wrong = 0
    for item_id, fields in rows.items():
      voters = (items[other][item_id] for other in trusted if item_id in items[other])
      votes = Counter(voter['question'] for voter in voters).most_common()
      tie = len(votes) > 1 and votes[0][1] == votes[1][1]
      if votes and not tie and votes[0][0] != fields['question']:
        fields['question'], wrong = votes[0][0], wrong + 1
    if wrong:
      notes[language] = (
        f'XCOPA {language}: the column `question` was wrong in {wrong} of {len(rows)} rows '
        f'({counts}); fixed by idx from {", ".join(trusted)}'
      )
    elif len(kinds) == 1 and len(rows) > 20 and language not in trusted:
      notes[language] = (
        f'warning: XCOPA {language}: the column `question` has {counts}, which cannot be right; '
        f'put the file of {" or ".join(_XCOPA_TRUSTED)} into the folder to have it fixed'
      )
  selected = _select(items, languages, path)
  return Items(
    selected, [notes[language] for language in items if language in selected & notes.keys()]
  )


@one_file_per_language
def _read_xnli_files(file: str):
  columns = ('premise', 'hypothesis', 'label')
  for number, (where, record) in enumerate(read_records(file, columns=columns)):
    label = record.get('label')
    answer = label if label in (0, 1, 2) else label_index(label, NLI_LABELS, where, 'label')
    yield str(number), text_fields(record, columns[:2], where) | {'answer': int(answer)}


def read_xnli(path: str, languages: Sequence[str] | None = None, split: str | None = None) -> Items:
  """XNLI: one file per language, or the original `xnli.dev.tsv` with all languages.

  A file per language is a TSV without header (premise, hypothesis, label; XTREME) or JSONL. The
  original has the columns language, gold_label, sentence1, sentence2.
  """
  if not os.path.isfile(path) or not read_text(path).startswith('language\tgold_label'):
    return _read_xnli_files(path, languages, split)
  items: dict[str, dict[str, dict]] = {}
  for where, record in read_records(path):
    by_id = items.setdefault(record['language'], {})
    by_id[str(len(by_id))] = {
      'premise': text_field(record, 'sentence1', where),
      'hypothesis': text_field(record, 'sentence2', where),
      'answer': label_index(record.get('gold_label'), NLI_LABELS, where, 'gold_label'),
    }
  known = {language: items[language] for language in in_order(items)}
  return Items(_select(known, languages, path))


@one_file_per_language
def read_story_cloze(file: str):
  """XStoryCloze and IndoCloze.

  XStoryCloze is the authors' TSV, or JSONL with lower-case names. IndoCloze is a CSV with the
  columns Kalimat-1 to 4, Correct Ending, Incorrect Ending; the row number draws the order of the
  endings.
  """
  for number, (where, record) in enumerate(read_records(file)):
    record = {re.sub('[^a-z0-9]', '', key.lower()): value for key, value in record.items()}
    if 'correctending' in record:
      story = [text_field(record, f'kalimat{i}', where) for i in range(1, 5)]
      endings = [text_field(record, f'{kind}ending', where) for kind in ('correct', 'incorrect')]
      answer, item_id = draw(2, 'story_cloze', number), str(number)
      endings = endings[::-1] if answer else endings
    else:
      story = [text_field(record, f'inputsentence{i}', where) for i in range(1, 5)]
      endings = [
        text_field(record, f'sentencequiz{i}', where, f'randomfifthsentencequiz{i}') for i in (1, 2)
      ]
      answer = label_index(record.get('answerrightending'), (1, 2), where, 'answer_right_ending')
      item_id = str(record.get('storyid', record.get('inputstoryid', number)))
    yield item_id, {'story': story, 'choices': endings, 'answer': answer}


@one_file_per_language
def read_belebele(file: str):
  """Belebele: JSONL with a question or a passage per line.

  A question has flores_passage, question, mc_answer1 to 4, correct_answer_num. A passage is
  {"text", "items": [{"question", "answers": [{"text", "correct"}]}]}.
  """
  for where, record in read_records(file):
    if 'items' not in record:
      number = record.get('correct_answer_num')
      item = {
        'passage': text_field(record, 'flores_passage', where),
        'question': text_field(record, 'question', where),
        'choices': [text_field(record, f'mc_answer{i}', where) for i in range(1, 5)],
        'answer': label_index(number, (1, 2, 3, 4), where, 'correct_answer_num'),
      }
      yield f'{record.get("link")}/{record.get("question_number")}', item
      continue
    passage = text_field(record, 'text', where)
    key = record.get('metadata', {}).get('link') or where.rsplit(' ', 1)[1]
    for number, asked in enumerate(record['items']):
      correct = [answer.get('correct') for answer in asked['answers']]
      item = {
        'passage': passage,
        'question': text_field(asked, 'question', where),
        'choices': [text_field(answer, 'text', where) for answer in asked['answers']],
        'answer': label_index(True, correct, where, 'correct'),
      }
      yield f'{key}/{number}', item


@one_file_per_language
def read_pawsx(file: str):
  """PAWS-X: a TSV per language, or JSONL.

  A TSV has the header id, sentence1, sentence2, label, or XTREME's three columns without header.
  Some published pairs lack a sentence; the reader skips them in that language.
  """
  columns = ('sentence1', 'sentence2', 'label')
  first_column = read_text(file).split('\n', 1)[0].strip().split('\t')[0]
  header = None if first_column in ('id', 'sentence1') else columns
  for number, (where, record) in enumerate(read_records(file, columns=header)):
    sentences = text_fields(record, columns[:2], where)
    if all(sentence.strip() for sentence in sentences.values()):
      answer = label_index(record.get('label'), (0, 1), where, 'label')
      yield str(record.get('id', number)), sentences | {'answer': answer}


@one_file_per_language
def read_mgsm(file: str):
  """MGSM: a TSV per language without header: question, number."""
  for number, (where, record) in enumerate(read_records(file, columns=('question', 'answer'))):
    target = text_field(record, 'answer', where).strip().replace(',', '')
    if not re.fullmatch(r'-?\d+(\.\d+)?', target):
      raise RecordError(f'{where}: the answer {target!r} is not a number')
    yield str(number), {'question': text_field(record, 'question', where), 'answers': [target]}


@one_file_per_language
def read_squad(file: str):
  """XQuAD, MLQA and others in SQuAD's JSON.

  {"data": [{"title", "paragraphs": [{"context", "qas": [...]}]}]}
  """
  try:
    articles = json.loads(read_text(file))['data']
  except (json.JSONDecodeError, KeyError, TypeError) as error:
    raise RecordError(f'{file}: not a SQuAD file ({type(error).__name__}: {error})') from None
  for i, article in enumerate(articles):
    for j, paragraph in enumerate(article['paragraphs']):
      for question in paragraph['qas']:
        where = f'{file}, question {question.get("id")!r}'
        answers = dict.fromkeys(text_field(answer, 'text', where) for answer in question['answers'])
        item = {
          'context': text_field(paragraph, 'context', where),
          'question': text_field(question, 'question', where),
          'answers': list(answers),
          'article': i,
          'paragraph': (i, j),
        }
        yield str(question['id']), item
