"""The files of published benchmarks as they are distributed: items by id and language, in each
benchmark's own fields.

Every reader takes a file or folder and gives `Items`. Files of one language are found by the
language code in their name: `val.th.jsonl`, `dev-sw.tsv`, `mgsm_bn.tsv`, `eng_Latn.jsonl`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
import hashlib
import json
import os
import re

from crossin_jax.languages import ENGLISH_NAMES, code_of
from crossin_jax.storage.records import RecordError, read_records, read_text

_SUFFIXES = ('.json', '.jsonl', '.tsv', '.csv')
# ISO 639-3 as FLORES, and so Belebele, has them.
_THREE_LETTERS = {
  'eng': 'en', 'zho': 'zh', 'vie': 'vi', 'spa': 'es', 'fin': 'fi', 'ind': 'id', 'tha': 'th',
  'tur': 'tr', 'ben': 'bn',
  'hin': 'hi', 'swh': 'sw', 'tam': 'ta', 'urd': 'ur', 'arb': 'ar', 'deu': 'de', 'ell': 'el',
  'tgl': 'fil', 'fra': 'fr',
  'ita': 'it', 'jpn': 'ja', 'kor': 'ko', 'zsm': 'ms', 'por': 'pt', 'ron': 'ro', 'rus': 'ru',
  'tel': 'te',
}  # fmt: skip
# Several scripts of one language are several files: the usual one is meant.
_USUAL_SCRIPTS = {
  'zh': 'hans', 'bn': 'beng', 'hi': 'deva', 'ur': 'arab', 'ar': 'arab', 'th': 'thai', 'ta': 'taml',
  'el': 'grek',
  'ja': 'jpan', 'ko': 'hang', 'ru': 'cyrl', 'te': 'telu',
}  # fmt: skip
# XCOPA languages whose column `question` agrees with the English original; others were overwritten
# upstream.
_XCOPA_TRUSTED = ('en', 'zh', 'vi', 'ta')


@dataclass
class Items:
  """What a benchmark's files hold.

  Attributes:
    languages: codes, English first if it is there.
    fields: language -> id -> the item's fields, in file order.
    notes: what was found and mended, for people.
  """

  languages: list[str]
  fields: dict[str, dict[str, dict]]
  notes: list[str] = field(default_factory=list)


# ---- finding files ----


def language_files(path: str, split: str | None = None) -> dict[str, str]:
  """Language code -> file of a folder, by the code in its name.

  Args:
    path: a folder, or a file whose name has a language code.
    split: 'val', 'dev', 'test' ...: the part of the name that chooses where a language has several
      files.

  Raises:
    RecordError: none is found, or two of one language (both are named).
  """
  if os.path.isfile(path):
    names, folder = [os.path.basename(path)], os.path.dirname(path)
  elif os.path.isdir(path):
    names, folder = sorted(os.listdir(path)), path
  else:
    raise RecordError(
      f'{path} does not exist; give the folder or file of the benchmark as it was downloaded'
    )
  found: dict[str, str] = {}
  for name in names:
    stem = name.removesuffix('.gz')
    if not stem.endswith(_SUFFIXES):
      continue
    parts = re.split(r'[._\- ]', os.path.splitext(stem)[0].lower())
    codes = {_THREE_LETTERS.get(part, part) for part in parts}
    languages = [code for code in ENGLISH_NAMES if code in codes]
    # Context in one language, question in another (MLQA): not asked here.
    if len(languages) != 1 or (split and split.lower() not in parts):
      continue
    (language,) = languages
    script = next(
      (part for part in parts if re.fullmatch('latn|arab|beng|cyrl|deva|hans|hant', part)), None
    )
    if script and len(parts) <= 3 and script != _USUAL_SCRIPTS.get(language, 'latn'):
      continue
    if language in found:
      raise RecordError(
        f'{folder}: {os.path.basename(found[language])} and {name} are both '
        f'{ENGLISH_NAMES[language]}; name the split '
        '(--split test), or give a folder with one file a language'
      )
    found[language] = os.path.join(folder, name)
  if not found:
    wanted = f' with {split!r} in its name' if split else ''
    raise RecordError(
      f'{path}: no {", ".join(_SUFFIXES)} file with a language code in its name{wanted}'
    )
  return {language: found[language] for language in ENGLISH_NAMES if language in found}


def _by_language(
  path: str,
  split: str | None,
  read: Callable[[str, str], Mapping[str, dict]],
  languages: Sequence[str] | None = None,
) -> Items:
  files = language_files(path, split)
  if languages:
    _check_present(languages, files, path)
    files = {language: files[language] for language in languages}
  return Items(
    list(files), {language: dict(read(file, language)) for language, file in files.items()}
  )


def _check_present(wanted: Iterable[str], present: Iterable[str], path: str) -> None:
  if missing := [language for language in wanted if language not in present]:
    raise RecordError(f'{path} has no {", ".join(missing)}; it has {", ".join(present)}')


def _field(record: Mapping, name: str, where: str, *others: str) -> str:
  for key in (name, *others):
    if isinstance(record.get(key), str):
      return record[key]
  raise RecordError(f'{where}: field {name!r} must be a text, found {record.get(name)!r}')


def _index(value, labels: Sequence, where: str, name: str) -> int:
  """Place of a label given as text or number."""
  for i, label in enumerate(labels):
    if str(value).strip() == str(label):
      return i
  raise RecordError(f'{where}: {name} {value!r} is none of {", ".join(map(str, labels))}')


# ---- the formats ----


def read_seaeval(
  path: str, languages: Sequence[str] | None = None, split: str | None = None
) -> Items:
  """SeaEval's record per item: {"id", "English": {"context"?, "question", "choices", "answer"},
  "Chinese": {...}}.
  """
  items: dict[str, dict[str, dict]] = {}
  for where, record in read_records(path):
    if not isinstance(record.get('id'), (str, int)):
      raise RecordError(f"{where}: 'id' must be a text or a number, found {record.get('id')!r}")
    item_id = str(record['id'])
    for name, fields in record.items():
      if not isinstance(fields, dict):
        continue
      at = f'{where}, {name}'
      language, choices = code_of(name), fields.get('choices')
      if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(choice, str) for choice in choices)
      ):
        raise RecordError(f"{at}: 'choices' must be a list of texts, found {choices!r}")
      if choices.count(fields.get('answer')) != 1:
        raise RecordError(
          f'{at}: the answer {fields.get("answer")!r} is not exactly one of the choices {choices}'
        )
      own = {'question': _field(fields, 'question', at), 'choices': choices}
      own['answer'] = choices.index(fields['answer'])
      if 'context' in fields:
        own['context'] = _field(fields, 'context', at)
      if item_id in items.setdefault(language, {}):
        raise RecordError(f'{at}: item {item_id!r} was already given')
      items[language][item_id] = own
  if not items:
    raise RecordError(f'{path} holds no item')
  if languages:
    _check_present(languages, items, path)
  return Items(
    list(languages or items), {language: items[language] for language in languages or items}
  )


def read_xcopa(
  path: str, languages: Sequence[str] | None = None, split: str | None = None
) -> Items:
  """XCOPA and COPA: JSONL of premise, choice1, choice2, question ('cause' or 'effect'), label, idx.

  The published column `question` is wrong in several languages (in Thai every row says 'effect').
  It is compared by idx with the languages of the folder that have it right and mended; `notes` says
  how often.
  """

  def read(file: str, language: str):
    for where, record in read_records(file):
      if record.get('question') not in ('cause', 'effect'):
        raise RecordError(
          f"{where}: 'question' must be 'cause' or 'effect', found {record.get('question')!r}"
        )
      fields = {
        name: _field(record, name, where) for name in ('premise', 'choice1', 'choice2', 'question')
      }
      yield (
        str(record.get('idx')),
        fields | {'answer': _index(record.get('label'), (0, 1), where, 'label')},
      )

  # all languages of the folder: they tell which column is right
  every = _by_language(path, split, read)
  notes, trusted = [], [language for language in _XCOPA_TRUSTED if language in every.fields]
  for language, items in every.fields.items():
    kinds = Counter(fields['question'] for fields in items.values())
    wrong = 0
    for item_id, fields in items.items():
      votes = Counter(
        every.fields[other][item_id]['question']
        for other in trusted
        if item_id in every.fields[other]
      ).most_common()
      if (
        votes
        and (len(votes) == 1 or votes[0][1] > votes[1][1])
        and votes[0][0] != fields['question']
      ):
        fields['question'], wrong = votes[0][0], wrong + 1
    if wrong:
      notes.append(
        f'XCOPA {language}: the column `question` was wrong in {wrong} of {len(items)} rows (it '
        f'said {_told(kinds)}); '
        f'taken from {", ".join(trusted)} by idx'
      )
    elif len(kinds) == 1 and len(items) > 20 and language not in trusted:
      notes.append(
        f'warning: XCOPA {language}: the column `question` says {_told(kinds)}, which cannot be '
        'right; put the file of '
        f'{" or ".join(_XCOPA_TRUSTED)} beside it to have it mended'
      )
  if languages:
    _check_present(languages, every.fields, path)
  chosen = list(languages or every.languages)
  notes = [note for note in notes if any(f'XCOPA {language}:' in note for language in chosen)]
  return Items(chosen, {language: every.fields[language] for language in chosen}, notes)


def _told(kinds: Counter) -> str:
  return ', '.join(f'{kind} {count} times' for kind, count in kinds.most_common())


NLI_LABELS = ('entailment', 'neutral', 'contradiction')


def read_xnli(path: str, languages: Sequence[str] | None = None, split: str | None = None) -> Items:
  """XNLI: a file a language, TSV without header (premise, hypothesis, label; XTREME) or JSONL; or
  the original `xnli.dev.tsv` with all languages (columns language, gold_label, sentence1,
  sentence2).
  """
  if os.path.isfile(path) and read_text(path)[:200].split('\n')[0].split('\t')[:2] == [
    'language',
    'gold_label',
  ]:
    items: dict[str, dict[str, dict]] = {}
    for where, record in read_records(path):
      own = items.setdefault(record['language'], {})
      own[str(len(own))] = {
        'premise': _field(record, 'sentence1', where),
        'hypothesis': _field(record, 'sentence2', where),
        'answer': _index(record.get('gold_label'), NLI_LABELS, where, 'gold_label'),
      }
    known = [language for language in ENGLISH_NAMES if language in items]
    _check_present(languages or (), known, path)
    return Items(
      list(languages or known), {language: items[language] for language in languages or known}
    )

  def read(file: str, language: str):
    columns = ('premise', 'hypothesis', 'label')
    for number, (where, record) in enumerate(read_records(file, columns=columns)):
      label = record.get('label')
      answer = label if label in (0, 1, 2) else _index(label, NLI_LABELS, where, 'label')
      yield (
        str(number),
        {name: _field(record, name, where) for name in columns[:2]} | {'answer': int(answer)},
      )

  return _by_language(path, split, read, languages)


def read_story_cloze(
  path: str, languages: Sequence[str] | None = None, split: str | None = None
) -> Items:
  """XStoryCloze (TSV of the authors, or JSONL with lower-case names) and IndoCloze (CSV: Kalimat-1
  to 4, Correct Ending, Incorrect Ending, whose endings are put in an order drawn by place)."""

  def read(file: str, language: str):
    for number, (where, record) in enumerate(read_records(file)):
      record = {re.sub('[^a-z0-9]', '', key.lower()): value for key, value in record.items()}
      if 'correctending' in record:
        story = [_field(record, f'kalimat{i}', where) for i in range(1, 5)]
        endings = [_field(record, 'correctending', where), _field(record, 'incorrectending', where)]
        answer = _draw(2, 'story_cloze', number)
        item_id, endings = str(number), endings[::-1] if answer else endings
      else:
        story = [_field(record, f'inputsentence{i}', where) for i in range(1, 5)]
        first, second = ('randomfifthsentencequiz1', 'randomfifthsentencequiz2')
        endings = [
          _field(record, 'sentencequiz1', where, first),
          _field(record, 'sentencequiz2', where, second),
        ]
        answer = _index(record.get('answerrightending'), (1, 2), where, 'answer_right_ending')
        item_id = str(record.get('storyid', record.get('inputstoryid', number)))
      yield item_id, {'story': story, 'choices': endings, 'answer': answer}

  return _by_language(path, split, read, languages)


def read_belebele(
  path: str, languages: Sequence[str] | None = None, split: str | None = None
) -> Items:
  """Belebele: JSONL, a question a line (flores_passage, question, mc_answer1 to 4,
  correct_answer_num), or a passage a line ({"text", "items": [{"question", "answers": [{"text",
  "correct"}]}]}).
  """

  def read(file: str, language: str):
    for where, record in read_records(file):
      if 'items' in record:
        passage = _field(record, 'text', where)
        key = record.get('metadata', {}).get('link') or where.rsplit(' ', 1)[1]
        for number, asked in enumerate(record['items']):
          choices = [_field(answer, 'text', where) for answer in asked['answers']]
          answer = _index(
            True, [answer.get('correct') for answer in asked['answers']], where, 'correct'
          )
          fields = {'passage': passage, 'question': _field(asked, 'question', where)}
          yield f'{key}/{number}', fields | {'choices': choices, 'answer': answer}
      else:
        choices = [_field(record, f'mc_answer{i}', where) for i in range(1, 5)]
        answer = _index(record.get('correct_answer_num'), (1, 2, 3, 4), where, 'correct_answer_num')
        fields = {
          'passage': _field(record, 'flores_passage', where),
          'question': _field(record, 'question', where),
        }
        yield (
          f'{record.get("link")}/{record.get("question_number")}',
          fields | {'choices': choices, 'answer': answer},
        )

  return _by_language(path, split, read, languages)


def read_pawsx(
  path: str, languages: Sequence[str] | None = None, split: str | None = None
) -> Items:
  """PAWS-X: a TSV a language (id, sentence1, sentence2, label with a header, or XTREME's three
  columns without), or JSONL.

  Pairs without one of the sentences, which the published files have, are left out in that language.
  """

  def read(file: str, language: str):
    with_header = read_text(file).split('\n', 1)[0].strip().split('\t')[0] in ('id', 'sentence1')
    columns = None if with_header else ('sentence1', 'sentence2', 'label')
    for number, (where, record) in enumerate(read_records(file, columns=columns)):
      first, second = (_field(record, name, where) for name in ('sentence1', 'sentence2'))
      if first.strip() and second.strip():
        answer = _index(record.get('label'), (0, 1), where, 'label')
        yield (
          str(record.get('id', number)),
          {'sentence1': first, 'sentence2': second, 'answer': answer},
        )

  return _by_language(path, split, read, languages)


def read_mgsm(path: str, languages: Sequence[str] | None = None, split: str | None = None) -> Items:
  """MGSM: a TSV a language, question and number, no header."""

  def read(file: str, language: str):
    for number, (where, record) in enumerate(read_records(file, columns=('question', 'answer'))):
      target = _field(record, 'answer', where).strip().replace(',', '')
      if not re.fullmatch(r'-?\d+(\.\d+)?', target):
        raise RecordError(f'{where}: the answer {target!r} is no number')
      yield str(number), {'question': _field(record, 'question', where), 'answers': [target]}

  return _by_language(path, split, read, languages)


def read_squad(
  path: str, languages: Sequence[str] | None = None, split: str | None = None
) -> Items:
  """XQuAD, MLQA and others in SQuAD's JSON: {"data": [{"title", "paragraphs": [{"context", "qas":
  [...]}]}]}.
  """

  def read(file: str, language: str):
    try:
      articles = json.loads(read_text(file))['data']
    except (json.JSONDecodeError, KeyError, TypeError) as error:
      raise RecordError(f'{file}: not a SQuAD file ({type(error).__name__}: {error})') from None
    for article, paragraphs in enumerate(entry['paragraphs'] for entry in articles):
      for number, paragraph in enumerate(paragraphs):
        for asked in paragraph['qas']:
          where = f'{file}, question {asked.get("id")!r}'
          answers = list(
            dict.fromkeys(_field(answer, 'text', where) for answer in asked['answers'])
          )
          fields = {
            'context': _field(paragraph, 'context', where),
            'question': _field(asked, 'question', where),
          }
          yield (
            str(asked['id']),
            fields | {'answers': answers, 'article': article, 'paragraph': (article, number)},
          )

  return _by_language(path, split, read, languages)


def _draw(n: int, *seeds) -> int:
  """A number below n that depends on the seeds alone."""
  digest = hashlib.sha256('\x1f'.join(map(str, seeds)).encode()).digest()
  return int.from_bytes(digest[:8], 'big') % n
