"""`crossin judge`: compares the answers of two systems by the scores of a judge model.

The judge is behind an OpenAI-compatible endpoint. Prompt and sampling follow X-Instruction's
released code (docs/design/methods.md#b-8-evaluation); the aggregation is
docs/design/methods.md#c-21, see `crossin_jax.evaluation.judging.verdicts`.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
from pathlib import Path
import re
import sys
import tomllib
from typing import NamedTuple

import numpy as np

from crossin_jax import config
from crossin_jax.data.thoughts import without_thoughts
from crossin_jax.endpoint import session as endpoint_session
from crossin_jax.endpoint.client import Endpoint, Request
from crossin_jax.evaluation import record_fields
from crossin_jax.evaluation.judging import flags, verdicts
from crossin_jax.evaluation.judging import page as judge_page
from crossin_jax.evaluation.judging.verdicts import CUT, NO_REPLY, NO_SCORES, Judgement, Pair
from crossin_jax.languages import code_of
from crossin_jax.pages.words import language_name
from crossin_jax.processes import exit_status
from crossin_jax.storage.files import write_json, write_jsonl
from crossin_jax.workflow import command_line

ORDERS = ('ab', 'ba')
PARAMETERS = {'temperature': 0, 'top_p': 1, 'max_tokens': flags.MAX_TOKENS}  # as published
EXPECTED_TOKENS = 40  # two scores in their tags
_PROMPT = tomllib.loads(Path(__file__).with_name('prompt.toml').read_text(encoding='utf-8'))
SYSTEM, PROMPT = _PROMPT['system'], _PROMPT['user']
_TAGS = re.compile(r'<(/?\s*(?:question|answer1|answer2|score1|score2)\s*)>', re.IGNORECASE)
_SCORE = [
  re.compile(rf'<score{n}>\s*(\d+(?:\.\d+)?)(?:\s*/\s*10)?\s*</score{n}>', re.IGNORECASE)
  for n in (1, 2)
]


@dataclasses.dataclass(frozen=True)
class Result:
  """The content of judge.json."""

  systems: dict[str, str]  # the names of 'a' and 'b'
  pairs: int
  prompt: str  # digest of the judge's prompt
  resamples: int
  seed: int
  judges: list[verdicts.JudgeFigures]
  agreement: list[verdicts.Agreement]
  median_characters: dict[str, dict[str, float]]  # language -> median length of answers of a, b
  left_out: dict[str, int]  # numbers of skipped rows, 'malformed' and 'unmatched'


class Answer(NamedTuple):
  """One row of a file of answers."""

  where: str
  question: str
  output: str
  category: str


Key = tuple[str, str, str | None]  # id, language, asked_in


def read_answers(path: str, problems: list[str], longest: bool = False) -> dict[Key, Answer]:
  """The answers of one system.

  Args:
    path: JSONL, {"id", "language", "instruction" or "question", "input"?, "output" or "outputs",
      "category"?, "asked_in"?}.
    problems: receives a message for each malformed line.
    longest: use the longest of "outputs" instead of the shortest, the published choice.
  """
  parse = lambda record, where: _parse(record, where, longest)
  return record_fields.collect(path, parse, problems, _named)


def _parse(record: dict, where: str, longest: bool) -> tuple[Key, Answer]:
  def string(name: str) -> str:
    if not isinstance(record[name], str):
      raise ValueError(f"'{name}' must be a string, found {type(record[name]).__name__}")
    return record[name]

  id_ = record_fields.item_id(record)
  if not isinstance(record.get('language'), str):
    raise ValueError(
      '\'language\' is missing or not a string; it is the language of the answer, for instance "ur"'
    )
  language = code_of(record['language'])
  asked_in = code_of(string('asked_in')) if record.get('asked_in') is not None else None
  name = 'instruction' if 'instruction' in record else 'question'
  if name not in record or not string(name).strip():
    raise ValueError("'instruction' (or 'question') is missing or empty; the judge needs it")
  question = string(name) + (f'\n\n{string("input")}' if record.get('input') else '')
  category = '' if record.get('category') is None else string('category')
  if ('output' in record) == ('outputs' in record):
    raise ValueError("give either 'output' (a string) or 'outputs' (a list of strings)")
  if 'output' in record:
    output = string('output')
  elif record_fields.are_strings(record['outputs']):
    output = (max if longest else min)(record['outputs'], key=len)
  else:
    raise ValueError("'outputs' must be a list of strings, at least one")
  return (id_, language, asked_in), Answer(where, question, output, category)


def _named(key: Key) -> str:
  return f'id {key[0]!r} in {key[1]!r}' + (f' asked in {key[2]!r}' if key[2] else '')


def match(
  one: dict[Key, Answer], two: dict[Key, Answer], paths: tuple[str, str]
) -> tuple[list[Pair], list[str]]:
  """Pairs in the order of the first file, and a message for each row without a partner."""
  pairs, unmatched = [], []
  for key, a in one.items():
    b = two.get(key)
    if b is None:
      unmatched.append(f'{a.where}: {_named(key)} is not in {paths[1]}')
    elif a.question.split() != b.question.split():
      unmatched.append(
        f'{a.where}: {_named(key)} has another question in {b.where}; both systems must answer the '
        'same questions'
      )
    else:
      pairs.append(Pair(*key, a.category or b.category, a.question, a.output, b.output))
  unmatched += [
    f'{b.where}: {_named(key)} is not in {paths[0]}' for key, b in two.items() if key not in one
  ]
  return pairs, unmatched


def request(
  pair: Pair, order: str, model: str, max_tokens: int = PARAMETERS['max_tokens']
) -> Request:
  """The request to judge a pair in one order, 'ab' or 'ba'."""
  target = language_name(pair.language)
  languages = f'A question and two answers to it follow, all of them in {target}.'
  if pair.asked_in not in (None, pair.language):
    languages = (
      f'A question in {language_name(pair.asked_in)} follows, and two answers to it, which are to '
      f'be in {target}.'
    )
  answers = (pair.answer_a, pair.answer_b)
  # An answer must not close its block, nor contain scores.
  shown = [
    _TAGS.sub(r'[\1]', text)
    for text in (pair.question, *(answers if order == 'ab' else answers[::-1]))
  ]
  content = PROMPT.format(languages=languages, question=shown[0], first=shown[1], second=shown[2])
  messages = ({'role': 'system', 'content': SYSTEM}, {'role': 'user', 'content': content})
  parameters = {**PARAMETERS, 'max_tokens': max_tokens}
  return Request(
    messages, parameters, model=model, expected_tokens=min(EXPECTED_TOKENS, max_tokens)
  )


def scores(text: str) -> tuple[int, int] | None:
  """Both scores of a reply behind any thoughts; None unless each is given once, from 0 to 10.

  scores('<score1>8</score1>\\n<score2>7.0</score2>') == (8, 7)
  scores('<score1>8</score1>') is scores('<score1>11</score1> <score2>7</score2>') is None
  """
  parsed, text = [], without_thoughts(text)
  for pattern in _SCORE:
    values = {float(value) for value in pattern.findall(text)}
    if len(values) != 1 or not 0 <= (value := values.pop()) <= 10:
      return None
    parsed.append(int(value))  # as the released code does
  return parsed[0], parsed[1]


def ask(
  requests: Sequence[Request], endpoint: Endpoint, count: int, models: Sequence[str], check
) -> dict[str, list[Judgement]]:
  """model -> judgements, parallel to the pairs; a pair without usable replies is unjudged."""
  replies: list[tuple[int, int] | str] = [NO_REPLY] * len(requests)
  for reply in endpoint.complete(
    requests, lambda text: scores(text) is not None, progress='judge', check=check
  ):
    if reply.text is not None:
      unusable = CUT if reply.finish_reason == 'length' else NO_SCORES
      replies[reply.index] = scores(reply.text) if reply.accepted else unusable
  table = [Judgement(*replies[i : i + 2]) for i in range(0, len(replies), 2)]
  return {model: table[i * count : (i + 1) * count] for i, model in enumerate(models)}


def figures(
  pairs: Sequence[Pair],
  judgements: dict[str, Sequence[Judgement]],
  names: tuple[str, str],
  resamples: int,
  seed: int,
  left_out: dict[str, int],
) -> Result:
  def median_lengths(language: str) -> dict[str, float]:
    own = [pair for pair in pairs if pair.language == language]
    answers = {'a': [pair.answer_a for pair in own], 'b': [pair.answer_b for pair in own]}
    return {side: float(np.median(list(map(len, texts)))) for side, texts in answers.items()}

  return Result(
    dict(zip('ab', names)),
    len(pairs),
    hashlib.sha256(f'{SYSTEM}\n{PROMPT}'.encode()).hexdigest()[:16],
    resamples,
    seed,
    [
      verdicts.judge_figures(pairs, by_pair, names, resamples, seed, model)
      for model, by_pair in judgements.items()
    ],
    verdicts.agreement(pairs, judgements, resamples, seed),
    {language: median_lengths(language) for language in sorted({pair.language for pair in pairs})},
    left_out,
  )


def _rows(pairs: Sequence[Pair], judgements: dict) -> Iterator[dict]:
  """Rows of judgements.jsonl: one per judge and pair, with the raw scores of both orders."""
  for model, by_pair in judgements.items():
    for pair, judgement in zip(pairs, by_pair, strict=True):
      raw = {
        order: None if isinstance(both, str) else dict(zip(('score1', 'score2'), both))
        for order, both in dataclasses.asdict(judgement).items()
      }
      yield {
        'id': pair.id,
        'language': pair.language,
        'asked_in': pair.asked_in,
        'category': pair.category or None,
        'judge': model,
        'verdict': judgement.verdict,
        'unjudged': judgement.unjudged,
        **raw,
      }


def _pairs(args) -> tuple[list[Pair], dict]:
  """The pairs to judge, and the numbers of skipped rows.

  Raises:
    ValueError: malformed or unmatched rows without --allow_partial, or no pair.
  """
  problems: list[str] = []
  paths = (args.answers_a, args.answers_b)
  sides = [read_answers(path, problems, args.longest) for path in paths]
  if args.languages:
    wanted = [code_of(language) for language in args.languages.split(',')]
    sides = [{key: side[key] for key in side if key[1] in wanted} for side in sides]
  pairs, unmatched = match(*sides, paths)
  for message in [*problems, *unmatched]:
    print(message, file=sys.stderr)
  if (problems or unmatched) and not args.allow_partial:
    raise ValueError(
      f'{len(problems)} malformed lines and {len(unmatched)} rows without a partner, listed above; '
      'fix them, or skip them with --allow_partial'
    )
  if not pairs:
    raise ValueError(
      f'{paths[0]} and {paths[1]} have no pair of answers in common (by id, language and asked_in)'
    )
  return pairs, {'malformed': len(problems), 'unmatched': len(unmatched)}


def main(argv: list[str]) -> int:
  """The command line of `crossin judge`."""
  args = flags.parser().parse_args(argv)
  config.parse(args)
  pairs, left_out = _pairs(args)
  models = list(dict.fromkeys(args.judge_model))
  names = (args.name_a or Path(args.answers_a).stem, args.name_b or Path(args.answers_b).stem)
  requests = [
    request(pair, order, model, args.max_tokens)
    for model in models
    for pair in pairs
    for order in ORDERS
  ]
  what = f'{len(pairs):,} pairs, both orders, {len(models)} judge(s)'
  with endpoint_session.session(args, models, args.output_dir, requests, what) as session:
    if args.dry_run:
      result = {'status': 0, 'pairs': len(pairs), 'left_out': left_out, **session.dry_run()}
      return command_line.finish(args, result)
    judgements = ask(requests, session.endpoint, len(pairs), models, session.check)
    used = session.endpoint.counts().as_json()
  result = figures(pairs, judgements, names, args.resamples, args.seed, left_out)
  content = dataclasses.asdict(result)
  directory = Path(args.output_dir)
  write_jsonl(directory / 'judgements.jsonl', _rows(pairs, judgements))
  judge_page.write_page(directory / 'judge.html', result, pairs, judgements, args.examples)
  write_json(directory / 'judge.json', content, allow_nan=False)
  print('\n'.join(_summary(result, directory, args.max_tokens)))
  judged = any(judge.overall.judged for judge in result.judges)
  status = exit_status.DONE if judged else exit_status.FAILED
  return command_line.finish(args, {'status': status, **content, 'endpoint': used}, status)


def _summary(result: Result, directory: Path, max_tokens: int) -> Iterator[str]:
  """The tables and sentences for the terminal, as lines."""
  for judge in result.judges:
    yield f'\njudge {judge.model}: {judge.sentence}'
    yield (
      f'  {"":<18}{"win rate":>9}{"interval":>16}{"win":>6}{"tie":>6}{"loss":>6}{"unjudged":>10}'
    )
    by_language = [(language_name(code), row) for code, row in judge.by_language.items()]
    for name, row in [('all', judge.overall), *by_language, *judge.by_category.items()]:
      rate = '-' if row.win_rate is None else f'{100 * row.win_rate:.1f}'
      span = '-' if row.low is None else f'{100 * row.low:.1f} to {100 * row.high:.1f}'
      yield (
        f'  {name[:18]:<18}{rate:>9}{span:>16}{row.wins:>6}{row.ties:>6}{row.losses:>6}'
        f'{sum(row.unjudged.values()):>10}'
      )
    if judge.position.first_rate is not None:
      rate = 100 * judge.position.first_rate
      yield f'  the answer shown first got the higher score in {rate:.1f} % (half without bias)'
    for row in judge.asked_in_output_language:
      yield f'  {row.sentence}'
    if missing := judge.overall.unjudged[NO_REPLY]:
      yield (
        f'  {missing} pairs have no reply and are unjudged; start the same command again to retry '
        'them'
      )
    if cut := judge.overall.unjudged[CUT]:
      yield (
        f'  {cut} pairs are unjudged because a reply was cut off at --max_tokens {max_tokens} '
        'before both scores: give more, a judge that reasons needs 4,096 or more'
      )
  for row in result.agreement:
    if row.equal.value is not None:
      kappa = '-' if row.kappa.value is None else f'{row.kappa.value:.2f}'
      equal = 100 * row.equal.value
      yield f'{" and ".join(row.judges)}: equal verdicts {equal:.1f} %, kappa {kappa}'
  yield f'wrote {directory / "judge.html"}, judge.json, judgements.jsonl'
