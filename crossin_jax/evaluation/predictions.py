"""Files of saved model output, and `crossin score`, which turns one into figures.

Two layouts are read and written, plain or gzipped:

  * a line per item and language: {"id", "language", "choices", "answer", "prediction"};
  * SeaEval's record per item: {"id", "English": {"choices", "answer", "model_prediction"}, "Chinese": {...}, ...}, as JSON
    Lines or as one JSON list.

Languages are codes ('zh') or English names ('Chinese'); in memory they are codes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
import gzip
import json
import os
from pathlib import Path
import sys
import zlib

import numpy as np

from crossin_jax.evaluation import consistency, extraction, results
from crossin_jax.languages import ENGLISH_NAMES, code_of

LINES, SEAEVAL = 'lines', 'seaeval'

# Items of the published benchmarks (METHODS.md A.6), to notice a part of one.
TASK_ITEMS = {'cross_mmlu': 150, 'cross_logiqa': 176, 'cross_xquad': 1190}


class PredictionError(ValueError):
  """A prediction file that cannot be scored; the text names the file, the line and the remedy."""


@dataclass
class Predictions:
  """Model output on items that are parallel across languages."""

  ids: list[str]  # one per item
  languages: list[str]  # codes, in the order they first appear
  choices: list[list[list[str]]]  # [item][language][option] texts
  answers: np.ndarray  # int64 [items, languages], index of the right option
  texts: list[list[str]]  # [item][language] what the model wrote
  left_out: list[str] = field(default_factory=list)  # ids without every language, left out on request

  def extract(self, protocol: str, *, first_line: bool = False, prompt: int = 1) -> np.ndarray:
    """Chosen options, int64 [items, languages], -1 = unparsed; see `extraction.extract`."""
    chosen_NL = np.empty(self.answers.shape, np.int64)
    for i, item_id in enumerate(self.ids):
      for j, language in enumerate(self.languages):
        text = extraction.first_line(self.texts[i][j]) if first_line else self.texts[i][j]
        chosen_NL[i, j] = extraction.extract(
          text, self.choices[i][j], protocol, item_id=item_id, language=language, prompt=prompt
        )
    return chosen_NL


def read_predictions(path: str | os.PathLike, *, allow_partial: bool = False) -> Predictions:
  """Reads either layout.

  Raises:
    PredictionError: a line that is no JSON object, lacks a field or has one of the wrong kind (with the line number); an
      (id, language) given twice (with both lines); an item without a language that others have (with id and language),
      unless `allow_partial`, which leaves such items out and lists them in `left_out`.
    OSError: the file cannot be opened.
  """
  cells: dict[tuple[str, str], tuple[int, list[str], int, str]] = {}
  ids: dict[str, None] = {}  # dicts keep the order of first appearance
  languages: dict[str, None] = {}
  for number, unit, record in _records(path):
    where = f'{path}, {unit} {number}'
    for item_id, language, choices, answer, text in _cells(record, where):
      if (item_id, language) in cells:
        first = cells[item_id, language][0]
        raise PredictionError(
          f'{where}: item {item_id!r} in {language!r} was already given in {unit} {first}; keep one of them'
        )
      ids[item_id] = languages[language] = None
      cells[item_id, language] = (number, choices, answer, text)
  if not cells:
    raise PredictionError(f'{path} holds no predictions')
  left_out = []
  for item_id in ids:
    lacking = [language for language in languages if (item_id, language) not in cells]
    if lacking and not allow_partial:
      raise PredictionError(
        f'{path}: item {item_id!r} has no prediction in {", ".join(lacking)}, which other items have; '
        'consistency needs every item in every language. Add the missing lines, '
        'or leave incomplete items out with --allow-partial'
      )
    if lacking:
      left_out.append(item_id)
      continue
    counts = {language: len(cells[item_id, language][1]) for language in languages}
    if len(set(counts.values())) > 1:
      told = ', '.join(f'{language} {count}' for language, count in counts.items())
      raise PredictionError(
        f'{path}: item {item_id!r} has unequal numbers of choices: {told}; options must be parallel across languages'
      )
  kept = [item_id for item_id in ids if item_id not in set(left_out)]
  if not kept:
    raise PredictionError(f'{path}: no item has a prediction in all of {", ".join(languages)}; nothing can be scored')
  rows = [[cells[item_id, language] for language in languages] for item_id in kept]
  return Predictions(
    ids=kept,
    languages=list(languages),
    choices=[[cell[1] for cell in row] for row in rows],
    answers=np.array([[cell[2] for cell in row] for row in rows], np.int64),
    texts=[[cell[3] for cell in row] for row in rows],
    left_out=left_out,
  )


def write_predictions(path: str | os.PathLike, predictions: Predictions, layout: str = LINES) -> None:
  """Writes `layout` 'lines' or 'seaeval'; gzipped if the name ends in .gz; the file appears by rename."""
  if layout not in (LINES, SEAEVAL):
    raise ValueError(f'unknown layout {layout!r}; choose {LINES} or {SEAEVAL}')
  records: list[dict] = []
  for i, item_id in enumerate(predictions.ids):
    record: dict = {'id': item_id}
    for j, language in enumerate(predictions.languages):
      choices = predictions.choices[i][j]
      answer, text = choices[predictions.answers[i, j]], predictions.texts[i][j]
      if layout == LINES:
        records.append({'id': item_id, 'language': language, 'choices': choices, 'answer': answer, 'prediction': text})
      else:
        record[ENGLISH_NAMES[language]] = {'choices': choices, 'answer': answer, 'model_prediction': text}
    if layout == SEAEVAL:
      records.append(record)
  content = ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records).encode('utf-8')
  # NB: mtime=0, or the same predictions would give other bytes every second
  results.write_bytes(path, gzip.compress(content, mtime=0) if str(path).endswith('.gz') else content)


def _records(path: str | os.PathLike) -> Iterator[tuple[int, str, dict]]:
  """(number from 1, 'line' or 'record', object) of a JSON Lines file or a JSON list."""
  try:
    raw = Path(path).read_bytes()
    text = (gzip.decompress(raw) if raw[:2] == b'\x1f\x8b' else raw).decode('utf-8-sig')
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise PredictionError(
      f'{path}: the gzip stream is damaged or cut off ({error}); copy or write the file again'
    ) from error
  except UnicodeDecodeError as error:
    line = raw[: error.start].count(b'\n') + 1 if raw[:2] != b'\x1f\x8b' else '?'
    raise PredictionError(f'{path}, line {line}: not UTF-8 ({error.reason}); convert the file to UTF-8') from error
  if text.lstrip().startswith('['):
    try:
      listed = json.loads(text)
    except json.JSONDecodeError as error:
      raise PredictionError(f'{path}, line {error.lineno}: not valid JSON ({error.msg})') from error
    records = [(number, 'record', record) for number, record in enumerate(listed, 1)]
  else:
    records = []
    for number, line in enumerate(text.split('\n'), 1):  # NB: splitlines would cut at U+2028 inside a text
      if line.strip():
        try:
          records.append((number, 'line', json.loads(line)))
        except json.JSONDecodeError as error:
          raise PredictionError(
            f'{path}, line {number}: not valid JSON ({error.msg} at column {error.colno})'
          ) from error
  for number, unit, record in records:
    if not isinstance(record, dict):
      raise PredictionError(f'{path}, {unit} {number}: expected a JSON object, found {type(record).__name__}')
    yield number, unit, record


def _cells(record: Mapping, where: str) -> Iterator[tuple[str, str, list[str], int, str]]:
  """(id, language code, choices, answer index, text) of a record in either layout."""
  item_id = record.get('id')
  if isinstance(item_id, bool) or not isinstance(item_id, (str, int)) or item_id == '':
    raise PredictionError(f"{where}: 'id' must be a text or a number, found {item_id!r}")
  if 'language' in record:
    by_language = {record['language']: record}
  else:
    by_language = {key: value for key, value in record.items() if isinstance(value, dict)}
    if not by_language:
      raise PredictionError(
        f"{where}: neither a 'language' field nor a language with its record; expected one of the two layouts"
      )
  for name, fields in by_language.items():
    try:
      language = code_of(name)
    except (ValueError, AttributeError):
      raise PredictionError(
        f"{where}: {name!r} is no language; use a code such as 'zh' or an English name such as 'Chinese'"
      ) from None
    choices = fields.get('choices')
    if (
      not isinstance(choices, list)
      or not all(isinstance(choice, str) for choice in choices)
      or not 2 <= len(choices) <= len(extraction.LETTERS)
    ):
      raise PredictionError(
        f"{where}, {name}: 'choices' must be a list of 2 to {len(extraction.LETTERS)} texts, found {_shortened(choices)}"
      )
    text = fields.get('prediction', fields.get('model_prediction'))
    if not isinstance(text, str):
      raise PredictionError(
        f"{where}, {name}: 'prediction' (or 'model_prediction') must be a text, "
        f'empty if the model said nothing; found {_shortened(text)}'
      )
    yield str(item_id), language, choices, _answer_index(fields.get('answer'), choices, f'{where}, {name}'), text


def _answer_index(answer: object, choices: Sequence[str], where: str) -> int:
  """Index of an answer given as the choice's text, its text without the letter, its letter, or its index."""
  if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
    return answer
  if isinstance(answer, str):
    texts = [extraction.choice_text(choice) for choice in choices]
    letters = list(extraction.LETTERS[: len(choices)])
    for candidates in (list(choices), texts, letters, [f'({letter})' for letter in letters]):
      if candidates.count(answer.strip() if answer not in candidates else answer) == 1:
        return candidates.index(answer.strip() if answer not in candidates else answer)
  raise PredictionError(
    f'{where}: the answer {_shortened(answer)} is not exactly one of the choices {_shortened(list(choices))}'
  )


def _shortened(value: object) -> str:
  text = repr(value)
  return text if len(text) <= 120 else text[:117] + '...'


def score_main(argv: Sequence[str] | None = None) -> int:
  """`crossin score`: figures from saved predictions. Returns 0 ok, 1 failed, 2 bad usage."""
  parser = argparse.ArgumentParser(
    prog='crossin score',
    description='Accuracy, consistency and AC3 from saved predictions.',
    epilog='example: crossin score --task cross_mmlu --predictions predictions/cross_mmlu.jsonl.gz --protocol seaeval --json',
  )
  parser.add_argument('--task', required=True, help='name of the benchmark, e.g. cross_mmlu, cross_logiqa, cross_xquad')
  parser.add_argument(
    '--predictions',
    required=True,
    metavar='FILE',
    help="a line per item and language, or SeaEval's record per item; .gz too",
  )
  parser.add_argument(
    '--protocol',
    choices=extraction.PROTOCOLS,
    default='strict',
    help='strict: unparsed and tied answers are wrong (default); seaeval: the published rule',
  )
  parser.add_argument(
    '--first_line',
    '--first-line',
    action='store_true',
    help='cut each prediction at its first newline (few-shot runs)',
  )
  parser.add_argument(
    '--allow-partial',
    '--allow_partial',
    action='store_true',
    help='leave out items that lack a language, instead of refusing the file',
  )
  parser.add_argument(
    '--prompt', type=int, default=1, help='number of the prompt; seeds the draws of seaeval (default 1)'
  )
  parser.add_argument('--variant', help='name of the model in the result (default: the name of the file)')
  parser.add_argument('--seed', type=int, help='training seed of the model, copied to the result')
  parser.add_argument('--json', action='store_true', help='print the run as one JSON object, the last line of stdout')
  try:
    options = parser.parse_args(argv)
  except SystemExit as stop:
    return int(stop.code or 0)
  try:
    predictions = read_predictions(options.predictions, allow_partial=options.allow_partial)
  except (PredictionError, OSError) as error:
    print(f'crossin score: {error}', file=sys.stderr)
    return 1
  variant = options.variant or Path(options.predictions).name.split('.')[0] or 'model'
  chosen_NL = predictions.extract(options.protocol, first_line=options.first_line, prompt=options.prompt)
  summary = consistency.summarise(chosen_NL, predictions.answers, predictions.languages)
  run = results.build_run(
    summary,
    variant=variant,
    seed=options.seed,
    benchmark=options.task,
    protocol=options.protocol,
    method='generate',
  )
  _print_table(run, predictions)
  warning = consistency.constant_answer_warning(chosen_NL, predictions.answers)
  if warning:
    print(f'warning: {warning}', file=sys.stderr)
  if options.json:
    print(json.dumps(run, ensure_ascii=False))
  return 0


def _print_table(run: Mapping, predictions: Predictions) -> None:
  def say(text: str = '') -> None:
    print(text, file=sys.stderr)

  say(f'{run["benchmark"]}: {run["items"]} items in {len(predictions.languages)} languages, protocol {run["protocol"]}')
  if predictions.left_out:
    examples = ', '.join(predictions.left_out[:5]) + (', ...' if len(predictions.left_out) > 5 else '')
    say(f'left out, for want of a language: {len(predictions.left_out)} items ({examples})')
  expected = TASK_ITEMS.get(run['benchmark'])
  if expected and run['items'] != expected:
    say(f'note: {run["benchmark"]} has {expected} items; these figures are of {run["items"]}')
  say()
  for language, value in run['accuracy_by_language'].items():
    say(f'  {ENGLISH_NAMES[language]:<14}{100 * value:7.1f} %')
  say(f'  {"accuracy":<14}{100 * run["accuracy"]:7.1f} %')
  for s, value in run['consistency'].items():
    say(f'  {"C_" + s:<14}{100 * value:7.1f} %    {"AC3_" + s:<6}{100 * run["ac3"][s]:7.1f} %')
  say(f'  {"unparsed":<14}{100 * run["unparsed_rate"]:7.1f} %')
